"The inspector where people use it: a file opened from disk, a cell in JupyterLab, a page of Voila, all in a real browser."
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from moddist.core import ModelError, rng
from moddist.maps import MEAN, FeatureMaps, LazyMaps, channel_table
from moddist.page import inspector_html
from moddist.viz import COLOURS, lut, scale, through_time, view

pytestmark = pytest.mark.browser
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
SHOTS = os.environ.get('MODDIST_SCREENSHOTS') # a folder: keep screenshots there

def maps(name='walk', T=6, same=False, action='walks', n=16, student='late'):
    "A small clip with two layers; channel 1 of the hallucination is far too strong, channel 2 is dead; the student called 'early' is noisier"
    g = rng('browser', name)
    rgb, depth = g.integers(0, 255, (T, n, n, 3), dtype=np.uint8), g.integers(1500, 4000, (T, n, n)).astype(np.uint16)
    depth[:, :2] = 0
    layers = {}
    for k, (c, h) in {'unit1': (4, 8), 'unit2': (6, 4)}.items():
        real = g.random((c, T, h, h), dtype=np.float32)
        noise = rng('browser', name, student, k).normal(0, .2 if student == 'late' else .6, real.shape)
        hall = real.copy() if same else np.clip(real + noise, 0, None).astype(np.float32)
        if not same: hall[1] *= 3
        real[2] = hall[2] = 0
        layers[k] = real, hall
    return FeatureMaps(name, rgb, depth, layers, action, weights={'unit2': np.array([.1, -.4, 0, .7, .2, -.1])}, weights_of='walk')

def two_students(*names): return {s: [maps(n, student=s) for n in names] for s in ('early', 'late')}

def wide(C=2048, T=16, n=7):
    "The largest layer of a ResNet-50"
    g = rng('wide')
    real = np.maximum(g.normal(size=(C, T, n, n)), 0).astype(np.float32)
    hall = np.maximum(.8*real + g.normal(0, .2, real.shape), 0).astype(np.float32)
    return FeatureMaps('wide', g.integers(0, 255, (T, 112, 112, 3), dtype=np.uint8), g.integers(1500, 4000, (T, 112, 112)), {'layer4': (real, hall)}, 'walks')

def lazy():
    "Three clips computed on demand: the second cannot be computed, the third has a layer that was never taught"
    def make(i, told):
        m = maps(f'clip {i}')
        if i == 1: raise ModelError("clip 'clip 1', layer 'unit2': 96 of 576 hallucinated values are NaN or infinite; the network diverged: load an earlier checkpoint or train with a lower learning rate")
        if i == 2: m = replace(m, layers={k: (r, rng('untaught', k).random(r.shape)) for k, (r, _) in m.layers.items()})
        return {'student': m}
    titles = dict(student_title='RGB', teacher_title='depth', unit='mm', scalar=True)
    return LazyMaps(make, [(f'clip {i}', 'walks') for i in range(3)], ['unit1', 'unit2'], titles, ['student'])

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
    page.wait_for_selector('.mdi[data-state]')

def state(page, k=0): return json.loads(page.locator('.mdi').nth(k).get_attribute('data-state'))
def reached(page, k=0, **want):
    page.wait_for_function('([want, k]) => { const m = document.querySelectorAll(".mdi")[k], s = m && m.dataset.state && JSON.parse(m.dataset.state); return s && Object.keys(want).every(n => JSON.stringify(s[n]) === JSON.stringify(want[n])); }', arg=[want, k], timeout=20_000)
def pixels(page, pane, k=0):
    "The pixels of one pane, uint8 [h, w, 4]"
    w, h, flat = page.evaluate('''([p, k]) => { const c = document.querySelectorAll('.mdi')[k].querySelector(`[data-pane=${p}] canvas`), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return [c.width, c.height, [...d]]; }''', [pane, k])
    return np.array(flat, np.uint8).reshape(h, w, 4)
def panes(page, k=0): return {p: pixels(page, p, k) for p in ('rgb', 'depth', 'real', 'hall', 'diff')}
def moved(page, before, k=0): return {p for p, v in panes(page, k).items() if v.shape != before[p].shape or (v != before[p]).any()}
def choose(page, k=0, **what):
    for name, value in what.items(): page.locator('.mdi').nth(k).locator(f'[name={name}]').select_option(str(value))
    reached(page, k, **what)

