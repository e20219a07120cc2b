// The inspector of moddist: plain JavaScript, no library, no network. One front end for the live widget (arrays come from
// the kernel) and for the file (arrays lie in the page). Arrays are 8-bit; widgets.py and page.py say how they are made.

const PANE = (key, bar = '') => `<figure class="pane" data-pane="${key}"><figcaption><span class="name"></span><output></output></figcaption>
  <div class="view" tabindex="0" role="group"><canvas role="img"></canvas><i></i></div>${bar}</figure>`;
const BODY = `
<p class="message" role="alert" hidden></p>
<form class="controls" aria-label="What to show">
  <label class="wide">Clip <select name="clip"></select></label>
  <label>Layer <select name="layer"></select></label>
  <label>Channel <select name="channel"></select></label>
  <label>Sort channels by <select name="order"></select></label>
  <label>Colour scale <select name="per"><option value="channel">channel, all clips</option><option value="clip">channel, this clip</option><option value="layer">whole layer</option></select></label>
  <label class="several">Student <select name="source"></select></label>
  <label class="several">Compare with <select name="against"></select></label>
  <div class="time">
    <button class="play" type="button" aria-pressed="false" aria-label="Play"><span aria-hidden="true"></span></button>
    <label class="frame"><span>Frame <b class="now"></b></span><input name="frame" type="range" min="0" max="0" step="1" value="0"></label>
  </div>
</form>
<p class="summary" aria-live="polite"></p>
<section class="panes" aria-label="Linked pictures">
  ${PANE('rgb')}${PANE('depth', '<div class="bar"></div>')}
  <div class="pair">${PANE('real')}${PANE('hall')}<div class="bar" data-bar="value"></div></div>
  ${PANE('diff', '<div class="bar"></div>')}
  <div class="verdict second"></div>${['change', 'hall2', 'diff2'].map(k => PANE(k).replace('"pane"', '"pane second"')).join('')}
</section>
<p class="pixel"></p>
<section class="card layers" aria-label="All layers"><h2>Layers <small>mean over channels, real beside hallucinated; r = median over channels of their correlation in this clip</small></h2><div class="strip"></div></section>
<div class="below">
  <section class="card through" aria-label="Through time"><h2 class="chart-title"></h2><div class="chart"></div><p class="legend"></p></section>
  <section class="card channels" aria-label="All channels">
    <h2><span class="grid-title"></span> <small></small></h2>
    <div class="grid" role="listbox" aria-label="Channels"></div>
    <div class="pages"><button type="button" aria-label="Channels before">‹</button><output></output><button type="button" aria-label="More channels">›</button></div>
  </section>
</div>
<p class="keys"><kbd>←</kbd> <kbd>→</kbd> frame <kbd>↑</kbd> <kbd>↓</kbd> channel <kbd>[</kbd> <kbd>]</kbd> layer <kbd>space</kbd> play; on a picture <kbd>enter</kbd> picks a place, the arrows move it, <kbd>esc</kbd> lets it go</p>`;
const ORDERS = {energy: 'energy', agreement: 'best agreement', disagreement: 'worst agreement', weight: 'class weight', gain: 'change in agreement', channel: 'number'};
const HINT = 'Point at any picture to read the same place in all of them; click to follow it through time.';
const PER_PAGE = 60, KEPT = 96e6;                           // channels on a page of the sheet; bytes of arrays kept in the browser

const el = (tag, text = '', cls = '') => Object.assign(document.createElement(tag), {textContent: text, className: cls});
const option = (value, text, disabled = false) => Object.assign(el('option', text), {value, disabled});
const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0));
const minus = s => s.replace('-', '−');
const num = (x, d = 2) => x === null || x === undefined || Number.isNaN(x) ? '–' : minus((Math.abs(x) < .5 * 10 ** -d ? 0 : x).toFixed(d));
const signed = (x, d = 2) => x === null ? '–' : (x > 0 ? '+' : '') + num(x, d);
const sig = x => x === 0 ? '0' : minus(String(Number(x.toPrecision(3))));
const capital = s => s.charAt(0).toUpperCase() + s.slice(1);
const clamp = (x, lo, hi) => Math.max(lo, Math.min(hi, x));
const to255 = (v, lo, hi) => clamp(Math.round((v - lo) / (hi - lo) * 255), 0, 255);

// The last arrays and pictures, at most KEPT bytes of them: the least recently used go first
function keeper() {
  const kept = new Map();
  return (key, make, size) => {
    const hit = kept.get(key) || {value: make(), size: 0};
    kept.delete(key); kept.set(key, hit);
    hit.value.then(v => {
      hit.size = size(v);
      let sum = [...kept.values()].reduce((s, h) => s + h.size, 0);
      for (const [k, h] of kept) { if (sum <= KEPT || kept.size <= 1) break; if (h !== hit) { kept.delete(k); sum -= h.size; } }
    }, () => kept.delete(key));
    return hit.value;
  };
}
const picture = uri => { const i = new Image(); i.src = uri; return i.decode().then(() => i); };

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

