"""Terms in the callback: each lowers itself, moves the student and its own weights, and nothing else."""
import copy
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import Adam
from torch import nn

from moddist import synthetic
from moddist.core import ModelError, seed_all, signal
from moddist.data import ClipSampler, clip_dls
from moddist.derive import derive
from moddist.distill import DistillCallback, Teacher, Term, feature_term, learner, soft_term
from moddist.losses import LossError, cross_entropy
from moddist.models import ResNetStream, SmallStream, Stream, Tap, capture, load_model, save_model
from moddist.more_losses import fitnets_loss
from moddist import terms as tm

torch.set_num_threads(1)


def toy(*keys, n=16, bs=8, valid=None):
    "Random clips, the teacher's tied to the student's; the same ones for validation"
    g = torch.Generator().manual_seed(0)
    base = torch.randn(n, 3, 2, 16, 16, generator=g)
    items = [(*(base[i] if k == 'rgb' else base[i].flip(0) + .3*torch.randn(3, 2, 16, 16, generator=g) for k in keys), torch.tensor(i % 4)) for i in range(n)]
    dls = DataLoaders(DataLoader(items, bs=bs, shuffle=True, drop_last=True), DataLoader(items[:valid], bs=bs))
    for dl in dls.loaders: dl.signals = tuple(signal(k) for k in keys)
    return dls


def settled(net):
    "With averages of batch norm that fit the toy"
    x = torch.stack([item[0] for item in toy('rgb').train.dataset])
    with torch.no_grad(): [net.train()(x) for _ in range(60)]
    return net.eval()


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def quiet(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, **kwargs)
    return learn


@pytest.fixture(scope='module')
def guide():
    seed_all(1)
    return settled(SmallStream(4, width=4))


@pytest.fixture
def student(guide):
    net = copy.deepcopy(guide).requires_grad_(True)
    net.dropout.p = 0.
    return net


def start(student, guide, terms, dls=None, cbs=(), lr=2e-3, hard=0., **how):
    seed_all(3)
    return learner(dls or toy('rgb', 'depth'), student, lr=lr, wd=0., cbs=[DistillCallback(Teacher(guide), terms, hard=hard, **how), *cbs])


class MapLoss(nn.Module):
    "A module in torchdistill's calling convention, replicated"
    def __init__(self, path): super().__init__(); self.path = path
    def forward(self, student_io_dict, teacher_io_dict, targets=None, *args, **kwargs):
        assert targets.ndim == 1 and student_io_dict['.']['output'].ndim == 2
        return F.mse_loss(student_io_dict[self.path]['output'], teacher_io_dict[self.path]['output'])


TERMS = {'soft': lambda: soft_term(1., 4, True), 'dkd': tm.dkd_term, 'dist': tm.dist_term, 'hallucination': lambda: tm.hallucination_term('unit3', 1.), 'supervision': lambda: tm.supervision_term('unit3', .01),
         'mars': lambda: tm.mars_term('unit3'), 'fitnets': lambda: tm.fitnets_term('unit2'), 'attention': lambda: tm.attention_term('unit1', 'unit2'), 'rkd': lambda: tm.rkd_term('unit3'),
         'sp': lambda: tm.sp_term('unit3'), 'cc': lambda: tm.cc_term('unit3'), 'cka': lambda: tm.cka_term('unit3'), 'coral': lambda: tm.coral_term('unit3'), 'crd': lambda: tm.crd_term('unit3'),
         'crd in batch': lambda: replace(tm.crd_term('unit3', negatives=0), name='crd'), 'admd': lambda: tm.admd_term('unit3', lr=1e-6), 'torchdistill': lambda: tm.from_torchdistill(MapLoss('unit2'), taps=['unit2']),
         'warm up': lambda: tm.warm_up(tm.mars_term('unit3'), 3), 'adapted': lambda: tm.hallucination_term('unit3', 1., teacher_tap='unit2', adapt=True),
         'mars adapted': lambda: tm.mars_term('unit2', teacher_tap='unit3', adapt=True)}


