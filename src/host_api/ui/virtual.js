// A list of any length of which only the rows in sight exist. One stop of the tab key; arrows move within it.

import { h } from './dom.js';

/** Rows drawn above and below what is in sight. */
const MARGIN = 8;

/**
 * Newest first: `rows` is oldest first, as it grows. `cells(row)` gives the cells of a row, `open(row)` is Enter or a
 * click. Row height is what the style sheet says (`--row`).
 */
export class VirtualList {
  constructor({ label, columns, cells, open }) {
    this.rows = [];
    this.cells = cells;
    this.open = open;
    this.active = null;
    this.drawn = new Map();
    this.serial = new WeakMap();
    this.next = 1;
    this.space = h('div', { class: 'v-space', role: 'rowgroup' });
    this.box = h('div', { class: 'v-box', 'data-key': 'list' },
      h('div', { role: 'rowgroup', class: 'v-head' }, h('div', { role: 'row', class: 'v-row', 'aria-rowindex': 1 },
        columns.map(([name, kind]) => h('div', { role: 'columnheader', class: kind }, name)))),
      this.space);
    this.root = h('div', { class: 'v-list', role: 'grid', tabindex: '0', 'aria-label': label, 'aria-readonly': 'true',
      on: { keydown: (event) => this.key(event) } }, this.box);
    this.root.addEventListener('scroll', () => this.draw(), { passive: true });
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.root);
  }

  /** Stops looking at sizes. */
  stop() {
    this.sizes.disconnect();
  }

  get height() {
    return parseFloat(getComputedStyle(this.root).getPropertyValue('--row')) || 36;
  }

  /** Shows `rows`; `added` of them are new at the end, so that what is being read stays in place. */
  set(rows, added = 0) {
    this.rows = rows;
    if (added && this.root.scrollTop > this.height) this.root.scrollTop += added * this.height;
    if (this.active && !rows.includes(this.active)) this.active = null;
    this.draw();
  }

  at(index) {
    return this.rows[this.rows.length - 1 - index];
  }

  id(row) {
    if (!this.serial.has(row)) this.serial.set(row, this.next++);
    return `row-${this.serial.get(row)}`;
  }

  draw() {
    const height = this.height;
    this.space.style.height = `${this.rows.length * height}px`;
    this.root.setAttribute('aria-rowcount', this.rows.length + 1);
    const first = Math.max(0, Math.floor(this.root.scrollTop / height) - MARGIN);
    const last = Math.min(this.rows.length, Math.ceil((this.root.scrollTop + this.root.clientHeight) / height) + MARGIN);
    const wanted = new Set();
    for (let index = first; index < last; index += 1) {
      const row = this.at(index);
      wanted.add(row);
      let element = this.drawn.get(row);
      if (!element) {
        element = h('div', { role: 'row', class: `v-row ${row.verdict === 'allow' ? 'is-allow' : 'is-block'}`,
          id: this.id(row), on: { click: () => { this.select(row); this.open(row); } } }, this.cells(row));
        this.drawn.set(row, element);
        this.space.append(element);
      }
      element.style.transform = `translateY(${index * height}px)`;
      element.setAttribute('aria-rowindex', index + 2);
      element.classList.toggle('active', row === this.active);
      element.setAttribute('aria-selected', row === this.active);
    }
    for (const [row, element] of this.drawn) {
      if (wanted.has(row)) continue;
      element.remove();
      this.drawn.delete(row);
    }
    if (this.active && this.drawn.has(this.active)) this.root.setAttribute('aria-activedescendant', this.id(this.active));
    else this.root.removeAttribute('aria-activedescendant');
  }

  select(row) {
    this.active = row;
    this.draw();
  }

  move(index) {
    const bounded = Math.max(0, Math.min(this.rows.length - 1, index));
    const height = this.height;
    const head = this.space.offsetTop;
    const room = this.root.clientHeight - head;
    if (bounded * height < this.root.scrollTop) this.root.scrollTop = bounded * height;
    else if ((bounded + 1) * height > this.root.scrollTop + room) this.root.scrollTop = (bounded + 1) * height - room;
    this.select(this.at(bounded));
  }

  key(event) {
    if (!this.rows.length || event.ctrlKey || event.altKey || event.metaKey) return;
    const here = this.active ? this.rows.length - 1 - this.rows.indexOf(this.active) : -1;
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.height) - 2);
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: this.rows.length - 1 }[event.key];
    if (to !== undefined) this.move(to);
    else if (event.key === 'Enter' && this.active) this.open(this.active);
    else return;
    event.preventDefault();
  }
}
