"NW-UCLA: names in any order, frames paired by number, three releases, the protocols and DMCL's validation, on miniature trees in the exact layout"
import re
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moddist.core import DataError, ProtocolError
from moddist.datasets import nw_ucla
from moddist.datasets.nw_ucla import NUMBERS, Name, index, name_table, parse_name, split

VIEWED = {'cross-view-12-3': ({1, 2}, {3}), 'cross-view-13-2': ({1, 3}, {2}), 'cross-view-23-1': ({2, 3}, {1})}


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def frames(folder, numbers, kind, jitter=0):
    "Real little files, named as on the disks; colour and depth are stamped at different times, and hold the frame's number"
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        path = f'{folder}/frame_{n}_tc_{90467319 + 33*n + jitter}_{kind}'
        if kind == 'rgb.jpg': Image.new('RGB', (16, 12), (10*n, 10*n, 10*n)).save(path, quality=95)
        elif kind == 'depth.png': Image.fromarray(np.full((6, 8), 1000 + n, np.uint16)).save(path)
        elif kind == 'depth_vis.jpg': Image.new('L', (8, 6), n).save(path)
        else: Path(path).write_text('x,y,z,c\n' + f'0.1,0.{n},2.5,1\n'*20)


@pytest.fixture
def tree(tmp_path):
    "Two subjects, three views, all twelve action numbers, four complete frames 9 to 12; previews and lists beside them"
    for v, s, a in product((1, 2, 3), (1, 10), range(1, 13)):
        folder = tmp_path/'multiview_action'/f'view_{v}'/f'a{a:02d}_s{s:02d}_e00'
        frames(folder, range(9, 13), 'rgb.jpg')
        for kind in ('depth.png', 'depth_vis.jpg', 'skeletons.txt'): frames(folder, range(9, 13), kind, jitter=32)
        (folder/'fileList.txt').write_text('9 90467616\n9 90467616\n')
    return tmp_path


def row(df, clip): return df.set_index('clip_id').loc[clip]


# ---------------------------------------------------------------- names

def test_every_order_of_the_parts_is_the_same_clip():
    for parts in permutations(('a12', 's10', 'e03', 'v02')): assert parse_name('_'.join(parts)) == Name(action=12, subject=10, execution=3, view=2)
    for n in (Name(1, 1, 0, 1), Name(12, 10, 99, 3)): assert parse_name(n.stem) == n and re.fullmatch(r'a\d\d_s\d\d_e\d\d_v\d\d', n.stem)


@pytest.mark.parametrize('bad', ['', 'a01_s01_e00', 'a01_s01_e00_v01_v01', 'a01_s01_v00_v01', 'a00_s01_e00_v01', 'a13_s01_e00_v01', 'a01_s00_e00_v01', 'a01_s11_e00_v01', 'a01_s01_e00_v04',
                                 'a1_s01_e00_v01', 'A01_s01_e00_v01', 'a01_s01_e00_v01\n', 'a01-s01-e00-v01', 'a٠١_s01_e00_v01', 'a01_s01_e00_v01.json'])
def test_name_outside_the_grammar(bad):
    assert one_line(parse_name, bad).startswith(f'{bad!r} is no NW-UCLA clip name')


def test_ten_classes_of_twelve_numbers():
    df = name_table(Name(a, 1, 0, 1) for a in NUMBERS)
    assert df.label.tolist() == list(range(10)) and df.action.tolist() == list(nw_ucla.ACTIONS) and len(set(nw_ucla.ACTIONS)) == 10
    assert dict(zip(NUMBERS, df.label)) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 8: 6, 9: 7, 11: 8, 12: 9}       # ActionMAE's table
    assert df.action[6] == 'donning' and df.action[9] == 'carry'


# ---------------------------------------------------------------- index: raw frames

