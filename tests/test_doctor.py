"The doctor: every seeded fault is found, exactly once and by its name; nothing is found where nothing is wrong"
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from PIL import Image

from moddist import synthetic
from moddist.core import DataError, rng, signal
from moddist.datasets.own import index, split_by
from moddist.doctor import CHECKS, Report, _check_overlap, _contents, _missing_numbers, _odd_lengths, _twins, examine
from moddist.files import write_png16, write_video


@pytest.fixture(scope='module')
def well(tmp_path_factory):
    "A sound set on disk: 3 classes x 6 persons x 2 takes, colour and depth, split by person"
    root = tmp_path_factory.mktemp('well')/'set'
    for who in range(1, 7):
        for action in ('jump', 'sit', 'walk'):
            for take in (1, 2):
                r, stem = rng('doctor test', who, action, take), root/f'subject{who}'/action
                write_video(stem/f'{take}_rgb.mp4', r.integers(30, 220, (12, 16, 20, 3), np.uint8), fps=12)
                write_png16(stem/f'{take}_depth', r.integers(1500, 4000, (12, 16, 20), np.uint16))
    return root


@pytest.fixture
def df(well, tmp_path):
    "The index of a copy that a test may damage"
    shutil.copytree(well, tmp_path/'set')
    return split_by(index(tmp_path/'set', verbose=False), 'subject', valid=.17, test=.34)


def found(df, **how):
    "(check, severity, clip_id, signal) of every fault"
    report = examine(df, progress=False, **how)
    assert all('\n' not in m and m for m in report.faults.message) and set(report.faults.check) <= set(CHECKS)
    return [(f.check, f.severity, f.clip_id, f.signal) for f in report.faults.itertuples()]


def test_a_sound_set_is_sound(df):
    for how in (dict(files=False), dict(), dict(deep=True), dict(deep=True, workers=1), dict(signals=['depth'])):
        report = examine(df, progress=False, **how)
        assert report.ok and len(report.faults) == 0 and 'nothing wrong' in report.summary() and len(report.clean(df)) == len(df)


@pytest.fixture(scope='module')
def embedded(tmp_path_factory): return synthetic.make(tmp_path_factory.mktemp('embedded')/'set', train=1, valid=1, test=1, unlabelled=1, workers=1)


@pytest.mark.parametrize('protocol', ['cross-subject', 'cross-view'])
def test_no_false_alarm_on_the_embedded_set(embedded, protocol):
    report = examine(synthetic.index(embedded, protocol), deep=True, progress=False)
    assert len(report.faults) == 0, str(report)
    assert {s.key for s in report.signals} == {'rgb', 'depth', 'skeleton'}


# ---------------------------------------------------------------- faults of the index, seeded one by one

def set_cell(row, column, value):
    def seed(df):
        df[column] = df[column].astype(object)
        df.loc[row, column] = value
        return df
    return seed


NAMES = {  # fault: (how to put it in, what must be found: check, severity, row or None, signal)
    'an id twice': (lambda df: df.assign(clip_id=[df.clip_id[1] if i == 0 else c for i, c in enumerate(df.clip_id)]), ('duplicate id', 'error', 1, '')),
    'no label': (set_cell(3, 'label', np.nan), ('label', 'error', 3, '')),
    'a negative label': (set_cell(3, 'label', -1), ('label', 'error', 3, '')),
    'half a label': (set_cell(3, 'label', 1.5), ('label', 'error', 3, '')),
    'a label that is a word': (set_cell(3, 'label', 'jump'), ('label', 'error', 3, '')),
    'a gap': (lambda df: df.assign(label=df.label*2 - (df.label == 1)), ('label gap', 'warning', None, '')),
    'labels from 1': (lambda df: df.assign(label=df.label + 1), ('label gap', 'warning', None, '')),
    'a split of another name': (lambda df: df.assign(split=df.split.replace('valid', 'val')), ('split', 'error', None, '')),
    'a split that is missing': (set_cell(0, 'split', None), ('split', 'error', None, '')),
    'a class that is never trained': (lambda df: df[(df.label != 2) | (df.split != 'train')], ('class missing', 'error', None, '')),
    'a class that is never tested': (lambda df: df[(df.label != 2) | (df.split != 'test')], ('class missing', 'warning', None, '')),
    'no path': (set_cell(4, 'depth', np.nan), ('no path', 'warning', 4, 'depth')),
    'an empty path': (set_cell(4, 'rgb', ''), ('no path', 'warning', 4, 'rgb')),
    'no such file': (set_cell(5, 'rgb', '/nowhere/x.mp4'), ('no file', 'error', 5, 'rgb')),
    'no such folder': (set_cell(5, 'depth', '/nowhere/x'), ('no file', 'error', 5, 'depth')),
    'a pattern without files': (lambda df: set_cell(5, 'depth', df.depth[5] + '/M*.png')(df), ('no file', 'error', 5, 'depth')),
}


