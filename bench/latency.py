"""What the networks of the paper cost to run: parameters, multiply-adds and latency of a Video Swin-T student and of the teachers it replaces.

    OMP_NUM_THREADS=1 python bench/latency.py --runs 20 --warmup 3        # some minutes on one core
    python bench/latency.py --device cuda                                  # batch 1, median of 100 runs after 20, float32
    python bench/latency.py --device cuda --half

Random weights: they change no time. Ratios to the student are the result; milliseconds hold for one machine only. Decoding, and making flow or boxes, is not in them.
"""
import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu')
    p.add_argument('--half', action='store_true', help='float16 instead of float32')
    p.add_argument('--frames', type=int, default=16)
    p.add_argument('--size', type=int, default=224, help='px')
    p.add_argument('--runs', type=int, default=100)
    p.add_argument('--warmup', type=int, default=20)
    p.add_argument('--out', default=str(HERE/'results'/'latency.json'))
    args = p.parse_args()

    import torch
    from machine import machine
    from moddist.backbones import VideoStream
    from moddist.core import write_json
    from moddist.cost import cost_table
    from moddist.ensemble import Ensemble
    from moddist.layout import LayoutStream
    how = dict(device=args.device, dtype=torch.float16 if args.half else torch.float32)
    video, boxes = torch.rand(1, 3, args.frames, args.size, args.size).to(**how), torch.zeros(1, 8, args.frames, 14).to(**how)
    boxes[:, 4] = 1
    swin, layout = VideoStream('swin3d_t', 174).to(**how), LayoutStream(174, frames=args.frames).to(**how)
    models = {'student': (swin, video), 'teacher rgb+flow': (Ensemble(swin, swin), video, video), 'teacher rgb+flow+boxes': (Ensemble(swin, swin, layout), video, video, boxes)}
    table = cost_table({k: (m.to(**how), *xs) for k, (m, *xs) in models.items()}, runs=args.runs, warmup=args.warmup)
    table['times_student'] = table.latency_ms/table.latency_ms.iloc[0]
    print(f'{table.device.iloc[0]}, {table.dtype.iloc[0]}, {table.threads.iloc[0]} thread(s), clips of {args.frames} frames of {args.size} px')
    print((table[['parameters', 'multiply_adds', 'latency_ms', 'low_ms', 'high_ms', 'times_student']]/[1e6, 1e9, 1, 1, 1, 1]).round(2).to_string())
    write_json(args.out, dict(command=' '.join(['python', 'bench/latency.py', *sys.argv[1:]]), frames=args.frames, size=args.size, machine=machine(), rows=table.reset_index().to_dict('records')))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
