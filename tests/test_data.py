"""One draw for all modalities: painted markers stay together whatever the sampler, and an index that lacks something is refused in one line."""
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data, refused
from hypothesis import HealthCheck, given, settings as budget, strategies as st

from moddist import clips as reading
from moddist.clips import FrameCache, load_clip
from moddist.core import DepthClip, ProtocolError, RGBClip, seed_all, signal
from moddist.data import ClipBlock, check_index, clip_dls, clip_rows, row_label, split_rows
from moddist.data import test_dl as make_test_dl
from moddist.datasets import ntu
from moddist.depth import encode_depth, noisy_bytes
from moddist.draws import SAMPLINGS, ClipDraw, ClipSampler, draw, same_time
from moddist.files import write_png16, write_video
from moddist.inputs import ClipInputs, JitterRGB

torch.set_num_threads(1)


# ---------------------------------------------------------------- clips with a painted marker

# signal: frames, height, width. A marker of 2 x 2 cells of a 12 x 16 grid; its value says which frame it is.
FILES = {'rgb': (25, 48, 64), 'depth': (13, 36, 48), 'view2': (17, 60, 80)}
SIGNALS = ('rgb', 'depth', 'view2:rgb')
PLACES = [(1, 2), (3, 11), (8, 5)]            # cell (row, column) of the marker in each clip; none is symmetric
FAR = 4321                                    # depth of the left half of the background, mm; the right half is a hole


