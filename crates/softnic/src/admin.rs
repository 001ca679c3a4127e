//! The device side of the administration virtqueue: group administration commands for the VFs
//! (virtio 1.4, "Group administration commands").
//!
//! Commands run on the thread that rings the queue's doorbell, as a device would that answers from
//! registers; late ones are completed by the PF's worker. Nothing here waits for a VF's guest: a
//! VF's register lock is never held during DMA, and a reset of a VF makes its DMA fail first.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use retrovf_pci::Interrupt;
use retrovf_spec::admin::{
    Header, GROUP_SRIOV, HEADER_SIZE, LEGACY_COMMON_CFG_READ, LEGACY_COMMON_CFG_WRITE,
    LEGACY_DEV_CFG_READ, LEGACY_DEV_CFG_WRITE, LEGACY_NOTIFY_INFO, LEGACY_WRITE_PREFIX, LIST_QUERY,
    LIST_USE, NOTIFY_ENTRIES, NOTIFY_ENTRY_SIZE, NOTIFY_MEMBER, NOTIFY_OWNER,
    QUALIFIER_INVALID_FIELD, QUALIFIER_INVALID_GROUP, QUALIFIER_INVALID_MEMBER,
    QUALIFIER_INVALID_OPCODE, QUALIFIER_OK, RESULT_HEADER_SIZE, STATUS_EINVAL, STATUS_OK,
};
use retrovf_spec::virtio::ISR_QUEUE;

use crate::config::{NotifyEntries, LIST_OPCODES};
use crate::device::Device;
use crate::faults::CommandFault;
use crate::kicks::TIMERS;
use crate::layout;
use crate::nic::Nic;
use crate::queue::{Chain, QueueError, Ring};
use crate::registers::QueueView;
use crate::sync::lock;

/// The PF's admin queue.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    pub(crate) state: Mutex<AdminState>,
    /// There are late commands: saves the worker the lock.
    has_late: AtomicBool,
}

/// What the admin queue remembers.
#[derive(Debug)]
pub(crate) struct AdminState {
    ring: Ring,
    /// Opcodes in use for the SR-IOV group.
    in_use: u64,
    late: Vec<Late>,
}

/// A command to be carried out and completed later.
#[derive(Debug)]
struct Late {
    due: Instant,
    chain: Chain,
    request: Vec<u8>,
}

impl Default for AdminState {
    fn default() -> Self {
        Self {
            ring: Ring::default(),
            in_use: LIST_OPCODES,
            late: Vec::new(),
        }
    }
}

impl AdminState {
    /// After a reset only LIST_QUERY and LIST_USE are legal, and commands under way are lost.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The longest command read: far more than any has.
const MAX_REQUEST: usize = 4096;
/// Commands that can be late at once.
const MAX_LATE: usize = 1024;
/// Commands taken in one go.
const BATCH: usize = 64;

type Result<T> = std::result::Result<T, QueueError>;

/// A status and qualifier other than OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refusal {
    status: u16,
    qualifier: u16,
}

const fn invalid(qualifier: u16) -> Refusal {
    Refusal {
        status: STATUS_EINVAL,
        qualifier,
    }
}