def test_index_of_the_raw_frames(tree):
    df = index(tree)
    assert list(df.columns) == ['clip_id', 'label', 'action', 'subject', 'execution', 'view', 'rgb', 'depth', 'skeleton', 'numbers']
    assert len(df) == 3*2*10 and df.clip_id.is_unique and df.clip_id.tolist() == sorted(df.clip_id) and set(df.label) == set(range(10))
    assert df.numbers.isna().all() and df[['rgb', 'depth', 'skeleton']].notna().all().all()
    for r in df.itertuples():
        folder = f'{tree}/multiview_action/view_{r.view}/{r.clip_id[:11]}'
        assert (r.rgb, r.depth, r.skeleton) == tuple(f'{folder}/frame_*_{end}' for end in ('rgb.jpg', 'depth.png', 'skeletons.txt'))
    assert df.equals(index(tree/'multiview_action'))                                           # root may be either folder


def test_numbers_seven_and_ten_never_come_back(tree):
    for p in ('multiview_action_videos/a07/v01_s02_e00.avi', 'multiview_action_videos/a10/v01_s02_e00.avi', 'all_sqe/a10_s02_e00_v01.json', 'all_sqe/a01_s02_e00_v01.json'):
        (tree/p).parent.mkdir(parents=True, exist_ok=True); (tree/p).touch()
    for df in (index(tree), index(tree, single=('rgb', 'skeleton'))): assert not df.clip_id.str[:3].isin(['a07', 'a10']).any()


def test_the_preview_is_never_depth(tmp_path):
    frames(tmp_path/'view_1'/'a01_s01_e00', (1, 2), 'rgb.jpg')
    frames(tmp_path/'view_1'/'a01_s01_e00', (1, 2), 'depth_vis.jpg')
    assert index(tmp_path).depth.isna().all()


@pytest.mark.parametrize('rgb,depth,shared', [(range(1, 12), range(1, 12), None), (range(8, 14), (8, 9, 11, 12, 13), '8-9,11-13'), (range(95, 106), range(98, 120), '98-105'),
                                              ((1, 3, 5), (1, 2, 5, 9), '1,5'), ((7,), (7,), None), ((2, 10, 100), (100, 10, 1), '10,100')])
def test_frames_are_paired_by_number(tmp_path, rgb, depth, shared):
    frames(tmp_path/'view_2'/'a03_s04_e05', rgb, 'rgb.jpg')
    frames(tmp_path/'view_2'/'a03_s04_e05', depth, 'depth.png', jitter=32)
    r = index(tmp_path).iloc[0]
    assert r.clip_id == 'a03_s04_e05_v02' and (pd.isna(r.numbers) if shared is None else r.numbers == shared) and pd.isna(r.skeleton)


def test_runs_are_the_set_of_numbers():
    "Written out again, runs are the sorted set they were made of"
    rng = np.random.default_rng(0)
    for _ in range(200):
        numbers = rng.integers(0, 40, rng.integers(1, 40)).tolist()
        pairs = [p.partition('-') for p in nw_ucla.write_runs(numbers).split(',')]
        assert [i for a, _, b in pairs for i in range(int(a), int(b or a) + 1)] == sorted(set(numbers))


def test_only_the_signals_asked_for_share_their_frames(tree):
    folder = tree/'multiview_action'/'view_1'/'a01_s01_e00'
    for f in folder.glob('frame_10_*skeletons.txt'): f.unlink()
    assert row(index(tree), 'a01_s01_e00_v01').numbers == '9,11-12'
    df = index(tree, ('rgb', 'depth'))
    assert df.numbers.isna().all() and 'skeleton' not in df
    assert list(index(tree, ('skeleton',)).columns[-2:]) == ['skeleton', 'numbers'] and index(tree, ('skeleton',)).numbers.isna().all()


def test_skeleton_with_and_without_s(tmp_path):
    frames(tmp_path/'view_1'/'a01_s01_e00', (1, 2), 'skeletons.txt')
    frames(tmp_path/'view_1'/'a01_s02_e00', (1, 2), 'skeleton.txt')
    assert [Path(p).name for p in index(tmp_path).skeleton] == ['frame_*_skeletons.txt', 'frame_*_skeleton.txt']


