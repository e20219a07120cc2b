"A recipe whose student looks its teachers up: the same student, one cache for several, a kill in between, and folders of before the setting existed"
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import killed, refused

from moddist import synthetic
from moddist.core import ModelError, read_json, write_json
from moddist.data import test_dl
from moddist.evaluate import evaluate_run, predict
from moddist.radevski import Radevski2023, radevski2023, run
from moddist.runs import loaders, reading

torch.set_num_threads(1)
TINY = dict({'class': 'SmallStream'}, width=4)
C = Radevski2023(epochs=1, student_epochs=4, bs=10, crop=32, clip_len=4, weighting='held-out', group='', streams=dict(rgb=TINY, depth=TINY), slots=2, jitter=False)
CACHED = replace(C, cached=True)
TEACHERS = ['rgb-teacher', 'depth-teacher', 'ensemble']


@pytest.fixture(scope='module')
def clips(tmp_path_factory): return synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', train=2, valid=1, test=1, skeletons=False))


@pytest.fixture(scope='module')
def runs(clips, tmp_path_factory):
    "Folders and models of a cached run and of a live one"
    out = tmp_path_factory.mktemp('runs')
    return {k: (out/k, run(clips, out/k, c, only=['student'])) for k, c in dict(cached=CACHED, live=C).items()}


def record(out, name): return read_json(out/name/'record.json')
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def student_of(models, df, c, cache):
    step = next(s for s in radevski2023(c, cache) if s.name == 'student')
    learn = step.build(models, loaders(c, df, step.reads))
    with learn.no_bar(), learn.no_logging(): step.fit(learn, step.epochs)
    return learn


def test_a_cached_student_is_the_live_one(clips, runs):
    "To the bit, as on a CPU the scores of a clip do not depend on its batch; another seed gives another student"
    (out, cached), (plain, live) = runs['cached'], runs['live']
    for n in (*TEACHERS, 'student'): assert same(cached[n].state_dict(), live[n].state_dict()), n
    history = record(out, 'student')['history']
    step = next(s for s in radevski2023(CACHED, out/'cache') if s.name == 'student')
    assert [s.key for s in step.build(cached, loaders(CACHED, clips, step.reads)).dls.signals] == ['rgb']    # nobody opens a depth file to train it
    assert history == record(plain, 'student')['history'] and len(history) == 4
    dl = test_dl(loaders(C, clips, ('rgb',)), clips[clips.split == 'test'])
    a, b = (predict(m, dl).logits for m in (cached['student'], student_of(live, clips, replace(C, seed=5), None).model))
    assert (a - b).abs().max() > .1
    assert not (plain/'cache').exists() and [p.suffix for p in (out/'cache').iterdir()] == ['.safetensors']
    assert {r['name'] for r in evaluate_run(out, clips)} == {*TEACHERS, 'student'}                          # the folder of the cache is no step


@pytest.mark.parametrize('change', [dict(weighting='uniform'), dict(weighting='per-sample', tau=2., lambda_gt=.5)], ids=['uniform', 'per-sample'])
def test_another_student_finds_the_answers(clips, runs, tmp_path, change):
    "Nobody is asked again, and it becomes what live teachers would have made of it"
    out, models = runs['cached']
    cache = shutil.copytree(out/'cache', tmp_path/'cache')
    files, c = sorted(cache.iterdir()), replace(CACHED, **change)
    before = [f.stat().st_mtime_ns for f in files]
    learn = student_of(models, clips, c, cache)
    log = learn.distill.teacher.log
    assert sum(p['misses'] for p in log) == 0 < sum(p['hits'] for p in log) and len(log) == 8
    assert same(learn.model.state_dict(), student_of(models, clips, replace(c, cached=False), None).model.state_dict())
    assert sorted(cache.iterdir()) == files and [f.stat().st_mtime_ns for f in files] == before
    log = student_of(models, clips, replace(c, seed=3, student_epochs=1), cache).distill.teacher.log
    assert [p['misses'] for p in log] == [60, 60, 0, 0]                                                    # other draws are other questions, asked before the only epoch; validation has none


def test_a_cached_run_goes_on_after_sigkill(clips, runs, tmp_path):
    "Killed in a batch of the second epoch; weights, log and answers are those without the kill"
    out, reference = runs['cached']
    last = 2*5 + 6 + 3                                                                                     # batches of the teachers, of one epoch of the student, and three more
    killed(tmp_path, 'moddist.radevski', clips, CACHED, ['student'], last)
    assert (tmp_path/'run'/'student'/'checkpoint.safetensors').is_file() and len(list((tmp_path/'run'/'cache').iterdir())) == 1
    again = run(clips, tmp_path/'run', CACHED, only=['student'])
    assert same(again['student'].state_dict(), reference['student'].state_dict()) and record(tmp_path/'run', 'student')['history'] == record(out, 'student')['history']
    size = lambda folder: sorted((p.name, p.stat().st_size) for p in (folder/'cache').iterdir())
    assert size(tmp_path/'run') == size(out)


def test_cached_in_bfloat16_and_small_pieces_with_an_own_teacher(clips, tmp_path):
    c = replace(CACHED, weighting='uniform', held_out=0., precision='bf16', accumulate=2, bs=5, student_epochs=3, own_teacher=True)
    run(clips, tmp_path/'r', c, only=['student', 'student-of-rgb'])
    assert len(record(tmp_path/'r', 'student')['history']) == 3 and len(list((tmp_path/'r'/'cache').iterdir())) == 2   # two teachers together, and one alone


def test_what_could_not_be_right_is_refused_before_anything_is_trained():
    for wrong, word in ((dict(slots=None), 'slots=4'), (dict(jitter=True), 'teacher of rgb'), (dict(jitter=True, teachers=('depth', 'view2:rgb')), 'teacher of view2:rgb')):
        refused(lambda: replace(CACHED, **wrong), word, 'cached=False', kind=ModelError)
    assert Radevski2023(teachers=('depth', 'flow'), cached=True, slots=3).jitter


def test_a_run_of_before_these_settings_existed(clips, tmp_path):
    "run.json without them: read with their defaults, continued, and refused where one of them is now set"
    old, out = replace(C, slots=None, jitter=True), tmp_path/'r'
    made = run(clips, out, old, only=['rgb-teacher'])
    info = read_json(out/'run.json')
    for k in ('cached', 'slots', 'jitter', 'short_side', 'scale', 'reference_boxes', 'reference_index', 'reference_fps', 'reference_jitter'): del info['settings'][k]
    write_json(out/'run.json', info)
    assert same(run(clips, out, old, only=['rgb-teacher'])['rgb-teacher'].state_dict(), made['rgb-teacher'].state_dict())
    r = reading(out)
    assert (r.slots, r.jitter, r.scale, r.reference_fps) == (None, True, (1., 1.), None) and len(evaluate_run(out, clips)) == 1
    refused(lambda: run(clips, out, CACHED), 'another', 'slots', 'jitter', 'cached', kind=ModelError)
