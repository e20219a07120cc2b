"The data-set chapters: name grammars, miniature trees in the exact layouts, protocols against the published lists, and the real files where they are"
import os
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moddist.core import DataError, ProtocolError
from moddist.datasets import ntu, urfd, utd_mhad

DATA = Path(os.environ.get('MODDIST_TEST_DATA', Path(__file__).parents[1]/'..'/'shared'/'data'))


def real(*parts):
    "A folder of real data, or skip with the reason"
    folder = DATA.joinpath(*parts)
    if not folder.exists(): pytest.skip(f'{"/".join(parts)} is not in the test data folder (MODDIST_TEST_DATA)')
    return folder


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------- NTU: names

def test_ntu_name_round_trip():
    for five in product((1, 17, 32), (1, 3), (1, 106), (1, 2), (1, 60, 120)):
        stem = ntu.Name(*five).stem
        assert len(stem) == 20 and ntu.parse_name(stem) == five
        assert [int(stem[i:i + 3]) for i in (1, 5, 9, 13, 17)] == list(five)      # the slices other loaders use


@pytest.mark.parametrize('bad', ['', 'S001C001P001R001A00', 'S001C001P001R001A0011', 's001c001p001r001a001', 'S001C001P001R001A001_rgb', 'S001C001P001R001A001\n',
                                 'S000C001P001R001A001', 'S001C001P001R001A000', 'S001C001P001R001A٠٠١', ' S001C001P001R001A001'])
def test_ntu_name_outside_the_grammar(bad):
    assert 'SsssCcccPpppRrrrAaaa' in one_line(ntu.parse_name, bad)


def test_ntu_class_names_are_the_owners():
    published = pd.read_csv(real('annotations', 'ntu_rgbd', 'classes_120.csv'))
    assert list(ntu.ACTIONS) == published.name.str.replace('’', "'").tolist() and published.id.tolist() == list(range(1, 121))


# ---------------------------------------------------------------- NTU: index on miniature trees

STEMS = [ntu.Name(s, c, p, 1, a).stem for s, p in ((1, 1), (1, 2), (2, 3)) for c in (1, 2, 3) for a in (1, 60)]


@pytest.fixture
def tree(tmp_path):
    "Every modality once: colour flat, infrared in a doubled folder, whole depth flat, masked depth per setup, joints in an archive folder without the plus"
    for s in STEMS:
        touch(tmp_path/'nturgb+d_rgb'/f'{s}_rgb.avi')
        touch(tmp_path/'nturgb+d_ir'/'nturgb+d_ir'/f'{s}_ir.avi')
        touch(tmp_path/'nturgb+d_depth'/s/'Depth-00000001.png')
        touch(tmp_path/f'nturgb+d_depth_masked_{s[:4].lower()}'/'nturgb+d_depth_masked'/s/'MDepth-00000001.png')
        touch(tmp_path/'nturgbd_skeletons_s001_to_s017'/'nturgb+d_skeletons'/f'{s}.skeleton')
    return tmp_path


def test_ntu_index_reads_every_layout(tree):
    df = ntu.index(tree)
    assert list(df.columns) == ['clip_id', 'setup', 'camera', 'subject', 'replication', 'label', 'action', 'rgb', 'depth', 'ir', 'skeleton', 'depth_masked']
    assert df.clip_id.tolist() == sorted(STEMS) and df[['rgb', 'depth', 'ir', 'skeleton']].notna().all().all()
    for key in ('rgb', 'depth', 'ir', 'skeleton'):
        assert all(os.path.exists(p) and c in os.path.basename(p) for p, c in zip(df[key], df.clip_id))
    assert set(df.label) == {0, 59} and set(df.action) == {'drink water', 'walking apart from each other'}


def test_ntu_depth_is_never_mixed(tree):
    assert ntu.index(tree).depth.str.contains('nturgb+d_depth/', regex=False).all()
    assert ntu.index(tree, depth='masked').depth.str.contains('masked').all()
    first = tree/'nturgb+d_depth'/STEMS[0]
    (first/'Depth-00000001.png').unlink(); first.rmdir()                 # one whole-frame clip fewer: all masked, no mixture
    assert ntu.index(tree).depth.str.contains('masked').all()
    assert ntu.index(tree, depth='full').depth.isna().tolist() == [s == STEMS[0] for s in sorted(STEMS)]
    assert 'auto' in one_line(ntu.index, tree, depth='jet')


