"""The gap report: files of any origin, alignment, intervals against independent formulas, and rates of false claims measured by simulation."""
import dataclasses
import json
import math
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import refused
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student_t

from moddist import synthetic
from moddist.core import read_json, write_json
from moddist.evaluate import Answers, Predictions, answers, evaluate_run, read_predictions, write_predictions
from moddist.gap import align, by_class, gap_report, gap_run, predict_run, redraw, share_recovered
from moddist.models import SmallStream, TwoStream, save_model
from moddist.recipes import Garcia2018
from moddist.runs import index_hash

torch.set_num_threads(1)


def some(n=7, k=3, seed=0, dtype='float32'):
    g = np.random.default_rng(seed)
    return Predictions(torch.tensor(g.normal(0, 3, (n, k)).astype(dtype)), torch.tensor(g.integers(0, k, n)), tuple(f'{i:03d}' for i in range(n)))


def said(right, k=4, ids=None):
    "Answers that are right where `right` [N] is true"
    right = np.asarray(right, bool)
    y = np.arange(len(right)) % k
    return Answers(tuple(ids or (f'c{i}' for i in range(len(right)))), y, np.where(right, y, (y + 1) % k), k)


# ---------------------------------------------------------------- files

@pytest.mark.parametrize('end', ['csv', 'npz', 'safetensors'])
@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 12), seed=st.integers(0, 999))
def test_files_give_back_every_bit(tmp_path_factory, end, n, k, seed):
    p = some(n, k, seed)
    q = read_predictions(write_predictions(p, tmp_path_factory.mktemp('p')/f'p.{end}'))
    assert torch.equal(q.logits, p.logits) and torch.equal(q.labels, p.labels) and q.clip_ids == p.clip_ids


def test_clip_ids_stay_text(tmp_path):
    "Leading zeros, commas, quotes, NA, other alphabets"
    ids = ('007', 'a,b', 'say "x"', 'NA', 'nan', 'Übung 1', '1e5')
    p = dataclasses.replace(some(), clip_ids=ids)
    for end in ('csv', 'npz', 'safetensors'): assert read_predictions(write_predictions(p, tmp_path/f'p.{end}')).clip_ids == ids


def test_files_of_other_origin(tmp_path):
    "Probabilities, predicted classes, other spellings, numbers as names, columns in any order"
    probs = np.array([[.2, .8, 0], [.5, .25, .25]])
    (tmp_path/'a.csv').write_text('prob_2,label,prob_0,clip_id,note,prob_1\n0,1,.2,x,hello,.8\n.25,0,.5,y,,.25\n')
    np.savez(tmp_path/'a.npz', clip_ids=np.array([11, 12]), labels=np.array([1., 0.]), probs=probs)
    for f, ids in (('a.csv', ('x', 'y')), ('a.npz', ('11', '12'))):
        p = read_predictions(tmp_path/f)
        torch.testing.assert_close(p.logits.softmax(1), torch.tensor(probs, dtype=torch.float32)); assert p.clip_ids == ids and p.labels.tolist() == [1, 0]
    (tmp_path/'b.csv').write_text('clip_id,label,prediction\nx,1,1\ny,0,2\n')
    from safetensors.numpy import save_file
    save_file(dict(clip_id=np.array([5, 6]), label=np.array([1, 0]), predicted=np.array([1, 2])), tmp_path/'b.safetensors')
    for f in ('b.csv', 'b.safetensors'):
        assert answers(tmp_path/f).guesses.tolist() == [1, 2]
        refused(lambda: read_predictions(tmp_path/f), f, 'without scores', 'gap_report')


@pytest.mark.parametrize('text, words', [
    ('clip_id,label\na,0\n', 'no logits, probabilities or predicted; found clip_id, label'),
    ('label,predicted\n0,0\n', 'no clip_id'), ('clip_id,predicted\na,0\n', 'no label'),
    ('clip_id,label,predicted\n', 'at least one clip'),
    ('clip_id,label,predicted\na,0,1\na,0,1\n', 'clip a is there more than once'),
    ('clip_id,label,predicted\na,walk,1\n', "label 'walk' is not a number"),
    ('clip_id,label,predicted\na,0,1\nb,0,\n', 'row 2 is not'), ('clip_id,label,predicted\na,0,1.5\n', 'whole number'), ('clip_id,label,predicted\na,-1,1\n', 'label must be'),
    ('clip_id,label,prob_0,prob_1\na,0,2,1\n', 'sum to 3'), ('clip_id,label,prob_0,prob_1\na,0,1.5,-.5\n', 'smallest is -0.5'),
    ('clip_id,label,logit_0,logit_1\na,2,1,2\n', 'label 2 with 2 classes'), ('clip_id,label,logit_0,logit_2\na,0,1,2\n', 'numbered 0, 2'),
    ('clip_id,label,logit_0,logit_1\na,0,1,\n', 'finite'), ('', 'cannot be read')])
