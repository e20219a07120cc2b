"""What three teachers cost a student: some epochs alone, with three cached teachers, with three live ones, in turn in one process.

    OMP_NUM_THREADS=1 python bench/cache.py            # about five minutes on an idle core

The teachers read depth, flow and a second camera, and are networks of the student's own size. `cached` uses loaders of RGB alone, `cached_decoded` loaders that also
read the teachers' signals. First it is checked that cached and live logits differ by at most 1e-3. The ratio of `cached` to `alone` should stay below 1.15.
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
READ = ('depth', 'flow', 'view2')


def views(folder, subjects):
    "Clips of camera 1 with depth, flow and camera 2"
    from moddist import synthetic
    from moddist.derive import derive
    df = synthetic.index(synthetic.make(folder/'set', train=subjects, valid=0, test=1, skeletons=False))
    second = df[df.camera == 2].set_index(['subject', 'label', 'replication']).rgb.rename('view2')
    df = df[(df.camera == 1) & (df.split == 'train')].join(second, on=['subject', 'label', 'replication'])
    return derive(df, 'flow', f'{folder}/store')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeat', type=int, default=9, help='rounds')
    p.add_argument('--epochs', type=int, default=3, help='of each kind in a round')
    p.add_argument('--subjects', type=int, default=16, help='people in the training split, 10 clips each')
    p.add_argument('--slots', type=int, default=3, help='draws per clip')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=str(HERE/'results'/'cache.json'))
    args = p.parse_args()

    import torch
    from fastai.callback.progress import ProgressCallback
    from machine import machine
    from moddist.cache import CachedTeacher
    from moddist.core import seed_all, write_json
    from moddist.data import ClipSampler, clip_dls
    from moddist.distill import DistillCallback, Teacher, learner, soft_term
    from moddist.inputs import JitterRGB
    from moddist.models import SmallStream
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        df = views(Path(folder), args.subjects)
        def loaders(*signals): return clip_dls(df, signals, ClipSampler(8, crop=48, flip=.5, slots=args.slots), jitter=JitterRGB(0, 0, 0), bs=16, workers=0, dev=args.device)
        seed_all(0)
        teacher, start = Teacher(*(SmallStream(10) for _ in READ)).to(args.device), SmallStream(10)
        rgb, everything = loaders('rgb'), loaders('rgb', 'depth', 'flow', 'view2:rgb')
        cached = CachedTeacher(teacher, signals=everything.train.signals[1:])
        asked = cached.fill(everything)
        gap = 0.
        for i, b in enumerate(everything.train):
            if i == 0: cached._begin(everything.train, cached.signals)
            z = cached.look_up(everything.train, everything.train._DataLoader__idxs[i*16:(i + 1)*16], b[1:4])
            with torch.no_grad(): gap = max(gap, *((a - s(x)).abs().max().item() for a, s, x in zip(z, teacher.streams, b[1:4])))
        assert gap <= 1e-3, f'cached and live logits differ by {gap}'
        kinds = dict(alone=(rgb, None, ()), cached=(rgb, cached, ()), cached_decoded=(everything, cached, READ), live=(everything, teacher, READ))

        def once(name, seed):
            "One fit: (wall seconds, CPU seconds) per epoch"
            dls, t, inputs = kinds[name]
            seed_all(seed)
            dls.train.rng = random.Random(seed)                              # the same order, frames, windows and flips
            dls.train.loaders[0].tfm.sampler.epoch = seed
            learn = learner(dls, copy.deepcopy(start), cbs=[] if t is None else [DistillCallback(t, [soft_term(1., tau=4, t2=True)], inputs=inputs)])
            learn.remove_cb(ProgressCallback)
            learn.logger = lambda *_: None
            wall, cpu = time.perf_counter(), time.process_time()
            learn.fit(args.epochs)
            if dls.device.type == 'cuda': torch.cuda.synchronize()
            return (time.perf_counter() - wall)/args.epochs, (time.process_time() - cpu)/args.epochs

        times = {name: [] for name in kinds}
        for name in kinds: once(name, 0)                                     # warms the cache of decoded clips
        for i in range(args.repeat):
            for name in list(kinds)[::1 if i % 2 else -1]: times[name].append(once(name, i))
        batches, live_asks = len(rgb.train), sum(e['misses'] for e in cached.log) - asked
        assert live_asks == 0, f'{live_asks} clips were asked live while cached'

    median = {name: [statistics.median(t[k] for t in ts) for k in (0, 1)] for name, ts in times.items()}
    ratios = {name: [statistics.median(b[k]/a[k] for a, b in zip(times['alone'], ts)) for k in (0, 1)] for name, ts in times.items()}
    print(f'{"":16}{"wall, s":>10}{"CPU, s":>10}{"wall":>8}{"CPU":>8}   per epoch of {batches} batches, medians of {args.repeat} rounds of {args.epochs} epochs; then ratios to `alone`, medians over the rounds')
    for name in kinds: print(f'{name:16}{median[name][0]:>10.3f}{median[name][1]:>10.3f}{ratios[name][0]:>8.3f}{ratios[name][1]:>8.3f}')
    write_json(args.out, dict(command=' '.join(['python', 'bench/cache.py', *sys.argv[1:]]), repeat=args.repeat, epochs=args.epochs, batches=batches, slots=args.slots, device=args.device, logits_differ_by=gap, asked_beforehand=asked, machine=machine(),
                              **{f'{what}_{k}': {n: round(v[j], 4) for n, v in source.items()} for what, source in (('median_s', median), ('ratio', ratios)) for j, k in enumerate(('wall', 'cpu'))},
                              each_wall_s={n: [round(t[0], 4) for t in ts] for n, ts in times.items()}, each_cpu_s={n: [round(t[1], 4) for t in ts] for n, ts in times.items()}))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
