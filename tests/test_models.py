"""Streams, temporal convolutions, connections, taps and files: golden facts of the specification and independent re-computation."""
import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torchvision.models import resnet18, resnet50

from moddist.core import ModelError, RGBClip, seed_all
from moddist.losses import hallucination_loss, kd_loss
from moddist.models import (CONNECTIONS, TEMPORAL_INITS, ResNetStream, SmallStream, Stream, Tap, TemporalConv, TwoStream, build, capture,
                            count_params, fold, gated, load_model, save_model, taps, temporal_kernel, unfold)

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


def diff(a, b): return (a - b).abs().max().item()


def spread_bn(model, seed=0):
    "Give every batch norm its own averages and affine values, so that no term of it can be forgotten unnoticed"
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for t, low, high in ((m.weight, .5, 1.5), (m.bias, -.2, .2), (m.running_mean, -.2, .2), (m.running_var, .5, 1.5)):
                t.data.copy_(torch.rand(t.shape, generator=g)*(high - low) + low)
    return model


def randomize_time(stream, seed=0):
    seed_all(seed)
    for name in STAGES:
        w = getattr(stream, name)[1].temporal.conv.weight
        w.data = temporal_kernel(w.shape[0], 'default')*3
    return stream


@pytest.fixture(scope='module')
def res50():
    seed_all(0)
    return ResNetStream('resnet50', 7).eval()


@pytest.fixture(scope='module')
def res18():
    seed_all(0)
    return spread_bn(ResNetStream('resnet18', 7, temporal_norm=False)).eval()


@pytest.fixture(scope='module')
def pair18():
    seed_all(1)
    return spread_bn(TwoStream(ResNetStream('resnet18', 5), ResNetStream('resnet18', 5))).eval()


@pytest.fixture
def small():
    seed_all(0)
    return spread_bn(SmallStream(10)).eval()


