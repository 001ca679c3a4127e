// Which functions of a host can be presented as transitional devices, and why the others cannot.

import { messageOf, RetroVfError } from '../errors.js';
import { chooseNotify, type NotifyPlan } from '../notify.js';
import { OwnerDevice } from '../owner-device.js';
import { decodeNotifyInfo, legacyRead, notifyInfo } from '../virtio/admin-commands.js';
import { isModernVirtio, typeOfFunction, virtioVendor } from '../virtio/device-types.js';
import { register } from '../virtio/legacy-registers.js';
import { parseBdf, type Bdf } from './bdf.js';
import type { Host } from './host.js';
import type { Bar, Finding, FunctionInfo } from './sysfs.js';

/** Why a function is served as plain passthrough. */
export type PassthroughReason =
  | 'unreadable'
  | 'not-virtio'
  | 'unsupported-type'
  | 'not-a-vf'
  | 'bar0-present'
  | 'no-owner'
  | 'not-member'
  | 'owner-driver'
  | 'owner-no-access'
  | 'owner-no-admin-vq'
  | 'owner-failed'
  | 'missing-opcodes'
  | 'member-failed';

export interface Passthrough {
  readonly kind: 'passthrough';
  readonly reason: PassthroughReason;
  readonly detail: string;
  readonly hint: string;
}

export type Verdict =
  /** The owner was opened, and offers what is needed. */
  | {
      readonly kind: 'transitional-capable';
      readonly opcodes: bigint;
      readonly notify: NotifyPlan;
    }
  /** Everything that can be known without opening the owner holds. */
  | { readonly kind: 'unverified'; readonly hint: string }
  | Passthrough;

export interface FunctionReport {
  readonly bdf: Bdf;
  readonly role: 'pf' | 'vf' | 'function';
  readonly ids: {
    readonly vendor: number | null;
    readonly device: number | null;
    readonly subsystemVendor: number | null;
    readonly subsystem: number | null;
    readonly revision: number | null;
    readonly classCode: number | null;
  };
  /** The virtio device type, if it is one with a legacy interface. */
  readonly type: string | null;
  readonly driver: string | null;
  readonly iommuGroup: string | null;
  readonly bars: readonly Bar[] | null;
  readonly sriov: { readonly total: number; readonly enabled: number } | null;
  readonly owner: Bdf | null;
  /** VF number, from 1. */
  readonly memberId: number | null;
  readonly bar0Absent: boolean | null;
  readonly verdict: Verdict;
}

export interface ProbeReport {
  readonly functions: readonly FunctionReport[];
  /** What about the host's description of itself is not as it should be. */
  readonly findings: readonly Finding[];
}

export interface ProbeOptions {
  /** Open the owners to ask them. This resets each PF asked, and with it all of its VFs. */
  open?: boolean;
  /** Only this function, of whatever kind; default: all virtio functions. */
  bdf?: string;
  signal?: AbortSignal;
}

/** Reports on the virtio functions of a host. Never throws for what it finds. */
export async function probe(host: Host, options: ProbeOptions = {}): Promise<ProbeReport> {
  const { open = false, bdf, signal } = options;
  signal?.throwIfAborted();
  const findings: Finding[] = [];
  const subjects = await subjectsOf(host, bdf, findings, signal);
  const judged: { subject: Subject; verdict: Verdict }[] = [];
  for (const subject of subjects) {
    judged.push({ subject, verdict: judge(subject, host.openableDrivers) });
  }
  if (open) await verify(host, judged, signal);
  return {
    functions: judged.map(({ subject, verdict }) => reportOf(subject, verdict)),
    findings,
  };
}

/** A function with what its PF says about it. */
export interface Subject {
  readonly info: FunctionInfo;
  readonly owner: FunctionInfo | null;
  readonly memberId: number | null;
}

/** Reads a function and its PF; throws ERR_NO_SUCH_DEVICE. */
export async function readSubject(host: Host, bdf: Bdf): Promise<Subject> {
  const info = await host.sysfs.read(bdf);
  if (info.physfn === null) return { info, owner: null, memberId: null };
  const owner = await host.sysfs.read(info.physfn, { member: bdf }).catch(() => null);
  const member = [...(owner?.virtfns ?? [])].find(([, address]) => address === bdf);
  return { info, owner, memberId: member?.[0] ?? null };
}

