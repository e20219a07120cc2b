"""The contract of the generated package: who may import whom, no stale module, documented names, a complete wheel."""
import ast
import importlib
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'moddist').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
ORDER = ['core', 'arrays', 'files', 'draws', 'tracks', 'audio', 'depth', 'clips', 'inputs', 'data', 'datasets', 'store', 'derive', 'doctor', 'show', 'scene', 'synthetic', 'catalogue',
         'models', 'backbones', 'lite', 'layout', 'losses', 'more_losses', 'distill', 'terms', 'resume', 'runs', 'evaluate', 'tasks', 'calibration', 'ensemble', 'cache', 'recipes', 'radevski', 'cost', 'gap', 'stress', 'preflight', 'fidelity', 'cam', 'maps', 'viz', 'curves', 'cockpit', 'figures', 'panel', 'page', 'widgets', 'report', 'deploy', 'cli_data', 'cli']

BASES = {'ntu_registration': 'ntu', 'something_else': 'ssv2'} # a data set that builds on another


def dotted(path): return '.'.join(path.relative_to(ROOT/'moddist').with_suffix('').parts)


def rank(module):
    "Position in the arrow; within `datasets`, only the pairs in BASES"
    head, _, name = module.partition('.')
    return ORDER.index(head), name if head == 'datasets' else ''


def own_imports(path):
    "Modules of this package that a module imports, at any depth of its code"
    package = ['moddist', *path.relative_to(ROOT/'moddist').parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix('moddist.') for a in node.names if a.name.startswith('moddist.'))
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            name = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
            if name == 'moddist': yield from (a.name for a in node.names)
            elif name.startswith('moddist.'):
                inner = name.removeprefix('moddist.')
                yield from ([f'{inner}.{a.name}' for a in node.names] if inner == 'datasets' else [inner])


def points_left(module, importer):
    (a, x), (b, y) = rank(module), rank(importer)
    return a < b or (a == b and bool(x) and BASES.get(y) == x) or module == importer


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_imports_point_left(path):
    wrong = [m for m in own_imports(path) if not m.startswith('_') and not points_left(m, dotted(path))]
    assert not wrong, f'{dotted(path)} imports {wrong}: the arrow is {" <- ".join(ORDER)}'


def test_the_arrow_can_break(tmp_path):
    "The parser above really sees relative, absolute and local imports"
    source = 'from .viz import a\nimport moddist.cli\ndef f():\n    from ..widgets import b\nfrom .datasets import ntu\n'
    path = ROOT/'moddist'/'datasets'/'_probe.py'
    class Probe(type(path)):
        def read_text(self): return source
    assert {'cli', 'widgets', 'datasets.viz'} <= set(own_imports(Probe(path)))


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_no_stale_module(path):
    "Every module was exported from a notebook that still exists"
    found = re.search(r'File to edit: (\S+\.ipynb)', path.read_text())
    assert found, f'{path} was not exported from a notebook'
    assert (path.parent/found[1]).resolve().is_file(), f'{path}: its notebook {found[1]} is gone, delete the module'


@pytest.mark.parametrize('path', MODULES, ids=dotted)
def test_public_names_are_documented(path):
    module = importlib.import_module('moddist.' + dotted(path))
    assert module.__doc__
    public = [getattr(module, n) for n in module.__all__]
    bare = [o.__name__ for o in public if getattr(o, '__module__', None) == module.__name__ and hasattr(o, '__name__') and not o.__doc__]
    assert not bare, f'{dotted(path)}: without a docstring: {bare}'


@pytest.mark.parametrize('path', sorted((ROOT/'nbs').rglob('*.ipynb')), ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_notebook_is_presentable(path):
    "No machine paths, no widget state, no error output, not too big to show on a code host"
    text = path.read_text()
    assert len(text) < 1_500_000
    assert '/work/' not in text and '/root/' not in text
    nb = json.loads(text)
    assert 'widgets' not in nb['metadata']
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    starred = [c['source'] for c in nb['cells'] if c['cell_type'] == 'code' and re.search(r'#\s*\|\s*export', ''.join(c['source'])) and ' import *' in ''.join(c['source'])]
    assert not starred
    links = {l for c in nb['cells'] if c['cell_type'] == 'markdown' for l in re.findall(r'\]\(([^)#]+)[^)]*\)', ''.join(c['source'])) if '://' not in l}
    assert not [l for l in links if not (path.parent/l).exists()], 'a link that leads nowhere on a code host or in JupyterLab'
    long = [c['id'] for c in nb['cells'] if c['cell_type'] == 'code' and re.search(r'^#\|\s*exporti?\b', ''.join(c['source']), re.M) and sum(bool(l.strip()) for l in c['source']) > 50]
    assert not long, f'exported cells of more than 50 lines: {long}'


def test_readme_is_the_index_notebook():
    "README.md is made from nbs/index.ipynb: run `make readme`"
    sys.path.insert(0, str(ROOT/'tests'))
    from readme import readme
    assert (ROOT/'README.md').read_text() == readme()


def test_import_is_light():
    "`import moddist` pulls in no heavy package, and the command line does not import torch to print its help"
    code = 'import sys, moddist; heavy = {"torch", "fastai", "torchvision", "cv2", "decord", "plotly", "pandas"} & set(sys.modules); assert not heavy, heavy'
    subprocess.run([sys.executable, '-c', code], check=True)
    code = 'import sys, moddist.models, moddist.losses; heavy = {"torchvision", "cv2", "decord", "plotly", "ipywidgets"} & set(sys.modules); assert not heavy, heavy'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_wheel_is_complete(tmp_path):
    "The wheel, installed in an empty environment, imports every module and holds the static files"
    subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(tmp_path), str(ROOT)], check=True, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    venv.create(tmp_path/'env', with_pip=True)
    python = tmp_path/'env'/'bin'/'python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', wheel], check=True)
    here = {p.name for p in (ROOT/'moddist'/'static').glob('*')}
    code = (f'import importlib, pathlib, moddist\n'
            f'assert pathlib.Path(moddist.__file__).is_relative_to({str(tmp_path)!r})\n'
            f'for m in {[dotted(p) for p in MODULES]}: importlib.import_module("moddist." + m)\n'
            f'assert {here} <= {{p.name for p in (pathlib.Path(moddist.__file__).parent/"static").glob("*")}}')
    # the dependencies come from the environment of the tests; the package itself only from the wheel
    site = Path(importlib.import_module('torch').__file__).parents[1]
    subprocess.run([python, '-c', code], check=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(site)})


def test_settings_file_documents_every_key():
    "The settings.ini of the repository names every key of Settings, no other, and parses"
    from dataclasses import fields
    from moddist.core import Settings, settings
    text = (ROOT/'settings.ini').read_text()
    keys = set(re.findall(r'^(\w+) *=', text, re.M))
    assert keys == {f.name for f in fields(Settings)} - {'file'}
    assert all('#' in line for line in text.splitlines() if re.match(r'^\w+ *=', line))
    os.environ['MODDIST_SETTINGS'] = str(ROOT/'settings.ini')
    assert settings().file.endswith('settings.ini')
