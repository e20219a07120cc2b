"""Fidelity: each measure against its definition in plain loops, invariances, conventions, the swap against nets put together by hand, and a callback that leaves the training alone."""
import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from hypothesis import given, settings as hyp, strategies as st

from moddist import synthetic
from moddist.core import DataError, ModelError, seed_all, signal, write_json
from moddist.data import clip_dls, test_dl as make_test_dl
from moddist.distill import DistillCallback, Teacher, feature_term, fit, learner
from moddist.draws import ClipSampler
from moddist.fidelity import (COLUMNS, DepthImages, Fidelity, StreamingCKA, _judged, _Moments, _ridge, fidelity, fidelity_figure, fidelity_run, map_correlation, map_cosine,
                              plot_fidelity, pool_picture, swap_run, swap_test)
from moddist.inputs import ClipInputs
from moddist.layout import SeriesStream
from moddist.losses import LossError
from moddist.models import ResNetStream, SmallStream, TwoStream, capture, save_model
from moddist.more_losses import cka
from moddist.recipes import Garcia2018
from moddist.runs import index_hash, loaders

torch.set_num_threads(1)
rand = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
turn = lambda n, seed=9: torch.linalg.qr(rand(n, n, seed=seed).double())[0]


# ---------------------------------------------------------------- two maps

@pytest.mark.parametrize('shape', [(3, 5, 2, 4, 3), (1, 2, 1, 2, 2), (2, 64, 4, 1, 1)])
def test_cosine_and_correlation_by_loops(shape):
    a, b = rand(*shape).relu(), rand(*shape, seed=1).relu()
    B, C, T, h, w = shape
    for i in range(B):
        cos, ea, eb = [], [], []
        for p in np.ndindex(T, h, w):
            x, y = (m[(i, slice(None), *p)].double().numpy() for m in (a, b))
            nx, ny = np.linalg.norm(x), np.linalg.norm(y)
            cos.append(1. if nx == ny == 0 else 0. if nx*ny == 0 else x @ y/(nx*ny)); ea.append(nx**2); eb.append(ny**2)
        assert map_cosine(a, b)[i].item() == pytest.approx(np.mean(cos)) and map_correlation(a, b)[i].item() == pytest.approx(np.corrcoef(ea, eb)[0, 1], abs=1e-9)


@hyp(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(1e-3, 1e3), st.integers(1, 4), st.integers(1, 9))
def test_identical_maps_agree_and_scale_does_not_matter(seed, scale, B, C):
    a, b = rand(B, C, 2, 3, 3, seed=seed).relu(), rand(B, C, 2, 3, 3, seed=seed + 100)
    assert torch.allclose(map_cosine(a, a), torch.ones(B).double()) and torch.allclose(map_cosine(a, scale*a), torch.ones(B).double())
    assert torch.allclose(map_cosine(a, scale*b.double()), map_cosine(a, b)) and torch.allclose(map_correlation(a, scale*b.double()), map_correlation(a, b))
    assert map_cosine(b, -b).allclose(-torch.ones(B).double()) and map_correlation(b, -b).allclose(torch.ones(B).double())
    assert map_cosine(a, b).abs().max() <= 1 + 1e-9 and map_correlation(a, b).abs().max() <= 1 + 1e-9


@pytest.mark.parametrize('value', [0., 1., 3e-7, 1e6])
def test_a_map_that_is_the_same_everywhere_is_correlated_with_nothing(value):
    "Not with itself either, and never NaN"
    flat, m = torch.full((2, 3, 2, 4, 4), value), rand(2, 3, 2, 4, 4)
    assert map_correlation(flat, m).tolist() == [0, 0] == map_correlation(flat, flat).tolist() and map_cosine(flat, m).isfinite().all()
    assert map_correlation(m[..., :1, :1, :1], m[..., :1, :1, :1]).tolist() == [0, 0], 'one place only'


# ---------------------------------------------------------------- CKA

