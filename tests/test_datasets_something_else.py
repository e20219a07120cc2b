"Something-Else: label orders, splits, box files from every grammar, and the real annotation files where they are"
import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import real_data
from hypothesis import given, strategies as st

from moddist.core import DataError, ProtocolError
from moddist.datasets import something_else as se, ssv2
from moddist.files import write_video
from moddist.tracks import pack_boxes, read_boxes

HOLD, PUSH, LIFT = 'Holding [something]', 'Pushing [something] from left to right', '[Something] falling like a rock'
LABELS = {'Pushing something from left to right': 2, 'Something falling like a rock': 0, 'Holding something': 1}


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def real(): return real_data('annotations')/'something_else'
def entry(i, template, what='cup'): return {'id': str(i), 'template': template, 'label': template.lower(), 'placeholders': [what]}


def dump(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def box(x1, y1, x2, y2, category='cup', kind='0000'): return {'box2d': dict(x1=x1, y1=y1, x2=x2, y2=y2), 'category': category, 'standard_category': kind}
def frames(clip, n, *labels): return [{'name': f'{clip}/{t:04d}.jpg', 'gt_placeholders': ['cup'], 'nr_instances': len(labels), 'labels': list(labels)} for t in range(1, n + 1)]


@pytest.fixture
def tree(tmp_path):
    "All six protocols in the layout of the repository, videos 1 to 5, no boxes yet"
    splits = tmp_path/'dataset_splits'
    lists = [entry(1, HOLD), entry(2, PUSH, 'box')], [entry(3, LIFT, 'pen'), entry(4, HOLD, 'shoe')]
    for folder in ('compositional', 'compositional_oneobject'): dump(splits/folder/'labels.json', LABELS)
    for folder in ('compositional', 'compositional_shuffled', 'compositional_oneobject'):
        for name, rows in zip(('train', 'validation'), lists): dump(splits/folder/f'{name}.json', rows)
    few = splits/'fewshot'
    dump(few/'base_labels.json', LABELS); dump(few/'finetune_labels.json', LABELS)
    for name, rows in zip(('base_training_set', 'base_validation_set', 'finetune_5shot_training', 'finetune_5shot_validation', 'finetune_10shot_train', 'finetune_10shot_validation'), lists*3): dump(few/f'{name}.json', rows)
    (tmp_path/'videos').mkdir()
    for i in range(1, 6): (tmp_path/'videos'/f'{i}.webm').touch()
    return tmp_path


# ---------------------------------------------------------------- label orders

def test_the_label_trap_on_the_real_files():
    "The facts of the data-set specification: 168 in the file, 0 in the code of Something-Else, 0 in Something-Something V2"
    name = 'Approaching something with your camera'
    labels = ssv2.read_labels(real()/'compositional'/'labels.json')
    assert [se.class_ids(labels, o)[name] for o in se.LABEL_ORDERS] == [168, 0, 0]
    assert se.class_ids(labels, 'alphabetical') == se.class_ids(labels, 'ssv2')             # with all 174 classes they agree
    base = ssv2.read_labels(real()/'fewshot'/'base_labels.json')
    a, s = se.class_ids(base, 'alphabetical'), se.class_ids(base, 'ssv2')
    assert a != s and max(a.values()) == 87 and max(s.values()) > 87


def test_the_one_object_map_is_sorted_with_brackets():
    labels = ssv2.read_labels(real()/'compositional_oneobject'/'labels.json')
    templates = {ssv2.class_name(e['template']): e['template'] for f in ('compositional_oneobject/train', 'fewshot/base_validation_set', 'fewshot/finetune_10shot_train') for e in json.loads((real()/f'{f}.json').read_text())}
    assert sorted(labels, key=templates.get) == sorted(labels, key=labels.get)
    alphabetical = se.class_ids(labels, 'alphabetical')
    assert sum(alphabetical[n] != labels[n] for n in labels) == 86 and all(alphabetical[n] == labels[n] for n in sorted(labels)[:3])


@pytest.mark.parametrize('name,n', [('compositional/labels', 174), ('compositional_oneobject/labels', 166), ('fewshot/base_labels', 88), ('fewshot/finetune_labels', 86)])
def test_real_class_counts(name, n):
    labels = ssv2.read_labels(real()/f'{name}.json')
    assert len(labels) == n and set(labels) <= set(ssv2.ACTIONS) and n in set(se.COUNTS.classes)
    for order in se.LABEL_ORDERS: assert len(set(se.class_ids(labels, order).values())) == n


def test_few_shot_classes_are_disjoint():
    base, novel = (ssv2.read_labels(real()/'fewshot'/f'{n}_labels.json') for n in ('base', 'finetune'))
    assert not set(base) & set(novel) and len(base) + len(novel) == 174


def test_class_ids_come_in_their_order():
    assert list(se.class_ids(LABELS, 'file').items()) == [('Something falling like a rock', 0), ('Holding something', 1), ('Pushing something from left to right', 2)]
    assert se.class_ids(LABELS, 'alphabetical') == {'Holding something': 0, 'Pushing something from left to right': 1, 'Something falling like a rock': 2}
    assert se.class_ids(LABELS, 'ssv2') == {n: ssv2.ACTIONS.index(n) for n in LABELS}
    assert 'file, alphabetical, ssv2' in one_line(se.class_ids, LABELS, 'brackets')
    assert "'Juggling something'" in one_line(se.class_ids, {'Juggling something': 0}, 'ssv2')


def test_a_moved_checkpoint_says_the_same_names():
    labels = ssv2.read_labels(real()/'compositional'/'labels.json')
    old, new = se.class_ids(labels, 'file'), se.class_ids(labels, 'alphabetical')
    torch.manual_seed(0)
    x, a, b = torch.randn(50, 8), torch.nn.Linear(8, 174), torch.nn.Linear(8, 174)
    ids = se.remap(old, new)
    b.load_state_dict({k: v[ids] for k, v in a.state_dict().items()})
    said = [list(old)[k] for k in a(x).argmax(1)]
    assert [list(new)[k] for k in b(x).argmax(1)] == said and torch.equal(a(x)[..., ids].argmax(1), b(x).argmax(1))
    wrong = [list(new)[k] for k in a(x).argmax(1)]                                        # the trap: no error, other names
    assert sum(w == s for w, s in zip(wrong, said)) < 10


def test_remap_to_fewer_classes_and_its_errors():
    full = {n: i for i, n in enumerate(ssv2.ACTIONS)}
    assert se.remap(full, {'Holding something': 1, 'Wiping something off of something': 0}) == [173, 16]
    assert 'does not know it' in one_line(se.remap, {'Holding something': 0}, full)
    assert 'expected 0 to 1' in one_line(se.remap, full, {'Holding something': 0, 'Wiping something off of something': 5})


@given(st.permutations(range(12)), st.permutations(range(12)))
def test_remap_there_and_back(a, b):
    old, new = ({f'class {n}': k for n, k in enumerate(p)} for p in (a, b))
    there, back = se.remap(old, new), se.remap(new, old)
    assert [there[k] for k in back] == list(range(12)) and all(there[new[n]] == old[n] for n in old)


# ---------------------------------------------------------------- splits

@pytest.mark.parametrize('protocol', list(se.PROTOCOLS))
def test_every_protocol_is_found(tree, protocol):
    df = se.index(tree, protocol)
    assert df.clip_id.tolist() == ['1', '2', '3', '4'] and df.split.tolist() == ['train', 'train', 'valid', 'valid']
    assert df.label.tolist() == [1, 2, 0, 1] and df.action.tolist()[2] == 'Something falling like a rock' and df.objects.tolist() == ['cup', 'box', 'pen', 'shoe']
    assert se.index(tree, protocol, 'alphabetical').label.tolist() == [0, 1, 2, 0]
    assert se.index(tree, protocol, 'ssv2').label.tolist() == [ssv2.ACTIONS.index(a) for a in df.action]


def test_irregular_names_and_the_folder_of_the_repository(tree):
    few = tree/'dataset_splits'/'fewshot'
    (few/'finetune_10shot_train.json').rename(few/'finetune_10shot_training.json')
    assert len(se.index(tree, 'fewshot-10shot')) == 4
    (tree/'code').mkdir(); (tree/'dataset_splits').rename(tree/'code'/'dataset_splits')
    assert len(se.index(tree, 'fewshot-10shot')) == 4 == len(se.read_split(tree/'code'/'dataset_splits', 'fewshot-5shot'))
    (tree/'code'/'dataset_splits'/'fewshot'/'finetune_5shot_validation.json').unlink()
    assert 'finetune_5shot_validation.json' in one_line(se.index, tree, 'fewshot-5shot')
    assert se.index(tree, 'fewshot-5shot', lists=('train',)).split.tolist() == ['train', 'train']


def test_split_of_any_index(tree):
    "An index of all videos, labelled the official way, becomes the protocol's: its rows, its labels"
    everything = ssv2.media(tree).assign(label=99, action='?', part='train', split='train', subject='kept')
    df = se.split(everything, 'compositional', tree)
    assert df.clip_id.tolist() == ['1', '2', '3', '4'] and df.label.tolist() == [1, 2, 0, 1] and (df.subject == 'kept').all() and 'part' not in df
    assert df.rgb.str.endswith('.webm').all() and (everything.label == 99).all()


def test_missing_videos_and_boxes(tree):
    (tree/'videos'/'2.webm').unlink()
    dump(tree/'boxes'/'3.json', {}); dump(tree/'boxes'/'.partial-1-4.json', '')
    df = se.index(tree).set_index('clip_id')
    assert df.rgb.isna().tolist() == [False, True, False, False] and df.boxes.isna().tolist() == [True, True, False, True]
    assert se.check_counts(df.reset_index()).found.tolist() == [2, 1, 2]
    only_boxes = se.index(tree, videos=tree/'dataset_splits', boxes=tree/'boxes')          # a layout model needs no videos
    assert only_boxes.boxes.notna().sum() == 1 and only_boxes.rgb.isna().all()
    assert 'none of the 4 clips' in one_line(se.index, tree, videos=tree/'dataset_splits', boxes=tree/'nowhere')


def test_bad_lists_are_named(tree):
    file = tree/'dataset_splits'/'compositional'/'train.json'
    good = file.read_text()
    for content, words in ((good[:-5], 'not valid JSON'), (json.dumps([entry(1, 'Juggling [something]')]), 'none of the 3 classes'), (json.dumps([{'id': '1'}]), 'no template')):
        file.write_text(content)
        assert str(file) in (m := one_line(se.index, tree)) and words in m
    file.write_text(json.dumps([entry(3, HOLD)]))
    assert 'clip 3 is listed twice' in one_line(se.index, tree)
    assert 'compositional, compositional_shuffled' in one_line(se.index, tree, 'xsub') and 'fewshot-base' in one_line(se.split, ssv2.media(tree), 'xsub', tree)
    assert 'compositional' in one_line(se.check_counts, ssv2.media(tree), 'xsub')
    assert 'fetch the splits' in one_line(se.index, tree/'videos')


def test_objects_in_both_groups(tree):
    folder = tree/'dataset_splits'/'compositional'
    dump(folder/'objectsA.json', ['cup', 'pen']); dump(folder/'objectsB.json', ['box'])
    assert se.object_groups(tree) == dict(cup='A', pen='A', box='B')
    dump(folder/'objectsB.json', ['box', 'pen'])
    assert "'pen'" in one_line(se.object_groups, tree)


def test_real_object_groups():
    groups = list(se.object_groups(real()).values())
    assert (groups.count('A'), groups.count('B')) == (186, 185)


@pytest.mark.parametrize('protocol,which,n,classes', [('compositional_oneobject', 'train', 6_560, 164), ('fewshot-base', 'valid', 12_467, 88), ('fewshot-5shot', 'train', 430, 86), ('fewshot-10shot', 'train', 860, 86)])
def test_real_lists(protocol, which, n, classes):
    df = se.read_split(real(), protocol, lists=(which,))
    assert len(df) == df.clip_id.nunique() == n == se.COUNTS[which][protocol] and df.label.nunique() == classes
    labels = ssv2.read_labels(real()/se.PROTOCOLS[protocol][0][0])
    assert [labels[a] for a in df.action] == df.label.tolist()
    if 'shot' in protocol and which == 'train': assert (df.value_counts('label') == n//86).all()
    assert se.check_counts(df.assign(rgb='x'), protocol).missing[which] == 0


def test_five_shots_are_not_part_of_ten():
    five, ten = (set(se.read_split(real(), f'fewshot-{k}shot', lists=('train',)).clip_id) for k in (5, 10))
    assert len(five & ten) == 228


# ---------------------------------------------------------------- boxes

def reference_fix(box, h, w):
    "The rules of the specification, one after the other, for one box"
    x1, y1, x2, y2 = (max(0, int(v)) for v in box)
    x1, x2 = min(x1, x2), max(x1, x2); y1, y2 = min(y1, y2), max(y1, y2)
    x1, x2, y1, y2 = min(x1, w - 1), min(x2, w - 1), min(y1, h - 1), min(y2, h - 1)
    if x1 == x2: x1, x2 = (0, 1) if x1 == 0 else (x1 - 1, x2)
    if y1 == y2: y1, y2 = (0, 1) if y1 == 0 else (y1 - 1, y2)
    return [x1, y1, x2, y2]


def test_fix_box_golden():
    golden = {(10.7, 20.2, 5.1, 8.9): [5, 8, 10, 20], (427, 0, 427, 240): [425, 0, 426, 239], (0, 0, 0, 0): [0, 0, 1, 1]}
    assert se.fix_box(list(golden), (240, 427)).tolist() == list(golden.values())


@given(st.lists(st.tuples(*[st.floats(-50, 600)]*4), max_size=6), st.integers(2, 300), st.integers(2, 500))
def test_fix_box_is_the_rule_and_settles(boxes, h, w):
    x = se.fix_box(boxes, (h, w))
    assert x.tolist() == [reference_fix(b, h, w) for b in boxes]
    assert (x[:, :2] < x[:, 2:]).all() and (x >= 0).all() and (x[:, 2] < w).all() and (x[:, 3] < h).all()
    assert (se.fix_box(x, (h, w)) == x).all()


def test_real_boxes_end_to_end(tmp_path):
    "The 13 released videos: every frame in order, every box once, hands are hands, positions to within the cut to whole pixels"
    file = real()/'annotations_sample.json'
    source = json.loads(file.read_text())
    out = se.write_boxes(file, tmp_path, sizes={i: (427, 240) for i in source})
    assert (out.outcome == 'written').all() and set(out.clip_id) == set(source) and len(source) == 13
    for clip, listed in source.items():
        b = read_boxes(tmp_path/f'{clip}.json')
        assert b.size == (240, 427) and len(b.frames) == len(listed)
        for got, frame in zip(b.frames, listed):
            assert len(got) == frame['nr_instances'] and (got[:, 5] == 1).all() and (got[:, 6:] == 0).all()
            assert (got[:, 4] == [2 if l['standard_category'] == 'hand' else 1 for l in frame['labels']]).all()
            true = np.array([[l['box2d'][k] for k in ('x1', 'y1', 'x2', 'y2')] for l in frame['labels']])
            assert (got[:, :4] <= true + 1e-3).all() and (true - got[:, :4] < 1.01).all()


def test_hand_means_hand(tmp_path):
    labels = [box(1, 1, 9, 9, c, '0000') for c in ('handphone', 'handbag', 'hand towel')] + [box(1, 1, 9, 9, 'hand', 'hand')]
    early = [{k: v for k, v in l.items() if k != 'standard_category'} for l in labels]       # the first release had no standard_category
    layout = [dict(x1=1, y1=1, x2=9, y2=9, category=c, score=.5) for c in ('object', 'hand', 'left hand', 'cup')]
    dump(tmp_path/'a.json', {'1': frames(1, 1, *labels), '2': frames(2, 1, *early)})
    dump(tmp_path/'b.json', [{'id': '3', 'template': HOLD, 'size': [20, 10], 'frames': [layout]}])
    se.write_boxes([tmp_path/'a.json', tmp_path/'b.json'], tmp_path/'boxes', sizes={'1': [20, 10], '2': [20, 10]})
    assert [read_boxes(tmp_path/'boxes'/f'{i}.json').frames[0][:, 4].tolist() for i in (1, 2, 3)] == [[1, 1, 1, 2], [1, 1, 1, 2], [1, 2, 2, 1]]


def test_real_objects_that_contain_hand():
    "Why the category alone is not asked: 122 objects of one list contain the word"
    words = [w for e in json.loads((real()/'fewshot'/'base_validation_set.json').read_text()) for w in e['placeholders']]
    assert sum('hand' in w.lower() for w in words) == 122


def test_frames_are_placed_by_their_numbers(tmp_path):
    f = frames(1, 5, box(1, 1, 9, 9))
    dump(tmp_path/'a.json', {'1': [f[4], f[1]], '2': [{'name': '2/0001.jpg', 'labels': []}]})      # shuffled, with gaps; a frame without boxes
    se.write_boxes(tmp_path/'a.json', tmp_path, sizes={'1': [20, 10], '2': [20, 10]})
    assert [len(x) for x in read_boxes(tmp_path/'1.json').frames] == [0, 1, 0, 0, 1]
    assert [len(x) for x in read_boxes(tmp_path/'2.json').frames] == [0]


def test_layout_lists_of_both_years_are_the_same(tmp_path):
    "More than 14 boxes, which crash the reference: all are kept, the loader's slots take hands and high scores first"
    many = [dict(x1=i, y1=i, x2=i + 5, y2=i + 6, category='hand' if i in (3, 19) else 'object', score=1 - i/50) for i in range(20)]
    dump(tmp_path/'now.json', [{'id': '1', 'template': HOLD, 'size': [64, 48], 'frames': [many, []]}])
    dump(tmp_path/'then.json', [{'id': '2', 'template': HOLD, 'frames': [{'frame_objects': many}, {'frame_objects': []}]}])
    dump(tmp_path/'videoid2size.json', {'2': [64, 48]})
    se.write_boxes([tmp_path/'now.json', tmp_path/'then.json'], tmp_path/'boxes', sizes=tmp_path/'videoid2size.json')
    a, b = (read_boxes(tmp_path/'boxes'/f'{i}.json') for i in (1, 2))
    assert a.size == b.size == (48, 64) and all((x == y).all() for x, y in zip(a.frames, b.frames)) and [len(x) for x in a.frames] == [20, 0]
    assert np.allclose(a.frames[0][:, 5], 1 - np.arange(20)/50)
    packed = pack_boxes(a.frames, 14)
    assert packed.shape == (2, 14, 8) and (packed[0, :, 4] == 2).sum() == 2 and (packed[1] == 0).all()


def test_sizes_are_measured_on_the_videos(tree):
    write_video(tree/'videos'/'1.mp4', np.zeros((4, 30, 50, 3), np.uint8), 12); (tree/'videos'/'1.webm').unlink()
    part = dump(tree/'part1.json', {str(i): frames(i, 4, box(40, 20, 60, 60)) for i in (1, 2, 9)})
    out = se.write_boxes([part], tree/'boxes', sizes=se.index(tree)).set_index('clip_id').outcome
    assert out['1'] == 'written' and out['9'] == 'no size' and '2.webm' in out['2'] and '\n' not in out['2']      # 2 is an empty file, 9 is no clip of the index
    assert read_boxes(tree/'boxes'/'1.json').frames[0][0, :4].tolist() == [40, 20, 49, 29]


def test_writing_resumes(tmp_path):
    part = dump(tmp_path/'part1.json', {str(i): frames(i, 3, box(1, 1, 9, 9)) for i in range(1, 6)})
    sizes = {str(i): [20, 10] for i in range(1, 6)}
    se.write_boxes(part, tmp_path/'boxes', sizes)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'boxes').iterdir()}
    (tmp_path/'boxes'/'3.json').unlink()
    out = se.write_boxes(part, tmp_path/'boxes', sizes)
    assert out.outcome.tolist() == ['there already']*2 + ['written'] + ['there already']*2
    assert all(p.stat().st_mtime_ns == before[p.name] for p in (tmp_path/'boxes').iterdir() if p.name != '3.json') and len(before) == 5


