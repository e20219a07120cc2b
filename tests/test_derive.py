"Derived signals: motion that is known is found, conventions hold, the store survives interruptions and refuses to lose recorded data"
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings as hyp, strategies as st

from moddist import derive as module
from moddist import store
from moddist.arrays import read_array
from moddist.core import MODALITIES, DataError, ModdistError, ModelError
from moddist.derive import FLOW_SCALE, derive, flow_frames, flow_image, mask_frames, motion_frames, pose_frames, quantise_flow
from moddist.draws import ClipDraw, ClipSampler, place_frames, window
from moddist.files import file_stamp, read_frames, write_video
from moddist.tracks import read_joints

INSIDE = np.s_[:, 16:-16, 16:-16]
contrib = pytest.mark.skipif(not hasattr(cv2, 'optflow'), reason='this OpenCV has no optflow (opencv-contrib-python-headless)')


def glide(dx, dy, n=3, size=(96, 128), seed=0):
    "uint8 [n, h, w, 3]: a texture that moves by (dx, dy) px per frame; drawn as waves in closed form, so that nothing is interpolated"
    g = np.random.default_rng(seed)
    v, u = np.mgrid[:size[0], :size[1]].astype(float)
    waves = [(g.normal(0, .25, 2), g.uniform(0, 6.28)) for _ in range(40)]
    at = lambda t: sum(np.sin(kx*(u - dx*t) + ky*(v - dy*t) + phase) for (kx, ky), phase in waves)
    frames = np.stack([at(t) for t in range(n)])
    return (128 + 127*frames/np.abs(frames).max()).round().astype(np.uint8)[..., None].repeat(3, -1)


# ---------------------------------------------------------------- flow

@pytest.mark.parametrize('method', ['dis', pytest.param('tvl1', marks=contrib)])
@pytest.mark.parametrize('dx, dy', [(3, 0), (-3, 0), (0, 2), (0, -2), (1.5, -2.25), (-4, -3), (0, 0)])
def test_known_motion_is_found_u_right_v_down(dx, dy, method):
    flow = flow_frames(glide(dx, dy), method)
    assert flow.shape == (3, 96, 128, 2) and flow.dtype == np.float32
    wrong = np.abs(flow[INSIDE] - [dx, dy])
    assert np.quantile(wrong, .999) < .3 and wrong.mean() < .1
    if method == 'dis': assert wrong.max() < .3


def test_flow_points_from_a_frame_to_the_next_and_the_last_repeats():
    "Motion that changes from frame to frame: 1, 2, 4 px to the right"
    steps = np.cumsum([0, 1, 2, 4])
    frames = np.stack([glide(s, 0, n=2)[1] for s in steps])
    u = flow_frames(frames)[INSIDE][..., 0].mean((1, 2))
    np.testing.assert_allclose(u, [1, 2, 4, 4], atol=.1)


def test_grey_pictures_and_single_frames():
    frames = glide(2, 1)
    np.testing.assert_allclose(flow_frames(frames[..., :1]), flow_frames(frames), atol=.05)
    assert not flow_frames(frames[:1]).any() and flow_frames(frames[:1]).shape == (1, 96, 128, 2)
    assert not motion_frames(frames[:1]).any() and motion_frames(frames[:1]).shape == (1, 96, 128, 1)


@pytest.mark.parametrize('s', [.5, .75, 1.5])
def test_flow_scales_with_the_picture(s):
    "Flow stored and then resized by the loader equals flow of the resized picture"
    frames, size = glide(4, -2, size=(192, 256)), (round(192*s), round(256*s))
    how = cv2.INTER_AREA if s < 1 else cv2.INTER_CUBIC
    direct = flow_frames(np.stack([cv2.resize(f, size[::-1], interpolation=how) for f in frames]))
    np.testing.assert_allclose(direct[INSIDE].mean((0, 1, 2)), [4*s, -2*s], atol=.1)
    w = window(ClipSampler(size=size), ClipDraw((0,), .5, .5, False), (192, 256))
    placed = place_frames(flow_frames(frames), w, MODALITIES['flow'])
    assert placed.shape == direct.shape and np.abs(placed - direct)[INSIDE].mean() < .1


