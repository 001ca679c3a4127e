// The member: a VF, and its legacy registers as its owner reaches them.

import { native } from './addon.js';
import type { Done } from './admin-lanes.js';
import { attempt, attemptAsync, closed, RetroVfError } from './errors.js';
import type { Bdf } from './host/bdf.js';
import type { Host } from './host/host.js';
import type { FunctionEvent, PciFunction } from './native.js';
import type { OwnerDevice } from './owner-device.js';
import {
  deviceConfigLength,
  findMsix,
  virtioStructures,
  walkCapabilities,
  type CapabilityList,
  type MsixCapability,
} from './pci/capabilities.js';
import { chooseNotify, type NotifyPlan } from './notify.js';
import { decodeNotifyInfo, legacyRead, legacyWrite, notifyInfo } from './virtio/admin-commands.js';
import { legacyConfigLength, type DeviceType } from './virtio/device-types.js';
import { register } from './virtio/legacy-registers.js';

type Space = 'common' | 'device';

export interface MemberIdentity {
  readonly bdf: Bdf;
  readonly type: DeviceType;
  /** VF number, from 1. */
  readonly memberId: number;
}

export class MemberDevice {
  readonly bdf: Bdf;
  readonly type: DeviceType;
  readonly memberId: number;
  readonly owner: OwnerDevice;
  readonly function: PciFunction;
  /** Configuration bytes as read at open. */
  readonly config: Buffer;
  readonly capabilities: CapabilityList;
  readonly msix: MsixCapability | null;
  /** Bytes of legacy device configuration. */
  readonly configLength: number;
  #closing: Promise<void> | undefined;

  private constructor(identity: MemberIdentity, owner: OwnerDevice, fn: PciFunction) {
    this.bdf = identity.bdf;
    this.type = identity.type;
    this.memberId = identity.memberId;
    this.owner = owner;
    this.function = fn;
    this.config = fn.configRead(0, fn.configSize);
    this.capabilities = walkCapabilities(this.config);
    this.msix = findMsix(this.config, this.capabilities);
    const modern = deviceConfigLength(virtioStructures(this.config, this.capabilities));
    this.configLength = legacyConfigLength(this.type, modern);
  }

  /** Opens the VF, which resets it. */
  static async open(
    host: Host,
    identity: MemberIdentity,
    owner: OwnerDevice,
    onEvent: (event: FunctionEvent) => void,
  ): Promise<MemberDevice> {
    const fn = await host.open(identity.bdf, onEvent);
    try {
      return attempt(identity.bdf, () => new MemberDevice(identity, owner, fn));
    } catch (error) {
      await fn.close();
      throw error;
    }
  }

  /** Reads one register; `done` may be called before this returns. */
  read(space: Space, offset: number, length: number, done: Done): void {
    if (this.#refused(done)) return;
    this.owner.submit(legacyRead(space, this.memberId, offset, length), done);
  }

  /** Writes one register; `done` may be called before this returns. */
  write(space: Space, offset: number, data: Buffer, done: Done): void {
    if (this.#refused(done)) return;
    this.owner.submit(legacyWrite(space, this.memberId, offset, data), done);
  }

  /** Number of its queues. */
  queueCount(): number {
    return attempt(this.bdf, () => {
      const transport = new (native().VirtioTransport)(this.function);
      const count = transport.numQueues;
      transport.close();
      return count;
    });
  }

  /** What the device offers a legacy driver. */
  async features(signal?: AbortSignal): Promise<bigint> {
    const command = legacyRead('common', this.memberId, register.deviceFeatures, 4);
    const bytes = await this.owner.execute(command, signal === undefined ? {} : { signal });
    return BigInt(bytes.readUInt32LE());
  }

  /** Asks the device where notifications go, and chooses. */
  async planNotify(signal?: AbortSignal): Promise<NotifyPlan> {
    if (this.owner.capabilities?.notifyInfo !== true) {
      return { kind: 'command', why: 'not-offered' };
    }
    const result = await this.#notifyInfo(signal);
    if (result === null) return { kind: 'command', why: 'refused' };
    const { plan, ignored } = chooseNotify(decodeNotifyInfo(result), {
      member: (bar) => attempt(this.bdf, () => this.function.region(bar).size),
      owner: (bar) => this.owner.barSize(bar),
    });
    for (const { entry, why } of ignored) {
      const { flags, bar, offset } = entry;
      const fields = { member: this.bdf, flags, bar, offset: `0x${offset.toString(16)}`, why };
      this.owner.log.warn('Notify address ignored', fields);
    }
    return plan;
  }

  async #notifyInfo(signal?: AbortSignal): Promise<Buffer | null> {
    try {
      const options = signal === undefined ? {} : { signal };
      return await this.owner.execute(notifyInfo(this.memberId), options);
    } catch (error) {
      if (!(error instanceof RetroVfError) || error.code !== 'ERR_ADMIN_STATUS') throw error;
      this.owner.log.warn('Notify addresses refused', { member: this.bdf, error: error.message });
      return null;
    }
  }

  /** Gives the VF back, which resets it; the owner stays. */
  close(): Promise<void> {
    this.#closing ??= attemptAsync(this.bdf, () => this.function.close());
    return this.#closing;
  }

  #refused(done: Done): boolean {
    if (this.#closing === undefined) return false;
    done(closed('The member device', this.bdf), null);
    return true;
  }
}
