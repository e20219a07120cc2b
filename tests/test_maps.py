"Two streams on one clip: agreement against independent formulas, maps that are what the taps saw, clips computed once and let go."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from moddist.core import AudioClip, BoxesClip, DataError, DepthClip, FlowClip, JointsClip, ModelError, PoseClip, RGBClip, SeriesClip, rng
from moddist.data import ClipSampler, clip_dls
from moddist.files import write_png16, write_video
from moddist.maps import ORDERS, FeatureMaps, agreement, channel_table, class_weights, clip_maps, compute_maps, lazy_maps, pictures
from moddist.models import SmallStream, Tap, TwoStream, save_model
from conftest import refused

def maps(seed=0, C=5, T=4, h=6, **kw):
    g = rng('maps', seed)
    real = np.maximum(g.normal(size=(C, T, h, h)), 0).astype(np.float32)
    hall = np.maximum(real + g.normal(0, .3, real.shape), 0).astype(np.float32)
    return FeatureMaps(f'clip {seed}', g.integers(0, 255, (T, 12, 12, 3), dtype=np.uint8), g.integers(1500, 4000, (T, 12, 12)), {'a': (real, hall)}, **kw)

FRAMES = dict(rgb=np.zeros((4, 24, 24, 3), np.uint8), depth=np.ones((4, 24, 24)))

# ---- agreement ---------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, 100), st.floats(-5, 5))
def test_agreement_ignores_strength_and_correlation_ignores_level(seed, gain, level):
    a, b = rng('agree', seed).normal(size=(2, 3, 4, 4))
    cos, corr = agreement(a, b)
    assert np.isclose(cos, torch.cosine_similarity(torch.tensor(a).flatten(), torch.tensor(b).flatten(), dim=0).item())
    assert np.isclose(corr, np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert np.isclose(agreement(a, gain*b)[0], cos) and np.isclose(agreement(a, gain*b + level)[1], corr)
    assert np.isclose(agreement(b, a), (cos, corr)).all()

@pytest.mark.parametrize('dtype', (np.float16, np.float32, np.float64))
def test_agreement_of_large_half_precision_values_does_not_overflow(dtype):
    a = np.full((1, 4, 4), 3e4, dtype); a[0, 0, 0] = 0
    assert np.isclose(agreement(a, a), 1).all()

def test_agreement_of_constant_maps_is_undefined():
    z, x = np.zeros((2, 3, 3)), rng(1).normal(size=(2, 3, 3))
    assert np.isnan(agreement(z, x)).all() and np.isnan(agreement(z, z)).all()
    cos, corr = agreement(z + 2., x)
    assert np.isfinite(cos) and np.isnan(corr)

# ---- FeatureMaps and channels --------------------------------------------------------------------------------------
@pytest.mark.parametrize('change, words', [
    (dict(rgb=np.zeros((4, 8, 8), np.uint8)), 'expected uint8'), (dict(rgb=np.zeros((4, 8, 8, 3))), 'float64'), (dict(depth=np.zeros((4, 8, 8, 3))), 'or numbers'),
    (dict(depth=np.zeros((3, 8, 8))), '3 of depth'), (dict(layers={}), 'no layers'),
    (dict(layers={'a': (np.zeros((2, 4, 3, 3)), np.zeros((2, 4, 3, 2)))}), 'expected the same'), (dict(layers={'a': (np.zeros((2, 3, 3)),)*2}), '[C, T, h, w]'),
    (dict(layers={'a': (np.zeros((2, 0, 3, 3)),)*2}), "'a'"), (dict(layers={'a': (np.full((2, 4, 3, 3), np.inf), np.zeros((2, 4, 3, 3)))}), '72 of 72 real values')])
def test_what_does_not_fit_is_refused_by_name(change, words):
    ok = dict(clip_id='c7', rgb=np.zeros((4, 8, 8, 3), np.uint8), depth=np.ones((4, 8, 8)), layers={'a': (np.ones((2, 4, 3, 3)),)*2})
    FeatureMaps(**ok)
    with pytest.raises((DataError, ModelError), match='c7') as e: FeatureMaps(**ok | change)
    assert words in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('order', ORDERS)
def test_channel_orders(order):
    m = maps(C=7, weights={'a': rng(3).normal(size=7)}, weights_of='push'); m.layers['a'][0][2] = 0                                       # a dead channel comes last wherever agreement counts
    t = channel_table(m, 'a', order)
    assert sorted(t.channel) == list(range(7))
    by, up = ORDERS[order]
    known = t[by].dropna()
    assert known.is_monotonic_increasing if up else known.is_monotonic_decreasing
    if by == 'correlation': assert t.channel.iloc[-1] == 2 and np.isnan(t.correlation.iloc[-1])

def test_class_weights_where_there_are_none():
    refused(lambda: channel_table(maps(), 'a', 'weight'), "'a'", 'sort by energy', kind=ModelError)
    refused(lambda: channel_table(maps(), 'a', 'beauty'), 'beauty', 'weight', kind=ModelError)
    assert channel_table(maps(), 'a').weight.isna().all()

# ---- running models ----------------------------------------------------------------------------------------------
def test_compute_maps_is_what_the_taps_saw_and_leaves_the_models_alone():
    torch.manual_seed(0)
    t, s = SmallStream(3, width=4), SmallStream(3, width=4)
    t.eval(); s.train(); s.bn.eval()                                             # a mixed state, as with a frozen batch norm
    modes = [m.training for m in (*t.modules(), *s.modules())]
    before = {k: v.clone() for k, v in s.state_dict().items()}
    x = torch.randn(1, 3, 4, 24, 24)
    m = compute_maps(t, s, x, x[0], **FRAMES, classes=['a', 'b', 'c'])
    assert [v.training for v in (*t.modules(), *s.modules())] == modes
    assert all((before[k] == v).all() for k, v in s.state_dict().items())
    s.eval()
    with torch.no_grad(): assert np.allclose(m.layers['unit3'][1], s.forward_features(x)[0].numpy(), atol=1e-6)
    best = s(x).softmax(1)[0]
    assert f'student: {"abc"[best.argmax()]} {100*best.max():.0f} %' in m.prediction and list(m.layers) == ['unit1', 'unit2', 'unit3']

def test_modes_survive_a_failing_model():
    class Broken(nn.Module):
        def __init__(self): super().__init__(); self.tap = Tap('a', 1); self.norm = nn.BatchNorm3d(3)
        def forward(self, x): raise RuntimeError('out of memory')
    b = Broken().train()
    with pytest.raises(RuntimeError): compute_maps(b, b, torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 8, 8), rgb=np.zeros((2, 8, 8, 3), np.uint8), depth=np.ones((2, 8, 8)))
    assert b.training and b.norm.training

