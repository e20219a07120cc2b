"The inspector: traits move the panes, the file holds the arrays, what cannot be shown is said in one line."
import base64
import io
import json
import re
import zlib
from pathlib import Path
import numpy as np
import pytest
from moddist.core import ModdistError, ModelError, rng
from moddist.maps import MEAN, FeatureMaps, channel_table
from moddist.page import inspector_html, inspector_page, pack
from moddist.viz import scale, view
from moddist.widgets import FeatureMapInspector

def maps(name='a', T=5, C=4, same=False, n=8, H=16, **kw):
    g = rng('widgets', name)
    real = np.maximum(g.normal(size=(C, T, n, n)), 0).astype(np.float32)
    hall = real.copy() if same else np.maximum(real + g.normal(0, .3, real.shape), 0).astype(np.float32)
    depth = g.integers(1500, 4000, (T, H, H)).astype(np.uint16); depth[:, 0] = 0
    return FeatureMaps(name, g.integers(0, 255, (T, H, H, 3), dtype=np.uint8), depth, {'one': (real, hall), 'two': (real[:2, :, ::2, ::2], hall[:2, :, ::2, ::2])}, **kw)

def half(m): return FeatureMaps(m.clip_id, m.rgb, m.depth, {k: (r, h/2 + rng('half', k).random(h.shape, dtype=np.float32)/4) for k, (r, h) in m.layers.items()})

def page_data(page): return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
def stored(text, shape): return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)

# ---- the live widget ---------------------------------------------------------------------------------------------
def asked(w, what, clip=0, layer=''):
    "What the browser gets when it asks"
    sent = []
    w.send = lambda content, buffers=None: sent.append((content, [np.frombuffer(b, np.uint8) for b in buffers or []]))
    w._asked(w, {'id': 'x', 'what': what, 'clip': clip, 'layer': layer}, [])
    return sent[0]

def decoded(about, data):
    shape = (1 + len(about['sources']), *about['shape'])
    return np.array(about['lo'])[:, None, None, None] + data.reshape(shape)*np.array(about['step'])[:, None, None, None]

def test_what_the_browser_gets_decodes_to_the_maps():
    both = {'early': [maps('a'), maps('b', T=3)], 'late': [half(maps('a')), half(maps('b', T=3))]}
    w = FeatureMapInspector(both)
    for i in (0, 1):
        for layer in ('one', 'two'):
            content, (data,) = asked(w, 'maps', i, layer); about = content['found']
            back, step = decoded(about, data), np.array(about['step'])[:, None, None, None]
            for k, m in enumerate((both['early'][i].layers[layer][0], both['early'][i].layers[layer][1], both['late'][i].layers[layer][1])):
                want = np.concatenate([m.mean(0, keepdims=True), m])
                assert (abs(back[k] - want) <= .51*step + 1e-6).all()
            t = channel_table(both['late'][i], layer, 'channel')
            assert np.allclose(about['r'][1][1:], t.correlation, atol=1e-3) and np.allclose(about['energy'][1:], t.energy, atol=1e-4) and about['sources'] == ['early', 'late']
            v = view(both['late'][i], 2, layer, 1)
            assert about['cosine'][1][2][2] == pytest.approx(v.cosine, abs=1e-3) and about['median'][1] == pytest.approx(t.correlation.median(), abs=1e-3)
    json.dumps(asked(w, 'clip', 1)[0], allow_nan=False)
    content, data = asked(w, 'overview', 1)
    for about, d in zip(content['found'], data):
        z = both['early'][1].layers[about['name']][0].mean(0); d = d.reshape(3, about['T'], about['h'], about['w'])
        assert np.corrcoef(d[0].ravel(), z.ravel())[0, 1] > .999 and about['total'] == len(both['early'][1].layers[about['name']][0])

