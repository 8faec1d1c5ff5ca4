// Direct grants in the kernel with their counters, and the DNS cache.

import { get, panel, post, trouble } from './api.js';
import { question } from './dialog.js';
import { button, code, count, facts, fill, h, lasting, number, size, table, text, visible } from './dom.js';

/** Rows drawn; more are counted. */
const ROWS = 500;

export const title = 'Grants and cache';

function grants(list) {
  if (!list.length) return h('p', { class: 'muted' }, 'Nothing is open directly: all traffic goes through DNS filter and proxy.');
  const columns = [['Container'], ['Destination'], ['Port', 'num'], ['Protocol'], ['Expires in', 'num'], ['Packets', 'num'], ['Bytes', 'num']];
  return [
    table('Direct grants', columns, list.slice(0, ROWS).map((one) => [text(one.container), code(one.destination), visible(one.port ?? '–', 8), visible(one.protocol ?? '–', 8), lasting(one.expires_in_secs), number(one.packets), size(one.bytes)])),
    list.length > ROWS && h('p', { class: 'muted' }, `and ${count(list.length - ROWS, 'grant')} more`),
  ];
}

function cache(data) {
  const { stats, entries } = data;
  const asked = stats.hits + stats.misses;
  return [
    facts([['Entries', `${number(stats.entries)} of ${number(stats.max_entries)}`], ['Hits', `${number(stats.hits)}${asked ? ` (${Math.round((100 * stats.hits) / asked)} %)` : ''}`], ['Misses', number(stats.misses)], ['Evictions', number(stats.evictions)]]),
    entries.length > 0 && table('Cached answers', [['Name'], ['Type'], ['Expires in', 'num']], entries.slice(0, ROWS).map((entry) => [code(entry.hostname), code(entry.record_type, 16), lasting(entry.ttl_remaining_secs)])),
    entries.length > ROWS && h('p', { class: 'muted' }, `and ${count(entries.length - ROWS, 'entry').replace('entrys', 'entries')} more`),
  ];
}

/** A button that asks, does, and says what came of it. */
function flusher({ label, ask, path, said, outcome, after, announce }) {
  const flush = button(label, async () => {
    if ((await question({ title: `${label}?`, body: h('p', {}, ask), yes: label, danger: true })) === null) return;
    try {
      const words = said(await post(path));
      fill(outcome, h('div', { class: 'notice good' }, h('p', {}, words)));
      announce(words);
    } catch (failure) {
      fill(outcome, trouble(failure));
      announce('Not flushed.');
    }
    after();
  }, { class: 'small danger plain' });
  return flush;
}

export function show(root, { announce }) {
  const outcomes = [h('div', { class: 'outcome' }), h('div', { class: 'outcome' })];
  const parts = [];
  const flushGrants = flusher({ label: 'Flush grants', ask: 'Every direct grant is withdrawn and its running flows end. Names that are asked again open again, if the rules still allow them.',
    path: 'rules/flush', said: (data) => `${count(data.removed, 'grant')} removed.`, outcome: outcomes[0], after: () => parts[0].again(), announce });
  const flushCache = flusher({ label: 'Flush cache', ask: 'Every cached answer is forgotten; the next questions go to the upstreams.',
    path: 'dns/cache/flush', said: (data) => `${number(data.entries_flushed)} cached answers forgotten.`, outcome: outcomes[1], after: () => parts[1].again(), announce });
  parts.push(panel({ title: 'Direct grants', ask: () => get('rules/active'), show: grants, wide: true, tools: [flushGrants] }));
  parts.push(panel({ title: 'DNS cache', ask: () => get('dns/cache?entries=true'), show: cache, wide: true, tools: [flushCache] }));
  parts.forEach((part, at) => part.root.querySelector('.panel-head').after(outcomes[at]));
  root.append(...parts.map((part) => part.root));
  return () => {
    for (const part of parts) part.stop();
  };
}
