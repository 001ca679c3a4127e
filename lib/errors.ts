// Every failure this package reports: one class, one table of codes, one maker per failure.
// Match on `code`, never on the text. docs/errors.md has the same table; a test keeps them equal.

interface CodeInfo {
  /** Where it is made: here, or in Rust, from where it crosses with the same code. */
  readonly origin: 'lib' | 'native';
  readonly meaning: string;
  readonly hint: string;
}

/** All codes, with their meaning and what to do. */
export const errorCodes = {
  ERR_ADMIN_BACKLOG: {
    origin: 'lib',
    meaning: 'Too many admin commands wait for one member.',
    hint: 'Wait for earlier commands before sending more.',
  },
  ERR_ADMIN_CLOSED: {
    origin: 'native',
    meaning: 'The admin queue was closed before the command completed.',
    hint: 'The owner device was closed or is being recovered; try again when it is ready.',
  },
  ERR_ADMIN_DEVICE: {
    origin: 'native',
    meaning: 'The device broke the rules of the admin queue, or left.',
    hint: 'Recover the owner device with recover(); report the device if it happens again.',
  },
  ERR_ADMIN_FULL: {
    origin: 'native',
    meaning: 'The admin queue had no free descriptors until the command ran out of time.',
    hint: 'Use fewer members per owner at once, or a longer commandTimeoutMs.',
  },
  ERR_ADMIN_QUEUE: {
    origin: 'native',
    meaning: 'The admin queue of the owner device cannot be set up.',
    hint: 'The message has the reason; check the firmware of the PF.',
  },
  ERR_ADMIN_SHORT_RESULT: {
    origin: 'lib',
    meaning: 'The device wrote less of an admin command result than the command defines.',
    hint: 'The device does not follow the specification; check its firmware version.',
  },
  ERR_ADMIN_SIZE: {
    origin: 'native',
    meaning: 'An admin command is larger than the queue takes.',
    hint: 'Send less data in one command.',
  },
  ERR_ADMIN_STATUS: {
    origin: 'lib',
    meaning: 'The device refused an admin command.',
    hint: 'detail.status and detail.qualifier name the reason that the device gave.',
  },
  ERR_ADMIN_TIMEOUT: {
    origin: 'lib',
    meaning: 'The device did not complete an admin command in time; its owner counts as failed.',
    hint: 'Recover the owner device with recover(); the data path of its members keeps running.',
  },
  ERR_ADMIN_UNSUPPORTED: {
    origin: 'lib',
    meaning: 'The device does not offer this admin command.',
    hint: 'Run the prober with open: true to see which opcodes the owner offers.',
  },
  ERR_ARGUMENT: {
    origin: 'lib',
    meaning: 'An argument is outside its range.',
    hint: 'detail names the argument and its range.',
  },
  ERR_BDF_SYNTAX: {
    origin: 'lib',
    meaning: 'The text is not a PCI address.',
    hint: 'Write DDDD:BB:DD.F in hexadecimal, such as 0000:03:00.2, or BB:DD.F for domain 0.',
  },
  ERR_BUSY: {
    origin: 'native',
    meaning: 'The object is busy with an earlier call.',
    hint: 'Wait for that call to finish.',
  },
  ERR_CLOSED: {
    origin: 'lib',
    meaning: 'The object was closed.',
    hint: 'Open a new one.',
  },
  ERR_CLOSE_TIMEOUT: {
    origin: 'native',
    meaning: 'A vfio-user server did not end in time.',
    hint: 'Its client or device is stuck; the process may have to be restarted.',
  },
  ERR_DEVICE_BUSY: {
    origin: 'native',
    meaning: 'The function is open, or the device served, already.',
    hint: 'Close the other user of this function, or the other socket of this device, first.',
  },
  ERR_DEVICE_CONFIG: {
    origin: 'native',
    meaning: 'The description of a device does not fit its function.',
    hint: 'The message names what does not fit.',
  },
  ERR_DEVICE_GONE: {
    origin: 'native',
    meaning: 'The function no longer answers.',
    hint: 'Check that it was not unplugged, that its VF is still enabled, and the kernel log.',
  },
  ERR_DISK_IN_USE: {
    origin: 'lib',
    meaning: 'The change would take away a disk that is mounted or swapped to.',
    hint: 'Unmount what detail.mounts lists, or end its use as swap, first.',
  },
  ERR_DMA_FAULT: {
    origin: 'native',
    meaning: 'The device touched memory that is not mapped.',
    hint: 'The guest gave the device a wrong address, or its memory is not shared with this process.',
  },
  ERR_DMA_LIMIT: {
    origin: 'native',
    meaning: 'The device has more DMA mappings than are allowed.',
    hint: 'Raise the limit of the kernel: echo 1000000 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit, then attach the guest again.',
  },
  ERR_DMA_LOCKED: {
    origin: 'native',
    meaning: 'The memory that the device may reach exceeds the limit on locked memory.',
    hint: 'Allow as much as the guests have: ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or CAP_IPC_LOCK.',
  },
  ERR_DMA_MAP: {
    origin: 'native',
    meaning: 'Memory could not be mapped for the device.',
    hint: 'Check for overlapping ranges, alignment to pages, and ranges that the host reserves.',
  },
  ERR_DMA_NOT_SHARED: {
    origin: 'native',
    meaning: 'Memory of the guest came without a file descriptor: hardware cannot reach it.',
    hint: 'Share the memory of the guest: -object memory-backend-memfd,share=on with QEMU, memoryBacking with source memfd and access shared in libvirt.',
  },
  ERR_GUEST_DEVICE: {
    origin: 'native',
    meaning: 'The device broke the rules of the legacy interface towards the guest.',
    hint: 'Look at the log of the process that serves the device.',
  },
  ERR_GUEST_FRAME: {
    origin: 'native',
    meaning: 'A frame of the guest does not fit an Ethernet.',
    hint: 'Send 14 to 1514 bytes.',
  },
  ERR_GUEST_REFUSED: {
    origin: 'native',
    meaning: 'The driver of the guest does not take the device.',
    hint: 'The message has the reason; the device may be served as plain passthrough.',
  },
  ERR_GUEST_STATE: {
    origin: 'native',
    meaning: 'The call comes too early or too late for the guest.',
    hint: 'Call start() before traffic, and nothing after close().',
  },
  ERR_GUEST_TIMEOUT: {
    origin: 'native',
    meaning: 'The guest waited in vain.',
    hint: 'Check the uplink of the SoftNIC and the log of the process that serves the device.',
  },
  ERR_HOST_STEP: {
    origin: 'lib',
    meaning: 'The host refused a step of a set-up or teardown.',
    hint: 'The message has the reason; detail.left lists what could not be taken back.',
  },
  ERR_HOST_TIMEOUT: {
    origin: 'lib',
    meaning: 'The host did not complete a step of a set-up or teardown in time.',
    hint: 'A process holds the function open, or its driver is stuck; detail.holders names such processes.',
  },
  ERR_INVALID_ARG: {
    origin: 'native',
    meaning: 'The native addon refused an argument.',
    hint: 'The message names the argument and its range.',
  },
  ERR_IO: {
    origin: 'native',
    meaning: 'A system call failed.',
    hint: 'The message has the reason that the system gave.',
  },
  ERR_IOMMU_ABSENT: {
    origin: 'lib',
    meaning: 'The function is in no IOMMU group, so VFIO cannot take it.',
    hint: 'Enable the IOMMU in the firmware, and on the kernel command line (intel_iommu=on for Intel).',
  },
  ERR_IOMMU_GROUP_NOT_VIABLE: {
    origin: 'lib',
    meaning:
      'The IOMMU group of the function has other members that are bound to drivers of the host.',
    hint: 'Unbind the members that detail.offenders lists, or bind them to vfio-pci too.',
  },
  ERR_IRQ: {
    origin: 'native',
    meaning: 'An interrupt request does not fit the function.',
    hint: 'The message has the reason.',
  },
  ERR_NATIVE: {
    origin: 'lib',
    meaning: 'The native addon failed in a way that has no code here.',
    hint: 'Check that the addon and the package have the same version; detail.nativeCode has the code.',
  },
  ERR_NATIVE_LOAD: {
    origin: 'lib',
    meaning: 'The native addon could not be loaded.',
    hint: 'The message has the reason. Linux on x86-64 with glibc is needed.',
  },
  ERR_NETDEV_IN_USE: {
    origin: 'lib',
    meaning: 'The change would take down a network interface that is in use.',
    hint: 'Make sure that this host stays reachable without it, then allow it: --yes, or yes: true.',
  },
  ERR_NOT_A_PF: {
    origin: 'lib',
    meaning: 'The function has no SR-IOV.',
    hint: 'Name a PF; SR-IOV may have to be enabled in the firmware of the host and of the device.',
  },
  ERR_NOT_MAPPABLE: {
    origin: 'native',
    meaning: 'The region cannot be mapped into this process.',
    hint: 'Access it with region reads and writes.',
  },
  ERR_NOT_PERMITTED: {
    origin: 'native',
    meaning: 'The system does not permit this to the user that runs the process.',
    hint: 'Give that user access to what the message names, or run as another user.',
  },
  ERR_NOT_TRANSITIONAL: {
    origin: 'lib',
    meaning: 'The function cannot be presented as a transitional device.',
    hint: 'detail.reason says why; openDevice() serves such a function as plain passthrough.',
  },
  ERR_NO_SUCH_DEVICE: {
    origin: 'lib',
    meaning: 'The host has no such PCI function.',
    hint: 'List the functions with the prober; VFs appear after sriov_numvfs is written.',
  },
  ERR_NO_SUCH_FUNCTION: {
    origin: 'native',
    meaning: 'The SoftNIC has no such function.',
    hint: 'VFs exist up to the number enabled with setNumVfs().',
  },
  ERR_NO_SUCH_REGION: {
    origin: 'native',
    meaning: 'The function does not have this region.',
    hint: 'Check the region size first; 0 means absent.',
  },
  ERR_OUT_OF_RANGE: {
    origin: 'native',
    meaning: 'An access lies outside its region.',
    hint: 'Check offset and length against the region size.',
  },
  ERR_OWNER_FEATURES: {
    origin: 'lib',
    meaning: 'The owner device does not offer or accept features that it needs.',
    hint: 'The PF must be a modern virtio device; detail has the feature bits.',
  },
  ERR_OWNER_LOST: {
    origin: 'lib',
    meaning:
      'The owner device failed; its members keep their data path but no control access works.',
    hint: 'Call recover() on the owner device.',
  },
  ERR_OWNER_NO_ADMIN_VQ: {
    origin: 'lib',
    meaning: 'The owner device has no administration virtqueue.',
    hint: 'The PF must offer VIRTIO_F_ADMIN_VQ (feature bit 41); check its firmware.',
  },
  ERR_OWNER_RESET_TIMEOUT: {
    origin: 'lib',
    meaning: 'The owner device did not finish its reset in time.',
    hint: 'Reset the function through the host, then try again.',
  },
  ERR_SOCKET_IN_USE: {
    origin: 'native',
    meaning: 'Another server is running on the socket path.',
    hint: 'Stop it, or choose another path.',
  },
  ERR_SOCKET_PATH: {
    origin: 'native',
    meaning: 'The socket path cannot be used.',
    hint: 'Choose a path of at most 107 bytes that is not another file.',
  },
  ERR_SOFTNIC_CLOSED: {
    origin: 'native',
    meaning: 'The SoftNIC was closed.',
    hint: 'Make a new one.',
  },
  ERR_SOFTNIC_CONFIG: {
    origin: 'native',
    meaning: 'The options of the SoftNIC contradict each other or a limit.',
    hint: 'The message has the reason.',
  },
  ERR_SYSFS: {
    origin: 'lib',
    meaning: 'A file of sysfs cannot be read, or does not hold what it should.',
    hint: 'Check the sysfs path and the permissions of this process.',
  },
  ERR_TOO_MANY_VFS: {
    origin: 'native',
    meaning: 'More VFs were asked for than the PF has.',
    hint: 'Ask for fewer, or make the SoftNIC with a larger totalVfs.',
  },
  ERR_UNSUPPORTED: {
    origin: 'native',
    meaning: 'The function cannot do this.',
    hint: 'The message names what is missing.',
  },
  ERR_VFIO_GROUP_NOT_VIABLE: {
    origin: 'native',
    meaning: 'Other devices of the IOMMU group of the function are in use by the host.',
    hint: 'Bind the devices that the message names to vfio-pci too, or unbind them: echo DEVICE > /sys/bus/pci/devices/DEVICE/driver/unbind.',
  },
  ERR_VFIO_NOT_BOUND: {
    origin: 'native',
    meaning: 'The function is not bound to vfio-pci.',
    hint: 'Bind it: echo vfio-pci > /sys/bus/pci/devices/BDF/driver_override; echo BDF > /sys/bus/pci/devices/BDF/driver/unbind (if it has a driver); echo BDF > /sys/bus/pci/drivers_probe.',
  },
  ERR_VFIO_NO_IOMMU: {
    origin: 'native',
    meaning: 'The function is behind no IOMMU.',
    hint: 'Enable the IOMMU in the firmware, and in the kernel with intel_iommu=on (AMD: on by default).',
  },
  ERR_VFIO_PERMISSION: {
    origin: 'native',
    meaning: 'This process may not open a node of VFIO.',
    hint: 'Give the node that the message names to the user of this process: chown USER NODE.',
  },
  ERR_VFIO_TOKEN: {
    origin: 'native',
    meaning: 'The VF token is missing or wrong.',
    hint: 'Open the VF with the vfToken that the holder of its PF has set.',
  },
  ERR_VFIO_UNAVAILABLE: {
    origin: 'native',
    meaning: 'The kernel lacks a part of VFIO.',
    hint: 'Load the modules: modprobe -a vfio-pci vfio_iommu_type1. The message says what is missing.',
  },
  ERR_VFIO_UNSAFE_INTERRUPTS: {
    origin: 'native',
    meaning: 'The IOMMU does not remap interrupts, so the device could send any.',
    hint: 'Enable interrupt remapping in the firmware; or trust the guest: echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts.',
  },
  ERR_VFIO_USER_CLOSED: {
    origin: 'native',
    meaning: 'The vfio-user server closed the connection.',
    hint: 'Another client may be connected, or the device was closed; see its log.',
  },
  ERR_VFIO_USER_CONNECT: {
    origin: 'native',
    meaning: 'The vfio-user socket cannot be reached.',
    hint: 'Check the path, its permissions, and that the device is served.',
  },
  ERR_VFIO_USER_PROTOCOL: {
    origin: 'native',
    meaning: 'The vfio-user server broke the protocol.',
    hint: 'Check that the socket belongs to a vfio-user server.',
  },
  ERR_VFIO_USER_REFUSED: {
    origin: 'native',
    meaning: 'The vfio-user server refused a request.',
    hint: 'The message has the reason that the server gave.',
  },
  ERR_VFIO_USER_TIMEOUT: {
    origin: 'native',
    meaning: 'The vfio-user server did not answer in time.',
    hint: 'Look at the log of the process that serves the device.',
  },
  ERR_VIRTIO_CAPABILITIES: {
    origin: 'native',
    meaning: 'The virtio capabilities of the function are missing or wrong.',
    hint: 'The function is not a modern virtio device, or its configuration space is damaged.',
  },
} as const satisfies Record<string, CodeInfo>;