@pytest.mark.parametrize('kind', TERMS)
def test_a_term_lowers_itself_and_moves_nothing_but_the_student_and_itself(kind, student, guide):
    term = TERMS[kind]()
    learn = start(student, guide, [term])
    teacher = learn.distill.teacher
    before, first = state(teacher), weights(student)
    grads = []

    class Look(Callback):
        order = 90
        def before_step(self): grads.append((sum(p.grad.abs().sum() for p in student.parameters() if p.grad is not None), [p.grad for p in teacher.parameters()]))

    quiet(learn, 10, cbs=[Look()])
    values = [row[-1] for row in learn.recorder.values]
    assert min(values[-2:]) < .97*values[0], values
    assert all(g > 0 and not any(x is not None for x in t) for g, t in grads)
    assert (weights(student) - first).abs().max() > 1e-4
    assert same(before, teacher.state_dict())
    own = [p for m in learn.distill.modules for p in m.parameters() if p.requires_grad]
    assert all(p.isfinite().all() for p in own)
    assert {id(p) for g in learn.opt.param_groups for p in g['params']} == {id(p) for p in student.parameters()}


@pytest.mark.parametrize('kind', TERMS)
def test_a_last_validation_batch_of_one_clip_does_not_stop_the_run(kind, student, guide):
    quiet(start(student, guide, [TERMS[kind]()], toy('rgb', 'depth', valid=9)))


@pytest.mark.parametrize('kind', ['dkd', 'admd', 'mars'])
def test_batches_without_labels(kind, student, guide):
    dls = toy('rgb', 'depth')
    for dl in dls.loaders: dl.dataset = [(*x, torch.tensor(-1)) for *x, _ in dl.dataset]
    first = weights(student)
    learn = quiet(start(student, guide, [TERMS[kind]()], dls))
    assert weights(student).isfinite().all()
    assert torch.equal(weights(student), first) == (kind != 'mars')


# terms with weights

def test_regressor_and_student_move_as_in_a_plain_loop(student, guide):
    "Three steps of AdamW over both, written out"
    term = tm.fitnets_term('unit2', 10., teacher_tap='unit3')
    conv = term.fn.regressor = tm.regressor(16, 32)
    model, plain = copy.deepcopy(student).train(), copy.deepcopy(conv)
    dls = toy('rgb', 'depth'); dls.train.shuffle = False
    quiet(start(student, guide, [term], dls, hard=.5))
    opt = torch.optim.AdamW([*model.parameters(), *plain.parameters()], lr=2e-3, weight_decay=0.)
    for x, d, y in dls.train:
        with torch.no_grad(), capture(guide, 'unit3') as t: guide(d)
        with capture(model, 'unit2', detach=False) as s:
            z = model(x)
            a = plain(s.maps['unit2'])
            loss = .5*cross_entropy(z, y) + 10*fitnets_loss(F.adaptive_avg_pool3d(a, (2, 1, 1)), F.adaptive_avg_pool3d(t.maps['unit3'], (2, 1, 1)))
        opt.zero_grad(); loss.backward(); opt.step()
    # the shapes of the toy: unit2 is [32, 2, 2, 2] at stride 8, unit3 [32, 2, 1, 1]
    assert (weights(student) - weights(model)).abs().max() < 1e-6
    assert (weights(conv) - weights(plain)).abs().max() < 1e-6


def test_the_saved_student_knows_nothing_of_the_term(student, guide, tmp_path):
    learn = quiet(start(student, guide, [tm.fitnets_term('unit2'), tm.crd_term('unit3')]))
    assert same(load_model(save_model(student, tmp_path/'s.safetensors')).state_dict(), student.state_dict())
    assert student.state_dict().keys() == SmallStream(4, width=4).state_dict().keys()
    learn.path = tmp_path
    learn.save('both', with_opt=True)
    fresh = learner(learn.dls, SmallStream(4, width=4))
    fresh.path = tmp_path
    fresh.create_opt(); fresh.load('both', with_opt=True)
    assert same(fresh.model.state_dict(), student.state_dict())
    quiet(learn)                                                          # and the next fit takes the weights in again


