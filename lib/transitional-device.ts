// The transitional device: a VF as a guest with a legacy virtio driver expects it, with an I/O BAR0 of
// registers that the VF does not have.

import { native } from './addon.js';
import { Bar0Accesses, type AccessCounters, type RegisterFile } from './bar0-accesses.js';
import { attempt, badArgument, notTransitional, type RetroVfError } from './errors.js';
import { GuestDevice } from './guest-device.js';
import { parseBdf, type Bdf } from './host/bdf.js';
import type { Host } from './host/host.js';
import {
  judge,
  missingOpcodes,
  readSubject,
  verdictOfOwnerFailure,
  type Passthrough,
} from './host/prober.js';
import { MemberDevice } from './member-device.js';
import type {
  NativeNotify,
  NativeOverlayRow,
  OnAccess,
  ServedDeviceCounters,
  ServedDeviceOptions,
} from './native.js';
import type { NotifyPlan } from './notify.js';
import { OwnerDevice, type OwnerOptions, type OwnerState } from './owner-device.js';
import { command, configOffset } from './pci/capabilities.js';
import { transitionalOverlay, type Presentation } from './pci/overlay.js';
import { bar0Size, typeOfFunction, type DeviceType } from './virtio/device-types.js';
import { LegacyRegisters } from './virtio/legacy-registers.js';

export interface TransitionalOptions {
  presentation?: Presentation;
  /** The PF, already open. Without it the device opens the PF and closes it with itself. */
  owner?: OwnerDevice;
  /** For a PF that the device opens. */
  ownerOptions?: Omit<OwnerOptions, 'signal'>;
  /** Aborts the opening. */
  signal?: AbortSignal;
  /** A register access is answered after this time, with all ones if the device has not answered. */
  accessTimeoutMs?: number;
}

export interface TransitionalStats {
  readonly kind: 'transitional';
  readonly owner: OwnerState['kind'];
  readonly notify: NotifyPlan;
  /** Calls of `notify`. */
  readonly kicks: number;
  readonly accesses: Readonly<AccessCounters>;
  /** Counted where vfio-user clients are served. */
  readonly served: ServedDeviceCounters;
}

