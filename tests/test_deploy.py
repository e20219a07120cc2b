"""What is shipped says what the run said: files, windows, frames in memory, exports; and what is refused leaves nothing behind."""
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import real_data, refused
from hypothesis import HealthCheck, given, settings, strategies as st

from moddist import deploy, synthetic
from moddist.core import MODALITIES, DataError, ModelError, read_json, seed_all, write_json
from moddist.data import test_dl as loader_of
from moddist.deploy import Card, FromPixels, Student, export_student, load_student, plot_timeline, predict, ship, timeline, watch
from moddist.evaluate import predict as predict_loader
from moddist.files import frame_shape, iter_frames, read_video, write_video
from moddist.inputs import ClipInputs
from moddist.models import SmallStream, TwoStream, load_model, save_model
from moddist.recipes import Garcia2018
from moddist.runs import clip_inputs, index_hash, loaders, picture_stream, reading

torch.set_num_threads(1)
STEPS = {'rgb': ['rgb'], 'rgb+depth': ['rgb', 'depth'], 'rgb+hallucination': ['rgb'], 'depth': ['depth']}
READ = dict(clip_len=8, sampling='uniform', size=None, short_side=None, crop=48, inputs='centred')


def loud(model, seed=0):
    "Random weights whose answers differ from clip to clip"
    seed_all(seed)
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=1.5/p[0].numel()**.5)
    return model.eval()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A finished run of untrained networks"
    root = synthetic.make(tmp_path_factory.mktemp('deploy')/'set', seed=3, train=1, valid=1, test=1, workers=1)
    df, out = synthetic.index(root), root.parent/'run'
    write_json(out/'run.json', dict(recipe='garcia2018', settings=asdict(Garcia2018(bs=10)), index=index_hash(df), data=dict(dataset='synthetic', root=str(root))))
    for i, (name, test) in enumerate(STEPS.items()):
        save_model(loud(TwoStream(SmallStream(10), SmallStream(10)) if '+' in name else SmallStream(10), i), out/name/'model.safetensors')
        write_json(out/name/'record.json', dict(name=name, step=1, reads=test, test=test, epochs=1, seconds=1., params=1))
    return out, df


@pytest.fixture(scope='module')
def student(run): return load_student(run[0])


def net_of(name, modality='rgb', k=5, **reading):
    "A student without a run"
    how = READ | reading
    m = TwoStream(picture_stream('small', k), picture_stream('small', k)) if name == 'pair' else picture_stream(name, k)
    return Student(Card(name, modality, dict(action=[f'c{i}' for i in range(k)]), how, (52, 52)), FromPixels(loud(m), ClipInputs(), modality).eval())


@pytest.mark.parametrize('step', ['rgb+hallucination', 'rgb', 'depth'])
def test_answers_are_those_of_the_test(run, step):
    out, df = run
    s, test = load_student(out, step), df[df.split == 'test']
    key = STEPS[step][0]
    z = predict_loader(load_model(out/step/'model.safetensors'), loader_of(loaders(reading(out), df, (key,)), test)).logits
    assert z.std(0).max() > .05, 'a network that always says the same proves nothing'
    assert np.abs(s(torch.stack([s.clip(p) for p in test[key]])) - z.softmax(1).numpy()).max() < 1e-6


def test_the_student_is_the_default(student, run):
    assert student.card.name == 'rgb+hallucination' and student.card.columns == list(run[1].drop_duplicates('label').sort_values('label').action)
    assert (student.card.frame, student.card.fps, student.card.seconds) == ((52, 52), 8., 1.)


def test_a_recipe_that_names_its_student(run, tmp_path):
    import shutil
    out = tmp_path/'run'
    shutil.copytree(run[0], out)
    write_json(out/'rgb'/'record.json', read_json(out/'rgb'/'record.json') | dict(keep=dict(role='student')))
    assert load_student(out).card.name == 'rgb'


