// The host's end of TCP streams with a guest: takes and gives mebibytes, and times each stream from its
// beginning until the other side has all of it.

import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';

const mebibyte = Buffer.alloc(1 << 20, 'RetroVF ');

export class Streams {
  readonly #server: Server;
  /** Nanoseconds for each mebibyte of the streams so far. */
  readonly times: number[] = [];

  private constructor(serve: (socket: Socket) => Promise<number>) {
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      const start = process.hrtime.bigint();
      serve(socket)
        .then((mebibytes) => {
          this.times.push(Number(process.hrtime.bigint() - start) / mebibytes);
          socket.end();
        })
        // The guest then misses its end, and says so.
        .catch(() => socket.destroy());
    });
  }

  /** Streams from the guest: it ends each, and waits for our end. */
  static taking(): Promise<Streams> {
    return new Streams(async (socket) => {
      let bytes = 0;
      for await (const data of socket as AsyncIterable<Buffer>) bytes += data.length;
      return bytes / mebibyte.length;
    }).#listening();
  }

  /** Streams of so many mebibytes to the guest, which ends when it has ours. */
  static giving(mebibytes: number): Promise<Streams> {
    return new Streams(async (socket) => {
      socket.resume();
      const ended = once(socket, 'end');
      for (let left = mebibytes; left > 0; left -= 1) {
        if (!socket.write(mebibyte)) await once(socket, 'drain');
      }
      socket.end();
      await ended;
      return mebibytes;
    }).#listening();
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  close(): void {
    this.#server.close();
  }

  async #listening(): Promise<this> {
    await once(this.#server.listen(0, '127.0.0.1'), 'listening');
    return this;
  }
}
