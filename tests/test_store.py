"""The store: what comes out is what went in, whatever was interrupted, and every file says where it is from."""
import os
import re
import shutil
import signal as signals
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import can_be_interrupted, real_data, refused

from moddist import store
from moddist.arrays import array_attrs, array_shape, read_array, write_array
from moddist.clips import load_clip
from moddist.core import MODALITIES, ModdistError, read_json, signal
from moddist.datasets.own import read_index
from moddist.draws import ClipSampler
from moddist.files import frame_shape, read_frames, read_video, resize_frames, write_png16, write_video
from moddist.store import clip_path, prepare, record, verify
from moddist.tracks import Boxes, read_boxes, read_joints, read_series, write_boxes

RGB, DEPTH, FLOW = (MODALITIES[k] for k in ('rgb', 'depth', 'flow'))
T, H, W = 40, 72, 128


def film(seed=0, n=T):
    "uint8 [n, 72, 128, 3]: smooth, moving, no two frames alike"
    y, x = np.mgrid[:H, :W]
    t = np.arange(n)[:, None, None] + 3*seed
    return np.stack(np.broadcast_arrays(128 + 100*np.sin((x + 4*t)/17), 128 + 100*np.cos((y + 3*t)/13), 3*t + 0*x), -1).clip(0, 255).astype(np.uint8)


def depth(seed=0, n=T): return (np.random.default_rng(seed).normal(0, 4, (n, 40, 50)) + 2000 + 9*np.arange(n)[:, None, None]).round().astype(np.uint16)


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    "Index of four raw clips"
    folder, rows = tmp_path_factory.mktemp('raw'), []
    for i in range(4):
        rows.append(dict(clip_id=f'c{i}', label=i % 2, action='ab'[i % 2], split='train', subject=i, rgb=str(write_video(folder/f'c{i}.avi', film(i))),
                         depth=str(write_png16(folder/f'c{i}', depth(i)))))
    return pd.DataFrame(rows)


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file() and not p.name.endswith('.json') and p.suffix != '.csv'}
def times(folder): return {p.name: p.stat().st_mtime_ns for p in sorted(Path(folder).rglob('*')) if p.is_file() and p.suffix != '.csv'}
def psnr(a, b): return 10*np.log10(255**2/np.mean((np.float32(a) - np.float32(b))**2))


# ---------------------------------------------------------------- what comes out

def test_depth_is_exact_and_rgb_is_close(raw, tmp_path):
    df = prepare(raw, tmp_path/'s', short_side=48)
    for i, row in enumerate(df.to_dict('records')):
        assert (read_frames(row['depth'], DEPTH)[..., 0] == depth(i)).all()
        want = resize_frames(film(i), (48, 86), RGB)
        assert read_frames(row['rgb'], RGB).shape == want.shape and psnr(read_frames(row['rgb'], RGB), want) > 33
        assert psnr(read_frames(row['rgb'], RGB, [7]), want[[8]]) < psnr(read_frames(row['rgb'], RGB, [7]), want[[7]]) - 3     # the seventh, not its neighbour
        assert (row['label'], row['subject']) == (i % 2, i)


@pytest.mark.parametrize('how', [dict(), dict(short_side=48), dict(pictures='h264'), dict(pictures='h264', short_side=48)])
def test_training_reads_the_same_clip(raw, tmp_path, how):
    "A sampler draws the same frames and window from the store as from raw files"
    df = prepare(raw, tmp_path/'s', **how)
    sampler = ClipSampler(6, 'random', short_side=24, crop=20, flip=.5)                    # half of a stored picture: the size of a raw one reduced at once
    for a, b in zip(raw.to_dict('records'), df.to_dict('records')):
        assert (load_clip(a, 'depth', sampler, train=True) == load_clip(b, 'depth', sampler, train=True)).all()
        x, y = (load_clip(r, 'rgb', sampler, train=True).numpy() for r in (a, b))
        assert x.shape == y.shape and psnr(x, y) > 28


def test_h264_is_a_video_and_smaller(raw, tmp_path):
    a, b = prepare(raw, tmp_path/'a'), prepare(raw, tmp_path/'b', pictures='h264')
    assert b.rgb[0].endswith('.mp4') and frame_shape(b.rgb[0], RGB) == (T, H, W)
    assert os.path.getsize(b.rgb[0]) < os.path.getsize(a.rgb[0])
    assert psnr(read_video(b.rgb[0], [20]), film(0)[[20]]) > 25


