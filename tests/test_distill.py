"""The distillation callback and the recipe: what must hold whatever is learned."""
import copy
import json
import signal as signals
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch import nn

from conftest import refused
from moddist import synthetic
from moddist.core import ModelError, read_json, seed_all
from moddist.data import ClipSampler, clip_dls
from moddist.distill import DistillCallback, Outputs, Teacher, Term, feature_term, fit, learner, linear_rate, soft_term
from moddist.losses import cross_entropy, hallucination_loss, kd_loss
from moddist.models import ResNetStream, SmallStream, TwoStream, capture
from moddist.recipes import PRESETS, Garcia2018, garcia2018, run
from moddist.runs import index_hash

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "A small embedded set: two people to train, one to validate, one to test"
    return synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=5, train=2, valid=1, test=1, skeletons=False))


def dls_of(df, *names, bs=12): return clip_dls(df, names, ClipSampler(8, crop=48, flip=.5), bs=bs, dev='cpu')
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def quiet(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, **kwargs)
    return learn


@pytest.fixture
def nets():
    seed_all(0)
    teacher = SmallStream(10)
    return teacher, SmallStream(10)


TERMS = dict(paper=[soft_term(.25), feature_term('unit3', .005)],
             ours=[soft_term(.25, t2=True), feature_term('unit3', 2.5, standardize=True)],
             two_taps=[soft_term(.5, tau=2), feature_term('unit2', .001), Term('mid', .1, lambda s, t, y: (s.maps['unit1'] - t.maps['unit1']).square().mean(), ('unit1',))])


@pytest.mark.parametrize('kind', TERMS)
def test_weights_equal_a_plain_loop(clips, nets, kind):
    "After k steps the student's weights are those of a hand-written loop, to 1e-6: loss_grad was changed, not only the log"
    teacher, student = nets
    terms, hard, k = TERMS[kind], .25, 3
    taps = sorted({n for t in terms for n in t.taps})
    seed_all(1)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 12*k
    learn = learner(dls, copy.deepcopy(student), cbs=[DistillCallback(Teacher(teacher), terms, hard=hard)])
    quiet(learn)

    seed_all(1)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 12*k
    model, frozen = copy.deepcopy(student).train(), copy.deepcopy(teacher).eval()
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=.02)
    for x, d, y in dls.train:
        with torch.no_grad(), capture(frozen, taps) as t: zt = frozen(d)
        with capture(model, taps, detach=False) as s:
            zs = model(x)
            loss = hard*cross_entropy(zs, y) + sum(term.weight*term.fn(Outputs(zs, s.maps), Outputs(zt, t.maps), y) for term in terms)
        opt.zero_grad(); loss.backward(); opt.step()
    assert (weights(learn.model) - weights(model)).abs().max() < 1e-6
    assert (weights(learn.model) - weights(student)).abs().max() > 1e-3


def test_log_and_gradient_are_the_same_loss(clips, nets):
    "learn.loss, learn.loss_grad and the sum of the logged terms agree in every step"
    teacher, student = nets
    terms, seen = TERMS['ours'], []

    class Watch(Callback):
        order = 90
        def after_loss(self):
            plain = cross_entropy(self.learn.pred, self.y)
            total = .25*plain + sum(t.weight*self.learn.distill.values[t.name] for t in terms)
            seen.append((self.learn.loss.item(), self.learn.loss_grad.item(), total.item(), self.training))

    quiet(learner(dls_of(clips, 'rgb', 'depth'), student, cbs=[DistillCallback(Teacher(teacher), terms, hard=.25), Watch()]))
    assert {t for *_, t in seen} == {True, False}
    for a, b, c, _ in seen: assert a == pytest.approx(b, rel=1e-5) == pytest.approx(c, rel=1e-4)


def test_every_term_is_a_column_and_only_during_the_fit(clips, nets):
    teacher, student = nets
    learn = learner(dls_of(clips, 'rgb', 'depth'), student, cbs=[DistillCallback(Teacher(teacher), TERMS['ours'])])
    quiet(learn)
    assert learn.recorder.metric_names[:6] == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'soft', 'features']
    assert all(v > 0 for v in learn.recorder.values[-1][3:])
    assert [m.name for m in learn.metrics] == ['accuracy']
    quiet(learn)
    assert len(learn.recorder.metric_names) == 7
    assert not [h for m in learn.model.modules() for h in m._forward_hooks]


