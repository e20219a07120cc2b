"The tutorials on real recordings: they run from top to bottom where the data are, say why they skip where not, and store no recorded frame"
import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from conftest import DATA, ROOT, real_data

FOLDER = ROOT/'nbs'/'tutorials'
TUTORIALS = {'urfd': 'urfd', 'utd_mhad_depth': 'utd_mhad'} # notebook: folder of its data


def cells(name): return json.loads((FOLDER/f'{name}.ipynb').read_text())['cells']


def nbdev_test(name, data):
    "Run all cells of a notebook in a process of its own, quickly; what it printed"
    env = os.environ | dict(MODDIST_FAST='1', MODDIST_TEST_DATA=str(data), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    call = [Path(sys.executable).with_name('nbdev-test'), FOLDER/f'{name}.ipynb', '--flags', 'data', '--verbose']
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize('name', TUTORIALS)
def test_runs_where_the_data_are(name):
    real_data(TUTORIALS[name])
    assert 'skipped' not in nbdev_test(name, DATA)


@pytest.mark.parametrize('name', TUTORIALS)
def test_says_why_it_skips(name, tmp_path):
    said = nbdev_test(name, tmp_path)
    tagged = sum(''.join(c['source']).startswith('#| data') for c in cells(name))
    assert tagged > 5 and said.count(f'is not here ({TUTORIALS[name]} in settings.ini)') == tagged


@pytest.mark.parametrize('name', TUTORIALS)
def test_stores_no_recorded_frame(name):
    "An image may be saved only by a cell that says it is a chart, and such a cell reads no clip"
    for cell in cells(name):
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        if any('image/png' in out.get('data', {}) for out in cell['outputs']): assert '# a chart, no frames' in source, source
        if '# a chart, no frames' in source: assert not any(word in source for word in ('load_clip', 'plot_clip', 'show_batch', 'read_'))


def test_record_fits_its_script():
    "The stored record holds the settings of bench/urfd.py, and each window once per model and seed"
    settings = runpy.run_path(str(ROOT/'bench'/'urfd.py'))['settings']()
    record = json.loads((ROOT/'bench'/'results'/'urfd.json').read_text())
    now, plain = asdict(settings) | dict(seed='varies'), asdict(type(settings)())
    assert record['settings'] == {k: now[k] for k in record['settings']}
    assert {k: v for k, v in now.items() if k not in record['settings']} == {k: v for k, v in plain.items() if k not in record['settings']}   # settings that came later change nothing
    assert sorted(set(record['people'].values())) == list('ABCD') and len(record['people']) == 24
    for model, by_seed in record['counts'].items():
        assert list(by_seed) == [str(s) for s in record['seeds']], model
        for tables in by_seed.values():
            assert set(tables) == set(record['people'])
            assert sum(int(n) for t in tables.values() for n in t.replace('/', ' ').split()) == record['windows']
