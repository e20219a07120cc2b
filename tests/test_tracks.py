"""Boxes, joints and series: every file grammar read or refused by name, and geometry that follows the pixels."""
import json
import os

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, real_data, refused
from hypothesis import given, settings, strategies as st

from moddist import tracks
from moddist.arrays import ARRAY_SUFFIX, write_array
from moddist.core import MODALITIES
from moddist.draws import Window, place_frames
from moddist.tracks import (SIDES, Boxes, Series, ntu_bodies, pack_boxes, place_boxes, place_joints, read_boxes, read_joints, read_series, resample,
                            track_length, write_boxes)

BOXES, SKELETON, POSE, INERTIAL = (MODALITIES[k] for k in ('boxes', 'skeleton', 'pose', 'inertial'))


# ---------------------------------------------------------------- boxes in files

def test_boxes_come_back_bit_by_bit(tmp_path):
    r = np.random.default_rng(0)
    frames = []
    for n in (3, 0, 20):
        x = r.uniform(0, 300, (n, 8)).astype(np.float32)
        x[:, :4] = np.sort(x[:, :4].reshape(n, 2, 2), 1).reshape(n, 4)
        x[:, 4:8] = np.stack([r.integers(0, 3, n), r.random(n), r.integers(0, 3, n), r.integers(0, 6, n)], 1)
        frames.append(x)
    path = write_boxes(tmp_path/'b.json', Boxes(frames, (240, 427)))
    assert json.loads(path.read_text())['size'] == [427, 240]          # width first, as the layout files have it
    back = read_boxes(path)
    assert back.size == (240, 427) and track_length(path, BOXES) == 3
    for a, b in zip(frames, back.frames): np.testing.assert_array_equal(a, b)
    assert not list(tmp_path.glob('.partial*'))


@pytest.mark.parametrize('wrap', [lambda boxes: boxes, lambda boxes: {'frame_objects': boxes}], ids=['2023', '2021'])
def test_layout_grammar(tmp_path, wrap):
    "Lists of dictionaries (radevski2022 4.2) and the older `frame_objects`"
    boxes = [dict(x1=1, y1=2, x2=30, y2=40, category='hand', score=.7), dict(x1=9, y1=8, x2=5, y2=6, category='bottle')]
    (tmp_path/'b.json').write_text(json.dumps(dict(id='1', template='x', size=[427, 240], frames=[wrap(boxes), wrap([])])))
    x = read_boxes(tmp_path/'b.json').frames
    np.testing.assert_allclose(x[0], [[1, 2, 30, 40, 2, .7, 0, 0], [5, 6, 9, 8, 1, 1, 0, 0]], atol=1e-6)
    assert x[1].shape == (0, 8)


@pytest.mark.parametrize('text, words', [
    ('', 'not valid JSON'), ('{"size": [64, 48], "frames": [[[1, 2, 3', 'cut off'), ('[1, 2]', 'one clip'), ('{"size": [64, 48]}', 'frames'),
    ('{"size": [64, 48], "frames": []}', '0 frames'), ('{"frames": [[]]}', 'size is None'), ('{"size": [64], "frames": [[]]}', '[64]'),
    ('{"size": [64, 48], "frames": [[], [[1, 2, 3, 4]]]}', 'frame 1'), ('{"size": [64, 48], "frames": [[[1, 2, 3, 4, 9, 1, 0, 0]]]}', 'class 0-2'),
    ('{"size": [64, 48], "frames": [[[1, 2, 3, 4, 1.5, 1, 0, 0]]]}', 'class 0-2'), ('{"size": [64, 48], "frames": [[[1, NaN, 3, 4, 1, 1, 0, 0]]]}', 'finite'),
    ('{"size": [64, 48], "frames": [[["a", 2, 3, 4, 1, 1, 0, 0]]]}', 'frame 0'), ('{"size": [64, 48], "frames": [5]}', 'frame 0'),
    ('{"size": [64, 48], "frames": [[{"x1": 1, "y1": 2, "x2": 3, "category": "cup"}]]}', 'y2'), ('{"size": [64, 48], "frames": [[[1, 2, 3, 4, 1, 1, 3, 0]]]}', 'side 0-2'),
])
def test_bad_boxes(tmp_path, text, words):
    (tmp_path/'b.json').write_text(text)
    refused(lambda: read_boxes(tmp_path/'b.json'), 'b.json', words)


