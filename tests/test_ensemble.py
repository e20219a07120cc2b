"""Ensembles of teachers and the losses of radevski2022: its facts 1 to 8, against hand-written sums."""
import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from torch import nn

from moddist import synthetic
from moddist.core import ModelError, seed_all
from moddist.data import ClipSampler, JitterRGB, clip_dls, test_dl
from moddist.distill import DistillCallback, Outputs, Teacher, learner, soft_term
from moddist.ensemble import Ensemble, HeldOut, fit_temperatures, ground_truth, held_out_weights, kd_term, predict_each, sample_weights, softmin
from moddist.evaluate import Predictions, predict
from moddist.losses import LossError, cross_entropy
from moddist.models import SmallStream

torch.set_num_threads(1)
HEADS = dict(verb=4, noun=3)


class Fixed(nn.Module):
    "Says the same rows whatever it reads"
    def __init__(self, z): super().__init__(); self.z = torch.as_tensor(z, dtype=torch.float32)
    def forward(self, x): return self.z[:len(x)] if self.z.ndim == 2 else self.z.expand(len(x), -1)


def said(n, b, k, seed=0): return 2*torch.randn(n, b, k, generator=torch.Generator().manual_seed(seed))
def kd(s, t, **how): return kd_term(**how).fn(Outputs(s, {}), Outputs(t, {}), None).item()
S, T = torch.tensor([[1., 2, 3], [0, 0, 0]]).double(), torch.tensor([[3., 2, 1], [1, 0, 0]]).double()


# facts 1 to 3: the losses

def test_fact_1_worked_example():
    for tau, value in ((1., .636852612), (2., .700647136), (10., .722299750)): assert kd(S, T, tau=tau) == pytest.approx(value, abs=1e-6)
    for tau in (1., 2., 10.):
        assert kd(T, T, tau=tau) == pytest.approx(0, abs=1e-9)
        shift = torch.tensor([[5.], [-70.]]).double()
        assert kd(S + shift, T, tau=tau) == pytest.approx(kd(S, T, tau=tau), abs=1e-9) == pytest.approx(kd(S, T - shift, tau=tau), abs=1e-9)
        by_torch = tau**2*F.kl_div((S/tau).log_softmax(1), (T/tau).log_softmax(1), reduction='batchmean', log_target=True).item()
        assert kd(S, T, tau=tau) == pytest.approx(by_torch, abs=1e-9)
    assert abs(kd(S, T) - kd(T, S)) > 1e-3                         # KL(teacher || student), not the other way round


def test_fact_2_mean_over_heads():
    twice, y = dict(a=3, b=3), torch.tensor([[0, 0], [2, 2]])
    s2, t2 = S.repeat(1, 2), T.repeat(1, 2)
    assert kd(s2, t2, heads=twice) == pytest.approx(kd(S, T), abs=1e-9)
    assert ground_truth(twice)(s2, y) == pytest.approx(ground_truth()(S, y[:, 0]).item(), abs=1e-9)
    z, y = said(1, 5, 7)[0], torch.tensor([[0, 2], [1, 1], [3, 0], [2, 2], [0, 1]])
    verb, noun = F.cross_entropy(z[:, :4], y[:, 0]), F.cross_entropy(z[:, 4:], y[:, 1])
    assert ground_truth(HEADS)(z, y) == pytest.approx(((verb + noun)/2).item(), abs=1e-6)


