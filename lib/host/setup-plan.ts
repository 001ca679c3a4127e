// Which steps lead from the state of a host to the one that is wanted. Pure: a plan can be printed,
// compared and tested without a host.

import { badArgument, groupNotViable, noIommu, notAPf, tooManyVfs } from '../errors.js';
import type { Holder } from './holders.js';
import type { Netdev } from './netdevs.js';
import { vfioPci, type Binding, type PfState } from './pf-state.js';
import type { Step, Target } from './steps.js';

export interface Plan {
  /** None: nothing has to change. */
  readonly steps: readonly Step[];
  /** Interfaces, up or with the default route, that the steps take down. */
  readonly netdevs: readonly Netdev[];
  /** Mount points on disks that the steps take away. */
  readonly mounts: readonly string[];
  /** Processes that hold functions open which the steps take away. */
  readonly holders: readonly Holder[];
}

/** From `state` to a PF on vfio-pci with `vfs` VFs on vfio-pci. Throws if that cannot be. */
export function planSetup(state: PfState, vfs: number): Plan {
  const { enabled } = checkSetup(state, vfs);
  const { bdf: pf, module, autoprobe } = state;
  const self: Target = { pf, vf: null };
  const rebind = state.driver !== vfioPci;
  const remake = rebind || enabled !== vfs;
  const steps: Step[] = [];
  if (!module.loaded) steps.push({ kind: 'load-module' });
  if (remake && !module.enableSriov) steps.push({ kind: 'allow-sriov', allow: true });
  // vfio-pci refuses a PF that has VFs, and the kernel another number of them.
  if (remake && enabled > 0) steps.push({ kind: 'set-vfs', pf, count: 0, was: enabled });
  if (rebind) steps.push(...bindSteps(self, state));
  if (!remake) {
    const strays = state.vfs.map((each, i) => ({ each, fn: { pf, vf: i + 1 } }));
    const wrong = strays.filter(({ each }) => each.driver !== vfioPci);
    steps.push(...wrong.flatMap(({ each, fn }) => bindSteps(fn, each)));
    return { steps, ...disturbed(wrong.map(({ each }) => each)) };
  }
  if (autoprobe) steps.push({ kind: 'set-autoprobe', pf, on: false });
  steps.push({ kind: 'set-vfs', pf, count: vfs, was: 0 });
  for (let vf = 1; vf <= vfs; vf += 1) {
    steps.push(...bindSteps({ pf, vf }, { driver: null, driverOverride: null }));
  }
  if (autoprobe) steps.push({ kind: 'set-autoprobe', pf, on: true });
  return { steps, ...disturbed([...(rebind ? [state] : []), ...state.vfs]) };
}

/**
 * From `state` to no VFs and the PF on its usual driver. A PF on another driver than vfio-pci is not one
 * that was set up: it keeps its driver and its VFs.
 */
export function planTeardown(state: PfState): Plan {
  const { bdf: pf, driver, driverOverride, module } = state;
  const fn: Target = { pf, vf: null };
  const enabled = state.sriov?.enabled ?? 0;
  const bound = driver === vfioPci;
  const reserved = driverOverride === vfioPci;
  const steps: Step[] = [];
  if (bound && enabled > 0) {
    // Without the permission vfio-pci does not even remove VFs.
    if (!module.enableSriov) steps.push({ kind: 'allow-sriov', allow: true });
    steps.push({ kind: 'set-vfs', pf, count: 0, was: enabled });
    if (!module.enableSriov) steps.push({ kind: 'allow-sriov', allow: false });
  }
  if (bound) steps.push({ kind: 'unbind', fn, driver });
  if (reserved) steps.push({ kind: 'override', fn, driver: null, was: driverOverride });
  const free = driverOverride === null || reserved;
  if (free && (bound || driver === null)) steps.push({ kind: 'probe', fn, driver: null });
  return { steps, ...disturbed(bound ? [state, ...state.vfs] : []) };
}

function bindSteps(fn: Target, now: Pick<Binding, 'driver' | 'driverOverride'>): Step[] {
  const { driver, driverOverride: was } = now;
  return [
    ...(driver === null ? [] : [{ kind: 'unbind' as const, fn, driver }]),
    ...(was === vfioPci ? [] : [{ kind: 'override' as const, fn, driver: vfioPci, was }]),
    { kind: 'probe', fn, driver: vfioPci },
  ];
}

function disturbed(bindings: readonly Binding[]): Omit<Plan, 'steps'> {
  const holders = new Map(bindings.flatMap((each) => each.holders.map((h) => [h.pid, h] as const)));
  return {
    netdevs: bindings.flatMap((each) => each.netdevs.filter((n) => n.up || n.defaultRoute)),
    mounts: bindings.flatMap((each) => each.mounts),
    holders: [...holders.values()],
  };
}

function checkSetup(state: PfState, vfs: number): { total: number; enabled: number } {
  const { bdf, physfn, sriov, iommuGroup, offenders } = state;
  if (!Number.isInteger(vfs) || vfs < 1) throw badArgument('vfs', vfs, 'a number from 1');
  if (sriov === null) throw notAPf(bdf, physfn);
  if (vfs > sriov.total) throw tooManyVfs(bdf, vfs, sriov.total);
  if (iommuGroup === null) throw noIommu(bdf);
  if (offenders.length > 0) throw groupNotViable(bdf, iommuGroup, offenders);
  return sriov;
}
