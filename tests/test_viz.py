"Figures of feature maps: one shared scale, five panes that hold what they claim."
import io
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from moddist.core import DataError, ModelError, rng
from moddist.curves import plot_table, plot_terms, summary_rows, wilson
from moddist.maps import MEAN, FeatureMaps, channel_table
from moddist.show import NO_READING, lut
from moddist.viz import COLOURS, bind, depth_range, figure, scale, show_channels, show_compare, show_feature_maps, show_film, show_place, through_time, view
from conftest import refused

def maps(seed=0, C=5, T=4, h=6, Tm=None, dtype=np.float32, same=False, **kw):
    g = rng('viz', seed)
    real = np.maximum(g.normal(size=(C, Tm or T, h, h)), 0).astype(dtype)
    hall = real.copy() if same else np.maximum(real + g.normal(0, .3, real.shape), 0).astype(dtype)
    depth = g.integers(1500, 4000, (T, 12, 12)).astype(np.uint16); depth[:, 0] = 0
    return FeatureMaps(f'clip {seed}', g.integers(0, 255, (T, 12, 12, 3), dtype=np.uint8), depth, {'a': (real, hall), 'b': (real[:2], hall[:2])}, **kw)

def images(fig): return [im for ax in fig.axes for im in ax.images]

# ---- views ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('T, Tm', [(4, 4), (8, 4), (8, 3), (5, 2), (3, 1)])
def test_frames_of_a_layer_that_is_coarser_in_time(T, Tm):
    "Every map is shown, in order, each about equally long"
    m = maps(T=T, Tm=Tm)
    shown = [next(k for k in range(Tm) if (view(m, t, 'a', 0).real == m.layers['a'][0][0, k]).all()) for t in range(T)]
    assert shown == sorted(shown) and set(shown) == set(range(Tm))
    counts = np.bincount(shown)
    assert counts.max() - counts.min() <= 1

def test_view_is_the_slice_it_claims_and_depth_holes_are_nan():
    m = maps()
    real, hall = m.layers['a']
    v, mean = view(m, 2, 'a', 3), view(m, 2, 'a', MEAN)
    assert (v.real == real[3, 2]).all() and (v.diff == hall[3, 2] - real[3, 2]).all() and np.allclose(mean.hallucinated, hall[:, 2].mean(0))
    assert np.isnan(v.depth[0]).all() and (v.depth[1:] == m.depth[2, 1:]).all()
    assert np.isclose(v.correlation, np.corrcoef(real[3, 2].ravel(), hall[3, 2].ravel())[0, 1])

# ---- scales ------------------------------------------------------------------------------------------------------
def test_scale_covers_everything_it_says_and_no_more():
    a, b = maps(1), maps(2)
    for channel in (MEAN, 3):
        pick = lambda x: x.mean(0) if channel == MEAN else x[channel]
        every = [pick(x) for m in (a, b) for x in m.layers['a']]
        s = scale([a, b], 'a', channel)
        assert s.lo == 0 and np.isclose(s.hi, max(x.max() for x in every))
        assert np.isclose(s.diff, max(np.abs(pick(h) - pick(r)).max() for r, h in (m.layers['a'] for m in (a, b))))
    assert scale(a, 'a', per='layer').hi == max(x.max() for x in a.layers['a'])
    assert '2 clips' in scale([a, b], 'a').over and 'this clip' in scale(a, 'a').over

def test_scale_of_signed_and_of_empty_maps():
    m = maps(); r, h = m.layers['a']
    signed = FeatureMaps('s', m.rgb, m.depth, {'a': (r - 1, h - 1)})
    assert np.isclose(scale(signed, 'a', 0).lo, min((r - 1)[0].min(), (h - 1)[0].min()))
    zero = scale(FeatureMaps('z', m.rgb, m.depth, {'a': (r*0, h*0)}), 'a', 0)
    assert zero.hi > zero.lo == 0 and zero.diff > 0