def test_files_that_are_refused(tmp_path, text, words):
    (tmp_path/'bad.csv').write_text(text)
    refused(lambda: answers(tmp_path/'bad.csv'), 'bad.csv', words)


def test_no_file_can_run_code(tmp_path):
    np.savez(tmp_path/'evil.npz', clip_id=np.array(['a'], dtype=object), label=np.array([0]), predicted=np.array([0]))
    refused(lambda: answers(tmp_path/'evil.npz'), 'evil.npz', 'cannot be read', 'pickled')
    (tmp_path/'evil.pkl').write_bytes(pickle.dumps(1))
    refused(lambda: answers(tmp_path/'evil.pkl'), 'evil.pkl', '.csv, .npz, .safetensors')
    refused(lambda: answers(tmp_path/'gone.csv'), 'gone.csv', 'no such file')
    for end in ('npz', 'safetensors'):
        whole = write_predictions(some(200), tmp_path/f'cut.{end}').read_bytes()
        (tmp_path/f'cut.{end}').write_bytes(whole[:len(whole)//2])
        refused(lambda: answers(tmp_path/f'cut.{end}'), f'cut.{end}', 'cannot be read')


def test_writing_is_atomic(tmp_path, monkeypatch):
    f = write_predictions(some(), tmp_path/'here'/'p.npz')
    before = f.read_bytes()
    def broken(*a, **k): a[0].write_bytes(b'half'); raise KeyboardInterrupt
    monkeypatch.setattr(np, 'savez_compressed', broken)
    with pytest.raises(KeyboardInterrupt): write_predictions(some(9), f)
    assert f.read_bytes() == before and [x.name for x in f.parent.iterdir()] == ['p.npz']
    refused(lambda: write_predictions(dataclasses.replace(some(), clip_ids=()), tmp_path/'q.csv'), 'without clip ids')
    refused(lambda: write_predictions(some(), tmp_path/'q.pt'), 'q.pt', '.csv')


# ---------------------------------------------------------------- alignment

@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 999))
def test_order_of_clips_does_not_matter(n, seed):
    g = np.random.default_rng(seed)
    a, b = said(g.random(n) < .5), said(g.random(n) < .5)
    o = g.permutation(n)
    mixed = Answers(tuple(b.clip_ids[i] for i in o), b.labels[o], b.guesses[o], 4)
    _, _, x = align(dict(a=a, b=[b, mixed]))
    assert (x['b'][0] == x['b'][1]).all() and (x['b'][0] == (b.guesses == b.labels)).all()


def test_models_that_do_not_match():
    a = said([1]*6)
    refused(lambda: align(dict(a=a, b=[a, said([1]*5)])), 'b, file 2', '1 of 6', 'c5')
    refused(lambda: align(dict(a=a, b=said([1]*7))), '1 clips', 'c6', 'not among')
    refused(lambda: align(dict(a=a, b=said([1]*6, ids=list('uvwxyz')))), '6 of 6', 'c0')
    refused(lambda: align(dict(a=a, b=dataclasses.replace(a, labels=np.array([0, 1, 2, 3, 0, 2])))), 'c5 has label 2', 'says 1', '1 clips differ')
    refused(lambda: align(dict(a=a, b=dataclasses.replace(a, classes=7))), '7 classes', 'has 4')
    refused(lambda: align(dict(a=a, b=[])), 'b: no predictions')
    refused(lambda: align(dict(a=dataclasses.replace(some(), clip_ids=()))), 'without clip ids')
    refused(lambda: dataclasses.replace(a, clip_ids=('c0',)*6), 'more than once')


# ---------------------------------------------------------------- one interval, by another way

