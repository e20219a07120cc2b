"""Video backbones: the reference's counts and shapes, independent re-computation in the official names, heads, stems and files."""
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import video
from torchvision.models.video.mvit import MSBlockConfig, MViT

from moddist.backbones import ARCHS, VideoStream, _walk_mvit, head_list, inflate_stem, load_official, per_head, rename_keys, split_heads
from moddist.core import ModelError, RGBClip, seed_all
from moddist.losses import cross_entropy, kd_loss
from moddist.models import Tap, TwoStream, build, capture, count_params, load_model, save_model, taps

EPIC = dict(verb=97, noun=300)


def on_paper(*args, **kwargs):
    with torch.device('meta'): return VideoStream(*args, **kwargs).eval()


def clips(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(state, seed=0):
    "Every tensor gets its own values, so that no two of them can be exchanged unnoticed"
    g = torch.Generator().manual_seed(seed)
    for k, v in state.items():
        if k.endswith('running_var'): v.copy_(torch.rand(v.shape, generator=g) + .5)
        elif v.is_floating_point(): v.add_(torch.randn(v.shape, generator=g)*.05)
    return state


@pytest.fixture(scope='module')
def swin():
    seed_all(0)
    stream = VideoStream('swin3d_t', heads=dict(verb=4, noun=3)).eval()
    spread(stream.state_dict())
    return stream


@pytest.fixture(scope='module')
def hara():
    seed_all(0)
    stream = VideoStream('hara_10', 4).eval()
    spread(stream.state_dict())
    return stream


# --- counts and shapes of the reference ---

@pytest.mark.parametrize('arch, heads, n', [
    ('swin3d_t', dict(action=174), 27_984_276), ('swin3d_t', EPIC, 28_155_763), ('swin3d_t', dict(action=400), 28_158_070),
    ('hara_18', dict(action=174), 34_611_054), ('hara_50', dict(action=174), 46_555_502)])
def test_counts(arch, heads, n):
    stream = on_paper(arch, heads=heads)
    assert count_params(stream) == n
    assert count_params(on_paper(arch, sum(heads.values()))) == n
    if arch == 'swin3d_t': assert n - count_params(stream.fc) == 27_850_470


@pytest.mark.parametrize('arch', ['r3d_18', 'r2plus1d_18', 'mc3_18', 'mvit_v2_s'])
def test_nothing_of_torchvision_is_lost(arch):
    with torch.device('meta'): theirs = getattr(video, arch)(num_classes=7)
    assert count_params(on_paper(arch, 7)) == count_params(theirs)


STAGES = {'swin3d_t': dict(patch=(96, 8, 56, 56), stage1=(192, 8, 28, 28), stage2=(384, 8, 14, 14), stage3=(768, 8, 7, 7), stage4=(768, 8, 7, 7)),
          'hara_18': dict(layer1=(64, 8, 28, 28), layer2=(128, 4, 14, 14), layer3=(256, 2, 7, 7), layer4=(512, 1, 4, 4))}


@pytest.mark.parametrize('arch, size', [(a, s) for a in ARCHS for s in ((16, 224), (32, 64)) if (a, s) != ('mvit_v2_s', (32, 64)) and a not in ('hara_101', 'hara_152', 'hara_200')])
def test_maps_are_what_the_taps_declare(arch, size):
    T, px = size
    stream = on_paper(arch, 5)
    with capture(stream) as seen, torch.no_grad():
        features = stream.forward_features(torch.zeros(2, 3, T, px, px, device='meta'))
    assert list(seen.maps) == list(taps(stream)) == list(ARCHS[arch].taps)
    read = min(px, ARCHS[arch].size or px)
    for name, tap in taps(stream).items():
        want = tuple(-(-n//s) for n, s in ((T, tap.t_stride), (read, tap.s_stride), (read, tap.s_stride)))
        assert seen.maps[name].shape == (2, tap.channels, *want), name
        if size == (16, 224) and arch in STAGES: assert seen.maps[name].shape[1:] == STAGES[arch][name]
    assert features.shape == seen.maps[ARCHS[arch].taps[-1]].shape and features.shape[1] == stream.num_features


@pytest.mark.parametrize('frames, giga', [(8, 19.7), (16, 43.9), (32, 87.8)])
def test_multiply_adds_of_swin(frames, giga):
    "The counter counts two operations per multiply-add"
    with FlopCounterMode(display=False) as counter, torch.no_grad(): on_paper('swin3d_t', 174)(torch.zeros(1, 3, frames, 224, 224, device='meta'))
    assert abs(counter.get_total_flops()/2e9 - giga) < .4


def test_last_tap_is_what_the_head_sees(swin, hara):
    for stream, last in ((swin, 'stage4'), (hara, 'layer4')):
        x = clips(2, 3, 4, 32, 32)
        with capture(stream, last) as seen, torch.no_grad(): z = stream(x)
        assert torch.equal(stream.forward_head(seen.maps[last]), z)


@pytest.mark.parametrize('arch, shape', [('swin3d_t', (1, 3, 2, 32, 32)), ('r3d_18', (1, 3, 4, 32, 32)), ('mvit_v2_s', (1, 3, 16, 224, 224))])
def test_what_is_put_into_a_tap_goes_on(arch, shape):
    "Maps can be exchanged at every tap, as a swap test and Grad-CAM need"
    stream = VideoStream(arch, 3).eval()
    x = clips(*shape)
    with torch.no_grad():
        z = stream(x)
        for name in list(taps(stream))[:: 1 if arch != 'mvit_v2_s' else 3]:
            hook = stream.taps[name].register_forward_hook(lambda m, i, out: torch.zeros_like(out))
            assert not torch.equal(stream(x), z), name
            hook.remove()
        assert torch.equal(stream(x), z)


def test_maps_carry_gradients(swin):
    x = clips(1, 3, 2, 32, 32)
    for name in taps(swin):
        swin.zero_grad()
        with capture(swin, name, detach=False) as seen:
            swin(x)
            seen.maps[name].square().mean().backward()
        assert swin.patch_embed.proj.weight.grad.abs().sum() > 0, name
    swin.zero_grad()


# --- the same numbers as torchvision, and as the official code ---

@pytest.mark.parametrize('arch', ['r3d_18', 'mc3_18', 'r2plus1d_18'])
def test_resnets_compute_what_torchvision_does(arch):
    seed_all(0)
    theirs = getattr(video, arch)(num_classes=4).eval()
    spread(theirs.state_dict())
    ours = VideoStream(arch, 4).eval()
    ours.load_state_dict(theirs.state_dict())
    x = clips(2, 3, 4, 16, 16)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x))


def test_mvit_walk_keeps_the_tokens():
    "torchvision's MViT, tiny: its tokens after the norm, without the class token, are our map in the right order"
    seed_all(0)
    widths = [4, *[8]*2, *[16]*11, *[32]*2]
    blocks = [MSBlockConfig(1, a, b, [3, 3, 3], [3, 3, 3], [1, 2, 2] if a != b else [1, 1, 1], [1, 2, 2]) for a, b in zip([4, *widths], widths)]
    net = MViT((32, 32), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, num_classes=3,
               patch_embed_kernel=(3, 7, 7), patch_embed_stride=(2, 4, 4), patch_embed_padding=(1, 3, 3)).eval()
    spread(net.state_dict())
    net.taps = nn.ModuleDict({n: Tap(n, c) for n, c in zip(ARCHS['mvit_v2_s'].taps, (4, 8, 16, 32))})
    kept = []
    net.norm.register_forward_hook(lambda m, args, out: kept.append(out))
    x = clips(2, 3, 4, 32, 32)
    with capture(net) as seen, torch.no_grad():
        features = _walk_mvit(net, x)
        net(x)
    ours, theirs = kept
    assert torch.equal(ours, theirs)
    assert [tuple(m.shape[1:]) for m in seen.maps.values()] == [(4, 2, 8, 8), (8, 2, 4, 4), (16, 2, 2, 2), (32, 2, 1, 1)]
    for t in range(2): assert torch.equal(features[:, :, t, 0, 0], theirs[:, 1 + t])


def swin_names():
    "Names and shapes of the reference's Swin-T (src/modelling/swin.py), written down from its constants"
    def norm(name, c): return {f'{name}.weight': (c,), f'{name}.bias': (c,)}
    def linear(name, i, o): return {f'{name}.weight': (o, i), f'{name}.bias': (o,)}
    names = {'patch_embed.proj.weight': (96, 3, 2, 4, 4), 'patch_embed.proj.bias': (96,)} | norm('patch_embed.norm', 96) | norm('norm', 768)
    for i, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        c = 96 * 2**i
        for j in range(depth):
            b = f'layers.{i}.blocks.{j}'
            names |= norm(f'{b}.norm1', c) | norm(f'{b}.norm2', c) | linear(f'{b}.attn.qkv', c, 3*c) | linear(f'{b}.attn.proj', c, c) | linear(f'{b}.mlp.fc1', c, 4*c) | linear(f'{b}.mlp.fc2', 4*c, c)
            names |= {f'{b}.attn.relative_position_bias_table': (15*13*13, heads), f'{b}.attn.relative_position_index': (392, 392)}
        if i < 3: names |= norm(f'layers.{i}.downsample.norm', 4*c) | {f'layers.{i}.downsample.reduction.weight': (2*c, 4*c)}
    return {f'backbone.{k}': v for k, v in names.items()}


def test_every_swin_name_has_its_place():
    renamed = rename_keys(swin_names(), 'swin3d_t')
    own = {k: tuple(v.shape) for k, v in on_paper('swin3d_t', 5).state_dict().items() if not k.startswith('fc.')}
    assert renamed == own


def swin_by_hand(p, x, heads=(3, 6, 12, 24), depths=(2, 2, 6, 2)):
    "The reference's forward for clips that fit into one window, from its own names, in plain torch"
    ln = lambda k, x: F.layer_norm(x, x.shape[-1:], p[f'backbone.{k}.weight'], p[f'backbone.{k}.bias'])
    lin = lambda k, x: F.linear(x, p[f'backbone.{k}.weight'], p[f'backbone.{k}.bias'])
    x = F.conv3d(x, p['backbone.patch_embed.proj.weight'], p['backbone.patch_embed.proj.bias'], stride=(2, 4, 4))
    x = ln('patch_embed.norm', x.permute(0, 2, 3, 4, 1))
    at = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(7), torch.arange(7), indexing='ij')).flatten(1)
    d = at[:, :, None] - at[:, None] + torch.tensor([7, 6, 6])[:, None, None]
    index = d[0]*13*13 + d[1]*13 + d[2]
    for i, depth in enumerate(depths):
        for j in range(depth):
            b, (B, t, h, w, C) = f'layers.{i}.blocks.{j}', x.shape
            N = t*h*w
            q, k, v = lin(f'{b}.attn.qkv', ln(f'{b}.norm1', x)).view(B, N, 3, heads[i], -1).permute(2, 0, 3, 1, 4)
            bias = p[f'backbone.{b}.attn.relative_position_bias_table'][index[:N, :N]].permute(2, 0, 1)
            a = (q @ k.transpose(2, 3)/(C//heads[i])**.5 + bias).softmax(-1) @ v
            x = x + lin(f'{b}.attn.proj', a.transpose(1, 2).reshape(x.shape))
            x = x + lin(f'{b}.mlp.fc2', F.gelu(lin(f'{b}.mlp.fc1', ln(f'{b}.norm2', x))))
        if i < 3:
            x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = torch.cat([x[:, :, r::2, c::2] for c in (0, 1) for r in (0, 1)], -1)
            x = ln(f'layers.{i}.downsample.norm', x) @ p[f'backbone.layers.{i}.downsample.reduction.weight'].T
    pooled = ln('norm', x).mean((1, 2, 3))
    return torch.cat([F.linear(pooled, p[f'classifiers.{n}.weight'], p[f'classifiers.{n}.bias']) for n in ('VERB', 'NOUN')], 1)


def test_official_swin_gives_the_same_numbers(tmp_path):
    g = torch.Generator().manual_seed(1)
    state = {k: torch.randn(s, generator=g)*.05 for k, s in swin_names().items() if 'index' not in k}
    state |= {f'classifiers.{n}.{p}': torch.randn((k, 768)[:2 - (p == 'bias')], generator=g)*.1 for n, k in (('NOUN', 3), ('VERB', 4)) for p in ('weight', 'bias')}
    torch.save({f'_orig_mod.{k}': v for k, v in state.items()}, tmp_path/'student.pth')
    stream = load_official(VideoStream('swin3d_t', heads=dict(verb=4, noun=3)), tmp_path/'student.pth').eval()
    x = clips(2, 3, 4, 28, 28)
    with torch.no_grad(): torch.testing.assert_close(stream(x), swin_by_hand(state, x), atol=1e-5, rtol=1e-4)


def hara_by_hand(p, x):
    "The 3-D ResNet-10 of Hara et al. from its own names, in plain torch"
    bn = lambda k, x: F.batch_norm(x, p[f'{k}.running_mean'], p[f'{k}.running_var'], p[f'{k}.weight'], p[f'{k}.bias'])
    x = F.max_pool3d(F.relu(bn('bn1', F.conv3d(x, p['conv1.weight'], stride=(1, 2, 2), padding=3))), 3, 2, 1)
    for i in (1, 2, 3, 4):
        b, s = f'layer{i}.0', 1 if i == 1 else 2
        h = F.relu(bn(f'{b}.bn1', F.conv3d(x, p[f'{b}.conv1.weight'], stride=s, padding=1)))
        h = bn(f'{b}.bn2', F.conv3d(h, p[f'{b}.conv2.weight'], padding=1))
        x = F.relu(h + (x if i == 1 else bn(f'{b}.downsample.1', F.conv3d(x, p[f'{b}.downsample.0.weight'], stride=s))))
    return x


def hara_names():
    bn = lambda k, c: {f'{k}.{part}': (c,) for part in ('weight', 'bias', 'running_mean', 'running_var')}
    names, c = {'conv1.weight': (64, 3, 7, 7, 7)} | bn('bn1', 64), 64
    for i, out in enumerate((64, 128, 256, 512), 1):
        b = f'layer{i}.0'
        names |= {f'{b}.conv1.weight': (out, c, 3, 3, 3), f'{b}.conv2.weight': (out, out, 3, 3, 3)} | bn(f'{b}.bn1', out) | bn(f'{b}.bn2', out)
        if i > 1: names |= {f'{b}.downsample.0.weight': (out, c, 1, 1, 1)} | bn(f'{b}.downsample.1', out)
        c = out
    return names | {'fc.weight': (700, 512), 'fc.bias': (700,)}


def test_official_hara_gives_the_same_numbers_and_freezes(tmp_path):
    g = torch.Generator().manual_seed(2)
    state = {k: torch.rand(s, generator=g)*(.1 if 'conv' in k or 'downsample.0' in k else 1.) + (.5 if 'var' in k else -.05) for k, s in hara_names().items()}
    torch.save({'epoch': 1, 'arch': 'resnet-10', 'state_dict': {f'module.{k}': v for k, v in state.items()}}, tmp_path/'k700.pth')
    stream = VideoStream('hara_10', 5, weights=tmp_path/'k700.pth')
    x = clips(2, 3, 4, 32, 32)
    with torch.no_grad():
        want = hara_by_hand(state, x)
        assert stream.freeze_bn and stream.training
        torch.testing.assert_close(stream.forward_features(x), want, rtol=1e-3, atol=1e-3*want.abs().max().item()) # in training mode: its averages are in use

    before = {k: v.clone() for k, v in stream.state_dict().items()}
    opt = torch.optim.SGD(stream.parameters(), lr=1e-6, weight_decay=.1)
    stream(x).sum().backward()
    opt.step()
    moved = {k for k, v in stream.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {f'{n}.{p}' for n, m in stream.named_modules() if isinstance(m, nn.BatchNorm3d) for p in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}
    assert frozen and not moved & frozen and 'stem.0.weight' in moved
    assert load_model(save_model(stream, tmp_path/'own.safetensors')).train().stem[1].training is False

    # the reference's own file of it: an nn.Sequential without pool and fc, numbered
    number = {'conv1': '0', 'bn1': '1'} | {f'layer{i}': str(3 + i) for i in (1, 2, 3, 4)}
    reference = {f'resnet.{number[(part := k.split(".", 1))[0]]}.{part[1]}': v for k, v in state.items() if not k.startswith('fc.')}
    heads = {f'projector.0.{p}': stream.projector[0].state_dict()[p] for p in ('weight', 'bias')} | {f'classifiers.ACTION.{p}': stream.fc.state_dict()[p] for p in ('weight', 'bias')}
    torch.save(reference | heads, tmp_path/'r3d.pth')
    again = load_official(VideoStream('hara_10', 5), tmp_path/'r3d.pth').eval()
    assert not again.freeze_bn
    stream.load_state_dict(before | {f'projector.0.{p}': heads[f'projector.0.{p}'] for p in ('weight', 'bias')} | {f'fc.{p}': heads[f'classifiers.ACTION.{p}'] for p in ('weight', 'bias')})
    with torch.no_grad(): torch.testing.assert_close(again(x), stream.eval()(x))


def test_frames_are_shrunk_as_if_they_came_small(hara):
    from torchvision.transforms import functional as TF
    x = clips(1, 3, 2, 224, 224)
    small = torch.stack([TF.resize(x[0, :, t], [112, 112], antialias=True) for t in range(2)], 1)[None]
    with torch.no_grad(): torch.testing.assert_close(hara(x), hara(small))
    with capture(hara, 'layer1') as seen, torch.no_grad(): hara(x[..., :56, :56])
    assert seen.maps['layer1'].shape[-1] == 14 # small frames stay small


# --- heads ---

def test_heads_lie_side_by_side(swin):
    x = clips(2, 3, 2, 32, 32)
    with torch.no_grad(): z, parts = swin(x), swin.forward_heads(x)
    assert z.shape == (2, 7) and list(parts) == ['verb', 'noun']
    assert torch.equal(parts['verb'], z[:, :4]) and torch.equal(parts['noun'], z[:, 4:])
    assert swin.num_classes == 7 and swin.hparams['heads'] == [['verb', 4], ['noun', 3]]


def test_two_streams_average_each_head():
    a, b = VideoStream('mc3_18', heads=dict(verb=2, noun=3)).eval(), VideoStream('mc3_18', heads=dict(verb=2, noun=3)).eval()
    x, both = clips(1, 3, 2, 16, 16), TwoStream(a, b)
    assert both.connection == 'none'
    with torch.no_grad():
        want = {n: (p + q)/2 for (n, p), q in zip(a.forward_heads(x).items(), b.forward_heads(x).values())}
        got = split_heads(both(x), a.heads)
    for n in want: torch.testing.assert_close(got[n], want[n])


def test_distillation_per_head():
    "The worked example of the reference's loss, once per head; the labels' term is weighted, the teacher's is not"
    s, t = torch.tensor([[1., 2, 3], [0, 0, 0]]).double(), torch.tensor([[3., 2, 1], [1, 0, 0]]).double()
    heads = dict(verb=3, noun=3)
    for tau, want in ((1., .636852612), (2., .700647136), (10., .722299750)):
        assert abs(per_head(kd_loss, heads)(torch.cat([s, s], 1), torch.cat([t, t], 1), tau).item() - want) < 1e-6
    y = torch.tensor([[0, 2], [1, 1]])
    got = per_head(cross_entropy, heads, dict(noun=.5))(torch.cat([s, t], 1), y)
    torch.testing.assert_close(got, (F.cross_entropy(s, y[:, 0]) + .5*F.cross_entropy(t, y[:, 1]))/2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_split_is_a_partition(sizes, B):
    heads = [(f'h{i}', k) for i, k in enumerate(sizes)]
    z = torch.randn(B, sum(sizes))
    parts = split_heads(z, heads)
    assert [p.shape[1] for p in parts.values()] == sizes and torch.equal(torch.cat(list(parts.values()), 1), z)


@pytest.mark.parametrize('args, message', [((None, None), 'needs num_classes'), ((5, dict(a=2)), 'num_classes=5'), ((None, []), 'different names'),
                                           ((None, [('a', 1), ('a', 2)]), 'different names'), ((None, dict(a=0)), 'one class or more')])
def test_heads_that_cannot_be(args, message):
    with pytest.raises(ModelError, match=message): head_list(*args)


def test_wrong_labels_and_weights():
    loss = per_head(cross_entropy, dict(a=2, b=2))
    with pytest.raises(ModelError, match=r'\[B, 2\]'): loss(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ModelError, match='5 logits'): loss(torch.zeros(3, 5), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ModelError, match='weights for c'): per_head(cross_entropy, dict(a=2, b=2), dict(c=1.))


# --- stems ---

@given(st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_stems_keep_their_answer(n, seed):
    seed_all(seed)
    conv = nn.Conv3d(3, 4, (2, 3, 3))
    rgb, w = torch.randn(2, 3, 2, 5, 5), conv.weight.detach().clone()
    grey = rgb[:, :1].expand(-1, 3, -1, -1, -1)
    def inflated(how):
        net = nn.Conv3d(3, 4, (2, 3, 3))
        net.load_state_dict(conv.state_dict())
        return inflate_stem(net, n, how)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    close(inflated('mean')(grey[:, :1].expand(-1, n, -1, -1, -1)), conv(grey))
    if n >= 3:
        close(inflated('repeat')(rgb[:, [i % 3 for i in range(n)]]), conv(rgb))
        close(inflated('zero')(torch.cat([rgb, torch.randn(2, n - 3, 2, 5, 5)], 1)), conv(rgb))
    else:
        close(inflated('repeat').weight, w[:, :n]*3/n)
        with pytest.raises(ModelError, match='cannot keep 3'): inflated('zero')


@pytest.mark.parametrize('arch', ['swin3d_t', 'mvit_v2_s', 'r2plus1d_18', 'hara_10'])
def test_stream_of_any_channels(arch):
    stream = on_paper(arch, 5, in_channels=2)
    assert stream(torch.zeros(1, 2, 16, 224, 224, device='meta')).shape == (1, 5)
    with pytest.raises(ModelError, match=r'\[B, 2, T, H, W\]'): stream(torch.zeros(1, 3, 16, 224, 224, device='meta'))
    later = inflate_stem(on_paper(arch, 5), 2)
    assert later.hparams == stream.hparams and later.in_channels == 2
    with torch.device('meta'): assert build(later.hparams).hparams == later.hparams


def test_stems_that_cannot_be():
    with pytest.raises(ModelError, match="'sum'"): inflate_stem(nn.Conv2d(3, 4, 3), 2, 'sum')
    with pytest.raises(ModelError, match='no stem'): inflate_stem(nn.Linear(3, 4), 2)
    with pytest.raises(ModelError, match='no stem'): inflate_stem(nn.Conv2d(4, 4, 3, groups=4), 2)


# --- the stream itself ---

def test_drop_path_is_a_ramp():
    from torchvision.ops import StochasticDepth
    p = lambda stream: [m.p for m in stream.modules() if isinstance(m, StochasticDepth)]
    assert p(on_paper('swin3d_t', 5)) == pytest.approx([.2*i/11 for i in range(12)])
    assert p(on_paper('swin3d_t', 5, drop_path=0.)) == [0.]*12
    assert p(on_paper('mvit_v2_s', 5, drop_path=.3)) == pytest.approx([.3*i/15 for i in range(16)])
    with pytest.raises(ModelError, match='stochastic depth'): on_paper('r3d_18', 5, drop_path=.1)


def test_drop_path_only_in_training(swin):
    x = clips(1, 3, 2, 32, 32).expand(6, -1, -1, -1, -1)
    seed_all(0)
    with torch.no_grad():
        z, calm = swin.train()(x), swin.eval()(x)
    assert (z - z[:1]).abs().max() > 1e-4
    torch.testing.assert_close(calm, calm[:1].expand_as(calm), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('options', [dict(arch='mc3_18', num_classes=3), dict(arch='mc3_18', heads=dict(verb=2, noun=3), in_channels=4, stem='repeat', freeze_bn=True, dropout=.3)])
def test_round_trip(options, tmp_path):
    stream = VideoStream(**options).eval()
    again = load_model(save_model(stream, tmp_path/'s.safetensors'))
    x = clips(1, stream.in_channels, 2, 16, 16)
    with torch.no_grad(): assert torch.equal(again(x), stream(x))
    assert again.hparams == stream.hparams and again.heads == stream.heads
    pair = TwoStream(stream, again)
    assert load_model(save_model(pair, tmp_path/'p.safetensors')).hparams == pair.hparams


def test_clip_types_are_read(hara):
    x = clips(1, 3, 2, 24, 24)
    with torch.no_grad(): assert type(hara(RGBClip(x))) is torch.Tensor


@pytest.mark.parametrize('call, message', [
    (lambda: VideoStream('swin', 3), "'swin'"), (lambda: on_paper('mc3_18', 3)(torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)), 'uint8'),
    (lambda: on_paper('mvit_v2_s', 3)(torch.zeros(1, 3, 16, 112, 112, device='meta')), 'exactly 16 frames of 224'),
    (lambda: TwoStream(on_paper('mc3_18', 3), on_paper('mc3_18', 3), 'plain')(torch.zeros(1, 3, 2, 16, 16, device='meta')), 'takes no gates')])
def test_refused(call, message):
    with pytest.raises(ModelError, match=message): call()


def test_files_that_do_not_fit(tmp_path, hara):
    state = {k: v for k, v in hara.state_dict().items() if not k.startswith('fc.')}
    torch.save(state, tmp_path/'ok.pth')
    assert torch.equal(VideoStream('hara_10', 9, weights=tmp_path/'ok.pth').stem[0].weight, state['stem.0.weight']) # torchvision's names as well
    torch.save({k: v for k, v in state.items() if k != 'layer3.0.conv1.0.weight'}, tmp_path/'hole.pth')
    with pytest.raises(ModelError, match=r'hole.pth: 1 of \d+ tensors .* layer3.0.conv1.0.weight'): VideoStream('hara_10', 9, weights=tmp_path/'hole.pth')
    with pytest.raises(ModelError, match='it has none'): VideoStream('hara_10', 9, weights='KINETICS400_V1')
    with pytest.raises(ModelError, match=r'ok.pth: heads \(none\)'): load_official(VideoStream('hara_10', 9), tmp_path/'ok.pth')


class Bomb:
    def __reduce__(self): return (print, ('executed',))


def test_no_file_is_executed(tmp_path, capsys):
    (tmp_path/'bomb.pth').write_bytes(pickle.dumps({'state_dict': Bomb()}))
    torch.save({'state_dict': Bomb()}, tmp_path/'bomb2.pth')
    for name in ('bomb.pth', 'bomb2.pth'):
        with pytest.raises(ModelError, match='not a readable file of weights'): VideoStream('hara_10', 3, weights=tmp_path/name)
    assert 'executed' not in capsys.readouterr().out
