"""Figures with one look: what they show by hand, what they refuse, and the saved files in a real browser."""
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from conftest import refused
from moddist import figures
from moddist.calibration import reliability_figure
from moddist.core import ModdistError, rng
from moddist.evaluate import Predictions
from moddist.figures import (FONT, INK, EmbeddingMap, cka_matrix, cka_table, confusion, confusion_difference, embedding_map, accuracy_figure, feature_figure, figure_block, figure_page, look, picture, project,
                             save_figure, term_curves)
from moddist.more_losses import cka
import test_browser
from test_browser import maps

torch.set_num_threads(1)
browser, tab = test_browser.browser, test_browser.page                                              # fixtures: a browser, and a page without a network that remembers problems


def of(labels, guesses, k=3): return Predictions(torch.nn.functional.one_hot(torch.tensor(guesses), k).float(), torch.tensor(labels), tuple(f'c{i}' for i in range(len(labels))))


LABELS, STUDENT, BASELINE = [0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 0, 0, 2], [0, 1, 1, 2, 1, 1, 2, 2]
LOG = pd.DataFrame(dict(epoch=[1, 2, 3], train_loss=[3., 2., 1.], valid_loss=[3., 2.5, 2.], valid_accuracy=[.1, .4, .5]))


def _features(n): return rng('map', n).normal(size=(n, 5))


def some_map(n=24, **kwargs):
    films = [rng('film', i).integers(0, 255, (3, 30, 40, 3), dtype=np.uint8) for i in range(n)]
    return embedding_map(_features(n), np.arange(n) % 9, [f'clip{i}' for i in range(n)], films, classes=[f'<b>{k}' for k in range(9)], **kwargs)


ALL = dict(feature=lambda: feature_figure(maps(), 'unit1', 2), terms=lambda: term_curves(LOG), confusion=lambda: confusion_difference(of(LABELS, STUDENT), of(LABELS, BASELINE)),
           accuracy=lambda: accuracy_figure([dict(name='a<b', top1=.5, n=40), dict(name='rgb+hallucination', top1=.7, n=40)], .1),
           cka=lambda: cka_matrix({'a': torch.randn(9, 4), 'b': torch.randn(9, 5)}), map=some_map, reliability=lambda: look(reliability_figure(of(LABELS, STUDENT))))


# ---------------------------------------------------------------- one look

@pytest.mark.parametrize('name', ALL)
def test_every_figure_has_the_same_look(name):
    "Same font and colours; every axis that shows numbers or names has a title"
    fig = ALL[name]()
    assert isinstance(fig, go.Figure)
    t = fig.layout.template.layout
    assert t.font.family == FONT and list(t.colorway) == INK and t.paper_bgcolor == 'white'
    bare = [a for a in fig.layout for k in [fig.layout[a]] if re.fullmatch(r'[xy]axis\d*', a) and k.visible is not False and k.showticklabels is not False and not k.title.text and k.matches is None and not (name == 'accuracy' and a == 'yaxis')]                # names of models say what they are
    assert not bare, bare


def test_look_changes_only_what_is_asked():
    fig = look(go.Figure(go.Scatter(y=[1, 2]), layout=dict(title='kept', height=111, xaxis_title='x too')))
    assert (fig.layout.title.text, fig.layout.height, fig.layout.xaxis.title.text, fig.layout.width) == ('kept', 111, 'x too', None)
    look(fig, title='new', x='time, s', y='power, W', width=300)
    assert (fig.layout.title.text, fig.layout.height, fig.layout.xaxis.title.text, fig.layout.yaxis.title.text, fig.layout.width) == ('new', 111, 'time, s', 'power, W', 300)


# ---------------------------------------------------------------- what they show

