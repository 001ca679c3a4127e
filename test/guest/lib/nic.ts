// A NIC whose functions guests can have: RetroVF's SoftNIC, or the stand-in.

import { standin } from './lab.js';
import { startRetroVf } from './retrovf.js';
import type { Scene } from '../../vm/scene.js';
import { startStandin } from './standin.js';

export interface NicOptions {
  vfs?: number;
  presentation?: 'legacy' | 'transitional';
  /** MSI-X vectors a function; 0 takes the capability away. */
  msix?: number;
  /** Puts the NIC on a network that serves this folder by TFTP. */
  tftp?: string;
  /** Puts the NIC on this network, a socket as `startNetwork` makes them. */
  network?: string;
}

export type NicSettings = NicOptions & Required<Pick<NicOptions, 'vfs' | 'presentation'>>;

/** One function, as the QEMU arguments that give it to a guest. */
export interface Port {
  readonly args: readonly string[];
}

export async function startNic(scene: Scene, options: NicOptions = {}): Promise<Port[]> {
  const settings: NicSettings = { vfs: 1, presentation: 'legacy', ...options };
  if (!standin) return startRetroVf(scene, settings);
  scene.log("stand-in: QEMU's own device");
  return startStandin(scene, settings);
}