def streamed(a, b, n, **how):
    s = StreamingCKA(**how)
    for x, y in zip(a.split(n), b.split(n)): s.update(x, y)
    return s.value


def test_golden_cka():
    "related_losses section 15: the toy features, whole and clip by clip"
    f_s, f_t = torch.tensor([[1., 0], [0, 2], [1, 1]]), torch.tensor([[2., 0], [0, 2], [0, 0]])
    for n in (1, 2, 3): assert streamed(f_s, f_t, n, unbiased=False) == pytest.approx(0.9550230, abs=1e-7)


@pytest.mark.parametrize('n, d, e', [(40, 6, 9), (24, 100, 3), (9, 2, 2)])
@pytest.mark.parametrize('batch', [1, 4, 7, 40])
def test_the_plain_form_streamed_is_the_plain_form_at_once(n, d, e, batch):
    a = rand(n, d) + 5
    b = rand(n, e, seed=1) + a[:, :1]
    assert streamed(a, b, batch, unbiased=False) == pytest.approx(cka(a.double(), b.double()).item(), abs=1e-6)


def test_the_unbiased_form_is_the_u_statistic_of_each_batch():
    "Plain loops over ordered quadruples of different clips: HSIC_1 is their average (Song et al. 2012, theorem 3)"
    from itertools import permutations
    a = rand(12, 3).double()
    b = rand(12, 4, seed=1).double() + a[:, :1]
    def hsic(x, y):
        k, l = x @ x.T, y @ y.T
        return np.mean([(k[i, j]*(l[i, j] + l[q, r] - 2*l[i, q])).item() for i, j, q, r in permutations(range(len(x)), 4)])
    batches = [(a[:5], b[:5]), (a[5:], b[5:])]
    kl, kk, ll = (sum(len(x)*hsic(*pick(x, y)) for x, y in batches) for pick in (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y)))
    s = StreamingCKA()
    for x, y in batches: s.update(x, y)
    assert s.value == pytest.approx(kl/math.sqrt(kk*ll))
    assert streamed(a, b, 12) == pytest.approx(cka(a, b, unbiased=True).item())


@pytest.mark.parametrize('batch', [4, 8, 32])
def test_unrelated_features_are_near_zero_and_the_plain_form_is_not(batch):
    a, b = rand(512, 300), rand(512, 300, seed=1)
    assert abs(streamed(a, b, batch)) < .12
    assert np.mean([cka(x, y).item() for x, y in zip(a.split(batch), b.split(batch))]) > .8


@hyp(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.floats(1e-3, 1e3), st.sampled_from([4, 8, 16]))
def test_cka_does_not_see_rotation_scale_shift_or_order(seed, scale, batch):
    a, b = rand(32, 8, seed=seed).double(), rand(32, 5, seed=seed + 100).double()
    b[:, 0] += a[:, 0]
    v = streamed(a, b, batch)
    assert streamed(scale*a @ turn(8) + 3, b, batch) == pytest.approx(v, abs=1e-6) and streamed(a, a @ turn(8), batch) == pytest.approx(1)
    assert streamed(b, a, batch) == pytest.approx(v) and abs(v) <= 1
    assert streamed(a.flip(0), b.flip(0), 32) == pytest.approx(streamed(a, b, 32))


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('dead', [torch.zeros(8, 3), torch.full((8, 3), 1/3), torch.full((8, 3), 1e5 + 1/7)])
def test_cka_of_a_dead_layer_is_zero(unbiased, dead):
    for n in (4, 8): assert streamed(dead, rand(8, 5), n, unbiased=unbiased) == 0 == streamed(rand(8, 5), dead, n, unbiased=unbiased) == streamed(dead, dead, n, unbiased=unbiased)
    assert StreamingCKA(unbiased).value == 0


def test_cka_of_one_clip_that_differs_is_defined():
    "Three equal clips and one: the unbiased estimate of its own dependence is zero"
    f = torch.zeros(4, 5); f[0] = 1
    assert streamed(f, f, 4) == 0 and streamed(torch.cat([f, rand(4, 5)]), torch.cat([f, rand(4, 5)]), 4) == pytest.approx(1)


