// The comparison of the lab's differential test (test/lab/differential), without a lab.

import { readFileSync } from 'node:fs';
import test from 'ava';
import { compare, summary, total } from '../lab/differential/compare.js';
import { differences } from '../lab/differential/differences.js';
import { directed, random } from '../lab/differential/generate.js';
import { forKernel, forRetroVf, parseTranscript, plan } from '../lab/differential/plan.js';
import { parts } from '../lab/differential/registers.js';
import { msixControl } from '../lab/differential/state.js';
import {
  formatAccess,
  parseAccess,
  parseAnswer,
  read,
  write,
  type Access,
} from '../lab/differential/transcript.js';

const header = `# msix 0x${msixControl.toString(16)}`;
const enable = write('cfg', 4, 2, 7);

/** Compares answers to some accesses after I/O space was enabled. */
function compared(access: Access, kernel: readonly string[], ours: string) {
  const start = `${formatAccess(enable)} = ok`;
  return compare(plan([enable, access]), [header, start, ...kernel], [header, start, ours]);
}

test('a line is an access whether or not an answer follows it', (t) => {
  t.deepEqual(parseAccess('R bar0 0x12 1 = 0x00'), read('bar0', 0x12, 1));
  t.deepEqual(parseAccess('R bar0 0x1f 2 ! EINVAL'), read('bar0', 0x1f, 2));
  t.deepEqual(parseAccess('W cfg 0x04 2 0x0007 = ok'), enable);
  t.deepEqual(parseAccess('X reset = ok'), { kind: 'reset' });
  t.deepEqual(parseAccess('M 4'), { kind: 'vectors', count: 4 });
  t.is(parseAccess('# comment'), null);
});

const notAccess = test.macro({
  title: (_, line: string) => `"${line}" is no access`,
  exec: (t, line: string) => t.throws(() => parseAccess(line), { message: /not an access/ }),
});
test(notAccess, 'R bar9 0x00 1');
test(notAccess, 'R bar0 12 1');
test(notAccess, 'R bar0 0x00 0');
test(notAccess, 'R bar0 0x00 4097');
test(notAccess, 'W bar0 0x00 9 0x00');
test(notAccess, 'W bar0 0x00 1');
test(notAccess, 'M 9');
test(notAccess, 'Z');

test('values are little-endian numbers, long ones bytes in order', (t) => {
  t.deepEqual(parseAnswer('R bar0 0x00 2 = 0x1234'), {
    kind: 'bytes',
    bytes: Buffer.of(0x34, 0x12),
  });
  t.deepEqual(parseAnswer('R cfg 0x00 9 = bytes:010203040506070809').kind, 'bytes');
  t.deepEqual(parseAnswer('R bar0 0x1f 2 ! EINVAL'), { kind: 'error', name: 'EINVAL' });
  t.deepEqual(parseAnswer('R bar0 0x00 4 = 0x12 short 1').kind, 'short');
});

test('an access is cut where a register ends', (t) => {
  t.deepEqual(parts(0x0e, 4, false), [
    { offset: 0x0e, width: 2 },
    { offset: 0x10, width: 2 },
  ]);
  t.deepEqual(parts(1, 2, false), [{ offset: 1, width: 2 }]);
  t.deepEqual(parts(20, 4, false), [{ offset: 20, width: 4 }]);
  t.deepEqual(parts(20, 4, true), [
    { offset: 20, width: 2 },
    { offset: 22, width: 2 },
  ]);
});

test('only the kernel’s side plays the parts of an access that RetroVF splits', (t) => {
  const steps = plan([enable, write('bar0', 0x0e, 4, 0x00020001)]);
  t.is(
    forKernel(steps),
    'W cfg 0x04 2 0x0007\nW bar0 0x0e 4 0x00020001\n+W bar0 0x0e 2 0x0001\n+W bar0 0x10 2 0x0002\n',
  );
  t.is(forRetroVf(steps), 'W cfg 0x04 2 0x0007\nW bar0 0x0e 4 0x00020001\n');
  t.deepEqual(
    parseTranscript(forKernel(steps)),
    steps.map(({ access }) => access),
  );
});

test('a split read must be the parts that the kernel read, joined', (t) => {
  const access = read('bar0', 0x12, 2);
  const kernel = ['R bar0 0x12 2 ! EINVAL', '+R bar0 0x12 1 = 0x07', '+R bar0 0x13 1 = 0x01'];
  t.deepEqual(compared(access, kernel, 'R bar0 0x12 2 = 0x0107').intended, { split: 1 });
  const wrong = compared(access, kernel, 'R bar0 0x12 2 = 0x0007');
  t.deepEqual(wrong.intended, {});
  t.is(wrong.others.length, 1);
});

test('all ones from an enabled register that the kernel reads is no intended difference', (t) => {
  const { others } = compared(
    read('bar0', 0x12, 1),
    ['R bar0 0x12 1 = 0x07'],
    'R bar0 0x12 1 = 0xff',
  );
  t.is(others.length, 1);
});

test('all ones are intended where the kernel says EIO, but only while I/O space is disabled', (t) => {
  const access = read('bar0', 0x12, 1);
  const lines = (answer: string) => [header, `R bar0 0x12 1 ${answer}`];
  const gated = compare(plan([access]), lines('! EIO'), lines('= 0xff'));
  t.deepEqual(gated.intended, { gated: 1 });
  t.is(compared(access, ['R bar0 0x12 1 ! EIO'], 'R bar0 0x12 1 = 0xff').others.length, 1);
});

test('a player that leaves out or adds an answer ends the comparison', (t) => {
  const steps = plan([enable]);
  const good = [header, 'W cfg 0x04 2 0x0007 = ok'];
  t.throws(() => compare(steps, good, [header]), { message: /answered "nothing"/ });
  t.throws(() => compare(steps, [...good, 'X reset = ok'], good), { message: /more than/ });
  t.throws(() => compare(steps, ['# msix 0x98'], good), { message: /MSI-X/ });
});

test('a seed gives the same accesses each time, another seed others', (t) => {
  const text = (seed: number) => random(seed, 500).map(formatAccess).join('\n');
  t.is(text(1), text(1));
  t.not(text(1), text(2));
});

test('every generated access is one that the player can read', (t) => {
  for (const access of [...directed(), ...random(3, 2000)]) {
    t.deepEqual(parseAccess(formatAccess(access)), access);
  }
});

test('the summary counts accesses, equal answers, intended differences by name, and others', (t) => {
  const one = compared(read('bar0', 0x10, 1), ['R bar0 0x10 1 ! EINVAL'], 'R bar0 0x10 1 = 0xff');
  t.is(
    summary(total([one, one])),
    '4 accesses: 2 equal, 2 intended differences (notify-width 2), 0 others',
  );
});

test('docs/differential.md lists every intended difference and says that there is no other', (t) => {
  const page = readFileSync(new URL('../../docs/differential.md', import.meta.url), 'utf8');
  const listed = [...page.matchAll(/^\| `([\w-]+)` /gm)].map(([, name]) => name);
  t.deepEqual(
    listed,
    differences.map(({ name }) => name),
  );
  t.regex(page, /^\| other differences\s*\| 0\s*\|$/m);
});
