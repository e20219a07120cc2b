"""The four steps on real video: front camera (student) and ceiling camera (privileged) of UR Fall Detection, person-disjoint.

    OMP_NUM_THREADS=1 python bench/urfd.py --root ../shared/data/urfd --seeds 3          # about 7 minutes per seed on one core

Every fold of every seed is a resumable run of the recipe in --runs. The record keeps, for each model, seed and test sequence, the table of true
against predicted postures ("3 1 0/0 4 0/0 0 5": rows are the true posture), from which the tutorial computes accuracies and their intervals.
"""
import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent


def settings(epochs=7):
    "Settings of the tutorial: a still person must stay visible, so no mean frame is subtracted ('imagenet')"
    from moddist.recipes import Garcia2018
    return Garcia2018(teacher='view2:rgb', epochs=epochs, distil=1., long=2.6, bs=8, size=54, crop=48, sampling='segment', inputs='imagenet')


def confusion(p, df):
    "Per test sequence: 3 x 3 table of true against predicted posture, as text"
    import pandas as pd
    table = pd.DataFrame(dict(clip_id=p.clip_ids, true=p.labels, guess=p.logits.argmax(1))).merge(df[['clip_id', 'sequence']])
    cells = {s: pd.crosstab(g.true, g.guess).reindex(index=range(3), columns=range(3), fill_value=0) for s, g in table.groupby('sequence')}
    return {s: '/'.join(' '.join(map(str, row)) for row in t.values) for s, t in cells.items()}


def one_fold(df, out, c):
    "Run what is left of a fold; {model: {test sequence: table}}. The ceiling camera alone also gets the long budget: is the teacher any better?"
    from moddist.data import test_dl
    from moddist.evaluate import predict
    from moddist.recipes import garcia2018, run
    from moddist.runs import loaders
    test, mirrored = df[df.split == 'test'], replace(c, student=c.teacher, teacher=c.student)
    models = run(df, out, c) | run(df, out.with_name(f'{out.name}-view2'), mirrored, only=['view2-long'])
    reads = {s.name: s.test for s in garcia2018(mirrored) + garcia2018(c)}
    return {n: confusion(predict(m, test_dl(loaders(c, df, reads[n]), test)), df) for n, m in models.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', required=True, help='folder of UR Fall Detection')
    p.add_argument('--seeds', type=int, default=3, help='training seeds 0, 1, ...')
    p.add_argument('--epochs', type=int, default=settings().epochs, help='E of the recipe')
    p.add_argument('--runs', default='runs/urfd')
    p.add_argument('--out', default=str(HERE/'results'/'urfd.json'))
    args = p.parse_args()

    from moddist.core import write_json
    from moddist.datasets import urfd
    from moddist.runs import environment, index_hash
    df = urfd.index(args.root, paired=True)
    folds = list(urfd.fold_counts(df).index.unique('fold'))
    c, counts = settings(args.epochs), {}
    for seed in range(args.seeds):
        for fold in folds:
            tables = one_fold(urfd.split(df, fold=fold), Path(args.runs)/f's{seed}-f{fold}', replace(c, seed=seed))
            for name, t in tables.items(): counts.setdefault(name, {}).setdefault(str(seed), {}).update(t)
            print(f'seed {seed} fold {fold}', flush=True)
    people = df.groupby('sequence').person.first()
    write_json(args.out, dict(
        command=' '.join(['python', 'bench/urfd.py', *sys.argv[1:]]), protocol='person-disjoint', folds=folds, seeds=list(range(args.seeds)),
        settings=asdict(c) | dict(seed='varies'), index=index_hash(df), windows=len(df), classes=list(urfd.ACTIONS), people=people.to_dict(),
        environment=environment(), counts=counts))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