/** What to match failures by. */
export type ErrorCode = keyof typeof errorCodes;

/** True for a code of the table. */
export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === 'string' && Object.hasOwn(errorCodes, code);
}

type Detail = Readonly<Record<string, unknown>>;

interface ErrorParts {
  bdf?: string | undefined;
  detail?: Detail;
  hint?: string;
  cause?: unknown;
}

/** The only error class of this package; failures of an aborted call are the signal's own reason. */
export class RetroVfError extends Error {
  override readonly name = 'RetroVfError';
  readonly code: ErrorCode;
  /** The PCI function concerned, if there is one. */
  readonly bdf: string | undefined;
  /** The values behind the message. */
  readonly detail: Detail;
  /** What to do about it. */
  readonly hint: string;

  constructor(code: ErrorCode, message: string, parts: ErrorParts = {}) {
    super(message, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.code = code;
    this.bdf = parts.bdf;
    this.detail = parts.detail ?? {};
    // Some are commands for the function concerned.
    this.hint = (parts.hint ?? errorCodes[code].hint).replaceAll('BDF', parts.bdf ?? 'BDF');
  }

  /** For logs and JSON output; the cause as its message. */
  toJSON(): Record<string, unknown> {
    const { code, message, bdf, detail, hint } = this;
    const cause = this.cause === undefined ? {} : { cause: messageOf(this.cause) };
    return { code, message, ...(bdf === undefined ? {} : { bdf }), detail, hint, ...cause };
  }
}

/** One line for any thrown value. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/** Runs a native call, and turns what it throws into a RetroVfError. */
export function attempt<T>(bdf: string | undefined, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw nativeFailure(error, bdf);
  }
}

