// What it costs JavaScript to ring a device.

import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { SoftNicHost, TransitionalDevice, type Host } from '../../lib/index.js';
import { bench } from './addon.js';
import { measure, planOf, type Path } from './series.js';

/** A clock takes as long as many stores: a sample is the mean of so many calls. */
const calls = 1_000;
const syscalls = 50;

export async function notifyPaths(quick: boolean): Promise<Path[]> {
  const plan = { ...planOf(quick), samples: quick ? 200 : 1_000 };
  await using nic = await SoftNicHost.create({ vfs: 1 });
  const host: Host = {
    sysfs: nic.sysfs,
    openableDrivers: nic.openableDrivers,
    // The notify address of a SoftNIC is no memory; a VF's is.
    open(bdf) {
      const fn = nic.open(bdf);
      if (bdf === nic.owner) return fn;
      const member = bench.withWord(fn);
      fn.close();
      return member;
    },
    close: () => nic.close(),
  };
  await closesItsWord(host, nic.members()[0] ?? '');
  await using device = await TransitionalDevice.open(host, nic.members()[0] ?? '');
  const word = device.notifyWord;
  if (word === null) throw new Error('The device has no notify word');
  check(device, word);
  const { empty, store } = bench.cFunctions();
  const path = `/dev/shm/retrovf-bench-${process.pid}`;
  const file = openSync(path, 'w+');
  const bytes = Buffer.alloc(2);
  try {
    const result = await measure(
      { path: 'notify from JavaScript', about: 'one call; a sample is the mean of many' },
      plan,
      [
        { name: 'retrovf notify()', block: (n) => block(n, calls, notifies) },
        { name: 'retrovf notifyWord', block: (n) => block(n, calls, stores) },
        { name: 'C addon, store', block: (n) => block(n, calls, nativeStores) },
        { name: 'C addon, empty call', block: (n) => block(n, calls, nativeCalls) },
        { name: 'fs.writeSync of 2 bytes', block: (n) => block(n, syscalls, writes) },
      ],
    );
    return [result];
  } finally {
    closeSync(file);
    rmSync(path);
  }

  // One loop each, so that each is compiled for its own call.
  function notifies(n: number): void {
    for (let i = 0; i < n; i += 1) device.notify(i & 1);
  }
  function stores(n: number): void {
    const target = word as Uint16Array;
    for (let i = 0; i < n; i += 1) target[0] = i & 1;
  }
  function nativeStores(n: number): void {
    for (let i = 0; i < n; i += 1) store(i & 1);
  }
  function nativeCalls(n: number): void {
    for (let i = 0; i < n; i += 1) empty();
  }
  function writes(n: number): void {
    for (let i = 0; i < n; i += 1) writeSync(file, bytes, 0, 2, 16);
  }
}

async function closesItsWord(host: Host, bdf: string): Promise<void> {
  const device = await TransitionalDevice.open(host, bdf);
  const word = device.notifyWord;
  await device.close();
  if (word?.length !== 0) throw new Error('A closed device leaves its notify word behind');
}

/** What rings nothing would win any race. */
function check(device: TransitionalDevice, word: Uint16Array): void {
  for (const queue of [7, 0, 0xffff]) {
    device.notify(queue);
    if (word[0] !== queue) throw new Error(`notify(${queue}) left ${word[0]} in the notify word`);
  }
}

function block(samples: number, repeat: number, run: (n: number) => void): number[] {
  return Array.from({ length: samples }, () => {
    const start = process.hrtime.bigint();
    run(repeat);
    return Number(process.hrtime.bigint() - start) / repeat;
  });
}
