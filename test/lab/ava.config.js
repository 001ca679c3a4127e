// L1 shares two processors with the software that emulates it, so tests run one after another.
// Deadlines live in the tests; the timeout below only ends a run in which one is missing.
export default {
  files: ['test/lab/*.test.ts'],
  extensions: { ts: 'module' },
  nodeArguments: ['--import=tsx'],
  concurrency: 1,
  serial: true,
  timeout: '20m',
  workerThreads: false,
};
