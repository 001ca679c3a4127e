use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use retrovf_histogram::{Histogram, Snapshot};

/// What a served device counts. Relaxed: the numbers are for metrics, nothing is ordered by them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) notifies: AtomicU64,
    /// Shared with the doorbell engine.
    pub(crate) notifies_forwarded: Arc<AtomicU64>,
    /// How many eventfds the kernel forwards at this moment, and how many the engine.
    pub(crate) kernel_doorbells: Arc<AtomicU64>,
    pub(crate) engine_doorbells: Arc<AtomicU64>,
    pub(crate) control_reads: AtomicU64,
    pub(crate) control_writes: AtomicU64,
    pub(crate) gated_accesses: AtomicU64,
    pub(crate) timed_out_accesses: AtomicU64,
    pub(crate) late_answers: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) control_latency: Histogram,
}

/// Counters of a [`ServedDevice`](crate::ServedDevice) at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Notifications by message.
    pub notifies: u64,
    /// Notifications by eventfd (GET_REGION_IO_FDS) that the engine forwarded; what the kernel
    /// forwards, nobody sees.
    pub notifies_forwarded: u64,
    /// Queues of the present client that the kernel forwards.
    pub kernel_doorbells: u64,
    /// Queues of the present client that the engine forwards.
    pub engine_doorbells: u64,
    /// BAR0 reads that went to the control plane.
    pub control_reads: u64,
    /// BAR0 writes that went to the control plane.
    pub control_writes: u64,
    /// BAR0 accesses while the guest had I/O decoding off.
    pub gated_accesses: u64,
    /// Control accesses that were answered in the control plane's stead.
    pub timed_out_accesses: u64,
    /// Answers of the control plane that nobody waited for any more.
    pub late_answers: u64,
    /// Messages that broke the protocol.
    pub protocol_errors: u64,
    /// Clients so far.
    pub sessions: u64,
    /// From handing a control access to the control plane to its answer.
    pub control_latency: Snapshot,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn snapshot(&self) -> DeviceCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceCounters {
            notifies: get(&self.notifies),
            notifies_forwarded: get(&self.notifies_forwarded),
            kernel_doorbells: get(&self.kernel_doorbells),
            engine_doorbells: get(&self.engine_doorbells),
            control_reads: get(&self.control_reads),
            control_writes: get(&self.control_writes),
            gated_accesses: get(&self.gated_accesses),
            timed_out_accesses: get(&self.timed_out_accesses),
            late_answers: get(&self.late_answers),
            protocol_errors: get(&self.protocol_errors),
            sessions: get(&self.sessions),
            control_latency: self.control_latency.snapshot(),
        }
    }
}
