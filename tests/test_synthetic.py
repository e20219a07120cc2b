"The embedded set: a pure function of its key, NTU's files to the letter, and nothing half-written whatever happens"
import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import can_be_interrupted
from moddist import core, scene, synthetic
from moddist.core import DataError, ModdistError
from moddist.files import read_png16, read_video
from moddist.datasets import ntu

FEW = dict(train=1, valid=1, test=0, frames=2) # 60 clips
NAME = ntu.Name(setup=1, camera=2, subject=4, replication=1, action=5)


def digest(root):
    "Content of every file below `root`"
    return {str(p.relative_to(root)): hashlib.sha1(p.read_bytes()).hexdigest() for p in sorted(root.rglob('*')) if p.is_file()}


@pytest.fixture
def place(tmp_path):
    "A folder with nothing in it"
    (tmp_path/'place').mkdir()
    return tmp_path/'place'


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    return synthetic.make(tmp_path_factory.mktemp('synthetic')/'few', workers=1, **FEW)


# ---- pure functions of the key

@pytest.mark.parametrize('workers', [2, 3])
def test_processes_change_no_byte(few, place, workers):
    other = synthetic.make(place/'set', workers=workers, **FEW)
    assert digest(few) == digest(other)
    assert len(digest(few)) == 60*(1 + 2 + 1) + 2


def test_a_larger_set_contains_the_smaller(few, place):
    more = digest(synthetic.make(place/'set', **FEW | dict(test=1), workers=2))
    assert {k: v for k, v in digest(few).items() if 'json' not in k}.items() <= more.items()


def test_another_seed_gives_other_pixels(few, place):
    other = digest(synthetic.make(place/'set', seed=1, workers=2, **FEW))
    assert not {v for k, v in digest(few).items() if k.endswith('.avi')} & {v for k, v in other.items() if k.endswith('.avi')}


@pytest.mark.parametrize('draw', [scene.subject, scene.room], ids=['subject', 'room'])
def test_seed_and_number_both_count(draw):
    drawn = [[str(draw(seed, n)) for n in (1, 2, 3)] for seed in (0, 1)]
    assert len({d for row in drawn for d in row}) == 6
    assert str(draw(0, 1)) == drawn[0][0]


@pytest.mark.parametrize('objects', [True, False])
@pytest.mark.parametrize('action', range(1, 11))
def test_every_class_renders_and_repeats(objects, action):
    a, b = (scene.render(3, NAME._replace(action=action), objects) for _ in range(2))
    for x, y in zip(a, b): np.testing.assert_array_equal(x, y)
    assert a.rgb.std() > 5 and .02 < a.person.mean() < .4
    assert np.isfinite(a.joints).all() and np.isfinite(a.true_depth).all()


def without_action(monkeypatch):
    "Generators that do not know the class"
    monkeypatch.setattr(scene, 'rng', lambda *key: core.rng(*key[:3], *key[4:]) if key[0] in ('performance', 'clip') else core.rng(*key))


def test_the_generators_are_the_only_way_from_class_to_picture(monkeypatch):
    "With keys that lack the class, red and blue differ in the ball's colour alone, and push and pull in the pose alone"
    without_action(monkeypatch)
    push_red, push_blue = (scene.render(0, NAME._replace(action=a), noise=False) for a in (1, 2))
    np.testing.assert_array_equal(push_red.depth, push_blue.depth)
    differ = (push_red.rgb != push_blue.rgb).any(-1)
    assert differ.any() and not (differ & ~push_red.person).any()
    pose = scene.motion(scene.subject(0, 4), 'lean', core.rng('pose'))
    monkeypatch.setattr(scene, 'motion', lambda *args: pose)
    for x, y in zip(*(scene.render(0, NAME._replace(action=a)) for a in (1, 9))): np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('action', range(1, 11, 2))
@pytest.mark.parametrize('camera', [1, 2, 3])
def test_colour_does_not_leak_into_depth(action, camera):
    red, blue = (scene.render(5, NAME._replace(action=action, camera=camera), ball=c) for c in ('red', 'blue'))
    for key in ('true_depth', 'depth', 'person', 'joints', 'pixels'): np.testing.assert_array_equal(getattr(red, key), getattr(blue, key))
    assert (red.rgb != blue.rgb).any()


