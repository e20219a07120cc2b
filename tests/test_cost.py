"""Costs: counts by hand, against torchvision's published numbers and the spec's table; protocols of the clock; nothing about how fast."""
import math
import time

import numpy as np
import pytest
import torch
from conftest import refused
from torch import nn

from moddist import cost as module
from moddist.backbones import VideoStream
from moddist.core import DataError, ModelError, RGBClip
from moddist.cost import cost, cost_figure, cost_table, device_name, latency, multiply_adds, plot_cost
from moddist.distill import Teacher
from moddist.ensemble import Ensemble
from moddist.layout import FusionStream, LayoutStream, SeriesStream
from moddist.models import SmallStream, TwoStream

torch.set_num_threads(1)


def boxes(n=1, frames=16):
    x = torch.zeros(n, 8, frames, 14)
    x[:, 4] = 1
    return x


# ---------------------------------------------------------------- counts

def test_by_hand():
    conv = nn.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), groups=1)
    assert multiply_adds(conv, torch.rand(2, 3, 4, 16, 16)) == (8*3*75*4*8*8, ())
    assert multiply_adds(nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.rand(1, 6, 5, 5))[0] == 6*9*25
    assert multiply_adds(nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.LayerNorm(11), nn.Linear(11, 2, bias=False)), torch.rand(5, 7))[0] == 7*11 + 11*2
    assert multiply_adds(nn.Identity(), torch.rand(1, 3)) == (0, ())
    assert multiply_adds(nn.LSTM(4, 8, batch_first=True), torch.rand(1, 5, 4)) == (5*4*8*(4 + 8), ())


class Attention(nn.Module):
    def forward(self, q, k, v): return nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_is_counted():
    q, k = torch.rand(1, 2, 7, 4), torch.rand(1, 2, 9, 4)
    assert multiply_adds(Attention(), q, k, k)[0] == 2*(7*9*4 + 7*9*4)


@pytest.mark.parametrize('arch, weights', [('swin3d_t', 'Swin3D_T'), ('mvit_v2_s', 'MViT_V2_S'), ('r3d_18', 'R3D_18'), ('r2plus1d_18', 'R2Plus1D_18'), ('mc3_18', 'MC3_18')])
def test_counts_are_those_torchvision_publishes(arch, weights):
    "With 400 classes, 16 frames (table of video models): they print G multiply-adds with three decimals"
    from torchvision.models import video
    meta = getattr(video, f'{weights}_Weights').KINETICS400_V1.meta
    size = 224 if arch in ('swin3d_t', 'mvit_v2_s') else 112
    n, missing = multiply_adds(getattr(video, arch)(weights=None).train(), torch.zeros(1, 3, 16, size, size))
    assert n/1e9 == pytest.approx(meta['_ops'], abs=2e-3) and missing == ()


def test_the_table_of_the_spec():
    "radevski2022 3.1 and 9.3: parameters, and multiply-adds of 8, 16 and 32 frames"
    swin, layout = VideoStream('swin3d_t', 174), LayoutStream(174)
    x = torch.zeros(1, 3, 16, 224, 224)
    pair = Teacher(swin, swin)
    rows = cost_table({'student': (swin, x), 'rgb+flow': (pair, x, x), 'boxes': (layout, boxes())}, runs=0)
    assert (rows.parameters/1e6).tolist() == pytest.approx([27.98, 55.97, 85.22], abs=.005) and (rows.multiply_adds/1e9).tolist()[:2] == pytest.approx([43.9, 87.8], abs=.05)
    assert rows.loc['rgb+flow', 'parameters'] + rows.loc['boxes', 'parameters'] == pytest.approx(141.2e6, abs=.05e6)
    for frames, want in ((8, 19.7), (32, 87.8)): assert multiply_adds(swin, torch.zeros(1, 3, frames, 224, 224))[0]/1e9 == pytest.approx(want, abs=.1), frames
    d, layer = 768, lambda n: n*12*768**2 + 2*n*n*768
    assert rows.loc['boxes', 'multiply_adds'] == 16*6*layer(15) + 6*layer(17) + 16*14*5*d + 174*d and rows.latency_ms.isna().all()


NETS = dict(layout=lambda: (LayoutStream(5, width=32), boxes()), small=lambda: (SmallStream(5), torch.rand(1, 3, 4, 32, 32)), two=lambda: (TwoStream(SmallStream(5), SmallStream(5)), *[torch.rand(1, 3, 4, 32, 32)]*2),
            teacher=lambda: (Teacher(SmallStream(5), LayoutStream(5, width=32)), torch.rand(1, 3, 4, 32, 32), boxes()), hara=lambda: (VideoStream('hara_18', 5), torch.rand(1, 3, 8, 32, 32)),
            series=lambda: (SeriesStream(5), torch.rand(1, 6, 64)), fusion=lambda: (FusionStream(VideoStream('hara_18', 5), LayoutStream(5, width=32)), torch.rand(1, 3, 8, 32, 32), boxes()),
            ensemble=lambda: (Ensemble(SmallStream(9), SmallStream(9), heads=dict(verb=4, noun=5), weights=dict(verb=[1, 2], noun=[2, 1])), *[torch.rand(1, 3, 4, 32, 32)]*2))


