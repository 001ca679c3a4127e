// A learning switch between UNIX sockets that carry frames as QEMU's stream
// network does. QEMU's own hub will not do for guests that talk to each other:
// it floods, so that the user-mode router answers for other guests, and a guest
// that still boots holds up everybody's frames.

import { createServer, connect, type Socket } from 'node:net';
import { once } from 'node:events';

/** Frames for a guest that does not read them are dropped beyond this. */
const backlogLimit = 4 * 1024 * 1024;
const lengthBytes = 4;

type Receive = (from: SwitchPort, frame: Buffer) => void;

class SwitchPort {
  readonly #receive: Receive;
  #socket: Socket | undefined;
  #rest: Buffer = Buffer.alloc(0);

  constructor(receive: Receive) {
    this.#receive = receive;
  }

  attach(socket: Socket): void {
    this.#socket = socket;
    this.#rest = Buffer.alloc(0);
    socket.on('data', (data: Buffer) => this.#take(data));
    // A guest that is killed resets its connection: no more than a loose cable.
    socket.on('error', () => socket.destroy());
  }

  send(frame: Buffer): void {
    const socket = this.#socket;
    if (!socket?.writable || socket.writableLength > backlogLimit) return;
    const length = Buffer.alloc(lengthBytes);
    length.writeUInt32BE(frame.length);
    socket.write(Buffer.concat([length, frame]));
  }

  close(): void {
    this.#socket?.destroy();
  }

  #take(data: Buffer): void {
    let rest = this.#rest.length === 0 ? data : Buffer.concat([this.#rest, data]);
    while (rest.length >= lengthBytes) {
      const end = lengthBytes + rest.readUInt32BE();
      if (rest.length < end) break;
      this.#receive(this, rest.subarray(lengthBytes, end));
      rest = rest.subarray(end);
    }
    this.#rest = rest;
  }
}

/** Switches between guests at `paths` and a server at `uplink`; returns its end. */
export async function startSwitch(paths: readonly string[], uplink: string): Promise<() => void> {
  const places = new Map<string, SwitchPort>();
  const ports: SwitchPort[] = [];
  const forward: Receive = (from, frame) => {
    places.set(frame.toString('hex', 6, 12), from);
    const place = places.get(frame.toString('hex', 0, 6));
    if (place !== undefined) return place.send(frame);
    for (const port of ports) if (port !== from) port.send(frame);
  };
  for (let index = 0; index <= paths.length; index += 1) ports.push(new SwitchPort(forward));

  const cable = connect(uplink);
  await once(cable, 'connect');
  ports[paths.length]?.attach(cable);
  const servers = paths.map((path, index) =>
    createServer((socket) => ports[index]?.attach(socket)).listen(path),
  );
  await Promise.all(servers.map((server) => once(server, 'listening')));
  return () => {
    for (const server of servers) server.close();
    for (const port of ports) port.close();
  };
}