def test_clip_without_frames_in_common_or_at_all(tmp_path):
    frames(tmp_path/'view_1'/'a01_s01_e00', (1, 2), 'rgb.jpg')
    frames(tmp_path/'view_1'/'a01_s01_e00', (5, 6), 'depth.png')
    frames(tmp_path/'view_1'/'a01_s01_e00', (2, 3), 'skeletons.txt')
    (tmp_path/'view_1'/'a01_s02_e00').mkdir()
    a, b = index(tmp_path).itertuples()
    assert isinstance(a.rgb, str) and pd.isna(a.depth) and isinstance(a.skeleton, str) and a.numbers == '2'
    assert all(pd.isna(x) for x in (b.rgb, b.depth, b.skeleton, b.numbers))


def test_a_number_with_two_stamps_is_named_once(tmp_path):
    for jitter in (0, 5): frames(tmp_path/'view_1'/'a01_s08_e00', (1, 2), 'rgb.jpg', jitter)
    frames(tmp_path/'view_1'/'a01_s08_e00', (1, 2), 'depth.png', 32)
    assert index(tmp_path).numbers.tolist() == ['1-2']


def test_the_patterns_mean_these_frames(tree):
    "The wildcard reader gives the frames in the order of the numbers, and every number of the index is among them"
    from moddist.core import MODALITIES
    from moddist.files import frame_numbers, read_frames
    for f in (tree/'multiview_action'/'view_3'/'a12_s10_e00').glob('frame_10_*depth.png'): f.unlink()
    r = row(index(tree, ('rgb', 'depth')), 'a12_s10_e00_v03')
    assert r.numbers == '9,11-12' and frame_numbers(r.rgb) == (9, 10, 11, 12) and frame_numbers(r.depth) == (9, 11, 12)
    assert read_frames(r.depth, MODALITIES['depth'])[:, 0, 0, 0].tolist() == [1009, 1011, 1012]


def test_a_loaded_clip_shows_the_same_moment_twice(tree):
    "Through the sampler: colour and depth of a clip with a hole hold the same frame numbers"
    from moddist.data import ClipSampler, load_clip
    for f in (tree/'multiview_action'/'view_3'/'a12_s10_e00').glob('frame_10_*depth.png'): f.unlink()
    r = row(index(tree, ('rgb', 'depth')), 'a12_s10_e00_v03')
    clip = dict(r, clip_id='a12_s10_e00_v03')
    rgb, depth = (np.asarray(load_clip(clip, s, ClipSampler(clip_len=3, size=(6, 8))))[0, :, 3, 4].astype(int) for s in ('rgb', 'depth'))
    assert depth.tolist() == [1009, 1011, 1012] and np.abs(rgb - [90, 110, 120]).max() <= 4


# ---------------------------------------------------------------- index: the other releases

def test_videos_and_json_where_there_are_no_frames(tmp_path):
    for p in ('multiview_action_videos/a01/v01_s01_e00.avi', 'multiview_action_videos/a12/v03_s10_e07.avi', 'all_sqe/a12_s10_e07_v03.json', 'all_sqe/a05_s04_e02_v03.json'):
        (tmp_path/p).parent.mkdir(parents=True, exist_ok=True); (tmp_path/p).touch()
    df = index(tmp_path)
    assert df.clip_id.tolist() == ['a01_s01_e00_v01', 'a05_s04_e02_v03', 'a12_s10_e07_v03'] and df.label.tolist() == [0, 4, 9]
    assert row(df, 'a12_s10_e07_v03').rgb == f'{tmp_path}/multiview_action_videos/a12/v03_s10_e07.avi'
    assert row(df, 'a12_s10_e07_v03').skeleton == f'{tmp_path}/all_sqe/a12_s10_e07_v03.json' and df.depth.isna().all() and df.numbers.isna().all()
    assert len(index(tmp_path/'all_sqe')) == 2 and len(index(tmp_path/'multiview_action_videos')) == 2


