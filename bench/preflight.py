"""Does the preflight score rank settings as the expensive training does?

    OMP_NUM_THREADS=1 nice -n 5 python bench/preflight.py            # about 30 minutes of one core
    python bench/preflight.py --apart --data-seeds 301 302 303       # does it tell the three settings of the evidence apart? Step 1 only, 4 minutes per data seed

Twelve variants of the embedded set differ in what the privileged signal knows: the plain ball set, fewer training subjects, no ball, a depth that is noisy, full of holes, often blank,
frozen in time, of another clip, a 'depth' that is the same RGB again, and subsets of the classes. In each, the two streams of step 1 are trained with a reduced budget and looked at on five
held-out subjects who are neither trained on nor tested on, beside a second RGB stream; that gives the predicted gain. Then the rest of the recipe and the baseline of two long RGB
streams are trained with the same budget, and their difference on the test subjects is the realised gain. (Beside it, the gain over the single RGB stream of step 1, an easier question.)
Resumable: every step is a file in --runs. One training seed and one data seed: this measures the ranking over settings, not the noise of one of them.

With --apart: full supervision (A), few labels beside unlabelled pairs (B) and the counter-example (C), each with the budget of its evidence, on rendered sets that serve for nothing else.
"""
import argparse
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from machine import command

HERE = Path(__file__).resolve().parent
# name: (objects, training subjects, what is done to the depth, motions kept)
SETTINGS = {
    'ball': (True, 8, None, None),
    'other clip': (True, 8, 'other clip', None),
    'no ball': (False, 8, None, None),
    'push and pull': (True, 8, None, ('push', 'pull')),
    'lean and step': (True, 8, None, ('lean', 'step_fwd')),
    'ball, 4 subjects': (True, 4, None, None),
    'no ball, 4 subjects': (False, 4, None, None),
    'frozen': (True, 8, 'frozen', None),
    'half blank': (True, 8, 'half blank', None),
    'noisy': (True, 8, 'noisy', None),
    'same RGB': (True, 8, 'same RGB', None),
    'holes': (True, 8, 'holes', None),
}


