"""Readers and writers: the right frame whatever the encoding, and one line for every file that cannot be trusted."""
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import real_data, refused

from moddist import files
from moddist.core import MODALITIES, DataError
from moddist.files import frame_shape, read_frames, read_mat, read_png16, read_video, resize_frames, write_png16, write_video

RGB, DEPTH, IR = (MODALITIES[k] for k in ('rgb', 'depth', 'ir'))
T, H, W = 60, 48, 64


@pytest.fixture(scope='module', autouse=True)
def _silence():
    "libav and decord print every damaged packet otherwise"
    import av
    av.logging.set_level(av.logging.PANIC)
    try:
        import decord
        decord.logging.set_level(decord.logging.QUIET)
    except ImportError: pass


# ---------------------------------------------------------------- videos that know their frame numbers

def scene(n=T):
    "uint8 [n, 48, 64, 3]: a moving texture, and below it the frame number as eight black or white blocks"
    y, x = np.mgrid[:H, :W]
    t = np.arange(n)[:, None, None]
    frames = np.stack([(3*x + 5*t) % 256, (4*y + 3*t) % 256, (x + y + 9*t) % 256], -1).astype(np.uint8)
    bits = (np.arange(n)[:, None] >> np.arange(8)) & 1
    frames[:, 32:] = np.repeat(255*bits, 8, 1).astype(np.uint8)[:, None, :, None]
    return frames


def numbers(frames):
    "Read the frame numbers back"
    blocks = frames[:, 36:44].reshape(len(frames), 8, 8, 8, 3)[:, :, :, 2:6].mean((1, 3, 4))
    return ((blocks > 127) << np.arange(8)).sum(1).tolist()


def encode(path, codec, **options):
    "Encode the scene as others do: YUV, key frames every 12 frames"
    import av
    with av.open(str(path), 'w') as box:
        stream = box.add_stream(codec, rate=25, options={'g': '12', **options})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate, stream.thread_count = H, W, 'yuv420p', 2_000_000, 1
        for f in scene(): box.mux(stream.encode(av.VideoFrame.from_ndarray(f, 'rgb24')))
        box.mux(stream.encode())
    return path


ENCODINGS = {
    'lossless.avi': lambda p: write_video(p, scene()),
    'lossless.mp4': lambda p: write_video(p, scene()),
    'h264-bframes.mp4': lambda p: encode(p, 'libx264', bf='3'),
    'h264-bframes.mkv': lambda p: encode(p, 'libx264', bf='3'),
    'h264.avi': lambda p: encode(p, 'libx264', bf='0'),
    'mpeg4.avi': lambda p: encode(p, 'mpeg4'),
    'mpeg4-bframes.avi': lambda p: encode(p, 'mpeg4', bf='2'),
    'mpeg4.mp4': lambda p: encode(p, 'mpeg4'),
}
NO_TIMES = ('lossless.avi', 'h264.avi', 'mpeg4-bframes.avi')     # AVI whose presentation times are guessed: decord jumps to other frames, so it is not used
INDICES = {'all': list(range(T)), 'uniform': [0, 8, 16, 25, 33, 42, 50, 59], 'last': [T - 1], 'scattered': [39, 3, 17, 17, 59, 0, 22, 47], 'backwards': [50, 40, 30, 20, 10]}


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    return {name: make(folder/name) for name, make in ENCODINGS.items()}


def test_the_scene_is_readable():
    assert numbers(scene()) == list(range(T))


@pytest.mark.parametrize('name', ENCODINGS)
def test_the_frames_asked_for(videos, name):
    "Whatever the container and codec, the frames are those asked for, in that order"
    for index in INDICES.values(): assert numbers(read_video(videos[name], index)) == index


@pytest.mark.parametrize('name', ENCODINGS)
def test_the_frames_asked_for_by_pyav(videos, name):
    for index in INDICES.values(): assert numbers(read_video(videos[name], index, 'av')) == index


@pytest.mark.parametrize('name', ENCODINGS)
def test_decord_equals_pyav(videos, name):
    "The same pixels, or a refusal of the whole file; never other frames"
    pytest.importorskip('decord', reason='decord is not installed')
    agree(videos[name], 'decord')


