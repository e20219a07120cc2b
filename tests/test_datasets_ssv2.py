"Something-Something V2: label package in both namings, layouts of the media, protocols, and the real label maps and lists where they are"
import json
import string

import numpy as np
import pandas as pd
import pytest
from conftest import real_data

from moddist.core import MODALITIES, DataError, ProtocolError
from moddist.datasets import ssv2
from moddist.files import frame_shape, read_frames

LR, RL, HOLD, FALL = 'Pushing [something] from left to right', 'Pushing [something] from right to left', 'Holding [something]', '[Something] falling like a rock'
LABELS = {'Pushing something from left to right': '1', 'Pushing something from right to left': '0', 'Holding something': '2', 'Something falling like a rock': '3'}
OLD, NEW = 'something-something-v2-{}.json', '{}.json'


def one_line(call, *args, **kw):
    "The message of the error that `call` must raise: one line"
    with pytest.raises((DataError, ProtocolError)) as e: call(*args, **kw)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def entry(i, template, *words): return {'id': str(i), 'label': template.lower(), 'template': template, 'placeholders': list(words)}


def write_package(folder, naming=OLD, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(labels=LABELS, train=[entry(i, t, 'cup') for i, t in enumerate((LR, RL, HOLD, FALL)*5, 100)],
                   validation=[entry(7, LR, 'pen'), entry(10, FALL, 'book')], test=[{'id': '9'}, {'id': '30'}]) | changes
    for part, x in content.items():
        if x is not None: (folder/naming.format(part)).write_text(json.dumps(x))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def tree(tmp_path):
    write_package(tmp_path)
    for i in (*range(100, 120), 7, 10, 9): touch(tmp_path/'20bn-something-something-v2'/f'{i}.webm')
    return tmp_path


def test_names_are_the_official_ones():
    "Ids are alphabetical ranks; a few of them as public copies of the label map show them, and the map's size"
    assert len(ssv2.ACTIONS) == 174 and list(ssv2.ACTIONS) == sorted(set(ssv2.ACTIONS))
    for i, name in {0: 'Approaching something with your camera', 1: 'Attaching something to something', 2: 'Bending something so that it deforms', 173: 'Wiping something off of something'}.items():
        assert ssv2.ACTIONS[i] == name
    assert not any(c in name for name in ssv2.ACTIONS for c in '[];\n')


def test_real_names_are_the_same():
    real = json.loads((real_data('annotations')/'something_else'/'compositional'/'labels.json').read_text())
    assert sorted(real) == list(ssv2.ACTIONS)


def test_brackets_are_stripped_wherever_they_are():
    assert ssv2.class_name('Putting [number of] [something] onto [something]') == 'Putting number of something onto something'
    assert ssv2.class_name(FALL) == 'Something falling like a rock'


@pytest.mark.parametrize('naming', [OLD, NEW])
@pytest.mark.parametrize('folder', ['', 'labels', 'annotations'])
def test_both_packages_in_every_place(tmp_path, naming, folder):
    write_package(tmp_path/folder, naming)
    touch(tmp_path/'20bn-something-something-v2'/'7.webm')
    df = ssv2.index(tmp_path)
    assert df.value_counts('split').to_dict() == dict(train=20, valid=2, unlabelled=2)
    assert df.set_index('clip_id').label[['100', '101', '102', '103', '7', '10', '9', '30']].tolist() == [1, 0, 2, 3, 1, 3, -1, -1]
    assert df.label.dtype.kind == 'i' and all(type(c) is str for c in df.clip_id) and df.set_index('clip_id').objects['7'] == 'pen'


def test_two_packages_are_refused_and_a_folder_can_be_named(tree):
    write_package(tree/'labels', NEW, validation=[entry(7, HOLD)])
    message = one_line(ssv2.index, tree)
    assert 'something-something-v2-labels.json' in message and 'labels/labels.json' in message
    assert ssv2.index(tree, labels=tree/'labels').set_index('clip_id').label['7'] == 2
    write_package(tree/'labels', OLD)                                    # both namings in one folder
    assert 'two label packages' in one_line(ssv2.index, tree, labels=tree/'labels')


def test_index_survives_csv(tree, tmp_path):
    df = ssv2.index(tree)
    df.to_csv(tmp_path/'index.csv', index=False)
    back = pd.read_csv(tmp_path/'index.csv', dtype={'clip_id': str})
    assert back.clip_id.tolist() == df.clip_id.tolist() and back.label.tolist() == df.label.tolist() and back.rgb.fillna('-').tolist() == df.rgb.fillna('-').tolist()


def test_missing_videos_stay_as_rows(tree):
    (tree/'20bn-something-something-v2'/'101.webm').unlink()
    df = ssv2.index(tree)
    assert len(df) == 24 and df.clip_id[df.rgb.isna()].tolist() == ['101', '30']
    table = ssv2.check_counts(df)
    assert table.listed.tolist() == [20, 2, 2, 24] and table.found.tolist() == [19, 2, 1, 22]
    assert table.published.tolist() == [168_913, 24_777, 27_157, 220_847] and (table.missing == table.published - table.found).all()
    assert len(ssv2.check_counts(df[df.part == 'train'])) == 4


def test_no_video_at_all_is_an_error(tmp_path):
    write_package(tmp_path)
    assert '20bn-something-something-v2/<id>.webm' in one_line(ssv2.index, tmp_path)
    assert 'no such folder' in one_line(ssv2.media, tmp_path/'none')


# ---------------------------------------------------------------- the label package, damaged

@pytest.mark.parametrize('changes,words', [
    (dict(train=[{'id': '1'}]), ('train.json entry 0', 'clip 1', 'no template')),
    (dict(train=[entry(1, LR), entry(2, 'Juggling [something]')]), ('train.json entry 1', "'Juggling [something]'", '4 classes')),
    (dict(train=[entry(1, LR.lower())]), ('none of the 4 classes',)),
    (dict(validation=[{'template': LR}]), ('validation.json entry 0', 'with an id')),
    (dict(validation=['7']), ('validation.json entry 0', 'with an id')),
    (dict(test=[{}]), ('test.json entry 0',)),
    (dict(test=[{'id': '100'}]), ('clip 100', 'listed twice')),
    (dict(train=None), ('train.json: no such file',)),
    (dict(labels=[]), ('labels.json', 'expected a map')),
    (dict(labels={}), ('labels.json', '0 classes')),
    (dict(labels={'a': 'x'}), ('labels.json', 'expected a map')),
    (dict(labels={'a': None}), ('labels.json', 'expected a map')),
    (dict(labels={'a': '1', 'b': '2'}), ('labels.json', '0 to 1')),
    (dict(labels={'a': '0', 'b': '0'}), ('labels.json', 'each once'))])
def test_what_is_wrong_is_named(tmp_path, changes, words):
    write_package(tmp_path, **changes)
    touch(tmp_path/'videos'/'7.webm')
    message = one_line(ssv2.index, tmp_path)
    assert all(w in message for w in words), message


@pytest.mark.parametrize('part', ['labels', 'train', 'validation', 'test'])
def test_bad_json_is_named_with_its_line(tree, part):
    file = tree/OLD.format(part)
    file.write_text(file.read_text()[:-1])
    message = one_line(ssv2.index, tree)
    assert message.startswith(f'{file}: not valid JSON at line 1')


def test_test_list_is_optional_the_others_are_not(tree):
    (tree/OLD.format('test')).unlink()
    assert ssv2.index(tree).value_counts('split').to_dict() == dict(train=20, valid=2)


def test_answers(tree):
    file = tree/'test-answers.csv'
    file.write_text('9;Holding something\n30;Something falling like a rock\n')
    df = ssv2.index(tree).set_index('clip_id')
    assert df.loc[['9', '30'], ['label', 'action', 'split']].values.tolist() == [[2, 'Holding something', 'test'], [3, 'Something falling like a rock', 'test']]
    file.write_text('9;Holding something\n100;Holding something\n')       # an answer for a training clip does not relabel it
    df = ssv2.index(tree).set_index('clip_id')
    assert df.label['100'] == 1 and df.split['30'] == 'unlabelled'
    for text, line in (('9;Holding [something]\n', 1), ('9;Holding something\nx\n', 2), ('9;2\n', 1)):
        file.write_text(text)
        assert f'{file} line {line}: ' in one_line(ssv2.index, tree)


# ---------------------------------------------------------------- media

def test_every_layout_of_media(tmp_path):
    for i in (5, 40): touch(tmp_path/'rawframes'/str(i)/'img_00001.jpg'); touch(tmp_path/'rawframes'/str(i)/'flow_x_00001.jpg')
    touch(tmp_path/'rawframes'/'6'/'img_00000.jpg')                      # older tools count from 0
    touch(tmp_path/'rawframes'/'8'/'notes.txt'); touch(tmp_path/'rawframes'/'tmp'/'img_00001.jpg')
    df = ssv2.media(tmp_path).set_index('clip_id')
    assert df.index.tolist() == ['5', '6', '40']
    assert df.rgb['40'] == f'{tmp_path}/rawframes/40/img_*.jpg' and df.flow['5'] == f'{tmp_path}/rawframes/5/flow_{{x,y}}_*.jpg' and pd.isna(df.flow['6'])
    touch(tmp_path/'frames'/'77'/'0001.jpg')
    assert ssv2.media(tmp_path, 'frames').set_index('clip_id').rgb.dropna().to_dict() == {'77': f'{tmp_path}/frames/77/*.jpg'}
    for i in (5, 6, 40): touch(tmp_path/'videos'/f'{i}.mp4')             # as many videos as folders: videos; never a mixture
    assert ssv2.media(tmp_path).rgb.dropna().str.endswith('.mp4').all()
    touch(tmp_path/'rawframes'/'41'/'img_00001.jpg')
    assert ssv2.media(tmp_path).rgb.dropna().str.endswith('img_*.jpg').all()
    assert 'videos, rawframes, frames' in one_line(ssv2.media, tmp_path, 'jpg')


@pytest.mark.parametrize('folder', ['', '20bn-something-something-v2', 'videos', 'videos/20bn-something-something-v2'])
def test_video_folders(tmp_path, folder):
    for name in ('12.webm', '3.webm', '.3.webm', 'readme.webm', '12.webm.part', '4.txt'): touch(tmp_path/folder/name)
    assert ssv2.media(tmp_path).clip_id.tolist() == ['3', '12']


def test_video_met_twice(tmp_path):
    a, b = touch(tmp_path/'videos'/'3.webm'), touch(tmp_path/'videos'/'3.mp4')
    message = one_line(ssv2.media, tmp_path)
    assert str(a) in message and str(b) in message


def test_extracted_frames_and_flow_are_readable(tmp_path):
    "Real JPEGs in the layout of mmaction2 go through the readers, in numeric order, flow centred on the middle grey"
    from PIL import Image
    folder = tmp_path/'rawframes'/'12'; folder.mkdir(parents=True)
    for i in range(1, 13):
        Image.new('RGB', (40, 24), (10*i, 0, 0)).save(folder/f'img_{i:05d}.jpg', quality=95)
        for c, v in (('x', 128 + 4*i), ('y', 128)): Image.new('L', (40, 24), v).save(folder/f'flow_{c}_{i:05d}.jpg', quality=95)
    row = ssv2.media(tmp_path).iloc[0]
    assert frame_shape(row.rgb, MODALITIES['rgb']) == (12, 24, 40) and frame_shape(row.flow, MODALITIES['flow']) == (12, 24, 40)
    assert np.allclose(read_frames(row.rgb, MODALITIES['rgb'], [11, 0])[:, 12, 20, 0], [120, 10], atol=3)
    u, v = read_frames(row.flow, MODALITIES['flow'], [11])[0, 12, 20]
    assert u == pytest.approx(48*20/127.5, abs=.4) and abs(v) < .3


# ---------------------------------------------------------------- protocols

def test_held_out_tests_on_the_validation_list(tree):
    df = ssv2.index(tree)
    for seed in range(3):
        held = ssv2.split(df, 'held-out', share=.2, seed=seed)
        assert set(held.clip_id[held.split == 'test']) == {'7', '10'} and set(held.clip_id[held.split == 'unlabelled']) == {'9', '30'}
        assert held[held.split == 'valid'].value_counts('label').to_dict() == {0: 1, 1: 1, 2: 1, 3: 1} and (held.part == df.part).all()
    draws = {tuple(ssv2.split(df, 'held-out', seed=s).query("split == 'valid'").clip_id) for s in range(6)}
    assert len(draws) > 1
    assert ssv2.split(held).equals(df) and 'valid' in set(df.split)       # and back to the official one


def test_held_out_does_not_depend_on_rows_or_global_seed(tree):
    df = ssv2.index(tree)
    valid = lambda d: set(ssv2.split(d, 'held-out', share=.4).query("split == 'valid'").clip_id)
    np.random.seed(1); first = valid(df)
    np.random.seed(2); assert valid(df.sample(frac=1, random_state=0)) == first == valid(df.sample(frac=1, random_state=0).reset_index(drop=True))


def test_known_answers_are_set_aside_when_held_out(tree):
    (tree/'test-answers.csv').write_text('9;Holding something\n')
    held = ssv2.split(ssv2.index(tree), 'held-out').set_index('clip_id')
    assert held.split['9'] == 'unlabelled' and held.split['7'] == 'test'


def test_protocol_errors(tree):
    df = ssv2.index(tree)
    assert 'official, held-out' in one_line(ssv2.split, df, 'cross-subject')
    for share in (0, .51, -1): assert f'share={share}' in one_line(ssv2.split, df, 'held-out', share=share)
    alone = df[~df.clip_id.isin([c for c in df.clip_id[(df.part == 'train') & (df.label == 2)]][1:])]
    assert 'only training clip of class 2' in one_line(ssv2.split, alone, 'held-out')


# ---------------------------------------------------------------- real lists

def test_real_lists_have_a_class_for_every_template():
    folder = real_data('annotations')/'something_else'
    full = {n: i for i, n in enumerate(ssv2.ACTIONS)}
    for name, n in (('compositional_oneobject/train', 6_560), ('fewshot/base_validation_set', 12_467), ('fewshot/finetune_10shot_train', 860), ('fewshot/finetune_5shot_training', 430)):
        rows = ssv2.read_list(folder/f'{name}.json', full)
        assert len(rows) == rows.clip_id.nunique() == n and rows.label.between(0, 173).all()
        assert [ssv2.ACTIONS[k] for k in rows.label] == rows.action.tolist() and not set(''.join(rows.clip_id)) - set(string.digits)