def holds(page, pane, z, lo, hi, table='feature', k=0):
    "The pane shows this map on this scale, up to a step or two of 8 bits"
    want = lut(COLOURS[table])[((z - lo) / (hi - lo) * 255).round().clip(0, 255).astype(int)]
    got = pixels(page, pane, k)[..., :3].astype(int)
    assert got.shape == want.shape and abs(got - want).max() <= (10 if table == 'diff' else 4), pane

def shows(page, m, k=0):
    "All five panes show this clip at the state of the page"
    s = state(page, k); v, lim = view(m, s['frame'], s['layer'], s['channel']), scale(m, s['layer'], s['channel'])
    assert (pixels(page, 'rgb', k)[..., :3] == v.rgb).all()
    holds(page, 'real', v.real, lim.lo, lim.hi, k=k); holds(page, 'hall', v.hallucinated, lim.lo, lim.hi, k=k); holds(page, 'diff', v.diff, -lim.diff, lim.diff, 'diff', k)

def shot(page, name):
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/f'{name}.png'), full_page=True)

# ---- the file ----------------------------------------------------------------------------------------------------
def test_file_shows_the_arrays(page, tmp_path):
    "The panes hold the very pixels of the clip: RGB exactly, maps through the colour map and the shared scale"
    m = maps()
    opened(page, tmp_path, m)
    shows(page, m)
    choose(page, layer='unit2'); choose(page, channel=3)
    shows(page, m)
    hole = pixels(page, 'depth')
    assert (hole[:2, :, 3] == 0).all() and (hole[2:, :, 3] == 255).all()                                          # no reading is transparent on stripes of two greys
    box = page.locator('[data-pane=depth] .view').bounding_box()
    seen = np.asarray(Image.open(io.BytesIO(page.screenshot(clip={'x': box['x'] + 20, 'y': box['y'] + 4, 'width': 60, 'height': box['height']/8 - 8})))).reshape(-1, 3).astype(int)
    assert np.ptp(seen, axis=0).min() > 25 and np.ptp(seen, axis=1).max() < 20

def test_every_control_moves_what_it_should(page, tmp_path):
    opened(page, tmp_path, [maps('a'), maps('b', T=4)], title='Controls', table=[{'model': 'rgb', 'top1': .5}])
    shot(page, 'html_1280')
    all5, three = {'rgb', 'depth', 'real', 'hall', 'diff'}, {'real', 'hall', 'diff'}
    pick = lambda **what: lambda: choose(page, **what)
    steps = [('frame', lambda: (page.focus('[name=frame]'), page.keyboard.press('Home')), {'frame': 0}, all5),
             ('layer', pick(layer='unit2'), {'layer': 'unit2', 'channel': MEAN}, three), ('channel', pick(channel=0), {'channel': 0}, three),
             ('scale', pick(per='layer'), {'per': 'layer'}, three), ('order', pick(order='agreement'), {'order': 'agreement', 'channel': 0}, set()),
             ('clip', pick(clip=1), {'clip': 1, 'channel': 0}, all5), ('thumbnail', lambda: page.click('.grid button[data-channel="3"]'), {'channel': 3}, three),
             ('layer card', lambda: page.click('.strip button[data-layer="unit1"]'), {'layer': 'unit1', 'channel': MEAN}, three),
             ('chart', lambda: page.locator('.chart svg').click(position={'x': 300, 'y': 100}), {}, all5)]
    for name, act, want, changed in steps:
        before = panes(page)
        page.evaluate("document.querySelector('.mdi').dataset.ms = ''")
        act()
        page.wait_for_function("() => document.querySelector('.mdi').dataset.ms !== ''")
        reached(page, **want)
        assert moved(page, before) == changed, name
    assert page.locator('[name=clip] option').count() == 2 and page.locator('table').count() == 1
    assert not page.locator('.several').first.is_visible() and not page.locator('.second').first.is_visible()    # one student: nothing about two