def test_traits_refuse_what_does_not_exist_and_repair_what_depends():
    w = FeatureMapInspector([maps('a'), maps('b', T=3, H=10)], layer='one', frame=4, channel=1, place=[15, 12])
    w.order = 'agreement'
    assert w.channel == 1
    w.clip = 1
    assert (w.frame, w.channel, w.place) == (2, 1, [9, 9])
    w.layer = 'two'
    assert w.channel == MEAN
    for name, value in (('clip', 2), ('frame', 5), ('layer', 'three'), ('channel', 4), ('order', 'beauty'), ('per', 'frame'), ('source', 'x'), ('against', 'x'), ('place', [99, 0]), ('place', [1])):
        was = getattr(w, name)
        with pytest.raises(ModelError, match=name): setattr(w, name, value)
        assert getattr(w, name) == was

def test_what_the_browser_sends_passes_the_same_door():
    w = FeatureMapInspector([maps()], layer='one', frame=1)
    w.set_state({'frame': 3, 'channel': 2, 'place': [3, 4]})
    assert (w.frame, w.channel, w.place) == (3, 2, [3, 4])
    w.set_state({'layer': 'two', 'channel': 1})                                  # together: the channel is meant for this layer
    assert (w.layer, w.channel) == ('two', 1)
    w.set_state({'frame': 99, 'channel': 0})
    assert (w.frame, w.channel) == (3, 1) and 'expected 0 to 4' in w.message

def test_traits_can_be_linked():
    from traitlets import link
    a, b = FeatureMapInspector([maps('a'), maps('b')]), FeatureMapInspector([maps('a'), maps('b')], layer='one')
    for k in ('clip', 'frame', 'place'): link((a, k), (b, k))
    a.frame, a.clip, b.place = 4, 1, [2, 3]
    assert (b.frame, b.clip, a.place) == (4, 1, [2, 3]) and all(w.traits()[k].metadata['sync'] for w in (a, b) for k in ('clip', 'layer', 'frame', 'channel', 'order', 'per', 'source', 'against', 'place'))

def test_limits_stay_while_time_and_clip_move_and_widen_with_the_layer():
    clips = [maps('a'), maps('b')]
    w = FeatureMapInspector(clips, layer='one', channel=0)
    first = w.limits()
    assert first == scale(clips, 'one', 0)
    w.frame = 2; w.clip = 1
    assert w.limits() == first
    about = asked(w, 'maps', 1, 'one')[0]['found']
    assert about['lo'][1] == first.lo and about['lo'][1] + 255*about['step'][1] == pytest.approx(first.hi, abs=1e-5) and about['diff'][1] == pytest.approx(first.diff, abs=1e-5)
    w.per = 'clip'
    assert w.limits() == scale(clips[1], 'one', 0) != first
    w.per = 'layer'
    assert w.limits().hi == max(x.max() for c in clips for x in c.layers['one']) == pytest.approx(about['whole'][1], abs=1e-5)

def test_identical_maps_are_the_same_bytes():
    w = FeatureMapInspector({'a': maps(same=True), 'b': maps(same=True)})
    for layer in ('one', 'two'):
        content, (data,) = asked(w, 'maps', 0, layer)
        real, a, b = data.reshape(3, -1)
        assert (real == a).all() and (a == b).all() and content['found']['median'] == [1, 1]

def test_tables_and_traces_are_exact():
    a, b = maps('a'), half(maps('a'))
    w = FeatureMapInspector({'a': a, 'b': b}, layer='one', channel=2, against='b', order='gain')
    t = w.table().set_index('channel').sort_index()
    assert np.allclose(t.gain, channel_table(b, 'one', 'channel').correlation - channel_table(a, 'one', 'channel').correlation) and w.table().gain.is_monotonic_decreasing
    with pytest.raises(ModelError, match='no place'): w.trace()
    w.place = [15, 0]
    assert (w.trace()['a'] == a.layers['one'][1][2, :, 0, 7]).all() and (w.trace()['b'] == b.layers['one'][1][2, :, 0, 7]).all() and (w.trace().real == a.layers['one'][0][2, :, 0, 7]).all()
    w.source = 'b'
    assert w.against == ''

def test_it_displays_as_a_widget_and_gives_a_static_figure():
    w = FeatureMapInspector(maps(), frame=2)
    assert 'application/vnd.jupyter.widget-view+json' in w._repr_mimebundle_()[0]
    f = w.figure()
    assert type(f).__name__ == 'Figure' and (np.array(f.data[2].z) == view(maps(), 2, w.layer).real).all()

