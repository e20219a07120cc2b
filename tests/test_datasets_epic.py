"EPIC-KITCHENS-100: tables, ranges, flow, classes and boxes, on miniature trees in the exact layout and on the owners' tables where they are"
import ast
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moddist.core import MODALITIES, DataError, ProtocolError
from moddist.datasets import epic
from moddist.draws import same_time

DATA = Path(os.environ.get('MODDIST_TEST_DATA', Path(__file__).parents[1]/'..'/'shared'/'data'))
HEAD = 'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes'.split(',')


def real():
    "The owners' tables, or skip with the reason"
    folder = DATA/'annotations'/'epic_kitchens_100'
    if not folder.is_dir(): pytest.skip('annotations/epic_kitchens_100 is not in the test data folder (MODDIST_TEST_DATA)')
    return folder


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def stamp(s): return f'{int(s)//3600:02d}:{int(s)//60%60:02d}:{s%60:05.2f}'


def segment(video, k, start, stop, rate, verb=0, noun=0, nouns=None):
    "A row of a table as the owners write it: number = time x rate, rounded down, at least 1"
    nouns = nouns or [noun]
    return [f'{video}_{k}', video[:3], video, '', stamp(start), stamp(stop), max(1, int(start*rate + 1e-6)), int(stop*rate + 1e-6), f'do {verb} {noun}', f'v{verb}', verb, f'n{noun}', noun,
            str([f'n{n}' for n in nouns]), str(nouns)]


TRAIN = [segment('P01_01', 0, 0, .10, 60, 0, 2), segment('P01_01', 1, .15, .35, 60, 3, 4, [4, 1]), segment('P01_101', 0, .06, .20, 50, 1, 2), segment('P27_103', 0, .1, .3, 50, 1, 3)]
VALID = [segment('P02_01', 0, .1, .3, 60, 0, 4), segment('P18_09', 0, .1, .25, 60, 2, 2)]
TEST = [segment('P33_101', 0, .04, .3, 50)]
INFO = [('P01_01', .4, 60000/1001), ('P01_101', .4, 50.), ('P02_01', .4, 60000/1001), ('P18_09', .4, 90.), ('P33_101', .4, 50.), ('P27_103', .4, 50.)]


def write_tables(folder, train=TRAIN, valid=VALID, test=TEST, info=INFO):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, columns in (('train', train, HEAD), ('validation', valid, HEAD), ('test_timestamps', [r[:8] for r in test], HEAD[:8])):
        if not rows: continue
        pd.DataFrame(rows, columns=columns).to_csv(folder/f'EPIC_100_{name}.csv', index=False)
    pd.DataFrame(info, columns=['video_id', 'duration', 'fps']).assign(resolution='1920x1080').to_csv(folder/'EPIC_100_video_info.csv', index=False)
    for kind, n, tail in (('verb', 4, [2, 3]), ('noun', 5, [4])):
        pd.DataFrame(dict(id=range(n), key=[f'{kind}{k}' for k in range(n)], instances='[]', category='c')).to_csv(folder/f'EPIC_100_{kind}_classes.csv', index=False)
        pd.DataFrame({kind: tail}).to_csv(folder/f'EPIC_100_tail_{kind}s.csv', index=False)
    return folder


def write_frames(folder, values, first=1, channels=3):
    folder.mkdir(parents=True)
    for i, v in enumerate(values, first): Image.fromarray(np.full((16, 24, channels) if channels > 1 else (16, 24), v, np.uint8)).save(folder/f'frame_{i:010d}.jpg', quality=95)


@pytest.fixture
def tree(tmp_path):
    "P01_01 (2018): 24 images and 11 of flow; P01_101 (2020): 20 and 20; brightness tells the number"
    root = tmp_path/'EPIC-KITCHENS'
    for video, n, m in (('P01_01', 24, 11), ('P01_101', 20, 20)):
        write_frames(root/'P01'/'rgb_frames'/video, 10*np.arange(1, n + 1))
        for c, sign in (('u', 1), ('v', -1)): write_frames(root/'P01'/'flow_frames'/video/c, 128 + sign*5*np.arange(1, m + 1), channels=1)
    for video in ('P01_01', 'P18_09', 'P33_101'):
        (root/video[:3]/'videos').mkdir(parents=True, exist_ok=True)
        (root/video[:3]/'videos'/f'{video}.MP4').touch()
    for stray in ('P01_02.tar', 'md5.csv'): (root/'P01'/'rgb_frames'/stray).touch()
    (root/'readme.txt').touch()
    return root, write_tables(tmp_path/'annotations')


