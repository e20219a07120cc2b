"""Sound by time: the right samples from any container, the golden sizes of radevski2022 4.5, and clicks that stay with their frames."""
import wave as wavfile

import numpy as np
import pytest
import torch
from conftest import real_data, refused
from hypothesis import given, settings, strategies as st

from moddist import audio
from moddist.audio import audio_image, audio_length, augment_audio, hz_of, mel, mel_filters, mel_of, read_audio, windows


@pytest.fixture(scope='module', autouse=True)
def _silence():
    import av
    av.logging.set_level(av.logging.PANIC)


def melody(seconds, rate, seed=0):
    "Band-limited noise: no two places alike, nothing above 3 kHz"
    n = round(seconds*rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=n))
    spectrum[int(3000*seconds):] = 0
    x = np.fft.irfft(spectrum, n)
    return .5*x/abs(x).max()


def encode(path, x, rate, codec, layout='mono', film=None, fps=25, delay=0., late=0, gap=(1e9, 0.), **options):
    "A sound file, or a video whose sound starts after `delay` seconds and whose film after `late` frames; after gap[0] seconds of sound gap[1] seconds are left out; x is [N] or [channels, N]"
    import av
    x = np.atleast_2d(x)
    with av.open(str(path), 'w') as box:
        sound = box.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec == 'libopus': sound.bit_rate = 128_000
        if film is not None:
            video = box.add_stream('libx264rgb' if str(path).endswith('mkv') else 'mpeg4', rate=fps, width=32, height=32, pix_fmt='rgb24' if str(path).endswith('mkv') else 'yuv420p')
            for k, f in enumerate(film):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), f, np.uint8), 'rgb24')
                picture.pts = k + late
                box.mux(video.encode(picture))
            box.mux(video.encode())
        for i in range(0, x.shape[1], 960):
            chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[:, i:i + 960], dtype=np.float32), 'fltp', layout)
            chunk.rate, chunk.pts = rate, i + round((delay + gap[1]*(i/rate >= gap[0]))*rate)
            box.mux(sound.encode(chunk))
        box.mux(sound.encode())
    return path


# ---------------------------------------------------------------- reading

LOSSLESS = [('wav', 'pcm_s16le'), ('wav', 'pcm_f32le'), ('wav', 'pcm_u8'), ('flac', 'flac'), ('mkv', 'pcm_s16le'), ('mov', 'pcm_s16be')]
LOSSY = [('m4a', 'aac'), ('mp4', 'aac'), ('mp3', 'libmp3lame'), ('webm', 'libopus'), ('mka', 'flac'), ('ogg', 'libopus'), ('aac', 'aac')]


@pytest.mark.parametrize('suffix, codec', LOSSLESS + LOSSY, ids=lambda v: v)
def test_every_container_keeps_time(tmp_path, suffix, codec):
    "The whole recording sits where it was recorded, and a part equals that part of the whole"
    rate = 48_000
    x = melody(4, rate)
    path = encode(tmp_path/f'a.{suffix}', x, rate, codec)
    whole = read_audio(path, rate=rate)
    assert abs(len(whole) - len(x)) < .08*rate and abs(audio_length(path) - 4) < .08
    n = min(len(whole), len(x))
    far = np.arange(-300, 301)
    fit = [np.dot(whole[1000 + k:n - 1000 + k], x[1000:n - 1000]) for k in far]
    assert abs(far[int(np.argmax(fit))]) <= 48                          # within a millisecond
    if (suffix, codec) in LOSSLESS: np.testing.assert_allclose(whole[:n], x[:n], atol=.008 if codec == 'pcm_u8' else 1e-4)
    small = read_audio(path)
    assert small.dtype == np.float32 and abs(len(small) - 64_000) < 1280
    for start, stop in ((0., .5), (1.37, 2.91), (2.5, 2.6), (3.2, 3.9)):
        part = read_audio(path, start, stop)
        same = small[round(start*16_000):round(stop*16_000)]
        assert len(part) == len(same)
        if suffix == 'webm':                                            # its time stamps are whole milliseconds
            fit = [np.dot(part[20:-20], small[round(start*16_000) + 20 + k:][:len(part) - 40]) for k in range(-20, 21)]
            assert abs(int(np.argmax(fit)) - 20) <= 16 and max(fit) > .98*np.dot(part[20:-20], part[20:-20])
        else: np.testing.assert_allclose(part, same, atol=2e-2 if (suffix, codec) in LOSSY else 1e-5)


