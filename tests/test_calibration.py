"""Calibration against numbers calculated by hand, by a plain loop, or known because the data were drawn from them."""
import math

import numpy as np
import pytest
from conftest import refused
import torch
from hypothesis import given, settings, strategies as st

from moddist.calibration import adaptive_ece, brier, calibrate, calibration_table, ece_floor, nll, plot_reliability, reliability, reliability_figure, soften, temperature
from moddist.evaluate import Predictions, ece

torch.set_num_threads(1)


def drawn(n, t=1., k=6, spread=2.5, seed=0):
    "Labels really follow softmax(logits/t)"
    g = np.random.default_rng(seed)
    z = g.normal(0, spread, (n, k)).astype('float32')
    return Predictions(torch.tensor(z), torch.tensor((z/t + g.gumbel(size=z.shape)).argmax(1)), tuple(f'{seed}-{i}' for i in range(n)))


def of(probabilities, labels): return Predictions(torch.tensor(probabilities, dtype=torch.float64).log().float(), torch.tensor(labels))


# ---------------------------------------------------------------- reliability and errors

def test_golden_example():
    "Two clips at 0.9, one right: 40.0, in bins of equal width and of equal mass"
    p = of([[.9, .1], [.9, .1]], [0, 1])
    assert 100*ece(p) == pytest.approx(40, abs=1e-4) and 100*adaptive_ece(p) == pytest.approx(40, abs=1e-4)
    row, = reliability(p).to_dict('records')
    assert (row['n'], row['accuracy']) == (2, .5) and row['lo'] < .9 <= row['hi'] and row['gap'] == pytest.approx(-.4)


def test_bins_are_open_below_and_closed_above():
    r = reliability(of([[.5, .5], [.75, .25]], [1, 0]), bins=2)
    assert r[['lo', 'hi', 'n']].values.tolist() == [[0, .5, 1], [.5, 1, 1]]
    r = reliability(Predictions(torch.tensor([[0., 0.], [1000., 0.]]), torch.tensor([1, 0])), bins=4)    # exactly .5 and 1
    assert r[['lo', 'hi']].values.tolist() == [[.25, .5], [.75, 1]]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 120), k=st.integers(2, 7), bins=st.integers(1, 20), t=st.floats(.2, 5), seed=st.integers(0, 99))
def test_one_table_for_every_error(n, k, bins, t, seed):
    "Equal-width bins give `ece`; no clip is lost; gaps sum to accuracy minus confidence; the order of clips does not matter"
    p = drawn(n, t, k, seed=seed)
    r, m = reliability(p, bins), reliability(p, bins, adaptive=True)
    assert (r.n*r.gap.abs()).sum()/n == pytest.approx(ece(p, bins), abs=1e-5)
    overall = (p.logits.argmax(1) == p.labels).double().mean() - p.logits.softmax(1).amax(1).double().mean()
    for x in (r, m):
        assert x.n.sum() == n and (x.n*x.gap).sum()/n == pytest.approx(float(overall), abs=1e-6)
        assert (x.lo < x.confidence + 1e-6).all() and (x.confidence <= x.hi + 1e-6).all() and (x.lo.values[1:] >= x.hi.values[:-1] - 1e-9).all()
    c = p.logits.softmax(1).amax(1)
    assert m.n.max() - m.n.min() <= 1 or bins > n or len(c.unique()) < n         # equal mass, unless clips are tied
    o = torch.tensor(np.random.default_rng(seed).permutation(n))
    assert adaptive_ece(Predictions(p.logits[o], p.labels[o]), bins) == pytest.approx(adaptive_ece(p, bins), abs=1e-6)


def test_clips_of_equal_confidence_stay_together():
    "Ten clips alike and two others: six bins of equal mass cannot divide the ten"
    p = of([[.9, .1]]*10 + [[.6, .4], [.7, .3]], [0]*12)
    assert reliability(p, 6, adaptive=True).n.tolist() == [2, 10]
    assert reliability(p, 50, adaptive=True).n.tolist() == [1, 1, 10]


def test_brier_and_likelihood_by_hand():
    p = of([[.7, .2, .1], [.1, .1, .8]], [0, 1])
    assert brier(p) == pytest.approx((.3**2 + .2**2 + .1**2 + .1**2 + .9**2 + .8**2)/2, abs=1e-6)
    assert nll(p) == pytest.approx(-(math.log(.7) + math.log(.1))/2, abs=1e-6)
    surely_wrong = Predictions(torch.eye(2)*200, torch.tensor([1, 0]))
    assert brier(surely_wrong) == pytest.approx(2) and nll(surely_wrong) == pytest.approx(200)


def test_proper_scores_prefer_the_truth():
    p = drawn(20_000, t=2.)
    for score in (brier, nll):
        values = [score(soften(p, t)) for t in (1., 1.6, 2., 2.5, 4.)]
        assert values[2] == min(values)


