// Setting up a PF and its VFs for VFIO, and taking that back: observe, plan, apply.

import { deviceHeld, diskInUse, netdevInUse } from '../errors.js';
import { apply, type AppliedStep } from './apply.js';
import { parseBdf, type Bdf } from './bdf.js';
import { thisMachine, type Machine } from './machine.js';
import { observePf, type PfState } from './pf-state.js';
import { planSetup, planTeardown, type Plan } from './setup-plan.js';
import { commandOf, describe } from './steps.js';

export interface HostChangeOptions {
  /** Only say what would be done. */
  dryRun?: boolean;
  /** Take network interfaces down though they are in use. */
  yes?: boolean;
  /** For each step; then the step counts as failed. */
  stepTimeoutMs?: number;
  /** Called when a step has ended, or in a dry run would begin. */
  onStep?: (step: AppliedStep) => void;
  machine?: Machine;
  /** Ends the work between steps, and takes back what was done. */
  signal?: AbortSignal;
}

export interface SetUpOptions extends HostChangeOptions {
  vfs: number;
}

export interface HostChange {
  readonly pf: Bdf;
  readonly dryRun: boolean;
  /** False: the host was as wanted already. */
  readonly changed: boolean;
  readonly steps: readonly AppliedStep[];
  /** Interfaces in use that were, or in a dry run would be, taken down. */
  readonly netdevs: readonly string[];
  /** The PF and its VFs, as they are now. */
  readonly functions: readonly BoundFunction[];
}

export interface BoundFunction {
  readonly bdf: Bdf;
  readonly role: 'pf' | 'vf';
  readonly driver: string | null;
  readonly iommuGroup: string | null;
}

/** Makes `pf` a PF on vfio-pci with `vfs` VFs on vfio-pci; does nothing where that is so already. */
export function setUp(pf: string, options: SetUpOptions): Promise<HostChange> {
  return change(pf, (state) => planSetup(state, options.vfs), options);
}

/** Removes the VFs of a PF on vfio-pci and gives it back to its usual driver. */
export function tearDown(pf: string, options: HostChangeOptions = {}): Promise<HostChange> {
  return change(pf, planTeardown, options);
}

async function change(
  pf: string,
  plan: (state: PfState) => Plan,
  options: HostChangeOptions,
): Promise<HostChange> {
  const { dryRun = false, yes = false, machine = thisMachine(), signal } = options;
  const bdf = parseBdf(pf);
  signal?.throwIfAborted();
  const before = await observePf(machine, bdf);
  const { steps, netdevs, mounts, holders } = plan(before);
  if (!dryRun) {
    if (holders.length > 0) throw deviceHeld(bdf, holders);
    if (mounts.length > 0) throw diskInUse(bdf, mounts);
    if (netdevs.length > 0 && !yes) throw netdevInUse(bdf, netdevs);
  }
  const applied = dryRun
    ? steps.map((step): AppliedStep => {
        const command = commandOf(step, machine.sysfs.root);
        return { does: describe(step), command, outcome: 'planned' };
      })
    : await apply(machine, bdf, steps, options);
  if (dryRun) for (const step of applied) options.onStep?.(step);
  const after = dryRun ? before : await observePf(machine, bdf);
  return {
    pf: bdf,
    dryRun,
    changed: applied.some(({ outcome }) => outcome === 'done'),
    steps: applied,
    netdevs: netdevs.map(({ name }) => name),
    functions: [
      functionOf(after, 'pf'),
      ...after.vfs.map((each) => functionOf(each, 'vf' as const)),
    ],
  };
}

function functionOf(
  { bdf, driver, iommuGroup }: Omit<BoundFunction, 'role'>,
  role: BoundFunction['role'],
): BoundFunction {
  return { bdf, role, driver, iommuGroup };
}