def test_releases_are_not_mixed(tree):
    (tree/'multiview_action_videos'/'a01').mkdir(parents=True); (tree/'multiview_action_videos'/'a01'/'v01_s01_e00.avi').touch()
    (tree/'multiview_action_videos'/'a01'/'v01_s05_e00.avi').touch()
    assert index(tree).rgb.str.endswith('frame_*_rgb.jpg').all() and len(index(tree)) == 60
    df = index(tree, single=('rgb',))
    assert df.rgb.dropna().str.endswith('.avi').all() and df.rgb.notna().sum() == 2 and len(df) == 61
    for f in (tree/'multiview_action'/'view_1'/'a01_s01_e00').glob('frame_9_*rgb.jpg'): f.unlink()
    assert row(index(tree), 'a01_s01_e00_v01').numbers == '10-12'
    assert pd.isna(row(index(tree, single=('rgb',)), 'a01_s01_e00_v01').numbers)                # a video has a time of its own


@pytest.mark.parametrize('path', ['multiview_action/view_1/a1_s1_e0/', 'multiview_action/view_1/a01_s01_e01_v01/', 'multiview_action/view_2/notes.txt', 'multiview_action/view_3/a01_s11_e00/',
                                  'multiview_action/view_1/a01_s03_e00', 'multiview_action_videos/a01/a01_s01_e00.avi', 'multiview_action_videos/a01/v01_s01_e00.mp4', 'multiview_action_videos/a13/v01_s01_e00.avi',
                                  'all_sqe/a01_s01_e00.json', 'all_sqe/a01_s01_e00_v01.txt'])
def test_misplaced_files_are_named(tree, path):
    target = tree/path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if path.endswith('/') else target.touch()
    message = one_line(index, tree, single=('rgb', 'skeleton'))
    assert message.startswith(f'{target}: expected ') and 'move or rename it' in message


def test_doubles_are_named(tree):
    for name in ('a01_s01_e00_v01.json', 's01_a01_e00_v01.json'): (tree/'all_sqe').mkdir(exist_ok=True); (tree/'all_sqe'/name).touch()
    message = one_line(index, tree, single=('skeleton',))
    assert 'a01_s01_e00_v01.json' in message and 's01_a01_e00_v01.json' in message and 'keep one' in message
    assert len(index(tree)) == 60                                                              # not asked for, not read


def test_hidden_and_foreign_things_are_left_alone(tree):
    (tree/'multiview_action'/'view_1'/'.DS_Store').touch(); (tree/'readme.txt').touch(); (tree/'multiview_action'/'view_9').mkdir()
    (tree/'multiview_action'/'view_1'/'a01_s01_e00'/'Thumbs.db').touch()
    assert len(index(tree)) == 60


def test_nothing_there(tmp_path):
    assert 'no clips' in one_line(index, tmp_path) and 'no such folder' in one_line(index, tmp_path/'x')
    assert "'ir'" in one_line(index, tmp_path, ('ir',)) and "'depth'" in one_line(index, tmp_path, single=('depth',))


def test_index_opens_no_file(tree):
    "Names only: unreadable contents do not matter"
    before = index(tree)
    for f in tree.rglob('frame_*'): f.write_bytes(b'')
    assert index(tree).equals(before)


def test_index_survives_csv(tree, tmp_path):
    for f in (tree/'multiview_action'/'view_3'/'a12_s10_e00').glob('frame_10_*depth.png'): f.unlink()
    df = index(tree)
    df.to_csv(tmp_path/'i.csv', index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'i.csv', dtype=dict(numbers=object)), df, check_dtype=False)


# ---------------------------------------------------------------- protocols

@pytest.fixture(scope='module')
def full(): return name_table(Name(a, s, e, v) for v in (1, 2, 3) for a in NUMBERS for s in range(1, 11) for e in range(5))


def test_cross_view_protocols(full):
    assert set(nw_ucla.PROTOCOLS) == set(VIEWED) | {'leave-subjects-out'}
    for name, (train, test) in VIEWED.items():
        d = split(full, name)
        assert set(d.view[d.split == 'train']) == train and set(d.view[d.split == 'test']) == test and len(d) == len(full) and set(d.split) == {'train', 'test'}
    assert split(full).equals(split(full, 'cross-view-12-3')) and 'split' not in full


