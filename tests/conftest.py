"""Shared by all tests: where real data lies, and settings that no user file can change."""
import os
import signal
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