# ---------------------------------------------------------------- names and rates

def test_releases():
    assert epic.release('P01_99') == 2018 and epic.release('P37_103') == 2020
    for bad in ('P01_1', 'P01_001', 'P01_200', 'P001_01', 'P01-01', 'P01_01\n', 'P٠١_01', ''): assert 'PXX_1YY' in one_line(epic.release, bad)


@pytest.mark.parametrize('year,pairs', [(2018, {1: 1, 2: 1, 3: 2, 4: 2, 99: 50, 100: 50, 99135: 49568}), (2020, {1: 1, 2: 2, 91577: 91577})])
def test_flow_index_follows_the_owners(year, pairs):
    "(i - 1)//stride + 1 of epic-kitchens/C1-Action-Recognition-TSN-TRN-TSM; ceil(i/stride) of gorjanradevski/multimodal-distillation"
    for i, f in pairs.items(): assert epic.flow_index(i, year) == f
    i = np.arange(1, 5000)
    assert (epic.flow_index(i, year) == np.ceil(i/epic.STRIDES[year])).all()
    assert 'from 1 on' in one_line(epic.flow_index, np.arange(3), year)


# video, images, flow images as counted by the owners: epic-kitchens-100-hand-object-bboxes, EPIC_100_frame_counts.csv
COUNTED = [('P01_01', 99135, 49567), ('P01_02', 30134, 15066), ('P09_08', 7599, 3799), ('P17_02', 32754, 16376), ('P02_05', 1119, 559), ('P01_101', 91577, 91577), ('P33_105', 110483, 110483)]