def test_flow_of_a_mirrored_picture_is_the_mirrored_flow_with_u_negated():
    frames = glide(3, 1)
    w = window(ClipSampler(), ClipDraw((0,), .5, .5, True), (96, 128))
    placed = place_frames(flow_frames(frames), w, MODALITIES['flow'])
    direct = flow_frames(np.ascontiguousarray(frames[:, :, ::-1]))
    assert np.abs(placed - direct)[INSIDE].max() < .3


@hyp(max_examples=60, deadline=None)
@given(st.floats(-511.75, 511.75, width=32, allow_subnormal=False))
def test_quantised_flow_is_off_by_at_most_half_a_step(v):
    q = quantise_flow(np.float32([v]))
    assert q.dtype == np.int16 and abs(q[0]*FLOW_SCALE - v) <= 1/128


def test_quantised_flow_saturates_and_keeps_zero():
    assert quantise_flow(np.float32([0, 600, -600, np.inf, -np.inf])).tolist() == [0, 32767, -32768, 32767, -32768]
    assert np.array_equal(quantise_flow(quantise_flow(np.float32([1.234]))*FLOW_SCALE), quantise_flow(np.float32([1.234])))


@pytest.mark.parametrize('frames, words', [
    (np.zeros((3, 32, 32, 3), np.float32), ('float32', 'uint8')), (np.zeros((3, 32, 32), np.uint8), ('[3, 32, 32]', 'T, H, W')),
    (np.zeros((0, 32, 32, 3), np.uint8), ('[0, 32, 32, 3]',)), (np.zeros((3, 32, 32, 4), np.uint8), ('[3, 32, 32, 4]',))])
def test_what_are_no_pictures_is_refused_by_all(frames, words):
    for make in (flow_frames, motion_frames, mask_frames, pose_frames):
        with pytest.raises(DataError) as e: make(frames)
        assert '\n' not in str(e.value) and all(w in str(e.value) for w in words)


def test_bad_methods_and_tiny_pictures_are_refused():
    with pytest.raises(DataError, match="'farneback': expected dis, tvl1, raft"): flow_frames(glide(1, 1), 'farneback')
    with pytest.raises(DataError, match='12 px'): flow_frames(np.zeros((2, 8, 40, 3), np.uint8))


@pytest.mark.skipif(hasattr(cv2, 'optflow'), reason='this OpenCV has optflow')
def test_tv_l1_without_contrib_names_the_package_and_the_extra():
    with pytest.raises(ModdistError, match=r'opencv-contrib-python-headless.*moddist\[flow\]') as e: flow_frames(glide(1, 1), 'tvl1')
    assert '\n' not in str(e.value)


# ---------------------------------------------------------------- motion and colours

def test_motion_is_the_absolute_difference_without_wrapping():
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 7, 1)).astype(np.uint8)
    want = np.abs(x[1:].astype(int) - x[:-1].astype(int))
    got = motion_frames(x)
    assert got.dtype == np.uint8 and np.array_equal(got[:-1], want) and np.array_equal(got[-1], got[-2])


def test_flow_colours_survive_colour_blindness():
    "Left and right differ in blue, up and down in lightness: no pair of directions is told apart by red against green alone"
    angles = np.deg2rad(np.arange(0, 360, 45))
    colours = flow_image(np.float32(np.stack([np.cos(angles), np.sin(angles)], -1))*5, 5).astype(float)
    without = np.stack([.5*colours[:, 0] + .5*colours[:, 1], colours[:, 2]], -1)      # red and green seen as one
    apart = np.linalg.norm(without[:, None] - without[None], axis=-1) + 1e3*np.eye(8)
    assert apart.min() > 30
    grey = flow_image(np.zeros((2, 3, 2), np.float32), 5)
    assert grey.shape == (2, 3, 3) and grey.dtype == np.uint8 and np.ptp(grey) == 0
    assert np.array_equal(flow_image(np.zeros((4, 2), np.float32)), np.full((4, 3), 128))


