"""One draw for every kind of signal: markers painted at a known place and time coincide after any pipeline of size, scale, crop, flip and sampling."""
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings as budget, strategies as st

from moddist.arrays import ARRAY_SUFFIX, write_array
from moddist.clips import load_clip
from moddist.core import MODALITIES
from moddist.draws import SAMPLINGS, ClipDraw, ClipSampler, Window, draw, place_frames, same_time, window
from moddist.files import write_png16, write_video
from moddist.tracks import Boxes, write_boxes

torch.set_num_threads(1)

# signal: frames, height, width. Other rates, other sizes; one field of view.
FILES = dict(rgb=(24, 60, 80), depth=(24, 45, 60), ir=(24, 30, 40), flow=(12, 60, 80), mask=(24, 90, 120), motion=(8, 60, 80), boxes=(24, 120, 160), pose=(24, 60, 80))
KINDS = tuple(FILES)
SQUARE = .2                                  # side of the marker as a fraction of the height, .15 of the width: as many pixels
FAR, U = 4000, .125                          # depth of the wall, mm; flow of the marker per frame number, px
CLIPS = [(.2, .3), (.62, .15), (.4, .7)]     # centre of the marker at the start, fractions (y, x); it drifts by .1 of the width


def place(i, moment):
    "Edges (y0, y1, x0, x1) of the marker of clip i at `moment` 0..1, fractions of the picture"
    y, x = CLIPS[i]
    x += .1*moment
    return y - SQUARE/2, y + SQUARE/2, x - SQUARE*.375, x + SQUARE*.375


def mask_of(i, key, t):
    n, h, w = FILES[key]
    y0, y1, x0, x1 = place(i, (t + .5)/n)
    ys, xs = np.mgrid[:h, :w] + .5
    return (ys > y0*h) & (ys < y1*h) & (xs > x0*w) & (xs < x1*w)


def paint(i, key):
    "The files' content: a marker whose value says which frame it is"
    n, h, w = FILES[key]
    masks = [mask_of(i, key, t) for t in range(n)]
    code = lambda values, back: np.stack([np.where(m, v, back) for m, v in zip(masks, values)])
    if key == 'rgb': return np.repeat(code(110 + 6*np.arange(n), 0)[..., None], 3, -1).astype(np.uint8)
    if key == 'ir': return np.repeat(code(110 + 6*np.arange(n), 0)[..., None], 3, -1).astype(np.uint8)
    if key == 'depth': return code(1000 + 50*np.arange(n), FAR).astype(np.uint16)*np.where(np.arange(w) % 7 == 3, 0, 1).astype(np.uint16)     # columns without reading
    if key == 'flow': return np.stack([code(1 + U*np.arange(n), 0), code(np.full(n, .5), 0)], -1).astype(np.float32)
    if key == 'mask': return code(np.full(n, 255), 0).astype(np.uint8)
    return code(100 + 16*np.arange(n), 0).astype(np.uint8)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    root, rows = tmp_path_factory.mktemp('aligned'), []
    for i in range(len(CLIPS)):
        row = dict(clip_id=f'clip{i}', label=i, split='train')
        for k in ('rgb', 'ir'): row[k] = str(write_video(root/f'{k}{i}.mp4', paint(i, k)))
        row['depth'] = str(write_png16(root/f'depth{i}', paint(i, 'depth')))
        for k in ('flow', 'mask', 'motion'): row[k] = str(root/f'{k}{i}{ARRAY_SUFFIX}'); write_array(row[k], paint(i, k))
        n, h, w = FILES['boxes']
        edges = [place(i, (t + .5)/n) for t in range(n)]
        boxes = [np.array([[x0*w, y0*h, x1*w, y1*h, 2, (t + 1)/100, 1, 3], [0, 0, w, h, 1, .5, 0, 0]], np.float32) for t, (y0, y1, x0, x1) in enumerate(edges)]
        row['boxes'] = str(root/f'boxes{i}.json'); write_boxes(row['boxes'], Boxes(boxes, (h, w)))
        n, h, w = FILES['pose']
        xyz = np.zeros((1, n, 17, 3), np.float32)                     # COCO: 5 is the left shoulder, 6 the right; both on the marker, told apart by their confidence
        for t in range(n): y0, y1, x0, x1 = place(i, (t + .5)/n); xyz[0, t] = (x0 + x1)/2*w, (y0 + y1)/2*h, (t + 1)/100
        xyz[:, :, 6, 2] += .5
        row['pose'] = str(root/f'pose{i}{ARRAY_SUFFIX}'); write_array(row['pose'], xyz.swapaxes(0, 1), attrs=dict(unit='px', size=[h, w]))
        rows.append(row)
    return rows


