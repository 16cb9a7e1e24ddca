'use strict';
const $ = id => document.getElementById(id);
// What lasts while this page is loaded anew; files share one store.
const remember = (what, value) => sessionStorage.setItem(location.pathname + what, JSON.stringify(value));
const recall = what => JSON.parse(sessionStorage.getItem(location.pathname + what));
const clock = t => `${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, '0')}`;

// ── one player for all clips ──────────────────────────────────────────────────────────────────────
const sounds = JSON.parse($('sounds')?.textContent ?? '{}');
const cells = [...document.querySelectorAll('[data-clip]')];
const row = cell => cell.closest('tbody');
const inRow = body => cells.filter(cell => row(cell) === body);
const isBase = cell => cell.dataset.clip.endsWith('-base');
const players = {};
let chosen = null, used = false;
const tuned = new Map(); // by prompt: the clip with the LoRA that was heard last

function player(cell) {
  const id = cell.dataset.clip;
  if (!players[id]) {
    const { type, data } = sounds[id];
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const audio = players[id] = new Audio(URL.createObjectURL(new Blob([bytes], { type })));
    for (const name of ['play', 'pause', 'ended', 'seeked', 'loadedmetadata', 'timeupdate'])
      audio.addEventListener(name, show);
  }
  return players[id];
}

// Another clip of the same prompt goes on at the place where this one is.
function choose(cell, play) {
  const before = chosen && player(chosen), next = player(cell);
  const place = before && row(chosen) === row(cell) && !before.ended ? before.currentTime : 0;
  before?.pause();
  chosen = cell;
  if (!isBase(cell)) tuned.set(row(cell), cell);
  inRow(row(cell)).forEach(player); // ready before they are asked for
  if (before !== next) next.currentTime = place;
  loud();
  if (play) start(next);
  for (const one of cells) one.setAttribute('aria-pressed', one === cell);
  const [other, base] = [withLora(), inRow(row(cell)).find(isBase)];
  $('without').disabled = !base;
  $('with').disabled = !other;
  $('with').textContent = other?.dataset.title ?? 'With LoRA';
  $('without').setAttribute('aria-pressed', isBase(cell));
  $('with').setAttribute('aria-pressed', !isBase(cell));
  $('picture').src = cell.querySelector('img')?.src ?? '';
  $('name').textContent = row(cell).querySelector('h3').textContent;
  $('words').textContent = row(cell).querySelector('.caption').textContent;
  show();
}
const withLora = () => tuned.get(row(chosen)) ?? inRow(row(chosen)).filter(cell => !isBase(cell)).pop();
const playing = () => Boolean(chosen) && !player(chosen).paused;
const start = audio => audio.play().catch(() => {}); // another clip was chosen before it began
const toggle = () => playing() ? player(chosen).pause() : start(player(chosen));
const loud = () => { player(chosen).volume = $('match').checked ? 10 ** (sounds[chosen.dataset.clip].decibels / 20) : 1; };
const compare = base => {
  const cell = base ? inRow(row(chosen)).find(isBase) : withLora();
  if (cell && cell !== chosen) choose(cell, playing());
};

function show() {
  if (!chosen) return;
  const audio = player(chosen), length = audio.duration || 0, seconds = $('seconds');
  $('play').classList.toggle('playing', playing());
  $('play').setAttribute('aria-label', playing() ? 'Pause' : 'Play');
  $('clock').textContent = clock(audio.currentTime);
  $('length').textContent = clock(Math.round(length));
  $('place').max = length || 1;
  $('place').value = audio.currentTime;
  $('place').setAttribute('aria-valuetext', `${clock(audio.currentTime)} of ${clock(Math.round(length))}`);
  chosen.style.setProperty('--at', length ? audio.currentTime / length : 0);
  if (seconds.dataset.of !== String(length)) {
    const step = [1, 2, 5, 10, 20, 30, 60].find(s => length / s <= 8) ?? 120;
    seconds.dataset.of = length;
    seconds.replaceChildren(...Array.from({ length: Math.floor(length / step) + 1 }, (_, i) => {
      const mark = document.createElement('span');
      mark.style.left = `${i * step / length * 100}%`;
      mark.textContent = i ? i * step : '0 s';
      mark.className = i * step > length * .98 ? 'last' : '';
      return mark;
    }));
  }
}
(function follow() { if (playing()) show(); requestAnimationFrame(follow); })();

