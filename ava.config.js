// Everything but the guests (test/guest has a configuration of its own). Native tests run in child
// processes: the addon's threads and sockets then end with their file.
export default {
  files: ['test/**/*.test.ts', '!test/guest/**', '!test/lab/**'],
  extensions: { ts: 'module' },
  nodeArguments: ['--import=tsx'],
  workerThreads: false,
  concurrency: 2,
  timeout: '2m',
};