def test_action_weights_scale_labels_and_switch_heads():
    "a_h multiplies the cross-entropy only; a head with weight 0 takes no part in either term, and is not counted"
    z, t, y = said(1, 5, 7)[0], said(1, 5, 7, 1)[0], torch.tensor([[0, 2], [1, 1], [3, 0], [2, 2], [0, 1]])
    verb, noun = F.cross_entropy(z[:, :4], y[:, 0]).item(), F.cross_entropy(z[:, 4:], y[:, 1]).item()
    assert ground_truth(HEADS, dict(verb=3., noun=.5))(z, y) == pytest.approx((3*verb + .5*noun)/2, abs=1e-5)
    assert ground_truth(HEADS, dict(verb=0, noun=2.))(z, y) == pytest.approx(2*noun, abs=1e-5)
    assert kd(z, t, heads=HEADS, action_weights=dict(verb=3., noun=.5)) == kd(z, t, heads=HEADS)
    assert kd(z, t, heads=HEADS, action_weights=dict(verb=0)) == pytest.approx(kd(z[:, 4:], t[:, 4:]), abs=1e-6)
    nan = z.clone(); nan[:, :4] = float('nan')
    assert ground_truth(HEADS, dict(verb=0))(nan, y).isfinite()                          # really not computed
    refused(lambda: kd_term(heads=HEADS, action_weights=dict(action=1.)), 'action', 'verb, noun', kind=ModelError)
    refused(lambda: ground_truth(HEADS, dict(verb=0, noun=0)), 'no head', kind=ModelError)


def test_losses_refuse_what_does_not_fit():
    z, y = said(1, 5, 7)[0], torch.zeros(5, 2).long()
    refused(lambda: ground_truth(HEADS)(z, y[:, 0]), '[B, 2]', kind=ModelError)
    refused(lambda: ground_truth()(z, y), '[B, 1]', kind=ModelError)
    refused(lambda: ground_truth(HEADS)(z[:, :6], y), '6 logits', kind=ModelError)
    refused(lambda: kd(z, z, tau=0.), 'tau', kind=LossError)
    assert ground_truth()(z, y[:, :1]) == ground_truth()(z, y[:, 0]) == cross_entropy(z, y[:, 0])


def test_fact_3_defaults():
    term = kd_term()
    assert (term.name, term.weight, term.taps) == ('kd', 1., ())
    assert kd(S, T) == kd(S, T, tau=1.)
    for n in (1, 2, 3, 4): assert torch.equal(Ensemble(*[Fixed([0., 0.])]*n).weights, torch.full((n, 1), 1/n))
    assert Ensemble(Fixed([0.])).gamma == 1 and not Ensemble(Fixed([0.])).per_sample


# facts 4 to 6: the ensemble

def test_fact_4_sum_of_logits():
    x = torch.zeros(2, 1)
    t = Ensemble(Fixed([2., 0.]), Fixed([0., 4.]), weights=[.25, .75])(x, x)
    assert torch.equal(t, torch.tensor([[.5, 3.]]*2))
    mean = .25*torch.tensor([2., 0.]).softmax(0) + .75*torch.tensor([0., 4.]).softmax(0)
    assert (t[0].softmax(0) - mean).abs().max() > .01              # the softmax comes after the sum
    assert torch.equal(Ensemble(Fixed([2., 0.]), Fixed([0., 4.]), weights=[1, 3])(x, x), t)


def test_fact_5_softmin():
    v = torch.tensor([1., 2., 3.])
    assert torch.allclose(softmin(v), torch.tensor([.66524096, .24472847, .09003057]), atol=1e-7)
    assert torch.allclose(softmin(v, 30.), torch.tensor([.3445041, .33320991, .32228599]), atol=1e-7)
    g = torch.Generator().manual_seed(0)
    for gamma in (.1, 1., 30.):
        v = 5*torch.rand(50, 4, generator=g, dtype=torch.float64)
        w = softmin(v, gamma)
        assert torch.allclose(w, softmin(v + 123., gamma), atol=1e-9) and torch.allclose(w.sum(-1), torch.ones(50).double())
        assert torch.equal(w.argsort(-1, descending=True), v.argsort(-1))                  # lower loss, larger weight
    assert softmin(torch.tensor([1., 2.]), 1e-3).tolist() == [1., 0.] and softmin(torch.tensor([1., 2.]), float('inf')).tolist() == [.5, .5]
    assert softmin(torch.tensor([1, 2, 3])).dtype == torch.float32
    for gamma in (0., -1., float('nan')): refused(lambda: softmin(v, gamma), 'gamma', kind=LossError)


