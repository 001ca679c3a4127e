// QEMU's own virtio-net in place of RetroVF, to tell faults of the lab from
// faults of the device: what passes here and fails there is the device's.

import { join } from 'node:path';
import { startNetwork } from './network.js';
import type { NicSettings, Port } from './nic.js';
import type { Scene } from '../../vm/scene.js';
import { startSwitch } from './switch.js';

export async function startStandin(scene: Scene, settings: NicSettings): Promise<Port[]> {
  const paths = Array.from({ length: settings.vfs }, (_, index) =>
    join(scene.dir, `port${index}.sock`),
  );
  const network = settings.network ?? (await startNetwork(scene, settings.tftp));
  const stop = await startSwitch(paths, network);
  scene.atEnd(async () => stop());
  return paths.map((path, index) => standinPort(path, index, settings));
}

/** QEMU's own device on a network, a socket as `startNetwork` makes them. */
export function standinPort(path: string, index: number, settings: NicSettings): Port {
  const device = [
    'virtio-net-pci',
    'netdev=n',
    `mac=52:54:00:00:00:0${index + 1}`,
    'romfile=',
    `disable-modern=${settings.presentation === 'legacy' ? 'on' : 'off'}`,
    'disable-legacy=off',
    ...(settings.msix === undefined ? [] : [`vectors=${settings.msix}`]),
  ];
  const netdev = `stream,id=n,server=off,addr.type=unix,addr.path=${path}`;
  return { args: ['-netdev', netdev, '-device', device.join(',')] };
}
