//! The crate against SoftNIC, a device that its author did not write.

use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::time::Duration;

use retrovf_softnic::{CommandFilter, Config, Fault, SoftNic};
use retrovf_spec::admin::{
    legacy_write, Header, GROUP_SRIOV, LEGACY_COMMON_CFG_READ, LEGACY_COMMON_CFG_WRITE, LIST_QUERY,
    LIST_USE,
};
use retrovf_spec::legacy;
use retrovf_spec::virtio::{feature, status};
use retrovf_virtio::{
    AdminQueue, AdminQueueOptions, Completion, CompletionMode, Failure, Transport,
};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(50);

fn bring_up(
    nic: &SoftNic,
    completion: CompletionMode,
) -> (Transport, Arc<AdminQueue>, Receiver<Completion>) {
    let transport = Transport::open(nic.open(nic.owner()).unwrap()).unwrap();
    let wanted = 1 << feature::VERSION_1 | 1 << feature::ADMIN_VQ | 1 << feature::SR_IOV;
    transport.set_status(0).unwrap();
    assert_eq!(transport.status().unwrap(), 0);
    let mut bits = status::ACKNOWLEDGE | status::DRIVER;
    transport.set_status(bits).unwrap();
    assert_eq!(transport.device_features().unwrap() & wanted, wanted);
    transport.set_driver_features(wanted).unwrap();
    bits |= status::FEATURES_OK;
    transport.set_status(bits).unwrap();
    assert_eq!(transport.status().unwrap(), bits);
    let (index, count) = transport.admin_queues().unwrap().unwrap();
    assert!(count >= 1 && index >= transport.num_queues().unwrap());
    let (sender, receiver) = channel();
    let options = AdminQueueOptions {
        index,
        completion,
        ..AdminQueueOptions::default()
    };
    let done = move |completion| {
        let _ = sender.send(completion);
    };
    let queue = transport
        .create_admin_queue(options, Box::new(done))
        .unwrap();
    transport.set_status(bits | status::DRIVER_OK).unwrap();
    (transport, queue, receiver)
}

fn header(opcode: u16, member: u64) -> Header {
    Header {
        opcode,
        group_type: GROUP_SRIOV,
        member,
    }
}

/// The answer, wherever it comes.
fn ask(
    queue: &AdminQueue,
    receiver: &Receiver<Completion>,
    command: &[u8],
    room: usize,
) -> Vec<u8> {
    match queue.submit(1, command, room, LONG).unwrap() {
        Some(answer) => answer,
        None => receiver.recv_timeout(LONG).unwrap().outcome.unwrap(),
    }
}

fn list(queue: &AdminQueue, receiver: &Receiver<Completion>) {
    let query = header(LIST_QUERY, 0).to_bytes();
    let answer = ask(queue, receiver, &query, 16);
    assert_eq!(answer, [0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]);
    let using = [&header(LIST_USE, 0).to_bytes()[..], &answer[8..]].concat();
    assert_eq!(ask(queue, receiver, &using, 8), [0; 8]);
}

#[test]
fn an_owner_drives_the_legacy_registers_of_its_member() {
    for completion in [CompletionMode::Interrupt, CompletionMode::Poll] {
        let nic = SoftNic::new(Config::default()).unwrap();
        let (_transport, queue, receiver) = bring_up(&nic, completion);
        list(&queue, &receiver);
        let status = legacy::STATUS as u8;
        for value in [1, 3] {
            let write = legacy_write(header(LEGACY_COMMON_CFG_WRITE, 1), status, &[value]);
            assert_eq!(ask(&queue, &receiver, &write, 8), [0; 8]);
            let mut read = header(LEGACY_COMMON_CFG_READ, 1).to_bytes().to_vec();
            read.push(status);
            assert_eq!(
                ask(&queue, &receiver, &read, 9),
                [0, 0, 0, 0, 0, 0, 0, 0, value]
            );
        }
        queue.close();
    }
}

#[test]
fn slow_answers_come_by_the_callback_and_missing_ones_time_out() {
    for completion in [CompletionMode::Interrupt, CompletionMode::Poll] {
        let nic = SoftNic::new(Config::default()).unwrap();
        let (_transport, queue, receiver) = bring_up(&nic, completion);
        list(&queue, &receiver);
        let filter = CommandFilter {
            opcode: Some(LIST_QUERY),
            ..CommandFilter::default()
        };
        let delay = SHORT;
        nic.inject(Fault::SlowCompletion { filter, delay }).unwrap();
        let query = header(LIST_QUERY, 0).to_bytes();
        assert_eq!(queue.submit(5, &query, 16, LONG).unwrap(), None);
        let slow = receiver.recv_timeout(LONG).unwrap();
        assert_eq!((slow.id, slow.outcome.unwrap()[8]), (5, 0x7f));

        nic.inject(Fault::NoCompletion { filter }).unwrap();
        assert_eq!(queue.submit(6, &query, 16, SHORT).unwrap(), None);
        let missing = receiver.recv_timeout(LONG).unwrap();
        assert_eq!((missing.id, missing.outcome), (6, Err(Failure::Timeout)));
        assert_eq!(ask(&queue, &receiver, &query, 16)[8], 0x7f);
        assert_eq!(queue.stats().timed_out, 1);
    }
}

#[test]
fn a_pf_that_is_pulled_out_reads_as_gone_and_its_queue_can_be_closed() {
    let nic = SoftNic::new(Config::default()).unwrap();
    let (transport, queue, receiver) = bring_up(&nic, CompletionMode::Interrupt);
    list(&queue, &receiver);
    nic.inject(Fault::FunctionGone { bdf: nic.owner() })
        .unwrap();
    assert_eq!(transport.status().unwrap(), 0xff);
    let query = header(LIST_QUERY, 0).to_bytes();
    assert_eq!(queue.submit(7, &query, 16, LONG).unwrap(), None);
    queue.close();
    let closed = receiver.recv_timeout(LONG).unwrap();
    assert_eq!((closed.id, closed.outcome), (7, Err(Failure::Closed)));
}

#[test]
fn a_queue_comes_up_again_after_a_close() {
    let nic = SoftNic::new(Config::default()).unwrap();
    let (transport, queue, receiver) = bring_up(&nic, CompletionMode::Interrupt);
    list(&queue, &receiver);
    drop((transport, queue, receiver));
    let (_transport, queue, receiver) = bring_up(&nic, CompletionMode::Poll);
    list(&queue, &receiver);
}
