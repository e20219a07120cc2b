"The tutorials: they run from top to bottom where the data are, say why they skip where not, store no recorded frame, and say what the stored records say"
import copy
import json
import os
import runpy
import shutil
import subprocess
import sys
import wave
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import DATA, ROOT, real_data

FOLDER, RESULTS = ROOT/'nbs'/'tutorials', ROOT/'bench'/'results'
TUTORIALS = {'urfd': ('urfd', 'urfd'), 'utd_mhad_depth': ('utd_mhad', 'utd_mhad'), 'utd_mhad': ('utd_mhad', 'utd_mhad'), 'egocentric_recipe': ('annotations', 'epic')} # notebook: folder of its data, key of settings.ini
TASKS = ('utd_mhad', 'pose2d')


def cells(name): return json.loads((FOLDER/f'{name}.ipynb').read_text())['cells']
def sources(name): return [''.join(c['source']) for c in cells(name) if c['cell_type'] == 'code']


def nbdev_test(name, data):
    "Run all cells of a notebook in a process of its own, quickly; what it printed"
    env = os.environ | dict(MODDIST_FAST='1', MODDIST_TEST_DATA=str(data), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    call = [Path(sys.executable).with_name('nbdev-test'), FOLDER/f'{name}.ipynb', '--flags', 'data', '--verbose']
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize('name', TUTORIALS)
def test_runs_where_the_data_are(name):
    real_data(TUTORIALS[name][0])
    assert 'skipped' not in nbdev_test(name, DATA)


@pytest.mark.parametrize('name', TUTORIALS)
def test_says_why_it_skips(name, tmp_path):
    said = nbdev_test(name, tmp_path)
    tagged = sum(s.startswith('#| data') for s in sources(name))
    assert tagged > 5 and said.count(f'is not here ({TUTORIALS[name][1]} in settings.ini)') == tagged


@pytest.mark.parametrize('name', TUTORIALS)
def test_stores_no_recorded_frame(name):
    "An image may be saved only by a cell that says it is a chart, and such a cell reads no clip; rendered people may be shown where nothing was recorded"
    for cell in cells(name):
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        rendered = name == 'egocentric_recipe' and source.startswith('# rendered people, nothing recorded')
        if any('image/png' in out.get('data', {}) for out in cell['outputs']): assert rendered or '# a chart, no frames' in source, source
        if '# a chart, no frames' in source: assert not any(word in source for word in ('load_clip', 'plot_clip', 'show_batch', 'read_'))
        if rendered: assert 'mini' in source and 'df' not in source


# ---------------------------------------------------------------- records

def fits(record, settings, **varies):
    "A record holds these settings; what came later is as it was"
    now, plain = (json.loads(json.dumps(asdict(s))) for s in (settings, type(settings)()))
    now |= varies
    assert record == {k: now[k] for k in record}
    assert {k: v for k, v in now.items() if k not in record} == {k: v for k, v in plain.items() if k not in record}


def test_record_fits_its_script():
    "The stored record holds the settings of bench/urfd.py, and each window once per model and seed"
    record = json.loads((RESULTS/'urfd.json').read_text())
    fits(record['settings'], runpy.run_path(str(ROOT/'bench'/'urfd.py'))['settings'](), seed='varies')
    assert sorted(set(record['people'].values())) == list('ABCD') and len(record['people']) == 24
    for model, by_seed in record['counts'].items():
        assert list(by_seed) == [str(s) for s in record['seeds']], model
        for tables in by_seed.values():
            assert set(tables) == set(record['people'])
            assert sum(int(n) for t in tables.values() for n in t.replace('/', ' ').split()) == record['windows']


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'bench'))
    return runpy.run_path(str(ROOT/'bench'/'radevski_evidence.py'))


def test_summary_is_made_of_the_records(monkeypatch):
    "Table and picture of the evidence are not older than what they summarise"
    monkeypatch.syspath_prepend(str(ROOT/'bench'))
    rows = list(runpy.run_path(str(ROOT/'bench'/'summary.py'))['rows']())
    assert rows == json.loads((RESULTS/'summary.json').read_text())['rows'] and {r['setting'][0] for r in rows} == set('ABC')
    for r in rows: assert abs(r['student'] - r['pair'] - r['gain']) <= .011 and len(r['gains']) == r['trainings'] >= r['better']


def record_of(task):
    if not (RESULTS/f'radevski-{task}.json').is_file(): pytest.skip(f'no record radevski-{task}.json yet')
    return json.loads((RESULTS/f'radevski-{task}.json').read_text())