def test_never_enlarged(raw, tmp_path): assert frame_shape(prepare(raw.head(1), tmp_path/'s', short_side=500).rgb[0], RGB) == (T, H, W)


def test_side_per_signal(raw, tmp_path):
    df = prepare(raw.head(1), tmp_path/'s', short_side=dict(depth=20))
    assert frame_shape(df.depth[0], DEPTH) == (T, 20, 24) and frame_shape(df.rgb[0], RGB) == (T, H, W)
    assert set(np.unique(read_array(df.depth[0]))) <= set(np.unique(depth(0)))                                  # nearest: no value that was not measured


def test_portions_do_not_show(raw, tmp_path, monkeypatch):
    whole = prepare(raw.head(1), tmp_path/'a')
    monkeypatch.setattr(store, '_PORTION', 7*H*W*3)
    assert (read_array(prepare(raw.head(1), tmp_path/'b').rgb[0]) == read_array(whole.rgb[0])).all()


def test_segments(raw, tmp_path):
    "Also of a signal with another frame rate: depth at half the rate of the segment's clock"
    half = str(write_png16(tmp_path/'half', depth(0)[::2]))
    df = raw.head(1).assign(start=10, stop=30, depth=half)
    out = prepare(df, tmp_path/'s')
    assert 'start' not in out and 'stop' not in out
    assert (read_array(out.depth[0]) == depth(0)[::2][5:15]).all()
    assert array_shape(out.rgb[0])[0] == 20 and psnr(read_array(out.rgb[0]), film(0)[10:30]) > 30
    sampler = ClipSampler(4)
    assert (load_clip(df.iloc[0].to_dict(), 'depth', sampler) == load_clip(out.iloc[0].to_dict(), 'depth', sampler)).all()


def test_two_segments_of_one_recording(raw, tmp_path):
    df = pd.concat([raw.head(1).assign(clip_id=f'part{k}', start=20*k, stop=20*k + 20) for k in (0, 1)], ignore_index=True)
    out = prepare(df, tmp_path/'s')
    assert (np.concatenate([read_array(p) for p in out.depth]) == depth(0)).all()


def test_segment_outside(raw, tmp_path): refused(lambda: prepare(raw.head(1).assign(start=10, stop=99), tmp_path/'s'), 'c0', '[10, 99)', T)


def test_other_signals(raw, tmp_path):
    "Flow, mask, boxes, joints, series, a second camera; all cut to the segment"
    r = np.random.default_rng(0)
    flow, mask = r.normal(0, 3, (T, 20, 30, 2)).astype(np.float32), (r.random((T, 20, 30)) > .5).astype(np.uint8)*255
    xyz, imu = r.normal(size=(T, 1, 25, 3)).astype(np.float32), r.normal(size=(5*T, 6)).astype(np.float32)
    boxes = [np.array([[t, 1, t + 5, 9, 1, .5, 0, 0]], np.float32) for t in range(T)]
    df = raw.head(1).assign(
        flow=str(write_array(tmp_path/'flow.zarr.zip', flow)), mask=str(write_array(tmp_path/'mask.zarr.zip', mask)), view2=raw.rgb[1],
        boxes=str(write_boxes(tmp_path/'b.json', Boxes(boxes, (72, 128)))), skeleton=str(write_array(tmp_path/'j.zarr.zip', xyz, attrs=dict(unit='m'))),
        inertial=str(write_array(tmp_path/'i.zarr.zip', imu, attrs=dict(rate=150.))), start=8, stop=24)
    out = prepare(df, tmp_path/'s', ('rgb', 'flow', 'mask', 'boxes', 'skeleton', 'inertial', 'view2:rgb'), short_side=40).iloc[0]
    assert abs(read_frames(out.flow, FLOW) - flow[8:24]).max() <= .5/64 + 1e-6 and read_frames(out.flow, FLOW).dtype == np.float32
    assert (read_array(out['mask']) == mask[8:24]).all()
    found = read_joints(out.skeleton)
    assert found.unit == 'm' and np.allclose(found.xyz[0], xyz[8:24, 0])
    assert [f.tolist() for f in read_boxes(out.boxes).frames] == [b.tolist() for b in boxes[8:24]] and read_boxes(out.boxes).size == (72, 128)
    assert (read_series(out.inertial).values == imu[40:120]).all() and read_series(out.inertial).rate == 150
    assert psnr(read_array(out.view2), resize_frames(film(1)[8:24], (40, 72), RGB)) > 30                    # `short_side` is for signals that show RGB, whatever their name
    assert 'depth' not in out and verify(tmp_path/'s').empty