@pytest.mark.parametrize('n', [100, 1000])
def test_floor_is_the_error_of_a_perfect_model(n):
    "The mean over models that are calibrated by construction; the 95 % bound holds in about 95 %"
    found = [(ece(p), *ece_floor(p, draws=100, seed=s)) for s in range(120) for p in [drawn(n, seed=s)]]
    errors, means, bounds = np.array(found).T
    assert errors.mean() == pytest.approx(means.mean(), rel=.06)
    assert .88 <= (errors <= bounds).mean() <= .995
    assert ece(drawn(n, t=3.)) > ece_floor(drawn(n, t=3.))[1]                    # and a bad one is seen


# ---------------------------------------------------------------- temperature

@pytest.mark.parametrize('t', [.5, 1., 1.7, 4.])
def test_known_temperature_is_recovered_within_2_percent(t):
    assert temperature(drawn(40_000, t, spread=4., seed=int(10*t))) == pytest.approx(t, rel=.02)


@settings(max_examples=25, deadline=None)
@given(t=st.floats(.3, 4), scale=st.floats(.5, 3), seed=st.integers(0, 50))
def test_temperature_is_the_minimum_and_scales(t, scale, seed):
    p = drawn(400, t, seed=seed)
    best = temperature(p)
    assert nll(soften(p, best)) <= min(nll(soften(p, best*f)) for f in (.98, 1.02)) + 1e-9
    assert temperature(soften(p, scale)) == pytest.approx(best/scale, rel=1e-3)
    shifted = Predictions(p.logits + torch.randn(400, 1)*5, p.labels)            # softmax does not see a constant
    assert temperature(shifted) == pytest.approx(best, rel=1e-3)


def test_temperature_equals_a_grid_search():
    p = drawn(500, 1.4, seed=5)
    grid = np.geomspace(.5, 4, 2000)
    assert temperature(p) == pytest.approx(grid[np.argmin([nll(soften(p, t)) for t in grid])], rel=2e-3)


def test_softening_keeps_classes_and_mends_confidence():
    valid, test = drawn(3000, 3., seed=1), drawn(3000, 3., seed=2)
    after, t = calibrate(valid, test)
    assert torch.equal(after.logits.argmax(1), test.logits.argmax(1)) and after.clip_ids == test.clip_ids
    assert ece(after) < ece_floor(after)[1] < ece(test) and nll(after) < nll(test) and t == pytest.approx(3, rel=.1)


def test_what_is_refused():
    p = drawn(50)
    refused(lambda: calibrate(p, p), '50 clips', '0-0', 'in both sets')
    refused(lambda: temperature(Predictions(torch.eye(3), torch.arange(3))), 'nearly every one of the 3 clips')
    refused(lambda: temperature(Predictions(torch.eye(3), torch.tensor([1, 2, 0]))), 'no better than guessing')
    refused(lambda: temperature(Predictions(torch.zeros(3, 3), torch.arange(3))), 'no temperature')
    refused(lambda: reliability(p, 0), 'bins=0')
    for t in (0, -1., float('nan')): refused(lambda: soften(p, t), 'more than 0')


# ---------------------------------------------------------------- tables and figures

def test_table_has_every_number():
    p, q = drawn(300), drawn(300, 2., seed=1)
    t = calibration_table(dict(a=p, b=q), bins=10)
    assert list(t.index) == ['a', 'b'] and t.n.tolist() == [300, 300]
    assert t.loc['b', ['ece', 'adaptive_ece', 'brier', 'nll']].tolist() == pytest.approx([ece(q, 10), adaptive_ece(q, 10), brier(q), nll(q)])
    assert t.loc['a', 'top1'] == pytest.approx((p.logits.argmax(1) == p.labels).float().mean().item())
    assert calibration_table(p).loc['', 'floor'] == ece_floor(p)[0]


@pytest.mark.parametrize('adaptive', [False, True])
def test_both_figures_draw_the_table(adaptive):
    p = drawn(400, 2.)
    r = reliability(p, 8, adaptive)
    right, gap, _, clips = reliability_figure({'<b> & co': p}, 8, adaptive).data
    np.testing.assert_allclose(np.array(right.y, float), r.accuracy); np.testing.assert_allclose(np.array(gap.base, float) + np.array(gap.y, float), r.confidence); assert list(clips.y) == r.n.tolist()
    np.testing.assert_allclose(np.array(right.x, float) - np.array(right.width, float)/2, r.lo, atol=1e-9)
    top, low = plot_reliability(p, 8, adaptive).axes
    bars, gaps = top.containers
    np.testing.assert_allclose([b.get_height() for b in bars], r.accuracy)
    np.testing.assert_allclose([b.get_y() + b.get_height() for b in gaps], r.confidence)
    assert [b.get_height() for b in low.containers[0]] == r.n.tolist()
    assert (right.marker.color, gap.marker.pattern.shape) == ('#0072B2', '/')     # blue against hatched orange


@pytest.mark.parametrize('measure', (reliability, adaptive_ece, ece_floor, brier, nll, temperature, ece))
def test_one_head_at_a_time(measure):
    "Labels [N, 2] would broadcast against two clips and give a number"
    p = Predictions(torch.randn(2, 5), torch.tensor([[0, 1], [1, 2]]), ('a', 'b'), dict(verb=2, noun=3))
    refused(lambda: measure(p), 'several heads', 'by_head')
