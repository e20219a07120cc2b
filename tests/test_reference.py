"""Against the released code of Radevski et al. (gorjanradevski/multimodal-distillation): what it does wrong is right here, and every option `reference_...` computes what its code computes. Its rules are written anew here, from radevski2022 and the files named."""
import math
from dataclasses import fields, replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from fastai.callback.core import Callback
from PIL import Image

from moddist import store, synthetic
from moddist.audio import audio_image, mel, mel_filters
from moddist.clips import load_clip
from moddist.core import MODALITIES, AudioClip, FlowClip, RGBClip
from moddist.data import test_dl
from moddist.datasets import something_else
from moddist.distill import fit, learner
from moddist.draws import ClipDraw, ClipSampler, draw, window
from moddist.files import frame_shape, read_frames
from moddist.inputs import ClipInputs, JitterRGB
from moddist.models import SmallStream
from moddist.radevski import PRESETS, Radevski2023, radevski2023, run
from moddist.runs import Reading, loaders
from moddist.tracks import Boxes, write_boxes

torch.set_num_threads(1)
H, W, T = 48, 64, 12


def boxes(path, frames, size=(H, W)): return str(write_boxes(path, Boxes([np.float32(f).reshape(-1, 8) for f in frames], size)))
def moving(n, k=3): return [[[4 + t, 6 + i, 24 + t, 30 + i, 1 + (i == 0), .5 + i/100, 0, 0] for i in range(k)] for t in range(n)]
def plain(x): return x.as_subclass(torch.Tensor)


def pictures(folder, n, value=lambda t: t, mode='RGB', size=(W, H)):
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(n): Image.fromarray(np.full((size[1], size[0], *[3]*(mode == 'RGB')), value(t), np.uint8)).save(folder/f'frame_{t + 1:010d}.png')
    return f'{folder}/frame_*.png'


# ---------------------------------------------------------------- boxes (src/modelling/dataset_layout.py)

def theirs_boxes(frames, index, size, slots=14):
    "Whole-frame fractions, class, score, side, state; padded; None where their `torch.stack` fails"
    if any(len(frames[i]) > slots for i in index): return None
    out = np.zeros((len(index), slots, 8))
    for row, i in zip(out, index): row[:len(frames[i])] = frames[i]
    out[..., :4] /= [size[1], size[0], size[1], size[0]]
    return out.transpose(2, 0, 1)


def test_more_than_14_boxes_are_read_and_up_to_14_are_theirs(tmp_path):
    many = [[[i, 2, i + 10, 20, 1 + (i in (3, 17)), i/20, 0, 0] for i in range(20)] for _ in range(T)]
    s = ClipSampler(4, 'middle', reference='boxes', reference_boxes=True)
    assert theirs_boxes(many, [0], (H, W)) is None
    x = load_clip(dict(clip_id='a', boxes=boxes(tmp_path/'many.json', many)), 'boxes', s)
    kept = sorted((plain(x)[0, 0]*W).round().int().tolist())
    assert x.shape == (8, 4, 14) and kept == [3, *range(7, 20)]                             # both hands (one of low score), and the best twelve objects
    few = moving(T, 14)
    row = dict(clip_id='b', boxes=boxes(tmp_path/'few.json', few))
    np.testing.assert_allclose(plain(load_clip(row, 'boxes', s)), theirs_boxes(few, draw(s, 'b', T, False).index, (H, W)), atol=1e-6)


@pytest.mark.parametrize('train', [False, True])
def test_reference_boxes_stay_in_the_whole_frame(tmp_path, train):
    frames, how = moving(T), dict(clip_len=4, sampling='middle', short_side=40, scale=(1.1, 1.3), crop=32, flip=.5, rotate=5., reference='boxes')
    row, free = dict(clip_id='a', boxes=boxes(tmp_path/'b.json', frames)), []
    for epoch in range(12):
        s = ClipSampler(**how, epoch=epoch, reference_boxes=True)
        np.testing.assert_allclose(plain(load_clip(row, 'boxes', s, train)), theirs_boxes(frames, draw(s, 'a', T, train).index, (H, W)), atol=1e-6)
        free.append(plain(load_clip(row, 'boxes', replace(s, reference_boxes=False), train))[:4, 0, 1])
    assert torch.stack(free).std(0).max() > (.03 if train else -1) and not torch.allclose(free[0][0], torch.tensor((4. + draw(s, 'a', T, False).index[0])/W), atol=1e-3)


