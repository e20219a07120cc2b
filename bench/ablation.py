"""What each part of the four steps contributes on the embedded set: variations of the recipe, over training seeds and data sets.

    python bench/ablation.py --seeds 5 --data-seeds 101 102     # about three times the training of the method, per seed and data set
    python bench/ablation.py --few-labels --seeds 5             # 4 labelled subjects and 12 whose RGB-D pairs have no labels
    python bench/ablation.py --fast                             # a miniature, to see that everything works

A variation is a run folder of its own in --runs and resumable. Steps that it does not touch are trained once, in 'full', and copied. The summary (accuracy of every
variation, paired differences from 'full', and what step 4 adds to the plain average) is written to bench/results/ablation.json.
"""
import argparse
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from processes import each
from seeds import differences, spread

HERE = Path(__file__).resolve().parent
FUSED, MEAN, ALONE = 'rgb+hallucination', 'rgb+hallucination-mean', 'hallucination'
STEP_3 = (ALONE, FUSED, MEAN)
TOUCHES = dict(connection=('rgb+depth', FUSED), hard=STEP_3, soft=STEP_3, features=STEP_3, unlabelled=(*STEP_3, 'student', 'rgb-self', 'rgb-self-2', 'rgb+rgb-self'))  # setting -> steps it changes, as the depth stream of step 1 teaches


def variations(args):
    from moddist.recipes import ABLATIONS
    known = ABLATIONS | (dict({'no-pairs': dict(unlabelled=False)}) if args.few_labels else {})
    if lost := [n for n in args.only if n not in known]: sys.exit(f'--only {lost[0]}: expected one of {", ".join(known)}')
    return dict(full={}) | {n: v for n, v in known.items() if not args.only or n in args.only}


def settings(args, seed):
    "The full recipe"
    from moddist.recipes import Garcia2018
    if args.fast: return Garcia2018(seed=seed, epochs=1, long=1., distil=1., bs=10, unlabelled=args.few_labels)
    return Garcia2018(seed=seed, epochs=60 if args.few_labels else 40, unlabelled=args.few_labels)


def data(args, data_seed):
    from moddist import synthetic
    size = dict(train=1, unlabelled=1) if args.few_labels and args.fast else dict(train=4, unlabelled=12) if args.few_labels else dict(train=2) if args.fast else dict(train=8)
    root = Path(args.runs)/f'data-{data_seed}{kind(args)}'
    synthetic.make(root, seed=data_seed, **size, **dict(test=1) if args.fast else {})
    return root, synthetic.index(root)


def kind(args): return '-few'*args.few_labels + '-fast'*args.fast
def folder(args, data_seed, seed, name): return Path(args.runs)/f'd{data_seed}{kind(args)}-s{seed}'/name


def share(full, out, change):
    "Copy the finished steps that a variation leaves as they are; the record last, as it says that a step is done"
    touched = {s for k in change for s in TOUCHES[k]}
    for step in (f.parent for f in full.glob('*/record.json')):
        if step.name in touched or (out/step.name/'record.json').is_file(): continue
        (out/step.name).mkdir(parents=True, exist_ok=True)
        for f in ('model.safetensors', 'record.json'):
            shutil.copyfile(step/f, out/step.name/f'.partial-{f}')
            os.replace(out/step.name/f'.partial-{f}', out/step.name/f)


def one_seed(args, data_seed, seed):
    "Train and test all variations of one seed in this process, with one thread"
    import torch
    from dataclasses import replace
    from moddist.core import write_json
    from moddist.evaluate import evaluate_run
    from moddist.recipes import run
    torch.set_num_threads(1)
    root, df = data(args, data_seed)
    names = df.drop_duplicates('label').sort_values('label')
    c, full = settings(args, seed), folder(args, data_seed, seed, 'full')
    for name, change in variations(args).items():
        out, v = folder(args, data_seed, seed, name), replace(c, **change)
        if change: share(full, out, change)
        run(df, out, v, only=[FUSED, MEAN, 'rgb+depth', *(['rgb+rgb', 'student'] if args.few_labels else []), *(['rgb+rgb-self'] if v.unlabelled else [])], data=dict(dataset='synthetic', root=str(root)))
        rows = evaluate_run(out, df, dict(motion=list(names.motion), colour=list(names.colour)))
        write_json(out/'test.json', dict(data_seed=data_seed, seed=seed, variation=name, settings=asdict(v), rows=rows))