def anova(a, b):
    "Variance of mean(b) - mean(a), x [seeds, clips]: two-way layout written out in sums of squares"
    n, d = a.shape[1], b.mean(0) - a.mean(0)
    v_clips, both, seeds, rest = d.var(ddof=1)/n, 0., 0., 0.
    for x in (a, b):
        s = len(x)
        if s == 1: continue
        residual = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
        both += (residual**2).sum()/((s - 1)*(n - 1))/(n*s)
        v = x.mean(1).var(ddof=1)/s
        seeds, rest = seeds + v, rest + v*v/(s - 1)
    kept = max(v_clips - both, 0)
    v = kept + seeds + 1/n**2
    return v, v**2/((kept + 1/n**2)**2/(n - 1) + rest)


@settings(max_examples=25, deadline=None)
@given(s=st.integers(1, 5), t=st.integers(1, 5), n=st.integers(20, 120), seed=st.integers(0, 999))
def test_resampled_variance_is_that_of_the_two_way_layout(s, t, n, seed):
    g = np.random.default_rng(seed)
    hard = g.normal(0, 1, n)
    a, b = ((g.random((k, n)) < 1/(1 + np.exp(-hard - g.normal(0, .3, (k, 1))))).astype(float) for k in (s, t))
    e = redraw(dict(a=a, b=b), resamples=6000).contrast(dict(b=1, a=-1))
    v, df = anova(a, b)
    assert e.value == pytest.approx(b.mean() - a.mean())
    assert e.se == pytest.approx(math.sqrt(v), rel=.05) and e.df == pytest.approx(df, rel=.2)
    assert e.hi - e.value == pytest.approx(student_t.ppf(.975, e.df)*e.se) and e.lo + e.hi == pytest.approx(2*e.value)


def test_groups_of_one_change_nothing_and_groups_alike_are_one():
    "Every clip shown three times, as a group: the interval of the clips shown once"
    g = np.random.default_rng(1)
    a, b = (g.random((3, 150)) < .6).astype(float), (g.random((3, 150)) < .7).astype(float)
    alone = redraw(dict(a=a, b=b), range(150), resamples=20_000).contrast(dict(b=1, a=-1))
    thrice = redraw(dict(a=np.repeat(a, 3, 1), b=np.repeat(b, 3, 1)), np.repeat(np.arange(150), 3), resamples=20_000)
    assert thrice.units == 150 and thrice.contrast(dict(b=1, a=-1)).se == pytest.approx(math.sqrt(alone.se**2 - 1/150**2 + 1/450**2), rel=.01)   # but for the two extra clips
    assert redraw(dict(a=a, b=b), resamples=20_000).contrast(dict(b=1, a=-1)) == alone
    refused(lambda: redraw(dict(a=a), ['one']*150), '1 group')


@pytest.mark.parametrize('won, lost', [(2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (9, 1), (12, 3), (30, 12)])
def test_no_verdict_from_a_handful_of_clips(won, lost):
    "One seed: never BEATS where the exact sign test does not reject (one-sided, 5 %)"
    a, b = np.zeros((1, 400)), np.zeros((1, 400))
    b[0, :won] = 1; a[0, won:won + lost] = 1; a[0, 200:] = b[0, 200:] = 1
    e = redraw(dict(a=a, b=b)).contrast(dict(b=1, a=-1))
    assert e.verdict != 'BEATS' or binomtest(won, won + lost, alternative='greater').pvalue < .05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), s=st.integers(1, 4))
def test_verdicts_are_mirror_images(seed, s):
    g = np.random.default_rng(seed)
    m = dict(a=(g.random((s, 60)) < .5).astype(float), b=(g.random((s, 60)) < .7).astype(float))
    r = redraw(m, resamples=500, seed=seed)
    up, down = r.contrast(dict(b=1, a=-1)), r.contrast(dict(a=1, b=-1))
    assert (up.lo, up.hi) == pytest.approx((-down.hi, -down.lo)) and {up.verdict, down.verdict} in ({'BEATS', 'WORSE'}, {'NO DIFFERENCE'})
    assert (up.p < .05) == (up.verdict != 'NO DIFFERENCE')
    same = redraw(m, resamples=500, seed=seed)
    assert same.contrast(dict(b=1, a=-1)) == up                                    # the seed decides everything


