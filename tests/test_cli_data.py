"""`moddist data`: from a folder to a store, as a shell does it; every bad input is one line and exit code 1 or 2."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import can_be_interrupted
from typer.testing import CliRunner

from moddist.catalogue import CATALOGUE, clip_index, published_counts
from moddist.cli_data import _option, _shard, app
from moddist.core import DataError, ModdistError, ProtocolError
from moddist.datasets import own
from moddist.files import write_png16, write_video


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Recordings of four people, two classes, as one folder per modality"
    root, rng = tmp_path_factory.mktemp('recordings'), np.random.default_rng(0)
    for p in range(4):
        for c in ('wave', 'nod'):
            x = rng.integers(0, 255, (10, 48, 64, 3)).astype(np.uint8)
            write_video(root/'rgb'/c/f'person{p}_{c}.mp4', x)
            write_png16(root/'depth'/c/f'person{p}_{c}', (1000 + x[..., 0].astype(np.uint16)))
    return root


def moddist(*args, code=0):
    r = CliRunner().invoke(app, [str(a) for a in args])
    if isinstance(r.exception, ModdistError): assert code == 1, r.exception; return str(r.exception)
    assert r.exit_code == code, (r.exit_code, r.output, r.exception)
    return r.output


def test_the_whole_way(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = moddist('index', 'own', folder, '--out', 'clips.csv', '--option', 'group=none')
    assert '8 clips, 2 classes' in said
    df = own.read_index('clips.csv')
    assert set(df.split) == {'train', 'valid', 'test'} and df.rgb.notna().all() and df.depth.notna().all()
    assert 'nothing wrong' in moddist('doctor', 'clips.csv')
    for shard in ('0/2', '1/2'): said = moddist('prepare', 'clips.csv', '--out', 'store', '--shard', shard, '--short-side', 48)
    assert '8 of 8 clips' in said and 'every file is as it was written' in moddist('verify', 'store')
    moddist('make', 'flow', 'clips.csv', '--out', 'store')
    made = own.read_index('store/with-flow.csv')
    assert made.flow.notna().all()
    moddist('show', 'clips.csv', df.clip_id[3], '--out', 'clip.html'); moddist('card', 'clips.csv', '--out', 'card.html')
    assert (tmp_path/'clip.html').stat().st_size > 1e6 and 'clips per class' in (tmp_path/'card.html').read_text()
    next((tmp_path/'store').rglob('rgb*.zip')).write_bytes(b'damaged')
    assert 'rgb' in moddist('verify', 'store', code=1)


def test_the_doctor_fails_on_errors_and_writes_what_is_good(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moddist('index', 'own', folder, '--out', 'clips.csv', '--option', 'group=none')
    df = own.read_index('clips.csv')
    (tmp_path/'torn.mp4').write_bytes(open(df.rgb[0], 'rb').read()[:1000])
    df.loc[0, 'rgb'] = str(tmp_path/'torn.mp4')
    own.write_index(df, 'bad.csv')
    assert 'torn.mp4' in moddist('doctor', 'bad.csv', '--clean', 'good.csv', '--html', 'faults.html', code=1)
    assert len(own.read_index('good.csv')) == 7 and (tmp_path/'faults.html').is_file()
    assert 'torn.mp4' in moddist('prepare', 'bad.csv', '--out', 'store', code=1)
    assert 'skipped' in moddist('prepare', 'bad.csv', '--out', 'store', '--skip-errors')


@pytest.mark.parametrize('args, words', (
    (('doctor', 'nowhere.csv'), 'nowhere.csv'), (('index', 'kinetics', '.'), 'kinetics'), (('index', '.'), 'data index own .'), (('index', 'ntu', '.', '--protocol', 'cross-anything'), 'cross-anything'),
    (('index', 'own', '.', '--option', 'group'), 'name=value'), (('index', 'uwa3d'), 'settings.ini'), (('make', 'flow'), 'of which clips'), (('verify', 'nowhere'), 'nowhere')))
def test_bad_input_is_one_line(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    said = moddist(*args, code=1)
    assert words in said and '\n' not in said.strip()


def test_bad_usage_is_exit_code_2():
    for args in ((), ('fly',), ('doctor',), ('prepare', 'x', '--workers', '0')):
        r = subprocess.run([sys.executable, '-c', 'from moddist.cli import main; main()', 'data', *args], capture_output=True, text=True)
        assert r.returncode == 2 and 'Traceback' not in r.stderr


@pytest.mark.parametrize('text', ('4/4', '-1/4', 'a/b', '3', '1/0'))
def test_shards_that_are_none(text):
    with pytest.raises(DataError, match='expected i/n'): _shard(text)


def test_options():
    assert [_option(t) for t in ('a=1', 'b=x=y', 'c=true', 'd=none', 'e=-2', 'f=.5')] == [('a', 1), ('b', 'x=y'), ('c', True), ('d', None), ('e', -2), ('f', .5)]


def test_the_catalogue_is_whole():
    "Every entry has a module with an index, a protocol, and a root in the settings"
    from dataclasses import fields
    from moddist.core import Settings
    for e in CATALOGUE.values():
        assert callable(e.code.index) and e.protocols and (e.name == 'synthetic' or e.name in {f.name for f in fields(Settings)})
    with pytest.raises(ProtocolError, match='cross-view'): clip_index('ntu', '.', 'x')
    assert published_counts('own', pd.DataFrame()) is None


def test_tables_of_a_persons_own(folder, tmp_path, monkeypatch):
    "Words as labels are understood by every command; a split that is given stays; the table is never overwritten"
    monkeypatch.chdir(tmp_path)
    moddist('index', 'own', folder, '--out', 'made.csv', '--option', 'group=none')
    df = own.read_index('made.csv')
    mine = pd.DataFrame(dict(clip_id=df.clip_id, label=df.action, rgb=df.rgb, split=df.split, Subject=[f'p{i % 4}' for i in range(len(df))]))
    mine.to_csv('mine.csv', index=False)
    moddist('prepare', 'mine.csv', '--signals', 'rgb', '--out', 'store', '--short-side', 48)
    assert own.read_index('store/index.csv').label.tolist() == df.label.tolist()
    assert 'divide anew' in moddist('index', 'own', 'mine.csv', '--group', 'subject', '--out', 'x.csv', code=1)
    before = open('mine.csv').read()
    assert 'overwritten' in moddist('index', 'own', 'mine.csv', '--out', 'mine.csv', code=1) and open('mine.csv').read() == before
    moddist('show', 'mine.csv', '--out', 'only_rgb.html')                                  # no depth: the panes are what there is


def test_make_after_prepare_keeps_both(folder, tmp_path, monkeypatch):
    "The order of the README: the last index has the prepared signals and the made one, all in the store"
    monkeypatch.chdir(tmp_path)
    moddist('index', 'own', folder, '--out', 'clips.csv', '--option', 'group=none')
    moddist('prepare', 'clips.csv', '--out', 'store', '--short-side', 48)
    moddist('make', 'flow', 'store/index.csv', '--out', 'store')
    df = own.read_index('store/with-flow.csv')
    for k in ('rgb', 'depth', 'flow'): assert df[k].notna().all() and all('store' in p for p in df[k])
    moddist('card', 'store/with-flow.csv')


def test_ctrl_c_is_one_line(folder, tmp_path):
    "Interrupted in the middle of prepare: exit code 1, one line, and the next call completes the store"
    own.write_index(clip_index('own', folder, group=None), tmp_path/'clips.csv')
    code = ('import signal, os, moddist.store as s\nwas, n = s._prepare_signal, [0]\n'
            'def slow(*a):\n    n[0] += 1\n    if n[0] == 4: os.kill(os.getpid(), signal.SIGINT)\n    return was(*a)\n'
            's._prepare_signal = slow\nfrom moddist.cli import main\nmain()')
    args = [sys.executable, '-c', code, 'data', 'prepare', str(tmp_path/'clips.csv'), '--out', str(tmp_path/'store'), '--short-side', '48']
    r = subprocess.run(args, capture_output=True, text=True, preexec_fn=can_be_interrupted)
    assert r.returncode == 1 and 'interrupted' in r.stderr and 'Traceback' not in r.stderr
    assert '8 of 8 clips' in moddist('prepare', tmp_path/'clips.csv', '--out', tmp_path/'store', '--short-side', 48)
