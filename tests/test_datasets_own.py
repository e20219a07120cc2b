"Your own clips: every usual folder shape, tables of any hand, what is refused and how, CSV there and back, and splits that keep groups whole"
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moddist.core import MODALITIES, DataError, ProtocolError, signal
from moddist.datasets.own import _deal, _says, index, is_index, read_index, signals_of, split_by, write_index
from moddist.files import frame_shape, write_png16, write_video


def touch(root, *paths):
    for p in paths:
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        (root/p).touch()
    return root


def picture(path, mode='I;16', value=2000):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value).save(path)


def message(call, *args, kind=DataError, **how):
    with pytest.raises(kind) as e: call(*args, **how)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


@pytest.fixture
def root(tmp_path):
    "An empty folder: `tmp_path` itself holds the settings of the test"
    (tmp_path/'own').mkdir()
    return tmp_path/'own'


def looked(root): return index(root, verbose=False)


# ---------------------------------------------------------------- folders

SHAPES = {  # layout: (rule of a file, columns beyond clip_id, label, action and the signals)
    '<class>/<clip>': ('{a}/{i}_{m}{e}', []),
    '<split>/<class>/<clip>': ('{s}/{a}/{i}-{m}{e}', ['split']),
    '<modality>/<class>/<clip>': ('{m}/{a}/{i}{e}', []),
    '<modality>/<split>/<class>/<clip>': ('{M}_frames/{s}/{a}/{i}{e}', ['split']),
    '<split>/<modality>/<class>/<clip>': ('{s}/{m}/{a}/{i}_{m}{e}', ['split']),
    '<class>/<clip>/<modality>': ('{a}/{i}/{m}{e}', []),
    '<split>/<class>/<clip>/<modality>': ('{s}/{a}/{i}/{i}_{m}{e}', ['split']),
    '<subject>/<class>/<clip>': ('subject_{i:02d}/{a}/take 1_{m}{e}', ['subject']),
    '<split>/<subject>/<camera>/<class>/<clip>': ('{s}/person{i}/cam2/{a}/x.{m}{e}', ['split', 'subject', 'camera']),
}


@pytest.mark.parametrize('layout', SHAPES)
@pytest.mark.parametrize('rgb,depth', [('rgb', 'depth'), ('color', 'Depth16'), ('RGB', 'depth_png')])
def test_shapes(root, capsys, layout, rgb, depth):
    rule, columns = SHAPES[layout]
    for i, a in enumerate(['walk', 'sit', 'walk', 'jump']):
        how = dict(a=a, i=i, s=['Training', 'val', 'test', 'train'][i])
        touch(root, rule.format(m=rgb, M=rgb.upper(), e='.mp4', **how))
        picture(root/rule.format(m=depth, M=depth.upper(), e='', **how)/'0001.png')
    df = index(root)
    told = capsys.readouterr().out
    assert told.count('\n') == 1 and f'read as {layout}: 4 clips of 3 classes (rgb 4, depth 4)' in told and df.attrs['layout'] == told.strip()
    assert list(df.columns) == ['clip_id', 'label', 'action', *columns, 'rgb', 'depth'] and df.clip_id.is_unique and len(df) == 4
    assert dict(zip(df.action, df.label)) == dict(jump=0, sit=1, walk=2)                       # as torchvision's ImageFolder
    assert all(os.path.isfile(p) for p in df.rgb) and all(os.path.isdir(p) for p in df.depth)
    if 'split' in columns: assert sorted(df.split) == ['test', 'train', 'train', 'valid'] and df.split[df.action == 'sit'].tolist() == ['valid']
    if 'subject' in columns: assert sorted(df.subject) == [0, 1, 2, 3]
    assert [signal(s).modality.key for s in signals_of(df)] == ['rgb', 'depth']


def test_labels_are_those_of_imagefolder(root):
    from torchvision.datasets import DatasetFolder
    touch(root, *(f'{a}/{i}.mp4' for a in ('b', 'B', 'a10', 'a2', 'ä', '_') for i in range(2)))
    assert dict(zip(*looked(root)[['action', 'label']].values.T)) == DatasetFolder(root, lambda p: p, ('.mp4',)).class_to_idx


