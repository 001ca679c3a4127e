// What the answers to the next access depend on, followed through a transcript.

import { bar0Size } from './registers.js';
import type { Access } from './transcript.js';

/** Offset of the MSI-X control word in configuration space of the lab's VFs; a run checks it. */
export const msixControl = 0xde;
/** And of PCI Express device control, whose highest bit starts a function level reset. */
const deviceControl = 0x48;

/** Status bit: the driver knows how to drive the device. */
const statusDriver = 2;

export class State {
  /** The function decodes I/O space, that is, BAR0. */
  io = false;
  /** Bits that a reset cleared of the command register, which has not been written since. */
  commandCleared = 0;
  /** The function may master the bus. */
  master = false;
  /** A driver has started without bus mastering since the command register was written. */
  forgotMaster = false;
  /** The guest has MSI-X enabled in its capability. */
  guestMsix = false;
  /** Eventfds are installed for MSI-X. */
  hostMsix = false;

  apply(access: Access): void {
    switch (access.kind) {
      case 'reset':
        this.io = false;
        this.commandCleared = 0x05;
        this.master = this.forgotMaster = false;
        // Whoever keeps its eventfds over a reset sets the enable bit again: the player does.
        this.guestMsix = this.hostMsix;
        break;
      case 'vectors':
        this.guestMsix = access.count > 0;
        this.hostMsix = access.count > 0;
        break;
      case 'write': {
        if (access.region === 'bar0') {
          const status = byteWritten(access, 18);
          const starts = status !== undefined && (status & statusDriver) !== 0;
          const ends = access.offset + access.width;
          if (this.io && starts && !this.master && ends <= bar0Size) this.forgotMaster = true;
        }
        if (access.region !== 'cfg') break;
        const command = byteWritten(access, 0x04);
        if (command !== undefined) {
          this.io = (command & 1) !== 0;
          this.commandCleared = 0;
          this.master = (command & 4) !== 0;
          this.forgotMaster = false;
        }
        const control = byteWritten(access, msixControl + 1);
        if (control !== undefined) this.guestMsix = (control & 0x80) !== 0;
        const express = byteWritten(access, deviceControl + 1);
        if (express !== undefined && (express & 0x80) !== 0) {
          // The kernel puts back what the device has of the command register; the I/O bit is not its.
          this.io = this.guestMsix = false;
          this.commandCleared = 0x01;
        }
      }
    }
  }
}

function byteWritten(access: Access & { kind: 'write' }, at: number): number | undefined {
  const { offset, width, value } = access;
  if (at < offset || at >= offset + width) return undefined;
  return Number((value >> BigInt(8 * (at - offset))) & 0xffn);
}
