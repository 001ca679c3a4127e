use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retrovf_pci::{Bdf, DmaSpace, Interrupt};
use retrovf_spec::virtio::{feature, status, ISR_CONFIG};

use crate::admin::{Admin, AdminState};
use crate::config::{Config, Geometry};
use crate::config_space::ConfigSpace;
use crate::irqs::Irqs;
use crate::kicks::{Kicks, CONFIG_CHANGE, FUNCTION_ERROR};
use crate::queue::{QueueError, Ring};
use crate::registers::{Effect, QueueView, Registers};
use crate::switch::Port;
use crate::sync::lock;
use crate::Error;

/// One function, PF or VF: all its state, whether it is open or not.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) bdf: Bdf,
    /// Member id of a VF; 0 for the PF.
    pub(crate) member: u16,
    pub(crate) geometry: Geometry,
    pub(crate) config: Mutex<ConfigSpace>,
    /// MSI-X table and pending bits: storage, since whoever holds the function has `set_irqs`.
    pub(crate) msix: Mutex<Vec<u8>>,
    pub(crate) registers: Mutex<Registers>,
    /// The worker's place in each queue, locked while it is in guest memory.
    pub(crate) rings: Mutex<Vec<Ring>>,
    /// The PF's admin queue.
    pub(crate) admin: Option<Admin>,
    pub(crate) irqs: Mutex<Irqs>,
    pub(crate) dma: DmaSpace,
    pub(crate) kicks: Arc<Kicks>,
    pub(crate) port: Arc<Port>,
    pub(crate) open: AtomicBool,
    pub(crate) counters: Counters,
    master: AtomicBool,
    gone: AtomicBool,
    /// Somebody waits for the worker to leave the rings: DMA fails meanwhile, and that is not the
    /// driver's fault.
    quiescing: AtomicBool,
    quiescer: Mutex<()>,
}

/// What `stats` shows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tx_frames: AtomicU64,
    pub(crate) tx_dropped: AtomicU64,
    pub(crate) rx_frames: AtomicU64,
    pub(crate) kicks: AtomicU64,
    pub(crate) bad_rings: AtomicU64,
}