def test_sound(raw, tmp_path):
    from scipy.io import wavfile

    from moddist.audio import read_audio
    wave = (9000*np.sin(np.arange(48_000)/30)).astype(np.int16)
    wavfile.write(tmp_path/'a.wav', 24_000, wave)
    out = prepare(raw.head(1).assign(audio=str(tmp_path/'a.wav'), start=10, stop=30), tmp_path/'s', ('rgb', 'audio')).iloc[0]
    assert abs(read_audio(out.audio, rate=24_000) - read_audio(str(tmp_path/'a.wav'), .5, 1.5, 24_000)).max() < 1e-3


def test_flow_of_eight_bit_pictures(tmp_path):
    "The bound is applied and gone from the index"
    from PIL import Image
    r, names = np.random.default_rng(0), {}
    for c in 'uv':
        (tmp_path/c).mkdir()
        for t in range(6): Image.fromarray(r.integers(0, 256, (16, 20), dtype=np.uint8)).save(tmp_path/c/f'frame_{t + 1}.png')
    df = pd.DataFrame([dict(clip_id='a', label=0, split='train', flow=str(tmp_path/'{u,v}'/'frame_*.png'), flow_bound=8.)])
    want = read_frames(df.flow[0], FLOW, bound=8.)
    out = prepare(df, tmp_path/'s', ['flow'])
    assert 'flow_bound' not in out and abs(read_frames(out.flow[0], FLOW) - want).max() <= .5/64 + 1e-6


def test_shared_numbers_of_patterns(tmp_path):
    "Only the frames that all signals have go into the store"
    from PIL import Image
    (tmp_path/'d').mkdir()
    frames = depth(0, 6)
    for t in range(6): Image.fromarray(frames[t]).save(tmp_path/'d'/f'frame_{t + 1}_depth.png')
    df = pd.DataFrame([dict(clip_id='a', label=0, split='train', depth=str(tmp_path/'d'/'frame_*_depth.png'), numbers='2-4,6')])
    out = prepare(df, tmp_path/'s', ['depth'])
    assert 'numbers' not in out and (read_array(out.depth[0]) == frames[[1, 2, 3, 5]]).all()


def test_missing_signals_stay_missing(raw, tmp_path):
    df = raw.assign(depth=[raw.depth[0], np.nan, None, raw.depth[3]])
    out = prepare(df, tmp_path/'s')
    assert len(out) == 4 and out.depth.notna().tolist() == [True, False, False, True]
    assert read_index(tmp_path/'s'/'index.csv').depth.notna().tolist() == [True, False, False, True]


def test_frame_rate_is_kept(raw, tmp_path): assert array_attrs(prepare(raw.head(1), tmp_path/'s').rgb[0])['fps'] == pytest.approx(30)


@pytest.mark.parametrize('name', ['P01/P01_01', 'a:b?', 'Größe 1', '...x', '%41', '.hidden'])
def test_names_of_clips(raw, tmp_path, name):
    out = prepare(raw.head(1).assign(clip_id=name), tmp_path/'s')
    assert out.clip_id[0] == name and Path(out.rgb[0]).parent.parent == tmp_path/'s'
    assert read_index(tmp_path/'s'/'index.csv').clip_id[0] == name
    (tmp_path/'s').joinpath(Path(out.rgb[0]).parent.name, 'rgb.jpg.zip').unlink()
    assert verify(tmp_path/'s').values.tolist() == [[name, 'rgb', 'missing']]


def test_a_store_can_move(raw, tmp_path):
    prepare(raw, tmp_path/'s')
    shutil.move(tmp_path/'s', tmp_path/'elsewhere')
    df = read_index(tmp_path/'elsewhere'/'index.csv')
    assert (read_array(df.depth[2]) == depth(2)).all() and verify(tmp_path/'elsewhere').empty