def test_too_few_clips():
    refused(lambda: StreamingCKA().update(rand(3, 2), rand(3, 2)), 'a batch of 3', 'at least 4', 'raise the batch size', kind=LossError)
    refused(lambda: StreamingCKA().update(rand(5, 2), rand(4, 2)), 'a batch of 5 and 4', kind=LossError)


# ---------------------------------------------------------------- the probe

@pytest.mark.parametrize('strength', [1e-3, .1, 10.])
def test_probe_is_ridge_regression_on_stored_places(strength):
    x, w = rand(500, 7)*torch.arange(1, 8) + 4, rand(7, 3, seed=1)
    y = x @ w + rand(500, 3, seed=2) + 1
    fit_, held = _Moments(), _Moments()
    for part in x[:300].split(70): fit_.add(part, y[:300][fit_.n:fit_.n + len(part)])
    held.add(x[300:], y[300:])
    X, Y = (v[:300].double().numpy() for v in (x, y)); mx, my = X.mean(0), Y.mean(0)
    C = np.cov(X.T, ddof=0)
    W = np.linalg.solve(C + strength*np.trace(C)/7*np.eye(7), (X - mx).T @ (Y - my)/300)
    rest = y[300:].double().numpy() - my - (x[300:].double().numpy() - mx) @ W
    r2, rms = _judged(_ridge(fit_, strength), held)
    assert r2 == pytest.approx(1 - (rest**2).sum()/((y[300:].double().numpy() - my)**2).sum(), abs=1e-6) and rms == pytest.approx(np.sqrt((rest**2).mean()), rel=1e-6)


def test_probe_of_constant_maps_and_constant_pictures():
    for x, y in ((torch.ones(200, 4)/3, rand(200, 2)), (torch.zeros(200, 4), rand(200, 2)), (rand(200, 4), torch.full((200, 2), 2.5))):
        a, b = _Moments(), _Moments()
        a.add(x[:100], y[:100]); b.add(x[100:], y[100:])
        r2, rms = _judged(_ridge(a), b)
        assert r2 == pytest.approx(0, abs=1e-6) and math.isfinite(rms)


def test_pooled_picture_ignores_holes():
    x = rand(2, 1, 4, 8, 8)
    assert torch.allclose(pool_picture(x, (2, 4, 4)), F.avg_pool3d(x.double(), 2))
    holes = x.clone(); holes[..., ::2, ::2] = torch.nan                # a quarter of each cell is missing
    p = pool_picture(holes, (2, 4, 4))
    by_hand = torch.stack([c.nanmean() for c in holes.double().unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).reshape(-1, 8)]).view(p.shape)
    assert torch.allclose(p, by_hand)
    x[0, :, :, :6] = torch.nan
    assert pool_picture(x, (4, 1, 1))[0].isnan().all() and pool_picture(x, (4, 1, 1))[1].isfinite().all()


# ---------------------------------------------------------------- both streams

class Batches(list):
    signals = (signal('rgb'), signal('depth'))


def batches(n=24, bs=8, noise=.3, size=32, seed=0):
    b = 6*F.avg_pool3d(rand(n, 3, 2, size, size, seed=seed), (1, 9, 9), 1, (0, 4, 4))
    return Batches((x + noise*rand(*x.shape, seed=seed + i + 1), x, torch.arange(len(x)) % 4) for i, x in enumerate(b.split(bs)))


def test_a_stream_is_faithful_to_itself():
    seed_all(0)
    net, dl = SmallStream(4), batches()
    f = fidelity(net, copy.deepcopy(net), dl, student_inputs=['depth'])
    assert f.tap.tolist() == ['unit1', 'unit2', 'unit3'] and np.allclose(f[['cosine', 'cka', 'correlation']], 1) and (f.distance == 0).all() and (f.clips == 24).all()
    assert np.allclose(f.probe_real, f.probe_hall) and np.allclose(f.probe_real, f.probe_transfer) and f.notna().all(axis=None)
    other = fidelity(net, copy.deepcopy(net), dl)
    assert (other.cosine < 1).all() and (other.distance > 0).all() and (other.cka < 1).all()


