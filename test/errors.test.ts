import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import * as errors from '../lib/errors.js';
import { attempt, attemptAsync, errorCodes, nativeFailure, RetroVfError } from '../lib/errors.js';

const root = fileURLToPath(new URL('..', import.meta.url));

function sources(folder: string, ending: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ending) && !/(^|\/)(native|target)\//.test(name))
    .map((name) => join(folder, name));
}
const text = (path: string) => readFileSync(join(root, path), 'utf8');

const codes = Object.keys(errorCodes) as (keyof typeof errorCodes)[];
const rust = sources('crates', '.rs').map(text).join('\n');

test('every code of the library is made by a maker', (t) => {
  const makers = text('lib/errors.ts').split('\nexport class RetroVfError')[1] ?? '';
  const unmade = codes.filter(
    (code) => errorCodes[code].origin === 'lib' && !makers.includes(`'${code}'`),
  );
  t.deepEqual(unmade, []);
});

test('every maker is used somewhere', (t) => {
  const others = sources('lib', '.ts')
    .filter((path) => path !== 'lib/errors.ts')
    .map(text)
    .join('\n');
  const makers = Object.entries(errors)
    .filter(
      ([name, value]) => typeof value === 'function' && !/^(RetroVfError|isErrorCode)$/.test(name),
    )
    .map(([name]) => name);
  t.deepEqual(
    makers.filter((name) => !others.includes(`${name}(`)),
    [],
  );
});

test('every code of the addon exists in Rust', (t) => {
  const unknown = codes.filter(
    (code) => errorCodes[code].origin === 'native' && !rust.includes(`"${code}"`),
  );
  t.deepEqual(unknown, []);
});

test('every code that Rust uses is in the table', (t) => {
  const used = new Set([...rust.matchAll(/"(ERR_[A-Z_0-9]+)"/g)].map(([, code]) => code ?? ''));
  t.deepEqual(
    [...used].filter((code) => !errors.isErrorCode(code)),
    [],
  );
});

test('docs/errors.md has every code with its meaning and hint, in order, and no other', (t) => {
  const rows = [...text('docs/errors.md').matchAll(/^\| `(ERR_[A-Z_0-9]+)` \| (.*) \| (.*) \|$/gm)];
  t.deepEqual(
    rows.map(([, code, meaning, hint]) => [code, meaning, hint]),
    codes.map((code) => [code, errorCodes[code].meaning, errorCodes[code].hint]),
  );
});

test('codes stand in alphabetical order, meanings and hints are sentences', (t) => {
  t.deepEqual(codes, codes.toSorted());
  for (const code of codes) {
    for (const sentence of [errorCodes[code].meaning, errorCodes[code].hint])
      t.regex(sentence, /^\S.*\.$/s);
  }
});

test('an error of the addon keeps its code and becomes the cause', (t) => {
  const thrown = Object.assign(new Error('0000:5e:00.1 is gone'), { code: 'ERR_DEVICE_GONE' });
  const error = t.throws<RetroVfError>(
    () =>
      attempt('0000:5e:00.1', () => {
        throw thrown;
      }),
    { instanceOf: RetroVfError },
  );
  t.like(error, { code: 'ERR_DEVICE_GONE', bdf: '0000:5e:00.1', cause: thrown });
  t.is(error?.hint, errorCodes.ERR_DEVICE_GONE.hint);
});

test('an error of the addon with an unknown code is ERR_NATIVE and names it', async (t) => {
  const thrown = Object.assign(new Error('strange'), { code: 'ERR_STRANGE' });
  const error = await t.throwsAsync<RetroVfError>(
    attemptAsync(undefined, () => Promise.reject(thrown)),
  );
  t.like(error, { code: 'ERR_NATIVE', detail: { nativeCode: 'ERR_STRANGE' } });
});

test('whatever is thrown becomes a RetroVfError, and one of ours stays itself', (t) => {
  for (const thrown of [undefined, null, 7, 'text', { code: 5 }]) {
    t.is(nativeFailure(thrown).code, 'ERR_NATIVE');
  }
  const own = errors.closed('x');
  t.is(nativeFailure(own), own);
});

test('an error is printed with its code, detail, hint and the message of its cause', (t) => {
  const error = errors.ownerLost('0000:5e:00.0', 'gone', new Error('why'));
  t.deepEqual(JSON.parse(JSON.stringify(error)), {
    code: 'ERR_OWNER_LOST',
    message: 'The owner 0000:5e:00.0 is lost: the function no longer answers',
    bdf: '0000:5e:00.0',
    detail: { reason: 'gone' },
    hint: errorCodes.ERR_OWNER_LOST.hint,
    cause: 'why',
  });
});