def test_frames_in_memory_are_the_file(student, run):
    for p in run[1].rgb.iloc[:3]: assert torch.equal(student.clip_of(read_video(p)), student.clip(p))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(8, 40), window=st.floats(.3, 3), stride=st.floats(.05, 2), fps=st.sampled_from([8., 12.5]))
def test_windows_are_segments_of_the_file(student, tmp_path, n, window, stride, fps):
    "Each judgement of `watch` is that of the same frames read from the file; together they reach from the first frame to the last"
    frames = np.random.default_rng(n).integers(0, 256, (n, 56, 60, 3), dtype=np.uint8)
    file = write_video(tmp_path/f'{n}.avi', frames)
    seen = list(watch(student, iter_frames(file, MODALITIES['rgb']), fps, window, stride))
    spans = [(round(a*fps), round(b*fps)) for a, b, _ in seen]
    length, step = max(8, round(window*fps)), max(1, round(stride*fps))
    assert spans[0][0] == 0 and spans[-1][1] == n and all(b - a == min(length, n) for a, b in spans)
    assert all(d[1] - c[1] == step for c, d in zip(spans, spans[1:-1])) and len(set(spans)) == len(spans)
    for (a, b), (_, _, p) in zip(spans, seen): assert np.abs(p - student(student.clip(file, a, b)[None])[0]).max() < 1e-6


def test_a_long_recording_is_not_kept(student):
    "No more frames are alive than a window holds"
    import gc
    import weakref
    alive = []
    def camera():
        for i in range(200):
            f = np.full((60, 56, 3), i, np.uint8)
            alive.append(weakref.ref(f))
            yield f
            del f
            if i % 20 == 0: gc.collect(); assert sum(r() is not None for r in alive) <= 16 + 2
    assert len(list(watch(student, camera(), 8., 2., 1.))) == 24


def test_pictures_of_another_size_are_brought_to_that_of_the_training():
    s = net_of('small')
    small = np.random.default_rng(0).integers(0, 256, (8, 52, 52, 3), dtype=np.uint8)
    large = np.stack([cv2.resize(f, (208, 208), interpolation=cv2.INTER_NEAREST) for f in small])
    assert torch.equal(s.clip_of(large), s.clip_of(small))                                     # by area: four pixels of a kind are one
    assert s.clip_of(np.zeros((8, 104, 208, 3), np.uint8)).shape == (3, 8, 48, 48)
    whole = net_of('small', crop=None)
    assert whole.clip_of(np.zeros((8, 104, 208, 3), np.uint8)).shape == (3, 8, 52, 52)
    sized = net_of('small', size=64, crop=60)
    assert sized.clip_of(np.zeros((8, 104, 208, 3), np.uint8)).shape == (3, 8, 60, 60)
    refused(lambda: s.clip_of(np.zeros((8, 52, 52), np.uint8)), '[T, H, W, C]')


def test_what_only_rgb_sees_is_left_out(run, tmp_path):
    "A run that read the shared part of the picture is asked about that part: in files, in memory, in windows"
    out, df = run
    shared = df.assign(rgb_fov='0.08 0 1 1')
    write_json(tmp_path/'run'/'run.json', read_json(out/'run.json') | dict(index=index_hash(shared)))
    for f in ('model.safetensors', 'record.json'): (tmp_path/'run'/'rgb').mkdir(exist_ok=True), (tmp_path/'run'/'rgb'/f).write_bytes((out/'rgb'/f).read_bytes())
    s, test = load_student(tmp_path/'run', 'rgb', df=shared), shared[shared.split == 'test'].head(6)
    assert (s.card.fov, s.card.frame) == ("0.08 0 1 1", (52, 48))
    z = predict_loader(s.net.model, loader_of(loaders(reading(tmp_path/'run'), shared, ('rgb',)), test)).logits.softmax(1).numpy()
    assert np.abs(s(torch.stack([s.clip(p) for p in test.rgb])) - z).max() < 1e-6
    assert np.abs(s(torch.stack([s.clip_of(read_video(p)) for p in test.rgb])) - z).max() < 1e-6
    assert np.abs(np.stack([next(watch(s, iter_frames(p, MODALITIES['rgb']), 8.))[2] for p in test.rgb]) - z).max() < 1e-6
    plain = load_student(out, 'rgb')
    assert np.abs(plain(torch.stack([plain.clip(p) for p in test.rgb])) - z).max() > 1e-3