@pytest.mark.parametrize('name', NAMES)
def test_fault_of_the_index(df, name):
    seed, (check, severity, row, key) = NAMES[name]
    sick = seed(df.copy())
    for how in (dict(files=False), dict()):
        assert found(sick, **how) == [(check, severity, df.clip_id[row] if row is not None else '', key)]


def test_class_names(df):
    two_labels = df.assign(action=df.action.replace('sit', 'jump'))
    assert [f[0] for f in found(two_labels, files=False)] == ['class names']
    two_names = df.assign(action=[('hop' if i % 2 else a) if a == 'jump' else a for i, a in enumerate(df.action)])
    report = examine(two_names, files=False, progress=False)
    assert report.faults.check.tolist() == ['class names'] and 'hop, jump' in report.faults.message[0]


def test_unlabelled_clips_need_no_label(df):
    free = df.index[df.split == 'train'][:3]
    df.loc[free, 'label'], df.loc[free, 'split'] = -1, 'unlabelled'
    assert found(df) == []


def test_counts(df):
    table = pd.DataFrame(dict(found=[18, 12], published=[18, 13], missing=[0, 1]), index=['train', 'test'])
    assert found(df, published=table, files=False) == [('counts', 'warning', '', '')]
    per_signal = pd.DataFrame(dict(published=[18], rgb=[18], depth=[17], skeleton=[0]), index=pd.MultiIndex.from_tuples([('cross-subject', 'train')]))
    report = examine(df, published=per_signal, files=False, progress=False)
    assert report.faults.signal.tolist() == ['depth'] and 'cross-subject train: 17 found, 18 published' in report.faults.message[0]
    with pytest.raises(DataError, match='expected published and found'): examine(df, published=pd.DataFrame(dict(rgb=[1])))


# ---------------------------------------------------------------- leaks

def test_a_person_on_both_sides(df):
    row = df.index[df.split == 'test'][0]
    df.loc[row, 'split'] = 'train'
    assert found(df, files=False) == [('shared subject', 'error', df.clip_id[row], '')]
    assert examine(examine(df, progress=False).clean(df), progress=False).ok
    assert found(df, files=False, disjoint=()) == []


def test_everybody_on_both_sides_is_no_leak_unless_it_is_claimed(df):
    both = df.assign(split=['train', 'test']*18)
    assert found(both, files=False) == []
    assert {f[0] for f in found(both, files=False, disjoint=['subject'])} == {'shared subject'}


def test_training_without_labels_is_training(df):
    row = df.index[df.split == 'test'][0]
    df.loc[row, ['split']] = 'unlabelled'
    assert found(df, files=False) == [('shared subject', 'error', df.clip_id[row], '')]


def test_a_recording_on_both_sides(df):
    df['video'] = df.clip_id
    test, train = df.index[df.split == 'test'][0], df.index[df.split == 'train'][0]
    df.loc[test, 'video'] = df.loc[train, 'video']
    assert found(df, files=False) == [('shared video', 'error', df.clip_id[train], '')]
    valid = df.index[df.split == 'valid'][0]
    df['video'] = df.clip_id
    df.loc[valid, 'video'] = df.loc[train, 'video']
    assert [f[:2] for f in found(df, files=False)] == [('shared video', 'warning')]