def test_a_page_without_a_kernel_gets_a_picture_of_what_is_shown():
    "The widget's own output holds a PNG: the frame's five channels that come first, the chosen one before them"
    from PIL import Image
    w = FeatureMapInspector({'a': maps(), 'b': half(maps())}, layer='one', frame=1, channel=2)
    still = lambda: np.asarray(Image.open(io.BytesIO(base64.b64decode(w._repr_mimebundle_()[0]['image/png']))))
    first = still()
    assert min(first.shape[:2]) > 200 and len(np.unique(first.reshape(-1, first.shape[-1]), axis=0)) > 50
    for change in (dict(frame=3), dict(channel=0), dict(source='b'), dict(layer='two')):
        for k, v in change.items(): setattr(w, k, v)
        now = still(); assert now.shape != first.shape or (now != first).any(), change
        first = now

def test_every_widget_of_the_notebooks_has_a_still_picture():
    "A code host runs nothing: the output of a cell that is a widget or a page, or that of the next cell, holds a picture"
    from conftest import ROOT
    found = []
    for f in sorted((ROOT/'nbs').rglob('*.ipynb')):
        cells = [c for c in json.loads(f.read_text())['cells'] if c['cell_type'] == 'code']
        outs = [[o.get('data', {}) for o in c['outputs']] for c in cells] + [[]]
        for i in range(len(cells)):
            if not any('application/vnd.jupyter.widget-view+json' in d or '<iframe' in ''.join(d.get('text/html', '')) for d in outs[i]): continue
            found.append(f.name)
            assert any('image/png' in d for d in outs[i] + outs[i+1]), f'{f.name}: {"".join(cells[i]["source"])[-80:]}'
    assert {'03_distill.ipynb', '04a_widgets.ipynb', '04g_page.ipynb'} <= set(found)

# ---- what does not fit -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('clips, words', [([], 'no clips'), ([1], 'FeatureMaps'), ({}, 'no clips'), ('runs/demo', 'str is not FeatureMaps.*run_maps'), (Path('runs/demo'), 'Path is not FeatureMaps'), (FeatureMaps, 'type is not'), ({'a': [maps('a')], 'b': [maps('b')]}, 'no clip in common')])
def test_nothing_to_show_is_an_error(clips, words, tmp_path):
    for call in (lambda: FeatureMapInspector(clips), lambda: inspector_html(clips, tmp_path/'x.html')):
        with pytest.raises(ModdistError, match=words) as e: call()
        assert '\n' not in str(e.value)
    assert not list(tmp_path.glob('*.html'))

def test_what_does_not_belong_together_is_left_out_and_said():
    m = maps(); three = FeatureMaps('three', m.rgb, m.depth, {'three': m.layers['one']}); short = FeatureMaps('short', m.rgb, m.depth, {'one': m.layers['one']})
    colour, wide = FeatureMaps('v', m.rgb, m.rgb, m.layers), maps('x', C=5)
    other = FeatureMaps('a', m.rgb, m.depth, {k: (r + 1, h) for k, (r, h) in m.layers.items()})
    for clips, n, layers, *words in (([m, wide], 1, ['one', 'two'], "clip 'x'", '5 channels', 'another architecture'), ([m, colour], 1, ['one', 'two'], "clip 'v'", 'shows'), ([m, three], 1, ['one', 'two'], 'none of the layers'),
                                     ([m, short], 2, ['one'], 'layer two is not in every clip'), ({'s': m, 'bad': other}, 1, ['one', 'two'], "student 'bad'", 'other real maps'), ({'s': [m, maps('b')], 't': [maps('b')]}, 1, ['one', 'two'], "'a' is missing from t")):
        w = FeatureMapInspector(clips)
        assert (len(w.clips), w.clips.layers) == (n, layers) and all(x in w.message for x in words) and '\n' not in w.message
        assert pack(clips)['message'] in w.message and asked(w, 'maps', 0, layers[0])[0]['found']['sources'] == w.clips.names