impl Device {
    pub(crate) fn new(config: &Config, member: u16) -> Result<Self, Error> {
        let geometry = config.geometry(member);
        let kicks = Arc::new(Kicks::new()?);
        let bdf = config.bdf.plus(member);
        let rings = vec![Ring::default(); usize::from(geometry.num_queues())];
        let msix_len = usize::try_from(crate::layout::msix_bar_size(geometry)).unwrap_or(0);
        Ok(Self {
            bdf,
            member,
            geometry,
            config: Mutex::new(ConfigSpace::new(config, geometry)),
            msix: Mutex::new(vec![0; msix_len]),
            registers: Mutex::new(Registers::new(geometry, config.mac_of(member))),
            rings: Mutex::new(rings),
            admin: geometry.admin.then(Admin::default),
            irqs: Mutex::new(Irqs::new(bdf, geometry.vectors)),
            dma: DmaSpace::new(),
            port: Arc::new(Port::new(
                u32::from(member),
                geometry.pairs,
                Arc::clone(&kicks),
            )),
            kicks,
            open: AtomicBool::new(false),
            counters: Counters::default(),
            master: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            quiescing: AtomicBool::new(false),
            quiescer: Mutex::new(()),
        })
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    /// The queue as it may be served now.
    pub(crate) fn view(&self, queue: u16) -> Option<QueueView> {
        if !self.master.load(SeqCst) || self.is_gone() {
            return None;
        }
        lock(&self.registers).view(queue)
    }

    /// A notification of a queue other than the admin queue. Never blocks, never allocates.
    pub(crate) fn kick(&self, queue: u16) {
        if queue < self.geometry.num_queues() && !self.is_gone() {
            self.counters.kicks.fetch_add(1, Relaxed);
            self.kicks.raise(queue);
        }
    }

    /// Looks at all queues, after something that may have made them ready.
    pub(crate) fn scan(&self) {
        (0..self.geometry.all_queues()).for_each(|queue| self.kicks.mark(queue));
        self.kicks.raise(crate::kicks::INBOX);
    }

    /// Changes registers while neither the worker nor an admin command is in guest memory. DMA
    /// under way fails at once instead of being waited for.
    pub(crate) fn quiesced(&self, change: impl FnOnce(&mut Registers, Option<&mut AdminState>)) {
        let _one = lock(&self.quiescer);
        self.halt();
        let rings = lock(&self.rings);
        let mut admin = self.admin.as_ref().map(|admin| lock(&admin.state));
        change(&mut lock(&self.registers), admin.as_deref_mut());
        self.resume();
        drop(admin);
        drop(rings);
    }

    /// Waits for something with DMA failing all the while.
    pub(crate) fn halted(&self, wait: impl FnOnce()) {
        let _one = lock(&self.quiescer);
        self.halt();
        wait();
        self.resume();
    }

    fn halt(&self) {
        self.quiescing.store(true, SeqCst);
        self.dma.halt();
    }

    fn resume(&self) {
        self.dma.resume();
        self.quiescing.store(false, SeqCst);
    }

    /// For the worker after an undone batch: leaves the rings to whoever wants them.
    pub(crate) fn wait_until_resumed(&self) {
        while self.quiescing.load(SeqCst) && !self.kicks.stopping() {
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Virtio reset, as by status 0.
    pub(crate) fn reset_virtio(&self) {
        self.quiesced(|registers, admin| {
            registers.reset();
            self.port.clear();
            if let Some(admin) = admin {
                admin.reset();
            }
        });
    }

    /// Function level reset.
    pub(crate) fn reset_function(&self) {
        self.set_master(false);
        lock(&self.config).reset();
        self.reset_virtio();
    }

    /// Bus mastering. Without it the device does no DMA and no interrupts, from the moment this
    /// returns; with it, it looks at what the driver did meanwhile.
    pub(crate) fn set_master(&self, on: bool) {
        self.master.store(on, SeqCst);
        if on {
            self.scan();
        } else {
            self.quiesced(|_, _| ());
        }
    }

    /// Takes the function away, or puts it back with its state lost.
    pub(crate) fn set_gone(&self, gone: bool) {
        if gone {
            self.gone.store(true, SeqCst);
            self.quiesced(|_, _| ());
            self.kicks.raise(FUNCTION_ERROR);
        } else if self.is_gone() {
            self.reset_function();
            self.gone.store(false, SeqCst);
        }
    }

    /// Carries out what a register write asked for, except a kick of the admin queue.
    pub(crate) fn apply(&self, effect: Effect) {
        if effect.reset {
            self.reset_virtio();
        } else if effect.quiesce {
            self.quiesced(|_, _| ());
        }
        if effect.scan {
            self.scan();
        }
        if let Some(queue) = effect.kick {
            self.kick(queue);
        }
    }

    /// Tells the driver of used buffers or a changed configuration: returns the interrupt to signal
    /// once no lock is held, or sets the ISR bit if MSI-X isn't installed.
    pub(crate) fn interrupt(
        &self,
        registers: &mut Registers,
        vector: u16,
        isr: u8,
    ) -> Option<Interrupt> {
        if !self.master.load(SeqCst) {
            return None;
        }
        let irqs = lock(&self.irqs);
        if irqs.msix_enabled() {
            return irqs.vector(vector);
        }
        registers.isr |= isr;
        None
    }

    /// Tells the driver that the configuration changed.
    pub(crate) fn signal_config_change(&self) {
        let interrupt = {
            let mut registers = lock(&self.registers);
            let vector = registers.config_vector;
            self.interrupt(&mut registers, vector, ISR_CONFIG)
        };
        if let Some(interrupt) = interrupt {
            interrupt.signal();
        }
    }

    /// The device met an error: its queues stop until the next reset, and NEEDS_RESET says so.
    pub(crate) fn needs_reset(&self) {
        {
            let mut registers = lock(&self.registers);
            registers.broken = true;
            registers.status |= status::NEEDS_RESET;
        }
        self.kicks.raise(CONFIG_CHANGE);
    }

    /// Judges a failed batch: true if the device was only halted, and the batch can be done again.
    /// Else the driver broke the ring, and no queue is served until the next reset. A legacy driver
    /// knows no NEEDS_RESET.
    ///
    /// To be called with the rings locked, so that `quiescing` still tells how it was.
    pub(crate) fn failed(&self, view: &QueueView, error: &QueueError) -> bool {
        if self.quiescing.load(SeqCst) {
            return true;
        }
        {
            let mut registers = lock(&self.registers);
            let queue = registers.queues.get(usize::from(view.index));
            // The queue was taken away meanwhile, and its memory with it.
            if queue.is_none_or(|queue| queue.epoch != view.epoch) || registers.broken {
                return false;
            }
            registers.broken = true;
            if registers.negotiated(feature::VERSION_1) {
                registers.status |= status::NEEDS_RESET;
            }
        }
        self.counters.bad_rings.fetch_add(1, Relaxed);
        log::warn!("{}: queue {} stopped: {error}", self.bdf, view.index);
        self.kicks.raise(CONFIG_CHANGE);
        false
    }
}
