// A folder in the shape of /sys, for a host that need not exist.

import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface FakeFunction {
  readonly bdf: string;
  readonly device: number;
  readonly driver: string;
  /** Sizes of BARs by index. */
  readonly bars?: readonly number[];
  readonly physfn?: string;
  readonly virtfns?: readonly string[];
}

export async function writeSysfs(root: string, functions: readonly FakeFunction[]): Promise<void> {
  const devices = join(root, 'bus/pci/devices');
  for (const each of functions) {
    const { bdf, device, driver, bars = [], physfn, virtfns = [] } = each;
    const dir = join(devices, bdf);
    await mkdir(dir, { recursive: true });
    const files = {
      vendor: '0x1af4',
      device: `0x${device.toString(16)}`,
      subsystem_vendor: '0x1af4',
      subsystem_device: '0x0001',
      revision: '0x01',
      class: '0x020000',
      resource: Array.from({ length: 7 }, (_, i) => resourceLine(bars[i] ?? 0)).join('\n'),
      ...(virtfns.length > 0 && { sriov_totalvfs: '8', sriov_numvfs: String(virtfns.length) }),
    };
    for (const [name, value] of Object.entries(files)) {
      await writeFile(join(dir, name), `${value}\n`);
    }
    await symlink(`../../drivers/${driver}`, join(dir, 'driver'));
    await symlink('../../../../kernel/iommu_groups/7', join(dir, 'iommu_group'));
    if (physfn !== undefined) await symlink(`../${physfn}`, join(dir, 'physfn'));
    for (const [i, vf] of virtfns.entries()) await symlink(`../${vf}`, join(dir, `virtfn${i}`));
  }
}

function resourceLine(size: number): string {
  const word = (value: number): string => `0x${value.toString(16).padStart(16, '0')}`;
  if (size === 0) return [0, 0, 0].map(word).join(' ');
  return [0x1_0000_0000, 0x1_0000_0000 + size - 1, 0x200].map(word).join(' ');
}
