// Folders shaped like /sys, sound or damaged.

import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Sysfs } from '../../lib/host/sysfs.js';
import type { Host } from '../../lib/host/host.js';
import { noSuchDevice } from '../../lib/errors.js';

export interface FunctionFiles {
  /** Text of files; a nested name makes folders. */
  files?: Record<string, string | Buffer>;
  /** Targets of links. */
  links?: Record<string, string>;
}

export async function sysfsTree(
  functions: Record<string, FunctionFiles>,
): Promise<{ sysfs: Sysfs; root: string; remove: () => Promise<void> }> {
  const root = await mkdtemp(join(tmpdir(), 'retrovf-test-sysfs-'));
  const devices = join(root, 'bus/pci/devices');
  await mkdir(devices, { recursive: true });
  for (const [bdf, { files = {}, links = {} }] of Object.entries(functions)) {
    const folder = join(devices, bdf);
    await mkdir(folder, { recursive: true });
    for (const [name, content] of Object.entries(files)) {
      await mkdir(join(folder, name, '..'), { recursive: true });
      await writeFile(join(folder, name), content);
    }
    for (const [name, target] of Object.entries(links)) await symlink(target, join(folder, name));
  }
  return { sysfs: new Sysfs(root), root, remove: () => rm(root, { recursive: true, force: true }) };
}

/** Sizes of BARs 0 to 5. */
export function resource(...sizes: number[]): string {
  const word = (value: number) => `0x${value.toString(16).padStart(16, '0')}`;
  const lines = Array.from({ length: 13 }, (_, index) => {
    const size = sizes[index] ?? 0;
    const start = 0xfe00_0000 + index * 0x10_0000;
    return (size === 0 ? [0, 0, 0] : [start, start + size - 1, 0x140204]).map(word).join(' ');
  });
  return `${lines.join('\n')}\n`;
}

export const pf = '0000:5e:00.0';
export const vf = (n: number) => `0000:5e:00.${n}`;

export function virtioFunction(
  device = 0x1041,
  bars: readonly number[] = [0, 0x2000, 0x4000],
): Record<string, string> {
  return {
    vendor: '0x1af4\n',
    device: `0x${device.toString(16)}\n`,
    subsystem_vendor: '0x1af4\n',
    subsystem_device: '0x1100\n',
    revision: '0x01\n',
    class: '0x020000\n',
    resource: resource(...bars),
  };
}

/** A PF and its VFs, bound to `driver`. */
export function nic(
  options: { vfs?: number; driver?: string; device?: number; vfBars?: readonly number[] } = {},
): Record<string, FunctionFiles> {
  const { vfs = 2, driver = 'vfio-pci', device = 0x1041, vfBars = [0, 0x2000, 0x4000] } = options;
  const members = Array.from({ length: vfs }, (_, i) => vf(i + 1));
  const group = (n: number) => ({ iommu_group: `../../../../kernel/iommu_groups/${n}` });
  const bound = { driver: `../../../../bus/pci/drivers/${driver}` };
  return {
    [pf]: {
      files: { ...virtioFunction(device), sriov_totalvfs: '8\n', sriov_numvfs: `${vfs}\n` },
      links: {
        ...bound,
        ...group(10),
        ...Object.fromEntries(members.map((bdf, i) => [`virtfn${i}`, `../${bdf}`])),
      },
    },
    ...Object.fromEntries(
      members.map((bdf, i) => [
        bdf,
        {
          files: virtioFunction(device, vfBars),
          links: { ...bound, ...group(11 + i), physfn: `../${pf}` },
        },
      ]),
    ),
  };
}

/** A host that can be probed, not opened. */
export function hostOf(sysfs: Sysfs): Host {
  return {
    sysfs,
    openableDrivers: ['vfio-pci'],
    open: (bdf) => {
      throw noSuchDevice(bdf);
    },
    close: async () => {},
  };
}
