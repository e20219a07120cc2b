"""What the store is worth: clips per second and bytes per clip of raw files, JPEG-in-HDF5, and the store, all delivering the same RGB + depth clip.

    OMP_NUM_THREADS=1 python bench/store.py                    # about three minutes on one core

The clips are made to resemble NTU RGB+D: 1080p H.264 in AVI at 2.5 Mbit/s, 100 frames, and 100 16-bit PNGs of 424x512 px. Every kind delivers frames drawn by
the same sampler, resized and cut by the same functions; only where the frames come from differs. All files are in the disk cache. The kinds take turns; given are
medians over the turns and ratios of these, of wall time and of CPU time (steadier on a busy machine). JPEG-in-HDF5 is the layout of Radevski et al. (one variable-length byte string per frame, decoded by Pillow); depth
in that layout is the PNG of each frame. Before timing, depth must be the same in all of them and RGB close. Needs h5py.
"""
import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VIEWS = {'8 frames, 112 px': (8, (128, 228), 112), '16 frames, 224 px': (16, (256, 456), 224)}          # frames, size, crop
KINDS = ['raw files', 'HDF5 of JPEGs, 1080p', 'HDF5 of JPEGs, 256 px', 'store', 'store, H.264']


# ---------------------------------------------------------------- data in the manner of NTU RGB+D

