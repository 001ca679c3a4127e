// Where RetroVF answers otherwise than Linux' virtio_vfio_pci, on purpose: the whole list. An answer
// that differs and fits no row is a failure, and so is a row that no access of the lab has met.

import { bar0Size, configSize, isHole, parts, queueNotify } from './registers.js';
import { msixControl, type State } from './state.js';
import type { Access, Answer } from './transcript.js';

export interface Observed {
  readonly access: Access;
  readonly state: Readonly<State>;
  readonly kernel: Answer;
  /** The kernel's answers to the parts of the access. */
  readonly added: readonly Answer[];
  readonly ours: Answer;
}

export interface Difference {
  readonly name: string;
  readonly kernel: string;
  readonly ours: string;
  readonly why: string;
  /** Whether this is the difference, both answers being exactly what the row says. */
  readonly fits: (observed: Observed) => boolean;
}

export const differences: readonly Difference[] = [
  {
    name: 'gated',
    kernel: 'BAR0 while I/O space is disabled: EIO',
    ours: 'reads are all ones, writes are dropped',
    why: 'So does a bus without anybody who answers; a monitor must not have to handle an error for it.',
    fits: ({ access, state, kernel, ours }) =>
      inBar0(access) && !state.io && isError(kernel, 'EIO') && nobodyAnswers(access, ours),
  },
  {
    name: 'split',
    kernel: 'an access to several registers: EINVAL',
    ours: 'one command for each register, answers joined',
    why: 'A command may touch one register; a guest may touch what it likes, and real I/O BARs serve it.',
    fits: ({ access, state, kernel, added, ours }) =>
      inBar0(access) &&
      state.io &&
      added.length > 1 &&
      isError(kernel, 'EINVAL') &&
      isJoined(access, state, added, ours),
  },
  {
    name: 'absent-register',
    kernel: 'a register that the device does not have: EINVAL',
    ours: 'reads are all ones, writes are dropped',
    why: 'As any absent register; the VMM never sees an error for what a guest can do.',
    fits: ({ access, state, kernel, added, ours }) =>
      inBar0(access) &&
      state.io &&
      added.length === 0 &&
      access.offset >= 20 &&
      isError(kernel, 'EINVAL') &&
      nobodyAnswers(access, ours),
  },
  {
    name: 'notify-read',
    kernel: 'a read of Queue Notify reads the notify address',
    ours: 'a read of the register through the owner; the device has no answer, so all ones',
    why: 'A doorbell need not be readable; reading one may have effects.',
    fits: ({ access, state, kernel, ours }) =>
      inBar0(access) &&
      state.io &&
      access.kind === 'read' &&
      access.offset === queueNotify &&
      access.width === 2 &&
      kernel.kind === 'bytes' &&
      nobodyAnswers(access, ours),
  },
  {
    name: 'notify-width',
    kernel: 'one byte at Queue Notify: EINVAL',
    ours: 'for the device to judge, like one byte of any other register',
    why: 'Legacy devices take it; queue indexes below 256 fit.',
    fits: ({ access, state, kernel, ours }) =>
      inBar0(access) &&
      state.io &&
      access.offset === queueNotify &&
      access.width === 1 &&
      isError(kernel, 'EINVAL') &&
      nobodyAnswers(access, ours),
  },
  {
    name: 'range-before-gate',
    kernel: 'beyond the end of BAR0 while I/O space is disabled: EIO',
    ours: 'EINVAL, as while it is enabled',
    why: 'Such an access is a mistake of the monitor, whatever the guest has enabled.',
    fits: ({ access, state, kernel, ours }) =>
      inBar0(access) &&
      access.offset + access.width > bar0Size &&
      !state.io &&
      isError(kernel, 'EIO') &&
      isError(ours, 'EINVAL'),
  },
  {
    name: 'beyond-configuration-space',
    kernel: 'beyond the end of configuration space: EFAULT',
    ours: 'EINVAL, as beyond the end of any region',
    why: 'No memory of the monitor was at fault.',
    fits: ({ access, kernel, ours }) =>
      (access.kind === 'read' || access.kind === 'write') &&
      access.region === 'cfg' &&
      access.offset + access.width > configSize &&
      isError(kernel, 'EFAULT') &&
      isError(ours, 'EINVAL'),
  },
  {
    name: 'vectors-already-off',
    kernel: 'MSI-X taken away while there is none: EINVAL',
    ours: 'nothing to do, so it is done',
    why: 'A monitor that cleans up need not remember what it had set up.',
    fits: ({ access, state, kernel, ours }) =>
      access.kind === 'vectors' &&
      access.count === 0 &&
      !state.hostMsix &&
      isError(kernel, 'EINVAL') &&
      ours.kind === 'done',
  },
  {
    name: 'command-after-reset',
    kernel: 'after a reset the command register reads as before, while BAR0 is disabled',
    ours: 'I/O space and bus mastering read 0, as they act (bus mastering stays over a guest’s own FLR)',
    why: 'A reset function has them off; a driver that looks must not conclude otherwise.',
    fits: ({ access, state, kernel, ours }) =>
      access.kind === 'read' &&
      access.region === 'cfg' &&
      state.commandCleared !== 0 &&
      clearsIn(access.offset, kernel, ours, new Map([[0x04, state.commandCleared]])),
  },
  {
    name: 'bus-master',
    kernel: 'a driver that starts without bus mastering goes without it',
    ours: 'the status bit DRIVER turns bus mastering on',
    why: 'Linux before 2.6.34 and some boot ROMs rely on it, as QEMU’s virtio-pci does it for them.',
    fits: ({ access, state, kernel, ours }) =>
      access.kind === 'read' &&
      access.region === 'cfg' &&
      state.forgotMaster &&
      clearsIn(access.offset, ours, kernel, new Map([[0x04, 0x04]])),
  },
  {
    name: 'msix-bit',
    kernel:
      'the MSI-X enable bit is the host’s; the configuration begins at 24 if eventfds are installed',
    ours: 'the bit is the guest’s, and the configuration begins at 24 if it is set',
    why: 'The driver in the guest goes by its own bit; monitors install eventfds earlier or later.',
    fits: ({ access, state, kernel, ours }) =>
      (access.kind === 'read' || access.kind === 'write') &&
      state.guestMsix !== state.hostMsix &&
      (access.region === 'bar0'
        ? state.io && access.offset + access.width > 20 && ours.kind !== 'error'
        : access.kind === 'read' &&
          access.region === 'cfg' &&
          differsIn(access.offset, kernel, ours, new Map([[msixControl + 1, 0xc0]]))),
  },
];

