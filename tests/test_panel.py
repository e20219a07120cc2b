"""The training panel: it changes no weight, shows the right numbers and maps, and works in a terminal and in a kernel."""
import copy
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.progress import ProgressCallback
from fastai.learner import SkipToEpoch

from conftest import refused
from moddist import synthetic
from moddist.core import DataError, ModelError, seed_all
from moddist.data import clip_dls
from moddist.distill import DistillCallback, Teacher, Term, feature_term, fit, learner, soft_term
from moddist.draws import ClipSampler
from moddist.losses import hallucination_loss
from moddist.maps import agreement, clip_maps, planes
from moddist.models import SmallStream
from moddist.panel import TrainingPanel, panel_figure, watched
from moddist.recipes import Garcia2018, run

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def df(tmp_path_factory): return synthetic.index(synthetic.make(tmp_path_factory.mktemp('panel')/'set', seed=3, train=1, valid=1, test=1, workers=1))


@pytest.fixture(scope='module')
def teacher(): seed_all(5); return SmallStream(10)


def made(df, teacher, *cbs, distill=True, terms=None, **kwargs):
    seed_all(0)
    dls = clip_dls(df, ('rgb', 'depth') if distill else ('rgb',), ClipSampler(4, crop=48, flip=.5), bs=8, workers=0, dev='cpu')
    terms = [soft_term(.25, 10., True), feature_term('unit3', 2.5, True)] if terms is None else terms
    cb = [DistillCallback(Teacher(teacher) if not isinstance(teacher, Teacher) else teacher, terms, hard=.25, **kwargs)] if distill else []
    return learner(dls, copy.deepcopy(teacher if not isinstance(teacher, Teacher) else teacher.streams[0]).requires_grad_(True), cbs=[*cb, *cbs])


