"""Several heads: accuracies, tails, unseen people and views against plain loops, brute force and the tables of EPIC-KITCHENS."""
import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data, refused
from torch import nn

from moddist.backbones import VideoStream, per_head
from moddist.core import seed_all
from moddist.data import clip_dls
from moddist.data import test_dl as make_test_dl
from moddist.datasets import epic
from moddist.distill import learner
from moddist.draws import ClipSampler
from moddist.evaluate import Predictions, ece, predict, predict_views, read_predictions, top1, write_predictions
from moddist.files import write_video
from moddist.inputs import ClipInputs
from moddist.losses import cross_entropy
from moddist.models import SmallStream
from moddist.tasks import _best_actions, action_answers, by_head, head_metrics, plot_views, standard_error, tails_of, task_table, top_k, views_curve, views_figure

torch.set_num_threads(1)
HEADS = dict(verb=4, noun=6)


def made_up(n=200, seed=0, heads=HEADS, ties=False):
    g = np.random.default_rng(seed)
    z = g.normal(0, 2, (n, sum(heads.values()))).astype('float32')
    if ties: z = z.round()
    y = np.stack([g.integers(0, k, n) for k in heads.values()], 1)
    return Predictions(torch.tensor(z), torch.tensor(y), tuple(f'c{i}' for i in range(n)), dict(heads))


# ---------------------------------------------------------------- golden numbers (radevski2022, section 10)

def test_fact_20_standard_error():
    assert standard_error(50, 10_000) == pytest.approx(.5) and standard_error(100, 7) == standard_error(0, 7) == 0 and math.isnan(standard_error(50, 0))


def test_fact_20_calibration_error():
    "Two samples of confidence 0.9, one right: 40.0, in the head it happens in"
    z = torch.tensor([[.9, .1, .9, .1]]).log().repeat(2, 1)
    t = task_table(Predictions(z, torch.tensor([[0, 1], [1, 1]]), heads=dict(verb=2, noun=2)))
    assert t.loc[('all', 'verb'), 'ece'] == pytest.approx(40., abs=1e-4) and t.loc[('all', 'noun'), 'ece'] == pytest.approx(90., abs=1e-4)
    perfect = task_table(Predictions(torch.eye(4)*1000, torch.arange(4)))
    assert perfect.loc[('all', 'label'), ['top1', 'ece']].tolist() == pytest.approx([100, 0], abs=1e-4)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_fact_20_the_action_is_never_better_than_its_parts(seed, ties):
    t = task_table(made_up(300, seed, ties=ties)).loc['all']
    assert t.top1['action'] <= min(t.top1['verb'], t.top1['noun']) and t.top5['action'] <= min(t.top5['verb'], t.top5['noun'])
    assert (t.top1 <= t.top5).all()


def test_fact_17_tails_of_the_owners():
    "86 tail verbs and 228 tail nouns; those that validation shows; 9,668 rows"
    folder = real_data('annotations')/'epic_kitchens_100'
    df = epic.segments(folder)
    df = df[df.split == 'valid']
    lists = {h: pd.read_csv(folder/f'EPIC_100_tail_{h}s.csv')[h] for h in ('verb', 'noun')}
    assert len(df) == 9_668 and [len(v) for v in lists.values()] == [86, 228]
    tails = tails_of(df)
    assert all(set(tails[h]) == set(lists[h]) & set(df[h]) and tails[h] for h in tails)
    heads, y = dict(verb=97, noun=300), torch.tensor(df[['verb', 'noun']].values)
    z = torch.cat([torch.eye(k)[c] for k, c in zip(heads.values(), y.T)], 1)
    z[torch.tensor((df.subject == 'P18').tolist())] *= -1                               # right for everyone but P18
    p = Predictions(z, y, tuple(df.clip_id), heads)
    t, u = task_table(p, tails, df, ['unseen']), task_table(p, lists)
    rare = {h: df[h].isin(lists[h]).to_numpy() for h in lists}
    assert t.loc[('tail', 'verb'), 'n'] == rare['verb'].sum() and t.loc[('tail', 'noun'), 'n'] == rare['noun'].sum()
    assert t.loc[('tail in all', 'action'), 'n'] == (rare['verb'] & rare['noun']).sum() and t.loc[('tail in any', 'action'), 'n'] == (rare['verb'] | rare['noun']).sum()
    pd.testing.assert_frame_equal(t.drop('unseen', level=0), u)                   # the lists of the index are as good as the files
    people = df.subject.isin(['P18', 'P32'])
    assert t.loc[('unseen', 'verb'), 'n'] == people.sum() > 0 and t.loc[('unseen', 'action'), 'top1'] == pytest.approx(100*(df.subject[people] == 'P32').mean())
    assert t.loc[('all', 'action'), 'top1'] == pytest.approx(100*(df.subject != 'P18').mean())


