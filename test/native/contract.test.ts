// lib/native.ts is written by hand: the loaded addon must have every class and method it declares.

import { readFileSync } from 'node:fs';
import test from 'ava';
import { native } from '../../lib/addon.js';

const source = readFileSync(new URL('../../lib/native.ts', import.meta.url), 'utf8');
const addon = native() as unknown as Record<string, { prototype: object } | undefined>;

const classes = [...source.matchAll(/^export declare class (\w+) \{(.*?)^\}/gms)].map(
  ([, name = '', body = '']) => ({ name, body }),
);

const members = test.macro({
  title: (_, name: string) =>
    `the addon’s ${name} has the members that lib/native.ts declares, and no others`,
  exec(t, name: string, body: string) {
    const declared = [...body.matchAll(/^  (static )?(?:readonly )?(\w+)[(:]/gm)];
    const names = (isStatic: boolean) =>
      declared
        .filter(([, prefix]) => (prefix !== undefined) === isStatic)
        .map(([, , member]) => member);
    const found = Object.getOwnPropertyNames(addon[name]?.prototype ?? {});
    t.deepEqual(found.toSorted(), [...new Set(['constructor', ...names(false)])].toSorted());
    for (const member of names(true)) t.true(member !== undefined && member in (addon[name] ?? {}));
  },
});
for (const { name, body } of classes) test(members, name, body);

test('the addon exports the classes of lib/native.ts and setLogger', (t) => {
  const exported = Object.keys(addon);
  const expected = [...classes.map(({ name }) => name), 'setLogger'];
  t.deepEqual(
    expected.filter((name) => !exported.includes(name)),
    [],
  );
});
