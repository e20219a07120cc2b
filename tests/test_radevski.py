"Students of several teachers: what is held out, what is learned, what is written, what survives a kill, and what precision and accumulation change"
import os
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from conftest import killed, real_data, refused
from moddist import store, synthetic
from moddist.core import ModelError, read_json, seed_all
from moddist.data import clip_dls, test_dl
from moddist.derive import derive
from moddist.distill import DistillCallback, fit, learner
from moddist.ensemble import Ensemble, kd_term, softmin
from moddist.evaluate import evaluate_run, predict
from moddist.gap import gap_run
from moddist.inputs import JitterRGB
from moddist.models import SmallStream, Stream, load_model
from moddist.radevski import PRESETS, Accumulate, Bfloat16, OneSignal, Radevski2023, economy, hold_out, radevski2023, renew_statistics, run, stream_for
from moddist.runs import loaders, reading, run_info

torch.set_num_threads(1)
TINY = dict({'class': 'SmallStream'}, width=4)
C = Radevski2023(epochs=2, student_epochs=3, bs=10, crop=32, weighting='held-out', group='', streams=dict(rgb=TINY, depth=TINY))
ALL = ['rgb-teacher', 'depth-teacher', 'ensemble', 'student', 'baseline', 'baseline-long', 'omnivore']


class Plain(Stream):
    "A convolution and a mean, without batch norm or dropout"
    def __init__(self, num_classes, width=6):
        super().__init__(dict(num_classes=num_classes, width=width), width, [], [])
        self.conv = nn.Conv3d(3, width, (3, 4, 4), (1, 4, 4), (1, 0, 0))
    def forward_maps(self, x, gates=None, connection=None): return self.conv(x).relu(), []


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    return synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', train=2, valid=1, test=1))


@pytest.fixture(scope='module')
def whole(clips, tmp_path_factory):
    "A run with all steps: (folder, models, steps by name)"
    out = tmp_path_factory.mktemp('whole')
    return out, run(clips, out, C), {s.name: s for s in radevski2023(C)}


def record(out, name): return read_json(out/name/'record.json')
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---------------------------------------------------------------- settings

def test_defaults_are_those_of_the_released_code():
    c = Radevski2023()
    assert (c.lambda_kd, c.lambda_gt, c.tau, c.gamma, c.weighting, c.calibrate, c.held_out, c.clip) == (1., 0., 1., 1., 'uniform', False, 0., 5.)
    p = PRESETS['released-code']
    assert (p.lr, p.wd, p.student_epochs, p.warmup*p.student_epochs, p.bs, p.clip_len, p.sampling, p.streams['rgb']) == (1e-4, 1e-4, 20, 2., 12, 16, 'middle', 'swin3d_t')


@pytest.mark.parametrize('wrong, word', [(dict(weighting='best'), 'per-sample'), (dict(teachers=()), 'one signal or more'), (dict(teachers=('rgb', 'rgb:ir')), 'each once'), (dict(held_out=1.), 'below 1'),
                                         (dict(calibrate=True, held_out=0.), 'above 0'), (dict(precision='fp8'), 'bf16'), (dict(accumulate=0), 'at least 1'), (dict(lambda_kd=0.), 'nobody teaches'),
                                         (dict(cached=True, jitter=False), 'slots=4'), (dict(cached=True, slots=4), 'teacher of rgb'), (dict(cached=True, slots=4, teachers=('depth', 'view2:rgb')), 'teacher of view2:rgb')])
def test_settings_that_make_no_sense(wrong, word): refused(lambda: Radevski2023(**wrong), word, kind=ModelError)


def test_steps_that_make_no_sense():
    refused(lambda: radevski2023(Radevski2023(student='view2:rgb', teachers=('view2:depth',))), 'two names', kind=ModelError)
    refused(lambda: radevski2023(Radevski2023(student='ir', own_teacher=True)), 'not among the teachers', kind=ModelError)


