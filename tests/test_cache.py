"""The teacher that remembers: right under augmentation, a miss for every part of the key, a refusal for what no key can hold."""
import copy
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import refused
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from fasttransform import Transform
from torch import nn

from moddist import cache as cache_module
from moddist import synthetic
from moddist.cache import CachedTeacher, Key, check_cachable, file_facts, teacher_hash
from moddist.core import DataError, ModelError, seed_all, signal
from moddist.data import clip_dls
from moddist.distill import DistillCallback, Teacher, feature_term, learner, soft_term
from moddist.draws import ClipSampler, draw
from moddist.ensemble import Ensemble
from moddist.inputs import ClipInputs, JitterRGB
from moddist.models import SmallStream

torch.set_num_threads(1)
HOW = dict(sampling='segment', crop=40, flip=.5)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "Camera 1 with a second camera beside it: 20 clips to train, 10 to validate"
    df = synthetic.index(synthetic.make(tmp_path_factory.mktemp('set')/'set', seed=5, train=2, valid=1, test=1, skeletons=False))
    second = df[df.camera == 2].set_index(['subject', 'label']).rgb.rename('view2')
    return df[df.camera == 1].join(second, on=['subject', 'label'])


def loaders(df, *signals, slots=2, bs=8, inputs=None, jitter=JitterRGB(0, 0, 0), workers=0, on_error='error', **how):
    return clip_dls(df, signals, ClipSampler(**dict(clip_len=4, slots=slots) | HOW | how), inputs, jitter, bs=bs, dev='cpu', workers=workers, on_error=on_error)


@pytest.fixture(scope='module')
def nets():
    "Two untrained teachers whose logits are about 2 in size and differ between clips and draws"
    seed_all(0)
    out = [SmallStream(10, width=4, dropout=0.).eval() for _ in range(2)]
    for n in out: n.fc.weight.data *= 100
    return out


class Compare(Callback):
    "The largest difference between what taught the student and what the live teacher says"
    order = DistillCallback.order + 1
    def __init__(self, live): self.live, self.gap, self.batches = live, 0., 0
    def after_pred(self):
        d = self.learn.distill
        self.gap = max(self.gap, (d._taught.logits - self.live.teach(d._privileged, self.learn.y, d)).abs().max().item())
        self.batches += 1


def train(teacher, dls, epochs=1, inputs=('depth',), cbs=(), terms=None, seed=3):
    "A short training; plain SGD, whose result does not blow up differences in the last bit"
    seed_all(seed)
    dls.train.rng.seed(seed)
    learn = learner(dls, SmallStream(10, width=4, dropout=0.), cbs=[DistillCallback(teacher, terms or [soft_term(1., tau=2, t2=True)], hard=.5, inputs=inputs), *cbs])
    learn.opt_func, learn.lr = SGD, 1e-2
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


TEACHERS = dict(one=lambda n: Teacher(n[0]), two=lambda n: Teacher(*n, weights=[.7, .3]), per_sample=lambda n: Ensemble(*n, weights='per-sample', temperatures=[1.5, .7]))


@pytest.mark.parametrize('kind', TEACHERS)
def test_cached_logits_are_the_live_ones_over_two_rounds_of_draws(clips, nets, kind):
    inputs = ('depth',) if kind == 'one' else ('depth', 'view2')
    signals = ('rgb', *('view2:rgb' if k == 'view2' else k for k in inputs))
    live, cached, compare = TEACHERS[kind](nets), CachedTeacher(TEACHERS[kind](nets), slots=2), Compare(TEACHERS[kind](nets))
    a, b = train(cached, loaders(clips, *signals), 4, inputs, [compare]), train(live, loaders(clips, *signals), 4, inputs)
    assert compare.gap <= 1e-3 and compare.batches == 4*(2 + 2)
    assert sum(p['hits'] for p in cached.log) >= 3*10 + 2*(20 - 2*4) and cached.log[-1] == dict(split='valid', hits=10, misses=0)
    assert (weights(a) - weights(b)).abs().max() < 1e-3                      # the same training
    assert (weights(a) - weights(train(live, loaders(clips, *signals), 4, inputs, seed=4))).abs().max() > 1e-2 # which another seed is not


