"Registration of NTU's colour and depth: known maps are found again, the error is honest, bad points are refused, windows match, files survive"
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from conftest import real_data
from moddist import synthetic
from moddist.core import DataError
from moddist.datasets import ntu
from moddist.datasets import ntu_registration as reg

DEPTH, COLOUR = reg.DEPTH_SIZE, reg.COLOUR_SIZE
CORNERS = np.array([[0, 0], [511, 0], [0, 423], [511, 423]], float)


def cloud(n=600, clips=10, seed=0, depth=(1.5, 4.5)):
    "Depth pixels, distances and clip numbers of people everywhere in the picture"
    g = np.random.default_rng(seed)
    return g.uniform([20, 20], [490, 400], (n, 2)), g.uniform(*depth, n), np.arange(n) % clips


def points_of(matrix, parallax=(0, 0), n=600, clips=10, seed=0, noise=0., wrong=0., depth=(1.5, 4.5)):
    "Points that follow a known map, some of them not"
    g = np.random.default_rng(seed + 1)
    px, z, clip = cloud(n, clips, seed, depth)
    colour = px@np.array(matrix)[:, :2].T + np.array(matrix)[:, 2] + np.array(parallax)/z[:, None] + g.normal(0, noise, (n, 2))
    bad = g.permutation(n) < round(wrong*n)
    colour[bad] = g.uniform(0, COLOUR[::-1], (bad.sum(), 2))
    return reg.Points(px, colour, z, clip)


KINECT = ((2.96, .01, 205.), (-.01, 2.96, -68.))


# ---------------------------------------------------------------- known maps

@settings(max_examples=60, deadline=None)
@given(st.tuples(st.floats(2, 4), st.floats(-.2, .2), st.floats(-100, 300), st.floats(-.2, .2), st.floats(2, 4), st.floats(-150, 100)), st.integers(0, 10**6))
def test_a_known_affine_map_is_found_within_a_tenth_of_a_pixel(numbers, seed):
    "5 % of the joints anywhere in the colour picture, the rest exact"
    truth = np.reshape(numbers, (2, 3))
    p = points_of(truth, seed=seed, wrong=.05)
    r = reg.fit_registration(p)
    assert r.model == 'affine' and r.parallax == (0., 0.)
    assert np.abs(r.colour(CORNERS) - (CORNERS@truth[:, :2].T + truth[:, 2])).max() < .1
    assert r.median_px < .01


@settings(max_examples=40, deadline=None)
@given(st.floats(-90, 90).filter(lambda b: abs(b) > 10), st.floats(-20, 20), st.integers(0, 10**6))
def test_a_known_parallax_is_found(px, py, seed):
    r = reg.fit_registration(points_of(KINECT, (px, py), seed=seed, wrong=.05))
    assert r.model == 'parallax' and np.allclose(r.parallax, (px, py), atol=.1)
    assert np.abs(np.array(r.matrix) - KINECT).max() < .05


@pytest.mark.parametrize('wrong', [0, .1, .3])
def test_noise_averages_out(wrong):
    "The corners are found better than a single joint is known, with and without wrong joints"
    truth = np.array(KINECT)
    for seed in range(5):
        r = reg.fit_registration(points_of(KINECT, (-56, 0), n=4000, seed=seed, noise=1., wrong=wrong))
        assert np.abs(r.colour(CORNERS, 3.) - (CORNERS@truth[:, :2].T + truth[:, 2] + np.array([-56, 0])/3.)).max() < .5


def test_outliers_in_the_depth_picture_too():
    p = points_of(KINECT, (-56, 0), n=2000)
    g = np.random.default_rng(5)
    bad = g.random(2000) < .1
    p.depth_px[bad] = g.uniform(0, DEPTH[::-1], (bad.sum(), 2))
    assert np.abs(np.array(reg.fit_registration(p).matrix) - KINECT).max() < .05


