// The command table.

import type { Command } from '../command.js';
import { demoCommand } from './demo.js';
import { probeCommand } from './probe.js';
import { serveCommand } from './serve.js';

export const commands: readonly Command[] = [demoCommand, probeCommand, serveCommand];
