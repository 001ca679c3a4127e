// A stream of text as lines that can be waited for.

// Firmware clears and colours the screen on its serial console too.
// oxlint-disable-next-line no-control-regex
const terminalCodes = /\x1b(?:\[[0-9;?]*[A-Za-z]|c)|\r/g;

interface Waiter {
  check(): boolean;
  fail(reason: string): void;
}

export class Lines {
  readonly all: string[] = [];
  #rest = '';
  #ended: string | undefined;
  readonly #waiters = new Set<Waiter>();

  push(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) this.all.push(line.replace(terminalCodes, ''));
    this.#wake();
  }

  /** No more lines will come; whoever still waits is told why. */
  end(reason: string): void {
    if (this.#rest !== '') this.push('\n');
    this.#ended = reason;
    for (const waiter of this.#waiters) waiter.fail(reason);
  }

  /**
   * Resolves with what `find` returns, as soon as that is not undefined. A
   * `find` that throws ends the waiting.
   */
  until<T>(
    what: string,
    seconds: number,
    find: (lines: readonly string[]) => T | undefined,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(waiter);
      };
      const waiter: Waiter = {
        check: () => {
          try {
            const found = find(this.all);
            if (found === undefined) return false;
            resolve(found);
          } catch (cause) {
            reject(cause);
          }
          settle();
          return true;
        },
        fail: (reason) => {
          settle();
          const tail = this.all.slice(-15).map((line) => `\n  | ${line}`);
          reject(new Error(`${what}: ${reason}; last lines:${tail.join('')}`));
        },
      };
      const timer = setTimeout(() => waiter.fail(`not within ${seconds} s`), seconds * 1000);
      this.#waiters.add(waiter);
      if (!waiter.check() && this.#ended !== undefined) waiter.fail(this.#ended);
    });
  }

  #wake(): void {
    for (const waiter of this.#waiters) waiter.check();
  }
}