def test_the_table_against_maps_kept_whole():
    seed_all(0)
    s, t, dl = SmallStream(4).eval(), SmallStream(4).eval(), batches(n=16)
    with torch.no_grad(), capture(s, 'unit2') as a, capture(t, 'unit2') as b: # one batch of all
        x, d = (torch.cat([v[i] for v in dl]) for i in (0, 1)); s(x), t(d)
    hall, real = a.maps['unit2'].double(), b.maps['unit2'].double()
    f = fidelity(s, t, dl, ['unit2']).iloc[0]
    assert f.cosine == pytest.approx(map_cosine(real, hall).mean().item(), abs=1e-6) and f.correlation == pytest.approx(map_correlation(real, hall).mean().item(), abs=1e-6)
    assert f.distance == pytest.approx(((hall - real).square().sum()/(real - real.mean((0, 2, 3, 4), keepdim=True)).square().sum()).item(), rel=1e-5)
    assert f.cka == pytest.approx(streamed(hall.flatten(1), real.flatten(1), 8), abs=1e-6)


def test_predicting_each_channels_mean_is_distance_one():
    class Mean(torch.nn.Module):
        def __init__(self, taps, mean): super().__init__(); self.taps, self.mean = torch.nn.ModuleDict(taps), mean
        def forward(self, x): return self.taps['unit3'](self.mean.expand(len(x), *self.mean.shape[1:]))
    seed_all(0)
    net, dl = SmallStream(4).eval(), batches()
    with torch.no_grad(), capture(net, 'unit3') as c: net(torch.cat([d for _, d, _ in dl]))
    m = c.maps['unit3']
    f = fidelity(Mean({'unit3': copy.deepcopy(net.taps['unit3'])}, m.mean((0, 2, 3, 4), keepdim=True).expand(1, *m.shape[1:])), net, dl).iloc[0]
    assert f.distance == pytest.approx(1, abs=1e-4) and f.cka == 0 and f.correlation == 0 and f.probe_hall == pytest.approx(0, abs=1e-6)


def test_the_probe_finds_a_picture_that_is_in_the_map():
    "The picture is a fixed mixture of the map's channels: a rotation of the channels keeps it, and hides it from the teacher's probe"
    seed_all(0)
    net, dl = SmallStream(4).eval(), batches(n=32)
    with torch.no_grad(), capture(net, 'unit1') as c: net(torch.cat([d for _, d, _ in dl]))
    m = c.maps['unit1']
    picture = torch.einsum('bcthw,ck->bkthw', m, rand(16, 1)).repeat_interleave(2, 3).repeat_interleave(2, 4)
    turned = copy.deepcopy(net)
    turned.taps['unit1'].forward = lambda x: torch.einsum('bcthw,cd->bdthw', x, turn(16).float())
    f = fidelity(turned, net, dl, ['unit1'], student_inputs=['depth'], picture=picture).iloc[0]
    assert f.probe_real > .95 and f.probe_hall > .95 and f.probe_transfer < .5 and f.cka == pytest.approx(1, abs=1e-5) and f.rms_real < .3*f.rms_transfer


def test_held_clips_are_those_named():
    "A picture of noise on the held clips cannot be read there, whatever was fitted"
    net, dl = SmallStream(4), batches()
    held = np.arange(24) % 3 == 0
    with torch.no_grad(), capture(net.eval(), 'unit3') as c: net(torch.cat([d for _, d, _ in dl]))
    picture = c.maps['unit3'][:, :1].clone()
    picture[held] = rand(8, *picture.shape[1:])
    a = fidelity(net, net, dl, ['unit3'], student_inputs=['depth'], picture=picture, held=held).iloc[0]
    b = fidelity(net, net, dl, ['unit3'], student_inputs=['depth'], picture=c.maps['unit3'][:, :1], held=list(held)).iloc[0]
    assert a.probe_real < .1 and b.probe_real > .9