/** As `attempt`, for a native call that returns a promise. */
export async function attemptAsync<T>(bdf: string | undefined, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw nativeFailure(error, bdf);
  }
}

/** Something that the addon threw: Rust errors cross with their code. */
export function nativeFailure(thrown: unknown, bdf?: string): RetroVfError {
  if (thrown instanceof RetroVfError) return thrown;
  const code = (thrown as { code?: unknown } | null | undefined)?.code;
  if (isErrorCode(code)) return new RetroVfError(code, messageOf(thrown), { bdf, cause: thrown });
  return new RetroVfError('ERR_NATIVE', `The native addon failed: ${messageOf(thrown)}`, {
    bdf,
    detail: { nativeCode: code ?? null },
    cause: thrown,
  });
}

export function adminBacklog(bdf: string, member: number, limit: number): RetroVfError {
  return new RetroVfError(
    'ERR_ADMIN_BACKLOG',
    `More than ${limit} admin commands wait for member ${member} of ${bdf}`,
    { bdf, detail: { member, limit } },
  );
}

export function adminShortResult(
  bdf: string,
  command: { name: string; member: number },
  bytes: { expected: number; written: number },
): RetroVfError {
  return new RetroVfError(
    'ERR_ADMIN_SHORT_RESULT',
    `${bdf} answered ${command.name} for member ${command.member} with ${bytes.written} bytes ` +
      `instead of ${bytes.expected}`,
    { bdf, detail: { command: command.name, member: command.member, ...bytes } },
  );
}