# ---------------------------------------------------------------- promises, measured

def simulate(pairs, seeds, clips, train_sd, gain=0., own=.5, subjects=0, subject_sd=.6, key=0):
    "Right or wrong [pairs, 2, seeds, clips]: difficulty of clips, clips (and subjects) that suit one method, luck of each training; truth of accuracy B - A"
    g = np.random.default_rng([key, seeds, clips])
    score = g.normal(0, 1.5, (pairs, 1, 1, clips)) + g.normal(0, own, (pairs, 2, 1, clips)) + g.normal(0, train_sd, (pairs, 2, seeds, 1))
    if subjects: score += g.normal(0, subject_sd, (pairs, 2, 1, subjects))[..., np.arange(clips) % subjects]
    score[:, 1] += gain
    x, w = np.polynomial.hermite_e.hermegauss(90)
    spread = math.sqrt(1.5**2 + own**2 + train_sd**2 + (subject_sd**2 if subjects else 0))
    mean = lambda mu: (w/(1 + np.exp(-mu - spread*x))).sum()/w.sum()
    return (g.random(score.shape) < 1/(1 + np.exp(-score))).astype(float), mean(gain) - mean(0.)


def measured(x, truth, groups=None, **options):
    "(coverage, BEATS, WORSE) of all pairs; one redraw serves them all"
    r = redraw({f'{i}{m}': x[i, j] for i in range(len(x)) for j, m in enumerate('ab')}, groups, resamples=1000, **options)
    found = [r.contrast({f'{i}b': 1, f'{i}a': -1}) for i in range(len(x))]
    return tuple(np.mean(v) for v in ([e.lo <= truth <= e.hi for e in found], [e.verdict == 'BEATS' for e in found], [e.verdict == 'WORSE' for e in found]))


@pytest.mark.parametrize('seeds, train_sd', [(1, 0.), (2, .2), (3, 0.), (3, .2), (3, .4), (5, .2)])
def test_false_claims_of_equal_methods(seeds, train_sd):
    "1,000 null pairs on 300 clips, trainings that differ by 0 to 8 points: the two-sided 95 % interval is wrong in 3-7 %, and BEATS in at most 5 % (2.5 % expected; 2.2-2.6 % in four times as many pairs)"
    coverage, beats, worse = measured(*simulate(1000, seeds, 300, train_sd, key=50))
    assert .93 <= coverage <= .97, (coverage, beats, worse)
    assert beats <= .045 and worse <= .045


@pytest.mark.parametrize('seeds', [1, 3, 5])
def test_coverage_of_a_real_difference(seeds):
    x, truth = simulate(1000, seeds, 300, 0. if seeds == 1 else .2, gain=.5, key=50)
    coverage, beats, worse = measured(x, truth)
    assert .08 < truth < .11 and .93 <= coverage <= .97 and worse < .01 and beats > .2


def test_one_seed_needs_the_spread_of_trainings():
    "Networks that differ by luck: without `seed_sd` the interval is about the networks, not the methods; with it the promise holds"
    x, truth = simulate(1000, 1, 300, .3)
    sd = simulate(300, 5, 300, .3, key=2)[0].mean(3).std(2, ddof=1).mean()
    assert measured(x, truth)[0] < .85
    coverage, beats, _ = measured(x, truth, seed_sd=sd)
    assert .93 <= coverage <= .985 and beats <= .045


def test_clips_of_a_subject_are_not_independent():
    "20 subjects that suit one method or the other: redrawing clips claims too much, redrawing subjects keeps the promise"
    x, truth = simulate(1000, 1, 300, 0., subjects=20)
    assert measured(x, truth)[0] < .9
    coverage, beats, _ = measured(x, truth, np.arange(300) % 20)
    assert .93 <= coverage <= .97 and beats <= .045
    x, truth = simulate(500, 3, 300, .2, subjects=20)
    coverage, beats, _ = measured(x, truth, np.arange(300) % 20)
    assert .925 <= coverage <= .98 and beats <= .05


