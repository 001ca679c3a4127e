// The native addon as TypeScript sees it: types only, nothing is left of this file at run time.
// `crates/addon` implements exactly this; `addon.ts` loads it. Classes are handles; every synchronous
// method returns within microseconds (a register access) and throws an Error whose `code` is a stable
// string. Long work returns a promise. close() may be called twice.

/** Where the SoftNIC's frames go and come from. */
export type Uplink =
  | { kind: 'none' }
  | { kind: 'gateway' }
  | { kind: 'unix'; path: string }
  | { kind: 'tap'; name: string };

export interface SoftNicOptions {
  /** The PF, default "0000:5e:00.0". */
  bdf?: string;
  /** VFs enabled at start, default 1; `totalVfs` bounds it. */
  vfs?: number;
  /** Default 64, at most 1024. */
  totalVfs?: number;
  /** Per function, default 1. */
  queuePairs?: number;
  /** A power of two up to 1024, default 256. */
  queueSize?: number;
  /** Per VF, default 2 * queuePairs + 2; 0: no MSI-X capability. */
  msixVectors?: number;
  /** Of the PF; VF n has the n-th address after it. */
  mac?: string;
  uplink?: Uplink;
  /** Bitmap that LIST_QUERY offers, default 0x7f; 0: no ADMIN_VQ feature at all. */
  adminOpcodes?: number;
  /** What LEGACY_NOTIFY_INFO lists, default 'member'. */
  notify?: 'member' | 'owner' | 'none';
}

/** A way in which the SoftNIC fails, as real devices do. */
export interface SoftNicFault {
  kind:
    | 'command-status'
    | 'no-completion'
    | 'slow-completion'
    | 'notify-info'
    | 'device-reset'
    | 'function-gone';
  /** The first four kinds: only this opcode. */
  opcode?: number;
  /** The first four kinds: only this member. */
  member?: number;
  /** How many commands are hit, default 1. */
  count?: number;
  /** command-status. */
  status?: number;
  /** command-status. */
  qualifier?: number;
  /** slow-completion. */
  delayMs?: number;
  /** notify-info: the 64 bytes of the result. */
  entries?: Buffer;
  /** device-reset (NEEDS_RESET is set), function-gone. */
  bdf?: string;
}

/** Traffic of one function of the SoftNIC. */
export interface SoftNicStats {
  bdf: string;
  txFrames: number;
  rxFrames: number;
  rxDropped: number;
  kicks: number;
}

/** An embedded SR-IOV virtio-net device in software. */
export declare class SoftNic {
  constructor(options?: SoftNicOptions);
  /** BDF of the PF. */
  readonly owner: string;
  /** BDFs of the enabled VFs, VF 1 first. */
  members(): string[];
  setNumVfs(count: number): void;
  /** ERR_DEVICE_BUSY while already open. */
  open(bdf: string): PciFunction;
  inject(fault: SoftNicFault): void;
  clearFaults(): void;
  stats(): SoftNicStats[];
  close(): void;
}

/** Size 0: the region is absent. */
export interface NativeRegionInfo {
  size: number;
  readable: boolean;
  writable: boolean;
}

/** What happens to a function of the host, beside what is done with it. */
export type FunctionEvent =
  /** Somebody unbinds or unplugs it, and waits until it is closed; repeated about every 10 s. */
  | 'unplug-requested'
  /** The bus reported an error of the device (AER): it may not work any more. */
  | 'device-error';

/** A PCI function that this process holds. */
export declare class PciFunction {
  private constructor();
  /** Opens a function of the host over VFIO, which resets it. */
  static open(
    bdf: string,
    options: { via?: string; vfToken?: string; sys?: string; dev?: string },
    onEvent: (event: FunctionEvent) => void,
  ): Promise<PciFunction>;
  readonly bdf: string;
  readonly configSize: number;
  configRead(offset: number, length: number): Buffer;
  configWrite(offset: number, data: Buffer): void;
  region(index: number): NativeRegionInfo;
  regionRead(index: number, offset: number, length: number): Buffer;
  regionWrite(index: number, offset: number, data: Buffer): void;
  irqCount(index: number): number;
  reset(): Promise<void>;
  /** Gives the function back, which resets it. */
  close(): Promise<void>;
}