def test_fact_5_weights_differ_per_head():
    "Each head has its own weights, and those of one do not touch the other"
    z, x = said(3, 6, 7), torch.zeros(6, 1)
    w = dict(verb=[.2, .3, .5], noun=[0., 1., 3.])
    want = torch.cat([.2*z[0, :, :4] + .3*z[1, :, :4] + .5*z[2, :, :4], .25*z[1, :, 4:] + .75*z[2, :, 4:]], 1)
    e = Ensemble(*map(Fixed, z), heads=HEADS, weights=w)
    assert torch.allclose(e(x, x, x), want, atol=1e-6)
    assert torch.allclose(Ensemble(*map(Fixed, z), heads=HEADS, weights=torch.tensor([[.2, 0], [.3, 1], [.5, 3]]))(x, x, x), want, atol=1e-6)
    assert torch.allclose(Ensemble(*map(Fixed, z), heads=HEADS, weights=[1, 1, 2])(x, x, x), (z[0] + z[1] + 2*z[2])/4, atol=1e-6)
    assert e.last.weights.shape == (3, 2) and torch.equal(e.last.logits, z)


def test_fact_6_per_sample_weights():
    "[B, n], sample-major: each clip is judged by its own label, computed clip by clip and stream by stream"
    z, y = said(3, 5, 4), torch.tensor([0, 3, 1, 2, 3])
    for gamma in (.5, 1., 30.):
        w = sample_weights(z, y, gamma)
        assert w.shape == (5, 3)
        for b in range(5):
            losses = [-F.log_softmax(z[m, b], 0)[y[b]].item() for m in range(3)]
            e = [2.718281828459045**(-v/gamma) for v in losses]
            assert w[b].tolist() == pytest.approx([v/sum(e) for v in e], abs=1e-6)
        # the reference's own order: the streams of a clip stand together, so each label is repeated n times in place
        flat = F.cross_entropy(z.transpose(0, 1).reshape(-1, 4), y.repeat_interleave(3), reduction='none').view(5, 3)
        assert torch.allclose(w, F.softmin(flat/gamma, -1), atol=1e-6)
    assert not torch.allclose(sample_weights(z, y), sample_weights(z, y.flip(0)))


def test_per_sample_ensemble_with_two_heads():
    z, x = said(3, 5, 7), torch.zeros(5, 1)
    y = torch.tensor([[0, 2], [3, -1], [1, 0], [2, 2], [3, 1]])
    e = Ensemble(*map(Fixed, z), heads=HEADS, weights='per-sample', gamma=.7)
    t = e.teach([x]*3, y, None)
    verb, noun = sample_weights(z[..., :4], y[:, 0], .7), sample_weights(z[..., 4:], y[:, 1], .7)
    assert torch.allclose(noun[1], torch.ones(3)/3)                                        # no noun there: all the same
    want = torch.stack([torch.cat([sum(verb[b, m]*z[m, b, :4] for m in range(3)), sum(noun[b, m]*z[m, b, 4:] for m in range(3))]) for b in range(5)])
    assert torch.allclose(t, want, atol=1e-5)
    assert e.last.weights.shape == (3, 5, 2) and torch.allclose(e.last.weights[..., 0].T, verb)
    refused(lambda: e(x, x, x), 'labels', 'cannot recognise', kind=ModelError)
    refused(lambda: e.teach([x]*3, y[:, 0], None), '[B, 2]', kind=ModelError)


def test_limits_of_gamma():
    "gamma towards 0 is the best teacher alone, towards infinity the plain mean"
    z, x, y = said(3, 5, 4), torch.zeros(5, 1), torch.tensor([0, 3, 1, 2, 3])
    best = torch.stack([F.cross_entropy(a, y, reduction='none') for a in z]).argmin(0)
    assert torch.allclose(Ensemble(*map(Fixed, z), weights='per-sample', gamma=1e-4).teach([x]*3, y, None), z[best, torch.arange(5)], atol=1e-4)
    assert torch.allclose(Ensemble(*map(Fixed, z), weights='per-sample', gamma=1e6).teach([x]*3, y, None), z.mean(0), atol=1e-4)


