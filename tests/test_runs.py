"""The engine of every recipe: what a step may bring, what a folder remembers, what is refused, and that older folders still open."""
import copy
import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import refused
from fastai.callback.core import Callback

from moddist import synthetic
from moddist.core import ModelError, ProtocolError, read_json, write_json
from moddist.distill import fit, learner
from moddist.evaluate import evaluate_run
from moddist.models import SmallStream, TwoStream, save_model
from moddist.recipes import ABLATIONS, Garcia2018, ablation, garcia2018, run
from moddist.runs import Reading, Step, few_labels, index_hash, loaders, open_index, privileged, reading, run_info, run_steps

sys.path.insert(0, str(Path(__file__).parents[1]/'bench')) # for what bench/ablation.py shares between variations
torch.set_num_threads(1)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=2, train=2, valid=1, test=1, skeletons=False)
    return root, synthetic.index(root)


@pytest.fixture(scope='module')
def clips(made): return made[1]


@dataclass(frozen=True)
class Mine(Reading):
    lr:float = 1e-3
    note:str = 'x'


def alone(m, dls): return learner(dls, SmallStream(len(dls.vocab)))
def step(name='one', epochs=1, build=alone, needs=(), **more): return Step(name, 0, ('rgb',), ('rgb',), epochs, build, needs, **more)
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def record(out, name): return read_json(out/name/'record.json')


# ---------------------------------------------------------------- what a step may bring

def test_a_recipe_of_ones_own_can_be_evaluated(clips, made, tmp_path):
    "Three steps, settings of its own class; the same table as for the built-in recipe"
    pair = lambda m: TwoStream(copy.deepcopy(m['one']), copy.deepcopy(m['two']), 'none')
    c, out = Mine(clip_len=4, bs=12, seed=3), tmp_path/'run'
    models = run_steps(clips, out, c, [step(), step('two'), step('mean', 0, pair, ('one', 'two'))], 'mine', data=dict(dataset='synthetic', root=str(made[0])))
    assert reading(out) == Reading(clip_len=4, bs=12, seed=3) and type(reading(out)) is Reading
    assert index_hash(open_index(out)) == index_hash(clips)
    rows = {r['name']: r for r in evaluate_run(out, clips)}
    assert set(rows) == {'one', 'two', 'mean'} and rows['mean']['params'] == 2*rows['one']['params'] and rows['mean']['seconds'] < rows['one']['seconds']
    x = torch.randn(2, 3, 4, 48, 48)
    with torch.no_grad(): a, b, both = (models[n].eval()(x) for n in ('one', 'two', 'mean'))
    assert torch.allclose(both, (a + b)/2, atol=1e-6)
    assert run_info(out) == dict(recipe='mine', settings=json.loads(json.dumps(asdict(c))), index=index_hash(clips), data=dict(dataset='synthetic', root=str(made[0])))
    refused(lambda: privileged(out), "'mine'", 'no single privileged signal')


def test_a_step_with_its_own_loaders_and_schedule(clips, tmp_path):
    "One subject only, at a constant rate; both are what the step says, and neither leaks into the next"
    seen, rates = {}, {}
    class Watch(Callback):
        def __init__(self, name): self.name_ = name
        def before_step(self): rates.setdefault(self.name_, []).append(self.opt.hypers[-1]['lr'])
        def after_epoch(self): seen[self.name_] = len(self.dls.train.dataset)
    part = clips.subject == min(clips.subject[clips.split == 'train'])
    half = lambda df: loaders(Mine(bs=10), df[part | (df.split == 'valid')], ('rgb',))
    build = lambda name: lambda m, dls: learner(dls, SmallStream(10), cbs=[Watch(name)])
    steps = [step('half', build=build('half'), loaders=half, fit=partial(fit, warmup=0)), step('whole', build=build('whole'))]
    run_steps(clips, tmp_path/'r', Mine(bs=10), steps, 'mine')
    assert seen == dict(half=30, whole=60)
    assert set(rates['half']) == {4e-3} and len(rates['half']) == 3 and len(set(rates['whole'])) == len(rates['whole']) == 6


def test_checks_and_what_is_kept(clips, tmp_path):
    "A check is asked once with the finished model and all records; `keep` is in the record and back after a resume"
    asked = []
    def look(model, records, df): asked.append((type(model), sorted(records), len(df))); return ['too few clips']
    def build(m, dls): kept['weights'] = [.25, .75]; return alone(m, dls)
    kept = {}
    steps = [step(), step('two', build=build, checks=look, keep=kept)]
    run_steps(clips, tmp_path/'r', Mine(), steps, 'mine')
    assert asked == [(SmallStream, ['one', 'two'], len(clips))]
    r = record(tmp_path/'r', 'two')
    assert r['warnings'] == ['too few clips'] and r['keep'] == dict(weights=[.25, .75]) and r['needs'] == [] and record(tmp_path/'r', 'one')['warnings'] == []
    kept.clear()
    run_steps(clips, tmp_path/'r', Mine(), steps, 'mine')
    assert kept == dict(weights=[.25, .75]) and len(asked) == 1