@pytest.mark.parametrize('order', ('agreement', 'disagreement', 'energy', 'weight', 'channel'))
def test_channels_are_sorted_as_in_python(page, tmp_path, order):
    m = maps()
    opened(page, tmp_path, m)
    choose(page, layer='unit2'); choose(page, order='channel'); choose(page, order=order)
    want = [MEAN, *channel_table(m, 'unit2', order).channel]
    assert page.evaluate("[...document.querySelectorAll('.grid button')].map(b => Number(b.dataset.channel))") == want
    page.focus('[name=channel]')                                                                                 # the menu is sorted when it is opened
    page.wait_for_function("want => JSON.stringify([...document.querySelectorAll('[name=channel] option')].map(o => Number(o.value))) === JSON.stringify(want)", arg=[int(c) for c in want])
    assert int(page.input_value('[name=channel]')) == MEAN
    if order == 'weight':
        assert 'w +0.70' in page.inner_text('.grid') and 'weight for walk' in page.inner_text('[name=order]')
        choose(page, layer='unit1')
        assert 'no class weights' in page.inner_text('.channels small')

def test_colours_of_one_clip(page, tmp_path):
    "A clip that is ten times brighter darkens the other, unless the scale is that of the clip"
    m, bright = maps('a'), maps('b'); bright = replace(bright, layers={k: (10*r, 10*h) for k, (r, h) in bright.layers.items()})
    opened(page, tmp_path, [m, bright])
    choose(page, layer='unit1'); choose(page, channel=0)
    every, own, v = scale([m, bright], 'unit1', 0), scale(m, 'unit1', 0), view(m, state(page)['frame'], 'unit1', 0)
    holds(page, 'real', v.real, every.lo, every.hi)
    assert 'all 2 clips' in page.inner_text('[data-bar=value]')
    choose(page, per='clip')
    step = every.hi/255
    want = ((v.real/own.hi)*255).clip(0, 255); got = pixels(page, 'real')[..., :3].astype(int)
    near = np.argmin([[abs(c - g).sum() for c in lut(COLOURS['feature']).astype(int)] for g in got.reshape(-1, 3)], axis=1).reshape(want.shape)
    assert abs(near - want).max() <= 255*step/own.hi + 2 and 'this clip' in page.inner_text('[data-bar=value]') and near.max() > 150

def test_keyboard_alone(page, tmp_path):
    opened(page, tmp_path, maps())
    at = state(page)['frame']
    for key, want in (('ArrowRight', {'frame': at + 1}), ('ArrowLeft', {'frame': at}), (']', {'layer': 'unit2'}), ('[', {'layer': 'unit1'})):
        page.keyboard.press(key); reached(page, **want)
    first = channel_table(maps(), 'unit1', 'energy').channel[0]
    page.keyboard.press('ArrowDown'); reached(page, channel=int(first))
    page.keyboard.press('ArrowUp'); reached(page, channel=MEAN)
    page.keyboard.press(' ')
    page.wait_for_function('f => JSON.parse(document.querySelector(".mdi").dataset.state).frame !== f', arg=at)  # it plays
    page.keyboard.press(' ')
    assert page.get_attribute('.play', 'aria-pressed') == 'false'
    page.focus('[data-pane=real] .view')                                                                         # a place is picked, moved and let go
    page.keyboard.press('Enter'); reached(page, place=[8, 8])
    page.keyboard.press('ArrowRight'); reached(page, place=[11, 9])                                              # one cell of 8 is two pixels of 16
    page.keyboard.press('Escape'); reached(page, place=[])
    names = page.evaluate('''[...document.querySelectorAll('select, input, button')].map(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent)''')
    assert names and all(n.strip() for n in names)                                                               # every control has a name
    assert all(page.locator('.pane:not(.second) canvas[role=img]').nth(i).get_attribute('aria-label') for i in range(5))
    seen = set()
    for _ in range(40): page.keyboard.press('Tab'); seen.add(page.evaluate('document.activeElement.name || document.activeElement.className || document.activeElement.dataset.layer'))
    assert {'clip', 'layer', 'channel', 'order', 'per', 'frame', 'play', 'view', 'unit2'} <= {w for s in seen for w in str(s).split()} | seen