/** What can be said of a function without opening anything. */
export function judge(subject: Subject, openableDrivers: readonly string[]): Verdict {
  const { info, owner, memberId } = subject;
  const { vendor, device, bars } = info;
  if (vendor === null || device === null || bars === null) {
    return passthrough('unreadable', 'its ids or BARs cannot be read', 'See the findings.');
  }
  if (!isModernVirtio(vendor, device)) {
    const ids = `${hex(vendor)}:${hex(device)}`;
    const hint = `A modern virtio function has vendor ${hex(virtioVendor)} and device 1041 to 107f.`;
    return passthrough('not-virtio', `it is ${ids}, not a modern virtio function`, hint);
  }
  const type = typeOfFunction(vendor, device);
  if (type === null) {
    const detail = `virtio device type ${device - 0x1040} has no legacy interface here`;
    return passthrough('unsupported-type', detail, 'Only passthrough is possible for this type.');
  }
  if (info.physfn === null) {
    const hint = 'Enable VFs on the PF (sriov_numvfs) and use one of them.';
    return passthrough('not-a-vf', 'it is not a VF', hint);
  }
  if ((bars[0]?.size ?? 0) !== 0) {
    const hint = 'A PF that offers the legacy commands leaves VF BAR0 empty; check its firmware.';
    return passthrough('bar0-present', 'its BAR0 is in use, where the legacy registers go', hint);
  }
  return judgeOwner(info.physfn, owner, memberId, openableDrivers);
}

const adminQueueFeature = 1n << 41n;

function judgeOwner(
  physfn: Bdf,
  owner: FunctionInfo | null,
  memberId: number | null,
  openableDrivers: readonly string[],
): Verdict {
  if (owner === null || owner.vendor === null || owner.device === null) {
    const hint = 'The PF must be visible on this host; inside a VM, pass it through too.';
    return passthrough('no-owner', `its PF ${physfn} cannot be read`, hint);
  }
  if (!isModernVirtio(owner.vendor, owner.device)) {
    const detail = `its PF ${physfn} is not a modern virtio function`;
    return passthrough('no-owner', detail, 'Only a virtio PF has the legacy commands.');
  }
  if (memberId === null) {
    const detail = `its PF ${physfn} does not list it among its VFs`;
    return passthrough('not-member', detail, 'Disable the VFs of the PF and enable them again.');
  }
  if (owner.virtioFeatures !== null && (owner.virtioFeatures & adminQueueFeature) === 0n) {
    return noAdminQueue(physfn, 'virtio-pci negotiated no VIRTIO_F_ADMIN_VQ');
  }
  if (owner.driver === null || !openableDrivers.includes(owner.driver)) {
    const bound = owner.driver === null ? 'no driver' : owner.driver;
    const detail = `its PF ${physfn} is bound to ${bound}`;
    return passthrough(
      'owner-driver',
      detail,
      `Bind ${physfn} to ${openableDrivers.join(' or ')}.`,
    );
  }
  const hint = `Probe with open: true to ask ${physfn}; this resets it and all of its VFs.`;
  return { kind: 'unverified', hint };
}

/** The verdict that the failure to open an owner amounts to. */
export function verdictOfOwnerFailure(owner: Bdf, error: unknown): Passthrough {
  switch (error instanceof RetroVfError ? error.code : undefined) {
    case 'ERR_OWNER_NO_ADMIN_VQ':
    case 'ERR_OWNER_FEATURES':
    case 'ERR_VIRTIO_CAPABILITIES':
      return noAdminQueue(owner, messageOf(error));
    case 'ERR_DEVICE_BUSY':
    case 'ERR_DEVICE_GONE':
    case 'ERR_IO':
    case 'ERR_NOT_PERMITTED':
    case 'ERR_NATIVE_LOAD':
    case 'ERR_VFIO_GROUP_NOT_VIABLE':
    case 'ERR_VFIO_NOT_BOUND':
    case 'ERR_VFIO_NO_IOMMU':
    case 'ERR_VFIO_PERMISSION':
    case 'ERR_VFIO_TOKEN':
    case 'ERR_VFIO_UNAVAILABLE':
    case 'ERR_VFIO_UNSAFE_INTERRUPTS':
      return passthrough(
        'owner-no-access',
        `its PF ${owner} cannot be opened: ${messageOf(error)}`,
        (error as RetroVfError).hint,
      );
    default:
      return passthrough(
        'owner-failed',
        `its PF ${owner} could not be brought up: ${messageOf(error)}`,
        error instanceof RetroVfError ? error.hint : 'See the log of this process.',
      );
  }
}

export function missingOpcodes(owner: Bdf, opcodes: bigint): Passthrough {
  const detail = `its PF ${owner} offers opcodes 0x${opcodes.toString(16)}, not all of 2 to 5`;
  return passthrough('missing-opcodes', detail, 'Check the firmware of the PF.');
}

function noAdminQueue(owner: Bdf, why: string): Passthrough {
  const detail = `its PF ${owner} has no admin queue: ${why}`;
  return passthrough('owner-no-admin-vq', detail, 'Check the firmware of the PF.');
}

