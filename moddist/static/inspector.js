// moddist inspector: plain JavaScript, no library, no network. Arrays are 8-bit and deflated; see `pack` in widgets.py.
'use strict';
(() => {
const D = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const el = (tag, text = '') => Object.assign(document.createElement(tag), {textContent: text});
const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0));
const num = (x, d = 2) => x === null || x === undefined || Number.isNaN(x) ? '–' : x.toFixed(d).replace('-', '−');
const capital = s => s.charAt(0).toUpperCase() + s.slice(1);
const sig = x => x === 0 ? '0' : String(Number(x.toPrecision(3))).replace('-', '−');
const lut = Object.fromEntries(Object.entries(D.luts).map(([k, v]) => [k, bytes(v)]));
const panes = Object.fromEntries([...document.querySelectorAll('.pane')].map(p => [p.dataset.pane,
  {box: p, view: p.querySelector('.view'), canvas: p.querySelector('canvas'), mark: p.querySelector('i'), name: p.querySelector('.name'), value: p.querySelector('output')}]));

// What is shown. `channel` is a position in the packed channels: 0 is the mean over channels.
const state = {clip: 0, frame: Math.floor(D.clips[0].T / 2), layer: D.start, channel: 0, order: 'energy', per: 'channel', hover: null, pinned: null};
const clip = () => D.clips[state.clip];
const layer = () => D.layers[state.layer];
const stats = () => clip().maps[state.layer];
const channelName = c => layer().channels[c] < 0 ? 'mean over channels' : `channel ${layer().channels[c]}`;
let timer = null, shown = null;                             // `shown`: the arrays of the clip and layer on the screen

// ---- arrays -----------------------------------------------------------------------------------------------------
async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const cache = new Map();                                   // the last few arrays and pictures, so that memory stays bounded
function cached(key, make) {
  if (!cache.has(key)) cache.set(key, make());
  const value = cache.get(key);
  cache.delete(key); cache.set(key, value);                // most recent last
  if (cache.size > 24) cache.delete(cache.keys().next().value);
  return value;
}
const picture = uri => { const i = new Image(); i.src = uri; return i.decode().then(() => i); };
async function load() {
  const c = clip(), m = stats(), key = wanted();
  const [maps, rgb, depth] = await Promise.all([
    cached(`m${key}`, () => inflate(m.data)),
    cached(`r${state.clip}`, () => Promise.all(c.rgb.map(picture))),
    cached(`d${state.clip}`, () => D.scalar ? inflate(c.depth.data) : Promise.all(c.depth.frames.map(picture)))]);
  const [C, T, h, w] = m.shape;
  return {key, maps, rgb, depth, C, T, h, w, side: C * T * h * w};
}
// Start of a map in the packed bytes, and a value in activation units
const at = (side, channel) => side * shown.side + (channel * shown.T + Math.floor(state.frame * shown.T / clip().T)) * shown.h * shown.w;
const value = (side, channel, i) => layer().lo[channel] + shown.maps[at(side, channel) + i] * layer().step[channel];
function limits(channel) {
  const L = layer();
  return state.per === 'layer' ? L.whole : [L.lo[channel], L.lo[channel] + 255 * L.step[channel], L.diff[channel]];
}

