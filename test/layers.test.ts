// The arrows of the architecture: which module may import which.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';

const lib = fileURLToPath(new URL('../lib', import.meta.url));

interface Import {
  readonly from: string;
  readonly to: string;
  /** Gone at run time. */
  readonly typeOnly: boolean;
}

const imports: Import[] = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .flatMap((name) => {
    const source = readFileSync(join(lib, name), 'utf8');
    const found = [...source.matchAll(/^(?:import|export)\b([^;]*?)\bfrom '([^']+)';/gms)];
    return found.map(([, what = '', target = '']) => ({
      from: name,
      to: target.startsWith('.')
        ? relative(lib, join(lib, dirname(name), target)).replace(/\.js$/, '.ts')
        : target,
      typeOnly: what.trim().startsWith('type ') || what.trim() === 'type',
    }));
  });

/** All modules that a module imports at run time, directly or not. */
function reach(start: string): Set<string> {
  const seen = new Set<string>();
  const todo = [start];
  for (let name = todo.pop(); name !== undefined; name = todo.pop()) {
    for (const { from, to, typeOnly } of imports) {
      if (from !== name || typeOnly || seen.has(to)) continue;
      seen.add(to);
      todo.push(to);
    }
  }
  return seen;
}

const modules = [...new Set(imports.map(({ from }) => from))];

const pure = test.macro({
  title: (_, folder: string) =>
    `lib/${folder} reaches neither the addon nor the service, and does no I/O`,
  exec(t, folder: string) {
    const members = modules.filter((name) => name.startsWith(`${folder}/`));
    t.true(members.length > 0);
    for (const member of members) {
      const bad = [...reach(member)].filter((to) => /^(addon\.ts|service\/|host\/|node:)/.test(to));
      t.deepEqual(bad, [], member);
    }
  },
});
test(pure, 'pci');
test(pure, 'virtio');

test('only lib/addon.ts loads native code', (t) => {
  const loaders = readdirSync(lib, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .filter((name) =>
      /process\.dlopen|\.node'|linux-x64-gnu/.test(readFileSync(join(lib, name), 'utf8')),
    );
  t.deepEqual(loaders, ['addon.ts']);
});

test('native.ts holds types only: nobody imports it at run time', (t) => {
  t.deepEqual(
    imports.filter(({ to, typeOnly }) => to === 'native.ts' && !typeOnly),
    [],
  );
});

test('nothing below the command line imports it', (t) => {
  const bad = imports.filter(({ from, to }) => to.startsWith('cli/') && !from.startsWith('cli/'));
  t.deepEqual(bad, []);
});

test('nothing below the service imports it', (t) => {
  const above = /^(cli\/|service\/|index\.ts)/;
  t.deepEqual(
    imports.filter(({ from, to }) => to.startsWith('service/') && !above.test(from)),
    [],
  );
});

test('every relative import names a module that exists', (t) => {
  const missing = imports.filter(({ to }) => to.endsWith('.ts') && !existsSync(join(lib, to)));
  t.deepEqual(missing, []);
});