@pytest.mark.golden(18)
def test_a_teacher_that_moves_by_one_bit_is_reported(clips, tmp_path):
    "Weights of a finished model that change while a later step is trained, or only its batch-norm statistics"
    def bit(m, dls):
        w = m['one'].fc.bias.data.view(torch.int32); w[0] ^= 1
        return alone(m, dls)
    def statistics(m, dls): next(b for n, b in m['one'].named_buffers() if n.endswith('running_mean')).add_(1e-6); return alone(m, dls)
    for name, build in dict(bit=bit, statistics=statistics, nothing=alone).items():
        out = tmp_path/name
        run_steps(clips, out, Mine(), [step(), step('two', build=build, needs=('one',))], 'mine')
        assert record(out, 'two')['warnings'] == ([] if name == 'nothing' else ['one changed while two was trained'])


@pytest.mark.golden(18)
def test_the_teacher_of_step_3_stays_bit_identical(clips, tmp_path):
    "Its stored weights and statistics are those before step 3, and no step of the recipe moves another"
    c = Garcia2018(epochs=1, long=1., distil=1.)
    before = {k: v.clone() for k, v in run(clips, tmp_path/'r', c, only=['depth', 'rgb'])['depth'].state_dict().items()}
    models = run(clips, tmp_path/'r', c, only=['hallucination'])
    assert same(before, models['depth'].state_dict())
    assert not any('changed while' in w for n in models for w in record(tmp_path/'r', n)['warnings'])


def test_what_went_wrong_is_named(clips, tmp_path):
    "A loss that is not finite, and a fusion below its better half"
    run_steps(clips, tmp_path/'r', Mine(), [step(build=lambda m, dls: learner(dls, SmallStream(10), lr=1e30))], 'mine')
    assert record(tmp_path/'r', 'one')['warnings'] == ['a logged value is not finite: lower lr']
    fused = next(s for s in garcia2018() if s.name == 'rgb+depth')
    rows = lambda *top1: dict(zip(('rgb', 'depth', 'rgb+depth'), (dict(valid=dict(top1=a)) for a in top1)))
    assert fused.checks(None, rows(.9, .4, .89), clips) == [] and fused.checks(None, rows(.9, .4, .5), clips)[0].startswith('fused accuracy 0.50 is below the better stream (0.90)')
    assert fused.checks(None, rows(.9, .4, .5), clips[clips.split == 'train']) == []


# ---------------------------------------------------------------- folders

def test_a_run_of_before_opens_and_goes_on(clips, made, tmp_path):
    "run.json and a record as they were written before this engine existed: fewer settings, no `needs`, no `keep`"
    settings = dict(student='rgb', teacher='depth', stream='small', weights=None, epochs=1, fine=.3, distil=2., long=3.6, saturate=0., lr=4e-3, fine_lr=1/3, wd=.02, warmup=.1, bs=16, clip_len=8,
                    sampling='uniform', size=None, crop=48, flip=.5, inputs='centred', hard=.25, soft=.25, features=2.5, tau=10., t2=True, standardize=True, teacher_step=1, connection=None, seed=0)
    out = tmp_path/'old'
    write_json(out/'run.json', dict(recipe='garcia2018', settings=settings, index=index_hash(clips), data=dict(dataset='synthetic', root=str(made[0]))))
    torch.manual_seed(1); old = SmallStream(10).eval(); save_model(old, out/'rgb'/'model.safetensors')
    write_json(out/'rgb'/'record.json', dict(name='rgb', step=1, reads=['rgb'], test=['rgb'], epochs=1, seconds=1., params=93_330, valid=dict(top1=.1), history=[dict(accuracy=.1)], environment={}, warnings=[]))
    assert reading(out) == Reading() and privileged(out) == 'depth' and len(open_index(out)) == len(clips)
    text = (out/'run.json').read_text()
    models = run(clips, out, Garcia2018(epochs=1), only=['rgb+depth'])
    assert same(models['rgb'].state_dict(), old.state_dict()) and (out/'run.json').read_text() == text
    assert {r['name'] for r in evaluate_run(out, clips)} == {'rgb', 'depth', 'rgb+depth'}
    refused(lambda: run(clips, out, Garcia2018(epochs=1, unlabelled=True), only=['rgb']), "no clip has the split 'unlabelled'", kind=ProtocolError)
    refused(lambda: run(clips, out, Garcia2018(epochs=2, hard=0.)), 'another', 'epochs', 'hard', kind=ModelError)


