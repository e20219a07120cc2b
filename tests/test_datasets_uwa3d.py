"UWA3D Multiview Activity II: names in any order, pairing by what a clip shows, whole frames or cut-outs, all cross-view protocols, on miniature trees in the exact layout"
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moddist.core import DataError, ProtocolError
from moddist.datasets import uwa3d
from moddist.datasets.uwa3d import Name, index, name_table, parse_name, split

FIVE = ('a21_s02_v04_e01', 'a06_s06_v04_e01', 'a02_s06_v03_e01', 'a07_s02_v02_e01', 'a16_s06_v02_e01')   # as ActionMAE writes them
GARCIA, ARCHIVE = {'rgb': 'UWA3D-RGB', 'whole': 'UWA3D-Depth/WholeFrames', 'roi': 'UWA3D-Depth', 'skeleton': 'ActionsSkeleton'}, \
                  {'rgb': 'UWA3DII_RGB/UWA3D-RGB', 'whole': 'UWA3DII_Depth/Actions_images', 'roi': 'UWA3DII_Depth_ROI/UWA3D-Depth', 'skeleton': 'ActionsSkeleton'}


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def frames(folder, numbers, end):
    "Real little pictures that hold their own number"
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        if end == '.png': Image.fromarray(np.full((6, 8), 1000 + n, np.uint16)).save(folder/f'{n:03d}.png')
        else: Image.new('RGB', (16, 12), (10*n,)*3).save(folder/f'{n:03d}{end}', quality=95)


def grow(root, clips, where=GARCIA, kinds=('rgb', 'whole', 'skeleton'), numbers=range(1, 5)):
    "The clips (a, s, v) in some releases; colour is called e01, depth e00, joints e02 with the view last"
    for a, s, v in clips:
        stem = f'a{a:02d}_s{s:02d}_v{v:02d}'
        if 'rgb' in kinds: frames(root/where['rgb']/f'{stem}_e01', numbers, ',.jpg')
        for kind in {'whole', 'roi'} & set(kinds): frames(root/where[kind]/f'{stem}_e00', numbers, '.png')
        if 'skeleton' in kinds:
            (root/where['skeleton']).mkdir(parents=True, exist_ok=True)
            (root/where['skeleton']/f'a{a:02d}_s{s:02d}_e02_v{v:02d}.mat').touch()


CLIPS = list(product((1, 30), (1, 10), (1, 2, 3, 4)))


@pytest.fixture
def tree(tmp_path):
    grow(tmp_path, CLIPS)
    return tmp_path


# ---------------------------------------------------------------- names

def test_every_order_of_the_parts_is_the_same_clip():
    for e in ('e00', 'e01', 'e02'):
        for parts in permutations(('a30', 's10', 'v04', e)): assert parse_name('_'.join(parts)) == (30, 10, 4)
    assert parse_name('a01_s03_e02_v02') == parse_name('a01_s03_v02_e00') == Name(action=1, subject=3, view=2)
    assert Name(1, 3, 2).stem == 'a01_s03_v02'


@pytest.mark.parametrize('bad', ['', 'a01_s01_v01', 'a01_s01_v01_v02', 'a00_s01_v01_e00', 'a31_s01_v01_e00', 'a01_s00_v01_e00', 'a01_s11_v01_e00', 'a01_s01_v00_e00', 'a01_s01_v05_e00',
                                 'a1_s1_v1_e0', 'A01_s01_v01_e00', 'a01_s01_v01_e00\n', 'a01_s01_v01_e00.mat', 'a٠١_s01_v01_e00'])
def test_name_outside_the_grammar(bad):
    assert one_line(parse_name, bad).startswith(f'{bad!r} is no UWA3D clip name')


def test_thirty_classes():
    df = name_table(Name(a, 1, 1) for a in range(1, 31))
    assert df.label.tolist() == list(range(30)) and df.action.tolist() == list(uwa3d.ACTIONS) and len(set(uwa3d.ACTIONS)) == 30 and len(uwa3d.VIEWS) == 4
    assert df.set_index('clip_id').action['a14_s01_v01'] == 'lying down' and uwa3d.ACTIONS[29] == 'coughing'