def clips(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- frames and time ---

@pytest.mark.golden(8)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_fold_is_clip_major(B, C, T):
    x = torch.arange(B*C*T*6.).reshape(B, C, T, 2, 3)
    h = fold(x)
    for b in range(B):
        for t in range(T): assert torch.equal(h[b*T + t], x[b, :, t])
    assert torch.equal(unfold(h, T), x)


@pytest.mark.golden(8)
@pytest.mark.parametrize('make', [lambda: SmallStream(5), lambda: randomize_time(ResNetStream('resnet18', 5))])
def test_no_information_crosses_clips(make):
    seed_all(0)
    model, x = make().eval(), clips(2, 3, 4, 48, 48)
    with torch.no_grad(): z, swapped, alone = model(x), model(x.flip(0)), model(x[:1])
    assert diff(z, swapped.flip(0)) < 1e-5 and diff(z[:1], alone) < 1e-5
    assert diff(z[0], z[1]) > 1e-4
    x.requires_grad_()
    model(x)[0].sum().backward()
    assert x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all()


@pytest.mark.golden(2)
@pytest.mark.parametrize('channels', [2, 64])
def test_identity_start(channels):
    x = torch.rand(2, channels, 5, 3, 3)
    assert torch.equal(TemporalConv(channels, norm=False)(x), x)
    assert diff(TemporalConv(channels).eval()(x), x*.99999500) < 1e-7
    assert torch.equal(TemporalConv(channels, norm=False, act=False)(-x), -x)
    assert (TemporalConv(channels, norm=False)(-x) == 0).all()


@pytest.mark.golden(5)
@pytest.mark.parametrize('channels', [3, 64])
def test_tf_literal_start(channels):
    w = temporal_kernel(channels, 'tf-literal')
    assert w.count_nonzero() == channels and (w[:, 1, 0] == 1).all()
    x = torch.rand(1, channels, 5, 2, 2)
    y = TemporalConv(channels, 'tf-literal', norm=False)(x)
    assert (y[:, :, 0] == 0).all()
    for k in range(channels): assert torch.equal(y[:, k, 1:], x[:, 1, :-1])


@pytest.mark.golden(5)
def test_tf_literal_is_what_a_row_major_fill_gives():
    "TensorFlow's constant initializer: the 3*C numbers in row-major order into [3, 1, 1, C_in, C_out], then the last value (0) for the rest"
    C = 6
    numbers = torch.zeros(3, C)
    numbers[1] = 1 # the intent: ones at the centre
    kernel = torch.zeros(3*C*C)
    kernel[:3*C] = numbers.flatten()
    kernel = kernel.view(3, C, C) # time, in, out
    assert torch.equal(temporal_kernel(C, 'tf-literal')[..., 0, 0], kernel.permute(2, 1, 0))


@pytest.mark.golden(6)
def test_centre_sum_and_average_starts():
    x = torch.rand(2, 4, 5, 3, 3)
    y = TemporalConv(4, 'centre-sum', norm=False)(x)
    assert diff(y, x.sum(1, keepdim=True).expand_as(x)) < 1e-6
    y = TemporalConv(4, 'average', norm=False)(x)
    for t in (1, 2, 3): assert diff(y[:, :, t], x[:, :, t-1:t+2].mean(2)) < 1e-6
    assert diff(y[:, :, 0], 2/3*x[:, :, :2].mean(2)) < 1e-6 and diff(y[:, :, 4], 2/3*x[:, :, 3:].mean(2)) < 1e-6


def test_default_starts_stay_near_their_scale():
    seed_all(0)
    bound = (3*32)**-.5 # torch's rule: 1/sqrt(fan in)
    w = temporal_kernel(32, 'default')
    assert .9*bound < w.abs().max() <= bound
    centre = torch.eye(32)[..., None]*torch.tensor([0., 1, 0])
    rest = temporal_kernel(32, 'default+identity')[..., 0, 0] - centre
    assert .27*bound < rest.abs().max() <= .3*bound + 1e-6


@pytest.mark.parametrize('init', TEMPORAL_INITS)
def test_kernels_own_their_memory(init):
    "Training one weight must not move another, as it would in an expanded tensor"
    w = TemporalConv(4, init).conv.weight
    assert w.is_contiguous() and w.untyped_storage().nbytes() == 4*w.numel()


# --- the paper's stream ---

@pytest.mark.golden(1)
@pytest.mark.parametrize('arch', ['resnet18', 'resnet50'])
def test_four_temporal_convolutions(arch):
    model = ResNetStream(arch, 7)
    found = {n: m for n, m in model.named_modules() if isinstance(m, TemporalConv)}
    assert list(found) == [f'layer{i}.1.temporal' for i in (1, 2, 3, 4)]
    for m, c in zip(found.values(), (64, 128, 256, 512)):
        assert (m.conv.in_channels, m.conv.out_channels, m.conv.kernel_size, m.conv.padding, m.conv.stride, m.conv.bias) == (c, c, (3, 1, 1), (1, 0, 0), (1, 1, 1), None)
    assert sum(m.conv.weight.numel() for m in found.values()) == 1_044_480
    assert sum(p.numel() for m in found.values() for p in m.norm.parameters()) == 1_920
    peer = {'resnet18': resnet18, 'resnet50': resnet50}[arch](num_classes=7)
    assert count_params(model) == count_params(peer) + 1_044_480 + 1_920


@pytest.mark.golden(1)
@pytest.mark.parametrize('arch, before, after', [('resnet50', 'conv2', 'conv3'), ('resnet18', 'conv1', 'conv2')])
def test_place_inside_the_unit(arch, before, after):
    "The temporal convolution reads relu(bn(conv)) of the layer before it, and the next convolution reads its output"
    model = spread_bn(ResNetStream(arch, 3)).eval()
    unit, seen = model.layer2[1], {}
    for name in (before, after, 'temporal'):
        getattr(unit, name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
    with torch.no_grad(): model(clips(1, 3, 3, 32, 32))
    bn = getattr(unit, before.replace('conv', 'bn'))
    assert diff(fold(seen['temporal'][0]), bn(seen[before][1]).relu()) < 1e-6
    assert torch.equal(seen[after][0], fold(seen['temporal'][1]))
    assert (seen['temporal'][1] >= 0).all()


@pytest.mark.golden(3)
def test_identity_start_leaves_the_image_network_intact():
    seed_all(0)
    peer = spread_bn(resnet50(num_classes=7)).eval()
    x = clips(2, 3, 3, 64, 64)
    for norm, tol in ((False, 1e-5), (True, 2e-4)):
        model = ResNetStream('resnet50', 7, temporal_norm=norm).eval()
        model.load_state_dict(peer.state_dict(), strict=False)
        with torch.no_grad(): z, frames, shuffled = model(x), peer(fold(x)).unflatten(0, (2, 3)), model(x[:, :, [2, 0, 1]])
        assert diff(z, frames.mean(1)) < tol*frames.abs().max()
        assert diff(z, shuffled) < 1e-5*frames.abs().max()
        # logits of frame i depend on frame i only
        changed = x.clone()
        changed[:, :, 0] = 0
        with torch.no_grad(): a, b = model.forward_features(x), model.forward_features(changed)
        assert diff(a[:, :, 0], b[:, :, 0]) > 1e-3 and diff(a[:, :, 1:], b[:, :, 1:]) < 1e-5


@pytest.mark.golden(4)
def test_four_layers_reach_four_frames(res50):
    model = randomize_time(copy.deepcopy(res50))
    x = clips(1, 3, 6, 32, 32)
    changed = x.clone()
    changed[:, :, 0] += 1
    def moved():
        with torch.no_grad(): a, b = model.forward_features(x), model.forward_features(changed)
        logits = [model.forward_head(a[:, :, [t]]) - model.forward_head(b[:, :, [t]]) for t in range(6)]
        return [z.abs().max().item() for z in logits]
    far = moved()
    assert all(v > 1e-7 for v in far[:5]) and far[5] == 0
    model.layer4[1].temporal.conv.weight.data = temporal_kernel(512, 'identity')
    near = moved()
    assert near[3] > 1e-7 and near[4] == 0


@pytest.mark.golden(7)
def test_first_convolution_of_a_bottleneck_is_1x1(res50):
    units = [u for name in STAGES for u in getattr(res50, name)]
    assert len(units) == 16
    assert {(u.conv1.kernel_size, u.conv2.kernel_size, u.conv3.kernel_size) for u in units} == {((1, 1), (3, 3), (1, 1))}


def test_shapes_of_maps_and_gates(res50):
    features, gates = res50.forward_maps(clips(1, 3, 2, 64, 64))
    assert features.shape == (1, 2048, 2, 2, 2) and (features >= 0).all()
    assert [tuple(g.shape) for g in gates] == [(1, 256, 2, 16, 16), (1, 512, 2, 8, 8), (1, 1024, 2, 4, 4), (1, 2048, 2, 2, 2)]
    assert res50.gate_channels == [256, 512, 1024, 2048] and res50.num_features == 2048


def test_batch_norm_momentum():
    norms = lambda m: [x.momentum for x in m.modules() if hasattr(x, 'running_mean')]
    assert set(norms(ResNetStream('resnet18', 3, bn_momentum=.003))) == {.003} and len(norms(ResNetStream('resnet18', 3))) == 20 + 4
    assert set(norms(ResNetStream('resnet18', 3))) == {.1}


# --- heads ---

@pytest.mark.golden(17)
def test_logits_are_averaged_not_probabilities():
    class Given(Stream):
        def forward_maps(self, x, gates=None, connection=None): return x, []
    model = Given(dict(num_classes=2), 2, [], [])
    model.fc.weight.data, model.fc.bias.data = torch.eye(2), torch.zeros(2)
    frames = torch.tensor([[0., 10], [4, 0], [4, 0]])
    z = model(frames.T[None, :, :, None, None])
    torch.testing.assert_close(z[0], frames.mean(0))
    assert z.argmax() == 1 and frames.softmax(-1).mean(0).argmax() == 0


def test_head_equals_mean_of_frame_logits(small):
    f = small.forward_features(clips(2, 3, 8, 48, 48))
    frames = torch.stack([small.forward_head(f[:, :, [t]]) for t in range(8)])
    assert diff(small.forward_head(f), frames.mean(0)) < 1e-5


# --- the small stream ---

def test_small_stream_has_its_published_size():
    assert count_params(SmallStream(10)) == 93_330
    assert all(p.requires_grad for p in SmallStream(10).parameters())


def reference_small(state, x, gates=None, form='product'):
    "The stream written down again from its description, frames folded by a loop, torch functions only"
    bn = lambda h, k: F.batch_norm(h, state[k+'.running_mean'], state[k+'.running_var'], state[k+'.weight'], state[k+'.bias'])
    B, _, T = x.shape[:3]
    frames = torch.stack([x[b, :, t] for b in range(B) for t in range(T)])
    u, own = bn(F.conv2d(frames, state['conv.weight'], stride=2, padding=2), 'bn'), []
    for i in range(3):
        k, h = f'units.{i}.', u.relu()
        own.append(h)
        r = h
        if gates is not None: r = {'product': h*gates[i], 'residual': h + u*gates[i], 'plain': u*gates[i]}[form]
        a = bn(F.conv2d(r, state[k+'conv1.weight'], stride=2, padding=1), k+'bn1').relu()
        clip = a.view(B, T, *a.shape[1:])
        w = state[k+'temporal.conv.weight'][..., 0, 0]
        zero = torch.zeros_like(clip[:, :1])
        past, future = torch.cat([zero, clip[:, :-1]], 1), torch.cat([clip[:, 1:], zero], 1)
        mixed = sum(torch.einsum('oi,btihw->btohw', w[..., j], v) for j, v in enumerate((past, clip, future))).flatten(0, 1)
        u = bn(F.conv2d(mixed, state[k+'conv2.weight'], padding=1), k+'bn2') + bn(F.conv2d(h, state[k+'shortcut.0.weight'], stride=2), k+'shortcut.1')
    pooled = u.relu().view(B, T, -1, u.shape[2]*u.shape[3]).mean((1, 3))
    return F.linear(pooled, state['fc.weight'], state['fc.bias']), own


def test_small_stream_against_a_second_writing(small):
    x = clips(2, 3, 8, 48, 48)
    with torch.no_grad(): assert diff(small(x), reference_small(small.state_dict(), x)[0]) < 1e-4


@pytest.mark.parametrize('form', ['product', 'residual', 'plain'])
def test_small_two_stream_against_a_second_writing(form):
    seed_all(3)
    net = spread_bn(TwoStream(SmallStream(10), SmallStream(10), form)).eval()
    x, d = clips(2, 3, 8, 48, 48), clips(2, 3, 8, 48, 48, seed=1)
    with torch.no_grad():
        z_d, gates = reference_small(net.inject.state_dict(), d)
        z, _ = reference_small(net.main.state_dict(), x, gates, form)
        ours = net.forward_streams(x, d)
        free = reference_small(net.main.state_dict(), x)[0]
    assert diff(ours[0], z) < 1e-4*z.abs().max() and diff(ours[1], z_d) < 1e-4 and diff(free, z) > 1e-3


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.sampled_from([16, 32, 50]), st.integers(2, 12))
def test_any_clip_length_and_size(B, T, px, width):
    model = SmallStream(4, width=width).eval()
    with torch.no_grad(), capture(model) as seen: assert model(clips(B, 3, T, px, px)).shape == (B, 4)
    for name, tap in taps(model).items():
        side = -(-px//tap.s_stride)
        assert seen.maps[name].shape == (B, tap.channels, T//tap.t_stride, side, side)


def test_dropout_acts_in_training_only():
    model = SmallStream(4, dropout=.5)
    f = torch.rand(2, 64, 3, 3, 3)
    assert diff(model.forward_head(f), model.forward_head(f)) > 0
    model.eval()
    assert torch.equal(model.forward_head(f), model.forward_head(f))


# --- the connection ---

@pytest.mark.golden(10)
def test_values_of_the_connection():
    f = lambda u, d, form='residual': gated(torch.tensor(u).relu(), torch.tensor(u), torch.tensor(d), form).item()
    assert f(-3., 2.) == -6 and f(3., 1.) == 6 and f(.7, 1.) == pytest.approx(1.4)
    assert f(-3., 2., 'plain') == -6 and f(3., 1., 'plain') == 3
    assert f(-3., 2., 'product') == 0 and f(3., 2., 'product') == 6
    assert f(3., 2., 'none') == 3


@pytest.mark.golden(9)
@pytest.mark.parametrize('make, form', [(lambda: ResNetStream('resnet18', 5), 'residual'), (lambda: SmallStream(5), 'residual')])
def test_silent_gates_change_nothing(make, form):
    seed_all(0)
    model, x = spread_bn(make()).eval(), clips(2, 3, 3, 48, 48)
    with torch.no_grad():
        alone, own = model.forward_maps(x)
        gated_, _ = model.forward_maps(x, [0*g for g in own], form)
        loud, _ = model.forward_maps(x, own, form)
    assert torch.equal(alone, gated_) and diff(alone, loud) > 1e-3


@pytest.mark.golden(9)
@pytest.mark.parametrize('form', ['plain', 'product'])
def test_silent_gates_kill_the_residual_input_of_the_other_forms(form, res18):
    seen = []
    hook = res18.layer3[1].conv1.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        _, own = res18.forward_maps(clips(1, 3, 2, 64, 64))
        res18.forward_maps(clips(1, 3, 2, 64, 64), [0*g for g in own], form)
    hook.remove()
    assert (seen[0] != 0).any() and (seen[1] == 0).all()


@pytest.mark.golden(10)
@pytest.mark.parametrize('form', CONNECTIONS)
def test_connection_inside_the_unit(pair18, form):
    "Stage 1 of the main stream, computed with torchvision's own layers from the formula y = relu(x + Res(r))"
    net = copy.deepcopy(pair18)
    net.connection = form
    x, d = clips(1, 3, 2, 64, 64), clips(1, 3, 2, 64, 64, seed=1)
    with torch.no_grad(), capture(net, 'main.layer1') as seen:
        net(x, d)
        m = net.main
        stem = lambda s, v: s.maxpool(F.relu(s.bn1(s.conv1(fold(v)))))
        before = lambda unit, v: unit.bn2(unit.conv2(F.relu(unit.bn1(unit.conv1(v))))) + v
        u, gate = before(m.layer1[0], stem(m, x)), before(net.inject.layer1[0], stem(net.inject, d)).relu()
        assert (u < 0).any()
        h = u.relu()
        r = {'residual': h + u*gate, 'plain': u*gate, 'product': h*gate, 'none': h}[form]
        unit = m.layer1[1]
        mid = fold(unit.temporal(unfold(F.relu(unit.bn1(unit.conv1(r))), 2)))
        y = F.relu(h + unit.bn2(unit.conv2(mid)))
    assert diff(fold(seen.maps['main.layer1']), y) < 1e-5


@pytest.mark.golden(11)
@pytest.mark.parametrize('form', CONNECTIONS)
def test_one_direction_only(pair18, form):
    net = copy.deepcopy(pair18)
    net.connection = form
    rgb, depth, other = (clips(2, 3, 2, 64, 64, seed=i) for i in range(3))
    with torch.no_grad():
        a_rgb, a_depth = net.forward_streams(rgb, depth)
        _, b_depth = net.forward_streams(other, depth)
        c_rgb, c_depth = net.forward_streams(rgb, other)
    assert torch.equal(a_depth, b_depth) and diff(a_depth, c_depth) > 1e-4
    assert torch.equal(a_rgb, c_rgb) if form == 'none' else diff(a_rgb, c_rgb) > 1e-4
    with torch.no_grad(): assert torch.equal(net(rgb, depth), (a_rgb + a_depth)/2)


@pytest.mark.golden(12)
def test_what_the_main_streams_score_teaches_the_injecting_stream():
    seed_all(0)
    net = TwoStream(ResNetStream('resnet50', 5), ResNetStream('resnet50', 5))
    z_rgb, z_depth = net.forward_streams(clips(2, 3, 2, 64, 64), clips(2, 3, 2, 64, 64, seed=1))
    F.cross_entropy(z_rgb, torch.tensor([0, 1]), reduction='sum').backward(retain_graph=True)
    reached = {n for n, p in net.inject.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    silent = {n for n, p in net.inject.named_parameters() if n.startswith(('layer4.1.', 'layer4.2.', 'fc.'))}
    assert silent and reached == {n for n, _ in net.inject.named_parameters()} - silent
    F.cross_entropy((z_rgb + z_depth)/2, torch.tensor([0, 1])).backward()
    assert all(p.grad.abs().sum() > 0 for n, p in net.inject.named_parameters() if n in silent)


@pytest.mark.golden(19, 20)
@pytest.mark.parametrize('make', [lambda: SmallStream(5), lambda: ResNetStream('resnet18', 5)])
def test_a_copied_student_equals_its_teacher(make):
    "Logits layer included: step 3 starts at distance zero"
    seed_all(0)
    teacher = spread_bn(make()).eval()
    student = build(teacher.hparams).eval()
    x = clips(2, 3, 3, 48, 48)
    last = list(taps(teacher))[-1]
    def distances():
        with torch.no_grad(), capture(teacher, last) as t, capture(student, last) as s: zt, zs = teacher(x), student(x)
        return hallucination_loss(s.maps[last], t.maps[last]), kd_loss(zs, zt, 10)
    assert all(d > 0 for d in distances())
    student.load_state_dict(teacher.state_dict())
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert all(d == 0 for d in distances())


@pytest.mark.golden(21, 22)
def test_step_4_reads_one_input_and_trains_both():
    seed_all(0)
    net = TwoStream(SmallStream(5), SmallStream(5))
    assert torch.equal(net.eval()(x := clips(2, 3, 4, 32, 32)), net(x, x))
    before = copy.deepcopy(net.train().state_dict())
    opt = torch.optim.SGD(net.parameters(), .1)
    F.cross_entropy(net(x), torch.tensor([0, 1])).backward()
    opt.step()
    still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_defaults_of_the_connection():
    pair = lambda make, **kw: TwoStream(make(), make(), **kw).connection
    assert pair(lambda: SmallStream(5)) == 'product' and pair(lambda: ResNetStream('resnet18', 5)) == 'residual'
    assert pair(lambda: SmallStream(5), connection='none') == 'none'


def test_unlike_streams_meet_at_the_logits():
    seed_all(0)
    net = TwoStream(SmallStream(5), ResNetStream('resnet18', 5), 'none').eval()
    rgb, depth = clips(1, 3, 4, 48, 48), clips(1, 3, 2, 64, 64)
    with torch.no_grad(): assert diff(net(rgb, depth), (net.main(rgb) + net.inject(depth))/2) == 0


# --- taps ---

def test_names_of_taps(pair18):
    assert list(taps(pair18.main)) == list(STAGES)
    assert list(taps(pair18)) == [f'main.{n}' for n in STAGES] + [f'inject.{n}' for n in STAGES]
    assert list(taps(nn.ModuleList([pair18, SmallStream(2)])))[-1] == '1.unit3'
    assert taps(nn.Linear(2, 2)) == {}
    assert [(t.name, t.channels, t.t_stride, t.s_stride) for t in taps(pair18.main).values()] == [(n, 64*2**i, 1, 4*2**i) for i, n in enumerate(STAGES)]


@pytest.mark.parametrize('make', [lambda: SmallStream(5), lambda: ResNetStream('resnet18', 5)])
def test_last_tap_is_the_feature_map(make):
    model, x = make().eval(), clips(2, 3, 3, 48, 48)
    with torch.no_grad(), capture(model) as seen: f = model.forward_features(x)
    assert list(seen.maps) == list(taps(model)) and torch.equal(list(seen.maps.values())[-1], f)


def test_maps_are_not_overwritten_later_in_the_pass(res18):
    "torchvision's ReLUs work in place; a map must be what it was when it was tapped"
    copies = {}
    with torch.no_grad(), capture(res18) as seen:
        for n, t in taps(res18).items(): t.register_forward_hook(lambda m, a, out, n=n: copies.update({n: out.clone()}))
        res18(clips(1, 3, 2, 64, 64))
    for t in taps(res18).values(): t._forward_hooks.clear()
    assert len(copies) == 4 and all(torch.equal(copies[n], m) for n, m in seen.maps.items())


def test_capture_keeps_the_last_pass_and_leaves_nothing(small):
    a, b = clips(1, 3, 2, 48, 48), clips(1, 3, 2, 48, 48, seed=1)
    with capture(small, ['unit3']) as seen:
        small(a)
        assert not seen.maps['unit3'].requires_grad
        small(b)
    kept = seen.maps['unit3'].clone()
    small(a)
    assert torch.equal(seen.maps['unit3'], kept) and torch.equal(kept, small.forward_features(b).detach())
    with pytest.raises(RuntimeError), capture(small): raise RuntimeError('in the block')
    assert not any(t._forward_hooks for t in taps(small).values())


def test_graphs_end_with_the_block(small):
    import weakref
    with capture(small, 'unit2', detach=False) as seen:
        small(clips(1, 3, 2, 48, 48))
        assert seen.maps['unit2'].requires_grad
        graph = weakref.ref(seen.maps['unit2']) # the tensor that holds the graph
        assert graph() is not None
    assert graph() is None and not seen.maps['unit2'].requires_grad


def test_gradient_through_a_tap(small):
    small.train()
    with capture(small, 'unit2', detach=False) as seen:
        small(clips(2, 3, 2, 48, 48))
        seen.maps['unit2'].sum().backward()
    reached = {n.split('.')[1] for n, p in small.named_parameters() if p.grad is not None and n.startswith('units')}
    assert reached == {'0', '1'} and small.fc.weight.grad is None


def test_captures_nest(small):
    with capture(small, 'unit1') as outer:
        with capture(small, 'unit1') as inner: small(clips(1, 3, 2, 32, 32))
        small(clips(1, 3, 2, 32, 32, seed=1))
    assert diff(outer.maps['unit1'], inner.maps['unit1']) > 0


# --- files ---

MODELS = [lambda: SmallStream(4, width=4, dropout=.3), lambda: ResNetStream('resnet18', 4, 'average', temporal_norm=False, bn_momentum=.01),
          lambda: TwoStream(SmallStream(4), SmallStream(4), 'residual')]


@pytest.mark.parametrize('make', MODELS)
def test_saved_and_reopened(make, tmp_path):
    seed_all(0)
    model = spread_bn(make()).eval()
    path = save_model(model, tmp_path/'deep'/'m.safetensors')
    again = load_model(path)
    assert type(again) is type(model) and again.hparams == model.hparams == json.loads(json.dumps(model.hparams)) and not again.training
    x = clips(1, 3, 2, 48, 48)
    with torch.no_grad(): assert torch.equal(again(x), model(x))
    assert [p.name for p in path.parent.iterdir()] == ['m.safetensors'] # no partial file is left
    assert str(build(model.hparams)) == str(model)


@pytest.mark.parametrize('make', MODELS)
def test_copies_and_pickles(make):
    model, x = make().eval(), clips(1, 3, 2, 48, 48)
    with torch.no_grad():
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))): assert torch.equal(again(x), model(x))


def test_prefixes_of_the_state_dict():
    names = TwoStream(SmallStream(4), SmallStream(4)).state_dict()
    assert {n.split('.')[0] for n in names} == {'main', 'inject'}


def test_a_two_stream_net_saved_with_strange_layouts(tmp_path):
    "Non-contiguous weights are stored as plain ones"
    net = SmallStream(4).eval()
    net.fc.weight.data = torch.randn(64, 4).T
    with torch.no_grad(): assert diff(load_model(save_model(net, tmp_path/'m.safetensors'))(x := clips(1, 3, 2, 32, 32)), net(x)) < 1e-6


def write(path, hparams, state):
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=None if hparams is None else {'moddist': hparams})
    return path