def test_temperatures_divide_before_the_sum_and_before_the_weights():
    z, x, y = said(2, 5, 7), torch.zeros(5, 1), torch.tensor([[0, 2], [3, 1], [1, 0], [2, 2], [3, 1]])
    t = dict(verb=[2., 1.], noun=[.5, 4.])
    soft = torch.cat([z[:, :, :4]/torch.tensor([2., 1.])[:, None, None], z[:, :, 4:]/torch.tensor([.5, 4.])[:, None, None]], 2)
    for how in (dict(), dict(weights=[1, 2]), dict(weights='per-sample')):
        a = Ensemble(*map(Fixed, z), heads=HEADS, temperatures=t, **how).teach([x]*2, y, None)
        b = Ensemble(*map(Fixed, soft), heads=HEADS, **how).teach([x]*2, y, None)
        assert torch.allclose(a, b, atol=1e-6)
    one = Ensemble(*map(Fixed, z), heads=HEADS, temperatures=[1., 1.])
    assert torch.equal(one(x, x), Ensemble(*map(Fixed, z), heads=HEADS)(x, x))
    assert torch.equal(one.each(x, x), z) and torch.equal(one.mix(z), one(x, x))


@pytest.mark.parametrize('how, words', [
    (dict(weights=[1.]), ['one number', '2 streams']), (dict(weights=[1., -1.]), ['>= 0']), (dict(weights=[0., 0.]), ['not all zero']), (dict(weights=[float('nan'), 1.]), ['one number']),
    (dict(weights='best'), ["'best'", 'per-sample']), (dict(weights=dict(verb=[1., 1.])), ['verb, noun']), (dict(weights=dict(verb=[1., 1.], noun=[1.])), ['2 streams']),
    (dict(weights=dict(verb=[1., 1.], noun=[0., 0.])), ['not all zero']), (dict(weights=torch.ones(3, 2)), ['2 streams']), (dict(temperatures=[1., 0.]), ['> 0']), (dict(temperatures=[1., 2., 3.]), ['temperatures']),
    (dict(names=['a', 'a']), ['different']), (dict(names=['a']), ['2 stream'])])
def test_ensemble_refuses(how, words): refused(lambda: Ensemble(Fixed([0.]*7), Fixed([0.]*7), heads=HEADS, **how), *words, kind=ModelError)


def test_ensemble_refuses_inputs():
    x = torch.zeros(1, 1)
    refused(lambda: Ensemble()(), 'at least one', kind=ModelError)
    refused(lambda: Ensemble(Fixed([0.]), gamma=0.), 'gamma', kind=LossError)
    refused(lambda: Ensemble(Fixed([0., 1.]), Fixed([0., 1.]))(x), '1 inputs', '2 stream', kind=ModelError)
    refused(lambda: Ensemble(Fixed([0., 1.]), Fixed([0., 1., 2.]), names=['flow', 'sound'])(x, x), 'flow [1, 2]', 'sound [1, 3]', kind=ModelError)
    refused(lambda: Ensemble(Fixed([0., 1.]), heads=HEADS)(x), '2 logits', kind=ModelError)


def test_buffers_travel_and_half_precision_is_left():
    "Weights and temperatures are in the state; under autocast, and with half-precision streams, the sum is in float32"
    seed_all(0)
    net = SmallStream(7)
    e = Ensemble(net, net, heads=HEADS, weights=dict(verb=[1, 3], noun=[1, 1]), temperatures=[1., 2.])
    assert {'weights', 'temperatures'} <= set(e.state_dict())
    x = torch.randn(3, 3, 4, 32, 32)
    want = e(x, x)
    with torch.autocast('cpu', torch.bfloat16):
        assert net.eval()(x).dtype == torch.bfloat16
        t = e(x, x)
        loss = kd_term(heads=HEADS, tau=4.).fn(Outputs(net(x), {}), Outputs(t, {}), None)
        labels = ground_truth(HEADS)(net(x), torch.zeros(3, 2).long())
        w = sample_weights(net(x)[None, :, :4], torch.zeros(3).long())
    assert t.dtype == loss.dtype == labels.dtype == w.dtype == torch.float32
    assert (t - want).abs().max() < .05*want.abs().max()
    assert copy.deepcopy(e)(x, x).equal(want)