def test_depth_range_is_not_ruled_by_holes_or_strays():
    m = maps(); m.depth[:] = 2000; m.depth[:, :6] = 3000; m.depth[0, 0, 0], m.depth[1] = 60000, 0
    assert depth_range(m) == (2000, 3000)
    m.depth[:] = 0
    lo, hi = depth_range(m)
    assert hi > lo

# ---- figures -----------------------------------------------------------------------------------------------------
def test_figure_panes_hold_the_view_on_one_shared_scale():
    m = maps(T=4); f = figure(m, 1, 'a', 2); v = view(m, 1, 'a', 2); s = scale(m, 'a', 2)
    assert (f.data[2].z == v.real).all() and (f.data[3].z == v.hallucinated).all() and (f.data[4].z == v.diff).all()
    assert f.data[2].coloraxis == f.data[3].coloraxis == 'coloraxis2' != f.data[4].coloraxis
    c2, c3 = f.layout.coloraxis2, f.layout.coloraxis3
    assert (c2.cmin, c2.cmax, c3.cmin, c3.cmax) == (s.lo, s.hi, -s.diff, s.diff)
    assert 'all frames of this clip' in c2.colorbar.title.text and c2.colorbar.ticktext[-1] == f'{s.hi:.3g}' and 'mm' in f.layout.coloraxis.colorbar.title.text
    assert f'{v.cosine:.2f}' in f.layout.title.text
    assert all(x is None for x in f.data[1].z[0])                                # the row without a reading

def test_identical_maps_leave_an_all_zero_difference_everywhere():
    m = maps(same=True)
    for frame in range(4):
        for c in range(MEAN, 5): assert not figure(m, frame, 'a', c).data[4].z.any()
    assert all(not im.get_array().any() for im in images(show_feature_maps(m, 'a'))[-5:])

def test_bind_moves_arrays_and_keeps_traces():
    m, n = maps(1), maps(2)
    f = figure(m, 0, 'a', 0); traces, source = f.data, f.data[0].source
    v = bind(f, n, 3, 'b', 1, scale(n, 'b', 1))
    assert all(x is y for x, y in zip(f.data, traces)) and f.data[0].source != source
    assert (f.data[3].z == n.layers['b'][1][1, 3]).all() and (v.hallucinated == f.data[3].z).all()

def test_text_from_data_cannot_be_markup():
    f = figure(maps(action='<b>kick</b> & run'), 0)
    assert '&lt;b&gt;kick&lt;/b&gt; &amp; run' in f.layout.title.text

def test_panes_cover_the_frame_whatever_the_size_of_the_map():
    "The edges of the first and the last cell are the edges of the RGB frame"
    g = rng(5); m = FeatureMaps('odd', np.zeros((2, 30, 50, 3), np.uint8), np.ones((2, 300, 500)), {'a': (g.random((1, 2, 4, 7)),)*2})
    for t in figure(m).data[1:]:
        h, w = np.shape(t.z)
        assert np.allclose([t.x0 - t.dx/2, t.x0 + (w - .5)*t.dx, t.y0 - t.dy/2, t.y0 + (h - .5)*t.dy], [-.5, 49.5, -.5, 29.5])
    assert max(np.shape(figure(m).data[1].z)) <= 128

def test_static_figures_share_the_scale_between_rows():
    m = maps()
    ims = images(show_feature_maps(m, 'a', [0, 3], frame=1))
    real, hall, diff = ims[2:4], ims[4:6], ims[6:8]
    assert {im.get_clim() for im in real + hall} == {(0, max(scale(m, 'a', c).hi for c in (0, 3)))}
    assert all(lo == -hi for lo, hi in (im.get_clim() for im in diff))
    assert (diff[1].get_array() == m.layers['a'][1][3, 1] - m.layers['a'][0][3, 1]).all()
    film = images(show_film(m, 'a', 2, frames=[0, 3]))
    assert (film[1].get_array() == m.rgb[3]).all() and (film[5].get_array() == m.layers['a'][0][2, 3]).all()