@pytest.mark.parametrize('opt', ['torch', 'fastai'])
def test_any_optimiser_and_several_groups(opt, student, guide):
    "Term weights ride in the last group: schedules for two groups still fit, fastai's own optimiser too"
    term = tm.fitnets_term('unit2')
    split = lambda m: [list(m.conv.parameters()) + list(m.bn.parameters()), [p for n, p in m.named_parameters() if not n.startswith(('conv.', 'bn.'))]]
    learn = start(student, guide, [term])
    if opt == 'fastai': learn.opt_func = Adam
    learn.splitter, learn.wd_bn_bias = split, True
    seen = []
    class Look(Callback):
        def before_step(self): seen.append([len(g['params']) for g in self.opt.param_groups])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(1e-4, 1e-3), cbs=[Look()])
    groups = [len(g) for g in split(student)]
    assert seen == [[groups[0], groups[1] + 2]]*2
    assert [len(g['params']) for g in learn.opt.param_groups] == groups
    assert (term.fn.regressor.weight[..., 0, 0, 0] - torch.eye(16)).abs().max() > 1e-5


def test_interrupted_fit_gives_the_weights_back(student, guide):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = start(student, guide, [tm.fitnets_term('unit2')])
    with pytest.raises(KeyboardInterrupt): quiet(learn, cbs=[Stop()])
    quiet(learn)
    assert {id(p) for g in learn.opt.param_groups for p in g['params']} == {id(p) for p in student.parameters()}


def test_gradient_accumulation_reaches_the_regressor(student, guide):
    "Two accumulated batches of 8 give the regressor the mean of the two gradients"
    term, grads = tm.fitnets_term('unit2'), []
    class Keep(Callback):
        order = 90
        def before_step(self): grads.append(term.fn.regressor.weight.grad.clone())
    dls = toy('rgb', 'depth'); dls.train.shuffle = False
    quiet(start(copy.deepcopy(student), guide, [term], dls, cbs=[GradientAccumulation(16), Keep()]))
    conv, model = tm.regressor(16, 16), copy.deepcopy(student).train()
    for x, d, _ in dls.train:
        with torch.no_grad(), capture(guide, 'unit2') as t: guide(d)
        with capture(model, 'unit2', detach=False) as s:
            model(x)
            (100*fitnets_loss(conv(s.maps['unit2']), t.maps['unit2'])/2).backward()
    assert len(grads) == 1 and torch.allclose(grads[0], conv.weight.grad, atol=1e-5, rtol=1e-4)


def test_own_modules_follow_training_and_validation(student, guide):
    seen = []
    class Mode(nn.Module):
        def __init__(self): super().__init__(); self.told = []
        def before_fit(self, cb): self.told.append('fit')
        def before_batch(self, cb): self.told.append('before')
        def after_batch(self, cb): self.told.append('after')
        def forward(self, s, t, y): seen.append((self.training, s.logits.requires_grad)); self.told.append('loss'); return s.logits.square().mean()
    fn = Mode()
    quiet(start(student, guide, [Term('mode', 1., fn)]))
    assert seen == [(True, True)]*2 + [(False, False)]*2
    assert fn.told == ['fit'] + ['before', 'loss', 'after']*4


