"""Accuracy, its uncertainty and calibration, against numbers calculated by hand or another way."""
import math

import numpy as np
import pandas as pd
import pytest
from conftest import refused
import torch
from torch import nn

from moddist.core import DataError
from moddist.data import ClipSampler, clip_dls
from moddist.data import test_dl as make_test_dl
from moddist.evaluate import Predictions, ece, group_top1, predict, top1
from moddist.files import write_video

torch.set_num_threads(1)


def of(probabilities, labels): return Predictions(torch.tensor(probabilities, dtype=torch.float64).log().float(), torch.tensor(labels))


# ---------------------------------------------------------------- numbers

def test_ece_of_two_clips():
    "Two clips at confidence 0.9, one of them right: 40 % (Radevski et al. 2023)"
    assert ece(of([[.9, .1], [.9, .1]], [0, 1])) == pytest.approx(.4, abs=1e-6)
    assert ece(of([[.9, .1], [.1, .9]], [0, 1])) == pytest.approx(.1, abs=1e-6)


def test_ece_of_perfect_and_of_surely_wrong_models():
    sure = torch.eye(4)*1000
    assert ece(Predictions(sure, torch.arange(4))) == pytest.approx(0, abs=1e-6)
    assert ece(Predictions(sure, torch.tensor([1, 2, 3, 0]))) == pytest.approx(1, abs=1e-6)


def test_ece_bins_are_open_below_and_closed_above():
    "Confidence 0.5 belongs to (0, 0.5]: alone there, its gap does not cancel that of confidence 0.75"
    p = of([[.5, .5], [.75, .25]], [1, 0])               # gaps -0.5 (argmax is the first class: wrong) and +0.25
    assert ece(p, bins=2) == pytest.approx((.5 + .25)/2, abs=1e-6)
    assert ece(p, bins=1) == pytest.approx(abs(-.5 + .25)/2, abs=1e-6)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('bins', [1, 7, 15])
def test_ece_equals_a_plain_loop(seed, bins):
    g = np.random.default_rng(seed)
    z, y = g.normal(0, 3, (200, 6)).astype(np.float32), g.integers(0, 6, 200)
    p = np.exp(z - z.max(1, keepdims=True)); p /= p.sum(1, keepdims=True)
    conf, right, total = p.max(1), p.argmax(1) == y, 0
    for b in range(bins):
        inside = (conf > b/bins) & (conf <= (b + 1)/bins)
        if inside.any(): total += inside.sum()/200*abs(right[inside].mean() - conf[inside].mean())
    assert ece(Predictions(torch.tensor(z), torch.tensor(y)), bins) == pytest.approx(total, abs=1e-5)


def test_accuracy_and_its_standard_error():
    "50 % of 10,000 clips is known to half a point; of 100 clips to five"
    z = torch.eye(2).repeat(5000, 1)
    assert top1(Predictions(z, torch.zeros(10_000).long())) == pytest.approx((.5, .005), abs=1e-7)
    assert top1(Predictions(z[:100], torch.zeros(100).long())) == pytest.approx((.5, .05), abs=1e-7)
    assert top1(Predictions(z[:4], torch.tensor([0, 1, 0, 0]))) == pytest.approx((.75, math.sqrt(.75*.25/4)), abs=1e-7)
    assert top1(Predictions(z[:2], torch.arange(2))) == (1., 0.)


def test_group_accuracy():
    "Four classes, two motions in two colours: wrong colour is right motion"
    p = Predictions(torch.eye(4)[[0, 1, 2, 3, 0]], torch.tensor([0, 0, 0, 2, 1]))
    assert top1(p)[0] == pytest.approx(1/5)
    assert group_top1(p, ['push', 'push', 'pull', 'pull']) == pytest.approx(4/5)
    assert group_top1(p, ['red', 'blue', 'red', 'blue']) == pytest.approx(2/5)
    assert group_top1(p, list('abcd')) == pytest.approx(1/5) and group_top1(p, ['x']*4) == 1


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_logits_that_are_not_finite(bad):
    z = torch.zeros(3, 2); z[1, 0] = bad
    refused(lambda: Predictions(z, torch.zeros(3).long()), '1 of 3 clips', 'not finite')


