"""The report of a run, and of several seeds: its numbers by hand, and what it says where something is missing."""
import base64
import json
import re
import shutil
from dataclasses import asdict
from html import unescape

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from conftest import refused
from moddist import synthetic
from moddist.core import read_json, seed_all, write_json
from moddist.maps import clip_maps
from moddist.models import SmallStream, TwoStream, load_model, save_model
from moddist.recipes import Garcia2018
from moddist.report import _results_table, results, run_maps, write_report
from moddist.runs import index_hash, loaders, reading

torch.set_num_threads(1)
STEPS = {'rgb-long': ['rgb'], 'rgb+rgb': ['rgb'], 'depth': ['depth'], 'rgb+depth': ['rgb', 'depth'], 'hallucination': ['rgb'], 'rgb+hallucination': ['rgb']}
LOG = [dict(epoch=i, train_loss=3. - i, valid_loss=3., accuracy=.1*i, features=2. - i) for i in range(3)]


@pytest.fixture(scope='module')
def df(tmp_path_factory): return synthetic.index(synthetic.make(tmp_path_factory.mktemp('report')/'set', seed=2, train=1, valid=1, test=1, workers=1))


def made(folder, df, seed):
    "A finished run of untrained networks"
    c = Garcia2018(clip_len=4, bs=8, seed=seed)
    write_json(folder/'run.json', dict(recipe='garcia2018', settings=asdict(c), index=index_hash(df), data=dict(dataset='<b>set', root='/nowhere')))
    for i, (name, test) in enumerate(STEPS.items()):
        seed_all(10*seed + i)
        m = TwoStream(SmallStream(10), SmallStream(10)) if '+' in name else SmallStream(10)
        save_model(m, folder/name/'model.safetensors')
        write_json(folder/name/'record.json', dict(name=name, step=2 if name == 'rgb+depth' else 0, reads=test, test=test, epochs=3, seconds=1.5, params=7, history=LOG, warnings=['look <here>'] if name == 'depth' else []))
    return folder


@pytest.fixture(scope='module')
def seeds(df, tmp_path_factory):
    runs = [made(tmp_path_factory.mktemp(f's{s}'), df, s) for s in (0, 1, 2)]
    for r in runs: results(r, df)
    return runs


def test_several_seeds(df, seeds, tmp_path):
    "Means over seeds with Student's interval, the gap over all of them, and every seed named"
    found = [read_json(r/'results.json') for r in seeds]
    table = _results_table(found).set_index('model')
    for name in STEPS:
        a = 100*np.array([r['top1'] for f in found for r in f['rows'] if r['name'] == name])
        half = student_t.ppf(.975, 2)*a.std(ddof=1)/3**.5
        lo, hi = max(a.mean() - half, 0), min(a.mean() + half, 100)
        assert tuple(table.loc[name, ['accuracy, %', '95 % interval', 'seeds']]) == (f'{a.mean():.1f}', f'{lo:.1f} to {hi:.1f}', 3)
    page = unescape(write_report(seeds, tmp_path/'r.html', df, n_clips=1).read_text(encoding='utf-8'))
    assert 'seed 0, 1, 2. The interval is over seeds' in page and ', 3 seeds)' in page and '<dt>seeds</dt><dd>0, 1, 2</dd>' in page


def test_the_inspector_of_a_run_compares_its_steps(df, seeds, tmp_path):
    "Step 3, step 4 and the stream that was never taught, each as its own taps see the clip; what is not finished is not there"
    assert list(run_maps(seeds[0], df, n_clips=1)) == ['hallucination', 'rgb+hallucination']
    run = tmp_path/'run'
    shutil.copytree(seeds[0], run); shutil.copytree(run/'rgb-long', run/'rgb')
    maps = run_maps(run, df, n_clips=2, layers=['unit3'])
    assert list(maps) == ['hallucination', 'rgb+hallucination', 'rgb'] and {len(m) for m in maps.values()} == {2}
    pair = load_model(run/'rgb+hallucination'/'model.safetensors')
    lone = run_maps(run, df, n_clips=1)['rgb+hallucination'][0]
    dls = loaders(reading(run), df, ('rgb', 'depth')); row = df[df.clip_id == lone.clip_id]
    again, = clip_maps(dls, row, load_model(run/'depth'/'model.safetensors'), pair.inject, layers=['unit3'])
    assert np.allclose(lone.layers['unit3'][1], again.layers['unit3'][1], atol=1e-6) and np.allclose(maps['rgb+hallucination'][0].layers['unit3'][1], again.layers['unit3'][1], atol=1e-6)
    assert not np.allclose(maps['hallucination'][0].layers['unit3'][1], again.layers['unit3'][1])