// ---- drawing ----------------------------------------------------------------------------------------------------
// Fill part of a canvas, one canvas pixel per map pixel; `colour(i)` is an index 0..255 into a colour map, or -1 for "no reading"
function paint(ctx, x, y, w, h, table, colour) {
  const image = ctx.createImageData(w, h), px = image.data;
  for (let i = 0; i < w * h; i++) {
    const k = colour(i);
    if (k < 0) continue;
    px[4*i] = table[3*k]; px[4*i+1] = table[3*k+1]; px[4*i+2] = table[3*k+2]; px[4*i+3] = 255;
  }
  ctx.putImageData(image, x, y);
}
function blank(canvas, w, h) {
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const ctx = canvas.getContext('2d', {willReadFrequently: true});
  ctx.clearRect(0, 0, w, h);
  return ctx;
}
const to255 = (v, lo, hi) => Math.max(0, Math.min(255, Math.round((v - lo) / (hi - lo) * 255)));
function drawMap(ctx, side, channel, y = 0) {
  const [lo, hi] = limits(channel), o = at(side, channel), base = layer().lo[channel], step = layer().step[channel];
  paint(ctx, 0, y, shown.w, shown.h, lut.feature, i => to255(base + shown.maps[o + i] * step, lo, hi));
}
function drawPanes() {
  const c = clip(), ch = state.channel, [, , d] = limits(ch);
  blank(panes.rgb.canvas, c.W, c.H).drawImage(shown.rgb[state.frame], 0, 0, c.W, c.H);
  const dc = blank(panes.depth.canvas, c.depth.W, c.depth.H);
  if (D.scalar) { const o = state.frame * c.depth.W * c.depth.H; paint(dc, 0, 0, c.depth.W, c.depth.H, lut.depth, i => shown.depth[o + i] ? Math.round((shown.depth[o + i] - 1) * 255 / 254) : -1); }
  else dc.drawImage(shown.depth[state.frame], 0, 0, c.depth.W, c.depth.H);
  drawMap(blank(panes.real.canvas, shown.w, shown.h), 0, ch);
  drawMap(blank(panes.hall.canvas, shown.w, shown.h), 1, ch);
  paint(blank(panes.diff.canvas, shown.w, shown.h), 0, 0, shown.w, shown.h, lut.diff, i => to255(value(1, ch, i) - value(0, ch, i), -d, d));
}
function drawBar(box, table, ticks, title) {
  if (!box.firstChild) box.append(el('canvas'), el('div'), el('p'));
  const [canvas, marks, label] = box.children;
  paint(blank(canvas, 256, 1), 0, 0, 256, 1, table, i => i);
  marks.replaceChildren(...ticks.map(t => el('span', t)));
  label.textContent = title;
}
function drawBars() {
  const [lo, hi, d] = limits(state.channel), L = layer();
  if (D.scalar) drawBar(panes.depth.box.querySelector('.bar'), lut.depth, [D.near, (D.near + D.far) / 2, D.far].map(v => sig(v)), `${D.unit}; grey: no reading`);
  drawBar(document.querySelector('[data-bar=value]'), lut.feature, [lo, lo + (hi - lo) / 4, (lo + hi) / 2, hi - (hi - lo) / 4, hi].map(sig),
    `activation of ${L.name}: one scale for real and hallucinated, ${state.per === 'layer' ? 'all channels, ' : ''}${D.over}`);
  drawBar(panes.diff.box.querySelector('.bar'), lut.diff, [sig(-d), '0', '+' + sig(d)], 'blue: too little, red: too much');
}
function drawGrid() {
  for (const b of $('grid').children) {
    const c = Number(b.dataset.channel), ctx = blank(b.firstChild, shown.w, 2 * shown.h + 1);
    drawMap(ctx, 0, c); drawMap(ctx, 1, c, shown.h + 1);
  }
}
function drawSummary() {
  const c = clip(), m = stats(), [cos, corr] = [m.cosine[state.channel][state.frame], m.correlation[state.channel][state.frame]];
  const b = text => el('b', text), s = text => el('span', text);
  $('summary').replaceChildren(b(c.action || c.id), s(`  ${layer().name}, ${channelName(state.channel)}, frame ${state.frame}: `),
    s('cosine '), b(num(cos)), s('  correlation '), b(num(corr)), s(corr === null ? ' (undefined: a map is constant here)' : ''));
  if (c.prediction) { const p = s(`   ${c.prediction}`); p.className = 'says'; $('summary').append(p); }
  for (const [key, p] of Object.entries(panes)) p.canvas.setAttribute('aria-label', `${p.name.textContent}, ${key === 'rgb' || key === 'depth' ? '' : `${layer().name} ${channelName(state.channel)}, `}frame ${state.frame}`);
}