def test_a_long_recording_is_read_in_parts(tmp_path):
    "A part far inside decodes a second or two of packets, not all of them"
    rate = 16_000
    x = melody(120, rate)
    path = encode(tmp_path/'a.wav', x, rate, 'pcm_s16le')
    frames = 0
    real = audio._mono
    def counted(frame):
        nonlocal frames
        frames += frame.samples
        return real(frame)
    audio._mono = counted
    try: part = read_audio(path, 100, 101)
    finally: audio._mono = real
    np.testing.assert_allclose(part, x[100*rate:101*rate], atol=1e-4)
    assert frames < 4*rate


@pytest.mark.parametrize('rate_in', [8_000, 24_000, 44_100, 48_000])
def test_resampling_keeps_tones_and_stops_aliases(tmp_path, rate_in):
    t = np.arange(2*rate_in)/rate_in
    low = .5*np.sin(2*np.pi*1000*t)
    high = .4*np.sin(2*np.pi*11_000*t) if rate_in > 24_000 else 0*t
    y = read_audio(encode(tmp_path/'a.wav', low + high, rate_in, 'pcm_f32le'), .5, 1.5)
    np.testing.assert_allclose(y, .5*np.sin(2*np.pi*1000*(np.arange(16_000)/16_000 + .5)), atol=.01)


def test_stereo_and_wide_integers(tmp_path):
    x = np.stack([melody(1, 16_000, 1), melody(1, 16_000, 2)])
    for codec in ('pcm_s16le', 'pcm_s32le'): np.testing.assert_allclose(read_audio(encode(tmp_path/f'{codec}.wav', x, 16_000, codec, 'stereo')), x.mean(0), atol=1e-4)
    with wavfile.open(str(tmp_path/'std.wav'), 'wb') as f:               # by another writer: the standard library
        f.setnchannels(2); f.setsampwidth(2); f.setframerate(16_000); f.writeframes((x.T*32767).astype('<i2').tobytes())
    np.testing.assert_allclose(read_audio(tmp_path/'std.wav'), x.mean(0), atol=1e-4)


def test_second_zero_is_the_first_picture(tmp_path):
    "A sound track that starts late is silent first, and the length is that of the pictures"
    x = melody(1, 48_000)
    path = encode(tmp_path/'a.mkv', x, 48_000, 'pcm_s16le', film=range(50), delay=.5)
    y = read_audio(path, rate=48_000)
    assert audio_length(path) == pytest.approx(2, abs=.05) and abs(y[:23_000]).max() == 0
    np.testing.assert_allclose(y[24_050:71_950], x[50:47_950], atol=1e-3)
    assert abs(y[72_100:]).max() == 0


def test_sound_before_the_first_picture_is_before_second_zero(tmp_path):
    x = melody(2, 48_000)
    path = encode(tmp_path/'a.mov', x, 48_000, 'pcm_s16le', film=range(25), late=20)
    y = read_audio(path, rate=48_000)
    assert audio_length(path) == pytest.approx(1, abs=.01)
    np.testing.assert_allclose(y, x[38_400:86_400], atol=1e-3)            # 20 frames of 25 per second earlier
    y = read_audio(encode(tmp_path/'b.mov', x, 48_000, 'pcm_s16le', film=range(60), late=20), rate=48_000)
    assert len(y) == 2.4*48_000 and abs(y[57_700:]).max() == 0            # and a film that outlasts its sound is silent, not truncated
    np.testing.assert_allclose(y[:57_600], x[38_400:], atol=1e-3)