// `source`: {head, clip(i), maps(i, layer), overview(i)}; `link` binds the state to something outside: {get, set, listen}
function mount(root, source, link = null) {
  const D = source.head, $ = q => root.querySelector(q), many = D.sources.length > 1;
  root.classList.add('mdi'); root.classList.toggle('many', many);
  root.dataset.lmSuppressShortcuts = 'true';                // JupyterLab leaves keys pressed in here alone
  root.innerHTML = BODY;
  const lut = Object.fromEntries(Object.entries(D.luts).map(([k, v]) => [k, bytes(v)]));
  const panes = Object.fromEntries([...root.querySelectorAll('.pane')].map(p => [p.dataset.pane,
    {box: p, view: p.querySelector('.view'), canvas: p.querySelector('canvas'), mark: p.querySelector('i'), name: p.querySelector('.name'), value: p.querySelector('output')}]));
  const control = name => $(`.controls [name=${name}]`);
  const state = {clip: 0, frame: D.frame || 0, layer: D.start, channel: -1, order: 'energy', per: 'channel', source: D.sources[0], against: '', place: [], ...(link ? link.get() : {})};
  const keep = keeper();
  let timer = null, hover = null, sheet = 0, menu = {}, sorted = {}, shown = null, layers = null, retired = false;

  // ---- what is on the screen ------------------------------------------------------------------------------------
  const wanted = () => `${state.clip}/${state.layer}`;
  const present = () => shown.M.sources || D.sources;      // of several students some may be missing for a clip
  const sideOf = name => 1 + present().indexOf(name);       // 0 is the real map
  const position = c => shown.M.channels.indexOf(c);
  const channelName = c => c < 0 ? 'mean over channels' : `channel ${c}`;
  const at = (side, c, t = state.frame) => ((side * shown.M.C + c) * shown.M.T + Math.floor(t * shown.M.T / shown.V.T)) * shown.M.h * shown.M.w;
  const value = (side, c, i, t) => shown.M.lo[c] + shown.M.data[at(side, c, t) + i] * shown.M.step[c];
  const limits = c => state.per === 'layer' ? shown.M.whole : state.per === 'clip' ? ofClip(c) : [shown.M.lo[c], shown.M.lo[c] + 255 * shown.M.step[c], shown.M.diff[c]];
  function ofClip(c) {                                       // the same of this clip alone: over all sides and frames
    const {M} = shown, n = M.T * M.h * M.w, sides = present().length + 1;
    M.own = M.own || new Map();
    if (!M.own.has(c)) {
      let low = 255, high = 0, most = 0;
      for (let i = c * n; i < (c + 1) * n; i++) {
        let a = 255, b = 0;
        for (let s = 0; s < sides; s++) { const v = M.data[s * M.C * n + i]; if (v < a) a = v; if (v > b) b = v; }
        if (a < low) low = a; if (b > high) high = b; if (b - a > most) most = b - a;
      }
      const lo = Math.min(0, M.lo[c] + low * M.step[c]), hi = Math.max(M.lo[c] + high * M.step[c], lo + 1e-6);
      M.own.set(c, [lo, hi, most * M.step[c] || hi - lo]);
    }
    return M.own.get(c);
  }
  const second = () => state.against && state.against !== state.source ? state.against : '';
  const r = (name, c) => shown.M.r[sideOf(name) - 1][c];
  async function load() {
    const key = wanted(), clip = state.clip;
    const V = await keep(`v${clip}`, async () => {
      const v = await source.clip(clip);
      const [rgb, depth] = await Promise.all([Promise.all(v.rgb.map(picture)), v.depth.frames ? Promise.all(v.depth.frames.map(picture)) : v.depth.data]);
      return {...v, rgb, pixels: depth};
    }, v => 4 * v.T * v.W * v.H);
    const M = await keep(`m${key}`, () => source.maps(clip, state.layer), m => m.data.length);
    return {key, V, M};
  }

  // ---- drawing --------------------------------------------------------------------------------------------------
  function drawMap(ctx, side, c) {
    const [lo, hi] = limits(c), o = at(side, c), {w, h, data} = shown.M, base = shown.M.lo[c], step = shown.M.step[c];
    paint(ctx, 0, 0, w, h, lut.feature, i => to255(base + data[o + i] * step, lo, hi));
  }
  function drawDiff(pane, a, b, c) {                         // a - b; equal bytes are equal values
    const d = limits(c)[2], {w, h, data, step} = shown.M, oa = at(a, c), ob = at(b, c);
    paint(blank(panes[pane].canvas, w, h), 0, 0, w, h, lut.diff, i => to255((data[oa + i] - data[ob + i]) * step[c], -d, d));
  }
  function drawPanes() {
    const {V, M} = shown, c = position(state.channel), a = sideOf(state.source), b = sideOf(second());
    blank(panes.rgb.canvas, V.W, V.H).drawImage(V.rgb[state.frame], 0, 0, V.W, V.H);
    const {W, H} = V.depth, dc = blank(panes.depth.canvas, W, H);
    if (D.scalar) { const o = state.frame * W * H; paint(dc, 0, 0, W, H, lut.depth, i => V.pixels[o + i] ? Math.round((V.pixels[o + i] - 1) * 255 / 254) : -1); }
    else dc.drawImage(V.pixels[state.frame], 0, 0, W, H);
    drawMap(blank(panes.real.canvas, M.w, M.h), 0, c);
    drawMap(blank(panes.hall.canvas, M.w, M.h), a, c);
    drawDiff('diff', a, 0, c);
    if (second()) { drawMap(blank(panes.hall2.canvas, M.w, M.h), b, c); drawDiff('diff2', b, 0, c); drawDiff('change', b, a, c); }
  }
  function drawBar(box, table, ticks, title) {
    if (!box.firstChild) box.append(el('canvas'), el('div'), el('p'));
    const [canvas, marks, label] = box.children;
    paint(blank(canvas, 256, 1), 0, 0, 256, 1, table, i => i);
    canvas.setAttribute('aria-hidden', 'true');
    marks.replaceChildren(...ticks.map(t => el('span', t)));
    label.textContent = title;
  }
  function drawBars() {
    const {V, M} = shown, [lo, hi, d] = limits(position(state.channel));
    if (D.scalar) drawBar(panes.depth.box.querySelector('.bar'), lut.depth, [V.near, (V.near + V.far) / 2, V.far].map(sig), `${D.unit}; striped: no reading`);
    drawBar($('[data-bar=value]'), lut.feature, [lo, lo + (hi - lo) / 4, (lo + hi) / 2, hi - (hi - lo) / 4, hi].map(sig),
      `activation of ${state.layer} (no unit): one scale for real and hallucinated, ${state.per === 'layer' ? 'all channels, ' : ''}${state.per === 'clip' ? 'all frames of this clip' : D.over}`);
    drawBar(panes.diff.box.querySelector('.bar'), lut.diff, [sig(-d), '0', '+' + sig(d)], 'blue: too little, red: too much');
  }
  function drawSummary() {
    const {V, M} = shown, c = position(state.channel), bits = [], s = t => bits.push(el('span', t)), b = t => bits.push(el('b', t));
    b(V.action || V.id); s(`  ${state.layer}, ${channelName(state.channel)}, frame ${state.frame}: `);
    for (const name of [state.source, second()].filter(Boolean)) {
      const i = sideOf(name) - 1, corr = M.correlation[i][c][state.frame];
      if (second()) s(`${bits.length > 3 ? '   ' : ''}${name} `);
      s('cosine '); b(num(M.cosine[i][c][state.frame])); s(' correlation '); b(num(corr));
      if (corr === null) s(' (undefined: a map is constant here)');
    }
    if (M.weight && state.channel >= 0) { s(`   weight for ${M.weightOf} `); b(signed(M.weight[c])); }
    const said = V.prediction[state.source];
    if (said) { const p = el('span', `   ${said}`, 'says'); bits.push(p); }
    $('.summary').replaceChildren(...bits);
    for (const [key, p] of Object.entries(panes)) {
      const text = `${p.name.textContent}, ${key === 'rgb' || key === 'depth' ? '' : `${state.layer} ${channelName(state.channel)}, `}frame ${state.frame}`;
      p.canvas.setAttribute('aria-label', text); p.view.setAttribute('aria-label', `${text}; enter picks a place, arrows move it`);
    }
    if (!second()) return;
    const [a, o] = [state.source, second()].map(n => M.r[sideOf(n) - 1].slice(1)), pairs = a.map((x, i) => [x, o[i]]).filter(([x, y]) => x !== null && y !== null);
    const up = pairs.filter(([x, y]) => y > x).length, down = pairs.filter(([x, y]) => y < x).length, m = n => num(M.median[sideOf(n) - 1]);
    const v = $('.verdict'), line = (t, cls) => el('p', t, cls);
    v.replaceChildren(el('h3', `${state.source} → ${second()}`), line(`Median correlation over ${M.total} channels of ${state.layer}: ${m(state.source)} → ${m(second())} in this clip.`),
      line(up + down ? `Of the ${pairs.length} channels that can be compared here ${up} agree better with the real maps, ${down} worse.` : `No channel agrees better or worse: the two are the same here.`),
      line('The second student is drawn on the same scales as the first.', 'soft'));
  }

  // ---- the chart: agreement per frame, or one pinned place through time --------------------------------------------
  function curve(points, x, y, colour, dash = '') {
    let d = '', pen = 'M';
    points.forEach((v, i) => { if (v === null) pen = 'M'; else { d += `${pen}${x(i).toFixed(1)},${y(v).toFixed(1)}`; pen = 'L'; } });
    const dots = points.map((v, i) => v === null ? '' : `<circle cx="${x(i).toFixed(1)}" cy="${y(v).toFixed(1)}" r="2.4" fill="var(${colour})"/>`).join('');
    return `<path d="${d}" fill="none" stroke="var(${colour})" stroke-width="2" stroke-dasharray="${dash}" stroke-linejoin="round"/>${dots}`;
  }
  function drawChart() {
    const {V, M} = shown, T = V.T, pinned = state.place.length === 2, c = position(state.channel), box = $('.chart');
    const names = [state.source, second()].filter(Boolean), i = pinned && cell(M.w, M.h, normal(state.place));
    const trace = side => Array.from({length: T}, (_, t) => value(side, c, i, t));
    const styles = [['--accent', '', '━'], ['--second', '6 3', '╍'], ['--third', '2 3', '┅']];
    const lines = pinned ? [['real', trace(0)], ...names.map(n => [many ? n : 'hallucinated', trace(sideOf(n))])]
      : second() ? names.map(n => [`correlation, ${n}`, M.correlation[sideOf(n) - 1][c]]) : [['cosine', M.cosine[sideOf(names[0]) - 1][c]], ['correlation', M.correlation[sideOf(names[0]) - 1][c]]];
    const all = lines.flatMap(l => l[1]).filter(v => v !== null), [low255, high255] = limits(c);
    const lo = pinned ? Math.min(low255, ...all) : Math.min(0, ...all) < 0 ? -1 : 0, hi = pinned ? Math.max(high255, ...all) : 1;
    const W = box.clientWidth || 400, H = box.clientHeight || 236, left = 58, right = 8, top = 8, low = 36;
    const x = t => left + (W - left - right) * (T > 1 ? t / (T - 1) : .5), y = v => top + (H - top - low) * (1 - (v - lo) / (hi - lo));
    const what = pinned ? 'activation (no unit)' : 'agreement, −1 to 1';
    box.innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img"><title></title>`
      + [lo, (lo + hi) / 2, hi].map(v => `<line x1="${left}" x2="${W - right}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/><text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${sig(v)}</text>`).join('')
      + `<line x1="${x(state.frame)}" x2="${x(state.frame)}" y1="${top}" y2="${H - low}" stroke="var(--soft)" stroke-dasharray="3 3"/>`
      + Array.from({length: T}, (_, t) => T <= 16 || t % Math.ceil(T / 12) === 0 ? `<text x="${x(t)}" y="${H - low + 14}" text-anchor="middle">${t}</text>` : '').join('')
      + `<text x="${(W + left) / 2}" y="${H - 4}" text-anchor="middle">frame of the clip</text><text transform="translate(10 ${(H - low) / 2 + top}) rotate(-90)" text-anchor="middle">${what}</text>`
      + lines.map((l, k) => curve(l[1], x, y, ...styles[k])).join('') + '</svg>';
    const title = pinned ? `Pixel x ${state.place[0]}, y ${state.place[1]} through time: ${state.layer}, ${channelName(state.channel)}` : 'Agreement, frame by frame';
    $('.chart-title').textContent = box.querySelector('title').textContent = title;
    box.dataset.lines = JSON.stringify(lines);
    const legend = lines.flatMap(([name], k) => [Object.assign(el('b', `${styles[k][2]} ${name}`), {style: `color:var(${styles[k][0]})`}), '   ']);
    if (pinned) legend.push(Object.assign(el('button', 'let the pixel go', 'plain'), {type: 'button', onclick: () => go({place: []})}));
    else legend.push('1 = same pattern. Click to go to a frame.');
    $('.legend').replaceChildren(...legend);
    box.firstChild.onclick = e => { const b = e.currentTarget.getBoundingClientRect(); go({frame: clamp(Math.round((e.clientX - b.left - left) / (b.width - left - right) * (T - 1)), 0, T - 1)}); };
  }

  // ---- the same place in all panes ---------------------------------------------------------------------------------
  const cell = (w, h, p) => Math.min(h - 1, Math.floor(p.y * h)) * w + Math.min(w - 1, Math.floor(p.x * w));
  const normal = ([x, y]) => ({x: (x + .5) / shown.V.W, y: (y + .5) / shown.V.H});
  const readPicture = (canvas, p) => { const i = cell(canvas.width, canvas.height, p); return [...canvas.getContext('2d').getImageData(i % canvas.width, Math.floor(i / canvas.width), 1, 1).data.slice(0, 3)].join(' '); };
  function drawPlace() {
    const {V, M} = shown, pinned = state.place.length === 2 ? normal(state.place) : null, p = hover || pinned;
    for (const q of Object.values(panes)) {
      q.mark.className = p ? (hover ? 'on' : 'on pinned') : '';
      if (p) { q.mark.style.left = `${100 * p.x}%`; q.mark.style.top = `${100 * p.y}%`; } else q.value.textContent = q.about;
    }
    if (!p) { $('.pixel').textContent = HINT; return; }
    const i = cell(M.w, M.h, p), c = position(state.channel), real = value(0, c, i), a = value(sideOf(state.source), c, i), b = second() ? value(sideOf(second()), c, i) : null;
    const stored = D.scalar && V.pixels[state.frame * V.depth.W * V.depth.H + cell(V.depth.W, V.depth.H, p)];
    const say = (pane, text) => { panes[pane].value.textContent = text; };
    say('rgb', readPicture(panes.rgb.canvas, p));
    say('depth', !D.scalar ? readPicture(panes.depth.canvas, p) : stored ? `${Math.round(V.near + (stored - 1) / 254 * (V.far - V.near))} ${D.unit}` : 'no reading');
    const said = (who, v) => `${who} ${num(v, 3)} (difference ${signed(v - real, 3)})`;
    say('real', num(real, 3)); say('hall', num(a, 3)); say('diff', signed(a - real, 3));
    if (b !== null) { say('hall2', num(b, 3)); say('diff2', signed(b - real, 3)); say('change', signed(b - a, 3)); }
    $('.pixel').textContent = `Pixel x ${Math.floor(p.x * V.W)}, y ${Math.floor(p.y * V.H)} of ${V.W} x ${V.H}; cell x ${i % M.w}, y ${Math.floor(i / M.w)} of the ${M.w} x ${M.h} map: real ${num(real, 3)}, ${said(many ? state.source : 'hallucinated', a)}${b === null ? '' : `, ${said(second(), b)}`}.`;
  }
  const pointed = (e, view) => { const b = view.getBoundingClientRect(); return {x: clamp((e.clientX - b.left) / b.width, 0, .9999), y: clamp((e.clientY - b.top) / b.height, 0, .9999)}; };
  const pixelOf = p => [Math.floor(p.x * shown.V.W), Math.floor(p.y * shown.V.H)];
  function nudge(dx, dy) {                                   // one cell of the map further
    const {V, M} = shown, [x, y] = state.place, cx = Math.floor((x + .5) / V.W * M.w), cy = Math.floor((y + .5) / V.H * M.h);
    go({place: [Math.floor((clamp(cx + dx, 0, M.w - 1) + .5) / M.w * V.W), Math.floor((clamp(cy + dy, 0, M.h - 1) + .5) / M.h * V.H)]});
  }

  // ---- overview: all layers, then all channels of one -----------------------------------------------------------------
  async function drawLayers() {
    const clip = state.clip;
    if (!layers || layers.clip !== clip) {
      let found;
      try { found = await keep(`o${clip}`, () => source.overview(clip), o => o.reduce((s, l) => s + l.data.length, 0)); } catch (e) { return; }   // the message line has said it
      if (clip !== state.clip || retired) return;
      layers = {clip, found};
      $('.strip').replaceChildren(...found.map(l => {
        const b = el('button'); b.type = 'button'; b.dataset.layer = l.name;
        const two = el('div', '', 'sides'); two.append(el('canvas'), el('canvas'));
        b.append(two, el('b', l.name), el('span', `${l.total} channels, ${(l.cells || [l.w, l.h]).join(' x ')}`), el('span', '', 'r'));
        b.onclick = () => go({layer: l.name});
        return b;
      }));
    }
    for (const [k, b] of [...$('.strip').children].entries()) {
      const l = layers.found[k], at = n => 1 + (l.sources || D.sources).indexOf(n), a = at(state.source), t = Math.floor(state.frame * l.T / shown.V.T), n = l.w * l.h;
      l.top = l.top || l.data.reduce((m, v) => v > m ? v : m, 1);  // brightest of this clip, both sides
      if (!a) continue;                                     // this student does not have this layer
      [0, a].forEach((side, k) => paint(blank(b.firstChild.children[k], l.w, l.h), 0, 0, l.w, l.h, lut.feature, i => Math.round(255 * l.data[(side * l.T + t) * n + i] / l.top)));
      const text = `r ${num(l.median[a - 1])}` + (second() ? ` → ${num(l.median[at(second()) - 1])}` : '');
      b.querySelector('.r').textContent = text;
      b.setAttribute('aria-pressed', l.name === state.layer); b.setAttribute('aria-label', `Layer ${l.name}, ${text}`);
    }
  }
  function ordered() {                                       // positions in the order asked for, the mean first; sorted once per question
    const key = [shown.key, state.source, state.against, state.order].join('/');
    if (sorted.key === key) return sorted.list;
    const M = shown.M, last = x => x === null ? 9e9 : x, r1 = M.r[sideOf(state.source) - 1], r2 = second() && M.r[sideOf(second()) - 1];
    const keys = {energy: () => M.energy.map(x => -x), agreement: () => r1.map(x => last(x && -x)), disagreement: () => r1.map(last), channel: () => M.channels,
      weight: M.weight && (() => M.weight.map(x => -x)), gain: r2 && (() => r1.map((x, i) => last(x === null || r2[i] === null ? null : x - r2[i])))};
    const by = (keys[state.order] || keys.energy)();
    sorted = {key, list: [0, ...M.channels.map((_, i) => i).slice(1).sort((a, b) => by[a] - by[b] || a - b)]};
    return sorted.list;
  }
  const label = i => `r ${num(r(state.source, i))}`;
  function fillMenu() {                                      // elements are made once per clip, layer and student: sorting 2,048 of them only moves them
    const key = `${shown.key}/${state.source}`;
    if (menu.key !== key) menu = {key, items: shown.M.channels.map((c, i) => option(c, i ? `${c}   (${label(i)})` : 'mean over channels'))};
    control('channel').replaceChildren(...ordered().map(i => menu.items[i]));
    control('channel').value = state.channel; menu.stale = false;
  }
  function thumbnail(n) {
    const b = Object.assign(el('button'), {type: 'button', onclick: () => go({channel: Number(b.dataset.channel)})});
    b.setAttribute('role', 'option'); b.append(...Array.from({length: n}, () => el('canvas')), el('b'), el('span'));
    return b;
  }
  function fillSheet(turn) {
    const M = shown.M, list = ordered(), here = list.indexOf(position(state.channel)), pages = Math.ceil((list.length - 1) / PER_PAGE);
    if (turn === undefined) sheet = Math.max(0, Math.floor((here - 1) / PER_PAGE)); else sheet = clamp(sheet + turn, 0, pages - 1);
    const first = 1 + sheet * PER_PAGE, some = [0, ...list.slice(first, first + PER_PAGE)];
    const grid = $('.grid'), n = sides().length;
    if (grid.dataset.sides !== String(n)) { grid.replaceChildren(); grid.dataset.sides = n; }
    while (grid.children.length > some.length) grid.lastChild.remove();
    some.forEach((i, k) => {                                 // thumbnails are made once and dressed anew
      const b = grid.children[k] || grid.appendChild(thumbnail(n)), more = state.order === 'weight' && M.weight && i ? `w ${signed(M.weight[i])}` : second() ? `${num(r(state.source, i))} → ${num(r(second(), i))}` : label(i);
      b.dataset.channel = M.channels[i];
      b.setAttribute('aria-label', `${channelName(M.channels[i])}, ${state.order === 'weight' && M.weight && i ? `weight ${signed(M.weight[i])}` : `correlation ${num(r(state.source, i))}`}`);
      b.children[n].textContent = i ? M.channels[i] : 'mean'; b.lastChild.textContent = more;
    });
    $('.pages').hidden = pages < 2;
    $('.pages output').textContent = `${first} to ${Math.min(first + PER_PAGE - 1, list.length - 1)} of ${list.length - 1} channels`;
    const why = state.order === 'weight' && !M.weight ? ` The classifier reads another layer, so ${state.layer} has no class weights; sorted by energy.` : '';
    $('.grid-title').textContent = `${M.channels.length <= M.total ? `The ${M.channels.length - 1} strongest of ${M.total}` : 'All'} channels of ${state.layer}`;
    $('.channels small').textContent = `real above, hallucinated below${second() ? `, then ${second()}` : ''}; r = correlation over the clip.${why}`;
    markChannel(); drawGrid();
  }
  function markChannel() {
    control('channel').value = state.channel;
    let tab = false;
    const follow = $('.grid').contains(document.activeElement);
    for (const b of $('.grid').children) {
      const on = Number(b.dataset.channel) === state.channel;
      b.setAttribute('aria-selected', on); b.tabIndex = on ? 0 : -1; tab = tab || on;
      if (on) { const g = $('.grid'), top = b.offsetTop - g.offsetTop; if (top < g.scrollTop || top + b.offsetHeight > g.scrollTop + g.clientHeight) g.scrollTop = top - 4; if (follow) b.focus({preventScroll: true}); }
    }
    if (!tab) $('.grid').firstChild.tabIndex = 0;
  }
  const sides = () => [0, ...[state.source, second()].filter(Boolean).map(sideOf)];
  function drawGrid() {
    for (const b of $('.grid').children) sides().forEach((side, k) => drawMap(blank(b.children[k], shown.M.w, shown.M.h), side, position(Number(b.dataset.channel))));
  }

  // ---- state -> page -----------------------------------------------------------------------------------------------
  function complain(...parts) {                              // one line each, none twice
    const said = [...new Set(parts.filter(Boolean))];
    $('.message').replaceChildren(...said.map(t => el('span', t))); $('.message').hidden = !said.length;
  }
  const usable = on => { for (const c of root.querySelectorAll('.controls [name=channel], .controls [name=order], .controls [name=per], .time input, .time button')) c.disabled = !on; };
  function name(key, text, about) { const p = panes[key]; p.name.textContent = p.name.title = text; p.about = about; }
  function titles() {
    const a = state.source, b = second();
    const from = `${many ? 'hallucinated ' : ''}from ${D.student}`, gap = 'signed difference';
    name('rgb', capital(D.student), 'what the student sees'); name('depth', capital(D.teacher), 'only the teacher sees it'); name('real', 'Real features', `from ${D.teacher}`);
    name('hall', many ? a : 'Hallucinated', from); name('diff', `${many ? a : 'Hallucinated'} − real`, gap);
    name('hall2', b, from); name('diff2', `${b} − real`, gap); name('change', `${b} − ${a}`, 'between the students');
    root.classList.toggle('two', !!b);
    control('source').value = a; control('against').value = b;
  }
  // Change some of the state and draw what depends on it
  async function go(change) {
    const began = performance.now();
    Object.assign(state, change);
    if ('layer' in change && !('channel' in change)) state.channel = -1;
    if ('source' in change && state.against === state.source) state.against = '';
    let fresh = false;
    if (!shown || shown.key !== wanted()) {
      root.setAttribute('aria-busy', 'true');
      let got;
      const key = wanted();
      try { got = await load(); }
      catch (e) { if (key === wanted() && !retired) { failed(e.message); } return; }
      if (got.key !== wanted() || retired) return;          // meanwhile something else was asked for
      fresh = !shown || shown.key !== got.key;
      shown = got;
      root.removeAttribute('aria-busy');
    }
    const {V, M} = shown;
    state.frame = clamp(state.frame, 0, V.T - 1);
    if (position(state.channel) < 0) state.channel = -1;
    if (!present().includes(state.source)) state.source = present()[0];
    if (!present().includes(state.against) || state.against === state.source) state.against = '';
    if (state.place.length === 2) state.place = [clamp(state.place[0], 0, V.W - 1), clamp(state.place[1], 0, V.H - 1)];
    if (link) link.set(state);
    if (fresh) {
      root.classList.remove('failed'); usable(true);
      control('clip').value = state.clip; control('layer').value = state.layer; control('frame').max = V.T - 1;
      $('.panes').style.setProperty('--aspect', V.W / V.H);
      panes.rgb.view.classList.toggle('smooth', V.W > 160); panes.depth.view.classList.toggle('smooth', !D.scalar && V.W > 160);
    }
    const pair = fresh || 'source' in change || 'against' in change;
    if (pair) {
      titles();
      complain(D.message, M.note, M.advice[state.source], M.advice[second()]);
      control('order').replaceChildren(...Object.entries(ORDERS).filter(([k]) => k !== 'gain' || many).map(([k, v]) => option(k, k === 'weight' && M.weight ? `weight for ${M.weightOf}` : v, k === 'weight' && !M.weight || k === 'gain' && !second())));
    }
    control('order').value = state.order; control('per').value = state.per;
    control('frame').value = state.frame; $(".frame .now").textContent = `${state.frame} of 0–${V.T - 1}`;
    drawPanes(); drawBars(); drawSummary(); drawChart(); drawPlace();
    if (pair) fillMenu(); else if ('order' in change) menu.stale = true;   // sorted again when it is opened: moving 2,048 entries takes a moment
    if (pair || 'order' in change) fillSheet();
    else if ('channel' in change) { if ([...$('.grid').children].some(b => Number(b.dataset.channel) === state.channel)) markChannel(); else fillSheet(); }
    if ('frame' in change || 'per' in change) drawGrid();
    if (pair || 'frame' in change) drawLayers();
    root.dataset.state = JSON.stringify(state);
    root.dataset.ms = (performance.now() - began).toFixed(1);
  }
  function failed(text) {                                    // nothing of the asked-for clip and layer can be shown
    shown = null; layers = null; play(false);
    if (link) link.set(state);
    root.classList.add('failed'); root.removeAttribute('aria-busy'); usable(false);
    complain(text); control('clip').value = state.clip; control('layer').value = state.layer;
    root.dataset.state = JSON.stringify(state);
  }
  function play(on) {
    clearInterval(timer); timer = on ? setInterval(() => shown && go({frame: (state.frame + 1) % shown.V.T}), 170) : null;
    $('.play').setAttribute('aria-pressed', on); $('.play').setAttribute('aria-label', on ? 'Pause' : 'Play');
  }
  const stepChannel = by => { const list = ordered(), i = list.indexOf(position(state.channel)); go({channel: shown.M.channels[list[clamp(i + by, 0, list.length - 1)]]}); };
  const stepFrame = by => go({frame: (state.frame + by + shown.V.T) % shown.V.T});
  const stepLayer = by => go({layer: D.layers[clamp(D.layers.findIndex(l => l.name === state.layer) + by, 0, D.layers.length - 1)].name});

  $('.layers').hidden = D.layers.length < 2;
  control('clip').append(...D.clips.map((c, i) => option(i, c.action ? `${c.action}   (${c.id})` : c.id)));
  control('layer').append(...D.layers.map(l => option(l.name, l.total ? `${l.name}   (${l.total} channels)` : l.name)));
  control('source').append(...D.sources.map(s => option(s, s)));
  control('against').append(option('', 'nothing'), ...D.sources.map(s => option(s, s)));
  for (const key of ['clip', 'channel']) control(key).onchange = e => go({[key]: Number(e.target.value)});
  control('channel').onfocus = control('channel').onpointerdown = () => { if (menu.stale) fillMenu(); };
  for (const key of ['layer', 'order', 'per', 'source', 'against']) control(key).onchange = e => go({[key]: e.target.value});
  control('frame').oninput = e => go({frame: Number(e.target.value)});
  $('.controls').onsubmit = e => e.preventDefault();
  $('.play').onclick = () => play(!timer);
  const [before, after] = root.querySelectorAll('.pages button');
  before.onclick = () => fillSheet(-1); after.onclick = () => fillSheet(1);
  for (const p of Object.values(panes)) {
    p.view.onpointermove = e => { if (!shown) return; hover = pointed(e, p.view); drawPlace(); };
    p.view.onpointerleave = () => { hover = null; if (shown) drawPlace(); };
    p.view.onclick = e => { if (!shown) return; hover = null; go({place: pixelOf(pointed(e, p.view))}); };
  }
  const keys = {ArrowLeft: () => stepFrame(-1), ArrowRight: () => stepFrame(1), ArrowUp: () => stepChannel(-1), ArrowDown: () => stepChannel(1),
    '[': () => stepLayer(-1), ']': () => stepLayer(1), ' ': () => play(!timer), Escape: () => go({place: []})};
  const onPicture = {ArrowLeft: () => nudge(-1, 0), ArrowRight: () => nudge(1, 0), ArrowUp: () => nudge(0, -1), ArrowDown: () => nudge(0, 1)};
  const pressed = e => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.shiftKey || e.key === 'Tab') return;
    if (link) e.stopPropagation();                           // a notebook would take arrows for itself, those of a slider too
    if (!shown) return;
    const tag = e.target.tagName, inView = e.target.classList?.contains('view');
    if (tag === 'SELECT' || (tag === 'INPUT' && e.key.startsWith('Arrow')) || (tag === 'BUTTON' && e.key === ' ')) return;
    const act = inView && e.key === 'Enter' ? () => go({place: pixelOf({x: .5, y: .5})}) : inView && state.place.length && onPicture[e.key] || keys[e.key];
    if (!act) return;
    e.preventDefault(); act();
  };
  const ears = link ? root : document;                       // in a notebook keys belong to the cell that has the focus
  ears.addEventListener('keydown', pressed);
  const size = new ResizeObserver(() => shown && drawChart()); size.observe($('.chart'));
  const unlisten = link && link.listen(go);
  go({});
  return () => { retired = true; play(false); size.disconnect(); ears.removeEventListener('keydown', pressed); if (unlisten) unlisten(); };
}

