// Live decisions: every attempt of every layer, newest first, with filters.

import { trouble } from './api.js';
import { notice } from './dialog.js';
import { button, clock, code, facts, fill, h, number, size, text, verdict, visible } from './dom.js';
import { ORDER, ROWS_MAX } from './stream.js';
import { VirtualList } from './virtual.js';

const LAYERS = ['dns', 'proxy', 'intercept', 'direct_ip', 'kernel', 'agent_api'];
/** Decisions of the same flow that the details list. */
const FLOW_MAX = 50;

/** What a decision was about, in one line. */
function target(event) {
  const host = event.host ?? event.ip ?? '';
  const where = event.port ? `${host}:${event.port}` : host;
  const method = event.method ? `${event.method} ` : event.record_type ? `${event.record_type} ` : '';
  return `${method}${where}${event.path && event.path !== '/' ? event.path : ''}` || event.reason || '';
}

const fields = (event) => [event.container, event.agent, event.host, event.ip, event.path, event.rule, event.reason, event.method, event.protocol];

/** Whether a decision passes the filters. */
function passes(event, { verdict: wanted, layer, container, words }) {
  if (wanted && event.verdict !== wanted) return false;
  if (layer && event.layer !== layer) return false;
  if (container && !String(event.container ?? '').toLowerCase().includes(container)) return false;
  if (!words.length) return true;
  const all = fields(event).filter(Boolean).join('\n').toLowerCase();
  return words.every((word) => all.includes(word));
}

const line = (event) => [
  h('div', { role: 'gridcell', class: 'c-time' }, clock(event.ts, true)),
  h('div', { role: 'gridcell', class: 'c-verdict' }, verdict(event.verdict)),
  h('div', { role: 'gridcell', class: 'c-layer' }, visible(event.layer, 16)),
  h('div', { role: 'gridcell', class: 'c-who' }, event.container ? text(event.container, 80) : h('span', { class: 'muted' }, '–')),
  h('div', { role: 'gridcell', class: 'c-what' }, code(target(event), 160)),
  h('div', { role: 'gridcell', class: 'c-rule' }, event.rule ? code(event.rule, 64) : h('span', { class: 'muted' }, visible(event.reason, 64) || 'no rule')),
];

function details(event, rows) {
  const name = { ts: 'Time', seq: 'Number', flow: 'Flow', container: 'Container', container_id: 'Container id', agent: 'Agent', rule: 'Rule', file: 'File', reason: 'Reason', host: 'Host', ip: 'Address', port: 'Port', protocol: 'Protocol', method: 'Method', path: 'Path', record_type: 'Record type', duration_us: 'Duration' };
  const shown = (key) => (key === 'duration_us' ? `${number(event[key])} µs` : code(event[key], 2048));
  const bytes = (event.bytes_up !== undefined || event.bytes_down !== undefined) && ['Bytes', `${size(event.bytes_up)} up, ${size(event.bytes_down)} down`];
  const flow = event.flow === undefined ? [] : rows.filter((other) => other.flow === event.flow && other !== event).slice(-FLOW_MAX);
  notice({
    title: 'Decision',
    body: [
      facts([['Verdict', [verdict(event.verdict), ' by ', visible(event.layer, 16)]],
        ...Object.entries(name).filter(([key]) => event[key] !== undefined && event[key] !== null).map(([key, label]) => [label, shown(key)]), bytes]),
      flow.length > 0 && h('h3', {}, 'Same flow'),
      flow.length > 0 && h('ul', { class: 'flow' }, flow.map((other) => h('li', {}, h('span', { class: 'num' }, clock(other.ts, true)), ' ', verdict(other.verdict), ' ', visible(other.layer, 16), ' ', code(target(other), 160)))),
    ],
  });
}

export const title = 'Decisions';

export function show(root, { decisions }) {
  const filter = { verdict: '', layer: '', container: '', words: [] };
  let paused = null;
  let matching = [];
  const choice = (label, id, options, set) => h('label', { class: 'field', for: id }, h('span', {}, label),
    h('select', { id, on: { change: (event) => { set(event.target.value); all(); } } }, options.map(([value, word]) => h('option', { value }, word))));
  const field = (label, id, set) => h('label', { class: 'field grow', for: id }, h('span', {}, label),
    h('input', { id, type: 'search', maxlength: 128, autocomplete: 'off', spellcheck: 'false', on: { input: (event) => { set(event.target.value.trim().toLowerCase()); all(); } } }));
  const columns = [['Time', 'c-time'], ['Verdict', 'c-verdict'], ['Layer', 'c-layer'], ['Container', 'c-who'], ['Asked for', 'c-what'], ['Rule', 'c-rule']];
  const list = new VirtualList({ label: 'Decisions, newest first', columns, cells: line, open: (event) => details(event, decisions.rows) });
  const tally = h('p', { class: 'muted tally-line', id: 'tally' });
  const note = h('div', {});
  const pause = button('Pause', () => {
    paused = paused ? null : [...decisions.rows];
    pause.textContent = paused ? 'Resume' : 'Pause';
    pause.setAttribute('aria-pressed', String(Boolean(paused)));
    all();
  }, { 'aria-pressed': 'false', class: 'small' });
  const clear = button('Clear', () => { paused = paused && []; decisions.clear(); }, { class: 'small' });

  function all() {
    matching = (paused ?? decisions.rows).filter((event) => passes(event, filter));
    list.set(matching);
    words();
  }

  function words() {
    const kept = (paused ?? decisions.rows).length;
    const missed = decisions.missed ? `, ${number(decisions.missed)} missed` : '';
    tally.textContent = `${number(matching.length)} shown of ${number(kept)} kept (at most ${number(ROWS_MAX)})${missed}${paused ? ', paused' : ''}`;
    if (decisions.state === 'missing' || decisions.state === 'lost') {
      fill(note, trouble({ status: decisions.state === 'missing' ? 404 : 0, away: decisions.state === 'lost', message: `${decisions.message}; trying again` }));
    } else {
      fill(note);
    }
  }

  function changed(added, dropped) {
    if (paused) return words();
    if (dropped === Infinity) return all();
    // The oldest left: those of them that matched are at the beginning.
    const oldest = decisions.rows[0]?.[ORDER] ?? Infinity;
    if (dropped) {
      const at = matching.findIndex((event) => event[ORDER] >= oldest);
      matching.splice(0, at < 0 ? matching.length : at);
    }
    const fresh = added.filter((event) => event[ORDER] >= oldest && passes(event, filter));
    for (const event of fresh) matching.push(event);
    list.set(matching, fresh.length);
    return words();
  }

  root.append(h('section', { class: 'panel wide fills', 'aria-label': 'Decisions' },
    h('div', { class: 'filters', role: 'search', 'aria-label': 'Filter decisions' },
      choice('Verdict', 'f-verdict', [['', 'All'], ['allow', 'Allowed'], ['block', 'Blocked']], (value) => { filter.verdict = value; }),
      choice('Layer', 'f-layer', [['', 'All'], ...LAYERS.map((layer) => [layer, layer])], (value) => { filter.layer = value; }),
      field('Container', 'f-container', (value) => { filter.container = value; }),
      field('Text', 'f-text', (value) => { filter.words = value.split(/\s+/).filter(Boolean); }),
      h('div', { class: 'tools' }, pause, clear)),
    note, list.root, tally));
  const silence = decisions.listen(changed);
  all();
  return () => {
    silence();
    list.stop();
  };
}