def test_every_learner_has_the_budget_it_says():
    steps = {s.name: s for s in radevski2023(Radevski2023(teachers=('rgb', 'flow', 'depth'), epochs=7, student_epochs=5, own_teacher=True))}
    assert {n: s.epochs for n, s in steps.items()} == {'rgb-teacher': 7, 'flow-teacher': 7, 'depth-teacher': 7, 'ensemble': 0, 'student': 5, 'student-of-rgb': 5, 'baseline': 5, 'baseline-long': 26, 'omnivore': 15}
    assert all(s.test == ('rgb',) for n, s in steps.items() if n.startswith(('student', 'baseline', 'omnivore')))
    assert [s.name for s in radevski2023(Radevski2023(student='depth', teachers=('depth', 'skeleton', 'inertial')))][-1] == 'baseline-long'  # one picture only: no omnivore


# ---------------------------------------------------------------- what is held out

def people(n, per=6): return pd.DataFrame([dict(clip_id=f'p{p}c{i}', label=i % 3, subject=p, split='train') for p in range(n) for i in range(per)] + [dict(clip_id='v', label=0, subject=99, split='valid'), dict(clip_id='t', label=0, subject=98, split='test')])


def test_whole_groups_are_held_out():
    df = people(10)
    for seed in range(8):
        held = hold_out(df, .2, seed=seed).query('split == "held-out"')
        assert held.subject.nunique() == 2 and len(held) == 12
    assert len({tuple(hold_out(df, .2, seed=s).query('split == "held-out"').subject.unique()) for s in range(8)}) > 3
    again = [hold_out(d, .2, seed=1).sort_values('clip_id').split.tolist() for d in (df, df[::-1])]
    assert again[0] == again[1]                                                                          # whatever the order of the index
    assert hold_out(df, .2).query('split in ["valid", "test"]').clip_id.tolist() == ['v', 't']
    assert (hold_out(df, 0.).split == df.split).all() and (hold_out(df, 0., group='').split == df.split).all()


def test_single_clips_are_held_out_of_every_class():
    held = hold_out(people(10), .25, group='no such column').query('split == "held-out"')
    assert held.label.value_counts().to_dict() == {0: 5, 1: 5, 2: 5} and held.subject.nunique() > 4


def test_no_class_loses_its_only_clips():
    "A long tail in two heads: what only the held-out people show stays in training, the rest of their clips is held out"
    refused(lambda: hold_out(people(1), .2), 'nobody is left', 'group=""')
    only = people(4).assign(label=lambda d: (d.subject == 2).astype(int))
    seed = next(s for s in range(50) if 2 in set(hold_out(people(4), .25, seed=s).query('split == "held-out"').subject))
    refused(lambda: hold_out(only, .25, seed=seed), 'holds none out without losing a class')
    tail = people(10).assign(verb=lambda d: d.label.mask(d.clip_id.isin(['p0c0', 'p3c1']), 7), noun=lambda d: [f'{p}' if k == 5 else 'cup' for p, k in zip(d.subject, d.groupby('subject').cumcount())])
    for group in ('subject', ''):
        d = hold_out(tail, .3, group, labels=('verb', 'noun'))
        held, train = d[d.split == 'held-out'], d[d.split == 'train']
        assert set(train.verb) == {0, 1, 2, 7} and len(set(train.noun)) == 11 and 10 <= len(held) <= 18
        assert group == '' or all(len(g) in (4, 5) for _, g in held.groupby('subject')) and held.subject.nunique() == 3


def test_teachers_never_see_held_out_clips_and_the_student_sees_all(clips, whole):
    out, _, steps = whole
    held = record(out, 'rgb-teacher')['keep']['held_out']
    assert len(held) == 10 and record(out, 'depth-teacher')['keep']['held_out'] == held
    ids = lambda dl: [r['clip_id'] for r in dl.dataset.items]
    train = set(clips.clip_id[clips.split == 'train'])
    assert set(ids(steps['rgb-teacher'].loaders(clips).train)) == train - set(held)
    assert set(ids(steps['rgb-teacher'].loaders(clips).valid)) == set(clips.clip_id[clips.split == 'valid'])
    assert sorted(ids(steps['ensemble'].loaders(clips).valid)) == sorted(held)
    assert steps['student'].loaders is None and set(ids(loaders(C, clips, ('rgb',)).train)) == train