# ---------------------------------------------------------------- networks, with random weights

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "Files of weights drawn at random; the detectors are biased to see persons, so that every path is walked"
    from torchvision.models import get_model
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            net = get_model(name, weights=None, **(dict(weights_backbone=None) if 'rcnn' in name else {}))
            if 'rcnn' in name: torch.nn.init.constant_(net.roi_heads.box_predictor.cls_score.bias[1:2], 12.)
            made[name] = tmp_path_factory.mktemp('weights')/f'{name}.pth'
            torch.save(net.state_dict(), made[name])
        return made[name]
    yield make
    module._load_net.cache_clear()


@pytest.mark.parametrize('size', [(128, 136), (50, 61)])
def test_raft_gives_one_vector_per_pixel_whatever_the_size(weights, size):
    flow = flow_frames(glide(1, 0, size=size), 'raft', weights('raft_small'), dev='cpu')
    assert flow.shape == (3, *size, 2) and flow.dtype == np.float32 and np.isfinite(flow).all() and flow.any()
    assert np.array_equal(flow[-1], flow[-2])


def test_raft_is_torchvisions_on_the_same_pictures(weights):
    from torchvision.models.optical_flow import raft_small
    frames = glide(2, 1, size=(128, 128))
    net = raft_small(weights=None).eval(); net.load_state_dict(torch.load(weights('raft_small'), weights_only=True))
    x = torch.from_numpy(frames).permute(0, 3, 1, 2)/127.5 - 1
    with torch.inference_mode(): want = net(x[:1], x[1:2])[-1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(flow_frames(frames, 'raft', weights('raft_small'), dev='cpu')[0], want, atol=1e-3)


def test_raft_reads_safetensors(weights, tmp_path):
    from safetensors.torch import save_file
    save_file(torch.load(weights('raft_small'), weights_only=True), tmp_path/'w.safetensors')
    a, b = (flow_frames(glide(1, 0, n=2, size=(128, 128)), 'raft', w, dev='cpu') for w in (weights('raft_small'), tmp_path/'w.safetensors'))
    assert np.array_equal(a, b)


def test_masks_and_poses_have_the_shapes_of_their_modalities(weights):
    frames = glide(1, 0, n=1, size=(48, 64))
    mask = mask_frames(frames, weights('maskrcnn_resnet50_fpn'), 'cpu', short_side=64)
    assert mask.shape == (1, 48, 64, 1) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    pose = pose_frames(frames, weights('keypointrcnn_resnet50_fpn'), 'cpu', persons=3, short_side=64)
    assert pose.shape == (1, 3, 17, 3) and pose.dtype == np.float32
    seen = pose[np.isfinite(pose).all((2, 3))]
    assert len(seen), 'the biased network sees somebody'
    assert (seen[..., 0] >= 0).all() and (seen[..., 0] <= 65).all() and (seen[..., 1] <= 49).all() and (0 <= seen[..., 2]).all() and (seen[..., 2] <= 1).all()


def test_weights_that_are_absent_damaged_or_of_another_network_are_one_line(weights, tmp_path):
    frames = glide(1, 0, n=2)
    (tmp_path/'cut.pth').write_bytes(weights('raft_small').read_bytes()[:5000])
    for path, words in ((tmp_path/'no.pth', 'no such file of weights'), (tmp_path/'cut.pth', 'not a readable file of weights'), (weights('raft_small'), 'do not fit raft_large')):
        with pytest.raises(ModelError, match=words) as e: flow_frames(frames, 'raft_large', path, dev='cpu')
        assert '\n' not in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize('make', [lambda x: flow_frames(x, 'raft', dev='cpu'), lambda x: mask_frames(x, dev='cpu'), lambda x: pose_frames(x, dev='cpu')])
def test_without_weights_and_network_the_error_says_what_to_fetch(make, monkeypatch, tmp_path):
    "A proxy where nobody listens is a machine without network"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'): monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelError, match=r'fetch https://\S+\.pth .*weights=') as e: make(glide(1, 0, n=2))
    assert '\n' not in str(e.value)


# ---------------------------------------------------------------- the store

@pytest.fixture
def df(tmp_path):
    rows = []
    for i in range(4):
        video = write_video(tmp_path/f'clip{i}.avi', glide(i - 1.5, .5*i, n=4, size=(48, 64), seed=i))
        rows.append(dict(clip_id=f'clip{i}', label=i, action=str(i), split='train', rgb=str(video)))
    return pd.DataFrame(rows)


def test_a_column_of_words_is_not_overwritten(df, tmp_path):
    "The embedded set calls the class of a movement `motion`"
    named = df.assign(motion=['push', 'pull', 'push', None])
    with pytest.raises(DataError, match="'motion' that holds no files .'push'") as e: derive(named, 'motion', tmp_path/'s')
    assert '\n' not in str(e.value) and not (tmp_path/'s').exists()
    out = derive(named, 'motion', tmp_path/'s', key='change')
    assert out.motion.tolist()[:3] == ['push', 'pull', 'push'] and out.change.notna().all()
    assert derive(derive(df, 'motion', tmp_path/'s'), 'motion', tmp_path/'s').motion.notna().all()     # its own paths may be renewed
    assert derive(df.assign(motion=np.nan), 'motion', tmp_path/'s').motion.notna().all()


def stamps(paths): return [file_stamp(p) for p in paths]


def test_what_is_read_back_is_what_was_computed(df, tmp_path):
    out = derive(derive(df, 'flow', tmp_path/'s'), 'motion', tmp_path/'s')
    assert list(out.columns) == [*df.columns, 'flow', 'motion'] and 'flow' not in df
    for row in out.to_dict('records'):
        frames = read_frames(row['rgb'], MODALITIES['rgb'])
        flow = read_frames(row['flow'], MODALITIES['flow'])
        assert flow.shape == (4, 48, 64, 2) and flow.dtype == np.float32                       # as many as RGB frames
        assert np.abs(flow - flow_frames(frames)).max() <= 1/128
        assert np.array_equal(read_frames(row['motion'], MODALITIES['motion']), motion_frames(frames))
        assert Path(row['flow']).parent == tmp_path/'s'/row['clip_id']
    assert store.verify(tmp_path/'s').empty


def test_a_second_call_does_nothing_and_another_method_or_source_does_it_again(df, tmp_path, weights):
    first = derive(df, 'flow', tmp_path/'s')
    before = stamps(first.flow)
    assert stamps(derive(first, 'flow', tmp_path/'s').flow) == before
    Path(first.flow[1]).unlink()                                                               # lost
    again = derive(df, 'flow', tmp_path/'s')
    assert [a == b for a, b in zip(stamps(again.flow), before)] == [True, False, True, True]
    write_video(df.rgb[2], glide(3, 3, n=6, size=(48, 64)))                                    # recorded anew
    assert len(read_array(derive(df, 'flow', tmp_path/'s').flow[2])) == 6
    other = derive(df.head(1), 'flow', tmp_path/'s', method='raft', weights=weights('raft_small'), dev='cpu')
    assert file_stamp(other.flow[0]) != before[0]
    assert derive(df, 'flow', tmp_path/'s', shard=(1, 2)).flow.isna().tolist() == [True, False, False, False] # clip 0 is RAFT's now, and not of this shard


def test_shards_make_the_whole_in_any_order(df, tmp_path):
    one = derive(df, 'motion', tmp_path/'a', shard=(2, 3))
    assert one.motion.isna().tolist() == [True, True, False, True]
    for i in (0, 1): last = derive(df, 'motion', tmp_path/'a', shard=(i, 3))
    assert last.motion.notna().all()
    whole = derive(df, 'motion', tmp_path/'b')
    assert [Path(p).read_bytes() for p in last.motion] == [Path(p).read_bytes() for p in whole.motion]


def test_a_killed_run_leaves_only_whole_files_and_is_continued(df, tmp_path):
    code = f"""
import os, pandas as pd
import moddist.derive as d
real, n = d.write_array, []
def dies(path, *a):
    n.append(path)
    if len(n) == 3:
        open(path.with_name('.partial-1-' + path.name), 'wb').write(b'half'); os._exit(9)
    return real(path, *a)
os.makedirs({str(tmp_path/'s')!r}, exist_ok=True)
d.write_array = dies
d.derive(pd.read_csv({str(tmp_path/'i.csv')!r}), 'motion', {str(tmp_path/'s')!r})
"""
    df.to_csv(tmp_path/'i.csv', index=False)
    for c in df.clip_id: (tmp_path/'s'/c).mkdir(parents=True)
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9
    done = sorted((tmp_path/'s').glob('*/motion.zarr.zip'))
    assert len(done) == 2
    before = stamps(done)
    out = derive(df, 'motion', tmp_path/'s')
    assert out.motion.notna().all() and stamps(done) == before


def test_one_unreadable_clip_stops_or_is_skipped(df, tmp_path, capsys):
    Path(df.rgb[1]).write_bytes(b'no video')
    with pytest.raises(DataError, match='clip clip1: .*on_error="skip"'): derive(df, 'flow', tmp_path/'s')
    out = derive(df, 'flow', tmp_path/'s', on_error='skip')
    assert out.flow.isna().tolist() == [False, True, False, False]
    assert [c for c, _ in out.attrs['skipped']] == ['clip1'] and 'clip1' not in capsys.readouterr().out


def test_clips_without_the_source_stay_without_the_result(df, tmp_path):
    df.loc[3, 'rgb'] = np.nan
    out = derive(df, 'motion', tmp_path/'s')
    assert out.motion.isna().tolist() == [False, False, False, True] and out.attrs['skipped'] == []


def test_recorded_flow_is_never_overwritten(df, tmp_path):
    other = derive(df, 'flow', tmp_path/'else')
    recorded = store.prepare(other, tmp_path/'s', ('rgb', 'flow'), short_side=None)
    before = [Path(p).read_bytes() for p in recorded.flow]
    with pytest.raises(DataError, match='was recorded.*key='): derive(recorded, 'flow', tmp_path/'s')
    assert [Path(p).read_bytes() for p in recorded.flow] == before
    out = derive(recorded, 'flow', tmp_path/'s', key='flow_rgb')
    assert out.flow_rgb.notna().all() and list(out.flow) == list(recorded.flow) and store.verify(tmp_path/'s').empty


@pytest.mark.parametrize('column, value', [('start', 1), ('stop', 3), ('numbers', '1-3')])
def test_parts_of_a_file_are_cut_out_first(df, tmp_path, column, value):
    df[column] = value
    with pytest.raises(DataError, match='store.prepare'): derive(df, 'flow', tmp_path/'s')


def test_clips_cut_out_by_the_store_can_be_derived_from(df, tmp_path):
    df['start'], df['stop'] = 1, 4
    cut = store.prepare(df, tmp_path/'s', ('rgb',), short_side=None)
    out = derive(cut, 'flow', tmp_path/'s')
    assert [read_array(p).shape for p in out.flow] == [(3, 48, 64, 2)]*4


def test_the_seen_part_of_the_source_is_that_of_the_result(df, tmp_path):
    df['rgb_fov'] = '0.1 0 0.9 1'
    assert list(derive(df, 'motion', tmp_path/'s').motion_fov) == ['0.1 0 0.9 1']*4


def test_poses_go_into_the_store_as_their_reader_wants_them(df, tmp_path, weights):
    df = df.head(1)
    write_video(df.rgb[0], glide(0, 0, n=1, size=(48, 64)))
    joints = read_joints(derive(df, 'pose', tmp_path/'s', weights=weights('keypointrcnn_resnet50_fpn'), dev='cpu').pose[0])
    assert joints.xyz.shape == (2, 1, 17, 3) and joints.unit == 'px' and tuple(joints.size) == (48, 64)


@pytest.mark.parametrize('kwargs, words', [
    (dict(what='depth'), "'depth': expected one of flow, motion, mask, pose"), (dict(what='flow', method='lk'), "'lk'"), (dict(what='flow', shard=(1, 1)), r'shard=\(1, 1\)'),
    (dict(what='flow', on_error='raise'), "on_error='raise'"), (dict(what='flow', source='depth'), 'source depth'), (dict(what='flow', source='view2:rgb'), "no column 'view2'")])
def test_bad_requests_fail_before_the_first_clip(df, tmp_path, kwargs, words):
    with pytest.raises(DataError, match=words) as e: derive(df, dest=tmp_path/'s', **kwargs)
    assert '\n' not in str(e.value) and not (tmp_path/'s').exists()