def test_modality_by_suffix_and_by_the_first_picture(root):
    touch(root, 'walk/1.avi', 'walk/1.wav', 'walk/1.skeleton')
    picture(root/'walk/1_d/1.png'); picture(root/'jump/2/1.png', 'RGB', 9)
    df = looked(root).set_index('clip_id')
    assert list(df.columns) == ['label', 'action', 'rgb', 'depth', 'skeleton', 'audio']
    assert df.loc['walk_1', ['rgb', 'skeleton', 'audio']].notna().all() and df.loc['walk_1_d', 'depth'].endswith('1_d') and df.loc['jump_2', 'rgb'].endswith('2')


def test_rows_are_the_union_of_the_signals(root):
    touch(root, 'rgb/walk/1.mp4', 'rgb/walk/2.mp4', 'audio/walk/2.wav', 'audio/walk/3.wav')
    df = looked(root)
    assert df.clip_id.tolist() == ['walk_1', 'walk_2', 'walk_3']
    assert df.rgb.notna().tolist() == [True, True, False] and df.audio.notna().tolist() == [False, True, True]


def test_frames_of_several_signals_in_one_folder(root):
    "mmaction's raw frames: pictures and both components of flow side by side; and frames with a number that differs between signals"
    for i in (1, 2, 10):
        for n in (f'img_{i:05d}.jpg', f'flow_x_{i:05d}.jpg', f'flow_y_{i:05d}.jpg'): picture(root/'a/walk/1'/n, 'L', 9)
        for n in (f'frame_{i}_tc_{90 + i}_rgb.png', f'frame_{i}_tc_{70 + i}_depth.png'): picture(root/'b/walk/1'/n, 'I;16' if 'depth' in n else 'RGB', 9)
    row = looked(root/'a').iloc[0]
    assert [os.path.relpath(row[k], root) for k in ('rgb', 'flow')] == ['a/walk/1/img_*.jpg', 'a/walk/1/flow_{x,y}_*.jpg']
    assert [frame_shape(row[k], MODALITIES[k]) for k in ('rgb', 'flow')] == [(3, 3, 4)]*2
    row = looked(root/'b').iloc[0]
    assert [frame_shape(row[k], MODALITIES[k]) for k in ('rgb', 'depth')] == [(3, 3, 4)]*2


@pytest.mark.parametrize('u,v', ['uv', 'xy', ('flow_x', 'flow_y')])
def test_flow_in_two_folders(root, u, v):
    for c in (u, v):
        for i in (1, 2): picture(root/'walk/1/flow'/c/f'frame_{i}.jpg', 'L', 9); picture(root/'walk/1/rgb'/f'{i}.jpg', 'RGB', 9)
    row = looked(root).iloc[0]
    assert frame_shape(row.flow, MODALITIES['flow']) == (2, 3, 4) and '{' in row.flow and frame_shape(row.rgb, MODALITIES['rgb'])[0] == 2


def test_cameras(root):
    touch(root/'rows', 'cam1/walk/1.mp4', 'cam2/walk/1.mp4')
    df = looked(root/'rows')
    assert df.camera.tolist() == [1, 2] and df.clip_id.tolist() == ['cam1_walk_1', 'cam2_walk_1']
    touch(root/'columns', 'front_rgb/walk/1.mp4', 'top-RGB/walk/1.mp4')
    df = looked(root/'columns')
    assert len(df) == 1 and signals_of(df) == ['front_rgb:rgb', 'top_rgb:rgb'] and signal('top_rgb:rgb').modality.key == 'rgb'


def test_array_files_keep_their_whole_suffix(root):
    from moddist.arrays import ARRAY_SUFFIX
    touch(root, f'walk/1_depth{ARRAY_SUFFIX}', 'walk/1.mp4', f'walk/stray{ARRAY_SUFFIX}')
    df = looked(root)
    assert df.clip_id.tolist() == ['walk_1'] and df.depth[0].endswith(ARRAY_SUFFIX) and 'left out' in df.attrs['layout']


def test_other_things_are_left_out_and_told(root):
    touch(root, 'walk/1.mp4', 'walk/notes.json', 'readme.txt', '.git/x.mp4', 'walk/.DS_Store', 'walk/thumb.jpg')
    df = looked(root)
    assert len(df) == 1 and '3 other file(s) left out, such as readme.txt' in df.attrs['layout']


def test_equal_names_in_two_splits(root):
    df = looked(touch(root, 'train/walk/1.mp4', 'test/walk/1.mp4', 'train/walk/2.mp4'))
    assert sorted(df.clip_id) == ['test_walk_1', 'train_walk_1', 'train_walk_2']