def test_identical_maps_leave_the_difference_white(page, tmp_path):
    opened(page, tmp_path, {'a': maps(same=True), 'b': maps(same=True)})
    choose(page, against='b')
    for layer, channels in (('unit1', 4), ('unit2', 6)):
        choose(page, layer=layer)
        for c in range(MEAN, channels):
            choose(page, channel=c)
            for pane in ('diff', 'diff2', 'change'): assert (pixels(page, pane)[..., :3] == lut(COLOURS['diff'])[128]).all()
            assert (pixels(page, 'real') == pixels(page, 'hall')).all() and (pixels(page, 'real') == pixels(page, 'hall2')).all()
    assert 'the two are the same' in page.inner_text('.verdict')

def test_pointing_reads_the_same_place_everywhere_and_follows_it(page, tmp_path):
    m = maps()
    opened(page, tmp_path, m)
    choose(page, layer='unit1'); choose(page, channel=1)
    box = page.locator('[data-pane=diff] .view').bounding_box()
    at = [box['x'] + box['width']*(5.6/8), box['y'] + box['height']*(2.6/8)]
    page.mouse.move(*at)
    v = view(m, state(page)['frame'], 'unit1', 1)
    read = lambda p: page.inner_text(f'[data-pane={p}] output').replace('−', '-')
    assert abs(float(read('real')) - v.real[2, 5]) < .01 and abs(float(read('diff')) - v.diff[2, 5]) < .02
    assert read('rgb').split() == [str(x) for x in v.rgb[5, 11]] and abs(int(read('depth').split()[0]) - v.depth[5, 11]) <= 6
    page.mouse.click(*at)
    reached(page, place=[11, 5])
    assert 'Pixel x 11, y 5 through time' in page.inner_text('.chart-title')
    lines = dict(json.loads(page.get_attribute('.chart', 'data-lines')))
    for name, want in zip(('real', 'hallucinated'), through_time(m, 11, 5, 'unit1', 1)): assert np.allclose(lines[name], want, atol=.01), name
    page.keyboard.press('Escape')
    assert 'Agreement' in page.inner_text('.chart-title')

def test_two_students_are_compared_on_one_scale(page, tmp_path):
    both = two_students('a', 'b')
    opened(page, tmp_path, both)
    choose(page, layer='unit1'); choose(page, channel=0); choose(page, against='late')
    shot(page, 'html_compare')
    v, w = (view(both[s][0], state(page)['frame'], 'unit1', 0) for s in ('early', 'late'))
    lim = scale([m for v in both.values() for m in v], 'unit1', 0)
    holds(page, 'hall', v.hallucinated, lim.lo, lim.hi); holds(page, 'hall2', w.hallucinated, lim.lo, lim.hi)
    d = max(lim.diff, max(float(np.abs(x.layers['unit1'][1][0] - y.layers['unit1'][1][0]).max()) for x, y in zip(*both.values())))
    holds(page, 'diff2', w.diff, -d, d, 'diff'); holds(page, 'change', w.hallucinated - v.hallucinated, -d, d, 'diff')
    r = [channel_table(both[s][0], 'unit1', 'channel').correlation for s in ('early', 'late')]
    assert f'{int((r[1] > r[0]).sum())} agree better' in page.inner_text('.verdict') and f'{r[1].median():.2f}' in page.inner_text('.verdict')
    choose(page, order='gain')
    want = (r[1] - r[0]).sort_values(ascending=False, kind='stable').index.tolist()
    assert page.evaluate("[...document.querySelectorAll('.grid button')].map(b => Number(b.dataset.channel))") == [MEAN, *want]
    page.locator('[data-pane=hall2] .view').click(position={'x': 60, 'y': 60})
    page.wait_for_function("() => JSON.parse(document.querySelector('.mdi').dataset.state).place.length === 2")
    lines = dict(json.loads(page.get_attribute('.chart', 'data-lines')))
    x, y = state(page)['place']
    assert np.allclose(lines['late'], through_time(both['late'][0], x, y, 'unit1', 0)[1], atol=.02) and list(lines) == ['real', 'early', 'late']
    choose(page, source='late')
    assert state(page)['against'] == '' and not page.locator('.second').first.is_visible()