def test_a_gap_in_the_sound_stays_a_gap(tmp_path):
    "What comes after a hole keeps its place"
    x = melody(2, 48_000)
    path = encode(tmp_path/'a.mkv', x, 48_000, 'pcm_s16le', gap=(1., .1))
    y = read_audio(path, rate=48_000)
    np.testing.assert_allclose(y[:48_000], x[:48_000], atol=1e-3); assert abs(y[48_100:52_700]).max() == 0
    np.testing.assert_allclose(y[52_800:100_000], x[48_000:95_200], atol=1e-3)


def test_mp3_of_unknown_length(tmp_path):
    "A variable bit rate and no header: ffmpeg guesses 59 s for 40, and a part must still be that part of the whole"
    import av
    x = melody(40, 48_000)
    x[:20*48_000] *= .0005
    with av.open(str(tmp_path/'a.mp3'), 'w', options={'write_xing': '0'}) as box:
        sound = box.add_stream('libmp3lame', rate=48_000, layout='mono', options={'flags': '+qscale', 'global_quality': '236'})
        for i in range(0, len(x), 960):
            chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[None, i:i + 960], dtype=np.float32), 'fltp', 'mono')
            chunk.rate, chunk.pts = 48_000, i
            box.mux(sound.encode(chunk))
        box.mux(sound.encode())
    assert audio_length(tmp_path/'a.mp3') == pytest.approx(40, abs=.1)
    whole = read_audio(tmp_path/'a.mp3')
    np.testing.assert_allclose(read_audio(tmp_path/'a.mp3', 26, 27), whole[26*16_000:27*16_000], atol=1e-5)
    assert np.dot(whole[26*16_000:27*16_000], whole[26*16_000:27*16_000]) > 10


def test_hdf5(tmp_path):
    "Waveforms by video, 24 kHz (`ekazakos/auditory-slow-fast`); also 16-bit integers, and a rate of their own"
    h5py = pytest.importorskip('h5py')
    x = melody(3, 24_000).astype(np.float32)
    with h5py.File(tmp_path/'all.hdf5', 'w') as f:
        f['P01_01'], f['ints'], f['slow'], f['group/P02'] = x, (x*32767).astype(np.int16), x, x
        f['slow'].attrs['rate'] = 8_000
    at = lambda name: f'{tmp_path}/all.hdf5::{name}'
    assert audio_length(at('P01_01')) == 3 and audio_length(at('slow')) == 9
    np.testing.assert_array_equal(read_audio(at('P01_01'), 1, 2, 24_000), x[24_000:48_000])
    np.testing.assert_allclose(read_audio(at('ints'), rate=24_000), x, atol=1e-4)
    np.testing.assert_allclose(read_audio(at('group/P02'), 1.25, 2.75), read_audio(at('P01_01'))[20_000:44_000], atol=1e-6)
    assert len(read_audio(at('slow'))) == 9*16_000
    refused(lambda: read_audio(at('P09_09')), 'P09_09', 'such as'); refused(lambda: read_audio(at('group')), 'no waveform')
    refused(lambda: read_audio(f'{tmp_path}/none.hdf5::a'), 'no such file')
    (tmp_path/'cut.hdf5').write_bytes((tmp_path/'all.hdf5').read_bytes()[:3000])
    refused(lambda: read_audio(f'{tmp_path}/cut.hdf5::P01_01'), 'cut.hdf5', 'truncated')