@pytest.mark.parametrize('name', NETS)
def test_a_count_without_calculation_is_that_of_a_real_pass(name, monkeypatch):
    model, *xs = NETS[name]()
    quick = multiply_adds(model, *xs)
    monkeypatch.setattr(module, '_shapes_only', lambda m: m)                       # a model with content cannot read inputs without: it really runs
    assert multiply_adds(model, *xs) == quick and quick[0] > 0 and quick[1] == ()
    assert multiply_adds(model, *(x.repeat(3, *[1]*(x.ndim - 1)) for x in xs)) == quick


def test_an_ensemble_costs_its_streams():
    s, x = SmallStream(9), torch.rand(1, 3, 4, 32, 32)
    e = Ensemble(s, s, s, heads=dict(verb=4, noun=5))
    c, one = cost(e, x, x, x, runs=2, warmup=1), cost(s, x, runs=0)
    assert (c.parameters, c.multiply_adds) == (3*one.parameters, 3*one.multiply_adds) and c.latency_ms > 0
    multiply_adds(e, x, x, x)
    assert e.last.logits.device.type == 'cpu' and e.last.logits.isfinite().all()   # a count leaves nothing of its own behind


def test_a_count_leaves_no_trace():
    class Lazy(nn.Module):
        "Makes a mask at the first pass and keeps it"
        def __init__(self): super().__init__(); self.fc, self.mask = nn.Linear(3, 3), None
        def forward(self, x):
            if self.mask is None: self.mask = torch.ones(3, device=x.device)
            return self.fc(x*self.mask)
    m = Lazy()
    weights = {k: v.clone() for k, v in m.state_dict().items()}
    assert multiply_adds(m, torch.rand(1, 3))[0] == 9 and m.mask is None
    assert torch.equal(m(torch.ones(1, 3)), m.fc(torch.ones(1, 3))) and all(torch.equal(v, weights[k]) for k, v in m.state_dict().items())


def test_the_blind_spot_of_the_counter():
    "In eval mode torch fuses a transformer layer into one operator without a formula; the switch is where it was afterwards"
    from torch.utils.flop_counter import FlopCounterMode
    layout = LayoutStream(5, width=32).eval()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), FlopCounterMode(display=False) as f: layout(boxes())
    n = multiply_adds(layout, boxes())[0]
    assert n > 100*f.get_total_flops()/2 and torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try: assert multiply_adds(layout, boxes())[0] == n and not torch.backends.mha.get_fastpath_enabled()
    finally: torch.backends.mha.set_fastpath_enabled(True)


class Looks(nn.Module):
    "Asks for a value on its way, so that it must really run"
    def __init__(self, inner): super().__init__(); self.inner, self.ran = inner, []
    def forward(self, x):
        self.ran.append(x.device.type)
        return self.inner(x) if x.sum().item() >= 0 else x


def test_a_network_that_looks_at_values_is_really_run():
    m = Looks(nn.Linear(4, 5))
    assert multiply_adds(m, torch.ones(2, 4)) == (20, ())
    fused = multiply_adds(Looks(nn.LSTM(4, 8, batch_first=True)), torch.ones(1, 5, 4))
    assert len(fused[1]) == 1 and 'rnn' in fused[1][0]                              # not counted, and said so
    class Spectrum(nn.Module):
        def forward(self, x): return torch.fft.rfft(x)
    assert multiply_adds(Spectrum(), torch.rand(1, 64)) == (0, ('aten._fft_r2c',)) and cost(Spectrum(), torch.rand(1, 64), runs=0).not_counted == ('aten._fft_r2c',)


# ---------------------------------------------------------------- the clock

class Watched(nn.Module):
    "Remembers how it was called"
    def __init__(self, rest=0.): super().__init__(); self.fc, self.bn, self.calls, self.rest = nn.Linear(3, 2), nn.BatchNorm1d(2), [], rest
    def forward(self, x):
        if x.device.type != 'meta': self.calls.append((self.training, self.bn.training, torch.is_grad_enabled(), len(x))); time.sleep(self.rest)
        return self.bn(self.fc(x))


@pytest.mark.parametrize('mode', [True, False])
def test_runs_and_warm_up_in_eval_mode_without_gradients(mode):
    m = Watched().train(mode)
    m.fc.eval()
    ms = latency(m, torch.rand(1, 3), runs=7, warmup=4)
    assert ms.shape == (7,) and (ms > 0).all() and m.calls == [(False, False, False, 1)]*11
    assert (m.training, m.bn.training, m.fc.training) == (mode, mode, False)
    m.calls.clear()
    assert len(latency(m, torch.rand(1, 3))) == 100 and len(m.calls) == 120        # 100 after 20, unless told otherwise


