/*
 * Administration virtqueue of a virtio-pci SR-IOV physical function
 *
 * Device under test of RetroVF's lab.  Implements the commands LIST_QUERY,
 * LIST_USE and the five legacy interface commands of the SR-IOV group type; the
 * legacy accesses are executed by the register handlers behind the I/O BAR of a
 * transitional virtio-pci device, applied to the VF.
 *
 * Properties of the PF; all but x-admin-vq may change while it runs (qom-set):
 *
 *   x-admin-vq           the PF has an administration virtqueue
 *   x-admin-cmds         bit mask of opcodes that LIST_QUERY offers
 *   x-admin-notify       entries of NOTIFY_INFO: 1 owner, 2 member, 3 both, the
 *                        owner's first
 *   x-admin-delay-ms     each command takes so long
 *   x-admin-fail         bit mask of opcodes that fail without effect
 *   x-admin-fail-status  the status they fail with
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "hw/pci/msix.h"
#include "hw/pci/pcie_sriov.h"
#include "hw/virtio/virtio.h"
#include "hw/virtio/virtio-bus.h"
#include "hw/virtio/virtio-pci.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_net.h"
#include "trace.h"

#define ADMIN_VQ_SIZE 64
#define OWNER_NOTIFY_STRIDE 4

enum {
    ST_OK = 0,
    ST_EINVAL = 22,
};

/* Status qualifiers */
enum {
    Q_OK = 0,
    Q_INVALID_COMMAND = 1,
    Q_INVALID_OPCODE = 2,
    Q_INVALID_FIELD = 3,
    Q_INVALID_GROUP = 4,
    Q_INVALID_MEMBER = 5,
};

#define CMD_BIT(x) (1ULL << VIRTIO_ADMIN_CMD_##x)
#define CMDS_ALWAYS (CMD_BIT(LIST_QUERY) | CMD_BIT(LIST_USE))

typedef struct LegacyField {
    uint8_t offset;
    uint8_t size;
} LegacyField;

static const LegacyField common_fields[] = {
    { VIRTIO_PCI_HOST_FEATURES, 4 }, { VIRTIO_PCI_GUEST_FEATURES, 4 },
    { VIRTIO_PCI_QUEUE_PFN, 4 },     { VIRTIO_PCI_QUEUE_NUM, 2 },
    { VIRTIO_PCI_QUEUE_SEL, 2 },     { VIRTIO_PCI_QUEUE_NOTIFY, 2 },
    { VIRTIO_PCI_STATUS, 1 },        { VIRTIO_PCI_ISR, 1 },
    { VIRTIO_MSI_CONFIG_VECTOR, 2 }, { VIRTIO_MSI_QUEUE_VECTOR, 2 },
};

#define NET_FIELD(f) { offsetof(struct virtio_net_config, f), \
                       sizeof_field(struct virtio_net_config, f) }

static const LegacyField net_fields[] = {
    NET_FIELD(mac), NET_FIELD(status), NET_FIELD(max_virtqueue_pairs),
    NET_FIELD(mtu), NET_FIELD(speed), NET_FIELD(duplex),
    NET_FIELD(rss_max_key_size), NET_FIELD(rss_max_indirection_table_length),
    NET_FIELD(supported_hash_types),
};

static bool within_one_field(const LegacyField *f, size_t n,
                             unsigned offset, size_t len)
{
    for (size_t i = 0; i < n; i++) {
        if (offset >= f[i].offset && offset + len <= f[i].offset + f[i].size) {
            return true;
        }
    }
    return false;
}

static bool legacy_access_valid(VirtIOPCIProxy *vf, bool common,
                                unsigned offset, size_t len)
{
    VirtIODevice *vdev = virtio_bus_get_device(&vf->bus);

    if (!len) {
        return false;
    }
    if (common) {
        return offset + len <= VIRTIO_PCI_CONFIG_OFF(msix_enabled(&vf->pci_dev))
               && within_one_field(common_fields, ARRAY_SIZE(common_fields),
                                   offset, len);
    }
    if (offset + len > vdev->config_len) {
        return false;
    }
    return vdev->device_id != VIRTIO_ID_NET ||
           within_one_field(net_fields, ARRAY_SIZE(net_fields), offset, len);
}

/*
 * One legacy access of @len <= 8 bytes, already validated.  Register accesses
 * are a single call, as from the I/O BAR; device configuration accesses of a
 * width that port I/O does not have are done byte by byte.
 */
