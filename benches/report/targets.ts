// What the figures are held against. A ratio is that of the medians of interleaved rounds in one run.

import type { Scale } from '../js/scale.js';

export interface Target {
  readonly path: string;
  readonly ours: string;
  readonly peer: string;
  /** Which figure of a round. */
  readonly figure: 'p50' | 'p99' | 'server_cpu_ns';
  /** `below`: at most so many times the peer; `above`: the peer takes at least so many times ours. */
  readonly bound: { readonly below: number } | { readonly above: number };
}

const standin = 'QEMU’s virtio-net-pci';

export const targets: readonly Target[] = [
  row('notify from JavaScript', 'retrovf notify()', 'C addon, store', { below: 1.2 }),
  row('forwarder, sleeping', 'retrovf, blocking', 'bare epoll loop', { below: 1.05 }),
  row('forwarder, sleeping', 'retrovf, blocking', 'bare epoll loop', { below: 1.15 }, 'p99'),
  row('forwarder, busy polling', 'retrovf, busy', 'bare spinning read', { below: 1.1 }),
  row('vfio-user round trip, one CPU', 'retrovf', 'bare socket', { below: 1.15 }),
  row('vfio-user round trip, one CPU', 'retrovf', 'libvfio-user', { below: 0.6 }, 'server_cpu_ns'),
  row('vfio-user round trip, spinning', 'retrovf, adaptive', 'bare busy sockets', { below: 1.2 }),
  row('vfio-user round trip, spinning', 'retrovf, adaptive', 'libvfio-user, sleeping', {
    above: 10,
  }),
  row('vfio-user posted writes, one CPU', 'retrovf', 'libvfio-user', { above: 5 }),
  row('control access, one CPU', 'retrovf', 'bare threadsafe function', { below: 1.3 }),
  row('scale, eventfd to store', '512 devices', '1 device', { below: 1.2 }, 'p99'),
  row('scale, vfio-user round trip', '512 devices', '1 device', { below: 1.2 }, 'p99'),
  row('guest, boot to lease', 'retrovf', standin, { below: 1 }),
  row('guest, ping', 'retrovf', standin, { below: 1.1 }),
  row('guest, TCP out', 'retrovf', standin, { below: 1.1 }),
  row('guest, TCP in', 'retrovf', standin, { below: 1.1 }),
  row('guest kick in the lab', 'retrovf, in the kernel', 'kernel driver', { below: 1 }),
  row('guest kick in the lab', 'retrovf, forwarder', 'kernel driver', { below: 1 }),
];

/** A figure of the process with so many devices that has to stay below a value. */
export interface Limit {
  readonly devices: number;
  readonly figure: keyof Scale;
  readonly below: number;
}

export const limits: readonly Limit[] = [
  { devices: 512, figure: 'memory_bytes_per_device', below: 100 * 1024 },
  { devices: 512, figure: 'idle_cpu_percent', below: 0.5 },
];

function row(
  path: string,
  ours: string,
  peer: string,
  bound: Target['bound'],
  figure: Target['figure'] = 'p50',
): Target {
  return { path, ours, peer, figure, bound };
}