def test_a_folder_belongs_to_one_run(clips, tmp_path):
    out, one = tmp_path/'r', [step()]
    run_steps(clips, out, Mine(), one, 'mine')
    before = (out/'one'/'model.safetensors').stat().st_mtime_ns
    refused(lambda: run_steps(clips, out, Mine(lr=2.), one, 'mine'), 'another lr;', out, kind=ModelError)
    refused(lambda: run_steps(clips, out, Mine(), one, 'yours'), 'another recipe;', kind=ModelError)
    refused(lambda: run_steps(clips[:-1], out, Mine(), one, 'mine'), 'the clip index', kind=ModelError)
    refused(lambda: run_steps(clips, out, Reading(), one, 'mine'), 'another lr, note', kind=ModelError)
    refused(lambda: run_steps(clips, tmp_path/'x', Mine(), one, 'mine', only=['two']), "no step 'two'", 'one', kind=ProtocolError)
    refused(lambda: run_steps(clips.drop(columns='rgb'), tmp_path/'x', Mine(), one, 'mine'), "no column 'rgb'")
    refused(lambda: run_steps(clips, tmp_path/'x', Mine(inputs='raw'), one, 'mine'), "inputs='raw'", kind=ModelError)
    assert (out/'one'/'model.safetensors').stat().st_mtime_ns == before
    for f in (reading, open_index, run_info, privileged): refused(lambda: f(tmp_path/'nowhere'), 'holds no run')


def test_an_index_that_has_changed_is_not_reopened(made, clips, tmp_path):
    root, _ = made
    write_json(tmp_path/'run.json', dict(recipe='mine', settings=asdict(Mine()), index='0'*16, data=dict(dataset='synthetic', root=str(root))))
    refused(lambda: open_index(tmp_path), 'are not the clips of', '0'*16)
    write_json(tmp_path/'run.json', dict(recipe='mine', settings=asdict(Mine()), index='0'*16, data=None))
    refused(lambda: open_index(tmp_path), 'pass the index yourself')


# ---------------------------------------------------------------- few labels, many pairs

@pytest.fixture(scope='module')
def few(clips): return few_labels(clips, keep=sorted(set(clips.subject[clips.split == 'train']))[:1])


def test_few_labels(clips, few):
    train = clips.split == 'train'
    assert few.split.value_counts().to_dict() == dict(train=30, unlabelled=30, valid=30, test=30) and (few.split[~train] == clips.split[~train]).all()
    assert few[few.split == 'train'].subject.nunique() == 1 and clips.split.value_counts()['train'] == 60
    who = sorted(set(clips.subject[train]))
    for keep, words in ((who, 'not all'), ([], 'at least one'), ([99], 'has no training clip')): refused(lambda: few_labels(clips, keep), words, kind=ProtocolError)
    refused(lambda: few_labels(clips, who[:1], 'town'), "column 'town'", kind=ProtocolError)


def test_labels_of_unlabelled_clips_reach_nobody(few, tmp_path):
    "None at all, or a class beyond the last: the same weights to the bit"
    c = Garcia2018(epochs=1, long=1., distil=2., bs=10, unlabelled=True)
    hidden = few.split == 'unlabelled'
    found = []
    for i, labels in enumerate((few.label, few.label.mask(hidden), few.label.mask(hidden, 77))):
        out = tmp_path/str(i)
        m = run(few.assign(label=labels), out, c, only=['hallucination', 'student', 'rgb+rgb-self'])
        found.append({n: m[n].state_dict() for n in ('rgb', 'hallucination', 'student', 'rgb+rgb-self')})
    for other in found[1:]:
        for n in other: assert same(found[0][n], other[n]), n
    assert [len(record(tmp_path/'0', n)['history']) for n in ('hallucination', 'student')] == [2, 2]


