// What setup and teardown share on the command line.

import {
  parseBdf,
  Sysfs,
  thisMachine,
  type Bdf,
  type HostChange,
  type HostChangeOptions,
} from '../index.js';
import type { OptionTable, Values } from './command.js';
import type { Context } from './context.js';
import { exitCode } from './exit-codes.js';
import { writeFailure } from './failure.js';
import { jsonLine } from './output/json.js';
import { writeHostChange, writeStep } from './output/host-change-report.js';
import { UsageError } from './usage-error.js';

export const hostChangeOptions = {
  'dry-run': { kind: 'flag', summary: 'Only show the steps' },
  yes: { kind: 'flag', summary: 'Take network interfaces down though they are in use' },
  sysfs: {
    kind: 'text',
    value: 'ROOT',
    summary: 'Read this folder instead of /sys; with --dry-run only',
  },
} as const satisfies OptionTable;

export async function changeHost(
  command: string,
  values: Values<typeof hostChangeOptions>,
  operands: readonly string[],
  { stdout, stderr, json, signal }: Context,
  change: (pf: Bdf, options: HostChangeOptions) => Promise<HostChange>,
): Promise<number> {
  const { 'dry-run': dryRun, yes, sysfs } = values;
  const [operand, ...others] = operands;
  if (operand === undefined || others.length > 0) {
    throw new UsageError(`${command} takes one PF`, command);
  }
  if (sysfs !== undefined && !dryRun) throw new UsageError('--sysfs needs --dry-run', command);
  const result = await change(parseBdf(operand), {
    dryRun,
    yes,
    signal,
    ...(sysfs !== undefined && { machine: thisMachine({ sysfs: new Sysfs(sysfs) }) }),
    ...(!json && !dryRun && { onStep: (step) => writeStep(step, stderr) }),
  }).catch((error: unknown) => {
    // Of a command that a signal ended only the signal is told; what it could not take back is to be too.
    if (signal.aborted && error !== signal.reason) writeFailure(error, stderr, json);
    throw error;
  });
  if (json) stdout.write(jsonLine(result));
  else writeHostChange(result, stdout, stderr);
  return exitCode.done;
}
