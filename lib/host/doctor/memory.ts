// Memory of guests: a device reaches it only while it is locked.

import { join } from 'node:path';
import { textOf } from '../files.js';
import type { Machine } from '../machine.js';
import { check, type Check } from './check.js';

/** `guestMiB`: memory of all guests that one process serves. */
export async function checkMemory(machine: Machine, guestMiB: number): Promise<Check[]> {
  return [await checkLimit(machine, guestMiB), await checkHugepages(machine, guestMiB)];
}

const mayLockAny = 1n << 14n; // CAP_IPC_LOCK

async function checkLimit({ proc }: Machine, guestMiB: number): Promise<Check> {
  const status = (await textOf(join(proc, 'self/status'), 1 << 16)) ?? '';
  const effective = /^CapEff:\s*([0-9a-f]{1,16})$/m.exec(status)?.[1];
  if (effective !== undefined && (BigInt(`0x${effective}`) & mayLockAny) !== 0n) {
    return check('memlock', 'ok', 'This process may lock any amount of memory (CAP_IPC_LOCK).');
  }
  const limits = (await textOf(join(proc, 'self/limits'), 1 << 16)) ?? '';
  const soft = /^Max locked memory\s+(unlimited|\d{1,20})\s/m.exec(limits)?.[1];
  if (soft === undefined)
    return check('memlock', 'unknown', 'The limit on locked memory is not known.');
  if (soft === 'unlimited') return check('memlock', 'ok', 'Locked memory has no limit.');
  const limitMiB = Number(BigInt(soft) >> 20n);
  const found = `This process may lock ${limitMiB} MiB; guests of ${guestMiB} MiB need as much.`;
  if (limitMiB >= guestMiB) return check('memlock', 'ok', found);
  return check('memlock', 'fail', `${found} In a systemd unit, set LimitMEMLOCK=infinity.`, [
    "echo '* - memlock unlimited' > /etc/security/limits.d/retrovf.conf",
    'ulimit -l unlimited',
  ]);
}

async function checkHugepages({ proc }: Machine, guestMiB: number): Promise<Check> {
  const meminfo = (await textOf(join(proc, 'meminfo'), 1 << 16)) ?? '';
  const value = (name: string) => {
    const digits = new RegExp(`^${name}:\\s*(\\d{1,12})`, 'm').exec(meminfo)?.[1];
    return digits === undefined ? null : Number(digits);
  };
  const total = value('HugePages_Total');
  const free = value('HugePages_Free');
  const kib = value('Hugepagesize');
  if (total === null || free === null || kib === null || kib === 0) {
    return check('hugepages', 'unknown', 'The number of huge pages is not known.');
  }
  if (total === 0) {
    return check('hugepages', 'ok', 'No huge pages are reserved; guests do without.');
  }
  const freeMiB = Math.floor((free * kib) / 1024);
  const found = `${freeMiB} MiB of huge pages are free; guests of ${guestMiB} MiB need as much to use them.`;
  if (freeMiB >= guestMiB) return check('hugepages', 'ok', found);
  const pages = total - free + Math.ceil((guestMiB * 1024) / kib);
  return check('hugepages', 'warn', found, [`sysctl vm.nr_hugepages=${pages}`]);
}