def test_several_heads(run):
    heads = dict(verb=['take', 'put'], noun=['cup', 'lid', 'pan'])
    s = replace(net_of('small'), card=Card('x', 'rgb', heads, READ, (52, 52), temperature=2.))
    p = s(s.clip(run[1].rgb.iloc[0])[None])
    assert np.allclose([p[0, :2].sum(), p[0, 2:].sum()], 1) and s.card.columns[2] == 'noun: cup'
    t = predict(s, [run[1].rgb.iloc[0]], top=2)
    assert list(t['head']) == ['verb', 'verb', 'noun', 'noun'] and list(t['rank']) == [1, 2, 1, 2]
    assert t.action[0] == heads['verb'][p[0, :2].argmax()] and t.action[2] == heads['noun'][p[0, 2:].argmax()] and (t.probability.diff()[[1, 3]] <= 0).all()


@pytest.mark.parametrize('name,modality,size', [('small', 'rgb', 48), ('pair', 'rgb', 48), ('small', 'depth', 48), ('small', 'ir', 48), ('resnet18', 'rgb', 48), ('lite0', 'rgb', 48), ('r3d_18', 'rgb', 48)])
@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
def test_exports_say_the_same(tmp_path, name, modality, size, kind):
    "At batch sizes other than the recorded one, with raw pixels; the file knows no path of this machine"
    s = net_of(name, modality)
    found = export_student(s, file := tmp_path/f'student.{kind}')
    assert found['clips'] == found['same_answers'] == 3 and found['largest_difference'] <= 1e-4*found['logit_range'] and found['logit_range'] > .01
    net = deploy._READERS[f'.{kind}'](file)
    x = deploy._random_clips(s, 5)
    with torch.no_grad():
        for b in (1, 5): assert (net(x[:b]) - s.net(x[:b])).abs().max() <= 1e-4*found['logit_range']
    raw = file.read_bytes()
    assert not [p for p in (str(Path(deploy.__file__).parent), str(tmp_path), str(Path.home())+'/') if p.encode() in raw]


def test_nobodys_picture_is_in_an_export(tmp_path):
    "`torch.export` keeps the example it recorded"
    import io
    import zipfile
    s = net_of('small')
    export_student(s, tmp_path/'a.pt2', clips := deploy._random_clips(s, 2))
    with zipfile.ZipFile(tmp_path/'a.pt2') as z: samples = [torch.load(io.BytesIO(z.read(n)), weights_only=False) for n in z.namelist() if 'sample_inputs' in n]
    tensors = [t for x in samples for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]
    assert clips.any() and not any(t.any() for t in tensors)


def test_a_camera_may_reuse_its_buffer(student):
    frames = np.random.default_rng(1).integers(0, 256, (8, 52, 52, 3), dtype=np.uint8)
    def camera():
        buffer = np.empty_like(frames[0])
        for f in frames: buffer[:] = f; yield buffer
    assert np.array_equal(next(watch(student, camera(), 8.))[2], next(watch(student, frames, 8.))[2])


def test_training_clips_of_several_sizes(run, tmp_path):
    "No size of the training could be restored for a new video"
    out, df = run
    odd = df.assign(rgb=df.rgb.where(df.index != df.index[(df.split == 'train')][0], str(write_video(tmp_path/'odd.avi', np.zeros((8, 64, 80, 3), np.uint8)))))
    refused(lambda: load_student(out, 'rgb', df=odd), '2 sizes', '52x52', 'short_side')


def encoded(path, kind, pts=None, n=60, rate=30):
    "A numbered video, H.264 as cameras write it"
    import av
    with av.open(str(path), 'w', format=kind) as box:
        stream = box.add_stream('libx264', rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 64, 'yuv420p', 1
        for i in range(n):
            f = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4*i, np.uint8), 'rgb24')
            f.pts = i if pts is None else pts[i]
            for p in stream.encode(f): box.mux(p)
        for p in stream.encode(): box.mux(p)
    return path


