"""A killed training goes on where it was and ends with the weights it would have had anyway."""
import json
import random

import pytest
import torch
from conftest import killed
from fastai.callback.core import Callback

from moddist import synthetic
from moddist.core import ModelError, read_json, seed_all
from moddist.data import clip_dls
from moddist.distill import fit, learner
from moddist.models import SmallStream
from moddist.recipes import Garcia2018, run
from moddist.resume import _flat, _whole, resumable

torch.set_num_threads(1)
STEPS = ('rgb', 'depth', 'rgb+depth', 'hallucination', 'rgb+hallucination')
C = Garcia2018(epochs=2, long=1., fine=1., distil=1.5)
BATCHES = 3                                                             # per epoch of the set below
TOTAL = BATCHES*(2 + 2 + 2 + 3 + 2)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    root = synthetic.make(tmp_path_factory.mktemp('set')/'set', train=2, valid=1, test=1)
    return synthetic.index(root)


@pytest.fixture(scope='module')
def whole(clips, tmp_path_factory):
    "The run that nobody killed"
    out = tmp_path_factory.mktemp('whole')
    return out, run(clips, out, C, only=['rgb+hallucination'])


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_numbers_above(clips, whole):
    assert sum(len(read_json(whole[0]/s/'record.json')['history']) for s in STEPS)*BATCHES == TOTAL
    assert (clips.split == 'train').sum()//C.bs == BATCHES


@pytest.mark.parametrize('iteration', sorted(random.Random(20).sample(range(1, TOTAL), 3)))
def test_sigkill_at_any_iteration(clips, whole, tmp_path, iteration):
    "The process is gone in the middle of a batch; the next call ends with the same weights, the same logs and no leftovers"
    out, reference = whole
    killed(tmp_path, 'moddist.recipes', clips, C, ['rgb+hallucination'], iteration)
    lost = [s for s in STEPS if not (tmp_path/'run'/s/'record.json').is_file()]
    assert lost
    again = run(clips, tmp_path/'run', C, only=['rgb+hallucination'])
    for s in STEPS:
        assert same(again[s].state_dict(), reference[s].state_dict()), s
        a, b = (read_json(o/s/'record.json')['history'] for o in (out, tmp_path/'run'))
        assert a == b, s
    assert not list((tmp_path/'run').rglob('checkpoint.safetensors'))


def test_a_checkpoint_is_used(clips, tmp_path):
    "The second fit starts at the epoch of the checkpoint, not at the beginning"
    def build():
        seed_all(0)
        return learner(clip_dls(clips, ('rgb',), bs=12, dev='cpu'), SmallStream(10))
    learn = build()
    state = resumable(learn, tmp_path/'c.safetensors', 'rgb')
    class Dies(Callback):
        order = 90
        def after_batch(self):
            if self.epoch == 1 and self.training: raise KeyboardInterrupt
    with learn.no_bar(), learn.no_logging(), learn.added_cbs([*state.callbacks, Dies()]), pytest.raises(KeyboardInterrupt): fit(learn, 3)
    learn = build()
    state = resumable(learn, tmp_path/'c.safetensors', 'rgb')
    assert state.start == 1 and len(state.history) == 1
    opt = learn.opt.state_dict()['state']
    assert float(opt[0]['step']) == (clips.split == 'train').sum()//12


def test_what_does_not_fit_is_refused(clips, tmp_path):
    seed_all(0)
    learn = learner(clip_dls(clips, ('rgb',), bs=12, dev='cpu'), SmallStream(10))
    state = resumable(learn, tmp_path/'c.safetensors', 'rgb')
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(state.callbacks): fit(learn, 2)
    for other, what, words in ((SmallStream(10), 'depth', "expected 'depth'"), (SmallStream(10, width=4), 'rgb', 'does not fit')):
        l2 = learner(clip_dls(clips, ('rgb',), bs=12, dev='cpu'), other)
        with pytest.raises(ModelError, match=words) as e: resumable(l2, tmp_path/'c.safetensors', what)
        assert '\n' not in str(e.value)
    (tmp_path/'d.safetensors').write_bytes((tmp_path/'c.safetensors').read_bytes()[:-100])
    with pytest.raises(ModelError, match='cut off'): resumable(learn, tmp_path/'d.safetensors', 'rgb')


def test_flat_and_whole_are_inverse():
    value = dict(a=[1, 2.5, None, 'x', torch.arange(3)], b={0: torch.ones(2, 2), 'k': [True, {}]})
    tensors = {}
    back = _whole(json.loads(json.dumps(_flat(value, tensors, 'v'))), tensors)
    assert back['a'][:4] == value['a'][:4] and torch.equal(back['a'][4], value['a'][4]) and torch.equal(back['b'][0], value['b'][0]) and back['b']['k'] == [True, {}]
