// Networks and the containers on them.

import { get, panel } from './api.js';
import { badge, code, count, facts, h, table, text, visible, when } from './dom.js';

/** Rows drawn; more are counted. */
const ROWS = 500;

function networks(list) {
  if (!list.length) return h('p', { class: 'muted' }, 'No network is managed. Make one with `outcall network create`.');
  return list.map((network) => h('section', { class: 'inner', 'aria-label': visible(network.name) },
    h('h3', {}, text(network.name), ' ', network.exists ? badge('exists', 'allow') : badge('missing', 'block')),
    facts([['Subnet', code(network.subnet ?? '–')], ['Gateway', code(network.gateway ?? '–')], ['Bridge', code(network.bridge ?? '–')], ['Id', code((network.network_id ?? '–').slice(0, 12))]]),
    attached(network.containers ?? [])));
}

function attached(containers) {
  if (!containers.length) return h('p', { class: 'muted' }, 'No container is attached.');
  return [
    table('Containers on this network', [['Container'], ['IPv4 address', 'num']], containers.slice(0, ROWS).map((one) => [text(one.name), code(one.ipv4_address)])),
    containers.length > ROWS && h('p', { class: 'muted' }, `and ${count(containers.length - ROWS, 'container')} more`),
  ];
}

function made(containers) {
  if (!containers.length) return h('p', { class: 'muted' }, 'No container was made by outcalld.');
  return table('Containers made by outcalld', [['Container'], ['Image'], ['State'], ['Network'], ['Made', 'num']],
    containers.slice(0, ROWS).map((one) => [text(one.name), code(one.image, 80), badge(visible(one.state, 20), one.state === 'running' ? 'allow' : ''), text(one.network ?? '–'), when(one.created_at)]));
}

export const title = 'Networks';

export function show(root) {
  const parts = [
    panel({ title: 'Networks', ask: () => get('networks'), show: networks, wide: true }),
    panel({ title: 'Made by outcalld', ask: () => get('containers'), show: made, wide: true, missing: false }),
  ];
  root.append(...parts.map((part) => part.root));
  return () => {
    for (const part of parts) part.stop();
  };
}