// ---- arrays in the page ---------------------------------------------------------------------------------------------
async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
function fileSource(D) {
  const unpack = (text, what) => inflate(text).catch(e => { throw new Error(`${what} could not be unpacked (${e.message}); write the file again.`); });
  const maps = async (i, name) => {
    const k = D.layers.findIndex(l => l.name === name), m = D.clips[i].maps[k], [C, T, h, w] = m.shape;
    return {...D.layers[k], ...m, C, T, h, w, data: await unpack(m.data, `${name} of clip ${D.clips[i].id}`)};
  };
  return {head: D, maps,
    clip: async i => { const c = D.clips[i]; return {...c, near: D.near, far: D.far, depth: c.depth.data ? {...c.depth, data: await unpack(c.depth.data, `clip ${c.id}`)} : c.depth}; },
    overview: i => Promise.all(D.layers.map(async l => {     // the mean over channels is stored as the first channel of every layer
      const m = await maps(i, l.name), n = m.T * m.h * m.w, data = new Uint8Array((D.sources.length + 1) * n);
      for (let s = 0; s <= D.sources.length; s++) data.set(m.data.subarray(s * m.C * n, s * m.C * n + n), s * n);
      return {name: l.name, total: l.total, median: m.median, T: m.T, h: m.h, w: m.w, data};
    }))};
}
function mountFile(root, D) {
  if (typeof DecompressionStream === 'undefined') { root.append(el('p', 'This browser cannot unpack the file: open it in Chrome 80, Firefox 113, Safari 16.4 or a later one.', 'message')); return; }
  mount(root, fileSource(D));
}

