// Opening functions of the host, as far as it fails before VFIO is there.

import { mkdir, rm, symlink, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { parseBdf } from '../../lib/host/bdf.js';
import { VfioHost, type VfioOptions } from '../../lib/host/vfio.js';
import { nic, pf, sysfsTree, vf } from '../helpers/sysfs-tree.js';

async function hostOf(t: ExecutionContext, options: VfioOptions = {}) {
  const { sysfs, root, remove } = await sysfsTree(nic());
  t.teardown(remove);
  const dev = join(root, 'dev');
  await mkdir(join(dev, 'vfio/devices'), { recursive: true });
  const host = new VfioHost({ sysfs, dev, ...options });
  return { host, dev, link: (bdf: string, name: string) => sysfs.path(parseBdf(bdf), name) };
}

test('a kernel without VFIO is named, with the node that is missing', async (t) => {
  const { host, dev } = await hostOf(t);
  const error = await t.throwsAsync(host.open(parseBdf(vf(1))), { code: 'ERR_VFIO_UNAVAILABLE' });
  t.true(error.message.includes(join(dev, 'vfio/vfio')));
  t.like(error, { bdf: vf(1) });
});

test('a function on another driver is refused with the commands that bind it', async (t) => {
  const { host, link } = await hostOf(t);
  await unlink(link(vf(1), 'driver'));
  await symlink('../../../../bus/pci/drivers/virtio-pci', link(vf(1), 'driver'));
  const error = await t.throwsAsync(host.open(parseBdf(vf(1))), { code: 'ERR_VFIO_NOT_BOUND' });
  t.regex(error.message, /bound to virtio-pci/);
  t.true((error as { hint?: string }).hint?.includes(`echo ${vf(1)} > /sys/bus/pci/drivers_probe`));
});

test('a function without an IOMMU group is refused', async (t) => {
  const { host, link } = await hostOf(t);
  await rm(link(pf, 'iommu_group'));
  await t.throwsAsync(host.open(parseBdf(pf)), { code: 'ERR_VFIO_NO_IOMMU' });
});

test('a function that is not there is no such device', async (t) => {
  const { host } = await hostOf(t);
  await t.throwsAsync(host.open(parseBdf(vf(7))), { code: 'ERR_NO_SUCH_DEVICE' });
});

test('without iommufd a function has no node of its own to be opened by', async (t) => {
  const { host, dev } = await hostOf(t, { via: 'cdev' });
  await writeFile(join(dev, 'vfio/vfio'), '');
  await t.throwsAsync(host.open(parseBdf(vf(1))), { code: 'ERR_VFIO_UNAVAILABLE' });
});

test('a VF token that is no UUID is refused, and not shown', (t) => {
  const secret = '00112233-4455-6677-8899-aabbccddeef';
  const error = t.throws(() => new VfioHost({ vfToken: secret }), { code: 'ERR_ARGUMENT' });
  t.false(JSON.stringify(error).includes(secret));
});
