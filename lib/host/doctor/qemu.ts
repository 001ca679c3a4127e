// QEMU, for those who use it: its vfio-user client came with version 10.1.

import type { Machine } from '../machine.js';
import { check, type Check } from './check.js';

const program = 'qemu-system-x86_64';

export async function checkQemu({ run }: Machine, signal?: AbortSignal): Promise<Check> {
  const asked = await run(program, ['--version'], { signal });
  if (asked.code !== 0) {
    const detail = `${program} is not on the PATH; another vfio-user client has to take the device.`;
    return check('qemu', 'warn', detail, ['apt-get install qemu-system-x86']);
  }
  const [, version = '', major = '0', minor = '0'] =
    /version ((\d{1,4})\.(\d{1,4})[\d.]{0,8})/.exec(asked.stdout) ?? [];
  if (version === '') return check('qemu', 'unknown', `${program} does not tell its version.`);
  if (Number(major) < 10 || (Number(major) === 10 && Number(minor) < 1)) {
    return check(
      'qemu',
      'warn',
      `QEMU ${version} has no vfio-user-pci device; 10.1 and later have.`,
    );
  }
  const devices = await run(program, ['-device', 'help'], { signal });
  return devices.stdout.includes('"vfio-user-pci"')
    ? check('qemu', 'ok', `QEMU ${version} has the vfio-user-pci device.`)
    : check('qemu', 'warn', `QEMU ${version} was built without its vfio-user-pci device.`);
}