def frame_of(key, value):
    "Which frame of the file a value of the marker names"
    return dict(rgb=lambda v: (v - 110)/6, ir=lambda v: (v - 110)/6, depth=lambda v: (v - 1000)/50, motion=lambda v: (v - 100)/16)[key](value)


def seen(clip, key, shape, w):
    "Per frame: (frame of the file or None when the value cannot say, centre (y, x) in px) of the marker, or None where it is not wholly inside"
    x = clip.as_subclass(torch.Tensor).numpy()
    height, width = shape
    for t in range(x.shape[1]):
        if key == 'boxes':
            hands = np.flatnonzero(x[4, t] == 2)
            if not len(hands): yield None; continue
            x1, y1, x2, y2, _, score, side, _ = x[:, t, hands[0]]
            inside = x1 > 0 and y1 > 0 and x2 < 1 and y2 < 1
            assert side == (2 if w.flip else 1)
            yield (round(score*100) - 1, np.array([(y1 + y2)/2*height, (x1 + x2)/2*width])) if inside else None
        elif key == 'pose':
            px, py, c = x[:, t, 6 if w.flip else 5, 0]
            if np.isnan(px): yield None; continue
            assert c < .5, 'left and right were not swapped with the mirror'
            yield (round(c*100) - 1, np.array([py*height, px*width]))
        else:
            f = x[0, t].astype(float)
            hit = (f > 0) & (f < FAR) if key == 'depth' else abs(f) > abs(f).max()/2 if abs(f).max() > 0 else f > 0
            at = np.argwhere(hit)
            if not len(at) or at.min(0).min() == 0 or (at.max(0) == np.array(f.shape) - 1).any(): yield None; continue
            middle = (at.min(0) + at.max(0) + 1)/2
            yield (None if key in ('flow', 'mask') else round(float(frame_of(key, np.median(f[hit]) if key == 'depth' else abs(f).max()))), middle)


