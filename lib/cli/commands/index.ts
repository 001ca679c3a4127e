// The command table.

import type { Command } from '../command.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { probeCommand } from './probe.js';
import { serveCommand } from './serve.js';
import { setupCommand } from './setup.js';
import { teardownCommand } from './teardown.js';

export const commands: readonly Command[] = [
  demoCommand,
  doctorCommand,
  probeCommand,
  serveCommand,
  setupCommand,
  teardownCommand,
];