# held-out weights and temperatures

def known(n=400, t=1., seed=0, k=3):
    "Predictions whose true temperature is t"
    g = torch.Generator().manual_seed(seed)
    z = 2.5*torch.randn(n, k, generator=g)
    y = torch.distributions.Gumbel(0., 1.).icdf(torch.rand(n, k, generator=g).clamp(1e-6, 1 - 1e-6)).add(z).argmax(1)
    return Predictions(t*z, y, tuple(f'{i}' for i in range(n)))


def test_held_out_weights_by_hand():
    "softmin of the mean cross-entropies, head by head; a start value added to all losses changes nothing"
    z, y = said(3, 40, 7), torch.stack([torch.arange(40) % 4, torch.arange(40) % 3], 1)
    found = held_out_weights({n: Predictions(a, y, heads=HEADS) for n, a in zip(('rgb', 'flow', 'sound'), z)}, gamma=.5)
    assert found.streams == ['rgb', 'flow', 'sound'] and (found.n, found.gamma) == (40, .5)
    for i, (h, c) in enumerate((('verb', slice(0, 4)), ('noun', slice(4, 7)))):
        losses = [F.cross_entropy(a[:, c], y[:, i]).item() for a in z]
        assert found.losses[h] == pytest.approx(losses, abs=1e-5)
        assert found.weights[h] == pytest.approx(F.softmin(torch.tensor(losses)/.5, 0).tolist(), abs=1e-5)
        assert found.weights[h] == pytest.approx(F.softmin((torch.tensor(losses) + 1/3)/.5, 0).tolist(), abs=1e-5)
    assert found.weights['verb'] != found.weights['noun']
    assert HeldOut(**json.loads(json.dumps(asdict(found)))) == found
    assert Ensemble(*map(Fixed, z), heads=HEADS, weights=found.weights).weights.T.tolist() == pytest.approx([pytest.approx(v, abs=1e-6) for v in found.weights.values()])
    text = str(found)
    assert '40 held-out clips' in text and all(n in text for n in ('rgb', 'flow', 'sound', 'verb', 'noun')) and f'{found.losses["verb"][0]:.3f}' in text


def test_held_out_weights_leave_out_clips_without_a_label():
    p = known()
    y = p.labels.clone(); y[::2] = -1
    a, b = held_out_weights({'a': replace(p, labels=y)}), held_out_weights({'a': Predictions(p.logits[1::2], p.labels[1::2])})
    assert a.losses['action'] == pytest.approx(b.losses['action'], abs=1e-9)


def test_held_out_weights_refuse():
    p, q = known(), known(seed=1)
    refused(lambda: held_out_weights({'rgb': p, 'flow': replace(p, labels=p.labels.flip(0))}), 'flow and rgb')
    refused(lambda: held_out_weights({'rgb': p, 'flow': replace(q, clip_ids=tuple(f'x{i}' for i in range(400)))}), 'other clips')
    refused(lambda: held_out_weights({'rgb': replace(p, labels=p.labels + 1)}), 'rgb', '0..2')
    refused(lambda: held_out_weights({'rgb': replace(p, labels=-1 - 0*p.labels)}), 'rgb')
    refused(lambda: held_out_weights({}), 'no predictions', kind=ModelError)
    refused(lambda: held_out_weights(Ensemble(Fixed([0.]))), 'loader', kind=ModelError)
    refused(lambda: held_out_weights({'rgb': p}, gamma=0.), 'gamma', kind=LossError)


