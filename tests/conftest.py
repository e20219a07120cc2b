"""Shared by all tests: where real data lies, and settings that no user file can change."""
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moddist.core import DataError

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('MODDIST_TEST_DATA', ROOT.parent/'shared'/'data'))


def real_data(name: str) -> Path:
    "Folder of a real data set, or a skip that says why"
    path = DATA/name
    if not path.is_dir(): pytest.skip(f'real data not here: {name} (set MODDIST_TEST_DATA)')
    return path


@pytest.fixture(autouse=True)
def _own_settings(tmp_path, monkeypatch):
    "Built-in settings and throw-away folders for every test"
    ini = tmp_path/'settings.ini'
    ini.write_text(f'[moddist]\nembedded = {tmp_path}/embedded\nruns = {tmp_path}/runs\ndevice = cpu\n')
    monkeypatch.setenv('MODDIST_SETTINGS', str(ini))


def can_be_interrupted():
    "For `Popen(preexec_fn=...)`: a child that obeys Ctrl-C also where the test run was started in the background, which ignores it"
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refused(call, *words, kind=DataError):
    "The message of the error that `call` must raise: one line with these words"
    with pytest.raises(kind) as e: call()
    text = str(e.value)
    assert text and '\n' not in text
    for w in words: assert str(w) in text, text
    return text


KILLED = '''import importlib, os, pickle, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from moddist import runs
recipe, df, c, only, last = pickle.loads(Path(sys.argv[1], 'told.pkl').read_bytes())
was, seen = runs.RecipeBar.after_batch, 0
def after_batch(self):
    global seen
    was(self); seen += self.training
    if seen == last: os.kill(os.getpid(), signal.SIGKILL)
runs.RecipeBar.after_batch = after_batch
importlib.import_module(recipe).run(df, Path(sys.argv[1], 'run'), c, only=only)
'''


def killed(folder, recipe, df, c, only, batch):
    "Run a recipe (module with `run`) in a process that gets SIGKILL after so many training batches; the folder of the run it left"
    (folder/'told.pkl').write_bytes(pickle.dumps((recipe, df, c, only, batch)))
    with open(folder/'log', 'wb') as log: child = subprocess.run([sys.executable, '-c', KILLED, folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    assert child.returncode == -signal.SIGKILL, (folder/'log').read_text()
    return folder/'run'
