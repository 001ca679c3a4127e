// The options that make a SoftNIC, shared by the commands that can use one.

import type { Uplink } from '../index.js';
import type { OptionTable } from './command.js';
import { UsageError } from './usage-error.js';

export const maxVfs = 64;

export const softnicOptions = {
  softnic: { kind: 'flag', summary: 'Use the embedded SR-IOV virtio-net device: no hardware' },
  vfs: {
    kind: 'number',
    value: 'N',
    min: 1,
    max: maxVfs,
    summary: `VFs of the SoftNIC, 1 to ${maxVfs}`,
  },
} as const satisfies OptionTable;

/** Options that mean nothing without --softnic are refused, not ignored. */
export function refuseWithoutSoftnic(
  command: string,
  values: Readonly<Record<string, unknown>>,
  names: readonly string[],
): void {
  const stray = names.find((name) => values[name] !== undefined);
  if (stray !== undefined) throw new UsageError(`--${stray} needs --softnic`, command);
}

export function parseUplink(command: string, text: string): Uplink {
  if (text === 'none' || text === 'gateway') return { kind: text };
  const [, kind, rest] = /^(unix|tap):(.+)$/s.exec(text) ?? [];
  if (kind === 'unix' && rest !== undefined) return { kind, path: rest };
  if (kind === 'tap' && rest !== undefined) return { kind, name: rest };
  throw new UsageError(
    `--uplink takes gateway, none, unix:PATH or tap:NAME, not ${JSON.stringify(text)}`,
    command,
  );
}