# ---------------------------------------------------------------- a whole run

def test_a_run_leaves_what_it_should(clips, whole):
    out, models, _ = whole
    assert list(models) == ALL and run_info(out)['recipe'] == 'radevski2023' and reading(out).student == 'rgb'
    for n in ALL: assert not [w for w in record(out, n)['warnings'] if 'changed' in w or 'sum to one' in w or 'finite' in w], n
    assert {n: record(out, n)['keep'].get('role') for n in ALL if 'role' in record(out, n)['keep']} == dict(ensemble='teacher', student='student', baseline='baseline') | {'baseline-long': 'control'}
    assert 'kd' in record(out, 'student')['history'][0] and 'kd' not in record(out, 'baseline')['history'][0]
    assert set(record(out, 'ensemble')['keep']['valid']) == {'rgb', 'depth', 'ensemble'}
    assert record(out, 'student')['params'] == record(out, 'baseline')['params'] == record(out, 'omnivore')['params']
    assert run_info(out)['settings']['precision'] == 'fp32'


def test_weights_follow_from_the_losses_on_held_out_clips(clips, whole):
    "Recomputed here from the stored models and the stored names"
    out, models, _ = whole
    keep = record(out, 'ensemble')['keep']
    part = clips[clips.clip_id.isin(record(out, 'rgb-teacher')['keep']['held_out'])]
    losses = []
    for k in ('rgb', 'depth'):
        p = predict(models[f'{k}-teacher'], test_dl(loaders(C, clips, (k,)), part))
        losses.append(nn.functional.cross_entropy(p.logits, p.labels).item())
    assert keep['losses']['action'] == pytest.approx(losses, abs=1e-4) and keep['n'] == len(part) == 10
    w = softmin(torch.tensor(losses), C.gamma).tolist()
    assert keep['weights']['action'] == pytest.approx(w, abs=1e-4) and sum(keep['weights']['action']) == pytest.approx(1., abs=1e-6)
    assert models['ensemble'].ensemble.weights[:, 0].tolist() == pytest.approx(w, abs=1e-4)


def test_the_ensemble_is_a_file_like_any_other(clips, whole):
    out, models, _ = whole
    again, test = load_model(out/'ensemble'/'model.safetensors'), clips[clips.split == 'test']
    z = {k: predict(models[f'{k}-teacher'], test_dl(loaders(C, clips, (k,)), test)).logits for k in ('rgb', 'depth')}
    p = predict(again, test_dl(loaders(C, clips, ('rgb', 'depth')), test))
    a, b = again.ensemble.weights[:, 0].tolist()
    assert torch.allclose(p.logits, a*z['rgb'] + b*z['depth'], atol=1e-5)


def test_the_table_and_the_gap_report_take_the_run(clips, whole):
    out, _, _ = whole
    rows = {r['name']: r for r in evaluate_run(out, clips)}
    assert set(rows) == set(ALL) and rows['ensemble']['test_input'] == 'rgb+depth' and rows['student']['test_input'] == rows['omnivore']['test_input'] == 'rgb'
    assert all(r['n'] == 30 and 0 <= r['ece'] <= 1 for r in rows.values())
    report = gap_run(out, clips, resamples=200)
    m = report.models.set_index('role')
    assert m['name'].to_dict() == dict(baseline='baseline', control='baseline-long', teacher='ensemble', student='student')
    assert [m.top1[r] for r in ('baseline', 'student')] == pytest.approx([rows[n]['top1'] for n in ('baseline', 'student')], abs=1e-4)
    assert m.epochs.to_dict() == dict(baseline=3, control=7, teacher=2, student=5)                       # along the longest lineage
    assert 'WORSE' in report.headline or 'BEATS' in report.headline or 'NO DIFFERENCE' in report.headline