def damaged(how, x, r):
    "A depth clip [T, H, W] in mm, as a worse sensor would give it"
    if how == 'frozen': return np.broadcast_to(x[:1], x.shape)
    if how == 'half blank': return x*np.uint16(r.random() < .5)
    if how == 'noisy': return np.where(x > 0, np.clip(x*(1 + .15*r.standard_normal(x.shape)), 1, 65535), 0).astype(np.uint16)
    if how == 'holes':
        t, h, w = x.shape
        keep = np.kron(r.random((t, -(-h//4), -(-w//4))) > .7, np.ones((1, 4, 4), bool))
        return x*keep[:, :h, :w]
    raise ValueError(how)


def degrade(df, root, how):
    "The index with another depth, written as PNG folders under `root`"
    from moddist.core import atomic, rng
    from moddist.files import read_png16, write_png16
    if how is None: return df, 'depth'
    if how == 'same RGB': return df.assign(view2=df.rgb), 'view2:rgb'
    if how == 'other clip':
        order = rng('other clip').permutation(len(df))
        return df.assign(depth=df.depth.values[order]), 'depth'
    root = root/f'depth-{how.replace(" ", "-")}'
    if not root.exists():
        with atomic(root) as tmp:
            for row in df.itertuples(): write_png16(tmp/row.clip_id, damaged(how, np.asarray(read_png16(row.depth)), rng(how, row.clip_id)))
    return df.assign(depth=[str(root/c) for c in df.clip_id]), 'depth'


def data(args, name):
    "Clip index of a setting: train, valid, held (for the preflight) and test, and its privileged signal"
    from moddist import synthetic
    objects, n_train, how, motions = SETTINGS[name]
    root = Path(args.runs)/('data' if objects else 'data-motions')
    synthetic.make(root, seed=args.data_seed, objects=objects, train=8, unlabelled=5, skeletons=False, workers=1)
    df, who = synthetic.index(root), synthetic.subjects(8, 1, 16, 5)
    assert (df.label >= 0).all()
    df.loc[df.split == 'unlabelled', 'split'] = 'held'
    df, teacher = degrade(df, Path(args.runs), how)
    df = df[~df.subject.isin(who['train'][n_train:])]
    if motions:
        df = df[df.motion.isin(motions)]
        df = df.assign(label=df.label.rank(method='dense').astype(int) - 1)
    return df.reset_index(drop=True), teacher


def folder(args, name): return Path(args.runs)/name.replace(', ', '-').replace(' ', '-')


def reuse(args, name, out):
    "RGB steps see the same clips with the same seed in every setting that differs in its depth only: take them from the first such setting"
    objects, n_train, _, motions = SETTINGS[name]
    first = next(folder(args, n) for n, s in SETTINGS.items() if (s[0], s[1], s[3]) == (objects, n_train, motions))
    for step in ('rgb', 'rgb-long', 'rgb-long-2'):
        if (first/step/'record.json').is_file() and not (out/step).exists(): shutil.copytree(first/step, out/step)


def train(args, name):
    "Everything that costs time; what is there already is not done again"
    from moddist.core import read_json, write_json
    from moddist.evaluate import evaluate_run
    from moddist.recipes import Garcia2018, run
    df, teacher = data(args, name)
    out, c = folder(args, name), Garcia2018(teacher=teacher, epochs=args.epochs, seed=args.seed)
    if not (out/'test.json').is_file():
        reuse(args, name, out)
        run(df, out, c, only=['rgb+hallucination', 'rgb+rgb'])
        write_json(out/'test.json', evaluate_run(out, df))
    return df, out, c, read_json(out/'test.json')


def peer_of(args, name, df, c):
    "A second RGB stream of step 1 with another seed, shared by the settings that differ in their depth only"
    from moddist.recipes import run
    objects, n_train, _, motions = SETTINGS[name]
    first = next(n for n, s in SETTINGS.items() if (s[0], s[1], s[3]) == (objects, n_train, motions))
    out = folder(args, 'peer of ' + first)
    if not (out/'rgb'/'record.json').is_file(): run(df, out, replace(c, seed=c.seed + 1), only=['rgb'])
    return out


def score(name, df, out, rows, peer):
    "Predicted and realised gain of one setting, in points"
    from moddist.core import read_json
    from moddist.preflight import preflight_run
    by = {r['name']: r for r in rows}
    p = preflight_run(out, df, 'held', peer=peer)
    realised = 100*(by['rgb+hallucination']['top1'] - by['rgb+rgb']['top1'])
    return dict(setting=name, predicted=round(100*p.scores['predicted'], 2), verdict=p.verdict, realised=round(realised, 2), over_one=round(100*(by['rgb+hallucination']['top1'] - by['rgb']['top1']), 2), n_test=by['rgb']['n'], n_held=p.n,
                scores={k: round(float(v), 4) for k, v in p.scores.items()}, test={n: r['top1'] for n, r in by.items()},
                seconds=round(sum(read_json(f)['seconds'] for f in out.glob('*/record.json'))))


# name: (objects, labelled subjects, subjects without labels, E), as in bench/evidence.py and bench/ablation.py --few-labels
APART = {'A: full supervision': (True, 8, 0, 40), 'B: few labels, many pairs': (True, 4, 12, 60), 'C: counter-example': (False, 4, 0, 70)}


def apart(args):
    "Step 1 of the three settings, twice for the second student, and what the preflight says; five other people are looked at"
    from moddist import synthetic
    from moddist.preflight import preflight_run
    from moddist.recipes import Garcia2018, run
    for d in args.data_seeds:
        for name, (objects, train, pairs, epochs) in APART.items():
            root = Path(args.runs)/f'apart-{d}-{name[0]}'
            synthetic.make(root/'data', seed=d, objects=objects, train=train, unlabelled=pairs, test=5, skeletons=False, workers=1)
            df = synthetic.index(root/'data').assign(split=lambda t: t.split.replace('test', 'held'))
            c = Garcia2018(epochs=epochs, seed=args.seed, unlabelled=pairs > 0)
            run(df, root/'run', c, only=['rgb', 'depth'])
            run(df, root/'peer', replace(c, seed=c.seed + 1), only=['rgb'])
            p = preflight_run(root/'run', df, 'held', peer=root/'peer')
            yield dict(setting=name, data_seed=d, verdict=p.verdict, case=p.case, pairs=p.pairs, labelled=int((df.split == 'train').sum()), n_held=p.n, interval=[round(100*x, 2) for x in p.interval], scores={k: round(float(v), 4) for k, v in p.scores.items()})


def correlations(rows, against):
    "Spearman's rank correlation with the realised gain: of the score, and of its parts and rivals for comparison"
    from scipy.stats import spearmanr
    y = [r[against] for r in rows]
    found = {}
    for k in ('predicted', 'headroom', 'share', 'oracle_gain', 'fusion_gain', 'complement', 'cch_margin', 'cka', 'teacher', 'student'):
        rho = spearmanr([r['scores'][k] for r in rows], y)
        found[k] = dict(spearman=round(float(rho.statistic), 3), p=round(float(rho.pvalue), 4))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=20, help='E; the embedded set is made for 40')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--data-seed', type=int, default=201)
    p.add_argument('--runs', default='runs/preflight')
    p.add_argument('--only', nargs='*', default=list(SETTINGS), help='settings')
    p.add_argument('--train-only', action='store_true', help='no scores')
    p.add_argument('--apart', action='store_true', help='tell the three settings of the evidence apart')
    p.add_argument('--data-seeds', type=int, nargs='+', default=[301, 302, 303], help='of --apart')
    p.add_argument('--out', default=None, help='summary file')
    args = p.parse_args()
    import torch
    from moddist.core import write_json
    from moddist.runs import environment
    torch.set_num_threads(1)
    args.out = args.out or HERE/'results'/f'preflight{"-apart"*args.apart}.json'
    if args.apart:
        rows = []
        for r in apart(args):
            rows.append(r)
            print(f'{r["data_seed"]} {r["setting"]:26} {r["verdict"]:8} {r["case"]:14} {r["pairs"]:4} pairs', flush=True)
            write_json(Path(args.out), dict(command=command(), environment=environment(), budget={k: v[3] for k, v in APART.items()}, rows=rows))
        return
    rows = []
    for name in args.only:
        df, out, c, test = train(args, name)
        if args.train_only: print(name, {r['name']: r['top1'] for r in test}, flush=True); continue
        rows.append(score(name, df, out, test, peer_of(args, name, df, c)))
        print(rows[-1], flush=True)
        found = dict(command=command(), environment=environment(), settings={**asdict(c), 'teacher': 'varies'}, data_seed=args.data_seed,
                     rows=rows, correlations=correlations(rows, 'realised') if len(rows) > 3 else {},
                     correlations_over_one_stream=correlations(rows, 'over_one') if len(rows) > 3 else {})
        write_json(Path(args.out), found)
    for k, v in (found['correlations'] if rows else {}).items(): print(f'{k:12} {v["spearman"]:+.2f}  p {v["p"]:.3f}   over one stream {found["correlations_over_one_stream"][k]["spearman"]:+.2f}')


if __name__ == '__main__': main()
