// QEMU's control socket: properties of the PF change while L1 runs.

import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { createInterface, type Interface } from 'node:readline';

export class Qmp {
  readonly #socket: Socket;
  readonly #lines: Interface;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#lines = createInterface(socket);
  }

  static async connect(path: string): Promise<Qmp> {
    const socket = createConnection(path);
    await once(socket, 'connect');
    const qmp = new Qmp(socket);
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const take = (line: string): void => {
        const message = JSON.parse(line) as { return?: unknown; error?: { desc: string } };
        if (message.error === undefined && message.return === undefined) return; // an event
        this.#lines.off('line', take);
        if (message.error === undefined) resolve(message.return);
        else reject(new Error(`${command}: ${message.error.desc}`));
      };
      this.#lines.on('line', take);
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    });
  }

  close(): void {
    this.#lines.close();
    this.#socket.destroy();
  }
}
