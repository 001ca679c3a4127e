// iPXE as a guest: a small driver that polls, uses 10-byte headers and
// touches the device in an order of its own (queues first, features later).

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { startGuest, type Guest, type GuestOptions } from './guest.js';
import { lab } from './lab.js';
import type { Port } from './nic.js';
import type { Scene } from '../../vm/scene.js';

export interface IpxeOptions extends GuestOptions {
  /** iPXE commands; one that fails ends the run. */
  commands: readonly string[];
}

export async function bootIpxe(scene: Scene, port: Port, options: IpxeOptions): Promise<Guest> {
  const { commands, args = [], ...rest } = options;
  const script = join(scene.dir, `${rest.name ?? 'guest'}.ipxe`);
  const checked = commands.map((command) => `${command} || goto failed`);
  await writeFile(
    script,
    [
      '#!ipxe',
      ...checked,
      'echo GUEST done=ok',
      'goto end',
      ':failed',
      'echo GUEST done=failed ${errno}',
      ':end',
      // The firmware's console holds the last character back for a tick.
      'sleep 1',
      'poweroff',
      '',
    ].join('\n'),
  );
  return startGuest(scene, port, {
    ...rest,
    args: ['-kernel', lab.ipxe, '-initrd', script, '-no-reboot', ...args],
  });
}