# ---------------------------------------------------------------- against loops and brute force

@pytest.mark.parametrize('heads', [dict(verb=4, noun=6), dict(verb=3, noun=7), dict(a=3, b=4, c=2), dict(a=1, b=9)])
@pytest.mark.parametrize('k', [1, 5])
def test_best_actions_are_those_of_all_products(heads, k):
    p = made_up(60, 1, heads)
    logs = [q.logits.double().log_softmax(1).numpy() for q in by_head(p).values()]
    for i, (scores, codes) in enumerate(zip(*_best_actions(list(by_head(p).values()), k))):
        every = sorted(((sum(l[i][c] for l, c in zip(logs, combo)), combo) for combo in itertools.product(*map(range, heads.values()))), reverse=True)[:k]
        want = [int(np.ravel_multi_index(c, tuple(heads.values()))) for _, c in every]
        assert codes.tolist() == want and np.allclose(scores, [s for s, _ in every])


@pytest.mark.parametrize('seed', range(3))
def test_the_table_is_that_of_a_plain_loop(seed):
    p = made_up(150, seed)
    g = np.random.default_rng(seed + 100)
    df = pd.DataFrame(dict(clip_id=list(p.clip_ids), unseen=g.integers(0, 2, len(p)))).sample(frac=1, random_state=seed)   # in another order
    tails = dict(verb=[3], noun=[1, 4])
    t = task_table(p, tails, df, ['unseen'])
    seen = df.set_index('clip_id').unseen.to_dict()
    zs = dict(verb=p.logits[:, :4].numpy(), noun=p.logits[:, 4:].numpy())
    def share(head, keep):
        right = among = n = 0
        for i in range(len(p)):
            if not keep(i): continue
            n += 1
            ranks = {h: list(np.argsort(-z[i], kind='stable')).index(int(p.labels[i, k])) for k, (h, z) in enumerate(zs.items())}
            right += all(r == 0 for r in ranks.values()) if head == 'action' else ranks[head] == 0
            among += ranks.get(head, 9) < 5
        return n, 100*right/n, 100*among/n
    rare = lambda i, h: int(p.labels[i, list(zs).index(h)]) in tails[h]
    cases = {('all', h): lambda i: True for h in ('verb', 'noun', 'action')} | {('unseen', h): lambda i: seen[f'c{i}'] for h in ('verb', 'noun', 'action')}
    cases |= {('tail', h): lambda i, h=h: rare(i, h) for h in tails} | {('tail in all', 'action'): lambda i: rare(i, 'verb') and rare(i, 'noun'), ('tail in any', 'action'): lambda i: rare(i, 'verb') or rare(i, 'noun')}
    assert set(t.index) == set(cases)
    for (subset, h), keep in cases.items():
        n, a, b = share(h, keep)
        row = t.loc[(subset, h)]
        assert row.n == n and row.top1 == pytest.approx(a) and row.top1_se == pytest.approx(math.sqrt(a*(100 - a)/n)), (subset, h)
        if h != 'action': assert row.top5 == pytest.approx(b) and row.top5_se == pytest.approx(math.sqrt(b*(100 - b)/n))
    parts = by_head(p)
    assert [t.loc[('all', h), 'ece'] for h in parts] == pytest.approx([100*ece(q) for q in parts.values()], abs=1e-4)


