// What the operator and the program that starts QEMU need to know of a served device.

import { messageOf } from '../../errors.js';
import {
  legacyRead,
  type Device,
  type NotifyPlan,
  type Served,
  type TransitionalDevice,
} from '../../index.js';
import { plain, type Styles } from '../output/styles.js';

/** One line of JSON on stdout. */
export interface Announcement {
  readonly bdf: string;
  readonly socket: string;
  /** Such as `net`; null for a device that is passed through as it is. */
  readonly type: string | null;
  readonly presentation: string | null;
  readonly verdict: Device['kind'];
  /** Why the device is passed through. */
  readonly reason?: string;
  /** Bytes of the I/O BAR of legacy registers; null: there is none. */
  readonly bar0: number | null;
  readonly notify: NotifyPlan | null;
  readonly mac?: string;
  /** Arguments that attach the device, each as QEMU takes it. */
  readonly qemu: readonly string[];
}

export async function announce(
  { device, path }: Served,
  signal: AbortSignal,
): Promise<Announcement> {
  const qemu = qemuArguments(path);
  if (device.kind === 'passthrough') {
    const { bdf, kind: verdict, cause } = device;
    const none = { type: null, presentation: null, bar0: null, notify: null };
    return { bdf, socket: path, ...none, verdict, reason: cause.reason, qemu };
  }
  const mac = await macOf(device, signal);
  return {
    bdf: device.bdf,
    socket: path,
    type: device.type.name,
    presentation: device.presentation,
    verdict: device.kind,
    bar0: device.bar0Size,
    notify: device.notifyPlan,
    ...(mac === null ? {} : { mac }),
    qemu,
  };
}

/** vfio-user passes guest memory to us by file descriptor, hence the shared memory backend. */
function qemuArguments(path: string): string[] {
  return [
    '-m',
    '1G',
    '-object',
    'memory-backend-memfd,id=retrovf-memory,size=1G,share=on',
    '-machine',
    'memory-backend=retrovf-memory',
    '-device',
    JSON.stringify({ driver: 'vfio-user-pci', socket: { path, type: 'unix' } }),
  ];
}

const netFeatureMac = 1n << 5n;

async function macOf(device: TransitionalDevice, signal: AbortSignal): Promise<string | null> {
  if (device.type.name !== 'net' || (device.features & netFeatureMac) === 0n) return null;
  const command = legacyRead('device', device.memberId, 0, 6);
  try {
    const bytes = await device.owner.execute(command, { signal });
    return [...bytes.subarray(0, 6)].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
  } catch (error) {
    signal.throwIfAborted();
    device.log.warn('MAC address could not be read', { reason: messageOf(error) });
    return null;
  }
}

/** The same for people. */
export function announcementLines(served: Announcement, style: Styles): string[] {
  const { bdf, socket, type, presentation, verdict, reason, bar0, mac, qemu } = served;
  const facts =
    verdict === 'passthrough'
      ? `${style.warn('as it is')}, not for legacy guests: ${reason}`
      : [
          `${presentation} ${type} device`,
          `${bar0} bytes of I/O BAR0`,
          ...(mac === undefined ? [] : [mac]),
        ].join(', ');
  return [
    `${style.name(bdf)}  ${facts}`,
    `  socket  ${plain(socket)}`,
    `  attach  qemu-system-x86_64 ... ${qemu.map(shellQuoted).join(' ')}`,
  ];
}

function shellQuoted(argument: string): string {
  return /^[\w.,:=/@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'\\''`)}'`;
}
