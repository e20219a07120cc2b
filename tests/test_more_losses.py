"""The wider set of losses: golden numbers of the literature table, independent re-computations, invariances, misuse."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from moddist import more_losses as ml
from moddist.core import ModdistError, RGBClip
from moddist.losses import LossError, kd_loss

double = lambda *v: torch.tensor(v, dtype=torch.float64)
S, T, Y = double([2., 1, 0], [0, 3, 1]), double([5., 1, -2], [1, 4, 0]), torch.tensor([0, 1])
FS, FT = double([1., 0], [0, 2], [1, 1]), double([2., 0], [0, 2], [0, 0])

logits = arrays(np.float64, (5, 4), elements=st.floats(-10, 10)).map(torch.from_numpy)
seeds = st.integers(0, 10_000)
LABELS = torch.tensor([0, 3, 1, 1, 2])
few = settings(max_examples=30, deadline=None)


def close(a, b, tol=1e-7): assert float(a) == pytest.approx(float(b), abs=tol, rel=tol)


def vectors(seed, b=6, d=4):
    "Two batches of vectors in general position"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, b, d, generator=g, dtype=torch.float64).unbind()


def maps(seed, c=3): return (m.abs() for m in torch.randn(2, 4, c, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def rotation(seed, d=4): return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64))[0]


# golden values of the table

@pytest.mark.parametrize('tau, beta, tckd, nckd, total', [(4, 8, .9146770, .4779681, 4.7384219), (1, .5, .1835876, .3159699, .3415725)])
def test_golden_dkd(tau, beta, tckd, nckd, total):
    d = ml.dkd_loss(S, T, Y, tau=tau, beta=beta)
    close(d['tckd'], tckd); close(d['nckd'], nckd); close(d['total'], total)


def test_golden_dist():
    d = ml.dist_loss(S, T)
    close(d['inter'], .0182586); close(d['intra'], .0000170); close(d['total'], .0182756)


def test_golden_features():
    close(ml.fitnets_loss(FS, FT), .5)
    close(ml.mars_loss(FS, FT), .5)
    close(ml.supervision_transfer_loss(FS, FT), 1.)
    close(ml.squared_distance(FS, FT, 'sum'), 3.)
    a, b = double([[1., 2], [3, 4]], [[0, 1], [0, 1]])[None], double([[4., 3], [2, 1]], [[1, 0], [1, 0]])[None]
    close(ml.attention_transfer_loss(a, b), .3434343)


def test_golden_relations():
    close(ml.rkd_distance_loss(FS, FT), .0106267)
    close(ml.rkd_angle_loss(FS, FT), .0219796)
    close(ml.sp_loss(FS, FT), .1996591)
    close(ml.cka(FS, FT), .9550230)
    close(ml.cka_loss(FS, FT, unbiased=False), .0449770)


def test_golden_admd():
    real, fake, y = double([0., 2, 0]), double([1., 0, 0]), torch.tensor([0])
    close(ml.admd_discriminator_loss(real, fake, y), .3954947)
    close(ml.admd_generator_loss(fake, y), 1.5514447)


def test_golden_dmcl():
    z = double([[2., 0], [0, 1]], [[1, 0], [0, 3]], [[0, 1], [0, 0]])
    d = ml.dmcl_loss(z, torch.tensor([0, 1]))
    assert d['winners'].tolist() == [0, 1]
    close(d['ce'], 1.4042238); close(d['soft'], 1.3532954); close(d['total'], 6.8174056)
    close(ml.dmcl_loss(z, torch.tensor([0, 1]), alpha=.5)['total'], 1.4042238 + 2*1.3532954)
    won = sum(math.log(1 + math.exp(-v)) for v in (2, 3))/2             # the winners' cross-entropies, by hand
    close(ml.dmcl_loss(z, torch.tensor([0, 1]), gamma=0)['total'], won + 4*1.3532954)


# independent calculations

@few
@given(logits, logits, st.floats(.5, 8))
def test_dkd_and_hinton_agree_when_the_silencing_is_given_back(s, t, tau):
    left = 1 - (t/tau).softmax(1).gather(1, LABELS[:, None])[:, 0]
    each = [ml.dkd_loss(s[[b]], t[[b]], LABELS[[b]], tau=tau) for b in range(5)]
    close(sum(e['tckd'] + w*e['nckd'] for e, w in zip(each, left))/5, kd_loss(s, t, tau), 1e-7)


@few
@given(seeds)
def test_relations_against_numpy(seed):
    a, b = (v.numpy() for v in vectors(seed))
    huber = lambda x: np.where(abs(x) < 1, x*x/2, abs(x) - .5)
    dist = lambda f: np.array([[np.linalg.norm(p - q) for q in f] for p in f])
    unit = lambda d: d/d[d > 0].mean()
    close(ml.rkd_distance_loss(*map(torch.from_numpy, (a, b))), huber(unit(dist(a)) - unit(dist(b))).mean(), 1e-9)
    def angles(f):
        out = np.zeros((6, 6, 6))
        for i in range(6):
            for j in range(6):
                for k in range(6):
                    u, v = f[j] - f[i], f[k] - f[i]
                    if i != j and i != k: out[i, j, k] = u @ v/np.linalg.norm(u)/np.linalg.norm(v)
        return out
    close(ml.rkd_angle_loss(*map(torch.from_numpy, (a, b))), huber(angles(a) - angles(b)).mean(), 1e-9)
    gram = lambda f: (f @ f.T)/np.linalg.norm(f @ f.T, axis=1, keepdims=True)
    close(ml.sp_loss(*map(torch.from_numpy, (a, b))), ((gram(a) - gram(b))**2).sum()/36, 1e-9)
    close(ml.cc_loss(*map(torch.from_numpy, (a, b))), sum((abs(a - b)[i]*abs(a - b)[i + 1]).sum() for i in range(5))/5, 1e-9)
    close(ml.coral_loss(*map(torch.from_numpy, (a, b))), ((np.cov(a.T) - np.cov(b.T))**2).sum()/64, 1e-9)
    x, y = a - a.mean(0), b - b.mean(0)
    close(ml.cka(*map(torch.from_numpy, (a, b))), np.linalg.norm(y.T @ x)**2/np.linalg.norm(x.T @ x)/np.linalg.norm(y.T @ y), 1e-9)


def test_unbiased_hsic_is_unbiased():
    "Over all choices of distinct indices the U-statistic is the same number (Song et al. 2012, the definition before the closed form)"
    from itertools import permutations
    a, b = vectors(3, b=5)
    k, l = a @ a.T, b @ b.T
    terms = [k[i, j]*(l[i, j] + l[p, q] - 2*l[i, p]) for i, j, p, q in permutations(range(5), 4)]
    close(ml._hsic(k, l, True), sum(terms)/len(terms), 1e-9)


@few
@given(logits, logits)
def test_dist_against_numpy(s, t):
    p, q = s.softmax(1).numpy(), t.softmax(1).numpy()
    def corr(x, y): x, y = x - x.mean(), y - y.mean(); return x @ y/(np.linalg.norm(x)*np.linalg.norm(y) + 1e-8)
    d = ml.dist_loss(s, t)
    close(d['inter'], 1 - np.mean([corr(p[i], q[i]) for i in range(5)]), 1e-9)
    close(d['intra'], 1 - np.mean([corr(p[:, i], q[:, i]) for i in range(4)]), 1e-9)


def test_dist_is_pearson_where_epsilon_is_small():
    s, t = vectors(0, b=5)
    d, p, q = ml.dist_loss(s, t), s.softmax(1).numpy(), t.softmax(1).numpy()
    close(d['inter'], 1 - np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(5)]), 1e-5)
    close(d['intra'], 1 - np.mean([np.corrcoef(p[:, i], q[:, i])[0, 1] for i in range(4)]), 1e-5)


@few
@given(seeds)
def test_contrast_against_its_definition(seed):
    a, b = vectors(seed)
    z = F.normalize(a, dim=1).float() @ F.normalize(b, dim=1).float().T/.07
    want = -(z.softmax(1).diag().log() + z.softmax(0).diag().log()).mean()/2
    close(ml.info_nce_loss(a, b), want, 1e-4)
    pos, neg = a[:, 0].exp(), b.exp()
    h = lambda e: e/(e + 4/50)
    close(ml.crd_loss(pos, neg, 50), -(h(pos).log().mean() + (1 - h(neg)).log().sum(1).mean()), 1e-9)


def test_against_torchdistill():
    "An independent library computes the same from the same tensors"
    mid = pytest.importorskip('torchdistill.losses.mid_level', reason='torchdistill is not installed')
    s, t = ({'.': {'output': z}, 'f': {'output': f}, 'a': {'output': a}} for z, f, a in zip((S, T), vectors(0), maps(0)))
    logit = dict(student_module_path='.', student_module_io='output', teacher_module_path='.', teacher_module_io='output')
    close(16*mid.KDLoss(**logit, temperature=4, alpha=0)(s, t), kd_loss(S, T, 4), 1e-9)
    d = ml.dist_loss(S, T)
    close(mid.DISTLoss(**logit)(s, t), d['inter'], 1e-6)                 # its epsilon sits elsewhere: intra of two clips is 0
    f = dict(student_output_path='f', teacher_output_path='f')
    a, b = vectors(0)
    close(mid.RKDLoss(**f, dist_factor=25, angle_factor=50, reduction='mean')(s, t), 25*ml.rkd_distance_loss(a, b) + 50*ml.rkd_angle_loss(a, b), 1e-7)
    # its SPKDLoss divides the rows by their L1 norm (`normalize(x, 1)` passes p, not dim) and is no reference for ours
    m = dict(io='output', path='a')
    close(mid.ATLoss(dict(one=dict(student=m, teacher=m)))(s, t), ml.attention_transfer_loss(*maps(0)), 1e-9)
    scores = torch.cat([a[:, :1], b], 1).exp()
    class Noise: num_samples, eps = 50, 0.
    close(mid.CRDLoss.compute_contrast_loss(Noise, scores), ml.crd_loss(scores[:, 0], scores[:, 1:], 50), 1e-7)


# invariances

def one_winner(s, t):
    "No clip on which two peers are equally good: there rounding would choose"
    ce = [F.cross_entropy(z, LABELS, reduction='none') for z in (s, t)]
    assume((ce[0] - ce[1]).abs().min() > 1e-6)


@few
@given(logits, logits, st.floats(-20, 20))
def test_scores_know_only_differences(s, t, shift):
    one_winner(s, t)
    for loss in (lambda a, b: ml.dkd_loss(a, b, LABELS)['total'], lambda a, b: ml.dist_loss(a, b)['total'], lambda a, b: ml.dmcl_loss([a, b], LABELS)['total']):
        close(loss(s + shift, t), loss(s, t), 1e-5); close(loss(s, t - shift), loss(s, t), 1e-5)


@few
@given(logits, logits, st.permutations(range(4)), st.permutations(range(5)))
def test_names_of_classes_and_order_of_clips_do_not_matter(s, t, classes, clips):
    one_winner(s, t)
    classes, clips = list(classes), list(clips)
    new = torch.tensor(classes).argsort()[LABELS]                         # the label's place after reordering the columns
    for loss in (lambda a, b, y: ml.dkd_loss(a, b, y)['total'], lambda a, b, y: ml.dist_loss(a, b)['total'], lambda a, b, y: ml.dmcl_loss([a, b], y)['soft']):
        close(loss(s[:, classes], t[:, classes], new), loss(s, t, LABELS), 1e-6)
        close(loss(s[clips], t[clips], LABELS[clips]), loss(s, t, LABELS), 1e-6)


RELATIONS = dict(distance=ml.rkd_distance_loss, angle=ml.rkd_angle_loss, sp=ml.sp_loss, cka=lambda a, b: ml.cka_loss(a, b, unbiased=False), cka_u=ml.cka_loss)


@few
@given(seeds, st.sampled_from(sorted(RELATIONS)), st.floats(.1, 10), st.permutations(range(6)))
def test_relations_ignore_rotation_scale_and_order(seed, name, scale, order):
    loss, (a, b) = RELATIONS[name], vectors(seed)
    want = loss(a, b)
    close(loss(scale*a @ rotation(seed), b), want, 1e-7)
    close(loss(a, scale*b @ rotation(seed)), want, 1e-7)
    close(loss(a[list(order)], b[list(order)]), want, 1e-7)
    if name != 'sp': close(loss(a + 3., b - 1.), want, 1e-7)
    else: assert abs(loss(a + 3., b) - want) > 1e-6


@few
@given(seeds, st.floats(.1, 10), st.permutations(range(3)))
def test_attention_ignores_channels_and_strength(seed, scale, order):
    a, b = maps(seed)
    want = ml.attention_transfer_loss(a, b)
    close(ml.attention_transfer_loss(scale*a[:, list(order)], b), want, 1e-9)
    close(ml.attention_transfer_loss(a, (scale*b).repeat(1, 2, 1, 1, 1)), want, 1e-9)
    assert abs(ml.attention_transfer_loss(a.flip(-1), b) - want) > 1e-9   # but not where


def test_what_must_be_seen():
    "The table of blind spots from the other side: order for CC, place for CORAL's partner"
    a, b = vectors(1)
    assert abs(ml.cc_loss(a[[1, 0, 2, 4, 3, 5]], b[[1, 0, 2, 4, 3, 5]]) - ml.cc_loss(a, b)) > 1e-3
    close(ml.coral_loss(a.flip(0), b), ml.coral_loss(a, b), 1e-12)
    assert ml.rkd_distance_loss(a, b.flip(0)) != ml.rkd_distance_loss(a, b)


# student = teacher, and gradients

LOSSES = {'dkd': lambda s, t: ml.dkd_loss(s, t, LABELS)['total'], 'dist': lambda s, t: ml.dist_loss(s, t)['total'], 'squared': ml.squared_distance, 'supervision': ml.supervision_transfer_loss,
          'mars': ml.mars_loss, 'fitnets': ml.fitnets_loss, 'distance': ml.rkd_distance_loss, 'angle': ml.rkd_angle_loss, 'sp': ml.sp_loss, 'cc': ml.cc_loss, 'cka': ml.cka_loss, 'coral': ml.coral_loss,
          'attention': lambda s, t: ml.attention_transfer_loss(s[:, :, None], t[:, :, None]*s.new_ones(1, 1, 3))}


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_zero_at_the_teacher_and_no_gradient_to_it(name):
    loss, (a, b) = LOSSES[name], vectors(7, b=5)
    close(loss(a, a), 0, 1e-6)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = loss(a, b)
    value.backward()
    assert value.ndim == 0 and b.grad is None and a.grad.isfinite().all()
    if name != 'attention': assert value > 1e-4 and a.grad.abs().sum() > 1e-4     # one position per map has nothing to say


@pytest.mark.parametrize('name', sorted(set(LOSSES) - {'dkd', 'dist', 'attention'}))
def test_gradients_against_differences(name):
    "Central differences, in double precision"
    a, b = vectors(11, b=5)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, b), (a.requires_grad_(),), eps=1e-6, atol=1e-5)


def test_equal_clips_do_not_give_nan():
    "Dead features: distances of zero, constant columns, zero rows"
    for name in ('distance', 'angle', 'sp', 'cka', 'coral'):
        for a, b in ((torch.ones(5, 4), vectors(0, 5)[0].float()), (vectors(0, 5)[0].float(), torch.zeros(5, 4)), (torch.zeros(5, 4), torch.zeros(5, 4))):
            a = a.clone().requires_grad_()
            value = LOSSES[name](a, b); value.backward()
            assert value.isfinite() and a.grad.isfinite().all(), name
    assert ml.dist_loss(torch.zeros(4, 3), torch.zeros(4, 3))['total'].isfinite()
    assert ml.attention_transfer_loss(torch.zeros(2, 3, 2, 4, 4), torch.ones(2, 3, 2, 4, 4)).isfinite()


def test_the_winner_is_a_constant():
    z = torch.stack(vectors(2, b=5)).requires_grad_()
    d = ml.dmcl_loss(z, LABELS)
    d['soft'].backward()
    won = d['winners'] == torch.arange(2)[:, None]
    assert (z.grad[won] == 0).all() and (z.grad[~won].abs().sum(1) > 0).all()


def test_unlabelled_clips_count_for_nothing():
    s, t = vectors(5, b=5)
    y = torch.tensor([1, -1, 3, -1, 0])
    for f in (ml.dkd_loss, lambda s, t, y: ml.dmcl_loss([s, t], y)):
        close(f(s, t, y)['total'], f(s[[0, 2, 4]], t[[0, 2, 4]], y[[0, 2, 4]])['total'])
        z = s.clone().requires_grad_()
        f(z, t, torch.full((5,), -1))['total'].backward()
        assert (z.grad == 0).all()


def test_both_heads_of_a_contrast_learn():
    a, b = (v.requires_grad_() for v in vectors(3))
    ml.info_nce_loss(a, b).backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


def test_match_size_averages():
    a, b = torch.arange(16.).view(1, 1, 1, 4, 4), torch.zeros(1, 5, 1, 2, 8)
    x, y = ml.match_size(a, b)
    assert x.shape[2:] == y.shape[2:] == (1, 2, 4)
    close(x[0, 0, 0, 0, 0], (0 + 4)/2)
    assert ml.match_size(a, a)[0] is a


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    a = torch.full((4, 2048, 4, 4), 5., dtype=dtype)
    loss = ml.squared_distance(a, 0*a, 'sum')
    assert loss.dtype == torch.float32
    close(loss, 25*a.numel(), 1e-6)
    for f in (ml.rkd_distance_loss, ml.sp_loss, ml.cka_loss, ml.info_nce_loss): assert f(*(v.to(dtype) for v in vectors(0))).dtype == torch.float32


def test_tensor_subclasses_give_plain_scalars():
    a, b = (m.as_subclass(RGBClip) for m in maps(0))
    for loss in (ml.attention_transfer_loss(a, b), ml.squared_distance(a, b), ml.dist_loss(S.as_subclass(RGBClip), T)['total']): assert type(loss) is torch.Tensor and loss.ndim == 0


NAN = double([math.nan, 0], [0, 0], [0, 0])


@pytest.mark.parametrize('call, words', [
    (lambda: ml.dkd_loss(S, T[:, :2], Y), 'same shape'), (lambda: ml.dkd_loss(S, T, Y, tau=0), 'got 0'), (lambda: ml.dkd_loss(S[:, :2], T[:, :2], Y), 'at least 3 classes'),
    (lambda: ml.dkd_loss(S, T, Y[:1]), 'labels [B]'), (lambda: ml.dist_loss(S[:1], T[:1]), 'at least 2'), (lambda: ml.dist_loss(S, T, tau=-1), 'got -1'),
    (lambda: ml.squared_distance(FS, FT, 'batchmean'), 'channel_sum'), (lambda: ml.mars_loss(FS[None], FT[None]), '[B, D]'), (lambda: ml.fitnets_loss(FS, FT[:2]), 'same shape'),
    (lambda: ml.attention_transfer_loss(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 1, 4, 4)), 'same axes'), (lambda: ml.attention_transfer_loss(torch.ones(2, 3, 4), torch.ones(1, 3, 4)), 'same number of clips'),
    (lambda: ml.rkd_distance_loss(FS[:1], FT[:1]), 'at least 2'), (lambda: ml.rkd_angle_loss(FS[:2], FT[:2]), 'at least 3'), (lambda: ml.sp_loss(FS, FT[:2]), 'number of clips'),
    (lambda: ml.cc_loss(FS, FT[:, :1]), 'same shape'), (lambda: ml.cka(FS, FT, unbiased=True), 'at least 4'), (lambda: ml.coral_loss(FS[:1], FT[:1]), 'at least 2'),
    (lambda: ml.crd_loss(torch.ones(2), torch.ones(3, 4), 9), '[B, N]'), (lambda: ml.crd_loss(torch.ones(2), torch.ones(2, 0), 9), '[B, N]'), (lambda: ml.info_nce_loss(FS, FT, tau=0), 'got 0'),
    (lambda: ml.info_nce_loss(FS[:1], FT[:1]), 'at least 2'), (lambda: ml.admd_discriminator_loss(S, T, Y[:1]), '[N, K+1]'), (lambda: ml.dmcl_loss([S], Y), 'two or more'),
    (lambda: ml.dmcl_loss([S, T[:, :2]], Y), 'two or more'), (lambda: ml.dmcl_loss([S, T], Y, tau=0), 'got 0'), (lambda: ml.squared_distance(NAN, FT), '1 of 6 numbers of the student'),
    (lambda: ml.rkd_distance_loss(FS, NAN), 'of the teacher'), (lambda: ml.dmcl_loss([S, S/0], Y), 'stream 1'), (lambda: ml.admd_generator_loss(NAN[:2], Y), 'fake'),
    (lambda: ml.crd_loss(torch.tensor([math.inf, 1]), torch.ones(2, 2), 9), 'positive')])
def test_misuse_is_one_line(call, words):
    with pytest.raises(LossError) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value)
    assert isinstance(e.value, ModdistError) and isinstance(e.value, ValueError)


@pytest.mark.parametrize('n, f', [(30, 5), (30, 300)])
def test_unbiased_cka_against_its_definition(n, f):
    "Plain loops over the U-statistic of HSIC (Song et al. 2012, eq. 5)"
    a = np.random.default_rng(12).normal(size=(n, f)); b = a[:, :3] @ np.random.default_rng(13).normal(size=(3, 7)) + np.random.default_rng(14).normal(size=(n, 7))
    a0, b0 = a - a.mean(0), b - b.mean(0)
    def hsic(x, y):
        k, l = x @ x.T, y @ y.T
        np.fill_diagonal(k, 0); np.fill_diagonal(l, 0)
        one = np.ones(n)
        return (np.trace(k @ l) + one @ k @ one*(one @ l @ one)/((n - 1)*(n - 2)) - 2/(n - 2)*(one @ k @ l @ one))/(n*(n - 3))
    of = lambda x, y: ml.cka(torch.from_numpy(x), torch.from_numpy(y), unbiased=True).item()
    assert of(a, b) == pytest.approx(hsic(a0, b0)/math.sqrt(hsic(a0, a0)*hsic(b0, b0)))
    assert of(a, 2*a @ np.linalg.qr(np.random.default_rng(15).normal(size=(f, f)))[0]) == pytest.approx(1)