# ---------------------------------------------------------------- index

@pytest.mark.parametrize('where', [GARCIA, ARCHIVE], ids=['garcia', 'archives'])
def test_index(tmp_path, where):
    grow(tmp_path, CLIPS, where)
    df = index(tmp_path)
    assert list(df.columns) == ['clip_id', 'label', 'action', 'subject', 'view', 'rgb', 'depth', 'skeleton', 'numbers']
    assert df.clip_id.tolist() == [Name(*c).stem for c in CLIPS] and set(df.label) == {0, 29} and df.numbers.isna().all()
    for r in df.itertuples():
        assert r.rgb == f'{tmp_path}/{where["rgb"]}/{r.clip_id}_e01/*,.jpg' and r.depth == f'{tmp_path}/{where["whole"]}/{r.clip_id}_e00/*.png'
        assert Path(r.skeleton).name == f'{r.clip_id[:7]}_e02_{r.clip_id[8:]}.mat' and Path(r.skeleton).is_file()


def test_joints_in_folders_per_view(tmp_path):
    for a, s, v in CLIPS: grow(tmp_path, [(a, s, v)], GARCIA | {'skeleton': f'ActionsSkeleton/view_{v}'}, kinds=('skeleton',))
    df = index(tmp_path)
    assert len(df) == 16 and df.skeleton.notna().all() and df[['rgb', 'depth']].isna().all().all()


