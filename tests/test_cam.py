"""Class activation maps: the sum that is the logit in every kind of stream, gradients against weights, cells against measured receptive fields, and an object that decides beside one that does not."""
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from torch import nn

from moddist.backbones import VideoStream
from moddist.cam import cam, cam_figure, difference, energy_inside, joint_cam, plot_cam, shares, touched, upsample
from moddist.core import ModelError, seed_all
from moddist.layout import SeriesStream, SkeletonStream
from moddist.losses import cross_entropy
from moddist.models import ResNetStream, SmallStream, Tap, TwoStream, capture

torch.set_num_threads(1)
rand = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def streams():
    seed_all(0)
    nets = dict(small=SmallStream(5), resnet=ResNetStream('resnet18', 5), swin=VideoStream('swin3d_t', heads=dict(verb=2, noun=3)), r3d=VideoStream('r3d_18', 5))
    for n in nets.values(): n.fc.weight.data *= 5; n.fc.bias.data += rand(5)
    return {k: n.eval() for k, n in nets.items()}


# ---------------------------------------------------------------- the sum

@pytest.mark.parametrize('name, shape', [('small', (2, 3, 3, 48, 40)), ('resnet', (2, 3, 2, 64, 64)), ('swin', (1, 3, 4, 64, 64)), ('r3d', (1, 3, 8, 32, 32))])
def test_cells_and_bias_are_the_logit(streams, name, shape):
    net, x = streams[name], rand(*shape)
    with torch.no_grad(): z = net(x)
    for target in (0, 4, torch.arange(len(x)), None):
        y = z.argmax(1) if target is None else torch.as_tensor(target).expand(len(x))
        m = cam(net, x, target=target)
        assert torch.allclose(m.sum((1, 2, 3)) + net.fc.bias[y], z.gather(1, y[:, None])[:, 0], atol=1e-4)
        last = list(net.taps.values())[-1]
        assert list(m.shape) == [len(x), -(-shape[2]//last.t_stride), *(-(-s//last.s_stride) for s in shape[3:])] and not m.requires_grad


@pytest.mark.parametrize('name, shape', [('small', (2, 3, 3, 48, 40)), ('resnet', (2, 3, 2, 64, 64)), ('swin', (1, 3, 4, 64, 64))])
def test_gradients_at_the_last_map_are_the_weights(streams, name, shape):
    x = rand(*shape)
    assert torch.allclose(cam(streams[name], x, target=3), cam(streams[name], x, target=3, method='gradcam'), atol=1e-5)


def test_a_change_of_one_cell_changes_the_logit_by_its_weight():
    "Against the network itself: put another value into one cell of the map"
    net, x = SmallStream(3).eval(), rand(1, 3, 2, 32, 32)
    m = cam(net, x, target=1)
    with torch.no_grad():
        a = net.forward_features(x); b = a.clone(); b[..., 1, 0, 1] = 0
        assert (net.forward_head(a) - net.forward_head(b))[0, 1].item() == pytest.approx(m[0, 1, 0, 1].item(), abs=1e-6)


@pytest.mark.parametrize('tap', ['unit1', 'unit2'])
def test_gradcam_of_an_earlier_map_by_its_definition(tap):
    net, x = SmallStream(4).eval(), rand(2, 3, 3, 32, 32)
    a = {}
    hook = net.taps[tap].register_forward_hook(lambda m, i, o: a.update(map=o))
    z = net(x); hook.remove()
    g, = torch.autograd.grad(z[:, 2].sum(), a['map'])
    by_hand = sum(g[:, c].mean((1, 2, 3)).view(-1, 1, 1, 1)*a['map'][:, c] for c in range(g.shape[1]))
    assert torch.allclose(cam(net, x, target=2, tap=tap), by_hand, atol=1e-6)


@pytest.mark.parametrize('connection', ['product', 'none'])
def test_the_two_maps_of_a_pair_are_its_logit(connection):
    seed_all(1)
    net, x, d = TwoStream(SmallStream(4), SmallStream(4), connection).eval(), rand(2, 3, 2, 32, 32), rand(2, 3, 2, 32, 32, seed=1)
    with torch.no_grad(): z, a = net(x, d), net.forward_streams(x, d)[0]
    main, inject = (cam(net, x, d, target=2, tap=t) for t in ('main', 'inject.unit3'))
    halves = (net.main.fc.bias[2] + net.inject.fc.bias[2])/2
    assert torch.allclose(main.sum((1, 2, 3)) + inject.sum((1, 2, 3)) + halves, z[:, 2], atol=1e-5)
    assert torch.allclose(2*main.sum((1, 2, 3)) + net.main.fc.bias[2], a[:, 2], atol=1e-5) and torch.equal(cam(net, x, d, target=2, tap='inject'), inject)
    assert cam(net, x, d, target=2, tap='main.unit1').shape[-1] == 8 # gradients, also into the other stream
    early = cam(net, x, d, target=2, tap='inject.unit1')
    alone = cam(net.inject, d, target=2, tap='unit1')/2
    assert torch.allclose(early, alone, atol=1e-6) == (connection == 'none'), 'what a stream sends into the other counts'


def test_a_head_of_another_kind_is_not_called_exact():
    "A maximum over bodies: cells do not sum to the logit"
    net, x = SkeletonStream(3, joints=5).eval(), rand(2, 3, 8, 5, 2)
    class Projected(SmallStream):
        def forward_head(self, features): return self.fc(features.mean((2, 3, 4)).square())
    with torch.no_grad(): net.fc.weight *= 50
    refused(lambda: cam(net, x, method='cam'), "tap 'unit3'", "method='gradcam'", kind=ModelError)
    assert cam(net, x).shape == (2, 2, 5, 2) and torch.equal(cam(net, x), cam(net, x, method='gradcam'))
    refused(lambda: cam(Projected(3), rand(1, 3, 2, 32, 32), method='cam'), 'do not sum', kind=ModelError)


def test_nothing_is_left_behind():
    net, x = SmallStream(3).train(), rand(2, 3, 2, 32, 32).requires_grad_()
    net.units[1].eval()
    before = copy.deepcopy(net.state_dict())
    for how in ({}, dict(method='gradcam'), dict(tap='unit1')): assert not cam(net, x, **how).requires_grad
    assert net.training and not net.units[1].training and x.grad is None and all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.requires_grad_(False)
    assert cam(net, x.detach(), tap='unit1').abs().sum() > 0, 'a frozen net has gradients with respect to its maps'


@pytest.mark.parametrize('call, words', [
    (lambda n, x: cam(n, x, tap='layer4'), ["no tap 'layer4'", 'unit1, unit2, unit3']),
    (lambda n, x: cam(nn.Sequential(nn.Flatten()), x), ['Sequential declares no taps', 'Tap']),
    (lambda n, x: cam(TwoStream(n, SmallStream(3)), x), ["tap='main' or tap='inject'", "'inject.unit3'"]),
    (lambda n, x: cam(n, x, method='scorecam'), ["method='scorecam'", 'gradcam']),
    (lambda n, x: cam(n, x, target=3), ['target 3', 'classes 0 to 2']),
    (lambda n, x: cam(n, x, target=-1), ['target -1']),
    (lambda n, x: cam(n, x, tap='unit2', method='cam'), ["tap 'unit2'", "method='gradcam'"]),
    (lambda n, x: cam(n, x*math.inf), ["tap 'unit3'", 'NaN or infinite', 'earlier checkpoint'])])
def test_one_line_errors(call, words):
    refused(lambda: call(SmallStream(3), rand(1, 3, 2, 32, 32)), *words, kind=ModelError)


def test_a_tap_beside_the_path():
    class Beside(SmallStream):
        "Shows its first map through a tap whose output nobody reads"
        def __init__(self, k):
            super().__init__(k)
            self.taps['side'] = Tap('side', 64, s_stride=16)
        def forward_maps(self, x, gates=None, connection=None):
            taps, self.taps = self.taps, nn.ModuleDict({k: t for k, t in self.taps.items() if k != 'side'})
            try: f, own = super().forward_maps(x)
            finally: self.taps = taps
            taps['side'](f*2)
            return f, own
    refused(lambda: cam(Beside(3), rand(1, 3, 2, 32, 32), tap='side', method='gradcam'), "tap 'side'", 'does not read it', kind=ModelError)
    refused(lambda: cam(SeriesStream(3), rand(1, 6, 32), tap='unit1'), "tap 'unit1'", 'does not read it', kind=ModelError)
    assert cam(SeriesStream(3).eval(), rand(1, 6, 32)).shape == (1, 4, 1, 1), 'exact needs no gradient'


# ---------------------------------------------------------------- places

@pytest.mark.parametrize('name, tap, patches, size', [('small', 'unit2', False, 96), ('small', 'unit3', False, 128), ('resnet', 'layer2', False, 96), ('swin', 'patch', True, 64)])
def test_cells_lie_where_their_receptive_fields_are(streams, name, tap, patches, size):
    "The centre of gravity of |d cell / d clip| against the pixel at which the upsampled cell is brightest"
    net, rows, got = streams[name], torch.arange(size), []
    for seed in range(4):
        x = rand(1, 3, 2, size, size, seed=seed).requires_grad_()
        with capture(net, tap, detach=False) as c:
            net(x); a = c.maps[tap]; i = a.shape[-1]//2
            g, = torch.autograd.grad(a[0, :, 0, i, i].square().sum(), x)
        w = g[0].square().sum((0, 1, 3))
        got.append((w*rows).sum().item()/w.sum().item())
    one = torch.zeros(1, 1, *a.shape[-2:]); one[..., i, i] = 1
    centre = lambda p: (lambda u: (u*rows).sum().item()/u.sum().item())(upsample(one, (1, size, size), p)[0, 0].sum(1))
    stride = size/a.shape[-1]
    assert abs(np.mean(got) - centre(patches)) < .2*stride < abs(centre(patches) - centre(not patches)), (got, centre(True), centre(False))


@pytest.mark.parametrize('n, size', [(3, 48), (4, 50), (7, 224), (1, 16), (6, 6)])
def test_upsampling(n, size):
    m = rand(2, 2, n, n)
    up = upsample(m, (4, size, size), patches=True)
    s = 2**math.ceil(math.log2(size/n))
    if n*s == size: assert torch.allclose(up, F.interpolate(m[:, None], (4, size, size), mode='trilinear')[:, 0], atol=1e-5)
    corner = upsample(m, (4, size, size))
    assert torch.allclose(corner[:, ::2, ::s, ::s][:, :, :n, :n], m, atol=1e-6), 'a cell keeps its value at its own pixel'
    assert corner.shape == (2, 4, size, size) and corner.max() <= m.max() + 1e-6
    assert torch.allclose(upsample(torch.ones(1, 2, n, n), (4, size, size)), torch.ones(1, 4, size, size))


@pytest.mark.parametrize('patches, first', [(True, 7.5), (False, 0)])
def test_cells_that_an_object_touches_by_loops(patches, first):
    g = torch.Generator().manual_seed(3)
    mask = torch.zeros(3, 2, 64, 50, dtype=torch.bool)
    for k in range(3):
        a, b = (torch.rand(2, generator=g)*40).int().tolist()
        mask[k, k % 2, a:a + 9 + k, b:b + 9] = True
    want = torch.zeros(3, 2, 4, 4, dtype=torch.bool)
    for k, t, y, x in mask.nonzero().tolist():
        near = lambda p, n: min(n - 1, max(0, math.floor((p - first)/16 + .5)))
        want[k, t, near(y, 4), near(x, 4)] = True
    assert torch.equal(touched(mask, (2, 4, 4), patches), want)
    assert torch.equal(touched(mask, (2, 64, 50)), mask)


# ---------------------------------------------------------------- shares

def test_shares_difference_and_energy():
    a, b = rand(4, 2, 3, 3), rand(4, 2, 3, 3, seed=1)
    a[3] = -1
    assert torch.allclose(shares(a).sum((1, 2, 3)), torch.tensor([1., 1, 1, 0])) and torch.allclose(shares(7*a), shares(a)) and (shares(a) >= 0).all()
    assert difference(a, b)[:3].sum((1, 2, 3)).abs().max() < 1e-6 and torch.equal(difference(a, a), 0*a) and torch.allclose(difference(3*a, .1*b), difference(a, b))
    mask = rand(4, 2, 3, 3, seed=2) > .3
    e = energy_inside(a, mask)
    assert e[3] == 0 and torch.allclose(e, (a.clamp(min=0)*mask).sum((1, 2, 3))/a.clamp(min=0).sum((1, 2, 3)).clamp(min=1e-9))
    assert torch.allclose(energy_inside(a, mask)[:3] + energy_inside(a, ~mask)[:3], torch.ones(3)) and energy_inside(a, mask | True).tolist() == pytest.approx([1, 1, 1, 0])
    assert torch.allclose((difference(a, b)*mask).sum((1, 2, 3)), energy_inside(a, mask) - energy_inside(b, mask), atol=1e-6)


def test_maps_that_do_not_fit():
    bad = rand(1, 1, 2, 2); bad[0, 0, 0, 0] = math.nan
    for f in (lambda: shares(bad), lambda: upsample(bad, (1, 4, 4)), lambda: difference(bad, bad), lambda: plot_cam(np.zeros((1, 4, 4)), bad[0])): refused(f, '1 of 4 values', 'NaN')
    refused(lambda: difference(rand(1, 1, 2, 2), rand(1, 1, 3, 3)), 'upsample')
    refused(lambda: energy_inside(rand(2, 1, 2, 2), torch.ones(1, 1, 4, 4, dtype=torch.bool)), 'one per clip')
    refused(lambda: energy_inside(rand(1, 1, 2, 2), torch.ones(1, 1, 4, 4)), 'bool')
    refused(lambda: upsample(rand(1, 2, 2), (1, 4, 4)), 'expected float [B, T, h, w]')
    refused(lambda: plot_cam(np.zeros((1, 4, 4)), rand(1, 1, 2, 2)), 'cam(...)[i]')
    refused(lambda: plot_cam(np.zeros((4, 4)), rand(1, 2, 2)), 'expected [T, H, W, 3]')


# ---------------------------------------------------------------- an object that decides

COLOURS = torch.tensor([[1., -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])[:, :, None, None].expand(-1, -1, 48, 48)


def planted(n, seed, looks=None, T=2, H=128, size=48):
    "Two moving squares of one size: the texture of the first (or its look of `looks`) is the class, the grey of the second says nothing"
    g, i = torch.Generator().manual_seed(seed), torch.arange(size)
    rows, cols = i[:, None].expand(-1, size), i.expand(size, -1)
    textures = torch.stack([cols//4 % 2, rows//4 % 2, (rows + cols)//6 % 2, (rows//4 + cols//4) % 2])*2. - 1 if looks is None else looks
    x = 2*F.avg_pool2d(torch.randn(n, 3*T, H, H, generator=g), 5, 1, 2).view(n, 3, T, H, H)
    y, masks = torch.randint(4, (n,), generator=g), torch.zeros(2, n, T, H, H, dtype=torch.bool)
    for k in range(n):
        places = torch.zeros(2, 2)
        while (places[0] - places[1]).abs().max() < size: places = (torch.rand(2, 2, generator=g)*(H - size - 8*T)).long()
        pace, grey = torch.randint(0, 9, (2,), generator=g), 3*torch.rand(1, generator=g) - 1.5
        for t in range(T):
            for place, look, mask in zip(places, (1.5*textures[y[k]], grey), masks):
                a, b = (place + pace*t).tolist()
                x[k, :, t, a:a + size, b:b + size] = look; mask[k, t, a:a + size, b:b + size] = True
    return x, y, *masks


def trained(net, x, y, steps, lr):
    "Trained for seconds on planted clips"
    order, opt = torch.Generator().manual_seed(1), torch.optim.AdamW(net.parameters(), lr, weight_decay=.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
    for _ in range(steps):
        i = torch.randint(len(x), (8,), generator=order)
        opt.zero_grad(); cross_entropy(net(x[i]), y[i]).backward(); opt.step(); rate.step()
    return net.eval()


@pytest.fixture(scope='module')
def decided():
    "A small stream, and clips it has not seen"
    seed_all(0)
    return trained(SmallStream(4), *planted(96, 0)[:2], 40, 4e-3), *planted(40, 1)


def test_the_evidence_lies_in_the_object_that_decides(decided):
    net, x, y, textured, plain = decided
    with torch.no_grad(): assert (net(x).argmax(1) == y).float().mean() > .9
    m = cam(net, x, target=y)
    inside, beside, area = energy_inside(m, textured), energy_inside(m, plain), touched(textured, m.shape[1:]).float().mean().item()
    assert inside.mean() >= .7 > .3 > area and beside.mean() < .2, (inside.mean(), beside.mean(), area)
    assert (inside > .5).float().mean() > .9, 'clip by clip'
    assert energy_inside(cam(SmallStream(4), x, target=y), textured).mean() < .5, 'a network that learned nothing finds nothing'
    assert energy_inside(m, textured.roll(1, 0)).mean() < .5, 'the object of another clip'


def test_the_evidence_moves_with_the_object(decided):
    "The centre of the evidence follows the place of the square over clips"
    net, x, y, textured, _ = decided
    up = upsample(shares(cam(net, x, target=y)), x.shape[2:])
    at = torch.arange(128.)
    for dim in (2, 3):
        where = lambda v: (v.sum((1, 5 - dim))*at).sum(1)/v.sum((1, 2, 3))
        assert np.corrcoef(where(up), where(textured.float()))[0, 1] > .9 and (where(up) - where(textured.float())).abs().mean() < 12


def test_the_evidence_speaks_for_its_class_only(decided):
    net, x, y, textured, _ = decided
    at = touched(textured, (2, 8, 8))
    own, other = ((cam(net, x, target=t)*at).sum((1, 2, 3)) for t in (y, (y + 1) % 4))
    assert (own > other).float().mean() > .9


@pytest.fixture(scope='module')
def swin():
    "Torchvision's Swin with fewer channels and blocks, which learns the colour of the square in seconds, and clips it has not seen"
    from moddist import backbones
    from torchvision.models.video.swin_transformer import SwinTransformer3d
    with pytest.MonkeyPatch.context() as m:
        m.setattr(backbones, '_net', lambda arch: SwinTransformer3d(patch_size=[2, 4, 4], embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=[8, 7, 7]))
        m.setitem(backbones.ARCHS, 'swin3d_t', dataclasses.replace(backbones.ARCHS['swin3d_t'], channels=(16, 32, 64, 128, 128), drop_path=0.))
        seed_all(0)
        yield trained(VideoStream('swin3d_t', 4), *planted(400, 0, COLOURS)[:2], 250, 2e-3), *planted(40, 1, COLOURS)


def test_a_swin_keeps_the_place_in_its_middle_stages_only(swin):
    "Attention mixes the tokens of the last stage: its map is exact and says nothing of the place. The stages before it do"
    net, x, y, coloured, plain = swin
    with torch.no_grad(): assert (net(x).argmax(1) == y).float().mean() > .95
    inside = {}
    for tap in ('stage2', 'stage3', 'stage4'):
        m = cam(net, x, target=y, tap=tap)
        inside[tap] = [v.mean().item() for v in (energy_inside(m, coloured, True), energy_inside(m, plain, True), touched(coloured, m.shape[1:], True).float())]
    for tap in ('stage2', 'stage3'):
        found, other, area = inside[tap]
        assert found > 1.5*area and found > .58 and other < area, inside
    m = joint_cam(net, x, target=y, taps=('stage2', 'stage3'))
    assert energy_inside(m, coloured, True).mean() >= .7 and energy_inside(m, plain, True).mean() < .24, 'both stages agree on the square'
    assert (energy_inside(m, coloured, True) > .5).float().mean() > .9, 'clip by clip'
    found, other, area = inside['stage4']
    assert abs(found - area) < .08 and abs(other - area) < .08, inside


def test_both_streams_of_a_pair_look_at_the_object(decided):
    "Two connected streams that read the same clip: the evidence of each lies in the square that decides"
    *_, x, y, textured, plain = decided
    seed_all(0)
    pair = trained(TwoStream(SmallStream(4), SmallStream(4)), *planted(192, 0)[:2], 80, 4e-3)
    with torch.no_grad(): assert (pair(x).argmax(1) == y).float().mean() > .9
    for stream in ('main', 'inject'):
        m = cam(pair, x, target=y, tap=stream)
        assert energy_inside(m, textured).mean() >= .7 and energy_inside(m, plain).mean() < .2, stream


# ---------------------------------------------------------------- figures

def test_both_figures_draw_the_maps():
    f, a, b = np.random.default_rng(0).random((4, 32, 32, 3)), rand(4, 2, 2), rand(2, 2, 2, seed=1)
    still = plot_cam(f, {'student': a, 'difference': b}, 'points', at=[0, 3], mask=np.ones((4, 32, 32), bool))
    pictures = [ax for ax in still.axes if ax.images and len(ax.images) < 3 and not ax.get_label()]
    heat = [ax.images[1] for ax in pictures if len(ax.images) == 2]
    assert len(heat) == 4 and np.allclose(heat[1].get_array(), upsample(a[None], (4, 32, 32))[0, 3]) and heat[0].get_clim() == pytest.approx((0, upsample(a[None], (4, 32, 32)).max().item()))
    assert heat[2].get_clim()[0] == -heat[2].get_clim()[1] and heat[2].get_cmap().name == 'RdBu_r' and heat[0].get_cmap().name == 'inferno'
    assert [ax.get_ylabel() for ax in still.axes if ax.get_ylabel()].count('points') == 2
    still.canvas.draw()
    live = cam_figure(f, {'student': a, 'difference': b}, 'points', at=[0, 3])
    assert len(live.data) == 8 and np.allclose(live.data[3].z, a[3], atol=1e-4) and np.allclose(live.data[7].z, b[1], atol=1e-4), 'frame 3 of 4 lies in cell 1 of 2'
    assert list(live.data[3].x) == [-.5, 8.5, 31.5] == list(live.data[3].y)
    assert live.layout.coloraxis.cmin == 0 and live.layout.coloraxis2.cmin == -live.layout.coloraxis2.cmax
