// What operation looks like from outside: counters as Prometheus text.

import { request } from 'node:http';
import { text } from 'node:stream/consumers';
import test from 'ava';
import {
  connectGuest,
  metrics,
  serve,
  serveMetrics,
  type NativeHistogram,
} from '../../lib/index.js';
import { openOwner, openTransitional, socketFolder, softNic } from '../helpers/softnic.js';

/** The samples by their name with labels. */
function parse(exposition: string): Map<string, number> {
  const samples = exposition.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    samples.map((line) => {
      const [, name = '', value = ''] = /^([a-z_]+\{[^}]*\}) (\S+)$/.exec(line) ?? [];
      return [name, Number(value)];
    }),
  );
}

test('kicks, accesses and admin commands of a guest are counted by device and path', async (t) => {
  const host = await softNic(t, { uplink: { kind: 'gateway' } });
  const owner = await openOwner(t, host);
  const device = await openTransitional(t, host, { owner });
  const socket = await socketFolder(t);
  const handle = serve(device, { path: socket('vf') });
  t.teardown(() => handle.close());
  const guest = await connectGuest(handle.path);
  await guest.enumerate();
  await guest.start();
  await guest.measureControl(50);
  await guest.measureDoorbell(70);
  const exposition = metrics({ devices: [device], owners: [owner] });
  const at = parse(exposition);
  const { served } = device.stats();
  const label = `bdf="${device.bdf}"`;
  t.false(at.has(''), 'every line is a sample');
  t.is(at.get(`retrovf_kicks_total{${label},path="message"}`), served.notifies);
  t.true(served.notifies >= 70);
  t.is(at.get(`retrovf_control_accesses_total{${label},kind="read"}`), served.controlReads);
  t.is(at.get(`retrovf_control_access_seconds_count{${label}}`), served.controlLatency.count);
  t.is(
    at.get(`retrovf_control_access_seconds_bucket{${label},le="+Inf"}`),
    served.controlLatency.count,
  );
  t.is(at.get(`retrovf_owner_ready{bdf="${owner.bdf}"}`), 1);
  const commands = at.get(`retrovf_admin_commands_total{bdf="${owner.bdf}",result="completed"}`);
  t.is(commands, owner.stats().completed);
  t.true((commands ?? 0) >= 50);
  guest.close();
});

test('histogram buckets are cumulative, and the sum is that of the values', async (t) => {
  const latency: NativeHistogram = {
    count: 6,
    sum: 3_000_004_000,
    p50: 1,
    p90: 1,
    p99: 1,
    max: 1,
    buckets: [
      { ns: 900, count: 1 },
      { ns: 1_500, count: 2 },
      { ns: 3e9, count: 3 },
    ],
  };
  const stats = { submitted: 6, completed: 6, timedOut: 0, inFlight: 0, latency };
  const owner = { bdf: '0000:01:00.0', state: { kind: 'ready' }, stats: () => stats };
  const at = parse(metrics({ devices: [], owners: [owner as never] }));
  const bucket = (le: string) =>
    at.get(`retrovf_admin_command_seconds_bucket{bdf="0000:01:00.0",le="${le}"}`);
  t.deepEqual(['0.000001', '0.000002', '1', '+Inf'].map(bucket), [1, 3, 3, 6]);
  t.is(at.get('retrovf_admin_command_seconds_sum{bdf="0000:01:00.0"}'), 3.000004);
});

test('closed devices and lost owners are left out', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host);
  const device = await openTransitional(t, host, { owner });
  await device.close();
  await owner.close();
  const at = parse(metrics({ devices: [device], owners: [owner] }));
  t.deepEqual([...at], [[`retrovf_owner_ready{bdf="${owner.bdf}"}`, 0]]);
});

test('they are served over HTTP, and nothing else is', async (t) => {
  const socket = await socketFolder(t);
  const path = socket('metrics');
  const server = await serveMetrics(() => ({ devices: [], owners: [] }), { path });
  t.teardown(() => server.close());
  const get = (target: string, method = 'GET') =>
    new Promise<[number | undefined, string]>((resolve, reject) => {
      const sent = request({ socketPath: path, path: target, method }, (response) => {
        text(response).then((body) => resolve([response.statusCode, body]), reject);
      });
      sent.on('error', reject).end();
    });
  t.deepEqual(await get('/metrics'), [200, '\n']);
  t.is((await get('/'))[0], 404);
  t.is((await get('//'))[0], 404);
  t.is((await get('/metrics', 'POST'))[0], 405);
});
