// A network with a router, a DHCP and a TFTP server: another QEMU, without a
// machine, that joins its user-mode network to a UNIX socket.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { qemu } from './lab.js';
import type { Scene } from '../../vm/scene.js';

/**
 * Returns the path of the socket, which accepts one peer at a time. On it each
 * frame follows its length, four bytes, most significant first. `tftp` is a
 * folder to serve.
 */
export async function startNetwork(scene: Scene, tftp?: string): Promise<string> {
  const path = join(scene.dir, 'network.sock');
  const child = scene.run(
    'network',
    qemu([
      '-M',
      'none',
      '-netdev',
      `user,id=router,ipv6=off${tftp === undefined ? '' : `,tftp=${tftp}`}`,
      '-netdev',
      `stream,id=cable,server=on,addr.type=unix,addr.path=${path}`,
      '-netdev',
      'hubport,id=a,hubid=0,netdev=router',
      '-netdev',
      'hubport,id=b,hubid=0,netdev=cable',
    ]),
  );
  for (let tries = 0; !existsSync(path); tries += 1) {
    if (child.gone || tries > 500) throw new Error(`no network, see ${scene.dir}/network.err`);
    await delay(20);
  }
  return path;
}