export function adminStatus(
  bdf: string,
  command: { name: string; member: number },
  answer: { status: string; qualifier: string; attempts: number },
): RetroVfError {
  return new RetroVfError(
    'ERR_ADMIN_STATUS',
    `${bdf} refused ${command.name} for member ${command.member}: ` +
      `${answer.status}, ${answer.qualifier}`,
    { bdf, detail: { command: command.name, member: command.member, ...answer } },
  );
}

export function adminTimeout(
  bdf: string,
  command: { name: string; member: number },
  timeoutMs: number,
): RetroVfError {
  return new RetroVfError(
    'ERR_ADMIN_TIMEOUT',
    `${bdf} did not complete ${command.name} for member ${command.member} in ${timeoutMs} ms`,
    { bdf, detail: { command: command.name, member: command.member, timeoutMs } },
  );
}

/** What the queue reports of a command that it could not complete. */
export function adminFailed(
  bdf: string,
  command: { name: string; member: number },
  code: string,
): RetroVfError {
  const detail = { command: command.name, member: command.member };
  const known = isErrorCode(code);
  return new RetroVfError(
    known ? code : 'ERR_NATIVE',
    `${command.name} for member ${command.member} of ${bdf} failed: ` +
      (known ? errorCodes[code].meaning : code),
    { bdf, detail: known ? detail : { ...detail, nativeCode: code } },
  );
}