// ---- arrays in the kernel -------------------------------------------------------------------------------------------
const TRAITS = ['clip', 'frame', 'layer', 'channel', 'order', 'per', 'source', 'against', 'place'];
function kernelSource(model) {
  const mine = Math.random().toString(36).slice(2), waiting = new Map();
  let count = 0;
  const heard = (m, buffers) => { const w = waiting.get(m.id); if (!w) return; waiting.delete(m.id); clearTimeout(w.late); if (m.error) w.no(new Error(m.error)); else w.ok([m.found, (buffers || []).map(b => new Uint8Array(b.buffer, b.byteOffset, b.byteLength))]); };
  model.on('msg:custom', heard);
  const ask = (what, clip, layer = '') => new Promise((ok, no) => {
    const id = `${mine}${++count}`, late = setTimeout(() => { waiting.delete(id); no(new Error('The kernel does not answer: it is busy or has ended. Run the cell again.')); }, 60_000);
    waiting.set(id, {ok, no, late});
    model.send({id, what, clip, layer});
  });
  return {head: model.get('info'), close: () => model.off('msg:custom', heard),
    clip: async i => { const [v, [depth]] = await ask('clip', i); return depth ? {...v, depth: {...v.depth, data: depth}} : v; },
    maps: async (i, layer) => { const [m, [data]] = await ask('maps', i, layer), [C, T, h, w] = m.shape; return {...m, C, T, h, w, data}; },
    overview: async i => { const [list, data] = await ask('overview', i); return list.map((l, k) => ({...l, data: data[k]})); }};
}
function render({model, el: root}) {
  const get = () => Object.fromEntries(TRAITS.map(k => [k, model.get(k)]));
  const source = kernelSource(model);
  let sent = JSON.stringify(get());
  const link = {get,
    set: state => { for (const k of TRAITS) if (JSON.stringify(model.get(k)) !== JSON.stringify(state[k])) model.set(k, state[k]); sent = JSON.stringify(get()); model.save_changes(); },
    listen: react => {
      const changed = () => { const now = get(), was = JSON.parse(sent); sent = JSON.stringify(now); const change = Object.fromEntries(TRAITS.filter(k => JSON.stringify(now[k]) !== JSON.stringify(was[k])).map(k => [k, now[k]])); if (Object.keys(change).length) react(change); };
      for (const k of TRAITS) model.on(`change:${k}`, changed);
      return () => { for (const k of TRAITS) model.off(`change:${k}`, changed); };
    }};
  const stop = mount(root, source, link);
  return () => { stop(); source.close(); };
}
export default {render};