def test_cameras_share_the_performance():
    "Three cameras see the same bones, only from elsewhere"
    bones = [[np.linalg.norm(c.joints[:, a] - c.joints[:, b], axis=-1) for a, b in ((4, 7), (8, 11), (0, 3), (7, 11), (12, 14))]
             for c in (scene.render(0, NAME._replace(camera=n)) for n in (1, 2, 3))]
    np.testing.assert_allclose(bones[0], bones[1], atol=1e-9)
    np.testing.assert_allclose(bones[0], bones[2], atol=1e-9)


# ---- geometry

@pytest.mark.parametrize('size', [28, 56, 112, 224])
def test_a_ray_leads_back_to_its_pixel(size):
    cam = scene.camera(3, core.rng('ray'), size)
    x, y = cam.rays()
    col, row = np.meshgrid(np.arange(size), np.arange(size))
    xyz = 3.7*np.stack(np.broadcast_arrays(x, y, 1.), -1)
    np.testing.assert_allclose(cam.pixels(xyz), np.stack([col, row], -1), atol=1e-9)


def test_hit_does_not_care_about_direction_and_knows_the_sphere():
    g = core.rng('capsules')
    x, y = np.linspace(-.5, .5, 31)[None], np.linspace(-.5, .5, 31)[:, None]
    for _ in range(20):
        a, b, r = *(g.normal(0, .4, (2, 1, 3)) + [0, 0, 3]), g.uniform(.05, .3)
        np.testing.assert_allclose(scene.hit(x, y, a, b, r), scene.hit(x, y, b, a, r), atol=1e-9)
        B, C = (a[0, 0]*x + a[0, 1]*y + a[0, 2]), (a**2).sum() - r*r                    # |z ray - a| = r
        H = B*B - (x*x + y*y + 1)*C
        sphere = np.where(H >= 0, (B - np.sqrt(np.maximum(H, 0)))/(x*x + y*y + 1), np.inf)
        np.testing.assert_allclose(scene.hit(x, y, a, a, r)[0], sphere, atol=1e-9)


@pytest.mark.parametrize('number', [1, 4, 7, 40])
def test_hands_and_ball(number):
    "synthetic.md 3.3 and 3.4: hands 0.25 m apart, the ball 0.07 m before their midpoint, radius 0.11 m, for any build"
    person = scene.subject(0, number)
    joints = scene.skeleton(person, scene.motion(person, 'lean', core.rng('hands', number)))
    np.testing.assert_allclose(joints.wrist[1] - joints.wrist[0], np.broadcast_to([.25, 0, 0], (8, 3)), atol=1e-9)
    flesh = scene.body(person, joints)
    np.testing.assert_allclose((flesh.a[-1] + flesh.b[-1])/2, joints.wrist.mean(0) + [0, 0, .07], atol=1e-9)
    assert flesh.radius[-1] == .11 and len(flesh.radius) == 17


@pytest.mark.parametrize('size', [56, 84, 112, 140, 224])
def test_the_box_around_a_capsule_loses_nothing(size):
    person = scene.subject(0, 7)
    joints = scene.skeleton(person, scene.motion(person, 'lean', core.rng('box')))
    flesh, cam = scene.body(person, joints), scene.camera(1, core.rng('cam', size), size)
    flesh = flesh._replace(a=cam.see(flesh.a), b=cam.see(flesh.b))
    z, part = scene.cast(flesh, cam)
    full = np.stack([scene.hit(*cam.rays(), a, b, r) for a, b, r in zip(flesh.a, flesh.b, flesh.radius)])
    np.testing.assert_array_equal(z, full.min(0))
    assert cam.cropped % 2 == 0 and cam.window.max() + cam.cropped <= size


@pytest.mark.parametrize('objects', [True, False])
def test_joints_lie_in_the_body_of_the_depth_map(objects):
    on_body, before = [], []
    for action in range(1, 11):
        clip = scene.render(2, NAME._replace(action=action, camera=1 + action % 3), objects, size=112)
        n = clip.depth.shape[-1]
        for t, (px, xyz) in enumerate(zip(np.round(clip.pixels).astype(int), clip.joints)):
            for (col, row), z in zip(px, xyz[:, 2]):
                if 0 <= col < n and 0 <= row < n:
                    on_body.append(clip.person[t, row, col]); before.append(z - clip.true_depth[t, row, col])
    on_body, before = np.array(on_body), np.array(before)
    assert len(on_body) > 1500 and on_body.mean() > .95                # the rest is hidden by furniture
    assert (before[on_body] > -.03).mean() > .99                       # and there the surface is before its joint, but for pixels at an edge