def test_the_parallax_is_kept_only_where_it_helps():
    for noise in (0., .5, 2.):
        for seed in range(10):
            p = points_of(KINECT, (0, 0), seed=seed, noise=noise)
            assert reg.fit_registration(p).model == 'affine'                   # nothing there: noise must not bring it in
            assert reg.fit_registration(points_of(KINECT, (-56, 0), seed=seed, noise=noise)).model == 'parallax'
    flat = reg.fit_registration(points_of(KINECT, (-56, 0), noise=.5, depth=(3, 3)))
    assert flat.model == 'affine' and flat.median_px < 1                       # one distance: parallax is a shift


# ---------------------------------------------------------------- the reported error

def test_error_is_measured_on_other_clips():
    "The last of five clips is displaced: the fit does not see it, the error does"
    p = points_of(KINECT, n=1000, clips=5)
    p.colour_px[p.clip == 4] += [9, 0]
    r = reg.fit_registration(p)
    assert np.abs(np.array(r.matrix) - KINECT).max() < .01
    assert r.median_px == pytest.approx(9, abs=.01) and (r.joints, r.held_out) == (800, 200)


def test_the_map_knows_nothing_of_held_out_clips():
    p = points_of(KINECT, (-56, 0), n=1000, clips=5, noise=1.)
    r = reg.fit_registration(p)
    p.colour_px[p.clip == 4] += np.random.default_rng(0).normal(0, 1, (200, 2))
    changed = reg.fit_registration(p)
    assert changed.matrix == r.matrix and changed.parallax == r.parallax and changed.median_px > r.median_px


@pytest.mark.parametrize('clips,held', [(2, 1), (5, 1), (6, 2), (10, 2), (60, 12)])
def test_every_fifth_clip_is_held_out(clips, held):
    r = reg.fit_registration(points_of(KINECT, n=600, clips=clips, noise=1.))
    assert r.held_out == 600*held//clips and r.joints + r.held_out == 600


def test_error_of_known_noise():
    "Median and 95 % of the length of a 2-D normal vector: 1.177 and 2.448 standard deviations"
    r = reg.fit_registration(points_of(KINECT, (-56, 0), n=20_000, noise=2.))
    assert r.median_px == pytest.approx(2*1.1774, rel=.05) and r.p95_px == pytest.approx(2*2.4477, rel=.05)
    assert r.affine_px > r.median_px
    p = points_of(KINECT, (-56, 0), n=20_000)
    assert (r.near, r.z, r.far) == pytest.approx(np.percentile(p.z, (5, 50, 95)))


def test_there_and_back():
    r = reg.fit_registration(points_of(KINECT, (-56, 3)))
    px, z, _ = cloud(200, seed=3)
    assert np.abs(r.depth(r.colour(px, z), z) - px).max() < 1e-9 and np.abs(r.depth(r.colour(px)) - px).max() < 1e-9
    grid = px.reshape(10, 20, 2)
    assert (r.colour(grid, z.reshape(10, 20)).reshape(-1, 2) == r.colour(px, z)).all()
    assert np.allclose(r.colour(px), r.colour(px, r.z))


# ---------------------------------------------------------------- real joints

def test_joints_of_real_people():
    "Real Kinect joints (UTD-MHAD), seen by a pair of eyes whose map we know"
    from scipy.io import loadmat
    files = sorted((real_data('utd_mhad')/'skeleton').glob('*.mat'))[:40]
    g = np.random.default_rng(0)
    parts = []
    for k, file in enumerate(files):
        xyz = loadmat(file)['d_skel'].transpose(2, 0, 1).reshape(-1, 3)[::5].astype(float)
        parts.append(np.column_stack([xyz, np.full(len(xyz), k)]))
    x = np.concatenate(parts)
    xyz, clip = x[:, :3], x[:, 3].astype(int)
    see = lambda f, c, b: (xyz[:, :2] - [b, 0])/xyz[:, 2:]*[1, -1]*f + c + g.normal(0, .3, (len(xyz), 2))
    p = reg.Points(see(365.456, [254.9, 205.4], 0), see(1081.37, [959.5, 539.5], .052), xyz[:, 2], clip)
    ok = reg._inside(p.depth_px, DEPTH) & reg._inside(p.colour_px, COLOUR)
    r = reg.fit_registration(reg.Points(*(v[ok] for v in p)))
    assert r.median_px < 2 and r.matrix[0][0] == pytest.approx(1081.37/365.456, rel=.01)
    true = np.array([.1, .2, 2.8])
    at = lambda f, c, b: (true[:2] - [b, 0])/true[2]*[1, -1]*f + c
    assert np.linalg.norm(r.colour(at(365.456, [254.9, 205.4], 0), 2.8) - at(1081.37, [959.5, 539.5], .052)) < 2