def found(args, data_seed):
    "One entry per training seed: the rows of all variations by 'variation/row'"
    from moddist.core import read_json
    runs = []
    for s in range(args.seeds):
        tests = {n: read_json(folder(args, data_seed, s, n)/'test.json') for n in variations(args)}
        runs.append(dict(seed=s, n=tests['full']['rows'][0]['n'], by={f'{n}/{r["name"]}': r for n, t in tests.items() for r in t['rows']}))
    return runs


def summary(args):
    "Per data set: accuracy of each variation in %, paired differences in points"
    from machine import command, machine
    result = dict(command=command(), protocol='cross-subject, test subjects', settings=asdict(settings(args, 0)) | dict(seed='varies'), variations=variations(args),
                  rows=dict(step_4=FUSED, average=MEAN, alone=ALONE), environment=machine(), data_sets={})
    for d in args.data_seeds:
        runs = found(args, d)
        top = lambda name: spread([100*r['by'][name]['top1'] for r in runs])
        minus = lambda a, b: differences(runs, a, b)
        result['data_sets'][d] = dict(seeds=[r['seed'] for r in runs], n_test=runs[0]['n'], accuracy={n: top(n) for n in runs[0]['by']},
            minus_full={n: {row: minus(f'{n}/{row}', f'full/{row}') for row in (FUSED, MEAN, ALONE)} for n in variations(args) if n != 'full'},
            step_4_minus_average={n: minus(f'{n}/{FUSED}', f'{n}/{MEAN}') for n in variations(args)})
        if args.few_labels: result['data_sets'][d]['minus_baselines'] = {b: {r: minus(f'full/{r}', f'full/{b}') for r in (FUSED, 'student')} for b in ('rgb+rgb', 'rgb+rgb-self')}
    return result


def table(result):
    "The summary as text"
    pm = lambda x, sign='': f'{x["mean"]:{sign}.1f}' + (f' \N{PLUS-MINUS SIGN} {x["sd"]:.1f}' if x['sd'] is not None else '')
    lines = []
    for d, r in result['data_sets'].items():
        lines += [f'data seed {d}: {len(r["seeds"])} training seeds, {r["n_test"]} test clips; accuracy in %, differences in points', f'{"":16}{"step 4":>14}{"- full":>14}{"average":>14}{"step 4 - average":>20}{"hallucination":>16}']
        for n in result['variations']:
            less = pm(r['minus_full'][n][FUSED], '+') if n != 'full' else ''
            lines.append(f'{n:16}{pm(r["accuracy"][f"{n}/{FUSED}"]):>14}{less:>14}{pm(r["accuracy"][f"{n}/{MEAN}"]):>14}{pm(r["step_4_minus_average"][n], "+"):>20}{pm(r["accuracy"][f"{n}/{ALONE}"]):>16}')
    return '\n'.join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3, help='training seeds 0, 1, ...')
    p.add_argument('--data-seeds', type=int, nargs='+', default=[101, 102], help='seeds of the rendered data sets')
    p.add_argument('--only', nargs='*', default=[], help='variations besides the full recipe, default all')
    p.add_argument('--few-labels', action='store_true', help='few labels, many pairs; adds the variation no-pairs and the RGB baselines')
    p.add_argument('--fast', action='store_true', help='one epoch on a small set: says nothing about the parts')
    p.add_argument('--runs', default='runs/ablation')
    p.add_argument('--jobs', type=int, default=2, help='seeds side by side, one thread each')
    p.add_argument('--out', default=None, help='summary file')
    p.add_argument('--one', type=int, nargs=2, metavar=('DATA_SEED', 'SEED'), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one: return one_seed(args, *args.one)
    if args.fast: args.seeds, args.data_seeds = min(args.seeds, 2), args.data_seeds[:1]
    variations(args)
    for d in args.data_seeds: data(args, d)
    each([(d, s) for d in args.data_seeds for s in range(args.seeds)], args.jobs)
    from moddist.core import write_json
    out = Path(args.out or HERE/'results'/f'ablation{kind(args)}.json')
    result = summary(args)
    write_json(out, result)
    print(f'{table(result)}\nwrote {out}')


if __name__ == '__main__': main()