def test_depth_statistics():
    "synthetic.md 3.9 reports 7.3 % zeros and 1490..5407 mm on its prototype; the share depends on the furniture of the seed"
    mm = np.stack([scene.render(seed, NAME._replace(action=a, camera=1 + a % 3)).depth for seed in range(4) for a in range(1, 11)])
    assert .055 < (mm == 0).mean() < .085
    assert 1300 < mm[mm > 0].min() < 2400 and 4700 < mm.max() < 6500


def test_without_noise_there_are_no_holes():
    clip = scene.render(0, NAME, noise=False)
    assert clip.depth.min() > 0
    np.testing.assert_allclose(clip.depth, 1000*clip.true_depth, atol=.5001)


# ---- files

@pytest.mark.parametrize('size', [56, 112])
@pytest.mark.parametrize('masked', [False, True])
def test_files_hold_the_pixels(place, size, masked):
    how = dict(objects=True, size=size, frames=8, noise=True)
    synthetic.write_clip(place, NAME, masked=masked, **how)
    clip, n = scene.render(0, NAME, **how), size*52//56
    assert clip.rgb.shape == (8, n, n, 3)
    np.testing.assert_array_equal(read_video(place/f'nturgb+d_rgb/{NAME.stem}_rgb.avi', backend='av'), clip.rgb)
    folder = place/('nturgb+d_depth_masked' if masked else 'nturgb+d_depth')/NAME.stem
    assert sorted(p.name for p in folder.iterdir()) == [f'{"M"*masked}Depth-{i:08d}.png' for i in range(1, 9)]
    np.testing.assert_array_equal(read_png16(folder), np.where(clip.person, clip.depth, 0) if masked else clip.depth)
    for file in folder.iterdir():
        head = file.read_bytes()[:33]
        width, height, bits, colour = struct.unpack('>IIBB', head[16:26])
        assert head[:8] == b'\x89PNG\r\n\x1a\n' and (width, height, bits, colour) == (n, n, 16, 0)


@pytest.mark.parametrize('size', [56, 112, 224])
def test_readers_agree(place, size):
    synthetic.write_clip(place, NAME, skeletons=False, size=size)
    file = place/f'nturgb+d_rgb/{NAME.stem}_rgb.avi'
    np.testing.assert_array_equal(read_video(file), read_video(file, backend='av'))
    assert not (place/'nturgb+d_skeletons').exists()


def test_video_is_h264_in_avi_and_lasts_a_second(place):
    import av
    synthetic.write_clip(place, NAME)
    with av.open(str(place/f'nturgb+d_rgb/{NAME.stem}_rgb.avi')) as box:
        assert box.format.name == 'avi' and box.streams.video[0].codec_context.name == 'h264'
        assert box.streams.video[0].average_rate == 8 and box.streams.video[0].frames == 8


def parse_skeleton(text):
    "NTU's text grammar, written down again: frames of bodies of joints"
    tokens = iter(text.split('\n'))
    frames = []
    for _ in range(int(next(tokens))):
        bodies = []
        for _ in range(int(next(tokens))):
            head = next(tokens).split(' ')
            joints = [[float(v) for v in next(tokens).split(' ')] for _ in range(int(next(tokens)))]
            bodies.append((head, np.array(joints)))
        frames.append(bodies)
    assert list(tokens) == ['']
    return frames


@pytest.mark.parametrize('objects', [True, False])
def test_skeleton_file(objects):
    clip = scene.render(0, NAME, objects)
    frames = parse_skeleton(synthetic.skeleton_text(clip, 72057594037927940))
    assert len(frames) == 8 and all(len(bodies) == 1 for bodies in frames)
    for (head, joints), xyz, px in zip((b[0] for b in frames), clip.joints, clip.pixels):
        assert len(head) == 10 and head[0] == '72057594037927940' and joints.shape == (25, 12)
        assert all(abs(float(v)) <= 1 for v in head[7:9]) and (joints[:, 11] == 2).all()
        np.testing.assert_allclose(joints[:, :3], xyz, atol=1e-5)
        np.testing.assert_allclose(joints[:, 3:7], np.concatenate([px, px], 1), atol=1e-3)


