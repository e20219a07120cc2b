"Depth encodings: bit for bit what training used before, exact geometry, nothing across a hole, nothing that flickers"
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings as hyp, strategies as st

from moddist.core import DataError, DepthClip
from moddist.depth import ENCODINGS, depth_range, encode_depth, estimate_gravity, hole_mask, noisy_bytes, surface_normals

FX = 40.


def scene(h=40, w=48, tilt=0., yaw=0., distance=3000.):
    "Depth of one plane whose normal is turned by tilt and yaw (radians) from facing the camera, and that normal"
    n = torch.tensor([math.sin(yaw)*math.cos(tilt), -math.sin(tilt), -math.cos(yaw)*math.cos(tilt)], dtype=torch.float64)
    x, y = (torch.arange(w).double() - (w - 1)/2)/FX, (torch.arange(h).double() - (h - 1)/2)/FX
    along = n[0]*x[None] + n[1]*y[:, None] + n[2]
    return (distance*n[2]/along).float()[None, None], n.float()


def noisy_clip(seed=0, lead=(), t=4, h=20, w=24):
    g = torch.Generator().manual_seed(seed)
    mm = torch.randint(800, 6000, (*lead, 1, t, h, w), generator=g)
    return torch.where(torch.rand(mm.shape, generator=g) < .1, 0, mm)


def old_encode_depth(depth, near_mm=1500, far_mm=5000, how='jet'):
    "The encoding of moddist 0.1, in its own order of operations"
    depth = depth.to(torch.float32)
    x = ((depth - near_mm)/(far_mm - near_mm)).clamp(0, 1)
    x = torch.cat([(1.5 - (4*x - c).abs()).clamp(0, 1) for c in (3, 2, 1)], -4) if how == 'jet' else torch.cat([x]*3, -4)
    return x*(depth > 0)


@pytest.mark.parametrize('how', ['jet', 'replicate'])
@pytest.mark.parametrize('lead', [(), (3,), (2, 2)])
def test_jet_and_replicate_are_bit_identical_to_before(how, lead):
    mm = noisy_clip(1, lead)
    for depth in (mm, mm.to(torch.uint16), mm.float() + .25):
        assert torch.equal(encode_depth(depth, how=how), old_encode_depth(depth, how=how))
        assert torch.equal(encode_depth(depth, 700, 4321, how), old_encode_depth(depth, 700, 4321, how))


@pytest.mark.parametrize('how', ENCODINGS)
@pytest.mark.parametrize('range', ['fixed', 'clip'])
def test_three_channels_in_0_to_1_with_holes_black(how, range):
    mm = noisy_clip(2, (2, 3)).float()
    mm[0, 0, :, 0, 0, :3] = torch.tensor([float('nan'), float('inf'), -5.])
    x = encode_depth(mm, how=how, range=range)
    assert x.shape == (2, 3, 3, 4, 20, 24) and x.dtype == torch.float32 and type(x) is torch.Tensor
    assert x.isfinite().all() and 0 <= x.min() and x.max() <= 1
    assert not x.masked_select(hole_mask(mm).expand_as(x)).any()
    assert x.masked_select(~hole_mask(mm).expand_as(x)).any() or how == 'normals'
    alone = torch.stack([torch.stack([encode_depth(c, how=how, range=range) for c in b]) for b in mm])
    torch.testing.assert_close(x, alone, rtol=0, atol=1e-5)


def test_a_clip_tensor_of_the_loader_is_taken_as_it_comes():
    mm = noisy_clip(3).to(torch.uint16)
    for how in ENCODINGS: assert torch.equal(encode_depth(mm.as_subclass(DepthClip), how=how), encode_depth(mm.int(), how=how))


@pytest.mark.parametrize('how', ENCODINGS)
@pytest.mark.parametrize('range', ['fixed', 'clip'])
def test_what_stands_does_not_flicker_when_somebody_walks(how, range):
    "Normalised per frame, the still table would change by .4"
    mm = torch.full((1, 8, 24, 24), 3600.)
    mm[..., 14:20, 2:8] = 2400
    for t in torch.arange(8): mm[0, t, 4:20, 14:20] = 1600 + 250*t
    x = encode_depth(mm, how=how, range=range, fx=FX)
    for y, x0 in ((17, 5), (3, 6)): assert torch.equal(x[:, :1, y, x0].expand(3, 8), x[:, :, y, x0]) and x[:, 0, y, x0].any()
    if how != 'normals': assert (x[:, :, 12, 17].diff(dim=1).abs().sum(0) > .02).all()       # and who walks is seen to walk


