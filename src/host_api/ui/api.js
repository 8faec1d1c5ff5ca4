// Calls of the operator API, and panels that show their answers: loading, failed, stale.

import { ago, button, fill, h, visible } from './dom.js';

// Relative: the page works at /ui/ of the operator socket and below the secret path of `outcall ui` alike.
const BASE = new URL('../api/v1/', document.baseURI);
/** Longer than every deadline of the daemon, so that its own words arrive. */
const CALL_LIMIT_MS = 90_000;
/** A failure of this length is a page of rule errors; more is nobody's reading. */
const ERROR_MAX = 16_384;

/** An answer that is none: `status` 0 when nobody answered. */
export class Failure extends Error {
  constructor(message, status = 0, data = undefined) {
    super(message);
    this.status = status;
    this.data = data;
  }

  /** Nobody answered, or only the bridge did. */
  get away() {
    return this.status === 0 || this.status === 502;
  }
}

/** Where a call of the API is. */
export const address = (path) => new URL(path, BASE);

const watchers = new Set();

/** Calls `watcher(reachable, message)` after each call. */
export function watch(watcher) {
  watchers.add(watcher);
}

function tell(reachable, message) {
  for (const watcher of watchers) watcher(reachable, message);
}

/** The options of every fetch: no cookie, no cache, no redirect. */
export const FETCH = { cache: 'no-store', credentials: 'omit', redirect: 'error', mode: 'same-origin' };

/** One call; gives the envelope's data or throws a `Failure`. */
export async function call(method, path, body) {
  const limit = AbortSignal.timeout(CALL_LIMIT_MS);
  const options = { ...FETCH, method, signal: limit };
  if (method === 'POST') {
    options.headers = { 'Content-Type': 'application/json' };
    options.body = JSON.stringify(body ?? {});
  }
  let status;
  let envelope;
  try {
    const response = await fetch(address(path), options);
    status = response.status;
    envelope = await response.json().catch(() => null);
  } catch (error) {
    const message = limit.aborted ? `no answer within ${CALL_LIMIT_MS / 1000} s` : 'the connection is gone';
    tell(false, message);
    throw new Failure(message);
  }
  const failure = new Failure(String(envelope?.error ?? `status ${status} without a word`).slice(0, ERROR_MAX), status, envelope?.data);
  tell(!failure.away, failure.message);
  if (envelope?.success === true) return envelope.data;
  throw failure;
}

/** `GET`. */
export const get = (path) => call('GET', path);
/** `POST`. */
export const post = (path, body) => call('POST', path, body);

/**
 * Asks again and again, `every` milliseconds after each answer, while the page is looked at. `settle(data, failure)`
 * gets the outcome. Gives `{ now, stop }`.
 */
export function poll(ask, every, settle) {
  let timer = 0;
  let stopped = false;
  let turn = 0;
  const again = () => {
    clearTimeout(timer);
    if (!stopped) timer = setTimeout(run, every);
  };
  async function run() {
    clearTimeout(timer);
    if (document.hidden) return again();
    turn += 1;
    const mine = turn;
    let data;
    let failure = null;
    try {
      data = await ask();
    } catch (error) {
      failure = error;
    }
    if (stopped || mine !== turn) return undefined;
    settle(data, failure);
    return again();
  }
  const seen = () => {
    if (!document.hidden) run();
  };
  document.addEventListener('visibilitychange', seen);
  run();
  return {
    now: run,
    stop() {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', seen);
    },
  };
}

/** The words for a failure, with what to do. */
export function trouble(failure, retry) {
  let lead = 'The daemon refused.';
  if (failure.away) lead = 'The daemon does not answer.';
  else if (failure.status === 404) lead = 'This daemon does not offer it.';
  else if (failure.status === 503) lead = 'Not ready.';
  else if (failure.status === 403) lead = 'Not allowed.';
  else if (!failure.status) lead = 'Something failed in this page.';
  return h('div', { class: failure.status === 404 ? 'notice' : 'notice bad' },
    h('p', {}, h('strong', {}, lead), ' ', visible(failure.message, 2000)),
    retry && button('Retry', retry, { class: 'small', 'data-key': 'retry' }));
}

/**
 * A card that polls. `show(data)` gives its content; it is called again only when the answer changed. After a failure
 * the last answer stays, marked as old.
 */
export function panel({ title, ask, show, every = 5000, tools = [], wide = false, missing = true }) {
  const stale = h('div', { class: 'stale', hidden: true });
  const body = h('div', { class: 'panel-body' }, h('p', { class: 'muted' }, 'Loading…'));
  const head = h('div', { class: 'panel-head' }, h('h2', {}, title), h('div', { class: 'tools' }, tools));
  const root = h('section', { class: wide ? 'panel wide' : 'panel', 'aria-label': title }, head, stale, body);
  let last = null;
  let at = 0;
  let content = false;
  const poller = poll(ask, every, (data, failure) => {
    if (failure) {
      last = content ? last : null;
      const old = content && failure.status !== 404;
      root.classList.toggle('old', old);
      root.hidden = failure.status === 404 && !missing;
      if (!old) {
        content = false;
        stale.hidden = true;
        fill(body, trouble(failure, () => poller.now()));
        return;
      }
      stale.hidden = false;
      fill(stale, h('span', {}, `Old: as of ${ago(at)}. ${visible(failure.message, 300)}`),
        button('Retry', () => poller.now(), { class: 'small', 'data-key': 'retry' }));
      return;
    }
    at = Date.now();
    root.hidden = false;
    root.classList.remove('old');
    stale.hidden = true;
    const seen = JSON.stringify(data);
    if (content && seen === last) return;
    [last, content] = [seen, true];
    try {
      fill(body, show(data));
    } catch (error) {
      [last, content] = [null, false];
      fill(body, trouble(new Failure(`unexpected answer: ${error.message}`)));
    }
  });
  return { root, now: () => poller.now(), stop: () => poller.stop(), again: () => { last = null; poller.now(); } };
}
