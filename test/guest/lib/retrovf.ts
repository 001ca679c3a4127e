// `retrovf serve` on its SoftNIC, and what every run of it must keep: it says
// which sockets accept clients, ends cleanly when asked, and leaves no socket.

import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { projectRoot } from './lab.js';
import { startNetwork } from './network.js';
import type { NicSettings, Port } from './nic.js';
import type { Child } from '../../vm/child.js';
import type { Scene } from '../../vm/scene.js';

const command = process.env['RETROVF_BIN']?.split(' ') ?? [
  process.execPath,
  join(projectRoot, 'dist/cli/main.js'),
];

interface Served {
  bdf: string;
  socket: string;
}

function parseServed(line: string): Served[] {
  if (!line.startsWith('{')) return [];
  const { bdf, socket } = JSON.parse(line) as Partial<Served>;
  return typeof bdf === 'string' && typeof socket === 'string' ? [{ bdf, socket }] : [];
}

export async function startRetroVf(scene: Scene, settings: NicSettings): Promise<Port[]> {
  const network = settings.network ?? (settings.tftp && (await startNetwork(scene, settings.tftp)));
  const uplink = network === undefined ? 'gateway' : `unix:${network}`;
  const sockets: string[] = [];
  const args = [
    'serve',
    '--softnic',
    '--vfs',
    String(settings.vfs),
    '--socket-dir',
    scene.dir,
    '--presentation',
    settings.presentation,
    '--uplink',
    uplink,
    ...(settings.msix === undefined ? [] : ['--msix', String(settings.msix)]),
  ];
  const child = scene.run('retrovf', [...command, ...args], (running) =>
    endRetroVf(running, scene, sockets),
  );
  const served = await child.lines.until(`${settings.vfs} served devices`, 30, (lines) => {
    const devices = lines.flatMap(parseServed);
    return devices.length >= settings.vfs ? devices : undefined;
  });
  sockets.push(...served.map((device) => device.socket));
  for (const device of served) scene.log(`served ${device.bdf}`);
  return sockets.map((path) => ({
    args: ['-device', JSON.stringify({ driver: 'vfio-user-pci', socket: { path, type: 'unix' } })],
  }));
}

async function endRetroVf(child: Child, scene: Scene, sockets: string[]): Promise<void> {
  const early = child.gone;
  const exit = await child.stop();
  if (early || exit.code !== 0) {
    const when = early ? 'before it was asked to' : 'on SIGTERM';
    throw new Error(`retrovf ended with ${exit.signal ?? exit.code} ${when}, see ${scene.dir}`);
  }
  const names = await readdir(scene.dir);
  const left = names.filter((name) => sockets.includes(join(scene.dir, name)));
  if (left.length > 0) throw new Error(`retrovf left ${left.join(', ')} in ${scene.dir}`);
}