def test_share_of_the_gap_is_covered():
    "Three models, known shares: Fieller's interval holds the truth in 93-97.5 %"
    g, k, held = np.random.default_rng(0), 400, 0
    x, w = np.polynomial.hermite_e.hermegauss(90)
    mean = lambda mu: (w/(1 + np.exp(-mu - math.sqrt(1.5**2 + .5**2 + .2**2)*x))).sum()/w.sum()
    mus, names = (0., .5, 1.6), ('best', 'student', 'teacher')
    b, s, t = map(mean, mus)
    score = np.array(mus)[:, None, None] + g.normal(0, 1.5, (k, 1, 1, 300)) + g.normal(0, .5, (k, 3, 1, 300)) + g.normal(0, .2, (k, 3, 3, 1))
    right = (g.random(score.shape) < 1/(1 + np.exp(-score))).astype(float)
    r = redraw({f'{n}{i}': right[i, j] for i in range(k) for j, n in enumerate(names)}, resamples=1000)
    found = [share_recovered(r, f'student{i}', f'best{i}', f'teacher{i}') for i in range(k)]
    held = np.mean([f.lo <= (s - b)/(t - b) <= f.hi for f in found])
    assert .93 <= held <= .98 and np.median([f.value for f in found]) == pytest.approx((s - b)/(t - b), abs=.04)
    assert np.mean([math.isfinite(f.lo) for f in found]) > .95


def test_winners_and_losers_are_rarely_invented():
    "100 tables of eight classes of equal methods: even one false call in at most about 5 % of them"
    called = 0
    for i in range(100):
        x, _ = simulate(1, 3, 240, .2, key=100 + i)
        called += (by_class(np.arange(240) % 8, dict(a=x[0, 0], b=x[0, 1]), resamples=200).verdict != '').any()
    assert called/100 <= .08


def test_the_better_baseline_may_be_chosen_afterwards():
    "Student, baseline and control are equal: BEATS needs both, so the choice cannot make a claim"
    g, claims = np.random.default_rng(3), 0
    for i in range(100):
        score = g.normal(0, 1.5, 200) + g.normal(0, .5, (3, 1, 200)) + g.normal(0, .2, (3, 3, 1))
        a = [[said(row) for row in m] for m in g.random(score.shape) < 1/(1 + np.exp(-score))]
        claims += gap_report(a[0], a[1], student=a[2], resamples=200).verdict == 'BEATS'
    assert claims/100 <= .05


# ---------------------------------------------------------------- share and classes, by hand

def exact(share, n=400, seeds=1): return np.repeat((np.arange(n) < share*n)[None].astype(float), seeds, 0)


def test_share_that_is_undefined_or_unbounded():
    r = redraw(dict(b=exact(.5), s=exact(.6), t=exact(.7), u=exact(.5), w=exact(.505)))
    s = share_recovered(r, 's', 'b', 't')
    assert s.value == pytest.approx(.5) and 0 < s.lo < .5 < s.hi < 1 and s.note == ''
    none = share_recovered(r, 's', 'b', 'u')
    assert math.isnan(none.value) and 'undefined' in none.note and '+0.0 points' in none.note
    assert 'no gap' in share_recovered(r, 's', 't', 'b').note
    wide = share_recovered(r, 's', 'b', 'w')
    assert (wide.lo, wide.hi) == (-math.inf, math.inf) and 'unbounded' in wide.note


def test_the_headline_gives_no_share_without_bounds():
    "The teacher is hardly above the baseline: the share has no bounds, and none are printed"
    clips = 400
    baseline, student = (said(np.arange(clips) < k) for k in (200, 240))
    r = gap_report(baseline=baseline, student=student, teacher=said(np.roll(np.arange(clips) < 202, 30)), resamples=400)
    assert math.isinf(r.share.lo) and math.isinf(r.share.hi)
    assert 'cannot be told' in r.headline and '\N{INFINITY}' not in r.headline


@settings(max_examples=15, deadline=None)
@given(b=st.floats(.2, .5), s=st.floats(.2, .9), t=st.floats(.65, .95), seed=st.integers(0, 99))
def test_fieller_inverts_the_test(b, s, t, seed):
    "At the ends of the interval the contrast student - best - share*(teacher - best) is on the edge of being rejected"
    g = np.random.default_rng(seed)
    r = redraw({n: (g.random((1, 300)) < p).astype(float) for n, p in dict(b=b, s=s, t=t).items()}, resamples=1000)
    f = share_recovered(r, 's', 'b', 't')
    if not math.isfinite(f.lo): return
    assert f.lo < f.value < f.hi
    for end in (f.lo, f.hi):
        e = r.contrast(dict(s=1, t=-end, b=end - 1))
        assert abs(e.value)/e.se == pytest.approx(student_t.ppf(.975, e.df), rel=.02)


