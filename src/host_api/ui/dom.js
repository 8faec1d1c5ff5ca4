// Building the page. The only place that turns text into nodes: always as text, never as markup.

/** Longest piece of text that a cell shows; names and paths come from agents. */
export const CELL_MAX = 256;

const SVG = 'http://www.w3.org/2000/svg';

// What does not show, or changes how the rest shows: C0, C1, DEL, soft hyphen, bidirectional controls, zero width,
// line and paragraph separators, fillers, interlinear marks, tags, unpaired surrogates.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}]|[\ud800-\udfff]/gu;

const escaped = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;

/** One line of text in which everything can be seen; cut when it is longer than `max`. */
export function visible(text, max = CELL_MAX) {
  let out = String(text ?? '');
  const whole = out.length;
  if (whole > max) out = out.slice(0, max);
  out = out.replace(INVISIBLE, escaped);
  return whole > max ? `${out}… (${whole} characters)` : out;
}

/** An element. `props`: attributes, `on` (listeners), `data`; children are nodes or text. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** An SVG element. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'data') {
      Object.assign(element.dataset, value);
    } else if (name === 'value' || name === 'checked') {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Replaces what is in `element`; the focus stays with the same `data-key`. */
export function fill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset?.key;
  const kept = [...element.querySelectorAll('pre, .scroll')].map((box) => [box.dataset.key, box.scrollTop]);
  element.replaceChildren();
  put(element, children);
  for (const [name, top] of kept) {
    if (name && top) keyed(element, name)?.scrollTo(0, top);
  }
  if (key) keyed(element, key)?.focus({ preventScroll: true });
}

function keyed(element, key) {
  return [...element.querySelectorAll('[data-key]')].find((candidate) => candidate.dataset.key === key);
}

/** Text from somebody else, in isolation from the direction of what is around it. */
export function text(value, max) {
  return h('bdi', {}, visible(value, max));
}

/** The same in a typewriter face. */
export function code(value, max) {
  return h('code', { dir: 'ltr' }, visible(value, max));
}

/** A text over several lines exactly as it is; what cannot be seen is shown as a marked escape. */
export function exact(value, props = {}) {
  const box = h('pre', { tabindex: '0', dir: 'ltr', role: 'region', ...props });
  const source = String(value ?? '');
  let from = 0;
  for (const match of source.matchAll(INVISIBLE)) {
    if (match[0] === '\n') continue;
    box.append(document.createTextNode(source.slice(from, match.index)));
    box.append(h('span', { class: 'escape', title: 'a character that cannot be seen' }, escaped(match[0])));
    from = match.index + match[0].length;
  }
  box.append(document.createTextNode(source.slice(from)));
  return box;
}

/** A table: `columns` are `[heading, class?]`, `rows` lists of cells. It becomes cards on a narrow screen. */
export function table(caption, columns, rows) {
  const head = h('tr', {}, columns.map(([name, kind]) => h('th', { scope: 'col', class: kind }, name)));
  const body = rows.map((row) => (row instanceof Node ? row : tableRow(columns, row)));
  return h('div', { class: 'scroll-x' }, h('table', {},
    h('caption', { class: 'hidden' }, caption), h('thead', {}, head), h('tbody', {}, body)));
}

/** One row of `table`. */
export function tableRow(columns, cells, props = {}) {
  return h('tr', props, cells.map((cell, at) => h('td', { class: columns[at][1], 'data-label': columns[at][0] }, cell)));
}

/** A button. */
export function button(label, click, props = {}) {
  return h('button', { type: 'button', on: { click }, ...props }, label);
}

/** A word with a colour that says good, bad or neither. */
export function badge(word, kind = '') {
  return h('span', { class: `badge ${kind}` }, word);
}

/** `allow` or `block`, as a badge. */
export function verdict(word) {
  if (word === 'allow') return badge('allow', 'allow');
  return word === 'block' ? badge('block', 'block') : badge(visible(word, 16));
}

/** Labels and values. */
export function facts(pairs) {
  return h('dl', { class: 'facts' }, pairs.filter(Boolean).map(([name, value]) =>
    h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}

/** A number with separators. */
export const number = (value) => (typeof value === 'number' ? value.toLocaleString('en') : '–');

/** `1 rule`, `2 rules`. */
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? '' : 's'}`;

/** A size in bytes. */
export function size(bytes) {
  if (typeof bytes !== 'number') return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** The time of day of a timestamp. */
export function clock(stamp, precise = false) {
  const at = new Date(stamp);
  if (Number.isNaN(at.getTime())) return visible(stamp, 40);
  const day = at.toLocaleTimeString('en-GB');
  return precise ? `${day}.${String(at.getMilliseconds()).padStart(3, '0')}` : day;
}

/** How long ago a timestamp was. */
export function ago(stamp, now = Date.now()) {
  const at = new Date(stamp).getTime();
  if (!stamp) return 'never';
  if (Number.isNaN(at)) return visible(stamp, 40);
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** A moment: the time of day if it was today, else the date too. What stays true while it is shown. */
export function when(stamp) {
  const at = new Date(stamp);
  if (!stamp) return 'never';
  if (Number.isNaN(at.getTime())) return visible(stamp, 40);
  const day = at.toLocaleDateString('sv');
  return h('time', { datetime: at.toISOString(), title: at.toISOString() },
    day === new Date().toLocaleDateString('sv') ? clock(stamp) : `${day} ${clock(stamp)}`);
}

/** A duration. */
export function lasting(seconds) {
  if (typeof seconds !== 'number') return '–';
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