def test_segments_of_one_recording(df):
    "Without a column video the file itself is the recording"
    test, train = df.index[df.split == 'test'][0], df.index[df.split == 'train'][0]
    df = df.drop(columns='subject').assign(start=0, stop=12)
    for key in ('rgb', 'depth'): df.loc[test, key] = df.loc[train, key]
    df.loc[train, 'stop'], df.loc[test, 'start'] = 6, 6
    assert found(df, clip_len=4) == [('shared video', 'error', df.clip_id[train], '')]
    df.loc[test, 'start'] = 5
    assert found(df, clip_len=4) == [('overlap', 'error', df.clip_id[train], 'rgb')]
    df.loc[train, 'split'] = df.loc[test, 'split']
    assert found(df, clip_len=4) == []


def test_pictures_of_different_shape(df, tmp_path):
    "A video that a tag turns beside depth that none turns; and two cameras of which one sees further, until the index says what both see"
    av = pytest.importorskip('av', minversion='18')
    i, r = df.index[2], rng('phone')
    with av.open(str(tmp_path/'phone.mp4'), 'w') as box:
        stream = box.add_stream('libx264rgb', rate=12, options={'qp': '0'})
        stream.height, stream.width, stream.pix_fmt = 16, 20, 'rgb24'
        stream.set_display_rotation(90)
        for f in r.integers(30, 220, (12, 16, 20, 3), np.uint8): box.mux(stream.encode(av.VideoFrame.from_ndarray(f, 'rgb24')))
        box.mux(stream.encode())
    phone = df.assign(rgb=df.rgb.where(df.index != i, str(tmp_path/'phone.mp4')))
    assert found(phone) == [('proportions', 'error', df.clip_id[i], 'depth')] and 'stands' in examine(phone, progress=False).faults.message[0]
    wide = df.assign(rgb=df.rgb.where(df.index != i, str(write_video(tmp_path/'wide.mp4', r.integers(30, 220, (12, 16, 32, 3), np.uint8), fps=12))))
    assert found(wide) == [('proportions', 'warning', df.clip_id[i], 'depth')]
    both = wide.assign(rgb_fov=np.where(df.index == i, f'{6/32} 0 {26/32} 1', None))
    assert found(both) == []
    assert found(wide, files=False) == []


def test_overlap_needs_a_shared_frame():
    t = pd.DataFrame(dict(clip_id=['a', 'b'], label=0, split=['train', 'test'], rgb='x.mp4', start=[0, 10], stop=[10, 20]))
    content = _contents(t, signal('rgb'), {})
    assert not list(_check_overlap(t, signal('rgb'), content))
    assert len(list(_check_overlap(t.assign(stop=[11, 20]), signal('rgb'), content))) == 1
    assert len(list(_check_overlap(t.assign(start=[np.nan, 10], stop=[np.nan, 20]), signal('rgb'), content))) == 1   # the whole file holds every segment


def same(df, keep, copy):
    "Overwrite the files of one clip with those of another"
    shutil.copy(df.rgb[keep], df.rgb[copy])
    shutil.rmtree(df.depth[copy]); shutil.copytree(df.depth[keep], df.depth[copy])


def test_copies(df):
    pick = lambda label, split: df.index[(df.label == label) & (df.split == split)]
    train, test = pick(0, 'train'), pick(0, 'test')
    same(df, train[0], train[1])
    assert found(df) == [('same content', 'warning', df.clip_id[train[1]], k) for k in ('rgb', 'depth')]
    same(df, test[0], train[1])                                     # across the split: the copy in training is named
    assert found(df) == [('same content', 'error', df.clip_id[train[1]], k) for k in ('rgb', 'depth')]
    other = pick(1, 'train')[0]
    same(df, other, train[1])                                       # one of the two labels is wrong
    assert found(df) == [('same content', 'error', df.clip_id[max(train[1], other)], k) for k in ('rgb', 'depth')]
    assert found(df, files=False) == []


def test_one_file_in_two_rows_is_a_copy(df):
    a, b = df.index[(df.split == 'train') & (df.label == 0)][:2]
    df.loc[b, 'depth'] = df.loc[a, 'depth']
    assert found(df, files=False) == [('same content', 'warning', df.clip_id[b], 'depth')]


def test_twins_need_equal_bytes(tmp_path):
    r, names = np.random.default_rng(0), [str(tmp_path/n) for n in 'abcd']
    base = bytearray(r.bytes(200_000))
    for n in names: Path(n).write_bytes(base)
    base[100_000] ^= 1                                              # in the middle, where no sample looks
    Path(names[1]).write_bytes(base)
    Path(names[2]).write_bytes(base[:-1])
    assert _twins(names) == {names[0]: names[0], names[3]: names[0]}