def test_the_range_of_a_clip_is_that_of_its_readings():
    mm = torch.arange(1000., 2000).reshape(1, 10, 10, 10)
    mm = torch.stack([mm, torch.where(torch.rand(mm.shape) < .5, 0, 3000 + mm), 0*mm, 0*mm + 2500])
    near, far = depth_range(mm, range='clip', tails=.1)
    assert near.shape == (4, 1, 1, 1, 1)
    assert (near[0].item(), far[0].item()) == (1100, 1899)
    assert 4000 < near[1].item() < 4200 and 4800 < far[1].item() < 5000
    assert (near[2].item(), far[2].item()) == (1500, 5000)
    assert far[3] > near[3]                                                                  # a flat clip divides by something
    one_wrong = torch.full((1, 8, 20, 20), 2000.); one_wrong[:, :, :, 10:] = 3000; one_wrong[0, 3, 0, 0] = 60000
    assert depth_range(one_wrong, range='clip')[1].item() == 3000                            # one bad reading decides nothing


def test_log_is_even_in_ratios():
    z = torch.tensor([1000., 2000, 4000, 8000, 500, 16000]).view(1, 1, 1, 6)
    torch.testing.assert_close(encode_depth(z, 1000, 8000, 'log')[1].flatten(), torch.tensor([0, 1/3, 2/3, 1, 0, 1]))


@hyp(max_examples=25, deadline=None)
@given(tilt=st.floats(-1., 1.), yaw=st.floats(-1., 1.), radius=st.integers(1, 3))
def test_normals_are_exact_on_planes_however_steep(tilt, yaw, radius):
    z, n = scene(tilt=tilt*.9, yaw=yaw*.9)
    if z.min() <= 0 or z.max() > 60000: return                                               # the plane passes the camera's own height
    got = surface_normals(z, fx=FX, radius=radius)[:, 0]
    inside = got[:, radius:-radius, radius:-radius]
    assert torch.allclose(inside, n[:, None, None].expand_as(inside), atol=2e-3)
    border = got.clone(); border[:, radius:-radius, radius:-radius] = 0
    assert not border.any()


def test_normals_agree_with_the_cross_product_of_points():
    "An independent way: 3-D points of a ball, central differences, cross product, in float64"
    h, w, r, far = 120, 160, 600., 2500.
    x, y = ((torch.arange(k).double() - (k - 1)/2)/150. for k in (w, h))
    d = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w).double()])
    a, b = (d*d).sum(0), far*d[2]
    root = b*b - a*(far*far - r*r)
    z = torch.where(root > 0, (b - root.clamp(min=0).sqrt())/a, 0.)
    points = z*d
    du, dv = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    cross = F.normalize(torch.linalg.cross(dv, du, dim=0), dim=0)
    got = surface_normals(z.float()[None, None], fx=150.)[:, 0, 1:-1, 1:-1].double()
    seen = got.norm(dim=0) > 0
    assert seen.sum() > 2000
    angle = (got*cross).sum(0)[seen].clamp(-1, 1).acos().rad2deg()
    assert angle.median() < .5 and angle.quantile(.95) < 3


@pytest.mark.parametrize('radius', [1, 2, 3])
def test_no_normal_across_a_hole_an_edge_or_the_border(radius):
    z, n = scene(tilt=.5)
    z[..., 10, 12] = 0                                                                       # a hole
    z[..., 30:] += 400                                                                       # an edge between columns 29 and 30
    got = surface_normals(z, fx=FX, radius=radius)[:, 0]
    seen = got.norm(dim=0) > 0
    assert not seen[10 - radius:11 + radius, 12 - radius:13 + radius].any()
    assert not seen[:, 30 - radius:30 + radius].any()                                        # every window that would span the edge
    assert seen[20, 20] and seen[20, 40] and seen[10, 13 + radius] and seen[10, 11 - radius]
    left = seen.clone(); left[:, 30:] = False
    assert torch.allclose(got[:, left], n[:, None].expand(3, int(left.sum())), atol=2e-3)    # what is left on the floor is right


def test_edges_count_in_both_directions():
    for z in (torch.full((1, 1, 20, 20), 2000.), torch.full((1, 1, 20, 20), 3000.)):
        z[..., 8:, :] += 250                                                                 # between rows 7 and 8
        for turned in (z, z.mT):
            seen = surface_normals(turned, fx=FX)[:, 0].norm(dim=0) > 0
            seen = seen if turned is z else seen.mT
            assert not seen[7:9].any() and seen[1:5, 1:-1].all() and seen[11:-1, 1:-1].all()


def test_noise_of_a_kinect_is_no_edge():
    "Sensor noise of 1.2 mm + 1.9 mm (Z - .4)^2 on a wall at 3 m: nearly all of it keeps a normal"
    z = 3000 + (1.2 + 1.9*2.6**2)*torch.randn(1, 4, 60, 60, generator=torch.manual_seed(0))
    assert (surface_normals(z, fx=FX)[:, :, 1:-1, 1:-1].norm(dim=0) > 0).float().mean() > .97


def test_a_diagonal_edge_is_an_edge():
    v, u = torch.meshgrid(torch.arange(30), torch.arange(30), indexing='ij')
    z = torch.where(u > v, 2000., 3000.)[None, None]
    n = surface_normals(z, fx=FX)[:, 0]
    seen = n.norm(dim=0) > 0
    assert not seen[(u - v).abs() <= 1].any() and seen[5, 20] and seen[20, 5]
    assert torch.allclose(n[:, seen], torch.tensor([0., 0, -1])[:, None].expand(3, int(seen.sum())), atol=1e-4)