@pytest.mark.parametrize('kind', ['mp4', 'matroska', 'mpegts', 'mov', 'flv'])
def test_frames_by_number_and_in_order_agree_in_every_container(tmp_path, kind):
    "decord loses the first frames of a transport stream; then PyAV reads"
    file = encoded(tmp_path/f'a.{kind}', kind)
    frames = list(iter_frames(file, MODALITIES['rgb']))
    assert len(frames) == 60 and [round(f.mean()/4) for f in frames] == pytest.approx(range(60), abs=1)
    for i in (0, 30, 59): assert np.array_equal(read_video(file, [i])[0], frames[i])


def test_time_that_frames_do_not_tell(student, tmp_path):
    pts = np.cumsum([1]*30 + [6]*30)
    refused(lambda: timeline(student, encoded(tmp_path/'vfr.mp4', 'mp4', [int(p) for p in pts]), 1.), 'vfr.mp4', 'frame rate varies')
    assert len(timeline(student, tmp_path/'vfr.mp4', 1., fps=30.)) == 3 and len(timeline(student, tmp_path/'vfr.mp4')) == 1


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_a_telephones_video_is_answered_upright(student, run, tmp_path, turns):
    "Stored turned, with a tag that turns it back: the answers are those for the upright video, whole and window by window"
    av = pytest.importorskip('av', minversion='18')
    clip = run[1].rgb.iloc[0]
    frames = read_video(clip)
    with av.open(str(tmp_path/'phone.mp4'), 'w') as box:
        stream = box.add_stream('libx264rgb', rate=8, options={'qp': '0'})
        lying = np.ascontiguousarray(np.rot90(frames, -turns, (1, 2)))
        stream.height, stream.width, stream.pix_fmt = *lying.shape[1:3], 'rgb24'
        stream.set_display_rotation(90*turns)
        for f in lying: box.mux(stream.encode(av.VideoFrame.from_ndarray(f, 'rgb24')))
        box.mux(stream.encode())
    for window in (None, 1.): assert timeline(student, tmp_path/'phone.mp4', window).equals(timeline(student, clip, window))


def test_a_cut_without_encoding_anew(tmp_path):
    "It keeps the packets since the last key frame and hides their frames by an edit list; hidden ones are no frames"
    import av
    with av.open(str(encoded(tmp_path/'a.mp4', 'mp4'))) as i, av.open(str(tmp_path/'cut.mp4'), 'w') as o:
        a, b = i.streams.video[0], None
        b = o.add_stream_from_template(a)
        for p in i.demux(a):
            if p.dts is None: continue
            off = int(.4/p.time_base); p.pts -= off; p.dts -= off; p.stream = b; o.mux(p)
    frames = list(iter_frames(tmp_path/'cut.mp4', MODALITIES['rgb']))
    n = frame_shape(tmp_path/'cut.mp4', MODALITIES['rgb'])[0]
    assert n == len(frames) < 60
    for k in (0, n//2, n - 1): assert np.array_equal(read_video(tmp_path/'cut.mp4', [k])[0], frames[k])


class Sly(torch.nn.Module):
    "Another network while it is recorded"
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x)*(2 if torch.compiler.is_exporting() else 1)


@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
def test_an_export_that_lies_is_not_kept(run, tmp_path, kind, monkeypatch):
    s = net_of('small')
    refused(lambda: export_student(replace(s, net=Sly(s.net)), tmp_path/f'a.{kind}'), 'differs from the network', 'Nothing was kept', kind=ModelError)
    monkeypatch.setattr(deploy, 'FromPixels', lambda *a: Sly(FromPixels(*a)))
    monkeypatch.setattr(Sly, 'model', property(lambda self: self.net.model), raising=False)
    refused(lambda: ship(run[0], tmp_path/'student', formats=[kind]), 'differs from the network', kind=ModelError)
    assert not list(tmp_path.glob('*student*')) and not list(tmp_path.glob('.partial*')) and not list(tmp_path.glob('a.*'))