@pytest.mark.parametrize('hparams, words', [
    (None, 'no moddist description'),
    ('{', 'no moddist description'),
    ('[1]', 'a dict'),
    ('{"num_classes": 4}', 'unknown model class None'),
    ('{"class": "os.system", "command": "true"}', 'unknown model class'),
    ('{"class": "SmallStream", "num_classes": 4, "depth": 3}', 'depth'),
    ('{"class": "SmallStream", "num_classes": "four"}', 'cannot be built'),
    ('{"class": "SmallStream"}', 'num_classes'),
    ('{"class": "TwoStream", "main": "SmallStream", "inject": 3}', 'cannot be built'),
    ('{"class": "SmallStream", "num_classes": 5}', 'do not fit'),
    ('{"class": "ResNetStream", "arch": "resnet18", "num_classes": 4}', 'do not fit'),
])
def test_files_that_do_not_fit(hparams, words, tmp_path):
    path = write(tmp_path/'odd.safetensors', hparams, SmallStream(4).state_dict())
    with pytest.raises(ModelError) as e: load_model(path)
    assert words in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)


def test_files_that_are_no_files(tmp_path):
    whole = save_model(SmallStream(4), tmp_path/'m.safetensors').read_bytes()
    for name, data in (('cut', whole[:-100]), ('header', whole[:20]), ('empty', b''), ('text', b'weights, honestly')):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ModelError, match=name): load_model(tmp_path/name)
    with pytest.raises(ModelError, match='no such file'): load_model(tmp_path/'none')
    with pytest.raises(ModelError): load_model(tmp_path)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_backbone_weights_from_a_file(tmp_path, suffix):
    from safetensors.torch import save_file
    seed_all(5)
    peer = spread_bn(resnet18(num_classes=1000))
    path = tmp_path/f'w.{suffix}'
    if suffix == 'pth': torch.save(peer.state_dict(), path)
    else: save_file(peer.state_dict(), path)
    model = ResNetStream('resnet18', 3, weights=path)
    own, theirs = model.state_dict(), peer.state_dict()
    shared = [k for k in theirs if not k.startswith('fc.') and 'num_batches' not in k]
    assert len(shared) == 100 and all(torch.equal(own[k], theirs[k]) for k in shared)
    assert model.fc.weight.shape == (3, 512)
    assert torch.equal(own['layer1.1.temporal.conv.weight'], temporal_kernel(64))
    assert 'weights' not in model.hparams # a reopened checkpoint needs no second file


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'), 'w'))
    torch.save({'conv1.weight': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(ModelError, match='evil.pth') as e: ResNetStream('resnet18', 3, weights=tmp_path/'evil.pth')
    assert '\n' not in str(e.value) and not (tmp_path/'ran').exists()


def test_wrong_backbone_files(tmp_path):
    state = resnet18().state_dict()
    cases = {'short.pth': {k: v for k, v in state.items() if k != 'layer3.0.conv2.weight'}, 'shape.pth': state | {'conv1.weight': torch.zeros(64, 1, 7, 7)}, 'list.pth': [1, 2]}
    for (name, content), key in zip(cases.items(), ('layer3.0.conv2.weight', 'conv1.weight', 'a list')):
        torch.save(content, tmp_path/name)
        with pytest.raises(ModelError) as e: ResNetStream('resnet18', 3, weights=tmp_path/name)
        assert name in str(e.value) and key in str(e.value) and '\n' not in str(e.value)
    (tmp_path/'junk.pth').write_bytes(b'junk')
    for name in ('junk.pth', 'absent.pth'):
        with pytest.raises(ModelError, match=name): ResNetStream('resnet18', 3, weights=str(tmp_path/name))


# --- misuse, precision, export ---

@pytest.mark.parametrize('call, words', [
    (lambda: SmallStream(3)(torch.zeros(3, 4, 32, 32)), '[3, 4, 32, 32]'),
    (lambda: SmallStream(3)(torch.zeros(1, 4, 3, 32, 32)), '[1, 4, 3, 32, 32]'),
    (lambda: ResNetStream('resnet18', 3)(torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8)), 'uint8'),
    (lambda: unfold(torch.zeros(5, 2, 1, 1), 2), '5 frames'),
    (lambda: temporal_kernel(8, 'center'), 'centre-sum'),
    (lambda: ResNetStream('resnet18', 3, 'zero'), 'identity'),
    (lambda: ResNetStream('vgg16', 3), 'resnet50'),
    (lambda: TwoStream(SmallStream(3), SmallStream(3), 'sum'), 'product'),
    (lambda: SmallStream(3).forward_maps(torch.zeros(1, 3, 2, 32, 32), [torch.zeros(1, 8, 2, 16, 16)]*3, 'sum'), 'unknown connection'),
    (lambda: TwoStream(SmallStream(3), SmallStream(4)), '3 classes'),
    (lambda: TwoStream(SmallStream(3), ResNetStream('resnet18', 3)), 'none'),
    (lambda: TwoStream(SmallStream(3), SmallStream(3))(torch.zeros(1, 3, 2, 32, 32), torch.zeros(1, 3, 2, 48, 48)), '48, 48'),
    (lambda: capture(SmallStream(3), ['unit1', 'unit9']).__enter__(), "'unit9'"),
    (lambda: capture(nn.Linear(1, 1), 'x').__enter__(), 'none'),
])
def test_misuse_is_one_line(call, words):
    with pytest.raises(ModelError) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value)