/** Driver side of virtio-pci. Register accesses are synchronous and quick. */
export declare class VirtioTransport {
  /** Walks the vendor capabilities; ERR_VIRTIO_CAPABILITIES. */
  constructor(fn: PciFunction);
  readonly numQueues: number;
  /** 0xff: the function is gone. */
  status(): number;
  setStatus(value: number): void;
  deviceFeatures(): bigint;
  setDriverFeatures(bits: bigint): void;
  driverFeatures(): bigint;
  configGeneration(): number;
  /** Bytes of the modern device configuration structure. */
  deviceConfigLength(): number;
  /** null: the common structure is too short for the fields. */
  adminQueues(): { index: number; count: number } | null;
  /** onComplete(id, error code | null, writable bytes that the device says it wrote). */
  openAdminQueue(
    options: { index: number; size?: number; completion?: 'interrupt' | 'poll' },
    onComplete: (id: number, code: string | null, result: Buffer | null) => void,
  ): AdminQueue;
  close(): void;
}

export interface AdminQueueStats {
  submitted: number;
  completed: number;
  timedOut: number;
  inFlight: number;
  latency: NativeHistogram;
}

export declare class AdminQueue {
  private constructor();
  /**
   * Queues a command: `readable` whole, room for as many bytes of answer as `answer` has. If the
   * device answered at once, fills `answer` and returns how many bytes it wrote. Else returns -1, and
   * onComplete follows, exactly once, within deadlineMs: code null, or ERR_ADMIN_TIMEOUT /
   * ERR_ADMIN_CLOSED / ERR_ADMIN_DEVICE. Throws ERR_ADMIN_FULL, ERR_ADMIN_SIZE.
   */
  submit(id: number, readable: Buffer, answer: Buffer, deadlineMs: number): number;
  stats(): AdminQueueStats;
  close(): void;
}

/** Nanoseconds. */
export interface NativeHistogram {
  count: number;
  sum: number;
  p50: number;
  p90: number;
  p99: number;
  max: number;
  /** Values up to and including `ns`, and above the bucket before; empty ones are left out. */
  buckets: { ns: number; count: number }[];
}

/** Some bits of configuration space that we answer; applied in order to every access. */
export interface NativeOverlayRow {
  offset: number;
  width: 1 | 2 | 4;
  value: number;
  mask: number;
  writable: number;
  /** Writes to the mask's bits also go to the device. */
  forward: boolean;
  /** A function reset restores the initial value. */
  resets: boolean;
  /** Bits, in the mask or not, that reset the function when a write sets them. */
  flr: number;
}

/** Where notifications go. */
export type NativeNotify =
  | { kind: 'region'; fn: PciFunction; region: number; offset: number }
  | { kind: 'command'; queue: AdminQueue; member: number };

export interface ServedDeviceOptions {
  member: PciFunction;
  overlay: NativeOverlayRow[];
  /** 256 or 4096, shown to the guest. */
  configSize: number;
  /** Offset of the MSI-X capability. */
  msixCapability?: number;
  /** Present: an I/O BAR0 whose control accesses go to onAccess. */
  bar0Size?: number;
  notify?: NativeNotify;
  /** Queue indexes that get an ioeventfd in GET_REGION_IO_FDS. */
  queues?: number;
}

export interface ServedDeviceCounters {
  notifies: number;
  /** By the engine; what the kernel forwards, nobody sees. */
  notifiesForwarded: number;
  /** Queues of the present client whose eventfd the kernel forwards, and whose the engine. */
  kernelDoorbells: number;
  engineDoorbells: number;
  controlReads: number;
  controlWrites: number;
  gatedAccesses: number;
  timedOutAccesses: number;
  protocolErrors: number;
  sessions: number;
  controlLatency: NativeHistogram;
}

/** onAccess(id, write, offset, length, data | null, msixEnabled): answer with respond(id, ...). */
export type OnAccess = (
  id: number,
  write: boolean,
  offset: number,
  length: number,
  data: Buffer | null,
  msixEnabled: boolean,
) => void;