/// A notification of the admin queue. If another thread is at it, the worker looks again later.
pub(crate) fn ring(nic: &Nic) {
    let Some(admin) = &nic.owner.admin else {
        return;
    };
    match admin.state.try_lock() {
        Ok(state) => serve(nic, state),
        Err(TryLockError::Poisoned(poisoned)) => serve(nic, poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => look_again(nic),
    }
}

/// Serves the queue on the PF's worker.
pub(crate) fn work(nic: &Nic) {
    if let Some(admin) = &nic.owner.admin {
        serve(nic, lock(&admin.state));
    }
}

fn look_again(nic: &Nic) {
    if let Some(queue) = nic.owner.geometry.admin_queue() {
        nic.owner.kicks.raise(queue);
    }
}

/// Takes a batch of commands; the worker takes over behind it.
fn serve(nic: &Nic, mut state: MutexGuard<'_, AdminState>) {
    let Some(view) = admin_view(nic) else {
        return;
    };
    let (again, interrupt) = on_ring(nic, &mut state, &view, take_batch);
    drop(state);
    if let Some(interrupt) = interrupt {
        interrupt.signal();
    }
    if again {
        look_again(nic);
    }
}

/// Completes late commands that are due; on the PF's worker. Returns the time to the next one.
pub(crate) fn complete_late(nic: &Nic) -> Option<Duration> {
    let admin = nic.owner.admin.as_ref()?;
    if !admin.has_late.load(SeqCst) {
        return None;
    }
    let mut state = lock(&admin.state);
    let now = Instant::now();
    let mut interrupt = None;
    if let Some(view) = admin_view(nic) {
        let all = std::mem::take(&mut state.late);
        let (due, late): (Vec<_>, Vec<_>) = all.into_iter().partition(|late| late.due <= now);
        state.late = late;
        if !due.is_empty() {
            let complete_due = |nic: &Nic, state: &mut AdminState| {
                for late in &due {
                    let answer = answer(nic, state, &late.request, &late.chain);
                    complete(nic, &mut state.ring, &late.chain, &answer)?;
                }
                Ok(false)
            };
            interrupt = on_ring(nic, &mut state, &view, complete_due).1;
        }
    }
    let next = state.late.iter().map(|late| late.due).min();
    admin.has_late.store(next.is_some(), SeqCst);
    drop(state);
    if let Some(interrupt) = interrupt {
        interrupt.signal();
    }
    next.map(|due| due.saturating_duration_since(now))
}

fn admin_view(nic: &Nic) -> Option<QueueView> {
    nic.owner.view(nic.owner.geometry.admin_queue()?)
}

/// Does `work`, which says whether to go on at once, and says whom to interrupt. A ring that the
/// driver broke stops the PF.
fn on_ring(
    nic: &Nic,
    state: &mut AdminState,
    view: &QueueView,
    work: impl FnOnce(&Nic, &mut AdminState) -> Result<bool>,
) -> (bool, Option<Interrupt>) {
    state.ring.attach(view);
    let done = work(nic, state).and_then(|again| {
        let wanted = state.ring.wants_interrupt(&nic.owner.dma)?;
        Ok((again, wanted))
    });
    match done {
        Ok((again, wanted)) => {
            let interrupt = wanted.then(|| {
                let mut registers = lock(&nic.owner.registers);
                nic.owner.interrupt(&mut registers, view.vector, ISR_QUEUE)
            });
            (again, interrupt.flatten())
        }
        Err(error) => {
            // Halted means that the PF is being reset or loses bus mastering; a scan follows.
            nic.owner.failed(view, &error);
            (false, None)
        }
    }
}

fn take_batch(nic: &Nic, state: &mut AdminState) -> Result<bool> {
    let dma = &nic.owner.dma;
    let mut chain = Chain::default();
    let mut request = Vec::new();
    for _ in 0..BATCH {
        if state.ring.pop(dma, &mut chain)? {
            chain.read(dma, &mut request, MAX_REQUEST)?;
            execute(nic, state, &chain, &request)?;
        } else if !state.ring.enable_notify(dma)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes one command: carries it out, unless a fault was asked for.
fn execute(nic: &Nic, state: &mut AdminState, chain: &Chain, request: &[u8]) -> Result<()> {
    let header = Header::from_prefix(request);
    let fault = nic.faults.take(header.opcode, header.member);
    match fault {
        Some(CommandFault::NoCompletion) => return Ok(()),
        Some(CommandFault::Slow(delay)) => {
            if state.late.len() < MAX_LATE {
                let due = Instant::now() + delay;
                let (chain, request) = (chain.clone(), request.to_vec());
                state.late.push(Late {
                    due,
                    chain,
                    request,
                });
                if let Some(admin) = &nic.owner.admin {
                    admin.has_late.store(true, SeqCst);
                }
                nic.owner.kicks.raise(TIMERS);
            }
            return Ok(());
        }
        _ => {}
    }
    let bytes = match fault {
        Some(CommandFault::Status { status, qualifier }) => {
            encode(&Err(Refusal { status, qualifier }))
        }
        Some(CommandFault::NotifyInfo(entries)) if header.opcode == LEGACY_NOTIFY_INFO => {
            encode(&Ok(entries.to_vec()))
        }
        _ => answer(nic, state, request, chain),
    };
    complete(nic, &mut state.ring, chain, &bytes)
}

/// Gives a command back. What doesn't fit into its writable part is dropped.
fn complete(nic: &Nic, ring: &mut Ring, chain: &Chain, answer: &[u8]) -> Result<()> {
    let dma = &nic.owner.dma;
    let written = chain.write(dma, answer)?;
    ring.push_used(dma, chain.head, written)?;
    ring.publish(dma)
}

/// Carries a command out and encodes its answer.
fn answer(nic: &Nic, state: &mut AdminState, request: &[u8], chain: &Chain) -> Vec<u8> {
    let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
    let room = room.saturating_sub(RESULT_HEADER_SIZE);
    let header = Header::from_prefix(request);
    let data = request.get(HEADER_SIZE..).unwrap_or_default();
    encode(&command(nic, state, header, data, room))
}

fn encode(result: &std::result::Result<Vec<u8>, Refusal>) -> Vec<u8> {
    let (status, qualifier, data) = match result {
        Ok(data) => (STATUS_OK, QUALIFIER_OK, data.as_slice()),
        Err(refusal) => (refusal.status, refusal.qualifier, [].as_slice()),
    };
    let mut bytes = status.to_le_bytes().to_vec();
    bytes.extend(qualifier.to_le_bytes());
    bytes.resize(RESULT_HEADER_SIZE, 0);
    bytes.extend_from_slice(data);
    bytes
}

/// One command, checked in the order of the specification: group type, opcode, member id, fields.
fn command(
    nic: &Nic,
    state: &mut AdminState,
    header: Header,
    data: &[u8],
    room: usize,
) -> std::result::Result<Vec<u8>, Refusal> {
    let Header {
        opcode,
        group_type,
        member,
    } = header;
    // With VF Enable clear the group doesn't exist. LIST_QUERY and LIST_USE are accepted all the
    // same, since they address no member and Linux sends them when it probes the PF, before there
    // can be a VF.
    let list = opcode == LIST_QUERY || opcode == LIST_USE;
    if group_type != GROUP_SRIOV || !(list || nic.vfs_enabled()) {
        return Err(invalid(QUALIFIER_INVALID_GROUP));
    }
    let bit = 1u64.checked_shl(u32::from(opcode)).unwrap_or(0);
    if state.in_use & bit == 0 {
        return Err(invalid(QUALIFIER_INVALID_OPCODE));
    }
    if list {
        return list_command(nic, state, opcode, data);
    }
    let member = nic
        .member(member)
        .filter(|vf| !vf.is_gone())
        .ok_or(invalid(QUALIFIER_INVALID_MEMBER))?;
    // A missing offset byte counts as zero, as all missing bytes.
    let offset = u64::from(data.first().copied().unwrap_or(0));
    let written = data.get(LEGACY_WRITE_PREFIX..).unwrap_or_default();
    match opcode {
        LEGACY_COMMON_CFG_WRITE => common_write(&member, offset, written),
        LEGACY_COMMON_CFG_READ => common_read(&member, offset, room),
        LEGACY_DEV_CFG_WRITE => config_write(&member, offset, written),
        LEGACY_DEV_CFG_READ => config_read(&member, offset, room),
        LEGACY_NOTIFY_INFO => Ok(notify_info(nic, &member)),
        _ => Err(invalid(QUALIFIER_INVALID_OPCODE)),
    }
}

fn list_command(
    nic: &Nic,
    state: &mut AdminState,
    opcode: u16,
    data: &[u8],
) -> std::result::Result<Vec<u8>, Refusal> {
    let offered = nic.config.offered_opcodes();
    if opcode == LIST_QUERY {
        return Ok(offered.to_le_bytes().to_vec());
    }
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(data) {
        *to = *from;
    }
    let wanted = u64::from_le_bytes(first);
    let beyond = data.iter().skip(first.len()).any(|&byte| byte != 0);
    if wanted & !offered != 0 || beyond {
        return Err(invalid(QUALIFIER_INVALID_FIELD));
    }
    state.in_use = wanted;
    Ok(Vec::new())
}

/// Widest legacy field: the MAC address.
const MAX_FIELD: usize = 6;

fn common_write(
    member: &Device,
    offset: u64,
    data: &[u8],
) -> std::result::Result<Vec<u8>, Refusal> {
    let effect = {
        let mut registers = lock(&member.registers);
        if !registers.legacy_common_field(offset, data.len()) {
            return Err(invalid(QUALIFIER_INVALID_FIELD));
        }
        registers.legacy_write(offset, data)
    };
    member.apply(effect);
    Ok(Vec::new())
}

fn common_read(member: &Device, offset: u64, len: usize) -> std::result::Result<Vec<u8>, Refusal> {
    let mut registers = lock(&member.registers);
    if len > MAX_FIELD || !registers.legacy_common_field(offset, len) {
        return Err(invalid(QUALIFIER_INVALID_FIELD));
    }
    let mut out = vec![0; len];
    registers.legacy_read(offset, &mut out);
    Ok(out)
}

fn config_write(
    member: &Device,
    offset: u64,
    data: &[u8],
) -> std::result::Result<Vec<u8>, Refusal> {
    let mut registers = lock(&member.registers);
    if !registers.legacy_config_field(offset, data.len()) {
        return Err(invalid(QUALIFIER_INVALID_FIELD));
    }
    registers.legacy_config_write(offset, data);
    Ok(Vec::new())
}

fn config_read(member: &Device, offset: u64, len: usize) -> std::result::Result<Vec<u8>, Refusal> {
    let registers = lock(&member.registers);
    if len > MAX_FIELD || !registers.legacy_config_field(offset, len) {
        return Err(invalid(QUALIFIER_INVALID_FIELD));
    }
    let mut out = vec![0; len];
    registers.read_net_config(offset, &mut out);
    Ok(out)
}

/// One entry, and the end of the list.
fn notify_info(nic: &Nic, member: &Device) -> Vec<u8> {
    let (flags, offset) = match nic.config.notify {
        NotifyEntries::Member => (NOTIFY_MEMBER, layout::LEGACY_NOTIFY),
        NotifyEntries::Owner => (NOTIFY_OWNER, layout::owner_notify(member.member)),
        NotifyEntries::None => (0, 0),
    };
    let mut bytes = vec![flags, layout::VIRTIO_BAR, 0, 0, 0, 0, 0, 0];
    bytes.extend(offset.to_le_bytes());
    bytes.resize(NOTIFY_ENTRIES * NOTIFY_ENTRY_SIZE, 0);
    bytes
}