def test_what_was_written_before_a_cut_stays(tmp_path):
    whole = json.dumps({str(i): frames(i, 3, box(1, 1, 9, 9)) for i in range(1, 6)})
    part = dump(tmp_path/'part1.json', whole[:whole.index('"3": ') + 200])
    sizes = {str(i): [20, 10] for i in range(1, 6)}
    assert 'part1.json: not valid JSON' in one_line(se.write_boxes, part, tmp_path/'boxes', sizes)
    done = sorted(p.name for p in (tmp_path/'boxes').iterdir())
    assert done == ['1.json', '2.json'] and len(read_boxes(tmp_path/'boxes'/'2.json').frames) == 3
    dump(part, whole)
    assert se.write_boxes(part, tmp_path/'boxes', sizes).outcome.value_counts().to_dict() == {'written': 3, 'there already': 2}


@pytest.mark.parametrize('content,words', [
    ({'9': [{'name': '9/0001.jpg'}]}, ('video 9', 'frame 1', 'labels')),
    ({'9': frames(9, 2, {'category': 'cup'})}, ('video 9', 'frame 1', "'x1'")),
    ({'9': frames(9, 1) + frames(9, 1)}, ('video 9', 'frame number 1', 'each once')),
    ({'9': [{'name': '9/0000.jpg', 'labels': []}]}, ('frame number 0',)),
    ({'9': frames(9, 1, box(1, 2, 'left', 4))}, ('video 9', 'frame 1', 'left')),
    ({'9': frames(9, 1, box(1, 2, float('nan'), 4))}, ('video 9', 'frame 1', 'no number')),
    ({'9': frames(9, 1, box(1, 2, None, 4))}, ('video 9', 'frame 1')),
    ({'9': {'a': 1}}, ("video '9'", 'list of frames')),
    ({'a/b': []}, ("video 'a/b'", 'plain id')),
    ([{'id': '9'}], ('expected an object with id and frames',)),
    (['9'], ('expected an object with id and frames',)),
    ('"text"', ('expected a JSON list or object',)),
    ('', ('expected a JSON list or object',))])
