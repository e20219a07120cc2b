"""Students of several teachers on real recordings, no person on both sides, each way to weigh the teachers.

    python bench/radevski_evidence.py utd_mhad --root FOLDER --seeds 3     # depth, taught by depth, joints and the inertial sensor; 27 classes, folds of two people
    python bench/radevski_evidence.py pose2d --root FOLDER --seeds 3       # joints found in RGB, taught by them, depth and 3-D joints; six classes of the same data set
    python bench/radevski_evidence.py urfd --root FOLDER --seeds 3         # rgb, taught by rgb, flow (derived, DIS) and the ceiling camera; 4 folds
    python bench/radevski_evidence.py pose2d --root FOLDER --fast          # the same path with one epoch and seed, worth nothing; written into --runs

Temperature and weight of the labels are chosen per fold by people who train in it: two of them test students that the others have taught (one seed,
equal weights, GRID); nobody tests a choice that they took part in. Every fold of every seed and weighting is a resumable run of the recipe in --runs.
Teachers and baselines do not depend on the weighting (a fifth of the training clips is kept from the teachers in every case), so they are trained once
and copied. The record has, per weighting and model, accuracy and ECE of each seed over the clips of all folds, and the gap report over seeds and people:
baseline (as long as the student), control (one network of the student's size, as long as student and teachers together), teacher (the ensemble,
reads everything), student.
"""
import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from processes import each
from seeds import spread

HERE = Path(__file__).resolve().parent
WEIGHTINGS = ('uniform', 'held-out', 'per-sample')
ROLES = dict(baseline='baseline', control='baseline-long', teacher='ensemble', student='student')
GRID = [dict(tau=t, lambda_gt=g) for t in (1., 3., 10.) for g in (0., 1.)]


def settings(name, fast):
    "Small networks, a few minutes per fold. Size, sampling, batch and rate are those of the embedded set and of bench/urfd.py"
    from moddist.radevski import Radevski2023
    if name == 'urfd': c = Radevski2023(teachers=('rgb', 'flow', 'view2:rgb'), epochs=7, student_epochs=14, bs=8, size=54, crop=48, sampling='segment', inputs='imagenet', group='sequence', held_out=.2)
    elif name == 'pose2d': c = Radevski2023(student='pose', teachers=('pose', 'depth', 'skeleton'), epochs=30, student_epochs=60, size=(60, 80), crop=(56, 64), flip=0., group='', held_out=.2)
    else: c = Radevski2023(student='depth', teachers=('depth', 'skeleton', 'inertial'), epochs=30, student_epochs=60, size=(60, 80), crop=(56, 64), flip=0., group='', held_out=.2)
    return replace(c, epochs=1, student_epochs=1) if fast else c


def clips(args):
    "Index with all signals, from a small store in --runs"
    from moddist import store as st
    from moddist.datasets import urfd, utd_mhad
    from moddist.derive import derive
    place, fast = folder(args)/'store', args.fast
    if args.dataset == 'urfd': return derive(st.prepare(urfd.index(args.root, paired=True, stride=24 if fast else 6), place, ('rgb', 'view2:rgb'), short_side=108), 'flow', place)
    c = settings(args.dataset, fast)
    signals = tuple(dict.fromkeys((c.student, *c.teachers)))
    df = utd_mhad.index(args.root).rename(columns=dict(pose2d='pose')).dropna(subset=list(signals))
    df = df[df.groupby('label').subject.transform('nunique') == df.subject.nunique()]  # a class that not everybody shows cannot be tested
    df = (df[df.label < 7] if fast else df).reset_index(drop=True)
    df = df.assign(label=df.label.rank(method='dense').astype(int) - 1)
    return st.prepare(df, place, signals, short_side=dict(depth=60))


def split(name, df, fold):
    "Nobody on both sides; of each class one training clip of UTD-MHAD validates, so that the log has something to show"
    from moddist.datasets import urfd, utd_mhad
    if name == 'urfd': return urfd.split(df, fold=fold)
    d = utd_mhad.split(df, 'leave-two-subjects-out', fold=fold)
    return d.assign(split=d.split.mask(d.clip_id.isin(d[d.split == 'train'].groupby('label').clip_id.last()), 'valid'))


def inner(name, d):
    "The training people of a fold among themselves: the last two test, or one of fewer than four"
    who = person(name)
    people = sorted(set(d[d.split != 'test'][who]), key=str)
    left = d[d.split != 'test']
    return left.assign(split=left.split.mask(left[who].isin(people[-2:] if len(people) > 3 else people[-1:]), 'test')).reset_index(drop=True)


