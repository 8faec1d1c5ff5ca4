// Rule requests of agents: the exact bytes that an approval installs, and the operator's word.

import { get, panel, post, trouble } from './api.js';
import { question } from './dialog.js';
import { badge, button, code, count, exact, facts, fill, h, text, visible, when } from './dom.js';

/** Longest reason for a rejection, in characters. */
const REASON_MAX = 500;
/** Cards drawn; the oldest come first. */
const CARDS = 50;

export const title = 'Requests';

/** What is odd about the rules of a request, one text each. */
function lint(request) {
  const found = request.lint ?? [];
  if (!found.length) return null;
  return h('div', { class: 'notice warn' }, h('strong', {}, `Lint: ${count(found.length, 'remark')}`),
    h('ul', {}, found.slice(0, 50).map((one) => h('li', {}, visible(one, 1000)))));
}

/** What is asked before an approval: who gets it, and the very bytes, fetched for this question. */
async function approve(request, all, done) {
  let fresh;
  try {
    fresh = (await get(all ? 'requests/rules?all_agents=true' : 'requests/rules')).find((one) => one.id === request.id);
  } catch (failure) {
    done(failure);
    return;
  }
  if (!fresh) {
    done({ status: 409, message: `request ${request.id} does not wait any more` });
    return;
  }
  const whom = all
    ? h('p', { class: 'notice warn' }, h('strong', {}, 'For all agents.'), ' Every container, now and later, is judged by these rules.')
    : h('p', {}, 'For the container ', h('strong', {}, text(fresh.container, 128)), ' alone.');
  const answer = await question({
    title: all ? 'Approve for all agents?' : 'Approve?',
    body: [whom, h('p', {}, 'Writes ', code(`agent-${fresh.id}.yaml`), ' with these bytes and loads the rules:'),
      exact(fresh.installs, { 'aria-label': 'What is installed', class: 'bytes' }), lint(fresh)],
    yes: all ? 'Approve for all agents' : 'Approve',
    danger: all,
  });
  if (answer === null) return;
  try {
    const data = await post(`requests/rules/${encodeURIComponent(fresh.id)}/approve`, { all_agents: all });
    done(null, `Approved ${visible(fresh.id, 64)}. ${count(data.rules_loaded, 'rule')} in force.`);
  } catch (failure) {
    done(failure);
  }
}

async function reject(request, done) {
  const reason = await question({
    title: 'Reject?',
    body: h('p', {}, 'Nothing is installed for ', h('strong', {}, text(request.container, 128)), '.'),
    yes: 'Reject',
    danger: true,
    field: { label: 'Reason, for the agent to read (may be empty)', max: REASON_MAX },
  });
  if (reason === null) return;
  try {
    await post(`requests/rules/${encodeURIComponent(request.id)}/reject`, reason.trim() ? { reason: reason.trim() } : {});
    done(null, `Rejected ${visible(request.id, 64)}.`);
  } catch (failure) {
    done(failure);
  }
}

function card(request, done) {
  const key = (verb) => ({ 'data-key': `${verb}-${request.id}` });
  const lines = String(request.installs ?? '').split('\n').length - 1;
  return h('article', { class: 'inner', 'aria-label': `Request ${visible(request.id, 64)}` },
    h('h3', {}, text(request.container, 128), ' ', badge(visible(request.status, 16), 'wait')),
    facts([['Request', code(request.id)], ['Container', code(String(request.container_id ?? '').slice(0, 12))], ['Submitted', when(request.submitted_at)], ['Installs', [code(`agent-${request.id}.yaml`), `, ${count(lines, 'line')}`]]]),
    lint(request),
    exact(request.installs, { 'aria-label': 'What an approval installs', class: 'bytes', ...key('bytes') }),
    h('div', { class: 'actions' },
      button('Approve…', () => approve(request, false, done), { class: 'primary', ...key('approve') }),
      button('Approve for all agents…', () => approve(request, true, done), { class: 'plain', ...key('all') }),
      button('Reject…', () => reject(request, done), { class: 'danger plain', ...key('reject') })));
}

export function show(root, { announce, pending }) {
  const outcome = h('div', { class: 'outcome' });
  let requests;
  const done = (failure, words) => {
    if (failure) {
      fill(outcome, trouble(failure));
      announce(`Failed: ${visible(failure.message, 200)}`);
    } else {
      fill(outcome, h('div', { class: 'notice good' }, h('p', {}, words)));
      announce(words);
    }
    requests.again();
    pending.now();
  };
  const list = (waiting) => (waiting.length
    ? [waiting.slice(0, CARDS).map((request) => card(request, done)), waiting.length > CARDS && h('p', { class: 'muted' }, `and ${waiting.length - CARDS} more, shown when these are decided`)]
    : h('div', { class: 'empty' }, h('p', {}, 'No rule request waits.'), h('p', { class: 'muted' }, 'Agents propose rules over the agent socket; each waits here until you decide.')));
  requests = panel({ title: 'Waiting for you', ask: () => get('requests/rules'), show: list, wide: true, every: 3000 });
  requests.root.querySelector('.panel-head').after(outcome);
  root.append(requests.root);
  return () => requests.stop();
}
