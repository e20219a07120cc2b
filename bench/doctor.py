"""Indexing a folder of clips and examining the index by names, against a plain walk of the same tree.

    python bench/doctor.py                       # 50,000 clips, about two minutes, most of it making the tree; --clips for another size

The tree is <subject>/<class>/<clip>_rgb.mp4 and <clip>_depth/0001.png, in a temporary folder; the files are empty, because nothing here opens them.
Every step is timed `--repeat` times in turn with `os.walk`, so that the disk cache is as warm for one as for the other; medians, and ratios to the walk.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make(root, n):
    "n clips of 60 classes by 40 people"
    for i in range(n):
        folder = root/f'subject{i % 40 + 1:02d}'/f'class{i//40 % 60:02d}'
        depth = folder/f'{i:06d}_depth'
        depth.mkdir(parents=True)
        (depth/'0001.png').touch(); (folder/f'{i:06d}_rgb.mp4').touch()


def walk(root): return sum(len(files) for *_, files in os.walk(root))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=50_000, help='rows of the index')
    p.add_argument('--repeat', type=int, default=3, help='how often each step is timed')
    p.add_argument('--out', default=str(HERE/'results'/'doctor.json'))
    args = p.parse_args()
    from moddist.datasets.own import index, read_index, split_by, write_index
    from moddist.doctor import examine
    times = {}

    def timed(what, call):
        t = time.perf_counter()
        result = call()
        times.setdefault(what, []).append(time.perf_counter() - t)
        return result

    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)/'set'
        make(root, args.clips)
        walk(root)
        for _ in range(args.repeat):
            n_files = timed('os.walk', lambda: walk(root))
            df = timed('own.index', lambda: index(root, verbose=False))
            df = timed('split_by', lambda: split_by(df))
            report = timed('examine, names', lambda: examine(df, files=False, progress=False))
            timed('write_index', lambda: write_index(df, Path(tmp)/'index.csv'))
            timed('read_index', lambda: read_index(Path(tmp)/'index.csv'))
            assert len(df) == args.clips and len(report.faults) == 0, str(report)
    base = statistics.median(times['os.walk'])
    rows = [dict(what=what, median_s=round(statistics.median(t), 3), least_s=round(min(t), 3), of_walk=round(statistics.median(t)/base, 2)) for what, t in times.items()]
    both = sum(statistics.median(times[k]) for k in ('own.index', 'examine, names'))
    print(f'{args.clips:,} clips, {n_files:,} files\n{"step":18}{"median, s":>11}{"least, s":>11}{"/ walk":>9}')
    for r in rows: print(f'{r["what"]:18}{r["median_s"]:>11.3f}{r["least_s"]:>11.3f}{r["of_walk"]:>9.2f}')
    print(f'index and names together: {both:.1f} s, {both/base:.1f} walks')
    from machine import machine
    from moddist.core import write_json
    write_json(args.out, dict(command=' '.join(['python', 'bench/doctor.py', *sys.argv[1:]]), clips=args.clips, files=n_files, repeat=args.repeat, index_and_names_s=round(both, 2),
                              index_and_names_of_walk=round(both/base, 2), machine=machine(), rows=rows))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
