// The owner: the PF whose admin queue reaches the legacy registers of its VFs. Brought up as a modern
// virtio device with nothing but that queue.

import { EventEmitter } from 'node:events';
import { native } from './addon.js';
import { AdminLanes, type CommandTrace, type Done } from './admin-lanes.js';
import {
  adminUnsupported,
  attempt,
  attemptAsync,
  badArgument,
  closed,
  nativeFailure,
  ownerFeatures,
  ownerLost,
  ownerNoAdminQueue,
  ownerResetTimeout,
  RetroVfError,
  type LossReason,
} from './errors.js';
import { parseBdf, type Bdf } from './host/bdf.js';
import type { Host } from './host/host.js';
import { DeviceLog } from './log.js';
import type { AdminQueue, AdminQueueStats, PciFunction, VirtioTransport } from './native.js';
import { command as commandBits, configOffset } from './pci/capabilities.js';
import {
  decodeOpcodes,
  hasOpcode,
  knownOpcodes,
  legacyOpcodes,
  listQuery,
  listUse,
  opcode,
  opcodeName,
  type AdminCommand,
} from './virtio/admin-commands.js';
import { abortable, delay } from './wait.js';

export interface OwnerOptions {
  /** Aborts the bring-up. */
  signal?: AbortSignal;
  /** How long the device may take for one admin command before the owner counts as failed. */
  commandTimeoutMs?: number;
  /** How long the device may take for a reset. */
  resetTimeoutMs?: number;
  /** How often the device is asked whether it is still well. */
  healthIntervalMs?: number;
  /** How completions arrive; 'poll' spins on the used ring. */
  completion?: 'interrupt' | 'poll';
  /** Called with every command that ended, in the way of the guest that waits for it: be quick. */
  onCommand?: (trace: CommandTrace) => void;
}

type Settings = Required<Omit<OwnerOptions, 'signal' | 'onCommand'>> &
  Pick<OwnerOptions, 'onCommand'>;

export type OwnerState =
  | { readonly kind: 'starting' }
  | { readonly kind: 'ready' }
  | { readonly kind: 'failed'; readonly cause: RetroVfError }
  | { readonly kind: 'recovering'; readonly cause: RetroVfError }
  | { readonly kind: 'closed' };

/** What the owner can do for its members. */
export interface OwnerCapabilities {
  /** Bitmap of the opcodes in use. */
  readonly opcodes: bigint;
  /** All four legacy register commands. */
  readonly legacy: boolean;
  /** LEGACY_NOTIFY_INFO. */
  readonly notifyInfo: boolean;
}

export interface OwnerEvents {
  lost: [cause: RetroVfError];
  recovered: [];
  /** The host wants the PF back, and waits until it and all of its VFs are closed. Repeated. */
  'unplug-requested': [];
  /** The bus reported an error of the PF: it may not work any more. */
  'device-error': [];
  closed: [];
}

const status = {
  acknowledge: 1,
  driver: 2,
  driverOk: 4,
  featuresOk: 8,
  needsReset: 64,
  failed: 128,
};
const statusGone = 0xff;
const feature = {
  version1: 1n << 32n,
  accessPlatform: 1n << 33n,
  sriov: 1n << 37n,
  adminQueue: 1n << 41n,
};

export class OwnerDevice extends EventEmitter<OwnerEvents> {
  readonly bdf: Bdf;
  readonly log: DeviceLog;
  readonly #function: PciFunction;
  readonly #transport: VirtioTransport;
  readonly #options: Settings;
  #state: OwnerState = { kind: 'starting' };
  #queue: AdminQueue | undefined;
  #lanes: AdminLanes | undefined;
  #capabilities: OwnerCapabilities | null = null;
  #negotiation: Promise<OwnerCapabilities> | undefined;
  #recovery: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  #health: NodeJS.Timeout | undefined;

  private constructor(bdf: Bdf, fn: PciFunction, transport: VirtioTransport, options: Settings) {
    super();
    this.setMaxListeners(0); // one of each member
    this.bdf = bdf;
    this.log = new DeviceLog(bdf);
    this.#function = fn;
    this.#transport = transport;
    this.#options = options;
  }