# ---------------------------------------------------------------- refusals

def refused(points, **kw):
    with pytest.raises(DataError) as e: reg.fit_registration(points, 3, 2, **kw)
    assert str(e.value).startswith('setup 3 camera 2: ') and '\n' not in str(e.value)
    return str(e.value)


def test_too_few_points():
    full = points_of(KINECT, n=600)
    assert '99 joints of 10 clips' in refused(reg.Points(*(v[:99] for v in full)))
    reg.fit_registration(reg.Points(*(v[:100] for v in full)))
    assert '600 joints of 1 clip lie' in refused(full._replace(clip=0*full.clip))
    assert '0 joints of 0 clips' in refused(reg.Points(*(v[:0] for v in full)))


@pytest.mark.parametrize('angle', [0, 10, 45, 87.5, 90, 133])
def test_points_on_a_line(angle):
    "Also with outliers beside the line, which make it look like a cloud"
    p = points_of(KINECT, n=600)
    a = np.radians(angle)
    along = np.random.default_rng(0).uniform(-200, 200, 600)
    px = np.column_stack([256 + along*np.cos(a), 212 + along*np.sin(a)])
    px[::20] = p.depth_px[::20]
    assert 'on a line or in one place of the depth picture' in refused(p._replace(depth_px=px))


def test_points_in_one_place():
    p = points_of(KINECT, n=600)
    still = np.random.default_rng(0).normal([256, 212], 2, (600, 2))
    assert 'one place of the depth' in refused(p._replace(depth_px=still))
    assert 'one place of the colour' in refused(p._replace(colour_px=3*still + 200))


def test_points_of_another_resolution():
    p = points_of(((1, 0, 0), (0, 1, 0)), n=600)
    small = p._replace(depth_px=p.depth_px/8, colour_px=p.colour_px/8)
    assert 'pass depth_size' in refused(small)
    small.depth_px[::20] = 500, 400                                           # also when one joint in twenty lies far out
    assert 'pass depth_size' in refused(small)
    small.depth_px[::20] = p.depth_px[::20]/8
    assert 'pass colour_size' in refused(small, depth_size=(53, 64))
    assert reg.fit_registration(small, depth_size=(53, 64), colour_size=(53, 64)).p95_px < 1e-6


def test_points_that_follow_no_map():
    p = points_of(KINECT, n=600)
    assert 'follow no map' in refused(p._replace(colour_px=np.random.default_rng(0).permutation(p.colour_px)))
    assert 'follow no map' in refused(p._replace(colour_px=[1920, 0] + p.colour_px*[-1, 1]))         # mirrored
    two = points_of(KINECT, n=600)
    two.colour_px[two.clip % 2 == 0] += [150, 60]                                                    # half of the clips from a moved camera
    assert 'follow no map' in refused(two)


# ---------------------------------------------------------------- windows

def registration(matrix, parallax=(0., 0.), depth=DEPTH, colour=COLOUR, z=3.):
    return reg.Registration(1, 1, tuple(map(tuple, np.array(matrix, float).tolist())), tuple(parallax), z, 2., 4., depth, colour, 800, 200, 1., 2., 3.)


def at(view, size, fraction):
    "The pixel at a fraction of a window"
    lo, hi = np.array(view[:2]), np.array(view[2:])
    return (lo + fraction*(hi - lo))*[size[1], size[0]] - .5


