// Overview: what runs, what does not, and decisions over time.

import { get, panel, trouble } from './api.js';
import { drawing, SPANS } from './chart.js';
import { badge, code, count, facts, fill, h, number, visible } from './dom.js';

/** Redrawing the chart. */
const CHART_MS = 2000;
/** Warnings shown. */
const WARNINGS = 20;

const state = (good, yes, no) => badge(good ? yes : no, good ? 'allow' : 'block');

/** `/ready` answers 503 with its data while a part does not work: that is an answer. */
export async function readiness() {
  try {
    return await get('ready');
  } catch (failure) {
    if (failure.data?.parts) return failure.data;
    throw failure;
  }
}

function ready(data) {
  const parts = Object.entries(data.parts ?? {});
  const warnings = data.warnings ?? [];
  return [
    h('ul', { class: 'parts' }, parts.map(([name, part]) => h('li', {}, state(part.ok, 'ok', 'failed'), ' ', h('span', {}, visible(name)),
      part.reason && h('p', { class: 'reason' }, visible(part.reason, 1000))))),
    warnings.length > 0 && h('div', { class: 'notice warn' }, h('strong', {}, count(warnings.length, 'warning')),
      h('ul', {}, warnings.slice(0, WARNINGS).map((warning) => h('li', {}, visible(warning, 1000)))),
      warnings.length > WARNINGS && h('p', {}, `and ${warnings.length - WARNINGS} more`)),
  ];
}

const bridge = (data) => facts([
  ['Link', [state(data.up, 'up', 'down'), ' ', code(data.name)]],
  ['Table', state(data.nftables_active, 'as planned', visible(data.nftables))],
  ['Index', number(data.index)],
]);

const dns = (data) => facts([
  ['Filter', state(data.running, 'running', 'stopped')],
  ['Listens on', code(`${data.listen_address}:${data.listen_port}`)],
  ['Upstreams', code((data.upstreams ?? []).join(', ') || 'none')],
  ['Questions', [`${number(data.queries_total)}, `, h('span', { class: 'is-block' }, `${number(data.queries_blocked)} blocked`)]],
  ['Cached', number(data.cache_entries)],
]);

const proxy = (data) => facts([
  ['Proxy', state(data.running, 'running', 'off')],
  data.proxy_url && ['Address', code(data.proxy_url)],
  ['Requests', [`${number(data.total_requests)}, `, h('span', { class: 'is-block' }, `${number(data.total_blocked)} blocked`)]],
  ['Open now', number(data.active_connections)],
]);

const interception = (data) => facts([
  ['Authority', data.ca_loaded ? badge('loaded', 'allow') : badge('none: off')],
  ['Intercepted', [`${number(data.intercepted_total)}, `, h('span', { class: 'is-block' }, `${number(data.blocked_total)} blocked`)]],
  ['Leaves', `${number(data.leaf_cache_size)} of ${number(data.leaf_cache_max)}`],
]);

const health = (data) => [
  h('p', {}, badge('every thread answers', 'allow')),
  h('p', { class: 'muted wrap' }, (data.subsystems ?? []).map((name) => visible(name)).join(', ')),
];

function dashboardOf(rules, networks) {
  const allow = rules.filter((rule) => rule.action === 'allow').length;
  const containers = networks.reduce((sum, network) => sum + (network.containers ?? []).length, 0);
  const errors = rules.reduce((sum, rule) => sum + (rule.errors ?? 0), 0);
  return facts([
    ['Rules', rules.length ? `${number(allow)} allow, ${number(rules.length - allow)} block` : badge('none: everything is blocked', 'block')],
    ['Errors', errors ? badge(`${number(errors)} while judging`, 'block') : 'none'],
    ['Networks', number(networks.length)],
    ['Containers', number(containers)],
  ]);
}

function chart(decisions) {
  const body = h('div', { class: 'panel-body' });
  const pick = (label, id, options) => h('label', { class: 'field', for: id }, h('span', {}, label),
    h('select', { id, on: { change: () => draw() } }, options));
  const span = pick('Time', 'chart-span', SPANS.map(([seconds, name]) => h('option', { value: seconds, selected: seconds === 900 }, name)));
  const who = pick('Container', 'chart-who', [h('option', { value: '' }, 'All')]);
  const choice = who.querySelector('select');
  let names = '';
  function draw() {
    const known = [...decisions.buckets.keys()].sort();
    // The names are told apart by their place: an empty or odd one is as good as any.
    if (JSON.stringify(known) !== names) {
      const chosen = names ? JSON.parse(names)[Number(choice.value)] : undefined;
      names = JSON.stringify(known);
      choice.replaceChildren(h('option', { value: '' }, 'All'), ...known.map((name, at) => h('option', { value: at, selected: name === chosen }, visible(name, 64))));
    }
    const only = choice.value === '' ? null : known[Number(choice.value)];
    if (decisions.state === 'missing') {
      fill(body, trouble({ status: 404, message: decisions.message }));
    } else {
      fill(body, drawing(decisions, Number(span.querySelector('select').value), only));
    }
  }
  draw();
  const timer = setInterval(() => { if (!document.hidden) draw(); }, CHART_MS);
  const silence = decisions.listen(() => { if (decisions.total < 50) draw(); });
  const legend = h('p', { class: 'legend' }, h('span', { class: 'key-allow' }, 'allowed'), h('span', { class: 'key-block' }, 'blocked'));
  const root = h('section', { class: 'panel wide', 'aria-label': 'Decisions over time' },
    h('div', { class: 'panel-head' }, h('h2', {}, 'Decisions over time'), h('div', { class: 'tools' }, legend, who, span)), body);
  return { root, stop: () => { clearInterval(timer); silence(); } };
}

export function show(root, { decisions }) {
  const parts = [
    panel({ title: 'Ready', ask: readiness, show: ready }),
    panel({ title: 'Bridge and table', ask: () => get('bridge'), show: bridge }),
    panel({ title: 'DNS', ask: () => get('dns'), show: dns }),
    panel({ title: 'Proxy', ask: () => get('proxy'), show: proxy }),
    panel({ title: 'Policy', ask: () => Promise.all([get('rules'), get('networks')]), show: ([rules, networks]) => dashboardOf(rules, networks), every: 10_000 }),
    panel({ title: 'Health', ask: () => get('health'), show: health, every: 10_000 }),
    panel({ title: 'Interception', ask: () => get('proxy/intercept'), show: interception, every: 10_000, missing: false }),
  ];
  const time = chart(decisions);
  root.append(time.root, h('div', { class: 'cards' }, parts.map((part) => part.root)));
  return () => {
    time.stop();
    for (const part of parts) part.stop();
  };
}

export const title = 'Overview';
