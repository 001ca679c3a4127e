// Examines a host: what it lacks for serving legacy guests, and how to mend that. Changes nothing.

import { badArgument } from '../../errors.js';
import { parseBdf, type Bdf } from '../bdf.js';
import { VfioHost } from '../vfio.js';
import { thisMachine, type Machine } from '../machine.js';
import { check, type Check } from './check.js';
import { checkFunction, virtioFunctions } from './functions.js';
import { checkIommu } from './iommu.js';
import { checkMemory } from './memory.js';
import { checkPlatform, type Runtime } from './platform.js';
import { checkQemu } from './qemu.js';
import { checkVfio } from './vfio.js';

export interface ExamineOptions {
  /** Only these functions; default: all virtio PFs and VFs. */
  bdfs?: readonly string[];
  /** Memory of the guests that one process is to serve, in MiB. */
  guestMemoryMiB?: number;
  machine?: Machine;
  /** What runs this package; default: this process. */
  runtime?: Runtime;
  signal?: AbortSignal;
}

export interface HostExamination {
  /** No check failed. */
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

/** Throws ERR_NO_SUCH_DEVICE for a function that was named, and never for what it finds. */
export async function examineHost(options: ExamineOptions = {}): Promise<HostExamination> {
  const { bdfs, guestMemoryMiB = 1024, machine = thisMachine(), signal } = options;
  const {
    runtime = { platform: process.platform, arch: process.arch, node: process.versions.node },
  } = options;
  if (!Number.isInteger(guestMemoryMiB) || guestMemoryMiB < 1) {
    throw badArgument('guestMemoryMiB', guestMemoryMiB, 'a number from 1');
  }
  signal?.throwIfAborted();
  const subjects = await subjectsOf(machine, bdfs);
  const checks = [
    ...checkPlatform(runtime),
    ...(await checkIommu(machine)),
    ...(await checkVfio(machine)),
    ...(await checkMemory(machine, guestMemoryMiB)),
    await checkQemu(machine, signal),
    ...(subjects.length === 0 ? [nothingThere] : []),
  ];
  const host = new VfioHost({ sysfs: machine.sysfs });
  for (const bdf of subjects) {
    signal?.throwIfAborted();
    checks.push(...(await checkFunction(machine, host, bdf)));
  }
  return { ok: checks.every(({ state }) => state !== 'fail'), checks };
}

const nothingThere = check(
  'functions',
  'fail',
  'There is no virtio function with SR-IOV on this host. The SoftNIC needs none: retrovf demo.',
);

async function subjectsOf(machine: Machine, bdfs: readonly string[] | undefined): Promise<Bdf[]> {
  if (bdfs === undefined || bdfs.length === 0) return virtioFunctions(machine);
  const named = [...new Set(bdfs.map(parseBdf))];
  // One that is not there is an error, before anything is reported.
  for (const bdf of named) await machine.sysfs.read(bdf);
  return named;
}