def after(words, names):
    "Names after running the code cells of the tutorial `utd_mhad` that hold one of these words"
    matplotlib.use('Agg')
    for s in sources('utd_mhad'):
        if any(w in s for w in words): exec(s, names)
    return names


@pytest.mark.parametrize('task', TASKS)
def test_tutorial_and_script_mean_the_same(task, bench):
    "Settings of the notebook and of bench/radevski_evidence.py; where the data are, also clips and folds"
    from moddist.datasets import utd_mhad
    n = after(['import Radevski2023', 'TASKS = dict('], {})
    assert n['TASKS'][task] == bench['settings'](task, False)
    n = after(['everything = utd_mhad', 'def split_of'], n | dict(root=real_data('utd_mhad'), utd_mhad=utd_mhad))
    df = n['clips'][task]
    for fold in bench['folds'](task, df): assert n['split_of'](df, fold).split.tolist() == bench['split'](task, df, fold).split.tolist()


@pytest.mark.parametrize('task', TASKS)
def test_radevski_record_is_sound(task, bench):
    "Settings of the script; chosen by people whom the fold does not test; every clip once per seed; verdicts that follow from their intervals"
    r = record_of(task)
    fits(r['settings'], bench['settings'](task, False), **dict.fromkeys(('seed', 'weighting', 'tau', 'lambda_gt'), 'varies'))
    assert list(r['weightings']) == list(bench['WEIGHTINGS']) and r['people'] == 6
    for fold, f in r['choice'].items():
        assert not {str(2*int(fold) + 1), str(2*int(fold) + 2)} & set(f['people']) and len(f['people']) == 2
        assert [{k: p[k] for k in ('tau', 'lambda_gt')} for p in f['points']] == bench['GRID'] and f['best'] == max(f['points'], key=lambda p: p['top1'])
    for v in r['weightings'].values():
        for name, row in v['rows'].items():
            assert len(row['top1']['each']) == len(row['ece']['each']) == len(r['seeds']), name
            right = np.array(row['top1']['each'])*r['clips']/100
            assert abs(right - right.round()).max() <= .006*r['clips']/100, name
        for m in v['gap']['models']:
            if m['role'] != 'student': assert m['verdict'] == ('BEATS' if m['d_lo'] > 0 else 'WORSE' if m['d_hi'] < 0 else 'NO DIFFERENCE')


def test_urfd_record_is_sound(bench):
    "Four folds of one person each, chosen by others; settings of the script; every clip once per seed"
    r = record_of('urfd')
    fits(r['settings'], bench['settings']('urfd', False), **dict.fromkeys(('seed', 'weighting', 'tau', 'lambda_gt'), 'varies'))
    assert list(r['weightings']) == list(bench['WEIGHTINGS']) and r['people'] == len(r['choice']) == 4 and len(r['seeds']) == 3
    assert all(len(f['people']) == 1 and f['best'] == max(f['points'], key=lambda p: p['top1']) for f in r['choice'].values())
    for v in r['weightings'].values():
        for row in v['rows'].values():
            right = np.array(row['top1']['each'])*r['clips']/100
            assert len(right) == 3 and abs(right - right.round()).max() <= .006*r['clips']/100


def test_the_words_follow_the_numbers():
    "The same record with other intervals is told otherwise, a loss as plainly as a gain"
    r = record_of('pose2d')
    told = after(['def lines(r)', 'def told(t, r)'], dict(records={}, pd=pd))['told']
    def said(**verdicts):
        x = copy.deepcopy(r)
        for w, (d, lo, hi, verdict) in verdicts.items():
            m = next(m for m in x['weightings'][w.replace('_', '-')]['gap']['models'] if m['name'] == 'baseline-long')
            m.update(difference=d, d_lo=lo, d_hi=hi, verdict=verdict)
        return ' '.join(told('pose2d', x))
    up, down, even = (.06, .02, .1, 'BEATS'), (-.07, -.1, -.03, 'WORSE'), (.01, -.04, .06, 'NO DIFFERENCE')
    every = lambda v: dict(uniform=v, held_out=v, per_sample=v)
    assert 'beats baseline-long: +6.0 points [2.0, 10.0]' in said(**every(up)) and 'So the student beats its own network' in said(**every(up))
    assert 'is worse than baseline-long: -7.0 points' in said(**every(down)) and 'So the student is worse than its own network' in said(**every(down))
    assert 'cannot be told from baseline-long' in said(**every(even)) and 'below about 5 points would not have been seen' in said(**every(even))
    assert 'depends on the weighting' in said(**every(even) | dict(uniform=up)) and 'misses by chance' in said(**every(even) | dict(uniform=up))