@st.composite
def pipelines(some):
    "Any sampler: size or short side or neither, a larger picture, a crop, a flip, any sampling"
    reference = some(st.sampled_from(['rgb', 'depth', 'flow:flow']))
    h, w = FILES[reference.partition(':')[0]][1:]
    how = some(st.sampled_from(['native', 'size', 'short']))
    size = some(st.tuples(st.integers(40, 90), st.integers(50, 120))) if how == 'size' else None
    short = some(st.integers(40, 90)) if how == 'short' else None
    h, w = size or ((short, short*4//3) if short else (h, w))
    crop = some(st.tuples(st.integers(h*2//3, h), st.integers(w*2//3, w)))
    scale = some(st.sampled_from([(1., 1.), (1., 1.4), (1.15, 1.43)]))
    s = ClipSampler(some(st.integers(1, 6)), some(st.sampled_from(SAMPLINGS)), size, crop if scale != (1, 1) else some(st.sampled_from([None, crop])), some(st.sampled_from([0., .5, 1.])),
                    reference, some(st.integers(0, 2**31)), some(st.integers(0, 50)), short, scale, some(st.sampled_from([(1., 1.), (.8, 1.3)])), some(st.sampled_from([0., 12., 180.])),
                    some(st.sampled_from([0., .5])), interval=some(st.integers(1, 6)),
                    clips=some(st.integers(1, 3)), crops=some(st.sampled_from([1, 3])), chunks=some(st.booleans()))
    return s, some(st.integers(0, len(CLIPS) - 1)), some(st.booleans()), some(st.integers(0, s.views - 1))


COUNT = Counter()


@budget(max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(p=pipelines())
def test_every_signal_shows_the_same_place_and_time(clips, p):
    s, i, train, view = p
    row, ref = clips[i], s.reference.partition(':')[0]
    n_ref = FILES[ref][0]
    if n_ref < s.clip_len*(1 if train else s.clips): s = replace(s, clips=1, clip_len=min(s.clip_len, n_ref)); view = 0
    native = FILES[ref][1:]
    d = draw(s, row['clip_id'], n_ref, train, view)
    w = window(s, d, native)
    expected, whole = [], []
    for t in d.index:                                                  # the oracle: from the fractions of the scene, without the readers
        y0, y1, x0, x1 = place(i, (t + .5)/n_ref)
        cy, cx = (y0 + y1)/2*w.size[0] - w.y, (x0 + x1)/2*w.size[1] - w.x
        a, oy, ox = np.radians(w.angle), cy - w.height/2, cx - w.width/2                       # turned and enlarged about the middle, y downwards
        cy, cx = (w.height/2 + w.zoom*(oy*np.cos(a) - ox*np.sin(a)), w.width/2 + w.zoom*(ox*np.cos(a) + oy*np.sin(a)))
        expected.append(np.array([cy, w.width - cx if w.flip else cx]))
        ry, rx = SQUARE/2*w.size[0], SQUARE*.375*w.size[1]
        ry, rx = (w.zoom*(p*abs(np.cos(a)) + q*abs(np.sin(a))) + 3 for p, q in ((ry, rx), (rx, ry)))
        whole.append(ry < cy < w.height - ry and rx < cx < w.width - rx)
    for key in KINDS:
        clip = load_clip(row, key, s, train, view=view)
        if key == 'depth': assert set(np.unique(clip.numpy())) <= {0, FAR, *range(1000, 1000 + 50*24, 50)}, 'depth was blended'
        n = FILES[key][0]
        drift = .05*w.size[1]*(1/n + 1/n_ref)                          # how far the marker moves within the frames compared
        for t, at, want, inside in zip(d.index, seen(clip, key, (w.height, w.width), w), expected, whole):
            COUNT[key, inside] += 1
            if not inside: continue
            assert at is not None, f'{key}: no marker, expected at {want}'
            frame, middle = at
            if frame is not None: assert frame == same_time([t], n_ref, n)[0], f'{key} shows frame {frame} where {ref} shows {t}'
            coarse = max(w.size[0]/FILES[key][1], w.size[1]/FILES[key][2])           # a marker painted on a coarse grid is off by up to half a pixel of that grid
            tolerance = 1 + drift + max(coarse - 1, 0)/2 + (coarse/2 if key == 'depth' else 0)    # a column without reading may hide its edge
            assert np.abs(middle - want).max() <= tolerance, f'{key}: marker at {middle}, expected {want} ({s}, clip {i}, view {view})'
        if key == 'flow': vectors_follow(clip, d, w, n_ref, whole)


def vectors_follow(clip, d, w, n_ref, whole):
    "u and v grow and turn with the picture, u changes sign in a mirror: at the middle of the marker"
    x = clip.as_subclass(torch.Tensor).numpy()
    for t, j, inside in zip(range(len(d.index)), same_time(d.index, n_ref, FILES['flow'][0]), whole):
        if not inside: continue
        y, z = np.argwhere(abs(x[0, t]) > abs(x[0, t]).max()/2).mean(0).astype(int)
        u, v, c, s = (1 + U*j)*w.size[1]/80, .5*w.size[0]/60, np.cos(np.radians(w.angle)), np.sin(np.radians(w.angle))
        want = w.zoom*(u*c + v*s)*(-1 if w.flip else 1), w.zoom*(v*c - u*s)
        assert x[:, t, y, z] == pytest.approx(want, rel=1e-3, abs=1e-3)


def test_markers_were_compared():
    "Most readings of every signal showed the whole marker, or the property above would hold of nothing"
    if not COUNT: pytest.skip('needs the property above in the same run')
    for key in KINDS: assert COUNT[key, True] > .35*(COUNT[key, True] + COUNT[key, False]) and COUNT[key, True] > 500, (key, COUNT)


# ---------------------------------------------------------------- each rule alone

@pytest.mark.parametrize('flip', (False, True))
@pytest.mark.parametrize('size', ((60, 80), (30, 40), (120, 80)))
def test_flow_scales_and_turns(size, flip):
    flow = np.tile(np.float32([3, -2]), (2, 60, 80, 1))
    out = place_frames(flow, Window(size, 2, 3, 20, 30, flip), MODALITIES['flow'])
    assert out.shape == (2, 20, 30, 2)
    assert np.allclose(out[..., 0], (-3 if flip else 3)*size[1]/80) and np.allclose(out[..., 1], -2*size[0]/60)


@pytest.mark.parametrize('angle, want', ((90, (-2, -3)), (180, (-3, 2)), (0, (3, -2))))
def test_flow_turns_with_the_picture(angle, want):
    "Counter-clockwise as seen: what went right goes up (v is negative upwards)"
    flow = np.tile(np.float32([3, -2]), (2, 60, 80, 1))
    out = place_frames(flow, Window((60, 80), 20, 30, 10, 10, False, 2., angle), MODALITIES['flow'])
    assert out.shape == (2, 10, 10, 2) and np.allclose(out, 2*np.float32(want), atol=1e-4)


def test_views_leave_the_rest_of_a_draw_alone():
    "Zoom, turn and tempo come from a generator of their own; none in tests"
    plain, strong = ClipSampler(8, 'coin', crop=40, flip=.5, scale=(1., 1.2)), ClipSampler(8, 'coin', crop=40, flip=.5, scale=(1., 1.2), zoom=(.8, 1.25), rotate=20)
    angles = []
    for e in range(200):
        a, b = (draw(replace(s, epoch=e), 'a', 40, True) for s in (plain, strong))
        assert a == replace(b, zoom=1., angle=0.) and .8 <= b.zoom <= 1.25 and abs(b.angle) <= 20
        angles.append(b.angle)
    assert min(angles) < -15 and max(angles) > 15
    assert draw(strong, 'a', 40, False) == draw(plain, 'a', 40, False)


def test_tempo_stretches_a_part():
    whole = draw(ClipSampler(8), 'a', 8, True).index
    for e in range(100):
        got = np.array(draw(ClipSampler(8, tempo=.5, epoch=e), 'a', 8, True).index)
        assert len(got) == len(whole) and (np.diff(got) >= 0).all() and 0 <= got[0] and got[-1] < 8 and got[-1] - got[0] >= 3


def test_depth_keeps_its_values_when_turned():
    depth = np.random.default_rng(0).choice([0, 1500, 3000], (2, 40, 50, 1)).astype(np.uint16)
    assert set(np.unique(place_frames(depth, Window((40, 50), 5, 5, 30, 30, True, 1.3, 17.), MODALITIES['depth']))) <= {0, 1500, 3000}
    empty = place_frames(np.full((1, 40, 50, 1), 1500, np.uint16), Window((40, 50), 0, 0, 40, 50, False, 1., 45.), MODALITIES['depth'])[0]
    assert empty[0, 0] == 0 and empty[20, 25] == 1500                     # beyond the picture there is no reading


def test_depth_is_never_blended_across_a_hole():
    depth = np.random.default_rng(0).choice([0, 1500, 3000], (3, 40, 50, 1)).astype(np.uint16)
    for size in ((17, 23), (40, 50), (77, 91)): assert set(np.unique(place_frames(depth, Window(size, 0, 0, *size), MODALITIES['depth']))) <= {0, 1500, 3000}


def test_three_windows_lie_left_right_centre():
    "radevski2022 10, fact 11; along the longer side"
    s = ClipSampler(1, 'uniform', short_side=50, crop=50, crops=3)
    views = [window(s, draw(s, 'a', 5, False, v), (60, 90)) for v in range(3)]
    assert [(w.y, w.x) for w in views] == [(0, 0), (0, 25), (0, 12)]
    views = [window(s, draw(s, 'a', 5, False, v, portrait=True), (90, 60)) for v in range(3)]
    assert [(w.y, w.x) for w in views] == [(0, 0), (25, 0), (12, 0)]


@pytest.mark.parametrize('n, index', ((5, '0 0 0 1 1 1 2 2 2 2 2 3 3 3 4 4'), (16, '0 1 2 3 4 5 6 7 8 8 9 10 11 12 13 14'), (40, '1 3 6 8 11 13 16 18 21 23 25 28 30 33 35 38'),
                                      (100, '3 9 15 22 28 34 40 46 53 59 65 71 77 83 90 96')))
def test_middle_sampling_is_that_of_the_released_code(n, index):
    "radevski2022 4.3: 16 frames, tests; training stays inside the parts"
    assert draw(ClipSampler(16, 'middle'), 'a', n, False).index == tuple(map(int, index.split()))
    edges = np.round((n - 1)/16*np.arange(17))
    for e in range(50):
        got = np.array(draw(ClipSampler(16, 'middle', epoch=e), 'a', n, True).index)
        assert (got >= edges[:-1]).all() and (got <= edges[1:]).all() and got.max() < n


def test_dense_sampling_is_that_of_mmaction():
    "radevski2022 4.3: 8 frames, 8 apart; what is out of the clip repeats the last frame that is in it"
    s = ClipSampler(8, 'dense', interval=8)
    assert draw(s, 'a', 64, False).index == tuple(range(0, 64, 8))
    assert draw(s, 'a', 40, False).index == (0, 8, 16, 24, 32, 32, 32, 32)
    assert [draw(replace(s, clips=3), 'a', 300, False, v).index[0] for v in range(3)] == [39, 118, 197]
    for e in range(50):
        got = draw(replace(s, epoch=e), 'a', 100, True).index
        assert np.all(np.diff(got) == 8) and 0 <= got[0] and got[-1] < 100


def test_views_interleave_or_are_chunks():
    "radevski2022 10, fact 11: the reference cuts the sorted list into consecutive chunks; here that is an option"
    s = ClipSampler(4, 'middle', clips=3)
    every = draw(ClipSampler(12, 'middle'), 'a', 60, False).index
    assert [draw(s, 'a', 60, False, v).index for v in range(3)] == [every[v::3] for v in range(3)]
    assert [draw(replace(s, chunks=True), 'a', 60, False, v).index for v in range(3)] == [every[4*v:4*v + 4] for v in range(3)]


@pytest.mark.parametrize('year, stride', ((2018, 2), (2020, 1)))
def test_the_flow_of_epic_kitchens_is_one_case_of_same_time(year, stride):
    "datasets 7: flow frame (i - 1)//stride + 1, counted from 1"
    n = 600
    assert [i + 1 for i in same_time(range(n), n, n//stride)] == [(i - 1)//stride + 1 for i in range(1, n + 1)]


def test_draw_is_a_value():
    assert ClipDraw((1, 2), .5, .5, False) == ClipDraw((1, 2), .5, .5, False, 1.)


# ---------------------------------------------------------------- signals without pixels: the same instants

@pytest.fixture(scope='module')
def timed(clips, tmp_path_factory):
    "The first clip with a sensor, a sound and a skeleton whose values say when they were measured, each at its own rate"
    from scipy.io import wavfile
    root, row = tmp_path_factory.mktemp('timed'), dict(clips[0])
    moment = lambda n: ((np.arange(n) + .5)/n).astype(np.float32)
    row['inertial'], row['skeleton'], row['audio'] = str(root/f'i{ARRAY_SUFFIX}'), str(root/f's{ARRAY_SUFFIX}'), str(root/'a.wav')
    write_array(row['inertial'], np.stack([moment(200), *np.zeros((5, 200), np.float32)], 1), attrs=dict(rate=50.))
    xyz = np.zeros((8, 1, 25, 3), np.float32); xyz[..., 0] = moment(8)[:, None, None]; xyz[:, 0, 5, 1] = 1.                  # joint 5: left elbow of a Kinect v2
    write_array(row['skeleton'], xyz, attrs=dict(unit='m'))
    wavfile.write(row['audio'], 16_000, (2*moment(4*16_000) - 1).astype(np.float32))
    return row


@budget(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(length=st.integers(1, 8), sampling=st.sampled_from(SAMPLINGS), epoch=st.integers(0, 50), flip=st.booleans(), train=st.booleans())
def test_sensor_sound_and_skeleton_are_read_at_the_instants_of_the_frames(timed, length, sampling, epoch, flip, train):
    s = ClipSampler(length, sampling, flip=float(flip), epoch=epoch, interval=3, samples=2*length, sound_s=.1)
    n = FILES['rgb'][0]
    d = draw(s, timed['clip_id'], n, train)
    frames = (np.array(d.index) + .5)/n                                                     # when the pictures were taken, 0..1
    series = load_clip(timed, 'inertial', s, train)[0].numpy()
    assert np.allclose(series, np.linspace(frames[0], frames[-1], 2*length).clip(.5/200, 1 - .5/200), atol=1e-4)
    sound = load_clip(timed, 'audio', s, train)[0]
    assert sound.shape == (length, 1600) and np.allclose((sound[:, 800] + 1)/2, frames, atol=1e-4)
    body = load_clip(timed, 'skeleton', s, train)[..., 0].numpy()                           # [3, T, 25]
    assert np.allclose(abs(body[0, :, 0]), (np.array(same_time(d.index, n, 8)) + .5)/8)
    assert (np.sign(body[0]) == (-1 if d.flip else 1)).all() and body[1].argmax(1).tolist() == [9 if d.flip else 5]*length   # x turns, left and right change places
