"""Losses: golden numbers of the specification, gradients against closed forms, properties."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from moddist.core import ModdistError, RGBClip
from moddist.losses import LossError, cross_entropy, generalized_distillation, hallucination_loss, kd_loss, soft_cross_entropy, step3_loss

S = torch.tensor([[2., 1, 0], [0, 3, 1]], dtype=torch.float64)
T = torch.tensor([[5., 1, -2], [1, 4, 0]], dtype=torch.float64)
Y = torch.tensor([0, 1])
REDUCTIONS = ('sum', 'sum_per_clip', 'channel_sum', 'mean')

logits = arrays(np.float64, (3, 4), elements=st.floats(-20, 20)).map(torch.from_numpy)
maps = arrays(np.float64, (2, 3, 2, 2, 2), elements=st.floats(0, 20)).map(torch.from_numpy)
taus = st.floats(.5, 50)


def close(a, b, tol=1e-7): assert float(a) == pytest.approx(float(b), abs=tol, rel=tol)


@pytest.mark.golden(13)
def test_golden_label_and_soft_losses():
    close(cross_entropy(S, Y), .2887260)
    close(soft_cross_entropy(S, T, 10), 1.0831592)
    close(soft_cross_entropy(T, T, 10), 1.0704664)
    close(soft_cross_entropy(S, T, 10) - soft_cross_entropy(T, T, 10), .0126928)
    close(generalized_distillation(S, T, Y), .6859426)


@pytest.mark.golden(14)
def test_golden_softened_teacher():
    t = torch.tensor([[10., 0, 0]], dtype=torch.float64)
    q = (t/10).softmax(-1)[0]
    for got, want in zip(q, (.5761169, .2119416, .2119416)): close(got, want)
    close(soft_cross_entropy(torch.zeros(1, 3, dtype=torch.float64), t, 10), math.log(3))
    # the gradient with respect to the student reveals the target itself: (p - q)/tau
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    soft_cross_entropy(z, t, 10).backward()
    torch.testing.assert_close(1/3 - 10*z.grad[0], q)


@pytest.mark.golden(15)
def test_golden_hallucination():
    f = lambda *v: torch.tensor(v, dtype=torch.float64)
    close(hallucination_loss(f(0.), f(math.log(3))), .0625)
    a, b = f(0., 1, 2, 3), f(3., 2, 1, 0)
    close(hallucination_loss(a, b), .4544899)
    close(hallucination_loss(b, a), hallucination_loss(a, b))
    close(hallucination_loss(a, a), 0)
    ones = torch.ones(2, 7, 7, 4, dtype=torch.float64)
    close(hallucination_loss(ones, 0*ones), 20.9281222)
    close(hallucination_loss(torch.cat([ones, ones]), torch.zeros(4, 7, 7, 4, dtype=torch.float64)), 2*20.92812215, tol=1e-6)


@pytest.mark.golden(16)
def test_golden_step3():
    a = (torch.arange(8, dtype=torch.float64)/4).reshape(1, 2, 2, 2)
    terms = step3_loss(S, T, Y, a, a.flip(-1))
    close(terms['hall'], .0208063)
    close(terms['total'], .3430753)
    close(terms['total'], .25*.2887260 + .25*1.0831592 + .005*.0208063)
    close(terms['ce'], .2887260)
    close(terms['soft'], 1.0831592)
    assert list(terms) == ['total', 'ce', 'soft', 'hall']


def test_weights_of_step3():
    "Unequal weights: the golden numbers above cannot tell lambda from 1 - lambda, both being one half"
    a = torch.rand(2, 2, 3, 2, 2, 2, dtype=torch.float64)
    terms = step3_loss(S, T, Y, a[0], a[1], tau=3, imitation=.2, balance=.9, scale=7, reduction='mean')
    close(terms['soft'], soft_cross_entropy(S, T, 3))
    close(terms['hall'], hallucination_loss(a[0], a[1], 'mean'))
    close(terms['total'], .9*(.8*terms['ce'] + .2*terms['soft']) + .1*7*terms['hall'])
    close(generalized_distillation(S, T, Y, 3, .2), .8*terms['ce'] + .2*terms['soft'])


@pytest.mark.golden(17)
def test_clip_logits_are_a_mean_of_logits():
    "The same decision through the loss: class 1 is the cheaper label for the mean of logits, class 0 for the mean of probabilities"
    frames = torch.tensor([[0., 10], [4, 0], [4, 0]])
    z = frames.mean(0, keepdim=True)
    assert cross_entropy(z, torch.tensor([1])) < cross_entropy(z, torch.tensor([0]))
    p = frames.softmax(-1).mean(0, keepdim=True).log()
    assert cross_entropy(p, torch.tensor([1])) > cross_entropy(p, torch.tensor([0]))


@pytest.mark.parametrize('tau, value', [(1, .1999218), (4, 1.1087850), (10, 1.2692827)])
def test_hinton(tau, value):
    close(kd_loss(S, T, tau), value)
    independent = tau**2 * F.kl_div((S/tau).log_softmax(-1), (T/tau).softmax(-1), reduction='batchmean')
    close(kd_loss(S, T, tau), independent, 1e-12)


def test_forms_of_generalized_distillation():
    close(generalized_distillation(S, T, Y, soften_student=False), .8500872)
    close(generalized_distillation(S, T, Y, soften_student=False, t2=True), 70.7167861) # checked with 30 digits
    close(generalized_distillation(S, T, Y, imitation=0), .2887260)
    close(generalized_distillation(S, T, Y, imitation=1, t2=True), 108.31592, 1e-6)


@given(logits, logits, taus)
def test_kl_is_a_divergence(s, t, tau):
    assert kd_loss(s, t, tau) >= -1e-9*tau**2
    close(kd_loss(t, t, tau), 0, 1e-9)
    close(kd_loss(s, t, tau), tau**2 * (soft_cross_entropy(s, t, tau) - soft_cross_entropy(t, t, tau)), 1e-6)


@given(logits, logits, taus, arrays(np.float64, (3, 1), elements=st.floats(-50, 50)))
def test_a_shift_of_all_logits_of_a_clip_means_nothing(s, t, tau, shift):
    shift = torch.from_numpy(shift)
    for f in (kd_loss, soft_cross_entropy):
        close(f(s + shift, t, tau), f(s, t, tau), 1e-6)
        close(f(s, t + shift, tau), f(s, t, tau), 1e-6)
    y = torch.tensor([0, 3, 1])
    close(cross_entropy(s + shift, y), cross_entropy(s, y), 1e-6)


@given(logits, logits, taus)
def test_gradient_of_the_soft_terms(s, t, tau):
    "Closed form: (p - q)/(tau B), times tau**2 with Hinton's factor; nothing reaches the teacher"
    want = ((s/tau).softmax(-1) - (t/tau).softmax(-1)) / tau / len(s)
    for f, factor in ((soft_cross_entropy, 1), (kd_loss, tau**2)):
        a, b = s.clone().requires_grad_(), t.clone().requires_grad_()
        f(a, b, tau).backward()
        torch.testing.assert_close(a.grad, factor*want, atol=1e-9, rtol=1e-6)
        assert b.grad is None


@given(maps, maps, st.sampled_from(REDUCTIONS))
def test_hallucination_is_a_bounded_distance(a, b, reduction):
    loss = hallucination_loss(a, b, reduction)
    assert loss >= 0
    close(loss, hallucination_loss(b, a, reduction), 1e-9)
    close(hallucination_loss(a, a, reduction), 0)
    terms = {'sum': a.numel(), 'sum_per_clip': a[0].numel(), 'channel_sum': a.shape[1], 'mean': 1}[reduction]
    assert loss <= .25*terms # after a ReLU the sigmoid lies in [0.5, 1)


@given(maps, maps)
def test_reductions_against_numpy(a, b):
    d = (1/(1 + np.exp(-a.numpy())) - 1/(1 + np.exp(-b.numpy())))**2
    for reduction, want in zip(REDUCTIONS, (d.sum(), d.sum()/2, d.sum(1).mean(), d.mean())):
        close(hallucination_loss(a, b, reduction), want, 1e-9)


@given(maps, maps)
@settings(max_examples=50)
def test_standardized_against_numpy(a, b):
    m, sd = b.numpy().mean((0, 2, 3, 4), keepdims=True), b.numpy().std((0, 2, 3, 4), keepdims=True)
    f = lambda v: 1/(1 + np.exp(-(v.numpy() - m)/(sd + .05)))
    want = ((f(a) - f(b))**2)
    close(hallucination_loss(a, b, standardize=True), want.sum(1).mean(), 1e-9)
    close(hallucination_loss(a, b, 'sum', standardize=True), want.sum(), 1e-9)


def test_standardizing_takes_the_teacher_as_its_unit():
    "A common gain and offset per channel of both maps change nothing (up to the floor of 0.05); the roles are not symmetric"
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 8, 3, 4, 3, 3, generator=g, dtype=torch.float64)*100
    gain, offset = torch.tensor([1., 20, 300]).view(1, 3, 1, 1, 1), torch.tensor([0., -5, 7000]).view(1, 3, 1, 1, 1)
    close(hallucination_loss(s*gain + offset, t*gain + offset, standardize=True), hallucination_loss(s, t, standardize=True), 1e-3)
    assert hallucination_loss(s, 3*t, standardize=True) != hallucination_loss(3*t, s, standardize=True)


@pytest.mark.parametrize('standardize', [False, True])
def test_maps_train_the_student_only(standardize):
    a, b = torch.rand(2, 2, 3, 2, 2, 2).unbind()
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    hallucination_loss(a, b, standardize=standardize).backward()
    assert a.grad.abs().sum() > 0 and b.grad is None


def test_gradient_of_the_map_term():
    a, b = torch.rand(2, 1, 3, 2, 2, 2, dtype=torch.float64).unbind()
    a.requires_grad_()
    hallucination_loss(a, b).backward()
    p = a.detach().sigmoid()
    torch.testing.assert_close(a.grad, 2*(p - b.sigmoid())*p*(1 - p))


def test_unlabelled_clips_count_for_nothing():
    z = torch.randn(4, 5, requires_grad=True)
    y = torch.tensor([2, -1, 0, -1])
    loss = cross_entropy(z, y)
    close(loss.detach(), F.cross_entropy(z.detach()[[0, 2]], y[[0, 2]]), 1e-6)
    loss.backward()
    assert (z.grad[[1, 3]] == 0).all() and (z.grad[[0, 2]] != 0).any(1).all()
    nothing = cross_entropy(z, torch.full((4,), -1))
    nothing.backward()
    assert nothing == 0 and z.grad.isfinite().all()
    close(cross_entropy(z.detach(), torch.tensor([2, -100, 0, -7])), loss.detach(), 1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    "The map term of the paper's size exceeds what float16 can hold (65504)"
    a, b = torch.zeros(25, 2048, 4, 4, dtype=dtype), torch.full((25, 2048, 4, 4), 10., dtype=dtype)
    loss = hallucination_loss(a, b)
    assert loss.dtype == torch.float32 and loss > 65504
    close(loss, .25*a.numel(), 1e-3)
    assert kd_loss(S.to(dtype), T.to(dtype), 10).dtype == torch.float32
    assert cross_entropy(S.to(dtype), Y).dtype == torch.float32


def test_extreme_logits_stay_finite():
    s, t = torch.tensor([[1e4, -1e4, 0]]), torch.tensor([[-1e4, 1e4, 0]])
    for f in (kd_loss, soft_cross_entropy): assert f(s, t, 1).isfinite()
    assert cross_entropy(s, torch.tensor([1])).isfinite()


def test_tensor_subclasses_give_plain_scalars():
    z, a = S.as_subclass(RGBClip), torch.rand(2, 3, 1, 2, 2).as_subclass(RGBClip)
    for loss in (cross_entropy(z, Y.as_subclass(RGBClip)), kd_loss(z, T), hallucination_loss(a, torch.rand(2, 3, 1, 2, 2))):
        assert type(loss) is torch.Tensor and loss.ndim == 0


@pytest.mark.parametrize('call, words', [
    (lambda: kd_loss(S, T[:1]), 'same shape'),
    (lambda: soft_cross_entropy(S[:, :1], T), 'same shape'),
    (lambda: hallucination_loss(torch.ones(2, 3), torch.ones(2, 1)), 'same shape'),
    (lambda: kd_loss(S, T, 0), 'got 0'),
    (lambda: soft_cross_entropy(S, T, -1), 'got -1'),
    (lambda: soft_cross_entropy(S, T, float('nan')), 'got nan'),
    (lambda: soft_cross_entropy(S, T, 2, student_tau=0), 'student_tau'),
    (lambda: generalized_distillation(S, T, Y, imitation=-.1), '0..1'),
    (lambda: generalized_distillation(S, T, Y, imitation=1.1), '0..1'),
    (lambda: hallucination_loss(S, T, 'batchmean'), 'channel_sum'),
    (lambda: cross_entropy(S, Y[:1]), '[2, 3] and [1]'),
    (lambda: cross_entropy(S[0], Y), '[3] and [2]'),
])
def test_misuse_is_one_line(call, words):
    with pytest.raises(LossError) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value)
    assert isinstance(e.value, ModdistError) and isinstance(e.value, ValueError)