// ---- the chart: agreement per frame, or one pinned place through time --------------------------------------------
function curve(points, x, y, colour, dash = '') {
  let d = '', pen = 'M';
  points.forEach((v, i) => { if (v === null) pen = 'M'; else { d += `${pen}${x(i).toFixed(1)},${y(v).toFixed(1)}`; pen = 'L'; } });
  const dots = points.map((v, i) => v === null ? '' : `<circle cx="${x(i).toFixed(1)}" cy="${y(v).toFixed(1)}" r="2.4" fill="var(${colour})"/>`).join('');
  return `<path d="${d}" fill="none" stroke="var(${colour})" stroke-width="2" stroke-dasharray="${dash}" stroke-linejoin="round"/>${dots}`;
}
function through(side) {                                    // the pinned place of the current channel, over the frames
  const i = cell(shown.w, shown.h, state.pinned), now = state.frame, out = [];
  for (state.frame = 0; state.frame < clip().T; state.frame++) out.push(value(side, state.channel, i));
  state.frame = now;
  return out;
}
function drawChart() {
  const T = clip().T, pinned = state.pinned, m = stats();
  const lines = pinned ? [through(0), through(1)] : [m.cosine[state.channel], m.correlation[state.channel]];
  const all = lines.flat().filter(v => v !== null);
  const lo = pinned ? Math.min(limits(state.channel)[0], ...all) : Math.min(0, ...all) < 0 ? -1 : 0, hi = pinned ? Math.max(limits(state.channel)[1], ...all) : 1;
  const W = $('chart').clientWidth || 400, H = $('chart').clientHeight || 236, left = 40, right = 8, top = 8, low = 24;
  const x = t => left + (W - left - right) * (T > 1 ? t / (T - 1) : .5), y = v => top + (H - top - low) * (1 - (v - lo) / (hi - lo));
  const ticks = [lo, (lo + hi) / 2, hi];
  $('chart').innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${pinned ? 'activation at the chosen place' : 'cosine and correlation'} in every frame">`
    + ticks.map(v => `<line x1="${left}" x2="${W - right}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/><text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${sig(v)}</text>`).join('')
    + `<line x1="${x(state.frame)}" x2="${x(state.frame)}" y1="${top}" y2="${H - low}" stroke="var(--soft)" stroke-dasharray="3 3"/>`
    + Array.from({length: T}, (_, t) => T <= 16 || t % Math.ceil(T / 12) === 0 ? `<text x="${x(t)}" y="${H - 6}" text-anchor="middle">${t}</text>` : '').join('')
    + curve(lines[0], x, y, '--accent') + curve(lines[1], x, y, '--second', '6 3') + '</svg>';
  $('chart-title').textContent = pinned ? `${layer().name}, ${channelName(state.channel)}: one place through time` : 'Agreement, frame by frame';
  const key = (name, css, mark) => Object.assign(el('b', `${mark} ${name}`), {style: `color:var(${css})`});
  $('chart-legend').replaceChildren(key(pinned ? 'real' : 'cosine', '--accent', '━'), '   ', key(pinned ? 'hallucinated' : 'correlation', '--second', '╍'), pinned ? '   (yellow square; esc lets go)' : '   of the two maps; 1 = same pattern. Click to go to a frame.');
  $('chart').firstChild.onclick = e => { const r = e.currentTarget.getBoundingClientRect(); go({frame: Math.max(0, Math.min(T - 1, Math.round((e.clientX - r.left - left) / (r.width - left - right) * (T - 1))))}); };
}