def test_kinect_order():
    "Left is the person's left, and each of the 25 joints is where its name says"
    person = scene.subject(0, 4)
    x, y, z = scene.kinect_joints(scene.skeleton(person, scene.motion(person, 'push', core.rng('kinect'))))[-1].T
    spine_base, spine_mid, neck, head, spine_shoulder = 0, 1, 2, 3, 20
    assert y[spine_base] < y[spine_mid] < y[spine_shoulder] < y[neck] < y[head]
    left, right = [4, 5, 6, 7, 12, 13, 14, 15, 21, 22], [8, 9, 10, 11, 16, 17, 18, 19, 23, 24]
    assert (x[left] < x[right]).all()
    for shoulder, elbow, wrist, hand, tip in ((4, 5, 6, 7, 21), (8, 9, 10, 11, 23)): assert (np.diff(z[[elbow, wrist, hand, tip]]) > 0).all()
    for hip, knee, ankle, foot in ((12, 13, 14, 15), (16, 17, 18, 19)): assert (np.diff(y[[hip, knee, ankle, foot]]) < 0).all()


@pytest.mark.parametrize('frames', [2, 5, 16])
def test_number_of_frames(place, frames):
    synthetic.write_clip(place, NAME, frames=frames)
    assert len(read_video(place/f'nturgb+d_rgb/{NAME.stem}_rgb.avi')) == frames
    assert len(os.listdir(place/'nturgb+d_depth'/NAME.stem)) == frames
    assert len(ntu.read_skeleton(place/f'nturgb+d_skeletons/{NAME.stem}.skeleton').joints[0]) == frames


# ---- who plays where

@pytest.mark.parametrize('counts', [dict(), dict(train=19), dict(train=4, unlabelled=15), dict(train=0, valid=0, test=20), dict(train=1, valid=0, test=0)])
def test_splits_are_disjoint_and_ntu_agrees(counts):
    who = synthetic.subjects(**counts)
    everybody = sum(who.values(), [])
    assert len(everybody) == len(set(everybody)) and set(everybody) <= set(range(1, 41))
    train = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}                # datasets.md section 1
    assert set(who['train']) | set(who['unlabelled']) <= train - {1} and set(who['valid']) <= {1} and not set(who['test']) & train


@pytest.mark.parametrize('counts', [dict(train=20), dict(train=10, unlabelled=10), dict(test=21), dict(valid=2), dict(train=-1), dict(train=0, valid=0, test=0)])
def test_impossible_casts(counts, place):
    with pytest.raises(ModdistError, match='subjects'): synthetic.make(place/'set', **counts)
    assert not list(place.iterdir())


def test_index(few):
    df = synthetic.index(few)
    assert df.split.value_counts().to_dict() == dict(train=30, valid=30)
    assert (df.groupby(['subject', 'label']).size() == 3).all() and set(df.camera) == {1, 2, 3}
    assert set(df.motion) == set(scene.MOTIONS[True]) and set(df.colour) == {'red', 'blue'}
    assert (df.action == df.motion + ' ' + df.colour).all() and df[['rgb', 'depth', 'skeleton']].map(os.path.exists).all().all()
    assert json.loads((few/'moddist.json').read_text())['classes'] == (few/'classes.txt').read_text().split('\n')[:-1]


def test_index_without_ball_validation_or_skeletons(place):
    df = synthetic.index(synthetic.make(place/'set', objects=False, masked=True, skeletons=False, train=1, valid=0, test=1, unlabelled=1, frames=2, workers=2))
    assert df.split.value_counts().to_dict() == dict(train=30, test=30, unlabelled=30)
    assert list(df.motion) == list(df.action) and 'colour' not in df and df.skeleton.isna().all()
    assert df.depth.str.contains('depth_masked').all()
    cv = synthetic.index(place/'set', 'cross-view')
    assert set(cv.camera[cv.split == 'test']) == {1} and (cv.split == 'unlabelled').sum() == 30


# ---- found, refused, replaced

def test_found_again(few):
    before = {p: p.stat().st_mtime_ns for p in few.rglob('*')}
    assert synthetic.make(few, workers=2, overwrite=True, **FEW) == few
    assert {p: p.stat().st_mtime_ns for p in few.rglob('*')} == before


@pytest.mark.parametrize('other', [dict(seed=1), dict(size=112), dict(masked=True), dict(test=1), dict(objects=False), dict(frames=4), dict(noise=False), dict(skeletons=False)])
def test_other_parameters_are_refused(few, other):
    before = digest(few)
    with pytest.raises(DataError, match=f'{next(iter(other))}=.* instead of .*overwrite=True'): synthetic.make(few, **{**FEW, **other})
    assert digest(few) == before


