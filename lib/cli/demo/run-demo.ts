// A legacy guest on a VF, from nothing to a ping, in one process: the SoftNIC is the hardware, our own
// virtio 0.9.5 driver is the guest, and all between is what serves QEMU.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  connectGuest,
  opcode,
  OwnerDevice,
  probe,
  serve,
  SoftNicHost,
  TransitionalDevice,
  type GuestMeasurement,
  type LegacyGuest,
  type NativeHistogram,
  type Presentation,
} from '../../index.js';
import { hex, plural } from '../output/units.js';
import { Stage, StepFailed, type DemoStep, type Progress, type TraceLine } from './stage.js';
import { commandText, tellingAccesses } from './trace.js';

export interface DemoOptions {
  readonly pings: number;
  readonly presentation: Presentation;
}

export interface PingResult extends NativeHistogram {
  readonly sent: number;
  readonly received: number;
}

export interface DemoReport {
  readonly ok: boolean;
  readonly presentation: Presentation;
  readonly steps: readonly DemoStep[];
  /** Frames of the VF. */
  readonly packets: {
    readonly sent: number;
    readonly received: number;
    readonly kicks: number;
  } | null;
  readonly ping: PingResult | null;
  readonly control: GuestMeasurement | null;
  readonly doorbell: GuestMeasurement | null;
}

const vfs = 2;
const controlAccesses = 2000;
const doorbells = 20_000;