def test_top_k():
    p = by_head(made_up(100))['noun']
    shares = [top_k(p, k)[0] for k in range(1, 7)]
    assert shares == sorted(shares) and shares[-1] == 100 and shares[0] == pytest.approx(100*top1(p)[0])
    assert top_k(Predictions(torch.zeros(4, 8), torch.arange(4)), 2)[0] == 50      # all equal: the first two count
    refused(lambda: top_k(p, 0), 'k=0')


def test_one_head_and_several_models():
    q = Predictions(torch.eye(6), torch.tensor([0, 1, 2, 3, 4, 0]))
    t = task_table({'rgb': q, 'student': Predictions(torch.eye(6), torch.arange(6))}, tails=dict(label=[4, 5]))
    assert t.loc[('rgb', 'all', 'label'), 'top1'] == pytest.approx(500/6) and t.loc[('student', 'tail', 'label'), 'top1'] == 100
    assert t.loc[('rgb', 'tail', 'label'), 'n'] == 1 and t.index.names == ['model', 'subset', 'head']


def test_a_subset_without_clips_is_no_number():
    t = task_table(made_up(20), dict(verb=[], noun=[1]))
    row = t.loc[('tail', 'verb')]
    assert row.n == 0 and math.isnan(row.top1) and math.isnan(row.top1_se) and math.isnan(row.ece) and t.loc[('tail in all', 'action'), 'n'] == 0


# ---------------------------------------------------------------- heads apart

def test_by_head_cuts_where_the_heads_end():
    p = made_up(10)
    v, n = by_head(p).values()
    assert torch.equal(torch.cat([v.logits, n.logits], 1), p.logits) and torch.equal(torch.stack([v.labels, n.labels], 1), p.labels) and v.clip_ids == n.clip_ids == p.clip_ids
    one = Predictions(torch.eye(3), torch.arange(3))
    assert by_head(one)['label'] is one


def test_clips_without_a_label_count_only_where_they_have_one():
    p = made_up(6)
    y = p.labels.clone(); y[0, 0] = y[1, 1] = y[2] = -1
    q = Predictions(p.logits, y, p.clip_ids, HEADS)
    parts = by_head(q)
    assert parts['verb'].clip_ids == ('c1', 'c3', 'c4', 'c5') and parts['noun'].clip_ids == ('c0', 'c3', 'c4', 'c5')
    assert task_table(q).n.tolist() == [4, 4, 3] and action_answers(q).clip_ids == ('c3', 'c4', 'c5')
    refused(lambda: by_head(Predictions(p.logits, torch.full((6, 2), -1), heads=HEADS)), 'none of the 6 clips has a verb')
    refused(lambda: action_answers(Predictions(p.logits, torch.tensor([[0, -1]]*6), p.clip_ids, HEADS)), 'label in every head')


def test_everything_for_one_head_works_on_a_head(tmp_path):
    from moddist.calibration import calibrate, calibration_table, plot_reliability
    from moddist.gap import gap_report
    a, b = made_up(300, 1), made_up(300, 1)
    z = b.logits.clone(); z[torch.arange(300), b.labels[:, 0]] += 3; z[torch.arange(300), 4 + b.labels[:, 1]] += 3
    b = Predictions(z, b.labels, b.clip_ids, HEADS)
    t = calibration_table(by_head(b))
    assert list(t.index) == ['verb', 'noun'] and t.top1.tolist() == pytest.approx([top1(q)[0] for q in by_head(b).values()])
    assert len(plot_reliability(by_head(b)).axes) == 4
    again = read_predictions(write_predictions(by_head(b)['noun'], tmp_path/'noun.csv'))
    assert torch.equal(again.labels, b.labels[:, 1]) and torch.equal(again.logits, z[:, 4:])
    valid = replace(by_head(b)['verb'], clip_ids=tuple(f'v{i}' for i in range(300)))
    assert calibrate(valid, by_head(b)['verb'])[1] > 0
    refused(lambda: calibrate(*[by_head(b)['verb']]*2), '300 clips', 'both sets')
    r = gap_report(by_head(a)['verb'], student=by_head(b)['verb'], resamples=200).to_json()
    joint = gap_report(action_answers(a), student=action_answers(b), resamples=200)
    assert r and joint.table() is not None
    right = {h: (q.logits.argmax(1) == q.labels) for h, q in by_head(b).items()}
    s = action_answers(b)
    assert (s.guesses == s.labels).mean() == pytest.approx((right['verb'] & right['noun']).double().mean().item())