@pytest.mark.golden(18)
def test_teacher_is_frozen(clips, nets):
    "No gradient, bit-identical weights and batch-norm statistics, same answer to a fixed input after training"
    teacher, student = nets
    frozen = Teacher(teacher)
    dls = dls_of(clips, 'rgb', 'depth')
    before, probe = state(frozen), dls.one_batch()[1]
    answer = frozen(probe)
    learn = quiet(learner(dls, student, cbs=[DistillCallback(frozen, TERMS['ours'])]), 2)
    assert same(before, frozen.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    learn.model.train()
    assert torch.equal(frozen.train()(probe), answer)
    assert not any(m.training for m in frozen.modules())
    assert {id(p) for p in frozen.parameters()}.isdisjoint(id(p) for g in learn.opt.param_groups for p in g['params'])


def test_teacher_is_a_copy(nets):
    "Training the original afterwards does not change the teacher"
    teacher, _ = nets
    frozen = Teacher(teacher)
    before = state(frozen)
    with torch.no_grad(): [p.add_(1) for p in teacher.parameters()]
    assert same(before, frozen.state_dict())
    assert all(p.requires_grad for p in teacher.parameters())


def test_student_never_sees_the_privileged_signal(clips, nets):
    teacher, student = nets
    seen = []
    class Spy(nn.Module):
        def __init__(self): super().__init__(); self.net = student
        def forward(self, *xs): seen.append(len(xs)); return self.net(*xs)
    quiet(learner(dls_of(clips, 'rgb', 'depth'), Spy(), cbs=[DistillCallback(Teacher(teacher), [soft_term()])]))
    assert set(seen) == {1}


@pytest.mark.golden(19, 20)
def test_student_starts_as_its_teacher(clips, nets):
    "Step 3 copies everything, the classifier too; on the same input features and scores agree exactly"
    teacher, _ = nets
    c = Garcia2018(epochs=1)
    step = next(s for s in garcia2018(c) if s.name == 'hallucination')
    both = TwoStream(SmallStream(10), SmallStream(10))
    learn = step.build({'depth': teacher, 'rgb+depth': both}, dls_of(clips, 'rgb', 'depth'))
    assert same(learn.model.state_dict(), teacher.state_dict()) and learn.model is not teacher
    x = torch.randn(2, 3, 8, 48, 48)
    a, b = copy.deepcopy(learn.model).eval(), teacher.eval()
    with torch.no_grad(), capture(a) as s, capture(b) as t: za, zb = a(x), b(x)
    assert hallucination_loss(s.maps['unit3'], t.maps['unit3']) == 0 and kd_loss(za, zb, 10).abs() < 1e-6
    learn = [s for s in garcia2018(replace(c, teacher_step=2)) if s.name == 'hallucination'][0].build({'depth': teacher, 'rgb+depth': both}, dls_of(clips, 'rgb', 'depth'))
    assert same(learn.model.state_dict(), both.inject.state_dict())


@pytest.mark.golden(21, 22)
def test_step_4_reads_no_depth_and_trains_both_streams(clips, tmp_path):
    "With depth files that do not exist step 4 gives the same weights; both streams move"
    seed_all(0)
    models = {'rgb': SmallStream(10), 'hallucination': SmallStream(10)}
    step = next(s for s in garcia2018(Garcia2018(epochs=1)) if s.name == 'rgb+hallucination')
    assert step.reads == step.test == ('rgb',)
    after = []
    for df in (clips, clips.assign(depth='/nowhere')):
        seed_all(3)
        learn = fit(_silent(step.build(models, dls_of(df, *step.reads))), 1)
        after.append(state(learn.model))
    assert same(*after)
    for part in ('main', 'inject'):
        start = models['rgb' if part == 'main' else 'hallucination'].state_dict()
        moved = [k for k, v in start.items() if not torch.equal(v, after[0][f'{part}.{k}'])]
        assert len(moved) > .9*len(start)


def _silent(learn):
    "A learner that neither prints nor draws"
    from fastai.callback.progress import ProgressCallback
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda *_: None
    return learn


@pytest.mark.golden(23)
def test_released_code_preset_has_a_constant_rate_and_no_decay(clips):
    c = PRESETS['released-code']
    assert (c.wd, c.warmup, c.lr, c.bs, c.clip_len, c.hard, c.soft, c.features, c.tau, c.t2, c.connection) == (0, 0, 1e-3, 5, 5, .25, .25, .005, 10, False, 'none')
    rates = []
    class Rate(Callback):
        def after_step(self): rates.append((self.opt.hypers[-1]['lr'], self.opt.hypers[-1]['wd']))
    fit(_silent(learner(dls_of(clips, 'rgb'), SmallStream(10), lr=c.lr, wd=c.wd, cbs=[Rate()])), 2, c.warmup)
    assert set(rates) == {(1e-3, 0.)}


def test_warm_up_and_cosine(clips):
    rates = []
    class Rate(Callback):
        def before_step(self): rates.append(self.opt.hypers[-1]['lr'])
    fit(_silent(learner(dls_of(clips, 'rgb'), SmallStream(10), cbs=[Rate()])), 6)
    top = rates.index(max(rates))
    assert .0038 < max(rates) <= .004 and top <= len(rates)//6
    assert rates[:top + 1] == sorted(rates[:top + 1]) and rates[top:] == sorted(rates[top:], reverse=True) and rates[-1] < 4e-4


def test_fact_19_linear_rate():
    "lr(0)=0, lr(warm-up end)=peak, lr(total)=0, linear in between; 168,913 clips in batches of 16, 30 epochs of which 3 warm up"
    per_epoch = 168_913//16
    warm, total = 3*per_epoch, 30*per_epoch
    assert (per_epoch, warm, total) == (10_557, 31_671, 316_710)
    assert [linear_rate(s, warm, total) for s in (0, warm, total, total + 29)] == [0, 1, 0, 0]       # 30 steps too many run at 0
    for a, b in ((0, warm), (warm, total)):
        ends = linear_rate(a, warm, total), linear_rate(b, warm, total)
        for share in (.25, .5, .9): assert linear_rate(a + share*(b - a), warm, total) == pytest.approx(ends[0] + share*(ends[1] - ends[0]), abs=1e-9)
    assert linear_rate(0, 0, 10) == 1 and linear_rate(10, 10, 10) == 0
    assert linear_rate(.1, .1, 1.) == 1


def test_linear_decay_in_a_fit(clips):
    "Each step has the rate of the released code's scheduler, which was stepped once per step"
    rates = []
    class Rate(Callback):
        def before_step(self): rates.append(self.opt.hypers[-1]['lr'])
    learn = learner(dls_of(clips, 'rgb'), SmallStream(10), lr=1e-3, cbs=[Rate()])
    fit(_silent(learn), 3, warmup=1/3, decay='linear')
    n = len(rates)
    assert n == 3*len(learn.dls.train)
    net = nn.Linear(1, 1)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
    other = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: k/(n//3) if k < n//3 else max(0., (n - k)/(n - n//3)))
    for r in rates:
        assert r == pytest.approx(other.get_last_lr()[0], abs=1e-9)
        opt.step(); other.step()
    assert rates[0] == 0


def test_unknown_decay_is_refused(clips):
    refused(lambda: fit(learner(dls_of(clips, 'rgb'), SmallStream(10)), 1, decay='step'), 'step', 'cosine', 'linear', kind=ModelError)


def test_gradient_norm_is_bounded(clips):
    "With `clip` the whole gradient is scaled to that norm where it is longer, as torch does it; without it is left alone"
    norms = {}
    class Norm(Callback):
        order = 90
        def before_step(self): norms.setdefault(self.key, []).append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm().item())
    for clip in (None, 1e9, .05):
        seed_all(4)
        watch = Norm(); watch.key = clip
        fit(_silent(learner(dls_of(clips, 'rgb'), SmallStream(10), cbs=[watch])), 1, clip=clip)
    assert norms[None] == norms[1e9] and min(norms[None]) > .05
    assert norms[.05] == pytest.approx([.05]*len(norms[None]), rel=1e-4)


def test_teacher_is_asked_with_the_labels_of_the_batch(clips, nets):
    "`teach` gets the teacher's inputs, the labels, and the callback; what it returns is what the terms see"
    teacher, student = nets
    seen = []
    class Oracle(Teacher):
        def teach(self, xs, y, cb):
            seen.append((len(xs), y.shape, cb.training, cb.learn.model is student))
            return 9.*torch.nn.functional.one_hot(y.long().as_subclass(torch.Tensor), 10)
    says = Term('right', 1., lambda s, t, y: (t.logits.argmax(1) != y).float().mean() + 0*s.logits.sum())
    learn = quiet(learner(dls_of(clips, 'rgb', 'depth'), student, cbs=[DistillCallback(Oracle(teacher), [says])]))
    assert learn.recorder.values[-1][-1] == 0
    assert {n for n, *_ in seen} == {1} and {t for _, _, t, _ in seen} == {True, False} and all(same for *_, same in seen)


def test_learner_takes_another_loss_and_other_metrics(clips):
    def twice(z, y): return 2*cross_entropy(z, y)
    def always_three(z, y): return torch.tensor(3.)
    seed_all(0)
    learn = quiet(learner(dls_of(clips, 'rgb'), SmallStream(10), loss=twice, metrics=[always_three]))
    seed_all(0)
    plain = quiet(learner(dls_of(clips, 'rgb'), SmallStream(10)))
    assert learn.recorder.values[0][2] == 3 and learn.recorder.metric_names[3] == 'always_three'
    with learn.no_bar(): assert learn.validate()[0] == pytest.approx(2*cross_entropy(*learn.get_preds()).item(), rel=1e-5)
    assert plain.recorder.metric_names[3] == 'accuracy'


def test_gradient_accumulation_scales_the_terms_too(clips, nets):
    "Two accumulated batches give the mean gradient of the whole loss, terms included"
    teacher, student = nets
    seed_all(2)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 24
    learn = learner(dls, copy.deepcopy(student), cbs=[GradientAccumulation(24), DistillCallback(Teacher(teacher), TERMS['ours'], hard=.25)])
    grads = []
    class Keep(Callback):
        order = 90
        def before_step(self): grads.append([p.grad.clone() for p in self.model.parameters()])
    quiet(learn, cbs=[Keep()])

    seed_all(2)
    dls = dls_of(clips, 'rgb', 'depth'); dls.train.n = 24
    model, frozen = copy.deepcopy(student).train(), copy.deepcopy(teacher).eval()
    for x, d, y in dls.train:
        with torch.no_grad(), capture(frozen, 'unit3') as t: zt = frozen(d)
        with capture(model, 'unit3', detach=False) as s:
            zs = model(x)
            loss = .25*cross_entropy(zs, y) + .25*kd_loss(zs, zt, 10) + 2.5*hallucination_loss(s.maps['unit3'], t.maps['unit3'], standardize=True)
        (loss/2).backward()
    assert len(grads) == 1
    for g, p in zip(grads[0], model.parameters()): assert torch.allclose(g, p.grad, atol=1e-6)


def test_interrupted_fit_leaves_no_hook(clips, nets):
    teacher, student = nets
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    cb = DistillCallback(Teacher(teacher), TERMS['ours'])
    learn = learner(dls_of(clips, 'rgb', 'depth'), student, cbs=[cb])
    with pytest.raises(KeyboardInterrupt): quiet(learn, cbs=[Stop()])
    quiet(learn)                                              # the next fit starts clean
    assert not [h for m in learn.model.modules() for h in m._forward_hooks]
    assert [m.name for m in learn.metrics].count('soft') <= 1


def test_validate_and_predict_outside_a_fit(clips, nets):
    "The callback then only hands the student its own input"
    teacher, student = nets
    learn = learner(dls_of(clips, 'rgb', 'depth'), student, cbs=[DistillCallback(Teacher(teacher), TERMS['ours'])])
    with learn.no_bar(): assert 0 <= learn.validate()[-1] <= 1
    quiet(learn)
    with learn.no_bar(): assert 0 <= learn.validate()[-1] <= 1
    assert learn.distill.live is False


@pytest.mark.parametrize('weights_, bad', [([.5, .5], 'one weight'), ([-1.], 'one weight'), ([0.], 'one weight')])
def test_teacher_refuses_bad_weights(nets, weights_, bad):
    with pytest.raises(ModelError, match=bad): Teacher(nets[0], weights=weights_)


def test_ensemble_sums_logits_before_the_softmax(nets):
    a, b = (n.eval() for n in nets)
    x, y = torch.randn(2, 3, 8, 48, 48), torch.randn(2, 3, 8, 48, 48)
    with torch.no_grad(): want = .25*a(x) + .75*b(y)
    assert torch.allclose(Teacher(a, b, weights=[1, 3])(x, y), want, atol=1e-6)


def test_resnet_hallucination_step(clips):
    "The same callback on a torchvision backbone"
    seed_all(0)
    teacher = ResNetStream('resnet18', 10)
    dls = clip_dls(clips, ('rgb', 'depth'), ClipSampler(2, crop=48), bs=4, dev='cpu'); dls.train.n = 4; dls.valid.n = 4
    learn = quiet(learner(dls, copy.deepcopy(teacher), cbs=[DistillCallback(Teacher(teacher), [soft_term(), feature_term('layer4')], hard=.25)]))
    assert learn.recorder.values[-1][-1] > 0


# the recipe

SMALL = Garcia2018(epochs=1, long=1., distil=1.)


def test_killed_run_resumes_at_the_interrupted_step(clips, tmp_path):
    "SIGKILL in the middle; a second call ends with the weights of a run that was never killed"
    clips.to_pickle(tmp_path/'index.pkl')
    code = ('import sys, pandas as pd, torch; torch.set_num_threads(1)\nfrom moddist.recipes import Garcia2018, run\n'
            'run(pd.read_pickle(sys.argv[1]), sys.argv[2], Garcia2018(epochs=1, long=1., distil=1.), only=["hallucination"])')
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    reference = run(clips, whole, SMALL, only=['hallucination'])
    child = subprocess.Popen([sys.executable, '-c', code, tmp_path/'index.pkl', killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.time() + 120
    while not (killed/'rgb'/'record.json').is_file() and time.time() < until and child.poll() is None: time.sleep(.02)
    child.send_signal(signals.SIGKILL); child.wait()
    done = {p.parent.name for p in killed.glob('*/record.json')}
    assert 'rgb' in done and 'hallucination' not in done
    made = (killed/'rgb'/'model.safetensors').stat().st_mtime_ns
    again = run(clips, killed, SMALL, only=['hallucination'])
    assert (killed/'rgb'/'model.safetensors').stat().st_mtime_ns == made
    assert all(same(again[n].state_dict(), reference[n].state_dict()) for n in reference)
    assert not list(killed.rglob('.partial-*')) or 'rgb' in done


def test_steps_do_not_depend_on_what_ran_before(clips, tmp_path):
    "A step alone gives the weights it has in a longer run"
    one = run(clips, tmp_path/'a', SMALL, only=['depth'])
    more = run(clips, tmp_path/'b', SMALL, only=['rgb', 'depth'])
    assert same(one['depth'].state_dict(), more['depth'].state_dict())


def test_record_says_what_was_done(clips, tmp_path):
    models = run(clips, tmp_path/'r', SMALL, only=['rgb'])
    r = read_json(tmp_path/'r'/'rgb'/'record.json')
    assert r['params'] == sum(p.numel() for p in models['rgb'].parameters()) == 93_330
    assert set(r['environment']) >= {'moddist', 'torch', 'python'} and r['seconds'] > 0 and len(r['history']) == 1
    info = read_json(tmp_path/'r'/'run.json')
    assert info['index'] == index_hash(clips) and info['settings'] == json.loads(json.dumps(asdict(SMALL)))


def test_the_test_split_is_not_read(clips, tmp_path):
    "Training works, and gives the same, when the files of the test split do not exist"
    gone = clips.copy()
    gone.loc[gone.split == 'test', ['rgb', 'depth']] = '/nowhere'
    a, b = run(clips, tmp_path/'a', SMALL, only=['rgb+depth']), run(gone, tmp_path/'b', SMALL, only=['rgb+depth'])
    assert same(a['rgb+depth'].state_dict(), b['rgb+depth'].state_dict())


def test_another_index_is_refused(clips, tmp_path):
    run(clips, tmp_path/'r', SMALL, only=['rgb'])
    with pytest.raises(ModelError, match='another the clip index'): run(clips[clips.camera != 1], tmp_path/'r', SMALL, only=['rgb'])


def test_baseline_has_at_least_the_methods_parameters_and_budget():
    steps = {s.name: s for s in garcia2018(Garcia2018())}
    lineage = sum(steps[n].epochs for n in ('depth', 'rgb+depth', 'hallucination', 'rgb+hallucination'))
    assert steps['rgb-long'].epochs >= lineage and steps['rgb-long-2'].epochs >= lineage
    assert all('depth' not in s.test for s in steps.values() if s.name in ('rgb+rgb', 'hallucination', 'rgb+hallucination', 'student'))


def test_any_pair_of_signals(clips, tmp_path):
    "The privileged signal may be a second view; nothing knows the word depth"
    df = clips.rename(columns={'depth': 'unused'}).assign(view2=clips.rgb)
    c = replace(SMALL, teacher='view2:rgb')
    models = run(df, tmp_path/'r', c, only=['rgb+hallucination'])
    assert set(models) == {'rgb', 'view2', 'rgb+view2', 'hallucination', 'rgb+hallucination'}


def test_any_backbone_with_taps(clips, tmp_path):
    "A 3-D network imitates another at its last tap; the run can be opened again"
    few = clips[(clips.camera == 1)]
    c = replace(SMALL, stream='r3d_18', bs=4, crop=32, size=32)
    models = run(few, tmp_path/'r', c, only=['hallucination'])
    assert type(models['hallucination']).__name__ == 'VideoStream'
    again = run(few, tmp_path/'r', c, only=['hallucination'])
    assert same(again['hallucination'].state_dict(), models['hallucination'].state_dict())
    assert any('features' in h for h in read_json(tmp_path/'r'/'hallucination'/'record.json')['history'])