static void legacy_access(VirtIOPCIProxy *vf, bool common, bool write,
                          unsigned offset, uint8_t *data, size_t len)
{
    hwaddr addr = offset;
    bool whole = common || len == 1 || len == 2 || len == 4;
    size_t step = whole ? len : 1;

    if (!common) {
        addr += VIRTIO_PCI_CONFIG_OFF(msix_enabled(&vf->pci_dev));
        if (write) {
            /*
             * Bring QEMU's shadow of the configuration up to date: a write
             * hands all of it to the device, and it is not renewed on reset.
             */
            virtio_pci_legacy_read(vf, addr, 1);
        }
    }
    for (size_t i = 0; i < len; i += step) {
        uint8_t v[8] = { 0 };

        if (write) {
            memcpy(v, data + i, step);
            virtio_pci_legacy_write(vf, addr + i, ldq_le_p(v), step);
        } else {
            stq_le_p(v, virtio_pci_legacy_read(vf, addr + i, step));
            memcpy(data + i, v, step);
        }
    }
}

static uint16_t list_use(VirtIOPCIProxy *pf, const struct iovec *out,
                         unsigned n_out, size_t out_len)
{
    uint64_t used = 0;

    for (size_t pos = sizeof(struct virtio_admin_cmd_hdr); pos < out_len;
         pos += 8) {
        uint64_t word = 0;

        iov_to_buf(out, n_out, pos, &word, 8);
        word = le64_to_cpu(word);
        if (pos == sizeof(struct virtio_admin_cmd_hdr)) {
            used = word;
        } else if (word) {
            return Q_INVALID_FIELD;
        }
    }
    if (used & ~(pf->admin_cmds | CMDS_ALWAYS)) {
        return Q_INVALID_FIELD;
    }
    pf->admin_cmds_used = used;
    return Q_OK;
}

/* The words that stand for Queue Notify of VF @member. */
static void notify_info(VirtIOPCIProxy *pf, VirtIOPCIProxy *vf, uint64_t member,
                        uint8_t *res)
{
    struct virtio_admin_cmd_notify_info_result info = { 0 };
    struct virtio_admin_cmd_notify_info_data *entry = info.entries;

    if (pf->admin_notify & VIRTIO_ADMIN_CMD_NOTIFY_INFO_FLAGS_OWNER_DEV) {
        entry->flags = VIRTIO_ADMIN_CMD_NOTIFY_INFO_FLAGS_OWNER_DEV;
        entry->bar = pf->modern_mem_bar_idx;
        entry->offset = cpu_to_le64(pf->legacy_notify.offset +
                                    (member - 1) * OWNER_NOTIFY_STRIDE);
        entry++;
    }
    if (pf->admin_notify & VIRTIO_ADMIN_CMD_NOTIFY_INFO_FLAGS_OWNER_MEM) {
        entry->flags = VIRTIO_ADMIN_CMD_NOTIFY_INFO_FLAGS_OWNER_MEM;
        entry->bar = vf->modern_mem_bar_idx;
        entry->offset = cpu_to_le64(vf->legacy_notify.offset);
    }
    memcpy(res, &info, sizeof(info));
}