REFUSED = {  # what is there: words of the message
    ('walk/1.mp4', 'walk/1.avi'): 'another file for rgb',
    ('rgb/walk/1.mp4', 'rgb/walk/1.mkv'): 'another file for rgb',
    ('1.mp4', '2.mp4'): 'names its class',
    ('train/1.mp4', 'test/2.mp4'): 'names its class',
    ('rgb/1.mp4', 'depth/1.mp4'): 'names its class',
    ('gym/walk/1.mp4', 'home/walk/1.mp4'): "'walk' could be its class",
    ('walk/1.mp4', 'walk/2.mp4', 'walk/old/3.mp4'): 'expected all clips at one depth',
    ('rgb/walk/1.wav', 'depth/walk/1.mat'): 'its files are audio',
    ('train/test/walk/1.mp4',): 'two levels of it name a split',
    ('a_b/c.mp4', 'a/b_c.mp4'): 'two clips that would have one name',
    ('readme.txt',): 'no clips',
    (): 'no clips',
}


@pytest.mark.parametrize('paths', REFUSED, ids=lambda p: '+'.join(p) or 'nothing')
def test_refused(root, paths):
    said = message(looked, touch(root, *paths))
    assert REFUSED[paths] in said and ('expected' in said or 'keep one' in said or 'rename' in said or 'move' in said)
    if paths and paths[0] != 'readme.txt' and paths[0] != 'a_b/c.mp4': assert any(str(root/p) in said for p in paths)


def test_grey_pictures_without_a_name_are_refused(root):
    picture(root/'walk/1/0.png', 'L', 9)
    assert 'walk/1/0.png' in (said := message(looked, root)) and 'infrared' in said
    picture(root/'ok'/'mask/walk/1/0.png', 'L', 9)
    assert 'mask' in looked(root/'ok')


def test_a_link_that_leads_back(root):
    touch(root, 'walk/1.mp4')
    (root/'walk'/'loop').symlink_to(root)
    assert 'more than 8 folders deep' in message(looked, root)


@given(st.text('abcRGBdepth_-. 0123', max_size=14))
def test_what_a_name_says_is_a_modality_and_a_part_of_it(name):
    key, rest = _says(name)
    assert key is None and rest == name or key in MODALITIES and (rest == '' or rest != name and name.startswith(rest) or name.endswith(rest))


# ---------------------------------------------------------------- tables

@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('head', ['clip_id rgb depth action split', 'ID video Depth Class Split', 'name color depth16 activity SPLIT'])
def test_tables_of_other_hands(root, sep, head):
    rows = ['a v/a.mp4 d/a walk training', 'b v/b.mp4 d/b None val', 'c v/c.mp4  walk test']
    text = '\r\n'.join(sep.join(r.split(' ')) for r in (head, *rows)) + '\r\n'
    (root/'x.csv').write_bytes(b'\xef\xbb\xbf' + text.encode())
    (root/'d').mkdir()
    df = looked(root/'x.csv')
    assert df[['clip_id', 'label', 'action', 'split']].values.tolist() == [['a', 1, 'walk', 'train'], ['b', 0, 'None', 'valid'], ['c', 1, 'walk', 'test']]
    assert df.rgb.tolist() == [str(root/f'v/{c}.mp4') for c in 'abc'] and df.depth.isna().tolist() == [False, False, True] and df.depth[1] == str(root/'d/b')


def test_little_is_enough(root):
    (root/'index.csv').write_text('path,label\nv/1.mp4,3\nv/2.mp4,0\n')
    df = looked(root)                                                # a folder with index.csv
    assert df[['clip_id', 'label', 'action']].values.tolist() == [['1', 3, '3'], ['2', 0, '0']] and df.label.dtype.kind == 'i' and 'rgb' in df
    (root/'y.csv').write_text('file,label,start,stop\nv/1.mp4,walk,0,30\nv/1.mp4,jump,30,60\n')
    df = looked(root/'y.csv')
    assert df.clip_id.tolist() == ['00000_1', '00001_1'] and df.label.tolist() == [1, 0] and df.stop.tolist() == [30, 60]


def test_unlabelled_rows(root):
    (root/'x.csv').write_text('clip_id,rgb,action,split\n007,a.mp4,walk,train\n008,b.mp4,,unlabelled\n')
    df = looked(root/'x.csv')
    assert df.clip_id.tolist() == ['007', '008'] and df.label.tolist() == [0, -1] and df.split.tolist() == ['train', 'unlabelled']
    (root/'x.csv').write_text('clip_id,rgb,action\n007,a.mp4,walk\n008,b.mp4,\n')
    assert 'x.csv line 3' in message(looked, root/'x.csv')


