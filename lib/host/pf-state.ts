// What of a host matters to setting up a PF: observed once, then planned from.

import { join } from 'node:path';
import { tryParseBdf, type Bdf } from './bdf.js';
import { linkOf, namesIn, textOf } from './files.js';
import { holdersOf, type Holder } from './holders.js';
import type { Machine } from './machine.js';
import { mountsOn } from './mounts.js';
import { netdevsOf, type Netdev } from './netdevs.js';

export const vfioPci = 'vfio-pci';
/** Where sysfs has the module of that driver. */
export const vfioPciModule = 'module/vfio_pci';

/** A function, as binding sees it. */
export interface Binding {
  readonly bdf: Bdf;
  /** null: none. */
  readonly driver: string | null;
  readonly driverOverride: string | null;
  readonly iommuGroup: string | null;
  readonly netdevs: readonly Netdev[];
  /** Where disks behind it are mounted. */
  readonly mounts: readonly string[];
  /** Processes that hold its VFIO node open. */
  readonly holders: readonly Holder[];
}

export interface GroupMember {
  readonly bdf: string;
  readonly driver: string;
}

export interface PfState extends Binding {
  /** Set if the function is itself a VF. */
  readonly physfn: Bdf | null;
  /** null: it has no SR-IOV. */
  readonly sriov: { readonly total: number; readonly enabled: number } | null;
  /** Whether the kernel gives new VFs to drivers by itself. */
  readonly autoprobe: boolean;
  /** VF 1 first. */
  readonly vfs: readonly Binding[];
  /** Others in the IOMMU group of the PF whose driver keeps the group from VFIO. */
  readonly offenders: readonly GroupMember[];
  readonly module: { readonly loaded: boolean; readonly enableSriov: boolean };
}

/** Reads the state of a PF; throws ERR_NO_SUCH_DEVICE. */
export async function observePf(machine: Machine, bdf: Bdf): Promise<PfState> {
  const { sysfs } = machine;
  const info = await sysfs.read(bdf);
  const members = [...info.virtfns].sort(([a], [b]) => a - b);
  const vfs: Binding[] = [];
  for (const [, vf] of members) vfs.push(await bindingOf(machine, vf));
  const self = await bindingOf(machine, bdf);
  const enableSriov = await textOf(join(sysfs.root, vfioPciModule, 'parameters/enable_sriov'));
  return {
    ...self,
    physfn: info.physfn,
    sriov: info.sriov,
    autoprobe: (await textOf(sysfs.path(bdf, 'sriov_drivers_autoprobe'))) !== '0',
    vfs,
    offenders: await offendersOf(machine, self),
    module: { loaded: await moduleLoaded(machine), enableSriov: isYes(enableSriov) },
  };
}

export async function bindingOf(machine: Machine, bdf: Bdf): Promise<Binding> {
  const { sysfs } = machine;
  const override = await textOf(sysfs.path(bdf, 'driver_override'));
  const iommuGroup = await linkOf(sysfs.path(bdf, 'iommu_group'));
  return {
    bdf,
    driver: await linkOf(sysfs.path(bdf, 'driver')),
    driverOverride: override === null || override === '' || override === '(null)' ? null : override,
    iommuGroup,
    netdevs: await netdevsOf(machine, bdf),
    mounts: await mountsOn(machine, bdf),
    holders: await holdersOf(machine, await vfioNodes(machine, bdf, iommuGroup)),
  };
}

/** Paths of the nodes by which VFIO users open a function: its group's, and its own where there is iommufd. */
async function vfioNodes(machine: Machine, bdf: Bdf, group: string | null): Promise<string[]> {
  const own = await namesIn(machine.sysfs.path(bdf, 'vfio-dev'));
  return [
    ...(group === null ? [] : [join(machine.dev, 'vfio', group)]),
    ...own.map((name) => join(machine.dev, 'vfio/devices', name)),
  ];
}

/** Drivers that leave DMA of a group to its user; the kernel marks them `driver_managed_dma`. */
const sharingDrivers = /vfio|^(pcieport|pci-stub)$/;

/** The other members of a function's group that have to go before VFIO may open it. */
export async function offendersOf(
  machine: Machine,
  { bdf, iommuGroup }: Pick<Binding, 'bdf' | 'iommuGroup'>,
): Promise<GroupMember[]> {
  if (iommuGroup === null) return [];
  const folder = join(machine.sysfs.root, 'kernel/iommu_groups', iommuGroup, 'devices');
  const offenders: GroupMember[] = [];
  for (const name of await namesIn(folder)) {
    const member = tryParseBdf(name);
    if (member === null || member === bdf) continue;
    const driver = await linkOf(machine.sysfs.path(member, 'driver'));
    if (driver !== null && !sharingDrivers.test(driver)) offenders.push({ bdf: member, driver });
  }
  return offenders;
}

export async function moduleLoaded(machine: Machine): Promise<boolean> {
  return (await namesIn(join(machine.sysfs.root, vfioPciModule))).length > 0;
}

/** How the kernel writes a boolean parameter. */
export function isYes(text: string | null): boolean {
  return text === 'Y' || text === '1';
}