def test_warm_up_scales_training_only(student, guide):
    "Half the weight in the first of two epochs, told from the gradient; the column shows the plain value"
    def first(term):
        grads = []
        class Keep(Callback):
            order = 90
            def before_step(self): grads.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters() if p.grad is not None]))
        dls = toy('rgb', 'depth'); dls.train.shuffle = False
        learn = quiet(start(copy.deepcopy(student), guide, [term], dls, cbs=[Keep()], lr=0.))
        return grads[0], learn.recorder.values[-1][-1]
    (g, v), (half, w) = first(tm.mars_term('unit3')), first(tm.warm_up(tm.mars_term('unit3'), 2))
    assert torch.allclose(half, g/2, atol=1e-7) and v == pytest.approx(w)


# contrast

def test_memory_of_crd(student, guide):
    "After a batch, the embeddings of its clips and of no others have moved, by the momentum rule"
    term, log = tm.crd_term('unit3', dim=8, momentum=.25), []
    class Look(Callback):
        order = 90
        def before_batch(self): self.old = term.fn.memory.clone()
        def after_loss(self): self.fresh = None if term.fn.fresh is None else term.fn.fresh.clone()
    class After(Callback):
        order = -90                                                       # events run in order; before the callback's own after_batch
        def after_batch(self): log.append((self.training, self.learn.look.old, self.learn.look.fresh, term.fn.at))
    class Last(Callback):
        order = 91
        def after_batch(self): log[-1] += (term.fn.memory.clone(),)
    quiet(start(student, guide, [term], cbs=[Look(), After(), Last()]))
    assert [l[0] for l in log] == [True, True, False, False]
    for training, old, fresh, at, new in log:
        if not training: assert fresh is None and torch.equal(old, new); continue
        rest = torch.ones(16, dtype=torch.bool); rest[at] = False
        assert torch.equal(old[:, rest], new[:, rest])
        assert torch.allclose(new[:, at], F.normalize(.25*old[:, at] + .75*fresh, dim=2), atol=1e-6)
    assert sorted(torch.cat([log[0][3], log[1][3]]).tolist()) == list(range(16))


def test_crd_never_draws_the_clip_itself():
    "With a memory in which only the clip itself is similar, its own entry appears once, as the positive"
    fn = tm.Contrast('a', dim=16, negatives=500, tau=1.)
    fn.memory, fn.at, fn.scale = torch.eye(16).expand(2, 16, 16).clone(), torch.tensor([3, 7]), torch.ones(2, 1, 1)
    e = torch.eye(16)[[3, 7]].expand(2, 2, 16)
    got = fn._remembered(e)
    n, noise, pos, neg = 16, 15/16, torch.tensor(1.).exp(), torch.tensor(1.)
    assert got == pytest.approx(float(2*(torch.log1p(noise/pos) + 15*torch.log1p(neg/noise))), rel=1e-5)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "Camera 1 of the embedded set with a second view and flow on disk"
    root = tmp_path_factory.mktemp('set')
    df = synthetic.index(synthetic.make(root/'set', seed=5, train=2, valid=1, test=1, skeletons=False))
    second = df[df.camera == 2].set_index(['subject', 'label']).rgb.rename('view2')
    df = df[(df.camera == 1) & df.split.isin(['train', 'valid'])].join(second, on=['subject', 'label'])
    return derive(df, 'flow', root/'store')


@pytest.mark.parametrize('workers', [0, 2])
def test_positions_of_a_batch(clips, workers):
    "What the term believes about the batch is what the data set holds there"
    dls = clip_dls(clips, ('rgb',), ClipSampler(4, crop=48), bs=6, workers=workers, dev='cpu')
    found = []
    class Look(Callback):
        def before_batch(self): found.append((tm.batch_positions(self), self.learn.y.clone()))
    learn = learner(dls, SmallStream(10, width=2), cbs=[Look()])
    quiet(learn, 2)
    train = found[:len(dls.train)]                                        # of the first epoch
    items = dls.train.items
    for at, y in train: assert [items[i]['label'] for i in at] == y.tolist()
    assert len({i for at, _ in train for i in at.tolist()}) == 6*len(train)
    for dl in dls.loaders: dl.on_error = 'skip'
    found.clear()
    class Skips(Callback):
        def before_batch(self): found.append(tm.batch_positions(self))
    quiet(learner(dls, SmallStream(10, width=2), cbs=[Skips()]))
    assert found and all(f is None for f in found)


