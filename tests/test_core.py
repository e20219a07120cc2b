"""Settings, seeds, atomic writes and errors: who wins, what is refused by name, and what is left behind when things go wrong."""
import errno
import os
import threading
import pickle
import signal as signal_
import subprocess
import sys
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from moddist import core
from moddist.core import (MODALITIES, DataError, ModdistError, Settings, SettingsError, atomic, device, read_json, rng,
                          seed_all, settings, signal, write_json)


def python(code, *args, **env):
    "Standard output of a fresh interpreter"
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_line(error):
    "The message of a caught error, which must be one line"
    text = str(error.value)
    assert text and '\n' not in text
    return text


# ---------------------------------------------------------------- settings

def ini(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(['[moddist]', *lines]) + '\n')
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    "A project folder with a work folder below, and a user config folder, all without settings; the variable is unset"
    monkeypatch.delenv('MODDIST_SETTINGS')
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path/'config'))
    work = tmp_path/'project'/'deep'/'work'
    work.mkdir(parents=True)
    (tmp_path/'settings.ini').unlink()
    return tmp_path, work


def test_precedence_of_settings(places, monkeypatch):
    "Variable, then the nearest file upwards, then the user's file, then what is built in: each is taken when the ones before are gone"
    top, work = places
    order = [ini(top/'named.ini', 'seed = 1'), ini(work/'settings.ini', 'seed = 2'), ini(top/'project'/'settings.ini', 'seed = 3'), ini(top/'config'/'moddist'/'settings.ini', 'seed = 4')]
    monkeypatch.setenv('MODDIST_SETTINGS', str(order[0]))
    for n, file in enumerate(order, 1):
        found = settings(work)
        assert (found.seed, found.file) == (n, str(file))
        file.unlink()
        monkeypatch.delenv('MODDIST_SETTINGS', raising=False)
    assert settings(work) == Settings() and settings(work).file == ''


def test_settings_start_at_the_working_directory(places, monkeypatch):
    top, work = places
    ini(top/'project'/'settings.ini', 'seed = 3')
    monkeypatch.chdir(work)
    assert settings().seed == 3


def test_settings_of_other_tools_are_passed_over(places):
    "A settings.ini without our section (nbdev 2, other projects) is not ours, and does not hide ours further up"
    top, work = places
    (work/'settings.ini').write_text('[DEFAULT]\nlib_name = other\n')
    ini(top/'settings.ini', 'seed = 5')
    assert settings(work).seed == 5


def test_variable_that_names_no_file_is_an_error(places, monkeypatch):
    monkeypatch.setenv('MODDIST_SETTINGS', '/nowhere/at/all.ini')
    with pytest.raises(SettingsError) as e: settings()
    assert '/nowhere/at/all.ini' in one_line(e)


def test_folders_are_relative_to_the_file_and_home_is_expanded(places):
    top, work = places
    ini(work/'settings.ini', 'ntu = ../ntu', 'urfd = ~/urfd', 'utd_mhad =', 'runs = /abs')
    s = settings(work)
    assert s.path('ntu') == (work.parent/'ntu').resolve() and s.path('urfd') == Path.home()/'urfd'
    assert s.utd_mhad == '' and s.runs == '/abs'


def test_comments_percent_signs_and_unicode_in_values(places):
    top, work = places
    ini(work/'settings.ini', 'ntu = /data/50%/ntü   # where they are', 'seed = 7 # lucky')
    assert settings(work).ntu == '/data/50%/ntü' and settings(work).seed == 7


@pytest.mark.parametrize('line, words', [
    ('sede = 3', ["unknown key 'sede'", 'seed']), ('seed = three', ['seed = three', 'whole number']), ('workers = 1.5', ['workers = 1.5', 'whole number']),
    ('workers = -1', ['workers = -1', '0 or more']), ('precision = fp8', ['precision = fp8', 'fp32, fp16']), ('file = x', ["unknown key 'file'"]), ('cache_mb =', ['cache_mb', 'whole number'])])
def test_bad_settings_are_refused_by_name(places, line, words):
    _, work = places
    file = ini(work/'settings.ini', line)
    with pytest.raises(SettingsError) as e: settings(work)
    assert str(file) in one_line(e)
    for w in words: assert w in str(e.value)


@pytest.mark.parametrize('text', ['[moddist]\nseed = 1\nseed = 2\n', '[moddist]\nseed\n', 'seed = 1\n[moddist]\n', '[moddist]\n[moddist]\n'])
def test_a_file_that_is_no_ini_is_refused_in_one_line(places, text):
    _, work = places
    (work/'settings.ini').write_text(text)
    with pytest.raises(SettingsError) as e: settings(work)
    assert str(work/'settings.ini') in one_line(e)