def test_pairing_is_by_what_the_clip_shows(tmp_path):
    "Names of colour and depth that agree, that differ in the last character, that differ in both, and in another order"
    frames(tmp_path/'UWA3D-RGB'/'a01_s01_v01_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'WholeFrames'/'a01_s01_v01_e01', (1, 2), '.png')
    frames(tmp_path/'UWA3D-RGB'/'a02_s01_v01_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'WholeFrames'/'a02_s01_v01_e00', (1, 2), '.png')
    frames(tmp_path/'UWA3D-RGB'/'a03_s01_v01_e02', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'WholeFrames'/'a03_s01_v01_e10', (1, 2), '.png')
    frames(tmp_path/'UWA3D-RGB'/'a04_s01_v02_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'WholeFrames'/'a04_s01_e03_v02', (1, 2), '.png')
    df = index(tmp_path)
    assert df.clip_id.tolist() == ['a01_s01_v01', 'a02_s01_v01', 'a03_s01_v01', 'a04_s01_v02'] and df[['rgb', 'depth']].notna().all().all()


def test_the_comma_is_part_of_the_pattern(tmp_path):
    frames(tmp_path/'UWA3D-RGB'/'a01_s01_v01_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-RGB'/'a01_s02_v01_e01', (1, 2), '.jpg')
    frames(tmp_path/'UWA3D-RGB'/'a01_s03_v01_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-RGB'/'a01_s03_v01_e01', (3,), '.jpg')
    assert [Path(p).name for p in index(tmp_path).rgb] == ['*,.jpg', '*.jpg', '*.jpg']           # repaired names are read as well


@pytest.mark.parametrize('rgb,depth,shared', [(range(1, 6), (1, 3, 4, 5), '1,3-5'), (range(1, 6), range(1, 6), None), (range(3, 8), range(1, 6), '3-5'), ((1, 2), (5,), 'none'), ((), (1, 2), 'no rgb')])
def test_frames_are_paired_by_number(tmp_path, rgb, depth, shared):
    frames(tmp_path/'UWA3D-RGB'/'a05_s06_v03_e01', rgb, ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'a05_s06_v03_e00', depth, '.png')
    r = index(tmp_path).iloc[0]
    assert isinstance(r.rgb, str) == (shared != 'no rgb') and isinstance(r.depth, str) == (shared != 'none')
    assert r.numbers == shared if isinstance(shared, str) and shared[0] != 'n' else pd.isna(r.numbers)


def test_other_files_in_a_clip_are_no_frames(tmp_path):
    frames(tmp_path/'UWA3D-RGB'/'a05_s06_v03_e01', (1, 2), ',.jpg'); frames(tmp_path/'UWA3D-Depth'/'a05_s06_v03_e00', (1, 2), '.png')
    for name in ('Thumbs.db', '003,.jpg.part', 'x.png', '.004.png'): (tmp_path/'UWA3D-Depth'/'a05_s06_v03_e00'/name).touch()
    assert pd.isna(index(tmp_path).numbers[0])


def test_depth_is_never_mixed(tree):
    grow(tree, CLIPS[:5], kinds=('roi',))
    assert index(tree).depth.str.contains('WholeFrames').all()
    roi = index(tree, depth='roi')
    assert roi.depth.notna().sum() == 5 and not roi.depth.dropna().str.contains('WholeFrames').any() and len(roi) == 16
    grow(tree, [(7, 7, 1), *CLIPS], kinds=('roi',))                                             # now the cut-outs cover one more
    assert not index(tree).depth.dropna().str.contains('WholeFrames').any() and index(tree, depth='whole').depth.notna().sum() == 16
    assert 'auto, whole or roi' in one_line(index, tree, depth='depth')


def test_the_five_unpaired_clips(tmp_path):
    "Present in colour or in depth only; they are rows with one path, and leave with paired=True"
    five = [tuple(parse_name(n)) for n in FIVE]
    assert {Name(*c).stem for c in five} == set(uwa3d.UNPAIRED) and len(uwa3d.UNPAIRED) == 5
    grow(tmp_path, CLIPS)
    grow(tmp_path, five[:3], kinds=('rgb',)); grow(tmp_path, five[3:], kinds=('whole',))
    df = index(tmp_path)
    assert set(df.clip_id[df.rgb.isna() | df.depth.isna()]) == set(uwa3d.UNPAIRED) and len(df) == 21
    pairs = index(tmp_path, paired=True)
    assert len(pairs) == 16 and not set(pairs.clip_id) & set(uwa3d.UNPAIRED) and pairs.index.tolist() == list(range(16))
    t = uwa3d.check_counts(df)
    assert t.loc['unpaired', ['found', 'published', 'missing', 'rgb', 'depth']].tolist() == [5, 5, 0, 3, 2]
    assert t.loc['clips', ['found', 'published', 'missing', 'rgb', 'depth', 'skeleton']].tolist() == [21, 1075, 1054, 19, 18, 16]


@pytest.mark.parametrize('path', ['UWA3D-RGB/a01_s01_v01/', 'UWA3D-RGB/readme.txt', 'UWA3D-RGB/a01_s02_v01_e01', 'UWA3D-Depth/WholeFrames/a01_s01_v05_e00/', 'UWA3D-Depth/Whole/', 'ActionsSkeleton/a01_s02_e01_v01.txt',
                                  'ActionsSkeleton/a01_s02_e01_v01.mat/', 'ActionsSkeleton/a01_s02_v01.mat'])
def test_misplaced_files_are_named(tree, path):
    target = tree/path
    target.mkdir() if path.endswith('/') else target.touch()
    message = one_line(index, tree)
    assert message.startswith(f'{target}: expected ') and '<clip>' in message and 'move or rename it' in message


def test_a_clip_met_twice_is_named(tree):
    (tree/'UWA3D-RGB'/'a01_s01_v01_e00').mkdir()
    message = one_line(index, tree)
    assert 'a01_s01_v01_e00' in message and 'a01_s01_v01_e01' in message and 'keep one' in message


def test_hidden_and_foreign_things_are_left_alone(tree):
    (tree/'UWA3D-RGB'/'.DS_Store').touch(); (tree/'readme.txt').touch(); (tree/'UWA3D-Flow').mkdir()
    assert len(index(tree)) == 16


def test_nothing_there(tmp_path):
    message = one_line(index, tmp_path)
    assert all(f in message for f in ('UWA3D-RGB', 'UWA3D-Depth/WholeFrames', 'UWA3DII_Depth_ROI', 'ActionsSkeleton')) and 'no such folder' in one_line(index, tmp_path/'x')


def test_index_opens_no_file(tree):
    before = index(tree)
    for f in tree.rglob('*'):
        if f.is_file(): f.write_bytes(b'')
    assert index(tree).equals(before)


def test_index_survives_csv(tree, tmp_path):
    (tree/'UWA3D-Depth'/'WholeFrames'/'a01_s01_v01_e00'/'002.png').unlink()
    df = index(tree)
    assert df.numbers[0] == '1,3-4'
    df.to_csv(tmp_path/'i.csv', index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'i.csv', dtype=dict(numbers=object)), df, check_dtype=False)


def test_a_loaded_clip_shows_the_same_moment_twice(tree):
    "Through the reader and the sampler: colour and depth of a clip with a hole hold the same frame numbers"
    from moddist.data import ClipSampler, load_clip
    from moddist.files import frame_numbers
    (tree/'UWA3D-Depth'/'WholeFrames'/'a30_s10_v04_e00'/'002.png').unlink()
    r = index(tree).set_index('clip_id', drop=False).loc['a30_s10_v04'].to_dict()
    assert frame_numbers(r['rgb']) == (1, 2, 3, 4) and frame_numbers(r['depth']) == (1, 3, 4)
    rgb, depth = (np.asarray(load_clip(r, s, ClipSampler(clip_len=3, size=(6, 8))))[0, :, 3, 4].astype(int) for s in ('rgb', 'depth'))
    assert depth.tolist() == [1001, 1003, 1004] and np.abs(rgb - [10, 30, 40]).max() <= 4


# ---------------------------------------------------------------- protocols

@pytest.fixture(scope='module')
def full(): return name_table(Name(a, s, v) for a in range(1, 31) for s in range(1, 11) for v in range(1, 5))


def test_the_twelve_runs():
    "All pairs of views train, each of the other two tests (the order of a public converter of this set)"
    pairs = [{1, 2}, {1, 3}, {1, 4}, {2, 3}, {2, 4}, {3, 4}]
    tests = [3, 4, 2, 4, 2, 3, 1, 4, 1, 3, 1, 2]
    assert [(set(uwa3d.PROTOCOLS[r].train), set(uwa3d.PROTOCOLS[r].test)) for r in uwa3d.RUNS] == [(pairs[i//2], {t}) for i, t in enumerate(tests)]
    assert pairs == [set(p) for p in combinations(range(1, 5), 2)] and len(set(uwa3d.RUNS)) == 12


@pytest.mark.parametrize('protocol', uwa3d.PROTOCOLS)
def test_split_follows_the_name(full, protocol):
    train, test = ({int(v) for v in side} for side in protocol.removeprefix('cross-view-').split('-'))
    d = split(full, protocol)
    assert set(d.view[d.split == 'train']) == train and set(d.view[d.split == 'test']) == test and len(d) == 300*len(train | test)
    assert d.index.tolist() == list(range(len(d))) and 'split' not in full


def test_garcia_and_actionmae(full):
    assert split(full).value_counts('split').to_dict() == dict(train=900, test=300) and set(split(full).query("split == 'test'").view) == {4}
    d = split(full, 'cross-view-34-12')
    assert set(d.view[d.split == 'train']) == {3, 4} and set(uwa3d.PROTOCOLS) == {*uwa3d.RUNS, 'cross-view-123-4', 'cross-view-34-12'}


def test_validation_is_taken_from_training(full):
    for protocol in uwa3d.PROTOCOLS:
        d, plain = split(full, protocol, validation=6), split(full, protocol)
        assert set(d.subject[d.split == 'valid']) == {6} and 6 not in set(d.subject[d.split == 'train'])
        assert (d.split == 'test').equals(plain.split == 'test')
    assert set(split(full).split) == {'train', 'test'}


def test_what_a_protocol_refuses(full):
    assert all(p in one_line(split, full, 'cross-subject') for p in uwa3d.PROTOCOLS)
    for wrong in (0, 11, 'dmcl'): assert repr(wrong) in one_line(split, full, validation=wrong)
    assert 'one of 1, 2' in one_line(split, full[full.subject < 3], validation=3)
    late = full[(full.subject != 3) | (full.view == 4)]
    assert 'a subject with training clips' in one_line(split, late, validation=3)
