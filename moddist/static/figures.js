// Draws the figures of a page with the plotly.js that lies packed in it; see `page` in figures.py. No network.
'use strict';
(() => {
const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0));
const el = (tag, props = {}, ...kids) => { const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e; };

async function plotly() {
  const stream = new Blob([bytes(document.getElementById('plotly').textContent)]).stream().pipeThrough(new DecompressionStream('gzip'));
  document.head.append(el('script', {textContent: await new Response(stream).text()}));
}

// Points that stand for clips: pointing shows the clip, a click plays it, a selection lays out its clips beside the map
function link(box, plot, films, data) {
  const state = {shown: null, chosen: null, selected: []}, told = Object.fromEntries(data.flatMap(t => (t.customdata || []).map(c => [c[0], c])));
  const empty = 'data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7';
  const picture = el('img', {alt: '', src: empty}), caption = el('figcaption', {textContent: 'Point at a clip to see it, click to keep it playing, draw a loop to lay out several.'}), strip = el('div', {className: 'strip'});
  box.classList.add('films');
  box.append(el('div', {className: 'side'}, el('figure', {}, picture, caption), strip));
  let timer = null, frame = 0;
  const note = () => { box.dataset.state = JSON.stringify(state); };
  function play(id) {
    clearInterval(timer);
    state.shown = id; note();
    const film = films[id] || [];
    if (!film.length) { picture.src = empty; caption.textContent = `${told[id][1]} · ${id} (no picture)`; return; }
    frame = 0; picture.src = film[0];
    picture.alt = caption.textContent = `${told[id][1]} · ${id}`;
    if (film.length > 1) timer = setInterval(() => { frame = (frame + 1) % film.length; picture.src = film[frame]; }, 200);
  }
  function choose(id) {
    state.chosen = id; play(id);
    for (const b of strip.children) b.setAttribute('aria-pressed', b.dataset.clip === id);
  }
  function lay(ids) {
    state.selected = ids; note();
    strip.replaceChildren(...ids.slice(0, 200).map(id => {
      const b = el('button', {type: 'button', title: `${told[id][1]} · ${id}`, onclick: () => choose(id)}, films[id]?.length ? el('img', {src: films[id][0], alt: id}) : id);
      b.dataset.clip = id; b.setAttribute('aria-pressed', 'false');
      return b;
    }));
    if (ids.length) choose(ids[0]);
  }
  note();
  return () => {                                             // once the plot is there
    plot.on('plotly_hover', e => play(e.points[0].customdata[0]));
    plot.on('plotly_unhover', () => { if (state.chosen !== null) play(state.chosen); });
    plot.on('plotly_click', e => choose(e.points[0].customdata[0]));
    plot.on('plotly_selected', e => { if (e?.points) lay(e.points.map(p => p.customdata[0])); });
    plot.on('plotly_deselect', () => lay([]));
  };
}

async function draw(box) {
  const f = JSON.parse(box.querySelector('script').textContent), plot = box.querySelector('.plot');
  const listen = f.layout.meta?.films && link(box, plot, f.layout.meta.films, f.data);    // makes room first, so that the plot is drawn at its size
  await Plotly.newPlot(plot, {...f, config: {displaylogo: false, responsive: !f.layout.width}});
  if (listen) listen();
}

// A page inside the page is as high as what it holds
function grow(frame) {
  const fit = () => { const root = frame.contentDocument?.documentElement; if (root?.offsetHeight > 50) frame.style.height = `${root.offsetHeight + 4}px`; };
  const watch = () => { new ResizeObserver(fit).observe(frame.contentDocument.documentElement); fit(); };
  if (frame.contentDocument?.readyState === 'complete' && frame.contentDocument.body?.children.length) watch(); else frame.addEventListener('load', watch);
}

(async () => {
  document.querySelectorAll('iframe').forEach(grow);
  if (document.querySelector('.plot')) { await plotly(); for (const box of document.querySelectorAll('.figure')) await draw(box); }
  document.body.dataset.ready = 'yes';
})();
})();
