"""How bad may the depth camera become? Stress tests of the runs that bench/evidence.py left, on one data set and all its training seeds.

    OMP_NUM_THREADS=1 nice -n 5 python bench/stress.py --runs runs/evidence --data-seed 101        # about 10 minutes of one core

Kinds that are not asked for with --kinds are kept from an earlier file.
"""
import argparse
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEVELS = dict(noise=(0, .1, .2, .3, .5, .7, 1, 3, -1), additive=(0, .05, .1, .2, .4), blank=(0, .25, .5, .75, 1), drop_repeat=(0, .25, .5, .75), drop_blank=(0, .25, .5, .75),
              late=(0, 1, 2, 4), crooked=(0, 1, 2, 4, 8), missing=())
PAIR = 'rgb+hallucination', 'rgb+depth'


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', default='runs/evidence')
    p.add_argument('--data-seed', type=int, default=101)
    p.add_argument('--kinds', nargs='*', default=list(LEVELS))
    p.add_argument('--out', default=HERE/'results'/'stress.json')
    args = p.parse_args()
    import pandas as pd
    import torch
    from moddist import synthetic
    from moddist.core import read_json, write_json
    from moddist.runs import environment
    from moddist.stress import crossing, curve, stress_run
    torch.set_num_threads(1)
    df = synthetic.index(Path(args.runs)/f'data-{args.data_seed}')
    runs = sorted(Path(args.runs).glob(f'd{args.data_seed}-s*'))
    found = dict(command=f'python bench/stress.py --data-seed {args.data_seed}', environment=environment(), data_seed=args.data_seed, runs=[r.name for r in runs], curves=[], crossings={})
    old = read_json(args.out) if Path(args.out).is_file() else {}
    if (old.get('data_seed'), old.get('runs')) == (found['data_seed'], found['runs']):
        found['curves'] = [c for c in old['curves'] if c['kind'] not in args.kinds]
        found['crossings'] = {k: v for k, v in old['crossings'].items() if k not in args.kinds}
    for kind in args.kinds:
        table = pd.concat([stress_run(r, kind, LEVELS[kind], list(PAIR), df) for r in runs], ignore_index=True)
        found['curves'] += [{k: round(v, 4) if isinstance(v, float) and k != 'level' else v for k, v in row.items()} for row in curve(table).to_dict('records')]
        if kind != 'missing':
            x = crossing(table, *PAIR)
            found['crossings'][kind] = {k: (None if v in (float('inf'),) else v) for k, v in asdict(x).items()} | dict(sentence=str(x))
            print(kind, x, flush=True)
        write_json(Path(args.out), found)


if __name__ == '__main__': main()