/** Throws the signal's reason; any other failure is in the report. */
export async function runDemo(
  options: DemoOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<DemoReport> {
  const stage = new Stage(progress, signal);
  const found: Findings = { packets: null, ping: null, control: null, doorbell: null };
  let ok = true;
  try {
    await play(stage, options, found);
  } catch (error) {
    if (!(error instanceof StepFailed)) {
      await stage.clear().catch(() => {});
      throw error;
    }
    ok = false;
  }
  stage.device = undefined;
  try {
    await stage.step('close', async () => {
      await stage.clear();
      return { value: undefined, result: 'socket, devices and SoftNIC are gone' };
    });
  } catch (error) {
    if (!(error instanceof StepFailed)) throw error;
    ok = false;
  }
  return { ok, presentation: options.presentation, steps: stage.steps, ...found };
}

type Findings = {
  -readonly [K in 'packets' | 'ping' | 'control' | 'doorbell']: DemoReport[K];
};

async function play(stage: Stage, options: DemoOptions, found: Findings): Promise<void> {
  const host = await stage.step('softnic', () => startSoftNic(stage));
  const bdf = await stage.step('probe', (signal) => chooseMember(host, signal));
  const owner = await stage.step('owner', (signal) => openOwner(stage, host, signal));
  const device = await stage.step('device', (signal) =>
    openMember(stage, host, bdf, owner, options.presentation, signal),
  );
  const path = await stage.step('serve', () => serveMember(stage, device));
  const guest = await stage.step('attach', () => attachGuest(stage, path));
  await stage.step('enumerate', () => enumerate(guest, host, device));
  await stage.step('start', () => startDriver(guest));
  const gateway = await stage.step('dhcp', () => askForAddress(guest));
  found.ping = await stage.step('ping', () => pingGateway(guest, gateway, options.pings));
  found.control = await stage.step('control', () =>
    measured(guest.measureControl(controlAccesses), 'status reads'),
  );
  found.doorbell = await stage.step('doorbell', () =>
    measured(guest.measureDoorbell(doorbells), 'notify writes'),
  );
  const stats = host.stats().find((each) => each.bdf === bdf);
  if (stats !== undefined) {
    found.packets = { sent: stats.txFrames, received: stats.rxFrames, kicks: stats.kicks };
  }
  await stage.step('stop', () => stopDriver(guest));
}

async function startSoftNic(stage: Stage) {
  const host = await SoftNicHost.create({ vfs, uplink: { kind: 'gateway' } });
  stage.defer(() => host.close());
  const result = `SR-IOV virtio-net in software: PF ${host.owner}, ${vfs} VFs`;
  return { value: host, result };
}

async function chooseMember(host: SoftNicHost, signal: AbortSignal) {
  const { functions } = await probe(host, { signal });
  const members = functions.filter(({ verdict }) => verdict.kind === 'unverified');
  const [first] = members;
  if (first === undefined) throw new Error('No VF of the SoftNIC can be transitional');
  const result = `${plural(members.length, 'VF')} could be transitional; takes ${first.bdf}`;
  return { value: first.bdf, result };
}

async function openOwner(stage: Stage, host: SoftNicHost, signal: AbortSignal) {
  const { onCommand } = stage;
  const owner = await OwnerDevice.open(host, host.owner, { signal, onCommand });
  stage.defer(() => owner.close());
  const { opcodes } = await owner.negotiate({ signal });
  const result = `${owner.bdf} is up, opcodes ${hex(opcodes)} in use`;
  const trace = ownCommands([opcode.listQuery, opcode.listUse]);
  return { value: owner, result, trace };
}

async function openMember(
  stage: Stage,
  host: SoftNicHost,
  bdf: string,
  owner: OwnerDevice,
  presentation: Presentation,
  signal: AbortSignal,
) {
  const device = await TransitionalDevice.open(host, bdf, { owner, presentation, signal });
  stage.defer(() => device.close());
  stage.device = device;
  const { notifyPlan: plan } = device;
  const notify =
    plan.kind === 'region'
      ? `notify at BAR${plan.bar}+${hex(plan.offset)} (${plan.of})`
      : 'notify by command';
  const result = `${device.bar0Size} bytes of I/O BAR0, ${notify}`;
  return { value: device, result, trace: ownCommands([opcode.legacyNotifyInfo]) };
}

async function serveMember(stage: Stage, device: TransitionalDevice) {
  const dir = await mkdtemp(join(tmpdir(), 'retrovf-demo-'));
  stage.defer(() => rm(dir, { recursive: true, force: true }));
  const served = serve(device, { path: join(dir, 'vf.sock') });
  stage.defer(() => served.close());
  return { value: served.path, result: `vfio-user on ${served.path}` };
}

async function attachGuest(stage: Stage, path: string) {
  const guest = await connectGuest(path);
  stage.defer(() => guest.close());
  return {
    value: guest,
    result: 'virtio 0.9.5 driver on its own thread, shared memory',
  };
}

async function enumerate(guest: LegacyGuest, host: SoftNicHost, device: TransitionalDevice) {
  const seen = await guest.enumerate();
  const own = await host.sysfs.read(device.bdf);
  const ids = (vendor: number | null, id: number | null, revision: number | null): string =>
    `${(vendor ?? 0).toString(16)}:${(id ?? 0).toString(16)} rev ${revision}`;
  const result =
    `guest sees ${ids(seen.vendor, seen.device, seen.revision)}, ` +
    `the VF is ${ids(own.vendor, own.device, own.revision)}`;
  return { value: undefined, result };
}

async function startDriver(guest: LegacyGuest) {
  const { mac, linkUp, queueSizes, msix } = await guest.start();
  const accesses = guest.takeTrace();
  const result = `${mac}, link ${linkUp ? 'up' : 'down'}, ${queueSizes.length} queues of ${[...new Set(queueSizes)].join(' and ')}, ${msix ? 'MSI-X' : 'INTx'}`;
  return {
    value: undefined,
    result,
    trace: (commands: Parameters<typeof tellingAccesses>[1]) => tellingAccesses(accesses, commands),
  };
}

async function askForAddress(guest: LegacyGuest) {
  const { address, prefix, router, server } = await guest.dhcp(3000);
  const gateway = router ?? server;
  return { value: gateway, result: `${address}/${prefix} from ${server}, gateway ${gateway}` };
}

async function pingGateway(guest: LegacyGuest, gateway: string, count: number) {
  const { sent, received, rtt } = await guest.ping(gateway, count, 1000);
  if (received < sent) throw new Error(`${sent - received} of ${sent} pings got no answer`);
  const value: PingResult = { sent, received, ...rtt };
  return {
    value,
    result: `${sent} sent, ${received} answered`,
  };
}

async function measured(measuring: Promise<GuestMeasurement>, what: string) {
  const value = await measuring;
  return { value, result: `${value.count} ${what}` };
}

async function stopDriver(guest: LegacyGuest) {
  guest.takeTrace();
  await guest.stop();
  const accesses = guest.takeTrace();
  return {
    value: undefined,
    result: 'the driver reset its device',
    trace: (commands: Parameters<typeof tellingAccesses>[1]) => tellingAccesses(accesses, commands),
  };
}

/** Commands that no access of a guest caused. */
function ownCommands(opcodes: readonly number[]) {
  return (commands: Parameters<typeof tellingAccesses>[1]): TraceLine[] =>
    commands
      .filter(({ command }) => opcodes.includes(command.opcode))
      .map((trace) => ({ access: '', command: commandText(trace), meaning: '' }));
}