  /**
   * Opens the PF, which resets it and with it every VF, and brings its admin queue up. Keep it open
   * for as long as any member is in use.
   */
  static async open(host: Host, bdf: string, options: OwnerOptions = {}): Promise<OwnerDevice> {
    const {
      signal,
      commandTimeoutMs = 500,
      resetTimeoutMs = 5000,
      healthIntervalMs = 1000,
      completion = 'interrupt',
      onCommand,
    } = options;
    for (const time of Object.entries({ commandTimeoutMs, resetTimeoutMs, healthIntervalMs })) {
      checkMilliseconds(...time);
    }
    signal?.throwIfAborted();
    const address = parseBdf(bdf);
    let owner: OwnerDevice | undefined;
    const fn = await host.open(address, (event) => owner?.emit(event));
    try {
      const transport = attempt(address, () => new (native().VirtioTransport)(fn));
      const times = { commandTimeoutMs, resetTimeoutMs, healthIntervalMs };
      owner = new OwnerDevice(address, fn, transport, { ...times, completion, onCommand });
      await owner.#bringUp(signal);
      return owner;
    } catch (error) {
      await (owner?.close() ?? fn.close());
      throw error;
    }
  }

  get state(): OwnerState {
    return this.#state;
  }

  /** null until the device answered LIST_QUERY, which it need not do before its VFs are enabled. */
  get capabilities(): OwnerCapabilities | null {
    return this.#capabilities;
  }