export function adminUnsupported(
  bdf: string,
  command: { name: string; opcode: number },
): RetroVfError {
  return new RetroVfError(
    'ERR_ADMIN_UNSUPPORTED',
    `${bdf} does not offer the admin command ${command.name}`,
    { bdf, detail: { command: command.name, opcode: command.opcode } },
  );
}

export function badArgument(name: string, value: unknown, range: string): RetroVfError {
  return new RetroVfError('ERR_ARGUMENT', `${name} must be ${range}, not ${String(value)}`, {
    detail: { name, value, range },
  });
}

export function bdfSyntax(text: string): RetroVfError {
  const shown = JSON.stringify(text.slice(0, 64));
  return new RetroVfError('ERR_BDF_SYNTAX', `${shown} is not a PCI address`, {
    detail: { text: text.slice(0, 64) },
  });
}

export function closed(what: string, bdf?: string): RetroVfError {
  return new RetroVfError('ERR_CLOSED', `${what} is closed`, { bdf });
}

export function nativeLoad(path: string, reason: string, cause?: unknown): RetroVfError {
  return new RetroVfError(
    'ERR_NATIVE_LOAD',
    `The native addon ${path} could not be loaded: ${reason}`,
    { detail: { path, reason }, cause },
  );
}

interface Holders {
  readonly holders: readonly { readonly pid: number; readonly name: string }[];
}

