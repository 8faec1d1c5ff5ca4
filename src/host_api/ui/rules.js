// Rules in evaluation order, with hits; one rule in full; reload.

import { get, panel, post, trouble } from './api.js';
import { notice } from './dialog.js';
import { badge, button, code, count, exact, facts, fill, h, number, table, tableRow, text, verdict, visible, when } from './dom.js';

/** Rows drawn; a filter finds the rest. */
const ROWS = 500;
const COLUMNS = [['#', 'num'], ['Rule'], ['Action'], ['Priority', 'num'], ['Hits', 'num'], ['Last match', 'num'], ['Condition', 'grow']];

export const title = 'Rules';

async function open(id) {
  let rule;
  try {
    rule = await get(`rule/${encodeURIComponent(id)}`);
  } catch (failure) {
    notice({ title: 'Rule', body: trouble(failure) });
    return;
  }
  const egress = rule.egress && [
    ['Egress', visible(rule.egress.mode)],
    rule.egress.mode === 'direct_ip' && ['Ports', visible((rule.egress.ports ?? []).join(', '))],
    ['Private addresses', rule.egress.allow_private_ips ? badge('allowed', 'block') : 'refused'],
    rule.egress.mode === 'intercept' && ['Body', rule.egress.match_body ? 'looked into' : 'not looked into'],
  ];
  notice({
    title: `Rule ${visible(rule.id, 128)}`,
    body: [
      rule.description && h('p', {}, text(rule.description, 1000)),
      facts([['Action', verdict(rule.action)], ['Priority', number(rule.priority)], ['File', code(rule.file)], ['Logged', rule.log ? 'yes' : 'no'], ...(egress || [])]),
      h('h3', {}, 'Condition, definitions expanded'),
      exact(rule.condition, { 'aria-label': 'Condition', class: 'wrapped' }),
    ],
  });
}

function row(rule, at) {
  return tableRow(COLUMNS, [
    String(at + 1),
    [button(visible(rule.id, 128), () => open(rule.id), { class: 'link', 'data-key': `rule-${rule.id}`, 'aria-haspopup': 'dialog' }),
      h('p', { class: 'muted small-text' }, code(rule.file, 80))],
    verdict(rule.action),
    number(rule.priority),
    [number(rule.hits), rule.errors > 0 && h('p', {}, badge(count(rule.errors, 'error'), 'block'))],
    when(rule.last_hit),
    [rule.description && h('p', { class: 'small-text' }, text(rule.description, 200)), code(rule.condition_preview, 240)],
  ]);
}

export function show(root, { announce }) {
  let wanted = '';
  let rules = [];
  const outcome = h('div', { class: 'outcome' });
  const body = h('div', {});
  const draw = () => {
    const found = rules.map((rule, at) => [rule, at]).filter(([rule]) => !wanted
      || [rule.id, rule.file, rule.description, rule.condition_preview].join('\n').toLowerCase().includes(wanted));
    fill(body,
      rules.length === 0 && h('p', { class: 'notice warn' }, 'There is no rule: everything is blocked.'),
      found.length > 0 && table('Rules in evaluation order', COLUMNS, found.slice(0, ROWS).map(([rule, at]) => row(rule, at))),
      rules.length > 0 && h('p', { class: 'muted' }, found.length > ROWS ? `the first ${ROWS} of ${number(found.length)}; the filter finds the rest` : `${count(found.length, 'rule')}; the first that matches decides, and what none allows is blocked`));
    return body;
  };
  const search = h('label', { class: 'field', for: 'f-rule' }, h('span', {}, 'Filter'),
    h('input', { id: 'f-rule', type: 'search', maxlength: 128, autocomplete: 'off', spellcheck: 'false', on: { input: (event) => { wanted = event.target.value.trim().toLowerCase(); draw(); } } }));
  const reload = button('Reload rules', async () => {
    reload.disabled = true;
    fill(outcome, h('p', { class: 'muted' }, 'Loading the rule files…'));
    try {
      const done = await post('rules/reload');
      const warnings = done.warnings ?? [];
      const words = `${count(done.rules_loaded, 'rule')} of ${count(done.files_loaded, 'file')} in force.`;
      fill(outcome, h('div', { class: warnings.length ? 'notice warn' : 'notice good' }, h('p', {}, h('strong', {}, words)),
        warnings.length > 0 && h('ul', {}, warnings.map((warning) => h('li', {}, visible(warning, 2000))))));
      announce(words);
    } catch (failure) {
      const lines = failure.message.split('\n').filter(Boolean);
      const lead = failure.status === 422 ? 'Not loaded; the old rules stay in force.' : 'Not reloaded.';
      fill(outcome, h('div', { class: 'notice bad' }, h('p', {}, h('strong', {}, lead)), h('ul', { class: 'mono' }, lines.map((line) => h('li', {}, visible(line, 2000))))));
      announce(lead);
    }
    reload.disabled = false;
    rulesPanel.again();
  }, { class: 'primary', id: 'reload' });
  const rulesPanel = panel({ title: 'In evaluation order', ask: () => get('rules'), show: (list) => { rules = list; return draw(); }, wide: true, tools: [search, reload] });
  rulesPanel.root.querySelector('.panel-head').after(outcome);
  root.append(rulesPanel.root);
  return () => rulesPanel.stop();
}
