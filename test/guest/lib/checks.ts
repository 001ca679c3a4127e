// What several tests ask of a guest's words.

import type { ExecutionContext } from 'ava';
import type { Guest } from './guest.js';

/** Each round of echoes came back whole. */
export function noPingLost(t: ExecutionContext, guest: Guest, count: number): void {
  const rounds = guest.all('ping');
  t.true(rounds.length > 0, `${guest.name} sent no echoes`);
  for (const round of rounds) t.regex(round, new RegExp(`^${count}/${count} `));
}

/** What a driver for virtio 0.9.5 looks for before it touches anything. */
export function isTransitionalNet(t: ExecutionContext, guest: Guest): void {
  t.is(guest.one('vendor'), '0x1af4');
  t.is(guest.one('device'), '0x1000');
  t.is(guest.one('revision'), '0x00');
  t.is(guest.one('subsystem_device'), '0x0001');
  const [first, last, flags] = guest.one('bar0').split(' ').map(Number) as [number, number, number];
  const ioResource = 0x100;
  t.is(flags & ioResource, ioResource, 'BAR0 is not I/O');
  t.true(first > 0, 'BAR0 has no address');
  t.true([32, 64, 128].includes(last - first + 1), `BAR0 has ${last - first + 1} bytes`);
}

/** Interrupts of the driver: MSI-X vectors that were delivered. */
export function usesMsix(t: ExecutionContext, guest: Guest): void {
  const irqs = guest.all('irq');
  t.true(irqs.length > 0, 'no interrupt is registered');
  for (const irq of irqs) t.regex(irq, /MSI/);
  const input = irqs.find((irq) => /virtio0-(input|virtqueues)/.test(irq));
  t.regex(input ?? 'no vector for the queues', /^\d+: [1-9]\d* /);
}
