// An admin queue whose answers the test gives.

import type { CommandQueue } from '../../lib/admin-lanes.js';

export interface Sent {
  readonly id: number;
  readonly opcode: number;
  readonly member: number;
  readonly readable: Buffer;
  readonly writableLength: number;
  readonly deadlineMs: number;
}

export class FakeQueue implements CommandQueue {
  readonly sent: Sent[] = [];
  /** What submit answers at once; null or missing: nothing. */
  readonly now: (Buffer | Error | null)[] = [];

  submit(id: number, readable: Buffer, answer: Buffer, deadlineMs: number): number {
    const next = this.now.shift() ?? null;
    if (next instanceof Error) throw next;
    const opcode = readable.readUInt16LE(0);
    const member = Number(readable.readBigUInt64LE(16));
    this.sent.push({ id, opcode, member, readable, writableLength: answer.length, deadlineMs });
    return next === null ? -1 : next.copy(answer);
  }

  get last(): Sent {
    const last = this.sent.at(-1);
    if (last === undefined) throw new Error('nothing was sent');
    return last;
  }
}

export function answer(status = 0, qualifier = 0, result: readonly number[] = []): Buffer {
  const bytes = Buffer.alloc(8 + result.length);
  bytes.writeUInt16LE(status, 0);
  bytes.writeUInt16LE(qualifier, 2);
  bytes.set(result, 8);
  return bytes;
}

export function coded(code: string): Error {
  return Object.assign(new Error(code), { code });
}
