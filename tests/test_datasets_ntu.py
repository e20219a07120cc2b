"NTU RGB+D, second part: both kinds of depth, the one-shot protocol, class groups, counts against the owners' lists of clips without joints"
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from conftest import real_data
from moddist.core import DataError, ProtocolError, signal
from moddist.data import ClipSampler, clip_dls
from moddist.datasets import ntu

STEMS = sorted(ntu.Name(s, c, p, 1, a).stem for s, p in ((1, 1), (1, 2), (2, 3)) for c in (1, 2, 3) for a in (1, 60))


def touch(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def depth_tree(root, masked=(), full=()):
    "Only folders of depth: masked per setup as the owners pack it, whole frames flat"
    for s in masked: touch(root/f'nturgb+d_depth_masked_{s[:4].lower()}'/'nturgb+d_depth_masked'/s/'MDepth-00000001.png')
    for s in full: touch(root/'nturgb+d_depth'/s/'Depth-00000001.png')
    return root


# ---------------------------------------------------------------- two kinds of depth

def test_the_other_kind_of_depth_has_its_own_column(tmp_path):
    depth_tree(tmp_path, masked=STEMS, full=STEMS[3:])
    for depth, other, here, there in (('masked', 'depth_full', 'masked_s', 'nturgb+d_depth/'), ('full', 'depth_masked', 'nturgb+d_depth/', 'masked_s')):
        df = ntu.index(tmp_path, depth=depth).set_index('clip_id')
        assert df.depth.dropna().str.contains(here, regex=False).all() and df[other].dropna().str.contains(there, regex=False).all()
        full, masked = (df.depth, df[other]) if depth == 'full' else (df[other], df.depth)
        assert masked.notna().all() and full.notna().tolist() == [s in STEMS[3:] for s in df.index]
        assert list(df).count('depth_full') + list(df).count('depth_masked') == 1
        assert all(s in p for column in (full, masked) for s, p in column.dropna().items())


@pytest.mark.parametrize('kind', ['masked', 'full'])
def test_one_kind_of_depth_makes_one_column(tmp_path, kind):
    df = ntu.index(depth_tree(tmp_path, **{kind: STEMS}))
    assert [c for c in df if c.startswith('depth')] == ['depth'] and df.depth.notna().all()
    other = dict(masked='full', full='masked')[kind]
    df = ntu.index(tmp_path, depth=other)
    assert df.depth.isna().all() and df[f'depth_{kind}'].notna().all() and len(df) == len(STEMS)      # never a substitute, never a lost row


def test_auto_takes_the_kind_with_more_clips_and_whole_frames_in_a_tie(tmp_path):
    assert 'depth_masked' in ntu.index(depth_tree(tmp_path/'a', STEMS, STEMS))
    assert 'depth_full' in ntu.index(depth_tree(tmp_path/'b', STEMS, STEMS[1:]))
    with pytest.raises(DataError, match='full, masked, auto'): ntu.index(tmp_path/'a', depth='')


def test_both_kinds_are_signals_of_one_batch(tmp_path):
    import numpy as np
    from moddist.files import write_png16
    g = np.random.default_rng(0)
    for s in STEMS:
        frames = g.integers(500, 5000, (3, 16, 20)).astype(np.uint16)
        write_png16(tmp_path/'nturgb+d_depth'/s, frames)
        write_png16(tmp_path/'nturgb+d_depth_masked'/s, np.where(np.arange(20) < 10, frames, 0).astype(np.uint16), 'MDepth-{:08d}.png')
    df = ntu.split(ntu.index(tmp_path).drop(columns=['rgb', 'ir', 'skeleton']))
    assert str(signal('depth_masked:depth')) == 'depth_masked:depth'
    dls = clip_dls(df, ('depth', 'depth_masked:depth'), ClipSampler(clip_len=2, size=(16, 20), flip=0.), bs=2, dev='cpu')
    whole, masked = (t(df.iloc[0].to_dict(), split_idx=1) for t in (l.tfm for l in dls.train.loaders))
    whole, masked = np.asarray(whole).astype(int), np.asarray(masked).astype(int)
    assert whole.shape == masked.shape and (masked[..., 10:] == 0).all() and (masked[..., :10] == whole[..., :10]).all() and whole.min() >= 500


# ---------------------------------------------------------------- one-shot

def both_releases(setups=(1, 2, 18, 19), subjects=(1, 8)):
    return ntu.name_table([ntu.Name(s, c, p, r, a).stem for s, c, p, r in product(setups, (1, 2, 3), subjects, (1, 2)) for a in (range(1, 61) if s < 18 else range(61, 121))])


def test_one_shot_is_the_published_rule():
    "Novel classes and exemplars as the owners' README prints them"
    p = ntu.PROTOCOLS['one-shot-120']
    novel = [1, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73, 79, 85, 91, 97, 103, 109, 115]
    assert sorted(set(range(120)) - p.train) == [a - 1 for a in novel]
    assert sorted(p.exemplars) == [f'S001C003P008R001A{a:03d}' for a in novel if a <= 55] + [f'S018C003P008R001A{a:03d}' for a in novel if a >= 61]


def test_one_shot_split():
    df = ntu.split(both_releases(), 'one-shot-120', validation=None)
    novel = df.label % 6 == 0
    assert set(df.split[~novel]) == {'train'} and set(df.split[novel]) == {'test', 'exemplar'}
    shown = df[df.split == 'exemplar']
    assert len(shown) == 20 and shown.label.is_unique and set(shown.subject) == {8} and set(shown.camera) == {3} and set(shown.setup) == {1, 18}
    validated = ntu.split(both_releases(), 'one-shot-120')
    valid = validated[validated.split == 'valid']
    assert valid.label.nunique() == 100 and (valid.label % 6 != 0).all()
    assert (validated.split[novel] == df.split[novel]).all()                   # validation never touches the new classes


def test_one_shot_needs_every_exemplar():
    df = both_releases()
    with pytest.raises(ProtocolError, match='1 of 20 exemplars are not in the index, such as S001C003P008R001A007'):
        ntu.split(df[df.clip_id != 'S001C003P008R001A007'], 'one-shot-120')
    with pytest.raises(ProtocolError, match='10 of 20 exemplars'): ntu.split(df[df.label < 60], 'one-shot-120')


def test_the_other_protocols_know_no_exemplar():
    df = both_releases()
    for name in ('cross-subject-120', 'cross-setup-120'): assert 'exemplar' not in set(ntu.split(df, name).split)


# ---------------------------------------------------------------- groups and counts

def test_groups_are_a_partition_of_the_published_sizes():
    groups = ntu.GROUPS
    assert {k: len(v) for k, v in groups.items()} == dict(daily=82, medical=12, mutual=26)
    assert sorted(k for v in groups.values() for k in v) == list(range(120))
    assert {k for k in groups['mutual'] if k < 60} == set(range(49, 60)) and {k for k in groups['medical'] if k < 60} == set(range(40, 49))
    assert all(word in ntu.ACTIONS[k] for k, word in ((40, 'sneeze'), (48, 'fan'), (49, 'other person'), (105, 'other person'), (119, 'finger-guessing')))


@pytest.mark.parametrize('release,protocols', [(60, ('cross-subject', 'cross-view')), (120, ('cross-subject-120', 'cross-setup-120'))])
def test_counts_with_and_without_joints_differ_by_the_owners_list(release, protocols):
    "COUNTS against an independent source: the names of the clips without joints"
    names = ntu.missing_skeletons(real_data('annotations')/'ntu_rgbd'/f'missing_skeletons_{release}.txt')
    for protocol in protocols:
        gone = ntu.split(ntu.name_table(names), protocol, validation=None).split.value_counts()
        rows = ntu.COUNTS[ntu.COUNTS.protocol == protocol].set_index('with_skeleton')
        for side in ('train', 'test'): assert rows[side][False] - rows[side][True] == gone[side]
        assert rows.total[False] == {60: 56_880, 120: 114_480}[release]


def test_check_counts_of_120():
    table = ntu.check_counts(both_releases(), 'cross-setup-120')
    assert table.found.to_dict() == dict(train=1440, test=1440, total=2880) and table.missing.total == 114_480 - 2880


# ---------------------------------------------------------------- size

def test_the_index_opens_no_file(tmp_path, monkeypatch):
    "Names are all that is read, which is why fifty thousand of them take a second"
    depth_tree(tmp_path, masked=STEMS, full=STEMS)
    for s in STEMS:
        touch(tmp_path/'nturgb+d_rgb_s001'/'nturgb+d_rgb'/f'{s}_rgb.avi')
        touch(tmp_path/'nturgb+d_skeletons'/f'{s}.skeleton')
    def refuse(*args, **kw): raise AssertionError(f'opened {args[0]}')
    import builtins, io, os
    for module, name in ((builtins, 'open'), (io, 'open'), (os, 'open'), (os, 'listdir')): monkeypatch.setattr(module, name, refuse)
    df = ntu.index(tmp_path)
    monkeypatch.undo()
    assert len(df) == len(STEMS) and df[['rgb', 'depth', 'depth_masked', 'skeleton']].notna().all().all()


def test_the_index_survives_a_csv(tmp_path):
    df = ntu.index(depth_tree(tmp_path, STEMS, STEMS[2:]))
    df.to_csv(tmp_path/'index.csv', index=False)
    back = pd.read_csv(tmp_path/'index.csv')
    assert back.clip_id.tolist() == df.clip_id.tolist() and back.depth.tolist() == df.depth.tolist()
    assert back.depth_full.isna().tolist() == df.depth_full.isna().tolist()
