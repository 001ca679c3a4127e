// Signals: the first asks, the second does not.

import { EventEmitter } from 'node:events';
import test from 'ava';
import { Interruption, watchSignals, type SignalSource } from '../../lib/cli/signals.js';

class FakeProcess extends EventEmitter {
  readonly exits: number[] = [];
  exit(code: number): void {
    this.exits.push(code);
  }
}

test('the first signal aborts and the second ends the process with its own code', (t) => {
  const source = new FakeProcess();
  using watch = watchSignals(source as SignalSource);
  source.emit('SIGTERM');
  t.true(watch.signal.reason instanceof Interruption);
  t.deepEqual(source.exits, []);
  source.emit('SIGINT');
  t.deepEqual(source.exits, [130]);
});

test('nothing is listened to after disposal', (t) => {
  const source = new FakeProcess();
  {
    using _watch = watchSignals(source as SignalSource);
    t.is(source.listenerCount('SIGINT'), 1);
  }
  t.deepEqual(source.eventNames(), []);
});
