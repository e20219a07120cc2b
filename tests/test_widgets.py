"The inspector: traits move the panes, the file holds the arrays, what cannot be shown is said in one line."
import base64
import io
import json
import re
import zlib
import numpy as np
import pytest
from moddist.core import ModdistError, ModelError, rng
from moddist.viz import MEAN, FeatureMaps, channel_table, scale, view
from moddist.widgets import FeatureMapInspector, inspector_html, inspector_page, pack

def maps(name='a', T=5, C=4, same=False, n=8, **kw):
    g = rng('widgets', name)
    real = np.maximum(g.normal(size=(C, T, n, n)), 0).astype(np.float32)
    hall = real.copy() if same else np.maximum(real + g.normal(0, .3, real.shape), 0).astype(np.float32)
    depth = g.integers(1500, 4000, (T, 16, 16)).astype(np.uint16); depth[:, 0] = 0
    return FeatureMaps(name, g.integers(0, 255, (T, 16, 16, 3), dtype=np.uint8), depth, {'one': (real, hall), 'two': (real[:2, :, ::2, ::2], hall[:2, :, ::2, ::2])}, **kw)

def page_data(page): return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
def stored(text, shape): return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)

# ---- the live widget ---------------------------------------------------------------------------------------------
def test_every_trait_moves_the_panes_without_a_new_trace():
    clips = [maps('a'), maps('b')]
    w = FeatureMapInspector(clips, layer='one')
    traces = w.fig.data
    for name, value in (('frame', 3), ('channel', 2), ('clip', 1), ('layer', 'two')):
        z = np.array(w.fig.data[3].z)
        setattr(w, name, value)
        v = view(clips[w.clip], w.frame, w.layer, w.channel)
        now = np.array(w.fig.data[3].z)
        assert z.shape != now.shape or (z != now).any(), name
        assert (now == v.hallucinated).all() and (np.array(w.fig.data[4].z) == v.diff).all()
        assert w.controls[name].value == value
    assert all(x is y for x, y in zip(w.fig.data, traces))

def test_controls_and_traits_are_one_state():
    w = FeatureMapInspector([maps('a'), maps('b', T=3)], layer='one', frame=4, channel=1)
    w.controls['order'].value = 'agreement'
    assert w.channel == 1 and [v for _, v in w.controls['channel'].options] == [MEAN, *channel_table(w.maps[0], 'one', 'agreement').channel]
    w.controls['clip'].value = 1
    assert (w.frame, w.controls['frame'].max, w.channel) == (2, 2, 1)
    w.controls['layer'].value = 'two'
    assert (w.channel, w.controls['channel'].value) == (MEAN, MEAN) and len(w.controls['channel'].options) == 3

def test_limits_stay_while_time_and_clip_move_and_widen_with_the_layer():
    clips = [maps('a'), maps('b')]
    w = FeatureMapInspector(clips, layer='one', channel=0)
    first = w.limits()
    assert first == scale(clips, 'one', 0)
    w.frame = 2; w.clip = 1
    assert w.limits() == first
    w.per = 'layer'
    assert w.limits().hi == max(x.max() for c in clips for x in c.layers['one']) and w.fig.layout.coloraxis2.cmax == w.limits().hi

def test_identical_maps_stay_zero_everywhere():
    w = FeatureMapInspector(maps(same=True))
    for layer in ('one', 'two'):
        w.layer = layer
        for w.channel in range(MEAN, 2):
            for w.frame in range(5): assert not np.any(w.fig.data[4].z)

def test_impossible_values_change_nothing_and_clicks_get_a_message():
    w = FeatureMapInspector([maps()], layer='one', frame=1)
    for name, value in (('clip', 1), ('frame', 5), ('layer', 'three'), ('channel', 4), ('order', 'beauty'), ('per', 'clip')):
        was = getattr(w, name)
        with pytest.raises(ModelError, match=name): setattr(w, name, value)
        assert getattr(w, name) == was
    w._asked('frame', 99)                                                        # what a control would do
    assert 'expected 0 to 4' in w.message
    w.frame = 2
    assert w.message == ''

@pytest.mark.parametrize('clips, words', [([], 'no clips'), ([1], 'FeatureMaps'), ([maps(C=4), maps('x', C=5)], 'channels depending'),
    ([maps(), FeatureMaps('v', maps().rgb, maps().rgb, maps().layers)], 'different signals'), ([maps(), FeatureMaps('l', maps().rgb, maps().depth, {'three': maps().layers['one']})], 'no layer in common')])
def test_clips_that_do_not_belong_together(clips, words, tmp_path):
    for call in (lambda: FeatureMapInspector(clips), lambda: inspector_html(clips, tmp_path/'x.html')):
        with pytest.raises(ModdistError, match=words) as e: call()
        assert '\n' not in str(e.value)
    assert not list(tmp_path.glob('*.html'))

def test_a_layer_that_not_all_clips_have_is_left_out_and_said():
    short = FeatureMaps('short', maps().rgb, maps().depth, {'one': maps().layers['one']})
    w = FeatureMapInspector([maps(), short])
    assert w.layers == ['one'] and 'two' in w.message
    assert 'two' in pack([maps(), short])['message']

def test_it_displays_as_a_widget_and_gives_a_static_figure():
    w = FeatureMapInspector(maps(), frame=2)
    assert 'application/vnd.jupyter.widget-view+json' in w._repr_mimebundle_()
    f = w.figure()
    assert type(f).__name__ == 'Figure' and (np.array(f.data[2].z) == np.array(w.fig.data[2].z)).all()

# ---- the file ----------------------------------------------------------------------------------------------------
def test_values_in_the_file_decode_to_the_arrays():
    clips = [maps('a'), maps('b', T=3)]
    d = page_data(inspector_page(clips))
    for i, clip in enumerate(clips):
        for j, (name, pair) in enumerate(clip.layers.items()):
            about, m = d['layers'][j], d['clips'][i]['maps'][j]
            q = stored(m['data'], (2, *m['shape']))
            assert about['name'] == name and about['channels'] == [MEAN, *range(len(pair[0]))]
            for side in (0, 1):
                back = np.array(about['lo'])[:, None, None, None] + q[side] * np.array(about['step'])[:, None, None, None]
                want = np.concatenate([pair[side].mean(0, keepdims=True), pair[side]])
                assert (abs(back - want) <= .51*np.array(about['step'])[:, None, None, None] + 1e-6).all()
            for t in (0, len(clip) - 1):
                v = view(clip, t, name, 1)
                assert abs(m['cosine'][2][t] - v.cosine) < 1e-3 and abs(m['correlation'][2][t] - v.correlation) < 1e-3
            assert about['diff'][2] == pytest.approx(scale(clips, name, 1).diff, abs=1e-5)

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
    from pathlib import Path
    def full(self, *a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(ModdistError, match='no space left'): inspector_html(maps('other'), f)
    monkeypatch.undo()
    assert f.read_text() == old and len(list(tmp_path.glob('*.html'))) == 1