function inBar0(access: Access): access is Access & { kind: 'read' | 'write' } {
  return (access.kind === 'read' || access.kind === 'write') && access.region === 'bar0';
}

function isError(answer: Answer, name: string): boolean {
  return answer.kind === 'error' && answer.name === name;
}

function nobodyAnswers(access: Access, ours: Answer): boolean {
  if (access.kind === 'write') return ours.kind === 'done';
  return ours.kind === 'bytes' && ours.bytes.every((byte) => byte === 0xff);
}

/** Ours are the kernel's answers to the parts, and ones where it refused or the table says so. */
function isJoined(
  access: Access & { kind: 'read' | 'write' },
  state: Readonly<State>,
  added: readonly Answer[],
  ours: Answer,
): boolean {
  if (access.kind === 'write') return ours.kind === 'done';
  const pieces = parts(access.offset, access.width, state.guestMsix);
  const expected = pieces.map((piece, i) => {
    const answer = added[i];
    const known =
      answer?.kind === 'bytes' &&
      answer.bytes.length === piece.width &&
      piece.offset !== queueNotify &&
      !isHole(piece, state.guestMsix);
    return known ? answer.bytes : Buffer.alloc(piece.width, 0xff);
  });
  return ours.kind === 'bytes' && ours.bytes.equals(Buffer.concat(expected));
}

/** The second has bits of a mask cleared, by offset, and no other difference. */
function clearsIn(
  offset: number,
  first: Answer,
  second: Answer,
  masks: ReadonlyMap<number, number>,
): boolean {
  if (first.kind !== 'bytes' || second.kind !== 'bytes') return false;
  const cleared = first.bytes.map((byte, i) => byte & ~(masks.get(offset + i) ?? 0));
  return second.bytes.equals(cleared);
}

/** Both have the same bytes except for bits of a mask, by offset. */
function differsIn(
  offset: number,
  kernel: Answer,
  ours: Answer,
  masks: ReadonlyMap<number, number>,
): boolean {
  if (kernel.kind !== 'bytes' || ours.kind !== 'bytes') return false;
  if (kernel.bytes.length !== ours.bytes.length) return false;
  return kernel.bytes.every(
    (byte, i) => ((byte ^ (ours.bytes[i] ?? 0)) & ~(masks.get(offset + i) ?? 0)) === 0,
  );
}
