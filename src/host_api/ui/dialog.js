// A question before something is done. The browser's own dialog keeps the focus inside and gives it back.

import { button, h } from './dom.js';

let serial = 0;

/**
 * Asks; gives null for no, or the text of the field (empty without `field`) for yes.
 * `field`: `{ label, max }`.
 */
export function question({ title, body, yes, danger = false, field = null }) {
  serial += 1;
  const id = `dialog-${serial}`;
  return new Promise((settle) => {
    const input = field && h('textarea', { id: `${id}-field`, rows: '3', maxlength: field.max });
    const close = (answer) => {
      box.close();
      box.remove();
      settle(answer);
    };
    const no = button('Cancel', () => close(null), { class: 'plain' });
    const go = button(yes, () => close(input ? input.value : ''), { class: danger ? 'danger' : 'primary' });
    const box = h('dialog', { 'aria-labelledby': id, on: { cancel: (event) => { event.preventDefault(); close(null); } } },
      h('h2', { id }, title),
      h('div', { class: 'dialog-body' }, body,
        input && h('label', { for: `${id}-field` }, field.label), input),
      h('div', { class: 'dialog-foot' }, no, go));
    document.body.append(box);
    box.showModal();
    (input ?? no).focus();
  });
}

/** Tells; the way away is one button. */
export function notice({ title, body }) {
  const from = document.activeElement;
  const close = () => {
    box.close();
    box.remove();
    from?.focus?.();
  };
  serial += 1;
  const id = `dialog-${serial}`;
  const done = button('Close', close, { class: 'plain' });
  const box = h('dialog', { 'aria-labelledby': id, on: { cancel: (event) => { event.preventDefault(); close(); } } },
    h('h2', { id }, title), h('div', { class: 'dialog-body' }, body), h('div', { class: 'dialog-foot' }, done));
  document.body.append(box);
  box.showModal();
  done.focus();
}