@settings(max_examples=200, deadline=None)
@given(st.floats(.5, 5), st.floats(.5, 5), st.floats(-400, 900), st.floats(-300, 500), st.floats(-80, 80))
def test_windows_show_the_same_place(sx, sy, tx, ty, b):
    "For upright pairs exactly; the windows lie inside of both pictures and touch a border of one of them on every side"
    r = registration([[sx, 0, tx], [0, sy, ty]], (b, 0.))
    a, c = r.colour(CORNERS[[0, 3]])
    overlap = np.minimum(c, [1919, 1079]) - np.maximum(a, 0)
    if (overlap < 3).any(): return
    rgb, depth = reg.shared_view(r)
    for f in ((0, 0), (1, 1), (.3, .8)):
        assert np.abs(r.colour(at(depth, DEPTH, np.array(f))) - at(rgb, COLOUR, np.array(f))).max() < 1e-6
    assert 0 <= min(*rgb, *depth) and max(*rgb, *depth) <= 1
    for i in range(4): assert min(abs(rgb[i] - (i > 1)), abs(depth[i] - (i > 1))) < 1e-9


@pytest.mark.parametrize('degrees', [-.5, .5])
def test_a_slight_turn_costs_little(degrees):
    "The depth picture lies whole inside of the colour picture and is turned: nothing outside of it is shown, and the offset is shared between the corners"
    c, s = 2*np.cos(np.radians(degrees)), 2*np.sin(np.radians(degrees))
    r = registration([[c, -s, 450], [s, c, 110]])
    rgb, depth = reg.shared_view(r)
    corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
    off = np.array([r.colour(at(depth, DEPTH, f)) - at(rgb, COLOUR, f) for f in corners])
    assert np.linalg.norm(off, axis=1).max() < .01*1920 and np.abs(off.mean(0)).max() < .1
    back = r.depth(np.array([at(rgb, COLOUR, f) for f in corners]))
    assert reg._inside(back*.99999, DEPTH).all()
    lost = 1 - (rgb[2] - rgb[0])*1920*(rgb[3] - rgb[1])*1080/(4*512*424)       # of the depth picture, to make it upright
    assert 0 < lost < .05
    assert np.allclose(back.reshape(2, 2, 2).mean(0)[:, 0], np.array([depth[0], depth[2]])*512 - .5) and np.allclose(back.reshape(2, 2, 2).mean(1)[:, 1], np.array([depth[1], depth[3]])*424 - .5)


def test_no_common_view():
    with pytest.raises(DataError, match='setup 1 camera 1: the pictures share no field of view'): reg.shared_view(registration([[3, 0, 2500], [0, 3, 0]]))


def test_identity_at_any_resolution():
    for k in (1, 2, 5):
        r = registration([[k, 0, (k - 1)/2], [0, k, (k - 1)/2]], depth=(40, 50), colour=(40*k, 50*k))
        assert np.allclose(reg.shared_view(r), [[0, 0, 1, 1]]*2, atol=1e-12)


# ---------------------------------------------------------------- files and the index

