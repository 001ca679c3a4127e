//! A device that keeps account of its notifications.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use napi_derive::napi;
use retrovf_addon::PciFunction;
use retrovf_pci::{Doorbell, NotifyTarget, QueueIndex};

use crate::word::with_target;

/// Queues with an account.
pub(crate) const QUEUES: usize = 4;

/// What is known of a queue.
#[derive(Default)]
struct Account {
    /// Kicks that were given, each counted before it was given: what a driver has put into its ring.
    given: AtomicU64,
    /// Kicks given until the last ring: what a device that was rung then has found in the ring. A
    /// kick is lost if this stays behind.
    seen: AtomicU64,
    rings: AtomicU64,
}

/// The accounts of a device's queues, between whoever kicks and the device.
#[derive(Default)]
pub(crate) struct Accounts([Account; QUEUES]);

impl Accounts {
    fn of(&self, queue: u16) -> Option<&Account> {
        self.0.get(usize::from(queue))
    }

    pub(crate) fn give(&self, queue: u16, kicks: u64) {
        if let Some(account) = self.of(queue) {
            // Before the kick, for whoever is rung by it.
            account.given.fetch_add(kicks, Ordering::Release);
        }
    }

    pub(crate) fn all_seen(&self, queue: u16) -> bool {
        self.of(queue).is_some_and(|account| {
            account.seen.load(Ordering::Acquire) == account.given.load(Ordering::Acquire)
        })
    }

    pub(crate) fn rings(&self, queue: u16) -> u64 {
        self.of(queue)
            .map_or(0, |account| account.rings.load(Ordering::Acquire))
    }
}

impl Doorbell for Accounts {
    fn ring(&self, QueueIndex(queue): QueueIndex) {
        if let Some(account) = self.of(queue) {
            let given = account.given.load(Ordering::Acquire);
            account.seen.fetch_max(given, Ordering::AcqRel);
            account.rings.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// One queue of a ledger.
#[napi(object)]
pub struct QueueAccount {
    pub given: f64,
    pub seen: f64,
    pub rings: f64,
}

/// The ledger of one device.
#[napi]
pub struct Ledger {
    pub(crate) accounts: Arc<Accounts>,
}

#[napi]
impl Ledger {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self {
            accounts: Arc::default(),
        }
    }

    /// The same function, but that its notifications are counted here.
    #[napi]
    pub fn counting(&self, function: &PciFunction) -> napi::Result<PciFunction> {
        let doorbell: Arc<Accounts> = Arc::clone(&self.accounts);
        with_target(function, NotifyTarget::device(doorbell))
    }

    /// Says that so many kicks of a queue are about to be given.
    #[napi]
    pub fn give(&self, queue: u16, kicks: u32) {
        self.accounts.give(queue, kicks.into());
    }

    #[napi]
    pub fn queues(&self) -> Vec<QueueAccount> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Acquire) as f64;
        let of = |account: &Account| QueueAccount {
            given: value(&account.given),
            seen: value(&account.seen),
            rings: value(&account.rings),
        };
        self.accounts.0.iter().map(of).collect()
    }
}