def _seen_by(rgb, kind):
    "Lightness 0..100 and CIE Lab of colours 0..255 as seen with normal or dichromatic vision (Machado et al. 2009, severity 1)"
    m = {'normal': np.eye(3), 'protan': [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
         'deutan': [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]], 'tritan': [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}[kind]
    s = np.asarray(rgb)/255; lin = np.clip(np.where(s <= .04045, s/12.92, ((s + .055)/1.055)**2.4) @ np.transpose(m), 0, 1)
    xyz = lin @ np.array([[.4124, .2126, .0193], [.3576, .7152, .1192], [.1805, .0722, .9505]])/[.9505, 1, 1.089]
    f = np.where(xyz > (6/29)**3, np.cbrt(xyz), xyz*(29/6)**2/3 + 4/29)
    return np.stack([116*f[:, 1] - 16, 500*(f[:, 0] - f[:, 1]), 200*(f[:, 1] - f[:, 2])], 1)

@pytest.mark.parametrize('kind', ('normal', 'protan', 'deutan', 'tritan'))
def test_the_colours_can_be_read_by_everyone(kind):
    "More is lighter (or darker) all along the map; the two signs of a difference stay apart, and zero is the lightest"
    for name, sign in (('feature', 1), ('depth', -1)):
        light = sign*np.diff(_seen_by(lut(COLOURS[name])[::8], kind)[:, 0])
        assert (light > -.5).all() and light.sum() > 60, name
    d = _seen_by(lut(COLOURS['diff']), kind)
    assert (np.diff(d[:128:8, 0]) > 0).all() and (np.diff(d[128::8, 0]) < 0).all()
    assert all(np.linalg.norm(d[127 - k] - d[128 + k]) > 20 for k in range(40, 128, 8))

def test_no_reading_is_one_grey_everywhere_and_striped():
    "Grey alone will not do: to who sees no green it is a depth in between"
    from moddist.page import _static
    assert np.linalg.norm(_seen_by(lut(COLOURS['depth']), 'deutan') - _seen_by([NO_READING], 'deutan'), axis=1).min() < 5
    fig = show_feature_maps(maps(), 'a', [0]); fig.savefig(file := io.BytesIO(), dpi=fig.dpi)
    (ax,) = [a for a in fig.axes if a.get_title() == 'depth']
    pixels = np.asarray(Image.open(file).convert('RGB')).astype(int)
    (x0, y0), (x1, y1) = ax.transData.transform([(0, .3), (11, -.3)]).astype(int)
    hole = pixels[len(pixels) - y1:len(pixels) - y0, x0:x1].reshape(-1, 3)
    assert len(hole) and np.ptp(hole, axis=0).min() > 20
    grey = '#%02x%02x%02x' % NO_READING
    assert f'--void: {grey}' in _static('inspector.css') and figure(maps()).layout.plot_bgcolor == grey

# ---- more looks --------------------------------------------------------------------------------------------------
def test_the_sheet_shows_the_channels_in_their_order():
    m = maps(C=15)
    table = channel_table(m, 'a', 'agreement').head(13)
    fig = show_channels(m, 'a', 'agreement', n=13, frame=1)
    shown = [(ax.get_title().partition('\n')[0], im.get_array(), im.get_clim()) for ax in fig.axes for im in ax.images]
    assert [t for t, _, _ in shown if t] == [str(c) for c in table.channel] and len(shown) == 26
    first = table.channel[0]; pair = [a for t, a, _ in (shown[0], shown[12])]                # a row of 12 real maps, then their hallucinations
    assert (pair[0] == m.layers['a'][0][first, 1]).all() and (pair[1] == m.layers['a'][1][first, 1]).all()
    assert shown[0][2] == shown[12][2] == (scale(m, 'a', first).lo, scale(m, 'a', first).hi)

@pytest.mark.parametrize('T, Tm', [(4, 4), (8, 4), (5, 2)])
def test_a_place_through_time_is_the_cell_of_every_frame(T, Tm):
    m = maps(T=T, Tm=Tm)
    for x, y in ((0, 0), (11, 11), (5, 7)):
        for c in (MEAN, 2):
            real, hall = through_time(m, x, y, 'a', c)
            want = [view(m, t, 'a', c) for t in range(T)]
            assert np.allclose(real, [v.real[y*6//12, x*6//12] for v in want]) and np.allclose(hall, [v.hallucinated[y*6//12, x*6//12] for v in want])
    refused(lambda: through_time(m, 12, 0), '12 x 12 px', kind=ModelError); refused(lambda: through_time(m, -1, 0), 'x -1', kind=ModelError)

def test_the_figure_of_a_place_draws_its_traces():
    m, n = maps(1), maps(1); other = FeatureMaps(n.clip_id, n.rgb, n.depth, {k: (r, h/2) for k, (r, h) in n.layers.items()})
    fig = show_place({'full': m, 'half': other}, 5, 7, 'a', 1)
    lines = {l.get_label(): l.get_ydata() for l in fig.axes[-1].lines if not l.get_label().startswith('_')}
    assert list(lines) == ['real', 'full', 'half'] and np.allclose(lines['half'], lines['full']/2) and np.allclose(lines['full'], through_time(m, 5, 7, 'a', 1)[1])

def test_students_are_compared_on_one_scale():
    m = maps(1); other = FeatureMaps('x', m.rgb, m.depth, {k: (r, 2*h) for k, (r, h) in m.layers.items()})
    fig = show_compare({'one': m, 'two': other}, 'a', 2, frames=[0, 3])
    ims = [ax.images[0] for ax in fig.axes[:12]]                                             # rgb, real, one, one - real, two, two - real; two frames each
    value, signed = {ims[i].get_clim() for i in (2, 3, 4, 5, 8, 9)}, {ims[i].get_clim() for i in (6, 7, 10, 11)}
    assert value == {(0, scale([m, other], 'a', 2).hi)} and signed == {(-scale([m, other], 'a', 2).diff, scale([m, other], 'a', 2).diff)}
    assert (ims[11].get_array() == view(other, 3, 'a', 2).diff).all()

# ---- curves and tables -------------------------------------------------------------------------------------------
def test_wilson_against_scipy():
    from scipy.stats import binomtest
    for k, n in ((0, 10), (3, 10), (50, 100), (480, 480)):
        want = binomtest(k, n).proportion_ci(method='wilson')
        assert np.allclose(wilson(k/n, n, 1.959964), (want.low, want.high), atol=1e-6)

def test_summary_rows_against_scipy():
    from scipy.stats import t
    x = np.array([.5, .56, .61, .48])
    s = summary_rows([dict(name='a', top1=v, n=100) for v in x] + [dict(name='b', top1=.7, n=50)])
    lo, hi = t.interval(.95, 3, x.mean(), x.std(ddof=1)/2)
    assert s.name.tolist() == ['a', 'b'] and np.allclose(s.loc[0, ['top1', 'lo', 'hi']].astype(float), [x.mean(), lo, hi])
    assert np.allclose((s.lo[1], s.hi[1]), wilson(.7, 50))

def test_plots_draw_every_column_and_row():
    log = pd.DataFrame({'epoch': [0, 1], 'train_loss': [2., 1.], 'valid_loss': [2., 1.5], 'kd': [1., .5], 'note': ['x', 'y']})
    axes = [a for a in plot_terms(log).axes if a.get_title()]
    assert [a.get_title() for a in axes] == ['loss', 'kd'] and [len(a.lines) for a in axes] == [2, 1]
    ax = plot_table([dict(name='rgb', top1=.5, n=10), dict(name='depth', top1=.6, n=10)], chance=.1).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ['rgb', 'depth']
    with pytest.raises(DataError, match='expected name and top1'): plot_table([dict(model='rgb')])

def test_the_default_layer_is_the_deepest_worth_looking_at():
    one = lambda **n: FeatureMaps('c', np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8)), {k: (np.ones((1, 2, c, c)),)*2 for k, c in n.items()})
    named = lambda m: figure(m).layout.coloraxis2.colorbar.title.text.split(':')[0].split(', ')[1]
    assert [named(m) for m in (one(a=56, b=28, c=14, d=7), one(a=12, b=6, c=3), one(a=6, b=3), one(a=3, b=3))] == ['c', 'a', 'a', 'a']