def test_same_module_twice_is_refused():
    one = SmallStream(3)
    with pytest.raises(ModelError, match='deepcopy'): TwoStream(one, one)


def test_clip_tensors_give_plain_logits(small):
    z = small(clips(1, 3, 2, 32, 32).as_subclass(RGBClip))
    assert type(z) is torch.Tensor


def test_a_stream_of_ones_own_is_built_by_name():
    class MyStream(Stream):
        "Mean colour of the clip"
        def __init__(self, num_classes): super().__init__(dict(num_classes=num_classes), 3, [], [Tap('colour', 3)])
        def forward_maps(self, x, gates=None, connection=None): return self.taps['colour'](x), []
    model = build({'class': 'MyStream', 'num_classes': 4})
    assert type(model) is MyStream and model(clips(1, 3, 2, 8, 8)).shape == (1, 4) and list(taps(model)) == ['colour']


@pytest.mark.parametrize('make', [lambda: SmallStream(4), lambda: TwoStream(SmallStream(4), SmallStream(4))])
def test_mixed_precision(make):
    seed_all(0)
    model, x = make(), clips(2, 3, 4, 32, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = F.cross_entropy(model(x).float(), torch.tensor([0, 1]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16): low = model.eval()(x)
    with torch.no_grad(): assert diff(low.float(), model(x)) < .1


@pytest.mark.parametrize('make, inputs', [(lambda: SmallStream(4), 1), (lambda: TwoStream(SmallStream(4), SmallStream(4)), 1),
                                          (lambda: TwoStream(SmallStream(4), SmallStream(4)), 2), (lambda: ResNetStream('resnet18', 4), 1)])
def test_exports_with_any_batch_size(make, inputs):
    model = make().eval()
    program = torch.export.export(model, tuple(clips(2, 3, 4, 32, 32) for _ in range(inputs)), dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in range(inputs)))
    xs = [clips(5, 3, 4, 32, 32, seed=i) for i in range(inputs)]
    with torch.no_grad(): assert diff(program.module()(*xs), model(*xs)) < 1e-5