def test_classes_by_hand():
    label = np.repeat([0, 1, 2, 3], [50, 50, 50, 1])
    a, b = np.zeros((1, 151)), np.zeros((1, 151))
    a[0, :25] = 1; b[0, :50] = 1                         # class 0: half to all
    a[0, 50:100] = 1; b[0, 50:60] = 1                    # class 1: all to a fifth
    t = by_class(label, dict(a=a, b=b), names=['push', 'pull', 'rest', 'once']).set_index('class')
    assert t.loc['push', ['n', 'a', 'b', 'difference', 'verdict']].tolist() == [50, .5, 1, .5, 'winner']
    assert t.loc['pull', 'difference'] == pytest.approx(-.8) and t.loc['pull', 'verdict'] == 'loser'
    assert t.loc['rest', 'verdict'] == '' and t.loc['rest', 'lo'] < 0 < t.loc['rest', 'hi']
    assert math.isnan(t.loc['once', 'lo']) and t.loc['once', 'verdict'] == ''       # one clip says nothing
    assert t.index[0] == 'push' and t.index[-1] == 'pull'


def test_holm_by_hand():
    g = np.random.default_rng(0)
    label = np.arange(600) % 6
    x = dict(a=(g.random((1, 600)) < .5).astype(float), b=(g.random((1, 600)) < .5 + .08*label).astype(float))
    t = by_class(label, x)
    raw = {k: redraw({m: v[:, label == int(k)] for m, v in x.items()}).contrast(dict(b=1, a=-1)).p for k in t['class']}
    order = sorted(raw, key=raw.get)
    holm, top = {}, 0
    for i, k in enumerate(order): top = max(top, min(1, raw[k]*(6 - i))); holm[k] = top
    assert t.p.tolist() == pytest.approx([holm[k] for k in t['class']])


# ---------------------------------------------------------------- the report

@pytest.fixture(scope='module')
def four():
    g = np.random.default_rng(7)
    hard = g.normal(0, 1, 240)
    make = lambda mu, seeds: [said(g.random(240) < 1/(1 + np.exp(-mu - hard - luck))) for luck in g.normal(0, .1, seeds)]
    return dict(baseline=make(0, 3), control=make(.6, 3), teacher=make(2.5, 3), student=make(1.2, 3))


def test_report_says_what_was_asked(four):
    r = gap_report(**four, resamples=1000, names=dict(student='<me>'))
    m = r.models.set_index('role')
    for k, v in four.items(): assert m.loc[k, 'each'] == pytest.approx([(a.guesses == a.labels).mean() for a in v]) and m.loc[k, 'top1'] == pytest.approx(np.mean(m.loc[k, 'each']))
    assert r.verdict == 'BEATS' and set(m.verdict[['baseline', 'control']]) == {'BEATS'} and m.verdict['teacher'] == 'WORSE'
    assert r.share.value == pytest.approx((m.top1['student'] - m.top1['control'])/(m.top1['teacher'] - m.top1['control']))
    assert m.loc['control', 'difference'] == pytest.approx(m.top1['student'] - m.top1['control'])
    for w in ('BEATS: <me>', 'control', '95 % interval', '240 clips', '3 seeds', 'share of the gap'): assert w in r.headline
    assert r.headline in repr(r) and '&lt;me&gt;' in r._repr_html_() and '<me>' not in r._repr_html_()
    t = r.table()
    assert list(t.role) == ['baseline', 'control', 'teacher', 'student'] and t.loc['<me>', 'student minus it'] == '' and 'params' not in t
    assert repr(gap_report(**four, resamples=1000, names=dict(student='<me>'))) == repr(r)
    assert gap_report(**four, resamples=1000, level=.8).models.d_lo[0] > r.models.d_lo[0]


def test_beats_needs_both_baselines(four):
    r = gap_report(four['baseline'], four['student'], student=four['student'], resamples=500)
    assert (r.verdict, r.against) == ('NO DIFFERENCE', 'control')
    r = gap_report(four['teacher'], four['baseline'], student=four['student'], resamples=500)
    assert (r.verdict, r.against) == ('WORSE', 'baseline')