export class TransitionalDevice extends GuestDevice {
  readonly kind = 'transitional';
  readonly type: DeviceType;
  readonly presentation: Presentation;
  /** What a legacy driver is offered. */
  readonly features: bigint;
  readonly bar0Size: number;
  /** The overlay of configuration space. */
  readonly overlay: readonly NativeOverlayRow[];
  readonly owner: OwnerDevice;
  readonly memberId: number;
  /** How queue notifications reach the device. */
  readonly notifyPlan: NotifyPlan;
  readonly accessTimeoutMs: number;
  readonly #member: MemberDevice;
  readonly #ownsOwner: boolean;
  readonly #accesses: Bar0Accesses;
  readonly #word: Uint16Array | null;
  #kicks = 0;
  readonly #onLost = (cause: RetroVfError): void => {
    this.log.warn('Device is degraded', { owner: this.owner.bdf });
    this.emit('degraded', cause);
  };
  readonly #onRecovered = (): void => {
    if (this.notifyPlan.kind === 'command') {
      attempt(this.bdf, () => this.served.setNotifyQueue(this.owner.queue));
    }
    this.emit('recovered');
  };

  private constructor(parts: Parts) {
    super(parts.member.bdf, parts.served);
    const { member, presentation, features, plan, accessTimeoutMs } = parts;
    this.type = member.type;
    this.presentation = presentation;
    this.features = features;
    this.bar0Size = parts.bar0Size;
    this.overlay = parts.served.overlay;
    this.owner = member.owner;
    this.memberId = member.memberId;
    this.notifyPlan = plan;
    this.accessTimeoutMs = accessTimeoutMs;
    this.#member = member;
    this.#ownsOwner = parts.ownsOwner;
    const registers = new LegacyRegisters(this.bar0Size, member.type.fields, member.configLength);
    this.#accesses = new Bar0Accesses(registers, this.#registerFile(), accessTimeoutMs, this.log);
    const buffer = attempt(this.bdf, () => this.served.notifyWord());
    this.#word = buffer === null ? null : new Uint16Array(buffer);
    this.owner.on('lost', this.#onLost);
    this.owner.on('recovered', this.#onRecovered);
  }

  /**
   * Opens a VF and presents it as a transitional device. Throws ERR_NOT_TRANSITIONAL, with the reason,
   * for a function that cannot be one.
   */
  static async open(
    host: Host,
    bdf: string,
    options: TransitionalOptions = {},
  ): Promise<TransitionalDevice> {
    const { signal, accessTimeoutMs = 1000 } = options;
    if (!Number.isInteger(accessTimeoutMs) || accessTimeoutMs < 1 || accessTimeoutMs > 60_000) {
      throw badArgument('accessTimeoutMs', accessTimeoutMs, 'a whole number from 1 to 60000');
    }
    signal?.throwIfAborted();
    const identity = await identify(host, parseBdf(bdf));
    const owner = await ownerOf(host, identity, options);
    try {
      const { legacy, opcodes } = await owner.negotiate(signal === undefined ? {} : { signal });
      if (!legacy) throw refuse(identity.bdf, missingOpcodes(owner.bdf, opcodes));
      let device: TransitionalDevice | undefined;
      const member = await MemberDevice.open(host, identity, owner, (event) => {
        device?.emit(event);
      });
      try {
        device = await TransitionalDevice.#assemble(member, options, accessTimeoutMs);
        return device;
      } catch (error) {
        await member.close();
        throw error;
      }
    } catch (error) {
      if (options.owner === undefined) await owner.close();
      throw error;
    }
  }

  static async #assemble(
    member: MemberDevice,
    options: TransitionalOptions,
    accessTimeoutMs: number,
  ): Promise<TransitionalDevice> {
    const { presentation = 'transitional', signal } = options;
    const features = await member.features(signal);
    const plan = await member.planNotify(signal);
    const size = bar0Size(member.type, member.configLength, features);
    const overlay = transitionalOverlay({
      config: member.config,
      list: member.capabilities,
      msix: member.msix,
      type: member.type,
      bar0Size: size,
      presentation,
      intx: attempt(member.bdf, () => member.function.irqCount(0)) > 0,
    });
    const served: ServedDeviceOptions = {
      member: member.function,
      overlay,
      configSize: member.function.configSize,
      bar0Size: size,
      notify: nativeNotify(plan, member),
      queues: Math.min(member.queueCount(), maxQueues),
      ...(member.msix === null ? {} : { msixCapability: member.msix.offset }),
    };
    const ownsOwner = options.owner === undefined;
    const parts = { member, presentation, features, plan, served, ownsOwner, accessTimeoutMs };
    return new TransitionalDevice({ ...parts, bar0Size: size });
  }

  /** Reads the legacy registers as a guest does; what fails reads as all ones. */
  bar0Read(offset: number, length: number): Promise<Buffer> {
    this.#checkRange(offset, length);
    return new Promise((resolve) => {
      this.#run(offset, length, null, (result) => resolve(result ?? Buffer.alloc(0)));
    });
  }

  /** Writes the legacy registers as a guest does; what fails is dropped. */
  bar0Write(offset: number, data: Buffer): Promise<void> {
    this.#checkRange(offset, data.length);
    return new Promise((resolve) => {
      this.#run(offset, data.length, Buffer.from(data), () => resolve());
    });
  }

  /** Tells the device that a queue has work: one store, where the notify address is mapped. */
  notify(queue: number): void {
    // The integers of 16 bits, and nothing else.
    if ((queue & 0xffff) !== queue) {
      throw badArgument('queue', queue, 'a whole number from 0 to 65535');
    }
    const word = this.#word;
    // Without elements once the device is closed.
    if (word !== null && word.length > 0) {
      word[0] = queue;
    } else {
      attempt(this.bdf, () => this.served.notify(queue));
    }
    this.#kicks += 1;
  }

  /**
   * The notify word itself, for those who want the limit: storing a queue index into element 0 tells
   * the device, as `notify` does, in one instruction and uncounted. `null` where the device is told
   * in another way (see `notifyPlan`). Once the device is closed the array has no elements, and
   * stores go nowhere.
   *
   * A store is one 16-bit access of the processor that running JavaScript makes in the order of the
   * program; x86 makes it visible after all stores before it. Two stores of the same value with
   * nothing in between may become one, which a doorbell is none the worse for.
   */
  get notifyWord(): Uint16Array | null {
    return this.#word;
  }

  stats(): TransitionalStats {
    return {
      kind: 'transitional',
      owner: this.owner.state.kind,
      notify: this.notifyPlan,
      kicks: this.#kicks,
      accesses: { ...this.#accesses.counters },
      served: this.counters(),
    };
  }

  /** The native half calls this for a client's access, I/O space being enabled. */
  protected override access(
    ...[id, write, offset, length, data, msix]: Parameters<OnAccess>
  ): void {
    this.#accesses.run({
      offset,
      length,
      data: write ? (data ?? Buffer.alloc(length)) : null,
      msix,
      respond: (result) => this.respond(id, result),
    });
  }

  protected override async release(): Promise<void> {
    this.owner.off('lost', this.#onLost);
    this.owner.off('recovered', this.#onRecovered);
    const buffer = this.#word?.buffer as ArrayBuffer | undefined;
    if (buffer !== undefined) attempt(this.bdf, () => native().detachBuffer(buffer));
    await this.#member.close();
    if (this.#ownsOwner) await this.owner.close();
  }

  #run(
    offset: number,
    length: number,
    data: Buffer | null,
    respond: (result: Buffer | null) => void,
  ): void {
    const { ioEnabled, msixEnabled } = this.served;
    const access = { offset, length, data, msix: msixEnabled, respond };
    // As on a bus: a function that does not decode I/O space does not answer.
    if (ioEnabled) this.#accesses.run(access);
    else this.#accesses.gate(access);
  }

  #checkRange(offset: number, length: number): void {
    const whole = Number.isInteger(offset) && Number.isInteger(length);
    if (whole && offset >= 0 && length >= 1 && offset + length <= this.bar0Size) return;
    const range = `within the ${this.bar0Size} bytes of BAR0`;
    throw badArgument('offset and length', `${offset}, ${length}`, range);
  }

  #registerFile(): RegisterFile {
    return {
      read: (space, offset, length, done) => this.#member.read(space, offset, length, done),
      write: (space, offset, data, done) => this.#member.write(space, offset, data, done),
      notify: (queue) => this.notify(queue),
      busMaster: () => {
        const value = this.configRead(configOffset.command, 2).readUInt16LE();
        return (value & command.busMaster) !== 0;
      },
      enableBusMaster: () => attempt(this.bdf, () => this.served.enableBusMaster()),
    };
  }
}

