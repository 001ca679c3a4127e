// What the kernel says about PCI functions, read from a folder shaped like /sys. The tree is taken as
// hostile: every read is bounded, and what cannot be read is a finding beside the rest, not the end.

import { constants } from 'node:fs';
import { open, opendir, readlink, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { messageOf, noSuchDevice, RetroVfError, sysfsUnreadable } from '../errors.js';
import { tryParseBdf, type Bdf } from './bdf.js';

/** Something about the host that is not as it should be. */
export interface Finding {
  readonly path: string;
  readonly problem: string;
}

/** Size 0: the BAR is absent. */
export interface Bar {
  readonly index: number;
  readonly size: number;
  readonly kind: 'io' | 'memory';
}

/** A PCI function as sysfs shows it; what could not be read is null, with a finding. */
export interface FunctionInfo {
  readonly bdf: Bdf;
  readonly vendor: number | null;
  readonly device: number | null;
  readonly subsystemVendor: number | null;
  readonly subsystem: number | null;
  readonly revision: number | null;
  readonly classCode: number | null;
  /** null: none is bound. */
  readonly driver: string | null;
  readonly iommuGroup: string | null;
  /** null: `resource` could not be read. */
  readonly bars: readonly Bar[] | null;
  /** The PF, if this is a VF. */
  readonly physfn: Bdf | null;
  /** The VFs, by VF number from 1; sparse only in a damaged tree. */
  readonly virtfns: ReadonlyMap<number, Bdf>;
  readonly sriov: { readonly total: number; readonly enabled: number } | null;
  /** Features of the virtio device that virtio-pci made of the function, negotiated by the kernel. */
  readonly virtioFeatures: bigint | null;
  readonly findings: readonly Finding[];
}

const maxText = 4096;
const maxConfig = 4096;
const maxFunctions = 65536;
const maxEntries = 65536;
const barCount = 6;

export class Sysfs {
  readonly root: string;

  /** `root` is /sys, or a folder of the same shape. */
  constructor(root = '/sys') {
    this.root = root;
  }

  /** The addresses of all PCI functions, in order. */
  async addresses(): Promise<{ addresses: Bdf[]; findings: Finding[] }> {
    const path = this.#devices();
    const addresses: Bdf[] = [];
    const findings: Finding[] = [];
    for (const name of await list(path, maxFunctions, findings)) {
      const bdf = tryParseBdf(name);
      if (bdf === null || bdf !== name) {
        findings.push({ path: join(path, printable(name)), problem: 'is not a PCI address' });
      } else {
        addresses.push(bdf);
      }
    }
    return { addresses: addresses.sort(), findings };
  }

  /**
   * Throws ERR_NO_SUCH_DEVICE if there is no such function. With `member`, no other of its VFs is among
   * `virtfns`: a PF may have hundreds, and each is a link to read.
   */
  async read(bdf: Bdf, { member }: { member?: Bdf } = {}): Promise<FunctionInfo> {
    const findings: Finding[] = [];
    const entries = await list(this.path(bdf), maxEntries, findings);
    if (entries.length === 0) throw noSuchDevice(bdf);
    const has = new Set(entries);
    const number = async (name: string, digits: number) =>
      this.#number(bdf, name, new RegExp(`^0x([0-9a-f]{1,${digits}})$`, 'i'), 16, findings);
    const link = async (name: string) => (has.has(name) ? this.#link(bdf, name, findings) : null);
    const physfn = await link('physfn');
    return {
      bdf,
      vendor: await number('vendor', 4),
      device: await number('device', 4),
      subsystemVendor: await number('subsystem_vendor', 4),
      subsystem: await number('subsystem_device', 4),
      revision: await number('revision', 2),
      classCode: await number('class', 6),
      driver: await link('driver'),
      iommuGroup: await link('iommu_group'),
      bars: await this.#bars(bdf, findings),
      physfn: physfn === null ? null : this.#address(bdf, 'physfn', physfn, findings),
      virtfns: await this.#virtfns(bdf, entries, findings, member),
      sriov: has.has('sriov_totalvfs') ? await this.#sriov(bdf, findings) : null,
      virtioFeatures: await this.#virtioFeatures(bdf, entries, findings),
      findings,
    };
  }

  /** Configuration bytes; the kernel gives 64 of them to a process without CAP_SYS_ADMIN. */
  async config(bdf: Bdf): Promise<Buffer> {
    return readBounded(this.path(bdf, 'config'), maxConfig);
  }

  path(bdf: Bdf, ...names: string[]): string {
    return join(this.#devices(), bdf, ...names);
  }

  #devices(): string {
    return join(this.root, 'bus/pci/devices');
  }

  async #text(path: string, findings: Finding[]): Promise<string | null> {
    try {
      return (await readBounded(path, maxText)).toString('latin1').trim();
    } catch (error) {
      findings.push(findingOf(path, error));
      return null;
    }
  }

  async #number(
    bdf: Bdf,
    name: string,
    shape: RegExp,
    base: number,
    findings: Finding[],
  ): Promise<number | null> {
    const path = this.path(bdf, name);
    const text = await this.#text(path, findings);
    if (text === null) return null;
    const digits = shape.exec(text)?.[1];
    if (digits !== undefined) return Number.parseInt(digits, base);
    findings.push({ path, problem: `holds ${quoted(text)}, not a number` });
    return null;
  }

  /** The last part of what a link points to; the target itself is never opened. */
  async #link(bdf: Bdf, name: string, findings: Finding[]): Promise<string | null> {
    const path = this.path(bdf, name);
    try {
      return printable(basename(await readlink(path)));
    } catch (error) {
      findings.push(findingOf(path, error));
      return null;
    }
  }

  #address(bdf: Bdf, name: string, target: string, findings: Finding[]): Bdf | null {
    const address = tryParseBdf(target);
    if (address !== null && address !== bdf) return address;
    const problem = `points to ${quoted(target)}, not to another PCI function`;
    findings.push({ path: this.path(bdf, name), problem });
    return null;
  }

  async #virtfns(
    bdf: Bdf,
    entries: readonly string[],
    findings: Finding[],
    wanted: Bdf | undefined,
  ): Promise<ReadonlyMap<number, Bdf>> {
    const numbers = entries
      .map((name) => /^virtfn(0|[1-9]\d{0,4})$/.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number)
      .sort((a, b) => a - b);
    if (wanted !== undefined) {
      const index = await this.#search(bdf, numbers, wanted);
      // virtfn0 is VF 1, which is member 1.
      if (index !== null) return new Map([[index + 1, wanted]]);
    }
    const members = new Map<number, Bdf>();
    for (const index of numbers) {
      const address = await this.#virtfn(bdf, index, findings);
      if (address !== null) members.set(index + 1, address);
    }
    return members;
  }

  async #virtfn(bdf: Bdf, index: number, findings: Finding[]): Promise<Bdf | null> {
    const name = `virtfn${index}`;
    const target = await this.#link(bdf, name, findings);
    return target === null ? null : this.#address(bdf, name, target, findings);
  }

  /** Finds a VF by halves: addresses rise with the numbers, but in a damaged tree. */
  async #search(bdf: Bdf, numbers: readonly number[], wanted: Bdf): Promise<number | null> {
    let [low, high] = [0, numbers.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const index = numbers[middle] ?? 0;
      const address = await this.#virtfn(bdf, index, []);
      if (address === wanted) return index;
      if (address === null) return null;
      if (address < wanted) low = middle + 1;
      else high = middle;
    }
    return null;
  }

  async #sriov(bdf: Bdf, findings: Finding[]): Promise<FunctionInfo['sriov']> {
    const decimal = /^(\d{1,5})$/;
    const total = await this.#number(bdf, 'sriov_totalvfs', decimal, 10, findings);
    const enabled = await this.#number(bdf, 'sriov_numvfs', decimal, 10, findings);
    return total === null || enabled === null ? null : { total, enabled };
  }

  async #bars(bdf: Bdf, findings: Finding[]): Promise<Bar[] | null> {
    const path = this.path(bdf, 'resource');
    const text = await this.#text(path, findings);
    if (text === null) return null;
    // Six BARs, the ROM, and on a PF the BARs that its VFs share.
    const lines = text.split('\n').slice(0, barCount);
    const bars = lines.map((line, index) => parseBar(line, index));
    if (bars.length === barCount && bars.every((bar) => bar !== null)) return bars;
    findings.push({ path, problem: 'does not list six BARs' });
    return null;
  }

  async #virtioFeatures(
    bdf: Bdf,
    entries: readonly string[],
    findings: Finding[],
  ): Promise<bigint | null> {
    const name = entries.find((entry) => /^virtio\d{1,9}$/.test(entry));
    if (name === undefined) return null;
    const path = this.path(bdf, name, 'features');
    const text = await this.#text(path, findings);
    if (text === null) return null;
    // One character a bit, bit 0 first.
    if (/^[01]{1,128}$/.test(text)) return BigInt(`0b${[...text].reverse().join('')}`);
    findings.push({ path, problem: `holds ${quoted(text)}, not feature bits` });
    return null;
  }
}