def quiet(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(): return fit(learn, epochs)


@pytest.fixture(scope='module')
def watched_run(df, teacher):
    panel = TrainingPanel('terminal', file=io.StringIO())
    return fit(made(df, teacher, panel), 2), panel


# ---------------------------------------------------------------- nothing changes

@pytest.mark.parametrize('where', ['off', 'terminal'])
@pytest.mark.parametrize('distill', [True, False])
def test_weights_and_random_numbers_are_those_without_the_panel(df, teacher, where, distill):
    plain = quiet(made(df, teacher, distill=distill), 1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    seen = quiet(made(df, teacher, TrainingPanel(where, file=io.StringIO()), distill=distill), 1)
    for (k, a), b in zip(plain.model.state_dict().items(), seen.model.state_dict().values()): assert torch.equal(a, b), k
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
    assert [m.training for m in plain.model.modules()] == [m.training for m in seen.model.modules()]
    assert plain.recorder.values[-1][:2] == seen.recorder.values[-1][:2]


def test_a_frozen_norm_stays_frozen(df, teacher):
    learn = made(df, teacher, TrainingPanel('off'))
    class Freeze(Callback):
        def before_train(self): self.learn.model.bn.eval()
    quiet(learn.add_cb(Freeze()), 1)
    assert torch.equal(learn.model.bn.running_mean, teacher.bn.running_mean)


# ---------------------------------------------------------------- the numbers

def test_log_is_what_the_recorder_says(watched_run):
    learn, panel = watched_run
    log = panel.log
    assert log.epoch.tolist() == [1, 2] and [c for c in log if c != 'epoch'] == ['train_soft', 'train_features', 'train_accuracy', 'train_loss', 'valid_loss', 'valid_accuracy', 'valid_soft', 'valid_features', 'valid_correlation']
    want = np.array([[float(v) for v in row] for row in learn.recorder.values])
    assert log[['train_loss', 'valid_loss', 'valid_accuracy', 'valid_soft', 'valid_features']].values == pytest.approx(want)


def test_training_terms_by_hand(df, teacher):
    "Mean over the clips of the batches, as the loss saw them"
    class Spy(Callback):
        order = 54
        def before_epoch(self): self.rows = []
        def after_batch(self):
            if self.training: self.rows.append((len(self.y), self.learn.distill.values['features'], float((self.pred.argmax(1) == self.y).sum())))
    spy, panel = Spy(), TrainingPanel('off')
    quiet(made(df, teacher, panel, spy), 1)
    n, f, right = np.array(spy.rows).T
    assert panel.log.train_features[0] == pytest.approx((n*f).sum()/n.sum()) and panel.log.train_accuracy[0] == pytest.approx(right.sum()/n.sum())


def test_maps_are_those_of_the_fixed_clip(df, teacher, watched_run):
    learn, panel = watched_run
    row = df[df.split == 'valid'].head(1)
    m, = clip_maps(learn.dls, row, learn.distill.teacher.streams[0], learn.model, ('rgb', 'depth'), layers=['unit3'])
    real, hall = m.layers['unit3']
    assert panel.maps['real'] == pytest.approx(planes(real, -1)[2]) and panel.maps['hallucinated'][-1] == pytest.approx(planes(hall, -1)[2], abs=1e-6)
    assert len(panel.maps['hallucinated']) == 2 and (panel.maps['hallucinated'][0] != panel.maps['hallucinated'][1]).any()
    assert panel.log.valid_correlation.iloc[-1] == pytest.approx(np.nanmean(agreement(real, hall)[1]), abs=1e-5) and row.clip_id.iloc[0] in panel.maps['clip']


def test_another_clip_tap_and_channel(df, teacher):
    name = df[df.split == 'valid'].clip_id.iloc[4]
    panel = TrainingPanel('off', clip=name, tap='unit1', channel=3)
    learn = quiet(made(df, teacher, panel), 1)
    m, = clip_maps(learn.dls, df[df.clip_id == name], learn.distill.teacher.streams[0], learn.model, ('rgb', 'depth'), layers=['unit1'])
    assert panel.maps['real'] == pytest.approx(m.layers['unit1'][0][3, 2]) and panel.maps['layer'] == 'unit1' and name in panel.maps['clip']


def test_second_stream_of_a_teacher(df, teacher):
    "Maps of stream 1, which reads depth, compared with the student's"
    seed_all(9)
    two = Teacher(SmallStream(10), teacher)
    term = Term('features', 1., lambda s, t, y: hallucination_loss(s.maps['unit3'], t.maps['streams.1.unit3']), ('unit3',), ('streams.1.unit3',))
    panel = TrainingPanel('off')
    learn = quiet(made(df, two, panel, terms=[term], inputs=('rgb', 'depth')), 1)
    m, = clip_maps(learn.dls, df[df.split == 'valid'].head(1), teacher, learn.model, ('rgb', 'depth'), layers=['unit3'])
    assert panel.maps['real'] == pytest.approx(planes(m.layers['unit3'][0], -1)[2])


def test_without_a_teacher_there_are_curves_only(df, teacher):
    panel = TrainingPanel('off')
    quiet(made(df, teacher, panel, distill=False), 1)
    assert panel.maps is None and set(panel.log) == {'epoch', 'train_accuracy', 'train_loss', 'valid_loss', 'valid_accuracy'}
    fig = panel.figure()
    assert not [t for t in fig.data if t.type == 'heatmap'] and not fig.frames


def test_figure_moves_maps_and_dots(watched_run):
    panel = watched_run[1]
    fig = panel.figure()
    assert [f.name for f in fig.frames] == ['0', '1'] == [s.args[0][0] for s in fig.layout.sliders[0].steps] and [s.label for s in fig.layout.sliders[0].steps] == ['1', '2']
    first = fig.frames[0]
    assert np.array(first.data[0].z) == pytest.approx(panel.maps['hallucinated'][0]) and np.array(first.data[1].z) == pytest.approx(panel.maps['hallucinated'][0] - panel.maps['real'])
    told = {fig.data[i].meta: (d.x[0], d.y[0]) for i, d in zip(first.traces, first.data) if fig.data[i].meta}
    assert told == {c: (1, pytest.approx(panel.log[c][0])) for c in panel.log if c != 'epoch'}
    assert 'epoch 1' in first.layout.title.text and 'epoch 2' in fig.layout.title.text and not panel.figure(slider=False).frames
    assert len(panel_figure(panel.log.loc[[0]*90].assign(epoch=range(90)), None, most=20).frames) == 20


# ---------------------------------------------------------------- the terminal

def test_terminal_shows_one_bar_with_time_left_and_values(df, teacher, capsys):
    learn = made(df, teacher, TrainingPanel('terminal'))
    fit(learn, 2)
    out, err = capsys.readouterr()
    last = err.replace('\n', '').split('\r')[-1]
    assert out == '' and 'epoch 2/2: 100%' in last and f'{2*len(learn.dls.train)}/{2*len(learn.dls.train)}' in last
    for k in ('train_loss=', 'valid_accuracy=', 'train_features=', 'valid_correlation='): assert k in last
    assert re.search(r'\[\d\d:\d\d<\d\d:\d\d', err)                                                   # time passed < time left
    assert learn.progress.run and learn.logger is print                                               # the next fit shows what it always showed


@pytest.mark.parametrize('where', ['off', 'auto'])
def test_silent_where_nobody_watches(df, teacher, capsys, where):
    assert watched() == 'off'
    learn = made(df, teacher, TrainingPanel(where))
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda *_: None
    fit(learn, 1)
    assert capsys.readouterr() == ('', '')


def test_a_cancelled_fit_gives_everything_back(df, teacher):
    class Stop(Callback):
        def after_batch(self): raise CancelFitException
    panel = TrainingPanel('terminal', file=io.StringIO())
    learn = made(df, teacher, panel, Stop())
    fit(learn, 2)
    assert learn.logger is print and learn.progress.run and panel._bar is None
    learn.remove_cb(Stop)
    fit(learn, 1)
    assert len(panel.history) == 1


def test_epochs_that_a_resumed_fit_skips(df, teacher):
    panel = TrainingPanel('terminal', file=io.StringIO())
    learn = made(df, teacher, panel)
    fit(learn.add_cb(SkipToEpoch(2)), 3)
    assert panel.log.epoch.tolist() == [3] and '100%' in panel.file.getvalue().split('\r')[-1]


def test_validation_alone_is_no_training(df, teacher):
    panel = TrainingPanel('off')
    learn = made(df, teacher, panel, distill=False)
    with learn.no_bar(): learn.validate()
    assert panel.history == []


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize('kwargs, kind, words', [(dict(clip=99), DataError, ('clip 99', '0 to ')), (dict(clip='nobody'), DataError, ("'nobody'", 'validation clips')), (dict(tap='unit9'), ModelError, ("'unit9'", 'unit1, unit2, unit3'))])
def test_what_it_cannot_look_at(df, teacher, kwargs, kind, words):
    refused(lambda: quiet(made(df, teacher, TrainingPanel('off', **kwargs)), 1), *words, kind=kind)


def test_wrong_places():
    refused(lambda: TrainingPanel('tv'), "'tv'", 'terminal', kind=ModelError)
    refused(lambda: TrainingPanel().figure(), 'no epoch')


# ---------------------------------------------------------------- a recipe

RECIPE = Garcia2018(epochs=1, long=1., distil=1., clip_len=4, bs=8)


@pytest.fixture(scope='module')
def watched_recipe(df, tmp_path_factory):
    panel, bars = TrainingPanel('terminal', file=io.StringIO()), io.StringIO()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'stderr', bars)
        m.setattr(bars, 'isatty', lambda: True, raising=False)
        models = run(df, tmp_path_factory.mktemp('watched')/'run', RECIPE, only=['hallucination'], cbs=[panel])
    return models, panel, bars.getvalue()


def test_a_recipe_is_watched_step_by_step_and_stays_the_same(df, watched_recipe, tmp_path):
    models, panel, _ = watched_recipe
    assert list(panel.steps) == ['rgb', 'depth', 'rgb+depth', 'hallucination'] and panel.file.getvalue() == ''
    assert all(len(history) == 1 for history, _ in panel.steps.values()) and [m is not None for _, m in panel.steps.values()] == [False, False, False, True]
    assert panel.figure().layout.title.text.startswith('hallucination, after epoch 1') and panel.figure('rgb').layout.title.text == 'rgb, after epoch 1'
    for name, m in run(df, tmp_path/'run', RECIPE, only=['hallucination']).items():
        for (k, a), b in zip(m.state_dict().items(), models[name].state_dict().values()): assert torch.equal(a, b), (name, k)
    refused(lambda: panel.figure('student'), "'student'", 'rgb+depth, hallucination')


def test_one_bar_for_the_whole_recipe(df, watched_recipe):
    "Its length is that of all batches, it names the step, and ends full with the last values"
    last = watched_recipe[2].replace('\n', '\r').rstrip('\r').split('\r')[-1]
    done, total = map(int, re.search(r'(\d+)/(\d+) \[', last).groups())
    batches = (df.split == 'train').sum()//RECIPE.bs
    assert done == total == 4*batches and 'hallucination (4/4)' in last and 'accuracy=' in last and '100%' in last


def test_finished_steps_are_not_shown_again(df, tmp_path):
    run(df, tmp_path/'run', RECIPE, only=['rgb'])
    run(df, tmp_path/'run', RECIPE, only=['rgb', 'depth'], cbs=[panel := TrainingPanel('off')])
    assert list(panel.steps) == ['depth']


# ---------------------------------------------------------------- a kernel

RECIPES = '''panel = TrainingPanel()
_ = run(df, 'watched', RECIPE, only=['hallucination'], cbs=[panel])'''
CELL = '''import sys, torch, warnings; sys.path.insert(0, {tests!r}); warnings.filterwarnings('ignore')
from test_panel import *
df = synthetic.index({root!r})
seed_all(5); teacher = SmallStream(10)
panel = TrainingPanel()
learn = fit(made(df, teacher, panel), 2)'''
SAME = '''plain = quiet(made(df, teacher))
print(watched(), len(panel.history), all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), plain.model.state_dict().values())))'''


def test_in_a_kernel(df, tmp_path):
    "A notebook run without a browser: one output, live while it trains, which holds the whole evolution at the end; the weights are those without the panel"
    import nbformat
    from nbclient import NotebookClient
    from pathlib import Path
    root = Path(df.rgb.iloc[0]).parents[1]
    while not (root/'moddist.json').is_file(): root = root.parent
    cells = [nbformat.v4.new_code_cell(s) for s in (CELL.format(tests=str(Path(__file__).parent), root=str(root)), SAME, RECIPES)]
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    client = NotebookClient(nb, timeout=300, resources=dict(metadata=dict(path=str(tmp_path))))
    updates = {i: [] for i in range(len(cells))}
    seen = client.process_message
    client.process_message = lambda msg, cell, i: (updates[i].append(msg['header']['msg_type']), seen(msg, cell, i))[1]
    client.execute()
    shown = [o for o in cells[0]['outputs'] if 'application/vnd.plotly.v1+json' in o.get('data', {})]
    assert len(shown) == 1 and updates[0].count('display_data') == 1 and updates[0].count('update_display_data') == 1 and 'comm_msg' in updates[0][:updates[0].index('update_display_data')]
    fig = shown[0]['data']['application/vnd.plotly.v1+json']
    assert len(fig['frames']) == 2 and 'epoch 2' in fig['layout']['title']['text'] and len(json.dumps(fig)) < 400_000
    assert not [o for o in cells[0]['outputs'] if o['output_type'] == 'stream' or 'text/html' in o.get('data', {})]
    assert cells[1]['outputs'][0]['text'] == 'notebook 2 True\n'
    bar, panel = ([o for o in cells[2]['outputs'] if kind in o.get('data', {})] for kind in ('application/vnd.jupyter.widget-view+json', 'application/vnd.plotly.v1+json'))
    assert len(bar) == 1 and len(panel) == 1 and panel[0]['data']['application/vnd.plotly.v1+json']['layout']['title']['text'].startswith('hallucination, ')