def test_taps_of_different_names_can_be_paired():
    "A stream against the injecting half of a two-stream net"
    torch.manual_seed(0)
    t, two = SmallStream(3, width=4).eval(), TwoStream(SmallStream(3, width=4), SmallStream(3, width=4)).eval()
    x = torch.randn(3, 4, 24, 24)
    m = compute_maps(t, two, x, x, **FRAMES, layers={'unit2': 'inject.unit2'})
    alone = compute_maps(t, two.inject, x, x, **FRAMES, layers=['unit2'])
    assert np.allclose(m.layers['unit2'][1], alone.layers['unit2'][1])
    with pytest.raises(ModelError, match='no tap in common'): compute_maps(two, t, x, x, **FRAMES)

def test_a_net_of_two_streams_answers_with_the_stream_it_injects():
    "Step 3 beside step 4 without saying where the hallucination sits in each; the prediction is that of the whole net"
    torch.manual_seed(0)
    t, two = SmallStream(3, width=4).eval(), TwoStream(SmallStream(3, width=4), SmallStream(3, width=4)).eval()
    x = torch.randn(3, 4, 24, 24)
    m = compute_maps(t, {'step 3': two.inject, 'step 4': two}, x, x, classes='abc', **FRAMES)
    assert list(m['step 4'].layers) == ['unit1', 'unit2', 'unit3'] and all((m['step 3'].layers[k][1] == h).all() for k, (_, h) in m['step 4'].layers.items())
    assert f'student: {"abc"[int(two(x[None]).argmax())]} ' in m['step 4'].prediction

def test_class_weights_are_the_rows_of_the_layer_that_reads_the_tap():
    torch.manual_seed(0)
    two = TwoStream(SmallStream(3, width=4), SmallStream(3, width=4)).eval()
    assert np.allclose(class_weights(two, 'inject.unit3', 1), two.inject.fc.weight[1].detach())
    assert class_weights(two, 'inject.unit2', 1) is None and class_weights(two.main, 'unit3', 3) is None and class_weights(nn.Sequential(Tap('a', 1)), 'a', 0) is None
    x = torch.randn(3, 4, 24, 24)
    m = compute_maps(two.inject, two.main, x, x, classes=['a', 'b', 'c'], **FRAMES)
    assert m.weights_of == 'abc'[int(two.inject(x[None]).argmax())] and np.allclose(m.weights['unit3'], two.inject.fc.weight['abc'.index(m.weights_of)].detach())
    assert list(m.weights) == ['unit3'] and list(channel_table(m, 'unit3', 'weight').weight) == sorted(m.weights['unit3'], reverse=True)