@pytest.mark.parametrize('suffix, codec', [('wav', 'pcm_s16le'), ('flac', 'flac'), ('m4a', 'aac'), ('mp3', 'libmp3lame'), ('mov', 'pcm_s16be')], ids=lambda v: v)
def test_truncated(tmp_path, suffix, codec):
    path = encode(tmp_path/f'a.{suffix}', melody(4, 48_000), 48_000, codec)
    cut = tmp_path/f'cut.{suffix}'
    cut.write_bytes(path.read_bytes()[:path.stat().st_size*6//10])
    refused(lambda: read_audio(cut), cut.name)


def test_bad_files(tmp_path):
    import av
    refused(lambda: read_audio(tmp_path/'none.wav'), 'none.wav', 'no such')
    (tmp_path/'empty.wav').write_bytes(b''); refused(lambda: audio_length(tmp_path/'empty.wav'), 'empty.wav')
    (tmp_path/'text.wav').write_text('hello'*100); refused(lambda: read_audio(tmp_path/'text.wav'), 'text.wav')
    with av.open(str(tmp_path/'mute.mp4'), 'w') as box:
        video = box.add_stream('mpeg4', rate=25, width=32, height=32, pix_fmt='yuv420p')
        for _ in range(5): box.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), 'rgb24')))
        box.mux(video.encode())
    refused(lambda: read_audio(tmp_path/'mute.mp4'), 'mute.mp4', 'holds no sound')
    path = encode(tmp_path/'a.wav', melody(1, 16_000), 16_000, 'pcm_s16le')
    for start, stop in ((-1, None), (1.5, None), (.5, .5), (.6, .2)): refused(lambda: read_audio(path, start, stop), 'a.wav', '1.00 s')
    assert len(read_audio(path, .5, 99)) == 8_000                       # later than the end = to the end


# ---------------------------------------------------------------- windows

