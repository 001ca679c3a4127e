//! The thread of an open function: serves its queues, one bounded batch at a time.

use std::time::{Duration, Instant};

use crate::admin;
use crate::device::Device;
use crate::kicks::{CONFIG_CHANGE, FUNCTION_ERROR, INBOX};
use crate::net::{self, Manner, Scratch};
use crate::nic::Nic;
use crate::sync::lock;

/// A driver that sends goes on to send, and an answer is often near: the thread looks for so long
/// before it sleeps. A notification costs the driver more, and waking a thread takes 20 µs.
const LINGER: Duration = Duration::from_micros(200);

/// Runs until the function is closed.
pub(crate) fn run(nic: &Nic, device: &Device) {
    let worker = Worker {
        nic,
        device,
        scratch: Scratch::default(),
        lingering: Vec::new(),
        until: Instant::now(),
    };
    worker.run();
}

struct Worker<'a> {
    nic: &'a Nic,
    device: &'a Device,
    scratch: Scratch,
    /// Queues that the thread looks at without having been asked to, and for how long.
    lingering: Vec<u16>,
    until: Instant,
}

impl Worker<'_> {
    fn run(mut self) {
        let Self { nic, device, .. } = self;
        while !device.kicks.stopping() {
            let timeout = if device.geometry.owner {
                admin::complete_late(nic)
            } else {
                None
            };
            let pending = device.kicks.take();
            if pending.is_empty() {
                if self.lingering.is_empty() {
                    device.kicks.sleep(None, timeout);
                } else {
                    self.look();
                }
                continue;
            }
            if pending.has(INBOX) {
                for lane in device.port.busy_lanes() {
                    self.serve(2 * lane, Manner::Linger);
                }
            }
            for queue in pending.queues(device.geometry.num_queues()) {
                self.serve(queue, Manner::Linger);
            }
            let admin = device.geometry.admin_queue();
            if admin.is_some_and(|queue| pending.has(queue)) {
                admin::work(nic);
            }
            if pending.has(CONFIG_CHANGE) && !device.is_gone() {
                device.signal_config_change();
            }
            if pending.has(FUNCTION_ERROR) {
                let error = lock(&device.irqs).error();
                if let Some(error) = error {
                    error.signal();
                }
            }
        }
    }

    /// Looks at the lingering queues; the last time, has their drivers notify again.
    fn look(&mut self) {
        let manner = if Instant::now() < self.until {
            std::thread::yield_now();
            Manner::Linger
        } else {
            Manner::Listen
        };
        for queue in std::mem::take(&mut self.lingering) {
            self.serve(queue, manner);
        }
    }

    fn serve(&mut self, queue: u16, manner: Manner) {
        let Self {
            nic,
            device,
            scratch,
            ..
        } = self;
        let served = net::serve(device, queue, manner, scratch);
        if served.lingers && !self.lingering.contains(&queue) {
            self.lingering.push(queue);
        }
        if served.worked {
            self.until = Instant::now() + LINGER;
        }
        if let Some(interrupt) = served.interrupt {
            interrupt.signal();
        }
        if !scratch.frames.is_empty() {
            nic.switch.forward(&device.port, &scratch.frames);
            scratch.frames.clear();
        }
        if served.halted {
            device.wait_until_resumed();
        }
        if served.again {
            device.kicks.mark(queue);
        }
    }
}