def test_several_students_share_one_run_of_the_teacher():
    torch.manual_seed(0)
    t, a, b = (SmallStream(3, width=4).eval() for _ in range(3))
    runs = []; t.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(3, 4, 24, 24)
    m = compute_maps(t, {'a': a, 'b': b}, x, x, **FRAMES)
    assert len(runs) == 1 and list(m) == ['a', 'b'] and all(m['a'].layers[k][0] is m['b'].layers[k][0] for k in m['a'].layers)
    alone = compute_maps(t, b, x, x, **FRAMES)
    assert all((alone.layers[k][1] == m['b'].layers[k][1]).all() for k in alone.layers)
    told = []
    m = compute_maps(t, {'a': a, 'wide': SmallStream(3, width=8)}, x, x, problems=told, **FRAMES)
    assert list(m) == ['a'] and len(told) == 1 and 'wide' in told[0] and 'expected the same' in told[0]
    refused(lambda: compute_maps(t, {'a': a, 'wide': SmallStream(3, width=8)}, x, x, **FRAMES), 'expected the same', kind=ModelError)

@pytest.mark.parametrize('cut', ((slice(None, None, 2), 1), (slice(None), 2), (slice(None, None, 2), 2)))
def test_streams_on_different_grids_meet_on_the_coarser(cut):
    "Against averaging by hand: halves of a grid are means of blocks of two"
    torch.manual_seed(0)
    t, s, x, (time, k) = SmallStream(3, width=4).eval(), SmallStream(3, width=4).eval(), torch.randn(3, 8, 48, 48), cut
    small = x[:, time, ::k, ::k]
    frames = dict(rgb=np.zeros((8, 48, 48, 3), np.uint8), depth=np.ones((8, 48, 48)))
    m, alone = compute_maps(t, s, x, small, layers=['unit2'], **frames), compute_maps(t, s, x, x, layers=['unit2'], **frames)
    r = alone.layers['unit2'][0]; C, T, h, w = r.shape; dt = 8//small.shape[1]
    assert np.allclose(m.layers['unit2'][0], r.reshape(C, T//dt, dt, h//k, k, w//k, k).mean((2, 4, 6)), atol=1e-5) and 'unit2' in m.note and not alone.note

def test_tokens_of_a_swin_transformer_stand_in_their_place():
    "Two Swin streams: a bright patch on the left moves the left of the map"
    from moddist.backbones import VideoStream
    torch.manual_seed(0)
    s = VideoStream('swin3d_t', 3).eval()
    x = torch.zeros(3, 4, 64, 64); y = x.clone(); y[..., :16] = 3
    frames = dict(rgb=np.zeros((4, 64, 64, 3), np.uint8), depth=np.ones((4, 64, 64)))
    m = compute_maps(s, s, y, x, layers=['patch', 'stage1'], **frames)
    assert m.layers['patch'][0].shape == (96, 2, 16, 16)
    moved = abs(m.layers['patch'][1] - m.layers['patch'][0]).sum((0, 1, 2))
    assert (moved[:4] > 1).all() and (moved[4:] < 1e-4).all()

# ---- any modality as pictures ------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind, spec, shape', [(RGBClip, 'rgb', (3, 5, 16, 20)), (DepthClip, 'depth', (1, 5, 16, 20)), (FlowClip, 'flow', (2, 5, 16, 20)), (JointsClip, 'skeleton', (3, 5, 25, 2)),
    (PoseClip, 'pose', (3, 5, 17, 1)), (BoxesClip, 'boxes', (8, 5, 3)), (AudioClip, 'audio', (1, 5, 400)), (SeriesClip, 'inertial', (6, 90))])
def test_every_modality_has_a_picture_per_frame_that_moves(kind, spec, shape):
    g = rng('pictures', spec)
    x = g.integers(1, 250, shape).astype(np.uint16 if spec == 'depth' else np.uint8) if spec in ('rgb', 'depth') else np.sort(g.random(shape), 0).astype(np.float32)
    if spec == 'boxes': x[4] = 1
    if spec == 'skeleton': x[:, 2, 3] = np.nan                                   # a joint that was lost
    p = pictures(torch.as_tensor(x).as_subclass(kind), spec, 5)
    assert len(p) == 5 and (p[0] != p[3]).any()
    if spec == 'depth': assert (p == x[0]).all()
    else: assert p.dtype == np.uint8 and p.shape[-1] == 3 and p.ndim == 4
    if spec == 'rgb': assert (p == np.moveaxis(x, 0, -1)).all()