# the adversary

def test_the_two_players_take_turns(student, guide):
    "The student's step leaves the discriminator alone, the discriminator's step leaves the student alone, validation moves neither"
    term, log = tm.admd_term('unit3', lr=1e-2), []
    class Before(Callback):
        order = -90
        def after_batch(self): log.append([self.training, weights(term.fn.judge), weights(student), not any(p.requires_grad for p in term.fn.judge.parameters())])
    class After(Callback):
        order = 90
        def after_batch(self): log[-1] += [weights(term.fn.judge), weights(student)]
    quiet(start(student, guide, [term], cbs=[Before(), After()]), 2)
    for i, (training, d0, s0, asleep, d1, s1) in enumerate(log):
        assert torch.equal(s0, s1) and asleep
        assert torch.equal(d0, d1) == (not training)
        if i: assert torch.equal(d0, log[i - 1][4])                      # forward, backward and step of the student did not touch it
        if i and training: assert not torch.equal(s0, log[i - 1][5])
    assert not any(p.requires_grad for p in term.fn.judge.parameters()) and term.fn.loss > 0


def test_the_discriminator_learns_and_knows_position_and_class(student, guide):
    term = tm.admd_term('unit3', 0., lr=1e-2)
    losses = []
    for _ in range(5): quiet(start(student, guide, [term])); losses.append(term.fn.loss)
    assert losses[-1] < .8*losses[0]
    assert term.fn.judge[0].in_features == 2 + 32 and term.fn.judge[-1].out_features == 4 + 1


def test_adversary_between_widths(student, guide):
    with pytest.raises(LossError, match='adapt=True'): quiet(start(student, guide, [tm.admd_term('unit2', teacher_tap='unit3')]))
    term = tm.admd_term('unit2', teacher_tap='unit3', adapt=True)
    quiet(start(student, guide, [term]))
    assert term.fn.regressor.weight.shape[:2] == (32, 16)
    assert {id(p) for p in term.fn.judge.parameters()}.isdisjoint(id(p) for g in start(student, guide, [term]).distill.modules for p in g.parameters() if p.requires_grad)


# peers

def test_peers_learn_together_and_leave_alone(guide, tmp_path):
    seed_all(0)
    keys = ('rgb', 'depth', 'view2')
    peers, term = tm.Peers(**{k: SmallStream(4, width=4, dropout=0.) for k in keys}), tm.dmcl_term(*keys)
    first = {k: weights(s) for k, s in peers.streams.items()}
    learn = learner(toy('rgb', 'depth', 'view2:rgb'), peers, cbs=[DistillCallback(None, [term], hard=0., student=keys, inputs=())])
    quiet(learn, 8)
    values = [row[-1] for row in learn.recorder.values]
    assert values[-1] < values[0] and sum(term.fn.wins.values()) == 8*16
    assert all((weights(s) - first[k]).abs().max() > 1e-3 for k, s in peers.streams.items())
    again = load_model(save_model(peers.streams['rgb'], tmp_path/'rgb.safetensors'))
    x = torch.randn(2, 3, 2, 16, 16)
    assert torch.allclose(again(x), peers.streams['rgb'].eval()(x))
    peers.eval()
    with capture(peers, keys) as c: z = peers(x, x, x)
    assert torch.allclose(z, torch.stack([c.maps[k].flatten(1) for k in keys]).mean(0))


def test_peers_refuse_what_does_not_fit():
    with pytest.raises(ModelError, match='two or more'): tm.Peers(rgb=SmallStream(4))
    with pytest.raises(ModelError, match='same number'): tm.Peers(a=SmallStream(4), b=SmallStream(5))
    with pytest.raises(ModelError, match='1 inputs for 2'): tm.Peers(a=SmallStream(4), b=SmallStream(4))(torch.zeros(1, 3, 2, 16, 16))