@pytest.mark.parametrize('width', (400, 1280))
def test_fits_the_screen(page, tmp_path, width):
    "Nothing is cut off sideways; the panes keep a useful size; two students do not break it"
    page.set_viewport_size({'width': width, 'height': 900})
    both = {s: [replace(m, action='carries a very long name of an action around the corner') for m in v] for s, v in two_students('a', 'b').items()}
    opened(page, tmp_path, both)
    choose(page, against='late')
    shot(page, f'html_{width}')
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    sizes = [page.locator('.pane .view').nth(i).bounding_box()['width'] for i in range(8)]
    assert min(sizes) >= 160 and max(sizes) - min(sizes) < 3
    small = page.evaluate("[...document.querySelectorAll('.mdi *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML)")
    assert not small
    assert [page.inner_text(f'{p} .bar p') for p in ('[data-pane=depth]', '[data-pane=diff]')] == ['mm; striped: no reading', 'blue: too little, red: too much'] and '(no unit)' in page.inner_text('[data-bar=value] p')
    assert page.locator('.chart svg text').all_text_contents()[-2:] == ['frame of the clip', 'agreement, −1 to 1']

def test_dead_channel_and_colour_teacher(page, tmp_path):
    m = maps()
    two = FeatureMaps('two', m.rgb, m.rgb[:, ::-1].copy(), m.layers, student_title='front', teacher_title='ceiling <i>')
    opened(page, tmp_path, two)
    assert (pixels(page, 'depth')[..., :3] == m.rgb[state(page)['frame'], ::-1]).all()
    assert page.inner_text('[data-pane=depth] .name') == 'Ceiling <i>'
    choose(page, channel=2)
    assert 'undefined' in page.inner_text('.summary')
    assert not page.locator('[data-pane=depth] .bar canvas').count()                                             # colours of a picture have no scale

def test_what_does_not_fit_is_said_on_the_page(page, tmp_path):
    "Clips of other sizes are shown; clips and students of other networks are left out by name; a tap that was not taught is named"
    m = maps('a')
    three = FeatureMaps('three', m.rgb, m.depth, {'unit1': tuple(x[:3] for x in m.layers['unit1'])})
    untaught = replace(maps('c', T=3, n=24), layers={k: (r, rng('u').random(r.shape)) for k, (r, _) in maps('c', T=3).layers.items()})
    opened(page, tmp_path, [m, three, untaught])
    assert "clip 'three' has 3 channels at 'unit1' instead of 4" in page.inner_text('.message')
    assert page.locator('[name=clip] option').count() == 2
    choose(page, clip=1)
    assert 'not taught' in page.inner_text('.message') and pixels(page, 'rgb').shape == (24, 24, 4)
    opened(page, tmp_path, {'ours': m, 'wide': replace(three, clip_id='a')})
    assert "student 'wide' has 3 channels" in page.inner_text('.message')

def test_one_student_may_be_lost_without_a_word_until_it_is_looked_at(page, tmp_path):
    m = maps('a'); lost = replace(m, layers={k: (r, rng('lost', k).random(r.shape)) for k, (r, _) in m.layers.items()})
    opened(page, tmp_path, {'ours': m, 'lost': lost})
    assert not page.locator('.message').is_visible()
    choose(page, against='lost')
    assert 'lost does not follow the teacher' in page.inner_text('.message')
    choose(page, against='')
    assert not page.locator('.message').is_visible()