def person(name): return 'person' if name == 'urfd' else 'subject'
def folds(name, df): return list(range(df.person.nunique() if name == 'urfd' else (df.subject.nunique() + 1)//2))
def folder(args): return Path(args.runs)/(args.dataset + '-fast'*args.fast)


def one_run(df, out, c, first=None, only=None):
    "Run what is left; what depends neither on weights nor on temperature is taken from the first run"
    from moddist.radevski import radevski2023, run
    for s in radevski2023(c):
        if first and first != out and s.number != 3 and s.name != 'ensemble' and not (out/s.name).exists() and (first/s.name/'record.json').is_file(): shutil.copytree(first/s.name, out/s.name)
    run(df, out, c, only)


def choose(args, fold):
    "Accuracy of the student on two of the fold's own training people, for each point of GRID"
    from moddist.core import write_json
    from moddist.evaluate import top1
    d, c, found = inner(args.dataset, split(args.dataset, clips(args), fold)), settings(args.dataset, args.fast), []
    for i, point in enumerate(GRID[:2] if args.fast else GRID):
        out = folder(args)/f'choice-f{fold}-{i}'
        one_run(d, out, replace(c, **point), folder(args)/f'choice-f{fold}-0', ['student'])
        found.append(point | dict(top1=round(100*top1(read(out, d)['student'])[0], 2)))
    return write_json(folder(args)/f'choice-f{fold}.json', dict(people=sorted(map(str, set(d[d.split == 'test'][person(args.dataset)]))), clips=int((d.split == 'test').sum()), points=found, best=max(found, key=lambda p: p['top1'])))


def one_fold(args, seed, fold):
    "All weightings of one fold and seed, with what was chosen for the fold"
    from moddist.core import read_json
    from moddist.gap import predict_run
    best = read_json(folder(args)/f'choice-f{fold}.json')['best']
    d, c = split(args.dataset, clips(args), fold), replace(settings(args.dataset, args.fast), seed=seed, tau=best['tau'], lambda_gt=best['lambda_gt'])
    for w in args.weightings:
        out = run_folder(args, seed, fold, w)
        one_run(d, out, replace(c, weighting=w), run_folder(args, seed, fold, args.weightings[0]))
        predict_run(out, d)
        print(f'seed {seed} fold {fold} {w}', flush=True)


def run_folder(args, seed, fold, weighting): return folder(args)/f's{seed}-f{fold}-{weighting}'


def read(out, d):
    "Test predictions of a run by model"
    from moddist.evaluate import read_predictions
    from moddist.gap import predict_run
    return {n: read_predictions(f) for n, f in predict_run(out, d).items()}


def pooled(ps):
    "Predictions of the folds of one seed as one"
    import torch
    from moddist.evaluate import Predictions
    return Predictions(torch.cat([p.logits for p in ps]), torch.cat([p.labels for p in ps]), tuple(i for p in ps for i in p.clip_ids))


def summary(found, people, classes):
    "Per model: accuracy and ECE of each seed; and the gap report"
    from moddist.evaluate import ece, top1
    from moddist.gap import gap_report
    rows = {n: dict(top1=spread([100*top1(p)[0] for p in ps]), ece=spread([100*ece(p) for p in ps])) for n, ps in found.items()}
    report = gap_report(**{role: found[n] for role, n in ROLES.items()}, groups=people, classes=classes, names=ROLES, resamples=4000)
    return dict(rows=rows, headline=report.headline, gap=json.loads(report.to_json()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('dataset', choices=('urfd', 'utd_mhad', 'pose2d'))
    p.add_argument('--root', required=True, help='folder of the data set')
    p.add_argument('--seeds', type=int, default=3, help='training seeds 0, 1, ...')
    p.add_argument('--weightings', nargs='+', default=list(WEIGHTINGS), choices=WEIGHTINGS)
    p.add_argument('--fast', action='store_true', help='a few clips, one epoch, one seed: does it run?')
    p.add_argument('--runs', default='runs/radevski')
    p.add_argument('--jobs', type=int, default=2, help='folds side by side, one thread each')
    p.add_argument('--out', default=None, help='record; default bench/results/radevski-DATASET.json')
    p.add_argument('--one', type=int, nargs='+', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        import torch
        torch.set_num_threads(1)
        return choose(args, *args.one) if len(args.one) == 1 else one_fold(args, *args.one)

    from machine import command, machine
    from moddist.core import read_json, write_json
    from moddist.runs import index_hash
    df, seeds = clips(args), range(1 if args.fast else args.seeds)
    parts = folds(args.dataset, df)
    each([(f,) for f in parts if not (folder(args)/f'choice-f{f}.json').is_file()], args.jobs)
    each([(s, f) for s in seeds for f in parts], args.jobs)
    names = df.drop_duplicates('label').sort_values('label').action.tolist()
    people, result = dict(zip(df.clip_id, df[person(args.dataset)])), {}
    for w in args.weightings:
        found = [[read(run_folder(args, s, f, w), split(args.dataset, df, f)) for f in parts] for s in seeds]
        result[w] = summary({n: [pooled([f[n] for f in fs]) for fs in found] for n in found[0][0]}, people, names)
        print(f'{w}: {result[w]["headline"]}')
    record = write_json(args.out or (folder(args) if args.fast else HERE/'results')/f'radevski-{args.dataset}.json', dict(
        command=command([args.root]), protocol='no person on both sides', folds=parts, seeds=list(seeds), index=index_hash(df.assign(split='')), clips=len(df),
        people=df[person(args.dataset)].nunique(), classes=names, settings=asdict(settings(args.dataset, args.fast)) | dict.fromkeys(('seed', 'weighting', 'tau', 'lambda_gt'), 'varies'), environment=machine(),
        choice={f: read_json(folder(args)/f'choice-f{f}.json') for f in parts}, weightings=result))
    print(f'wrote {record}')


if __name__ == '__main__': main()
