// `retrovf demo`: it works, and says so in both forms.

import { readdir } from 'node:fs/promises';
import test from 'ava';
import { folder, start } from './retrovf.js';

interface Times {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

interface Report {
  readonly ok: boolean;
  readonly presentation: string;
  readonly steps: readonly {
    name: string;
    ok: boolean;
    ms: number;
    accesses: number;
    commands: number;
    trace: readonly { access: string; command: string }[];
  }[];
  readonly packets: { sent: number; received: number };
  readonly ping: Times & { sent: number; received: number };
  readonly control: Times;
  readonly doorbell: Times;
}

const names =
  'softnic probe owner device serve attach enumerate start dhcp ping control doorbell stop close'.split(
    ' ',
  );

test.serial('--json reports every step, the pings and what was measured', async (t) => {
  const tmp = await folder(t);
  const { code, stdout, stderr } = await start(['demo', '--json', '--pings', '20'], { TMPDIR: tmp })
    .ended;
  t.is(code, 0, stderr + stdout);
  t.is(stderr, '');
  const report = JSON.parse(stdout) as Report;
  t.true(report.ok);
  t.deepEqual(
    report.steps.map(({ name }) => name),
    names,
  );
  t.true(report.steps.every(({ ok, ms }) => ok && ms >= 0));
  t.is(report.ping.sent, 20);
  t.is(report.ping.received, 20);
  t.true(report.packets.sent >= 20 && report.packets.received >= 20);
  for (const measured of [report.control, report.doorbell]) {
    const { count, p50, p99, max } = measured;
    t.deepEqual(Object.keys(measured), ['count', 'p50', 'p90', 'p99', 'max']);
    t.true(count > 0 && p50 > 0 && p50 <= p99 && p99 <= max);
  }
  t.deepEqual(
    (await readdir(tmp)).filter((name) => name.startsWith('retrovf')),
    [],
  );
});

test.serial('each register of the start becomes the admin command of its width', async (t) => {
  const { stdout } = await start(['demo', '--json', '--pings', '1', '--presentation', 'legacy'])
    .ended;
  const report = JSON.parse(stdout) as Report;
  t.is(report.presentation, 'legacy');
  const bringUp = report.steps.find(({ name }) => name === 'start');
  t.true((bringUp?.commands ?? 0) > 0);
  const lines = new Map(
    bringUp?.trace.map(({ access, command }) => [access.slice(0, 15), command]),
  );
  t.regex(lines.get('in  BAR0+0x00/4') ?? '', /^LEGACY_COMMON_CFG_READ\(0,4\) = 0x[0-9a-f]{8}$/);
  t.regex(lines.get('out BAR0+0x04/4') ?? '', /^LEGACY_COMMON_CFG_WRITE\(4,4\) = 0x[0-9a-f]{8}$/);
  t.is(lines.get('out BAR0+0x12/1'), 'LEGACY_COMMON_CFG_WRITE(18,1) = 0x07');
});

test.serial('the screen has 100 columns and 45 lines, and no colour on a pipe', async (t) => {
  const { code, stdout } = await start(['demo', '--pings', '5']).ended;
  t.is(code, 0);
  const lines = stdout.trimEnd().split('\n');
  t.true(lines.length <= 45, `${lines.length} lines`);
  for (const line of lines) t.true(line.length <= 100, line);
  for (const name of names) t.regex(stdout, new RegExp(`^ ✔ ${name} `, 'm'));
  t.notRegex(stdout, /[^\P{Cc}\n]/u);
});

test.serial('a step that fails is named, and the exit code is 1', async (t) => {
  const missing = { NAPI_RS_NATIVE_LIBRARY_PATH: '/nonexistent/retrovf.node' };
  const { code, stdout } = await start(['demo', '--json'], missing).ended;
  t.is(code, 1);
  const report = JSON.parse(stdout) as Report & { failed: string };
  t.false(report.ok);
  t.is(report.failed, 'softnic');
  const text = await start(['demo'], missing).ended;
  t.is(text.code, 1);
  t.regex(text.stdout, /failed at step softnic/);
});

test.serial('SIGINT ends it with 130', async (t) => {
  const running = start(['demo', '--pings', '10000']);
  running.child.stdout?.once('data', () => running.child.kill('SIGINT'));
  t.is((await running.ended).code, 130);
});