def test_what_is_refused():
    p = made_up(5)
    for call in (top1, ece, lambda p: write_predictions(p, 'x.csv')): refused(lambda: call(p), "by_head(p)['verb']")
    refused(lambda: Predictions(p.logits, p.labels), 'need heads')
    refused(lambda: Predictions(p.logits, p.labels, heads=dict(verb=4, noun=5)), 'verb (4), noun (5)', '[N, 9]')
    refused(lambda: Predictions(p.logits, p.labels[:, :1], heads=HEADS), '[5, 2]')
    refused(lambda: top1(Predictions(torch.eye(3), torch.tensor([0, -1, 1]))), '1 of 3 clips have no label')
    refused(lambda: task_table(p, tails=dict(adverb=[1])), "'adverb'")
    refused(lambda: task_table(p, groups=['unseen']), 'pass df')
    df = pd.DataFrame(dict(clip_id=['c0', 'c1'], unseen=[0, 1]))
    refused(lambda: task_table(p, df=df, groups=['unseen']), '3 of 5 clips', 'c2')
    refused(lambda: task_table(Predictions(p.logits, p.labels, heads=HEADS), df=df, groups=['unseen']), 'does not shuffle')
    refused(lambda: action_answers(Predictions(p.logits, p.labels, heads=HEADS)), 'without clip ids')
    refused(lambda: action_answers(Predictions(torch.eye(3), torch.arange(3), tuple('abc'))), 'two heads or more')


# ---------------------------------------------------------------- training metrics

def test_metrics_are_the_accuracies_of_the_heads():
    p = made_up(200)
    t = task_table(p).loc['all'].top1
    ms = head_metrics(HEADS)
    assert {m.__name__: pytest.approx(100*m(p.logits, p.labels).item(), abs=1e-3) for m in ms} == t.to_dict()
    assert [m.__name__ for m in pickle.loads(pickle.dumps(ms))] == ['verb', 'noun', 'action'] and [m.__name__ for m in head_metrics(dict(noun=3))] == ['noun']
    assert [m.__name__ for m in head_metrics(dict(action=3, noun=4))] == ['action', 'noun', 'all heads']
    y = p.labels.clone(); y[:100, 0] = -1
    assert ms[0](p.logits, y) == ms[0](p.logits[100:], p.labels[100:]) and ms[2](p.logits, y) == ms[2](p.logits[100:], p.labels[100:]) and ms[1](p.logits, y) == ms[1](p.logits, p.labels)
    assert ms[0](p.logits, torch.full_like(y, -1)) == 0


# ---------------------------------------------------------------- a miniature EPIC-KITCHENS from disk to the table

@pytest.fixture
def kitchen(tmp_path):
    "Two videos as folders of images, six segments to train, four to validate, in the owners' layout"
    from test_datasets_epic import segment, write_frames, write_tables
    root, g = tmp_path/'EPIC-KITCHENS', np.random.default_rng(0)
    for video in ('P01_101', 'P18_101'): write_frames(root/video[:3]/'rgb_frames'/video, g.integers(0, 255, 40))
    train = [segment('P01_101', k, .02 + .1*k, .2 + .1*k, 50, k % 3, k % 2) for k in range(6)]
    valid = [segment('P18_101', k, .02 + .1*k, .2 + .1*k, 50, (0, 3, 3, 1)[k], (4, 4, 2, 1)[k]) for k in range(4)]
    return epic.index(root, write_tables(tmp_path/'annotations', train, valid, [], [('P01_101', .8, 50.), ('P18_101', .8, 50.)]))