def marker(place, key):
    "Rows and columns of the marker in a file"
    _, h, w = FILES[key]
    return slice(place[0]*h//12, (place[0] + 2)*h//12), slice(place[1]*w//16, (place[1] + 2)*w//16)


def paint(place, key):
    n, h, w = FILES[key]
    if key == 'depth':
        x = np.zeros((n, h, w), np.uint16)
        x[:, :, :w//2] = FAR
        x[(slice(None), *marker(place, key))] = 1000 + 10*np.arange(n)[:, None, None]
    else:
        x = np.zeros((n, h, w, 3), np.uint8)
        x[(slice(None), *marker(place, key))] = 50 + 8*np.arange(n)[:, None, None, None]
    return x


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "Rows of a clip index whose signals have their own frame rates and sizes"
    root, rows = tmp_path_factory.mktemp('markers'), []
    for i, place in enumerate(PLACES):
        files = {k: str(write_png16(root/f'{k}{i}', paint(place, k)) if k == 'depth' else write_video(root/f'{k}{i}.mp4', paint(place, k))) for k in FILES}
        rows.append(dict(clip_id=f'clip{i}', label=i, action='mark', split='train', **files))
    return rows


def found(clip, spec):
    "Per frame of a clip: (frame of the file, (y, x) of the marker), or None where the marker is cut or outside"
    key = signal(spec).key
    x = torch.as_tensor(clip).as_subclass(torch.Tensor).numpy().astype(int)[0]
    for frame in x:
        mask = (frame >= 1000) & (frame < FAR) if key == 'depth' else frame > frame.max()/2 if frame.max() else frame > 0
        at = np.argwhere(mask)
        edge = not len(at) or (at.min(0) == 0).any() or (at.max(0) == np.array(mask.shape) - 1).any()
        value = (frame[mask] - 1000)/10 if key == 'depth' else [(frame.max() - 50)/8]
        yield None if edge else (round(np.median(value)), at.mean(0))


@st.composite
def pipelines(draw_):
    "Any sampler, clip and window"
    size = draw_(st.none() | st.tuples(st.integers(24, 90), st.integers(32, 110)))
    reference = draw_(st.sampled_from(SIGNALS))
    n, h, w = FILES[signal(reference).key]
    h, w = size or (h, w)
    crop = draw_(st.none() | st.tuples(st.integers(h//2, h), st.integers(w//2, w)))
    start = draw_(st.integers(0, n - 4))
    window = draw_(st.none() | st.tuples(st.just(start), st.integers(start + 3, n)))
    length = draw_(st.integers(1, window[1] - window[0] if window else n))
    sampler = ClipSampler(length, draw_(st.sampled_from(SAMPLINGS)), size, crop, draw_(st.sampled_from([0., .5, 1.])), reference, draw_(st.integers(0, 2**31)), draw_(st.integers(0, 100)))
    return sampler, draw_(st.integers(0, len(PLACES) - 1)), draw_(st.booleans()), window


SEEN = Counter()


@budget(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(p=pipelines())
def test_modalities_stay_aligned(clips, p):
    "The marker lies at the same pixel and the same time in all signals, and depth values are never blended"
    sampler, i, train, window = p
    row = clips[i] | (dict(start=window[0], stop=window[1]) if window else {})
    loaded = {s: load_clip(row, s, sampler, train) for s in SIGNALS}
    assert len({c.shape[1:] for c in loaded.values()}) == 1 and loaded['rgb'].shape[1] == sampler.clip_len
    assert set(np.unique(loaded['depth'].numpy())) <= {0, FAR, *range(1000, 1130, 10)}
    for seen in zip(*(found(c, s) for s, c in loaded.items())):
        at = {s: v for s, v in zip(SIGNALS, seen) if v}
        SEEN['frames'] += 1
        SEEN['complete'] += len(at) == 3
        SEEN['train'] += train
        for s, (frame, place) in at.items():
            for other, (f, q) in at.items():
                n, m = FILES[signal(s).key][0], FILES[signal(other).key][0]
                assert np.abs(place - q).max() <= 1, f'{s} at {place}, {other} at {q}'
                assert abs((frame + .5)/n - (f + .5)/m) <= .5/n + .5/m + 1e-9, f'{s} shows frame {frame}, {other} frame {f}'


def test_the_marker_was_seen():
    "The property above compared what it meant to compare: most frames showed the whole marker in all signals"
    if not SEEN: pytest.skip('needs test_modalities_stay_aligned in the same run')
    assert SEEN['frames'] > 1000 and SEEN['complete'] > .4*SEEN['frames'] and SEEN['train'] > 300


@pytest.mark.parametrize('size', [(48, 64), (36, 48), (96, 128), (60, 50)])
@pytest.mark.parametrize('i', range(len(PLACES)))
def test_tests_read_the_centre_unflipped(clips, i, size):
    "Where the marker must be in a test reading, calculated by hand from its cell"
    crop = size[0] - 4, size[1] - 4
    cells = np.array(PLACES[i]) + 1
    want = cells*[size[0]/12, size[1]/16] - .5 - [2, 2]
    for s in SIGNALS:
        frames = list(found(load_clip(clips[i], s, ClipSampler(3, 'random', size, crop, flip=1.)), s))
        assert [f for f, _ in frames] == [0, (FILES[signal(s).key][0] - 1)//2, FILES[signal(s).key][0] - 1]
        for _, at in frames: assert np.abs(at - want).max() <= 1


def test_a_flip_is_a_mirror_image(clips):
    "The same draw with and without its flip gives mirrored clips, in every signal; anything else is unchanged"
    d = ClipDraw((0, 7, 24), .3, .8, False)
    sampler = ClipSampler(3, crop=(30, 40))
    for s in SIGNALS:
        plain, mirrored = (load_clip(clips[1], s, sampler, drawn=d_) for d_ in (d, replace(d, flip=True)))
        assert torch.equal(plain.flip(-1).int(), mirrored.int()) and not torch.equal(plain.int(), mirrored.int())


def test_the_window_goes_where_the_draw_says(clips):
    full = load_clip(clips[0], 'rgb', ClipSampler(2))
    for top, left in ((0, 0), (1, 1), (.5, 0), (0, .999)):
        y, x = round(top*18), round(left*24)
        got = load_clip(clips[0], 'rgb', ClipSampler(2, crop=(30, 40)), drawn=ClipDraw((0, 24), top, left, False))
        assert torch.equal(got, full[..., y:y + 30, x:x + 40])


def test_types_shapes_and_no_size(clips):
    "Without a size every signal takes the size of the reference"
    rgb, depth = (load_clip(clips[0], s, ClipSampler(5, size=None)) for s in ('rgb', 'depth'))
    assert (type(rgb), type(depth)) == (RGBClip, DepthClip) and (rgb.dtype, depth.dtype) == (torch.uint8, torch.uint16)
    assert tuple(rgb.shape) == (3, 5, 48, 64) and tuple(depth.shape) == (1, 5, 48, 64)
    assert tuple(load_clip(clips[0], 'rgb', ClipSampler(5, reference='depth')).shape) == (3, 5, 36, 48)


def test_a_clip_may_be_changed_in_place(clips):
    "What the cache holds is not what the caller gets"
    before = load_clip(clips[0], 'rgb', ClipSampler(25)).clone()
    load_clip(clips[0], 'rgb', ClipSampler(25)).zero_()
    assert torch.equal(load_clip(clips[0], 'rgb', ClipSampler(25)), before)


# ---------------------------------------------------------------- time

@pytest.mark.golden(24)
@pytest.mark.parametrize('n, want', [(10, [0, 2, 4, 6, 9]), (17, [0, 4, 8, 12, 16]), (100, [0, 24, 49, 74, 99]), (5, [0, 1, 2, 3, 4])])
def test_uniform_frames_are_those_of_the_released_code(n, want):
    for sampling in ('uniform', 'random', 'coin', 'segment'):
        for epoch in range(3): assert list(draw(ClipSampler(5, sampling, epoch=epoch), 'a', n, train=False).index) == want
    assert list(draw(ClipSampler(5, 'uniform'), 'a', n, train=True).index) == want


@pytest.mark.golden(24)
@pytest.mark.parametrize('n', [5, 6, 17, 100])
def test_coin_sampling(n):
    "Sorted and distinct always; half of the epochs uniform, the other half anything; the draw does not depend on what was drawn before"
    uniform = tuple(np.floor(np.linspace(0, n - 1, 5)).astype(int))
    drawn = [draw(ClipSampler(5, 'coin', flip=.5, epoch=e), 'clip', n, True) for e in range(1000)]
    assert all(list(d.index) == sorted(set(d.index)) and 0 <= d.index[0] and d.index[-1] < n for d in drawn)
    if n > 10:
        share = sum(d.index == uniform for d in drawn)
        assert 430 < share < 570 + 1000/n                    # five standard deviations around a fair coin
        assert set().union(*(d.index for d in drawn)) == set(range(n))
    assert 420 < sum(d.flip for d in drawn) < 580
    assert draw(ClipSampler(5, 'coin', flip=.5, epoch=7), 'clip', n, True) == drawn[7]


@pytest.mark.golden(24)
def test_coin_sampling_is_the_same_for_both_modalities(clips, tmp_path):
    "Read from the pixels: the same frames and the same flip in RGB and depth over many epochs; both flips, both kinds of sampling and many places occur"
    depth = np.zeros((25, 48, 64), np.uint16)
    depth[:, 4:12, 8:16] = 1000 + 10*np.arange(25)[:, None, None]            # as many frames as RGB, the same marker
    row, flips, times = clips[0] | dict(depth=str(write_png16(tmp_path/'d', depth))), Counter(), Counter()
    for e in range(120):
        sampler = ClipSampler(5, 'coin', flip=.5, seed=1, epoch=e)
        rgb, d = (list(found(load_clip(row, s, sampler, True), s)) for s in ('rgb', 'depth'))
        assert [f for f, _ in rgb] == [f for f, _ in d] == sorted({f for f, _ in d})
        assert rgb[0][1][1] == d[0][1][1] in (11.5, 63 - 11.5)
        flips[rgb[0][1][1]] += 1
        times[tuple(f for f, _ in d)] += 1
    assert min(flips.values()) > 35 and 35 < times[(0, 6, 12, 18, 24)] < 85 and len(times) > 35


def test_segments_take_one_frame_each():
    for n, k in ((8, 8), (17, 5), (100, 7), (9, 1)):
        for e in range(50):
            index = draw(ClipSampler(k, 'segment', epoch=e), 'a', n, True).index
            assert all(i*n//k <= f < (i + 1)*n//k for i, f in enumerate(index)) and len(index) == k


@pytest.mark.parametrize('change', [dict(seed=1), dict(epoch=1)])
def test_draws_differ_by_seed_epoch_and_clip(change):
    s = ClipSampler(8, 'random', crop=40, flip=.5)
    ids = [f'c{i}' for i in range(30)]
    a, b = ([draw(replace(s, **c), i, 50, True) for i in ids] for c in ({}, change))
    assert len(set(a)) == 30 and not set(a) & set(b)
    assert [draw(s, i, 50, True) for i in reversed(ids)] == a[::-1]


def test_windows_read_their_own_frames(clips):
    "start and stop count frames of the reference; the other signals show the same stretch of time; NaN is the whole file"
    whole = [f for f, _ in found(load_clip(clips[0] | dict(start=float('nan'), stop=None), 'rgb', ClipSampler(4)), 'rgb')]
    assert whole == [0, 8, 16, 24]
    for start, stop in ((6, 18), (0, 4), (21, 25)):
        row = clips[0] | dict(start=start, stop=stop)
        for e in range(10):
            sampler = ClipSampler(4, 'random', epoch=e)
            f = {s: [i for i, _ in found(load_clip(row, s, sampler, True), s)] for s in SIGNALS}
            assert start <= f['rgb'][0] and f['rgb'][-1] < stop
            assert f['depth'] == same_time(f['rgb'], 25, 13) and f['view2:rgb'] == same_time(f['rgb'], 25, 17)


def test_long_windows_are_read_frame_by_frame(clips, monkeypatch):
    "The same pixels whether the window passes through the cache (short) or not (long)"
    def read(clip_len):
        monkeypatch.setattr(reading, 'CACHE', FrameCache(100))
        index = tuple(range(0, 25, 25//clip_len))[:clip_len]
        got = load_clip(clips[2], 'depth', ClipSampler(clip_len, size=(40, 40)), drawn=ClipDraw(index, .5, .5, True))
        return got, len(reading.CACHE.arrays)
    (a, kept), (b, none) = read(8), read(2)
    assert (kept, none) == (1, 0) and torch.equal(a[:, 0].int(), b[:, 0].int()) and torch.equal(a[:, 4].int(), b[:, 1].int())


@pytest.mark.parametrize('start, stop', [(5, 5), (7, 3), (-1, 5), (0, 26), (30, 40)])
def test_windows_that_are_not_there(clips, start, stop):
    refused(lambda: load_clip(clips[0] | dict(start=start, stop=stop), 'rgb', ClipSampler(2)), 'clip0', f'[{start}, {stop})', 'has 25')


# ---------------------------------------------------------------- bad clips, bad settings

def test_missing_modality_of_a_clip(clips):
    for missing in (None, float('nan'), '', 3):
        refused(lambda: load_clip(clips[0] | dict(depth=missing), 'depth', ClipSampler(2)), 'clip0', "'depth'", 'leave the signal out')
    refused(lambda: load_clip({k: v for k, v in clips[0].items() if k != 'depth'}, 'depth', ClipSampler(2)), 'clip0', "'depth'")
    refused(lambda: load_clip(clips[0] | dict(depth='/nowhere'), 'depth', ClipSampler(2)), '/nowhere')
    refused(lambda: load_clip(clips[0] | dict(rgb='/nowhere.avi'), 'rgb', ClipSampler(2)), '/nowhere.avi')


def test_fewer_frames_than_asked(clips):
    refused(lambda: load_clip(clips[0], 'rgb', ClipSampler(26)), 'clip0', '25 frame', '26 asked')
    refused(lambda: load_clip(clips[0] | dict(start=3, stop=8), 'depth', ClipSampler(6)), 'clip0', '5 frame', '6 asked')
    for sampling in ('uniform', 'random', 'coin', 'segment'): refused(lambda: draw(ClipSampler(5, sampling), 'c', 4, True), 'clip c', '4 frame', '5 asked')


@pytest.mark.parametrize('how, words', [(dict(sampling='sparse'), ['sparse', 'coin']), (dict(clip_len=0), ['clip_len=0']), (dict(size=40, crop=41), ['41', '40']), (dict(size=(40, 60), crop=(40, 61)), ['61'])])
def test_samplers_that_make_no_sense(how, words):
    refused(lambda: ClipSampler(**how), *words)


def test_crop_larger_than_the_frames(clips):
    refused(lambda: load_clip(clips[0], 'rgb', ClipSampler(2, crop=(49, 10))), '49', '48x64')


def test_signals_without_a_reader(clips):
    refused(lambda: load_clip(clips[0] | dict(skeleton='a.skeleton'), 'skeleton', ClipSampler(2)), 'skeleton', 'a.skeleton')
    refused(lambda: load_clip(clips[0], 'lidar', ClipSampler(2)), 'lidar')


def test_names_and_protocols():
    "A name outside the grammar and an unknown protocol, as the user meets them"
    refused(lambda: ntu.parse_name('S001C001P001R001A0Z1'), 'S001C001P001R001A0Z1', 'SsssCcccPpppRrrrAaaa')
    df = pd.DataFrame([dict(clip_id='a', label=0, setup=1, camera=1, subject=1, replication=1)])
    with pytest.raises(ProtocolError) as e: ntu.split(df, 'cross-setup-2')
    assert 'cross-setup-2' in str(e.value) and 'cross-subject' in str(e.value) and '\n' not in str(e.value)


INDEX = pd.DataFrame([dict(clip_id=f'c{i}', label=i % 2, split='train', rgb=f'{i}.avi', depth=f'd{i}') for i in range(4)])


@pytest.mark.parametrize('df, words', [
    (INDEX[:0], ['empty']), (INDEX.drop(columns='depth'), ["'depth'", 'found']), (INDEX.drop(columns='split'), ["'split'"]), (INDEX.drop(columns='label'), ["'label'"]),
    (INDEX.assign(depth=[None, 'x', 'x', np.nan]), ['c0', "'depth'", '2 of 4']), (INDEX.assign(clip_id=['a', 'b', 'b', 'c']), ['clip b', 'twice']),
    (INDEX.assign(label=[0, 1, np.nan, 1]), ['c2', 'no label']), (INDEX.assign(label=[0, 1, 1, -1]), ['c3', 'no label'])], ids=range(8))
def test_indices_that_cannot_be_used(df, words):
    refused(lambda: check_index(df, ('rgb', 'depth')), *words)


def test_unlabelled_clips_need_no_label():
    check_index(INDEX.assign(label=[0, 1, -1, np.nan], split=['train', 'train', 'unlabelled', 'unlabelled']), ('rgb', 'depth'))


# ---------------------------------------------------------------- cache

def test_cache_keeps_to_its_budget():
    cache, loads = FrameCache(1), []
    def get(key, mb=.4): return cache.get(key, lambda: loads.append(key) or np.full(int(mb*2**20), len(key), np.uint8))
    for key in ('a', 'bb', 'ccc', 'a', 'bb', 'ccc', 'ccc'): assert (get(key) == len(key)).all()
    assert loads == ['a', 'bb', 'ccc', 'ccc', 'ccc'] and cache.used <= 2**20 and set(cache.arrays) == {'a', 'bb'}
    cache.clear()
    assert cache.used == 0 and not cache.arrays
    get('ccc'); get('ccc')
    assert loads.count('ccc') == 4


def test_cache_takes_its_budget_from_the_settings(tmp_path):
    (tmp_path/'settings.ini').write_text('[moddist]\ncache_mb = 0\n')
    cache = FrameCache()
    cache.get('a', lambda: np.zeros(10)); assert not cache.arrays


def test_cache_notices_a_file_written_anew(clips, tmp_path):
    "A clip recorded again under the same name is not served from memory"
    import os
    row = clips[0] | dict(rgb=str(write_video(tmp_path/'a.mp4', paint((1, 2), 'rgb'))))
    first = load_clip(row, 'rgb', ClipSampler(8))
    write_video(tmp_path/'a.mp4', 255 - paint((1, 2), 'rgb'))
    os.utime(tmp_path/'a.mp4', ns=(5, 5))
    second = load_clip(row, 'rgb', ClipSampler(8))
    assert (first == 0).float().mean() > .9 and (second == 255).float().mean() > .9


# ---------------------------------------------------------------- values

@pytest.mark.golden(25)
def test_replicated_depth_has_three_identical_channels():
    mm = torch.tensor([0, 1, 1499, 1500, 2375, 3250, 5000, 5001, 65535], dtype=torch.int32).to(torch.uint16).view(1, 1, 1, 9)
    x = encode_depth(mm, how='replicate')
    assert x.shape == (3, 1, 1, 9) and torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
    torch.testing.assert_close(x[0].flatten(), torch.tensor([0, 0, 0, 0, .25, .5, 1, 1, 1]))


@pytest.mark.golden(25)
def test_replicated_depth_reaches_the_network_in_three_identical_channels(clips):
    x = ClipInputs(depth='replicate', depth_mean=(.4,)*3, depth_std=(.2,)*3, centre=False)(load_clip(clips[0], 'depth', ClipSampler(4))[None])
    assert x.shape == (1, 3, 4, 48, 64) and torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2]) and x.std() > .1


@pytest.mark.parametrize('lead', [(), (2,), (2, 5)])
def test_jet_is_matplotlibs_idea_of_jet(lead):
    "Blue is near, red is far; holes are black; channels sit where the clip's were, whatever comes before"
    mm = torch.linspace(0, 6000, 20).expand(*lead, 1, 3, 4, 20)
    x = encode_depth(mm)
    assert x.shape == (*lead, 3, 3, 4, 20) and 0 <= x.min() and x.max() <= 1
    near, far = encode_depth(torch.full((1, 1, 1, 1), 1600.)).flatten(), encode_depth(torch.full((1, 1, 1, 1), 4900.)).flatten()
    assert near[2] > near[0] and far[0] > far[2]
    assert (x.reshape(-1, 3, 3, 4, 20)[..., 0] == 0).all()


def test_unknown_encoding():
    refused(lambda: encode_depth(torch.zeros(1, 1, 1, 1), how='rainbow'), 'rainbow', 'jet', 'replicate')


@pytest.mark.golden(27)
@pytest.mark.parametrize('sigma', [.1, 1., 3.])
def test_noise_gives_bytes_and_keeps_zeros(sigma):
    torch.manual_seed(0)
    x = torch.rand(3, 4, 50, 50)*255
    x[:, :, :10] = 0
    y = noisy_bytes(x, sigma)
    assert torch.equal(y, y.round()) and y.min() >= 0 and y.max() <= 255
    assert (y[:, :, :10] == 0).all() and not torch.equal(y[:, :, 10:], x[:, :, 10:])
    if sigma == .1: assert abs((y[x > 50]/x[x > 50])[x[x > 50] < 150].std() - .1) < .01


@pytest.mark.golden(27)
def test_no_noise_is_the_identity_and_negative_noise_is_blank():
    x = torch.rand(3, 4, 5, 5)*255
    assert torch.equal(noisy_bytes(x, 0), x) and torch.equal(noisy_bytes(x, 0.), x)      # not even rounded
    assert torch.equal(noisy_bytes(x, -1), torch.zeros_like(x))


@pytest.mark.golden(27)
def test_noise_acts_on_the_encoded_bytes_of_depth_only(clips):
    depth, rgb = (load_clip(clips[0], s, ClipSampler(4))[None] for s in ('depth', 'rgb'))
    how = dict(depth='replicate', depth_mean=(0,)*3, depth_std=(1,)*3, centre=False)
    clean, none, noisy, blank = (ClipInputs(**how, depth_noise=s)(depth) for s in (0, 0, 1., -1))
    assert torch.equal(clean, none) and not torch.equal(clean, noisy) and (blank == 0).all()
    torch.testing.assert_close(noisy*255, (noisy*255).round(), atol=1e-4, rtol=0)
    assert (noisy[clean == 0] == 0).all()
    assert torch.equal(ClipInputs(depth_noise=3.)(rgb), ClipInputs()(rgb))


def test_rgb_normalisation_by_hand(clips):
    clip = load_clip(clips[0], 'rgb', ClipSampler(4))[None]
    x = clip.as_subclass(torch.Tensor).double()/255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    torch.testing.assert_close(ClipInputs.imagenet()(clip).double(), (x - mean)/std, atol=1e-5, rtol=0)
    torch.testing.assert_close(ClipInputs()(clip).double(), (x - x.mean(2, keepdim=True))/.27, atol=1e-5, rtol=0)


def test_jitter_is_for_rgb_in_training_and_one_draw_per_clip(clips):
    rgb, depth = (torch.stack([load_clip(c, s, ClipSampler(4)) for c in clips]) for s in ('rgb', 'depth'))
    jitter = JitterRGB()
    assert jitter(depth, split_idx=0) is depth and jitter(rgb, split_idx=1) is rgb
    y = jitter(rgb, split_idx=0).as_subclass(torch.Tensor)
    assert not torch.equal(y, rgb.float())
    for b in range(len(rgb)):                                 # affine in x for each clip and channel, the same in all its frames
        for c in range(3):
            x, v = rgb[b, c].as_subclass(torch.Tensor).double().flatten(), y[b, c].double().flatten()
            a = torch.stack([x, torch.ones_like(x)], 1)
            assert (a@torch.linalg.lstsq(a, v[:, None]).solution - v[:, None]).abs().max() < 1e-2


# ---------------------------------------------------------------- blocks and loaders

@pytest.fixture(scope='module')
def index(clips):
    "Twelve clips of the same files: eight to train, four to validate"
    return pd.DataFrame([clips[i % 3] | dict(clip_id=f'clip{i}', label=i % 3, split='train' if i < 8 else 'valid') for i in range(12)])


def sampler(**how): return ClipSampler(**dict(clip_len=4, sampling='coin', size=(24, 32), crop=20, flip=.5, seed=2) | how)


def batches(df, workers, signals=SIGNALS):
    seed_all(3)
    dls = clip_dls(df, signals, sampler(), bs=4, dev='cpu', workers=workers)
    return [b for dl in (dls.train, dls.train, dls.valid) for b in dl]


def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))


def test_worker_processes_change_no_bit_of_rgb(index):
    "Two epochs of training and one of validation: same clips, frames, windows, flips and jitter"
    one, two = batches(index, 0, ('rgb', 'view2:rgb')), batches(index, 2, ('rgb', 'view2:rgb'))
    assert len(one) == 5 and same(one, two)


def test_epochs_move_the_draws_of_training_only(index, monkeypatch):
    "Within an epoch all signals of a clip get one draw; the next epoch another; validation always the same"
    seen = []
    monkeypatch.setattr(reading, 'draw', lambda sampler_, clip_id, n, train, *how: seen.append((clip_id, d := draw(sampler_, clip_id, n, train, *how))) or d)
    dls = clip_dls(index, SIGNALS, sampler(sampling='random', reference='rgb'), bs=4, dev='cpu')
    def epoch(dl):
        seen.clear(); list(dl)
        assert set(Counter(i for i, _ in seen).values()) == {len(SIGNALS)} and len(set(seen)) == len({i for i, _ in seen})
        return dict(seen)
    first, fixed, second, again = epoch(dls.train), epoch(dls.valid), epoch(dls.train), epoch(dls.valid)
    assert first.keys() == second.keys() and len(first) == 8 and all(first[i] != second[i] for i in first)
    assert fixed == again and len(fixed) == 4 and not set(fixed) & set(first)


def test_worker_processes_change_no_bit_of_depth(index):
    assert same(batches(index, 0), batches(index, 2))


@pytest.mark.parametrize('workers', [0, 2])
def test_errors_in_a_loader_are_one_line(index, workers):
    gone = index.copy()
    gone.loc[3:7, 'rgb'] = '/nowhere.avi'
    dls = clip_dls(gone, ('rgb',), sampler(), bs=4, dev='cpu', workers=workers)
    refused(lambda: list(dls.train), '/nowhere.avi')


def test_batches_are_plain_floats_on_the_device(index):
    dls = clip_dls(index, SIGNALS, sampler(), bs=4, dev='cpu')
    *xs, y = dls.one_batch()
    assert [type(t) for t in (*xs, y)] == [torch.Tensor]*4 and all(x.shape == (4, 3, 4, 20, 20) and x.dtype == torch.float32 for x in xs)
    assert [str(s) for s in dls.signals] == list(SIGNALS) and len(dls.vocab) == 3 and y.dtype == torch.int64


def test_the_test_loader_reads_in_order_and_drops_nothing(index):
    dls = clip_dls(index, SIGNALS, sampler(), bs=4, dev='cpu')
    rows = index.sample(frac=1, random_state=0)[:7]
    dl = make_test_dl(dls, rows)
    a, b = list(dl), list(dl)
    assert torch.cat([x[-1] for x in a]).tolist() == rows.label.tolist() and [len(x[-1]) for x in a] == [4, 3] and same(a, b)
    want = load_clip(rows.iloc[0].to_dict(), 'rgb', sampler())
    torch.testing.assert_close(a[0][0][0], ClipInputs()(want[None])[0])
    refused(lambda: make_test_dl(dls, rows.assign(depth=None)), "'depth'")
    refused(lambda: make_test_dl(dls, rows[:0]), 'empty')


def test_validation_is_the_same_in_every_epoch(index):
    dls = clip_dls(index, SIGNALS, sampler(), bs=4, dev='cpu')
    a = list(dls.valid); list(dls.train); list(dls.train)
    assert same(a, list(dls.valid))


@pytest.mark.parametrize('kind', ['ours', 'random'])
def test_clip_block_in_a_plain_data_block(index, kind):
    "As in any fastai program: one clip input, or two that share a sampler; fastai's own splitters and getters"
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import RandomSplitter
    if kind == 'random':
        block = DataBlock(blocks=(ClipBlock('depth', sampler()), CategoryBlock), get_items=clip_rows, get_y=lambda r: r['action'] + str(r['label']), splitter=RandomSplitter(.25, seed=0))
        dls = block.dataloaders(index, bs=3, num_workers=0, device='cpu')
        x, y = dls.one_batch()
        assert x.shape == (3, 3, 4, 20, 20) and list(dls.vocab) == ['mark0', 'mark1', 'mark2'] and len(dls.valid_ds) == 3
    else:
        s = sampler()
        block = DataBlock(blocks=(ClipBlock('rgb', s), ClipBlock('depth', s), CategoryBlock(vocab=[0, 1, 2])), n_inp=2, get_items=clip_rows, splitter=split_rows, get_x=[lambda r: r]*2, get_y=row_label)
        dls = block.dataloaders(index, bs=4, num_workers=0, device='cpu')
        x, d, y = dls.one_batch()
        assert x.shape == d.shape == (4, 3, 4, 20, 20) and s.epoch == 1


def test_an_empty_validation_split_trains(index):
    "Training works without validation clips; there are only no validation numbers"
    from fastai.callback.progress import ProgressCallback
    from moddist.distill import DistillCallback, Teacher, learner, soft_term
    from moddist.models import SmallStream
    dls = clip_dls(index[index.split == 'train'], ('rgb', 'depth'), sampler(size=(48, 64), crop=48), bs=4, dev='cpu')
    learn = learner(dls, SmallStream(3), cbs=[DistillCallback(Teacher(SmallStream(3)), [soft_term()])])
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert len(dls.valid) == 0 and learn.recorder.values[0][0] > 0 and learn.recorder.values[0][1] is None
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))


def test_no_training_clips(index):
    refused(lambda: clip_dls(index.assign(split='valid')), 'train')
    refused(lambda: clip_dls(index.assign(split='test')), 'empty')


def test_fewer_training_clips_than_a_batch(index):
    refused(lambda: clip_dls(index, bs=9, dev='cpu'), '8', '9')


def test_depth_alone_needs_no_rgb(index):
    "As in UTD-MHAD, where four of hundreds of clips have RGB"
    df = index.assign(rgb=[np.nan]*len(index))
    assert clip_dls(df, ('depth',), sampler(), bs=4, dev='cpu').one_batch()[0].shape == (4, 3, 4, 20, 20)


def test_a_second_view_and_depth_without_rgb(index):
    x, d, y = clip_dls(index.drop(columns='rgb'), ('view2:rgb', 'depth'), sampler(), bs=4, dev='cpu').one_batch()
    assert x.shape == d.shape == (4, 3, 4, 20, 20)


def test_the_callers_sampler_is_not_changed(index):
    s = sampler()
    clip_dls(index.drop(columns='rgb'), ('depth',), s, bs=4, dev='cpu')
    assert s == sampler()


def test_show_batch_draws_every_signal(index):
    import matplotlib.pyplot as plt
    fig = clip_dls(index, SIGNALS, sampler(), bs=4, dev='cpu').show_batch(max_n=2)
    strips = [ax for ax in fig.axes if ax.images and ax.get_label() != '<colorbar>']
    assert [ax.get_ylabel() for ax in strips] == ['rgb', 'depth', 'view2']*2 and 'clip0' in strips[0].get_title(loc='left')
    plt.close(fig)


def test_real_depth_through_the_loaders():
    "UTD-MHAD .mat depth: a random reading shows only values of the file, a person a few metres away"
    from moddist.datasets import utd_mhad
    from moddist.files import read_mat
    df = utd_mhad.index(real_data('utd_mhad'))
    row = df[df.depth.notna()].iloc[0].drop('rgb', errors='ignore').to_dict()
    x = load_clip(row, 'depth', ClipSampler(8, 'segment', size=(100, 130), crop=90, flip=1., reference='depth'), train=True)
    assert tuple(x.shape) == (1, 8, 90, 90) and set(np.unique(x.numpy())) <= set(np.unique(read_mat(row['depth']))) and (x.int() > 0).float().mean() > .02


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('torn', [(0,), (1, 5), (0, 3, 7)])
def test_damaged_clips_are_skipped_and_counted(index, tmp_path, capsys, workers, torn):
    "Also the first one; every other clip is delivered, nothing takes the place of a damaged one; by default the run stops and names the file"
    df = index.copy()
    train = df.index[df.split == 'train']
    for k in torn: (tmp_path/f'torn{k}.mp4').write_bytes(b'no video'); df.loc[train[k], 'rgb'] = str(tmp_path/f'torn{k}.mp4')
    refused(lambda: list(clip_dls(df, SIGNALS, sampler(), bs=1, dev='cpu', workers=0).train), 'torn')
    dls = clip_dls(df, SIGNALS, sampler(), bs=1, dev='cpu', workers=workers, on_error='skip')
    seen = [int(y) for *_, ys in dls.train for y in ys]
    assert sorted(seen) == sorted(df.label[train].drop(train[list(torn)]))
    assert set(dls.train.skipped) == set(df.clip_id[train[list(torn)]]) and f'skipped {len(torn)} of {len(train)}' in capsys.readouterr().out
    list(dls.valid)
    assert dls.valid.skipped == ()


def test_nothing_but_damaged_clips(index, tmp_path):
    (tmp_path/'torn.mp4').write_bytes(b'no video')
    refused(lambda: list(clip_dls(index.assign(rgb=str(tmp_path/'torn.mp4')), SIGNALS, sampler(), bs=2, dev='cpu', on_error='skip').train), 'torn.mp4')
    refused(lambda: clip_dls(index.drop(columns='split')), "'split'")
    refused(lambda: clip_dls(index, on_error='ignore'), 'ignore')


# ---------------------------------------------------------------- several heads

TWO = dict(labels=('verb', 'noun'))


def two_heads(index): return index.assign(verb=[0, 1, 2, 0]*3, noun=[4, 0, 0, 3]*3)


@pytest.mark.parametrize('workers', [0, 2])
def test_two_columns_of_labels(index, workers):
    df = two_heads(index).drop(columns='label')
    dls = clip_dls(df, ('rgb', 'depth'), sampler(), bs=4, dev='cpu', workers=workers, **TWO)
    *xs, y = dls.one_batch()
    assert y.shape == (4, 2) and y.dtype == torch.int64 and type(y) is torch.Tensor and len(xs) == 2
    assert dls.heads == dls.train.heads == dls.valid.heads == dict(verb=3, noun=5) and list(dls.heads) == ['verb', 'noun']
    assert sorted(map(tuple, torch.cat([b[-1] for b in dls.train]).tolist())) == sorted(df[df.split == 'train'][['verb', 'noun']].itertuples(index=False, name=None))
    rows = df.sample(frac=1, random_state=0)
    dl = make_test_dl(dls, rows)
    assert torch.cat([b[-1] for b in dl]).tolist() == rows[['verb', 'noun']].values.tolist() and dl.heads == dls.heads
    swapped = clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', labels=('noun', 'verb'))
    assert list(swapped.heads.items()) == [('noun', 5), ('verb', 3)]
    assert torch.cat([b[-1] for b in make_test_dl(swapped, df)]).tolist() == df[['noun', 'verb']].values.tolist()


def test_one_column_of_another_name_and_one_column_in_a_list(index):
    df = two_heads(index)
    for labels, shape, heads in ((None, (4,), dict(label=3)), ('noun', (4,), dict(noun=5)), (('noun',), (4, 1), dict(noun=5))):
        dls = clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', labels=labels)
        assert dls.one_batch()[-1].shape == shape and dls.heads == heads
    assert clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', labels='noun', n_classes=9).heads == dict(noun=9)
    assert clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', n_classes=dict(noun=300), **TWO).heads == dict(verb=3, noun=300)


def test_labels_that_cannot_be_used(index):
    df = two_heads(index)
    make = lambda df, **how: clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', **TWO | how)
    refused(lambda: make(df.drop(columns='noun')), "no column 'noun'")
    refused(lambda: make(df.assign(noun=[4, -1]*6)), 'clip1', 'no noun')
    refused(lambda: make(df.assign(verb=['open']*12)), 'clip0', 'no verb', "'open'")
    refused(lambda: make(df, n_classes=5), 'n_classes=dict(verb=..., noun=...)')
    refused(lambda: make(df, n_classes=dict(adverb=5)), "'adverb'")
    refused(lambda: make(df, n_classes=dict(noun=4)), 'clip0', 'noun 4 with 4 classes')
    refused(lambda: make(df, labels=('noun', 'noun')), 'different columns')
    refused(lambda: make(df, labels=()), 'different columns')
    refused(lambda: make_test_dl(make(df), df.assign(verb=7)), 'verb 7 with 3 classes')


def test_unlabelled_rows_can_be_read(index):
    "As the test segments of EPIC-KITCHENS: -1 in every head"
    dls = clip_dls(two_heads(index), ('rgb',), sampler(), bs=4, dev='cpu', **TWO)
    rows = two_heads(index).assign(split='unlabelled', verb=-1, noun=np.nan)
    assert torch.cat([b[-1] for b in make_test_dl(dls, rows)]).tolist() == [[-1, -1]]*12


def test_label_block_in_a_plain_data_block(index):
    from fastai.data.block import DataBlock
    from moddist.data import LabelBlock
    block = DataBlock(blocks=(ClipBlock('rgb', sampler()), LabelBlock(dict(verb=3, noun=5))), get_items=clip_rows, splitter=split_rows)
    dls = block.dataloaders(two_heads(index), bs=4, num_workers=0, device='cpu')
    assert dls.one_batch()[1].shape == (4, 2) and dls.heads == dict(verb=3, noun=5)


def test_show_batch_names_the_heads(index):
    df = two_heads(index).drop(columns=['label', 'action'])
    fig = clip_dls(df, ('rgb',), sampler(), bs=4, dev='cpu', **TWO).valid.show_batch(max_n=1)
    assert 'verb 0, noun 4' in fig.axes[0].get_title(loc='left')