def test_ntu_rows_are_the_union_of_the_modalities(tree):
    (tree/'nturgb+d_rgb'/f'{STEMS[0]}_rgb.avi').unlink()
    only_here = ntu.Name(3, 1, 2, 2, 5).stem
    touch(tree/'nturgb+d_rgb_s003'/'nturgb+d_rgb'/f'{only_here}_rgb.avi')
    df = ntu.index(tree).set_index('clip_id')
    assert len(df) == len(STEMS) + 1
    assert pd.isna(df.rgb[STEMS[0]]) and pd.notna(df.depth[STEMS[0]])
    assert pd.notna(df.rgb[only_here]) and df.loc[only_here, ['depth', 'ir', 'skeleton']].isna().all()


@pytest.mark.parametrize('path', ['nturgb+d_rgb/notes.txt', 'nturgb+d_rgb/S001C001P001R001A001.avi', 'nturgb+d_rgb/S001C001P001R001A001_ir.avi', 'nturgb+d_rgb/S1C1P1R1A1_rgb.avi',
                                  'nturgb+d_ir/S001C001P001R001A001_rgb.avi', 'nturgb+d_depth/S009C001P001R001A001', 'nturgb+d_depth_masked/MDepth-00000001.png',
                                  'nturgb+d_skeletons/S001C001P001R001A001.skeleton.txt', 'nturgb+d_rgb_s001/S001C001P001R001A001.zip'])
def test_ntu_misplaced_files_are_named(tmp_path, path):
    touch(tmp_path/path)
    message = one_line(ntu.index, tmp_path)
    assert message.startswith(str(tmp_path/path)) and 'expected' in message and '<clip>' in message


def test_ntu_folder_where_a_file_belongs(tmp_path):
    (tmp_path/'nturgb+d_rgb'/f'{STEMS[0]}_rgb.avi').mkdir(parents=True)
    assert f'{STEMS[0]}_rgb.avi: expected a video' in one_line(ntu.index, tmp_path)


def test_ntu_hidden_and_foreign_things_are_left_alone(tree):
    for p in ('nturgb+d_rgb/.DS_Store', 'readme.txt', 'nturgb+d_rgb.zip', 'my_features/S001.npy', 'nturgb+d_rgb_old/x.txt'): touch(tree/p)
    assert len(ntu.index(tree)) == len(STEMS)


def test_ntu_clip_met_twice(tree):
    second = touch(tree/'nturgb+d_rgb_s001'/f'{STEMS[0]}_rgb.avi')
    message = one_line(ntu.index, tree)
    assert str(second) in message and str(tree/'nturgb+d_rgb'/second.name) in message


def test_ntu_own_classes(tree):
    (tree/'classes.txt').write_text('\n'.join(f'class {k}' for k in range(60)))
    assert set(ntu.index(tree).action) == {'class 0', 'class 59'}
    (tree/'classes.txt').write_text('push\npull\n')
    assert 'A060' in (m := one_line(ntu.index, tree)) and 'A001 to A002' in m and 'classes.txt' in m
    for text in ('', 'push\n\npull\n'):
        (tree/'classes.txt').write_text(text)
        assert 'classes.txt' in one_line(ntu.index, tree)


def test_ntu_nothing_there(tmp_path):
    message = one_line(ntu.index, tmp_path)
    assert all(f in message for f in ('nturgb+d_rgb', 'nturgb+d_ir', 'nturgb+d_depth', 'nturgb+d_depth_masked', 'nturgb+d_skeletons'))
    (tmp_path/'nturgb+d_rgb').mkdir()
    assert 'no clips' in one_line(ntu.index, tmp_path)
    assert 'no such folder' in one_line(ntu.index, tmp_path/'elsewhere')