def test_temperatures_are_found_and_bounded():
    "The true temperature where there is one, the ends of the range for a teacher that knows all or nothing"
    p = known(8000)
    sharp = known(8000, t=3.)
    t = fit_temperatures({'a': p, 'b': sharp})['action']
    assert t[0] == pytest.approx(1., abs=.06) and t[1] == pytest.approx(3*t[0], rel=1e-3)
    all_right = replace(p, logits=9.*F.one_hot(p.labels, 3)); all_wrong = replace(p, logits=-9.*F.one_hot(p.labels, 3))
    assert fit_temperatures({'a': all_right, 'b': all_wrong}, low=.25, high=40.)['action'] == [.25, 40.]
    refused(lambda: fit_temperatures({'a': p}, low=2., high=1.), 'low=2.0')
    losses = held_out_weights({'a': p, 'b': sharp}).losses['action'], held_out_weights({'a': p, 'b': sharp}, temperatures=t).losses['action']
    assert losses[1][1] < losses[0][1] - .05 and losses[1][0] <= losses[0][0] + 1e-6
    assert losses[1][0] == pytest.approx(losses[1][1], abs=1e-6)                            # the same teacher, once as loud


def test_temperatures_per_head():
    p, q = known(3000, t=2.), known(3000, t=.7, seed=1)
    both = Predictions(torch.cat([p.logits, q.logits], 1), torch.stack([p.labels, q.labels], 1), heads=dict(a=3, b=3))
    t = fit_temperatures({'only': both})
    assert t['a'] == fit_temperatures({'x': p})['action'] and t['b'] == fit_temperatures({'x': q})['action'] and t['a'][0] > 1.5 > 1 > t['b'][0]


# in training, on real files

@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "A small embedded set, its classes also as two labels"
    df = synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=5, train=2, valid=1, test=1, skeletons=False))
    return df.assign(motion=df.label//2, colour=df.label % 2)


TWO = dict(motion=5, colour=2)
def dls_of(df, *names, bs=12, labels=tuple(TWO), **how): return clip_dls(df, names, ClipSampler(4, crop=40, flip=.5), bs=bs, dev='cpu', labels=labels, **how)
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def quiet(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, **kwargs)
    return learn


@pytest.fixture
def three():
    seed_all(0)
    return [SmallStream(7, width=4) for _ in range(3)]


def distil(clips, streams, student, steps=3, **how):
    seed_all(1)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 12*steps
    cb = DistillCallback(Ensemble(*streams, heads=TWO, **how), [kd_term(.7, tau=2., heads=TWO)], hard=.3, inputs=('rgb', 'depth', 'rgb'))
    return quiet(learner(dls, copy.deepcopy(student), loss=ground_truth(TWO, dict(motion=2.)), metrics=[], cbs=[cb])), cb


@pytest.mark.parametrize('scheme', ['equal', 'held-out', 'per-sample'])
def test_weights_equal_a_plain_loop(clips, three, scheme):
    "After three steps the student's weights are those of a loop in which 2.1 to 2.3 are written out"
    student = SmallStream(7, width=4)
    fixed = {'equal': None, 'held-out': dict(motion=[.1, .6, .3], colour=[.7, .1, .2]), 'per-sample': 'per-sample'}[scheme]
    learn, _ = distil(clips, three, student, weights=fixed, gamma=.8)
    seed_all(1)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 36
    model, frozen = copy.deepcopy(student).train(), [copy.deepcopy(s).eval() for s in three]
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=.02)
    for x, d, y in dls.train:
        with torch.no_grad(): z = [f(a) for f, a in zip(frozen, (x, d, x))]
        zs, kd, gt = model(x), 0, 0
        for i, (h, c, a) in enumerate((('motion', slice(0, 5), 2.), ('colour', slice(5, 7), 1.))):
            label = y[:, i].as_subclass(torch.Tensor)
            if scheme == 'per-sample': w = F.softmin(torch.stack([F.cross_entropy(v[:, c], label, reduction='none') for v in z], 1)/.8, 1).T[..., None]
            else: w = torch.tensor(fixed[h] if fixed else [1/3]*3)[:, None, None]
            t = sum(w[m]*z[m][:, c] for m in range(3))
            kd = kd + 4*F.kl_div((zs[:, c]/2).log_softmax(1), (t/2).log_softmax(1), reduction='batchmean', log_target=True)/2
            gt = gt + a*F.cross_entropy(zs[:, c], label)/2
        loss = .7*kd + .3*gt
        opt.zero_grad(); loss.backward(); opt.step()
    assert (weights(learn.model) - weights(model)).abs().max() < 2e-6
    assert (weights(learn.model) - weights(student)).abs().max() > 1e-3