def test_a_relative_store(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    df = prepare(raw.head(1), 's')
    monkeypatch.chdir('/')
    assert (read_array(df.depth[0]) == depth(0)).all()


def test_a_store_of_a_store(raw, tmp_path):
    once = prepare(raw.head(1), tmp_path/'a')
    twice = prepare(once, tmp_path/'b', short_side=36)
    assert (read_array(twice.depth[0]) == depth(0)).all() and array_shape(twice.rgb[0]) == (T, 36, 64, 3)


# ---------------------------------------------------------------- resuming

def test_second_run_writes_nothing(raw, tmp_path):
    a = prepare(raw, tmp_path/'s')
    before = times(tmp_path/'s')
    assert prepare(raw, tmp_path/'s').equals(a) and times(tmp_path/'s') == before


def test_more_clips_later(raw, tmp_path):
    prepare(raw.head(2), tmp_path/'s')
    before = times(tmp_path/'s'/'c0')
    assert len(prepare(raw, tmp_path/'s')) == 4 and times(tmp_path/'s'/'c0') == before


@pytest.mark.parametrize('change, remade', [(dict(quality=70), 'rgb'), (dict(short_side=36), 'rgb'), (dict(pictures='h264'), 'rgb'), (dict(short_side=dict(depth=20)), 'both')])
def test_other_settings_make_anew(raw, tmp_path, change, remade):
    prepare(raw.head(1), tmp_path/'s')
    before = times(tmp_path/'s')
    prepare(raw.head(1), tmp_path/'s', **change)
    after = times(tmp_path/'s')
    assert (after.get('depth.zarr.zip') != before['depth.zarr.zip']) == (remade == 'both')
    assert after.get('rgb.jpg.zip') != before['rgb.jpg.zip']
    assert len([n for n in after if n.startswith('rgb')]) == 2 and verify(tmp_path/'s').empty


def test_a_changed_source_is_read_again(tmp_path):
    df = pd.DataFrame([dict(clip_id='a', label=0, split='train', rgb=str(write_video(tmp_path/'a.avi', film(0))), depth=str(write_png16(tmp_path/'d', depth(0))))])
    prepare(df, tmp_path/'s')
    write_video(tmp_path/'a.avi', film(1, 30))
    assert array_shape(prepare(df, tmp_path/'s').rgb[0])[0] == 30


def test_a_moved_source_is_not_read_again(raw, tmp_path):
    "Only the name, size and time count"
    shutil.copytree(Path(raw.rgb[0]).parent, tmp_path/'raw')                        # copytree keeps times
    a = prepare(raw, tmp_path/'s')
    before = times(tmp_path/'s')
    moved = raw.assign(**{c: [str(tmp_path/'raw'/Path(p).name) for p in raw[c]] for c in ('rgb', 'depth')})
    assert prepare(moved, tmp_path/'s').equals(a) and times(tmp_path/'s') == before


@pytest.mark.parametrize('damage', ['record gone', 'record cut', 'file gone', 'file cut', 'leftover'])
def test_what_is_not_complete_is_made_again(raw, tmp_path, damage):
    prepare(raw, tmp_path/'s')
    whole, file = contents(tmp_path/'s'), tmp_path/'s'/'c1'/'depth.zarr.zip'
    note = file.with_name('depth.record.json')
    if 'record' in damage: note.unlink() if 'gone' in damage else note.write_text(note.read_text()[:40])
    elif 'file' in damage: file.unlink() if 'gone' in damage else file.write_bytes(file.read_bytes()[:-9])
    else: note.unlink(); file.rename(file.with_name('.partial-77-depth.zarr.zip'))
    prepare(raw, tmp_path/'s')
    assert contents(tmp_path/'s') == whole and verify(tmp_path/'s').empty


CHILD = '''
import sys, time, pandas as pd
from moddist import store
record = store.record
def slow(*args):
    print('file', flush=True)            # the data file is there, its record is not
    time.sleep(.3)
    return record(*args)
store.record = slow
store.prepare(pd.read_json(sys.argv[1], dtype=dict(clip_id=str)), sys.argv[2], workers=int(sys.argv[3]))
'''


@pytest.mark.parametrize('how', [signals.SIGKILL, signals.SIGINT])
def test_killed_and_resumed(raw, tmp_path, how):
    "Whatever the moment, a second run ends with the bytes of an undisturbed one"
    raw.to_json(tmp_path/'df.json')
    prepare(raw, tmp_path/'whole')
    child = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', CHILD, tmp_path/'df.json', tmp_path/'s', '2'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=can_be_interrupted)
    for _ in range(3): child.stdout.readline()
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode != 0 and not (tmp_path/'s'/'index.csv').exists()
    assert len(list((tmp_path/'s').rglob('*.record.json'))) < 8
    out = prepare(raw, tmp_path/'s')
    assert len(out) == 4 and contents(tmp_path/'s') == contents(tmp_path/'whole') and verify(tmp_path/'s').empty


# ---------------------------------------------------------------- shards and threads

def test_two_shards_are_the_whole(raw, tmp_path):
    whole = prepare(raw, tmp_path/'whole')
    first = prepare(raw, tmp_path/'parts', shard=(0, 2))
    assert list(first.clip_id) == ['c0', 'c2'] and sorted(p.name for p in (tmp_path/'parts').iterdir()) == ['c0', 'c2', 'index.csv']
    both = prepare(raw, tmp_path/'parts', shard=(1, 2))
    assert contents(tmp_path/'parts') == contents(tmp_path/'whole')
    assert (tmp_path/'parts'/'index.csv').read_bytes() == (tmp_path/'whole'/'index.csv').read_bytes() and list(both.clip_id) == list(whole.clip_id)


def test_shards_at_the_same_time(raw, tmp_path):
    "The index that is left lists everything, whoever finished last; more shards than clips are no error"
    jobs = [threading.Thread(target=prepare, args=(raw, tmp_path/'s'), kwargs=dict(shard=(i, 6))) for i in range(6)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert list(read_index(tmp_path/'s'/'index.csv').clip_id) == list(raw.clip_id)


def test_workers_change_nothing(raw, tmp_path):
    a, b = prepare(raw, tmp_path/'a'), prepare(raw, tmp_path/'b', workers=3)
    assert contents(tmp_path/'a') == contents(tmp_path/'b') and list(a.clip_id) == list(b.clip_id)


# ---------------------------------------------------------------- records

def test_record_says_where_a_file_is_from(raw, tmp_path):
    import hashlib
    df = prepare(raw.head(1).assign(start=0, stop=20), tmp_path/'s', short_side=36)
    r = read_json(tmp_path/'s'/'c0'/'rgb.record.json')
    data = Path(df.rgb[0]).read_bytes()
    assert (r['clip_id'], r['key'], r['modality'], r['file'], r['path']) == ('c0', 'rgb', 'rgb', 'rgb.jpg.zip', raw.rgb[0])
    assert r['bytes'] == len(data) and r['sha256'] == hashlib.sha256(data).hexdigest()
    assert r['source'] == dict(name='c0.avi', size=os.path.getsize(raw.rgb[0]), mtime_ns=os.stat(raw.rgb[0]).st_mtime_ns)
    assert r['settings'] == dict(start=0, stop=20, short_side=36, pictures='jpeg', quality=90, reference='rgb')
    assert {'moddist', 'numcodecs'} <= set(r['versions'])


def test_other_makers_use_the_same_store(raw, tmp_path):
    "As `moddist.derive` does: a new signal beside prepared ones is verified, and kept by `prepare`"
    prepare(raw.head(1), tmp_path/'s')
    path = write_array(clip_path(tmp_path/'s', 'c0', 'flow', '.zarr.zip'), np.zeros((4, 2, 2, 2), np.int16), 1/64)
    record(tmp_path/'s', 'c0', 'flow', dict(source='rgb', settings=dict(method='dis')))
    prepare(raw.head(1), tmp_path/'s', quality=50)
    assert path.exists() and verify(tmp_path/'s').empty
    path.write_bytes(b'x'*path.stat().st_size)
    assert verify(tmp_path/'s').values.tolist() == [['c0', 'flow', 'content changed']]


def test_record_needs_its_file(tmp_path):
    refused(lambda: record(tmp_path, 'a', 'rgb', {}), '0 files')
    for s in ('.mp4', '.jpg.zip'): clip_path(tmp_path, 'a', 'rgb', s).parent.mkdir(exist_ok=True); clip_path(tmp_path, 'a', 'rgb', s).write_text('x')
    refused(lambda: record(tmp_path, 'a', 'rgb', {}), '2 files')


def test_signals_with_similar_names_do_not_mix(tmp_path):
    for key in ('rgb', 'rgb2', 'r'): write_array(clip_path(tmp_path, 'a', key, '.zarr.zip'), np.zeros(3)); record(tmp_path, 'a', key, {})
    assert verify(tmp_path).empty


# ---------------------------------------------------------------- verify

def test_every_mutation_is_found(raw, tmp_path):
    prepare(raw.head(1), tmp_path/'s')
    assert verify(tmp_path/'s').empty
    r = np.random.default_rng(0)
    for file in (tmp_path/'s'/'c0').glob('*.zip'):
        good = file.read_bytes()
        for place in [0, len(good) - 1, *r.integers(0, len(good), 8)]:
            bad = bytearray(good)
            bad[place] ^= 1
            file.write_bytes(bad)
            assert verify(tmp_path/'s').values.tolist() == [['c0', file.name.split('.')[0], 'content changed']], place
        file.write_bytes(good[:-1])
        assert re.fullmatch(r'\d+ bytes, \d+ expected', verify(tmp_path/'s').problem[0])
        file.write_bytes(good)


def test_what_else_verify_finds(raw, tmp_path):
    prepare(raw.head(2), tmp_path/'s')
    (tmp_path/'s'/'c0'/'rgb.record.json').write_text('{')
    (tmp_path/'s'/'c1'/'depth.record.json').unlink()
    (tmp_path/'s'/'c1'/'.partial-12-mask.zarr.zip').write_text('')
    found = {(r.clip_id, r.problem.split(':')[0]) for r in verify(tmp_path/'s').itertuples()}
    assert found == {('c0', 'unreadable record'), ('c1', 'no record')} and len(verify(tmp_path/'s')) == 3
    refused(lambda: verify(tmp_path/'nowhere'), 'nowhere', 'no such store')


# ---------------------------------------------------------------- what must be refused

@pytest.fixture
def broken(raw, tmp_path):
    "The second clip's depth lacks the end of a picture; the third video is text"
    shutil.copytree(Path(raw.rgb[0]).parent, tmp_path/'raw')
    df = raw.assign(**{c: [str(tmp_path/'raw'/Path(p).name) for p in raw[c]] for c in ('rgb', 'depth')})
    picture = sorted(Path(df.depth[1]).iterdir())[20]
    picture.write_bytes(picture.read_bytes()[:-20])
    Path(df.rgb[2]).write_text('no video')
    return df


def test_an_error_stops_and_names_clip_and_file(broken, tmp_path):
    refused(lambda: prepare(broken, tmp_path/'s'), 'clip c1', sorted(Path(broken.depth[1]).iterdir())[20], 'on_error')
    assert (tmp_path/'s'/'c0'/'depth.record.json').exists() and not (tmp_path/'s'/'c1'/'depth.zarr.zip').exists()


@pytest.mark.parametrize('workers', [1, 3])
def test_skipped_clips_are_listed(broken, tmp_path, capsys, workers):
    out = prepare(broken, tmp_path/'s', on_error='skip', workers=workers)
    assert list(out.clip_id) == ['c0', 'c3'] == list(read_index(tmp_path/'s'/'index.csv').clip_id)
    assert [c for c, _ in out.attrs['skipped']] == ['c1', 'c2'] and Path(broken.rgb[2]).name in out.attrs['skipped'][1][1]
    assert 'c1' not in capsys.readouterr().out                                       # the command line prints them, once


def test_a_mended_clip_joins(broken, tmp_path):
    prepare(broken, tmp_path/'s', on_error='skip')
    write_video(broken.rgb[2], film(2))
    assert list(prepare(broken, tmp_path/'s', on_error='skip').clip_id) == ['c0', 'c2', 'c3']


def test_a_full_disk_is_not_skipped(raw, tmp_path, monkeypatch):
    from moddist import arrays
    def full(x, k):
        yield 'c/0/0/0', b''
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(arrays, '_chunks', full)
    refused(lambda: prepare(raw, tmp_path/'s', on_error='skip'), 'depth.zarr.zip', 'no space left', kind=ModdistError)
    assert not list((tmp_path/'s').rglob('.partial*')) and not list((tmp_path/'s').rglob('depth*'))


@pytest.mark.parametrize('kwargs, words', [(dict(shard=(2, 2)), 'shard=(2, 2)'), (dict(shard=(-1, 2)), 'shard'), (dict(pictures='gif'), 'gif'), (dict(on_error='ignore'), 'ignore'),
                                           (dict(signals=('rgb', 'flow')), "no column 'flow'"), (dict(signals=()), 'no signals'), (dict(signals=['colour']), 'colour'), (dict(short_side=49), 'short_side=49'), (dict(short_side=0), 'short_side=0'),
                                           (dict(short_side=dict(ir=20)), "'ir'"), (dict(quality=0), 'quality 0')])
def test_requests_that_cannot_be_meant(raw, tmp_path, kwargs, words): refused(lambda: prepare(raw, tmp_path/'s', **kwargs), words)


@pytest.mark.parametrize('ids', [['a', 'a', 'b', 'c'], ['a', 'A', 'b', 'c']])
def test_clip_ids_must_differ(raw, tmp_path, ids): refused(lambda: prepare(raw.assign(clip_id=ids), tmp_path/'s'), 'unique')


@pytest.mark.parametrize('name', ['', '.', '..', ' '])
def test_names_that_are_no_folder(raw, tmp_path, name): refused(lambda: prepare(raw.head(1).assign(clip_id=name), tmp_path/'s'), 'rename')


# ---------------------------------------------------------------- nothing is lost

def everything(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


@pytest.fixture
def own(tmp_path):
    "Recordings that lie as a store would: rec/a1/rgb.mp4"
    for c in ('a1', 'a2'): (tmp_path/'rec'/c).mkdir(parents=True); write_video(tmp_path/'rec'/c/'rgb.avi', film()); (tmp_path/'rec'/c/'rgb.avi').rename(tmp_path/'rec'/c/'rgb.mp4')
    return pd.DataFrame([dict(clip_id=c, label=0, action='x', split='train', rgb=str(tmp_path/'rec'/c/'rgb.mp4')) for c in ('a1', 'a2')])


@pytest.mark.parametrize('how', [dict(), dict(on_error='skip'), dict(pictures='h264'), dict(workers=2, shard=(0, 2))])
def test_the_folder_of_the_recordings_is_refused(own, tmp_path, how):
    before = everything(tmp_path)
    refused(lambda: prepare(own, tmp_path/'rec', ('rgb',), **how), tmp_path/'rec', 'recordings', '--out')
    assert everything(tmp_path) == before
    assert len(prepare(own, tmp_path/'s', ('rgb',))) == 2


def test_also_through_a_link_or_when_another_clip_needs_the_file(own, tmp_path):
    before = everything(tmp_path)
    (tmp_path/'link').symlink_to(tmp_path/'rec')
    refused(lambda: prepare(own, tmp_path/'link', ('rgb',)), 'recordings')
    own = own.assign(rgb=own.rgb.str.replace('/rec/', '/link/'))
    refused(lambda: prepare(own, tmp_path/'rec', ('rgb',)), 'recordings')
    refused(lambda: prepare(own.assign(clip_id=['b', 'a1'], rgb=list(own.rgb)), tmp_path/'rec', ('rgb',)), 'recordings') # clip a1 would be written over the source of b
    (tmp_path/'link').unlink()
    assert everything(tmp_path) == before


def test_a_file_without_a_record_is_left_alone(raw, tmp_path):
    "Nobody's source, but not ours either"
    for name in ('rgb.mp4', 'rgb.jpg.zip'):
        mine = tmp_path/name[:5]/'c0'/name
        mine.parent.mkdir(parents=True)
        mine.write_text('precious')
        refused(lambda: prepare(raw.head(1), mine.parent.parent), mine, 'left alone')
        assert mine.read_text() == 'precious' and not list(mine.parent.glob('*partial*'))


def test_an_index_that_is_not_of_a_store_is_left_alone(raw, tmp_path):
    (tmp_path/'index.csv').write_text('clip_id,label')
    refused(lambda: prepare(raw, tmp_path), 'index.csv', '--out')
    assert (tmp_path/'index.csv').read_text() == 'clip_id,label'


def test_what_was_there_stays_when_its_source_cannot_be_read(raw, tmp_path):
    df = raw.head(1).assign(rgb=shutil.copy(raw.rgb[0], tmp_path/'a.avi'))
    prepare(df, tmp_path/'s')
    before = everything(tmp_path/'s')
    (tmp_path/'a.avi').write_text('no video')
    refused(lambda: prepare(df, tmp_path/'s'), 'c0', '--skip-errors', 'on_error')
    assert everything(tmp_path/'s') == before


def test_a_store_prepared_from_itself_is_kept(raw, tmp_path):
    df = prepare(raw, tmp_path/'s')
    before = everything(tmp_path/'s')
    assert prepare(df, tmp_path/'s').equals(df) and everything(tmp_path/'s') == before
    assert prepare(read_index(tmp_path/'s'/'index.csv'), tmp_path/'s').rgb.tolist() == df.rgb.tolist() and everything(tmp_path/'s') == before


@pytest.mark.parametrize('change', [dict(short_side=64), dict(pictures='h264'), dict(quality=50), dict(short_side=dict(rgb=256, depth=20))])
@pytest.mark.parametrize('on_error', ['error', 'skip'])
def test_a_store_is_not_made_smaller_from_itself(raw, tmp_path, change, on_error):
    df = prepare(raw, tmp_path/'s')
    before = everything(tmp_path/'s')
    refused(lambda: prepare(df, tmp_path/'s', **change, on_error=on_error), 'c0', 'prepare again from the original index')
    refused(lambda: prepare(df.assign(start=1, stop=3), tmp_path/'s', on_error=on_error), 'c0', 'original index')
    assert everything(tmp_path/'s') == before and verify(tmp_path/'s').empty


def test_a_file_that_another_clip_is_made_from_is_not_replaced(raw, tmp_path):
    df = prepare(raw.head(1), tmp_path/'s')
    before = everything(tmp_path/'s')
    both = pd.concat([raw.head(1), raw.head(1).assign(clip_id='z', rgb=df.rgb[0])], ignore_index=True)
    refused(lambda: prepare(both, tmp_path/'s', quality=50), 'c0', 'left alone')
    assert before.items() <= everything(tmp_path/'s').items()                        # z may have been begun


def test_prepared_and_derived_go_together(raw, tmp_path):
    from moddist.datasets.own import write_index
    from moddist.derive import derive
    s = tmp_path/'s'
    prepare(raw, s, ('rgb',))
    df = derive(read_index(s/'index.csv'), 'flow', s)
    assert df.flow.notna().all() and [Path(p).parent for p in df.flow] == [Path(p).parent for p in df.rgb] and verify(s).empty
    flow = {p: Path(p).read_bytes() for p in df.flow}
    df = read_index(write_index(df, s/'with-flow.csv'))
    more = prepare(raw.assign(flow=df.flow), s)                                       # more signals later: the flow is still in the index
    assert list(more.flow) == list(df.flow) == list(read_index(s/'index.csv').flow) and more.depth.notna().all()
    all3 = prepare(more, s, ('rgb', 'depth', 'flow'))
    assert list(all3.flow) == list(df.flow) and len(all3) == 4
    assert {p: Path(p).read_bytes() for p in df.flow} == flow and verify(s).empty
    assert 'flow' not in prepare(raw.assign(flow=df.flow), tmp_path/'other')          # of another store: left out


def test_derive_leaves_alone_what_it_did_not_write(raw, tmp_path):
    from moddist.derive import derive
    mine = clip_path(tmp_path/'s', 'c0', 'motion', '.zarr.zip')
    mine.parent.mkdir(parents=True)
    mine.write_text('precious')
    refused(lambda: derive(raw.head(1), 'motion', tmp_path/'s'), mine, 'left alone')
    assert mine.read_text() == 'precious' and len(list(mine.parent.iterdir())) == 1
    refused(lambda: derive(raw.head(1), 'motion', tmp_path/'t', key='rgb'), "key='rgb'", 'the source itself')
    assert not (tmp_path/'t').exists()


def test_killed_between_file_and_record(raw, tmp_path, monkeypatch):
    "The file is announced: the next run makes it again, also with other settings, in store and derive"
    from moddist.derive import derive
    def plug(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(store, 'record', plug)
        for call in (lambda: prepare(raw.head(1), tmp_path/'s', ('rgb',)), lambda: derive(raw.head(1), 'motion', tmp_path/'s')):
            with pytest.raises(KeyboardInterrupt): call()
    assert (tmp_path/'s'/'c0'/'rgb.jpg.zip').exists() and set(verify(tmp_path/'s').key) == {'rgb', 'motion'}
    assert derive(raw.head(1), 'motion', tmp_path/'s', shard=(1, 2)).motion.isna().all()
    out = prepare(raw.head(1), tmp_path/'s', ('rgb',), pictures='h264')
    assert out.rgb[0].endswith('.mp4') and derive(raw.head(1), 'motion', tmp_path/'s').motion.notna().all()
    assert verify(tmp_path/'s').empty and len(list((tmp_path/'s'/'c0').iterdir())) == 4


# ---------------------------------------------------------------- real files

def test_utd_mhad(tmp_path):
    "Real RGB, 16-bit depth in .mat, skeleton and inertial signals"
    from moddist.datasets import utd_mhad
    df = utd_mhad.index(real_data('utd_mhad')).dropna(subset=['rgb', 'depth', 'skeleton', 'inertial']).head(2)
    out = prepare(df, tmp_path/'s', ('rgb', 'depth', 'skeleton', 'inertial'))
    for a, b in zip(df.to_dict('records'), out.to_dict('records')):
        assert (read_frames(a['depth'], DEPTH) == read_frames(b['depth'], DEPTH)).all()
        assert np.array_equal(read_joints(a['skeleton']).xyz, read_joints(b['skeleton']).xyz, equal_nan=True)
        assert (read_series(a['inertial']).values == read_series(b['inertial']).values).all()
        sampler = ClipSampler(8, short_side=128, crop=112)
        assert psnr(load_clip(a, 'rgb', sampler), load_clip(b, 'rgb', sampler)) > 38
        assert os.path.getsize(b['depth']) < .05*read_array(b['depth']).nbytes                             # masked depth is mostly zeros
    assert verify(tmp_path/'s').empty