def test_the_sheet_keeps_the_focus_with_the_choice(page, tmp_path):
    "Arrows walk through the sheet; sorted anew, the same thumbnails show other channels"
    m = maps()
    opened(page, tmp_path, m)
    choose(page, layer='unit2'); page.evaluate("document.querySelectorAll('.grid button').forEach((b, i) => { b.mine = i })")
    page.focus('.grid button[aria-selected=true]')
    for want in channel_table(m, 'unit2', 'energy').channel[:3]:
        page.keyboard.press('ArrowDown'); reached(page, channel=int(want))
        assert page.evaluate('Number(document.activeElement.dataset.channel)') == want
    choose(page, order='channel')
    assert page.evaluate("[...document.querySelectorAll('.grid button')].map(b => [b.mine, Number(b.dataset.channel)])") == [[i, i - 1] for i in range(7)]
    s = scale(m, 'unit2', 3); want = lut(COLOURS['feature'])[(view(m, state(page)['frame'], 'unit2', 3).hallucinated/s.hi*255).round().astype(int)]
    got = page.evaluate("(() => { const c = document.querySelector('.grid button[data-channel=\"3\"]').querySelectorAll('canvas')[1]; return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()")
    assert abs(np.reshape(got, (4, 4, 4))[..., :3] - want.astype(int)).max() <= 4

@pytest.mark.parametrize('kept, again', (('96e6', 0), ('1', 4)))
def test_arrays_are_unpacked_once_and_let_go(page, tmp_path, kept, again):
    "Back at a clip nothing is unpacked again, unless the memory for it is too small"
    page.add_init_script('window.unpacked = 0; const D = DecompressionStream; window.DecompressionStream = function (k) { window.unpacked++; return new D(k); }')
    f = inspector_html([maps('a'), maps('b')], tmp_path/'inspector.html')
    text = f.read_text(); assert 'KEPT = 96e6' in text
    f.write_text(text.replace('KEPT = 96e6', f'KEPT = {kept}'))
    page.goto(f.as_uri()); page.wait_for_selector('.mdi[data-state]')
    choose(page, clip=1); page.wait_for_function('window.unpacked === 8')                                        # depth, maps and two layers of the overview, each clip
    choose(page, clip=0); page.wait_for_function(f'window.unpacked === {8 + again}')
    page.wait_for_timeout(150); assert page.evaluate('window.unpacked') == 8 + again

@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_dark_where_the_reader_wants_it_and_light_inside_a_light_report(browser, tmp_path, scheme):
    p = browser.new_page(color_scheme=scheme, viewport={'width': 1280, 'height': 900})
    f = inspector_html(maps(), tmp_path/'i.html'); text = f.read_text()
    def lightness(selector): return sum(map(int, re.findall(r'\d+', p.evaluate('q => getComputedStyle(document.querySelector(q)).backgroundColor', selector))[:3]))/7.65
    for inside, light in ((False, scheme == 'light'), (True, True)):
        if inside: f.write_text(text.replace('class="mdi-page"', 'class="mdi-page light"', 1))
        p.goto(f.as_uri()); p.wait_for_selector('.mdi[data-state]')
        assert all((lightness(q) > 90) == light for q in ('body', '.mdi', '.mdi .controls', '.mdi select'))
    p.close()

def test_the_chapter_holds_the_page_with_all_its_controls(browser, tmp_path):
    "What the documentation embeds: the output saved in the notebook, in a page of its own"
    book = json.loads((Path(__file__).parents[1]/'nbs'/'04g_page.ipynb').read_text())
    html, = [h for c in book['cells'] for o in c.get('outputs', []) if '<iframe' in (h := ''.join(o.get('data', {}).get('text/html', '')))]
    assert len(html) < 3e5
    (tmp_path/'chapter.html').write_text(f'<!doctype html><meta charset="utf-8"><p>Text</p>{html}')
    p = browser.new_page(viewport={'width': 1000, 'height': 900}); p.goto((tmp_path/'chapter.html').as_uri())
    inner = p.frame_locator('iframe'); inner.locator('.mdi[data-state]').wait_for()
    inner.locator('[name=against]').select_option('late'); inner.locator('[name=layer]').select_option('unit1')
    inner.locator('.verdict h3', has_text='early → late').wait_for()
    assert inner.locator('.grid-title').inner_text() == 'The 6 strongest of 16 channels of unit1'
    p.frames[1].wait_for_function('document.documentElement.scrollHeight <= innerHeight + 1')                    # no scroll bar of its own
    shot(p, 'chapter'); p.close()

# ---- Jupyter -----------------------------------------------------------------------------------------------------
FIRST = '''import sys, warnings; sys.path.insert(0, {tests!r}); warnings.filterwarnings('ignore')
from test_browser import lazy, maps, two_students, wide
from traitlets import link
from moddist.widgets import FeatureMapInspector
w = FeatureMapInspector([maps('a'), maps('b', same=True)], layer='unit1', frame=0)
w'''