def test_overwrite_replaces_a_set_but_nothing_else(few, place):
    synthetic.make(place/'set', seed=9, train=0, test=0, workers=2)
    synthetic.make(place/'set', overwrite=True, workers=2, **FEW)
    assert digest(place/'set') == digest(few)
    (place/'mine').mkdir(); (place/'mine'/'thesis.tex').write_text('...')
    (place/'file').write_text('...')
    for dest in ('mine', 'file'):
        with pytest.raises(DataError, match='no embedded set'): synthetic.make(place/dest, overwrite=True, **FEW)
    assert (place/'mine'/'thesis.tex').exists() and (place/'file').exists()


def test_an_empty_folder_is_welcome_and_a_damaged_set_is_noticed(few, place):
    (place/'set').mkdir()
    synthetic.make(place/'set', workers=2, **FEW)
    next((place/'set'/'nturgb+d_skeletons').iterdir()).unlink()
    with pytest.raises(DataError, match='1 of 60 clips'): synthetic.make(place/'set', **FEW)
    synthetic.make(place/'set', workers=2, overwrite=True, **FEW)
    assert digest(place/'set') == digest(few)


@pytest.mark.parametrize('bad', [dict(size=100), dict(size=0), dict(frames=1), dict(workers=0), dict(workers=-1)])
def test_bad_values_are_named(place, bad):
    key, value = next(iter(bad.items()))
    with pytest.raises(ModdistError, match=f'{key}={value}: expected'): synthetic.make(place/'set', **bad)
    assert not list(place.iterdir())


# ---- nothing half-written

def full_disk(*args, **kw): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('where', ['write_png16', 'write_json'])
def test_full_disk(place, monkeypatch, where, workers):
    monkeypatch.setattr(synthetic, where, full_disk)
    with pytest.raises(ModdistError, match='set: no space left') as e: synthetic.make(place/'set', train=0, test=0, workers=workers)
    assert str(place/'set') in str(e.value) and '\n' not in str(e.value)
    assert not list(place.iterdir())


@pytest.mark.parametrize('workers', [1, 2])
def test_full_disk_inside_an_encoder(place, monkeypatch, workers):
    "The writers report the file; its temporary name must not reach the user"
    from PIL import Image
    monkeypatch.setattr(Image.Image, 'save', full_disk)
    with pytest.raises(ModdistError, match='no space left') as e: synthetic.make(place/'set', train=0, test=0, workers=workers)
    assert str(e.value).startswith(str(place/'set/nturgb+d_depth')) and 'partial' not in str(e.value)
    assert not list(place.iterdir())


def test_a_failed_overwrite_keeps_the_old_set(few, place, monkeypatch):
    synthetic.make(place/'set', workers=2, **FEW)
    monkeypatch.setattr(synthetic, 'write_png16', full_disk)
    with pytest.raises(ModdistError): synthetic.make(place/'set', seed=1, overwrite=True, workers=1, **FEW)
    assert os.listdir(place) == ['set'] and digest(place/'set') == digest(few)


def test_interrupt_in_this_process(place, monkeypatch):
    seen = []
    def render(*args, **kw):
        seen.append(args)
        if len(seen) == 5: raise KeyboardInterrupt
        return core_render(*args, **kw)
    core_render = scene.render
    monkeypatch.setattr(synthetic, 'render', render)
    with pytest.raises(KeyboardInterrupt): synthetic.make(place/'set', workers=1, **FEW)
    assert len(seen) == 5 and not list(place.iterdir())


@pytest.mark.skipif(os.name != 'posix', reason='signals to a process group')
def test_ctrl_c_with_several_processes(place):
    "A real SIGINT to the whole group, as a terminal sends it"
    code = f"from moddist import synthetic; synthetic.make({str(place/'set')!r}, size=112, workers=2)"
    child = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stderr=subprocess.PIPE, start_new_session=True, preexec_fn=can_be_interrupted, cwd=Path(__file__).parents[1])
    until = time.monotonic() + 120
    while not list(place.glob('.partial-*/nturgb+d_rgb/*')) and time.monotonic() < until: time.sleep(.05)
    os.killpg(child.pid, signal.SIGINT)
    error = child.communicate(timeout=600)[1].decode()
    assert child.returncode and error.rstrip().endswith('KeyboardInterrupt') and error.count('Traceback') == 1
    assert not list(place.iterdir())


@pytest.mark.skipif(sys.platform != 'linux', reason='needs forked workers, which inherit the patch')
def test_a_killed_worker_is_reported(place, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(synthetic, 'render', lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != parent else None)
    with pytest.raises(ModdistError, match='workers=1'): synthetic.make(place/'set', workers=2, **FEW)
    assert not list(place.iterdir())
