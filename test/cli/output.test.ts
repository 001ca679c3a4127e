// The writers: histogram, tables, units, text from outside.

import test from 'ava';
import { describeFailure } from '../../lib/cli/failure.js';
import { exitCodeOf } from '../../lib/cli/exit-codes.js';
import { chart } from '../../lib/cli/output/histogram.js';
import { plain, styles, widthOf, wrap } from '../../lib/cli/output/styles.js';
import { table } from '../../lib/cli/output/table.js';
import { duration } from '../../lib/cli/output/units.js';
import { Interruption } from '../../lib/cli/signals.js';
import { RetroVfError } from '../../lib/index.js';

const size = { columns: 20, rows: 4 };

test('the tallest column is where most samples are, and a single one is still seen', (t) => {
  const { rows } = chart(
    [
      { ns: 1000, count: 99 },
      { ns: 100_000, count: 1 },
    ],
    size,
  );
  t.deepEqual(rows, [
    `█${' '.repeat(19)}`,
    `█${' '.repeat(19)}`,
    `█${' '.repeat(19)}`,
    `█${' '.repeat(18)}▁`,
  ]);
});

test('the axis has its ticks where the values are, on a logarithmic scale', (t) => {
  const { axis, labels } = chart(
    [
      { ns: 1000, count: 1 },
      { ns: 100_000, count: 1 },
    ],
    size,
  );
  t.is(axis, '┬──┬──┬───┬──┬──┬──┬');
  t.true(labels.startsWith('1 µs'));
  t.true(labels.length <= 20);
});

test('the slowest few are counted, not drawn', (t) => {
  const bulk = Array.from({ length: 100 }, (_, i) => ({ ns: 1000 + i, count: 100 }));
  const { beyond, labels } = chart([...bulk, { ns: 1e9, count: 3 }], size);
  t.is(beyond, 3);
  t.notRegex(labels, / s$/);
  t.is(chart(bulk, size).beyond, 0);
});

test('one bucket alone can be drawn, none can not', (t) => {
  t.is(chart([{ ns: 5000, count: 3 }], size).rows.length, 4);
  t.deepEqual(chart([], size).rows, []);
  t.deepEqual(chart([{ ns: 5000, count: 0 }], size).rows, []);
});

test('durations have three digits and their unit', (t) => {
  const shown = [0, 7, 999, 1000, 12_345, 999_600, 1_500_000, 2e9].map(duration);
  t.deepEqual(shown, [
    '0 ns',
    '7 ns',
    '999 ns',
    '1.00 µs',
    '12.3 µs',
    '1.00 ms',
    '1.50 ms',
    '2.00 s',
  ]);
});

test('columns line up under colour too', (t) => {
  const style = styles(true);
  const [head = '', row = ''] = table(['A', 'B'], [[style.name('wide cell'), 'x']], style);
  t.is(widthOf(head), 'wide cell  B'.length);
  t.is(widthOf(row), 'wide cell  x'.length);
});

test('control characters become visible', (t) => {
  t.is(plain('a\u001b[2J\r\n\u009b1m'), 'a\\x1b[2J\\x0d\\x0a\\x9b1m');
});

test('text is broken at spaces, and a long word stays whole', (t) => {
  t.deepEqual(wrap('one two threefourfive six', 8), ['one two', 'threefourfive', 'six']);
});

test('the exit code follows the first known code in the chain of causes', (t) => {
  const cause = Object.assign(new Error('no'), { code: 'EACCES' });
  t.is(exitCodeOf(new RetroVfError('ERR_SYSFS', 'unreadable', { cause })), 5);
  t.is(exitCodeOf(new RetroVfError('ERR_NO_SUCH_DEVICE', 'none', { cause })), 3);
  t.is(exitCodeOf(new RetroVfError('ERR_OWNER_LOST', 'lost')), 8);
  t.is(exitCodeOf(new Error('unknown')), 1);
  t.is(exitCodeOf(new Interruption('SIGINT')), 130);
  t.is(exitCodeOf(new Interruption('SIGTERM')), 143);
});

test('a failure is described with its causes, to a bounded depth', (t) => {
  const loop = new Error('loop');
  loop.cause = loop;
  let depth = 0;
  for (let each = describeFailure(loop).cause; each !== undefined; each = each.cause) depth += 1;
  t.is(depth, 4);
  const failure = describeFailure(
    new RetroVfError('ERR_ARGUMENT', 'bad', { detail: { name: 'x' } }),
  );
  t.like(failure, { code: 'ERR_ARGUMENT', message: 'bad', detail: { name: 'x' } });
  t.is(typeof failure.hint, 'string');
});