def test_torchcodec_equals_pyav(videos):
    pytest.importorskip('torchcodec', reason='torchcodec is not installed')
    for path in videos.values(): agree(path, 'torchcodec')


def agree(path, backend):
    refusals = 0
    for index in INDICES.values():
        want = read_video(path, index, 'av')
        try: np.testing.assert_array_equal(read_video(path, index, backend), want)
        except DataError: refusals += 1
    assert refusals == 0 or path.name in NO_TIMES and refusals == len(INDICES)


@pytest.mark.parametrize('name', ['lossless.avi', 'lossless.mp4'])
def test_write_video_loses_nothing(videos, name):
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 38, 3), dtype=np.uint8)
    for backend in ('av', None):
        np.testing.assert_array_equal(read_video(videos[name], None, backend), scene())
        np.testing.assert_array_equal(read_video(write_video(videos[name].with_name('noise-' + name), noise), None, backend), noise)


@pytest.mark.parametrize('name', ENCODINGS)
def test_frame_shape_decodes_nothing_and_is_right(videos, name):
    assert frame_shape(videos[name], RGB) == frame_shape(videos[name], IR) == (T, H, W)


def test_infrared_has_one_channel(videos):
    assert read_frames(videos['mpeg4.avi'], IR, [3, 4]).shape == (2, H, W, 1)


# ---------------------------------------------------------------- pictures that a tag turns

def tagged(path, turns, **mirror):
    "A video that is stored turned and says by how many quarter turns a player turns it back"
    av = pytest.importorskip('av', minversion='18')
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('libx264', rate=25, options={'g': '12', 'bf': '2', 'crf': '3'})
        frames = np.rot90(np.kron(scene(), np.ones((1, 4, 4, 1), np.uint8)), -turns, (1, 2))     # large enough for decord, which refuses 48 px
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], 'yuv420p', 1
        stream.set_display_rotation(90*turns, **mirror)
        for f in frames: box.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(f), 'rgb24')))
        box.mux(stream.encode())
    return path


@pytest.mark.parametrize('turns', range(4))
@pytest.mark.parametrize('container', ['mp4', 'mov', 'mkv'])
@pytest.mark.parametrize('backend', ['av', 'decord', 'torchcodec', None])
def test_every_backend_delivers_the_upright_picture(tmp_path, turns, container, backend):
    "As a telephone stores it; decord knows the tag in MP4 and QuickTime alone and is not used for others"
    if backend: pytest.importorskip(backend)
    path = tagged(tmp_path/f'phone.{container}', turns)
    assert frame_shape(path, RGB) == (T, 4*H, 4*W)
    if backend == 'decord' and container == 'mkv' and turns:
        refused(lambda: read_video(path, [3], backend), 'phone.mkv')
        return
    got = read_video(path, [50, 3], backend)
    assert np.abs(got.astype(int) - np.kron(scene()[[50, 3]], np.ones((1, 4, 4, 1), int))).mean() < 12    # YUV blurs the colours of the blocks
    np.testing.assert_array_equal(got, read_video(path, [50, 3], 'av'))
    assert numbers(got[:, 2::4, 2::4]) == [50, 3]


@pytest.mark.parametrize('turns', range(4))
def test_frame_by_frame_is_upright_too(tmp_path, turns):
    path = tagged(tmp_path/'phone.mp4', turns)
    np.testing.assert_array_equal(np.stack(list(files.iter_frames(path, RGB))), read_video(path, None, 'av'))


@pytest.mark.parametrize('how', [dict(hflip=True), dict(vflip=True)])
def test_mirrored_pictures_are_refused(tmp_path, how):
    path = tagged(tmp_path/'selfie.mp4', 1, **how)
    for call in (lambda: read_video(path), lambda: frame_shape(path, RGB), lambda: next(files.iter_frames(path, RGB))): refused(call, 'selfie.mp4', 'mirror', 'upright')


REAL = [('urfd', 'rgb_cam0/*.mp4', 3), ('urfd', 'rgb_cam1/*.mp4', 2), ('utd_mhad', 'rgb/*.avi', 4)]