def test_ntu_reads_what_the_index_points_at(tmp_path):
    "Real 16-bit PNGs and a real video in NTU's layout go through the readers of moddist.data"
    import av
    import cv2
    from moddist import files
    depth = np.random.default_rng(0).integers(0, 9000, (5, 12, 16)).astype(np.uint16)
    folder = tmp_path/'nturgb+d_depth_masked_s001'/'nturgb+d_depth_masked'/STEMS[0]
    folder.mkdir(parents=True)
    for i, d in enumerate(depth, 1): cv2.imwrite(str(folder/f'MDepth-{i:08d}.png'), d)
    video = tmp_path/'nturgb+d_rgb'/f'{STEMS[0]}_rgb.avi'
    video.parent.mkdir()
    with av.open(str(video), 'w') as out:
        s = out.add_stream('mpeg4', rate=30); s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
        for _ in range(5): out.mux(s.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 120, np.uint8), format='rgb24')))
        out.mux(s.encode())
    row = ntu.index(tmp_path).iloc[0]
    assert (np.asarray(files.read_png16(row.depth)) == depth).all()
    assert np.asarray(files.read_video(row.rgb)).shape == (5, 48, 64, 3)


# ---------------------------------------------------------------- NTU: protocols

def full_names():
    "56,880 made-up names with all published totals: 948 per class, 18,960 per camera, 224 performances of the 20 training performers per class and camera, 92 of the others"
    train = ntu.PROTOCOLS['cross-subject'].train
    takes = list(product(range(1, 18), (1, 2)))
    for people, total in ((train, 224), (set(range(1, 41)) - train, 92)):
        for i, p in enumerate(sorted(people)):
            for (s, r), c, a in product(takes[:total//20 + (i < total % 20)], (1, 2, 3), range(1, 61)):
                yield ntu.Name(s, c, p, r, a).stem


@pytest.fixture(scope='module')
def full(): return ntu.name_table(full_names())


def test_ntu_subject_lists_are_the_published_ones():
    "The lists as printed in the data sheet, checked through their sum and their complement"
    sixty, many = ntu.PROTOCOLS['cross-subject'].train, ntu.PROTOCOLS['cross-subject-120'].train
    assert sorted(sixty) == [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38]
    assert len(many) == 53 and sixty < many and max(many) == 103
    assert sorted(set(range(41, 107)) - many) == [41, 42, 43, 44, 48, 51, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 71, 72, 73, 75, 76, 77, 79, 87, 88, 90, 96, 99, 101, 102, 104, 105, 106]
    assert ntu.PROTOCOLS['cross-view'].train == {2, 3} and ntu.PROTOCOLS['cross-setup-120'].train == set(range(2, 33, 2))


@pytest.mark.golden(26)
def test_garcia_cross_subject(full):
    df = ntu.split(full)
    people = {s: set(g.subject) for s, g in df.groupby('split')}
    assert {s: len(p) for s, p in people.items()} == dict(train=19, valid=1, test=20)
    assert people['valid'] == {1} and people['train'] == {2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    assert people['test'] == {3, 6, 7, 10, 11, 12, 20, 21, 22, 23, 24, 26, 29, 30, 32, 33, 36, 37, 39, 40}
    assert set.union(*people.values()) == set(range(1, 41)) and sum(map(len, people.values())) == 40


@pytest.mark.golden(26)
def test_garcia_cross_view(full):
    df = ntu.split(full, 'cross-view')
    valid, train = df[df.split == 'valid'], df[df.split == 'train']
    assert (valid.groupby('label').size() == 31).all() and valid.label.nunique() == 60 and len(valid) == 1860
    assert not set(valid.clip_id) & set(train.clip_id) and set(valid.camera) <= {2, 3} and set(df.camera[df.split == 'test']) == {1}
    for k in (0, 17, 59):                                     # the released code, written out: global seed, sorted list, choice
        names = sorted(full.clip_id[(full.label == k) & full.camera.isin((2, 3))])
        np.random.seed(0)
        assert set(np.random.choice(names, 31, replace=False)) == set(valid.clip_id[valid.label == k])


def test_validation_does_not_depend_on_the_order_or_labels_of_the_rows(full):
    valid = lambda df: set(ntu.split(df, 'cross-view').query("split == 'valid'").clip_id)
    shuffled = full.sample(frac=1, random_state=3)
    assert valid(full) == valid(shuffled) == valid(shuffled.reset_index(drop=True))


def test_splitting_leaves_numpy_and_the_index_alone(full):
    np.random.seed(7); before = np.random.get_state()[1].copy()
    ntu.split(full, 'cross-view')
    assert (np.random.get_state()[1] == before).all() and 'split' not in full


def test_published_counts(full):
    for protocol in ('cross-subject', 'cross-view'):
        t = ntu.check_counts(full, protocol)
        assert (t.missing == 0).all() and t.published.total == 56_880
    n = ntu.split(full, validation=None).value_counts('split')
    assert (n.train, n.test) == (40_320, 16_560)
    n = ntu.split(full, 'cross-view', validation=None).value_counts('split')
    assert (n.train, n.test) == (37_920, 18_960)
    assert ntu.check_counts(full.iloc[100:]).missing.total == 100
    assert (ntu.COUNTS[ntu.COUNTS.with_skeleton].total == [56_880 - 302]*2 + [114_480 - 535]*2).all()
    one_line(ntu.check_counts, full, 'one-shot-120')


@pytest.mark.parametrize('per_class,n', [(2, 1), (10, 1), (40, 2), (309, 15), (310, 31), (632, 31)])
def test_validation_share_of_small_sets(per_class, n):
    takes = list(product(range(1, 18), (2, 3), range(1, 41)))[:per_class]
    df = ntu.name_table([ntu.Name(s, c, p, 1, a).stem for s, c, p in takes for a in (1, 2)])
    valid = ntu.split(df, 'cross-view').query("split == 'valid'")
    assert valid.value_counts('label').to_dict() == {0: n, 1: n}


def test_120_protocols():
    df = ntu.name_table([ntu.Name(s, 1, p, 1, 61 + p % 60).stem for s in range(1, 33) for p in range(1, 107)])
    by_subject = ntu.split(df, 'cross-subject-120').drop_duplicates('subject').split.value_counts()
    assert by_subject.to_dict() == dict(test=53, train=52, valid=1)
    by_setup = ntu.split(df, 'cross-setup-120', validation=None)
    assert set(by_setup.setup[by_setup.split == 'train']) == set(range(2, 33, 2)) and set(by_setup.split) == {'train', 'test'}
    valid = ntu.split(df, 'cross-setup-120').query("split == 'valid'")
    assert set(valid.setup % 2) == {0} and valid.label.nunique() == df.label.nunique()


def test_ntu_protocol_errors(full):
    assert 'cross-subject, cross-view, cross-subject-120, cross-setup-120' in one_line(ntu.split, full, 'xsub')
    assert 'garcia' in one_line(ntu.split, full, validation='random')
    assert 'performer 1' in one_line(ntu.split, full[full.subject != 1])
    alone = ntu.name_table(['S001C002P001R001A001', 'S001C001P001R001A001'])
    assert 'S001C002P001R001A001' in one_line(ntu.split, alone, 'cross-view')
    for stem, protocol in (('S001C001P041R001A001', 'cross-subject'), ('S001C004P001R001A001', 'cross-view'), ('S001C001P107R001A001', 'cross-subject-120'), ('S033C001P001R001A001', 'cross-setup-120')):
        assert stem in one_line(ntu.split, ntu.name_table([stem]), protocol)


# ---------------------------------------------------------------- NTU: joints

@pytest.mark.parametrize('release,n', [(60, 302), (120, 535)])
def test_missing_skeleton_lists(release, n):
    names = ntu.missing_skeletons(real('annotations', 'ntu_rgbd', f'missing_skeletons_{release}.txt'))
    df = ntu.name_table(names)
    assert len(names) == len(set(names)) == n and names[0] == 'S001C002P005R002A008'
    assert (df.setup <= 17).sum() == 302


def test_missing_skeletons_bad_lists(tmp_path):
    file = tmp_path/'list.txt'
    file.write_text('1 of\nx\nS001C002P005R002A008\n')
    assert ntu.missing_skeletons(file) == ['S001C002P005R002A008']
    for text, words in (('', 'line 1'), ('names\n\n\nS001C002P005R002A008\n', 'line 1'), ('2 of\nx\n\nS001C002P005R002A008\n', '1 names where line 1 says 2'),
                        ('1 of\nx\n\nS001C002P005R002A8\n', 'line 4'), ('1 of\nx\n\nS001C002P005R002A008\nS001C002P005\n', 'line 5')):
        file.write_text(text)
        assert words in (m := one_line(ntu.missing_skeletons, file)) and str(file) in m


def skeleton_file(path, frames):
    "frames: list of {body id: [25, 12] array}"
    out = [str(len(frames))]
    for bodies in frames:
        out.append(str(len(bodies)))
        for b, joints in bodies.items(): out += [f'{b} 0 1 1 1 1 0 0.01 0.02 2', '25', *(' '.join(map(repr, map(float, j))) for j in joints)]
    path.write_text('\n'.join(out) + '\n')
    return path


def test_skeleton_round_trip(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 6, 25, 12)).astype(np.float32)
    a, b = '72057594037931101', '72057594037931368'
    seen = {a: (0, 1, 2, 4), b: (2, 3, 4)}
    file = skeleton_file(tmp_path/'x.skeleton', [{i: x[m, t] for m, i in enumerate((a, b)) if t in seen[i]} for t in range(6)])
    s = ntu.read_skeleton(file)
    assert s.body_ids == (a, b) and s.joints.shape == (2, 6, 25, 3) and s.depth_px.shape == s.colour_px.shape == (2, 6, 25, 2)
    for m, i in enumerate((a, b)):
        for t in range(6):
            if t not in seen[i]: assert np.isnan(s.joints[m, t]).all() and np.isnan(s.depth_px[m, t]).all()
            else: assert (np.c_[s.joints[m, t], s.depth_px[m, t], s.colour_px[m, t]] == x[m, t, :, :7]).all()


def test_skeleton_of_nobody(tmp_path):
    s = ntu.read_skeleton(skeleton_file(tmp_path/'x.skeleton', [{}, {}]))
    assert s.joints.shape == (0, 2, 25, 3) and s.body_ids == ()


def test_skeleton_cut_off_or_changed_at_any_line(tmp_path):
    file = skeleton_file(tmp_path/'x.skeleton', [{1: np.ones((25, 12))}, {1: np.ones((25, 12)), 2: np.ones((25, 12))}])
    lines = file.read_text().splitlines()
    for n in range(len(lines)):
        file.write_text('\n'.join(lines[:n]))
        assert f'{file} line {n + 1}: expected' in one_line(ntu.read_skeleton, file)
        file.write_text('\n'.join([*lines[:n], lines[n] + ' x', *lines[n + 1:]]))
        assert f'{file} line {n + 1}: expected' in one_line(ntu.read_skeleton, file)
    file.write_text('\n'.join(lines).replace('\n25\n', '\n24\n', 1))
    assert 'line 4: expected 25 joints' in one_line(ntu.read_skeleton, file)
    assert 'no such file' in one_line(ntu.read_skeleton, tmp_path/'y.skeleton')


# ---------------------------------------------------------------- UR Fall

SEQS = [(f'fall-{i:02d}', 'fall', 'ABCD'[i % 4], 40 + i, 30, 20 + 2*i) for i in range(1, 13)] + [(f'adl-{i:02d}', 'adl', None, 60, 0, 0) for i in range(1, 6)]


@pytest.fixture
def falls(tmp_path):
    rows, labels = [], []
    for seq, kind, person, up, down, lying in SEQS:
        rows.append((seq, kind, person, 'office', up + down + lying))
        labels += [(seq, n, l) for n, l in enumerate([-1]*up + [0]*down + [1]*lying, 1) if kind == 'fall' or n > 30]
        touch(tmp_path/'rgb_cam0'/f'{seq}-cam0.mp4')
        if kind == 'fall': touch(tmp_path/'rgb_cam1'/f'{seq}-cam1.mp4')
    pd.DataFrame(rows, columns=['sequence', 'kind', 'person_by_eye', 'scene_by_eye', 'cam0_frames']).to_csv(tmp_path/'index.csv', index=False)
    pd.DataFrame(labels, columns=['sequence', 'frame', 'label']).to_csv(tmp_path/'frame_features_cam0.csv', index=False)
    return tmp_path


def plain_windows(root, df, length, stride, purity):
    "The window rule written out with loops over the CSV"
    table = pd.read_csv(root/'frame_features_cam0.csv')
    frames = pd.read_csv(root/'index.csv').set_index('sequence').cam0_frames
    posture = {(s, f): l + 1 for s, f, l in table[['sequence', 'frame', 'label']].itertuples(index=False)}
    for s in sorted(frames.index):
        for start in range(0, frames[s] - length + 1, stride):
            got = [posture.get((s, i + 1)) for i in range(start, start + length)]
            for k in range(3):
                if got.count(k) >= purity*length: yield s, start, start + length, k


@pytest.mark.parametrize('length,stride,purity', [(24, 6, .6), (16, 5, .75), (30, 30, 1.), (8, 1, .51), (25, 7, .6)])
def test_urfd_windows_follow_the_rule(falls, length, stride, purity):
    df = urfd.index(falls, length, stride, purity)
    assert list(df[['sequence', 'start', 'stop', 'label']].itertuples(index=False, name=None)) == list(plain_windows(falls, df, length, stride, purity))
    assert df.clip_id.is_unique and (df.cover >= purity).all() and [urfd.ACTIONS[k] for k in df.label] == df.action.tolist()


def test_urfd_frames_are_counted_from_one(tmp_path, falls):
    "CSV frame n is array frame n-1: a window that begins at the first transition frame is all transition"
    df = urfd.index(falls, length=30, stride=1, purity=1)
    up = {s[0]: s[3] for s in SEQS}
    moving = df[df.label == 1]
    assert len(moving) == 12 and all(r.start == up[r.sequence] for r in moving.itertuples())


def test_urfd_pairs_and_columns(falls):
    df = urfd.index(falls)
    assert df.view2.isna().eq(df.kind == 'adl').all() and df.person.isna().eq(df.kind == 'adl').all()
    pair = urfd.index(falls, paired=True)
    assert set(pair.kind) == {'fall'} and pair.equals(df[df.kind == 'fall'].reset_index(drop=True))
    assert all(os.path.basename(r.rgb) == f'{r.sequence}-cam0.mp4' and os.path.basename(r.view2) == f'{r.sequence}-cam1.mp4' for r in pair.itertuples())


def check_folds(df, protocol, n):
    tested = []
    for fold in range(n):
        d = urfd.split(df, protocol, fold)
        assert set(d.split) == {'train', 'valid', 'test'}
        assert (d.groupby('sequence').split.nunique() == 1).all()            # windows overlap: a sequence on two sides would leak frames
        tested.append(set(d.clip_id[d.split == 'test']))
        if protocol == 'person-disjoint':
            assert d[d.split == 'test'].person.nunique() == 1 and not set(d.person[d.split == 'test']) & set(d.person[d.split != 'test'])
            assert set(d.person[d.split == 'valid']) == set(d.person[d.split == 'train'])
    assert set.union(*tested) == set(df.clip_id) and sum(map(len, tested)) == len(df)
    assert f'0 to {n - 1}' in one_line(urfd.split, df, protocol, n) and one_line(urfd.split, df, protocol, -1)


def test_urfd_folds_share_no_sequence_and_no_person(falls):
    check_folds(urfd.index(falls, paired=True), 'person-disjoint', 4)
    check_folds(urfd.index(falls), 'sequence-disjoint', 5)
    assert 'adl-01' in one_line(urfd.split, urfd.index(falls)) and 'person-disjoint, sequence-disjoint' in one_line(urfd.split, urfd.index(falls), 'cross-view')


def test_urfd_fold_counts_add_up(falls):
    df = urfd.index(falls, paired=True)
    t = urfd.fold_counts(df)
    assert t.shape == (12, 3) and (t.groupby('fold').sum() == df.value_counts('action').reindex(list(urfd.ACTIONS))).all().all()


@pytest.mark.parametrize('row,words', [('fall-01,94,1', 'counted from 1'), ('fall-01,0,0', 'counted from 1'), ('fall-01,3,2', 'label -1, 0 or 1'), ('fall-77,1,0', 'a sequence of index.csv')])
def test_urfd_bad_label_rows_are_named(falls, row, words):
    file = falls/'frame_features_cam0.csv'
    good = file.read_text()
    file.write_text(good + row + '\n')
    assert (m := one_line(urfd.index, falls)).startswith(f'{file} line {good.count(chr(10)) + 1}: ') and words in m


def test_urfd_missing_things_are_named(falls, tmp_path):
    (falls/'rgb_cam1'/'fall-02-cam1.mp4').rename(falls/'x')
    assert 'fall-02-cam1.mp4: no such file' in one_line(urfd.index, falls)
    (falls/'index.csv').write_text((falls/'index.csv').read_text().replace('scene_by_eye', 'scene'))
    assert "index.csv: no column 'scene_by_eye'" in one_line(urfd.index, falls)
    assert 'index.csv: no such file' in one_line(urfd.index, falls/'none')
    for wrong in (dict(purity=.5), dict(purity=1.1), dict(length=0), dict(stride=0)): assert next(iter(wrong)) in one_line(urfd.windows, np.zeros(30, int), **wrong)


def test_urfd_real():
    root = real('urfd')
    table, seqs = pd.read_csv(root/'frame_features_cam0.csv'), pd.read_csv(root/'index.csv')
    df = urfd.index(root)
    assert list(df[['sequence', 'start', 'stop', 'label']].itertuples(index=False, name=None)) == list(plain_windows(root, df, 24, 6, .6))
    assert df[['sequence', 'kind']].drop_duplicates().kind.value_counts()['fall'] == (seqs.kind == 'fall').sum()
    falls = df[df.kind == 'fall']
    assert (falls[falls.label == 1].groupby('sequence').size() >= 1).all() and falls.sequence.nunique() == (falls.label == 1).groupby(falls.sequence).any().sum()
    persons = seqs.person_by_eye.dropna().nunique()
    check_folds(urfd.index(root, paired=True), 'person-disjoint', persons)
    check_folds(df, 'sequence-disjoint', 5)
    assert table.label.isin((-1, 0, 1)).all()


def test_urfd_real_windows_lie_inside_both_videos():
    import av
    df = urfd.index(real('urfd'), paired=True)
    last = df.groupby('sequence').agg(stop=('stop', 'max'), rgb=('rgb', 'first'), view2=('view2', 'first'))
    for r in last.iloc[::6].itertuples():
        for path in (r.rgb, r.view2):
            with av.open(path) as v: assert sum(1 for _ in v.decode(video=0)) >= r.stop


def test_urfd_real_windows_through_the_loader():
    "Both views of a window are the frames [start, stop) of their videos, at the same times"
    import av
    from moddist import data
    df = urfd.index(real('urfd'), paired=True)
    row = df[(df.label == 1) & (df.start > 20)].iloc[0].to_dict()
    at = row['start'] + np.floor(np.linspace(0, 23, 6)).astype(int)
    for spec in ('rgb', 'view2:rgb'):
        with av.open(row[spec.split(':')[0]]) as v: frames = [f.to_ndarray(format='rgb24') for f in v.decode(video=0)]
        clip = np.asarray(data.load_clip(row, spec, data.ClipSampler(clip_len=6)))
        off = np.abs(clip.transpose(1, 2, 3, 0).astype(int) - np.stack([frames[i] for i in at]))
        assert clip.shape == (3, 6, 240, 320) and off.mean() < 1
    d = urfd.split(df).groupby('split').head(4)
    x, x2, y = data.clip_dls(d, ('rgb', 'view2:rgb'), data.ClipSampler(clip_len=4, size=(48, 64)), bs=4, n_classes=3, workers=0).one_batch()
    assert x.shape == x2.shape == (4, 3, 4, 48, 64) and not (x == x2).all()


# ---------------------------------------------------------------- UTD-MHAD

def test_utd_names():
    for stem in utd_mhad.published_clips(): assert utd_mhad.parse_name(stem).stem == stem
    assert len(set(utd_mhad.published_clips())) == 861
    every = {f'a{a}_s{s}_t{t}' for a, s, t in product(range(1, 28), range(1, 9), range(1, 5))}
    assert every - set(utd_mhad.published_clips()) == {'a8_s1_t4', 'a23_s6_t4', 'a27_s8_t4'}
    for bad in ('a0_s1_t1', 'a01_s1_t1', 'a28_s1_t1', 'a1_s9_t1', 'a1_s1_t5', 'a1_s1_t1_', 'A1_s1_t1', 'a1_s1_t1\n'): assert repr(bad) in one_line(utd_mhad.parse_name, bad)


@pytest.fixture
def mhad(tmp_path):
    "The original archive: capital folders, colour in four parts, all 861 names"
    for i, stem in enumerate(utd_mhad.published_clips()):
        touch(tmp_path/f'RGB-part{1 + i*4//861}'/f'{stem}_color.avi')
        for kind in ('Depth', 'Skeleton', 'Inertial'): touch(tmp_path/kind/f'{stem}_{kind.lower()}.mat')
    return tmp_path


def test_utd_index_and_counts(mhad):
    df = utd_mhad.index(mhad)
    assert df.clip_id.tolist() == utd_mhad.published_clips() and df.pose2d.isna().all()
    assert df[['rgb', 'depth', 'skeleton', 'inertial']].notna().all().all() and df.label.nunique() == 27
    n = utd_mhad.split(df).value_counts('split')
    assert (n.train, n.test) == (431, 430)
    t = utd_mhad.check_counts(df)
    assert (t[['rgb', 'depth', 'skeleton', 'inertial']].eq(t.published, axis=0)).all().all() and t.pose2d.sum() == 0
    folds = [set(utd_mhad.split(df, 'leave-two-subjects-out', k).query("split == 'test'").subject) for k in range(4)]
    assert folds == [{1, 2}, {3, 4}, {5, 6}, {7, 8}]


def test_utd_validation_is_taken_from_training(mhad):
    df = utd_mhad.index(mhad)
    d = utd_mhad.split(df, validation=5)
    assert {s: set(g.subject) for s, g in d.groupby('split')} == dict(train={1, 3, 7}, valid={5}, test={2, 4, 6, 8})
    assert '1, 3, 5, 7' in one_line(utd_mhad.split, df, validation=2)
    assert 'leave-two-subjects-out' in one_line(utd_mhad.split, df, 'x') and '0 to 0' in one_line(utd_mhad.split, df, fold=1)


@pytest.mark.parametrize('path', ['Depth/a01_s1_t1_depth.mat', 'Depth/a1_s1_t1_skeleton.mat', 'Depth/a1_s1_t1.mat', 'Skeleton/x.txt', 'RGB-part2/a1_s1_t9_color.avi', 'inertial/a1_s1_t1_inertial.csv'])
def test_utd_misplaced_files_are_named(tmp_path, path):
    touch(tmp_path/path)
    assert one_line(utd_mhad.index, tmp_path).startswith(f'{tmp_path/path}: expected <clip>_')


def test_utd_nothing_there(tmp_path):
    assert 'RGB-part1 to 4' in one_line(utd_mhad.index, tmp_path) and 'no such folder' in one_line(utd_mhad.index, tmp_path/'x')


def test_utd_real():
    root = real('utd_mhad')
    published = pd.read_csv(root/'index.csv').set_index('clip')
    df = utd_mhad.index(root).set_index('clip_id')
    assert sorted(df.index) == sorted(published.index)
    published = published.loc[df.index]
    assert (df.label + 1 == published.action_id).all() and (df.subject == published.subject).all() and (df.trial == published.trial).all()
    for key, column in dict(depth='depth_frames', skeleton='skeleton_frames', inertial='inertial_samples', pose2d='pose2d_frames', rgb='rgb_frames').items():
        assert (df[key].notna() == published[column].notna()).all()
    folds = [set(utd_mhad.split(df.reset_index(), 'leave-two-subjects-out', k).query("split == 'test'").subject) for k in range(3)]
    assert folds == [{1, 2}, {3, 4}, {5, 6}]


def test_utd_real_class_names_are_in_order():
    "Our names follow the data-set page; the table of the copy writes them with underscores and spells out CW and CCW"
    table = pd.read_csv(real('utd_mhad')/'index.csv').drop_duplicates('action_id').set_index('action_id').label
    words = lambda s: re.findall('[a-z]+', s.replace('CCW', 'counter clockwise').replace('CW', 'clockwise'))
    assert all(words(utd_mhad.ACTIONS[k - 1]) == words(name.replace('_', ' ')) for k, name in table.items())


def test_utd_real_depth_through_the_reader():
    from moddist import files
    df = utd_mhad.index(real('utd_mhad'))
    frames = pd.read_csv(real('utd_mhad')/'index.csv').set_index('clip').depth_frames
    for r in df.iloc[::80].itertuples():
        d = np.asarray(files.read_mat(r.depth))
        assert d.dtype == np.uint16 and d.shape == (frames[r.clip_id], 240, 320)
        assert .8 < (d == 0).mean() < .99 and 500 < np.median(d[d > 0]) < 5000
