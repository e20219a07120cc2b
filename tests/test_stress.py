"""Stress tests: level 0 is the clean number bit for bit, damage is a pure function of its key, the crossing point and its interval are right on answers made by hand."""
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from moddist import synthetic
from moddist.core import DataError, write_json
from moddist.data import clip_dls
from moddist.data import test_dl as make_test_dl
from moddist.draws import ClipSampler
from moddist.evaluate import predict, top1
from moddist.inputs import ClipInputs
from moddist.models import SmallStream, TwoStream, save_model
from moddist.recipes import Garcia2018
from moddist.runs import index_hash, loaders, reading
from moddist.stress import KINDS, Crossing, crossing, curve, damage, missing, plot_stress, stress, stress_figure, stress_run

torch.set_num_threads(1)
X = torch.rand(3, 8, 12, 10, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- damage of one clip

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('picture', [True, False])
def test_level_zero_is_the_same_tensor(kind, picture): assert damage(X, kind, 0, (3, 'c'), picture) is X


@pytest.mark.parametrize('kind', [k for k, v in KINDS.items() if v.random and k != 'crooked'])
def test_damage_is_a_function_of_its_key(kind):
    before = X.clone()
    torch.manual_seed(5); state = torch.get_rng_state()
    a = [damage(X, kind, .5, (0, f'clip {i}')) for i in range(4)]
    torch.rand(7)
    b = [damage(X, kind, .5, (0, f'clip {i}')) for i in range(4)]
    assert all(torch.equal(p, q) for p, q in zip(a, b)) and not all(torch.equal(a[0], p) for p in a[1:])
    assert not all(torch.equal(p, damage(X, kind, .5, (1, f'clip {i}'))) for i, p in enumerate(a))
    assert torch.equal(X, before), 'the clip itself was changed'
    torch.set_rng_state(state); damage(X, 'noise', 1., (0,)); assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.golden(27)
def test_the_noise_of_the_paper():
    "Identity at 0; whole bytes; negative = zeros; what is black stays black"
    x = X.clone(); x[:, :, :3] = 0
    y = damage(x, 'noise', .7, (0, 'c'))
    assert (y*255 - (y*255).round()).abs().max() < 1e-4 and y.min() >= 0 and y.max() <= 1
    assert (y[:, :, :3] == 0).all() and (damage(x, 'noise', -1, (0, 'c')) == 0).all() and damage(x, 'noise', 0, (0, 'c')) is x
    mid = torch.full((1, 1, 300, 300), .3)
    factor = damage(mid, 'noise', .2, (0, 'c'))/.3
    assert factor.mean() == pytest.approx(1, abs=.01) and factor.std() == pytest.approx(.2, abs=.01)
    assert damage(mid, 'noise', .2, (0, 'c'), False).mul(255).frac().std() > .1, 'only pictures are rounded to bytes'


def test_additive_noise_fills_holes_and_saturates():
    x = torch.zeros(1, 1, 200, 200)
    y = damage(x, 'additive', .1, (0, 'c'))
    assert (y > 0).float().mean() == pytest.approx(.5, abs=.02) and y.max() < .6 and y[y > 0].std() == pytest.approx(.1*math.sqrt(1 - 2/math.pi), abs=.005)
    assert damage(x, 'additive', .1, (0, 'c'), False).std() == pytest.approx(.1, abs=.003)


@pytest.mark.parametrize('kind', ['blank', 'drop_blank'])
def test_more_is_more_of_the_same(kind):
    "What is lost at a lower level is lost at a higher one, in the expected share"
    clips = [damage(torch.ones(1, 10, 2, 2), kind, level, (0, i)) for level in (.2, .6, 1) for i in range(200)]
    gone = (torch.stack(clips).view(3, 200, 10, 4) == 0).all(-1)
    assert (gone[0] <= gone[1]).all() and (gone[1] <= gone[2]).all() and gone[2].all()
    assert gone[0].float().mean() == pytest.approx(.2, abs=.07) and gone[1].float().mean() == pytest.approx(.6, abs=.07)


def test_lost_frames_repeat_the_last_that_came():
    x = torch.arange(1., 21).view(1, 20, 1, 1)
    for i in range(30):
        blank, repeat = (damage(x, k, .5, (0, 'same', i)).flatten() for k in ('drop_blank', 'drop_repeat'))
        assert set(repeat.tolist()) <= set(x.flatten().tolist()) and (repeat.diff() >= 0).all()
        first = int(repeat[0]) - 1
        assert (repeat[first + 1:] <= x.flatten()[first + 1:]).all(), 'a frame was shown before it came'
        assert set(blank.tolist()) <= {0., *x.flatten().tolist()}
    assert (damage(x, 'drop_repeat', 1, (0,)) == 0).all()


@pytest.mark.parametrize('by', [-3, -1, 1, 2, 50])
def test_late_and_early(by):
    t = torch.arange(8)
    assert torch.equal(damage(X, 'late', by, (0,)), X[:, (t - by).clamp(0, 7)])


@pytest.mark.parametrize('seed, shift', [(0, (0, 2)), (1, (2, 0)), (2, (0, -2)), (3, (-2, 0)), (4, (0, 2))])
def test_crooked_in_four_directions(seed, shift):
    y, (dy, dx) = damage(X, 'crooked', 2, (seed, 'c')), shift
    rows, columns = (torch.arange(12) - dy).clamp(0, 11), (torch.arange(10) - dx).clamp(0, 9)
    assert torch.equal(y, X[:, :, rows][..., columns])


@pytest.mark.parametrize('kind, level, words', [('rain', 1, 'noise, additive'), ('late', .5, 'whole'), ('crooked', 1.5, 'whole'), ('blank', -1, '0 or more'), ('noise', math.nan, 'nan'), ('additive', math.inf, 'inf')])
def test_levels_that_do_not_fit(kind, level, words):
    with pytest.raises(DataError, match=words) as e: damage(X, kind, level)
    assert '\n' not in str(e.value)


def test_boxes_cannot_be_crooked():
    with pytest.raises(DataError, match='picture'): damage(torch.ones(8, 4, 3), 'crooked', 1)


# ---------------------------------------------------------------- on a rendered set

@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    root = synthetic.make(tmp_path_factory.mktemp('stress')/'set', seed=5, train=1, valid=0, test=1, skeletons=False, workers=1)
    df = synthetic.index(root)
    torch.manual_seed(0)
    models = {'both': TwoStream(SmallStream(10), SmallStream(10)), 'rgb': SmallStream(10)}
    with torch.no_grad():                                   # untrained nets say the same of every clip: give them a temper
        for m in models.values():
            for p in m.parameters(): p.mul_(3) if p.ndim > 1 else None
    return SimpleNamespace(df=df, test=df[df.split == 'test'], models=models, reads={'rgb': ['rgb']})


def loader(scene, bs=8, inputs=None, **how):
    dls = clip_dls(scene.df, ('rgb', 'depth'), ClipSampler(4, crop=48, **how), inputs or ClipInputs(), bs=8, dev='cpu')
    return make_test_dl(dls, scene.test, bs=bs)


@pytest.mark.parametrize('inputs, how', [(ClipInputs(), {}), (ClipInputs.imagenet(), {}), (ClipInputs(), dict(clips=2))], ids=['centred', 'imagenet', 'two views'])
def test_clean_is_the_clean_number_bit_for_bit(scene, inputs, how):
    dl = loader(scene, inputs=inputs, **how)
    want = {n: predict(lambda_of(m, n), dl) for n, m in scene.models.items()}
    for kind in ('noise', 'late'):
        t = stress(scene.models, dl, kind, (0,), reads=scene.reads)
        for n, p in want.items():
            mine = t[t.model == n]
            assert mine.guess.tolist() == p.logits.argmax(1).tolist() and mine.label.tolist() == p.labels.tolist() and mine.clip_id.tolist() == list(p.clip_ids)
            assert mine.right.mean() == (p.logits.argmax(1) == p.labels).double().mean().item()
    assert t.guess.nunique() > 1


def lambda_of(model, name):
    "A model of the loader's two signals"
    if name == 'both': return model
    class First(nn.Module):
        def __init__(self): super().__init__(); self.m = model
        def forward(self, rgb, depth): return self.m(rgb)
    return First()


def test_logits_at_level_zero_are_equal_bit_for_bit(scene):
    from moddist.stress import _answers
    dl = loader(scene)
    change = {1: lambda x, clip, picture: damage(x, 'noise', 0, (0, clip), picture)}
    found, labels, names = _answers({'both': scene.models['both']}, dl, [{}, change], {'both': (0, 1)})
    p = predict(scene.models['both'], dl)
    assert torch.equal(found['both', 0], p.logits) and torch.equal(found['both', 1], p.logits) and torch.equal(labels, p.labels) and tuple(names) == p.clip_ids


@pytest.mark.parametrize('kind, level', [('noise', .5), ('noise', -1), ('additive', .1), ('drop_blank', .5), ('crooked', 3)])
def test_the_batch_size_does_not_matter(scene, kind, level):
    a, b = (stress(scene.models['both'], loader(scene, bs), kind, (level,)) for bs in (4, 30))
    assert (a.guess == b.guess).mean() > .95 and a.clip_id.tolist() == b.clip_id.tolist()            # up to rounding of the convolutions


def test_damage_sits_between_encoding_and_centring(scene):
    "The input a model gets is that of ClipInputs applied to the damaged encoded picture, worked out by hand"
    got = []
    class Spy(nn.Module):
        def forward(self, rgb, depth): got.append((rgb, depth)); return rgb.flatten(1)[:, :10]
    dl = loader(scene, bs=30)
    clean_rgb, _, _ = next(iter(dl))
    t = stress(Spy(), dl, 'noise', (.4,), seeds=(7,))
    raw = loader(scene, bs=30, inputs=ClipInputs(centre=False, depth_std=(1, 1, 1)))
    encoded = next(iter(raw))[1]
    want = torch.stack([damage(e, 'noise', .4, (7, 'noise', 'depth', c)) for e, c in zip(encoded, t.clip_id)])
    want = (want - want.mean(2, keepdim=True))/.35
    assert torch.equal(got[0][0], clean_rgb) and torch.allclose(got[0][1], want, atol=1e-6)


def test_the_loader_is_given_back_as_it_was(scene):
    dl = loader(scene)
    fs, before = list(dl.after_batch.fs), next(iter(dl))
    stress(scene.models, dl, 'blank', (0, 1), reads=scene.reads)
    class Breaks(nn.Module):
        def forward(self, *x): raise RuntimeError('broken')
    with pytest.raises(RuntimeError, match='broken'): stress(Breaks(), dl, 'blank', (0,))
    assert list(dl.after_batch.fs) == fs and all(torch.equal(a, b) for a, b in zip(before, next(iter(dl))))


@pytest.mark.parametrize('mode', [True, False])
def test_modes_and_weights_are_restored(scene, mode):
    m = scene.models['both'].train(mode)
    state = {k: v.clone() for k, v in m.state_dict().items()}
    stress(m, loader(scene), 'noise', (0, 1))
    assert m.training is mode and all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
    m.eval()


def test_a_model_that_does_not_read_the_signal_cannot_notice(scene):
    t = stress(scene.models, loader(scene), 'noise', (0, 1, -1), seeds=(0, 1), reads=scene.reads)
    g = t[t.model == 'rgb'].groupby(['level', 'seed']).guess.apply(tuple)
    assert g.nunique() == 1 and len(g) == 6
    assert t[t.model == 'both'].groupby(['level', 'seed']).guess.apply(tuple).nunique() > 1


def test_missing_goes_through_every_subset(scene):
    dl = loader(scene, bs=30)
    t = missing(scene.models, dl, reads=scene.reads)
    assert t.groupby('model', sort=False)['level'].unique().map(list).to_dict() == {'both': ['rgb+depth', 'rgb', 'depth', 'nothing'], 'rgb': ['rgb', 'nothing']}
    rgb, depth, y = next(iter(dl))
    m, zero = scene.models['both'], torch.zeros_like(rgb)             # centred: a blank picture is a zero input
    with torch.no_grad(): want = {k: m(*x).argmax(1).tolist() for k, x in {'rgb+depth': (rgb, depth), 'rgb': (rgb, zero), 'depth': (zero, depth), 'nothing': (zero, zero)}.items()}
    for k, w in want.items(): assert t[(t.model == 'both') & (t.level == k)].guess.tolist() == w
    blank = stress(m, dl, 'blank', (1,))
    assert blank.guess.tolist() == want['rgb']


def test_signals_are_checked(scene):
    with pytest.raises(DataError, match="'flow' is not in the loader; it holds rgb, depth"): stress(scene.models['both'], loader(scene), 'noise', (0,), on='flow')
    with pytest.raises(DataError, match="third: signal 'ir'"): stress({'third': scene.models['rgb']}, loader(scene), 'noise', (0,), reads={'third': ['ir']})


def test_plain_batches_are_damaged_as_they_are():
    "A list of network inputs: no bytes, positions in place of names"
    seen = []
    class Keep(nn.Module):
        def forward(self, a, b): seen.append(b); return a
    batches = [(torch.eye(3), torch.full((3, 2, 5), 7.), torch.tensor([0, 1, 2])), (torch.eye(3)[:1], torch.full((1, 2, 5), 7.), torch.tensor([2]))]
    t = stress(Keep(), batches, 'noise', (0, .5), on=1, reads={'model': [0, 1]})
    assert t.right.tolist() == [True, True, True, False]*2 and t.clip_id.tolist() == [0, 1, 2, 3]*2
    assert (seen[0] == 7).all() and seen[1].std() == pytest.approx(3.5, rel=.5) and not torch.equal(seen[1][0], seen[1][1])


# ---------------------------------------------------------------- a run

@pytest.fixture(scope='module')
def run(scene, tmp_path_factory):
    "The files of a finished run, with the models above"
    out = tmp_path_factory.mktemp('run')
    c = Garcia2018(clip_len=4, bs=8)
    write_json(out/'run.json', dict(recipe='garcia2018', settings=c.__dict__, index=index_hash(scene.df), data=None))
    for name, m, test in (('rgb+depth', scene.models['both'], ['rgb', 'depth']), ('rgb+hallucination', TwoStream(SmallStream(10), SmallStream(10)), ['rgb'])):
        save_model(m, out/name/'model.safetensors')
        write_json(out/name/'record.json', dict(name=name, test=test))
    return out


def test_a_run_agrees_with_noisy_inputs_where_nothing_is_random(scene, run):
    test = scene.df[scene.df.split == 'test']
    dl = lambda sigma: make_test_dl(loaders(reading(run), scene.df, ['rgb', 'depth'], depth_noise=sigma), test)
    old = {sigma: top1(predict(scene.models['both'], dl(sigma)))[0] for sigma in (0., -1.)}
    t = stress_run(run, 'noise', (0., -1.), df=scene.df)
    assert set(t.model) == {'rgb+depth', 'rgb+hallucination'} and set(t.run) == {run.name}
    new = t[t.model == 'rgb+depth'].groupby('level').right.mean()
    assert new.to_dict() == pytest.approx(old)


def test_a_run_may_lack_a_step(scene, run):
    with pytest.raises(DataError, match="'student' is not finished"): stress_run(run, 'noise', (0,), ['student'], scene.df)
    assert set(stress_run(run, 'missing', df=scene.df, names=['rgb+depth']).level) == {'rgb+depth', 'rgb', 'depth', 'nothing'}


# ---------------------------------------------------------------- curves and crossings, on answers made by hand

def answers(accuracy, levels=(0, 1, 2, 4), n=400, seeds=3, run=None, key=0, **models):
    "A table with the given accuracies, clip for clip"
    r, rows = np.random.default_rng(key), []
    for m, acc in dict(accuracy, **models).items():
        for level, a in zip(levels, acc):
            for s in range(seeds):
                rows.append(pd.DataFrame(dict(model=m, kind='noise', signal='depth', level=level, seed=s, clip_id=[f'c{i}' for i in range(n)], right=r.permutation(n) < a*n)))
    t = pd.concat(rows, ignore_index=True)
    return t.assign(run=run) if run is not None else t


FLAT = {'hall': [.6]*4, 'depth': [.9, .7, .5, .2]}


def test_the_crossing_is_where_the_straight_lines_meet():
    x = crossing(answers(FLAT), 'hall', 'depth')
    assert x.level == pytest.approx(1.5, abs=1e-6) and x.lo < 1.5 < x.hi and x.share == 1 and x.hi - x.lo < .8
    assert '1.5' in str(x) and 'hall overtakes depth' in str(x)


def test_a_crossing_may_be_at_once_or_never():
    at_once = crossing(answers({'a': [.8]*4, 'b': [.5]*4}), 'a', 'b')
    assert at_once.level == 0 and str(at_once).startswith('a is at least as accurate as b without any damage (95 %')
    never = crossing(answers({'a': [.2]*4, 'b': [.9]*4}), 'a', 'b')
    assert math.isinf(never.level) and never.share == 0 and 'does not overtake' in str(never) and 'above 4' in str(never)


def test_blank_is_no_level_to_cross_at():
    t = answers({'a': [.6]*4, 'b': [.9, .7, .65, .1]}, levels=(0, 1, 3, -1))
    assert math.isinf(crossing(t, 'a', 'b').level)


def test_the_interval_covers():
    "On tables drawn from known accuracies, the 95 % interval holds the true crossing nearly always"
    hits = []
    for key in range(40):
        r = np.random.default_rng(key)
        rows = [pd.DataFrame(dict(model=m, kind='noise', signal='depth', level=level, seed=0, clip_id=range(150), right=r.random(150) < a)) for m, acc in FLAT.items() for level, a in zip((0, 1, 2, 4), acc)]
        x = crossing(pd.concat(rows), 'hall', 'depth', n_boot=300)
        hits.append(x.lo <= 1.5 <= x.hi)
    assert np.mean(hits) >= .85


def test_the_interval_is_paired():
    "Clips that both models answer alike say nothing about their difference: the interval is narrower than with independent answers"
    t = answers(FLAT, seeds=1)
    same = t.copy()
    order = np.random.default_rng(0).permutation(400)
    for _, g in same.groupby(['model', 'level']): same.loc[g.index, 'right'] = order < g.right.sum()
    a, b = crossing(same, 'hall', 'depth'), crossing(t, 'hall', 'depth')
    assert a.level == pytest.approx(b.level, abs=1e-6) and a.hi - a.lo < .8*(b.hi - b.lo)


def test_runs_are_resampled_where_there_are_several():
    "Three trainings that differ give a wider band than three noises that agree"
    spread = [dict(hall=[h]*4, depth=[.9, .7, .5, .2]) for h in (.45, .6, .75)]
    runs = pd.concat([answers(a, run=i, key=i) for i, a in enumerate(spread)])
    one = curve(answers(FLAT)).query('model == "hall"').iloc[0]
    many = curve(runs).query('model == "hall"').iloc[0]
    assert many.top1 == pytest.approx(.6, abs=1e-6) and many.hi - many.lo > 2*(one.hi - one.lo) and many.repetitions == 3
    assert crossing(runs, 'hall', 'depth').hi - crossing(runs, 'hall', 'depth').lo > .8


def test_answers_must_be_complete():
    t = answers(FLAT)
    with pytest.raises(DataError, match='answers are missing'): curve(t.iloc[1:])
    with pytest.raises(DataError, match='hall, depth'): crossing(t, 'rgb', 'depth')


def test_figures_draw_the_curve():
    t = answers(FLAT, levels=(0, .3, 1, -1))
    c, x = curve(t), Crossing('hall', 'depth', .5, .4, math.inf, .9, 1.)
    fig = stress_figure(c, x)
    named = {s.name: s for s in fig.data if s.name}
    assert list(named['depth'].y) == pytest.approx([90, 70, 50, 20]) and list(fig.layout.xaxis.ticktext) == ['0', '0.3', '1', 'blank']
    assert fig.layout.shapes[-1].x0 == pytest.approx(1 + .2/.7), 'the crossing stands between its neighbours'
    ax = plot_stress(c, x).axes[0]
    assert [s.get_text() for s in ax.get_xticklabels()] == ['0', '0.3', '1', 'blank'] and list(ax.lines[1].get_ydata()) == pytest.approx([90, 70, 50, 20])
    flipped = t.assign(kind='missing', level=t.level.map({0: 'rgb+depth', .3: 'rgb', 1: 'depth', -1: 'nothing'}))
    assert list(stress_figure(curve(flipped)).layout.xaxis.ticktext) == ['rgb+depth', 'rgb', 'depth', 'nothing']