def test_boxes_of_a_segment_are_those_of_its_own_frames(tmp_path):
    "Theirs looks frame i of the segment up as frame i of the video"
    rgb, file = pictures(tmp_path/'f', T), boxes(tmp_path/'b.json', moving(T))
    row, s = dict(clip_id='a', rgb=rgb, boxes=file, start=5, stop=11), ClipSampler(4, 'middle')
    frames, places = plain(load_clip(row, 'rgb', s))[0, :, 0, 0].tolist(), (plain(load_clip(row, 'boxes', s))[0, :, 0]*W - 4).round().int().tolist()
    assert frames == places == [5 + i for i in draw(s, 'a', 6, False).index]


def test_cleaned_boxes_are_theirs():
    "src/utils/data_utils.py, `fix_box`, over random boxes of all kinds"
    def theirs(b, h, w):
        x1, y1, x2, y2 = (max(0, int(v)) for v in b)
        (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
        x1, x2, y1, y2 = min(x1, w - 1), min(x2, w - 1), min(y1, h - 1), min(y2, h - 1)
        if x1 == x2: x1, x2 = (0, 1) if x1 == 0 else (x1 - 1, x2)
        if y1 == y2: y1, y2 = (0, 1) if y1 == 0 else (y1 - 1, y2)
        return [x1, y1, x2, y2]
    r = np.random.default_rng(0)
    b = np.concatenate([r.uniform(-20, 460, (400, 4)), r.integers(-2, 3, (200, 4)), r.integers(425, 430, (100, 4))])
    assert something_else.fix_box(b, (240, 427)).tolist() == [theirs(x, 240, 427) for x in b]
    assert something_else.fix_box([[10.7, 20.2, 5.1, 8.9], [427, 0, 427, 240], [0, 0, 0, 0]], (240, 427)).tolist() == [[5, 8, 10, 20], [425, 0, 426, 239], [0, 0, 1, 1]]


# ---------------------------------------------------------------- the same moment (src/modelling/datasets.py)

def test_reference_index_copies_frame_numbers(tmp_path):
    "Boxes at half the rate of the pictures: the same instant here, the same number there, and an end where there is none"
    rgb, half = pictures(tmp_path/'f', T), boxes(tmp_path/'half.json', [[[4 + t, 6, 30 + t, 30, 1, 1, 0, 0]] for t in range(0, T, 2)])
    longer = boxes(tmp_path/'long.json', moving(T + 3))
    row = dict(clip_id='a', rgb=rgb, boxes=longer)
    place = lambda r, s: (plain(load_clip(r, 'boxes', s))[0, :, 0]*W - 4).round().int().tolist()
    s = ClipSampler(4, 'middle')
    index = list(draw(s, 'a', T, False).index)
    assert place(row, replace(s, reference_index=True)) == index == plain(load_clip(row, 'rgb', s))[0, :, 0, 0].tolist()
    assert place(row, s) == [math.floor((i + .5)*(T + 3)/T) for i in index]
    row['boxes'] = half
    assert np.abs(np.array(place(row, s)) - index).max() <= 1                                 # half a frame of boxes
    refused(lambda: load_clip(row, 'boxes', replace(s, reference_index=True)), "'boxes'", 'it has 6', 'leave it out')
    assert place(dict(row, stop=6), replace(s, reference_index=True)) == [2*i for i in draw(s, 'a', 6, False).index]


# ---------------------------------------------------------------- sound (src/modelling/dataset_audio.py, src/utils/data_utils.py)

def theirs_sound(wave, start_s, stop_s, index, hz, fps, window_s=1.116):
    "Segment first, then a window around int(i hz / fps), zeros beyond the segment"
    part, size = wave[int(start_s*hz):int(start_s*hz) + int((stop_s - start_s)*hz)], int(window_s*hz)
    out = np.zeros((len(index), size), np.float32)
    for row, i in zip(out, index):
        for k in range(size):
            at = int(i*hz/fps) - size//2 + k
            if 0 <= at < len(part): row[k] = part[at]
    return out


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    "10 s with 50 frames per second, as boxes that move 1 px per frame, and a click whenever half a second is over, louder and louder; (row, waveform)"
    folder, hz = tmp_path_factory.mktemp('video'), 16_000
    wave = np.random.default_rng(0).uniform(-.01, .01, 10*hz).astype(np.float32)
    for k in range(20): wave[k*hz//2] = .3 + .03*k
    with h5py.File(folder/'sound.hdf5', 'w') as f: f['P01_101'] = wave; f['P01_101'].attrs['rate'] = hz
    file = boxes(folder/'b.json', [[[t, 0, t + 20, 30, 1, 1, 0, 0]] for t in range(500)], (100, 600))
    return dict(clip_id='P01_101_0', boxes=file, audio=f'{folder}/sound.hdf5::P01_101', start=100, stop=450, start_s=2., stop_s=9.), wave


def test_sound_belongs_to_the_frame_at_50_frames_per_second(video):
    "The click of second k is in the middle of the window of frame 50 k; theirs has left the window after 3.4 s"
    row, _ = video
    s = ClipSampler(1, reference='boxes')
    for second in (2.5, 4., 5.5, 8.):
        d = ClipDraw((round(second*50) - 100,), .5, .5, False)
        ours, theirs = (plain(load_clip(row, 'audio', k, drawn=d))[0, 0] for k in (s, replace(s, reference_fps=60)))
        middle = lambda x: x[len(x)//2 - 400:len(x)//2 + 400].abs().max().item()              # +- 25 ms
        assert middle(ours) == pytest.approx(.3 + .03*2*second, abs=.01), second
        late = (second - 2)*50/60 + 2
        assert (middle(theirs) > .2) is (abs(late*2 - round(late*2)) < .04) and abs(late - second) == pytest.approx((second - 2)/6)


@pytest.mark.parametrize('fps', [60, 50, 29.97])
def test_reference_fps_cuts_as_theirs(video, fps):
    row, wave = video
    s = ClipSampler(8, 'middle', reference='boxes', reference_fps=fps)
    for drawn in (draw(s, row['clip_id'], 350, False), ClipDraw((0, 1, 7, 100, 200, 347, 348, 349), .5, .5, False)):
        x = plain(load_clip(row, 'audio', s, drawn=drawn))[0].numpy()
        want = theirs_sound(wave, 2., 9., drawn.index, 16_000, fps)
        assert x.shape == want.shape and np.abs(x - want).max() < 1e-6
    x, free = (plain(load_clip(row, 'audio', k, drawn=ClipDraw((0,), .5, .5, False)))[0, 0] for k in (replace(s, clip_len=1), replace(s, clip_len=1, reference_fps=None)))
    assert (x[:8928] == 0).all() and (free[:8000] != 0).any()                                 # silence before the segment, or the sound that is there
    for k in ('start_s', 'stop_s'): refused(lambda: load_clip({n: v for n, v in row.items() if n != k}, 'audio', s), k, 'reference_fps')
    refused(lambda: ClipSampler(reference_fps=0.), 'reference_fps=0')


def test_mel_bands_are_those_of_the_rate_and_theirs_of_16_khz():
    "A tone of 4 kHz at 24 kHz; theirs builds the filters without telling the rate (torchaudio's default), which `sound_hz` of the inputs repeats"
    t = torch.arange(26_784)/24_000
    tone = torch.sin(2*math.pi*4000*t)
    row = lambda hz: mel(tone, hz).mean(-1).argmax().item()
    centre = lambda hz, f: (2595*math.log10(1 + f/700))/(2595*math.log10(1 + hz/2/700))*129 - 1
    assert row(24_000) == pytest.approx(centre(24_000, 4000), abs=1) and row(16_000) == pytest.approx(centre(16_000, 4000/1.5), abs=1.5)
    assert mel(tone, 24_000).shape == (128, 335) and mel(tone[:17_856], 16_000).shape == (128, 224) and mel_filters(16_000).shape == mel_filters(24_000).shape
    clip = tone.view(1, 1, 1, -1).as_subclass(AudioClip)
    assert torch.equal(ClipInputs(sound_hz=16_000)(clip)[0, :, 0], audio_image(mel(tone, 16_000)))


# ---------------------------------------------------------------- flow (src/modelling/dataset_video.py)

def test_flow_as_the_picture_that_theirs_reads(tmp_path):
    "u, v, 0; grey levels stay what they are when the picture shrinks, where vectors would shrink with it"
    for c, v in (('u', lambda t: 100 + t), ('v', lambda t: 30)): pictures(tmp_path/c, T, v, 'L')
    path = f'{tmp_path}/{{u,v}}/frame_*.png'
    row, s = dict(clip_id='a', flow=path), ClipSampler(4, 'middle', short_side=24, crop=24, reference='flow')
    index = draw(s, 'a', T, False).index
    x = plain(load_clip(row, 'flow:rgb', s))
    assert x.dtype == torch.uint8 and x.shape == (3, 4, 24, 24)
    assert x[0, :, 0, 0].tolist() == [100 + i for i in index] and (x[1] == 30).all() and (x[2] == 0).all()
    z = ClipInputs.imagenet()(x[None].as_subclass(RGBClip))[0]
    want = (torch.stack([x[0, :, 0, 0]/255, torch.full((4,), 30/255), torch.zeros(4)], 1) - torch.tensor([.485, .456, .406]))/torch.tensor([.229, .224, .225])
    assert torch.allclose(z[:, :, 5, 5].T, want, atol=1e-5)
    vectors = plain(load_clip(row, 'flow', s))
    assert vectors.shape == (2, 4, 24, 24) and torch.allclose(vectors[0, :, 0, 0], torch.tensor([((100 + i)*40/255 - 20)/2 for i in index]), atol=1e-4)
    assert frame_shape(path, MODALITIES['rgb']) == (T, H, W) and read_frames(path, MODALITIES['rgb'], [1]).shape == (1, H, W, 3)
    refused(lambda: read_frames(f'{tmp_path}/{{u,w}}/frame_*.png', MODALITIES['rgb']), 'w')


# ---------------------------------------------------------------- pictures and colours (src/utils/data_utils.py)

def test_pictures_of_the_preset_have_their_sizes():
    "Shorter side int(224 u), longer side int(shorter * long / short); here the shorter side is the same, and the longer to within 1 px"
    c = PRESETS['released-code']
    s = ClipSampler(short_side=c.short_side, scale=c.scale, crop=c.crop)
    for h, w in ((240, 427), (256, 456), (240, 320), (427, 240), (1080, 1920)):
        short, long = min(h, w), max(h, w)
        for u in (1., *np.random.default_rng(0).uniform(1.15, 1.43, 40)):
            found = window(s, ClipDraw((0,), 1., 1., False, u), (h, w))
            want = int(224*u)
            assert min(found.size) == want and abs(max(found.size) - int(want*long/short)) <= 1 and (found.height, found.width) == (224, 224)
            assert found.y == found.size[0] - 224 and found.x == found.size[1] - 224
    drawn = [draw(replace(s, epoch=e), 'a', 40, True).scale for e in range(300)]
    assert 1.15 <= min(drawn) < 1.17 and 1.41 < max(drawn) <= 1.43 and draw(s, 'a', 40, False).scale == 1


def test_reference_jitter_is_theirs(monkeypatch):
    "With their factors in their order on every frame, in Pillow; one draw for a clip"
    from torchvision.transforms import ColorJitter, functional as TF
    r = np.random.default_rng(0)
    x = torch.from_numpy(r.integers(0, 256, (6, 3, 2, 9, 11), dtype=np.uint8)).as_subclass(RGBClip)
    torch.manual_seed(4); ours = JitterRGB(reference_jitter=True)(x, split_idx=0)
    torch.manual_seed(4); again = JitterRGB(reference_jitter=True)(x, split_idx=0)
    assert torch.equal(plain(ours), plain(again)) and ours.dtype == torch.uint8 and torch.equal(plain(JitterRGB(reference_jitter=True)(x, split_idx=1)), plain(x))
    torch.manual_seed(4)
    for a, b in zip(plain(x), plain(ours)):
        order, brightness, contrast, saturation, hue = ColorJitter.get_params((.75, 1.25), (.75, 1.25), (.75, 1.25), (-.1, .1))
        for t in range(2):
            image = Image.fromarray(a[:, t].permute(1, 2, 0).numpy())
            for k in order.tolist(): image = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[k](image, (brightness, contrast, saturation, hue)[k])
            gap = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - b[:, t].float()).abs()
            assert gap.mean() < 4 and gap.quantile(.9) <= 8, (order, gap.max())               # Pillow rounds hue to 1/255 of a turn, and grey to whole levels
    assert (plain(ours).float() - plain(x).float()).abs().mean() > 8                           # which is not small
    flow = torch.zeros(1, 2, 2, 4, 4).as_subclass(FlowClip)
    assert torch.equal(plain(JitterRGB(reference_jitter=True)(flow, split_idx=0)), plain(flow))


def test_windows_of_a_test_come_left_right_centre_and_views_may_be_chunks():
    s = ClipSampler(4, 'middle', short_side=224, crop=224, crops=3, clips=2, chunks=True, reference='rgb')
    views = [draw(s, 'a', 40, False, v) for v in range(s.views)]
    assert [window(s, d, (240, 427)).x for d in views] == [0, 0, 175, 175, 88, 88] and views[0].index + views[1].index == (2, 7, 12, 17, 22, 26, 31, 36)[:8]
    assert all(d.index == views[i % 2].index for i, d in enumerate(views))


# ---------------------------------------------------------------- which epoch, which clips, in which order

@pytest.fixture(scope='module')
def clips(tmp_path_factory): return synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=2, train=2, valid=1, test=1, skeletons=False))