def test_a_tap_that_was_not_taught_is_named_with_what_to_do():
    m = maps(); r, h = m.layers['one']
    noise, dead = FeatureMaps('n', m.rgb, m.depth, {'one': (r, rng(9).random(r.shape)), 'two': m.layers['two']}), FeatureMaps('d', m.rgb, m.depth, {'one': (r, h*0)})
    w = FeatureMapInspector(noise, layer='one')
    assert 'not taught' in w.message and 'one' in w.message and asked(w, 'maps', 0, 'one')[0]['found']['advice'] == {'student': w.message}
    w.layer = 'two'
    assert w.message == ''
    assert 'constant' in FeatureMapInspector(dead).message
    both = FeatureMapInspector({'good': FeatureMaps('n', m.rgb, m.depth, m.layers), 'lost': noise}, layer='one')   # said when it is looked at, not before
    assert both.message == ''
    both.against = 'lost'
    assert 'lost does not follow' in both.message
    both.source = 'lost'
    assert both.message.count('lost does not follow') == 1 and both.against == ''

def test_clips_on_demand_say_what_is_wrong_and_go_on():
    from moddist.maps import LazyMaps
    made = []
    def make(i, told):
        made.append(i)
        if i == 1: raise ModelError('layer one has NaN: load an earlier checkpoint')
        if i == 2: raise RuntimeError('size 12 and 14 differ\nmore')
        both = {'a': maps(f'{i}'), 'b': half(maps(f'{i}'))}
        if i == 3: told.append('b left out: no file'); del both['b']
        return both
    titles = dict(student_title='RGB', teacher_title='depth', unit='mm', scalar=True)
    w = FeatureMapInspector(LazyMaps(make, [(f'{i}', '') for i in range(4)], ['one', 'two'], titles, ['a', 'b']), layer='one', against='b')
    assert made == [0] and w.message == ''
    w.clip = 1
    assert w.message == 'layer one has NaN: load an earlier checkpoint' == asked(w, 'maps', 1, 'one')[0]['error'] == asked(w, 'clip', 1)[0]['error']
    w.clip = 2
    assert "clip '2'" in w.message and 'size 12 and 14 differ' in w.message and '\n' not in w.message
    w.clip = 3
    assert 'b left out: no file' in w.message and asked(w, 'maps', 3, 'one')[0]['found']['sources'] == ['a']
    w.clip = 0
    assert w.message == '' and made.count(0) == 1
    assert "no layer 'nine'" in asked(w, 'maps', 0, 'nine')[0]['error'] and 'could not be computed' in asked(w, 'maps', 77, 'one')[0]['error']
    w.close(); assert w.clips.items.nbytes == 0

# ---- the file ----------------------------------------------------------------------------------------------------
def test_values_in_the_file_decode_to_the_arrays():
    clips = [maps('a'), maps('b', T=3)]
    d = page_data(inspector_page(clips))
    for i, clip in enumerate(clips):
        for j, (name, pair) in enumerate(clip.layers.items()):
            about, m = d['layers'][j], d['clips'][i]['maps'][j]
            q = stored(m['data'], (2, *m['shape']))
            assert about['name'] == name and about['channels'] == [MEAN, *range(len(pair[0]))] and d['sources'] == ['student']
            for side in (0, 1):
                back = np.array(about['lo'])[:, None, None, None] + q[side] * np.array(about['step'])[:, None, None, None]
                want = np.concatenate([pair[side].mean(0, keepdims=True), pair[side]])
                assert (abs(back - want) <= .51*np.array(about['step'])[:, None, None, None] + 1e-6).all()
            for t in (0, len(clip) - 1):
                v = view(clip, t, name, 1)
                assert abs(m['cosine'][0][2][t] - v.cosine) < 1e-3 and abs(m['correlation'][0][2][t] - v.correlation) < 1e-3
            assert about['diff'][2] == pytest.approx(scale(clips, name, 1).diff, abs=1e-5)

