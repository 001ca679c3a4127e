// VFIO: its driver, and the nodes by which a process opens devices.

import { join } from 'node:path';
import { textOf } from '../files.js';
import type { Machine } from '../machine.js';
import { isYes, moduleLoaded, vfioPci, vfioPciModule } from '../pf-state.js';
import { printable } from '../sysfs.js';
import { accessTo, check, type Check } from './check.js';

export async function checkVfio(machine: Machine): Promise<Check[]> {
  const driver = await checkDriver(machine);
  return [
    driver,
    ...(driver.state === 'fail' ? [] : [await checkSriov(machine)]),
    await checkContainer(machine),
    await checkIommufd(machine),
  ];
}

const maxModules = 8 << 20;

async function checkDriver(machine: Machine): Promise<Check> {
  if (await moduleLoaded(machine)) return check('vfio-pci', 'ok', `${vfioPci} is loaded.`);
  const release = await textOf(join(machine.proc, 'sys/kernel/osrelease'));
  if (release === null || !/^[\w.+~-]{1,64}$/.test(release) || release.startsWith('.')) {
    const detail = `${vfioPci} is not loaded, and the release of the kernel cannot be read.`;
    return check('vfio-pci', 'unknown', detail, [`modprobe ${vfioPci}`]);
  }
  const folder = join(machine.modules, release);
  const listed = [
    await textOf(join(folder, 'modules.dep'), maxModules),
    await textOf(join(folder, 'modules.builtin'), maxModules),
  ];
  if (listed.some((text) => text !== null && /(^|\/)vfio-pci\.ko/m.test(text))) {
    const detail = `${vfioPci} is not loaded; retrovf setup loads it.`;
    return check('vfio-pci', 'warn', detail, [`modprobe ${vfioPci}`]);
  }
  const detail = `Kernel ${printable(release)} has no ${vfioPci}, or its modules are not installed.`;
  return check('vfio-pci', 'fail', detail, [`apt-get install linux-modules-extra-${release}`]);
}

async function checkSriov(machine: Machine): Promise<Check> {
  const path = join(machine.sysfs.root, vfioPciModule, 'parameters/enable_sriov');
  const text = await textOf(path);
  if (isYes(text)) return check('vfio-sriov', 'ok', `${vfioPci} may make VFs (enable_sriov).`);
  if (text === null && !(await moduleLoaded(machine))) {
    return check('vfio-sriov', 'unknown', `${vfioPci} is not loaded, so has no enable_sriov yet.`);
  }
  if (text === null) {
    return check('vfio-sriov', 'fail', `This kernel's ${vfioPci} cannot make VFs (before 5.7).`);
  }
  const detail = `${vfioPci} may not make VFs; retrovf setup allows it until the module is unloaded.`;
  return check('vfio-sriov', 'warn', detail, [
    `echo Y > ${path}`,
    "echo 'options vfio-pci enable_sriov=1' > /etc/modprobe.d/retrovf.conf",
  ]);
}

async function checkContainer(machine: Machine): Promise<Check> {
  const path = join(machine.dev, 'vfio/vfio');
  const { exists, permitted } = await accessTo(path);
  if (permitted) return check('vfio-container', 'ok', `${path} can be opened.`);
  if (exists) {
    const detail = `${path} is closed to this user; its usual mode is 0666.`;
    return check('vfio-container', 'fail', detail, [`chmod 0666 ${path}`]);
  }
  const loaded = await moduleLoaded(machine);
  const detail = `${path} does not exist${loaded ? '' : `: ${vfioPci} is not loaded`}.`;
  const mend = loaded ? ['modprobe vfio_iommu_type1'] : [`modprobe ${vfioPci}`];
  return check('vfio-container', loaded ? 'fail' : 'warn', detail, mend);
}

async function checkIommufd(machine: Machine): Promise<Check> {
  const path = join(machine.dev, 'iommu');
  const { exists } = await accessTo(path);
  const detail = exists
    ? `The kernel has iommufd (${path}).`
    : `The kernel has no iommufd (${path}); VFIO groups do.`;
  return check('iommufd', 'ok', detail);
}
