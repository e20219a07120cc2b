"""How long moddist takes to import once torch is there: its own share, not torch's.

    python bench/import_time.py                  # about a minute; --repeat 5 by default

Every number is from a fresh interpreter; the kinds take turns, so that a busy moment of the machine does not hit one kind alone. Medians, and their
ratio to `import torch` in the same runs.
"""
import argparse
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMED = 'import time, {first}sys; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)'
KINDS = [  # what is timed, what is imported before
    ('torch', ''), ('moddist', 'torch, '), ('moddist.cli', ''), ('moddist.core', 'torch, '), ('fastai.learner', 'torch, '), ('moddist.distill', 'torch, '), ('moddist.distill', 'torch, fastai.learner, ')]


def seconds(what, first):
    "Time of one import in a fresh interpreter, in seconds"
    return float(subprocess.run([sys.executable, '-W', 'ignore', '-c', TIMED.format(what=what, first=first)], check=True, capture_output=True, text=True).stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeat', type=int, default=5, help='interpreters per kind')
    p.add_argument('--out', default=str(HERE/'results'/'import_time.json'))
    args = p.parse_args()
    for what, first in KINDS: seconds(what, first)           # byte code and disk cache are warm from here on
    times = {k: [] for k in KINDS}
    for _ in range(args.repeat):
        for k in KINDS: times[k].append(seconds(*k))
    torch = statistics.median(times[KINDS[0]])
    rows = [dict(what=what, after=first.strip(', '), median_s=round(statistics.median(t), 4), least_s=round(min(t), 4), of_torch=round(statistics.median(t)/torch, 4)) for (what, first), t in times.items()]
    print(f'{"import":18}{"after":24}{"median, s":>11}{"least, s":>11}{"/ torch":>10}')
    for r in rows: print(f'{r["what"]:18}{r["after"]:24}{r["median_s"]:>11.4f}{r["least_s"]:>11.4f}{r["of_torch"]:>10.4f}')
    from machine import machine
    from moddist.core import write_json
    write_json(args.out, dict(command=' '.join(['python', 'bench/import_time.py', *sys.argv[1:]]), repeat=args.repeat, machine=machine(), rows=rows))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