def test_malformed_annotations_are_named(tmp_path, content, words):
    file = dump(tmp_path/'part2.json', content)
    message = one_line(se.write_boxes, file, tmp_path/'boxes', {'9': [20, 10]})
    assert str(file) in message and all(w in message for w in words), message


def test_a_video_in_two_parts_and_one_without_frames(tmp_path):
    a, b = (dump(tmp_path/f'part{i}.json', {'9': frames(9, 2)}) for i in (1, 2))
    assert str(b) in (m := one_line(se.write_boxes, [a, b], tmp_path/'boxes', {'9': [20, 10]})) and 'video 9' in m
    assert se.write_boxes(dump(tmp_path/'c.json', {'8': []}), tmp_path/'boxes', {'8': [20, 10]}).outcome.tolist() == ['no frames']
    assert 'no such file' in one_line(se.write_boxes, tmp_path/'part7.json', tmp_path/'boxes')
    assert se.write_boxes(a, tmp_path/'other').outcome.tolist() == ['no size']


@pytest.mark.parametrize('chunk', [1, 2, 13, 4096, 10**6])
@pytest.mark.parametrize('content', [{}, [], {'a': [1, {'b': 'x]}\\"'}], 'é, ü': {}, 'c': []}, [{'id': 'x'}, ['y'], 'z'], [{'n': 1.5e-3, 'm': [None, True, False]}]*3])
def test_stream_equals_the_whole(tmp_path, content, chunk):
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False, indent=2)):
        got = list(se.stream_json(dump(tmp_path/'x.json', text), chunk))
        assert got == (list(content.items()) if isinstance(content, dict) else [(None, v) for v in content])


