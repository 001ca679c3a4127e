// Linux as a guest, with the initramfs of image/.

import { startGuest, type Guest, type GuestOptions } from './guest.js';
import { lab } from './lab.js';
import type { Port } from './nic.js';
import type { Scene } from '../../vm/scene.js';

export interface LinuxOptions extends GuestOptions {
  /** What init does: see image/init. */
  steps: readonly string[];
  kernelArgs?: readonly string[];
  /** Whether a guest that reboots comes up again; else the machine ends. */
  reboots?: boolean;
}

/** The kernel's self-tests of its ciphers take a second under emulation. */
export function commandLine(steps: readonly string[], more: readonly string[] = []): string {
  const fixed = ['console=ttyS0', 'quiet', 'panic=-1', 'cryptomgr.notests'];
  return [...fixed, ...more, `guest=${steps.join(',')}`].join(' ');
}

export function bootLinux(scene: Scene, port: Port, options: LinuxOptions): Guest {
  const { steps, kernelArgs, reboots = false, args = [], ...rest } = options;
  return startGuest(scene, port, {
    ...rest,
    args: [
      '-kernel',
      lab.kernel,
      '-initrd',
      lab.initrd,
      '-append',
      commandLine(steps, kernelArgs),
      ...(reboots ? [] : ['-no-reboot']),
      ...args,
    ],
  });
}