def test_epic_from_disk_to_the_table(kitchen):
    "Two heads, one batch of training, predictions, tails, unseen people; the swapped order of heads is noticed"
    dls = clip_dls(kitchen, ('rgb',), ClipSampler(4, 'middle', size=(32, 32)), bs=6, dev='cpu', labels=('verb', 'noun'), n_classes=dict(verb=4, noun=5))
    x, y = dls.one_batch()
    assert x.shape == (6, 3, 4, 32, 32) and sorted(map(tuple, y.tolist())) == sorted((k % 3, k % 2) for k in range(6))
    seed_all(0)
    model = VideoStream('r3d_18', heads=dls.heads)
    loss = per_head(cross_entropy, dls.heads)
    by_hand = (cross_entropy(z := model.eval()(x)[:, :4], y[:, 0]) + cross_entropy(model(x)[:, 4:], y[:, 1]))/2
    assert z.shape == (6, 4) and torch.isclose(loss(model(x), y), by_hand)
    learn = learner(dls, model.train(), loss=loss, metrics=head_metrics(dls.heads))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.metric_names[3:6] == ['verb', 'noun', 'action'] and len(learn.recorder.values[0]) == 5
    rows = kitchen[kitchen.split == 'valid']
    p = predict(model, make_test_dl(dls, rows))
    assert p.heads == dict(verb=4, noun=5) and p.logits.shape == (4, 9) and p.labels.tolist() == [[0, 4], [3, 4], [3, 2], [1, 1]] and p.clip_ids == tuple(rows.clip_id)
    t = task_table(p, tails_of(kitchen), rows, ['unseen'])
    assert tails_of(kitchen) == dict(verb=[2, 3], noun=[4]) and t.n.to_dict() == {('all', 'verb'): 4, ('all', 'noun'): 4, ('all', 'action'): 4, ('tail', 'verb'): 2, ('tail', 'noun'): 2,
        ('tail in all', 'action'): 1, ('tail in any', 'action'): 3, ('unseen', 'verb'): 4, ('unseen', 'noun'): 4, ('unseen', 'action'): 4}
    refused(lambda: predict(VideoStream('r3d_18', heads=dict(noun=5, verb=4)), make_test_dl(dls, rows)), 'heads=dls.heads')


# ---------------------------------------------------------------- views