def test_confusion_by_hand():
    assert confusion(of(LABELS, STUDENT), rates=False).tolist() == [[3, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert confusion(of(LABELS, STUDENT))[0] == pytest.approx([.75, .25, 0]) and np.isnan(confusion(of([0], [1], 2))[1]).all()


@pytest.mark.parametrize('rates', [True, False])
def test_confusion_difference_by_hand(rates):
    "Class 0 wins 2 of 4, class 1 loses 1 of 2, class 2 loses 1 of 2"
    fig = confusion_difference(of(LABELS, STUDENT), of(LABELS, BASELINE), ['a', 'b', 'c'], rates, names=('rgb+h', 'rgb-long'))
    h = fig.data[0]
    assert list(h.y) == ['a', 'b', 'c'] == list(h.x)
    assert np.array(h.z) == pytest.approx(np.array([[50, -25, -25], [50, -50, 0], [50, 0, -50]] if rates else [[2, -1, -1], [1, -1, 0], [1, 0, -1]]))
    assert h.zmax == -h.zmin and 'rgb-long' in fig.layout.title.text and 'as many right answers of 8 clips' in fig.layout.title.text
    assert '3 of 4 clips' in h.hovertext[0][0] and '1 of 4 clips' in h.hovertext[0][0]


def test_confusion_difference_sorts_by_gain_and_leaves_out_absent_classes():
    s, b = of([1, 1, 3, 3, 4], [1, 1, 3, 0, 4], 6), of([1, 1, 3, 3, 4], [0, 1, 3, 3, 0], 6)
    h = confusion_difference(s, b).data[0]
    assert list(h.y) == ['4', '1', '3'] and list(h.x) == ['4', '1', '3', '0']                       # 2 and 5 were neither asked nor answered
    assert np.diag(h.z).tolist() == [100, 50, -50] and np.sum(h.z, 1) == pytest.approx(0)


def test_confusion_difference_refuses():
    refused(lambda: confusion_difference(of(LABELS, STUDENT), of(LABELS[:4], BASELINE[:4])), 'different clips', 8, 4)
    refused(lambda: confusion_difference(of(LABELS, STUDENT), of(LABELS[::-1], BASELINE)), 'different clips')
    refused(lambda: confusion_difference(of(LABELS, STUDENT), of(LABELS, BASELINE), ['a']), '1 class names', '3 classes')
    refused(lambda: confusion_difference(of(LABELS, STUDENT), of(LABELS, BASELINE, 4)), '3 classes', 4)


def test_cka_table_is_the_loss_chapters_number():
    a, b = {'x': torch.randn(12, 4), 'y': torch.randn(12, 6, 2, 3, 3)}, {'z': torch.randn(12, 7)}
    t = cka_table(a, b)
    assert t.shape == (2, 1) and t.loc['y', 'z'] == pytest.approx(float(cka(a['y'].mean((2, 3, 4)).double(), b['z'].double(), unbiased=True)), abs=1e-6)
    fig = cka_matrix(a, b, ('<t>', 's'))
    assert np.array(fig.data[0].z) == pytest.approx(t.values) and '12 clips: few' in fig.layout.title.text and '&lt;t&gt;' in fig.layout.yaxis.title.text
    assert 'few' not in cka_matrix({'x': torch.randn(50, 4)}).layout.title.text


def test_unbiased_cka_of_unrelated_layers_is_near_zero():
    "The reason why the plain value is not drawn: 20 clips, 200 dimensions, no relation"
    a, b = torch.randn(20, 200, dtype=torch.double), torch.randn(20, 200, dtype=torch.double)
    assert float(cka(a, b)) > .6 and abs(cka_table({'a': a}, {'b': b}).iloc[0, 0]) < .2


@pytest.mark.parametrize('n', [1, 2, 3])
def test_cka_with_too_few_clips(n): refused(lambda: cka_matrix({'x': torch.randn(n, 5)}), f'{n} clips', '4 or more')


def test_cka_refuses():
    refused(lambda: cka_matrix({}), 'no layers')
    refused(lambda: cka_matrix({'x': torch.randn(9, 5)}, {'y': torch.randn(8, 5)}), "8 clips at 'y' of the second", "9 at 'x'", 'same clips')


@pytest.mark.parametrize('log_scale', [False, True])
def test_term_curves_hold_the_log(log_scale):
    fig = term_curves(LOG, log_scale=log_scale)
    assert {t.name + str(t.yaxis): list(t.y) for t in fig.data} == {'trainy': [3, 2, 1], 'validy': [3, 2.5, 2], 'validy2': [.1, .4, .5]}
    assert [t.line.dash for t in fig.data] == ['solid', 'dash', 'dash'] and sum(bool(t.showlegend) for t in fig.data) == 2
    assert fig.layout.yaxis.type == ('log' if log_scale else 'linear') and fig.layout.yaxis.title.text == 'nats per clip'
    assert len(term_curves(LOG, ['accuracy']).data) == 1
    refused(lambda: term_curves(LOG, ['nothing']), 'nothing', 'train_loss')


def test_accuracy_intervals():
    "One run: Wilson over clips; several: Student's t over seeds, and a dot for each"
    from moddist.curves import wilson
    one = accuracy_figure([dict(name='a', top1=.5, n=100)], chance=.1).data
    lo, hi = wilson(.5, 100)
    assert len(one) == 1 and (one[0].x[0], one[0].error_x.array[0], one[0].error_x.arrayminus[0]) == pytest.approx((50, 100*(hi - .5), 100*(.5 - lo)))
    many = accuracy_figure([dict(name='a', top1=v, n=100) for v in (.4, .5, .6)]).data
    assert list(many[1].x) == pytest.approx([40, 50, 60]) and many[0].error_x.array[0] == pytest.approx(4.302653*10/3**.5)


def test_feature_figure_shows_the_arrays():
    from moddist.viz import view
    m = maps()
    fig = feature_figure(m, 'unit2', [0, 3, -1], frame=1)
    heat = [t for t in fig.data if t.type == 'heatmap' and t.coloraxis != 'coloraxis3']
    for j, c in enumerate((0, 3, -1)):
        v = view(m, 1, 'unit2', c)
        for t, z in zip(heat[3*j:3*j + 3], (v.real, v.hallucinated, v.diff)): assert np.array(t.z, float) == pytest.approx(z, abs=1e-6)
    assert {t.coloraxis for t in heat} == {'coloraxis', 'coloraxis2'} and fig.layout.coloraxis2.cmin == -fig.layout.coloraxis2.cmax


# ---------------------------------------------------------------- maps of clips

def test_pca_against_numpy():
    g = rng('pca')
    x = g.normal(size=(40, 6)) @ g.normal(size=(6, 6))
    y, titles = project(x)
    w, v = np.linalg.eigh(np.cov(x.T))
    assert y.var(0, ddof=1) == pytest.approx(w[::-1][:2]) and np.abs(y) == pytest.approx(np.abs((x - x.mean(0)) @ v[:, ::-1][:, :2]))
    assert f'{100*w[-1]/w.sum():.0f} %' in titles[0]
    again = project(torch.tensor(x)[:, :, None, None])[0]                                              # maps are averaged
    assert again == pytest.approx(y)


def test_tsne_keeps_neighbours_and_the_perplexity():
    g = rng('tsne')
    d = figures._distances(g.normal(size=(60, 4)))
    p = figures._neighbours(d.copy(), 12)
    entropy = -(np.where(p > 0, p*np.log(np.maximum(p, 1e-300)), 0)).sum(1)
    assert np.exp(entropy) == pytest.approx(np.full(60, 12), rel=1e-3) and p.sum(1) == pytest.approx(np.ones(60)) and (np.diag(p) == 0).all()
    x, group = g.normal(0, .4, (90, 8)), np.repeat(np.arange(6), 15)
    x[np.arange(90), group] += 3
    near = lambda y: (group[np.argsort(figures._distances(y) + 1e9*np.eye(90), 1)[:, :5]] == group[:, None]).mean()
    y, titles = project(x, 'tsne', perplexity=10)
    assert near(y) > .97 > near(project(x)[0]) and (project(x, 'tsne', perplexity=10)[0] == y).all() and 't-SNE' in titles[0]


def test_embedding_map_says_which_dot_is_which_clip():
    fig = some_map(24)
    y, _ = project(_features(24))
    told = {c[0]: (c[1], x, z) for t in fig.data for c, x, z in zip(t.customdata, t.x, t.y)}
    assert len(told) == 24 and len(fig.data) == 9
    for i in range(24): assert told[f'clip{i}'] == (f'<b>{i % 9}', pytest.approx(y[i, 0]), pytest.approx(y[i, 1]))
    assert {len(f) for f in fig.layout.meta['films'].values()} == {3}
    assert len({(t.marker.color, t.marker.symbol) for t in fig.data}) == 9


def test_thumbnails_from_files(tmp_path):
    from PIL import Image
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(tmp_path/'a.png')
    fig = embedding_map(np.eye(3), [0, 0, 1], 'abc', [tmp_path/'a.png', None, np.zeros((8, 8, 3), np.uint8)])
    films = fig.layout.meta['films']
    assert [len(films[c]) for c in 'abc'] == [1, 0, 1] and films['a'][0].startswith('data:image/jpeg')
    (tmp_path/'b.png').write_text('no picture')
    for bad in (tmp_path/'b.png', tmp_path/'none.png'): refused(lambda: embedding_map(np.eye(3), [0, 0, 1], 'abc', [bad]*3), bad, "clip 'a'")
    refused(lambda: embedding_map(np.eye(3), [0, 0, 1], 'abc', [np.zeros((4, 4))]*3), "clip 'a'", 'float64 [4, 4]')


@pytest.mark.parametrize('args, words', [((np.eye(3), [0, 1], 'abc'), ('2 labels',)), ((np.eye(3), [0, 1, 2], 'aab'), ('2 different names',)), ((np.eye(3), [0]*3, 'abc', [None]), ('1 thumbnails',)),
                                         ((np.eye(2), [0]*2, 'ab'), ('[2, 2]',)), ((np.full((3, 3), np.nan), [0]*3, 'abc'), ('3 of 3 clips', 'finite'))])
def test_embedding_map_refuses(args, words): refused(lambda: embedding_map(*args), *words)


def test_unknown_projection(): refused(lambda: project(np.eye(4), 'umap'), "'umap'", 'pca or tsne')


def send(m, kind, trace, indexes):
    "What the browser sends to the kernel when somebody points, clicks or draws a loop"
    m.fig._js2py_pointsCallback = dict(event_type=kind, points=dict(trace_indexes=[trace]*len(indexes), point_indexes=list(indexes), xs=[0]*len(indexes), ys=[0]*len(indexes)), device_state=None,
                                       selector=dict(type='lasso', selector_state=dict(xs=[0, 1], ys=[0, 1])) if kind == 'plotly_selected' else None)


def test_map_in_a_notebook_links_to_the_player():
    told = []
    m = EmbeddingMap(some_map(), play=lambda clip: told.append(clip) or go.Figure(go.Scatter(y=[1], name=clip)))
    send(m, 'plotly_hover', 2, [1])
    assert m.hovered == m.fig.data[2].customdata[1][0] == 'clip11' and m.image.value[:2] == b'\xff\xd8' and told == []
    send(m, 'plotly_click', 0, [0])
    assert m.selected == ['clip0'] == told
    assert m.player.outputs[0]['data']['application/vnd.plotly.v1+json']['data'][0]['name'] == 'clip0'
    send(m, 'plotly_selected', 1, [0, 1])
    assert set(m.selected) == {'clip1', 'clip10'} and told[-1] == 'clip1'


def test_map_without_the_index_of_a_clip():
    m = EmbeddingMap(some_map(), df=pd.DataFrame(dict(clip_id=['other'])))
    refused(lambda: setattr(m, 'selected', ['clip3']), "'clip3'", 'not in the index')


# ---------------------------------------------------------------- files

@pytest.mark.parametrize('name', ['figure.pdf', 'figure', 'figure.html.gz'])
def test_other_endings(tmp_path, name):
    refused(lambda: save_figure(term_curves(LOG), tmp_path/name), tmp_path/name, '.html, .png or .svg')
    assert [p.name for p in tmp_path.iterdir()] == ['settings.ini']


def test_html_is_whole_and_alone(tmp_path):
    file = save_figure(look(go.Figure(go.Scatter(y=[1], name='</script><b>')), title='A </title> B'), tmp_path/'deep'/'a.html')
    text = file.read_text(encoding='utf-8')
    assert text.count('id="plotly"') == 1 and file.stat().st_size < 3e6 and '</script><b>' not in text and not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//|@import|fetch\(', text)
    assert [p.name for p in file.parent.iterdir()] == ['a.html']


def test_matplotlib_twins_save_too(tmp_path):
    from moddist.curves import plot_terms
    assert save_figure(plot_terms(LOG), tmp_path/'a.png').read_bytes()[:4] == b'\x89PNG'
    refused(lambda: save_figure(plot_terms(LOG), tmp_path/'a.html'), 'matplotlib')


def test_no_browser_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path)); monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.delenv('CHROMIUM', raising=False)
    refused(lambda: save_figure(term_curves(LOG), tmp_path/'a.png'), 'Chromium', 'apt-get install', '.html', kind=ModdistError)
    monkeypatch.setenv('CHROMIUM', '/nowhere/chrome')
    refused(lambda: save_figure(term_curves(LOG), tmp_path/'a.png'), 'CHROMIUM=/nowhere/chrome', kind=ModdistError)
    assert not (tmp_path/'a.png').exists()