def write_skeleton(path, depth_px, colour_px, z):
    "One body; arrays [T, 25, ...]"
    lines = [str(len(z))]
    for d, c, zs in zip(depth_px, colour_px, z):
        lines += ['1', '9 0 1 1 1 1 0 0 0 2', '25', *(f'0 0 {zz:.5f} {x:.4f} {y:.4f} {u:.4f} {v:.4f} 0 0 0 1 2' for (x, y), (u, v), zz in zip(d, c, zs))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


@pytest.fixture
def tree(tmp_path):
    "Two setups with two cameras each, every one with a map of its own; six clips of four frames"
    truths = {}
    for k, (setup, camera) in enumerate([(1, 1), (1, 2), (2, 1), (2, 3)]):
        truths[setup, camera] = np.array([[2.9 + .05*k, 0, 200 + 5*k], [0, 2.9, -60 - k]]), np.array([(-1)**k*56., 0])
        p = points_of(*truths[setup, camera], n=600, seed=k, noise=.2)
        for clip in range(6):
            d, c, z = (v[clip*100:(clip + 1)*100].reshape(4, 25, -1) for v in (p.depth_px, p.colour_px, p.z))
            write_skeleton(tmp_path/'nturgb+d_skeletons'/f'{ntu.Name(setup, camera, clip + 1, 1, 1).stem}.skeleton', d, c, z[..., 0])
    return tmp_path, truths


def test_register_gives_each_camera_its_own_map(tree):
    root, truths = tree
    found = reg.register(ntu.index(root))
    assert set(found) == set(truths)
    for key, r in found.items():
        assert (r.setup, r.camera) == key and r.model == 'parallax'
        assert np.allclose(np.array(r.matrix)[:, :2], truths[key][0][:, :2], atol=.01) and np.allclose(r.parallax, truths[key][1], atol=1.5)
    table = reg.report(found)
    assert list(zip(table.setup, table.camera)) == list(found) and (table.median_px < .5).all() and (table.slip_px > 5).all()


def test_report_says_how_far_the_windows_drift():
    "56 px m between 2 and 3 m: 56/2 - 56/3 px; between 3 and 4 m less"
    table = reg.report({(1, 1): registration(KINECT, (0., -56.)), (1, 2): registration(KINECT)})
    assert table.slip_px.tolist() == pytest.approx([56/6, 0]) and table.model.tolist() == ['parallax', 'affine']


def test_register_takes_some_clips_and_frames_evenly(tree, monkeypatch):
    root, _ = tree
    read, seen = ntu.read_skeleton, []
    monkeypatch.setattr(reg.ntu, 'read_skeleton', lambda p: seen.append(p) or read(p))
    df = ntu.index(root).query('setup == 1 and camera == 1')
    r = reg.register(df, clips=3, frames=2)[1, 1]
    assert [ntu.parse_name(Path(p).stem).subject for p in seen] == [1, 3, 6]
    assert r.joints + r.held_out <= 3*2*25 and r.joints + r.held_out > 100
    assert reg.register(df.sample(frac=1, random_state=0), clips=3, frames=2)[1, 1] == r         # whatever the order of the rows


def test_points_outside_of_a_picture_or_not_tracked_are_left_out(tmp_path):
    d, z, _ = cloud(100, clips=1)
    c = d@np.diag([2.9, 2.9]) + [200, -60]
    d[0], d[1], c[2], c[3], z[4], z[5], d[6] = [-5, 10], [10, 424], [1920, 5], [np.inf, 0], .2, 9, [np.nan, 3]
    file = tmp_path/'S001C001P001R001A001.skeleton'
    write_skeleton(file, d.reshape(4, 25, 2), c.reshape(4, 25, 2), z.reshape(4, 25))
    p = reg.joint_points([file])
    kept = np.arange(7, 100)[reg._inside(c[7:], COLOUR)]
    assert len(p.z) == len(kept) and np.allclose(p.depth_px, d[kept], atol=1e-3) and np.allclose(p.z, z[kept], atol=1e-3)
    assert len(reg.joint_points([]).z) == 0
    nobody = tmp_path/'S001C001P002R001A001.skeleton'
    nobody.write_text('2\n0\n0\n')
    assert len(reg.joint_points([nobody, file]).z) == len(kept) and set(reg.joint_points([nobody, file]).clip) == {1}


def test_add_fov_fills_every_picture_column(tree):
    root, _ = tree
    df, found = ntu.index(root), reg.register(ntu.index(root))
    out = reg.add_fov(df.assign(depth_masked='x'), found)
    assert [c for c in out if c.endswith('_fov')] == ['rgb_fov', 'depth_fov', 'depth_masked_fov', 'ir_fov']
    assert (out.depth_fov == out.ir_fov).all() and (out.depth_fov == out.depth_masked_fov).all() and (out.rgb_fov != out.depth_fov).all()
    assert out.groupby(['setup', 'camera']).rgb_fov.nunique().eq(1).all() and out.rgb_fov.nunique() == 4
    for row in out.itertuples():
        for text, view in zip((row.rgb_fov, row.depth_fov), reg.shared_view(found[row.setup, row.camera])):
            x0, y0, x1, y1 = map(float, text.split())
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and np.allclose((x0, y0, x1, y1), view, atol=1e-4)
    assert not [c for c in df if c.endswith('_fov')] and len(out) == len(df)
    out.to_csv(root/'index.csv', index=False)
    assert pd.read_csv(root/'index.csv').rgb_fov.tolist() == out.rgb_fov.tolist()


def test_add_fov_refuses_a_camera_without_registration(tree):
    root, _ = tree
    df, found = ntu.index(root), reg.register(ntu.index(root))
    del found[2, 3]
    with pytest.raises(DataError, match='S002C003P001R001A001: setup 2 camera 3 is not registered'): reg.add_fov(df, found)
    assert len(reg.add_fov(df[(df.setup == 1)], found)) == 12


def test_register_names_the_camera_it_cannot_fit(tree):
    root, _ = tree
    df = ntu.index(root)
    df.loc[(df.setup == 2) & (df.camera == 1), 'skeleton'] = np.nan
    with pytest.raises(DataError, match='setup 2 camera 1: no .skeleton files'): reg.register(df)
    with pytest.raises(DataError, match='setup 1 camera 1: no .skeleton files'): reg.register(df.drop(columns='skeleton'))
    broken = root/'nturgb+d_skeletons'/'S001C001P001R001A001.skeleton'
    broken.write_text(broken.read_text()[:500])
    with pytest.raises(DataError, match=r'S001C001P001R001A001.skeleton line \d+'): reg.register(ntu.index(root))


def test_registrations_survive_the_disk(tree, tmp_path):
    found = reg.register(ntu.index(tree[0]))
    file = reg.save_registrations(tmp_path/'deep'/'r.json', found)
    assert reg.load_registrations(file) == found
    assert [reg.shared_view(r) for r in reg.load_registrations(file).values()] == [reg.shared_view(r) for r in found.values()]
    assert [p.name for p in file.parent.iterdir()] == ['r.json']               # nothing partial is left behind


def test_other_files_are_no_registrations(tmp_path):
    r = registration(KINECT)
    good = dict(what=reg._WHAT, registrations=[asdict(r)])
    missing = {k: v for k, v in asdict(r).items() if k != 'matrix'}
    for k, data in enumerate(([], {}, dict(good, what='other'), dict(good, registrations=[missing]), dict(good, registrations=[dict(asdict(r), more=1)]), dict(good, registrations=[3]))):
        file = tmp_path/f'{k}.json'
        file.write_text(json.dumps(data))
        with pytest.raises(DataError, match=f'{k}.json: holds no registrations'): reg.load_registrations(file)
    (tmp_path/'cut.json').write_text(json.dumps(good)[:50])
    with pytest.raises(DataError, match='cut.json'): reg.load_registrations(tmp_path/'cut.json')
    with pytest.raises(DataError, match='no such file'): reg.load_registrations(tmp_path/'none.json')


# ---------------------------------------------------------------- the embedded set

@pytest.mark.parametrize('objects', [True, False])
def test_the_embedded_set_is_registered_by_the_identity(tmp_path, objects):
    from moddist.core import MODALITIES
    from moddist.files import frame_shape
    df = synthetic.index(synthetic.make(tmp_path/'set', seed=3, objects=objects, train=1, valid=1, test=0, workers=1))
    size = frame_shape(df.depth.iloc[0], MODALITIES['depth'])[1:]
    found = reg.register(df, depth_size=size, colour_size=size)
    assert set(found) == {(1, 1), (1, 2), (1, 3)}
    for r in found.values():
        assert r.model == 'affine' and np.allclose(r.matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-4) and r.p95_px < 1e-3
    assert set(reg.add_fov(df, found).rgb_fov) == {'0 0 1 1'}
    with pytest.raises(DataError, match='pass depth_size'): reg.register(df)


# ---------------------------------------------------------------- pictures

def test_outline_is_the_near_side_of_a_jump():
    depth = np.full((20, 30), 4000, np.uint16)
    depth[5:15, 8:20] = 2000
    depth[10, 12] = 0                                                          # a hole is no edge
    px, z = reg.outline(depth)
    ring = {(x, y) for x in range(8, 20) for y in range(5, 15) if x in (8, 19) or y in (5, 14)}
    assert {tuple(p) for p in px} == ring and (z == 2).all()
    depth[depth == 4000] = 0                                                   # masked depth: no background
    assert {tuple(p) for p in reg.outline(depth)[0]} == ring
    assert len(reg.outline(np.full((9, 9), 1500, np.uint16))[1]) == 0 and len(reg.outline(np.zeros((9, 9), np.uint16))[1]) == 0


def test_overlay_draws_the_outline_where_the_map_puts_it():
    import matplotlib
    matplotlib.use('Agg')
    depth = np.full((212, 256), 4000, np.uint16)                               # half of the native size
    depth[80:120, 100:130] = 2000
    r = registration(KINECT, (-56., 0.))
    before, after = reg.plot_overlay(np.zeros((270, 480, 3), np.uint8), depth, r)
    px, z = reg.outline(depth)
    drawn = np.column_stack(after.lines[0].get_data())
    assert np.allclose(drawn, (r.colour((px + .5)*2 - .5, z) + .5)/4 - .5)
    assert np.allclose(np.column_stack(before.lines[0].get_data()), (px + .5)*[480/256, 270/212] - .5)
    assert [a.get_title() for a in (before, after)] == ['stretched', 'registered']


def test_registrations_are_immutable_facts():
    r = registration(KINECT)
    with pytest.raises(AttributeError): r.camera = 2
    assert replace(r, camera=2).camera == 2 and hash(r) == hash(registration(KINECT))


def test_loaded_clips_show_the_same_place(tmp_path):
    "The whole way: a board 3 m away in a colour video and in depth images, through `add_fov` and the loader; without the windows the two boards barely touch"
    from moddist.data import ClipSampler, load_clip
    from moddist.files import write_png16, write_video
    r = registration(KINECT, (-56., 0.), z=3.)
    x, y = np.meshgrid(np.arange(256), np.arange(212))
    native = reg._resized(np.stack([x, y], -1).reshape(-1, 2), (212, 256), DEPTH)
    board = lambda px: ((px > [330, 90]) & (px < [430, 130])).all(-1)                                # in native depth pixels
    depth = np.where(board(native), 3000, 4500).reshape(212, 256).astype(np.uint16)
    x, y = np.meshgrid(np.arange(480), np.arange(270))
    seen = r.depth(reg._resized(np.stack([x, y], -1).reshape(-1, 2), (270, 480), COLOUR), 3.)
    rgb = np.where(board(seen), 250, 5).reshape(270, 480, 1).repeat(3, -1).astype(np.uint8)
    stem = ntu.Name(1, 1, 1, 1, 1).stem
    write_video(tmp_path/'nturgb+d_rgb'/f'{stem}_rgb.avi', rgb[None].repeat(4, 0))
    write_png16(tmp_path/'nturgb+d_depth'/stem, depth[None].repeat(4, 0))
    df = ntu.index(tmp_path).assign(split='train')

    def overlap(index, train):
        sampler = ClipSampler(clip_len=2, size=(128, 128), crop=112 if train else None, flip=.5, seed=1)
        clips = [np.asarray(load_clip(index.iloc[0].to_dict(), s, sampler, train=train)) for s in ('rgb', 'depth')]
        a, b = clips[0][0, 0] > 128, clips[1][0, 0] == 3000
        assert a.sum() > 100 and b.sum() > 100
        return (a & b).sum()/(a | b).sum()

    framed = reg.add_fov(df, {(1, 1): r})
    for train in (False, True): assert overlap(framed, train) > .85 and overlap(df, train) < .5