LAB = [FIRST, "v = FeatureMapInspector(two_students('a', 'b'), layer='unit2')\nlinks = [link((w, k), (v, k)) for k in ('clip', 'frame', 'place')]\nw.message = 'x'; v"]
VOILA = [FIRST.replace('\nw = ', '\nu = ').replace('\nw', ''), 'FeatureMapInspector([wide(), wide()])', 'FeatureMapInspector(lazy(), layer="unit1")']

def notebook(path, cells):
    cell = lambda i, s: {'cell_type': 'code', 'id': f'c{i}', 'metadata': {}, 'source': s.format(tests=str(Path(__file__).parent)), 'outputs': [], 'execution_count': None}
    path.write_text(json.dumps({'cells': [cell(*c) for c in enumerate(cells)], 'metadata': {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}, 'nbformat': 4, 'nbformat_minor': 5}))

@pytest.fixture(scope='module')
def jupyter(browser, tmp_path_factory):
    "One server with JupyterLab and Voila, and a page for each that reaches this machine and nothing else; both kernels start at once"
    for name in ('jupyterlab', 'voila'): pytest.importorskip(name, reason=f'{name} is not installed: pip install {name}')
    d = tmp_path_factory.mktemp('jupyter')
    (quiet := d/'config/lab/user-settings/@jupyterlab/apputils-extension').mkdir(parents=True); (quiet/'notification.jupyterlab-settings').write_text('{"fetchNews": "false"}')
    notebook(d/'look.ipynb', LAB); notebook(d/'page.ipynb', VOILA)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | {'JUPYTER_CONFIG_DIR': str(d/'config'), 'JUPYTER_DATA_DIR': str(d/'data'), 'JUPYTER_RUNTIME_DIR': str(d/'run'), 'IPYTHONDIR': str(d/'ipython')}
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.token=', '--ServerApp.password=', '--ServerApp.root_dir=.']
    server = subprocess.Popen(command, cwd=d, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    context = browser.new_context(viewport={'width': 1280, 'height': 900})
    try:
        for _ in range(600):
            assert server.poll() is None, 'jupyter lab did not start'
            try: socket.create_connection(('127.0.0.1', port), .2).close(); break
            except OSError: time.sleep(.1)
        context.route('**/*', lambda r: r.continue_() if '//127.0.0.1:' in r.request.url or r.request.url.startswith(('data:', 'blob:')) else r.abort())
        lab, voila = context.new_page(), context.new_page()
        voila.evaluate('u => { location.href = u }', f'http://127.0.0.1:{port}/voila/render/page.ipynb')
        lab.goto(f'http://127.0.0.1:{port}/lab/tree/look.ipynb', timeout=240_000)
        yield lab, voila
    finally: context.close(); server.terminate(); server.wait(20)

def run_cell(page, k=0):
    "Run a cell once the kernel is there; a key pressed while the notebook is still being set up is lost, so it is pressed until the prompt changes"
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=240_000)
    for _ in range(40):
        if page.locator('dialog').count(): page.keyboard.press('Enter')                                           # "the kernel is not ready yet"
        page.locator('.jp-CodeCell .cm-content').nth(k).click(timeout=60_000)
        page.keyboard.press('Control+Enter')
        try: page.wait_for_function("k => !/^\\[ \\]/.test(document.querySelectorAll('.jp-CodeCell')[k].querySelector('.jp-InputPrompt').innerText.trim())", arg=k, timeout=3_000); break
        except Exception: continue
    page.wait_for_selector(f'.jp-CodeCell >> nth={k} >> .mdi[data-state], .jp-OutputArea-output[data-mime-type*=stderr]', timeout=240_000)
    assert not page.locator('.jp-OutputArea-output[data-mime-type*=stderr]').count(), page.locator('.jp-OutputArea').first.inner_text()