def test_fact_7_teachers_do_not_move(clips, three):
    "No gradient, no running average, eval mode whatever the student is told"
    learn, cb = distil(clips, three, SmallStream(7, width=4), weights='per-sample')
    learn.model.train(); cb.teacher.train(); nn.ModuleList([learn.model, cb.teacher]).train()
    assert learn.model.training and not any(m.training for m in cb.teacher.modules())
    for own, was in zip(cb.teacher.streams, three):
        assert all(torch.equal(v, was.state_dict()[k]) for k, v in own.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in cb.teacher.parameters())
    assert {id(p) for p in cb.teacher.parameters()}.isdisjoint(id(p) for g in learn.opt.param_groups for p in g['params'])
    assert not cb.teacher.last.logits.requires_grad and not cb.teacher.last.weights.requires_grad
    x = torch.randn(2, 3, 4, 40, 40, requires_grad=True)
    assert not cb.teacher(x, x, x, y=torch.zeros(2, 2).long()).requires_grad


def test_last_batch_is_kept(clips, three):
    "The parts of the last batch, [n, B, K] and [n, B, H], explain what the teacher said"
    _, cb = distil(clips, three, SmallStream(7, width=4), weights='per-sample')
    last = cb.teacher.last
    n, b, k = last.logits.shape
    assert (n, k) == (3, 7) and last.weights.shape == (3, b, 2)
    assert torch.allclose(last.weights.sum(0), torch.ones(b, 2), atol=1e-6)


class Spy(nn.Module):
    "Keeps what it reads"
    def __init__(self, k=7): super().__init__(); self.seen, self.fc = [], nn.Linear(3, k)
    def forward(self, x): self.seen.append(x); return self.fc(x.as_subclass(torch.Tensor).mean((2, 3, 4)))


def test_fact_8_student_and_teachers_read_the_same_tensor(clips):
    "Random crop, flip and jitter in training: every RGB teacher gets the student's tensor, to the bit; the depth teacher another one"
    student = Spy()
    ensemble = Ensemble(Spy(), Spy(), Spy(), heads=TWO)
    cb = DistillCallback(ensemble, [kd_term(heads=TWO)], inputs=('rgb', 'depth', 'rgb'))
    quiet(learner(dls_of(clips, 'rgb', 'depth'), student, loss=ground_truth(TWO), metrics=[], cbs=[cb]))
    a, d, b = (s.seen for s in ensemble.streams)
    assert len(student.seen) == len(a) == len(b) == len(d) > 3
    for s, x, z, y in zip(student.seen, a, b, d): assert s.data_ptr() == x.data_ptr() == z.data_ptr() and torch.equal(s, x) and torch.equal(s, z) and not torch.equal(s, y)


def test_fact_8_another_signal_has_the_same_frames_window_and_flip(clips):
    "The same files as a second view, without jitter: what the second teacher reads is the student's clip, so time, crop and flip were drawn once"
    student, ensemble = Spy(), Ensemble(Spy(), Spy(), heads=TWO)
    dls = dls_of(clips.assign(view2=clips.rgb), 'rgb', 'view2:rgb', jitter=JitterRGB(0, 0, 0))
    cb = DistillCallback(ensemble, [kd_term(heads=TWO)], inputs=('rgb', dls.signals[1].key))
    quiet(learner(dls, student, loss=ground_truth(TWO), metrics=[], cbs=[cb]))
    x, other = student.seen, ensemble.streams[1].seen
    assert len(x) == len(other) > 3 and all(torch.equal(a, b) for a, b in zip(x, other))
    first = quiet(learner(dls_of(clips, 'rgb', jitter=JitterRGB(0, 0, 0)), Spy(), loss=ground_truth(TWO), metrics=[])).model.seen
    assert any(not torch.equal(a, b) for a, b in zip(x, first)) or len(x) != len(first)     # shuffled and drawn anew: not constant by accident


