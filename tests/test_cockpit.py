"""The cockpit: it changes nothing, its sums are those of a loop by hand, and leaving a teacher out is counted as it should be."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from torch import nn
from torch.amp import GradScaler, autocast

from moddist import synthetic
from moddist.cache import CachedTeacher
from moddist.calibration import nll
from moddist.cockpit import (Cockpit, class_weights_figure, gradients_figure, layer_groups, plot_class_weights, plot_gradients, plot_weights, plot_what_if,
                             weights_figure, what_if, what_if_figure)
from moddist.core import DataError, ModelError, seed_all
from moddist.data import ClipSampler, clip_dls
from moddist.distill import DistillCallback, Teacher, feature_term, learner, soft_term
from moddist.ensemble import Ensemble, ground_truth, kd_term
from moddist.evaluate import Predictions, ece
from moddist.gap import redraw
from moddist.inputs import JitterRGB
from moddist.models import SmallStream, TwoStream

torch.set_num_threads(1)
TWO = dict(motion=5, colour=2)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "A small embedded set, its classes also as two labels"
    df = synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=5, train=2, valid=1, test=1, skeletons=False))
    return df.assign(motion=df.label//2, colour=df.label % 2)


@pytest.fixture(scope='module')
def nets():
    seed_all(0)
    return [SmallStream(7, width=4) for _ in range(3)]


def quiet(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, **kwargs)
    return learn


def run(clips, nets, *cbs, weights='per-sample', steps=3, epochs=1, hard=.5, cached=False, slots=None):
    seed_all(1)
    dls = clip_dls(clips, ('rgb', 'depth'), ClipSampler(4, crop=40, flip=.5, slots=slots), bs=12, dev='cpu', labels=tuple(TWO), **({'jitter': JitterRGB(0, 0, 0)} if cached else {}))
    dls.train.n = 12*steps
    ensemble = Ensemble(*nets[:2], heads=TWO, weights=weights, names=['RGB', 'depth'])
    terms = [kd_term(.7, tau=2., heads=TWO), feature_term('unit3', .3, standardize=True, teacher_tap='streams.1.unit3')]
    if cached: ensemble, terms = CachedTeacher(ensemble), terms[:1]
    cb = DistillCallback(ensemble, terms, hard=hard, inputs=('rgb', 'depth'))
    return quiet(learner(dls, copy.deepcopy(nets[2]), loss=ground_truth(TWO), metrics=[], cbs=[cb, *cbs]), epochs)


class Amp(MixedPrecision):
    "The events of half precision on a CPU, with a scaler"
    scale = 1024.
    def before_fit(self): self.autocast, self.learn.scaler, self.scales = autocast('cpu', torch.bfloat16), GradScaler('cpu', init_scale=self.scale), []


@pytest.mark.parametrize('more', [[], [GradientAccumulation(24)], [Amp()]], ids=['plain', 'accumulated', 'scaled'])
def test_training_is_bit_identical(clips, nets, more):
    "Weights and batch-norm averages after a fit with and without, whatever comes after the terms"
    a, b = (run(clips, nets, *copy.deepcopy(more), *own).model.state_dict() for own in ([], [Cockpit(every=1)]))
    assert all(torch.equal(a[k], b[k]) for k in a) and any('running_mean' in k for k in a)
    assert not torch.equal(a['conv.weight'], nets[2].state_dict()['conv.weight'])


def test_parts_add_up_to_the_gradient_of_the_step(clips, nets):
    "Norms and cosines are those of `.grad` computed one part at a time by torch; their sum is what the step uses"
    seen = {}
    def grads(model): return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    class Spy(Cockpit):
        order = Cockpit.order + .1                                             # the cockpit proper has looked; now look again, in another way
        def before_fit(self): pass
        def before_train(self): pass
        def after_loss(self): pass
        def after_train(self): pass
        def before_backward(self):
            cb = next(c for c in self.learn.cbs if type(c) is DistillCallback)
            self.model.zero_grad()
            for name, v in cb.parts.items():
                v.backward(retain_graph=True)
                seen[name] = grads(self.model); self.model.zero_grad()
        def before_step(self): seen['step'] = grads(self.model)
    cockpit = Cockpit(every=1)
    run(clips, nets, cockpit, Spy(), steps=1)
    norms, cosines = cockpit.norms().set_index(['group', 'part']).norm, cockpit.cosines().set_index(['group', 'pair']).cosine
    assert list(seen) == ['labels', 'kd', 'features', 'step']
    assert torch.allclose(seen['labels'] + seen['kd'] + seen['features'], seen['step'], atol=1e-6)
    for n in ('labels', 'kd', 'features'): assert norms['all', n] == pytest.approx(seen[n].norm().item(), rel=1e-4)
    for a, b in (('labels', 'kd'), ('kd', 'features')): assert cosines['all', f'{a}, {b}'] == pytest.approx(F.cosine_similarity(seen[a], seen[b], 0).item(), abs=1e-4)
    assert ((norms.drop('all')**2).groupby('part').sum()**.5).to_dict() == pytest.approx(norms['all'].to_dict(), rel=1e-5)
    last = layer_groups(nets[2]).keys() - {'conv', 'bn', 'units.0', 'units.1', 'units.2'}
    assert len(last) == 1 and norms[last.pop(), 'features'] == 0                # the map lies before the classifier


def test_steps_that_are_sampled(clips, nets):
    cockpit = Cockpit(every=2)
    run(clips, nets, cockpit, steps=3, epochs=2)
    assert cockpit.norms()[['step', 'epoch']].drop_duplicates().values.tolist() == [[0, 0], [2, 0], [4, 1]]
    off = Cockpit(every=0)
    run(clips, nets, off, steps=1, hard=0.)
    assert off.norms().empty and len(off.weights())
    run(clips, nets, off := Cockpit(every=1), steps=1, hard=0.)
    assert off.norms().part.unique().tolist() == ['kd', 'features']             # labels without weight are not walked


def test_norms_do_not_depend_on_what_comes_later(clips, nets):
    "A scaler's factor is divided out, and accumulation not counted"
    def norms(*cbs):
        cockpit = Cockpit(1)
        run(clips, nets, cockpit, *cbs, steps=1)
        return cockpit.norms().norm.tolist()
    assert norms(GradientAccumulation(48)) == norms()
    once = Amp(); once.scale = 1.
    assert norms(Amp()) == pytest.approx(norms(once), rel=1e-4)


@pytest.mark.parametrize('scheme', ['per-sample', 'fixed', 'cached'])
def test_weights_and_accuracy_by_hand(clips, nets, scheme):
    "The sums of an epoch are those of a loop over what the ensemble left"
    kept = []
    class Keep(Cockpit):
        def after_loss(self): super().after_loss(); t = self.of.teacher; kept.append((getattr(t, 'teacher', t).last, self.learn.y.as_subclass(torch.Tensor).clone()))
    cockpit = Keep(every=0)
    run(clips, nets, cockpit, weights=dict(motion=[.2, .8], colour=[.6, .4]) if scheme == 'fixed' else 'per-sample', cached=scheme == 'cached', slots=2 if scheme == 'cached' else None)
    y = torch.cat([y for _, y in kept])
    z = torch.cat([m.logits for m, _ in kept], 1)
    w = torch.cat([m.weights if m.weights.ndim == 3 else m.weights[:, None].expand(-1, len(y), -1) for m, y in kept], 1)
    table, acc = cockpit.weights().set_index(['head', 'class', 'teacher']), cockpit.accuracy().set_index(['head', 'teacher'])
    for h, (name, cut) in enumerate(dict(motion=slice(0, 5), colour=slice(5, 7)).items()):
        mixture = (w[..., h, None]*z[..., cut]).sum(0)
        assert acc.accuracy[name, 'mixture'] == pytest.approx((mixture.argmax(1) == y[:, h]).float().mean().item())
        for m, teacher in enumerate(('RGB', 'depth')):
            assert table.weight[name, -1, teacher] == pytest.approx(w[m, :, h].mean().item(), abs=1e-5)
            assert acc.accuracy[name, teacher] == pytest.approx((z[m, :, cut].argmax(1) == y[:, h]).float().mean().item())
            for c in y[:, h].unique().tolist():
                assert table.weight[name, c, teacher] == pytest.approx(w[m, y[:, h] == c, h].mean().item(), abs=1e-5)
                assert table.clips[name, c, teacher] == (y[:, h] == c).sum()
    if scheme == 'fixed': assert table.weight['motion', -1, 'depth'] == pytest.approx(.8, abs=1e-5)


def test_clips_without_a_label_do_not_count(clips, nets):
    "A fifth of the motions is unknown (the losses do not count them either)"
    class Forget(Cockpit):
        order = DistillCallback.order - 1
        def before_fit(self): pass
        def before_train(self): pass
        def after_loss(self): pass
        def before_backward(self): pass
        def after_train(self): pass
        def before_batch(self): y = self.learn.yb[0].clone(); y[:, 0][y[:, 0] == 0] = -1; self.learn.yb = (y,)
    cockpit = Cockpit(every=0)
    run(clips, nets, cockpit, Forget(), steps=5)
    n = cockpit.weights()
    n = n[n.teacher == 'RGB'].set_index(['head', 'class']).clips
    assert 0 < n['motion', -1] < n['colour', -1] == 60 and n['motion'].drop(-1).sum() == n['motion', -1] and 0 not in n['motion']
    share = cockpit.accuracy()
    assert share[share['head'] == 'motion'].clips.unique().tolist() == [n['motion', -1]]


def test_other_teachers_and_none(clips):
    "A plain teacher, and no teacher at all: only the gradients"
    seed_all(0)
    dls = clip_dls(clips, ('rgb', 'depth'), ClipSampler(4, crop=40), bs=12, dev='cpu'); dls.train.n = 12
    cockpit, net = Cockpit(1), SmallStream(10, width=4)
    quiet(learner(dls, net, metrics=[], cbs=[DistillCallback(Teacher(SmallStream(10, width=4)), [soft_term()]), cockpit]))
    assert cockpit.weights().empty and cockpit.accuracy().empty and cockpit.norms().part.unique().tolist() == ['labels', 'soft']
    dls = clip_dls(clips, ('rgb',), ClipSampler(4, crop=40), bs=12, dev='cpu'); dls.train.n = 12
    learn = quiet(learner(dls, net, metrics=[], cbs=[cockpit, GradientAccumulation(12)]))
    assert cockpit.norms().part.unique().tolist() == ['labels'] and cockpit.cosines().empty
    kept = cockpit.norms()
    with learn.no_bar(): learn.get_preds(dl=dls.valid)
    assert cockpit.norms().equals(kept)                                         # predicting afterwards does not wipe the record


def test_the_graph_is_let_go(clips, nets):
    learn = run(clips, nets, Cockpit(1))
    assert next(c for c in learn.cbs if isinstance(c, DistillCallback)).parts == {}


def test_layer_groups():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.a, self.b, self.units = nn.Parameter(torch.ones(1)), nn.Linear(2, 2), nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
            self.b.weight = self.a.weight; self.b.bias.requires_grad_(False)
    got = layer_groups(Net())
    assert {k: [p.numel() for p in v] for k, v in got.items()} == {'a': [4, 2], 'units.0': [4, 2], 'own': [1]}
    two = TwoStream(SmallStream(10), SmallStream(10))
    assert sum(p.numel() for g in layer_groups(two).values() for p in g) == sum(p.numel() for p in two.parameters())


def test_refusals(clips, nets):
    refused(lambda: Cockpit(every=-1), 'every=-1', kind=ModelError)
    dls = clip_dls(clips, ('rgb', 'depth'), ClipSampler(4, crop=40), bs=12, dev='cpu')
    two = [DistillCallback(Teacher(SmallStream(10)), [soft_term()]) for _ in range(2)]
    refused(lambda: quiet(learner(dls, SmallStream(10), metrics=[], cbs=[*two, Cockpit()])), '2 DistillCallbacks', kind=ModelError)
    empty = Cockpit()
    refused(lambda: plot_weights(empty.weights()), 'no weights were recorded')
    refused(lambda: plot_gradients(empty.norms(), empty.cosines()), 'no gradients were recorded')
    refused(lambda: plot_what_if(what_if(*said())[:0]), 'no rows')


# leaving one out

def said(n=3, N=240, K=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(N) % K
    return 1.5*torch.randn(n, N, K, generator=g) + torch.tensor([2.5, 1., .3])[:n, None, None]*F.one_hot(y, K), None, y


def pick(t, without, metric): return t[(t.without == without) & (t.metric == metric)].iloc[0]


def test_values_are_those_of_the_mixture():
    "Each row against the other chapters' numbers for a mixture summed by hand"
    z, _, y = said()
    w = torch.tensor([.5, .3, .2])
    t = what_if(z, w, y, names=list('abc'), resamples=50)
    for without, v in (('', w), ('a', torch.tensor([0, .6, .4])), ('b', torch.tensor([5/7, 0, 2/7])), ('c', torch.tensor([.625, .375, 0]))):
        p = Predictions((v[:, None, None]*z).sum(0), y)
        assert pick(t, without, 'accuracy').value == pytest.approx((p.logits.argmax(1) == y).float().mean().item())
        assert pick(t, without, 'nll').value == pytest.approx(nll(p), abs=1e-5) and pick(t, without, 'ece').value == pytest.approx(ece(p), abs=1e-5)
    assert (t.difference == t.value - t.groupby('metric').value.transform('first')).all()


def test_interval_is_that_of_the_gap_chapter():
    "Accuracy: the same standard error as `gap.redraw` for the same clips, alone and in groups"
    z, _, y = said()
    for groups in (None, np.repeat(np.arange(24), 10)):
        row = pick(what_if(z, None, y, groups=groups, resamples=4000), 'teacher 1', 'accuracy')
        right = {k: (v.argmax(1) == y).double().numpy()[None] for k, v in (('all', z.mean(0)), ('less', z[1:].mean(0)))}
        e = redraw(right, groups).contrast({'less': 1, 'all': -1})
        assert row.difference == pytest.approx(e.value) and row.lo == pytest.approx(e.lo, abs=.006) and row.hi == pytest.approx(e.hi, abs=.006)
        assert row.lo < row.difference < row.hi < 0


def test_intervals_hold_the_truth():
    "Nominal 95 %: of 120 small test sets, the interval of the likelihood holds the difference of a very large one in about 95 %"
    z, _, y = said(2, 40_000)
    truth = pick(what_if(z, None, y, resamples=2), 'teacher 2', 'nll').difference
    held = [pick(what_if(z[:, a:a + 100], None, y[a:a + 100], resamples=300), 'teacher 2', 'nll') for a in range(0, 12_000, 100)]
    assert .88 <= np.mean([r.lo <= truth <= r.hi for r in held]) <= .99


def test_two_heads_labels_missing_and_predictions_by_name():
    g = torch.Generator().manual_seed(1)
    z, y = torch.randn(2, 60, 7, generator=g), torch.stack([torch.arange(60) % 5, torch.arange(60) % 2], 1)
    y[:10, 0] = -1
    t = what_if(z, dict(motion=[1, 3], colour=[2, 2]), y, TWO, resamples=50)
    assert t.groupby('head', sort=False).clips.first().to_dict() == dict(motion=50, colour=60)
    alone = what_if(z[:, 10:, :5], [1, 3], y[10:, 0], resamples=50)
    assert t[t['head'] == 'motion'].drop(columns='head').reset_index(drop=True).equals(alone.drop(columns='head'))
    named = {n: Predictions(a, y, tuple(map(str, range(60))), TWO) for n, a in zip(('teacher 1', 'teacher 2'), z)}
    assert what_if(named, dict(motion=[1, 3], colour=[2, 2]), resamples=50).equals(t)
    half = what_if(z/2, dict(motion=[1, 3], colour=[2, 2]), y, TWO, temperatures=[.5, .5], resamples=50)
    assert half.value.tolist() == pytest.approx(t.value.tolist(), abs=1e-6)


def test_losses_in_place_of_weights():
    "Estimated again without a teacher is the same as made to sum to one"
    z, _, y = said()
    losses = [.4, .9, 1.5]
    w = F.softmin(torch.tensor(losses)/.7, 0)
    a, b = what_if(z, None, y, losses=dict(action=losses), gamma=.7, resamples=50), what_if(z, w, y, resamples=50)
    assert a.value.tolist() == pytest.approx(b.value.tolist(), abs=1e-6)
    again = F.softmin(torch.tensor(losses[1:])/.7, 0)
    assert pick(a, 'teacher 1', 'nll').value == pytest.approx(nll(Predictions((again[:, None, None]*z[1:]).sum(0), y)), abs=1e-5)


def test_what_if_refuses():
    z, _, y = said()
    refused(lambda: what_if(z), 'without labels', kind=ModelError)
    refused(lambda: what_if(z[:1], None, y), '1 teacher', kind=ModelError)
    refused(lambda: what_if(z, [0, 1, 0], y), 'without teacher 2 no weight is left', kind=ModelError)
    refused(lambda: what_if(z, [1, 1, 1], y, losses=dict(action=[1, 1, 1])), 'both weights and losses', kind=ModelError)
    refused(lambda: what_if(z, 'per-sample', y), 'per-sample', kind=ModelError)
    refused(lambda: what_if(z, None, y, names=['a', 'a', 'b']), 'a different one for each', kind=ModelError)
    refused(lambda: what_if(z, None, y, groups=['one']*240), '1 group', kind=DataError)


# pictures

def test_pictures_hold_the_numbers(clips, nets):
    cockpit = Cockpit(every=1)
    run(clips, nets, cockpit, steps=2, epochs=2)
    w, norms, cosines = cockpit.weights(), cockpit.norms(), cockpit.cosines()
    lines = [line for ax in plot_weights(w).axes for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() != 'None']
    traces = weights_figure(w).data
    assert len(lines) == len(traces) == 4
    for line, trace in zip(lines, traces): assert list(line.get_ydata()) == list(trace.y)
    table = w[(w.epoch == 0) & (w['class'] >= 0) & (w['head'] == 'colour')].pivot(index='teacher', columns='class', values='weight').loc[['RGB', 'depth']]
    assert np.allclose(plot_class_weights(w, 0).axes[1].images[0].get_array(), table) and np.allclose(class_weights_figure(w, 0).data[1].z, table)
    refused(lambda: plot_class_weights(w, 7), 'epoch 7', kind=DataError)
    fig, twin = plot_gradients(norms, cosines, ['all']), gradients_figure(norms, cosines, ['all'])
    drawn = [line for ax in fig.axes for line in ax.lines if line.get_marker() != 'None']
    assert [list(line.get_ydata()) for line in drawn] == [list(d.y) for d in twin.data] and len(drawn) == 6
    assert list(twin.data[0].y) == norms[(norms.group == 'all') & (norms.part == 'labels')].norm.tolist()
    refused(lambda: plot_gradients(norms, cosines, ['layer9']), "'layer9'", kind=DataError)
    z, _, y = said()
    t = what_if(z, None, y, resamples=50)
    bars, twin = plot_what_if(t).axes, what_if_figure(t).data
    for ax, bar, factor, metric in zip(bars, twin, (100, 1, 100), ('accuracy', 'nll', 'ece')):
        want = factor*t[(t.metric == metric) & (t.without != '')].difference
        assert [p.get_width() for p in ax.patches] == pytest.approx(want.tolist()) == list(bar.x)