# any dense pair, any backbone

class Tiny3D(Stream):
    "Half the frames, a quarter of the side"
    def __init__(self, num_classes, channels=20):
        super().__init__(dict(num_classes=num_classes, channels=channels), channels, [], [Tap('block', channels, t_stride=2, s_stride=4)])
        self.body = nn.Sequential(nn.Conv3d(3, channels, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(channels, channels, 3, 2, 1), nn.BatchNorm3d(channels), nn.ReLU())
    def forward_maps(self, x, gates=None, connection=None): return self.taps['block'](self.body(x)), []


@pytest.mark.parametrize('key, backbone, tap, shapes', [
    ('flow', lambda: SmallStream(10, width=12), 'unit2', (48, 64)), ('flow', lambda: ResNetStream('resnet18', 10), 'layer2', (128, 64)), ('view2:rgb', lambda: Tiny3D(10), 'block', (20, 64)),
    ('depth', lambda: Tiny3D(10), 'block', (20, 64))])
def test_hallucination_between_backbones_and_modalities(clips, key, backbone, tap, shapes):
    "Rgb imitates flow, a second view, or depth, through taps of other widths, strides and frame rates"
    seed_all(0)
    dls = clip_dls(clips, ('rgb', key), ClipSampler(4, crop=48), bs=10, dev='cpu')
    teacher, term = Teacher(backbone()), tm.hallucination_term('unit3', 1., teacher_tap=tap, adapt=True, reduction='channel_sum')
    before = state(teacher)
    learn = quiet(learner(dls, SmallStream(10), cbs=[DistillCallback(teacher, [term], hard=0., inputs=(signal(key).key,))]), 3)
    assert same(before, teacher.state_dict())
    assert tuple(term.fn.regressor.weight.shape[:2]) == shapes
    assert learn.recorder.values[-1][-1] < learn.recorder.values[0][-1]


def test_two_privileged_networks_at_once(clips):
    seed_all(0)
    dls = clip_dls(clips, ('rgb', 'flow', 'view2:rgb'), ClipSampler(4, crop=48), bs=10, dev='cpu')
    teacher = Teacher(SmallStream(10, width=6), Tiny3D(10), weights=[.7, .3])
    terms = [tm.mars_term('unit3', 1., teacher_tap='streams.0.unit3', adapt=True, name='flow'), tm.rkd_term('unit3', teacher_tap='streams.1.block', name='view2'), soft_term()]
    before = state(teacher)
    learn = quiet(learner(dls, SmallStream(10), cbs=[DistillCallback(teacher, terms, inputs=('flow', 'view2'))]))
    assert same(before, teacher.state_dict()) and learn.recorder.metric_names[-4:-1] == ['flow', 'view2', 'soft']


def test_adapted_hallucination_starts_as_the_plain_one(student, guide):
    "At equal widths the regressor is the identity: the same value as `feature_term`"
    def first(term): return quiet(start(copy.deepcopy(student), guide, [term], lr=0.)).recorder.values[-1][-1]
    assert first(tm.hallucination_term('unit2', adapt=True)) == pytest.approx(first(feature_term('unit2')), rel=1e-5)


# torchdistill

def test_torchdistill_itself(student, guide):
    pytest.importorskip('torchdistill', reason='torchdistill is not installed')
    io = dict(student_module_path='.', student_module_io='output', teacher_module_path='.', teacher_module_io='output')
    pair = dict(one={w: dict(io='output', path='unit2') for w in ('student', 'teacher')})
    terms = [tm.from_torchdistill('KDLoss', temperature=4, alpha=.1, **io), tm.from_torchdistill('ATLoss', 100., ['unit2'], frames=True, at_pairs=pair),
             tm.from_torchdistill('RKDLoss', 1., ['unit3'], student_output_path='unit3', teacher_output_path='unit3', dist_factor=25, angle_factor=50, reduction='mean')]
    learn = quiet(start(student, guide, terms), 12)
    for name, first, last in zip(learn.recorder.metric_names[-4:-1], learn.recorder.values[0][-3:], learn.recorder.values[-1][-3:]): assert last < first, name
    with pytest.raises(ModelError, match='no loss'): tm.from_torchdistill('NoSuchLoss')


def test_torchdistill_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchdistill', None)
    monkeypatch.setitem(sys.modules, 'torchdistill.losses', None)
    with pytest.raises(ModelError, match='pip install torchdistill'): tm.from_torchdistill('KDLoss')


def test_convention_of_torchdistill(student, guide):
    "Logits at '.', maps at the taps; single frames on demand; a missing path is named"
    seen = {}
    class Probe(nn.Module):
        def forward(self, s, t, targets=None, *args, **kwargs): seen.update(s={k: list(v['output'].shape) for k, v in s.items()}, t=list(t)); return s['.']['output'].sum()*0
    quiet(start(student, guide, [tm.from_torchdistill(Probe(), taps=['unit2'], teacher_taps=['unit3'], frames=True)]))
    assert seen == dict(s={'.': [8, 4], 'unit2': [16, 16, 2, 2]}, t=['.', 'unit3'])
    with pytest.raises(ModelError, match="asks for 'unit3'.*unit2"): quiet(start(student, guide, [tm.from_torchdistill(MapLoss('unit3'), taps=['unit2'])]))


# misuse

@pytest.mark.parametrize('terms, words', [
    (lambda: [tm.mars_term('unit3', teacher_tap='unit2')], 'adapt=True'), (lambda: [tm.mars_term('layer4')], "no tap 'layer4'"), (lambda: [tm.fitnets_term('unit2', teacher_tap='layer9')], "no tap 'streams.0.layer9'"),
    (lambda: [tm.mars_term('unit3'), tm.mars_term('unit2')], 'two have one name'), (lambda: [tm.attention_term('unit1', 'unit2', teacher_taps=['unit1'])], 'pairs'), (lambda: [tm.attention_term()], 'pairs')])
def test_misuse_is_one_line(student, guide, terms, words):
    with pytest.raises((ModelError, LossError)) as e: quiet(start(student, guide, terms()))
    assert words in str(e.value) and '\n' not in str(e.value)


def test_a_small_training_batch_is_an_error(student, guide):
    with pytest.raises(LossError, match='at least 3'): quiet(start(student, guide, [tm.rkd_term('unit3')], toy('rgb', 'depth', n=4, bs=2)))


def test_validation_without_a_fit(student, guide):
    learn = start(student, guide, [tm.fitnets_term('unit2'), tm.crd_term('unit3'), tm.admd_term('unit3')])
    before = state(student)
    with learn.no_bar(): learn.validate()
    assert same(before, student.state_dict())


def test_a_term_of_ones_own():
    "The promise of the README, counted: the term in ten lines"
    import inspect
    class Own(nn.Module):
        def __init__(self, channels): super().__init__(); self.mix = nn.Conv3d(channels, channels, 1)
        def forward(self, s, t, y): return (self.mix(s.maps['unit2']) - t.maps['unit2']).diff(dim=2).square().mean()
    seed_all(0)
    guide = settled(SmallStream(4, width=4))
    own = Own(16)
    start_weight = own.mix.weight.detach().clone()
    learn = quiet(start(copy.deepcopy(guide).requires_grad_(True), guide, [Term('own', 1., own, ('unit2',))]), 8)
    assert learn.recorder.values[-1][-1] < learn.recorder.values[0][-1] and not torch.equal(own.mix.weight, start_weight)
    assert len(inspect.getsource(Own).splitlines()) <= 10