def test_a_gap_report_without_a_baseline_says_so(clips, whole, tmp_path):
    out, _, _ = whole
    run(clips, tmp_path/'r', replace(C, epochs=1, student_epochs=1), only=['rgb-teacher'])
    refused(lambda: gap_run(tmp_path/'r', clips), 'no single privileged signal')                        # nothing says its role yet
    (tmp_path/'r'/'rgb-teacher'/'record.json').write_text((out/'student'/'record.json').read_text())
    refused(lambda: gap_run(tmp_path/'r', clips), 'baseline', 'name the step')


def test_student_and_baseline_start_alike_and_read_alike(clips, whole):
    _, models, steps = whole
    def first(name):
        seed_all(sum(map(ord, name)))                                                                    # whatever happened before
        learn = steps[name].build(models, loaders(C, clips, steps[name].reads))
        with torch.no_grad(): order = [list(learn.dls.train.rng.sample(range(60), 60))]
        return flat(learn.model), order
    (a, i), (b, j), (d, k) = map(first, ('student', 'baseline', 'omnivore'))
    assert torch.equal(a, b) and torch.equal(a, d) and i == j == k


def test_nothing_is_trained_twice_and_other_settings_are_refused(clips, whole):
    out, _, _ = whole
    made = {n: (out/n/'record.json').stat().st_mtime_ns for n in ALL}
    run(clips, out, C)
    assert {n: (out/n/'record.json').stat().st_mtime_ns for n in ALL} == made
    refused(lambda: run(clips, out, replace(C, weighting='per-sample')), 'another weighting', kind=ModelError)
    refused(lambda: run(clips, out, replace(C, precision='bf16')), 'another precision', kind=ModelError)


# ---------------------------------------------------------------- weights per clip, temperatures, the student's own teacher

def test_per_sample_weights_calibration_and_own_teacher(clips, tmp_path):
    c = replace(C, weighting='per-sample', calibrate=True, own_teacher=True, lambda_gt=.5, epochs=1, student_epochs=1)
    models = run(clips, tmp_path/'r', c, only=['student', 'student-of-rgb'])
    keep = record(tmp_path/'r', 'ensemble')['keep']
    assert models['ensemble'].ensemble.weights[:, 0].tolist() == [.5, .5] and 'weights' not in keep                   # without labels it cannot weigh
    assert models['ensemble'].ensemble.temperatures[:, 0].tolist() == pytest.approx(keep['temperatures']['action'], rel=1e-5)
    steps = {s.name: s for s in radevski2023(c)}
    learn = steps['student'].build(models, loaders(c, clips, ('rgb', 'depth')))
    teacher = next(cb for cb in learn.cbs if isinstance(cb, DistillCallback)).teacher
    x, d, y = loaders(c, clips, ('rgb', 'depth')).one_batch()
    z = torch.stack([models[f'{k}-teacher'].eval()(v)/t for k, v, t in zip(('rgb', 'depth'), (x, d), keep['temperatures']['action'])])
    w = softmin(torch.stack([nn.functional.cross_entropy(a, y, reduction='none') for a in z], 1))            # [B, 2]
    assert torch.allclose(teacher.teach([x, d], y, None), (w.T[..., None]*z).sum(0), atol=1e-5) and len(set(w[:, 0].tolist())) > 1
    own = next(cb for cb in steps['student-of-rgb'].build(models, loaders(c, clips, ('rgb', 'depth'))).cbs if isinstance(cb, DistillCallback))
    assert own.inputs == ('rgb',) and len(own.teacher.streams) == 1