function passthrough(reason: PassthroughReason, detail: string, hint: string): Passthrough {
  return { kind: 'passthrough', reason, detail, hint };
}

async function subjectsOf(
  host: Host,
  bdf: string | undefined,
  findings: Finding[],
  signal?: AbortSignal,
): Promise<Subject[]> {
  let addresses: readonly Bdf[];
  if (bdf === undefined) {
    const listed = await host.sysfs.addresses();
    findings.push(...listed.findings);
    addresses = listed.addresses;
  } else {
    addresses = [parseBdf(bdf)];
  }
  const subjects: Subject[] = [];
  for (const address of addresses) {
    signal?.throwIfAborted();
    try {
      const subject = await readSubject(host, address);
      // Of other vendors' functions nothing is said unless asked for.
      if (
        bdf === undefined &&
        subject.info.vendor !== virtioVendor &&
        subject.info.vendor !== null
      ) {
        continue;
      }
      findings.push(...subject.info.findings);
      subjects.push(subject);
    } catch (error) {
      if (bdf !== undefined) throw error;
      findings.push({ path: host.sysfs.path(address), problem: messageOf(error) });
    }
  }
  return subjects;
}

async function verify(
  host: Host,
  judged: { subject: Subject; verdict: Verdict }[],
  signal?: AbortSignal,
): Promise<void> {
  const open = judged.filter(({ verdict }) => verdict.kind === 'unverified');
  const owners = new Set(open.flatMap(({ subject }) => subject.info.physfn ?? []));
  for (const owner of owners) {
    const members = open.filter(({ subject }) => subject.info.physfn === owner);
    const ask = await openOwner(host, owner, signal);
    try {
      for (const member of members) {
        member.verdict =
          ask.kind === 'failed' ? ask.verdict : await askOwner(ask.owner, member.subject, signal);
      }
    } finally {
      if (ask.kind === 'opened') await ask.owner.close();
    }
  }
}

type Ask =
  | { readonly kind: 'opened'; readonly owner: OwnerDevice }
  | { readonly kind: 'failed'; readonly verdict: Passthrough };

async function openOwner(host: Host, bdf: Bdf, signal?: AbortSignal): Promise<Ask> {
  try {
    const owner = await OwnerDevice.open(host, bdf, signal === undefined ? {} : { signal });
    return { kind: 'opened', owner };
  } catch (error) {
    signal?.throwIfAborted();
    return { kind: 'failed', verdict: verdictOfOwnerFailure(bdf, error) };
  }
}

async function askOwner(
  owner: OwnerDevice,
  { info, memberId }: Subject,
  signal?: AbortSignal,
): Promise<Verdict> {
  const options = signal === undefined ? {} : { signal };
  const member = memberId ?? 0;
  try {
    const { legacy, opcodes, notifyInfo: listsAddresses } = await owner.negotiate(options);
    if (!legacy) return missingOpcodes(owner.bdf, opcodes);
    // A register that reading does not change.
    await owner.execute(legacyRead('common', member, register.deviceFeatures, 4), options);
    if (!listsAddresses) {
      return {
        kind: 'transitional-capable',
        opcodes,
        notify: { kind: 'command', why: 'not-offered' },
      };
    }
    const entries = decodeNotifyInfo(await owner.execute(notifyInfo(member), options));
    const { plan } = chooseNotify(entries, {
      member: (bar) => info.bars?.[bar]?.size ?? 0,
      owner: (bar) => owner.barSize(bar),
    });
    return { kind: 'transitional-capable', opcodes, notify: plan };
  } catch (error) {
    signal?.throwIfAborted();
    const invalid = error instanceof RetroVfError && error.detail['qualifier'] === 'INVALID_MEMBER';
    return passthrough(
      invalid ? 'not-member' : 'member-failed',
      `its PF ${owner.bdf} does not serve it: ${messageOf(error)}`,
      error instanceof RetroVfError ? error.hint : 'See the log of this process.',
    );
  }
}

function reportOf({ info, memberId }: Subject, verdict: Verdict): FunctionReport {
  const { vendor, device, subsystemVendor, subsystem, revision, classCode } = info;
  const type = vendor === null || device === null ? null : typeOfFunction(vendor, device);
  return {
    bdf: info.bdf,
    role: info.physfn !== null ? 'vf' : info.sriov !== null ? 'pf' : 'function',
    ids: { vendor, device, subsystemVendor, subsystem, revision, classCode },
    type: type?.name ?? null,
    driver: info.driver,
    iommuGroup: info.iommuGroup,
    bars: info.bars,
    sriov: info.sriov,
    owner: info.physfn,
    memberId,
    bar0Absent: info.bars === null ? null : info.bars[0]?.size === 0,
    verdict,
  };
}

function hex(value: number): string {
  return value.toString(16).padStart(4, '0');
}