# ---- clips on demand ---------------------------------------------------------------------------------------------
@pytest.fixture
def index(tmp_path):
    rows = []
    for i in range(5):
        g = rng('index', i)
        rows.append(dict(clip_id=f'c{i}', label=i % 2, action='ab'[i % 2], split='train' if i < 2 else 'valid', rgb=str(tmp_path/f'{i}.avi'), depth=str(tmp_path/f'{i}')))
        write_video(rows[-1]['rgb'], g.integers(0, 255, (6, 12, 12, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)); write_png16(rows[-1]['depth'], g.integers(1500, 4000, (6, 48, 48)).astype(np.uint16))
    df = pd.DataFrame(rows)
    return clip_dls(df, sampler=ClipSampler(4), bs=2), df

def test_lazy_maps_are_the_maps_computed_once_and_bounded(index):
    torch.manual_seed(0)
    dls, df = index; t, s = SmallStream(2, width=4), SmallStream(2, width=4)
    now = clip_maps(dls, df, t, s, classes=['a', 'b'])
    runs = []; t.register_forward_hook(lambda *_: runs.append(1))
    lazy = lazy_maps(dls, df, t, {'s': s}, classes=['a', 'b'])
    for i in (0, 3, 3, 0, 4):
        m = lazy[i]['s']
        assert m.clip_id == now[i].clip_id and m.prediction == now[i].prediction and all((x == y).all() for k in m.layers for x, y in zip(m.layers[k], now[i].layers[k]))
    assert len(runs) == 3 and len(lazy) == 5 and lazy.heads[1] == ('c1', 'b') and lazy.layers == ['unit1', 'unit2', 'unit3']
    one = lazy.nbytes/3
    small = lazy_maps(dls, df, t, s, max_mb=2.5e-6*one)
    for i in range(5): small[i]; assert small.nbytes <= 2.5*one + 1
    assert list(small._kept) == [3, 4]
    small[3]; small[0]
    assert list(small._kept) == [3, 0]                                           # the least recently looked at went
    tiny = lazy_maps(dls, df, t, s, max_mb=1e-6); tiny[0]; tiny[1]
    assert list(tiny._kept) == [1]                                               # the one looked at stays in any case
    tiny.release(); assert tiny.nbytes == 0

def test_what_cannot_be_computed_is_one_line_and_the_rest_works(index, tmp_path):
    torch.manual_seed(0)
    dls, df = index; t, s = SmallStream(2, width=4), SmallStream(2, width=4)
    good, other = save_model(s, tmp_path/'good.safetensors'), save_model(SmallStream(2, width=8), tmp_path/'wide.safetensors')
    (tmp_path/'bad.safetensors').write_bytes(b'nothing')
    lazy = lazy_maps(dls, df, t, {'good': good, 'wide': other, 'bad': tmp_path/'bad.safetensors'})
    assert list(lazy[0]) == ['good'] and 'wide left out' in lazy.problems[0] and 'bad left out' in lazy.problems[0] and '\n' not in lazy.problems[0]
    refused(lambda: lazy_maps(dls, df, t, tmp_path/'bad.safetensors')[0], 'bad.safetensors', kind=ModelError)
    refused(lambda: lazy_maps(dls, df, t, s, layers=['unit9'])[0], 'unit9', 'unit1', kind=ModelError)
    refused(lambda: lazy_maps(dls, df, t, nn.Sequential(nn.Conv3d(3, 8, 1), Tap('mine', 8)))[0], 'no tap in common', kind=ModelError)
    refused(lambda: lazy_maps(dls, df, nn.Conv3d(3, 8, 1), s), 'declares no taps', kind=ModelError)
    for p in s.parameters(): p.data *= np.nan
    refused(lambda: lazy_maps(dls, df, t, s)[0], 'NaN', 'earlier checkpoint', kind=ModelError)
    class Fixed(SmallStream):
        def forward_features(self, x):
            if x.shape[-1] != 224: raise RuntimeError('positions are for 224 px')
    refused(lambda: lazy_maps(dls, df, t, Fixed(2, width=4))[2], "'c2'", '224 px', 'size and length', kind=ModelError)
    with pytest.raises(IndexError): lazy_maps(dls, df, t, s)[9]
