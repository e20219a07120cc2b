"""The layout transformer: counts, invariances, the reference in plain torch; small encoders; fusion of boxes and video."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from moddist.backbones import VideoStream, load_official, rename_keys, split_heads
from moddist.core import BoxesClip, JointsClip, ModelError, SeriesClip, seed_all
from moddist.layout import AudioStream, FusionStream, LayoutStream, SeriesStream, SkeletonStream
from moddist.models import SmallStream, TwoStream, build, capture, count_params, load_model, save_model, taps

QUICK = settings(max_examples=20, deadline=None)


def close(a, b, tol=2e-5): torch.testing.assert_close(a, b, atol=tol, rtol=1e-4)


def boxes(B=2, T=4, N=5, seed=0, full=False):
    "Random boxes; about a third of the slots are empty"
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.rand(s, generator=g)
    low = r(B, 2, T, N)*.7
    kind = torch.randint(1 if full else 0, 3, (B, 1, T, N), generator=g).float()
    x = torch.cat([low, low + .3*r(B, 2, T, N), kind, r(B, 1, T, N), torch.randint(0, 3, (B, 1, T, N), generator=g).float(), torch.randint(0, 6, (B, 1, T, N), generator=g).float()], 1)
    return torch.where(kind > 0, x, 0.)


def shaken(model, seed=0):
    "Learned tokens and biases start at zero: move them, so that none can be forgotten unnoticed"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters(): p.add_(torch.randn(p.shape, generator=g)*.1)
    return model


@pytest.fixture(scope='module')
def stlt():
    seed_all(0)
    return shaken(LayoutStream(5, frames=6, width=16, depth=(2, 2), attention_heads=4)).eval()


# --- the layout transformer ---

@pytest.mark.parametrize('options, n', [(dict(num_classes=174), 85_219_758), (dict(num_classes=174, frames=8), 85_219_758 - 8*768), (dict(heads=dict(verb=97, noun=300)), 85_219_758 + 769*(397 - 174))])
def test_counts(options, n):
    with torch.device('meta'): assert count_params(LayoutStream(**options)) == n


def test_full_size_gives_scores():
    with torch.device('meta'):
        model = LayoutStream(174).eval()
        with torch.no_grad(): assert model(torch.zeros(3, 8, 16, 14)).shape == (3, 174)


@QUICK
@given(st.integers(0, 999), st.permutations(range(5)))
def test_order_of_boxes_is_nothing(stlt, seed, order):
    x = boxes(seed=seed)
    shuffled = torch.stack([x[:, :, t][:, :, order if t % 2 else list(range(5))] for t in range(x.shape[2])], 2) # another order in every frame
    with torch.no_grad(): close(stlt(x), stlt(shuffled))


@QUICK
@given(st.integers(0, 999), st.permutations(range(4)).filter(lambda p: list(p) != [0, 1, 2, 3]))
def test_order_of_frames_is_something(stlt, seed, order):
    x = boxes(seed=seed, full=True)
    with torch.no_grad(): assert (stlt(x) - stlt(x[:, :, list(order)])).abs().max() > 1e-4


@QUICK
@given(st.integers(0, 999), st.sampled_from([3., -1e6, float('inf'), float('nan')]), st.integers(0, 3))
def test_empty_slots_are_nothing(stlt, seed, junk, more):
    x = boxes(seed=seed)
    filled = torch.where(x[:, 4:5] == 0, torch.tensor([junk]*4 + [0.] + [junk]*3).view(8, 1, 1), x)
    wider = torch.cat([filled, torch.zeros(2, 8, 4, more)], 3)
    with torch.no_grad():
        close(stlt(filled), stlt(x))
        close(stlt(wider), stlt(x))


@QUICK
@given(st.integers(0, 999), st.integers(0, 3))
def test_frames_do_not_see_the_future(stlt, seed, t):
    x = boxes(seed=seed, full=True)
    y = x.clone()
    y[:, :4, t] = boxes(seed=seed + 1000, full=True)[:, :4, t]
    with torch.no_grad():
        with capture(stlt) as a: z = stlt(x)
        with capture(stlt) as b: w = stlt(y)
    change = (a.maps['time'] - b.maps['time']).abs().amax((0, 1, 3, 4))
    assert change[:t].max().item() < 1e-5 if t else True
    assert change[t] > 1e-5 and (z - w).abs().max() > 1e-6
    spatial = (a.maps['frames'] - b.maps['frames']).abs().amax((0, 1, 3, 4)) # before time, frames are strangers
    assert (spatial > 1e-5).tolist() == [i == t for i in range(4)]


def test_every_column_is_read(stlt):
    "Each of the eight numbers of a box changes the scores"
    x = boxes(full=True)
    x[:, 6:] = 1
    for column in range(8):
        y = x.clone()
        y[:, column] = 3 - y[:, 4] if column == 4 else 2. if column > 5 else y[:, column] + .3
        with torch.no_grad(): assert (stlt(x) - stlt(y)).abs().max() > 1e-4, column


def test_a_clip_without_boxes(stlt):
    z = stlt(torch.zeros(2, 8, 3, 4))
    assert z.isfinite().all() and torch.equal(z[0], z[1])
    z.sum().backward()
    assert all(p.grad.isfinite().all() for p in stlt.parameters() if p.grad is not None)
    stlt.zero_grad()


def test_maps_of_layout(stlt):
    with capture(stlt) as seen, torch.no_grad(): features = stlt.forward_features(boxes())
    assert {n: tuple(m.shape) for n, m in seen.maps.items()} == dict(boxes=(2, 16, 4, 5, 1), frames=(2, 16, 4, 1, 1), time=(2, 16, 4, 1, 1))
    assert features.shape == (2, 16, 1, 1, 1)
    assert all(t.channels == 16 for t in taps(stlt).values())


def official_stlt(w, frames, depth, heads, seed):
    "A state dict in the names of the reference's `Stlt` (src/modelling/hand_models.py), of any width"
    g = torch.Generator().manual_seed(seed)
    linear = lambda n, i, o: {f'{n}.weight': (o, i), f'{n}.bias': (o,)}
    t, e = 'temporal_transformer', 'temporal_transformer.layout_embedding.category_box_embeddings'
    names = {f'{e}.category_embeddings.weight': (3, w), f'{e}.side_embedding.weight': (3, w), f'{e}.state_embedding.weight': (6, w), f'{t}.layout_embedding.cls_token': (1, 1, w), f'{t}.cls_token': (1, 1, w),
             f'{t}.position_embeddings.weight': (frames, w), f'{e}.layer_norm.weight': (w,), f'{e}.layer_norm.bias': (w,), f'{t}.layer_norm.weight': (w,), f'{t}.layer_norm.bias': (w,)}
    names |= linear(f'{e}.box_embedding', 4, w) | linear(f'{e}.score_embedding', 1, w)
    for place, n in ((f'{t}.layout_embedding.transformer', depth[0]), (f'{t}.transformer', depth[1])):
        for i in range(n):
            layer = f'{place}.layers.{i}'
            names |= {f'{layer}.self_attn.in_proj_weight': (3*w, w), f'{layer}.self_attn.in_proj_bias': (3*w,)} | linear(f'{layer}.self_attn.out_proj', w, w) | linear(f'{layer}.linear1', w, 4*w) | linear(f'{layer}.linear2', 4*w, w)
            for k in (1, 2): names |= {f'{layer}.norm{k}.weight': (w,), f'{layer}.norm{k}.bias': (w,)}
    for n, k in heads.items(): names |= linear(f'classifiers.{n.upper()}', w, k)
    state = {k: torch.randn(s, generator=g)*.3 for k, s in names.items()}
    for k in state:
        if any(f'{n}.weight' in k for n in ('category_embeddings', 'side_embedding', 'state_embedding')): state[k][0] = 0 # padding
    return state


def stlt_by_hand(p, x, attention_heads, depth, heads):
    "The reference's forward in plain torch, one sample and one frame at a time, empty slots left out instead of masked"
    t, e = 'temporal_transformer', 'temporal_transformer.layout_embedding.category_box_embeddings'
    lin = lambda k, h: F.linear(h, p[f'{k}.weight'], p[f'{k}.bias'])
    ln = lambda k, h, eps=1e-5: F.layer_norm(h, h.shape[-1:], p[f'{k}.weight'], p[f'{k}.bias'], eps)
    def layer(k, h, mask):
        n, c = h.shape
        q, key, v = F.linear(h, p[f'{k}.self_attn.in_proj_weight'], p[f'{k}.self_attn.in_proj_bias']).view(n, 3, attention_heads, -1).permute(1, 2, 0, 3)
        a = (q @ key.transpose(1, 2)/(c//attention_heads)**.5).masked_fill(mask, -torch.inf).softmax(-1) @ v
        h = ln(f'{k}.norm1', h + lin(f'{k}.self_attn.out_proj', a.transpose(0, 1).reshape(n, c)))
        return ln(f'{k}.norm2', h + lin(f'{k}.linear2', F.gelu(lin(f'{k}.linear1', h))))
    out = []
    for clip in x:
        frames = []
        for frame in clip.transpose(0, 1): # [8, N]
            b = frame[:, frame[4] > 0].T
            h = p[f'{e}.category_embeddings.weight'][b[:, 4].long()] + lin(f'{e}.box_embedding', b[:, :4]) + lin(f'{e}.score_embedding', b[:, 5:6])
            h = h + p[f'{e}.side_embedding.weight'][b[:, 6].long()] + p[f'{e}.state_embedding.weight'][b[:, 7].long()]
            h = torch.cat([p[f'{t}.layout_embedding.cls_token'][0], ln(f'{e}.layer_norm', h, .1)])
            for i in range(depth[0]): h = layer(f'{t}.layout_embedding.transformer.layers.{i}', h, torch.zeros(len(h), len(h), dtype=torch.bool))
            frames.append(h[0])
        h = ln(f'{t}.layer_norm', torch.stack(frames) + p[f'{t}.position_embeddings.weight'][:len(frames)], .1)
        h = torch.cat([h, p[f'{t}.cls_token'][0]])
        for i in range(depth[1]): h = layer(f'{t}.transformer.layers.{i}', h, torch.ones(len(h), len(h), dtype=torch.bool).triu(1))
        out.append(torch.cat([lin(f'classifiers.{n.upper()}', h[-1]) for n in heads]))
    return torch.stack(out)


def test_official_stlt_gives_the_same_numbers(tmp_path):
    heads, depth = dict(verb=4, noun=3), (2, 1)
    state = official_stlt(16, 4, depth, heads, 3)
    torch.save(state, tmp_path/'stlt.pth')
    model = load_official(LayoutStream(heads=heads, frames=4, width=16, depth=depth, attention_heads=4), tmp_path/'stlt.pth')
    x = boxes(3, 4, 5, seed=7)
    with torch.no_grad():
        want = stlt_by_hand(state, x, 4, depth, heads)
        close(model.eval()(x), want)
    model.eval()(x)[:, 0].sum().backward() # the way with gradients is another code path of torch
    close(model(x).detach(), want)
    assert list(split_heads(want, heads)) == ['verb', 'noun']


def test_every_official_stlt_name_has_its_place():
    renamed = rename_keys(official_stlt(8, 16, (6, 6), {}, 0), 'stlt')
    own = {k: v.shape for k, v in LayoutStream(2, width=8).state_dict().items() if not k.startswith('fc.')}
    assert {k: v.shape for k, v in renamed.items()} == own


@pytest.mark.parametrize('call, message', [
    (lambda m: m(boxes(T=7)), 'frames=7'), (lambda m: m(boxes().long()), 'int64'), (lambda m: m(torch.zeros(1, 7, 2, 3)), r'\[1, 7, 2, 3\]'),
    (lambda m: m(boxes() + torch.tensor([0, 0, 0, 0, 2., 0, 0, 0]).view(-1, 1, 1)), 'expected 0 .empty slot'), (lambda m: LayoutStream(2, width=10), '8 attention heads'),
    (lambda m: TwoStream(m, LayoutStream(5, width=16), 'plain')(boxes()), 'takes no gates'), (lambda m: LayoutStream(), 'needs num_classes')])
def test_refused(stlt, call, message):
    with pytest.raises(ModelError, match=message): call(stlt)


# --- small encoders ---

SMALL = {'skeleton': (lambda K: SkeletonStream(K, 17, width=8), lambda g: torch.randn(16, 3, 8, 17, 2, generator=g)),
         'series': (lambda K: SeriesStream(K, 4, width=8), lambda g: torch.randn(16, 4, 32, generator=g)),
         'audio': (lambda K: AudioStream(K, width=4), lambda g: torch.randn(16, 3, 2, 64, 64, generator=g))}


@pytest.mark.parametrize('name', SMALL)
def test_maps_are_what_the_taps_declare(name):
    model, x = SMALL[name][0](3).eval(), SMALL[name][1](torch.Generator())[:2]
    with capture(model) as seen, torch.no_grad(): features = model.forward_features(x)
    T = x.shape[2]
    for n, tap in taps(model).items():
        m = seen.maps[n]
        assert m.shape[:3] == (2, tap.channels, T//tap.t_stride)
        assert m.shape[3:] == {'skeleton': (17, 2), 'series': (1, 1), 'audio': (64//tap.s_stride,)*2}[name]
    assert torch.equal(features, list(seen.maps.values())[-1]) and features.shape[1] == model.num_features


@pytest.mark.parametrize('name', SMALL)
def test_small_encoders_learn(name):
    "Sixteen noisy clips of two classes, told apart by their second half in time"
    seed_all(0)
    g = torch.Generator().manual_seed(0)
    model, x, y = SMALL[name][0](2), SMALL[name][1](g), torch.arange(16) % 2
    x[y == 1, :, x.shape[2]//2:] += .7
    opt = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(15):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert loss < .2


@pytest.mark.parametrize('joints', [15, 17, 20, 25])
def test_skeletons_of_any_kind(joints):
    seed_all(0)
    model, x = shaken(SkeletonStream(3, joints, width=8)).eval(), torch.randn(2, 3, 8, joints, 3)
    with torch.no_grad():
        close(model(x), model(x[..., [2, 0, 1]])) # bodies have no order
        assert (model(x) - model(x.flip(2))).abs().max() > 1e-5 # frames do
        assert (model(x) - model(x.flip(3))).abs().max() > 1e-5 # and joints
    assert count_params(SkeletonStream(60, joints)) < 200_000


def test_audio_reads_time():
    seed_all(0)
    model, x = shaken(AudioStream(3, width=4)).eval(), torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert (model(x) - model(x.flip(2))).abs().max() > 1e-6
        y = x.clone(); y[:, 1:] = 0
        assert torch.equal(model(x), model(y)) # three equal channels: one is read


@pytest.mark.parametrize('call, message', [(lambda: SkeletonStream(3, 20)(torch.zeros(1, 3, 4, 25, 2)), '20 joints'), (lambda: SeriesStream(3)(torch.zeros(1, 3, 32)), '6 channels'),
                                           (lambda: SeriesStream(3)(torch.zeros(1, 6, 32, dtype=torch.int32)), 'int32'), (lambda: AudioStream(3)(torch.zeros(1, 1, 4, 64, 64)), 'spectrogram')])
def test_small_encoders_refuse(call, message):
    with pytest.raises(ModelError, match=message): call()


# --- fusion ---

@pytest.fixture(scope='module')
def parts():
    seed_all(0)
    return SmallStream(5, width=4).eval(), shaken(LayoutStream(5, frames=6, width=16, depth=(1, 1), attention_heads=4)).eval()


def fusion(parts, how, **options): return shaken(FusionStream(*parts, how=how, attention_heads=4, layers=2, tokens=20, **options)).eval()


@pytest.mark.parametrize('how', ['lcf', 'caf', 'cacnf'])
def test_fusion_reads_both(parts, how):
    model, v, b = fusion(parts, how), torch.randn(2, 3, 4, 24, 24), boxes()
    with torch.no_grad():
        z = model(v, b)
        named = model.forward_parts(v, b)
        close(z, sum(named.values())/len(named))
        close(model(v, b[..., [4, 2, 0, 1, 3]]), z)
        assert (model(v.flip(4), b) - z).abs().max() > 1e-5 and (model(v, boxes(seed=1)) - z).abs().max() > 1e-5
    assert list(named) == (['layout', 'video', 'fusion'] if how == 'cacnf' else ['fusion'])
    model(v, b).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None] # nothing is carried along unused


def test_late_concatenation_by_hand(parts):
    model, v, b = fusion(parts, 'lcf'), torch.randn(2, 3, 4, 24, 24), boxes()
    with torch.no_grad():
        both = torch.cat([model.layout.encode(b)[:, -1], model.appearance(model.video.forward_features(v))[:, 0]], 1)
        linear, _, norm = model.before
        close(model(v, b), model.fc(norm(F.gelu(linear(both)))))


def test_cross_attention_is_shared_and_causal(parts):
    model = fusion(parts, 'caf')
    cross = model.cross[0]
    b, v = torch.randn(1, 4, 16), torch.randn(1, 6, 16)
    with torch.no_grad():
        ob, ov = cross(b, v)
        later = b.clone(); later[:, 2] += 1
        nb, nv = cross(later, v)
        close(nb[:, :2], ob[:, :2])
        assert (nb[:, 2:] - ob[:, 2:]).abs().min(-1).values.max() > 1e-6 and (nv - ov).abs().max() > 1e-5
        attend = lambda m, x, c, mask=None: m.norm(x + m.attn(x, c, c, attn_mask=mask)[0])
        x = attend(cross.own_video, *[attend(cross.cross, v, b)]*2)
        close(ov, cross.feed_video.norm(x + cross.feed_video.layers(x)))


def test_fusion_leaves_the_streams_alone(parts):
    video, layout = parts
    model = fusion(parts, 'caf')
    assert isinstance(video.fc, nn.Linear) and isinstance(layout.fc, nn.Linear)
    assert not {p.data_ptr() for p in video.parameters()} & {p.data_ptr() for p in model.parameters() if p.numel()}


def test_fusion_refuses(parts):
    with pytest.raises(ModelError, match='tokens=36'): fusion(parts, 'lcf')(torch.zeros(1, 3, 4, 48, 48), boxes(B=1))
    with pytest.raises(ModelError, match='lcf, caf or cacnf'): FusionStream(*parts, how='mean')


# --- files ---

def models():
    layout = LayoutStream(heads=dict(verb=2, noun=3), frames=4, width=16, depth=(1, 1), attention_heads=4)
    yield layout, (BoxesClip(boxes()),)
    yield SkeletonStream(3, 20, width=8), (JointsClip(torch.randn(2, 3, 4, 20, 2)),)
    yield SeriesStream(3, 4, width=8), (SeriesClip(torch.randn(2, 4, 32)),)
    yield AudioStream(3, width=4), (torch.randn(2, 3, 2, 64, 64),)
    yield FusionStream(SmallStream(5, width=4), layout, how='cacnf', layers=1, attention_heads=4, tokens=20), (torch.randn(2, 3, 4, 24, 24), boxes())


@pytest.mark.parametrize('i', range(5))
def test_round_trip(i, tmp_path):
    model, inputs = list(models())[i]
    again = load_model(save_model(model.eval(), tmp_path/'m.safetensors'))
    with torch.no_grad(): z, w = model(*inputs), again(*inputs)
    assert type(z) is torch.Tensor and torch.equal(z, w)
    assert again.hparams == model.hparams == build(model.hparams).hparams


def test_fusion_over_a_video_backbone(tmp_path):
    with torch.device('meta'):
        model = FusionStream(VideoStream('hara_18', 174), LayoutStream(174)).eval()
        with torch.no_grad(): assert model(torch.zeros(1, 3, 16, 112, 112), torch.zeros(1, 8, 16, 14)).shape == (1, 174)
        assert 'projector.0.weight' not in dict(model.video.named_parameters())
        assert build(model.hparams).hparams == model.hparams