def test_stream_finds_every_cut(tmp_path):
    text = json.dumps({'a': [{'x': 1.25, 'y': 'no'}], 'b': ['é']})
    for n in range(1, len(text)):
        assert 'cut off' in one_line(lambda: list(se.stream_json(dump(tmp_path/'x.json', text[:n]), 5)))


def test_an_early_mistake_is_found_early(tmp_path):
    "A wrong letter near the start is reported without reading the rest of the file"
    text = '{"1": [oops], ' + ', '.join(f'"{i}": [0]' for i in range(2, 50_000)) + '}'
    read = []
    stream = se._values('part1.json', (read.append(i) or text[i:i + 8192] for i in range(0, len(text), 8192)))
    assert next(stream) == '{' and next(stream) == '1'
    assert 'after 1 values' in one_line(next, stream) and len(read) == 1


def test_one_video_at_a_time(tmp_path):
    "Memory does not grow with the file: a file is streamed and never a fifth of its text is held"
    video = json.dumps(frames(1, 40, box(1.123456789, 2, 30, 40), box(1, 2, 3, 4, 'hand', 'hand')))
    with open(tmp_path/'part1.json', 'w') as f: f.write('{' + ', '.join(f'"{i}": {video}' for i in range(500)) + '}')
    size = os.path.getsize(tmp_path/'part1.json')
    tracemalloc.start()
    n = sum(1 for _ in se.stream_json(tmp_path/'part1.json', 2**16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 500 and size > 5e6 and peak < 1e6


# ---------------------------------------------------------------- time

def test_box_frames_against_video_frames(tree):
    for i, (n, fps) in {1: (24, 12), 2: (60, 30), 3: (24, 12), 4: (24, 12)}.items():
        (tree/'videos'/f'{i}.webm').unlink(); write_video(tree/'videos'/f'{i}.mp4', np.zeros((n, 16, 16, 3), np.uint8), fps)
    part = dump(tree/'part1.json', {str(i): frames(i, n, box(1, 1, 9, 9)) for i, n in {1: 24, 2: 25, 3: 60, 4: 24}.items()})
    se.write_boxes(part, tree/'boxes', sizes=se.index(tree))
    (tree/'boxes'/'4.json').write_text('{')
    table = se.check_frames(se.index(tree)).set_index('clip_id')
    assert table.expected[['1', '2', '3']].tolist() == [24]*3 and table.boxes[['1', '2', '3']].tolist() == [24, 25, 60]
    assert table.fits.to_dict() == {'1': True, '2': True, '3': False, '4': False} and '4.json' in table.problem['4'] and (table.problem[:3] == '').all()
    assert not se.check_frames(se.index(tree), tolerance=0).set_index('clip_id').fits['2']


def test_real_lists_are_whole():
    "The frames of the released videos are numbered without gaps from 1, so a list is as long as its video at 12 frames per second"
    for clip, listed in json.loads((real()/'annotations_sample.json').read_text()).items():
        assert [f['name'] for f in listed] == [f'{clip}/{t:04d}.jpg' for t in range(1, len(listed) + 1)] and 20 < len(listed) < 80
