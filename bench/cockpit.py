"""What the cockpit costs: a training from an ensemble with `Cockpit(every=n)` against the same without, in turn in one process.

    OMP_NUM_THREADS=1 python bench/cockpit.py            # about a minute on an idle core

Three parts (labels, scores, one feature map), two live teachers of the student's own size. One repetition is a fit of `every` steps, so that exactly one of them is
sampled. First it is checked that both end with the same weights, bit by bit. The ratio should stay below 1.10.
"""
import argparse
import copy
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeat', type=int, default=7, help='fits of each kind')
    p.add_argument('--every', type=int, default=50, help='steps from one measurement to the next')
    p.add_argument('--bs', type=int, default=8, help='clips in a batch')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=str(HERE/'results'/'cockpit.json'))
    args = p.parse_args()

    import torch
    from fastai.callback.progress import ProgressCallback
    from machine import machine
    from moddist import synthetic
    from moddist.cockpit import Cockpit
    from moddist.core import seed_all, write_json
    from moddist.data import ClipSampler, clip_dls
    from moddist.distill import DistillCallback, feature_term, learner
    from moddist.ensemble import Ensemble, kd_term
    from moddist.models import SmallStream
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        df = synthetic.index(synthetic.make(Path(folder)/'set', train=2, valid=0, test=1, skeletons=False))
        dls = clip_dls(df[df.split == 'train'], ('rgb', 'depth'), ClipSampler(8, crop=48, flip=.5), bs=args.bs, workers=0, dev=args.device)
        batches = max(n for n in range(1, len(dls.train) + 1) if args.every % n == 0)
        dls.train.n, epochs = args.bs*batches, args.every//batches           # `every` steps in all
        seed_all(0)
        streams, start = [SmallStream(10) for _ in range(2)], SmallStream(10)

        def once(name, seed):
            "One fit of `every` steps: (weights, wall seconds, CPU seconds)"
            seed_all(seed)
            dls.train.rng = random.Random(seed)                              # the same order, frames, windows and flips
            for l in dls.train.loaders: l.tfm.sampler.epoch = seed
            terms = [kd_term(1., tau=2.), feature_term('unit3', 1., standardize=True, teacher_tap='streams.1.unit3')]
            cbs = [DistillCallback(Ensemble(*streams, weights='per-sample'), terms, inputs=('rgb', 'depth')), *([Cockpit(args.every)] if name == 'cockpit' else [])]
            learn = learner(dls, copy.deepcopy(start), cbs=cbs)
            learn.remove_cb(ProgressCallback)
            learn.logger = lambda *_: None
            wall, cpu = time.perf_counter(), time.process_time()
            learn.fit(epochs)
            if dls.device.type == 'cuda': torch.cuda.synchronize()
            times = time.perf_counter() - wall, time.process_time() - cpu
            if name == 'cockpit': sampled.append((len(cbs[1].measured), cbs[1].seen))
            return learn.model.state_dict(), *times

        kinds, sampled = ('alone', 'cockpit'), []
        a, b = (once(name, 0)[0] for name in kinds)                          # also warms the cache of decoded clips
        assert all(torch.equal(a[k], b[k]) for k in a), 'the cockpit changed the training'
        times = {name: [] for name in kinds}
        for i in range(args.repeat):
            for name in kinds[::1 if i % 2 else -1]: times[name].append(once(name, i)[1:])

    median = {name: [statistics.median(t[k] for t in ts) for k in (0, 1)] for name, ts in times.items()}
    ratios = [[b[k]/a[k] for a, b in zip(times['alone'], times['cockpit'])] for k in (0, 1)]
    spread = {what: dict(median=round(statistics.median(r), 4), smallest=round(min(r), 4), largest=round(max(r), 4)) for what, r in zip(('wall', 'cpu'), ratios)}
    print(f'{"":10}{"wall, s":>10}{"CPU, s":>10}   per fit of {sampled[-1][1]} steps, {sampled[-1][0]} sampled, medians of {args.repeat}')
    for name, (wall, cpu) in median.items(): print(f'{name:10}{wall:>10.3f}{cpu:>10.3f}')
    print(f'{"ratio":10}{spread["wall"]["median"]:>10.3f}{spread["cpu"]["median"]:>10.3f}   median of the ratios of neighbours')
    write_json(args.out, dict(command=' '.join(['python', 'bench/cockpit.py', *sys.argv[1:]]), repeat=args.repeat, every=args.every, bs=args.bs, parts=3, steps=sampled[-1][1], sampled=sampled[-1][0], device=args.device, machine=machine(),
                              **{f'median_{w}_s': {n: round(m[k], 4) for n, m in median.items()} for k, w in enumerate(('wall', 'cpu'))}, **{f'ratio_{w}': v for w, v in spread.items()},
                              **{f'each_{w}_s': {n: [round(t[k], 4) for t in ts] for n, ts in times.items()} for k, w in enumerate(('wall', 'cpu'))}))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
