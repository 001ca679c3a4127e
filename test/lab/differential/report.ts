// The report of the differential test: JSON from a run, and the page made of it.

import type { Comparison } from './compare.js';
import { differences } from './differences.js';

export interface Report {
  readonly kernel: string;
  readonly seeds: readonly number[];
  readonly accessesPerSeed: number;
  /** Accesses of the directed sequence. */
  readonly directed: number;
  readonly total: Comparison;
}

/** Written by the test, read by make-page.ts. */
export const reportFile = new URL('../../../test-results/differential.json', import.meta.url);

export function page(report: Report): string {
  const { total } = report;
  const intended = Object.values(total.intended).reduce((sum, count) => sum + count, 0);
  const seeds = report.seeds.join(', ');
  const rows = differences.map(
    ({ name, kernel, ours, why }) =>
      `| \`${name}\` | ${kernel} | ${ours} | ${why} | ${count(total.intended[name] ?? 0)} |`,
  );
  return `# RetroVF and the kernel’s driver, access by access

One VF, driven once through Linux’ \`virtio_vfio_pci\` and once through \`retrovf serve\`, gets the same sequences of accesses to configuration space and BAR0: every width, unaligned, overlapping, beyond the end, with MSI-X on and off, across resets.

| | |
|---|---|
| Linux | ${report.kernel} |
| sequences | directed (${count(report.directed)} accesses), seeds ${seeds} (${count(report.accessesPerSeed)} each) |
| accesses | ${count(total.accesses)} |
| equal answers | ${count(total.equal)} |
| intended differences | ${count(intended)} |
| other differences | ${count(total.others.length)} |

## Intended differences

The whole list. An answer that differs and fits no row fails the test, and so does a row that no access has met.

| Name | virtio_vfio_pci | RetroVF | Why | Met |
|---|---|---|---|---|
${rows.join('\n')}

Where RetroVF splits an access, the kernel’s side plays the parts after its refusal, so that the device stays the same on both sides; the parts’ answers joined must be RetroVF’s answer.

## How to run it

    npm run test:lab -- test/lab/differential.test.ts
    npm run test:lab -- --replay FILE
    node --import=tsx test/lab/differential/make-page.ts

The first writes \`test-results/differential.json\`, from which the last makes this page. The second plays one transcript; its last line counts the accesses, the equal answers, the intended differences by name and the others, and it exits with 0 only if there are no others. A transcript has a line an access; answers in it are ignored:

    R bar0 0x12 1               read: region, offset, width
    W cfg 0x04 2 0x0007         write: region, offset, width, value
    X reset                     reset of the function
    M 4                         MSI-X on with 4 eventfds, 0: off
    # a comment
`;
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}