def test_notes_say_what_is_not_covered(four):
    first = {k: v[0] for k, v in four.items()}
    notes = lambda **o: ' '.join(gap_report(**{**first, **o}, resamples=200).notes)
    assert 'not other trainings' in notes() and 'these trained networks' in notes()
    assert 'One seed of baseline, control, teacher:' in notes(student=four['student'])
    assert 'not other trainings' not in ' '.join(gap_report(**four, resamples=200).notes) and 'Two seeds' in notes(student=four['student'][:2])
    assert '3.0 points was given' in notes(seed_sd=.03) and 'No control' in notes(control=None)
    assert 'control has 100 params, student has 200' in notes(params=dict(student=200, control=100)) and 'equal size' not in notes(params=dict(student=200, control=199))
    assert 'baseline has 40 epochs, student has 144' in notes(epochs=dict(student=144, control=144, baseline=40))
    assert 'Only 4 groups' in notes(groups={f'c{i}': i % 4 for i in range(240)})
    assert 'no teacher' in gap_report(first['baseline'], student=first['student'], resamples=200).share.note


def test_json_is_strict(four, tmp_path):
    r = gap_report(four['baseline'], student=four['student'][0], resamples=200)
    data = json.loads(r.to_json(tmp_path/'gap.json'), parse_constant=lambda c: pytest.fail(c))
    assert data == read_json(tmp_path/'gap.json') and data['headline'] == r.headline and data['share']['value'] is None
    assert [m['role'] for m in data['models']] == ['baseline', 'student'] and len(data['classes']) == 4


def test_report_refuses(four):
    refused(lambda: gap_report(four['baseline']), 'needs a student')
    refused(lambda: gap_report(**four, level=95), 'level=95')
    refused(lambda: gap_report(**four, resamples=10), 'resamples=10')
    refused(lambda: gap_report(**four, groups={'c0': 'anna'}), '239 of 240', 'c1')
    assert gap_report(**four, resamples=200, groups=pd.Series({f'c{i}': i % 12 for i in range(240)})).units == 12


def test_both_figures_show_the_numbers(four):
    r = gap_report(**four, resamples=500)
    fig, ax = r.figure(classes=3), r.plot(classes=3).axes
    points = [t for t in fig.data if t.error_x.array is not None]
    assert [t.x[0] for t in points] == pytest.approx([100*v for v in [*r.models.top1, *r.models.difference[:3], *[r.classes.difference[i] for i in (0, 2, 3)]]])
    assert points[4].x[0] + points[4].error_x.array[0] == pytest.approx(100*r.models.d_hi[0])
    drawn = [line.get_xdata()[0] for a in ax for line in a.lines if line.get_marker() == 'o' and line.get_markersize() == 6]
    assert drawn == pytest.approx([t.x[0] for t in points])
    assert [len(t.x) for t in fig.data if t.error_x.array is None] == [3]*4                        # every seed a dot
    none = gap_report(four['teacher'], student=four['baseline'], resamples=200)
    assert not none.figure().layout.shapes or all(s.type != 'rect' for s in none.figure().layout.shapes)


def test_files_and_predictions_mix(tmp_path):
    g = np.random.default_rng(5)
    make = lambda bonus: Predictions(torch.tensor(g.normal(0, 1, (90, 3)).astype('float32')) + bonus*torch.eye(3)[np.arange(90) % 3], torch.tensor(np.arange(90) % 3), tuple(f'{i:02d}' for i in range(90)))
    a, b = make(.2), make(2.)
    files = [write_predictions(p, tmp_path/n) for p, n in ((a, 'a.csv'), (b, 'b.npz'))]
    assert repr(gap_report(a, student=b, resamples=300)) == repr(gap_report(files[0], student=files[1], resamples=300))


# ---------------------------------------------------------------- runs

