"The inspector where people use it: a file opened from disk, and a cell in JupyterLab, both in a real browser."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import pytest
from moddist.core import rng
from moddist.viz import FeatureMaps
from moddist.widgets import inspector_html

pytestmark = pytest.mark.browser
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
SHOTS = os.environ.get('MODDIST_SCREENSHOTS') # a folder: keep screenshots there

def maps(name='walk', T=6, same=False, action='walks', n=16):
    "A small clip with two layers; channel 1 of the hallucination is far too strong, channel 2 is dead"
    g = rng('browser', name)
    rgb, depth = g.integers(0, 255, (T, n, n, 3), dtype=np.uint8), g.integers(1500, 4000, (T, n, n)).astype(np.uint16)
    depth[:, :2] = 0
    layers = {}
    for k, (c, h) in {'unit1': (4, 8), 'unit2': (6, 4)}.items():
        real = g.random((c, T, h, h), dtype=np.float32)
        hall = real.copy() if same else np.clip(real + g.normal(0, .2, real.shape), 0, None).astype(np.float32)
        if not same: hall[1] *= 3
        real[2] = hall[2] = 0
        layers[k] = real, hall
    return FeatureMaps(name, rgb, depth, layers, action)

@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    path = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not path: pytest.skip('no chromium on this machine: apt-get install chromium, or set CHROMIUM to its path')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=ARGS)
        yield b
        b.close()

@pytest.fixture
def page(browser):
    "A page without any network that remembers what went wrong"
    context = browser.new_context(viewport={'width': 1280, 'height': 900}, offline=True)
    p = context.new_page()
    p.problems, p.asked = [], []
    p.on('console', lambda m: p.problems.append(m.text) if m.type in ('error', 'warning') else None)
    p.on('pageerror', lambda e: p.problems.append(str(e)))
    p.on('request', lambda r: p.asked.append(r.url) if not r.url.startswith(('data:', 'file:', 'blob:')) else None)
    yield p
    assert not p.problems and not p.asked
    context.close()

def opened(page, tmp_path, clips, **kwargs):
    f = inspector_html(clips, tmp_path/'inspector.html', **kwargs)
    page.goto(f.as_uri())
    page.wait_for_selector('body[data-state]')

def state(page): return json.loads(page.get_attribute('body', 'data-state'))
def reached(page, **want): page.wait_for_function('want => { const s = JSON.parse(document.body.dataset.state); return Object.keys(want).every(k => s[k] === want[k]); }', arg=want)
def pixels(page, pane):
    "The pixels of one pane, uint8 [h, w, 4]"
    w, h, flat = page.evaluate('''p => { const c = document.querySelector(`[data-pane=${p}] canvas`), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return [c.width, c.height, [...d]]; }''', pane)
    return np.array(flat, np.uint8).reshape(h, w, 4)
def panes(page): return {p: pixels(page, p) for p in ('rgb', 'depth', 'real', 'hall', 'diff')}
def moved(page, before): return {k for k, v in panes(page).items() if v.shape != before[k].shape or (v != before[k]).any()}

def shot(page, name):
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/f'{name}.png'), full_page=True)

def test_file_shows_the_arrays(page, tmp_path):
    "The panes hold the very pixels of the clip: RGB exactly, maps through the colour map and the shared scale"
    from moddist.viz import COLOURS, lut, scale, view
    m = maps()
    opened(page, tmp_path, m)
    s = state(page)
    v, lim = view(m, s['frame'], 'unit1'), scale(m, 'unit1')
    assert (pixels(page, 'rgb')[..., :3] == v.rgb).all()
    for pane, z, table, lo, hi in (('real', v.real, 'feature', lim.lo, lim.hi), ('hall', v.hallucinated, 'feature', lim.lo, lim.hi), ('diff', v.diff, 'diff', -lim.diff, lim.diff)):
        want = lut(COLOURS[table])[((z - lo) / (hi - lo) * 255).round().clip(0, 255).astype(int)]
        assert abs(pixels(page, pane)[..., :3].astype(int) - want).max() <= (8 if pane == 'diff' else 4), pane       # a step or two of the colour map
    hole = pixels(page, 'depth')
    assert (hole[:2, :, 3] == 0).all() and (hole[2:, :, 3] == 255).all()                                          # no reading is transparent on grey