def test_no_probe_where_none_is_wanted():
    assert set(fidelity(SmallStream(4), SmallStream(4), batches(n=8), picture=False)) == {'tap', 'cosine', 'cka', 'correlation', 'distance', 'clips'}


def test_a_short_last_batch_counts_in_all_but_cka():
    s, t = SmallStream(4), SmallStream(4)
    whole, short = batches(n=17), batches(n=17)[:2]
    a, b = fidelity(s, t, whole, picture=False), fidelity(s, t, Batches(short), picture=False)
    assert np.allclose(a.cka, b.cka) and (a.clips == 17).all() and (b.clips == 16).all() and not np.allclose(a.cosine, b.cosine)


def test_modes_hooks_and_gradients_are_left_alone():
    s, t = SmallStream(4).train(), SmallStream(4).eval()
    s.units[0].eval()
    before = copy.deepcopy(s.state_dict())
    fidelity(s, t, batches(n=8))
    assert s.training and not s.units[0].training and not t.training and all(not tap._forward_hooks for tap in (*s.taps.values(), *t.taps.values()))
    assert all(torch.equal(v, before[k]) for k, v in s.state_dict().items()) and all(p.grad is None for p in s.parameters())


@pytest.mark.parametrize('change, kind, words', [
    (dict(taps=['unit9']), ModelError, ["no tap 'unit9'"]),
    (dict(taps={'unit1': 'unit2'}), ModelError, ["tap 'unit1'", 'expected the same']),
    (dict(teacher=torch.nn.Flatten()), ModelError, ['no tap in common', 'unit1']),
    (dict(student_inputs=['ir']), ModelError, ["no input 'ir'", 'rgb, depth']),
    (dict(dl=Batches()), DataError, ['no clip']),
    (dict(dl=batches(n=8, bs=3)), LossError, ['a batch of 3', 'bs=4']),
    (dict(picture=torch.zeros(5, 1, 2, 32, 32)), DataError, ['8 clips', '5 pictures']),
    (dict(held=[True]*5), DataError, ['5 entries of held'])])
def test_what_cannot_be_compared(change, kind, words):
    args = dict(student=SmallStream(4), teacher=SmallStream(4), dl=batches(n=8)) | change
    refused(lambda: fidelity(**args), *words, kind=kind)


@pytest.mark.parametrize('who', ['teacher', 'student'])
def test_maps_that_are_not_numbers(who):
    dl = batches(n=8)
    nets = dict(student=SmallStream(4), teacher=SmallStream(4))
    with torch.no_grad(): nets[who].units[2].conv2.weight.fill_(math.nan)
    refused(lambda: fidelity(**nets, dl=dl), "tap 'unit3'", f'of the {who}', 'NaN', kind=ModelError)


# ---------------------------------------------------------------- the swap

@pytest.mark.parametrize('connection', ['product', 'none'])
def test_swap_against_nets_put_together_by_hand(connection):
    seed_all(0)
    net, real, dl = TwoStream(SmallStream(4), SmallStream(4), connection).eval(), SmallStream(4).eval(), batches(n=16)
    for m in (net.main, net.inject, real): m.fc.weight.data *= 20                  # untrained nets answer alike
    x, d, y = (torch.cat([v[i] for v in dl]) for i in range(3))
    with torch.no_grad():
        gates = lambda s, x: s.forward_maps(x)[1] if connection != 'none' else None
        main = lambda g: net.main.forward_head(net.main.forward_maps(x, g, connection)[0])
        head = lambda s, f: s.forward_head(f)
        by_hand = {'nothing': (main(gates(net.inject, x)) + net.inject(x))/2, 'logits': (main(gates(net.inject, x)) + real(d))/2, 'stream': (main(gates(real, d)) + real(d))/2,
                   'unit3': (main(gates(net.inject, x)) + head(net.inject, real.forward_features(d)))/2}
    found = swap_test(net, real, dl).set_index('swapped')
    assert found.index.tolist() == ['nothing', 'unit1', 'unit2', 'unit3', 'logits', 'stream'] and (found.n == 16).all()
    for k, z in by_hand.items():
        assert found.top1[k] == pytest.approx((z.argmax(1) == y).float().mean().item()), k
        assert found.changed[k] == pytest.approx((z.argmax(1) != by_hand['nothing'].argmax(1)).float().mean().item()), k
    assert found.changed['stream'] > 0 and all(not t._forward_hooks for m in (net, real) for t in m.modules())