STEPS = {'rgb-long': 1, 'rgb+rgb': 2, 'rgb+depth': 2, 'rgb+hallucination': 2}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two finished runs that differ in the seed, with untrained models"
    root = tmp_path_factory.mktemp('runs')
    df = synthetic.index(synthetic.make(root/'set', seed=3, train=1, valid=1, test=1, skeletons=False, workers=1))
    for seed in (0, 1):
        torch.manual_seed(seed)
        out, c = root/f's{seed}', Garcia2018(clip_len=4, bs=8, seed=seed)
        write_json(out/'run.json', dict(recipe='garcia2018', settings=dataclasses.asdict(c), index=index_hash(df), data=None))
        for name, streams in STEPS.items():
            k = df.label.nunique()
            model = SmallStream(k) if streams == 1 else TwoStream(SmallStream(k), SmallStream(k), 'none')
            save_model(model, out/name/'model.safetensors')
            write_json(out/name/'record.json', dict(name=name, step=None, test=['rgb', 'depth'] if name == 'rgb+depth' else ['rgb'], params=sum(p.numel() for p in model.parameters()), seconds=0))
    return root, df


def test_predictions_of_a_run_are_kept_and_renewed(runs):
    root, df = runs
    files = predict_run(root/'s0', df, ['rgb-long', 'rgb+depth'])
    p = {n: read_predictions(f) for n, f in files.items()}
    rows = {r['name']: r for r in evaluate_run(root/'s0', df)}
    for n, q in p.items(): assert float((q.logits.argmax(1) == q.labels).float().mean()) == pytest.approx(rows[n]['top1'], abs=1e-4) and set(q.clip_ids) == set(df.clip_id[df.split == 'test'])
    made = {n: f.stat().st_mtime_ns for n, f in files.items()}
    predict_run(root/'s0', df, list(files)); assert {n: f.stat().st_mtime_ns for n, f in files.items()} == made      # nothing to do
    torch.manual_seed(9); save_model(SmallStream(df.label.nunique()), root/'s0'/'rgb-long'/'model.safetensors')         # other weights
    files['rgb+depth'].write_bytes(b'cut off')
    predict_run(root/'s0', df, list(files))
    assert not torch.equal(read_predictions(files['rgb-long']).logits, p['rgb-long'].logits) and torch.equal(read_predictions(files['rgb+depth']).logits, p['rgb+depth'].logits)
    refused(lambda: predict_run(root/'s0', df, ['student']), "'student' is not there", 'rgb-long')
    refused(lambda: predict_run(root/'s0', df[df.split != 'test']), 'no test clips')


def test_report_of_runs(runs):
    root, df = runs
    r = gap_run([root/'s0', root/'s1'], df, groups='camera', resamples=300)
    t = r.table()
    assert list(t.index) == ['rgb-long', 'rgb+rgb', 'rgb+depth', 'rgb+hallucination'] and set(t.seeds) == {2}
    assert t.epochs.tolist() == ['144', '144', '52', '144']                              # of E = 40: long, long, 1 + .3, and 1 + .3 + 2 + .3
    assert r.units == df[df.split == 'test'].camera.nunique()
    assert t.params['rgb+rgb'] == t.params['rgb+hallucination'] and r.clips == (df.split == 'test').sum() and not any('equal size' in n or 'equal training' in n for n in r.notes)
    assert set(r.classes['class']) == set(df.action) and 'Two seeds' in ' '.join(r.notes)
    one = gap_run(root/'s0', df, resamples=300)
    assert 'not other trainings' in one.notes[0]
    refused(lambda: gap_run([root/'s0', root/'s0'], df), 'not even the seed')
    refused(lambda: gap_run(root, df), 'holds no run')
    refused(lambda: gap_run(root/'s0', df, groups='town'), "groups='town'", 'clip_id')
    refused(lambda: gap_run(root/'s0', df, student='student'), "'student' is not there")
    other = dataclasses.asdict(Garcia2018(clip_len=4, bs=8, seed=5, lr=.1))
    write_json(root/'s5'/'run.json', dict(settings=other))
    refused(lambda: gap_run([root/'s0', root/'s5'], df), 'differ in lr')
    early = {k: v for k, v in dataclasses.asdict(Garcia2018(clip_len=4, bs=8, seed=6)).items() if k not in ('unlabelled', 'zoom', 'heads')}       # written before these settings existed
    shutil.copytree(root/'s1', root/'s6'); write_json(root/'s6'/'run.json', dict(recipe='garcia2018', settings=early, index=index_hash(df), data=None))
    assert gap_run([root/'s0', root/'s6'], df, resamples=300).table().epochs.tolist() == t.epochs.tolist()