/* Returns the status qualifier; *@res_len is the length of the result. */
static uint16_t admin_execute(VirtIOPCIProxy *pf, VirtQueueElement *elem,
                              size_t room, uint8_t *res, size_t *res_len)
{
    struct virtio_admin_cmd_hdr hdr = { 0 };
    size_t out_len = iov_size(elem->out_sg, elem->out_num);
    size_t pos = sizeof(hdr);
    uint16_t opcode;
    uint64_t member;
    VirtIOPCIProxy *vf = NULL;
    bool write, common;
    uint8_t offset = 0, data[8] = { 0 };
    size_t len;
    uint16_t q = Q_OK;

    *res_len = 0;
    iov_to_buf(elem->out_sg, elem->out_num, 0, &hdr, sizeof(hdr));
    opcode = le16_to_cpu(hdr.opcode);
    member = le64_to_cpu(hdr.group_member_id);

    if (le16_to_cpu(hdr.group_type) != VIRTIO_ADMIN_GROUP_TYPE_SRIOV) {
        q = Q_INVALID_GROUP;
    } else if (opcode > 63 || !(pf->admin_cmds_used & (1ULL << opcode))) {
        q = Q_INVALID_OPCODE;
    } else if (opcode > VIRTIO_ADMIN_CMD_LIST_USE) {
        /*
         * The specification wants VF Enable checked for all commands, but
         * Linux sends the LIST commands when it probes the PF, before any
         * VF exists: only check it for commands that address a member.
         */
        if (!pcie_sriov_num_vfs(&pf->pci_dev)) {
            q = Q_INVALID_GROUP;
        } else if (!member || member > pcie_sriov_num_vfs(&pf->pci_dev)) {
            q = Q_INVALID_MEMBER;
        } else {
            vf = VIRTIO_PCI(pcie_sriov_get_vf_at_index(&pf->pci_dev,
                                                       member - 1));
        }
    }
    if (q != Q_OK) {
        trace_virtio_pci_admin_cmd(opcode, member, "bad", 0, 0, 0, q);
        return q;
    }

    switch (opcode) {
    case VIRTIO_ADMIN_CMD_LIST_QUERY:
        stq_le_p(res, pf->admin_cmds | CMDS_ALWAYS);
        *res_len = 8;
        trace_virtio_pci_admin_cmd(opcode, member, "list-query", 0, 8,
                                   pf->admin_cmds | CMDS_ALWAYS, q);
        return q;
    case VIRTIO_ADMIN_CMD_LIST_USE:
        q = list_use(pf, elem->out_sg, elem->out_num, out_len);
        trace_virtio_pci_admin_cmd(opcode, member, "list-use", 0, 8,
                                   pf->admin_cmds_used, q);
        return q;
    case VIRTIO_ADMIN_CMD_LEGACY_NOTIFY_INFO:
        notify_info(pf, vf, member, res);
        *res_len = sizeof(struct virtio_admin_cmd_notify_info_result);
        trace_virtio_pci_admin_cmd(opcode, member, "notify-info", 0, *res_len,
                                   pf->admin_notify, q);
        return q;
    case VIRTIO_ADMIN_CMD_LEGACY_COMMON_CFG_WRITE:
    case VIRTIO_ADMIN_CMD_LEGACY_COMMON_CFG_READ:
    case VIRTIO_ADMIN_CMD_LEGACY_DEV_CFG_WRITE:
    case VIRTIO_ADMIN_CMD_LEGACY_DEV_CFG_READ:
        break;
    default:
        g_assert_not_reached();
    }

    common = opcode == VIRTIO_ADMIN_CMD_LEGACY_COMMON_CFG_WRITE ||
             opcode == VIRTIO_ADMIN_CMD_LEGACY_COMMON_CFG_READ;
    write = opcode == VIRTIO_ADMIN_CMD_LEGACY_COMMON_CFG_WRITE ||
            opcode == VIRTIO_ADMIN_CMD_LEGACY_DEV_CFG_WRITE;
    iov_to_buf(elem->out_sg, elem->out_num, pos, &offset, 1);
    if (write) {
        pos += sizeof(struct virtio_admin_cmd_legacy_wr_data);
        len = out_len > pos ? out_len - pos : 0;
        iov_to_buf(elem->out_sg, elem->out_num, pos, data,
                   MIN(len, sizeof(data)));
    } else {
        len = room;
    }
    if (!legacy_access_valid(vf, common, offset, len)) {
        q = Q_INVALID_FIELD;
    } else {
        legacy_access(vf, common, write, offset, data, len);
        if (!write) {
            memcpy(res, data, len);
            *res_len = len;
        }
    }
    trace_virtio_pci_admin_cmd(opcode, member,
                               common ? (write ? "common-wr" : "common-rd")
                                      : (write ? "dev-wr" : "dev-rd"),
                               offset, len, ldq_le_p(data), q);
    return q;
}

static bool fails_on_request(VirtIOPCIProxy *pf, VirtQueueElement *elem)
{
    struct virtio_admin_cmd_hdr hdr = { 0 };
    uint16_t opcode;

    iov_to_buf(elem->out_sg, elem->out_num, 0, &hdr, sizeof(hdr));
    opcode = le16_to_cpu(hdr.opcode);
    return opcode < 64 && (pf->admin_fail & (1ULL << opcode));
}

static void complete_next(VirtIOPCIProxy *pf, VirtQueueElement *elem)
{
    VirtIODevice *vdev = virtio_bus_get_device(&pf->bus);
    VirtQueue *vq = virtio_get_queue(vdev, VIRTIO_PCI_ADMIN_VQ_INDEX);
    struct virtio_admin_cmd_status st = { 0 };
    uint8_t res[64] = { 0 };
    size_t in_len = iov_size(elem->in_sg, elem->in_num);
    size_t room = in_len > sizeof(st) ? in_len - sizeof(st) : 0;
    size_t res_len = 0, done;

    if (fails_on_request(pf, elem)) {
        st.status = cpu_to_le16(pf->admin_fail_status);
    } else {
        uint16_t q = admin_execute(pf, elem, room, res, &res_len);

        st.status = cpu_to_le16(q == Q_OK ? ST_OK : ST_EINVAL);
        st.status_qualifier = cpu_to_le16(q);
    }
    done = iov_from_buf(elem->in_sg, elem->in_num, 0, &st, sizeof(st));
    if (room) {
        done += iov_from_buf(elem->in_sg, elem->in_num, sizeof(st), res,
                             MIN(room, res_len));
    }
    virtqueue_push(vq, elem, done);
    virtio_notify(vdev, vq);
    g_free(elem);
}