  /** Bytes of a BAR of the PF; 0: absent. */
  barSize(index: number): number {
    return attempt(this.bdf, () => this.#function.region(index).size);
  }

  /** The PF itself, for a notify address in its BARs. */
  get function(): PciFunction {
    return this.#function;
  }

  /** The native admin queue, for notifications by command; changes with each recovery. */
  get queue(): AdminQueue {
    if (this.#queue === undefined) throw closed('The admin queue', this.bdf);
    return this.#queue;
  }

  /** Commands so far and their latency, since the last recovery. */
  stats(): AdminQueueStats {
    return attempt(this.bdf, () => this.queue.stats());
  }

  /** Asks the device for its opcodes, if it did not tell before its VFs appeared. */
  async negotiate(options: { signal?: AbortSignal } = {}): Promise<OwnerCapabilities> {
    const unusable = this.#unusable();
    if (unusable !== null) throw unusable;
    if (this.#capabilities !== null) return this.#capabilities;
    // LIST_USE must not meet another command; before it, no other command is legal, so only a second
    // negotiation has to be kept away.
    this.#negotiation ??= this.#negotiate().finally(() => {
      this.#negotiation = undefined;
    });
    return abortable(this.#negotiation, options.signal);
  }

  /**
   * Sends a command and returns what the device answers after its status. Commands of one member are
   * sent one after another, in the order of the calls. Aborting stops the waiting; a command that the
   * device has already seen still runs.
   */
  async execute(
    command: AdminCommand,
    options: { signal?: AbortSignal; timeoutMs?: number } = {},
  ): Promise<Buffer> {
    const { signal, timeoutMs } = options;
    checkCommand(command);
    if (timeoutMs !== undefined) checkMilliseconds('timeoutMs', timeoutMs);
    signal?.throwIfAborted();
    let cancel: (() => void) | undefined;
    const answer = new Promise<Buffer>((resolve, reject) => {
      const done: Done = (error, result) =>
        error === null && result !== null ? resolve(result) : reject(error);
      cancel = this.submit(command, done, timeoutMs);
    });
    try {
      return await abortable(answer, signal);
    } finally {
      cancel?.();
    }
  }

  /** As `execute`, with a callback, which is called before this returns if the device answers at once. */
  submit(
    command: AdminCommand,
    done: Done,
    timeoutMs = this.#options.commandTimeoutMs,
  ): () => void {
    const refusal = this.#unusable() ?? this.#unsupported(command);
    if (refusal !== null || this.#lanes === undefined) {
      done(refusal ?? closed('The owner device', this.bdf), null);
      return () => {};
    }
    return this.#lanes.run(command, timeoutMs, done);
  }

  /**
   * Brings a failed owner up again: reset, features, admin queue. Concurrent calls share one attempt;
   * a call on an owner that is well does nothing. What members' registers hold afterwards is up to
   * the device.
   */
  async recover(options: { signal?: AbortSignal } = {}): Promise<void> {
    if (this.#closing !== undefined) throw closed('The owner device', this.bdf);
    if (this.#state.kind === 'failed') {
      this.#recovery = this.#recover(this.#state.cause).finally(() => {
        this.#recovery = undefined;
      });
    }
    if (this.#recovery !== undefined) await abortable(this.#recovery, options.signal);
  }

  /** Resets the device and gives it back; may be called twice and in any state. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #unusable(): RetroVfError | null {
    switch (this.#state.kind) {
      case 'ready':
        return null;
      case 'failed':
      case 'recovering':
        return this.#state.cause;
      case 'starting': // open() has not returned it yet
      case 'closed':
        return closed('The owner device', this.bdf);
    }
  }

  #unsupported({ opcode: code }: AdminCommand): RetroVfError | null {
    const inUse = this.#capabilities?.opcodes ?? 0n;
    if (hasOpcode(inUse, code)) return null;
    return adminUnsupported(this.bdf, { name: opcodeName(code), opcode: code });
  }

  async #bringUp(signal?: AbortSignal): Promise<void> {
    const transport = this.#transport;
    this.#enableBusMaster();
    await this.#reset(signal);
    // Only now has the device certainly left the memory of the old queue.
    this.#queue?.close();
    this.#queue = undefined;
    this.#capabilities = null;
    attempt(this.bdf, () => {
      let bits = status.acknowledge;
      transport.setStatus(bits);
      bits |= status.driver;
      transport.setStatus(bits);
      this.#negotiateFeatures();
      bits |= status.featuresOk;
      transport.setStatus(bits);
      if ((transport.status() & status.featuresOk) === 0) {
        throw ownerFeatures(this.bdf, 'the device refused the features', {
          offered: transport.deviceFeatures(),
          accepted: transport.driverFeatures(),
        });
      }
      this.#openQueue();
      transport.setStatus(bits | status.driverOk);
    });
    await abortable(this.#negotiateEarly(), signal);
    this.#state = { kind: 'ready' };
    this.#health = setInterval(() => this.#checkHealth(), this.#options.healthIntervalMs).unref();
    const opcodes = this.capabilities?.opcodes.toString(16) ?? 'none before its VFs are enabled';
    this.log.info('Owner device is up', { opcodes });
  }

  #enableBusMaster(): void {
    attempt(this.bdf, () => {
      const before = this.#function.configRead(configOffset.command, 2).readUInt16LE();
      const after = Buffer.alloc(2);
      after.writeUInt16LE(before | commandBits.memory | commandBits.busMaster);
      this.#function.configWrite(configOffset.command, after);
    });
  }

  async #reset(signal?: AbortSignal): Promise<void> {
    const { resetTimeoutMs } = this.#options;
    const deadline = performance.now() + resetTimeoutMs;
    attempt(this.bdf, () => this.#transport.setStatus(0));
    for (;;) {
      const now = attempt(this.bdf, () => this.#transport.status());
      if (now === 0) return;
      if (now === statusGone) throw ownerLost(this.bdf, 'gone');
      if (performance.now() > deadline) throw ownerResetTimeout(this.bdf, resetTimeoutMs);
      await delay(1, signal);
    }
  }

  #negotiateFeatures(): void {
    const offered = this.#transport.deviceFeatures();
    if ((offered & feature.version1) === 0n) {
      throw ownerFeatures(this.bdf, 'the device does not offer VIRTIO_F_VERSION_1', { offered });
    }
    if ((offered & feature.adminQueue) === 0n) {
      throw ownerNoAdminQueue(this.bdf, 'it does not offer VIRTIO_F_ADMIN_VQ');
    }
    const wanted = feature.version1 | feature.adminQueue | feature.sriov | feature.accessPlatform;
    this.#transport.setDriverFeatures(offered & wanted);
  }

  #openQueue(): void {
    const queues = this.#transport.adminQueues();
    if (queues === null) {
      throw ownerNoAdminQueue(this.bdf, 'its common configuration has no admin queue fields');
    }
    if (queues.count === 0) throw ownerNoAdminQueue(this.bdf, 'it counts 0 admin queues');
    const { completion } = this.#options;
    // Command ids start again with each queue, and the one before may still have answers under way:
    // each queue speaks to its own lanes only.
    const queue = this.#transport.openAdminQueue({ index: queues.index, completion }, (...answer) =>
      lanes.complete(...answer),
    );
    const onBroken = (cause: RetroVfError): void => {
      if (this.#lanes === lanes) this.#fail(this.#lossReason(cause), cause);
    };
    const lanes = new AdminLanes(this.bdf, queue, onBroken, this.#options.onCommand);
    this.#queue = queue;
    this.#lanes = lanes;
  }

  /** Linux asks at once too; a device may refuse as long as VF Enable is clear. */
  async #negotiateEarly(): Promise<void> {
    try {
      await this.#negotiate();
    } catch (error) {
      const qualifier = error instanceof RetroVfError ? error.detail['qualifier'] : undefined;
      if (qualifier !== 'INVALID_GROUP' && qualifier !== 'INVALID_MEMBER') throw error;
    }
  }

  async #negotiate(): Promise<OwnerCapabilities> {
    const offered = decodeOpcodes(await this.#runUnlisted(listQuery()));
    const legacy = (offered & legacyOpcodes) === legacyOpcodes;
    // Part of the four, or notify info without them, is against the specification and of no use.
    const usable = legacy ? knownOpcodes : knownOpcodes & 3n;
    // LIST_QUERY and LIST_USE stay in use, unlike with Linux (0x7c): a strict device then refuses
    // them until its next reset, and the list has to be asked for again when VFs appear.
    const opcodes = offered & usable;
    await this.#runUnlisted(listUse(opcodes));
    this.#capabilities = {
      opcodes,
      legacy,
      notifyInfo: hasOpcode(opcodes, opcode.legacyNotifyInfo),
    };
    return this.#capabilities;
  }