@pytest.mark.parametrize('video,n,m', COUNTED)
def test_pairing_by_time_is_the_owners_rule(video, n, m):
    "Exactly so for half as many flow images; within one flow image for the number that is on disk"
    year = epic.release(video)
    i = np.arange(1, n - n % 2 + 1)
    rule = epic.flow_index(i, year)
    assert (np.array(same_time(i - 1, len(i), len(i)//epic.STRIDES[year])) + 1 == rule).all()
    seen = np.minimum(rule, m)
    assert np.abs(np.array(same_time(i - 1, n, m)) + 1 - seen).max() <= (year == 2018)


# ---------------------------------------------------------------- the tables

def test_segments(tree):
    df = epic.segments(tree[1])
    assert df.split.tolist() == ['train']*4 + ['valid']*2 + ['unlabelled'] and df.release.tolist() == [2018, 2018, 2020, 2020, 2018, 2018, 2020]
    assert df.verb.tolist() == [0, 3, 1, 1, 0, 2, -1] and df.noun.tolist() == [2, 4, 2, 3, 4, 2, -1]
    assert df.nouns.tolist()[:2] == ['2', '4 1'] and df.nouns.isna().tolist() == [False]*6 + [True]
    assert df.tail_verb.tolist() == [0, 1, 0, 0, 0, 1, 0] and df.tail_noun.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert df.unseen.tolist() == [0, 0, 0, 0, 0, 1, 1] and df.reissued.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert np.allclose(df.start_s, [0, .15, .06, .1, .1, .1, .04]) and np.allclose(df.stop_s, [.1, .35, .2, .3, .3, .25, .3])


@pytest.mark.parametrize('column,value,words', [
    ('start_frame', 22, 'stop_frame is 21'), ('start_frame', -1, 'stop_frame'), ('stop_frame', 8.5, 'whole frame number'), ('stop_frame', 'x', 'whole frame number'), ('stop_frame', None, 'whole frame number'),
    ('start_timestamp', 'soon', 'HH:MM:SS'), ('stop_timestamp', None, 'HH:MM:SS'), ('video_id', 'P01_77', 'EPIC_100_video_info'), ('narration_id', 'P01_02_1', '<video_id>_<number>'),
    ('verb_class', 4, 'verb class 0 to 3'), ('verb_class', -1, 'verb class'), ('verb_class', None, 'verb class'), ('noun_class', 5, 'noun class 0 to 4'),
    ('all_noun_classes', '[4, 1', 'a list'), ('all_noun_classes', "__import__('os').system('true')", 'a list'), ('all_noun_classes', '(4, 1)', 'a list'), ('all_noun_classes', None, 'a list')])
def test_bad_rows_are_named_by_line(tmp_path, column, value, words):
    rows = [list(r) for r in TRAIN]
    rows[1][HEAD.index(column)] = value
    notes = write_tables(tmp_path/'notes', rows)
    m = one_line(epic.segments, notes)
    assert m.startswith(f'{notes/"EPIC_100_train.csv"} line 3: ') and words in m


def test_bad_tables_are_named(tmp_path):
    notes = write_tables(tmp_path/'notes')
    assert 'occurs twice' in one_line(epic.segments, notes, dict(train='EPIC_100_train.csv', valid='EPIC_100_train.csv'))
    assert 'none.csv: no such file' in one_line(epic.segments, notes, dict(train='none.csv'))
    for file, column in (('EPIC_100_train.csv', 'all_nouns'), ('EPIC_100_train.csv', 'stop_frame'), ('EPIC_100_video_info.csv', 'fps'), ('EPIC_100_verb_classes.csv', 'key'), ('EPIC_100_tail_nouns.csv', 'noun')):
        good = (notes/file).read_text()
        (notes/file).write_text(good.replace(column, 'other', 1))
        assert f"no column '{column}'" in (m := one_line(epic.segments, notes)) and m.startswith(str(notes/file))
        (notes/file).unlink()
        if 'train' not in file: assert f'{file}: no such file' in one_line(epic.segments, notes)
        (notes/file).write_text(good)
    twice = write_tables(tmp_path/'twice', info=INFO + INFO[:1])
    assert 'EPIC_100_video_info.csv line 8: video_id is P01_01, expected every video once' in one_line(epic.segments, twice)
    (notes/'EPIC_100_verb_classes.csv').write_text('id,key,instances,category\n1,take,[],x\n')
    assert 'line 2: id is 1' in one_line(epic.segments, notes)
    (notes/'EPIC_100_verb_classes.csv').write_text('id,key,instances,category\n0,take,[],x\n')
    (notes/'EPIC_100_train.csv').write_text(','.join(HEAD) + '\n')
    assert 'holds no segments' in one_line(epic.segments, notes)
    (notes/'EPIC_100_train.csv').write_bytes(b'\xff\xfe\x00')
    assert 'EPIC_100_train.csv' in one_line(epic._table, notes/'EPIC_100_train.csv', ['narration_id'])
    empty = tmp_path/'empty'; empty.mkdir()
    assert 'no such file; expected a clone' in one_line(epic.segments, empty)


def test_nouns_as_v2(tmp_path):
    notes = write_tables(tmp_path/'notes')
    (notes/'EPIC_100_noun_classes.csv').rename(notes/'EPIC_100_noun_classes_v2.csv')
    assert len(epic.classes(notes, 'noun')) == 5


# ---------------------------------------------------------------- the index

def test_index(tree):
    root, notes = tree
    df = epic.index(root, notes)
    assert df.clip_id.is_unique and (df.label == df.verb).all() and df.action.tolist() == ['verb0', 'verb3', 'verb1', 'verb1', 'verb0', 'verb2', 'unknown']
    assert (df.stop - df.start)[:5].tolist() == [r[7] - r[6] + 1 for r in TRAIN + VALID[:1]]       # inclusive on paper, half open here
    assert df.start[:5].tolist() == [r[6] - 1 for r in TRAIN + VALID[:1]]
    assert df.fps.tolist() == [60, 60, 50, 50, 60, 90, 50] and df.flow_bound.tolist() == [25, 25, 8, 8, 25, 25, 8]
    assert [os.path.relpath(p, root) for p in df.rgb.dropna()] == ['P01/rgb_frames/P01_01/frame_*.jpg']*2 + ['P01/rgb_frames/P01_101/frame_*.jpg', 'P18/videos/P18_09.MP4', 'P33/videos/P33_101.MP4']
    assert [os.path.relpath(p, root) for p in df.flow.dropna()] == ['P01/flow_frames/P01_01/{u,v}/frame_*.jpg']*2 + ['P01/flow_frames/P01_101/{u,v}/frame_*.jpg']
    assert df.audio.notna().tolist() == [True, True, False, False, False, True, True] and df.boxes.isna().all()
    assert all(isinstance(v, (str, int, float, np.integer, np.floating)) for v in df.to_numpy().ravel())


def test_index_survives_csv(tree, tmp_path):
    df = epic.index(*tree)
    df.to_csv(tmp_path/'index.csv', index=False)
    back = pd.read_csv(tmp_path/'index.csv')
    for c in df: assert (df[c].isna() == back[c].isna()).all() and (df[c].dropna() == back[c].dropna()).all(), c


def test_segments_show_the_annotated_images(tree):
    "The images and the flow that a row points at are the ones whose numbers the table and the owners' flow rule name, in both releases"
    from moddist.files import read_frames
    df = epic.index(*tree).set_index('clip_id')
    for row, (first, last) in ((df.loc['P01_01_1'], (9, 21)), (df.loc['P01_101_0'], (3, 10))):
        at = range(row.start, row.stop)
        assert np.abs(read_frames(row.rgb, MODALITIES['rgb'], at)[:, 0, 0, 0] - 10.*np.arange(first, last + 1)).max() < 3
        flow = epic.flow_index(np.arange(first, last + 1), row.release)
        uv = read_frames(row.flow, MODALITIES['flow'], flow - 1, bound=row.flow_bound)[:, 0, 0]
        px = row.flow_bound*2/255
        assert np.abs(uv - np.stack([(128 + 5*flow)*px, (128 - 5*flow)*px], 1) + row.flow_bound).max() < 2*px


def test_flow_through_the_loader(tree):
    "Read by the loader, flow is at most one flow image (1/30 s) from the owners' rule, and exactly it in 2020"
    from moddist.draws import ClipSampler
    data = pytest.importorskip('moddist.data')
    for row in epic.index(*tree).iloc[[1, 2]].to_dict('records'):
        n = row['stop'] - row['start']
        sampler = ClipSampler(clip_len=n)
        rgb, flow = (np.asarray(data.load_clip(row, key, sampler)) for key in ('rgb', 'flow'))
        number = np.round(rgb[0, :, 0, 0]/10).astype(int)
        assert number.tolist() == list(range(row['start'] + 1, row['stop'] + 1))
        found = ((flow[0, :, 0, 0]/row['flow_bound'] + 1)*255/2 - 128)/5
        assert np.abs(found - epic.flow_index(number, row['release'])).max() < .4 + (row['release'] == 2018)


def test_mp4_counts_at_its_own_rate(tree):
    root, notes = tree
    images, video = (epic.index(root, notes, rgb=k).set_index('clip_id') for k in ('frames', 'video'))
    a, b = images.loc['P01_01_1'], video.loc['P01_01_1']
    assert a.fps == 60 and abs(b.fps - 59.94) < .01 and b.rgb.endswith('P01_01.MP4') and (b.start, b.stop) == (int(.15*60000/1001) - 1, int(.35*60000/1001))
    assert images.loc['P18_09_0', ['start', 'stop']].tolist() == [8, 22]                             # 0.1 and 0.25 s at 90/s, by the rule of the tables
    assert images.loc['P33_101_0', ['start', 'stop']].tolist() == [1, 15] == [TEST[0][6] - 1, TEST[0][7]]   # 50/s: video and images agree
    assert (video.start >= 0).all() and (video.stop > video.start).all()
    assert "rgb='film'" in one_line(epic.index, root, notes, rgb='film')


def test_mp4_range_stays_in_the_video(tmp_path):
    notes = write_tables(tmp_path/'notes', [segment('P01_01', 0, 0, 99, 60), segment('P01_01', 1, 50, 99, 60)], [], [])
    (tmp_path/'r'/'P01'/'videos').mkdir(parents=True); (tmp_path/'r'/'P01'/'videos'/'P01_01.mp4').touch()
    df = epic.index(tmp_path/'r', notes)
    assert df[['start', 'stop']].to_numpy().tolist() == [[0, 24], [23, 24]]                          # 0.4 s at 59.94 frames/s


def test_first_image(tree):
    "Images counted from 0 shift the range by one; images that begin elsewhere are refused"
    root, notes = tree
    before = epic.index(root, notes).set_index('clip_id').loc['P01_101_0']
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(root/'P01'/'rgb_frames'/'P01_101'/'frame_0000000000.jpg')
    after = epic.index(root, notes).set_index('clip_id').loc['P01_101_0']
    assert (after.start, after.stop) == (before.start + 1, before.stop + 1)
    for n in (0, 1): (root/'P01'/'rgb_frames'/'P01_101'/f'frame_{n:010d}.jpg').unlink()
    assert 'P01_101: neither frame_0000000000.jpg' in one_line(epic.index, root, notes)


def test_cut_short(tree):
    df = epic.index(*tree)
    assert epic.cut_short(df).empty
    (tree[0]/'P01'/'rgb_frames'/'P01_01'/'frame_0000000021.jpg').unlink()
    assert epic.cut_short(df).video.tolist() == ['P01_01'] and epic.cut_short(df)['last'].tolist() == [21]
    assert epic.cut_short(epic.index(None, tree[1])).empty


def test_sound_and_boxes(tree, tmp_path):
    root, notes = tree
    df = epic.index(root, notes, audio='sound.hdf5')
    assert df.audio.tolist()[:3] == ['sound.hdf5::P01_01', 'sound.hdf5::P01_01', 'sound.hdf5::P01_101']
    (root/'P01'/'audio').mkdir(); (root/'P01'/'audio'/'P01_01.wav').touch()
    (root/'P01'/'hand-objects').mkdir(); (root/'P01'/'hand-objects'/'P01_01.json').touch(); (root/'P01'/'hand-objects'/'P01_101.pkl').touch()
    df = epic.index(root, notes)
    assert df.audio[0].endswith('P01_01.wav') and df.boxes.notna().tolist() == [True, True] + [False]*5


def test_labels(tree):
    root, notes = tree
    assert (epic.index(root, notes, 'noun').label == epic.index(root, notes).noun).all()
    df = epic.index(root, notes, 'action')
    pairs = epic.action_pairs(df)
    assert pairs == [(0, 2), (1, 2), (1, 3), (3, 4)] and df.label.tolist() == [0, 3, 1, 2, -1, -1, -1]
    assert all(pairs[r.label] == (r.verb, r.noun) for r in df[df.label >= 0].itertuples())
    alone = epic.index(root, notes, 'action', splits=dict(valid='EPIC_100_validation.csv'), pairs=[(0, 4), (2, 2)])
    assert alone.label.tolist() == [0, 1] and alone.action.tolist() == ['verb0 noun4', 'verb2 noun2']
    assert 'no row trains' in one_line(epic.index, root, notes, 'action', splits=dict(valid='EPIC_100_validation.csv'))
    assert "'verb', 'noun' or 'action'" in one_line(epic.index, root, notes, 'verbs')


def test_nothing_there(tree, tmp_path):
    root, notes = tree
    (tmp_path/'empty').mkdir()
    assert 'no videos' in one_line(epic.index, tmp_path/'empty', notes) and 'no such folder' in one_line(epic.index, tmp_path/'gone', notes)
    df = epic.index(None, notes)
    assert len(df) == 7 and df[['rgb', 'flow', 'audio', 'boxes']].isna().all().all() and df.fps.tolist() == [60, 60, 50, 50, 60, 60, 50]


def test_the_disk_is_asked_per_video_not_per_segment(tree, tmp_path, monkeypatch):
    root, _ = tree
    asked = []
    for name in ('isfile', 'isdir', 'exists'):
        monkeypatch.setattr(epic.os.path, name, lambda p, f=getattr(os.path, name): asked.append(p) or f(p))
    def cost(k):
        notes = write_tables(tmp_path/f'notes{k}', [segment('P01_01', i, .1, .2, 60) for i in range(k)], [], [])
        asked.clear()
        assert len(epic.index(root, notes)) == k
        return len([p for p in asked if str(root) in str(p)])
    assert cost(3) == cost(3000)


# ---------------------------------------------------------------- protocols

def many(videos=40, each=5):
    train = [segment(f'P0{1 + v%9}_{v:02d}', 100 + k, .1, .2, 60, v % 4, k) for v in range(videos) for k in range(each)]
    return dict(train=train, info=INFO + [(r, .4, 59.94) for r in sorted({t[2] for t in train} - {'P01_01', 'P02_01'})])


def test_split(tmp_path):
    df = epic.index(None, write_tables(tmp_path/'n', **many()))
    assert epic.split(df).equals(df)
    d = epic.split(df, 'validation-as-test')
    by = d.groupby('split').video.unique().map(set)
    assert len(by['valid']) == 4 and not by['valid'] & by['train'] and by['valid'] | by['train'] == set(df.video[df.split == 'train'])
    assert (d.split[df.split == 'valid'] == 'test').all() and (d.split[df.split == 'unlabelled'] == 'unlabelled').all() and 'test' not in set(df.split)
    assert epic.split(df.sample(frac=1, random_state=1), 'validation-as-test').sort_index().equals(d)              # whatever the order of rows
    assert any(not epic.split(df, 'validation-as-test', seed=s).equals(d) for s in (1, 2))
    for share in (0, 1, -.1, .99, 2): assert 'share' in one_line(epic.split, df, 'validation-as-test', share)
    assert 'files, validation-as-test' in one_line(epic.split, df, 'cross-subject') and 'test split already' in one_line(epic.split, d, 'validation-as-test')


# ---------------------------------------------------------------- the owners' tables

LOCAL = dict(train='EPIC_100_uda_source_train.csv', valid='EPIC_100_validation.csv')


def test_real_counts():
    notes = real()
    c = epic.check_counts(epic.index(None, notes), notes)
    assert (c.missing.drop(['train segments', 'unlabelled segments']) == 0).all()
    assert c.found.to_dict() == {'train segments': 0, 'valid segments': 9668, 'unlabelled segments': 0, 'valid videos': 138, 'valid verbs': 78, 'valid nouns': 211, 'valid pairs': 1352,
                                 'verb classes': 97, 'noun classes': 300, 'tail verbs': 86, 'tail nouns': 228}


def test_real_classes():
    verbs, nouns = (epic.classes(real(), k) for k in ('verb', 'noun'))
    assert verbs.name[96] == 'unfreeze' and nouns.name[299] == 'extract:vanilla' and verbs.name.is_unique and nouns.name.is_unique


def test_real_index_is_the_table():
    notes = real()
    df = epic.index(None, notes, splits=LOCAL)
    raw = pd.concat([pd.read_csv(notes/f) for f in LOCAL.values()], ignore_index=True)
    assert (df.clip_id == raw.narration_id).all() and (df.verb == raw.verb_class).all() and (df.noun == raw.noun_class).all() and len(df) == 16_115 + 9_668
    assert (df.stop - df.start == raw.stop_frame - raw.start_frame + 1).all() and (df.start == raw.start_frame - 1).all() and df.start.min() == 0
    assert [list(map(int, w.split())) for w in df.nouns] == [ast.literal_eval(t) for t in raw.all_noun_classes]
    assert (df.nouns.str.split().str[0].astype(int) == df.noun).all()
    assert set(df.subject[df.unseen == 1]) == set(pd.read_csv(notes/'EPIC_100_unseen_participant_ids_validation.csv').participant_id) == {'P18', 'P32'}
    assert not set(df.subject[df.split == 'train']) & {'P18', 'P32'}


def test_real_frame_numbers_are_time_times_60():
    "In 2018 also for the videos of 29.97, 47.95 and 90 frames/s; numbers start at 1: the rule by which `index` addresses an MP4"
    notes = real()
    df = epic.segments(notes, LOCAL)
    assert set(df.video_fps.round(2)) == {29.97, 47.95, 59.94, 90.} and (df.release == 2018).all()
    for end in ('start', 'stop'):
        rule = np.maximum(np.floor(df[f'{end}_s']*60 + 1e-6), 1)
        assert (df[f'{end}_frame'] - rule).abs().max() <= 1 and (df[f'{end}_frame'] == rule).mean() > .99
    wrong = (df.start_frame - df.start_s*df.video_fps).abs()
    assert wrong.max() > 6000 and (wrong > 60).mean() > .1                                          # what the MP4's rate would do to image numbers


def test_real_video_rates():
    info = pd.read_csv(real()/'EPIC_100_video_info.csv')
    year = info.video_id.map(epic.release)
    assert year.value_counts().to_dict() == {2018: 432, 2020: 268}
    assert info.fps[year == 2020].unique().tolist() == [50] and info.fps[year == 2018].round(2).value_counts().to_dict() == {59.94: 423, 29.97: 4, 47.95: 4, 90.: 1}


def test_real_action_classes():
    df = epic.index(None, real(), 'action', splits=LOCAL)
    pairs = epic.action_pairs(df)
    assert len(pairs) == 1663 and (df.label[df.split == 'train'] >= 0).all()
    new = df[(df.split == 'valid') & (df.label < 0)]
    assert len(new) and not set(zip(new.verb, new.noun)) & set(pairs)


# ---------------------------------------------------------------- hands and objects

def varint(n): return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def message(*fields):
    "Protobuf of (number, value) pairs; like the owners' library it leaves zeros out"
    out = b''
    for k, v in fields:
        if isinstance(v, bytes): out += varint(k << 3 | 2) + varint(len(v)) + v
        elif v: out += varint(k << 3 | 5) + struct.pack('<f', v) if isinstance(v, float) else varint(k << 3) + varint(v)
    return out


def hand(box, score, state, side): return message((1, message(*enumerate(box, 1))), (2, score), (3, state), (4, message((1, .1), (2, -.2))), (5, side))
def thing(box, score): return message((1, message(*enumerate(box, 1))), (2, score))
def image(n, hands=(), things=()): return message((1, b'P01_01'), (2, n), *((3, h) for h in hands), *((4, t) for t in things))


EVERY = [image(1, [hand((.25, .5, .5, 1.), .75, state, side) for state in range(5) for side in (0, 1)], [thing((0., 0., 1., .5), .625)]), image(2), image(300, things=[thing((.5, .5, .75, .75), .01), thing((0., 0., 1., 1.), .5)])]
OUTSIDE = [(0., 0., 1.5, 1.), (.5, 0., .25, 1.), (0., float('nan'), 1., 1.), (-.25, 0., 1., 1.)]


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_boxes(tmp_path, protocol):
    file = tmp_path/'x.pkl'
    file.write_bytes(pickle.dumps(EVERY, protocol))
    b = epic.read_hand_objects(file, size=(100, 200))
    assert len(b.frames) == 300 and b.size == (100, 200) and all(f.dtype == np.float32 and f.shape[1] == 8 for f in b.frames)
    assert b.frames[0].tolist() == [[50, 50, 100, 100, 2, .75, side, state] for state in range(1, 6) for side in (1, 2)] + [[0, 0, 200, 50, 1, .625, 0, 0]]
    assert len(b.frames[1]) == 0 and b.frames[299].tolist() == [[0, 0, 200, 100, 1, .5, 0, 0]]
    assert len(epic.read_hand_objects(file, object_score=0).frames[299]) == 2 and len(epic.read_hand_objects(file, hand_score=.8).frames[0]) == 1


def test_long_lists_of_boxes(tmp_path):
    "Thousands of messages come in several batches and memo entries of another width"
    file = tmp_path/'x.pkl'
    for protocol in (3, 4):
        file.write_bytes(pickle.dumps([image(n, things=[thing((0., 0., n/4096, 1.), .9)]*(n % 9)) for n in range(1, 3001)], protocol))
        b = epic.read_hand_objects(file, size=(1, 4096), object_score=0)
        assert [len(f) for f in b.frames] == [n % 9 for n in range(1, 3001)] and b.frames[2998][0, 2] == 2999


class Runs:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_no_code_in_a_pickle_runs(tmp_path):
    file, trace = tmp_path/'x.pkl', tmp_path/'trace'
    for protocol in range(6):
        for content in ([Runs(trace)], [EVERY[0], Runs(trace)], Runs(trace)):
            file.write_bytes(pickle.dumps(content, protocol))
            assert 'opcode' in one_line(epic.read_hand_objects, file) and not trace.exists()
    pickle.loads(file.read_bytes()).close()
    assert trace.exists()                                                    # the trap does work where a pickle is loaded


@pytest.mark.parametrize('content', ['text', [1], [EVERY], {'a': EVERY[0]}, (EVERY[0],), [None], ['text'], [np.zeros(3)]])
def test_other_pickles_are_refused(tmp_path, content):
    file = tmp_path/'x.pkl'
    file.write_bytes(pickle.dumps(content))
    assert one_line(epic.read_hand_objects, file).startswith(str(file))


def test_damaged_boxes_are_refused(tmp_path):
    file = tmp_path/'x.pkl'
    whole = pickle.dumps(EVERY, 4)
    for n in range(0, len(whole), 7):
        file.write_bytes(whole[:n])
        assert 'not a complete pickle' in one_line(epic.read_hand_objects, file)
    for bad in ([EVERY[0], EVERY[0][:-1]], [image(0)], [image(3), image(3)], [image(1, [hand((0., 0., 1., 1.), .9, 5, 0)])], [image(1, [hand((0., 0., 1., 1.), .9, 0, 2)])], [b'\xff'*12], [message((2, .5), (3, b''))], *([image(1, things=[thing(o, .9)])] for o in OUTSIDE)):
        file.write_bytes(pickle.dumps([bytes(bytearray(b)) for b in bad]))
        assert (m := one_line(epic.read_hand_objects, file)).startswith(f'{file}: message ')
    assert 'no such file' in one_line(epic.read_hand_objects, tmp_path/'y.pkl')


def test_any_bytes_give_boxes_or_one_line(tmp_path):
    file, r = tmp_path/'x.pkl', np.random.default_rng(0)
    for _ in range(400):
        raw = bytearray(EVERY[0])
        for at in r.integers(0, len(raw), r.integers(1, 4)): raw[at] = r.integers(256)
        file.write_bytes(pickle.dumps([bytes(raw)]))
        try: assert all(f.shape[1] == 8 for f in epic.read_hand_objects(file).frames)
        except DataError as e: assert '\n' not in str(e) and str(file) in str(e)


def test_boxes_of_a_tree_are_converted_once(tree):
    from moddist.tracks import read_boxes
    root, notes = tree
    folder = root/'P01'/'hand-objects'; folder.mkdir()
    (folder/'P01_01.pkl').write_bytes(pickle.dumps(EVERY))
    assert [p.name for p in epic.convert_boxes(root, size=(100, 200))] == ['P01_01.json'] and epic.convert_boxes(root) == []
    path = epic.index(root, notes).boxes[0]
    for a, b in zip(read_boxes(path).frames, epic.read_hand_objects(folder/'P01_01.pkl', (100, 200)).frames, strict=True): assert (a == b).all()
    (folder/'P01_101.pkl').write_bytes(b'')
    assert 'P01_101.pkl' in one_line(epic.convert_boxes, root) and not (folder/'P01_101.json').exists()


def test_literal_boxes(tmp_path):
    h5py = pytest.importorskip('h5py')
    rows = [[{'box': [.25, .5, .5, 1.], 'category': 'hand', 'score': .75, 'state': s, 'side': side} for s in range(5) for side in (0, 1)] + [{'box': [0, 0, 1, 1], 'category': 'object', 'score': .5}], []]
    with h5py.File(tmp_path/'b.hdf5', 'w') as f:
        for at, r in enumerate(rows): f[f'P01_01/{at}'] = str(r)
        f['P01_02/0'], f['P01_03/0'], f['P01_04/x'] = "__import__('os').getcwd()", "[{'box': [0, 0, 1, 1]}]", '[]'
    b = epic.read_literal_boxes(tmp_path/'b.hdf5', 'P01_01', (100, 200))
    assert b.frames[0].tolist() == [[50, 50, 100, 100, 2, .75, side, state] for state in range(1, 6) for side in (1, 2)] + [[0, 0, 200, 100, 1, .5, 0, 0]] and len(b.frames[1]) == 0
    for video in ('P01_02', 'P01_03', 'P01_04'): assert f'b.hdf5: {video}/' in one_line(epic.read_literal_boxes, tmp_path/'b.hdf5', video)
    assert 'no group' in one_line(epic.read_literal_boxes, tmp_path/'b.hdf5', 'P09_01')
