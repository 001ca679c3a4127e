// Steps of a setup or teardown, and the functions that came of it.

import type { AppliedStep, HostChange } from '../../index.js';
import { plain } from './styles.js';
import { table } from './table.js';
import type { Terminal } from './terminal.js';

export function writeStep({ does, outcome }: AppliedStep, stderr: Terminal): void {
  const style = stderr.styles;
  const mark = {
    planned: style.dim('plan'),
    done: style.good('done'),
    already: style.dim('kept'),
    'no-driver': style.warn('none'),
  }[outcome];
  stderr.write(`${mark}  ${plain(does)}\n`);
}

export function writeHostChange(change: HostChange, stdout: Terminal, stderr: Terminal): void {
  const { pf, dryRun, steps, netdevs } = change;
  if (dryRun && netdevs.length > 0) {
    const list = plain(netdevs.join(', '));
    stderr.write(`${stderr.styles.warn('note:')} this takes down ${list}: it needs --yes.\n`);
  }
  if (steps.length === 0 || (!dryRun && !change.changed)) {
    stderr.write(`${pf} is as it should be: nothing to do.\n`);
  }
  if (dryRun) stdout.write(steps.map(scriptLines).join(''));
  else stdout.write(`${functionLines(change, stdout).join('\n')}\n`);
  if (steps.some(({ outcome }) => outcome === 'no-driver')) {
    stderr.write(`The kernel has no driver loaded for ${pf}; loading one binds it.\n`);
  }
}

function scriptLines({ does, command }: AppliedStep): string {
  return `${plain(command)} # ${plain(does)}\n`;
}

function functionLines({ functions }: HostChange, stdout: Terminal): string[] {
  const cell = (text: string | null) => (text === null ? '-' : plain(text));
  const rows = functions.map(({ bdf, role, driver, iommuGroup }) => [
    stdout.styles.name(bdf),
    role.toUpperCase(),
    cell(driver),
    cell(iommuGroup),
  ]);
  return table(['FUNCTION', 'ROLE', 'DRIVER', 'GROUP'], rows, stdout.styles);
}