// ---- the same place in all panes ---------------------------------------------------------------------------------
const cell = (w, h, p) => Math.min(h - 1, Math.floor(p.y * h)) * w + Math.min(w - 1, Math.floor(p.x * w));
function readPicture(canvas, p) {
  const i = cell(canvas.width, canvas.height, p);
  return [...canvas.getContext('2d').getImageData(i % canvas.width, Math.floor(i / canvas.width), 1, 1).data.slice(0, 3)].join(' ');
}
function drawPlace() {
  const p = state.hover || state.pinned, c = clip();
  for (const q of Object.values(panes)) {
    q.mark.className = p ? (p === state.pinned ? 'on pinned' : 'on') : '';
    if (p) { q.mark.style.left = `${100 * p.x}%`; q.mark.style.top = `${100 * p.y}%`; } else q.value.textContent = '';
  }
  if (!p) { $('pixel').textContent = 'Point at any picture to read the same place in all five; click to follow it through time.'; return; }
  const i = cell(shown.w, shown.h, p), r = value(0, state.channel, i), h = value(1, state.channel, i);
  const stored = D.scalar && shown.depth[state.frame * c.depth.W * c.depth.H + cell(c.depth.W, c.depth.H, p)];
  panes.rgb.value.textContent = readPicture(panes.rgb.canvas, p);
  panes.depth.value.textContent = !D.scalar ? readPicture(panes.depth.canvas, p) : stored ? `${Math.round(D.near + (stored - 1) / 254 * (D.far - D.near))} ${D.unit}` : 'no reading';
  panes.real.value.textContent = num(r, 3); panes.hall.value.textContent = num(h, 3); panes.diff.value.textContent = (h > r ? '+' : '') + num(h - r, 3);
  $('pixel').textContent = `Pixel x ${Math.floor(p.x * c.W)}, y ${Math.floor(p.y * c.H)} of ${c.W} x ${c.H}; cell x ${i % shown.w}, y ${Math.floor(i / shown.w)} of the ${shown.w} x ${shown.h} map: real ${num(r, 3)}, hallucinated ${num(h, 3)}, difference ${num(h - r, 3)}.`;
}
const place = (e, view) => { const r = view.getBoundingClientRect(); return {x: Math.max(0, Math.min(.9999, (e.clientX - r.left) / r.width)), y: Math.max(0, Math.min(.9999, (e.clientY - r.top) / r.height))}; };

// ---- state -> page -----------------------------------------------------------------------------------------------
function ordered() {
  const s = stats(), ids = layer().channels.map((_, i) => i).slice(1);
  const key = {energy: i => -s.energy[i], agreement: i => s.whole[i] === null ? 9 : -s.whole[i], disagreement: i => s.whole[i] === null ? 9 : s.whole[i], channel: i => layer().channels[i]}[state.order];
  return [0, ...ids.sort((a, b) => key(a) - key(b) || a - b)];
}
function fillChannels() {
  const list = ordered(), r = i => num(stats().whole[i]);
  $('channel').replaceChildren(...list.map(i => Object.assign(el('option', i ? `${layer().channels[i]}   (r ${r(i)})` : `mean over channels`), {value: i})));
  $('grid').replaceChildren(...list.map(i => {
    const b = el('button'); b.type = 'button'; b.dataset.channel = i; b.setAttribute('role', 'option');
    b.setAttribute('aria-label', `${channelName(i)}, correlation ${r(i)}`);
    b.append(el('canvas'), el('b', i ? layer().channels[i] : 'mean'), el('br'), `r ${r(i)}`);
    b.onclick = () => go({channel: i});
    return b;
  }));
}
function markChannel() {
  $('channel').value = state.channel;
  for (const b of $('grid').children) {
    const on = Number(b.dataset.channel) === state.channel;
    b.setAttribute('aria-selected', on); b.tabIndex = on ? 0 : -1;
    if (on) { const g = $('grid'), top = b.offsetTop - g.offsetTop; if (top < g.scrollTop || top + b.offsetHeight > g.scrollTop + g.clientHeight) g.scrollTop = top - 4; }
  }
}
// Change some of the state and draw what depends on it
async function go(change) {
  Object.assign(state, change);
  if ('layer' in change && !('channel' in change)) state.channel = 0;
  let fresh = false;
  if (!shown || shown.key !== wanted()) {
    let got;
    try { got = await load(); }
    catch (e) { complain(`This clip could not be unpacked (${e.message}); use a browser of 2023 or later, or write the file again.`); return; }
    if (got.key !== wanted()) return;                       // meanwhile something else was asked for
    fresh = !shown || shown.key !== got.key;
    shown = got;
  }
  const c = clip();
  state.frame = Math.min(state.frame, c.T - 1);
  if (fresh) {
    $('clip').value = state.clip; $('layer').value = state.layer; $('frame').max = c.T - 1;
    $('panes').style.setProperty('--aspect', c.W / c.H);
    panes.rgb.view.classList.toggle('smooth', c.W > 160); panes.depth.view.classList.toggle('smooth', !D.scalar && c.W > 160);
  }
  $('frame').value = state.frame; $('frame-now').textContent = `${state.frame} of 0–${c.T - 1}`;
  if (fresh || 'order' in change) fillChannels();
  if (fresh || 'order' in change || 'channel' in change) markChannel();
  drawPanes(); drawBars(); drawSummary(); drawChart(); drawPlace();
  if (fresh || !('channel' in change)) drawGrid();
  document.body.dataset.state = JSON.stringify({clip: state.clip, frame: state.frame, layer: state.layer, channel: state.channel, order: state.order, per: state.per});
}
const wanted = () => `${state.clip}/${state.layer}`;
function complain(text) { $('message').textContent = text; $('message').hidden = false; }
function play(on) {
  clearInterval(timer); timer = on ? setInterval(() => go({frame: (state.frame + 1) % clip().T}), 170) : null;
  $('play').setAttribute('aria-pressed', on); $('play').setAttribute('aria-label', on ? 'Pause' : 'Play');
}
function stepChannel(by) { const list = ordered(), i = list.indexOf(state.channel); go({channel: list[Math.max(0, Math.min(list.length - 1, i + by))]}); }
const stepFrame = by => go({frame: (state.frame + by + clip().T) % clip().T});
const stepLayer = by => go({layer: Math.max(0, Math.min(D.layers.length - 1, state.layer + by))});