def test_every_control_moves_what_it_should(page, tmp_path):
    opened(page, tmp_path, [maps('a'), maps('b', T=4)], title='Controls', table=[{'model': 'rgb', 'top1': .5}])
    shot(page, 'html_1280')
    steps = [('frame', lambda: (page.focus('#frame'), page.keyboard.press('Home')), {'frame': 0}, {'rgb', 'depth', 'real', 'hall', 'diff'}),
             ('layer', lambda: page.select_option('#layer', '1'), {'layer': 1}, {'real', 'hall', 'diff'}),
             ('channel', lambda: page.select_option('#channel', '1'), {'channel': 1}, {'real', 'hall', 'diff'}),
             ('scale', lambda: page.select_option('#per', 'layer'), {'per': 'layer'}, {'real', 'hall', 'diff'}),
             ('order', lambda: page.select_option('#order', 'agreement'), {'order': 'agreement'}, set()),
             ('clip', lambda: page.select_option('#clip', '1'), {'clip': 1, 'channel': 1}, {'rgb', 'depth', 'real', 'hall', 'diff'}),
             ('thumbnail', lambda: page.click('#grid button[data-channel="3"]'), {'channel': 3}, {'real', 'hall', 'diff'})]
    for name, act, want, changed in steps:
        before = panes(page)
        act()
        reached(page, **want)
        assert moved(page, before) == changed, name
    assert page.locator('#clip option').count() == 2 and page.locator('table').count() == 1

def test_keyboard_alone(page, tmp_path):
    opened(page, tmp_path, maps())
    at = state(page)['frame']
    for key, want in (('ArrowRight', {'frame': at + 1}), ('ArrowLeft', {'frame': at}), (']', {'layer': 1}), ('[', {'layer': 0})):
        page.keyboard.press(key); reached(page, **want)
    first = state(page)['channel']
    page.keyboard.press('ArrowDown'); page.wait_for_function('c => JSON.parse(document.body.dataset.state).channel !== c', arg=first)
    page.keyboard.press('ArrowUp'); reached(page, channel=first)
    page.keyboard.press(' ')
    page.wait_for_function('f => JSON.parse(document.body.dataset.state).frame !== f', arg=at)                    # it plays
    page.keyboard.press(' ')
    assert page.get_attribute('#play', 'aria-pressed') == 'false'
    names = page.evaluate('''[...document.querySelectorAll('select, input, button')].map(e => e.labels?.[0]?.textContent || e.getAttribute('aria-label') || '')''')
    assert names and all(n.strip() for n in names)                                                               # every control has a name
    assert all(page.locator('canvas[role=img]').nth(i).get_attribute('aria-label') for i in range(5))

def test_identical_maps_leave_the_difference_white(page, tmp_path):
    from moddist.viz import COLOURS, lut
    opened(page, tmp_path, maps(same=True))
    for layer, channels in ((0, 5), (1, 7)):
        page.select_option('#layer', str(layer)); reached(page, layer=layer)
        for c in range(channels):
            page.select_option('#channel', str(c)); reached(page, channel=c)
            assert (pixels(page, 'diff')[..., :3] == lut(COLOURS['diff'])[128]).all()
            assert (pixels(page, 'real') == pixels(page, 'hall')).all()

def test_pointing_reads_the_same_place_everywhere(page, tmp_path):
    from moddist.viz import view
    m = maps()
    opened(page, tmp_path, m)
    page.select_option('#layer', '0'); reached(page, layer=0)
    box = page.locator('[data-pane=diff] .view').bounding_box()
    page.mouse.move(box['x'] + box['width']*(5.5/8), box['y'] + box['height']*(2.5/8))
    v = view(m, state(page)['frame'], 'unit1')
    read = lambda p: page.inner_text(f'[data-pane={p}] output').replace('−', '-')
    assert abs(float(read('real')) - v.real[2, 5]) < .01 and abs(float(read('diff')) - v.diff[2, 5]) < .02
    assert read('rgb').split() == [str(x) for x in v.rgb[5, 11]] and abs(int(read('depth').split()[0]) - v.depth[5, 11]) <= 6
    page.mouse.click(box['x'] + box['width']*.7, box['y'] + box['height']*.3)
    assert 'through time' in page.inner_text('#chart-title')
    page.keyboard.press('Escape')
    assert 'Agreement' in page.inner_text('#chart-title')

@pytest.mark.parametrize('width', (480, 1280))
def test_fits_the_screen(page, tmp_path, width):
    "Nothing is cut off sideways; the panes keep a useful size"
    page.set_viewport_size({'width': width, 'height': 900})
    opened(page, tmp_path, [maps('a', action='carries a very long name of an action around the corner'), maps('b')])
    shot(page, f'html_{width}')
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert min(page.locator('.pane .view').nth(i).bounding_box()['width'] for i in range(5)) >= 180

def test_dead_channel_and_colour_teacher(page, tmp_path):
    m = maps()
    two = FeatureMaps('two', m.rgb, m.rgb[:, ::-1].copy(), m.layers, student_title='front', teacher_title='ceiling <i>')
    opened(page, tmp_path, two)
    assert (pixels(page, 'depth')[..., :3] == m.rgb[state(page)['frame'], ::-1]).all()
    assert page.inner_text('[data-pane=depth] .name') == 'Ceiling <i>'
    page.select_option('#order', 'channel'); page.select_option('#channel', '3'); reached(page, channel=3)       # channel 2, which is dead
    assert 'undefined' in page.inner_text('#summary')