def test_swapping_an_early_map_is_running_the_rest_on_it():
    seed_all(0)
    a, b, dl = SmallStream(4).eval(), SmallStream(4).eval(), batches(n=8)
    a.fc.weight.data *= 20
    x, d, y = dl[0]
    with torch.no_grad():
        with capture(b, 'unit1') as given: b(d)
        h = given.maps['unit1'].transpose(1, 2).flatten(0, 1)
        for unit in a.units[1:]: h = F.relu(unit(h, h, 2))
        z = a.fc(h.unflatten(0, (8, 2)).mean((1, 3, 4)))
    found = swap_test(a, b, dl, 'unit1').set_index('swapped')
    assert found.index.tolist() == ['nothing', 'unit1'] and found.top1['unit1'] == pytest.approx((z.argmax(1) == y).float().mean().item())
    assert found.changed['unit1'] == pytest.approx((z.argmax(1) != a(x).argmax(1)).float().mean().item())


def test_a_twin_changes_nothing():
    net = TwoStream(SmallStream(4), SmallStream(4))
    f = swap_test(net, copy.deepcopy(net.inject), batches(n=8), other_inputs=['rgb'])
    assert (f.changed == 0).all() and f.top1.nunique() == 1


def test_a_tap_that_is_only_shown():
    "A series stream shows its maps and does not read them back"
    class Series(list): signals = (signal('inertial'),)
    dl, keys = Series([(rand(6, 6, 32), torch.zeros(6).long())]), dict(inputs=['inertial'], other_inputs=['inertial'])
    refused(lambda: swap_test(SeriesStream(3), SeriesStream(3), dl, 'unit3', **keys), "tap 'unit3'", 'does not read it', kind=ModelError)
    assert swap_test(SeriesStream(3), SeriesStream(3), dl, **keys).swapped.tolist() == ['nothing']


def test_streams_of_another_shape_cannot_be_swapped():
    refused(lambda: swap_test(SmallStream(4), SmallStream(4, width=4), batches(n=8)), "tap 'unit1'", 'one architecture', kind=ModelError)


# ---------------------------------------------------------------- real loaders, training, runs

@pytest.fixture(scope='module')
def df(tmp_path_factory):
    "A tiny set of one subject: a camera to train on, one to validate, one to test"
    root = synthetic.make(tmp_path_factory.mktemp('fidelity')/'set', seed=5, train=1, valid=0, test=0, skeletons=False, workers=1)
    df = synthetic.index(root)
    return df.assign(split=df.camera.map({1: 'train', 2: 'valid', 3: 'test'}))


def dls_of(df, **how): return clip_dls(df, ('rgb', 'depth'), ClipSampler(clip_len=2, crop=48, flip=.5, seed=0), bs=10, dev='cpu', workers=0, **how)