def test_a_browser_that_gives_nothing(tmp_path, monkeypatch):
    fake = tmp_path/'chrome'
    fake.write_text('#!/bin/sh\nexit 3\n'); fake.chmod(0o755)
    monkeypatch.setenv('CHROMIUM', str(fake))
    refused(lambda: picture(term_curves(LOG)), fake, 'no picture', 'exit code 3', kind=ModdistError)


@pytest.mark.browser
def test_png_and_svg(tmp_path):
    "The picture has the size asked for and the colours of the figure"
    from PIL import Image
    try: figures.browser()
    except ModdistError as e: pytest.skip(str(e))
    fig = look(go.Figure(go.Heatmap(z=[[1]], colorscale=[[0, INK[1]], [1, INK[1]]], showscale=False)), height=200)
    p = np.asarray(Image.open(save_figure(fig, tmp_path/'a.png', width=300, scale=2)).convert('RGB'))
    assert p.shape == (400, 600, 3) and (p[200, 300] == [int(INK[1][i:i + 2], 16) for i in (1, 3, 5)]).all() and (p[0, 0] == 255).all()
    svg = save_figure(look(term_curves(LOG), title='Größe − 1'), tmp_path/'a.svg').read_text(encoding='utf-8')
    assert svg.startswith('<svg') and 'Größe − 1' in svg