# ---- JupyterLab --------------------------------------------------------------------------------------------------
CELL = '''import sys, warnings; sys.path.insert(0, {tests!r}); warnings.filterwarnings('ignore')
from test_browser import maps
from moddist.widgets import FeatureMapInspector
w = FeatureMapInspector([maps('a'), maps('b', same=True)], layer='unit1', frame=0)
w'''

@pytest.fixture
def lab(tmp_path):
    "JupyterLab serving a folder with one notebook; its address"
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    cell = lambda i, s: {'cell_type': 'code', 'id': f'c{i}', 'metadata': {}, 'source': s, 'outputs': [], 'execution_count': None}
    nb = {'cells': [cell(0, CELL.format(tests=str(Path(__file__).parent)))], 'metadata': {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}, 'nbformat': 4, 'nbformat_minor': 5}
    (tmp_path/'look.ipynb').write_text(json.dumps(nb))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | {'JUPYTER_CONFIG_DIR': str(tmp_path/'config'), 'JUPYTER_DATA_DIR': str(tmp_path/'data'), 'JUPYTER_RUNTIME_DIR': str(tmp_path/'run'), 'IPYTHONDIR': str(tmp_path/'ipython')}
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.token=', '--ServerApp.password=', '--ServerApp.root_dir=.'],
                              cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            assert server.poll() is None, 'jupyter lab did not start'
            try: socket.create_connection(('127.0.0.1', port), .2).close(); break
            except OSError: time.sleep(.1)
        yield f'http://127.0.0.1:{port}/lab/tree/look.ipynb'
    finally: server.terminate(); server.wait(20)

def run_first_cell(page):
    "Run it once the kernel is there; a key pressed while the notebook is still being set up is lost, so it is pressed until the prompt changes"
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=240_000)
    for _ in range(12):
        page.locator('.jp-CodeCell .cm-content').first.click(timeout=60_000)
        page.keyboard.press('Control+Enter')
        try: page.wait_for_function("() => !/^\\[ \\]/.test(document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText.trim())", timeout=10_000); break
        except Exception: continue
    page.wait_for_selector('.js-plotly-plot .main-svg, .jp-OutputArea-output[data-mime-type*=stderr]', timeout=240_000)
    assert not page.locator('.jp-OutputArea-output[data-mime-type*=stderr]').count(), page.locator('.jp-OutputArea').first.inner_text()

def test_jupyterlab(browser, lab):
    "Run the cell, move the slider by keyboard, choose another clip: the panes follow"
    context = browser.new_context(viewport={'width': 1280, 'height': 900})
    context.route('**/*', lambda r: r.continue_() if '//127.0.0.1:' in r.request.url or r.request.url.startswith(('data:', 'blob:')) else r.abort())
    page = context.new_page()
    page.goto(lab)
    run_first_cell(page)
    # base64 float arrays are decoded by plotly on drawing: read what is drawn, from plotly's own full data
    read = lambda: page.evaluate('''() => { const g = document.querySelector('.js-plotly-plot'); return {z: g.calcdata.slice(2).map(t => t[0].z.map(r => Array.from(r))), title: g.layout.title.text, image: g.data[0].source}; }''')
    page.wait_for_function('() => document.querySelector(".js-plotly-plot").calcdata?.[4]?.[0]?.z')
    m, first = maps('a'), read()
    assert np.allclose(first['z'][0], m.layers['unit1'][0].mean(0)[0], atol=1e-5)
    assert np.allclose(first['z'][2], np.subtract(first['z'][1], first['z'][0]), atol=1e-5)
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/'jupyterlab.png'))
    page.locator('.noUi-handle').first.focus()
    for _ in range(3): page.keyboard.press('ArrowRight')
    page.wait_for_function('() => document.querySelector(".js-plotly-plot").layout.title.text.includes("frame 3 ")', timeout=90_000)
    page.wait_for_timeout(500)
    third = read()
    assert np.allclose(third['z'][0], m.layers['unit1'][0].mean(0)[3], atol=1e-5) and third['image'] != first['image']
    page.locator('.widget-dropdown select').first.select_option(index=1)                                          # the clip whose student is perfect
    page.wait_for_function('() => document.querySelector(".js-plotly-plot").layout.title.text.includes("· b<")', timeout=90_000)
    page.wait_for_timeout(500)
    assert np.abs(read()['z'][2]).max() == 0
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/'jupyterlab_moved.png'))
    context.close()
