"""All settings of the evidence in one table and one picture: what the fair RGB baseline, RGB + hallucination and RGB + depth reach.

    python bench/summary.py            # reads bench/results/*.json, writes bench/results/summary.json and docs/evidence.png

Differences are paired by training. Nothing is trained, and a record that is not there is left out.
"""
import json
import statistics
from pathlib import Path

from seeds import spread

HERE = Path(__file__).resolve().parent
FUSED, PAIR, TEACHER = 'rgb+hallucination', 'rgb+rgb', 'rgb+depth'
SETTINGS = {  # name: (record, what it is)
    'A': ('evidence', '8 labelled people'),
    'A, stronger views': ('evidence-views', 'zoom, turn, tempo in training'),
    'A, cross-view': ('evidence-cross-view', 'known people, new camera'),
    'A, unlabelled pairs': ('evidence-pairs', '8 labelled people, 11 without labels'),
    'B': ('ablation-few', '4 labelled people, 12 without labels'),
    'C': ('evidence-motions', '4 labelled people, no ball'),
}


def accuracy(d, name):
    "Test accuracy of each training in %, from a record of evidence.py or ablation.py; None where it was not trained"
    found = d['accuracy'].get(f'full/{name}') if 'accuracy' in d else d['rows'].get(name, {}).get('top1')
    return found and found['each']


def fair(d):
    "The better RGB pair on the test clips, which favours the baseline: in B there is one from labelled clips alone and one that trains itself on the others"
    return max((n for n in (PAIR, f'{PAIR}-self') if accuracy(d, n)), key=lambda n: statistics.mean(accuracy(d, n)), default=None)


def row(setting, what, record, data_set, d):
    base = fair(d)
    student, pair, teacher = (accuracy(d, n) for n in (FUSED, base, TEACHER))
    gains, gap = [round(a - b, 2) for a, b in zip(student, pair, strict=True)], statistics.mean(teacher) - statistics.mean(pair)
    g = spread(gains)
    return dict(setting=setting, what=what, data_set=data_set, trainings=len(gains), clips=d['n_test'], baseline=base, **{n: spread(v)['mean'] for n, v in zip(('pair', 'student', 'teacher'), (pair, student, teacher))},
                gains=gains, gain=g['mean'], sd=g['sd'], better=sum(g > 0 for g in gains), share=round(100*statistics.mean(gains)/gap, 1) if gap > 0 else None, command=record['command'])


def rows():
    for setting, (name, what) in SETTINGS.items():
        if not (file := HERE/'results'/f'{name}.json').is_file(): continue
        record = json.loads(file.read_text())
        yield from (row(setting, what, record, k, d) for k, d in record['data_sets'].items() if fair(d))


def draw(found):
    "One line per setting and data set: a dot per training, a bar at the mean"
    from matplotlib.figure import Figure
    from moddist.core import OKABE_ITO
    fig = Figure(figsize=(8.2, .4*len(found) + 1), layout='constrained', dpi=110)
    ax = fig.subplots()
    for y, r in enumerate(found):
        ax.plot(r['gains'], [y]*len(r['gains']), 'o', color=OKABE_ITO['blue'], ms=5, alpha=.7, mew=0)
        ax.plot([r['gain']]*2, [y - .3, y + .3], color='k', lw=2)
        ax.text(1.01, y, f'{r["gain"]:+.1f}', transform=ax.get_yaxis_transform(), va='center', fontsize=9)
    ax.axvline(0, color='.5', lw=1)
    ax.set_yticks(range(len(found)), [f'{r["setting"]}: {r["what"]} ({r["data_set"]})' for r in found], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel('gain over the fair RGB baseline, points (a dot is a training)', fontsize=9)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def main():
    from moddist.core import atomic, write_json
    found = list(rows())
    write_json(HERE/'results'/'summary.json', dict(command='python bench/summary.py', rows=found))
    with atomic(HERE.parent/'docs'/'evidence.png') as tmp: draw(found).savefig(tmp, format='png')
    for r in found: print(f'{r["setting"]:20}{r["data_set"]:>5}  pair {r["pair"]:5.1f}  student {r["student"]:5.1f}  teacher {r["teacher"]:5.1f}  gain {r["gain"]:+5.1f}  better in {r["better"]} of {r["trainings"]}')


if __name__ == '__main__': main()