def test_two_students_in_one_file():
    a, b = maps('a'), half(maps('a'))
    d = page_data(inspector_page({'a': a, 'b': b}))
    about, m = d['layers'][0], d['clips'][0]['maps'][0]
    q = stored(m['data'], (3, *m['shape']))
    for side, want in enumerate((a.layers['one'][0], a.layers['one'][1], b.layers['one'][1])):
        assert (abs(np.array(about['lo'])[1:, None, None, None] + q[side, 1:]*np.array(about['step'])[1:, None, None, None] - want) <= .51*np.array(about['step'])[1:, None, None, None] + 1e-6).all()
    assert d['sources'] == ['a', 'b'] and np.allclose([r[1:] for r in m['r']], [channel_table(x, 'one', 'channel').correlation for x in (a, b)], atol=1e-3)

def test_cameras_in_the_file_decode_to_the_frames():
    from PIL import Image
    m = maps(); d = page_data(inspector_page(m)); c = d['clips'][0]
    for t, uri in enumerate(c['rgb']): assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))) == m.rgb[t]).all()
    q = stored(c['depth']['data'], (5, 16, 16)).astype(float)
    assert ((q == 0) == (m.depth == 0)).all()
    step = (d['far'] - d['near'])/254
    inside = (m.depth >= d['near']) & (m.depth <= d['far'])
    assert abs(d['near'] + (q - 1)*step - m.depth)[inside].max() <= .51*step

def test_identical_maps_have_identical_bytes():
    d = page_data(inspector_page(maps(same=True)))
    for layer in d['clips'][0]['maps']:
        real, hall = stored(layer['data'], (2, *layer['shape']))
        assert (real == hall).all()

def test_the_file_loads_nothing_and_runs_no_data_as_code():
    evil = '</script><script>alert(1)</script>{{css}}'
    page = inspector_page(maps(evil, action='<img src=x>'), title='<h1>&', table=[{'<b>model': '<i>x</i>', 'top1': .123456}], provenance='<u>run</u>')
    body = page.replace('http-equiv', '')
    assert not re.search(r'https?:|//cdn|@import|url\(|<link|<img|<iframe|fetch\(|XMLHttpRequest|import\(', body)
    assert page.count('<script') == 2 and '&lt;h1&gt;&amp;' in page and '&lt;i&gt;x&lt;/i&gt;' in page and '&lt;u&gt;run' in page
    assert page_data(page)['clips'][0]['id'] == evil
    assert "default-src 'none'" in page and '<meta charset="utf-8">' in page and '0.123' in page

def test_the_strongest_channels_are_kept_and_the_mean_stays_true():
    m = maps(C=20); d = pack(m, channels=6)
    about, packed = d['layers'][0], d['clips'][0]['maps'][0]
    assert sorted(about['channels'][1:]) == sorted(channel_table(m, 'one', 'energy').channel[:6]) and about['total'] == 20
    q = stored(packed['data'], (2, *packed['shape']))
    assert abs(about['lo'][0] + q[1, 0]*about['step'][0] - m.layers['one'][1].mean(0)).max() <= .51*about['step'][0]
    assert '6 strongest of 20' in inspector_page(m, channels=6)

@pytest.mark.parametrize('clips', (1, 3))
def test_worst_case_stays_below_the_promised_size(clips):
    "16 frames x 64 channels x 4 layers of incompressible noise, with 224 px cameras"
    g = rng('worst'); noise = lambda *s: g.random(s, dtype=np.float32)
    m = FeatureMaps('n', g.integers(0, 255, (16, 224, 224, 3), dtype=np.uint8), 4000*noise(16, 224, 224), {f'layer{i}': (noise(64, 16, n, n), noise(64, 16, n, n)) for i, n in enumerate((56, 28, 14, 7), 1)})
    page = inspector_page([m]*clips)
    assert len(page.encode()) <= 5e6
    assert re.search(r'layer1: shown as means over \d+ x \d+ cells', page)

def test_what_cannot_fit_says_what_to_do():
    with pytest.raises(ModelError, match='pass fewer clips'): pack([maps()]*3, max_mb=.07)

def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    f = inspector_html(maps(), tmp_path/'i.html')
    old = f.read_text()
    def full(self, *a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(ModdistError, match='no space left'): inspector_html(maps('other'), f)
    monkeypatch.undo()
    assert f.read_text() == old and len(list(tmp_path.glob('*.html'))) == 1