def test_the_comparison_could_fail(clips, nets):
    "Two draws of the same clips, and two clips, are told apart by far more than a thousandth"
    dl = loaders(clips, 'depth').train.new(shuffle=False)
    with torch.no_grad(): a, b = (torch.cat([nets[0](x) for x, _ in dl]) for _ in range(2))
    assert (a - b).abs().amax(1).median() > .02 and (a[1:] - a[:-1]).abs().amax(1).median() > .02


def test_large_logits_are_kept_to_a_thousandth_too(clips, nets):
    loud = copy.deepcopy(nets[0]); loud.fc.weight.data *= 20
    cached, compare = CachedTeacher(Teacher(loud)), Compare(Teacher(loud))
    train(cached, loaders(clips, 'rgb', 'depth'), 2, cbs=[compare])
    z = next(iter(cached._tables.values())).z
    assert z.abs().max() > 20 and z.dtype == torch.float16 and compare.gap <= 1e-3
    loud.fc.weight.data *= 1e5
    refused(lambda: train(CachedTeacher(Teacher(loud)), loaders(clips, 'rgb', 'depth')), '65504', kind=ModelError)


def test_exact_answers_are_what_was_said_to_the_bit(clips, nets, tmp_path):
    "Also beyond the end of half precision, and beside a file of halves; what is no number is refused"
    loud = copy.deepcopy(nets[0]); loud.fc.weight.data *= 1e5
    dls = loaders(clips, 'rgb', 'depth', slots=1, bs=10)                        # 2 whole batches; asked in a smaller one, a clip's last bit may differ
    CachedTeacher(Teacher(nets[0]), tmp_path).fill(dls, ['depth'])
    for net in (nets[0], loud):
        compare, again = Compare(Teacher(net)), CachedTeacher(Teacher(net), tmp_path, exact=True)
        train(again, dls, 2, cbs=[compare])
        z = next(iter(again._tables.values())).z
        assert z.dtype == torch.float32 and compare.gap == 0 and sum(p['misses'] for p in again.log) == 30
        assert CachedTeacher(Teacher(net), tmp_path, exact=True).fill(dls, ['depth']) == 0
    assert z.abs().max() > 65504 and len(list(tmp_path.glob('*-exact.safetensors'))) == 2 and len(list(tmp_path.glob('*.safetensors'))) == 3
    loud.fc.bias.data += float('inf')
    refused(lambda: train(CachedTeacher(Teacher(loud), exact=True), loaders(clips, 'rgb', 'depth')), 'finite numbers', kind=ModelError)


def test_loader_processes_give_the_same(clips, nets):
    cached, compare = CachedTeacher(Teacher(nets[0])), Compare(Teacher(nets[0]))
    train(cached, loaders(clips, 'rgb', 'depth', slots=1, workers=1), 2, cbs=[compare])
    assert compare.gap <= 1e-3 and cached.log[-1]['misses'] == 0


def test_draws_come_round():
    d = [draw(ClipSampler(4, epoch=e, slots=3, **HOW), 'a', 30, True) for e in range(7)]
    assert d[0] == d[3] == d[6] and d[1] == d[4] and len(set(d)) == 3
    refused(lambda: ClipSampler(slots=0), 'slots=0')


# --- the key

def key(): return Key(('a', 0, 9), (('rgb', 'a.avi', 'f', 'None'),), (0, 2, 4), (('top', .5), ('left', .25), ('flip', False), ('view', 0)), 'r', 't')


@pytest.mark.parametrize('part', [f.name for f in fields(Key)])
def test_every_part_is_in_the_digest(part):
    k = key()
    changed = replace(k, **{part: 'x' if isinstance(getattr(k, part), str) else (*getattr(k, part)[:-1], 7)})
    assert changed.digest != k.digest and key().digest == k.digest and len(k.digest) == 16


def test_any_difference_of_a_draw_changes_the_key(clips, nets, monkeypatch):
    dl, teacher = loaders(clips, 'depth').train, CachedTeacher(Teacher(nets[0]))
    next(iter(dl)); teacher._begin(dl, [signal('depth')])
    drawn = draw(dl.loaders[0].tfm.sampler, 'a', 30, True)
    seen = {}
    for f in [None, *fields(drawn)]:
        other = drawn if f is None else replace(drawn, **{f.name: (0, 1, 2, 3) if f.name == 'index' else not drawn.flip if f.name == 'flip' else getattr(drawn, f.name) + .125})
        monkeypatch.setattr(cache_module, 'draw', lambda *a, d=other: d)
        seen[f and f.name] = teacher.keys(dl, [0])[0].digest
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize('what', [dict(clip_id='other'), dict(stop=7), dict(start=1), dict(flow_bound=30.), dict(depth_fov='0 0 1 .5')], ids=lambda w: next(iter(w)))
def test_what_a_row_says_is_in_the_key_even_where_the_draw_is_the_same(clips, nets, monkeypatch, what):
    dl, teacher = loaders(clips, 'depth').train, CachedTeacher(Teacher(nets[0]))
    next(iter(dl)); teacher._begin(dl, [signal('depth')])
    same = draw(dl.loaders[0].tfm.sampler, 'a', 8, True)
    monkeypatch.setattr(cache_module, 'draw', lambda *a: same)
    before = teacher.keys(dl, [0])[0].digest
    dl.dataset.items[0].update(what)
    assert teacher.keys(dl, [0])[0].digest != before