def test_the_last_epoch_is_kept_and_no_option_chooses_another(clips):
    "Also where validation accuracy fell; theirs keeps the best on the split that is reported"
    class Fall(Callback):
        def after_epoch(self): self.seen.append([p.detach().clone() for p in self.model.parameters()])
    watch = Fall(); watch.seen = []
    learn = learner(loaders(Reading(clip_len=4, bs=20), clips, ('rgb',)), SmallStream(10, width=4), lr=.3, cbs=[watch])
    with learn.no_bar(), learn.no_logging(): fit(learn, 3)
    assert all(torch.equal(a, b) for a, b in zip(watch.seen[-1], learn.model.parameters())) and not torch.equal(watch.seen[0][0], watch.seen[-1][0])
    assert not [f.name for k in (Radevski2023, ClipSampler) for f in fields(k) if 'select' in f.name or 'best' in f.name]


def test_no_step_opens_a_test_clip(clips, tmp_path):
    "Every file of the test split is missing, and the recipe does not notice"
    tiny = dict({'class': 'SmallStream'}, width=4)
    c = Radevski2023(epochs=1, student_epochs=1, bs=20, clip_len=4, crop=32, weighting='held-out', calibrate=True, group='', streams=dict(rgb=tiny, depth=tiny))
    gone = clips.assign(**{k: clips[k].mask(clips.split == 'test', 'nowhere.avi') for k in ('rgb', 'depth')})
    assert set(run(gone, tmp_path/'r', c)) == {s.name for s in radevski2023(c)}