const named = (holders: Holders['holders']) =>
  holders.map(({ pid, name }) => `${name} (pid ${pid})`).join(', ');

export function deviceHeld(bdf: string, holders: Holders['holders']): RetroVfError {
  return new RetroVfError(
    'ERR_DEVICE_BUSY',
    `${bdf} or one of its VFs is open in ${named(holders)}`,
    { bdf, detail: { holders }, hint: 'End that process, or let it close the function, first.' },
  );
}

export function diskInUse(bdf: string, mounts: readonly string[]): RetroVfError {
  return new RetroVfError(
    'ERR_DISK_IN_USE',
    `Changing ${bdf} takes away what is mounted at ${mounts.join(', ')}`,
    { bdf, detail: { mounts } },
  );
}

export function groupNotViable(
  bdf: string,
  group: string,
  offenders: readonly { readonly bdf: string; readonly driver: string }[],
): RetroVfError {
  const list = offenders.map((each) => `${each.bdf} (${each.driver})`).join(', ');
  return new RetroVfError(
    'ERR_IOMMU_GROUP_NOT_VIABLE',
    `IOMMU group ${group} of ${bdf} also holds ${list}`,
    { bdf, detail: { group, offenders } },
  );
}

/** What became of a set-up or teardown that failed. */
interface Aftermath {
  /** Steps that were done and taken back again. */
  readonly undone: readonly string[];
  /** Steps that were done and stay. */
  readonly left: readonly string[];
}

export function hostStep(
  bdf: string,
  step: { readonly does: string; readonly command: string },
  reason: { readonly why: string; readonly hint?: string | undefined },
  after: Aftermath,
  cause: unknown,
): RetroVfError {
  return new RetroVfError(
    'ERR_HOST_STEP',
    `${bdf}: could not ${step.does}: ${reason.why}${aftermath(after)}`,
    {
      bdf,
      detail: { ...step, ...after },
      cause,
      ...(reason.hint !== undefined && { hint: reason.hint }),
    },
  );
}

export function hostTimeout(
  bdf: string,
  step: { readonly does: string; readonly command: string },
  { holders, timeoutMs }: Holders & { readonly timeoutMs: number },
  after: Aftermath,
  cause: unknown,
): RetroVfError {
  const by = holders.length === 0 ? '' : `; ${named(holders)} holds it open`;
  return new RetroVfError(
    'ERR_HOST_TIMEOUT',
    `${bdf}: could not ${step.does} in ${timeoutMs} ms${by}${aftermath(after)}`,
    { bdf, detail: { ...step, timeoutMs, holders, ...after }, cause },
  );
}

function aftermath({ undone, left }: Aftermath): string {
  if (left.length > 0) return `. Not all was taken back: ${left.join('; ')}`;
  return undone.length > 0 ? '. Everything before it was taken back' : '';
}