@pytest.fixture(scope='module')
def filled(clips, nets, tmp_path_factory):
    "A folder with all answers of one teacher"
    folder = tmp_path_factory.mktemp('answers')
    cached = CachedTeacher(Teacher(nets[0]), folder)
    assert cached.fill(loaders(clips, 'rgb', 'depth'), ['depth']) == 2*20 + 10
    return folder


def first_batch(folder, net, dls, **kw):
    "Ask for the first batch of a pass, with loaders that hold RGB alone"
    teacher, dl = CachedTeacher(Teacher(net), folder, signals=['depth'], **kw), dls.train
    next(iter(dl)); teacher._begin(dl, teacher.signals)
    z = teacher.look_up(dl, dl._DataLoader__idxs[:dl.bs], [])
    assert teacher.log[-1] == dict(split='train', hits=dl.bs, misses=0)
    return z


def test_nothing_changed_is_a_hit(clips, nets, filled): assert first_batch(filled, nets[0], loaders(clips, 'rgb')).shape == (1, 8, 10)


def renamed(df): return df.assign(clip_id='x' + df.clip_id)
def shortened(df): return df.assign(start=0, stop=6)


MISSES = dict(
    clip=lambda df, net: (net, loaders(renamed(df), 'rgb')), span=lambda df, net: (net, loaders(shortened(df), 'rgb')),
    seed=lambda df, net: (net, loaders(df, 'rgb', seed=1)), frames=lambda df, net: (net, loaders(df, 'rgb', sampling='random')), length=lambda df, net: (net, loaders(df, 'rgb', clip_len=5)),
    window=lambda df, net: (net, loaders(df, 'rgb', crop=41)), size=lambda df, net: (net, loaders(df, 'rgb', size=50)), scale=lambda df, net: (net, loaders(df, 'rgb', scale=(1., 1.2))),
    turned=lambda df, net: (net, loaders(df, 'rgb', rotate=10)), reference=lambda df, net: (net, loaders(df, 'rgb', reference='depth')),
    range=lambda df, net: (net, loaders(df, 'rgb', inputs=ClipInputs(near_mm=1000))), encoding=lambda df, net: (net, loaders(df, 'rgb', inputs=ClipInputs(depth='replicate'))),
    centre=lambda df, net: (net, loaders(df, 'rgb', inputs=ClipInputs(centre=False))), statistics=lambda df, net: (net, loaders(df, 'rgb', inputs=ClipInputs(depth_std=(.3, .3, .3)))))


@pytest.mark.parametrize('what', MISSES)
def test_another_clip_draw_or_reading_is_a_miss(clips, nets, filled, what):
    net, dls = MISSES[what](clips, nets[0])
    refused(lambda: first_batch(filled, net, dls), 'not known', kind=ModelError)


def _weight(n): n.units[0].temporal.conv.weight.data.view(-1)[0] += 1e-6
def _buffer(n): n.bn.running_var[0] *= 1.001
def _settings(n): n.hparams['width'] = 5
def _structure(n): n.dropout.p = .25


@pytest.mark.parametrize('change', [_weight, _buffer, _settings, _structure])
def test_another_teacher_is_a_miss(clips, nets, filled, change):
    net = copy.deepcopy(nets[0])
    first_batch(filled, net, loaders(clips, 'rgb'))
    change(net)
    refused(lambda: first_batch(filled, net, loaders(clips, 'rgb')), 'not known', kind=ModelError)