def test_only_step_3_and_the_student_see_the_pairs(few, clips, tmp_path):
    "The same number of optimiser steps with and without pairs; whoever must not see them is equal to the bit"
    c = Garcia2018(epochs=1, long=1., distil=1., bs=10)
    names = ['rgb', 'depth', 'rgb+depth', 'rgb-long', 'hallucination', 'student']
    a = run(few[few.split != 'unlabelled'], tmp_path/'a', c, only=names)
    b = run(few, tmp_path/'b', replace(c, unlabelled=True), only=names)
    for n in names: assert same(a[n].state_dict(), b[n].state_dict()) is (n not in ('hallucination', 'student')), n
    dls = loaders(c, few, ('rgb', 'depth'), unlabelled=True)
    ys = [torch.cat([y for *_, y in dls.train]) for _ in range(8)]
    assert {len(y) for y in ys} == {30} and len(dls.train) == 3 == len(loaders(c, few, ('rgb',)).train)
    share = (torch.cat(ys) < 0).float().mean()
    assert .35 < share < .65 and len({tuple(y.tolist()) for y in ys}) == 8
    assert torch.cat([y for *_, y in dls.valid]).min() >= 0


def test_the_self_trained_baseline_uses_rgb_alone_and_all_of_it(few, tmp_path):
    "Other depth, other labels of unlabelled clips: no difference; other pictures of unlabelled clips: another network"
    c, hidden = Garcia2018(epochs=1, long=1., distil=1., bs=10, unlabelled=True), few.split == 'unlabelled'
    steps = {s.name: s for s in garcia2018(c)}
    assert all('depth' not in steps[n].reads and steps[n].test == ('rgb',) for n in ('rgb-self', 'rgb-self-2', 'rgb+rgb-self')) and 'rgb-self' not in {s.name for s in garcia2018(replace(c, unlabelled=False))}
    other = few.assign(depth=few.depth.sample(frac=1, random_state=0).values)
    swapped = few.assign(rgb=few.rgb.mask(hidden, few.rgb[hidden].iloc[0]))
    first, depth, rgb = (run(d, tmp_path/str(i), c, only=['rgb-self'])['rgb-self'].state_dict() for i, d in enumerate((few, other, swapped)))
    assert same(first, depth) and not same(first, rgb)


def test_the_index_of_a_run_with_few_labels_is_rebuilt(made, few, tmp_path):
    keep = sorted(set(few.subject[few.split == 'train']))
    run_steps(few, tmp_path/'r', Mine(bs=10), [step()], 'mine', data=dict(dataset='synthetic', root=str(made[0]), few_labels=dict(keep=keep)))
    again = open_index(tmp_path/'r')
    assert index_hash(again) == index_hash(few) and (again.split == 'unlabelled').sum() == 30


# ---------------------------------------------------------------- taking the recipe apart

WHOLE = Garcia2018(epochs=1, distil=2.)
ROWS = ['rgb+depth', 'rgb+hallucination', 'rgb+hallucination-mean']


@pytest.fixture(scope='module')
def whole(clips, tmp_path_factory): return run(clips, tmp_path_factory.mktemp('whole'), WHOLE, only=ROWS)


@pytest.mark.parametrize('name', ABLATIONS)
def test_a_part_that_is_left_out(clips, whole, tmp_path, name):
    "Its term has no column in the log, the rest still trains, and the steps that the benchmark shares between variations are equal to the bit: those and no others"
    from ablation import TOUCHES
    c = ablation(WHOLE, name)
    m = run(clips, tmp_path/'r', c, only=ROWS)
    log = record(tmp_path/'r', 'hallucination')['history']
    assert ('soft' in log[0]) is (name != 'no-soft') and ('features' in log[0]) is (name != 'no-features') and log[-1]['train_loss'] < log[0]['train_loss']
    touched = {s for k in ABLATIONS[name] for s in TOUCHES[k]}
    for n in m: assert same(m[n].state_dict(), whole[n].state_dict()) is (n not in touched), n
    if name == 'no-connection': assert {m[n].connection for n in touched} == {'none'}


def test_the_row_before_step_4_is_the_plain_average(whole):
    x = torch.randn(2, 3, 8, 48, 48)
    with torch.no_grad(): z, a, b = (whole[n].eval()(x) for n in ('rgb+hallucination-mean', 'rgb', 'hallucination'))
    assert torch.allclose(z, (a + b)/2, atol=1e-6) and next(s for s in garcia2018() if s.name == 'rgb+hallucination-mean').epochs == 0


def test_names_of_ablations():
    c = Garcia2018(seed=3)
    assert ablation(c, 'full') == c
    for name, change in ABLATIONS.items():
        v = ablation(c, name)
        assert {k for k in asdict(c) if asdict(c)[k] != asdict(v)[k]} == set(change) and v.seed == 3
    refused(lambda: ablation(c, 'no-depth'), "'no-depth'", 'no-features', kind=ModelError)


def test_a_step_3_without_any_term_is_refused(clips, tmp_path):
    refused(lambda: run(clips, tmp_path/'r', Garcia2018(epochs=1, hard=0., soft=0., features=0.), only=['hallucination']), 'would learn nothing', kind=ModelError)