def test_jupyterlab(jupyter):
    "Run the cells, move controls and keys: the panes follow, the notebook does not; a linked inspector follows through the kernel"
    page, _ = jupyter
    page.bring_to_front()
    run_cell(page)
    a = maps('a')
    reached(page, frame=0, layer='unit1'); shows(page, a)
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/'jupyterlab.png'))
    page.locator('.mdi [name=frame]').first.focus()
    for _ in range(3): page.keyboard.press('ArrowRight')
    reached(page, frame=3); shows(page, a)
    page.locator('.mdi .play').first.focus(); page.keyboard.press('ArrowDown')                                # a key that JupyterLab would use too
    reached(page, channel=int(channel_table(a, 'unit1', 'energy').channel[0])); shows(page, a)
    choose(page, clip=1)                                                                                      # the clip whose student is perfect
    assert (pixels(page, 'diff')[..., :3] == lut(COLOURS['diff'])[128]).all()
    run_cell(page, 1)
    reached(page, 1, clip=1, frame=3, layer='unit2')                                                          # linked: it starts where the first one is
    page.locator('.mdi').first.locator('[data-pane=rgb] .view').click(position={'x': 40, 'y': 40})
    reached(page, 1, place=state(page)['place']); assert len(state(page)['place']) == 2
    page.locator('.mdi').nth(1).locator('[name=frame]').focus(); page.keyboard.press('Home')
    reached(page, 0, frame=0); reached(page, 1, frame=0)
    choose(page, 1, against='late')
    both = two_students('b')
    assert 'early → late' in page.locator('.verdict').nth(1).inner_text()
    holds(page, 'hall2', *(lambda v, s: (v.hallucinated, s.lo, s.hi))(view(both['late'][0], 0, 'unit2'), scale([m for v in two_students('a', 'b').values() for m in v], 'unit2')), k=1)
    if SHOTS: page.locator('.mdi').nth(1).scroll_into_view_if_needed(); page.screenshot(path=str(Path(SHOTS)/'jupyterlab_linked.png'))

def test_voila(jupyter, capsys):
    "A page without code: 2,048 channels move at once; a clip that cannot be computed is explained and the next one works"
    _, page = jupyter
    page.bring_to_front()
    page.wait_for_selector('.mdi[data-state] >> nth=1', timeout=240_000)
    m = wide()
    reached(page, 0, layer='layer4', frame=8); shows(page, m)
    took = {}
    for what, values in (('frame', (11, 2, 9)), ('channel', (1500, 3, 2047)), ('order', ('agreement', 'disagreement', 'channel')), ('per', ('layer', 'clip', 'channel')), ('clip', (1, 0, 1))):
        times = []
        for value in values:
            times.append(page.evaluate("""async ([what, value]) => { const m = document.querySelector('.mdi'), c = m.querySelector(`.controls [name=${what}]`), began = performance.now(); c.value = value; c.dispatchEvent(new Event(what === 'frame' ? 'input' : 'change'));
                while (String(JSON.parse(m.dataset.state)[what]) !== String(value)) await new Promise(r => setTimeout(r)); await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r))); return performance.now() - began; }""", [what, value]))
        took[what] = sorted(times)[1]
    shows(page, m)
    with capsys.disabled(): print('\n16 frames x 2,048 channels, ms from the event to the picture on the screen, median of 3: ' + ', '.join(f'{k} {v:.0f}' for k, v in took.items()))
    assert max(took.values()) < 5000
    assert page.locator('.mdi').first.locator('.pages output').inner_text().endswith('of 2048 channels')
    if SHOTS: page.screenshot(path=str(Path(SHOTS)/'voila.png'), full_page=True)
    shows(page, maps('clip 0'), 1)
    line = page.locator('.mdi').nth(1).locator('.message')
    choose(page, 1, clip=1); line.wait_for()
    assert 'the network diverged: load an earlier checkpoint' in line.inner_text() and not page.locator('.mdi').nth(1).locator('.panes').is_visible()
    choose(page, 1, clip=2)
    page.wait_for_function("() => document.querySelectorAll('.mdi')[1].querySelector('.message').textContent.includes('not taught')")
    assert page.locator('.mdi').nth(1).locator('.panes').is_visible()
    choose(page, 1, clip=0); shows(page, maps('clip 0'), 1); assert not line.is_visible()
