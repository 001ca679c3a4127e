// Writes the help texts into docs/cli.md:
//   npx tsx docs/make-cli-md.ts

import { readFileSync, writeFileSync } from 'node:fs';
import { commands } from '../lib/cli/commands/index.js';
import { commandHelp, programHelp } from '../lib/cli/help.js';
import { styles } from '../lib/cli/output/styles.js';

const page = new URL('cli.md', import.meta.url);
const plain = styles(false);
const texts = new Map([
  ['retrovf', programHelp(commands, plain)],
  ...commands.map((command) => [command.name, commandHelp(command, plain)] as const),
]);

const before = readFileSync(page, 'utf8');
const after = before.replaceAll(
  /(<!-- help: (\w+) -->\n```text\n)[^`]*(```)/g,
  (whole, start: string, name: string, end: string) => {
    const text = texts.get(name);
    return text === undefined ? whole : start + text + end;
  },
);
writeFileSync(page, after);
