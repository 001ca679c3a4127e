// The parts of a host that setting it up touches, as values: a test hands in folders and doubles.

import { runProgram, type RunProgram } from './program.js';
import { Sysfs } from './sysfs.js';
import { SysfsWriter } from './sysfs-writer.js';

export interface Machine {
  readonly sysfs: Sysfs;
  readonly writer: Pick<SysfsWriter, 'write'>;
  /** /dev */
  readonly dev: string;
  /** /proc */
  readonly proc: string;
  /** /lib/modules */
  readonly modules: string;
  /** Runs modprobe and QEMU. */
  readonly run: RunProgram;
}

/** The machine that this process runs on, but for the parts given. */
export function thisMachine(parts: Partial<Machine> = {}): Machine {
  const { sysfs = new Sysfs() } = parts;
  return {
    sysfs,
    writer: new SysfsWriter(sysfs.root),
    dev: '/dev',
    proc: '/proc',
    modules: '/lib/modules',
    run: runProgram,
    ...parts,
  };
}
