// The IOMMU, without which VFIO gives no device to a process.

import { join } from 'node:path';
import { namesIn, textOf } from '../files.js';
import type { Machine } from '../machine.js';
import { isYes } from '../pf-state.js';
import { check, type Check } from './check.js';

export async function checkIommu(machine: Machine): Promise<Check[]> {
  const groups = await namesIn(join(machine.sysfs.root, 'kernel/iommu_groups'));
  if (groups.length === 0) {
    const detail =
      'The kernel has no IOMMU groups: the IOMMU is off, in the firmware or the kernel.';
    return [check('iommu', 'fail', detail, await enableCommands(machine))];
  }
  return [
    check('iommu', 'ok', `The IOMMU is on, with ${groups.length} groups.`),
    await checkInterruptRemapping(machine),
  ];
}

/** VT-d is off unless asked for; AMD's IOMMU is on where the firmware has it. */
async function enableCommands({ proc }: Machine): Promise<string[]> {
  const cpu = (await textOf(join(proc, 'cpuinfo'), maxCpuinfo)) ?? '';
  const amd = /^vendor_id\s*:\s*AuthenticAMD$/m.test(cpu);
  const parameters = amd ? 'iommu=pt' : 'intel_iommu=on iommu=pt';
  const edit = `sed -i 's/^GRUB_CMDLINE_LINUX="/&${parameters} /' /etc/default/grub`;
  return [edit, 'update-grub', 'reboot'];
}

const maxCpuinfo = 4 << 20;
const maxInterrupts = 16 << 20;

/** Without it a device could forge interrupts, and VFIO refuses it. */
async function checkInterruptRemapping({ sysfs, proc }: Machine): Promise<Check> {
  const id = 'interrupt-remapping';
  const interrupts = await textOf(join(proc, 'interrupts'), maxInterrupts);
  // Chips whose interrupts are remapped have names such as IR-PCI-MSI and IR-IO-APIC.
  if (interrupts !== null && /\bIR-/.test(interrupts)) {
    return check(id, 'ok', 'Interrupts are remapped.');
  }
  const parameter = 'module/vfio_iommu_type1/parameters/allow_unsafe_interrupts';
  if (isYes(await textOf(join(sysfs.root, parameter)))) {
    const detail =
      'Interrupts are not remapped; VFIO is told to do without (allow_unsafe_interrupts).';
    return check(id, 'warn', detail);
  }
  if (interrupts === null) return check(id, 'unknown', 'The list of interrupts cannot be read.');
  const detail =
    'No interrupt is remapped: enable interrupt remapping in the firmware (VT-d, x2APIC), or, if all ' +
    'guests are trusted, tell VFIO to do without.';
  return check(id, 'fail', detail, [
    'modprobe vfio_iommu_type1',
    `echo Y > ${sysfs.root}/${parameter}`,
  ]);
}