def test_shipped_folder(run, student, tmp_path):
    "It can be moved, answers alike in both runtimes, and holds no path and no name of a clip"
    out, df = run
    ship(out, tmp_path/'a', formats=('onnx', 'pt2'))
    (tmp_path/'a').rename(tmp_path/'b')
    assert sorted(f.name for f in (tmp_path/'b').iterdir()) == ['model.safetensors', 'student.json', 'student.onnx', 'student.pt2']
    x = torch.stack([student.clip(p) for p in df.rgb.iloc[:6]])
    for runtime in ('torch', 'onnx'):
        s = load_student(tmp_path/'b', runtime=runtime)
        assert replace(s.card, parity={}, files={}) == student.card and np.abs(s(x) - student(x)).max() < 1e-5
    said = (tmp_path/'b'/'student.json').read_text()
    assert str(out.parent) not in said and df.clip_id.iloc[0][:8] not in said
    card = json.loads(said)
    assert card['parity']['student.onnx']['clips'] == 16 == card['parity']['student.onnx']['same_answers']
    refused(lambda: ship(out, tmp_path/'b'), 'is there already')
    refused(lambda: load_student(tmp_path/'b', 'rgb'), "holds 'rgb+hallucination'")


def test_temperature_is_fitted_to_validation_clips(run, tmp_path):
    "On logits that know the classes, too surely and not always: every fifth validation clip is taught a wrong one"
    import shutil
    out, df = run
    from moddist.calibration import temperature
    shutil.copytree(out, tmp_path/'run')
    net, valid = load_student(out, 'rgb').net.model, loaders(reading(out), df, ('rgb',)).valid
    x = torch.cat([net.forward_features(xs[0]) for *xs, _ in valid]).detach()
    x, y = x.flatten(2).mean(2) if x.ndim > 2 else x, predict_loader(net, valid).labels
    taught = torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % 10, y)
    net.fc.weight.data = torch.linalg.lstsq(x - x.mean(0), 8.*torch.nn.functional.one_hot(taught, 10) - .8).solution.T.contiguous()
    net.fc.bias.data = -net.fc.weight.data @ x.mean(0)
    save_model(net, tmp_path/'run'/'rgb'/'model.safetensors')
    t = temperature(predict_loader(net, valid))
    assert .1 < t < 10 and abs(t - 1) > .02
    card = ship(tmp_path/'run', tmp_path/'t', 'rgb', (), calibrate=True).card
    assert card.temperature == pytest.approx(t, abs=1e-4) and load_student(tmp_path/'t').card.temperature == card.temperature


def test_a_network_that_knows_nothing_has_no_temperature(run, tmp_path):
    refused(lambda: ship(run[0], tmp_path/'t', 'depth', (), calibrate=True), 'guess')
    assert not (tmp_path/'t').exists()