def test_bad_boxes_are_not_written(tmp_path):
    refused(lambda: write_boxes(tmp_path/'b.json', Boxes([np.float32([[5, 0, 1, 9, 1, 1, 0, 0]])], (9, 9))), 'b.json frame 0')
    assert not list(tmp_path.glob('*b.json*'))
    refused(lambda: read_boxes(tmp_path/'none.json'), 'no such file')


def test_a_rewritten_file_is_read_anew(tmp_path):
    path = tmp_path/'b.json'
    write_boxes(path, Boxes([np.zeros((0, 8), np.float32)], (9, 9)))
    first = read_boxes(path)
    assert read_boxes(path) is first and track_length(path, BOXES) == 1
    write_boxes(path, Boxes([np.zeros((0, 8), np.float32)]*4, (9, 9)))
    os.utime(path, ns=(1, 1))
    assert len(read_boxes(path).frames) == 4 and track_length(path, BOXES) == 4


def test_what_is_remembered_cannot_be_changed(tmp_path):
    write_boxes(tmp_path/'b.json', Boxes([np.ones((1, 8), np.float32)], (9, 9)))
    with pytest.raises(ValueError): read_boxes(tmp_path/'b.json').frames[0][:] = 0


# ---------------------------------------------------------------- slots

@given(st.integers(0, 30), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_packing_keeps_hands_then_scores(n, slots, seed):
    r = np.random.default_rng(seed)
    x = np.zeros((n, 8), np.float32)
    x[:, 4], x[:, 5], x[:, 7] = r.integers(0, 3, n), r.permutation(n)/30, r.integers(0, 6, n)
    out = pack_boxes([x, x[:0]], slots)
    assert out.shape == (2, slots, 8) and not out[1].any()
    real = x[x[:, 4] > 0]
    kept = out[0][out[0, :, 4] > 0]
    assert len(kept) == min(slots, len(real))
    best = sorted(map(tuple, real), key=lambda b: (-b[4], -b[5]))[:slots]
    assert sorted(map(tuple, kept)) == sorted(best)
    places = [[tuple(b) for b in real].index(tuple(k)) for k in kept]
    assert places == sorted(places)                                    # in the order of the file


# ---------------------------------------------------------------- geometry against painted pixels

@st.composite
def windows(draw, max_size=120):
    h, w = draw(st.integers(24, max_size)), draw(st.integers(24, max_size))
    ch, cw = draw(st.integers(8, h)), draw(st.integers(8, w))
    return Window((h, w), draw(st.integers(0, h - ch)), draw(st.integers(0, w - cw)), ch, cw, draw(st.booleans()))


def edges(lit):
    "x1 y1 x2 y2 of the lit pixels"
    xs, ys = np.flatnonzero(lit.any(0)), np.flatnonzero(lit.any(1))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


@given(windows(), st.integers(0, 63), st.integers(0, 47), st.integers(1, 40), st.integers(1, 40), st.sampled_from(['mask', 'depth']))
@settings(max_examples=200, deadline=None)
def test_a_box_follows_its_painted_square(w, x1, y1, bw, bh, key):
    picture = np.zeros((1, 48, 64, 1), MODALITIES[key].dtype)
    picture[0, y1:y1 + bh, x1:x1 + bw] = 200
    lit = place_frames(picture, w, MODALITIES[key])[0, ..., 0] > 0
    x = place_boxes(np.float32([[[x1, y1, min(x1 + bw, 64), min(y1 + bh, 48), 2, .5, 1, 3]]]), (48, 64), w)[0, 0]
    if lit.any() and x[4]: assert np.abs(x[:4] - edges(lit)).max() <= 1
    elif lit.any(): assert min(edges(lit)[2:] - edges(lit)[:2]) <= 1    # grazed by rounding only
    elif x[4]: assert min(x[2] - x[0], x[3] - x[1]) <= 1
    if x[4]:
        assert 0 <= x[0] < x[2] <= w.width and 0 <= x[1] < x[3] <= w.height
        np.testing.assert_array_equal(x[4:], np.float32([2, .5, 2 if w.flip else 1, 3]))
    else: assert not x.any()


@given(windows(), st.integers(2, 61), st.integers(2, 45))
@settings(max_examples=100, deadline=None)
def test_a_joint_follows_its_painted_dot(w, px, py):
    picture = np.zeros((1, 48, 64, 1), np.uint8)
    picture[0, py - 2:py + 3, px - 2:px + 3] = 255
    lit = place_frames(picture, w, MODALITIES['mask'])[0, ..., 0] > 0
    xyz = np.full((1, 1, 17, 3), .7, np.float32); xyz[..., :2] = px + .5, py + .5      # pixel (px, py) has its middle there
    x = place_joints(xyz, 'px', (48, 64), w)[0, 0, 0]
    e = edges(lit) if lit.any() else None
    if e is not None and e[0] > 0 and e[1] > 0 and e[2] < w.width and e[3] < w.height:
        assert np.abs(x[:2] - (e[:2] + e[2:])/2).max() <= 1 and x[2] == np.float32(.7)
    if np.isfinite(x[0]): assert 0 <= x[0] <= w.width and 0 <= x[1] <= w.height
    else: assert np.isnan(x).all()


@given(st.integers(0, 2**31), st.sampled_from(sorted(SIDES)), st.sampled_from(['m', 'px', 'body']))
@settings(max_examples=40, deadline=None)
def test_two_mirrors_are_none(seed, joints, unit):
    r = np.random.default_rng(seed)
    xyz = r.uniform(0, 40, (2, 3, joints, 3)).astype(np.float32)
    xyz[1, 1] = np.nan
    w = Window((40, 40), 0, 0, 40, 40, True)
    once = place_joints(xyz, unit, (40, 40), w)
    np.testing.assert_allclose(place_joints(once, unit, (40, 40), w), xyz, atol=1e-4)
    for left, right in SIDES[joints]:
        np.testing.assert_array_equal(once[..., left, 1:], xyz[..., right, 1:])
        np.testing.assert_allclose(once[..., left, 0], (40 - xyz[..., right, 0]) if unit == 'px' else -xyz[..., right, 0], atol=1e-5)
    middle = sorted(set(range(joints)) - {j for p in SIDES[joints] for j in p})
    np.testing.assert_array_equal(once[:, :, middle, 1:], xyz[:, :, middle, 1:])
    boxes = np.float32([[[1, 2, 30, 20, 2, .5, s, 0] for s in (0, 1, 2)]])
    assert place_boxes(boxes, (40, 40), w)[0, :, 6].tolist() == [0, 2, 1]
    np.testing.assert_array_equal(place_boxes(place_boxes(boxes, (40, 40), w), (40, 40), w), boxes)


@pytest.mark.parametrize('joints', sorted(SIDES))
def test_sides_are_pairs(joints):
    flat = [j for pair in SIDES[joints] for j in pair]
    assert len(set(flat)) == len(flat) and max(flat) < joints


def test_metres_ignore_the_window_and_inputs_stay():
    xyz = np.random.default_rng(0).normal(size=(1, 2, 25, 3)).astype(np.float32)
    before = xyz.copy()
    for unit in ('m', 'body'): np.testing.assert_array_equal(place_joints(xyz, unit, None, Window((100, 90), 7, 5, 30, 20)), xyz)
    place_joints(xyz, 'm', None, Window((9, 9), 0, 0, 9, 9, True)); np.testing.assert_array_equal(xyz, before)
    boxes = np.float32([[[1, 2, 30, 20, 2, .5, 1, 0]]]); before = boxes.copy()
    place_boxes(boxes, (40, 40), Window((80, 80), 3, 4, 20, 30, True)); np.testing.assert_array_equal(boxes, before)


def test_unknown_sides_and_units():
    mirror = Window((9, 9), 0, 0, 9, 9, True)
    refused(lambda: place_joints(np.zeros((1, 1, 15, 3)), 'm', None, mirror), '15 joints', 'flip=0')
    refused(lambda: place_joints(np.zeros((1, 1, 20, 3)), 'inch', None, mirror), 'inch')
    refused(lambda: place_joints(np.zeros((1, 1, 17, 3)), 'px', None, mirror), 'size is not stored')


# ---------------------------------------------------------------- joints in files

def ntu_text(frames):
    "A .skeleton file: per frame a dict body id -> [25, 12] numbers"
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for name, x in bodies.items(): lines += [f'{name} 0 1 1 0 0 0 0.1 0.2 2', '25', *(' '.join(f'{v:.6f}' for v in row) for row in x)]
    return '\n'.join(lines) + '\n'


def test_ntu_bodies(tmp_path):
    r = np.random.default_rng(0)
    a, b = r.normal(size=(3, 25, 12)), r.normal(size=(3, 25, 12))
    (tmp_path/'x.skeleton').write_text(ntu_text([{'7205': a[0]}, {}, {'7206': b[2], '7205': a[2]}]))
    x, ids = ntu_bodies(tmp_path/'x.skeleton')
    assert ids == ('7205', '7206') and x.shape == (2, 3, 25, 12) and x.dtype == np.float32
    np.testing.assert_allclose(x[0, [0, 2]], a[[0, 2]], atol=1e-5); np.testing.assert_allclose(x[1, 2], b[2], atol=1e-5)
    assert np.isnan(x[0, 1]).all() and np.isnan(x[1, :2]).all()
    joints = read_joints(tmp_path/'x.skeleton')
    np.testing.assert_array_equal(joints.xyz, x[..., :3])
    assert joints.unit == 'm' and track_length(tmp_path/'x.skeleton', SKELETON) == 3


@pytest.mark.parametrize('spoil, words', [
    (lambda t: '', 'number of frames'), (lambda t: t[:len(t)//2], 'line'), (lambda t: t.replace('\n25\n', '\n24\n', 1), '25 joints'),
    (lambda t: t.replace('7205 0', '7205', 1), '10 numbers'), (lambda t: '-1\n', 'number of frames'), (lambda t: '2\n1\nx', '10 numbers'),
], ids=['empty', 'half', '24', 'body', 'negative', 'word'])
def test_bad_ntu(tmp_path, spoil, words):
    text = ntu_text([{'7205': np.ones((25, 12))}]*2)
    (tmp_path/'x.skeleton').write_text(spoil(text))
    refused(lambda: read_joints(tmp_path/'x.skeleton'), 'x.skeleton', words)


def test_ntu_without_anybody(tmp_path):
    (tmp_path/'x.skeleton').write_text('2\n0\n0\n')
    assert read_joints(tmp_path/'x.skeleton').xyz.shape == (0, 2, 25, 3)


def test_embedded_set_agrees_with_its_own_reader():
    from moddist.datasets.ntu import read_skeleton
    files = sorted((ROOT/'data'/'embedded').rglob('*.skeleton'))[:4]
    if not files: pytest.skip('the embedded set is not in this checkout')
    for f in files:
        s = read_skeleton(f)
        x, ids = ntu_bodies(f)
        np.testing.assert_array_equal(x[..., :3], s.joints); np.testing.assert_array_equal(x[..., 5:7], s.colour_px)
        assert ids == s.body_ids


def test_utd_mat(tmp_path):
    from scipy.io import savemat
    x = np.random.default_rng(0).normal(size=(20, 3, 7))
    savemat(tmp_path/'s.mat', {'d_skel': x}); savemat(tmp_path/'i.mat', {'d_iner': np.arange(24.).reshape(4, 6)}); savemat(tmp_path/'other.mat', {'q': np.ones((2, 3))})
    j = read_joints(tmp_path/'s.mat')
    assert j.xyz.shape == (1, 7, 20, 3) and j.unit == 'm'
    np.testing.assert_allclose(j.xyz[0, 5, 11], x[11, :, 5], atol=1e-6)
    s = read_series(tmp_path/'i.mat')
    assert s.rate == 50 and s.values.shape == (4, 6) and track_length(tmp_path/'i.mat', INERTIAL) == 4
    refused(lambda: read_joints(tmp_path/'other.mat'), 'other.mat', 'q [2, 3]'); refused(lambda: read_series(tmp_path/'other.mat'), 'd_iner')
    (tmp_path/'cut.mat').write_bytes((tmp_path/'s.mat').read_bytes()[:600])
    refused(lambda: read_joints(tmp_path/'cut.mat'), 'cut.mat', 'truncated'); refused(lambda: read_series(tmp_path/'none.mat'), 'no such file')


def test_uwa_hdf5_mat(tmp_path):
    "Version 7.3: HDF5 behind a header of 512 bytes, axes reversed; millimetres become metres"
    h5py = pytest.importorskip('h5py')
    x = np.random.default_rng(0).normal(size=(9, 45))*300
    x[4] = 0
    for name, size in (('matlab.mat', 512), ('plain.mat', 0)):
        with h5py.File(tmp_path/name, 'w', userblock_size=size) as f: f['A'] = x.T
        if size:
            with open(tmp_path/name, 'r+b') as f: f.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64')
        j = read_joints(tmp_path/name)
        assert j.xyz.shape == (1, 9, 15, 3) and j.unit == 'm'
        np.testing.assert_allclose(j.xyz[0, 3, 14], x[3, 42:45]/1000, atol=1e-5)
        assert np.isnan(j.xyz[0, 4]).all()
    (tmp_path/'cut.mat').write_bytes((tmp_path/'matlab.mat').read_bytes()[:700])
    refused(lambda: read_joints(tmp_path/'cut.mat'), 'cut.mat', 'truncated')


def test_hdf5_names_its_package(tmp_path, monkeypatch):
    import builtins
    real = builtins.__import__
    def no_h5py(name, *args, **kwargs):
        if name.split('.')[0] == 'h5py': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', no_h5py)
    refused(lambda: tracks.open_hdf5(tmp_path/'a.mat'), 'h5py', 'moddist[hdf5]')
    extras = (ROOT/'pyproject.toml').read_text()
    assert 'hdf5 = ["h5py' in extras


def test_nw_ucla(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 20, 3))
    (tmp_path/'a01_s01_e00_v01.json').write_text(json.dumps(dict(file_name='a', skeletons=x.tolist(), label=1)))
    np.testing.assert_allclose(read_joints(tmp_path/'a01_s01_e00_v01.json').xyz[0], x, atol=1e-6)
    for text in ('', '{}', '{"skeletons": [[1, 2]]}', '{"skeletons": []}', '{"skeletons": "x"}', '[1]'):
        (tmp_path/'bad.json').write_text(text); os.utime(tmp_path/'bad.json', ns=(hash(text) & 2**40 - 1, 5 + len(text)))
        refused(lambda: read_joints(tmp_path/'bad.json'), 'bad.json', 'skeletons')

    folder = tmp_path/'raw'; folder.mkdir()
    pattern = folder/'frame_*_skeletons.txt'
    refused(lambda: read_joints(pattern), 'holds 0')
    rows = lambda z: ''.join(f'0.1,0.2,{z},0.9\n' for _ in range(20))
    for i, bodies in ((9, [2.]), (10, [2.1, 3.]), (100, []), (2, [1.9])):
        (folder/f'frame_{i}_tc_{900 - i}_skeletons.txt').write_text('20,4\n' + ''.join(map(rows, bodies)))
    j = read_joints(pattern)
    assert j.xyz.shape == (2, 4, 20, 3) and track_length(pattern, SKELETON) == 4
    np.testing.assert_allclose(j.xyz[:, :, 7, 2], [[1.9, 2, 2.1, np.nan], [np.nan, np.nan, 3, np.nan]], atol=1e-6)
    (folder/'frame_101_tc_1_skeletons.txt').write_text('20,4\n' + rows(2.)[:-30])
    refused(lambda: read_joints(pattern), 'frame_101', '20 per person')


def test_a_person_at_the_camera_was_not_tracked(tmp_path):
    x = np.ones((3, 20, 3)); x[1] = 0; x[2, 0] = 0                     # one joint at the origin is a centred skeleton, not a hole
    (tmp_path/'a.json').write_text(json.dumps(dict(skeletons=x.tolist())))
    seen = np.isfinite(read_joints(tmp_path/'a.json').xyz[0]).all((1, 2))
    assert seen.tolist() == [True, False, True]


def test_pose_csv(tmp_path):
    x = np.arange(2*51.).reshape(2, 51)
    np.savetxt(tmp_path/'p.csv', x, delimiter=',', header=','.join(f'c{i}' for i in range(51)), comments='')
    j = read_joints(tmp_path/'p.csv')
    assert j.unit == 'px' and j.xyz.shape == (1, 2, 17, 3) and j.xyz[0, 1, 2].tolist() == [57, 58, 59]
    np.savetxt(tmp_path/'q.csv', x[:, :36], delimiter=',')
    j = read_joints(tmp_path/'q.csv')
    assert j.unit == 'body' and j.xyz.shape == (1, 2, 18, 3) and j.xyz[0, 0, 4].tolist() == [8, 9, 1] and track_length(tmp_path/'q.csv', POSE) == 2


@pytest.mark.parametrize('text, words', [('', '0 rows'), ('a,b\n', '0 rows'), ('1,2\n', '2 columns'), ('1,2,x\n1,2,y\n', 'expected numbers'),
                                         (','.join(['1']*36) + '\n' + ','.join(['1']*20), 'line 2')])
def test_bad_pose_csv(tmp_path, text, words):
    (tmp_path/'p.csv').write_text(text)
    refused(lambda: read_joints(tmp_path/'p.csv'), 'p.csv', words)


def test_array_files(tmp_path):
    r = np.random.default_rng(0)
    one, two, acc = r.normal(size=(6, 17, 3)).astype(np.float32), r.normal(size=(6, 2, 20, 3)).astype(np.float32), r.normal(size=(30, 6)).astype(np.float32)
    p = {k: tmp_path/f'{k}{ARRAY_SUFFIX}' for k in ('one', 'two', 'acc')}
    write_array(p['one'], one, attrs=dict(unit='px', size=[240, 320])); write_array(p['two'], two, attrs=dict(unit='m')); write_array(p['acc'], acc, attrs=dict(rate=50))
    a, b, s = read_joints(p['one']), read_joints(p['two']), read_series(p['acc'])
    np.testing.assert_array_equal(a.xyz, one[None]); np.testing.assert_array_equal(b.xyz, two.swapaxes(0, 1)); np.testing.assert_array_equal(s.values, acc)
    assert (a.unit, a.size, b.unit, b.size, s.rate) == ('px', (240, 320), 'm', None, 50)
    assert [track_length(p['one'], POSE), track_length(p['two'], SKELETON), track_length(p['acc'], INERTIAL)] == [6, 6, 30]
    refused(lambda: read_joints(p['acc']), '[30, 6]'); refused(lambda: read_series(p['two']), '[N, C]')
    refused(lambda: read_joints(tmp_path/'x.xml'), 'no reader', '.skeleton'); refused(lambda: read_series(tmp_path/'x.txt'), 'no reader')
    refused(lambda: track_length(p['one'], MODALITIES['rgb']), "'image'")


# ---------------------------------------------------------------- series

@pytest.mark.parametrize('header, scale', [('time_ms,a,b\n', .001), ('Milliseconds,a,b\n', .001), ('seconds,a,b\n', 1.)])
def test_uneven_samples_become_even(tmp_path, header, scale):
    t = np.cumsum(np.random.default_rng(0).uniform(5, 40, 50))*.001/scale
    rows = '\n'.join(f'{v},{3*v + 1},{-v}' for v in t)
    (tmp_path/'a.csv').write_text(header + rows)
    s = read_series(tmp_path/'a.csv')
    assert s.values.shape == (50, 2) and s.rate == pytest.approx(49/(t[-1] - t[0])/scale)
    even = np.linspace(t[0], t[-1], 50)
    np.testing.assert_allclose(s.values, np.stack([3*even + 1, -even], 1), rtol=1e-5)


def test_series_without_time(tmp_path):
    (tmp_path/'a.csv').write_text('ax,ay\n1,2\n3,4\n')
    s = read_series(tmp_path/'a.csv')
    assert np.isnan(s.rate) and s.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize('text, words', [('', '0 rows'), ('1,2\n3', 'line 2'), ('time_ms,a\n5,1\n3,1\n', 'backwards'), ('time_ms,a\n5,1\n5,2\n', 'different times'), ('time_ms,a\n5,1\n', 'at least 2')])
def test_bad_series(tmp_path, text, words):
    (tmp_path/'a.csv').write_text(text)
    refused(lambda: read_series(tmp_path/'a.csv'), 'a.csv', words)


@given(st.integers(1, 40), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_resampling_is_linear_and_holds_its_ends(n, length):
    x = np.stack([np.arange(n, dtype=np.float32), np.full(n, 3, np.float32)], 1)
    at = (np.arange(length) + .5)/length
    out = resample(Series(x, 50.), at)
    assert out.shape == (length, 2) and out.dtype == np.float32
    np.testing.assert_allclose(out[:, 0], np.clip(at*n - .5, 0, n - 1), atol=1e-4)          # a ramp tells the position it was read at
    np.testing.assert_allclose(out[:, 1], 3)
    np.testing.assert_allclose(resample(x, (np.arange(n) + .5)/n), x, atol=1e-4)


# ---------------------------------------------------------------- real files

def test_real_utd_mhad():
    root = real_data('utd_mhad')
    table = pd.read_csv(root/'index.csv').sample(40, random_state=0)
    for row in table.itertuples():
        skeleton, inertial, pose = (root/f'{d}/{row.clip}_{d}.{e}' for d, e in (('skeleton', 'mat'), ('inertial', 'mat'), ('pose2d', 'csv')))
        j = read_joints(skeleton)
        assert track_length(skeleton, SKELETON) == row.skeleton_frames and track_length(inertial, INERTIAL) == row.inertial_samples
        assert j.xyz.shape[2] == 20 and np.isfinite(j.xyz).all() and 1 < np.median(j.xyz[..., 2]) < 5          # metres from the camera
        left, right = j.xyz[0, :, 4, 0].mean(), j.xyz[0, :, 8, 0].mean()
        assert left < right                                                                                     # the person faces the camera, x grows to the right of the mirror image
        if row.pose2d_frames == row.pose2d_frames:
            p = read_joints(pose)
            assert track_length(pose, POSE) == row.pose2d_frames and p.unit == 'body'
            assert abs(p.xyz[0, :, 1, :2]).max() == 0 and (p.xyz[0, :, 5, 0] > p.xyz[0, :, 2, 0]).mean() > .9    # neck at the origin, left shoulder to the right of the right one
    assert (read_series(inertial).values[:, :3]**2).sum(1).mean()**.5 < 4                                       # some g


def test_real_urfd_accelerometer():
    root = real_data('urfd')
    index = pd.read_csv(root/'index.csv').set_index('sequence')
    late = []
    for f in sorted((root/'accelerometer').glob('*.csv'))[::3]:
        if f.stem == 'adl-27-acc': continue
        s = read_series(f)
        assert s.values.shape[1] == 4 and 20 < s.rate < 200
        total, axes = s.values[:, 0], np.linalg.norm(s.values[:, 1:], axis=1)
        assert np.corrcoef(total, axes)[0, 1] > .95                       # SVtotal is the length of the three axes
        late.append(len(s.values)/s.rate - index.cam0_frames[f.stem[:-4]]/30)
    assert np.median(np.abs(late)) < .2                                   # as long as the video, but for frames the camera dropped
    refused(lambda: read_series(root/'accelerometer'/'adl-27-acc.csv'), 'adl-27', 'backwards')