export function netdevInUse(
  bdf: string,
  netdevs: readonly { readonly name: string; readonly defaultRoute: boolean }[],
): RetroVfError {
  const list = netdevs.map((each) =>
    each.defaultRoute ? `${each.name}, which carries a default route` : `${each.name}, which is up`,
  );
  return new RetroVfError('ERR_NETDEV_IN_USE', `Changing ${bdf} takes down ${list.join('; ')}`, {
    bdf,
    detail: { netdevs },
  });
}

export function noIommu(bdf: string): RetroVfError {
  return new RetroVfError('ERR_IOMMU_ABSENT', `${bdf} is in no IOMMU group`, { bdf });
}

export function notAPf(bdf: string, physfn: string | null): RetroVfError {
  const why = physfn === null ? 'has no SR-IOV' : `is a VF of ${physfn}`;
  return new RetroVfError('ERR_NOT_A_PF', `${bdf} ${why}`, {
    bdf,
    detail: { physfn },
    ...(physfn !== null && { hint: `Name its PF, ${physfn}.` }),
  });
}

export function noSuchDevice(bdf: string): RetroVfError {
  return new RetroVfError('ERR_NO_SUCH_DEVICE', `There is no PCI function ${bdf}`, { bdf });
}

export function notTransitional(
  bdf: string,
  verdict: { reason: string; detail: string; hint: string },
  cause?: unknown,
): RetroVfError {
  return new RetroVfError(
    'ERR_NOT_TRANSITIONAL',
    `${bdf} cannot be a transitional device: ${verdict.detail}`,
    { bdf, detail: { reason: verdict.reason }, hint: verdict.hint, cause },
  );
}

export function ownerFeatures(
  bdf: string,
  missing: string,
  bits: { offered: bigint; accepted?: bigint },
): RetroVfError {
  const hex = (value: bigint | undefined) =>
    value === undefined ? null : `0x${value.toString(16)}`;
  return new RetroVfError('ERR_OWNER_FEATURES', `${bdf}: ${missing}`, {
    bdf,
    detail: { offered: hex(bits.offered), accepted: hex(bits.accepted) },
  });
}

/** Why an owner counts as lost. */
export type LossReason =
  | 'timeout'
  | 'needs-reset'
  | 'was-reset'
  | 'gone'
  | 'queue'
  | 'recovery-failed';

export function ownerLost(bdf: string, reason: LossReason, cause?: unknown): RetroVfError {
  const text: Record<LossReason, string> = {
    timeout: 'an admin command timed out',
    'needs-reset': 'the device asks for a reset',
    'was-reset': 'somebody else has reset the device',
    gone: 'the function no longer answers',
    queue: 'its admin queue broke',
    'recovery-failed': 'its recovery failed',
  };
  return new RetroVfError('ERR_OWNER_LOST', `The owner ${bdf} is lost: ${text[reason]}`, {
    bdf,
    detail: { reason },
    cause,
  });
}

export function ownerNoAdminQueue(bdf: string, why: string): RetroVfError {
  return new RetroVfError('ERR_OWNER_NO_ADMIN_VQ', `${bdf} has no admin queue: ${why}`, {
    bdf,
    detail: { why },
  });
}

export function ownerResetTimeout(bdf: string, timeoutMs: number): RetroVfError {
  return new RetroVfError(
    'ERR_OWNER_RESET_TIMEOUT',
    `${bdf} did not finish its reset in ${timeoutMs} ms`,
    { bdf, detail: { timeoutMs } },
  );
}

export function sysfsUnreadable(path: string, why: string, cause?: unknown): RetroVfError {
  return new RetroVfError('ERR_SYSFS', `${path} ${why}`, { detail: { path, why }, cause });
}

export function tooManyVfs(bdf: string, vfs: number, total: number): RetroVfError {
  return new RetroVfError('ERR_TOO_MANY_VFS', `${bdf} has ${total} VFs at most, not ${vfs}`, {
    bdf,
    detail: { vfs, total },
    hint: `Ask for at most ${total}.`,
  });
}
