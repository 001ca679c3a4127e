// The checks of an examination, a line or more each, with the commands that mend them.

import type { Check, HostExamination } from '../../index.js';
import { padEnd, plain, wrap, type Styles } from './styles.js';
import type { Terminal } from './terminal.js';
import { plural } from './units.js';

const width = 96;
const indent = 32;

export function writeExamination({ checks }: HostExamination, stdout: Terminal): void {
  const style = stdout.styles;
  const about = new Map<string, Check[]>();
  for (const each of checks) {
    const subject = each.bdf ?? 'Host';
    about.set(subject, [...(about.get(subject) ?? []), each]);
  }
  const lines = [...about].flatMap(([subject, group]) => [
    style.title(subject),
    ...group.flatMap((each) => checkLines(each, style)),
    '',
  ]);
  stdout.write(`${[...lines, conclusion(checks, style)].join('\n')}\n`);
}

function checkLines({ id, state, detail, mend }: Check, style: Styles): string[] {
  const colour = { ok: style.good, warn: style.warn, fail: style.bad, unknown: style.dim }[state];
  const [first = '', ...others] = wrap(plain(detail), width - indent);
  const margin = ' '.repeat(indent);
  return [
    padEnd(`  ${padEnd(colour(state), 7)}  ${id}`, indent) + first,
    ...others.map((line) => margin + line),
    ...mend.map((command) => `${margin}${style.dim('$')} ${style.value(plain(command))}`),
  ];
}

function conclusion(checks: readonly Check[], style: Styles): string {
  const count = (state: Check['state']) => checks.filter((each) => each.state === state).length;
  const failed = count('fail');
  const warned = count('warn');
  const warnings = warned === 0 ? '' : `, ${plural(warned, 'warning')}`;
  return failed === 0
    ? style.good(`Nothing is missing${warnings}.`)
    : style.bad(`${plural(failed, 'check')} failed${warnings}.`);
}
