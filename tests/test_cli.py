"""The `moddist` command: what it offers, how it fails, and one miniature run of the whole demo."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import test_browser
from conftest import can_be_interrupted
from moddist import cli, synthetic
from moddist.core import read_json
from moddist.data import test_dl as make_test_dl
from moddist.evaluate import evaluate_run, predict
from moddist.models import load_model
from moddist.recipes import Garcia2018
from moddist.runs import loaders

torch.set_num_threads(1)
browser, tab = test_browser.browser, test_browser.page                        # fixtures: a browser, and a page without a network that remembers problems
COMMANDS = ['demo', 'data', 'inspect', 'preflight', 'evaluate', 'stress', 'export', 'predict', 'doctor']
SCRIPT = Path(sys.executable).with_name('moddist')
MODDIST = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, '-c', 'from moddist.cli import main; main()']


@pytest.fixture
def call(monkeypatch, capsys):
    "Run the command in this process: (exit code, standard output, standard error)"
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['moddist', *map(str, args)])
        code = 0
        try: cli.main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
            if isinstance(e.code, str): print(e.code, file=sys.stderr)
        return code, *capsys.readouterr()
    return run


def failed(result, *words, code=1):
    "One line on standard error with these words, nothing on standard output, no traceback"
    got, out, err = result
    assert got == code, err
    assert out == '' and err.count('\n') == 1 and err.startswith('moddist: ') and 'Traceback' not in err
    for w in words: assert str(w) in err, err


# ---------------------------------------------------------------- help and usage

@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_lists_exactly_what_there_is(call, flag):
    code, out, err = call(flag)
    assert (code, err) == (0, '')
    listed = re.findall(r'^ {2}(\w+) {2,}\S', out.partition('Commands:')[2], re.M)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_explains_itself_with_examples(call, command):
    code, out, err = call(command, '--help')
    assert code == 0 and re.search(rf'Examples?: +moddist {command}', ' '.join(out.split()))
    options = re.findall(r'^ +(--\w[\w-]*)', out, re.M)
    assert '--help' in ' '.join(out.split()) and len(options) == len(set(options))


@pytest.mark.parametrize('args', [['frobnicate'], ['demo', '--frobnicate'], ['demo', '--seed', 'three'], ['inspect'], ['inspect', 'a', 'b'], ['inspect', 'a', '--clips', '0'], ['--frobnicate']])
def test_bad_usage_is_2(call, args):
    code, out, err = call(*args)
    assert code == 2 and out == '' and 'Usage:' in err and 'Traceback' not in err
    assert any(a.strip('-') in err or 'RUN' in err for a in args)


def test_help_is_instant():
    "Neither the help of the command nor that of its parts imports torch or anything as heavy"
    code = ('import sys\nfrom moddist.cli import main\n'
            'for args in ([], ["--help"], *([c, "--help"] for c in %r), ["frobnicate"]):\n'
            '    sys.argv = ["moddist", *args]\n'
            '    try: main()\n'
            '    except SystemExit: pass\n'
            'heavy = {"torch", "fastai", "numpy", "pandas", "torchvision", "plotly", "decord", "av", "cv2"} & set(sys.modules)\n'
            'assert not heavy, heavy' % COMMANDS)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- failing well

def test_settings_that_are_wrong(call, tmp_path):
    (tmp_path/'settings.ini').write_text('[moddist]\nsede = 3\n')
    failed(call('demo', '--fast', '--out', tmp_path/'run'), "unknown key 'sede'", 'settings.ini')
    assert not (tmp_path/'run').exists()


def test_an_unexpected_error_is_one_line_too(call, monkeypatch):
    def broken(*args): raise RuntimeError('first line\nsecond line')
    monkeypatch.setattr(cli, 'demo', broken)
    failed(call('demo'), 'RuntimeError: first line', '--debug')


@pytest.mark.parametrize('error', [RuntimeError('why'), KeyError('x'), ZeroDivisionError()])
def test_debug_shows_where(call, monkeypatch, error):
    def broken(*args): raise error
    monkeypatch.setattr(cli, 'demo', broken)
    with pytest.raises(type(error)): call('--debug', 'demo')
    failed(call('demo'), type(error).__name__)                     # and is not remembered


def test_debug_traceback_in_a_real_process(tmp_path):
    done = subprocess.run([*MODDIST, '--debug', 'inspect', str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback (most recent call last)' in done.stderr and 'holds no run' in done.stderr


def wrapped(*args):
    "What Python 3.11 and older do with an interrupt that falls into a class body: `__set_name__` turns it into another error"
    try: raise KeyboardInterrupt
    except KeyboardInterrupt as e: raise RuntimeError('Error calling __set_name__') from e


def plain(*args): raise KeyboardInterrupt


@pytest.mark.parametrize('slow', [plain, wrapped])
def test_interrupted(call, monkeypatch, slow):
    monkeypatch.setattr(cli, 'demo', slow)
    failed(call('demo'), 'interrupted', 'run the same command again')


def test_doctor(call, tmp_path):
    code, out, err = call('doctor')
    assert code == 0, out
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert all(line.startswith('ok ') for line in lines.values())
    assert {'python', 'moddist', 'torch', 'fastai', 'decord', 'av', 'device', 'video', 'settings'} <= set(lines)
    assert 'exact' in lines['video'] and str(tmp_path/'settings.ini') in lines['settings'] and lines['torch'].split()[-1] == torch.__version__.partition('+')[0]


@pytest.mark.parametrize('line, bad', [('ntu = /nowhere', 'ntu'), ('device = gpu', 'device'), ('seed = x', 'settings')])
def test_doctor_finds_what_is_wrong(call, tmp_path, line, bad):
    (tmp_path/'settings.ini').write_text(f'[moddist]\n{line}\n')
    code, out, err = call('doctor')
    assert code == 1 and 'Traceback' not in err
    wrong = [row for row in out.splitlines() if row.startswith('BAD')]
    assert bad in {row.split()[1] for row in wrong}


def test_doctor_notices_a_decoder_that_lies(call, monkeypatch):
    from moddist import files
    real = files.read_video
    monkeypatch.setattr(files, 'read_video', lambda *args: real(*args)[::-1])
    code, out, err = call('doctor')
    assert code == 1 and 'BAD  video round trip   frames differ' in out


# ---------------------------------------------------------------- inspect without a run

@pytest.mark.parametrize('serve', [[], ['--serve']])
def test_inspect_without_a_run(call, tmp_path, serve):
    failed(call('inspect', tmp_path/'none', *serve), tmp_path/'none', 'holds no run')
    failed(call('inspect', tmp_path, *serve), tmp_path, 'holds no run')
    (tmp_path/'file').touch()
    failed(call('inspect', tmp_path/'file', *serve), 'holds no run')
    assert not list(tmp_path.rglob('*.html')) and not list(tmp_path.rglob('*.ipynb'))


# ---------------------------------------------------------------- the demo, once

@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    "`moddist demo --fast` in a process of its own: (folder of the run, output, its settings file)"
    folder = tmp_path_factory.mktemp('demo')
    ini = folder/'settings.ini'
    ini.write_text(f'[moddist]\nembedded = {folder}/embedded\ndevice = cpu\nthreads = 1\n')
    done = subprocess.run([*MODDIST, 'demo', '--fast', '--out', str(folder/'run')], capture_output=True, text=True, cwd=folder, env={**os.environ, 'MODDIST_SETTINGS': str(ini), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return folder/'run', done, ini


@pytest.fixture
def here(demo, monkeypatch):
    "The run of the demo, with its settings in force"
    monkeypatch.setenv('MODDIST_SETTINGS', str(demo[2]))
    return demo[0]


@pytest.fixture
def copy(here, tmp_path):
    "A copy of the run that may be damaged"
    return Path(shutil.copytree(here, tmp_path/'copy'))


def weights(run): return {p.parent.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob('*.safetensors')}


STEPS = {'rgb': (1, 'rgb'), 'depth': (1, 'depth'), 'rgb+depth': (2, 'rgb+depth'), 'hallucination': (3, 'rgb'), 'rgb+hallucination': (4, 'rgb'), 'rgb+rgb': (0, 'rgb'), 'student': (0, 'rgb')}


def test_demo_keeps_its_contract(demo):
    "results.json as promised: data set, protocol, seed, and one row per model"
    out = demo[0]
    found = json.loads((out/'results.json').read_text())
    assert (found['dataset'], found['protocol'], found['seed']) == ('synthetic', 'cross-subject', 0)
    rows = {r['name']: r for r in found['rows']}
    assert len(rows) == len(found['rows']) and set(STEPS) <= set(rows)
    for name, (step, reads) in STEPS.items(): assert (rows[name]['step'], rows[name]['test_input']) == (step, reads)
    for r in rows.values():
        assert {'name', 'step', 'test_input', 'top1', 'ece', 'n', 'params', 'seconds'} <= set(r)
        assert 0 <= r['top1'] <= 1 and 0 <= r['ece'] <= 1 and r['n'] == 30 and r['seconds'] >= 0
        assert round(r['top1']*r['n']) == pytest.approx(r['top1']*r['n'], abs=.01)
    assert rows['rgb']['params'] == 93_330 and rows['rgb+hallucination']['params'] == rows['rgb+rgb']['params'] == rows['rgb+depth']['params'] == 2*93_330
    assert rows['rgb']['seconds'] > 0 and {'moddist', 'torch', 'python'} <= set(found['environment'])


def test_demo_leaves_whole_files_and_a_readable_answer(demo):
    out, done, _ = demo
    assert {'results.json', 'report.html', 'inspect.html', 'run.json'} <= {p.name for p in out.iterdir()}
    assert not list(out.parent.rglob('.partial-*'))
    for r in read_json(out/'results.json')['rows']:
        line = next(l for l in done.stdout.splitlines() if l.split()[:1] == [r['name']])
        assert f'{100*r["top1"]:.1f}' in line and f'{r["params"]:,}' in line
    assert str(out/'report.html') in done.stdout and 'Traceback' not in done.stderr and 'Warning' not in done.stderr


def test_pages_need_no_network(demo):
    for name in ('report.html', 'inspect.html'):
        page = (demo[0]/name).read_text(encoding='utf-8')
        assert page.lstrip().lower().startswith('<!doctype html') and page.rstrip().endswith('</html>') and len(page) < 8*2**20
        assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//|@import|url\(\s*["\']?https?:|fetch\(', page)
    page = (demo[0]/'report.html').read_text(encoding='utf-8')
    for r in read_json(demo[0]/'results.json')['rows']: assert f'<td>{r["name"]}</td>' in page


def test_report_says_everything_about_the_run(demo):
    "Every section, with the numbers of results.json and of the gap report; the drawing library once; settings, seed, versions and the command"
    from html import unescape
    from moddist.gap import gap_run
    page, found = (demo[0]/'report.html').read_text(encoding='utf-8'), read_json(demo[0]/'results.json')
    for key in ('results', 'gap', 'maps', 'terms', 'reliability', 'confusion', 'noise', 'again'): assert page.count(f'<section class="card" id="{key}"') == 1, key
    assert page.count('<script type="text/plain" id="plotly">') == 1 and page.count('<iframe') == 1 and 'Not in this report' not in page
    assert unescape(page).count(gap_run(demo[0]).headline) == 1
    rows = re.findall('<tr>(.*?)</tr>', page.partition('id="gap"')[0], re.S)
    cells = {c[0]: c[1:] for r in rows if (c := re.findall('<td>(.*?)</td>', r))}
    assert len(cells) == len(found['rows'])
    for r in found['rows']:
        c = cells[r['name']]
        lo, hi = (float(v) for v in c[3].split(' to '))
        assert (c[0], c[2], c[5], c[6]) == (r['test_input'], f'{100*r["top1"]:.1f}', f'{100*r["ece"]:.1f}', f'{r["params"]:,}') and lo < 100*r['top1'] < hi
    for text in ('<dt>seed</dt><dd>0</dd>', f'<dt>torch</dt><dd>{torch.__version__.partition("+")[0]}', 'demo --fast --out', found['index']): assert text in page


def test_noise_curve_is_that_of_the_stress_chapter(here):
    "The same keyed noise: rows equal those of `stress_run`; without noise, the table's number; the crossing is kept with them"
    from moddist.stress import curve, stress_run
    found = read_json(here/'results.json')
    want = {(r.model, r.level): round(r.top1, 4) for r in curve(stress_run(here, 'noise', (0., .3, 1., 3.))).itertuples()}
    assert {(r['name'], r['sigma']): r['top1'] for r in found['noise']} == want and len(want) == 8
    clean = {r['name']: r['top1'] for r in found['rows']}
    assert all(r['top1'] == clean[r['name']] and r['lo'] <= r['top1'] <= r['hi'] and r['n'] == 30 for r in found['noise'] if r['sigma'] == 0)
    assert (found['crossing']['better'], found['crossing']['worse']) == ('rgb+hallucination', 'rgb+depth')


@pytest.mark.browser
@pytest.mark.parametrize('width', [480, 1280])
def test_report_in_a_browser(demo, tab, width):
    "Every figure draws without a network and without a complaint; nothing is cut off sideways; the inspector inside is as high as what it shows and answers"
    tab.set_viewport_size(dict(width=width, height=900))
    tab.goto((demo[0]/'report.html').as_uri())
    tab.wait_for_selector('body[data-ready]')
    assert tab.locator('.figure').count() == tab.locator('.figure .main-svg:first-child').count() >= 7 and tab.evaluate('document.documentElement.scrollWidth') <= width
    inside = tab.frame_locator('iframe')
    inside.locator('canvas').first.wait_for()
    tab.wait_for_function('() => { const f = document.querySelector("iframe"); return Math.abs(f.offsetHeight - f.contentDocument.documentElement.offsetHeight) < 20 && f.offsetHeight > 600; }')
    if os.environ.get('MODDIST_SCREENSHOTS'): tab.screenshot(path=str(Path(os.environ['MODDIST_SCREENSHOTS'])/f'report_{width}.png'), full_page=True)


def test_a_number_of_the_table_by_hand(here):
    "Accuracy of one row, from its weights and the pixels, without the library's loaders: PyAV, central window, mean frame subtracted"
    import av
    c = read_json(here/'run.json')['settings']
    df = synthetic.index(here.parent/'embedded'/'fast')
    test = df[df.split == 'test']
    clips = []
    for path in test.rgb:
        with av.open(path) as box: x = np.stack([f.to_ndarray(format='rgb24') for f in box.decode(video=0)])
        x = x[np.linspace(0, len(x) - 1, 8).astype(int), 2:50, 2:50].transpose(3, 0, 1, 2)/255
        clips.append((x - x.mean(1, keepdims=True))/.27)
    assert c['clip_len'] == 8 and c['crop'] == 48 and c['size'] is None
    with torch.no_grad(): guess = load_model(here/'rgb'/'model.safetensors')(torch.tensor(np.stack(clips), dtype=torch.float32)).argmax(1)
    rows = {r['name']: r for r in read_json(here/'results.json')['rows']}
    assert rows['rgb']['top1'] == pytest.approx((guess.numpy() == test.label.to_numpy()).mean(), abs=1e-4)


@pytest.mark.golden(21)
def test_step_4_never_reads_depth(here):
    "With depth files that do not exist, are not named, or have no column, the fused RGB model gives identical numbers; the one that reads depth fails"
    df = synthetic.index(here.parent/'embedded'/'fast')
    c = Garcia2018(**read_json(here/'run.json')['settings'])
    read = read_json(here/'rgb+hallucination'/'record.json')['test']
    assert read == ['rgb']
    def logits(d, name='rgb+hallucination', read=read):
        return predict(load_model(here/name/'model.safetensors'), make_test_dl(loaders(c, d, read), d[d.split == 'test'])).logits
    whole = logits(df)
    for d in (df.assign(depth='/nowhere'), df.assign(depth=np.nan), df.drop(columns='depth')): assert torch.equal(logits(d), whole)
    with pytest.raises(Exception, match='/nowhere'): logits(df.assign(depth='/nowhere'), 'rgb+depth', ['rgb', 'depth'])


def test_a_second_demo_trains_nothing(here, call):
    before, results = weights(here), read_json(here/'results.json')
    code, out, err = call('demo', '--fast', '--out', here)
    assert code == 0 and weights(here) == before
    assert read_json(here/'results.json') == results
    assert [line.split()[0] for line in out.splitlines()[2:2 + len(results['rows'])]] == [r['name'] for r in sorted(results['rows'], key=lambda r: -r['top1'])]


def test_demo_refuses_the_folder_of_another_run(copy, call):
    before = weights(copy), (copy/'run.json').read_text()
    failed(call('demo', '--fast', '--seed', 1, '--out', copy), copy, 'seed', 'another folder')
    assert (weights(copy), (copy/'run.json').read_text()) == before


def test_inspect(here, call, tmp_path):
    code, out, err = call('inspect', here, '--out', tmp_path/'maps.html', '--clips', 2)
    assert (code, out) == (0, f'wrote {tmp_path}/maps.html\n')
    assert 10_000 < (tmp_path/'maps.html').stat().st_size < (here/'inspect.html').stat().st_size


def test_inspect_of_an_unfinished_run(copy, call):
    "A run that was killed in step 3, or just begun"
    (copy/'inspect.html').unlink()
    (copy/'hallucination'/'record.json').unlink()
    failed(call('inspect', copy), copy, "'hallucination'", 'not finished')
    for p in copy.iterdir():
        if p.name != 'run.json': shutil.rmtree(p) if p.is_dir() else p.unlink()
    failed(call('inspect', copy), copy, 'not finished')
    assert os.listdir(copy) == ['run.json']


def damage(path, how):
    text = path.read_bytes()
    path.write_bytes(text[:len(text)//2] if how == 'cut' else b'')


@pytest.mark.parametrize('file', ['run.json', 'hallucination/model.safetensors', 'depth/model.safetensors'])
@pytest.mark.parametrize('how', ['cut', 'empty'])
def test_inspect_of_a_damaged_run(copy, call, file, how):
    damage(copy/file, how)
    failed(call('inspect', copy), file)


def test_inspect_when_the_data_are_gone_or_changed(copy, call, tmp_path):
    info = read_json(copy/'run.json')
    for root, word in ((tmp_path/'gone', 'gone'), (synthetic.make(tmp_path/'other', train=1, test=1, workers=1), 'not the clips')):
        (copy/'run.json').write_text(json.dumps(info | dict(data=info['data'] | dict(root=str(root)))))
        failed(call('inspect', copy), root, word)


def test_evaluate_run_reads_what_is_there(copy):
    "An unfinished run is evaluated as far as it goes"
    for p in copy.iterdir():
        if p.is_dir() and p.name not in ('rgb', 'depth'): shutil.rmtree(p)
    rows = evaluate_run(copy, synthetic.index(read_json(copy/'run.json')['data']['root']))
    want = {r['name']: r for r in read_json(copy/'results.json')['rows']}
    assert {r['name']: r['top1'] for r in rows} == {n: want[n]['top1'] for n in ('rgb', 'depth')}


def test_ctrl_c_while_training(here, tmp_path):
    "A real SIGINT after the first step: exit code 1, no traceback, whole files only, and the finished step is kept"
    child = subprocess.Popen([*MODDIST, 'demo', '--fast', '--out', str(tmp_path/'run')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=can_be_interrupted, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    until = time.time() + 300
    while not (tmp_path/'run'/'rgb'/'record.json').is_file() and time.time() < until and child.poll() is None: time.sleep(.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1 and out == '' and 'Traceback' not in err and 'moddist: interrupted; what is finished is kept' in err, err
    done = {p.parent.name for p in (tmp_path/'run').glob('*/record.json')}
    assert 'rgb' in done and 'student' not in done and not list(tmp_path.rglob('.partial-*'))
    for name in done: load_model(tmp_path/'run'/name/'model.safetensors')


def test_evaluate_writes_the_gap_report(copy, call):
    "Verdict, intervals and the four roles, as text, JSON and a figure; the predictions lie beside the models"
    code, said, _ = call('evaluate', copy, '--out', copy/'report'/'gap.json')
    assert code == 0 and any(v in said for v in ('BEATS', 'NO DIFFERENCE', 'WORSE')) and '1 seed' in said
    found = read_json(copy/'report'/'gap.json')
    assert 'rgb+hallucination' in str(found) and (copy/'report'/'gap.html').stat().st_size > 1e6
    page = (copy/'report'/'report.html').read_text(encoding='utf-8')
    assert f'wrote {copy/"report"/"report.html"}' in said and f'evaluate {copy} --out' in page and found['headline'].partition(':')[0] in page
    code, _, words = call('evaluate', copy, copy)
    assert code == 1 and 'seed' in words and '\n' not in words.strip()


def test_evaluate_of_a_run_that_has_no_fair_baseline(copy, call):
    "No verdict, and why; the report of what is there, with results.json made anew for the steps that are left"
    for n in ('rgb-long', 'rgb+rgb', 'hallucination'): shutil.rmtree(copy/n)
    code, said, err = call('evaluate', copy)
    page = (copy/'report.html').read_text(encoding='utf-8')
    assert code == 0 and "no verdict: " in said and "'rgb-long'" in said and 'BEATS' not in page and page.count('Not in this report') == 3, err
    left = {r['name'] for r in read_json(copy/'results.json')['rows']}
    assert 'rgb-long' not in left and {'rgb', 'depth', 'rgb+depth'} <= left
    (copy/'run.json').rename(copy/'gone.json')
    failed(call('evaluate', copy), 'holds no run')


def test_stress_and_preflight(copy, call):
    "A curve whose first level is the clean number, a sentence about the crossing; reasons before the expensive steps"
    code, said, _ = call('stress', copy, '--levels', '0,1', '--out', copy/'s.html')
    clean = json.loads((copy/'results.json').read_text())['rows']
    want = next(r['top1'] for r in clean if r['name'] == 'rgb+depth')
    row = next(l.split() for l in said.splitlines() if 'rgb+depth' in l and ' 0.0 ' in l)
    assert code == 0 and any(abs(float(v) - want) < 1e-4 for v in row if v.replace('.', '').isdigit()) and any(w in said for w in ('overtake', 'at least as accurate')) and (copy/'s.html').is_file()
    code, said, _ = call('preflight', copy)
    assert code == 0 and any(w in said for w in ('GO:', 'UNCLEAR:')) and 'held-out' in said
    code, _, words = call('stress', copy, '--levels', 'many')
    assert code == 1 and 'many' in words