def test_refusals(run, student, tmp_path, monkeypatch):
    out, df = run
    refused(lambda: load_student(out, 'rgb+depth'), 'reads rgb and depth', 'rgb+hallucination', kind=ModelError)
    refused(lambda: load_student(out, 'student'), "'student' is not finished", 'rgb+hallucination')
    refused(lambda: load_student(tmp_path), 'holds no run')
    refused(lambda: load_student(out, runtime='onnx'), 'moddist export', kind=ModelError)
    refused(lambda: load_student(out, runtime='tensorrt'), 'expected torch or onnx', kind=ModelError)
    refused(lambda: ship(out, tmp_path/'x', formats=('tflite',)), 'onnx, pt2', kind=ModelError)
    refused(lambda: predict(student, [df.rgb.iloc[0]], top=0), 'top=0')
    refused(lambda: predict(student, [tmp_path/'no.mp4']), 'no.mp4')
    (tmp_path/'bad.mp4').write_bytes(b'not a video')
    refused(lambda: predict(student, [tmp_path/'bad.mp4'], window_s=1.), 'bad.mp4')
    refused(lambda: list(watch(student, [], 8.)), 'no frame came')
    refused(lambda: list(watch(student, np.zeros((5, 52, 52, 3), np.uint8), 8.)), '5 frame(s)')
    some = np.zeros((9, 52, 52, 3), np.uint8)
    for bad in (dict(fps=0.), dict(fps=-5.), dict(fps=float('inf')), dict(fps=8., window_s=0.), dict(fps=8., window_s=float('inf')), dict(fps=8., stride_s=-1.)): refused(lambda: list(watch(student, some, **bad)), 'expected a number above 0')
    for bad in (some.astype(np.float32)/255, some.astype(np.uint16), some[..., 0], np.concatenate([some, some], -1)):
        refused(lambda: list(watch(student, bad, 8.)), 'expected [H, W, C] with C = 3, uint8')
        refused(lambda: student.clip_of(bad), 'expected [T, H, W, C] with C = 3, uint8')
    refused(lambda: timeline(student, df.rgb.iloc[0], None, 1.), 'without window_s')
    refused(lambda: timeline(student, df.rgb.iloc[0], fps=-5.), 'fps=-5.0')
    refused(lambda: timeline(student, write_video(tmp_path/'five.avi', some[:5]), 1.), 'five.avi', '5 frame(s)')
    refused(lambda: list(watch(replace(student, card=replace(student.card, seconds=None)), [], 8.)), 'length of the window')
    refused(lambda: replace(student, card=replace(student.card, heads=dict(action=['a'])))(student.clip(df.rgb.iloc[0])[None]), '10 logits for 1 classes', kind=ModelError)
    ship(out, tmp_path/'s', 'rgb', ('onnx',))
    refused(lambda: load_student(tmp_path/'s', runtime='onnx')(torch.zeros(1, 3, 8, 40, 48, dtype=torch.uint8)), '[3, 8, 48, 48]', '[3, 8, 40, 48]', kind=ModelError)
    (tmp_path/'s'/'student.onnx').write_bytes(b'cut off')
    refused(lambda: load_student(tmp_path/'s', runtime='onnx'), 'is not the file that was shipped')
    refused(lambda: deploy._onnx(tmp_path/'s'/'student.onnx'), 'not a readable ONNX file', kind=ModelError)
    (tmp_path/'s'/'model.safetensors').write_bytes((out/'depth'/'model.safetensors').read_bytes())
    refused(lambda: load_student(tmp_path/'s'), 'model.safetensors', 'is not the file that was shipped')
    (tmp_path/'s'/'student.onnx').unlink()
    refused(lambda: load_student(tmp_path/'s', runtime='onnx'), 'no such file', kind=ModelError)
    card = read_json(tmp_path/'s'/'student.json')
    for bad in (dict(temperature=0), dict(temperature=-1.), dict(temperature=None), dict(temperature='1'), dict(frame=[0, 0]), dict(frame=[52]), dict(frame=['a', 'b']), dict(fov='abc'), dict(fov='0 0 0 0'), dict(heads=['a']), dict(heads={}),
                dict(reading=card['reading'] | dict(clip_len='8')), dict(reading=card['reading'] | dict(colour='BGR')), dict(reading=card['reading'] | dict(sampling='often'))):
        write_json(tmp_path/'s'/'student.json', card | bad)
        refused(lambda: load_student(tmp_path/'s'), 'student.json' if 'often' not in str(bad) else 'often')
    write_json(tmp_path/'s'/'student.json', card | dict(colour='BGR'))
    refused(lambda: load_student(tmp_path/'s'), 'colour', 'ship the student again')
    write_json(tmp_path/'s'/'student.json', card | dict(format=2, colour='BGR'))
    refused(lambda: load_student(tmp_path/'s'), 'format 2', 'upgrade moddist')
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name.startswith('onnx') else found(name, *a))
    refused(lambda: export_student(student, tmp_path/'a.onnx'), 'pip install "moddist[export]"', kind=ModelError)
    refused(lambda: ship(out, tmp_path/'y'), 'pip install "moddist[export]"', kind=ModelError)
    assert not list(tmp_path.glob('*partial*')) and not (tmp_path/'y').exists() and not (tmp_path/'a.onnx').exists()


