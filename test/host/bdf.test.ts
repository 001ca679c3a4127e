import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import { RetroVfError } from '../../lib/errors.js';
import { parseBdf, tryParseBdf } from '../../lib/host/bdf.js';

const good = test.macro({
  title: (_, text: string, bdf: string) => `${text} is the function ${bdf}`,
  exec: (t, text: string, bdf: string) => t.is(String(parseBdf(text)), bdf),
});
test(good, '0000:03:00.2', '0000:03:00.2');
test(good, '03:00.1', '0000:03:00.1');
test(good, 'FFFF:FF:1F.7', 'ffff:ff:1f.7');

const bad = test.macro({
  title: (_, text: string) => `${JSON.stringify(text)} is no PCI address`,
  exec(t, text: string) {
    const error = t.throws(() => parseBdf(text), { instanceOf: RetroVfError });
    t.is(error?.code, 'ERR_BDF_SYNTAX');
    t.true((error?.message.length ?? 0) < 200);
  },
});
test(bad, '');
test(bad, '3:0.1');
test(bad, '0000:03:20.0');
test(bad, '0000:03:00.8');
test(bad, '0000:03:00');
test(bad, '0000:03:00.0\n');
test(bad, '../../../etc/passwd');
test(bad, 'x'.repeat(10_000));

testProp(
  'any text parses to an address that parses to itself, or not at all',
  [fc.string()],
  (t, text) => {
    const bdf = tryParseBdf(text);
    t.true(bdf === null || parseBdf(bdf) === bdf);
  },
);
