// The chart of allowed and blocked decisions over time, drawn by hand as SVG.

import { count, h, number, svg, text } from './dom.js';
import { BUCKET_S } from './stream.js';

/** Bars of the large chart at most; buckets are joined to fit. */
const BARS = 60;
/** Small charts at most; the busiest containers have one. */
const SMALL_MAX = 12;

/** Spans that can be chosen, in seconds. */
export const SPANS = [[300, '5 minutes'], [900, '15 minutes'], [3600, '1 hour']];

/** Sums of the last `span` seconds in `bars` steps, oldest first: `[allowed, blocked]`. */
export function sums(series, span, bars, end) {
  const step = Math.max(1, Math.round(span / BUCKET_S / bars));
  const out = Array.from({ length: Math.ceil(span / BUCKET_S / step) }, () => [0, 0]);
  const last = Math.floor(end / BUCKET_S / step);
  for (const buckets of series) {
    for (const [bucket, [allowed, blocked]] of buckets) {
      const place = out.length - 1 - (last - Math.floor(bucket / step));
      if (place < 0 || place >= out.length) continue;
      out[place][0] += allowed;
      out[place][1] += blocked;
    }
  }
  return out;
}

const whole = (bars) => bars.reduce((sum, [allowed, blocked]) => [sum[0] + allowed, sum[1] + blocked], [0, 0]);

/** A round number that is no smaller than `value`. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((round) => round >= value);
}

function bars(values, width, height, top, gap) {
  const step = width / values.length;
  const allowed = [];
  const blocked = [];
  const piece = (list, at, from, value) => {
    if (!value) return from;
    const tall = Math.max(1, (value / top) * height);
    list.push(`M${(at * step + gap / 2).toFixed(2)} ${(from - tall).toFixed(2)}h${(step - gap).toFixed(2)}v${tall.toFixed(2)}h${(gap - step).toFixed(2)}z`);
    return from - tall;
  };
  values.forEach(([yes, no], at) => piece(allowed, at, piece(blocked, at, height, no), yes));
  return [svg('path', { class: 'bar-block', d: blocked.join('') || 'M0 0' }), svg('path', { class: 'bar-allow', d: allowed.join('') || 'M0 0' })];
}

/** The large chart with its axes. */
function large(values, span, end, name) {
  const [width, height, left, bottom] = [720, 180, 34, 22];
  const top = ceiling(Math.max(1, ...values.map(([allowed, blocked]) => allowed + blocked)));
  const [allowed, blocked] = whole(values);
  const lines = [0, 0.5, 1].filter((part) => part !== 0.5 || top % 2 === 0).map((part) => {
    const y = height - part * height;
    return [svg('line', { class: 'grid', x1: left, x2: width, y1: y, y2: y }),
      svg('text', { class: 'tick', x: left - 6, y: y + 4, 'text-anchor': 'end' }, number(top * part))];
  });
  const marks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const at = new Date((end - span * (1 - part)) * 1000).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', second: span < 900 ? '2-digit' : undefined });
    return svg('text', { class: 'tick', x: left + part * (width - left), y: height + 16,
      'text-anchor': part === 0 ? 'start' : part === 1 ? 'end' : 'middle' }, at);
  });
  const inner = svg('g', { transform: `translate(${left} 0)` }, bars(values, width - left, height, top, 2));
  const label = `${name}: ${number(allowed)} allowed, ${number(blocked)} blocked in the last ${span / 60} minutes`;
  return svg('svg', { class: 'chart', viewBox: `0 -8 ${width} ${height + bottom + 8}`, role: 'img', 'aria-label': label }, lines, inner, marks);
}

/** One line for each container: name, a small chart, its counts. */
function small(name, values, top) {
  const [allowed, blocked] = whole(values);
  return h('li', {},
    h('span', { class: 'who' }, text(name, 64)),
    svg('svg', { class: 'spark', viewBox: '0 0 120 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, bars(values, 120, 24, top, 1)),
    h('span', { class: 'tally' }, h('span', { class: 'is-allow' }, `${number(allowed)} allowed`), ' ', h('span', { class: 'is-block' }, `${number(blocked)} blocked`)));
}

/** Everything: the large chart of `only` (a container, or null for all) and the small ones. */
export function drawing(decisions, span, only) {
  const newest = Date.parse(decisions.lastTs) || 0;
  const end = Math.max(Date.now(), newest) / 1000;
  const chosen = only === null ? [...decisions.buckets.values()] : [decisions.buckets.get(only) ?? new Map()];
  const values = sums(chosen, span, BARS, end);
  const each = [...decisions.buckets]
    .map(([name, series]) => [name, sums([series], span, 30, end)])
    .map(([name, list]) => [name, list, whole(list)])
    .filter(([, , [allowed, blocked]]) => allowed + blocked > 0)
    .sort((one, other) => other[2][0] + other[2][1] - one[2][0] - one[2][1]);
  const top = Math.max(1, ...each.flatMap(([, list]) => list.map(([allowed, blocked]) => allowed + blocked)));
  const more = each.length - SMALL_MAX;
  return [
    large(values, span, end, only === null ? 'All containers' : 'One container'),
    each.length ? h('ul', { class: 'sparks', 'aria-label': 'By container' }, each.slice(0, SMALL_MAX).map(([name, list]) => small(name, list, top)))
      : h('p', { class: 'muted' }, 'No decision in this time.'),
    more > 0 && h('p', { class: 'muted' }, `and ${count(more, 'container')} more`),
  ];
}
