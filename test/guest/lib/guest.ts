// A guest and its own words: "GUEST key=value" lines on its serial console.

import type { Child } from '../../vm/child.js';
import { qemu } from './lab.js';
import type { Port } from './nic.js';
import type { Scene } from '../../vm/scene.js';

export interface GuestOptions {
  name?: string;
  machine?: 'pc' | 'q35';
  /** Further QEMU arguments. */
  args?: readonly string[];
}

// For instance GUEST_TRACE='vfio_user_*': what QEMU and the device say to each
// other then stands in NAME.err.
const traced = process.env['GUEST_TRACE'];
const trace = traced === undefined ? [] : ['-trace', traced];

export class Guest {
  readonly name: string;
  readonly child: Child;

  constructor(name: string, child: Child) {
    this.name = name;
    this.child = child;
  }

  /** All values of a key, in the order they were said. */
  all(key: string): string[] {
    return said(this.child.lines.all, key);
  }

  /** The value of a key that was said exactly once. */
  one(key: string): string {
    const values = this.all(key);
    if (values.length !== 1) {
      throw new Error(`${this.name} said ${key} ${values.length} times: ${values.join(' | ')}`);
    }
    return values[0] as string;
  }

  /** Waits until a key was said `count` times; resolves with the last value. */
  said(key: string, seconds: number, count = 1): Promise<string> {
    return this.child.lines.until(`${count} x ${key} of ${this.name}`, seconds, (lines) => {
      const values = said(lines, key);
      // A guest that has given up will not say it any more.
      const done = key === 'done' ? [] : said(lines, 'done');
      if (values.length < count && done.length > 0) {
        throw new Error(`${this.name} is done (${done.join()}) without ${count} x ${key}`);
      }
      return values.length >= count ? values[count - 1] : undefined;
    });
  }

  /** Waits for the end of all steps and of the machine. */
  async done(seconds: number): Promise<void> {
    const result = await this.said('done', seconds);
    if (result !== 'ok') throw new Error(`${this.name}: ${result}`);
    await this.child.ended(30);
  }
}

function said(lines: readonly string[], key: string): string[] {
  const start = `GUEST ${key}=`;
  return lines.filter((line) => line.startsWith(start)).map((line) => line.slice(start.length));
}

/** Starts a machine with one function of the NIC. */
export function startGuest(scene: Scene, port: Port, options: GuestOptions): Guest {
  const { name = 'guest', machine = 'pc', args = [] } = options;
  const child = scene.run(
    name,
    qemu([
      // graphics=off makes the firmware use the serial console.
      '-machine',
      `${machine},graphics=off,memory-backend=ram`,
      // The device reads guest memory itself, so that has to be shareable.
      '-object',
      'memory-backend-memfd,id=ram,size=256M,share=on',
      '-m',
      '256',
      '-accel',
      'tcg',
      '-cpu',
      'qemu64,+rdrand',
      '-serial',
      'stdio',
      ...port.args,
      ...args,
      ...trace,
    ]),
  );
  scene.atEnd(async () => {
    for (const line of child.lines.all) {
      if (line.startsWith('GUEST ')) scene.log(`${name}: ${line.slice('GUEST '.length)}`);
    }
  });
  return new Guest(name, child);
}