def test_focal_length_from_the_field_of_view_and_uneven_pictures():
    z, n = scene(tilt=.4, yaw=.3)
    fov = math.degrees(2*math.atan(48/2/FX))
    torch.testing.assert_close(surface_normals(z, fov_deg=fov), surface_normals(z, fx=FX), atol=1e-4, rtol=0)
    wide = surface_normals(F.interpolate(1/z, size=(40, 96), mode='bilinear').reciprocal(), fx=(2*FX, FX))   # stretched to twice the width
    assert torch.allclose(wide[:, 0, 2:-2, 4:-4], n[:, None, None].expand(3, 36, 88), atol=.02)


def test_hha_of_a_room():
    "Floor 1.2 m below a level camera, wall at 4 m: heights and angles by hand"
    h, w = 60, 60
    y = ((torch.arange(h) - (h - 1)/2)/FX)[:, None].expand(h, w)
    z = torch.minimum(1200/y.clamp(min=1e-6), torch.tensor(4000.))
    x = encode_depth(z[None, None], 1000, 5000, 'hha', fx=FX)[:, 0]
    wall, floor = (y < .25)[1:-1, 1:-1], (y > .38)[1:-1, 1:-1]
    disparity, height, angle = x[:, 1:-1, 1:-1]
    torch.testing.assert_close(disparity[wall], torch.full_like(disparity[wall], (1/4000 - 1/5000)/(1/1000 - 1/5000)))
    assert height[floor].abs().max() < .01
    torch.testing.assert_close(height[wall], ((1200 - 4000*y[1:-1, 1:-1][wall])/2500).clamp(0, 1), atol=.01, rtol=0)
    assert torch.allclose(angle[wall], torch.tensor(.5), atol=.01)
    assert torch.allclose(angle[floor], torch.tensor(1.), atol=.01)


@pytest.mark.parametrize('degrees', [-30, -10, 0, 15, 35])
def test_gravity_is_found_in_a_tilted_room(degrees):
    tilt = math.radians(degrees)
    turn = torch.tensor([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    faces = torch.tensor([[0., -1, 0], [0, 0, -1], [1, 0, 0], [.6, -.1, -.79]])@turn.T
    n = faces.repeat_interleave(torch.tensor([300, 400, 200, 100]), 0).T.reshape(3, 1, 10, 100)
    n = F.normalize(n + .03*torch.randn(n.shape, generator=torch.manual_seed(1)), dim=0)
    got = estimate_gravity(torch.stack([n, n.flip(-1)]))
    down = turn@torch.tensor([0., 1, 0])
    assert (got@down > math.cos(math.radians(3))).all()


def test_given_gravity_is_the_same_as_assumed_and_its_length_does_not_matter():
    z = noisy_clip(5).float()/10 + 2500
    level = encode_depth(z, how='hha')
    torch.testing.assert_close(encode_depth(z, how='hha', gravity=(0, 9.81, 0)), level)
    assert not torch.allclose(encode_depth(z, how='hha', gravity=(0, 1, .5)), level)


@pytest.mark.parametrize('kwargs, words', [
    (dict(how='turbo'), ('turbo', 'jet', 'hha')), (dict(range='frame'), ("'frame'", 'fixed', 'clip')), (dict(near_mm=3000, far_mm=2000), ('3000', '2000')),
    (dict(near_mm=0, how='log'), ('near_mm=0', 'log')), (dict(how='normals', fx=-3), ('-3', 'focal length')), (dict(how='hha', gravity='up'), ("'up'", 'level')),
    (dict(how='hha', gravity=(0, 1)), ('(0, 1)', 'three numbers'))])
def test_what_cannot_be_meant_is_refused_in_one_line(kwargs, words):
    with pytest.raises(DataError) as e: encode_depth(torch.full((1, 2, 8, 8), 2000), **kwargs)
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words)


@pytest.mark.parametrize('shape', [(2, 8, 8), (3, 2, 8, 8), (8, 8)])
def test_a_wrong_shape_is_refused(shape):
    for how in ENCODINGS:
        with pytest.raises(DataError, match=r'\[\.\.\., 1, T, H, W\]'): encode_depth(torch.ones(shape), how=how)


@pytest.mark.golden(27)
def test_noise_on_bytes():
    x = torch.arange(256.).repeat(50, 1)
    assert noisy_bytes(x, 0) is x and not noisy_bytes(x, -1).any()
    y = noisy_bytes(x, .1)
    assert torch.equal(y, y.round()) and y.min() >= 0 and y.max() <= 255 and not y[:, 0].any()
    assert abs((y[:, 100]/100).std() - .1) < .04


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('how', ENCODINGS)
def test_the_gpu_says_the_same(how):
    mm = noisy_clip(4, (2,)).to(torch.uint16)
    kw = dict(how=how, range='clip', gravity='estimate')
    torch.testing.assert_close(encode_depth(mm.cuda(), **kw).cpu(), encode_depth(mm, **kw), atol=1e-4, rtol=0)