@pytest.mark.parametrize('text,words', [
    ('', 'not a readable CSV'), ('rgb,label\n', 'has no rows'), ('rgb,note\na.mp4,x\n', 'no column label or action'), ('rgb,label\n,3\n', 'no column holds paths'),
    ('rgb,label\na.mp4,1\nb.mp4,\n', 'line 3'), ('rgb,label\na.mp4,1.5\n', 'line 2'), ('rgb,label,split\na.mp4,1,train\nb.mp4,1,holdout\n', "line 3: split 'holdout'"),
    ('rgb,label\n"a.mp4,1\n', 'not a readable CSV'), ('a.mp4 3\nb.mp4 4\n', 'no column')])
def test_tables_that_are_refused(root, text, words):
    (root/'x.csv').write_text(text)
    said = message(looked, root/'x.csv')
    assert 'x.csv' in said and words in said


def test_what_is_not_there_or_not_text(root):
    assert 'no such file or folder' in message(looked, root/'no')
    (root/'x.csv').write_bytes(b'rgb,label\n\xff\xfe\x00,3\n')
    assert 'UTF-8' in message(looked, root/'x.csv')
    assert 'no such file' in message(read_index, root/'no.csv')


# ---------------------------------------------------------------- CSV, there and back

words = st.text(st.characters(blacklist_categories=('Cs', 'Cc')), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, st.integers(0, 99), words, st.one_of(st.none(), words), st.floats(allow_nan=True, allow_infinity=False), st.integers(-2**53, 2**53)), min_size=1, max_size=6, unique_by=lambda r: r[0]))
def test_round_trip(rows):
    df = pd.DataFrame(rows, columns=['clip_id', 'label', 'action', 'subject', 'speed', 'frame'])
    df['subject'] = df.subject.astype('str')
    with tempfile.TemporaryDirectory() as folder:
        df['rgb'] = pd.Series([f'{folder}/v/{i}.mp4' if i % 2 == 0 else np.nan for i in range(len(df))], dtype=object)
        back = read_index(write_index(df, f'{folder}/lists/x.csv'))
        pd.testing.assert_frame_equal(back, df, check_dtype=False)
        assert [back[c].dtype.kind for c in ('label', 'speed', 'frame')] == ['i', 'f', 'i']
        assert folder not in Path(folder, 'lists', 'x.csv').read_text()


def test_a_moved_folder_keeps_its_index(root):
    touch(root/'here', 'walk/1.mp4', 'jump/flow/../2.mp4')
    write_index(looked(root/'here'), root/'here'/'index.csv')
    (root/'here').rename(root/'there')
    assert all(os.path.isfile(p) for p in read_index(root/'there'/'index.csv').rgb)
    assert looked(root/'there')[['clip_id', 'label', 'action', 'rgb']].equals(read_index(root/'there'/'index.csv')[['clip_id', 'label', 'action', 'rgb']])


def test_relative_and_odd_paths(root, monkeypatch):
    monkeypatch.chdir(root)
    touch(root, 'data/a b/1, 2.mp4')
    df = pd.DataFrame(dict(clip_id=['x'], label=[0], rgb=['data/a b/1, 2.mp4'], flow=['data/{u,v}/f_*.jpg'], audio=['data/a.hdf5::P01_01'], source=['https://a/b.mp4']))
    back = read_index(write_index(df, 'lists/x.csv'))
    assert back[['rgb', 'flow', 'audio', 'source']].values.tolist() == df[['rgb', 'flow', 'audio', 'source']].values.tolist()


def test_write_index_is_atomic_and_particular(root):
    df = pd.DataFrame(dict(clip_id=['a'], label=[0], rgb=['a.mp4']))
    write_index(df, root/'x.csv')
    for bad, words in ((df.assign(size=[(1, 2)]), "column 'size' holds (1, 2)"), (df.assign(ok=[True]), "column 'ok'"), (df.rename(columns=dict(rgb='a,b')), 'no plain name')):
        assert words in message(write_index, bad, root/'x.csv')
    assert read_index(root/'x.csv').clip_id.tolist() == ['a'] and os.listdir(root) == ['x.csv']


