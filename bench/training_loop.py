"""What the distillation callback costs: step 3 as a `Learner` against a loop written by hand, same networks, same loader, same batches.

    OMP_NUM_THREADS=1 python bench/training_loop.py            # about five minutes on one core

One repetition is one epoch of each, A B A B; first it is checked that both end with the same weights. The ratio should stay below 1.10.
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


def by_hand(dls, student, teacher, c, epochs=1):
    "The training loop as one would write it without moddist: forward hooks, three losses, AdamW"
    import torch
    from moddist.losses import cross_entropy, hallucination_loss, kd_loss
    kept, model = {}, student.to(dls.device).train()
    def keep(side): return lambda tap, args, out: kept.__setitem__(side, out)
    hooks = [m.taps[list(m.taps)[-1]].register_forward_hook(keep(side)) for side, m in (('student', model), ('teacher', teacher))]
    opt = torch.optim.AdamW(model.parameters(), lr=c.lr, weight_decay=c.wd)
    for _ in range(epochs):
        for x, d, y in dls.train:
            with torch.no_grad(): t = teacher(d)
            s = model(x)
            loss = c.hard*cross_entropy(s, y) + c.soft*kd_loss(s, t, c.tau) + c.features*hallucination_loss(kept['student'], kept['teacher'], standardize=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
    for h in hooks: h.remove()
    return model


def by_callback(dls, student, teacher, c, epochs=1):
    "The same with moddist: a plain fastai learner and the callback"
    from fastai.callback.progress import ProgressCallback
    from moddist.distill import DistillCallback, Teacher, feature_term, learner, soft_term
    terms = [soft_term(c.soft, c.tau, t2=True), feature_term(list(student.taps)[-1], c.features, standardize=True)]
    learn = learner(dls, student, c.lr, c.wd, cbs=[DistillCallback(Teacher(teacher), terms, hard=c.hard)])
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    learn.fit(epochs)
    return learn.model


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeat', type=int, default=15, help='epochs of each kind')
    p.add_argument('--subjects', type=int, default=4, help='people in the training split, 30 clips each')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=str(HERE/'results'/'training_loop.json'))
    args = p.parse_args()

    import torch
    from machine import machine
    from moddist import synthetic
    from moddist.core import seed_all, write_json
    from moddist.data import ClipInputs, ClipSampler, clip_dls
    from moddist.models import SmallStream
    from moddist.recipes import Garcia2018
    c = Garcia2018()
    with tempfile.TemporaryDirectory() as folder:
        df = synthetic.index(synthetic.make(Path(folder)/'set', train=args.subjects, valid=0, test=1, skeletons=False))
        dls = clip_dls(df[df.split == 'train'], ('rgb', 'depth'), ClipSampler(c.clip_len, c.sampling, c.size, c.crop, c.flip), ClipInputs(), bs=c.bs, workers=0, dev=args.device)
        seed_all(0)
        teacher, start = SmallStream(10).to(dls.device).eval(), SmallStream(10).to(dls.device)
        kinds = dict(by_hand=by_hand, by_callback=by_callback)

        def once(name, seed):
            "One epoch: (model, wall seconds, CPU seconds)"
            student = copy.deepcopy(start)
            seed_all(seed)
            dls.train.rng = random.Random(seed)                              # the same order, frames, windows and flips
            for l in dls.train.loaders: l.tfm.sampler.epoch = seed
            t, cpu = time.perf_counter(), time.process_time()
            model = kinds[name](dls, student, teacher, c)
            if dls.device.type == 'cuda': torch.cuda.synchronize()
            return model, time.perf_counter() - t, time.process_time() - cpu

        models = {name: once(name, 0)[0] for name in kinds}                  # also warms the cache of decoded clips
        gap = max((a - b).abs().max().item() for a, b in zip(models['by_hand'].parameters(), models['by_callback'].parameters()))
        assert gap < 1e-6, f'the two loops do not compute the same: weights differ by {gap}'
        times = {name: [] for name in kinds}
        for i in range(args.repeat):
            for name in list(kinds)[::1 if i % 2 else -1]: times[name].append(once(name, i)[1:])
        batches = len(dls.train)

    median = {name: [statistics.median(t[k] for t in ts) for k in (0, 1)] for name, ts in times.items()}
    ratios = {k: statistics.median(b[k]/a[k] for a, b in zip(times['by_hand'], times['by_callback'])) for k in (0, 1)}
    print(f'{"":14}{"wall, s":>10}{"CPU, s":>10}   per epoch of {batches} batches, medians of {args.repeat}')
    for name, (wall, cpu) in median.items(): print(f'{name:14}{wall:>10.3f}{cpu:>10.3f}')
    print(f'{"ratio":14}{ratios[0]:>10.3f}{ratios[1]:>10.3f}   median of the ratios of neighbours')
    write_json(args.out, dict(command=' '.join(['python', 'bench/training_loop.py', *sys.argv[1:]]), repeat=args.repeat, batches=batches, device=args.device, weights_differ_by=gap, machine=machine(),
                              median_wall_s={k: round(v[0], 4) for k, v in median.items()}, median_cpu_s={k: round(v[1], 4) for k, v in median.items()},
                              ratio_wall=round(ratios[0], 4), ratio_cpu=round(ratios[1], 4), each_wall_s={k: [round(t[0], 4) for t in v] for k, v in times.items()},
                              each_cpu_s={k: [round(t[1], 4) for t in v] for k, v in times.items()}))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
