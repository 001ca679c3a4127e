import type { NativeHistogram } from '../../index.js';
import { defineCommand } from '../command.js';
import { runDemo, type DemoReport } from '../demo/run-demo.js';
import { DemoScreen } from '../demo/screen.js';
import type { Progress } from '../demo/stage.js';
import { exitCode } from '../exit-codes.js';
import { jsonLine } from '../output/json.js';

const silent: Progress = { started() {}, finished() {} };

export const demoCommand = defineCommand({
  name: 'demo',
  summary: 'Run a legacy guest on a VF, from nothing to a ping, without hardware, root or QEMU',
  details: [
    'Brings the SoftNIC up, serves one of its VFs as a transitional device, attaches a virtio 0.9.5 ' +
      'driver to it over vfio-user, and lets that get an address and ping the gateway. Shows what the ' +
      'driver did to the legacy registers and the admin commands that it became, and measures how ' +
      'long register accesses and notifications take, on this machine, now.',
    'In each step, "acc" counts accesses of the guest to BAR0 and "cmd" admin commands.',
  ],
  options: {
    pings: {
      kind: 'number',
      value: 'N',
      min: 1,
      max: 10_000,
      summary: 'Pings to send (default 100)',
    },
    presentation: {
      kind: 'choice',
      value: 'KIND',
      choices: ['transitional', 'legacy'],
      summary: 'How the VF is presented: transitional (default) or legacy',
    },
  },
  examples: [
    { command: 'retrovf demo', does: 'Look' },
    { command: 'retrovf demo --json | jq .doorbell', does: 'Measure' },
  ],
  async run({ pings = 100, presentation = 'transitional' }, _operands, { stdout, json, signal }) {
    const screen = json ? undefined : new DemoScreen(stdout);
    const report = await runDemo({ pings, presentation }, screen ?? silent, signal).finally(() =>
      screen?.settle(),
    );
    if (screen === undefined) stdout.write(jsonLine(summary(report)));
    else screen.end(report);
    return report.ok ? exitCode.done : exitCode.failed;
  },
});

/** Without the hundreds of buckets that the picture is drawn from. */
function summary(report: DemoReport): Record<string, unknown> {
  const { ping, control, doorbell, steps } = report;
  return {
    ...report,
    ping: ping && { sent: ping.sent, received: ping.received, ...times(ping) },
    control: control && times(control),
    doorbell: doorbell && times(doorbell),
    ...(report.ok ? {} : { failed: steps.find((step) => !step.ok)?.name }),
  };
}

function times({ count, p50, p90, p99, max }: NativeHistogram) {
  return { count, p50, p90, p99, max };
}