def test_a_variable_on_a_file_without_our_section(places, monkeypatch):
    top, _ = places
    (top/'other.ini').write_text('[DEFAULT]\nseed = 1\n')
    monkeypatch.setenv('MODDIST_SETTINGS', str(top/'other.ini'))
    with pytest.raises(SettingsError) as e: settings()
    assert 'other.ini' in one_line(e)


def test_every_setting_can_be_set(places):
    "Each key is read from the file in the type of its default"
    _, work = places
    new = dict(device='cpu', precision='fp16') | {f.name: 3 if isinstance(f.default, int) else '/x' for f in fields(Settings) if f.name not in ('file', 'device', 'precision')}
    ini(work/'settings.ini', *(f'{k} = {v}' for k, v in new.items()))
    assert {k: getattr(settings(work), k) for k in new} == new


@pytest.mark.parametrize('name', ['gpu', 'cuda:x', 'cpu 1'])
def test_unknown_device(name):
    with pytest.raises(SettingsError) as e: device(name)
    assert name in one_line(e)


def test_device_from_settings(places, monkeypatch):
    _, work = places
    ini(work/'settings.ini', 'device = meta')
    monkeypatch.chdir(work)
    assert device() == torch.device('meta') and device('cpu') == torch.device('cpu')


# ---------------------------------------------------------------- seeds

KEYS = [(0,), (0, 1, 'clip'), ('0', 1, 'clip'), (1, 0, 'clip'), (2**40, 'ü', -3)]


def test_rng_depends_on_its_key_only():
    "The same numbers in another process under another hash seed, whatever was drawn before; another key, other numbers"
    here = [rng(*k).integers(2**60, size=4).tolist() for k in KEYS]
    np.random.random(7), torch.rand(3), rng(0).random(100)
    code = f'import random; from moddist.core import rng; random.random(); print([rng(*k).integers(2**60, size=4).tolist() for k in {KEYS}])'
    assert python(code, PYTHONHASHSEED='1') == f'{here}\n'
    assert len({tuple(x) for x in here}) == len(KEYS)


def test_rng_leaves_the_global_generators_alone():
    seed_all(3); a = np.random.random(), torch.rand(1).item()
    seed_all(3); rng('x').random(50); b = np.random.random(), torch.rand(1).item()
    assert a == b


@pytest.mark.parametrize('seed', [0, 2**32, 2**63 - 1])
def test_seed_all_takes_any_seed_and_repeats(seed):
    import random
    def drawn(): seed_all(seed); return random.random(), np.random.random(), torch.rand(1).item()
    assert drawn() == drawn()


# ---------------------------------------------------------------- atomic

def write(tmp, kind, text='new'):
    "Put something at `tmp`, a file or a folder with two files"
    if kind == 'file': tmp.write_text(text)
    else: tmp.mkdir(); (tmp/'a').write_text(text); (tmp/'b').write_text(text)


def content(path):
    return {p.name: p.read_text() for p in path.iterdir()} if path.is_dir() else path.read_text() if path.exists() else None


KINDS = pytest.mark.parametrize('kind', ['file', 'folder'])


@KINDS
def test_atomic_shows_all_or_nothing(tmp_path, kind):
    "Nothing at the destination while writing, everything after; parent folders are made"
    path = tmp_path/'new'/'deep'/'it'
    with atomic(path) as tmp:
        write(tmp, kind)
        assert not path.exists() and tmp.parent == path.parent
    assert content(path) == ('new' if kind == 'file' else dict(a='new', b='new')) and os.listdir(path.parent) == ['it']


@KINDS
@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, SystemExit])
def test_atomic_leaves_nothing_after_an_error(tmp_path, kind, error):
    with pytest.raises(error), atomic(tmp_path/'out'/'it') as tmp:
        write(tmp, kind)
        raise error
    assert os.listdir(tmp_path/'out') == []


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_atomic_keeps_the_old_file(tmp_path, error):
    path = tmp_path/'it'
    path.write_text('old')
    with pytest.raises(error), atomic(path) as tmp:
        tmp.write_text('ne')
        raise error
    assert content(path) == 'old' and sorted(os.listdir(tmp_path)) == ['it', 'settings.ini']


def test_others_may_read_what_they_may_read_of_any_new_file(tmp_path):
    "Whatever a writer thinks: safetensors keeps its files to their owner, a group shares a folder of runs"
    (tmp_path/'plain').write_text('')
    with atomic(tmp_path/'it') as tmp: tmp.write_text('new'); tmp.chmod(0o600)
    assert (tmp_path/'it').stat().st_mode == (tmp_path/'plain').stat().st_mode


def test_atomic_replaces_the_old_file(tmp_path):
    (tmp_path/'it').write_text('old')
    with atomic(tmp_path/'it') as tmp: tmp.write_text('new')
    assert content(tmp_path/'it') == 'new'


