// The page: navigation, theme, whether the daemon answers. Each view is a module of its own.

import { get, poll, watch } from './api.js';
import * as decisionsView from './decisions.js';
import { button, fill, h, number, visible } from './dom.js';
import * as grantsView from './grants.js';
import * as networksView from './networks.js';
import * as overview from './overview.js';
import * as requestsView from './requests.js';
import * as rulesView from './rules.js';
import { Decisions } from './stream.js';

const VIEWS = { overview, decisions: decisionsView, networks: networksView, rules: rulesView, requests: requestsView, grants: grantsView };
/** How often the page asks whether the daemon is ready, and for requests that wait. */
const HEART_MS = 4000;

const by = (id) => document.getElementById(id);
const main = by('main');
const decisions = new Decisions();
let leave = null;
let current = null;

/** Says it to those who do not see the page; the same words twice are said twice. */
function announce(words) {
  const box = by('announcer');
  box.textContent = '';
  setTimeout(() => { box.textContent = words; }, 50);
}

// ---- views

const links = new Map();

function navigation() {
  const list = h('ul', {}, Object.entries(VIEWS).map(([name, view]) => {
    const link = h('a', { href: `#/${name}` }, h('span', {}, view.title), name === 'requests' && h('span', { class: 'count', id: 'waiting', hidden: true }));
    links.set(name, link);
    return h('li', {}, link);
  }));
  by('nav').append(list);
}

function go(moved) {
  const name = location.hash.replace(/^#\/?/, '') || 'overview';
  const known = Object.hasOwn(VIEWS, name) ? name : 'overview';
  if (known === current) return;
  leave?.();
  current = known;
  for (const [other, link] of links) {
    if (other === known) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  main.replaceChildren();
  main.dataset.view = known;
  by('title').textContent = VIEWS[known].title;
  document.title = `${VIEWS[known].title} · Outcall`;
  leave = VIEWS[known].show(main, { decisions, announce, pending });
  links.get(known).scrollIntoView?.({ block: 'nearest', inline: 'center' });
  if (moved) {
    window.scrollTo(0, 0);
    by('title').focus({ preventScroll: true });
  }
}

by('skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});

// ---- theme

const THEMES = ['auto', 'light', 'dark'];

function theme(next) {
  let chosen = next;
  try {
    if (next) localStorage.setItem('outcall-theme', next);
    else chosen = localStorage.getItem('outcall-theme');
  } catch {
    // No storage: the choice lasts as long as the page.
  }
  if (!THEMES.includes(chosen)) chosen = 'auto';
  document.documentElement.dataset.theme = chosen;
  fill(by('theme'), `Theme: ${chosen}`);
  by('theme').onclick = () => theme(THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
}

// ---- the daemon

let answers = null;
let ready = null;

function condition() {
  const pill = by('state');
  const [kind, words] = answers === null ? ['wait', 'Connecting'] : !answers ? ['bad', 'No answer'] : ready === false ? ['warn', 'Not ready'] : ['good', 'Live'];
  pill.className = `pill ${kind}`;
  by('state-text').textContent = words;
  document.body.classList.toggle('away', answers === false);
}

let heart = null;

watch((reachable, message) => {
  const was = answers;
  answers = reachable;
  if (reachable !== was) {
    const banner = by('banner');
    if (reachable) {
      banner.hidden = true;
      banner.replaceChildren();
      if (was === false) announce('The daemon answers again.');
    } else {
      fill(banner, h('span', {}, h('strong', {}, 'outcalld does not answer.'), ` What is shown is old. ${visible(message, 300)}`),
        button('Retry now', () => heart?.now(), { class: 'small' }));
      banner.hidden = false;
    }
    condition();
  }
});

function waiting(list) {
  const box = by('waiting');
  box.hidden = !list.length;
  fill(box, h('span', { 'aria-hidden': 'true' }, number(list.length)), h('span', { class: 'hidden' }, `, ${number(list.length)} waiting`));
}

navigation();
theme();
condition();
const pending = poll(() => get('requests/rules'), HEART_MS, (list, failure) => { if (!failure) waiting(list); });
heart = poll(overview.readiness, HEART_MS, (data, failure) => {
  if (!failure) ready = data.ready;
  condition();
});
decisions.run();
addEventListener('hashchange', () => go(true));
go(false);