# ---------------------------------------------------------------- damaged files

def truncate(path, keep): Path(path).write_bytes(Path(path).read_bytes()[:keep])
def frame(df, row, i): return Path(df.depth[row])/f'Depth-{i:08d}.png'


def lose_frames(df, row):
    for i in (2, 5, 9): frame(df, row, i).unlink()


FILES = {  # fault: (how to put it in, check, signal)
    'half a video': (lambda df, i: truncate(df.rgb[i], os.path.getsize(df.rgb[i])//2), 'unreadable', 'rgb'),
    'an empty video': (lambda df, i: truncate(df.rgb[i], 0), 'unreadable', 'rgb'),
    'text in place of a video': (lambda df, i: Path(df.rgb[i]).write_text('404 Not Found\n'*99), 'unreadable', 'rgb'),
    'a cut picture': (lambda df, i: truncate(frame(df, i, 7), 150), 'unreadable', 'depth'),
    'an empty picture': (lambda df, i: truncate(frame(df, i, 7), 0), 'unreadable', 'depth'),
    'a folder without pictures': (lambda df, i: [f.unlink() for f in Path(df.depth[i]).iterdir()], 'unreadable', 'depth'),
    'one 8-bit picture': (lambda df, i: Image.new('L', (20, 16), 7).save(frame(df, i, 3)), '8-bit depth', 'depth'),
    'a coloured depth': (lambda df, i: [Image.new('RGB', (20, 16), 7).save(frame(df, i, k)) for k in range(1, 13)], '8-bit depth', 'depth'),
    'a size that changes': (lambda df, i: Image.fromarray(np.full((8, 10), 2000, np.uint16)).save(frame(df, i, 12)), 'size', 'depth'),
    'lost frames': (lose_frames, 'frame gap', 'depth'),
    'one lost frame of twelve': (lambda df, i: frame(df, i, 6).unlink(), 'frame gap', 'depth'),
    'the last three frames': (lambda df, i: [frame(df, i, k).unlink() for k in (10, 11, 12)], 'duration', 'depth'),
}


@pytest.mark.parametrize('name', FILES)
def test_damaged_file(df, name):
    seed, check, key = FILES[name]
    seed(df, 3)
    for how in (dict(), dict(deep=True)): assert found(df, **how) == [(check, 'error', df.clip_id[3], key)]
    assert found(df, files=False) == []
    assert examine(examine(df, progress=False).clean(df), deep=True, progress=False).ok


def test_short_clips_and_segments(df):
    assert {f[0] for f in found(df, clip_len=13)} == {'short'} and len(found(df, clip_len=13)) == len(df)
    df = df.assign(start=0., stop=12.)
    df.loc[0, 'stop'], df.loc[1, 'start'], df.loc[2, ['start', 'stop']], df.loc[3, 'stop'] = 13, -1, (9, 9), 7
    assert found(df) == [('segment', 'error', df.clip_id[i], 'rgb') for i in (0, 1, 2)] + [('short', 'error', df.clip_id[3], 'rgb')]


def test_empty_pictures(df):
    dark = np.random.default_rng(0).integers(30, 220, (12, 16, 20, 3)).astype(np.uint8)
    dark[3:5] = 0
    write_video(df.rgb[2], dark, fps=12)
    shutil.rmtree(df.depth[7]); write_png16(df.depth[7], np.zeros((12, 16, 20), np.uint16))
    assert found(df) == []
    assert found(df, deep=True) == [('empty', 'error', df.clip_id[7], 'depth'), ('empty', 'warning', df.clip_id[2], 'rgb')]
    segments = df.assign(start=0, stop=12)
    segments.loc[2, 'start'] = 5                                    # behind the dark frames
    assert [f[2] for f in found(segments, deep=True, clip_len=4)] == [df.clip_id[7]]


def test_a_frame_that_headers_do_not_show_is_found_by_decoding(df):
    raw = bytearray(frame(df, 4, 6).read_bytes())
    raw[60:200] = bytes(140)
    frame(df, 4, 6).write_bytes(raw)
    assert found(df) == [] and found(df, deep=True) == [('unreadable', 'error', df.clip_id[4], 'depth')]


def test_flow_as_pairs_of_pictures(df, tmp_path):
    for i in df.index:
        for c in 'uv':
            folder = tmp_path/'flow'/str(i)/c
            folder.mkdir(parents=True)
            for t in range(12): Image.fromarray(rng('flow', i, c, t).integers(0, 255, (16, 20), np.uint8)).save(folder/f'frame_{t}.png')
    df['flow'] = [str(tmp_path/'flow'/str(i)/'{u,v}'/'frame_*.png') for i in df.index]
    assert found(df, deep=True) == []
    truncate(tmp_path/'flow'/'5'/'v'/'frame_3.png', 40)
    shutil.rmtree(tmp_path/'flow'/'6')
    assert found(df) == [('no file', 'error', df.clip_id[6], 'flow'), ('unreadable', 'error', df.clip_id[5], 'flow')]


def test_a_known_rate_is_no_fault_but_a_duration_is(df):
    r = np.random.default_rng(0)
    df['view2'] = [str(write_video(Path(df.rgb[0]).parents[3]/f'view2/{i}.mp4', r.integers(0, 255, (6, 16, 20, 3), np.uint8), fps=6)) for i in df.index]
    assert found(df, signals=['rgb', 'view2:rgb', 'depth']) == []   # half the rate, the same second
    write_video(df.view2[9], r.integers(0, 255, (6, 16, 20, 3), np.uint8), fps=12)
    assert found(df, signals=['rgb', 'view2:rgb']) == [('duration', 'error', df.clip_id[9], 'view2')]


def test_sound_is_as_long_as_its_pictures(df, tmp_path):
    import wave
    def sound(i, seconds):
        with wave.open(str(tmp_path/f'{i}.wav'), 'wb') as w:
            w.setnchannels(1); w.setsampwidth(2); w.setframerate(8000)
            w.writeframes(rng('sound', i).integers(-999, 999, round(8000*seconds), np.int16).tobytes())
        return str(tmp_path/f'{i}.wav')
    df['audio'] = [sound(i, 1) for i in df.index]
    assert found(df, signals=['rgb', 'audio']) == []
    sound(2, .5); truncate(df.audio[3], 20)
    assert found(df, signals=['rgb', 'audio']) == [('unreadable', 'error', df.clip_id[3], 'audio'), ('duration', 'error', df.clip_id[2], 'audio')]


@pytest.mark.parametrize('rates', [(.5,), (.5, 1.), (1., .5, 2.)])
def test_mixed_frame_rates_are_learned_from_the_set(rates):
    r = np.random.default_rng(len(rates))
    ref = r.integers(60, 200, 90).astype(float)
    n = np.floor(ref*np.resize(rates, 90))
    nan = np.full(90, np.nan)
    assert not (_odd_lengths(n, ref, nan, nan) != '').any()
    n[::30] *= .7
    far = _odd_lengths(n, ref, nan, nan) != ''
    assert len(rates) > 1 or far.nonzero()[0].tolist() == [0, 30, 60]     # with several rates only what lies outside all of them is far


# ---------------------------------------------------------------- the report

def test_report(df):
    df.loc[0, 'rgb'], df.loc[1, 'depth'], df.loc[2, 'label'] = '/gone/<b>.mp4', np.nan, -1
    a, b = (examine(df, ['rgb', 'depth'], progress=False, workers=w) for w in (1, 3))
    pd.testing.assert_frame_equal(a.faults, b.faults)
    assert isinstance(a, Report) and not a.ok and a.table().faults.sum() == len(a.faults) == 3
    assert '3 errors in 3 clips' in a.summary() and all(c in str(a) for c in ('no file', 'no path', 'label'))
    page = a._repr_html_()
    assert '<b>.mp4' not in page and '&lt;b&gt;.mp4' in page and page.count('<tr>') == 4
    assert sum(sum(bar.x) for bar in a.figure().data) == 3
    assert a.clean(df).clip_id.tolist() == df.clip_id.tolist()[3:] and len(df) == 36
    assert len(examine(df[3:], progress=False).figure().data) == 0


def test_the_order_of_the_rows_changes_nothing(df):
    df.loc[[3, 9], 'depth'] = np.nan
    truncate(df.rgb[5], 100)
    key = lambda r: sorted(map(tuple, r.faults.drop(columns='message').values))
    assert key(examine(df, progress=False)) == key(examine(df.sample(frac=1, random_state=0), progress=False))


def test_what_is_no_clip_index(df):
    for bad, words in ((df.drop(columns='clip_id'), 'clip_id'), (df.drop(columns='label'), 'label'), (df[:0], 'empty')):
        with pytest.raises(DataError, match=words): examine(bad)
    with pytest.raises(DataError, match="'ir'"): examine(df, signals=['ir'])
    with pytest.raises(DataError, match="'room'"): examine(df, disjoint=['room'])
    assert found(df.drop(columns=['rgb', 'depth'])) == []


def test_words_in_a_column_named_like_a_modality_are_no_paths(df):
    df['motion'], df['action'] = 'wave', df.action.replace('sit', 'put on a hat/cap')
    assert [s.key for s in examine(df, files=False).signals] == ['rgb', 'depth']


def test_utd_mhad_is_read_without_errors():
    from moddist.datasets import utd_mhad
    df = utd_mhad.split(utd_mhad.index(real_data('utd_mhad')))
    report = examine(df[(df.trial == 1) & (df.label < 8)], signals=['depth', 'skeleton', 'inertial'], published=utd_mhad.check_counts(df), progress=False)
    assert report.ok and set(report.faults.check) <= {'counts', 'duration'} and (report.faults.check == 'counts').sum() == 9


def test_urfd_falls_are_well():
    from moddist.datasets import urfd
    df = urfd.index(real_data('urfd'), paired=True)
    assert found(urfd.split(df), signals=['rgb', 'view2:rgb']) == []
    leaky = urfd.split(df)
    row = leaky.index[leaky.split == 'test'][3]
    leaky.loc[row, 'split'] = 'train'                                # neighbours overlap by three quarters
    assert {f[:3] for f in found(leaky, files=False)} == {('overlap', 'error', leaky.clip_id[row])}


# ---------------------------------------------------------------- findings of a fresh user

def test_a_gap_is_named_by_its_numbers_and_not_called_twice(df):
    for k in (5, 6, 7, 8): frame(df, 3, k).unlink()
    frame(df, 4, 6).unlink()
    report = examine(df, progress=False)
    assert [f[1:4] for f in report.faults.itertuples(index=False, name=None)] == [('frame gap', df.clip_id[i], 'depth') for i in (3, 4)] and not report.ok
    assert 'no picture 5-8 (4 missing)' in report.faults.message[0] and 'no picture 6 (1 missing)' in report.faults.message[1]
    segment = df.assign(start=0, stop=12)
    segment.loc[3, 'stop'] = 4                                      # ends before the gap
    assert found(segment, clip_len=4) == [('frame gap', 'error', df.clip_id[4], 'depth')]


def test_a_gap_in_a_pattern_unless_numbers_are_listed(df):
    frame(df, 3, 6).unlink()
    df['depth'] = [f'{p}/Depth-*.png' for p in df.depth]
    assert found(df, signals=['depth']) == [('frame gap', 'error', df.clip_id[3], 'depth')]
    df['numbers'] = pd.Series([np.nan]*len(df), dtype=object)
    df.loc[3, 'numbers'] = '1-5,7-12'
    assert 'frame gap' not in {f[0] for f in found(df, signals=['depth'])}


def test_a_damaged_file_is_not_called_short_as_well(df):
    "The column `numbers` says how many frames are shared, not that they can be read"
    cut = frame(df, 3, 6)
    df['depth'] = [f'{p}/Depth-*.png' for p in df.depth]
    df['numbers'] = pd.Series([np.nan]*len(df), dtype=object)
    df.loc[3, 'numbers'] = '1-5'
    assert found(df, signals=['depth']) == [('short', 'error', df.clip_id[3], 'depth')]
    cut.write_bytes(cut.read_bytes()[:-20])
    assert found(df, signals=['depth']) == [('unreadable', 'error', df.clip_id[3], 'depth')]


def test_the_same_gap_in_all_signals_keeps_them_together(df):
    df['mask'] = [p.replace('_depth', '_mask') for p in df.depth]
    for a, b in zip(df.depth, df['mask']):
        Path(b).mkdir()
        for i, f in enumerate(sorted(os.listdir(a))): Image.fromarray(rng('mask', b, i).integers(0, 2, (16, 20), np.uint8)).save(Path(b)/f)
    frame(df, 3, 6).unlink(); (Path(df['mask'][3])/'Depth-00000006.png').unlink()
    assert found(df, signals=['depth', 'mask']) == [('frame gap', 'warning', df.clip_id[3], k) for k in ('depth', 'mask')]


@pytest.mark.parametrize('numbers,missing', [((1, 2, 3, 7, 8, 9), (4, 5, 6)), ((0, 5, 10, 20, 25), (15,)), ((1, 2, 3, 4), ()), ((7, 8, 9), ()), ((0, 33, 67, 100, 167), ()), ((1, 9), ())])
def test_missing_numbers(numbers, missing):
    for name in ('{:05d}.png', 'img{}.jpg', 's01_{}_x.png'): assert _missing_numbers([f'a9/{name.format(k)}' for k in numbers])[0] == missing


def test_time_stamps_of_many_digits_are_no_numbering():
    assert _missing_numbers([f'{k}.png' for k in (1700000000123456789012, 1700000000223456789013, 1700000000423456789999)])[0] == ()
    assert _missing_numbers(['a_1.png', 'b_2.png', 'a_9.png'])[0] == ()


def test_an_optional_signal_is_a_warning_unless_it_is_named(df):
    df.loc[3:7, 'depth'] = np.nan
    report = examine(df, progress=False)
    assert report.ok and set(report.faults.severity) == {'warning'} and len(report.clean(df)) == len(df)
    named = examine(df, ['rgb', 'depth'], progress=False)
    assert not named.ok and len(named.clean(df)) == len(df) - 5
    df.loc[3, 'rgb'] = np.nan                                       # nothing left of this clip
    assert set(examine(df, progress=False).faults.query("severity == 'error'").clip_id) == {df.clip_id[3]}


def test_all_faults_can_be_listed(df):
    df.loc[:4, 'depth'] = np.nan
    few = examine(df, ['depth'], files=False, progress=False)
    assert all(c in str(few) and c in few._repr_html_() for c in df.clip_id[:5])
    df.loc[:, 'depth'] = '/gone'
    many = examine(df, ['depth'], files=False, progress=False, disjoint=())
    n = len(many.faults)
    assert n > 20 and str(many).endswith(f'all {n} faults: report.faults') and f'all {n} faults' in many._repr_html_()
    assert many.listing().count('\n') == n - 1 and all(c in many.listing() for c in df.clip_id) and many.listing(3).count('\n') == 2


def test_faults_of_the_index_are_not_in_0_clips(df):
    report = examine(df.assign(label=df.label + 1), files=False, progress=False)
    assert report.summary().endswith('1 warning of the index')
    both = examine(df.assign(label=df.label + 1, depth=['/gone'] + df.depth.tolist()[1:]), files=False, progress=False)
    assert both.summary().endswith('1 error in 1 clip, 1 warning of the index')


def test_page(df, tmp_path):
    df.loc[0, 'rgb'], df.loc[1, 'label'] = '/gone/<script>alert(1)</script>.mp4', -1
    report = examine(df, files=False, progress=False)
    file = report.write_html(tmp_path/'new'/'report.html')
    page = file.read_text(encoding='utf-8')
    assert page.startswith('<!DOCTYPE html>') and '<title>' in page and report.summary() in page and '<script>alert' not in page
    assert '<script src' not in page and 'Plotly.newPlot' in page and all(c in page for c in df.clip_id[:2]) and os.listdir(file.parent) == ['report.html']
    many = Report(pd.concat([report.faults]*1500, ignore_index=True), len(df), report.signals, 'names')
    page = many.write_html(file).read_text(encoding='utf-8')
    assert 'the first 2,000 of 3,000 faults' in page and page.count('<tr>') == 2001
    sound = examine(df[2:], files=False, progress=False)
    assert 'nothing wrong' in sound.write_html(file).read_text(encoding='utf-8')


def test_the_legend_is_there_with_one_kind_of_fault(df):
    df.loc[0, 'rgb'] = '/gone.mp4'
    fig = examine(df, files=False, progress=False).figure()
    assert fig.layout.showlegend and [b.name for b in fig.data] == ['rgb, error']