  #runUnlisted(command: AdminCommand): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      const done: Done = (error, result) =>
        error === null && result !== null ? resolve(result) : reject(error);
      if (this.#lanes === undefined) done(closed('The owner device', this.bdf), null);
      else this.#lanes.run(command, this.#options.commandTimeoutMs, done);
    });
  }

  #checkHealth(): void {
    const reason = this.#illness();
    if (reason !== null) this.#fail(reason);
  }

  /** What the status register says, apart from commands. */
  #illness(): LossReason | null {
    try {
      const now = this.#transport.status();
      if (now === statusGone) return 'gone';
      if ((now & status.needsReset) !== 0) return 'needs-reset';
      // Set at the end of every bring-up: a function reset, by whatever hand, is all that clears it.
      return (now & status.driverOk) === 0 ? 'was-reset' : null;
    } catch {
      return 'gone';
    }
  }

  #lossReason(cause: RetroVfError): LossReason {
    return this.#illness() ?? (cause.code === 'ERR_ADMIN_TIMEOUT' ? 'timeout' : 'queue');
  }

  /**
   * The device keeps its queue memory and is not reset: that could stop the data path of its members,
   * which needs no owner.
   */
  #fail(reason: LossReason, cause?: unknown): void {
    const lost = ownerLost(this.bdf, reason, cause);
    const wasReady = this.#state.kind === 'ready';
    clearInterval(this.#health);
    if (wasReady) this.#state = { kind: 'failed', cause: lost };
    this.#lanes?.end(lost);
    if (!wasReady) return; // a bring-up reports its own failure
    this.log.error('Owner device is lost', { reason });
    this.emit('lost', lost);
  }

  async #recover(cause: RetroVfError): Promise<void> {
    this.#state = { kind: 'recovering', cause };
    try {
      await this.#bringUp();
    } catch (error) {
      clearInterval(this.#health);
      if (this.#closing === undefined) {
        this.#state = { kind: 'failed', cause: ownerLost(this.bdf, 'recovery-failed', error) };
      }
      throw nativeFailure(error, this.bdf);
    }
    this.log.info('Owner device is recovered');
    this.emit('recovered');
  }

  async #close(): Promise<void> {
    clearInterval(this.#health);
    await this.#recovery?.catch(() => {});
    clearInterval(this.#health);
    this.#state = { kind: 'closed' };
    this.#lanes?.end(closed('The owner device', this.bdf));
    // The device must leave the queue's memory before that is freed. One that does not reset, or is
    // gone, is given back all the same: closing the function resets it.
    await this.#reset().catch((error: unknown) => {
      this.log.warn('Owner device did not reset at close', { error: String(error) });
    });
    this.#queue?.close();
    this.#queue = undefined;
    this.#transport.close();
    await attemptAsync(this.bdf, () => this.#function.close());
    this.emit('closed');
  }
}

function checkMilliseconds(name: string, value: number): void {
  if (Number.isInteger(value) && value >= 1 && value <= 600_000) return;
  throw badArgument(name, value, 'a whole number of milliseconds from 1 to 600000');
}

const maxResult = 65536;

function checkCommand({ opcode: code, member, resultLength = 0 }: AdminCommand): void {
  const numbers = [
    ['opcode', code, 0xffff],
    ['member', member, Number.MAX_SAFE_INTEGER],
    ['resultLength', resultLength, maxResult],
  ] as const;
  for (const [name, value, most] of numbers) {
    if (Number.isInteger(value) && value >= 0 && value <= most) continue;
    throw badArgument(name, value, `a whole number from 0 to ${most}`);
  }
}