@pytest.mark.parametrize('logits, labels', [((0, 3), 0), ((4, 3), 3), ((4,), 4), ((2, 3, 4), 2)])
def test_predictions_that_do_not_fit(logits, labels):
    refused(lambda: Predictions(torch.zeros(logits), torch.zeros(labels).long()), f'{labels} labels')


# ---------------------------------------------------------------- predict

class Probe(nn.Module):
    "Says the mean colour of a clip, and remembers in which mode it was asked"
    def __init__(self, inputs=1): super().__init__(); self.bn, self.drop, self.modes, self.inputs = nn.BatchNorm1d(3), nn.Dropout(.5), [], inputs
    def forward(self, *xs):
        assert len(xs) == self.inputs
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.drop(self.bn(xs[0].mean((2, 3, 4))))


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    "Nine clips, each of its own class and grey level"
    root = tmp_path_factory.mktemp('grey')
    frames = [np.full((3, 16, 16, 3), 20*i + 10, np.uint8) for i in range(9)]
    return pd.DataFrame([dict(clip_id=f'c{i}', label=i, rgb=str(write_video(root/f'{i}.mp4', f)), split='train' if i < 5 else 'valid') for i, f in enumerate(frames)])


@pytest.fixture
def dls(index):
    from moddist.data import ClipInputs
    return clip_dls(index, ('rgb',), ClipSampler(2), ClipInputs(centre=False), bs=4, dev='cpu')


@pytest.mark.parametrize('mode', [True, False])
def test_predict_uses_eval_mode_and_restores_the_mode(dls, index, mode):
    model = Probe().train(mode)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    p = predict(model, make_test_dl(dls, index))
    assert set(model.modes) == {(False, False)} and model.training is mode and model.bn.training is mode
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not p.logits.requires_grad and torch.equal(p.logits, predict(model, make_test_dl(dls, index)).logits)


def test_predict_restores_every_mode_even_after_an_error(dls, index):
    model = Probe().train()
    model.bn.eval()                                         # as when batch norm is frozen in training
    predict(model, make_test_dl(dls, index))
    modes = [model.training, model.bn.training]
    model.train()
    with pytest.raises(DataError): predict(model, make_test_dl(dls, index.assign(rgb='/nowhere.avi')))
    assert (modes, model.training) == ([True, False], True)


def test_predict_keeps_order_labels_and_names(dls, index):
    rows = index.sample(frac=1, random_state=1)
    p = predict(Probe(), make_test_dl(dls, rows))
    assert p.labels.tolist() == rows.label.tolist() and list(p.clip_ids) == rows.clip_id.tolist() and len(p) == 9
    grey = p.logits[:, 0]
    assert torch.equal(grey.argsort(), p.labels.argsort()) and len(set(grey.tolist())) == 9
    v = predict(Probe(), dls.valid)
    assert v.labels.tolist() == [5, 6, 7, 8] and v.clip_ids == ('c5', 'c6', 'c7', 'c8')


def test_predict_never_names_the_wrong_clip(dls):
    p = predict(Probe(), dls.train)
    assert p.clip_ids == () or [f'c{i}' for i in p.labels.tolist()] == list(p.clip_ids)


def test_predict_takes_any_batches():
    "Several inputs, half precision, labels of a plain list of batches"
    batches = [(torch.rand(2, 3, 1, 2, 2), torch.rand(2, 1), torch.tensor([0, 1])), (torch.rand(1, 3, 1, 2, 2), torch.rand(1, 1), torch.tensor([2]))]
    p = predict(Probe(2), batches)
    assert p.logits.shape == (3, 3) and p.labels.tolist() == [0, 1, 2] and p.clip_ids == ()
    half = predict(nn.Identity(), [(torch.rand(2, 3).half(), torch.tensor([0, 1]))])
    assert half.logits.dtype == torch.float32


def test_predict_refuses_a_model_that_has_diverged():
    refused(lambda: predict(nn.Identity(), [(torch.tensor([[0., float('nan')]]), torch.tensor([0]))]), '1 of 1 clips', 'diverged')