function start() {
  if (typeof DecompressionStream === 'undefined') { complain('This browser cannot unpack the file: open it in Chrome 80, Firefox 113, Safari 16.4 or a later one.'); return; }
  if (D.message) complain(D.message);
  $('clip').append(...D.clips.map((c, i) => Object.assign(el('option', c.action ? `${c.action}   (${c.id})` : c.id), {value: i})));
  $('layer').append(...D.layers.map((l, i) => Object.assign(el('option', `${l.name}   (${l.total} channels)`), {value: i})));
  for (const [key, name] of Object.entries({rgb: capital(D.student), depth: capital(D.teacher), real: `Real ${D.teacher} features`, hall: `Hallucinated from ${D.student}`, diff: 'Hallucinated − real'})) { panes[key].name.textContent = name; panes[key].name.title = name; }
  for (const id of ['clip', 'layer', 'channel']) $(id).onchange = e => go({[id]: Number(e.target.value)});
  for (const id of ['order', 'per']) $(id).onchange = e => go({[id]: e.target.value});
  $('frame').oninput = e => go({frame: Number(e.target.value)});
  $('play').onclick = () => play(!timer);
  for (const p of Object.values(panes)) {
    p.view.onpointermove = e => { state.hover = place(e, p.view); drawPlace(); };
    p.view.onpointerleave = () => { state.hover = null; drawPlace(); };
    p.view.onclick = e => { state.pinned = place(e, p.view); drawChart(); drawPlace(); };
  }
  const keys = {ArrowLeft: () => stepFrame(-1), ArrowRight: () => stepFrame(1), ArrowUp: () => stepChannel(-1), ArrowDown: () => stepChannel(1),
    '[': () => stepLayer(-1), ']': () => stepLayer(1), ' ': () => play(!timer), Escape: () => { state.pinned = null; drawChart(); drawPlace(); }};
  document.onkeydown = e => {
    const tag = e.target.tagName, own = tag === 'SELECT' || (tag === 'INPUT' && e.key.startsWith('Arrow')) || (tag === 'BUTTON' && e.key === ' ');
    if (own || e.ctrlKey || e.metaKey || e.altKey || !(e.key in keys) || !shown) return;
    e.preventDefault(); keys[e.key]();
  };
  window.onresize = () => shown && drawChart();
  go({});
}
start();
})();