def test_a_pass_that_rests_takes_at_least_its_rest():
    c = cost(Watched(rest=.004), torch.rand(1, 3), runs=5, warmup=1)
    assert 4 <= c.low_ms <= c.latency_ms <= c.high_ms


def test_the_median_is_reported(monkeypatch):
    monkeypatch.setattr(module, 'latency', lambda *a, **k: np.array([1., 2., 3., 4., 100.]))
    c = cost(Watched(), torch.rand(1, 3), runs=5)
    assert c.latency_ms == 3 and c.low_ms == pytest.approx(1.4) and c.high_ms == pytest.approx(61.6)


def test_the_clock_waits_for_the_device(monkeypatch):
    "Before the start and before the end of every pass"
    order, m = [], Watched()
    monkeypatch.setattr(module, '_wait', lambda device: order.append('wait'))
    m.register_forward_hook(lambda *a: order.append('pass'))
    latency(m, torch.rand(1, 3), runs=2, warmup=1)
    assert order == ['wait', 'pass', 'wait']*3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_a_gpu():
    m, x = VideoStream('swin3d_t', 9).cuda(), torch.rand(1, 3, 16, 224, 224, device='cuda')
    c = cost(m, x, runs=20, warmup=5)
    assert c.device == torch.cuda.get_device_name() and c.multiply_adds/1e9 == pytest.approx(43.9, abs=.05) and c.latency_ms > 0
    half = cost(m.half(), x.half(), runs=5, warmup=2)
    assert half.dtype == 'float16' and half.multiply_adds == c.multiply_adds
    refused(lambda: latency(m, x.cpu()), 'cuda', 'cpu', kind=ModelError)


def test_the_record_says_on_what():
    c = cost(nn.Linear(3, 2).double(), torch.rand(4, 3, dtype=torch.float64), runs=3, warmup=0)
    assert (c.clips, c.runs, c.warmup, c.dtype, c.threads) == (4, 3, 0, 'float64', torch.get_num_threads()) and c.device == device_name('cpu') and len(c.device) > 2
    assert c.multiply_adds == 6 and c.parameters == 8
    no = cost(nn.Linear(3, 2), torch.rand(1, 3), runs=0)
    assert math.isnan(no.latency_ms) and no.runs == 0


def test_clip_tensors_are_read_as_plain_tensors():
    assert multiply_adds(nn.Conv3d(3, 2, 1), torch.rand(1, 3, 2, 4, 4).as_subclass(RGBClip)) == (2*3*32, ())


# ---------------------------------------------------------------- tables, pictures, refusals

def test_the_table_multiplies_views():
    x = torch.rand(1, 3, 4, 32, 32)
    t = cost_table({'a': (SmallStream(5), x), 'b': (TwoStream(SmallStream(5), SmallStream(5)), x, x)}, views=dict(b=12), runs=2, warmup=0)
    assert t.views.tolist() == [1, 12] and t.total.tolist() == [t.multiply_adds['a'], 12*t.multiply_adds['b']] and t.index.tolist() == ['a', 'b'] and (t.latency_ms > 0).all()
    assert (cost_table({'a': (SmallStream(5), x)}, views=3, runs=0).views == 3).all()


def test_pictures_hold_the_numbers():
    x = torch.rand(1, 3, 4, 32, 32)
    t = cost_table({'student': (SmallStream(5), x), 'teacher': (Teacher(SmallStream(5), SmallStream(5)), x, x)}, views=dict(teacher=3), runs=0).assign(top1=[50., 60.])
    fig = cost_figure(t)
    assert [d.name for d in fig.data] == ['student', 'teacher'] and [d.x[0] for d in fig.data] == t.total.tolist() and [d.y[0] for d in fig.data] == [50, 60]
    small, large = (d.marker.size - 12 for d in fig.data)
    assert (large/small)**2 == pytest.approx(2)                                     # area: twice the parameters
    ax = plot_cost(t.assign(top1_se=[2., np.nan])).axes[0]
    assert ax.get_xscale() == 'log' and [s.get_text().split('\n')[0] for s in ax.texts] == ['student', 'teacher']
    refused(lambda: cost_figure(t.drop(columns='top1')), "'top1'", kind=DataError)


def test_what_is_refused():
    m, x = nn.Linear(3, 2), torch.rand(2, 3)
    refused(lambda: cost(m), 'example inputs', kind=ModelError)
    refused(lambda: cost(m, 'x'), 'example inputs', kind=ModelError)
    refused(lambda: cost(m, x, x[:1]), 'inputs of 2, 1 clips', kind=ModelError)
    refused(lambda: latency(m, x, runs=0), 'runs=0', kind=ModelError)
    refused(lambda: latency(m.to('meta'), x), 'meta', 'cpu', kind=ModelError)
    refused(lambda: cost_table({'a': (m, x)}, views=0, runs=0), '0 views')
    refused(lambda: cost_table({'a': (m, x)}, views=dict(b=2), runs=0), "'b'")
    with pytest.raises(RuntimeError): cost(nn.Linear(4, 2), x)                      # what is wrong with the model itself is said by the model