def test_a_teacher_that_is_written_to_while_it_teaches_is_hashed_again(clips, nets):
    teacher, dl = CachedTeacher(Teacher(nets[0])), loaders(clips, 'depth').train
    next(iter(dl)); teacher._begin(dl, [signal('depth')])
    before = teacher.keys(dl, [0])[0]
    with torch.no_grad(): teacher.streams[0].fc.bias += 1
    assert teacher.keys(dl, [0])[0].teacher != before.teacher == teacher_hash(Teacher(nets[0]))


def test_each_fit_looks_at_weights_and_frames_again(clips, nets):
    "Also where neither torch's counters nor the folder tell of a change"
    cached, dls = CachedTeacher(Teacher(nets[0])), loaders(clips, 'rgb', 'depth', slots=1, bs=10)
    train(cached, dls); train(cached, dls)
    assert [p['misses'] for p in cached.log] == [20, 10, 0, 0]
    cached.streams[0].fc.bias.data += 1.
    compare = Compare(copy.deepcopy(cached.teacher))
    train(cached, dls, cbs=[compare])
    assert [p['misses'] for p in cached.log[4:]] == [20, 10] and compare.gap <= 1e-3
    file = sorted(Path(clips[clips.split == 'valid'].depth.iloc[0]).iterdir())[0]
    was = os.stat(file)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    try: train(cached, dls)
    finally: os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert [p['misses'] for p in cached.log[6:]] == [0, 1]


@pytest.mark.parametrize('key', ['depth', 'rgb'])
def test_a_replaced_file_is_a_miss(clips, nets, filled, key):
    "A frame of the teacher's signal, or the file the frames are counted in"
    path = Path(clips[clips.split == 'train'][key].iloc[0])
    file = sorted(path.iterdir())[3] if path.is_dir() else path
    was = os.stat(file)
    try:
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
        refused(lambda: first_batch(filled, nets[0], loaders(clips, 'rgb', bs=20)), 'not known', kind=ModelError)
    finally: os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    first_batch(filled, nets[0], loaders(clips, 'rgb', bs=20))


def test_version_precision_and_decoder_are_in_the_reading(clips, nets, filled, monkeypatch):
    dls = loaders(clips, 'rgb')
    with torch.autocast('cpu', torch.bfloat16): refused(lambda: first_batch(filled, nets[0], dls), 'not known', kind=ModelError)
    for name, value in (('__version__', '99'), ('_default_backend', lambda: 'other')):
        with monkeypatch.context() as m:
            m.setattr(cache_module, name, value)
            refused(lambda: first_batch(filled, nets[0], dls), 'not known', kind=ModelError)
    first_batch(filled, nets[0], dls)


def test_facts_of_files(tmp_path):
    (tmp_path/'u').mkdir(); (tmp_path/'v').mkdir()
    for d in 'uv':
        for i in range(3): (tmp_path/d/f'frame_{i}.jpg').write_bytes(b'x')
    kinds = [str(tmp_path/'u'), str(tmp_path/'u'/'frame_*.jpg'), f'{tmp_path}/{{u,v}}/frame_*.jpg', str(tmp_path/'u'/'frame_1.jpg')]
    was = [file_facts(p) for p in kinds]
    assert len(set(was)) == 4 and was == [file_facts(p) for p in kinds]
    (tmp_path/'u'/'frame_1.jpg').write_bytes(b'xy')
    assert all(a != file_facts(p) for a, p in zip(was, kinds))
    refused(lambda: file_facts(tmp_path/'w'/'*.png'), 'no such file', kind=DataError)
    refused(lambda: file_facts(tmp_path/'u'/'*.png'), 'no such file', kind=DataError)


def test_weights_of_an_ensemble_may_change_without_a_miss(clips, nets, tmp_path):
    dls = loaders(clips, 'rgb', 'depth', 'view2:rgb')
    CachedTeacher(Ensemble(*nets), tmp_path).fill(dls, ['depth', 'view2'])
    again = CachedTeacher(Ensemble(*nets, weights=[.9, .1], temperatures=[2., 1.]), tmp_path, signals=['depth', 'view2:rgb'])
    compare = Compare(Ensemble(*nets, weights=[.9, .1], temperatures=[2., 1.]))
    train(again, dls, 2, ('depth', 'view2'), [compare])
    assert compare.gap <= 1e-3 and all(p['misses'] == 0 for p in again.log)
    assert again.teacher.last.logits.shape == (2, 2, 10)                     # the ensemble keeps its parts as ever (last batch of validation)


# --- what it must refuse

class Noise(Transform):
    order = 30
    def encodes(self, x: torch.Tensor): return x + torch.randn_like(x)


