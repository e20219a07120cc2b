"""Students of several teachers on real recordings, no person on both sides, each way to weigh the teachers.

    OMP_NUM_THREADS=1 python bench/radevski_evidence.py urfd --root FOLDER --seeds 3             # rgb, taught by rgb, flow (derived, DIS) and the ceiling camera; 4 folds
    OMP_NUM_THREADS=1 python bench/radevski_evidence.py utd_mhad --root FOLDER --seeds 3         # depth, taught by depth, joints and the inertial sensor; 27 classes, folds of two people
    OMP_NUM_THREADS=1 python bench/radevski_evidence.py urfd --root FOLDER --fast                # the same path with few windows and epochs, worth nothing; written into --runs

Every fold of every seed and weighting is a resumable run of the recipe in --runs. Teachers and baselines do not depend on the weighting (a fifth of
the training clips is kept from the teachers in every case), so they are trained once and their steps are copied. The record has, per weighting and
model, accuracy and ECE of each seed over the clips of all folds, and the gap report over seeds and people: baseline (as long as the student),
control (one network of the student's size, as long as student and teachers together), teacher (the ensemble, reads everything), student.
"""
import argparse
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
WEIGHTINGS = ('uniform', 'held-out', 'per-sample')
ROLES = dict(baseline='baseline', control='baseline-long', teacher='ensemble', student='student')


def settings(name, fast):
    "Small networks, a few minutes per fold. Nothing was tuned on the test people: size, sampling, batch and rate are those of the embedded set and of bench/urfd.py"
    from moddist.radevski import Radevski2023
    if name == 'urfd': c = Radevski2023(teachers=('rgb', 'flow', 'view2:rgb'), epochs=7, student_epochs=14, bs=8, size=54, crop=48, sampling='segment', inputs='imagenet', group='sequence', held_out=.2)
    else: c = Radevski2023(student='depth', teachers=('depth', 'skeleton', 'inertial'), epochs=30, student_epochs=60, size=(60, 80), crop=(56, 64), flip=0., group='', held_out=.2)
    return replace(c, epochs=1, student_epochs=1) if fast else c


def clips(name, root, store, fast):
    "(index with all signals from a small store, split function of the fold, folds, column of people)"
    from moddist import store as st
    from moddist.datasets import urfd, utd_mhad
    from moddist.derive import derive
    if name == 'urfd':
        df = urfd.index(root, paired=True, stride=24 if fast else 6)
        df = derive(st.prepare(df, store, ('rgb', 'view2:rgb'), short_side=108), 'flow', store)
        return df, lambda fold: urfd.split(df, fold=fold), list(range(df.person.nunique())), 'person'
    df = utd_mhad.index(root).dropna(subset=['depth', 'skeleton', 'inertial'])
    if fast: df = df[df.label < 3].reset_index(drop=True)
    df = st.prepare(df, store, ('depth', 'skeleton', 'inertial'), short_side=dict(depth=60))
    def split(fold):
        "Two people test; of each class one clip of the others validates, so that the log has something to show"
        d = utd_mhad.split(df, 'leave-two-subjects-out', fold=fold)
        return d.assign(split=d.split.mask(d.clip_id.isin(d[d.split == 'train'].groupby('label').clip_id.last()), 'valid'))
    return df, split, list(range((df.subject.nunique() + 1)//2)), 'subject'


def one_run(df, out, c, first):
    "Run what is left; what does not depend on the weighting is taken from the first run"
    from moddist.radevski import radevski2023, run
    for s in radevski2023(c):
        if first and s.number != 3 and s.name != 'ensemble' and not (out/s.name).exists() and (first/s.name/'record.json').is_file(): shutil.copytree(first/s.name, out/s.name)
    run(df, out, c)


def pooled(files):
    "Predictions of the folds of one seed as one"
    import torch
    from moddist.evaluate import Predictions, read_predictions
    ps = [read_predictions(f) for f in files]
    return Predictions(torch.cat([p.logits for p in ps]), torch.cat([p.labels for p in ps]), tuple(i for p in ps for i in p.clip_ids))


def summary(found, people, classes, resamples):
    "Per model: accuracy and ECE of each seed; and the gap report"
    import json
    import statistics
    from moddist.evaluate import ece, top1
    from moddist.gap import gap_report
    spread = lambda x: dict(mean=round(statistics.mean(x), 2), sd=round(statistics.stdev(x), 2) if len(x) > 1 else None, each=[round(v, 2) for v in x])
    rows = {n: dict(top1=spread([100*top1(p)[0] for p in ps]), ece=spread([100*ece(p) for p in ps])) for n, ps in found.items()}
    report = gap_report(**{role: found[n] for role, n in ROLES.items()}, groups=people, classes=classes, names=ROLES, resamples=resamples)
    return dict(rows=rows, headline=report.headline, gap=json.loads(report.to_json()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('dataset', choices=('urfd', 'utd_mhad'))
    p.add_argument('--root', required=True, help='folder of the data set')
    p.add_argument('--seeds', type=int, default=3, help='training seeds 0, 1, ...')
    p.add_argument('--weightings', nargs='+', default=list(WEIGHTINGS), choices=WEIGHTINGS)
    p.add_argument('--fast', action='store_true', help='a few clips, one epoch, one seed: does it run?')
    p.add_argument('--runs', default='runs/radevski')
    p.add_argument('--out', default=None, help='record; default bench/results/radevski-DATASET.json')
    args = p.parse_args()

    from machine import machine
    from moddist.core import write_json
    from moddist.gap import predict_run
    from moddist.runs import index_hash
    place = Path(args.runs)/(args.dataset + '-fast'*args.fast)
    df, split, folds, person = clips(args.dataset, args.root, place/'store', args.fast)
    c, seeds, found = settings(args.dataset, args.fast), 1 if args.fast else args.seeds, {}
    for seed in range(seeds):
        for w in args.weightings:
            files = []
            for fold in folds:
                out, first = (place/f's{seed}-f{fold}-{k}' for k in (w, args.weightings[0]))
                d = split(fold)
                one_run(d, out, replace(c, seed=seed, weighting=w), first if w != args.weightings[0] else None)
                files.append(predict_run(out, d))
                print(f'seed {seed} fold {fold} {w}', flush=True)
            for n in files[0]: found.setdefault(w, {}).setdefault(n, []).append(pooled([f[n] for f in files]))
    names = df.drop_duplicates('label').sort_values('label').action.tolist()
    people = dict(zip(df.clip_id, df[person]))
    record = write_json(args.out or (place if args.fast else HERE/'results')/f'radevski-{args.dataset}.json', dict(
        command=' '.join(['python', 'bench/radevski_evidence.py', *sys.argv[1:]]), protocol='no person on both sides', folds=folds, seeds=list(range(seeds)), index=index_hash(df.assign(split='')), clips=len(df),
        people=df[person].nunique(), classes=names, settings=asdict(c) | dict(seed='varies', weighting='varies'), environment=machine(), weightings={w: summary(f, people, names, 4000) for w, f in found.items()}))
    for w, f in found.items(): print(f'{w}: {summary(f, people, names, 400)["headline"]}')
    print(f'wrote {record}')


if __name__ == '__main__': main()