# ---------------------------------------------------------------- the page in a browser

def state(tab): return json.loads(tab.get_attribute('.figure', 'data-state'))


def opened(tab, file):
    tab.goto(file.as_uri())
    tab.wait_for_selector('body[data-ready]')


@pytest.mark.browser
def test_dots_show_their_clips(tab, tmp_path):
    "Pointing shows the clip, a click keeps it playing, a selection lays out its clips and plays the first"
    fig = some_map()
    opened(tab, save_figure(fig, tmp_path/'map.html'))
    films, at = fig.layout.meta['films'], '''([t, i]) => { const g = document.querySelector('.plot'), b = g.getBoundingClientRect(), x = g._fullLayout.xaxis, y = g._fullLayout.yaxis, p = g.calcdata[t][i];
        return [b.x + x._offset + x.c2p(p.x), b.y + y._offset + y.c2p(p.y)]; }'''
    tab.mouse.move(*tab.evaluate(at, [3, 0]))
    tab.wait_for_function('() => JSON.parse(document.querySelector(".figure").dataset.state).shown === "clip3"')
    assert tab.get_attribute('.side img', 'src') in films['clip3'] and 'clip3' in tab.inner_text('.side figcaption') and '<b>3' in tab.inner_text('.side figcaption')
    tab.mouse.move(*tab.evaluate(at, [5, 1]))                                                          # a click takes the dot that is pointed at, and plotly looks for that every 50 ms
    tab.wait_for_function('() => JSON.parse(document.querySelector(".figure").dataset.state).shown === "clip14"')
    tab.mouse.down(); tab.mouse.up()
    tab.wait_for_function('() => JSON.parse(document.querySelector(".figure").dataset.state).chosen === "clip14"')
    seen = {tab.get_attribute('.side img', 'src') for _ in range(8) if tab.wait_for_timeout(90) is None}
    assert len(seen) > 1 and seen <= set(films['clip14'])                                             # it plays
    tab.evaluate('() => { const g = document.querySelector(".plot"); g.emit("plotly_selected", {points: [0, 1].map(i => ({customdata: g.data[2].customdata[i]}))}); }')
    assert state(tab)['selected'] == ['clip2', 'clip11'] and state(tab)['chosen'] == 'clip2' and tab.locator('.strip button').count() == 2
    tab.locator('.strip button').nth(1).focus(); tab.keyboard.press('Enter')
    assert state(tab)['chosen'] == 'clip11' and tab.get_attribute('.strip button:nth-child(2)', 'aria-pressed') == 'true'


@pytest.mark.browser
@pytest.mark.parametrize('width', [480, 1280])
def test_all_figures_on_one_page(tab, tmp_path, width):
    "Every figure draws without a word of complaint; the library is there once; nothing is cut off sideways"
    (tmp_path/'all.html').write_text(figure_page('All', '<main>' + ''.join(f'<section class="card">{figure_block(f())}</section>' for f in ALL.values()) + '</main>'), encoding='utf-8')
    tab.set_viewport_size(dict(width=width, height=900))
    opened(tab, tmp_path/'all.html')
    assert tab.locator('.main-svg').count() >= len(ALL) and tab.evaluate('document.documentElement.scrollWidth') <= width
    if os.environ.get('MODDIST_SCREENSHOTS'): tab.screenshot(path=str(Path(os.environ['MODDIST_SCREENSHOTS'])/f'figures_{width}.png'), full_page=True)