class Mixer(Callback):
    order = 0
    def before_batch(self): self.learn.xb = tuple(x.flip(0) for x in self.learn.xb)


def with_batch_transform(dls): dls.train.after_batch.add(Noise()); return dls
def with_item_transform(dls): dls.train.after_item.add(Noise()); return dls
def with_collate(dls): dls.train.create_batch = lambda b: b; return dls
def with_persistent(dls): dls.train.fake_l.num_workers, dls.train.fake_l.persistent_workers = 1, True; return dls
def with_two_samplers(dls): dls.train.loaders[1].tfm.sampler = replace(dls.train.loaders[0].tfm.sampler); return dls


LOADERS = dict(
    jitter=(lambda df: loaders(df, 'rgb', 'view2:rgb', jitter=None), 'JitterRGB(0, 0, 0)'), noise=(lambda df: loaders(df, 'rgb', 'depth', inputs=ClipInputs(depth_noise=.2)), 'depth_noise=0.2'),
    slots=(lambda df: loaders(df, 'rgb', 'depth', slots=None), 'slots=4'), skip=(lambda df: loaders(df, 'rgb', 'depth', on_error='skip'), "on_error='skip'"),
    batch=(lambda df: with_batch_transform(loaders(df, 'rgb', 'depth')), 'Noise'), item=(lambda df: with_item_transform(loaders(df, 'rgb', 'depth')), 'Noise'),
    collate=(lambda df: with_collate(loaders(df, 'rgb', 'depth')), 'create_batch'), persistent=(lambda df: with_persistent(loaders(df, 'rgb', 'depth')), 'persistent_workers'),
    samplers=(lambda df: with_two_samplers(loaders(df, 'rgb', 'depth')), 'samplers'))


@pytest.mark.parametrize('what', LOADERS)
def test_refuses_loaders(clips, what):
    make, word = LOADERS[what]
    dls = make(clips)
    refused(lambda: check_cachable(dls.train, dls.train.signals[1:]), word, kind=ModelError)


def test_jitter_matters_only_where_the_teacher_reads_rgb(clips):
    dls = loaders(clips, 'rgb', 'depth', jitter=JitterRGB())
    check_cachable(dls.train, [signal('depth')]); check_cachable(dls.valid, [signal('rgb')])
    refused(lambda: check_cachable(dls.train, [signal('rgb')]), 'jittered', kind=ModelError)


def test_every_setting_of_the_inputs_is_known():
    "Whoever adds a setting must say here whether it is random"
    assert {k for k in vars(ClipInputs()) if not k.startswith('_')} == cache_module._SETTLED
    odd = ClipInputs(); odd.audio_p = .5
    assert {k for k in vars(odd) if not k.startswith('_')} - cache_module._SETTLED == {'audio_p'}


def test_refuses_what_the_callback_brings(clips, nets):
    dls, t = loaders(clips, 'rgb', 'depth'), lambda **kw: CachedTeacher(Teacher(nets[0]), **kw)
    refused(lambda: train(t(), dls, terms=[feature_term('unit3')]), "term 'features'", kind=ModelError)
    refused(lambda: train(t(), dls, cbs=[Mixer()]), 'Mixer', kind=ModelError)
    refused(lambda: train(t(slots=3), dls), 'slots=3', kind=ModelError)
    refused(lambda: train(t(), dls, inputs=()), 'signals=', kind=ModelError)
    refused(lambda: train(t(signals=['ir']), dls), 'ir', kind=ModelError)
    refused(lambda: train(CachedTeacher(Teacher(*nets)), dls), '1 inputs for a teacher of 2', kind=ModelError)
    refused(lambda: train(t(max_mb=1e-6), dls), 'max_mb=1e-06', kind=ModelError)
    refused(lambda: t().fill(dls, ['view2']), "'view2'", kind=ModelError)
    for wrong in (nets[0], t()): refused(lambda: CachedTeacher(wrong), 'cannot be cached', kind=ModelError)


class Peek(Callback):
    "Looks at a batch of the training loader in the middle of its pass"
    def after_batch(self):
        if self.training and self.iter == 0: self.dls.train.one_batch()


def test_a_loader_that_is_asked_in_the_middle_of_its_pass_is_noticed(clips, nets):
    refused(lambda: train(CachedTeacher(Teacher(nets[0])), loaders(clips, 'rgb', 'depth'), cbs=[Peek()]), 'middle of a pass', kind=ModelError)


