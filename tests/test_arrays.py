"""The array file: exact, by frame, readable by others, and never silently wrong."""
import json
import pickle
import subprocess
import sys
from zipfile import ZipFile

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings, strategies as st

from moddist import arrays
from moddist.arrays import array_attrs, array_shape, is_array, read_array, write_array, write_pictures
from moddist.core import DataError


def left(folder): return [p.name for p in folder.iterdir() if p.name != 'settings.ini']   # the settings are the fixture's


def depth(n=7, h=40, w=50, seed=0):
    r = np.random.default_rng(seed)
    return (2000 + 500*np.sin(np.arange(w)/9) + r.normal(0, 3, (n, h, w))).round().astype(np.uint16)


def film(n=6, h=48, w=64):
    y, x = np.mgrid[:h, :w]
    t = np.arange(n)[:, None, None]
    return np.stack(np.broadcast_arrays(2*x + 3*t, 3*y + 0*t, (x + y)/2 + 9*t), -1).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------- what goes in comes out

@pytest.mark.parametrize('dtype', ['bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('shape', [(1,), (300_000,), (5, 3), (3, 200, 400), (100, 25, 3), (3, 100, 100, 2), (4, 0, 25, 3)])
def test_round_trip(tmp_path, dtype, shape):
    x = (np.random.default_rng(1).integers(0, 2**62, shape) % 251).astype(dtype)
    path = write_array(tmp_path/'x.zarr.zip', x)
    back = read_array(path)
    assert back.dtype == x.dtype and back.shape == x.shape == array_shape(path) and (back == x).all()
    index = [len(x) - 1, 0, 0, len(x)//2]
    assert (read_array(path, index) == x[index]).all()


@given(st.integers(1, 40), st.integers(1, 60_000), st.data())
@settings(max_examples=25, deadline=None)
def test_any_frames_in_any_order(tmp_path_factory, n, size, data):
    "Across the borders of chunks, which hold one frame or many"
    x = np.arange(n*size, dtype=np.uint32).reshape(n, size)
    path = write_array(tmp_path_factory.getbasetemp()/'any.zarr.zip', x)
    index = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12))
    assert (read_array(path, index) == x[index]).all()


def test_nan_and_infinity_survive(tmp_path):
    x = np.array([[np.nan, 1], [np.inf, -0.]], np.float32)
    assert read_array(write_array(tmp_path/'x.zarr.zip', x)).tobytes() == x.tobytes()


def test_other_byte_order_and_strides(tmp_path):
    x = np.arange(24, dtype='>u2').reshape(4, 6)[:, ::-2]
    back = read_array(write_array(tmp_path/'x.zarr.zip', x))
    assert (back == x).all() and back.dtype == np.uint16


def test_scale_and_attributes(tmp_path):
    x = np.array([[[[-3, 7]]]], np.int16)
    path = write_array(tmp_path/'flow.zarr.zip', x, scale=.25, attrs=dict(method='dis', bound=[1, 2]))
    assert read_array(path).dtype == np.float32 and read_array(path).ravel().tolist() == [-.75, 1.75]
    assert array_attrs(path) == dict(method='dis', bound=[1, 2], scale=.25)


def test_same_array_same_bytes(tmp_path):
    a, b = (write_array(tmp_path/n/'x.zarr.zip', depth()) for n in 'ab')
    assert a.read_bytes() == b.read_bytes()


def test_smaller_than_raw(tmp_path):
    "Noise of 3 mm has about 3.6 bits of entropy per pixel of 16"
    x = depth(4, 424, 512)
    assert write_array(tmp_path/'x.zarr.zip', x).stat().st_size < .6*x.nbytes


def test_new_file_new_facts(tmp_path):
    path = write_array(tmp_path/'x.zarr.zip', depth(7))
    assert array_shape(path)[0] == 7
    stamp = path.stat().st_mtime_ns
    write_array(path, depth(3))
    import os
    os.utime(path, ns=(stamp + 1, stamp + 1))           # whatever the clock of the disk does
    assert array_shape(path)[0] == 3


def test_zarr_reads_it(tmp_path):
    "The package `zarr` is the judge of the format"
    zarr = pytest.importorskip('zarr', reason='zarr needs Python 3.11')
    for i, x in enumerate([depth(), np.zeros((4, 0, 3), np.float32), np.arange(90_000, dtype=np.int16), np.array([True, False]), np.full((70, 30, 30), np.nan, np.float32)]):
        path = write_array(tmp_path/f'{i}.zarr.zip', x, attrs=dict(a=1))
        store = zarr.storage.ZipStore(path, mode='r')
        z = zarr.open_array(store, mode='r')
        assert z.dtype == x.dtype and np.array_equal(z[:], x, equal_nan=x.dtype.kind == 'f') and dict(z.attrs) == dict(a=1)
        store.close()


# ---------------------------------------------------------------- pictures

def test_pictures(tmp_path):
    x = film()
    path = write_pictures(tmp_path/'rgb.jpg.zip', x, attrs=dict(fps=30))
    back = read_array(path, [5, 0, 5])
    assert array_shape(path) == x.shape and array_attrs(path) == dict(fps=30)
    assert abs(back.astype(int) - x[[5, 0, 5]]).mean() < 3
    assert abs(back[..., 0].astype(int) - x[[5, 0, 5], ..., 2]).mean() > 10      # red is red


def test_grey_pictures(tmp_path):
    x = film()[..., :1]
    back = read_array(write_pictures(tmp_path/'ir.jpg.zip', x))
    assert back.shape == x.shape and abs(back.astype(int) - x).mean() < 2


def test_members_are_ordinary_jpegs(tmp_path):
    from io import BytesIO

    from PIL import Image
    x = film()
    with ZipFile(write_pictures(tmp_path/'rgb.jpg.zip', x)) as z: image = Image.open(BytesIO(z.read('000003.jpg')))
    assert image.format == 'JPEG' and image.size == (64, 48)
    assert abs(np.asarray(image).astype(int) - x[3]).mean() < 3


def test_quality_trades_size_for_error(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8)
    low, high = (write_pictures(tmp_path/f'{q}.jpg.zip', x, quality=q) for q in (50, 95))
    assert low.stat().st_size < high.stat().st_size
    assert abs(read_array(high).astype(int) - x).mean() < abs(read_array(low).astype(int) - x).mean()


# ---------------------------------------------------------------- what must be refused

@pytest.mark.parametrize('make, suffix', [(lambda p: write_array(p, depth()), '.zarr.zip'), (lambda p: write_pictures(p, film()), '.jpg.zip')])
def test_every_changed_byte_is_found_or_harmless(tmp_path, make, suffix):
    good = make(tmp_path/f'good{suffix}')
    raw, want, bad = good.read_bytes(), read_array(good), tmp_path/f'bad{suffix}'
    refusals = 0
    places = np.random.default_rng(0).choice(len(raw), 250, replace=False)
    for i in [*places, *range(len(raw) - 60, len(raw))]:
        changed = bytearray(raw)
        changed[i] ^= 0x41
        bad.write_bytes(changed)
        try: assert (read_array(bad) == want).all(), f'byte {i}: silently wrong'
        except DataError as e: refusals += 1; assert bad.name in str(e)
    assert refusals > 200


@pytest.mark.parametrize('part', [0, .01, .3, .9, .999])
def test_cut_off(tmp_path, part):
    raw = write_array(tmp_path/'x.zarr.zip', depth()).read_bytes()
    (tmp_path/'short.zarr.zip').write_bytes(raw[:int(part*len(raw))])
    refused(lambda: read_array(tmp_path/'short.zarr.zip', [0]), 'short.zarr.zip', 'damaged')
    refused(lambda: array_shape(tmp_path/'short.zarr.zip'), 'short.zarr.zip')


def test_a_member_gone(tmp_path):
    with ZipFile(write_array(tmp_path/'x.zarr.zip', depth(3, 200, 200))) as z, ZipFile(tmp_path/'less.zarr.zip', 'w') as less:
        for n in z.namelist():
            if n != 'c/1/0/0': less.writestr(n, z.read(n))
    assert len(read_array(tmp_path/'less.zarr.zip', [0, 2])) == 2
    refused(lambda: read_array(tmp_path/'less.zarr.zip'), 'less.zarr.zip', 'damaged')


def test_other_codecs(tmp_path):
    with ZipFile(write_array(tmp_path/'x.zarr.zip', depth())) as z, ZipFile(tmp_path/'y.zarr.zip', 'w') as other:
        for n in z.namelist(): other.writestr(n, z.read(n).replace(b'"blosc"', b'"gzip"'))
    refused(lambda: read_array(tmp_path/'y.zarr.zip'), 'y.zarr.zip')


def test_not_there(tmp_path):
    refused(lambda: read_array(tmp_path/'gone.zarr.zip'), 'gone.zarr.zip', 'no such file')
    (tmp_path/'folder.zarr.zip').mkdir()
    refused(lambda: array_shape(tmp_path/'folder.zarr.zip'), 'folder.zarr.zip')


@pytest.mark.parametrize('index', [[7], [-1], [], [0, 99]])
def test_frames_outside(tmp_path, index):
    path = write_array(tmp_path/'x.zarr.zip', depth(7))
    refused(lambda: read_array(path, index), 'x.zarr.zip', '0..6')


@pytest.mark.parametrize('x, words', [(np.array(['a']), 'expected integers'), (np.array([None]), 'expected integers'), (np.array([1j]), 'expected integers'),
                                      (np.zeros((0, 3)), 'at least one frame'), (np.float32(3), 'at least one frame')])
def test_arrays_that_do_not_fit(tmp_path, x, words):
    refused(lambda: write_array(tmp_path/'x.zarr.zip', x), 'x.zarr.zip', words)
    assert not left(tmp_path)


@pytest.mark.parametrize('x', [film().astype(np.float32), film()[0], film()[..., :2], film()[:0]])
def test_pictures_that_do_not_fit(tmp_path, x): refused(lambda: write_pictures(tmp_path/'x.jpg.zip', x), 'x.jpg.zip', 'expected uint8')


def test_names_and_quality(tmp_path):
    refused(lambda: write_array(tmp_path/'x.npz', depth()), 'x.npz', '.zarr.zip')
    refused(lambda: write_pictures(tmp_path/'x.zarr.zip', film()), '.jpg.zip')
    refused(lambda: write_pictures(tmp_path/'x.jpg.zip', film(), quality=0), 'quality 0')
    assert is_array('a/b.zarr.zip') and is_array(tmp_path/'b.jpg.zip') and not is_array('b.zip') and not is_array(tmp_path)


def test_attributes_must_be_json(tmp_path):
    with pytest.raises((TypeError, ValueError)): write_array(tmp_path/'x.zarr.zip', depth(), attrs=dict(a=object()))
    assert not left(tmp_path)


def test_nothing_is_executed_on_opening(tmp_path):
    "A pickle under the suffix of an array is refused, and never loaded"
    class Trap:
        def __reduce__(self): return exec, (f'open({str(tmp_path/"sprung")!r}, "w")',)
    for payload in (pickle.dumps(Trap()), None):
        bad = tmp_path/'bad.zarr.zip'
        if payload: bad.write_bytes(payload)
        else:
            with ZipFile(bad, 'w') as z: z.writestr('zarr.json', json.dumps(arrays._describe((1, 4), np.dtype('uint8'), 1, {}))); z.writestr('c/0/0', pickle.dumps(Trap()))
        refused(lambda: read_array(bad), 'bad.zarr.zip')
    assert not (tmp_path/'sprung').exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_array(tmp_path/'x.zarr.zip', depth())
    before = path.read_bytes()
    def full(x, k):
        yield 'c/0/0/0', b'some'
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(arrays, '_chunks', full)
    with pytest.raises(Exception, match='no space left'): write_array(path, depth(3))
    assert path.read_bytes() == before and left(tmp_path) == ['x.zarr.zip']


def test_importing_is_light():
    "The codec is imported when a file is opened, not before"
    code = 'import sys, moddist.arrays; assert not {"numcodecs", "cv2", "zarr"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
