"""Preflight: every estimator against a value worked out by other means, the verdict on worlds whose answer is known, and a run on a tiny rendered set."""
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from moddist import synthetic
from moddist.core import DataError, ModelError, write_json
from moddist.data import test_dl as make_test_dl
from moddist.evaluate import Predictions, predict
from moddist.models import SmallStream, save_model
from moddist.preflight import (Look, _against_null, _bootstrap, _components, _counts_mi, _distances, _explained, _folds, _given, _ksg, _ross, _shuffled_within,
                               look, overlap, preflight, preflight_run)
from moddist.recipes import Garcia2018
from moddist.runs import index_hash, loaders

torch.set_num_threads(1)
rand = lambda seed=0: np.random.default_rng(seed)


# ---------------------------------------------------------------- who errs where

def test_overlap_by_hand():
    o = overlap(np.array([1, 1, 1, 0, 0, 0, 0, 0], bool), np.array([1, 0, 0, 1, 0, 0, 0, 0], bool))
    assert o['table'].tolist() == [[4, 1], [2, 1]] and o['oracle'] == .5 and o['mcnemar_p'] == 1
    chance = 3/8*2/8 + 5/8*6/8
    assert o['kappa'] == pytest.approx((5/8 - chance)/(1 - chance))


@pytest.mark.parametrize('b, c', [(0, 0), (0, 6), (3, 9), (10, 10), (40, 70)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    a = np.repeat([False, True, True], [b, c, 5]); t = np.repeat([True, False, True], [b, c, 5])
    n, low = b + c, min(b, c)
    assert overlap(a, t)['mcnemar_p'] == pytest.approx(min(1, 2*sum(math.comb(n, i) for i in range(low + 1))/2**n))


def test_kappa_of_twins_of_strangers_and_of_opposites():
    r = rand()
    a, b = r.random(20_000) < .6, r.random(20_000) < .6
    half = np.arange(100) % 2 == 0
    assert overlap(a, a)['kappa'] == pytest.approx(1) and overlap(a, b)['kappa'] == pytest.approx(0, abs=.02) and overlap(half, ~half)['kappa'] == pytest.approx(-1)
    assert math.isnan(overlap(np.ones(4, bool), np.ones(4, bool))['kappa'])


# ---------------------------------------------------------------- information

def test_counts_against_scikit_learn():
    mutual_info_score = pytest.importorskip('sklearn.metrics').mutual_info_score
    a, b = rand(1).integers(0, 5, 300), rand(2).integers(0, 3, 300)
    assert _counts_mi(a, b) == pytest.approx(mutual_info_score(a, b)) and _counts_mi(a, a % 2) == pytest.approx(mutual_info_score(a, a % 2))


def test_conditional_information_by_the_chain_rule():
    "I(t; y | s) = I(t, s; y) - I(s; y)"
    r = rand(3)
    t, s = r.integers(0, 4, 500), r.integers(0, 3, 500)
    y = (t + s + (r.random(500) < .3)) % 3
    assert _given(t, y, s) == pytest.approx(_counts_mi(t*3 + s, y) - _counts_mi(s, y))


def test_shuffling_within_strata():
    s, t = rand(4).integers(0, 4, 200), rand(5).integers(0, 9, 200)
    u = _shuffled_within(t, s, rand(6))
    assert all(sorted(t[s == k]) == sorted(u[s == k]) for k in range(4)) and (u != t).any()


@pytest.mark.parametrize('rho', [0., .5, .9])
def test_ksg_of_gaussians(rho):
    g = rand(7).multivariate_normal(np.zeros(4), np.block([[np.eye(2), rho*np.eye(2)], [rho*np.eye(2), np.eye(2)]]), 700)
    assert _ksg(_distances(g[:, :2]), _distances(g[:, 2:])) == pytest.approx(-math.log(1 - rho**2), abs=.15)


def test_ross_agrees_with_an_integral():
    y = np.repeat([0, 1], 600)                                  # two unit Gaussians two apart
    x = np.linspace(-8, 10, 20_001); p = np.exp(-x**2/2)/math.sqrt(2*math.pi); q = np.exp(-(x - 2)**2/2)/math.sqrt(2*math.pi); m = (p + q)/2
    truth = np.trapezoid(.5*p*np.log(np.maximum(p, 1e-300)/m) + .5*q*np.log(np.maximum(q, 1e-300)/m), x)
    assert _ross(_distances(rand(9).normal(2*y)[:, None]), y) == pytest.approx(truth, abs=.06)


def test_ross_leaves_out_a_class_of_one_and_survives_classes_of_two():
    y = np.array([0]*40 + [1]*40 + [2]*2 + [3])
    x = rand(10).normal(size=(83, 2)) + 5*y[:, None]
    assert .6 < _ross(_distances(x), y) < math.log(3)


def test_components_are_white_and_survive_constants():
    z = _components(rand(11).normal(size=(200, 30))*np.arange(1, 31), 4)
    assert z.shape == (200, 4) and np.allclose(np.cov(z.T, ddof=0), np.eye(4), atol=1e-6)
    assert np.isfinite(_components(np.ones((50, 6)), 4)).all()


def test_permutation_p_is_uniform_when_nothing_is_there():
    p = [_against_null(rand(i).normal(), rand(1000 + i).normal(size=99))[2] for i in range(400)]
    assert np.mean(np.array(p) <= .05) == pytest.approx(.05, abs=.03) and min(p) >= .01


# ---------------------------------------------------------------- the transferable share

def test_ridge_is_judged_on_other_clips():
    x, noise = rand(16).normal(size=(120, 60)), rand(17).normal(size=(120, 5))
    assert _explained(x, noise, _folds(120, None, 5, rand(18))) < .05, 'sixty features fit noise on the clips they were fitted to'
    z = x[:, :4] @ rand(19).normal(size=(4, 3))
    assert _explained(x, z, _folds(120, None, 5, rand(18))) > .6


def test_whole_groups_are_held_out():
    "What is only true of persons is of no use for another person"
    who = np.repeat(np.arange(10), 20)
    person = rand(20).normal(size=(10, 6))[who]
    z = rand(21).normal(size=(10, 3))[who]                        # a table of persons, learnt by heart
    x = person + .1*rand(22).normal(size=(200, 6))
    assert _explained(x, z, _folds(200, None, 5, rand(23))) > .5 > _explained(x, z, _folds(200, who, 5, rand(23)))
    f = _folds(200, who, 5, rand(23))
    assert all(len(set(f[who == k])) == 1 for k in range(10)) and len(set(f)) == 5


# ---------------------------------------------------------------- worlds

def world(n=300, student=.8, teacher=3., traces=.5, noise=1., seed=0):
    "(student, teacher) of six classes: three shapes the teacher sees, two colours the student sees; `traces` of what the teacher sees show in the student's features"
    r, y = rand(seed), np.arange(n) % 6
    shape, colour = np.eye(3)[y//2], np.eye(2)[y % 2]
    seen = teacher*shape + noise*r.normal(size=(n, 3))
    own, hue = student*shape + r.normal(size=(n, 3)), 3*colour + r.normal(size=(n, 2))
    six = lambda a, b: torch.tensor(np.repeat(a, 2, 1) + np.tile(b, 3)).float()
    as_look = lambda z, f: Look(Predictions(z, torch.tensor(y), tuple(f'c{i}' for i in range(n))), f)
    return (as_look(six(own, hue), np.concatenate([own, hue, traces*seen + r.normal(size=(n, 3))], 1)), as_look(six(seen, np.zeros((n, 2))), np.concatenate([seen, r.normal(size=(n, 5))], 1)))


def short(*a, **k): return preflight(*a, **dict(permutations=60) | k)


def test_a_teacher_that_completes_the_student():
    S, T = world()
    p = short(S, T, classes=[f'{c} {s}' for s in 'abc' for c in ('red', 'blue')])
    v, fused = p.scores, (S.predictions.logits + T.predictions.logits).argmax(1).eq(S.predictions.labels).double().mean().item()
    assert p.verdict == 'go' and v['teacher'] < v['student'] < v['fused'] == pytest.approx(fused) and v['fused'] <= v['oracle'] + .2
    assert v['predicted'] == pytest.approx(v['headroom']*v['share']) and v['headroom'] == pytest.approx(fused - S.right.mean())
    assert v['complement'] > .5 and v['complement_p'] == pytest.approx(1/61) and p.interval[0] < v['headroom'] < p.interval[1]
    assert p.errors.sum() == p.n == 300 and p.errors[1].sum() == S.right.sum() and p.errors[:, 1].sum() == T.right.sum()
    assert p.classes.n.sum() == 300 and (p.classes.n*p.classes.gain).sum()/300 == pytest.approx(v['headroom'])
    assert str(p).startswith('GO') and 'No second student' in str(p)


def test_a_teacher_that_the_student_cannot_complete():
    "Better than the student everywhere, and no better with it: not a go, however large the headroom; a teacher that RGB does complete stays one"
    S, T = world()
    six = 4*np.eye(6)[S.predictions.labels] + np.random.default_rng(7).normal(size=(300, 6))
    master = Look(Predictions(torch.tensor(six).float(), S.predictions.labels, S.predictions.clip_ids), T.features)
    p, q = short(S, master), short(S, T)
    assert (p.verdict, p.case) == ('unclear', 'dominant') and p.scores['student_adds'] <= .01 and p.interval[0] > .1 and p.scores['predicted'] > .01
    assert p.scores['student_adds'] == pytest.approx(p.scores['fused'] - p.scores['teacher']) and 'not shown to beat it' in str(p) and 'dominant' in str(p)
    assert (q.verdict, q.case) == ('go', 'complementary') and 'not shown to beat it' not in str(q)
    loud = Look(Predictions(100*S.predictions.logits, S.predictions.labels, S.predictions.clip_ids), S.features)
    r = short(loud, master)
    assert (r.verdict, r.case) == ('unclear', 'dominant') and abs(r.scores['headroom']) < .02                 # a student too sure of itself spoils the average: no reason to call its teacher useless


def test_the_stored_run_tells_the_three_settings_apart():
    rows = json.loads((ROOT/'bench'/'results'/'preflight-apart.json').read_text())['rows']
    assert len(rows) == 9 and {r['setting'][0]: (r['verdict'], r['case'], r['pairs']) for r in rows} == dict(A=('go', 'complementary', 0), B=('go', 'complementary', 360), C=('unclear', 'dominant', 0))
    assert all(len({(r['verdict'], r['case']) for r in rows if r['setting'][0] == k}) == 1 for k in 'ABC')


def test_a_teacher_that_knows_nothing(): assert short(*world(teacher=0, traces=0)).verdict == 'no-go'


def test_a_teacher_that_knows_what_the_student_knows():
    S, _ = world()
    p = short(S, S)
    assert p.verdict == 'no-go' and p.scores['headroom'] == 0 and p.scores['kappa'] == pytest.approx(1) and p.scores['complement'] < .1 and p.scores['cka'] == pytest.approx(1)


def test_a_useful_teacher_of_which_the_student_shows_no_trace():
    p = short(*world(student=0, traces=0))
    assert p.verdict == 'unclear' and p.scores['headroom'] > .3 and p.scores['predicted'] < .01 and 'hardly a trace' in str(p)


def test_the_predicted_gain_follows_what_is_known_to_matter():
    by_trace = [short(*world(traces=x)).scores['predicted'] for x in (0, .5, 1.5)]
    by_skill = [short(*world(teacher=x)).scores['headroom'] for x in (0, 1.5, 4)]
    assert by_trace == sorted(by_trace) and by_skill == sorted(by_skill)
    share = [short(*world(traces=x)).scores['mi_teacher_student'] for x in (0, .5, 1.5)]
    assert share == sorted(share)


def test_the_peer_takes_off_the_ensemble_effect():
    "A second student as good as the teacher: nothing is left for the sensor"
    S, T = world()
    p = short(S, T, T.predictions)
    assert p.scores['headroom'] == pytest.approx(0) and p.scores['predicted'] == 0 and p.scores['fusion_gain'] > .2 and p.verdict == 'no-go' and 'No second student' not in str(p)


def test_a_peer_that_hurts_is_not_the_bar():
    S, T = world()
    bad = Predictions(-9*S.predictions.logits, S.predictions.labels)
    assert short(S, T, bad).scores['headroom'] == pytest.approx(short(S, T).scores['headroom'])


def test_groups_widen_the_interval():
    "Ten persons with thirty clips each, of whom the teacher knows five"
    S, T = world(n=300)
    who = np.repeat(np.arange(10), 30)
    z = torch.where(torch.tensor(who < 5)[:, None], T.predictions.logits, torch.zeros(300, 6))
    half = Look(Predictions(z, T.predictions.labels), T.features)
    clips, persons = short(S, half), short(S, half, groups=who)
    assert persons.interval[1] - persons.interval[0] > 1.5*(clips.interval[1] - clips.interval[0])


def test_bootstrap_of_clips_is_the_standard_error():
    x = (rand(24).random((500, 1)) < .3).astype(float)
    lo, hi = _bootstrap(x, None, 4000, 0)[:, 0]
    assert (hi - lo)/2 == pytest.approx(1.96*math.sqrt(x.mean()*(1 - x.mean())/500), rel=.08)


def test_the_same_every_time():
    S, T = world(n=60)
    a, b, c = short(S, T), short(S, T), short(S, T, seed=1)
    assert a.scores == b.scores and a.reasons == b.reasons and a.scores['mi_teacher_student_p'] == pytest.approx(c.scores['mi_teacher_student_p'], abs=.1)


def test_calibration_of_the_teacher_is_judged_on_the_other_half():
    S, T = world(n=600)
    hot = Look(Predictions(8*T.predictions.logits, T.predictions.labels), T.features)
    a, b = short(S, T).scores, short(S, hot).scores
    assert b['teacher_temperature'] == pytest.approx(8*a['teacher_temperature'], rel=.01) and b['teacher_ece'] == pytest.approx(a['teacher_ece'], abs=.01)


@pytest.mark.parametrize('change, words', [
    (lambda S, T: (S, Look(Predictions(T.predictions.logits[:50], T.predictions.labels[:50]), T.features[:50])), '50 clips'),
    (lambda S, T: (S, Look(Predictions(T.predictions.logits, T.predictions.labels, tuple(f'd{i}' for i in range(300))), T.features)), 'order differs'),
    (lambda S, T: tuple(Look(Predictions(x.predictions.logits[:12], x.predictions.labels[:12]), x.features[:12]) for x in (S, T)), '20 or more')])
def test_clips_that_do_not_fit(change, words):
    with pytest.raises(DataError, match=words) as e: preflight(*change(*world()))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('groups', [[0]*300, [0, 1]])
def test_groups_that_do_not_fit(groups):
    with pytest.raises(DataError, match='two groups or more'): preflight(*world(), groups=groups)


def test_table_and_figures():
    p = short(*world())
    t = p.table()
    assert set(t.score) == set(p.scores) and t.meaning.str.len().min() > 10
    fig = p.figure()
    assert fig.data[0].z.tolist() == p.errors.tolist() and dict(zip(fig.data[1].y, fig.data[1].x))['both, averaged'] == pytest.approx(100*p.scores['fused'])
    fused = next(d for d in fig.data if d.name == 'fused')
    assert dict(zip(fused.y, fused.x)) == pytest.approx(dict(zip(p.classes['class'], 100*p.classes.fused)))
    a, b, _ = p.plot().axes
    assert list(fig.data[1].y) == ['student', 'teacher', 'both, averaged', 'one is right']
    other = preflight(*world(), peer=world(seed=1)[0].predictions, permutations=10)
    assert other.figure().data[1].y[1] == 'two students' and other.scores['ensemble'] != other.scores['student']
    assert [x.get_text() for x in a.texts] == [str(n) for n in p.errors.flatten()] and b.patches[0].get_width() == pytest.approx(100*p.scores['student'])


# ---------------------------------------------------------------- models and runs

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A tiny set with three held-out subjects, and the files of step 1"
    root = synthetic.make(tmp_path_factory.mktemp('preflight')/'set', seed=6, train=1, valid=0, test=0, unlabelled=2, skeletons=False, workers=1)
    df = synthetic.index(root)
    df.loc[df.split == 'unlabelled', 'split'] = 'valid'
    out, c = tmp_path_factory.mktemp('run'), Garcia2018(clip_len=4, bs=8)
    write_json(out/'run.json', dict(recipe='garcia2018', settings=c.__dict__, index=index_hash(df), data=None))
    torch.manual_seed(1)
    for name in ('rgb', 'depth'):
        save_model(SmallStream(10).eval(), out/name/'model.safetensors')
        write_json(out/name/'record.json', dict(name=name, test=[name]))
    return out, df, c


def test_features_are_what_the_last_layer_reads(run):
    _, df, c = run
    dl = make_test_dl(loaders(c, df, ['rgb']), df[df.split == 'valid'])
    m = SmallStream(10)
    seen, p = look(m, dl), predict(m, dl)
    assert torch.equal(seen.predictions.logits, p.logits) and seen.features.shape == (60, 64)
    with torch.no_grad():
        z = m.eval().fc(torch.tensor(seen.features))
        f = torch.cat([m.forward_features(x).mean((2, 3, 4)) for x, _ in dl])
    assert torch.allclose(z, p.logits, atol=1e-5) and np.allclose(seen.features, f, atol=1e-5)
    assert not m.fc._forward_pre_hooks


def test_views_are_averaged(run):
    _, df, c = run
    from moddist.data import clip_dls
    from moddist.draws import ClipSampler
    dl = make_test_dl(clip_dls(df, ('rgb',), ClipSampler(2, crop=48, clips=2), bs=8, dev='cpu'), df[df.split == 'valid'][:7], bs=3)
    m = SmallStream(10)
    seen, p = look(m, dl), predict(m, dl)
    assert seen.features.shape == (7, 64)
    with torch.no_grad(): assert torch.allclose(m.fc(torch.tensor(seen.features)), p.logits, atol=1e-5)


def test_looks_that_do_not_fit():
    p = Predictions(torch.zeros(4, 3), torch.zeros(4).long())
    for f in (np.zeros((3, 5)), np.zeros(4), np.full((4, 2), np.nan)):
        with pytest.raises(DataError): Look(p, f)
    with pytest.raises(ModelError, match='no linear layer'): look(nn.Identity(), [])


def test_a_run_of_untrained_streams_is_no_go(run):
    out, df, _ = run
    p = preflight_run(out, df, permutations=40)
    assert p.verdict in ('no-go', 'unclear') and p.n == 60 and p.names == ('rgb', 'depth') and set(p.classes['class']) == set(df.action) and p.scores['predicted'] < .05
    q = preflight_run(out, df, permutations=40, peer=out)
    few = df.assign(split=df.split.mask(df.index.isin(df[df.split == 'train'].index[:7]), 'unlabelled'))
    few.loc[few[few.split == 'unlabelled'].index[:2], 'depth'] = None
    assert p.pairs == 0 and preflight_run(out, few, permutations=10).pairs == 5, 'clips without labels that have both signals'
    assert q.scores['ensemble'] == q.scores['student'], 'a peer that is the student itself'


def test_a_run_refuses_test_clips_and_missing_steps(run, tmp_path):
    out, df, _ = run
    for split in ('test', 'train'):
        with pytest.raises(DataError, match='neither trained on nor tested on'): preflight_run(out, df, split)
    with pytest.raises(DataError, match='found train, valid'): preflight_run(out, df, 'held')
    with pytest.raises(DataError, match='no run'): preflight_run(tmp_path, df)
    write_json(tmp_path/'run.json', dict(settings=Garcia2018().__dict__))
    with pytest.raises(DataError, match="'rgb' is not finished"): preflight_run(tmp_path, df)