def test_one_head_and_plain_labels(clips):
    "Ten classes, y [B]: the same objects without heads, and a teacher of one stream is what `Teacher` gives"
    seed_all(0)
    a, b = SmallStream(10, width=4), SmallStream(10, width=4)
    out = []
    for teacher, term in ((Ensemble(a), kd_term(.5, tau=3.)), (Teacher(a), soft_term(.5, tau=3., t2=True))):
        seed_all(2)
        dls = dls_of(clips, 'rgb', 'depth', labels=None); dls.train.n = 24
        out.append(weights(quiet(learner(dls, copy.deepcopy(b), loss=ground_truth(), cbs=[DistillCallback(teacher, [term])])).model))
    assert torch.equal(*out)
    seed_all(2)
    quiet(learner(dls_of(clips, 'rgb', 'depth', labels=None), b, loss=ground_truth(), cbs=[DistillCallback(Ensemble(a, a, weights='per-sample'), [kd_term()], inputs=('depth', 'rgb'))]))


def test_predict_each_is_one_pass_of_each_stream(clips, three):
    "The same logits as each stream alone gives on the same loader, with several views too; the ensemble recognises as their mean"
    for sampler in (ClipSampler(4, crop=40), ClipSampler(4, crop=40, clips=2)):
        dls = clip_dls(clips, ('rgb', 'depth'), sampler, bs=8, dev='cpu', labels=tuple(TWO))
        dl = test_dl(dls, clips[clips.split == 'valid'])
        e = Ensemble(*three, heads=TWO, names=['a', 'b', 'c'], temperatures=[1., 2., 3.])
        found = predict_each(e, dl, ('rgb', 'depth', 'rgb'))
        for (name, p), s, i in zip(found.items(), three, (0, 1, 0)):
            class Reads(nn.Module):
                def forward(self, *xs): return s.eval()(xs[i])
            alone = predict(Reads(), dl)
            assert torch.allclose(p.logits, alone.logits, atol=1e-5) and torch.equal(p.labels, alone.labels) and p.clip_ids == alone.clip_ids
    pair = Ensemble(*three[:2], heads=TWO)
    p, each = predict(pair, dl), predict_each(pair, dl)
    assert torch.allclose(p.logits, torch.stack([q.logits for q in each.values()]).mean(0), atol=1e-5)
    refused(lambda: predict_each(e, dl, ('rgb', 'flow', 'rgb')), "'flow'", 'rgb, depth', kind=ModelError)
    refused(lambda: predict_each(e, dl), '2 inputs', '3 stream', kind=ModelError)
    weighted = held_out_weights(e, dl, inputs=('rgb', 'depth', 'rgb'))
    assert weighted.losses == held_out_weights(found, temperatures=[1., 2., 3.]).losses and weighted.n == int((clips.split == 'valid').sum())
    assert fit_temperatures(e, dl, inputs=('rgb', 'depth', 'rgb')) == fit_temperatures(found)


def test_gradient_reaches_the_student_only_through_the_students_logits():
    z = said(1, 4, 7)[0].requires_grad_()
    t = said(1, 4, 7, 1)[0].requires_grad_()
    kd_term(heads=HEADS, tau=2.).fn(Outputs(z, {}), Outputs(t, {}), None).backward()
    assert t.grad is None and z.grad.abs().sum() > 0
    want = torch.cat([2/2/4*((z[:, c]/2).softmax(1) - (t[:, c]/2).softmax(1)) for c in (slice(0, 4), slice(4, 7))], 1)   # tau/(H B) (p - q)
    assert torch.allclose(z.grad, want, atol=1e-6)
