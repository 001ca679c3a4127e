// Accesses to a function and its answers, as lines of text; l1/src/transcript.c has the format.

export const regions = [
  'bar0',
  'bar1',
  'bar2',
  'bar3',
  'bar4',
  'bar5',
  'rom',
  'cfg',
  'vga',
] as const;
export type Region = (typeof regions)[number];

export type Access =
  | {
      readonly kind: 'read';
      readonly region: Region;
      readonly offset: number;
      readonly width: number;
    }
  | {
      readonly kind: 'write';
      readonly region: Region;
      readonly offset: number;
      readonly width: number;
      readonly value: bigint;
    }
  | { readonly kind: 'reset' }
  | { readonly kind: 'vectors'; readonly count: number };

export type Answer =
  | { readonly kind: 'bytes'; readonly bytes: Buffer }
  | { readonly kind: 'done' }
  | { readonly kind: 'short'; readonly text: string }
  | { readonly kind: 'error'; readonly name: string };

export const read = (region: Region, offset: number, width: number): Access => ({
  kind: 'read',
  region,
  offset,
  width,
});

export const write = (
  region: Region,
  offset: number,
  width: number,
  value: number | bigint,
): Access => ({
  kind: 'write',
  region,
  offset,
  width,
  value: BigInt.asUintN(8 * width, BigInt(value)),
});

export const reset: Access = { kind: 'reset' };
export const vectors = (count: number): Access => ({ kind: 'vectors', count });

export function formatAccess(access: Access): string {
  switch (access.kind) {
    case 'reset':
      return 'X reset';
    case 'vectors':
      return `M ${access.count}`;
    case 'read':
      return `R ${access.region} ${hex(access.offset, 2)} ${access.width}`;
    case 'write': {
      const { region, offset, width, value } = access;
      return `W ${region} ${hex(offset, 2)} ${width} ${hex(value, 2 * width)}`;
    }
  }
}

function hex(value: number | bigint, digits: number): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}

/** An access, with or without its answer; null for a comment or an empty line. */
export function parseAccess(line: string): Access | null {
  if (line === '' || line.startsWith('#')) return null;
  const word = line.split(' ');
  switch (word[0]) {
    case 'X':
      if (word[1] === 'reset') return reset;
      break;
    case 'M':
      if (isCount(word[1], 0, 8)) return vectors(Number(word[1]));
      break;
    case 'R':
      if (isPlace(word) && isCount(word[3], 1, 4096)) {
        return read(word[1] as Region, Number(word[2]), Number(word[3]));
      }
      break;
    case 'W':
      if (isPlace(word) && isCount(word[3], 1, 8) && /^0x[0-9a-f]{1,16}$/i.test(word[4] ?? '')) {
        return write(word[1] as Region, Number(word[2]), Number(word[3]), BigInt(word[4] ?? ''));
      }
  }
  throw new Error(`not an access: ${line}`);
}

function isCount(text: string | undefined, least: number, most: number): boolean {
  return /^\d{1,4}$/.test(text ?? '') && Number(text) >= least && Number(text) <= most;
}

function isPlace(word: readonly string[]): boolean {
  return regions.includes(word[1] as Region) && /^0x[0-9a-f]{1,8}$/i.test(word[2] ?? '');
}

/** What a player printed after the access. */
export function parseAnswer(line: string): Answer {
  const refused = / ! (\w+)$/.exec(line);
  if (refused !== null) return { kind: 'error', name: refused[1] ?? '' };
  const text = / = (.*)$/.exec(line)?.[1];
  if (text === undefined) throw new Error(`no answer: ${line}`);
  if (text === 'ok') return { kind: 'done' };
  if (/^0x(?:[0-9a-f]{2})+$/.test(text)) {
    return { kind: 'bytes', bytes: Buffer.from(text.slice(2), 'hex').reverse() };
  }
  if (/^bytes:(?:[0-9a-f]{2})+$/.test(text)) {
    return { kind: 'bytes', bytes: Buffer.from(text.slice(6), 'hex') };
  }
  return { kind: 'short', text };
}

export function sameAnswer(a: Answer, b: Answer): boolean {
  if (a.kind === 'bytes' && b.kind === 'bytes') return a.bytes.equals(b.bytes);
  return JSON.stringify(a) === JSON.stringify(b);
}