@pytest.mark.parametrize('root, pattern, most', REAL)
def test_backends_agree_on_real_clips(root, pattern, most):
    "Scattered frames and the first, the last, one before the last"
    pytest.importorskip('decord', reason='decord is not installed')
    paths = sorted(real_data(root).glob(pattern))[:most]
    assert paths
    for i, path in enumerate(paths):
        n = frame_shape(path, RGB)[0]
        index = [n - 1, 0, *np.random.default_rng(i).choice(n, 3, replace=False).tolist(), n - 2]
        np.testing.assert_array_equal(read_video(path, index, 'decord'), read_video(path, index, 'av'))


# ---------------------------------------------------------------- without decord

@pytest.fixture
def without_decord(monkeypatch):
    "As on a machine where decord and torchcodec cannot be imported"
    for name in ('decord', 'torchcodec'): monkeypatch.setitem(sys.modules, name, None)
    files._default_backend.cache_clear()
    yield
    files._default_backend.cache_clear()


def test_without_decord_pyav_reads(videos, without_decord):
    assert files._default_backend() == 'av'
    assert numbers(read_video(videos['mpeg4.avi'], [5, 40, 7])) == [5, 40, 7]


def test_a_broken_decord_falls_back(videos, monkeypatch):
    "decord is installed and cannot open the file (its bundled ffmpeg is old): PyAV is tried before giving up"
    def broken(path, index, facts): raise RuntimeError('no codec\nfor this')
    monkeypatch.setitem(files._BACKENDS, files._default_backend(), broken)
    assert numbers(read_video(videos['mpeg4.avi'], [5])) == [5]
    monkeypatch.setitem(files._BACKENDS, 'av', broken)
    refused(lambda: read_video(videos['mpeg4.avi'], [5]), 'mpeg4.avi', 'for this')


# ---------------------------------------------------------------- damaged videos

def cut(path, folder, fraction):
    "The first part of a file under another name"
    raw = Path(path).read_bytes()
    short = folder/f'{fraction}-{Path(path).name}'
    short.write_bytes(raw[:int(len(raw)*fraction)])
    return short


def check_cut(path, whole):
    "A cut file is refused by name, or all its frames are there and are the right ones"
    before = sorted(os.listdir(path.parent))
    for backend in ('av', None):
        try: got = read_video(path, None, backend)
        except DataError as e:
            assert path.name in str(e) and '\n' not in str(e)
            continue
        assert len(whole) - len(got) <= 2
        np.testing.assert_array_equal(got, whole[:len(got)])
    assert sorted(os.listdir(path.parent)) == before


@pytest.mark.parametrize('name', ['lossless.avi', 'mpeg4.avi', 'h264-bframes.mp4', 'lossless.mp4'])
@pytest.mark.parametrize('fraction', [0, .001, .02, .2, .5, .8, .9])
def test_truncated_video(videos, tmp_path, name, fraction):
    refused(lambda: read_video(cut(videos[name], tmp_path, fraction)), name)
    refused(lambda: frame_shape(tmp_path/f'{fraction}-{name}', RGB), name)


@pytest.mark.parametrize('fraction', [.3, .5, .9])
def test_truncated_matroska(videos, tmp_path, fraction):
    refused(lambda: read_video(cut(videos['h264-bframes.mkv'], tmp_path, fraction)), '.mkv')


@pytest.mark.parametrize('name', ['lossless.avi', 'mpeg4.avi', 'h264-bframes.mp4'])
def test_last_bytes_lost(videos, tmp_path, name):
    "Cuts through the index behind the last frame: no frame may be wrong"
    whole = read_video(videos[name], None, 'av')
    size = videos[name].stat().st_size
    last = _last_packets(videos[name])
    for end in {size - 1, size - 20, last[-1] + 8}: check_cut(cut(videos[name], tmp_path, (end + .5)/size), whole)