/* Commands are executed in order: at once, or one every x-admin-delay-ms. */
static void virtio_pci_admin_run(VirtIOPCIProxy *pf, bool due)
{
    VirtIODevice *vdev = virtio_bus_get_device(&pf->bus);
    VirtQueue *vq = virtio_get_queue(vdev, VIRTIO_PCI_ADMIN_VQ_INDEX);
    VirtQueueElement *elem;

    while ((due || !pf->admin_delay_ms) &&
           (elem = virtqueue_pop(vq, sizeof(*elem)))) {
        complete_next(pf, elem);
        due = false;
    }
    if (pf->admin_delay_ms && !virtio_queue_empty(vq) &&
        !timer_pending(&pf->admin_timer)) {
        timer_mod(&pf->admin_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL) + pf->admin_delay_ms);
    }
}

static void virtio_pci_admin_due(void *opaque)
{
    virtio_pci_admin_run(opaque, true);
}

static void virtio_pci_admin_handle(VirtIODevice *vdev, VirtQueue *vq)
{
    virtio_pci_admin_run(
        VIRTIO_PCI(qdev_get_parent_bus(DEVICE(vdev))->parent), false);
}

/* A page in the PF's BAR: word n - 1 is Queue Notify of VF n. */
static uint64_t owner_notify_read(void *opaque, hwaddr addr, unsigned size)
{
    return 0;
}

static void owner_notify_write(void *opaque, hwaddr addr, uint64_t val,
                               unsigned size)
{
    VirtIOPCIProxy *pf = opaque;
    unsigned index = addr / OWNER_NOTIFY_STRIDE;

    if (index < pcie_sriov_num_vfs(&pf->pci_dev)) {
        PCIDevice *vf = pcie_sriov_get_vf_at_index(&pf->pci_dev, index);

        virtio_pci_legacy_write(VIRTIO_PCI(vf), VIRTIO_PCI_QUEUE_NOTIFY, val, 2);
    }
}

const MemoryRegionOps virtio_pci_admin_owner_notify_ops = {
    .read = owner_notify_read,
    .write = owner_notify_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .impl = { .min_access_size = 1, .max_access_size = 4 },
};

void virtio_pci_admin_reset(VirtIOPCIProxy *pf)
{
    pf->admin_cmds_used = CMDS_ALWAYS;
    if (pf->admin_ready) {
        timer_del(&pf->admin_timer);
    }
}

void virtio_pci_admin_init(VirtIOPCIProxy *pf)
{
    VirtIODevice *vdev = virtio_bus_get_device(&pf->bus);

    virtio_add_queue_at(vdev, VIRTIO_PCI_ADMIN_VQ_INDEX, ADMIN_VQ_SIZE,
                        virtio_pci_admin_handle);
    virtio_add_feature(&vdev->host_features, VIRTIO_F_ADMIN_VQ);
    timer_init_ms(&pf->admin_timer, QEMU_CLOCK_VIRTUAL, virtio_pci_admin_due,
                  pf);
    pf->admin_ready = true;
    virtio_pci_admin_reset(pf);
}

void virtio_pci_admin_instance_init(Object *obj)
{
    VirtIOPCIProxy *pf = VIRTIO_PCI(obj);
    ObjectPropertyFlags rw = OBJ_PROP_FLAG_READWRITE;

    pf->admin_cmds = 0x7f;
    pf->admin_notify = VIRTIO_ADMIN_CMD_NOTIFY_INFO_FLAGS_OWNER_MEM;
    pf->admin_fail_status = ST_EINVAL;
    object_property_add_uint64_ptr(obj, "x-admin-cmds", &pf->admin_cmds, rw);
    object_property_add_uint32_ptr(obj, "x-admin-notify", &pf->admin_notify, rw);
    object_property_add_uint32_ptr(obj, "x-admin-delay-ms",
                                   &pf->admin_delay_ms, rw);
    object_property_add_uint64_ptr(obj, "x-admin-fail", &pf->admin_fail, rw);
    object_property_add_uint32_ptr(obj, "x-admin-fail-status",
                                   &pf->admin_fail_status, rw);
}