def test_what_others_wrote_is_text_not_markup(df, seeds, tmp_path):
    page = write_report(seeds[0], tmp_path/'r.html', df, n_clips=1, command='moddist <i>').read_text(encoding='utf-8')
    assert '&lt;b&gt;set' in page and '<b>set' not in page and 'look &lt;here&gt;' in page and 'moddist &lt;i&gt;' in page


def test_term_curves_count_epochs_from_one(df, seeds, tmp_path):
    page = write_report(seeds[0], tmp_path/'r.html', df, n_clips=1).read_text(encoding='utf-8')
    figures = [json.loads(f) for f in re.findall('<script type="application/json">(.*?)</script></div></div>', page, re.S)]
    terms = next(f for f in figures if 'Terms of the step' in f['layout'].get('title', {}).get('text', ''))
    assert [t['name'] for t in terms['data']] == ['train', 'valid', 'valid', 'valid'] and {a.get('title', {}).get('text') for k, a in terms['layout'].items() if k.startswith('xaxis')} == {'epoch'}
    x = terms['data'][0]['x']
    assert (x if isinstance(x, list) else np.frombuffer(base64.b64decode(x['bdata']), x['dtype']).tolist()) == [1, 2, 3]


@pytest.mark.parametrize('gone, sections', [(['rgb-long'], {'gap', 'confusion'}), (['hallucination'], {'maps'}), (['rgb+depth'], {'gap', 'confusion', 'noise'}), (['rgb-long', 'rgb+rgb', 'rgb+depth', 'hallucination', 'rgb+hallucination'], {'gap', 'confusion', 'noise', 'maps'})])
def test_missing_steps_are_said(df, seeds, tmp_path, gone, sections):
    run = tmp_path/'run'
    shutil.copytree(seeds[0], run)
    for n in gone: shutil.rmtree(run/n)
    found = results(run, df)
    assert {r['name'] for r in found['rows']} == set(STEPS) - set(gone)
    page = write_report(run, df=df, n_clips=1).read_text(encoding='utf-8')
    said = {k for k in ('results', 'gap', 'maps', 'terms', 'reliability', 'confusion', 'noise', 'again') if 'Not in this report' in page.partition(f' id="{k}"')[2].partition('<section')[0]}
    assert said == sections


def test_a_crossing_that_is_never_reached_survives_the_file(df, seeds, tmp_path):
    run = tmp_path/'run'
    shutil.copytree(seeds[0], run)
    results(run, df, noise=(0., .1))
    found = read_json(run/'results.json')
    text = (run/'results.json').read_text()
    assert 'Infinity' not in text and 'NaN' not in text
    write_json(run/'results.json', found | dict(crossing=found['crossing'] | dict(level=None, lo=None, hi=None)))
    page = unescape(write_report(run, df=df, n_clips=1).read_text(encoding='utf-8'))
    assert 'does not overtake rgb+depth up to level 0.1' in page and 'above 0.1 to above 0.1' in page


def test_a_results_file_of_an_older_version(df, seeds, tmp_path):
    run = tmp_path/'run'
    shutil.copytree(seeds[0], run)
    found = read_json(run/'results.json')
    write_json(run/'results.json', {k: v for k, v in found.items() if k != 'crossing'} | dict(noise=[dict(name='rgb+depth', sigma=0., top1=.5, se=.1, n=30)]))
    assert 'older version' in write_report(run, df=df, n_clips=1).read_text(encoding='utf-8')


def test_nothing_to_report(df, tmp_path):
    refused(lambda: results(tmp_path, df), 'holds no run')
    write_json(tmp_path/'run.json', dict(recipe='garcia2018', settings=asdict(Garcia2018()), index='x', data=None))
    refused(lambda: results(tmp_path, df), 'no step is finished')
    refused(lambda: write_report(tmp_path, df=df), 'results.json')
    refused(lambda: run_maps(tmp_path, df), "'hallucination'", 'not finished')
    assert not list(tmp_path.glob('*.html'))


def test_a_recipe_without_a_single_teacher(df, seeds, tmp_path):
    "No noise curve and no maps, but a report"
    run = tmp_path/'run'
    shutil.copytree(seeds[0], run)
    info = read_json(run/'run.json')
    write_json(run/'run.json', info | dict(settings=info['settings'] | dict(teacher=['depth', 'flow'])))
    assert results(run, df)['noise'] == []
    assert 'no single privileged signal' in write_report(run, df=df).read_text(encoding='utf-8')