if (cells.length) {
  document.addEventListener('click', event => {
    const cell = event.target.closest('[data-clip]');
    if (!cell) return;
    used = true;
    cell === chosen ? toggle() : choose(cell, true);
  });
  $('play').onclick = () => { used = true; toggle(); };
  $('without').onclick = () => compare(true);
  $('with').onclick = () => compare(false);
  $('match').onchange = loud;
  $('place').oninput = () => { player(chosen).currentTime = $('place').value; };
  document.addEventListener('keydown', event => {
    const at = event.target, own = at === document.body || at.closest('#listen');
    if (!own || event.ctrlKey || event.metaKey || event.altKey || at.matches('input:not(#place), summary')) return;
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (dx && at.id === 'place') player(chosen).currentTime += dx;
    else if (dx || (dy && at !== document.body)) {
      const line = inRow(row(chosen)), rows = [...new Set(cells.map(row))];
      const next = dx ? line[line.indexOf(chosen) + dx]
        : inRow(rows[rows.indexOf(row(chosen)) + dy])[Math.max(0, line.indexOf(chosen))];
      if (next) {
        used = true;
        choose(next, playing());
        if (at.matches('[data-clip]')) next.focus({ preventScroll: true });
        next.scrollIntoView({ block: 'nearest', inline: 'nearest' });
      }
    } else if (event.key.toLowerCase() === 'b') compare(!isBase(chosen));
    else if (event.key === ' ' && !at.matches('button')) toggle();
    else return;
    event.preventDefault();
  });
  const kept = recall('place') ?? {};
  remember('place', null);
  const best = document.querySelector('thead .best')?.closest('th').cellIndex ?? -1;
  const first = inRow(row(cells[0]));
  choose(cells.find(cell => cell.dataset.clip === kept.clip) ?? first.find(c => c.parentNode.cellIndex === best) ?? first.at(-1), false);
  if (kept.place) player(chosen).currentTime = kept.place;
}

// ── reading numbers off the curves with the pointer ───────────────────────────────────────────────
document.addEventListener('pointermove', event => {
  const svg = event.target.closest?.('svg[data-s]');
  document.querySelectorAll('.tip, .cursor').forEach(old => old.remove());
  if (!svg) return;
  const [x0, x1] = svg.dataset.x.split(',').map(Number), [l, r, t, b] = svg.dataset.box.split(',').map(Number);
  const box = svg.getBoundingClientRect(), wide = svg.viewBox.baseVal.width;
  const x = x0 + ((event.clientX - box.left) / box.width * wide - l) / (r - l) * (x1 - x0);
  const near = JSON.parse(svg.dataset.s).map(([name, points]) =>
    [name, points.reduce((a, c) => Math.abs(c[0] - x) < Math.abs(a[0] - x) ? c : a)]);
  const at = l + (near[0][1][0] - x0) / (x1 - x0) * (r - l);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  for (const [name, value] of Object.entries({ class: 'cursor', x1: at, x2: at, y1: t, y2: b })) line.setAttribute(name, value);
  svg.append(line);
  const tip = document.createElement('div');
  tip.className = 'tip';
  tip.textContent = [`step ${near[0][1][0]}`, ...near.map(([name, [, y]]) => `${name} ${Number(y.toPrecision(4))}`)].join('\n');
  svg.parentNode.append(tip);
  tip.style.left = `${Math.max(0, Math.min(at / wide * box.width + 16, box.width - tip.offsetWidth))}px`;
});

// ── news while the run goes on ────────────────────────────────────────────────────────────────────
// Numbers are put in place. New clips need the page anew: at once if nobody has listened yet, else when asked.
const { live: file, clips: known } = document.body.dataset;
function again() {
  if (chosen) remember('place', { clip: chosen.dataset.clip, place: player(chosen).currentTime });
  location.reload();
}
let heard = Date.now();
function live(news) {
  for (const [id, html] of Object.entries(news.parts)) if (live[id] !== html) {
    $(id).innerHTML = live[id] = html;
    heard = Date.now();
  }
  $('quiet').hidden = !news.running || Date.now() - heard < 600_000;
  if (!news.running) clearInterval(timer);
  if (String(news.clips) === known || recall('clips') === news.clips) return;
  if (used) { $('news').hidden = false; return; }
  remember('clips', news.clips); // once for each, whatever the page then says
  again();
}
$('news').firstChild.onclick = again;
const timer = file && setInterval(() => {
  const script = document.createElement('script');
  script.src = `${file}?${Date.now()}`;
  script.onload = script.onerror = () => script.remove();
  document.head.append(script);
}, 5000);
