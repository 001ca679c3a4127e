// The PFs and VFs themselves.

import { join } from 'node:path';
import { isModernVirtio } from '../../virtio/device-types.js';
import type { Bdf } from '../bdf.js';
import { holderNames } from '../holders.js';
import type { Host } from '../host.js';
import type { Machine } from '../machine.js';
import { bindingOf, offendersOf, vfioPci, type Binding } from '../pf-state.js';
import { judge, readSubject, type Subject } from '../prober.js';
import type { FunctionInfo } from '../sysfs.js';
import { accessTo, check, type Check } from './check.js';

/** All modern virtio functions that are a PF or a VF. */
export async function virtioFunctions({ sysfs }: Machine): Promise<Bdf[]> {
  const found: Bdf[] = [];
  for (const bdf of (await sysfs.addresses()).addresses) {
    const info = await sysfs.read(bdf).catch(() => null);
    if (info !== null && isVirtio(info) && (info.sriov ?? info.physfn) !== null) found.push(bdf);
  }
  return found;
}

/** Throws ERR_NO_SUCH_DEVICE. */
export async function checkFunction(machine: Machine, host: Host, bdf: Bdf): Promise<Check[]> {
  const subject = await readSubject(host, bdf);
  const { info } = subject;
  const binding = await bindingOf(machine, bdf);
  if (!isVirtio(info)) {
    return [check('virtio', 'fail', 'It is not a modern virtio function.', [], bdf)];
  }
  return [
    ...(info.physfn === null ? checkPf(info, binding) : checkVf(subject, host.openableDrivers)),
    await checkGroup(machine, binding),
    ...(binding.driver === vfioPci ? [await checkNode(machine, binding)] : []),
  ];
}

function isVirtio({ vendor, device }: FunctionInfo): boolean {
  return vendor !== null && device !== null && isModernVirtio(vendor, device);
}

function checkPf(info: FunctionInfo, binding: Binding): Check[] {
  const { bdf, sriov } = info;
  if (sriov === null) {
    const detail =
      'It has no SR-IOV; that may be off in the firmware of the host or of the device.';
    return [check('pf-sriov', 'fail', detail, [], bdf)];
  }
  const vfs = sriov.enabled > 0 ? sriov.enabled : sriov.total;
  const inUse = binding.netdevs.filter(({ up, defaultRoute }) => up || defaultRoute);
  const setup = `retrovf setup ${bdf} --vfs ${vfs}${inUse.length > 0 ? ' --yes' : ''}`;
  const loss =
    inUse.length === 0
      ? ''
      : `; a change takes down ${inUse.map(({ name }) => name).join(', ')}, which is in use`;
  return [
    check('pf-sriov', 'ok', `It can have ${sriov.total} VFs.`, [], bdf),
    info.driver === vfioPci
      ? check('pf-driver', 'ok', `It is bound to ${vfioPci}.`, [], bdf)
      : check(
          'pf-driver',
          'fail',
          `It is bound to ${info.driver ?? 'no driver'}${loss}.`,
          [setup],
          bdf,
        ),
    sriov.enabled > 0
      ? check('pf-vfs', 'ok', `It has ${sriov.enabled} VFs.`, [], bdf)
      : check('pf-vfs', 'fail', 'It has no VFs.', [setup], bdf),
    checkAdminQueue(info),
  ];
}

const adminQueueFeature = 1n << 41n;

function checkAdminQueue({ bdf, virtioFeatures }: FunctionInfo): Check {
  const id = 'pf-admin-queue';
  if (virtioFeatures === null) {
    const detail =
      'Whether it has an admin queue shows when it is opened, which resets it and its VFs.';
    return check(id, 'unknown', detail, [`retrovf probe ${bdf} --open`], bdf);
  }
  if ((virtioFeatures & adminQueueFeature) !== 0n) {
    return check(id, 'ok', 'It has an admin queue.', [], bdf);
  }
  const detail =
    'virtio-pci negotiated no admin queue (feature bit 41): the device does not offer one, or the kernel ' +
    'is older than 6.8.';
  return check(id, 'warn', detail, [], bdf);
}

function checkVf(subject: Subject, openableDrivers: readonly string[]): Check[] {
  const { info, owner } = subject;
  const { bdf, driver, physfn } = info;
  const setup = `retrovf setup ${physfn} --vfs ${owner?.sriov?.enabled ?? 1}`;
  const verdict = judge(subject, openableDrivers);
  return [
    driver === vfioPci
      ? check('vf-driver', 'ok', `It is bound to ${vfioPci}.`, [], bdf)
      : check('vf-driver', 'fail', `It is bound to ${driver ?? 'no driver'}.`, [setup], bdf),
    verdict.kind === 'passthrough'
      ? check(
          'vf-legacy',
          'fail',
          `It cannot have legacy registers: ${verdict.detail}. ${verdict.hint}`,
          verdict.reason === 'owner-driver' ? [setup] : [],
          bdf,
        )
      : check('vf-legacy', 'ok', 'It can have legacy registers, if its PF agrees.', [], bdf),
  ];
}

async function checkGroup(machine: Machine, binding: Binding): Promise<Check> {
  const { bdf, iommuGroup } = binding;
  if (iommuGroup === null) {
    return check('iommu-group', 'fail', 'It is in no IOMMU group; see the check "iommu".', [], bdf);
  }
  const offenders = await offendersOf(machine, binding);
  if (offenders.length === 0) {
    return check(
      'iommu-group',
      'ok',
      `IOMMU group ${iommuGroup} can be given to a process.`,
      [],
      bdf,
    );
  }
  const list = offenders.map(({ bdf: other, driver }) => `${other} (${driver})`).join(', ');
  const devices = `${machine.sysfs.root}/bus/pci/devices`;
  const mend = offenders.map(
    ({ bdf: other }) => `echo ${other} > ${devices}/${other}/driver/unbind`,
  );
  const detail = `IOMMU group ${iommuGroup} also holds ${list}: one process cannot have it.`;
  return check('iommu-group', 'fail', detail, mend, bdf);
}

async function checkNode(machine: Machine, { bdf, iommuGroup, holders }: Binding): Promise<Check> {
  const path = join(machine.dev, 'vfio', iommuGroup ?? '?');
  const { exists, permitted } = await accessTo(path);
  const by = holders.length === 0 ? '' : ` It is open in ${holderNames(holders)}.`;
  if (permitted) return check('vfio-node', 'ok', `${path} can be opened.${by}`, [], bdf);
  return exists
    ? check(
        'vfio-node',
        'fail',
        `${path} is closed to this user.`,
        [`chown ${process.getuid?.() ?? 0} ${path}`],
        bdf,
      )
    : check('vfio-node', 'fail', `${path} does not exist; in a container, pass it in.`, [], bdf);
}