@given(st.integers(0, 400), st.lists(st.floats(-3, 30), min_size=1, max_size=8), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_windows_are_cut_around_their_centres(n, centres, size):
    wave = np.arange(1, n + 1, dtype=np.float32)                         # sample k holds k + 1, silence 0
    out = windows(wave, centres, rate=20, window_s=size/20)
    assert out.shape == (len(centres), size)
    for row, c in zip(out, centres):
        k = round(c*20) - size//2 + np.arange(size)
        np.testing.assert_array_equal(row, np.where((k >= 0) & (k < n), k + 1, 0))


@pytest.mark.parametrize('suffix, codec, fps', [('mp4', 'aac', 25), ('mkv', 'pcm_s16le', 50), ('mp4', 'aac', 30), ('mkv', 'pcm_s16le', 60)])
def test_a_click_is_heard_in_the_frame_that_shows_it(tmp_path, suffix, codec, fps):
    "One white frame, one click in its middle; no rate is passed anywhere"
    n, flash = 3*fps, 2*fps - 3
    x = np.zeros(3*48_000)
    at = round((flash + .5)/fps*48_000)
    x[at - 20:at + 20] = .9
    path = encode(tmp_path/f'a.{suffix}', x, 48_000, codec, film=[255*(i == flash) for i in range(n)], fps=fps)
    from moddist.core import MODALITIES
    from moddist.files import read_frames
    seen = int(read_frames(path, MODALITIES['rgb']).mean((1, 2, 3)).argmax())
    centres = (np.arange(n) + .5)*audio_length(path)/n
    pictures = mel(torch.from_numpy(windows(read_audio(path), centres)))
    assert pictures.shape == (n, 128, 224)
    column = pictures.sum(1).argmax(1)
    assert seen == flash and column[seen] in (111, 112)                  # the two middle columns of 224
    per_frame = 200/fps                                                  # a column is 5 ms
    for i in range(flash - 5, flash + 6): assert abs(column[i] - (111.6 - (i - flash)*per_frame)) < 2.5
    image = audio_image(pictures[seen:seen + 1])[0, 0]
    assert image.mean(0).argmax() in (111, 112)


# ---------------------------------------------------------------- mel spectrograms

def test_golden_sizes():
    "radevski2022 section 10, fact 18"
    cut16, cut24 = windows(np.zeros(100, np.float32), [0.]), windows(np.zeros(100, np.float32), [0.], rate=24_000)
    assert cut16.shape == (1, 17_856) and mel(torch.from_numpy(cut16)).shape == (1, 128, 224)
    assert cut24.shape == (1, 26_784) and mel(torch.from_numpy(cut24), 24_000).shape == (1, 128, 335)
    assert audio_image(mel(torch.from_numpy(cut16))).shape == (1, 3, 224, 224) == audio_image(torch.zeros(1, 128, 335)).shape
    assert mel(torch.zeros(2, 3, 17_856)).shape == (2, 3, 128, 224) and audio_image(torch.zeros(2, 3, 128, 224)).shape == (2, 3, 3, 224, 224)


@pytest.mark.parametrize('rate', [16_000, 24_000])
def test_mel_against_the_definition(rate):
    "One column at a time with numpy: mirror, Hann window, Fourier transform, triangles"
    x = np.random.default_rng(0).normal(size=round(1.116*rate))
    found = mel(torch.from_numpy(x), rate).double().numpy()
    padded = np.pad(x, 512, mode='reflect')
    hann = np.zeros(1024); hann[432:592] = .5 - .5*np.cos(2*np.pi*np.arange(160)/160)
    corners = np.linspace(0, 2595*np.log10(1 + rate/2/700), 130)
    for column in (0, 1, 57, found.shape[1] - 1):
        power = abs(np.fft.rfft(padded[80*column:80*column + 1024]*hann))**2
        for band in (0, 3, 44, 90, 127):
            lo, mid, hi = 700*(10**(corners[band:band + 3]/2595) - 1)
            total = sum(p*min((f - lo)/(mid - lo), (hi - f)/(hi - mid)) for f, p in zip(np.arange(513)*rate/1024, power) if lo < f < hi)
            assert found[band, column] == pytest.approx(total, rel=2e-3, abs=1e-4)


def test_mel_against_torchaudio():
    "Skipped where torchaudio is missing or was built for another torch"
    try: from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
    except (ImportError, RuntimeError, OSError) as e: pytest.skip(f'torchaudio: {type(e).__name__}')
    x = torch.randn(2, 17_856)
    theirs = MelSpectrogram(16_000, n_fft=1024, win_length=160, hop_length=80)(x)
    torch.testing.assert_close(mel(x), theirs, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(audio_image(theirs)[:, 0, ::7, 5], ((AmplitudeToDB('power')(theirs.repeat_interleave(7, 1)[:, ::4]) + 28.1125)/16.5627)[:, ::7, 5])


@pytest.mark.parametrize('hz', [200, 440, 1000, 2500, 4000, 7000])
def test_a_tone_is_in_its_band(hz):
    tone = torch.sin(2*torch.pi*hz*torch.arange(17_856)/16_000)
    band = int(mel(tone)[:, 20:-20].mean(1).argmax())
    centres = hz_of(np.arange(1, 129)*mel_of(8000)/129)
    assert abs(centres[band] - hz) <= 1.01*max(np.diff(centres)[max(band - 1, 0):band + 1].max(), 15.7)
    image = audio_image(mel(tone))
    assert abs(int(image[0, :, 112].argmax()) - band*224/128) <= 2       # low notes in the first rows


def test_filters():
    bank = mel_filters(16_000)
    assert bank.shape == (128, 513) and bank.min() == 0 and bank.max() <= 1 and (bank.sum(1) > 0).all()
    np.testing.assert_allclose(bank.sum(0)[5:500], 1, atol=.2)           # neighbouring triangles share every frequency between them
    assert mel_of(0) == 0 and hz_of(mel_of(4321)) == pytest.approx(4321)
    assert mel_of(1000) == pytest.approx(1000, abs=.02)                  # the anchor of the scale


# ---------------------------------------------------------------- pictures and augmentations

def test_decibels():
    p = torch.full((128, 224), 100.)
    assert audio_image(p)[0, 3, 3] == pytest.approx((20 + 28.1125)/16.5627)
    assert audio_image(0*p).max() == pytest.approx((-100 + 28.1125)/16.5627)
    x = audio_image(torch.rand(4, 128, 224))
    assert (x[:, 0] == x[:, 1]).all() and (x[:, 0] == x[:, 2]).all()


def noise(*lead, seed=0): return torch.rand(*lead, 224, 224, generator=torch.Generator().manual_seed(seed)) + 1


def test_augmentations_depend_on_the_generator_only():
    g = lambda s: torch.Generator().manual_seed(s)
    x = noise(2, 4)
    before = x.clone()
    torch.manual_seed(1); a = augment_audio(x, g(5))
    torch.manual_seed(2); b = augment_audio(x, g(5))
    assert (a == b).all() and (x == before).all() and any((augment_audio(x, g(s)) != a).any() for s in range(6, 12))
    assert (augment_audio(x, g(0), p=0) == x).all() and augment_audio(noise(), g(0)).shape == (224, 224)
    m = torch.rand(2, 4, 128, 224)
    assert (audio_image(m, g(3)) == audio_image(m, g(3))).all() and (audio_image(m) != audio_image(m, g(3))).any()


def test_masks_are_bars_of_at_most_80():
    g = torch.Generator().manual_seed(0)
    sizes = {-1: [], -2: []}
    for _ in range(40):
        hidden = augment_audio(noise(8), g, p=1., speed=(1., 1.)) == 0
        for picture in hidden:
            for dim in (-1, -2):
                bar = picture.all(-2 if dim == -1 else -1)
                k = int(bar.sum()); sizes[dim].append(k)
                assert k <= 80
                if k: assert bar.nonzero().max() - bar.nonzero().min() == k - 1     # in one piece
    for found in sizes.values(): assert 60 < max(found) and min(found) < 20 and 30 < np.mean(found) < 50
    off = [bool((augment_audio(noise(1), g, speed=(1., 1.)) == 0).any()) for _ in range(200)]
    assert .6 < np.mean(off) < .9                                        # one of two, each with probability 1/2: 3 of 4


@pytest.mark.parametrize('speed', [.85, 1.15])
def test_stretch_keeps_the_centre_and_the_pitch(speed):
    x = torch.zeros(1, 1, 224, 224)
    x[..., 40, :] = 1.                                                   # a tone
    for column in (51, 112, 171): x[..., 100:, column] = 5.              # clicks
    y = audio._stretch(x, torch.full((1, 1), speed))[0, 0]
    clicks = [51, 111.5, 171]
    loud = y[150]
    for c in clicks:
        place = 111.5 + (c - 111.5)/speed
        assert loud[round(place) - 2:round(place) + 3].max() > 1.5
    inside = (torch.arange(224) - 111.5).abs()*speed < 110
    assert (y[40][inside] - 1).abs().max() < 1e-5 and y[41].abs().max() == 0
    assert speed < 1 or y[:, 0].max() == 0                               # faster: silence at both ends
    same = noise(3, 2)
    torch.testing.assert_close(audio._stretch(same, torch.ones(3, 2)), same)


def test_speed_is_one_draw_per_clip():
    x = torch.arange(224.).expand(6, 5, 224, 224)
    y = augment_audio(x, torch.Generator().manual_seed(0), p=1., widest=0)
    assert (y == y[:, :1]).all() and len({float(v) for v in y[:, 0, 0, 60]}) == 6
    y = augment_audio(x, torch.Generator().manual_seed(0), widest=0)
    assert (y == y[:, :1]).all() and 0 < (y == x).all((1, 2, 3)).sum() < 6       # and so is whether it changes at all


# ---------------------------------------------------------------- real files

def test_real_videos_without_sound_say_so():
    root = real_data('urfd')
    refused(lambda: read_audio(root/'rgb_cam0'/'fall-01-cam0.mp4'), 'fall-01-cam0.mp4', 'holds no sound')