@pytest.mark.parametrize('subjects', [(10,), (1, 2), (2, 4, 6, 8, 10)])
def test_leave_subjects_out(full, subjects):
    d = split(full, 'leave-subjects-out', subjects)
    assert set(d.subject[d.split == 'test']) == set(subjects) and not set(d.subject[d.split == 'train']) & set(subjects)


def test_what_a_protocol_refuses(full):
    assert 'cross-view-12-3' in one_line(split, full, 'cross-view')
    for wrong in ((), (11,), (1, 11), range(1, 11)): assert 'some, not all' in one_line(split, full, 'leave-subjects-out', wrong)
    assert 'tests on views' in one_line(split, full, 'cross-view-12-3', (1,))
    assert 'a subject that trains' in one_line(split, full, 'leave-subjects-out', (1,), 1)
    for wrong in (0, 11, 'garcia'): assert repr(wrong) in one_line(split, full, validation=wrong)
    assert '200 training clips' in one_line(split, full[full.execution == 0][full.subject < 5], validation='dmcl')
    assert 'all ten classes' in one_line(split, full[full.label < 9], validation='dmcl')


def test_validation_by_subject_is_training_side_only(full):
    d = split(full, validation=4)
    assert set(d.subject[d.split == 'valid']) == {4} and set(d.view[d.split == 'valid']) == {1, 2} and 4 not in set(d.subject[d.split == 'train'])
    assert set(d.subject[d.split == 'test']) == set(range(1, 11))


def dmcl_plainly(records, views):
    "The rule of DMCL's list script written out on folder names, with numpy's global seed as there"
    label = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 8: 6, 9: 7, 11: 8, 12: 9}
    train = sorted(r for r in records if int(r[5]) in views)
    np.random.seed(0); np.random.shuffle(train)
    n, chosen = int(len(train)/10*.05), []
    for k in range(10):
        mine = [r for r in train if label[int(r[8:10])] == k]
        np.random.seed(k); chosen += list(np.random.choice(mine, n, replace=False))
    return set(chosen)


@pytest.mark.parametrize('protocol', VIEWED)
def test_dmcl_validation_is_theirs(full, protocol):
    "Also when clips are missing and rows come in another order"
    for df in (full, full.sample(frac=.8, random_state=1), full.sort_values('clip_id', ascending=False).reset_index(drop=True)):
        records = [f'view_{v}/{c[:11]}' for v, c in zip(df.view, df.clip_id)]
        state = np.random.get_state()[1].copy()
        d = split(df, protocol, validation='dmcl')
        assert (np.random.get_state()[1] == state).all()                                       # our own generators, not the global one
        got = d[d.split == 'valid']
        assert {f'view_{v}/{c[:11]}' for v, c in zip(got.view, got.clip_id)} == dmcl_plainly(records, VIEWED[protocol][0])
        assert got.value_counts('label').nunique() == 1 and set(d.view[d.split == 'test']) == VIEWED[protocol][1]


# ---------------------------------------------------------------- counts

def test_counts_are_those_of_the_json_release():
    assert nw_ucla.COUNTS.to_dict() == {1: 516, 2: 504, 3: 464} and nw_ucla.COUNTS[[1, 2]].sum() == 1020 and nw_ucla.COUNTS.sum() == 1484


def test_check_counts(tree):
    t = nw_ucla.check_counts(index(tree))
    assert list(t.index) == ['view 1', 'view 2', 'view 3', 'total'] and t.found.tolist() == [20, 20, 20, 60] and t.missing.tolist() == [496, 484, 444, 1424]
    assert (t[['rgb', 'depth', 'skeleton']].eq(t.found, axis=0)).all().all()
    part = nw_ucla.check_counts(index(tree, ('rgb',))[lambda d: d.view == 2])
    assert part.found.tolist() == [0, 20, 0, 20] and 'depth' not in part and part.rgb.tolist() == [0, 20, 0, 20]