class Moody(nn.Module):
    "Random although it is in eval mode"
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x) + torch.randn(len(x), 10)


def test_a_random_teacher_is_found_out_by_asking_again(clips, nets):
    seed_all(0)
    refused(lambda: train(CachedTeacher(Teacher(Moody(nets[0]))), loaders(clips, 'rgb', 'depth', slots=1), 2), 'says something else', kind=ModelError)


def test_an_error_leaves_the_teacher_whole(clips, nets):
    inner = Ensemble(*nets, weights='per-sample')
    cached, dls = CachedTeacher(inner), loaders(clips, 'rgb', 'depth', 'view2:rgb')
    inner.teach = lambda *a: 1/0
    with pytest.raises(ZeroDivisionError): train(cached, dls, 1, ('depth', 'view2'))
    assert [type(s) for s in inner.streams] == [SmallStream]*2 and inner.streams is cached.streams


# --- on disk

def one_file(folder): (f,) = folder.glob('*.safetensors'); return f


@pytest.mark.parametrize('damage', ['cut', 'bit', 'text', 'other'])
def test_a_damaged_file_is_refused(clips, nets, filled, tmp_path, damage):
    raw = bytearray(one_file(filled).read_bytes())
    if damage == 'bit': raw[-30] ^= 4
    file = tmp_path/one_file(filled).name
    file.write_bytes(dict(cut=raw[:-50], bit=raw, text=b'hello').get(damage, raw))
    if damage == 'other':
        CachedTeacher(Teacher(nets[1]), tmp_path/'x').fill(loaders(clips, 'rgb', 'depth', slots=1), ['depth'])
        file.write_bytes(one_file(tmp_path/'x').read_bytes())
    refused(lambda: first_batch(tmp_path, nets[0], loaders(clips, 'rgb')), file, 'delete it', kind=ModelError)


class Dies(Callback):
    def after_batch(self):
        if self.training and self.epoch == 1 and self.iter == 0: raise KeyboardInterrupt


def test_a_killed_run_keeps_its_finished_passes(clips, nets, tmp_path):
    tmp_path = tmp_path/'answers'
    with pytest.raises(KeyboardInterrupt): train(CachedTeacher(Teacher(nets[0]), tmp_path), loaders(clips, 'rgb', 'depth', bs=10), 3, cbs=[Dies()])
    assert [p.name for p in tmp_path.iterdir()] == [one_file(tmp_path).name]
    again = CachedTeacher(Teacher(nets[0]), tmp_path)
    assert again.fill(loaders(clips, 'rgb', 'depth', bs=10), ['depth']) == 20           # of 20 + 20 + 10
    assert CachedTeacher(Teacher(nets[0]), tmp_path).fill(loaders(clips, 'rgb', 'depth', bs=10), ['depth']) == 0


def test_fill_leaves_the_loaders_as_they_were_and_serves_a_student_alone(clips, nets, tmp_path):
    dls = loaders(clips, 'rgb', 'depth')
    dls.train.loaders[0].tfm.sampler.epoch = 5
    CachedTeacher(Teacher(nets[0]), tmp_path).fill(dls, ['depth'])
    assert dls.train.loaders[0].tfm.sampler.epoch == 5
    cached = CachedTeacher(Teacher(nets[0]), tmp_path, signals=['depth'])
    alone = train(cached, loaders(clips, 'rgb'), 4, ())
    assert all(p['misses'] == 0 for p in cached.log) and len(cached.log) == 8
    assert (weights(alone) - weights(train(Teacher(nets[0]), loaders(clips, 'rgb', 'depth'), 4))).abs().max() < 1e-3


def test_a_clip_twice_in_a_batch(clips, nets):
    dl, teacher = loaders(clips, 'depth').train, CachedTeacher(Teacher(nets[0]))
    x = next(iter(dl))[0]; teacher._begin(dl, [signal('depth')])
    at = [dl._DataLoader__idxs[i] for i in (0, 0, 1)]
    z = teacher.look_up(dl, at, [x[[0, 0, 1]]])
    assert torch.equal(z[:, 0], z[:, 1]) and teacher.log[-1] == dict(split='train', hits=1, misses=2)
    table = next(iter(teacher._tables.values()))
    assert (teacher.look_up(dl, at, []) - nets[0](x[[0, 0, 1]])).abs().max() <= 1e-3 and len(table.rows) == 2
