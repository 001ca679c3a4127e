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

/// Queues that the thread looks at without having been asked to.
struct Lingering {
    queues: Vec<u16>,
    until: Instant,
}

/// Runs until the function is closed.
pub(crate) fn run(nic: &Nic, device: &Device) {
    let mut scratch = Scratch::default();
    let mut lingering = Lingering {
        queues: Vec::new(),
        until: Instant::now(),
    };
    while !device.kicks.stopping() {
        let timeout = if device.geometry.owner {
            admin::complete_late(nic)
        } else {
            None
        };
        let pending = device.kicks.take();
        if pending.is_empty() {
            if lingering.queues.is_empty() {
                device.kicks.sleep(None, timeout);
                continue;
            }
            let manner = if Instant::now() < lingering.until {
                std::thread::yield_now();
                Manner::Linger
            } else {
                Manner::Listen
            };
            for queue in std::mem::take(&mut lingering.queues) {
                serve(nic, device, queue, manner, &mut scratch, &mut lingering);
            }
            continue;
        }
        if pending.has(INBOX) {
            for lane in device.port.busy_lanes() {
                serve(
                    nic,
                    device,
                    2 * lane,
                    Manner::Linger,
                    &mut scratch,
                    &mut lingering,
                );
            }
        }
        for queue in pending.queues(device.geometry.num_queues()) {
            serve(
                nic,
                device,
                queue,
                Manner::Linger,
                &mut scratch,
                &mut lingering,
            );
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

fn serve(
    nic: &Nic,
    device: &Device,
    queue: u16,
    manner: Manner,
    scratch: &mut Scratch,
    lingering: &mut Lingering,
) {
    let served = net::serve(device, queue, manner, scratch);
    if served.lingers && !lingering.queues.contains(&queue) {
        lingering.queues.push(queue);
    }
    if served.worked {
        lingering.until = Instant::now() + LINGER;
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