@KINDS
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full on this system')
def test_full_disk(tmp_path, kind):
    "A real ENOSPC becomes one line that names the file that was wanted; nothing half-written stays"
    with pytest.raises(ModdistError) as e, atomic(tmp_path/'out'/'it') as tmp:
        target = tmp
        if kind == 'folder': tmp.mkdir(); (tmp/'a').write_text('whole'); target = tmp/'b'
        target.symlink_to('/dev/full')
        target.write_text('x'*100_000)
    assert str(tmp_path/'out'/'it') in one_line(e) and 'no space left' in str(e.value) and '.partial' not in str(e.value)
    assert os.listdir(tmp_path/'out') == []


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full on this system')
def test_full_disk_while_writing_videos_and_depth(tmp_path, monkeypatch):
    "The encoders' own ways of failing arrive as the same line"
    from moddist.files import write_png16, write_video
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/f'.partial-{os.getpid()}-{threading.get_native_id()}-v.avi').symlink_to('/dev/full')
    (tmp_path/'out'/'full.png').symlink_to('/dev/full')
    for call in (lambda: write_video(tmp_path/'out'/'v.avi', frames), lambda: write_png16(tmp_path/'out'/'d', frames[..., 0].astype(np.uint16), '../full.png')):
        with pytest.raises(ModdistError) as e: call()
        assert 'no space left' in one_line(e)
    assert os.listdir(tmp_path/'out') == ['full.png']


def test_full_disk_reported_by_another_library(tmp_path):
    "safetensors raises its own class, without errno"
    from safetensors import SafetensorError
    with pytest.raises(ModdistError) as e, atomic(tmp_path/'model'):
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    assert 'no space left' in one_line(e)


def test_other_os_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), atomic(tmp_path/'it'): raise PermissionError(errno.EACCES, 'no')


@pytest.mark.skipif(sys.platform == 'win32', reason='no fork')
def test_killed_writer_leaves_no_destination(tmp_path):
    "SIGKILL in the middle: the destination does not exist, and the next writer is not disturbed by what the dead one left"
    def half():
        with atomic(tmp_path/'it') as tmp: tmp.write_text('half'); os.kill(os.getpid(), signal_.SIGKILL)
    child = get_context('fork').Process(target=half)
    child.start(); child.join()
    assert child.exitcode == -signal_.SIGKILL and not (tmp_path/'it').exists()
    assert [p.name for p in tmp_path.glob('.partial-*')]
    with atomic(tmp_path/'it') as tmp: tmp.write_text('whole')
    assert content(tmp_path/'it') == 'whole'


# ---------------------------------------------------------------- JSON and errors

def test_json_round_trip_and_damage(tmp_path):
    data = dict(rows=[1, 2.5, None, 'ü'], deep={'a': [True]})
    path = write_json(tmp_path/'a'/'r.json', data)
    assert read_json(path) == data
    for n in range(0, len(path.read_text().rstrip()), 7):
        (tmp_path/'cut.json').write_text(path.read_text()[:n])
        with pytest.raises(DataError) as e: read_json(tmp_path/'cut.json')
        assert 'cut.json' in one_line(e)
    with pytest.raises(DataError) as e: read_json(tmp_path/'none.json')
    assert 'none.json' in one_line(e)


def test_errors_stay_one_line_inside_fastai():
    "fastai rewrites the arguments of errors raised inside a callback and appends lines; ours keep their line, also when pickled"
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    line = 'clip 7: no file for depth; drop it'
    class Fails(Callback):
        def before_batch(self): raise DataError(line)
    dl = [(torch.zeros(2, 3), torch.zeros(2).long())]
    learn = Learner(DataLoaders(dl, dl), torch.nn.Linear(3, 2), loss_func=torch.nn.functional.cross_entropy, cbs=[Fails()])
    learn.remove_cb(ProgressCallback)
    with pytest.raises(DataError) as e: learn.fit(1)
    assert e.value.args != (line,)                    # fastai did rewrite them: the test tests something
    assert one_line(e) == line
    assert str(pickle.loads(pickle.dumps(DataError(line)))) == line


@pytest.mark.parametrize('name', ['DataError', 'ProtocolError', 'SettingsError', 'ModelError'])
def test_every_error_is_ours(name):
    assert issubclass(getattr(core, name), ModdistError)


# ---------------------------------------------------------------- signals

def test_signals():
    assert signal('depth').key == 'depth' and str(signal('view2:rgb')) == 'view2:rgb' and str(signal('rgb:rgb')) == 'rgb'
    assert signal(signal('view2:rgb')) == signal('view2:rgb') and signal('view2:rgb').modality is MODALITIES['rgb']


@pytest.mark.parametrize('bad', ['RGB', '', 'view2', 'view2:', 'rgb:lidar', 'depth '])
def test_unknown_modality(bad):
    with pytest.raises(DataError) as e: signal(bad)
    assert 'expected one of' in one_line(e)