def test_two_heads_from_the_settings_to_the_predictions(clips, tmp_path):
    df = clips.assign(verb=clips.label//2, noun=clips.label % 2)
    c = replace(C, heads=dict(verb=5, noun=2), action_weights=dict(verb=1., noun=0.), calibrate=True, epochs=1, student_epochs=1, lambda_gt=1.)
    models = run(df, tmp_path/'r', c, only=['student', 'baseline'])
    keep = record(tmp_path/'r', 'ensemble')['keep']
    assert set(keep['weights']) == set(keep['temperatures']) == {'verb', 'noun'} and keep['weights']['verb'] != keep['weights']['noun']
    p = predict(models['ensemble'], test_dl(loaders(c, df, ('rgb', 'depth')), df[df.split == 'test']))
    assert p.heads == dict(verb=5, noun=2) and p.logits.shape == (30, 7) and p.labels.shape == (30, 2)
    rows = {r['name']: r for r in evaluate_run(tmp_path/'r', df)}
    assert rows['student']['top1'] <= min(rows['student']['verb'], rows['student']['noun']) and rows['ensemble']['n'] == (df.split == 'test').sum()
    assert reading(tmp_path/'r').heads == dict(verb=5, noun=2)
    start = next(s for s in radevski2023(c) if s.name == 'student').build(models, loaders(c, df, ('rgb', 'depth'))).model.fc.weight
    for n in ('student', 'baseline'):                                                                   # a head with weight 0 takes no part: weight decay only, in both losses
        factor = (models[n].fc.weight/start).detach()
        assert (factor[5:] - factor[5, 0]).abs().max() < 1e-5 < (factor[:5] - factor[5, 0]).abs().max(), n
    assert {'verb', 'noun', 'action'} <= set(record(tmp_path/'r', 'student')['history'][0])


# ---------------------------------------------------------------- killed

def test_sigkill_while_the_student_learns(clips, whole, tmp_path):
    "In the middle of a batch of a later epoch; the next call ends with the same weights and the same log, and the ensemble is the one that taught before"
    out, reference, _ = whole
    last = 2*2*5 + random.Random(7).randrange(7, 18)                                                       # the teachers take 2 epochs of 5 batches each, the student 3 of 6
    killed(tmp_path, 'moddist.radevski', clips, C, ['student'], last)
    assert (tmp_path/'run'/'ensemble'/'record.json').is_file() and not (tmp_path/'run'/'student'/'record.json').is_file() and (tmp_path/'run'/'student'/'checkpoint.safetensors').is_file()
    again = run(clips, tmp_path/'run', C, only=['student'])
    for n in ALL[:4]:
        assert same(again[n].state_dict(), reference[n].state_dict()), n
        assert record(tmp_path/'run', n)['history'] == record(out, n)['history'] and record(tmp_path/'run', n)['keep'] == record(out, n)['keep'], n
    assert not list((tmp_path/'run').rglob('checkpoint.safetensors'))


# ---------------------------------------------------------------- precision and accumulation

def taught(clips, bs, cbs=(), epochs=2, net=Plain, seed=0):
    "A student of a fixed ensemble with labels and scores, linear schedule and clipping; no jitter, so that nothing is drawn per batch"
    seed_all(seed)
    dls = clip_dls(clips, ('rgb', 'depth'), bs=bs, dev='cpu', jitter=JitterRGB(0, 0, 0))
    torch.manual_seed(1)
    teacher, student = Ensemble(Plain(10), Plain(10)), net(10)
    start = flat(student)
    learn = learner(dls, student, lr=.02, cbs=[DistillCallback(teacher, [kd_term(2., tau=2.)], hard=.5, inputs=('rgb', 'depth')), *cbs])
    with learn.no_bar(), learn.no_logging(): fit(learn, epochs, decay='linear', clip=.05)
    return flat(learn.model), start, learn


@pytest.mark.parametrize('k, bs', [(4, 3), (2, 6), (2, 8)])
def test_accumulated_batches_are_one_large_batch(clips, k, bs):
    "60 clips; 2 x 8 leaves a batch over at the end of the epoch, as 16 leaves 12 clips. Tolerance 1e-4: the order of additions, magnified by Adam where a gradient is nearly zero"
    small, start, a = taught(clips, bs, [Accumulate(k)])
    large, _, b = taught(clips, k*bs)
    assert (small - large).abs().max() < 1e-4 < 1e-2 < (large - start).abs().max()
    plain, *_ = taught(clips, bs)
    assert (small - plain).abs().max() > 1e-3                                                            # and it is not what small batches give
    assert a.recorder.values[-1][1] == pytest.approx(b.recorder.values[-1][1], abs=1e-4)


def test_with_batch_norm_accumulation_is_something_else(clips):
    net = lambda k: SmallStream(k, width=4, dropout=0.)
    a, b = taught(clips, 6, [Accumulate(2)], 1, net)[0], taught(clips, 12, [], 1, net)[0]
    assert (a - b).abs().max() > 1e-4


class Kinds(Callback):
    "dtypes met in a fit"
    order = 100
    def before_fit(self): self.seen, self.hook = set(), self.model.conv.register_forward_hook(lambda m, a, out: self.seen.add(out.dtype))
    def after_loss(self): self.seen_loss = self.learn.loss_grad.dtype
    def after_fit(self): self.hook.remove()


def test_bfloat16_trains_on_a_cpu(clips):
    kinds = Kinds()
    w, start, learn = taught(clips, 12, [Bfloat16(), kinds], epochs=4)
    assert kinds.seen == {torch.bfloat16} and kinds.seen_loss == w.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
    losses = [v[0] for v in learn.recorder.values]
    assert losses[-1] < losses[0] and w.isfinite().all()
    full, *_ = taught(clips, 12, epochs=4)
    assert 0 < (w - full).abs().max() < .05


def test_a_run_in_bfloat16_and_small_pieces(clips, tmp_path):
    "Through the recipe: it is recorded, and every learner has the callbacks"
    c = replace(C, weighting='uniform', held_out=0., precision='bf16', accumulate=3, bs=4, epochs=1, student_epochs=2)
    run(clips, tmp_path/'r', c, only=['student'])
    assert run_info(tmp_path/'r')['settings'] | dict(precision='bf16', accumulate=3) == run_info(tmp_path/'r')['settings']
    h = record(tmp_path/'r', 'student')['history']
    assert len(h) == 2 and h[-1]['train_loss'] < h[0]['train_loss']


def test_what_cannot_be_is_refused(monkeypatch, clips, tmp_path):
    refused(lambda: economy(Radevski2023(precision='fp16'), torch.device('cpu')), 'CUDA GPU', kind=ModelError)
    monkeypatch.setenv('WORLD_SIZE', '2')
    refused(lambda: run(clips, tmp_path/'r', C), '2 processes', 'distrib_ctx', kind=ModelError)


# ---------------------------------------------------------------- the omnivore

def test_the_omnivore_eats_one_signal_at_a_time_and_all_of_them(clips):
    def meals(seed):
        dls, eaten = loaders(C, clips, ('rgb', 'depth')), []
        class Watch(Callback):
            order = OneSignal.order - 1
            def before_batch(self): self.offered = list(self.xb)
        class Look(Callback):
            order = 100
            def before_batch(self): eaten.append((self.training, len(self.xb), [x.data_ptr() == self.xb[0].data_ptr() for x in self.learn.watch.offered].index(True)))
        learn = learner(dls, stream_for(C, dls, 'rgb'), cbs=[OneSignal('rgb', seed), Watch(), Look()])
        with learn.no_bar(), learn.no_logging(): fit(learn, 4)
        return eaten
    a, b, other = meals(0), meals(0), meals(1)
    assert a == b != other and {n for _, n, _ in a} == {1}
    assert {i for t, _, i in a if not t} == {0} and .2 < sum(i for t, _, i in a if t)/sum(t for t, *_ in a) < .8


def test_renewed_statistics_are_those_of_the_signal(clips):
    dls, m = loaders(C, clips, ('rgb', 'depth')), SmallStream(10, width=4)
    dl, before = test_dl(dls, clips[clips.split == 'train'], bs=20), m.bn.momentum
    renew_statistics(m, dl, 'depth')
    u = [m.conv(x.transpose(1, 2).flatten(0, 1)) for _, x, _ in dl]
    assert len(u) == 3 and torch.allclose(m.bn.running_mean, torch.stack([v.mean((0, 2, 3)) for v in u]).mean(0), atol=1e-5)
    assert torch.allclose(m.bn.running_var, torch.stack([v.var((0, 2, 3)) for v in u]).mean(0), rtol=1e-4)
    assert m.bn.momentum == before and not m.training
    plain = Plain(10)
    assert renew_statistics(plain, dl, 'depth') is plain


# ---------------------------------------------------------------- networks, data sets

def test_networks_by_name_and_description(clips):
    dls = loaders(C, clips, ('rgb', 'depth', 'skeleton'))
    assert stream_for(replace(C, streams=None), dls, 'skeleton').joints == 25
    assert type(stream_for(replace(C, streams=dict(rgb={'class': 'Plain', 'width': 3})), dls, 'rgb')) is Plain
    refused(lambda: stream_for(replace(C, streams=dict(rgb='swin9')), dls, 'rgb'), 'swin9', 'stlt', kind=ModelError)


def test_real_depth_taught_by_joints_and_a_sensor(tmp_path):
    "UTD-MHAD: a depth student whose teachers also read the skeleton and the inertial sensor; three actions, four people"
    from moddist.datasets import utd_mhad
    df = utd_mhad.index(real_data('utd_mhad'))
    df = df[df.label.isin([0, 1, 21]) & df.subject.isin([1, 2, 3, 4])].assign(label=lambda d: d.label.map({0: 0, 1: 1, 21: 2}))
    df = utd_mhad.split(df, 'leave-two-subjects-out', fold=1).assign(split=lambda d: d.split.where((d.split == 'test') | (d.subject == 1), 'train'))
    df.loc[df.index[df.split == 'train'][:2], 'split'] = 'valid'
    c = Radevski2023(student='depth', teachers=('depth', 'skeleton', 'inertial'), weighting='held-out', group='', held_out=.4, epochs=2, student_epochs=2, bs=4, size=(60, 80), crop=48, flip=0., streams=dict(depth=TINY))
    models = run(df, tmp_path/'r', c)
    assert [type(s).__name__ for s in models['ensemble'].ensemble.streams] == ['SmallStream', 'SkeletonStream', 'SeriesStream'] and models['skeleton-teacher'].joints == 20
    rows = {r['name']: r for r in evaluate_run(tmp_path/'r', df)}
    assert rows['ensemble']['test_input'] == 'depth+skeleton+inertial' and rows['student']['test_input'] == 'depth' and 'omnivore' not in rows
    assert gap_run(tmp_path/'r', df, groups='subject', resamples=200).units == 2


def test_real_video_taught_by_flow_and_a_second_camera(tmp_path):
    "UR Fall Detection: windows are cut out, flow is derived from them, the ceiling camera teaches too"
    from moddist.datasets import urfd
    df = urfd.split(urfd.index(real_data('urfd'), paired=True, stride=24))
    df = pd.concat([g.head(n) for (s, _), g in df.groupby(['split', 'label']) for n in [dict(train=5, valid=1, test=2)[s]]])
    df = store.prepare(df, tmp_path/'store', ('rgb', 'view2:rgb'), short_side=54)
    df = derive(df, 'flow', tmp_path/'store')
    c = Radevski2023(teachers=('rgb', 'flow', 'view2:rgb'), epochs=1, student_epochs=2, bs=5, size=54, crop=48, sampling='segment', inputs='imagenet', group='sequence')
    models = run(df, tmp_path/'r', c, only=['student', 'baseline', 'omnivore'])
    rows = {r['name']: r for r in evaluate_run(tmp_path/'r', df)}
    assert rows['ensemble']['test_input'] == 'rgb+flow+view2' and rows['student']['n'] == (df.split == 'test').sum() and set(models) == set(rows)
    assert record(tmp_path/'r', 'omnivore')['epochs'] == 6 and os.path.isfile(tmp_path/'r'/'view2-teacher'/'model.safetensors')