def test_records_that_are_not_there_are_named(monkeypatch, tmp_path, capsys):
    "Without any record the cells name the commands, draw nothing and go on"
    (tmp_path/'nbs'/'tutorials').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'nbs'/'tutorials')
    at = next(i for i, s in enumerate(sources('utd_mhad')) if 'place, records' in s)
    names = after(['import Radevski2023', 'TASKS = dict('], {})
    for s in sources('utd_mhad')[at:]: exec(s, names)
    said = capsys.readouterr().out
    assert names['records'] == {} and 'nothing to say' in said
    for t in TASKS: assert f'python bench/radevski_evidence.py {t} --root FOLDER' in said


# ---------------------------------------------------------------- somebody else's kitchen

HEAD = 'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes'.split(',')


def kitchen(root, frames=48):
    "EPIC-KITCHENS in the owners' layout: three short videos with images, flow, sound and 14 segments each, and the tables beside them"
    notes, g = root/'epic-kitchens-100-annotations', np.random.default_rng(0)
    notes.mkdir(parents=True)
    for kind, n in (('verb', 97), ('noun', 300)):
        pd.DataFrame(dict(id=range(n), key=[f'{kind}{k}' for k in range(n)], instances='[]', category='c')).to_csv(notes/f'EPIC_100_{kind}_classes.csv', index=False)
        pd.DataFrame({kind: range(n//2, n)}).to_csv(notes/f'EPIC_100_tail_{kind}s.csv', index=False)
    rows = {}
    for video in ('P01_01', 'P02_01', 'P18_01'):
        for folder, n, mode in (('rgb_frames', frames, 'RGB'), ('flow_frames', frames//2, 'L')):
            for part in ('',) if mode == 'RGB' else ('u', 'v'):
                (d := root/video[:3]/folder/video/part).mkdir(parents=True)
                picture = Image.fromarray(g.integers(0, 255, (32, 57, 3) if mode == 'RGB' else (32, 57), dtype=np.uint8))
                picture.save(d/'frame_0000000001.jpg')
                for i in range(2, n + 1): shutil.copy(d/'frame_0000000001.jpg', d/f'frame_{i:010d}.jpg')
        (root/video[:3]/'audio').mkdir()
        with wave.open(str(root/video[:3]/'audio'/f'{video}.wav'), 'wb') as f:
            f.setparams((1, 2, 24_000, 0, 'NONE', ''))
            f.writeframes((g.normal(size=24_000*frames//60)*3000).astype('<i2').tobytes())
        rows[video] = [[f'{video}_{k}', video[:3], video, '', f'00:00:00.{k:02d}', f'00:00:00.{k + 40}', int(k*.6) or 1, int((k + 40)*.6), 'do', f'verb{60*(k % 2)}', 60*(k % 2), f'noun{k}', k, f"['noun{k}']", f'[{k}]'] for k in range(14)]
    for name, videos in (('train', ('P01_01', 'P02_01')), ('validation', ('P18_01',))): pd.DataFrame(sum((rows[v] for v in videos), []), columns=HEAD).to_csv(notes/f'EPIC_100_{name}.csv', index=False)
    pd.DataFrame([(v, frames/60, 60.) for v in rows], columns=['video_id', 'duration', 'fps']).assign(resolution='1920x1080').to_csv(notes/'EPIC_100_video_info.csv', index=False)
    return root


def test_the_lines_for_your_kitchen_find_the_files(tmp_path, monkeypatch):
    "With `epic` in settings.ini the same cells read tables, images, flow and sound, and draw a batch as the released settings want it"
    ini = tmp_path/'mine.ini'
    ini.write_text(f'[moddist]\nepic = {kitchen(tmp_path/"EPIC")}\nruns = {tmp_path}/runs\ndevice = cpu\n')
    monkeypatch.setenv('MODDIST_SETTINGS', str(ini))
    said = nbdev_test('egocentric_recipe', tmp_path)
    assert 'skipped' not in said and '42 of 42 segments have rgb, flow, audio' in said and '0 videos are not fully unpacked' in said
    for k in ('rgb', 'flow', 'audio'): assert f'{k}: float32 [12, 3, 16, 224, 224]' in said