def test_depth_images_are_cut_as_the_network_sees_them(df):
    plain = ClipInputs(centre=False, depth='replicate', depth_mean=(0, 0, 0), depth_std=(1, 1, 1))
    dl = make_test_dl(dls_of(df, inputs=plain), df[df.split == 'test'], bs=10)
    seen, metres = torch.cat([d for _, d, _ in dl]), DepthImages(dl)[:]
    assert metres.shape == (10, 1, 2, 48, 48)
    ok = metres.isfinite() & (metres > 1.6) & (metres < 4.9)
    assert ok.float().mean() > .5 and abs(torch.corrcoef(torch.stack([seen[:, :1][ok], metres[ok]]))[0, 1]) > .99
    assert torch.equal(DepthImages(dl)[7:9].nan_to_num(), metres[7:9].nan_to_num())
    centred = DepthImages(make_test_dl(dls_of(df), df[df.split == 'test']))
    assert centred.centre and not DepthImages(dl).centre and centred[:3].nanmean(2).abs().nanmean() < 1e-6


def trained(df, *more, epochs=2):
    seed_all(3)
    depth = SmallStream(10)
    learn = learner(dls_of(df), copy.deepcopy(depth), cbs=[DistillCallback(Teacher(depth), [feature_term('unit3', 2.5, standardize=True)]), *more])
    with learn.no_bar(), learn.no_logging(): fit(learn, epochs)
    return learn


def test_the_callback_leaves_the_training_alone(df):
    "Weights, batch norm, and the random numbers that follow are the same to the bit"
    a = trained(df); after = torch.rand(3)
    seed_all(3)
    pair = TwoStream(SmallStream(10), SmallStream(10))
    cb = Fidelity(clips=8, pair=pair)
    b = trained(df, cb)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    names = list(b.recorder.metric_names)
    assert [n for n in names if n in (*COLUMNS, 'swap')] == [*COLUMNS, 'swap'] and [c for c in names if c not in (*COLUMNS, 'swap')] == list(a.recorder.metric_names)
    last = dict(zip(names[1:], b.recorder.values[-1]))
    end = cb.table[(cb.table.epoch == 2) & (cb.table.tap == 'unit3')].iloc[0]
    assert all(last[c] == end[c] for c in COLUMNS) and cb.table.notna().all(axis=None) and sorted(set(cb.table.epoch)) == [0, 1, 2] and (cb.table.clips == 8).all()
    assert last['swap'] == cb.swaps[(cb.swaps.epoch == 2) & (cb.swaps.swapped == 'unit3')].top1.item()
    assert not [m for m in b.metrics if m.name in COLUMNS]
    table = cb.table; b.validate(); assert cb.table is table, 'measured outside a fit'


def test_the_callback_measures_what_the_function_measures(df):
    cb = Fidelity(every=2, clips=None)
    learn = trained(df, cb, epochs=3)
    assert sorted(set(cb.table.epoch)) == [0, 2, 3]
    dl = make_test_dl(learn.dls, df[df.split == 'valid'], bs=10)
    seed_all(3)
    f = fidelity(learn.model, SmallStream(10), dl, picture=False)
    end = cb.table[cb.table.epoch == 3]
    assert np.allclose(f.cosine, end.cosine, atol=1e-5) and np.allclose(f.distance, end.distance, rtol=1e-4), 'clips are in another order, batches for CKA differ'
    assert end.rms_real.between(.01, 1).all(), 'metres'


def test_a_callback_without_a_teacher(df):
    learn = learner(dls_of(df), SmallStream(10), cbs=[Fidelity()])
    with learn.no_bar(), learn.no_logging(): refused(lambda: learn.fit(1), 'DistillCallback', 'fidelity(', kind=ModelError)
    refused(lambda: Fidelity(every=0), 'every=0', kind=ModelError)


@pytest.fixture(scope='module')
def run(df, tmp_path_factory):
    "The files of a finished run, untrained"
    def make(**settings):
        out, c = tmp_path_factory.mktemp('run'), Garcia2018(clip_len=2, bs=8, **settings)
        write_json(out/'run.json', dict(recipe='garcia2018', settings=c.__dict__, index=index_hash(df), data=None))
        torch.manual_seed(1)
        one = lambda: SmallStream(10)
        for name, m in {'rgb': one(), 'depth': one(), 'rgb+depth': TwoStream(one(), one()), 'hallucination': one(), 'rgb+hallucination': TwoStream(one(), one())}.items():
            save_model(m.eval(), out/name/'model.safetensors')
            write_json(out/name/'record.json', dict(name=name))
        return out, c
    return make