def test_images_have_no_rate(student, tmp_path):
    from PIL import Image
    frames = np.random.default_rng(0).integers(0, 256, (12, 52, 52, 3), dtype=np.uint8)
    for i, f in enumerate(frames): Image.fromarray(f).save(tmp_path/f'{i}.png')
    refused(lambda: timeline(student, tmp_path, 1.), 'no frame rate')
    t = timeline(student, tmp_path, 1., fps=8.)
    assert list(t.stop_s) == [1., 1.5] and np.isnan(timeline(student, tmp_path).stop_s[0])
    assert np.abs(t.iloc[0, 2:].to_numpy(float) - student(student.clip_of(frames[:8])[None])[0]).max() < 1e-6


def test_picture(student, run):
    t = timeline(student, run[1].rgb.iloc[0], .5, .25)
    fig = plot_timeline(t, [(0., 1., student.card.columns[3])])
    ax = fig.axes[0]
    assert [x.get_text() for x in ax.get_yticklabels()] == student.card.columns and ax.patches[0].get_y() == 3
    assert np.allclose(ax.collections[0].get_array(), t.iloc[:, 2:].to_numpy().T)
    two = replace(net_of('small'), card=Card('x', 'rgb', dict(verb=['take', 'put'], noun=['cup', 'lid', 'pan']), READ, (52, 52), seconds=1.))
    t = timeline(two, run[1].rgb.iloc[0], 1.)
    ours = [line.get_ydata()[0] for line in plot_timeline(t).axes[0].lines]
    assert ours == [t.iloc[0, 2:4].to_numpy(float).argmax() + .5, 2 + t.iloc[0, 4:].to_numpy(float).argmax() + .5]
    refused(lambda: plot_timeline(t.assign(stop_s=np.nan)), 'no axis')


def moddist(*args): return subprocess.run([sys.executable, '-c', 'from moddist.cli import main; main()', *map(str, args)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))


def test_command_line(run, student, tmp_path):
    out, df = run
    r = moddist('export', out, tmp_path/'s')
    assert r.returncode == 0 and '16 of 16 clips answered alike' in r.stdout and len(r.stdout.splitlines()) == 2, r.stdout + r.stderr
    r = moddist('predict', tmp_path/'s', *df.rgb.iloc[:2], '--runtime', 'onnx', '--out', tmp_path/'t.csv')
    assert r.returncode == 0, r.stderr
    import pandas as pd
    t = pd.read_csv(tmp_path/'t.csv')
    ours = predict(student, list(df.rgb.iloc[:2]))
    assert list(t.action) == list(ours.action) and np.allclose(t.probability, ours.probability, atol=1e-5)
    r = moddist('predict', out, df.rgb.iloc[0], '--window', '0.5', '--plot', tmp_path/'t.png')
    assert r.returncode == 0 and (tmp_path/'t.png').stat().st_size > 5000, r.stderr
    for args, word in ((('predict', out, *df.rgb.iloc[:2], '--plot', 't.png'), 'one video'), (('predict', out, tmp_path/'no.mp4'), 'no such video'), (('export', out, tmp_path/'s'), 'is there already'), (('export', out, tmp_path/'z', '--format', 'tflite'), 'onnx, pt2')):
        r = moddist(*args)
        assert r.returncode == 1 and word in r.stderr and r.stderr.count('\n') == 1, r.stderr


@pytest.mark.parametrize('name', ['urfd', 'utd_mhad'])
def test_real_videos_frame_by_frame(name):
    "Decoded in order they are the frames that reading by number gives"
    file = next(p for p in sorted(real_data(name).rglob('*')) if p.suffix in ('.mp4', '.avi'))
    n = frame_shape(file, MODALITIES['rgb'])[0]
    frames = list(iter_frames(file, MODALITIES['rgb']))
    assert len(frames) == n
    for i in (0, n//2, n - 1): assert np.array_equal(frames[i], read_video(file, [i])[0])