interface Parts {
  readonly member: MemberDevice;
  readonly presentation: Presentation;
  readonly features: bigint;
  readonly plan: NotifyPlan;
  readonly bar0Size: number;
  readonly served: ServedDeviceOptions;
  readonly ownsOwner: boolean;
  readonly accessTimeoutMs: number;
}

// Each queue index may cost a client an eventfd. The device says how many there are, and may lie.
const maxQueues = 1024;

interface Identity {
  readonly bdf: Bdf;
  readonly type: DeviceType;
  readonly memberId: number;
  readonly owner: Bdf;
}

async function identify(host: Host, bdf: Bdf): Promise<Identity> {
  const subject = await readSubject(host, bdf);
  const verdict = judge(subject, host.openableDrivers);
  if (verdict.kind === 'passthrough') throw refuse(bdf, verdict);
  const { info, memberId } = subject;
  const type = typeOfFunction(info.vendor ?? 0, info.device ?? 0);
  if (type === null || memberId === null || info.physfn === null) {
    throw new TypeError('judge() passed a function without type, number or PF');
  }
  return { bdf, type, memberId, owner: info.physfn };
}

async function ownerOf(
  host: Host,
  identity: Identity,
  options: TransitionalOptions,
): Promise<OwnerDevice> {
  const { owner, ownerOptions = {}, signal } = options;
  if (owner !== undefined) {
    if (owner.bdf === identity.owner) return owner;
    throw badArgument('owner', owner.bdf, `the PF of ${identity.bdf}, which is ${identity.owner}`);
  }
  try {
    const aborts = signal === undefined ? {} : { signal };
    return await OwnerDevice.open(host, identity.owner, { ...ownerOptions, ...aborts });
  } catch (error) {
    signal?.throwIfAborted();
    const verdict = verdictOfOwnerFailure(identity.owner, error);
    // Only what the device is; a failure to reach it now may be over the next time.
    if (verdict.reason === 'owner-no-admin-vq') throw refuse(identity.bdf, verdict, error);
    throw error;
  }
}

function refuse(bdf: Bdf, verdict: Passthrough, cause?: unknown): RetroVfError {
  return notTransitional(bdf, verdict, cause);
}

function nativeNotify(plan: NotifyPlan, member: MemberDevice): NativeNotify {
  if (plan.kind === 'command') {
    return { kind: 'command', queue: member.owner.queue, member: member.memberId };
  }
  const fn = plan.of === 'member' ? member.function : member.owner.function;
  return { kind: 'region', fn, region: plan.bar, offset: plan.offset };
}
