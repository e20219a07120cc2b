"""The player and the card: what they show is what the readers return, and an index that lacks something is answered in one line."""
import base64
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from moddist.clips import load_clip
from moddist.core import DataError, DepthClip, FlowClip
from moddist.draws import ClipDraw, ClipSampler
from moddist.files import write_png16, write_video
from moddist.show import NO_READING, data_card, paint, show_clip
from moddist.tracks import Boxes, write_boxes

T, H, W = 10, 40, 60


@pytest.fixture(scope='module')
def row(tmp_path_factory):
    "A bright square that moves, its depth and its box"
    root = tmp_path_factory.mktemp('show')
    rgb, depth = np.zeros((T, H, W, 3), np.uint8), np.full((T, H, W), 3000, np.uint16)
    for t in range(T): rgb[t, 10:20, 4*t:4*t + 10] = 200; depth[t, 10:20, 4*t:4*t + 10] = 1500
    write_boxes(root/'boxes.json', Boxes([np.array([[4*t, 10, 4*t + 10, 20, 2, 1, 1, 1]], np.float32) for t in range(T)], (H, W)))
    return dict(clip_id='a', label=0, action='slide', split='train', rgb=str(write_video(root/'a.avi', rgb)), depth=str(write_png16(root/'depth', depth)), boxes=str(root/'boxes.json'))


def pixels(source): return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(',')[2]))).convert('RGB')).astype(int)


def test_every_frame_shows_its_picture_and_its_box(row):
    fig = show_clip(row, ('rgb', 'depth'), ('boxes',))
    assert len(fig.frames) == T and [t.type for t in fig.data].count('image') == 2
    for t, frame in enumerate(fig.frames):
        rgb, depth = (pixels(d.source) for d in frame.data if d.type == 'image')
        bright = np.argwhere(rgb[..., 0] > 100)
        assert (bright.min(0) == (10, 4*t)).all() and (bright.max(0) == (19, 4*t + 9)).all()
        assert (depth[15, 4*t + 5] != depth[35, 50]).any()
        hand = next(d for d in frame.data if d.type == 'scatter' and len(d.x))
        assert np.allclose([np.nanmin(hand.x), np.nanmax(hand.x), np.nanmin(hand.y)], [4*t - .5, 4*t + 9.5, 9.5], atol=1e-4)


def test_a_given_draw_is_what_is_shown(row):
    d, s = ClipDraw((3, 7), 0., 1., True), ClipSampler(2, crop=(30, 30))
    fig = show_clip(row, ('rgb',), sampler=s, drawn=d)
    want = load_clip(row, 'rgb', s, drawn=d)
    assert len(fig.frames) == 2
    for t in (0, 1): assert abs(pixels(fig.frames[t].data[0].source) - want[:, t].permute(1, 2, 0).numpy().astype(int)).max() <= 8


def test_long_clips_are_thinned(row, tmp_path):
    video = str(write_video(tmp_path/'long.avi', np.zeros((60, 300, 400, 3), np.uint8)))
    fig = show_clip(row | dict(rgb=video), ('rgb',))
    assert len(fig.frames) == 24 and pixels(fig.data[0].source).shape == (160, 213, 3)


def test_painting():
    depth = torch.tensor([0, 1000, 2000, 3000], dtype=torch.int32).to(torch.uint16).view(1, 1, 2, 2).as_subclass(DepthClip)
    out, limits = paint(depth, 'depth', (1000, 3000))
    assert tuple(out[0, 0, 0]) == NO_READING and limits == (1000, 3000)
    assert out[0, 0, 1].sum() > out[0, 1, 0].sum() > out[0, 1, 1].sum()                    # near is bright
    flow = torch.tensor([[1., -1, 0, 0]]).repeat(2, 1); flow[1] = torch.tensor([0., 0, 0, 2])
    out, limits = paint(flow.view(2, 1, 2, 2).as_subclass(FlowClip), 'flow')
    assert tuple(out[0, 1, 0]) == (128, 128, 128)                                          # what rests is grey
    assert (out[0, 0, 0] != out[0, 0, 1]).any() and limits[0] == 0


@pytest.mark.parametrize('call, words', (
    (lambda r: show_clip(r, overlays=('skeleton',)), 'signal of its own'),
    (lambda r: show_clip(r, ('rgb', 'flow')), "no file for 'flow'"),
    (lambda r: data_card(pd.DataFrame(columns=['clip_id', 'label'])), 'empty')))
def test_refusals(row, call, words):
    with pytest.raises(DataError, match=words) as e: call(row)
    assert '\n' not in str(e.value)


def table(row, n=12):
    rows = [row | dict(clip_id=f'c{i}', label=i % 3, action='abc'[i % 3], subject=i//4, camera=i % 2, split=('train', 'valid', 'test')[i//4], flow=None) for i in range(n)]
    rows[0]['depth'] = None
    return pd.DataFrame(rows)


def test_the_card_counts_what_the_index_holds(row):
    df = table(row).assign(motion='walks')                                                 # a column of words that is no signal
    fig = data_card(df)
    bars = [t for t in fig.data if t.type == 'bar']
    assert {t.name: sum(t.y) for t in bars} == dict(train=4, valid=4, test=4)
    cross, share = [t for t in fig.data if t.type == 'heatmap']
    assert np.array(cross.text).sum() == 12 and set(np.ravel(cross.customdata)) == {'train', 'valid', 'test'}
    assert list(share.x) == ['rgb', 'depth', 'boxes', 'flow']
    assert share.z[list(share.y).index('train')].tolist() == [100, 75, 100, 0]
    assert next(t for t in fig.data if t.type == 'histogram').x == (T,)*12


def test_the_card_of_a_bare_index(row):
    "No split, no subject, no lengths"
    fig = data_card(table(row)[['clip_id', 'label', 'rgb']], sample=0)
    assert not [t for t in fig.data if t.type == 'histogram'] and sum(sum(t.y) for t in fig.data if t.type == 'bar') == 24