def scene(r, n, h, w, small):
    "n frames of a person who walks and waves in a room: (RGB h x w, depth in mm of size `small`), one at a time"
    import cv2
    import numpy as np
    texture = lambda cell: cv2.resize(r.normal(size=(h//cell, w//cell)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    wall = 130 + 35*texture(180) + 14*texture(40) + 5*texture(8)
    room, cloth = (np.stack(c, -1).clip(0, 255).astype(np.int16) for c in ([wall, .96*wall, .88*wall], [70 + 20*texture(24) + 8*texture(6)]*3))
    noise = [cv2.resize(r.normal(0, 2.5, (h//2, w//2)).astype(np.float32), (w, h)).round().astype(np.int16)[..., None] for _ in range(6)]
    floor = 3400 + 500*np.sin(np.arange(small[1])/170)[None] + .5*np.arange(small[0])[:, None]
    for t in range(n):
        x, body = int(w*(.35 + .3*t/n)), np.zeros((h, w), np.uint8)
        cv2.ellipse(body, (x, int(.58*h)), (int(.05*w), int(.3*h)), 0, 0, 360, 1, -1)
        cv2.circle(body, (x, int(.22*h)), int(.06*h), 1, -1)
        cv2.line(body, (x, int(.42*h)), (x + int(.12*w*np.cos(t/4)), int((.42 - .12*np.sin(t/4))*h)), 1, int(.03*w))
        frame = np.roll(noise[r.integers(6)], int(r.integers(h)), 0) + room
        cv2.copyTo(cloth, body, frame)
        z = np.where(cv2.resize(body, small[::-1], interpolation=cv2.INTER_NEAREST) > 0, 2000, floor)
        z = (z + 5e-7*z**2*r.normal(size=z.shape)).round()
        z[r.random(z.shape) < .01] = 0
        yield frame.clip(0, 255).astype(np.uint8), z.astype(np.uint16)


def film(folder, clip_id, n):
    "Write one clip; the row of its index"
    import av
    import numpy as np
    from moddist.core import rng
    from moddist.files import write_png16
    folder.mkdir(exist_ok=True)
    path, depth = folder/f'{clip_id}.avi', []
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('libx264', rate=30, options=dict(preset='veryfast', bf='0'))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate, stream.thread_count = 1080, 1920, 'yuv420p', 2_500_000, 1
        for frame, z in scene(rng('bench', clip_id), n, 1080, 1920, (424, 512)):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
            depth.append(z)
        box.mux(stream.encode())
    return dict(clip_id=clip_id, label=0, action='walk', split='train', rgb=str(path), depth=str(write_png16(folder/clip_id, np.stack(depth))))


# ---------------------------------------------------------------- the peer: encoded frames in HDF5

def pack(path, df, key, encode):
    "One 1-D dataset of encoded frames per clip"
    import h5py
    import numpy as np
    with h5py.File(path, 'w') as f:
        for row in df.to_dict('records'):
            data = [np.frombuffer(b, np.uint8) for b in encode(row[key])]
            d = f.create_dataset(row['clip_id'], (len(data),), h5py.vlen_dtype(np.uint8))
            for i, b in enumerate(data): d[i] = b
    return h5py.File(path, 'r')                                                  # stays open, as in a loader process


def jpegs(path, short_side):
    "Quality 90, as in the store"
    from PIL import Image
    from moddist.core import MODALITIES
    from moddist.files import frame_shape, read_video, resize_frames
    n, h, w = frame_shape(path, MODALITIES['rgb'])
    size = (h, w) if short_side is None else tuple(2*round(v*short_side/min(h, w)/2) for v in (h, w))
    for i in range(0, n, 50):
        for frame in resize_frames(read_video(path, range(i, min(n, i + 50))), size, MODALITIES['rgb']):
            b = io.BytesIO()
            Image.fromarray(frame).save(b, 'JPEG', quality=90)
            yield b.getvalue()


def pngs(folder): return (p.read_bytes() for p in sorted(Path(folder).iterdir()))


def from_hdf5(f, clip_id, index):
    "Decode frames as the reference implementation does: h5py wants increasing indices, so read each once and re-expand"
    import numpy as np
    from PIL import Image
    once, where = np.unique(index, return_inverse=True)
    frames = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in f[clip_id][once]])[where]
    return frames if frames.ndim == 4 else frames[..., None]


def hdf5_reader(rgb, depth):
    "load(row, sampler) for a pair of open HDF5 files"
    import numpy as np
    from moddist.core import MODALITIES
    from moddist.draws import cut_frames, draw, window
    from moddist.files import resize_frames

    def load(row, sampler):
        d = draw(sampler, row['clip_id'], len(rgb[row['clip_id']]), True)
        out, w = [], None
        for key, f in (('rgb', rgb), ('depth', depth)):
            frames = from_hdf5(f, row['clip_id'], d.index)
            w = w or window(sampler, d, frames.shape[1:3])
            m = MODALITIES[key]
            out.append(np.ascontiguousarray(cut_frames(resize_frames(frames, w.size, m), w, m).transpose(3, 0, 1, 2)))
        return out
    return load


def index_reader(df):
    "load(row, sampler) for the files of a clip index"
    from moddist.clips import load_clip
    rows = {r['clip_id']: r for r in df.to_dict('records')}
    return lambda row, sampler: [load_clip(rows[row['clip_id']], s, sampler, train=True).numpy() for s in ('rgb', 'depth')]


# ---------------------------------------------------------------- measuring

def size(path):
    path = Path(path)
    return sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) if path.is_dir() else path.stat().st_size


def psnr(a, b):
    import numpy as np
    return float(10*np.log10(255**2/np.mean((np.float32(a) - np.float32(b))**2)))


def waiting(df, steps):
    "Share of a training step of the small network that waits for data; batch 16, two loader processes"
    import pandas as pd
    import torch
    from moddist.core import seed_all
    from moddist.data import clip_dls
    from moddist.draws import ClipSampler
    from moddist.models import SmallStream
    many = pd.concat([df.assign(clip_id=[f'{c}-{k}' for c in df.clip_id]) for k in range(-(-16*(steps + 2)//len(df)))], ignore_index=True)
    dls = clip_dls(pd.concat([many, many.head(16).assign(split='valid', clip_id=[f'v{i}' for i in range(16)])], ignore_index=True), ('rgb', 'depth'),
                   ClipSampler(8, 'random', (100, 178), crop=88), bs=16, n_classes=10, workers=2, dev='cpu')        # from 96 px on, torch 2.15 crashes in the backward pass on a CPU
    seed_all(0)
    nets = [SmallStream(10), SmallStream(10)]
    opt = torch.optim.AdamW([p for n in nets for p in n.parameters()])
    waits, encodes, totals, encode = [], [], [], dls.train.after_batch

    def timed(b):
        t = time.perf_counter()
        out = encode(b)
        encodes.append(time.perf_counter() - t)
        return out
    dls.train.after_batch = timed                                                        # jitter, depth encoding, normalisation: part of the step, on its device
    batches = iter(dls.train)
    for _ in range(steps + 2):
        t = time.perf_counter()
        *x, y = next(batches)
        waits.append(time.perf_counter() - t - encodes[-1])
        loss = sum(torch.nn.functional.cross_entropy(net(v), y) for net, v in zip(nets, x))
        opt.zero_grad(); loss.backward(); opt.step()
        totals.append(time.perf_counter() - t)
    del batches
    return dict(share=round(sum(waits[2:])/sum(totals[2:]), 4), median_share=round(statistics.median(w/t for w, t in zip(waits[2:], totals[2:])), 4),
                encode_share=round(sum(encodes[2:])/sum(totals[2:]), 4), steps=steps, step_s=round(statistics.median(totals[2:]), 3), batch=16, workers=2, frames=8, px=88)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=3)
    p.add_argument('--frames', type=int, default=100)
    p.add_argument('--repeat', type=int, default=5, help='turns of each kind, every one reads all clips')
    p.add_argument('--steps', type=int, default=8, help='training steps for the share of waiting')
    p.add_argument('--out', default=str(HERE/'results'/'store.json'))
    args = p.parse_args()

    import cv2
    import pandas as pd
    import torch
    from machine import machine
    from moddist.core import write_json
    from moddist.draws import ClipSampler
    from moddist.store import prepare
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder, t = Path(folder), time.perf_counter()
        df = pd.DataFrame([film(folder/'raw', f'clip{i}', args.frames) for i in range(args.clips)])
        print(f'{args.clips} clips made in {time.perf_counter() - t:.0f} s', flush=True)
        t = time.perf_counter()
        stores = {'store': prepare(df, folder/'jpeg'), 'store, H.264': prepare(df, folder/'h264', pictures='h264')}
        prepare_s = (time.perf_counter() - t)/2/args.clips
        depth = pack(folder/'depth.h5', df, 'depth', pngs)
        films = {'HDF5 of JPEGs, 1080p': pack(folder/'full.h5', df, 'rgb', lambda p: jpegs(p, None)), 'HDF5 of JPEGs, 256 px': pack(folder/'small.h5', df, 'rgb', lambda p: jpegs(p, 256))}
        load = {'raw files': index_reader(df)} | {k: hdf5_reader(f, depth) for k, f in films.items()} | {k: index_reader(d) for k, d in stores.items()}
        mega = {'raw files': (sum(size(p) for p in df.rgb), sum(size(p) for p in df.depth))} | {k: (size(f.filename), size(depth.filename)) for k, f in films.items()}
        mega |= {k: tuple(sum(size(p) for p in d[c]) for c in ('rgb', 'depth')) for k, d in stores.items()}

        rows, results = df.to_dict('records'), {}
        for view, (n, px, crop) in VIEWS.items():
            sampler = ClipSampler(n, 'random', px, crop)
            shown = {k: [load[k](row, sampler) for row in rows] for k in KINDS}              # also warms the disk cache
            for k in KINDS: assert all((a[1] == b[1]).all() and a[0].shape == b[0].shape for a, b in zip(shown[k], shown['raw files'])), f'{k}: not the same clip'
            close = {k: statistics.mean(psnr(a[0], b[0]) for a, b in zip(shown[k], shown['raw files'])) for k in KINDS[1:]}
            assert min(close.values()) > 25, close
            times = {k: [] for k in KINDS}                                                    # (wall, CPU)
            for i in range(args.repeat):
                sampler.epoch = i + 1
                for k in KINDS[::1 if i % 2 else -1]:
                    t, cpu = time.perf_counter(), time.process_time()
                    for row in rows: load[k](row, sampler)
                    times[k].append(((time.perf_counter() - t)/len(rows), (time.process_time() - cpu)/len(rows)))
            middle, busy = ({k: statistics.median(t[j] for t in ts) for k, ts in times.items()} for j in (0, 1))
            results[view] = {k: dict(clips_per_s=round(1/middle[k], 2), store_is_faster=round(middle[k]/middle['store'], 2), cpu_ms=round(1e3*busy[k], 2), ratio_cpu=round(busy[k]/busy['store'], 2), rgb_mb=round(mega[k][0]/len(rows)/1e6, 3),
                                     depth_mb=round(mega[k][1]/len(rows)/1e6, 3), psnr_db=round(close[k], 1) if k in close else None, each_s=[round(x, 4) for x, _ in times[k]]) for k in KINDS}
            print(f'\n{view:24}{"clips/s":>9}{"store is x faster":>19}{"(CPU time)":>12}{"RGB MB":>9}{"depth MB":>10}{"RGB dB":>8}')
            for k, v in results[view].items(): print(f'{k:24}{v["clips_per_s"]:>9.1f}{v["store_is_faster"]:>19.1f}{v["ratio_cpu"]:>12.1f}{v["rgb_mb"]:>9.2f}{v["depth_mb"]:>10.2f}{v["psnr_db"] or "":>8}', flush=True)
        share = {px: waiting(d, args.steps) for px, d in ((256, stores['store']), (128, prepare(df, folder/'jpeg128', short_side=128)))}
    print(f'\npreparing takes {prepare_s:.1f} s per clip')
    for px, v in share.items(): print(f'waiting for data, RGB stored at {px} px: {100*v["share"]:.1f} % of a training step of {v["step_s"]} s, of which encoding the batch {100*v["encode_share"]:.1f} %')
    write_json(args.out, dict(command=' '.join(['python', 'bench/store.py', *sys.argv[1:]]), clips=args.clips, frames=args.frames, repeat=args.repeat, machine=machine(), views=results,
                              waiting=share, prepare_s_per_clip=round(prepare_s, 2)))
    print(f'wrote {args.out}')


if __name__ == '__main__': main()
