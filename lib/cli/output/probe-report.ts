// The prober's report as a table, followed by the reasons.

import type { FunctionReport, ProbeReport, Verdict } from '../../index.js';
import { plain, wrap, type Styles } from './styles.js';
import { table } from './table.js';
import type { Terminal } from './terminal.js';
import { plural } from './units.js';

const heads = ['FUNCTION', 'ROLE', 'TYPE', 'IDS', 'DRIVER', 'GROUP', 'VERDICT'];

export function writeProbeReport(
  { functions, findings }: ProbeReport,
  stdout: Terminal,
  stderr: Terminal,
): void {
  for (const { path, problem } of findings) {
    stderr.write(`${stderr.styles.warn('note:')} ${plain(path)} ${plain(problem)}\n`);
  }
  if (functions.length === 0) {
    stderr.write('There are no virtio functions on this host.\n');
    return;
  }
  const style = stdout.styles;
  const rows = functions.map((each) => row(each, style));
  const reasons = reasonLines(functions, style);
  const lines = [...table(heads, rows, style), ...(reasons.length === 0 ? [] : ['', ...reasons])];
  stdout.write(`${lines.join('\n')}\n`);
}

function row(report: FunctionReport, style: Styles): string[] {
  const { bdf, type, ids, driver, iommuGroup, verdict } = report;
  return [
    style.name(bdf),
    role(report),
    type ?? '-',
    `${digits(ids.vendor)}:${digits(ids.device)}`,
    driver === null ? '-' : plain(driver),
    iommuGroup === null ? '-' : plain(iommuGroup),
    verdictCell(report, verdict, style),
  ];
}

function role({ role, sriov, owner, memberId }: FunctionReport): string {
  if (role === 'vf') return `VF ${memberId ?? '?'} of ${owner ?? '?'}`;
  return role === 'pf' && sriov !== null
    ? `PF, ${sriov.enabled} of ${sriov.total} VFs`
    : 'function';
}

function verdictCell({ role }: FunctionReport, verdict: Verdict, style: Styles): string {
  switch (verdict.kind) {
    case 'transitional-capable':
      return style.good('transitional');
    case 'unverified':
      return style.warn('transitional, if its owner agrees');
    case 'passthrough':
      return role === 'pf' ? style.dim('owner') : style.bad(`passthrough: ${verdict.reason}`);
  }
}

/** Each reason once, with the functions that it is about. */
function reasonLines(functions: readonly FunctionReport[], style: Styles): string[] {
  const about = new Map<string, string[]>();
  for (const report of functions) {
    const text = reasonText(report);
    if (text !== null) about.set(text, [...(about.get(text) ?? []), report.bdf]);
  }
  return [...about].flatMap(([text, [first = '', ...others]]) => {
    const more = others.length === 0 ? '' : ` and ${plural(others.length, 'other')}`;
    return [`${style.name(first)}${more}:`, ...wrap(text, 96).map((line) => `  ${line}`)];
  });
}

function reasonText({ owner, role, verdict }: FunctionReport): string | null {
  switch (verdict.kind) {
    case 'transitional-capable':
      return notifyText(verdict);
    case 'unverified':
      return `${owner} was not asked. --open does that; it resets ${owner} and all of its VFs.`;
    case 'passthrough':
      // That a PF is no VF needs no explanation.
      return role === 'pf' && verdict.reason === 'not-a-vf'
        ? null
        : `${plain(verdict.detail)}. ${plain(verdict.hint)}`;
  }
}

function notifyText({ notify, opcodes }: Verdict & { kind: 'transitional-capable' }): string {
  const commands = `its owner offers admin commands 0x${opcodes.toString(16)}`;
  return notify.kind === 'region'
    ? `${commands}; notifications go to BAR${notify.bar}+0x${notify.offset.toString(16)} of the ${notify.of}.`
    : `${commands}; each notification takes an admin command (${notify.why}).`;
}

function digits(id: number | null): string {
  return id === null ? '????' : id.toString(16).padStart(4, '0');
}
