"""The student of an ensemble trained by two processes is that of one process with batches twice as large.

Run by `accelerate launch`, this file is the script: it takes the student's step out of the recipe and trains it with `learn.distrib_ctx()`.
The comparison is exact only without batch norm (each process has its own statistics on a CPU) and without what is drawn per batch
(dropout, colour jitter), so the student is a convolution that reads depth, and its teachers read depth and joints.
"""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.torch_core import rank_distrib
from torch import nn

from moddist.core import read_json, seed_all, write_json
from moddist.models import SmallStream, Stream, load_model, save_model
from moddist.radevski import Radevski2023, ShardedDL, radevski2023, run
from moddist.runs import loaders

torch.set_num_threads(1)
pytest.importorskip('accelerate', reason='several processes need accelerate: pip install "moddist[dist]"')
TINY = dict({'class': 'SmallStream'}, width=4)


class Convolution(Stream):
    "A convolution and a mean: no batch norm, no dropout"
    def __init__(self, num_classes, width=6):
        super().__init__(dict(num_classes=num_classes, width=width), width, [], [])
        self.conv = nn.Conv3d(3, width, (3, 4, 4), (1, 4, 4), (1, 0, 0))
    def forward_maps(self, x, gates=None, connection=None): return self.conv(x).relu(), []


def settings(bs, net='Convolution'):
    return Radevski2023(student='depth', teachers=('depth', 'skeleton'), epochs=1, student_epochs=3, bs=bs, crop=32, lr=.01, lambda_gt=.5, tau=2., streams=dict(depth=TINY if net == 'TINY' else {'class': net}))


def student(folder, c):
    "The student's learner, with the teachers of the run in `folder`"
    df = pd.read_pickle(folder/'index.pkl')
    models = {n: load_model(folder/'run'/n/'model.safetensors') for n in ('depth-teacher', 'skeleton-teacher', 'ensemble')}
    step = next(s for s in radevski2023(c) if s.name == 'student')
    seed_all(0)
    return step, step.build(models, loaders(c, df, step.reads))


def main(folder, bs):
    "What every process does"
    for net in ('Convolution', 'TINY'):
        step, learn = student(folder, settings(bs, net))
        with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): step.fit(learn, step.epochs)
        assert not any(isinstance(dl, ShardedDL) for dl in learn.dls) and not hasattr(learn.model, 'module')          # all as before
        save_model(learn.model, folder/f'{net}-{rank_distrib()}.safetensors')
        write_json(folder/f'{net}-{rank_distrib()}.json', list(map(list, learn.recorder.values)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Clips, a run with its ensemble, and what two processes made of its student"
    from moddist import synthetic
    out = tmp_path_factory.mktemp('two')
    df = synthetic.index(synthetic.make(out/'set', train=2, valid=1, test=1))
    df.to_pickle(out/'index.pkl')
    run(df, out/'run', settings(10, 'TINY'), only=['ensemble'])
    env = dict(os.environ, ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1]))
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0']
    with open(out/'log', 'wb') as log: done = subprocess.run([*launch, __file__, str(out), '5'], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300)
    assert done.returncode == 0, (out/'log').read_text()[-3000:]
    return out


def weights(path): return {k: v for k, v in load_model(path).named_parameters()}


def test_two_processes_are_one_with_twice_the_batch(folder):
    "Tolerance 1e-4: the order of additions, magnified by Adam where a gradient is nearly zero"
    two, other = (weights(folder/f'Convolution-{r}.safetensors') for r in (0, 1))
    assert all(torch.equal(two[k], other[k]) for k in two)
    step, learn = student(folder, settings(10))
    start = {k: v.detach().clone() for k, v in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): step.fit(learn, step.epochs)
    one = dict(learn.model.named_parameters())
    apart = max((one[k] - two[k]).abs().max().item() for k in one)
    moved = max((one[k] - start[k]).abs().max().item() for k in one)
    assert apart < 1e-4 < 1e-2 < moved
    train, valid, top1 = list(zip(*learn.recorder.values))[:3]
    train2, valid2, top12 = list(zip(*read_json(folder/'Convolution-0.json')))[:3]
    assert train2 == pytest.approx(train, abs=1e-4) and valid2 == pytest.approx(valid, abs=1e-4) and top12 == pytest.approx(top1, abs=1e-6)       # the log is that of all clips
    small, learn = student(folder, settings(5))
    with learn.no_bar(), learn.no_logging(): small.fit(learn, small.epochs)
    assert max((dict(learn.model.named_parameters())[k] - two[k]).abs().max().item() for k in two) > 1e-3                                        # and not that of the small batch


def test_with_batch_norm_the_processes_agree_on_the_weights(folder):
    "On a CPU the statistics are each process's own; the weights are still one set"
    two, other = (weights(folder/f'TINY-{r}.safetensors') for r in (0, 1))
    assert all(torch.equal(two[k], other[k]) for k in two)
    assert isinstance(load_model(folder/'TINY-0.safetensors'), SmallStream)


def test_shards_of_an_epoch_are_pieces_of_the_same_batches(folder, monkeypatch):
    df = pd.read_pickle(folder/'index.pkl')
    df = df.drop(df.index[df.split == 'valid'][:3])                                                              # 27 clips
    dls = loaders(replace(settings(4), bs=4), df, ('depth',))
    monkeypatch.setattr(ShardedDL, '_broadcast', lambda self, idxs, rank: idxs)
    order = list(dls.train.get_idxs())
    monkeypatch.setattr(dls.train, 'get_idxs', lambda: order)
    shards = [ShardedDL(dls.train, r, 3) for r in range(3)]
    ids = [s.get_idxs() for s in shards]
    assert [len(s) for s in shards] == [len(i)//4 for i in ids] == [5]*3                                           # 60 clips: 5 steps of 3 x 4
    assert [i for step in range(5) for one in ids for i in one[4*step:4*step + 4]] == order
    valid = [ShardedDL(dls.valid, r, 2).get_idxs() for r in range(2)]
    assert sorted(set(valid[0] + valid[1])) == list(range(27)) and len(valid[0]) == len(valid[1]) == 14             # padded with one twice
    assert shards[0].signals == dls.train.signals and shards[0].heads == dls.train.heads


if __name__ == '__main__': main(Path(sys.argv[1]), int(sys.argv[2]))