def test_packed_frames_are_in_the_order_of_their_numbers(tmp_path):
    "Theirs takes them as the disk lists them, and fails on the first video"
    folder = tmp_path/'frames'; folder.mkdir()
    for t in np.random.default_rng(0).permutation(12): Image.fromarray(np.full((20, 24, 3), 20*t, np.uint8)).save(folder/f'{t + 1}.png')
    df = store.prepare(pd.DataFrame([dict(clip_id='a', label=0, split='train', rgb=str(folder))]), tmp_path/'store', ('rgb',))
    x = plain(load_clip(df.iloc[0].to_dict(), 'rgb', ClipSampler(12)))[0, :, 3, 3].float()
    assert (x - 20*torch.arange(12)).abs().max() <= 4


# ---------------------------------------------------------------- through the recipe

def test_the_options_reach_the_loaders_and_the_default_has_none_of_them(clips, tmp_path):
    c = replace(PRESETS['released-code'], heads=None, bs=4, crop=48, short_side=48)
    one = clips[clips.split.isin(['train', 'valid'])].assign(boxes=boxes(tmp_path/'b.json', moving(60)))
    dls = loaders(replace(c, reference_fps=60., reference_index=True), one, ('rgb', 'boxes'))
    s, jitter = dls.train.loaders[0].tfm.sampler, next(t for t in dls.train.after_batch.fs if isinstance(t, JitterRGB))
    assert (s.reference_boxes, s.reference_index, s.reference_fps, s.short_side, s.scale, jitter.reference_jitter) == (True, True, 60., 48, (1.15, 1.43), True)
    x, b, y = dls.one_batch()
    assert x.shape == (4, 3, 16, 48, 48) and b.shape == (4, 8, 16, 14)
    assert not [f.name for k in (ClipSampler, Reading, Radevski2023) for f in fields(k) if f.name.startswith('reference_') and f.default not in (False, None)]
    plain_dls = loaders(Reading(jitter=False), clips, ('rgb',))
    off = next(t for t in plain_dls.train.after_batch.fs if isinstance(t, JitterRGB))
    assert (off.contrast, off.cast, off.brightness, off.reference_jitter) == (0, 0, 0, False)
    assert test_dl(dls, one.head(3)).one_batch()[0].shape == (3, 3, 16, 48, 48)