function parseBar(line: string, index: number): Bar | null {
  const match = /^0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})$/i.exec(line.trim());
  if (match === null) return null;
  const [start = 0n, end = 0n, flags = 0n] = match.slice(1).map((digits) => BigInt(`0x${digits}`));
  if (end < start) return null;
  // An absent BAR is three zeroes; flag 0x100 is IORESOURCE_IO.
  const size = start === 0n && end === 0n ? 0 : Number(end - start + 1n);
  return { index, size, kind: (flags & 0x100n) !== 0n ? 'io' : 'memory' };
}

/** Reads a regular file of at most `limit` bytes. */
export async function readBounded(path: string, limit: number): Promise<Buffer> {
  let file: FileHandle | undefined;
  try {
    // A FIFO in a made-up tree would hold a blocking open for ever.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    if (!(await file.stat()).isFile()) throw sysfsUnreadable(path, 'is not a regular file');
    const bytes = Buffer.alloc(limit + 1);
    let length = 0;
    while (length <= limit) {
      const { bytesRead } = await file.read(bytes, length, limit + 1 - length, length);
      if (bytesRead === 0) return bytes.subarray(0, length);
      length += bytesRead;
    }
    throw sysfsUnreadable(path, `is longer than ${limit} bytes`);
  } catch (error) {
    throw unreadable(path, error);
  } finally {
    await file?.close();
  }
}

async function list(path: string, limit: number, findings: Finding[]): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const entry of await opendir(path)) {
      if (names.length === limit) {
        findings.push({ path, problem: `has more than ${limit} entries` });
        break;
      }
      names.push(entry.name);
    }
  } catch (error) {
    findings.push(findingOf(path, error));
  }
  return names;
}

function unreadable(path: string, error: unknown): Error {
  if (error instanceof RetroVfError) return error;
  return sysfsUnreadable(path, cannotRead(error), error);
}

function findingOf(path: string, error: unknown): Finding {
  const why = error instanceof RetroVfError ? error.detail['why'] : undefined;
  return { path, problem: typeof why === 'string' ? why : cannotRead(error) };
}

function cannotRead(error: unknown): string {
  return `cannot be read (${(error as NodeJS.ErrnoException).code ?? messageOf(error)})`;
}

/** Text from the tree may hold anything; terminals and logs should not. */
export function printable(text: string): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 64);
}

function quoted(text: string): string {
  return JSON.stringify(printable(text));
}
