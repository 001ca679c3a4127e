// SoftNICs for tests, closed with the test.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import {
  OwnerDevice,
  SoftNicHost,
  TransitionalDevice,
  type OwnerOptions,
  type SoftNicOptions,
  type TransitionalOptions,
} from '../../lib/index.js';

export async function softNic(
  t: ExecutionContext,
  options: SoftNicOptions = {},
): Promise<SoftNicHost> {
  const host = await SoftNicHost.create(options);
  t.teardown(() => host.close());
  return host;
}

export async function openOwner(
  t: ExecutionContext,
  host: SoftNicHost,
  options: OwnerOptions = {},
): Promise<OwnerDevice> {
  const owner = await OwnerDevice.open(host, host.owner, options);
  t.teardown(() => owner.close());
  return owner;
}

export function memberOf(host: SoftNicHost, number = 1): string {
  const bdf = host.members()[number - 1];
  if (bdf === undefined) throw new Error(`VF ${number} is not enabled`);
  return bdf;
}

export async function openTransitional(
  t: ExecutionContext,
  host: SoftNicHost,
  options: TransitionalOptions = {},
  member = 1,
): Promise<TransitionalDevice> {
  const device = await TransitionalDevice.open(host, memberOf(host, member), options);
  t.teardown(() => device.close());
  return device;
}

/** Lets the guest side of a device decode I/O, memory and master the bus. */
export function enable(device: TransitionalDevice, command = 0x07): void {
  device.configWrite(0x04, Buffer.of(command, 0));
}

export async function socketFolder(t: ExecutionContext): Promise<(name: string) => string> {
  const folder = await mkdtemp(join(tmpdir(), 'retrovf-test-sock-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return (name) => join(folder, `${name}.sock`);
}

/** Resolves with the arguments of the emitter's next event of that name. */
export function next(
  emitter: { once(name: never, listener: (...args: unknown[]) => void): unknown },
  name: string,
): Promise<unknown[]> {
  return new Promise((resolve) => emitter.once(name as never, (...args) => resolve(args)));
}