# ---------------------------------------------------------------- splits

@st.composite
def indexes(draw):
    n_groups, n_classes = draw(st.integers(3, 12)), draw(st.integers(1, 5))
    pairs = draw(st.lists(st.tuples(st.integers(0, n_groups - 1), st.integers(0, n_classes - 1)), min_size=n_groups, max_size=80))
    pairs += [(g, g % n_classes) for g in range(n_groups)]                                        # every group has a clip
    return pd.DataFrame([dict(clip_id=f'c{i}', subject=g, label=k) for i, (g, k) in enumerate(pairs)])


@settings(max_examples=80, deadline=None)
@given(indexes(), st.sampled_from([None, 'subject']), st.sampled_from([(.2, .2), (.1, .4), (0, .3), (.3, 0), (0, 0)]), st.integers(0, 5))
def test_groups_are_whole_everyone_is_placed_and_it_repeats(df, group, shares, seed):
    out = split_by(df, group, *shares, seed=seed)
    wanted = {'train'} | {s for s, v in zip(('valid', 'test'), shares) if v}
    assert set(out.split) == wanted and len(out) == len(df) and 'split' not in df                    # all assigned, no side empty
    if group: assert out.groupby(group).split.nunique().max() == 1
    again = split_by(df.sample(frac=1, random_state=seed), group, *shares, seed=seed)
    assert again.split.reindex(df.index).tolist() == out.split.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 9))
def test_without_groups_classes_are_in_proportion(sizes, seed):
    df = pd.DataFrame([dict(clip_id=f'{k}-{i}', label=k) for k, n in enumerate(sizes) for i in range(n)])
    if len(df) < 3: return
    n = pd.crosstab(split_by(df, None, .2, .2, seed).label, split_by(df, None, .2, .2, seed).split)
    assert (abs(n.valid - .2*n.sum(axis=1)) <= 1.5).all() and (abs(n.test - .2*n.sum(axis=1)) <= 1.5).all()
    assert abs(n.test.sum() - .2*len(df)) <= 2


def test_another_seed_is_another_split():
    df = pd.DataFrame([dict(clip_id=f'{s}-{k}', subject=s, label=k) for s in range(20) for k in range(3)])
    assert len({tuple(split_by(df, seed=s).split) for s in range(10)}) == 10


def test_rare_classes_are_trained():
    "Whoever has the only clips of a class is rather in training than left to luck"
    df = pd.DataFrame([dict(clip_id=f'{s}-{k}-{i}', subject=s, label=k) for s in range(10) for k in range(3) for i in range(4)] + [dict(clip_id='rare', subject=4, label=3)])
    trained = np.mean([split_by(df, seed=s).set_index('clip_id').split['rare'] == 'train' for s in range(20)])
    assert trained > .5


def test_the_largest_group_cannot_starve_a_side():
    assert sorted(_deal(np.array([[1000], [1], [1]]), np.array([.2, .4, .4]))) == [0, 1, 2]


@pytest.mark.parametrize('how,words', [(dict(valid=.6, test=.4), 'leave something to train on'), (dict(valid=-.1), 'shares of 0 or more'), (dict(group='room'), "no such column"), (dict(valid=.3, test=.3, group='one'), '1 value(s) of one for 3 sides')])
def test_splits_that_cannot_be(how, words):
    df = pd.DataFrame([dict(clip_id=str(i), subject=i, label=0, one=1) for i in range(9)])
    assert words in message(split_by, df, kind=ProtocolError, **how)


def test_rows_that_cannot_be_placed_are_named():
    df = pd.DataFrame([dict(clip_id=f'clip{i}', subject=float(i), label=0) for i in range(9)])
    df.loc[4, 'subject'] = np.nan
    assert re.search('clip4: no subject', message(split_by, df, kind=ProtocolError))
    assert 'clip2: no label' in message(split_by, df.assign(subject=1, label=[0, 0, -1] + [0]*6), kind=ProtocolError)


def test_from_folder_to_loaders(root):
    "No code: a folder of real clips, an index, a split, batches"
    from moddist.data import ClipSampler, clip_dls
    for s in range(1, 5):
        for a in ('walk', 'jump'):
            r = np.random.default_rng(s)
            write_video(root/f'subject{s}/{a}/1_rgb.mp4', r.integers(0, 255, (6, 16, 20, 3), np.uint8))
            write_png16(root/f'subject{s}/{a}/1_depth', r.integers(900, 4000, (6, 16, 20), np.uint16))
    df = split_by(looked(root), valid=.25, test=.25)
    x, d, y = clip_dls(df, ('rgb', 'depth'), ClipSampler(clip_len=4), bs=2).one_batch()
    assert x.shape == d.shape == (2, 3, 4, 16, 20) and set(y.tolist()) <= {0, 1}