@pytest.mark.parametrize('name', ['lossless.avi', 'mpeg4.avi'])
def test_last_frame_cut_in_half(videos, tmp_path, name):
    size, last, whole = videos[name].stat().st_size, _last_packets(videos[name]), read_video(videos[name], None, 'av')
    for end in (last[-1] - 1, (last[-2] + last[-1])//2): check_cut(cut(videos[name], tmp_path, (end + .5)/size), whole)


def _last_packets(path):
    "Byte positions after the last packets of a file"
    import av
    with av.open(str(path)) as box: ends = sorted(p.pos + p.size for p in box.demux(video=0) if p.size)
    return ends[-3:]


def test_real_avi_with_its_second_half_lost(tmp_path):
    "Neither hangs nor returns repeated frames"
    path = sorted((real_data('utd_mhad')/'rgb').glob('*.avi'))[0]
    for fraction in (.25, .5, .75): refused(lambda: read_video(cut(path, tmp_path, fraction), [0, 1, 2]), path.name, 'truncated')


def test_a_truncated_file_that_is_copied_again_is_read(videos, tmp_path):
    "Facts about a file are remembered only as long as it is the same file"
    path = cut(videos['mpeg4.avi'], tmp_path, .5)
    refused(lambda: read_video(path))
    path.write_bytes(videos['mpeg4.avi'].read_bytes())
    os.utime(path, ns=(1, 1))
    assert len(read_video(path)) == T


def test_videos_that_are_none(videos, tmp_path):
    import av
    (tmp_path/'empty.avi').touch()
    (tmp_path/'text.avi').write_text('not a video\n'*100)
    (tmp_path/'folder.avi').mkdir()
    with av.open(str(tmp_path/'sound.mp4'), 'w') as box:
        stream = box.add_stream('aac', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate = 8000
        box.mux(stream.encode(frame)); box.mux(stream.encode())
    with av.open(str(tmp_path/'noframes.avi'), 'w') as box:
        stream = box.add_stream('mpeg4', rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, 'yuv420p'
        box.start_encoding()
    for name, word in (('empty.avi', 'not a readable video'), ('text.avi', 'not a readable video'), ('folder.avi', 'no such video'), ('none.avi', 'no such video'), ('sound.mp4', 'no video stream'), ('noframes.avi', '')):
        refused(lambda: read_video(tmp_path/name), name, word)
        refused(lambda: frame_shape(tmp_path/name, RGB), name, '0 frames' if name == 'folder.avi' else word) # a folder might hold images


@pytest.mark.parametrize('index', [[], [-1], [T], [0, 10**9]])
def test_frames_that_are_not_there(videos, index):
    refused(lambda: read_video(videos['mpeg4.avi'], index), 'mpeg4.avi', f'0..{T - 1}')


# ---------------------------------------------------------------- depth PNGs

def png(array, **how):
    "Bytes of a PNG"
    from PIL import Image
    out = io.BytesIO()
    Image.fromarray(array).save(out, 'png', **how)
    return out.getvalue()


@pytest.fixture(scope='module')
def depth():
    d = np.random.default_rng(0).integers(0, 65536, (3, 9, 7), dtype=np.uint16)
    d[0, 0, :3] = 0, 255, 65535
    return d


def test_png_keeps_16_bits(tmp_path, depth):
    folder = write_png16(tmp_path/'d', depth)
    np.testing.assert_array_equal(read_png16(folder), depth)
    np.testing.assert_array_equal(read_png16(folder, [2, 0, 0]), depth[[2, 0, 0]])
    np.testing.assert_array_equal(read_frames(folder, DEPTH)[..., 0], depth)
    assert frame_shape(folder, DEPTH) == (3, 9, 7)
    import av                                                        # another library reads the same numbers
    with av.open(str(folder/'Depth-00000001.png')) as box: image = next(box.decode(video=0))
    assert image.format.name == 'gray16be'
    np.testing.assert_array_equal(image.to_ndarray(), depth[0])


def test_numeric_order_of_names(tmp_path):
    "frame10 comes after frame9, whatever the padding; other files and dot files are no frames"
    d = np.arange(1, 13, dtype=np.uint16)[:, None, None]*np.ones((4, 5), np.uint16)
    names = [f'frame{i}.png' for i in range(1, 12)] + ['frame0012.PNG']
    for i in np.random.default_rng(0).permutation(12): (tmp_path/names[i]).write_bytes(png(d[i]))
    (tmp_path/'.frame3.png').write_bytes(b'x'); (tmp_path/'notes.txt').write_text('x')
    np.testing.assert_array_equal(read_png16(tmp_path)[:, 0, 0], np.arange(1, 13))


def test_depth_png_cut_anywhere(tmp_path, depth):
    "Every prefix of a PNG is refused by name"
    folder = write_png16(tmp_path/'d', depth)
    file, raw = folder/'Depth-00000002.png', png(depth[1])
    for n in range(len(raw)):
        file.write_bytes(raw[:n])
        refused(lambda: read_png16(folder), file, f'{n} bytes')
    file.write_bytes(raw)
    np.testing.assert_array_equal(read_png16(folder), depth)


def test_depth_png_with_a_damaged_byte(tmp_path, depth):
    "A changed byte is refused, or changes nothing"
    raw = png(depth[1])
    folder = write_png16(tmp_path/'d', depth[:1])
    wrong = []
    for n in range(len(raw)):
        (folder/'Depth-00000001.png').write_bytes(raw[:n] + bytes([raw[n] ^ 0x55]) + raw[n + 1:])
        try: same = np.array_equal(read_png16(folder)[0], depth[1])
        except DataError: continue
        if not same: wrong.append(n)
    assert not wrong, f'bytes {wrong} of {len(raw)} may change unnoticed'


@pytest.mark.parametrize('array, words', [
    (np.full((4, 5), 200, np.uint8), ['8-bit', '1 channel']), (np.full((4, 5, 3), 200, np.uint8), ['8-bit', '3 channel']), (np.full((4, 5, 4), 200, np.uint8), ['4 channel']),
    (np.eye(5, dtype=bool), ['expected one channel of 16-bit'])])
def test_depth_of_another_kind(tmp_path, array, words):
    (tmp_path/'a.png').write_bytes(png(array))
    refused(lambda: read_png16(tmp_path), 'a.png', '16-bit', *words)
    refused(lambda: frame_shape(tmp_path, DEPTH), 'a.png')


def test_a_jpeg_called_png(tmp_path):
    from PIL import Image
    Image.new('L', (8, 8)).save(tmp_path/'a.png', 'jpeg')
    refused(lambda: read_png16(tmp_path), 'a.png')


def test_folders_that_hold_no_depth(tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'file').touch()
    for name, word in (('empty', '0 frames'), ('none', 'folder of images'), ('file', 'folder of images')):
        refused(lambda: read_png16(tmp_path/name), tmp_path/name, word)
        refused(lambda: frame_shape(tmp_path/name, DEPTH), tmp_path/name, word)


def test_frames_of_different_sizes(tmp_path):
    for i, shape in enumerate([(4, 5), (4, 5), (5, 4)]): (tmp_path/f'{i}.png').write_bytes(png(np.ones(shape, np.uint16)))
    refused(lambda: read_png16(tmp_path), '2.png')


@pytest.mark.parametrize('index', [[], [-1], [3]])
def test_depth_frames_that_are_not_there(tmp_path, depth, index):
    refused(lambda: read_png16(write_png16(tmp_path/'d', depth), index), '0..2')


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.float32])
def test_only_uint16_is_written(tmp_path, depth, dtype):
    refused(lambda: write_png16(tmp_path/'d', depth.astype(dtype)), np.dtype(dtype).name, 'uint16')
    assert not (tmp_path/'d').exists()


def test_real_depth_pngs():
    "Kinect frames of UR Fall Detection are 16-bit"
    folder = next(p for p in sorted((real_data('urfd')/'depth16_cam0').rglob('*')) if p.is_dir() and list(p.glob('*.png')))
    x = read_png16(folder, [0, 1])
    assert x.dtype == np.uint16 and x.max() > 255 and x.shape[1:] == frame_shape(folder, DEPTH)[1:]


# ---------------------------------------------------------------- .mat

@pytest.fixture
def mat(tmp_path):
    from scipy.io import savemat
    def write(**arrays): savemat(tmp_path/'a.mat', arrays); return tmp_path/'a.mat'
    return write


def test_mat(mat, depth):
    path = mat(d_depth=np.moveaxis(depth, 0, 2), other=np.eye(3))
    np.testing.assert_array_equal(read_mat(path), depth)
    np.testing.assert_array_equal(read_frames(path, DEPTH, [2, 0])[..., 0], depth[[2, 0]])
    assert frame_shape(path, DEPTH) == (3, 9, 7)


def test_mat_that_cannot_be_used(mat, depth, tmp_path):
    d = np.moveaxis(depth, 0, 2)
    refused(lambda: read_mat(mat(a=d.astype(float))), 'a.mat', 'float64', 'uint16')
    refused(lambda: read_mat(mat(a=d, b=d)), 'a.mat', 'a, b')
    np.testing.assert_array_equal(read_mat(mat(a=d, b=d), 'b'), depth)
    refused(lambda: read_mat(mat(a=d), 'd_depth'), 'a.mat', 'd_depth', 'found a')
    refused(lambda: read_mat(mat(a=d[..., 0])), 'a.mat', 'found none')
    (tmp_path/'new.mat').write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM' + b'\x89HDF\r\n')
    refused(lambda: read_mat(tmp_path/'new.mat'), 'new.mat')
    raw = mat(a=d).read_bytes()                                       # the last 6 bytes are padding
    for n in range(0, len(raw) - 6, 13):
        (tmp_path/'cut.mat').write_bytes(raw[:n])
        refused(lambda: read_mat(tmp_path/'cut.mat'), 'cut.mat')


def test_mat_that_is_not_there(tmp_path):
    refused(lambda: read_mat(tmp_path/'none.mat'), 'none.mat', 'no such file')


def test_real_mat_depth():
    "UTD-MHAD: uint16 millimetres of a person at arm's length to a few metres, as many frames as its table says"
    import pandas as pd
    root = real_data('utd_mhad')
    path = sorted((root/'depth').glob('*.mat'))[0]
    x = read_mat(path)
    table = pd.read_csv(root/'index.csv')
    row = table[table.apply(lambda r: path.stem.removesuffix('_depth') in map(str, r), axis=1)].iloc[0]
    n = next(int(row[c]) for c in table if 'depth' in c and str(row[c]).replace('.0', '').isdigit())
    assert x.dtype == np.uint16 and x.shape == (n, 240, 320) == frame_shape(path, DEPTH)
    assert 500 < np.median(x[x > 0]) < 5000 and (x == 0).mean() > .5


# ---------------------------------------------------------------- the rest

@pytest.mark.parametrize('key', ['flow', 'audio', 'skeleton', 'boxes', 'inertial'])
def test_modalities_without_a_reader(tmp_path, key):
    refused(lambda: frame_shape(tmp_path/'a.npy', MODALITIES[key]), key, 'a.npy')


@pytest.mark.parametrize('size', [(18, 14), (9, 7), (5, 4), (23, 31), (1, 1)])
def test_resize_never_blends_depth(depth, size):
    out = resize_frames(depth[..., None], size, DEPTH)
    assert out.shape == (3, *size, 1) and out.dtype == np.uint16
    for a, b in zip(out, depth): assert set(a.ravel()) <= set(b.ravel())


def test_resize_keeps_places():
    "Both interpolations put the middle of a block where it was: nearest is not shifted against area and linear"
    block = np.zeros((1, 40, 60, 1), np.uint16)
    block[0, 10:20, 30:45] = 1000
    for size in ((20, 30), (26, 45), (80, 120), (97, 131), (33, 100)):
        near, smooth = resize_frames(block, size, DEPTH)[0, ..., 0] > 500, resize_frames((block//8).astype(np.uint8), size, RGB)[0, ..., 0] > 62
        for mask in (near, smooth):
            want = np.array([15*size[0]/40, 37.5*size[1]/60]) - .5
            assert np.abs(np.argwhere(mask).mean(0) - want).max() <= .51


LOOP = '''import faulthandler, sys
faulthandler.dump_traceback_later(120, exit=True)
import av
av.logging.set_level(av.logging.ERROR)
from moddist.files import read_video
for i in range(300): read_video(sys.argv[1], [i % 6], 'av')
'''


def test_leaving_a_video_early_never_waits_for_ever(tmp_path):
    "Where messages of FFmpeg go to Python, freeing a decoder whose threads still work stops both: seen in long test runs"
    path = write_video(tmp_path/'a.mp4', np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8))
    with open(tmp_path/'err', 'w') as err: child = subprocess.run([sys.executable, '-W', 'ignore', '-c', LOOP, path], stdout=err, stderr=err)
    assert child.returncode == 0, (tmp_path/'err').read_text()[-1500:]