def test_a_stored_run(df, run):
    from moddist.models import load_model
    (out, c), rows = run(), df[df.split == 'test']
    load = lambda out, n: load_model(out/n/'model.safetensors')
    dl = make_test_dl(loaders(c, df, ('rgb', 'depth')), rows)
    f = fidelity_run(out, df)
    assert np.allclose(f.cka, fidelity(load(out, 'hallucination'), load(out, 'depth'), dl).cka) and f.notna().all(axis=None) and (f.clips == 10).all()
    four = fidelity_run(out, df, step='rgb+hallucination', taps='unit3')
    assert np.allclose(four.distance, fidelity(load(out, 'rgb+hallucination').inject, load(out, 'depth'), dl, 'unit3').distance)
    s = swap_run(out, df)
    assert s.groupby('net').size().to_dict() == {'rgb+depth': 6, 'rgb+hallucination': 6} and (s.n == 10).all()
    second, _ = run(teacher_step=2)
    assert np.allclose(fidelity_run(second, df).distance, fidelity(load(second, 'hallucination'), load(second, 'rgb+depth').inject, dl).distance)


def test_a_run_that_cannot_be_looked_at(df, run, tmp_path):
    out, _ = run()
    refused(lambda: fidelity_run(tmp_path, df), 'holds no run')
    refused(lambda: fidelity_run(out, df, 'valid2'), "0 clips of split 'valid2'", 'test, train, valid')
    refused(lambda: fidelity_run(out, df, step='student'), "step 'student' is not finished")
    (out/'rgb+hallucination'/'record.json').unlink()
    refused(lambda: swap_run(out, df), "'rgb+hallucination' is not finished")


# ---------------------------------------------------------------- figures

def test_both_figures_draw_the_numbers_of_the_table():
    seed_all(0)
    net, dl = SmallStream(4), batches(n=8)
    f = fidelity(net, SmallStream(4), dl)
    still, live = plot_fidelity(f), fidelity_figure(f)
    assert still.axes[0].lines[0].get_ydata() == pytest.approx(f.cosine) and still.axes[1].lines[0].get_ydata() == pytest.approx(f.cka)
    assert list(live.data[0].y) == pytest.approx(f.cosine) and list(live.data[0].x) == f.tap.tolist()
    import pandas as pd
    over = pd.concat([f.assign(epoch=e, cosine=f.cosine + e) for e in (0, 2)], ignore_index=True)
    swaps = pd.DataFrame([dict(swapped=s, top1=v + e/10, epoch=e) for e in (0, 2) for s, v in (('nothing', .8), ('unit3', .4), ('logits', .1))])
    still, live = plot_fidelity(over, swaps), fidelity_figure(over, swaps)
    assert still.axes[0].lines[2].get_ydata() == pytest.approx([f.cosine[2], f.cosine[2] + 2]) and list(still.axes[0].lines[0].get_xdata()) == [0, 2]
    assert [list(d.y) for d in live.data[-2:]] == [pytest.approx([.8, 1.]), pytest.approx([.4, .6])]
    assert [a.get_title() for a in still.axes if a.get_title()][-1] == 'top-1 of the pair' and {t.get_text() for t in still.legends[0].texts} >= {'unit1', 'unit2', 'unit3'}
    with warnings.catch_warnings():
        warnings.simplefilter('error'); still.canvas.draw()
    refused(lambda: plot_fidelity(f[:0]), 'empty table')


def test_two_architectures_share_no_tap():
    refused(lambda: fidelity(SmallStream(4), ResNetStream('resnet18', 4), batches(n=4, bs=4)), 'layer1', 'unit1', 'taps={teacher tap', kind=ModelError)