/** What a vfio-user client sees: member + overlay + BAR0. Notify writes never reach onAccess. */
export declare class ServedDevice {
  constructor(options: ServedDeviceOptions, onAccess: OnAccess);
  /** Data of a read, null for a write; false: too late. */
  respond(id: number, data: Buffer | null): boolean;
  /** Through the overlay. */
  configRead(offset: number, length: number): Buffer;
  configWrite(offset: number, data: Buffer): void;
  /** BAR0 as presented. */
  region(index: number): NativeRegionInfo;
  /** Not BAR0. */
  regionRead(index: number, offset: number, length: number): Buffer;
  regionWrite(index: number, offset: number, data: Buffer): void;
  readonly ioEnabled: boolean;
  readonly msixEnabled: boolean;
  enableBusMaster(): void;
  notify(queue: number): void;
  /**
   * Two bytes over the mapped word that rings the device, or null where something else does. To be
   * taken once, and given to `detachBuffer` in the end.
   */
  notifyWord(): ArrayBuffer | null;
  /** Notify commands go over this queue from now on; without them nothing happens. */
  setNotifyQueue(queue: AdminQueue): void;
  reset(): Promise<void>;
  counters(): ServedDeviceCounters;
  close(): void;
}

export type ServerEvent =
  | 'client-connected'
  | 'client-disconnected'
  | 'client-refused'
  | 'device-reset'
  | 'access-timeout'
  | 'protocol-error';

/** One vfio-user socket. A client may come again after the first left. */
export declare class VfioUserServer {
  constructor(
    device: ServedDevice,
    options: { path: string; accessTimeoutMs?: number; spinUs?: number },
    onEvent: (kind: ServerEvent, detail: string) => void,
  );
  readonly path: string;
  /** Ends the session, removes the socket file. */
  close(): Promise<void>;
}

export interface GuestAccess {
  region: 'config' | 'bar0' | 'bar';
  write: boolean;
  offset: number;
  width: number;
  value: number;
  ns: number;
}

export interface GuestIdentity {
  vendor: number;
  device: number;
  revision: number;
  subsystemVendor: number;
  subsystem: number;
  classCode: number;
  bar0: number;
  bar0Size: number;
  interruptPin: number;
  msixVectors: number;
}

export interface GuestDriverState {
  offered: number;
  accepted: number;
  mac: string;
  linkUp: boolean;
  queueSizes: number[];
  msix: boolean;
}

export interface GuestLease {
  address: string;
  prefix: number;
  /** Missing: the network has none. */
  router?: string;
  server: string;
  leaseSeconds: number;
}

/** Round trips that a guest measured. */
export type GuestMeasurement = NativeHistogram;

/** A virtio 0.9.5 net driver over a vfio-user client, on a thread of its own. */
export declare class LegacyGuest {
  private constructor();
  static connect(
    path: string,
    options?: { sharedMemory?: boolean; msix?: boolean; ioeventfds?: boolean },
  ): Promise<LegacyGuest>;
  enumerate(): Promise<GuestIdentity>;
  start(): Promise<GuestDriverState>;
  dhcp(timeoutMs: number): Promise<GuestLease>;
  ping(
    target: string,
    count: number,
    timeoutMs: number,
  ): Promise<{ sent: number; received: number; rtt: NativeHistogram }>;
  /** BAR0 status reads, round trip. */
  measureControl(count: number): Promise<NativeHistogram>;
  /** Notify writes, round trip. */
  measureDoorbell(count: number): Promise<NativeHistogram>;
  /** Device reset by status 0. */
  stop(): Promise<void>;
  /** Register accesses since the last call, bounded. */
  takeTrace(): GuestAccess[];
  close(): void;
}

export type NativeLogLevel = 'error' | 'warn' | 'info' | 'debug';

export declare function setLogger(
  onLine: (level: NativeLogLevel, target: string, message: string) => void,
): void;

/**
 * Starts the thread that forwards the eventfds of all clients. Throws ERR_BUSY if it runs already,
 * ERR_INVALID_ARG for a CPU that this process may not use.
 */
export declare function startDoorbell(options: {
  mode: 'blocking' | 'adaptive' | 'busy';
  /** For `adaptive`. */
  spinUs?: number;
  cpu?: number;
}): void;

/** Leaves a buffer of `notifyWord` without bytes. */
export declare function detachBuffer(buffer: ArrayBuffer): void;

/** What the loaded addon exports. */
export type NativeAddon = Readonly<{
  SoftNic: typeof SoftNic;
  PciFunction: typeof PciFunction;
  VirtioTransport: typeof VirtioTransport;
  ServedDevice: typeof ServedDevice;
  VfioUserServer: typeof VfioUserServer;
  LegacyGuest: typeof LegacyGuest;
  setLogger: typeof setLogger;
  startDoorbell: typeof startDoorbell;
  detachBuffer: typeof detachBuffer;
}>;