class Corners(nn.Module):
    "Says the mean colour of what it sees, as two heads"
    def forward(self, x): m = x.mean((2, 3, 4)); return torch.cat([m, -m], 1)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    "Six clips whose brightness depends on place and time"
    root, g, rows = tmp_path_factory.mktemp('wide'), np.random.default_rng(0), []
    for i in range(6):
        f = write_video(root/f'{i}.mp4', g.integers(0, 255, (24, 1, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(8, 2))
        rows.append(dict(clip_id=f'c{i}', rgb=str(f), split='train' if i < 2 else 'valid', verb=i % 3, noun=(i + 1) % 3))
    return pd.DataFrame(rows)


@pytest.mark.parametrize('sampling', ['uniform', 'middle', 'dense'])
def test_every_row_is_the_test_of_that_sampler(wide, sampling):
    make = lambda **how: make_test_dl(clip_dls(wide, ('rgb',), ClipSampler(4, sampling, interval=2, crop=16, **how), ClipInputs(centre=False), bs=2, dev='cpu', labels=('verb', 'noun')), wide)
    dl = make()
    before = [vars(l.tfm.sampler).copy() for l in dl.loaders]
    curve = views_curve(Corners(), dl, clips=(2, 1, 3), crops=(3, 1))
    assert [vars(l.tfm.sampler) for l in dl.loaders] == before and dl.views == 1
    assert sorted(curve.views.unique()) == [1, 2, 3, 6, 9] and len(curve) == 18
    answers = set()
    for (clips, crops), rows in curve.groupby(['clips', 'crops']):
        p = predict(Corners(), make(clips=clips, crops=crops))
        answers.add(tuple(p.logits.flatten().tolist()))
        want = task_table(p).loc['all']
        got = rows.set_index('head')
        assert np.allclose(got.loc[want.index, ['n', 'top1', 'top1_se', 'top5', 'ece']], want[['n', 'top1', 'top1_se', 'top5', 'ece']])
    assert len(answers) == 6                                                       # six different tests


def test_windows_are_nested_and_times_are_not(wide):
    "The reason why a curve takes a pass per number of clips"
    dls = clip_dls(wide, ('rgb',), ClipSampler(4, 'uniform', crop=16, clips=2, crops=3), ClipInputs(centre=False), bs=2, dev='cpu', labels='verb')
    of = lambda **how: [p.logits for p in predict_views(nn.Flatten(), make_test_dl(clip_dls(wide, ('rgb',), ClipSampler(4, 'uniform', crop=16, **how), ClipInputs(centre=False), bs=2, dev='cpu', labels='verb'), wide))]
    big, centre, one = of(clips=2, crops=3), of(clips=2, crops=1), of(clips=1, crops=1)
    assert len(big) == 6 and dls.train.views == 6 and all(torch.equal(a, b) for a, b in zip(big[4:], centre))
    assert not any(torch.equal(one[0], b) for b in big)


def test_a_curve_leaves_the_loader_as_it_was_even_after_an_error(wide):
    dl = make_test_dl(clip_dls(wide, ('rgb',), ClipSampler(4, crop=16), bs=2, dev='cpu', labels=('verb', 'noun')), wide)
    class Broken(nn.Module):
        def forward(self, x): raise RuntimeError('broken')
    with pytest.raises(RuntimeError): views_curve(Broken(), dl)
    assert dl.views == 1 and dl.loaders[0].tfm.sampler.crops == 1
    whole = make_test_dl(clip_dls(wide, ('rgb',), ClipSampler(4), bs=2, dev='cpu', labels='verb'), wide)
    refused(lambda: views_curve(Corners(), whole), 'not cropped')


def test_one_head_has_a_curve_too(wide):
    dls = clip_dls(wide, ('rgb',), ClipSampler(4, crop=16), bs=2, dev='cpu', labels='verb')
    curve = views_curve(SmallStream(3), make_test_dl(dls, wide), clips=(1, 2), crops=(1,))
    assert set(curve['head']) == {'label'} and curve.views.tolist() == [1, 2]


def test_pictures_hold_the_numbers():
    rows = [dict(clips=c, crops=k, views=c*k, head=h, n=100, top1=50. + c + k, top1_se=5., top5=90., top5_se=3., ece=10.) for c in (1, 2) for k in (1, 3) for h in ('verb', 'action')]
    curve = pd.DataFrame(rows)
    fig = views_figure({'rgb': curve, 'student': curve.assign(top1=curve.top1 + 10)})
    assert [d.name for d in fig.data] == ['rgb, 1 window', 'rgb, 3 windows', 'student, 1 window', 'student, 3 windows']
    assert list(fig.data[3].x) == [3, 6] and list(fig.data[3].y) == [64, 65] and list(fig.data[3].error_y.array) == [5, 5]
    ax = plot_views(curve, 'verb').axes[0]
    assert [list(c.lines[0].get_ydata()) for c in ax.containers] == [[52, 53], [54, 55]] and ax.get_ylabel() == 'verb top-1, %'
    refused(lambda: plot_views(curve, 'noun'), "no head 'noun'", 'verb, action')
