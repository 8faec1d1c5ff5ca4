// The decisions as they happen: one stream for the whole page, a bounded store, and counts over time.

import { FETCH, Failure, address } from './api.js';

/** Decisions kept; the oldest leave first. */
export const ROWS_MAX = 10_000;
/** Longest text kept of one field. */
const FIELD_MAX = 512;
/** Longest line taken; the daemon's are far below. */
const LINE_MAX = 65_536;
/** Seconds of one bucket of the chart, how many are kept, and of how many containers. */
export const BUCKET_S = 5;
const BUCKETS_MAX = 720;
const CONTAINERS_MAX = 64;
/** Whoever has no name here: the rest, and decisions about no container. */
export const REST = '(others)';
export const NOBODY = '(no container)';
/** Pauses between attempts to connect. */
const PAUSE_MS = [500, 1000, 2000, 4000, 8000];
/** How long the last decisions may take to come: the stream waits for them. */
const RECENT_MS = 5000;
/** Told at most this often. */
const TELL_MS = 150;

/** Grows by one with each decision this page got, whatever the daemon's own numbers do. */
export const ORDER = Symbol('order');

const clipped = (value) => (typeof value === 'string' && value.length > FIELD_MAX ? `${value.slice(0, FIELD_MAX)}…` : value);

/** A line as an object; null for what is none. */
function parsed(line) {
  try {
    const value = JSON.parse(line);
    return typeof value === 'object' ? value : null;
  } catch {
    return null;
  }
}

/** A decision out of an object; null for what is none. */
function decision(event) {
  if (typeof event.verdict !== 'string') return null;
  for (const name of Object.keys(event)) event[name] = clipped(event[name]);
  return event;
}

/** The stream; it starts with the page and never ends. */
export class Decisions {
  constructor() {
    /** Oldest first. */
    this.rows = [];
    /** `connecting`, `live`, `lost` or `missing`. */
    this.state = 'connecting';
    this.message = '';
    /** Decisions that this page did not get: by their numbers, or as the daemon told. */
    this.missed = 0;
    this.told = 0;
    this.total = 0;
    /** container → Map(bucket → [allowed, blocked]) */
    this.buckets = new Map();
    this.listeners = new Set();
    this.lastSeq = 0;
    this.lastTs = '';
    this.timer = 0;
    this.fresh = [];
    this.dropped = 0;
  }

  /** `listener(added, dropped)`: rows appended, and how many left at the beginning. Gives the way to stop. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Connects, and connects again, for as long as the page lives. */
  async run() {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const got = await this.read();
        if (got) attempt = 0;
        this.set('lost', 'the stream ended');
      } catch (error) {
        if (this.state === 'live') attempt = 0;
        const missing = error.status === 404;
        this.set(missing ? 'missing' : 'lost', error.message);
      }
      const pause = PAUSE_MS[Math.min(attempt, PAUSE_MS.length - 1)];
      await new Promise((done) => { setTimeout(done, pause); });
    }
  }

  async read() {
    let response;
    try {
      response = await fetch(address('events?follow=true'), FETCH);
    } catch {
      throw new Failure('the connection is gone');
    }
    if (!response.ok || !response.body) {
      const envelope = await response.json().catch(() => null);
      throw new Failure(String(envelope?.error ?? `status ${response.status}`), response.status);
    }
    this.set('live', '');
    // The stream begins with its head, so what was decided before that and what comes next overlap, and nothing is
    // between the two.
    await this.recent();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    let skipping = false;
    let got = false;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return got;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (skipping) {
          skipping = false;
        } else if (line.trim()) {
          got = true;
          this.line(line);
        }
      }
      if (rest.length > LINE_MAX) [rest, skipping] = ['', true];
    }
  }

  /** The last decisions that the daemon has in memory. A daemon that gives none still has those to come. */
  async recent() {
    try {
      const response = await fetch(address('events'), { ...FETCH, signal: AbortSignal.timeout(RECENT_MS) });
      if (!response.ok) return;
      for (const line of (await response.text()).split('\n')) this.line(line);
    } catch {
      // The stream says it if the daemon is away.
    }
  }

  line(text) {
    const value = parsed(text);
    if (!value) return;
    if (Number.isInteger(value.lost)) this.told += value.lost;
    const event = decision(value);
    if (event) this.add(event);
  }

  add(event) {
    const seq = Number(event.seq) || 0;
    const ts = String(event.ts ?? '');
    // What a new connection repeats. A daemon that started again counts from one, later.
    if (seq <= this.lastSeq && ts <= this.lastTs) return;
    const gap = this.lastSeq && seq > this.lastSeq ? seq - this.lastSeq - 1 : 0;
    this.missed += Math.max(gap, this.told);
    this.told = 0;
    [this.lastSeq, this.lastTs] = [seq, ts];
    this.total += 1;
    event[ORDER] = this.total;
    this.fresh.push(event);
    this.count(event);
    this.soon();
  }

  count(event) {
    const at = Date.parse(event.ts) || Date.now();
    const bucket = Math.floor(at / 1000 / BUCKET_S);
    let name = event.container || NOBODY;
    if (!this.buckets.has(name) && this.buckets.size >= CONTAINERS_MAX) name = REST;
    if (!this.buckets.has(name)) this.buckets.set(name, new Map());
    const series = this.buckets.get(name);
    const counts = series.get(bucket) ?? [0, 0];
    counts[event.verdict === 'allow' ? 0 : 1] += 1;
    series.set(bucket, counts);
    if (series.size > BUCKETS_MAX) series.delete(series.keys().next().value);
  }

  set(state, message) {
    if (this.state === state && this.message === message) return;
    [this.state, this.message] = [state, message];
    this.soon();
  }

  /** Listeners are told a few times a second at most, however many decisions come. */
  soon() {
    if (!this.timer) this.timer = setTimeout(() => this.tell(), TELL_MS);
  }

  tell() {
    this.timer = 0;
    const added = this.fresh;
    this.fresh = [];
    for (const event of added) this.rows.push(event);
    const dropped = Math.max(0, this.rows.length - ROWS_MAX);
    if (dropped) this.rows.splice(0, dropped);
    for (const listener of this.listeners) listener(added, dropped);
  }

  /** Empties the store; counts stay. */
  clear() {
    this.rows = [];
    for (const listener of this.listeners) listener([], Infinity);
  }
}