# ---------------------------------------------------------------- findings of a fresh user

@pytest.mark.parametrize('head', ['clip_id,label,subject,split,camera,start,stop,numbers,rgb,depth', 'Clip_ID,Label,Subject,Split,Camera,Start,STOP,Numbers,RGB,Depth', 'ID,LABEL,Person,split,CAMERA,start,Stop,numbers,rgb_path,depth_folder',
                                  'id,label,PERSON,split,camera,start,stop,numbers,Video,depth_dir'])
@pytest.mark.parametrize('read', [looked, read_index])
def test_columns_in_any_capitals(root, head, read):
    (root/'x.csv').write_text(f'{head}\n007,0,3,train,1,0,9,,v/a.mp4,d/a\n008,1,4,test,2,0,9,,v/b.mp4,d/b\n')
    if read is read_index and not head.lower().startswith('clip_id'): head = head.replace('ID', 'clip_id')
    df = read(root/'x.csv')
    assert set(df.columns) - {'action'} == set('clip_id label subject split camera start stop numbers rgb depth'.split())
    assert df.clip_id.tolist() == ['007', '008'] and df.subject.tolist() == [3, 4] and signals_of(df) == ['rgb', 'depth'] and df.rgb[0] == str(root/'v/a.mp4') and df.depth[0] == str(root/'d/a')


def test_a_leak_under_a_capital_letter_is_found(root):
    from moddist.doctor import examine
    rows = [f'c{i},{i % 2},{1 if i == 8 else i//2},{"test" if i > 5 else "train"},v/{i}.mp4' for i in range(12)]
    for head in ('clip_id,label,Subject,Split,rgb', 'clip_id,label,Person,split,rgb'):
        (root/'x.csv').write_text('\n'.join([head, *rows]))
        for df in (looked(root/'x.csv'), read_index(root/'x.csv')): assert 'shared subject' in set(examine(df, files=False, progress=False).faults.check)


def test_two_columns_of_one_meaning(root):
    (root/'x.csv').write_text('clip_id,label,Subject,SUBJECT,rgb\na,0,1,2,a.mp4\n')
    assert "'Subject' and 'SUBJECT' have one name" in message(looked, root/'x.csv')
    (root/'x.csv').write_text('clip_id,label,rgb,depth_dir,depth_folder\na,0,a.mp4,d/a,e/a\n')
    assert signals_of(looked(root/'x.csv')) == ['rgb', 'depth_dir:depth', 'depth_folder:depth']           # both stay what they are


def test_what_was_written_comes_back_under_its_own_names(root):
    df = pd.DataFrame(dict(clip_id=['a'], label=[0], action=['x'], person=[3], Camera=['c'], rgb=['v/a.mp4']))
    assert list(read_index(write_index(df, root/'x.csv')).columns) == list(df.columns) and is_index(root/'x.csv')
    (root/'words.csv').write_text('clip_id,label,rgb\na,walk,a.mp4\n')
    assert not is_index(root/'words.csv')                                                                   # a table for `index`, which numbers the classes


@pytest.mark.parametrize('name,content,words', [('x.csv', b'', 'not a readable CSV'), ('x.csv', b'\n\n', 'not a readable CSV'), ('x.mp4', b'\x00\x00\x00\x18ftypmp42\xff\xfe', 'a clip, not a table'), ('x.csv', b'\x89PNG\xff\x00', 'UTF-8')])
def test_what_is_no_table(root, name, content, words):
    (root/name).write_bytes(content)
    for read in (looked, read_index, is_index): assert str(root/name) in (said := message(read, root/name)) and words in said


def test_a_group_in_the_file_names_is_not_guessed_but_explained(root):
    touch(root, *(f'walk/S{s:02d}_take{i}.mp4' for s in (1, 2, 3) for i in (1, 2)))
    said = message(split_by, looked(root), 'subject', kind=ProtocolError)
    assert 'no such column' in said and 'subject01/' in said and 'CSV with a column subject' in said
    assert 'file names' not in message(split_by, looked(root), 'room', kind=ProtocolError)
