//! The thread of an open function: serves its queues, one bounded batch at a time.

use crate::admin;
use crate::device::Device;
use crate::kicks::{CONFIG_CHANGE, FUNCTION_ERROR, INBOX};
use crate::net::{self, Scratch};
use crate::nic::Nic;
use crate::sync::lock;

/// Runs until the function is closed.
pub(crate) fn run(nic: &Nic, device: &Device) {
    let mut scratch = Scratch::default();
    while !device.kicks.stopping() {
        let timeout = if device.geometry.owner {
            admin::complete_late(nic)
        } else {
            None
        };
        let pending = device.kicks.take();
        if pending.is_empty() {
            device.kicks.sleep(None, timeout);
            continue;
        }
        if pending.has(INBOX) {
            for lane in device.port.busy_lanes() {
                serve(nic, device, 2 * lane, &mut scratch);
            }
        }
        for queue in pending.queues(device.geometry.num_queues()) {
            serve(nic, device, queue, &mut scratch);
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

fn serve(nic: &Nic, device: &Device, queue: u16, scratch: &mut Scratch) {
    let served = net::serve(device, queue, scratch);
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
