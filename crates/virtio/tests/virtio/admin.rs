//! Commands, their answers, and devices that do not play by the rules.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::support::{Pf, ADMIN_INDEX, IOVA};
use retrovf_pci::{Doorbell, Function, QueueIndex};
use retrovf_virtio::{
    AdminQueue, AdminQueueOptions, CommandDoorbell, Completion, CompletionMode, Error, Failure,
    Transport,
};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);

fn open(pf: &Arc<Pf>, completion: CompletionMode) -> (Arc<AdminQueue>, Receiver<Completion>) {
    open_sized(pf, completion, 64)
}

fn open_sized(
    pf: &Arc<Pf>,
    completion: CompletionMode,
    size: u16,
) -> (Arc<AdminQueue>, Receiver<Completion>) {
    let (sender, receiver) = channel();
    let transport = Transport::open(Arc::clone(pf) as Arc<dyn Function>).unwrap();
    let options = AdminQueueOptions {
        index: ADMIN_INDEX,
        size,
        completion,
        ..AdminQueueOptions::default()
    };
    let done = move |completion| {
        let _ = sender.send(completion);
    };
    let queue = transport
        .create_admin_queue(options, Box::new(done))
        .unwrap();
    (queue, receiver)
}

#[track_caller]
fn next(receiver: &Receiver<Completion>) -> Completion {
    receiver.recv_timeout(Duration::from_secs(5)).unwrap()
}

#[track_caller]
fn silent(receiver: &Receiver<Completion>) {
    assert_eq!(receiver.recv_timeout(SHORT).ok(), None);
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_device_that_answers_within_the_notification_answers_the_submitter() {
    for completion in [CompletionMode::Interrupt, CompletionMode::Poll] {
        let pf = Pf::new();
        pf.inline.store(true, Ordering::Relaxed);
        let (queue, receiver) = open(&pf, completion);
        for n in 0..1000u64 {
            let question = n.to_le_bytes();
            let answer = queue.submit(n, &question, 16, LONG).unwrap().unwrap();
            assert_eq!(answer, [[0; 8], question].concat());
        }
        silent(&receiver);
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed), (1000, 1000));
        assert_eq!((stats.timed_out, stats.in_flight), (0, 0));
        assert_eq!(stats.latency.count, 1000);
        // The submitter was looking anyway.
        assert_eq!(pf.interrupts.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn answers_come_by_the_callback_in_the_order_of_the_device() {
    for completion in [CompletionMode::Interrupt, CompletionMode::Poll] {
        let pf = Pf::new();
        let (queue, receiver) = open(&pf, completion);
        for n in 0..8u8 {
            let early = queue.submit(n.into(), &[n], 32, LONG).unwrap();
            assert_eq!(early, None);
        }
        assert_eq!(queue.stats().in_flight, 8);
        for command in pf.take(8).iter().rev() {
            pf.answer(command, &[command.readable[0]; 9]);
        }
        for n in (0..8u8).rev() {
            let Completion { id, outcome } = next(&receiver);
            assert_eq!((id, outcome), (n.into(), Ok(vec![n; 9])));
        }
        silent(&receiver);
    }
}

#[test]
fn more_commands_than_the_ring_holds_wait_and_are_answered_in_order() {
    let pf = Pf::new();
    let (queue, receiver) = open_sized(&pf, CompletionMode::Interrupt, 8);
    for n in 0..50u64 {
        queue.submit(n, &n.to_le_bytes(), 8, LONG).unwrap();
    }
    let mut answered = 0;
    while answered < 50 {
        for command in pf.take(1) {
            pf.answer(&command, &command.readable);
            let Completion { id, outcome } = next(&receiver);
            assert_eq!(id, answered);
            assert_eq!(outcome.unwrap(), answered.to_le_bytes());
            answered += 1;
        }
    }
    assert_eq!(queue.stats().in_flight, 0);
}

#[test]
fn a_backlog_of_1024_is_the_most_there_is() {
    let pf = Pf::new();
    let (queue, _receiver) = open_sized(&pf, CompletionMode::Interrupt, 8);
    for n in 0..4 + 1024 {
        queue.submit(n, &[1], 8, LONG).unwrap();
    }
    assert_eq!(
        queue.submit(0, &[1], 8, LONG).unwrap_err().code(),
        "ERR_ADMIN_FULL"
    );
    assert_eq!(pf.held(), 4);
}

#[test]
fn parts_are_1_to_512_bytes_long() {
    let pf = Pf::new();
    pf.inline.store(true, Ordering::Relaxed);
    let (queue, _receiver) = open(&pf, CompletionMode::Poll);
    for (readable, writable) in [(0, 8), (513, 8), (1, 0), (1, 513)] {
        let error = queue
            .submit(0, &vec![1; readable], writable, LONG)
            .unwrap_err();
        assert_eq!(error.code(), "ERR_ADMIN_SIZE");
    }
    let answer = queue.submit(0, &[5; 512], 512, LONG).unwrap().unwrap();
    assert_eq!(answer, [&[0; 8][..], &[5; 504]].concat());
}

#[test]
fn an_answer_is_as_long_as_the_device_says_but_never_longer_than_its_room() {
    let pf = Pf::new();
    let (queue, receiver) = open_sized(&pf, CompletionMode::Interrupt, 2);
    queue.submit(1, &[1], 16, LONG).unwrap();
    let first = pf.take(1).remove(0);
    pf.answer(&first, &[0xee; 16]);
    assert_eq!(next(&receiver).outcome.unwrap(), [0xee; 16]);

    queue.submit(2, &[1], 16, LONG).unwrap();
    let second = pf.take(1).remove(0);
    pf.use_raw(second.head.into(), u32::MAX, 1);
    // It claims everything and wrote nothing: the answer before does not show through.
    assert_eq!(next(&receiver).outcome.unwrap(), [0; 16]);

    queue.submit(3, &[1], 16, LONG).unwrap();
    let third = pf.take(1).remove(0);
    pf.use_raw(third.head.into(), 0, 1);
    assert_eq!(next(&receiver).outcome.unwrap(), []);
}

#[test]
fn a_command_times_out_and_its_memory_is_not_used_again_until_the_device_gives_it_back() {
    for completion in [CompletionMode::Interrupt, CompletionMode::Poll] {
        let pf = Pf::new();
        let (queue, receiver) = open_sized(&pf, completion, 4);
        queue.submit(1, b"late", 8, SHORT).unwrap();
        let late = pf.take(1).remove(0);
        let started = Instant::now();
        assert_eq!(next(&receiver).outcome, Err(Failure::Timeout));
        assert!(started.elapsed() < Duration::from_secs(1));
        assert_eq!(queue.stats().timed_out, 1);

        // One slot is left: the next but one has to wait for it.
        queue.submit(2, b"b", 8, LONG).unwrap();
        queue.submit(3, b"c", 8, SHORT).unwrap();
        let second = pf.take(1).remove(0);
        assert_ne!(second.head, late.head);
        assert_eq!((next(&receiver).id, pf.held()), (3, 0));

        queue.submit(4, b"d", 8, LONG).unwrap();
        pf.answer(&late, b"too late");
        let fourth = pf.take(1).remove(0);
        assert_eq!(fourth.head, late.head);
        pf.answer(&fourth, b"4");
        assert_eq!(
            next(&receiver),
            Completion {
                id: 4,
                outcome: Ok(b"4".to_vec())
            }
        );
        pf.answer(&second, b"2");
        assert_eq!(next(&receiver).id, 2);
        silent(&receiver);
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed), (4, 2));
        assert_eq!((stats.timed_out, stats.in_flight), (2, 0));
    }
}

#[test]
fn a_nearer_deadline_than_those_before_is_kept() {
    let pf = Pf::new();
    let (queue, receiver) = open(&pf, CompletionMode::Interrupt);
    queue.submit(1, b"patient", 8, LONG).unwrap();
    std::thread::sleep(SHORT);
    queue.submit(2, b"hasty", 8, SHORT).unwrap();
    assert_eq!(
        next(&receiver),
        Completion {
            id: 2,
            outcome: Err(Failure::Timeout)
        }
    );
}

#[test]
fn an_answer_without_an_interrupt_is_found_at_the_deadline() {
    let pf = Pf::new();
    let (queue, receiver) = open(&pf, CompletionMode::Interrupt);
    queue.submit(1, b"?", 8, SHORT).unwrap();
    let command = pf.take(1).remove(0);
    let lost = retrovf_pci::IrqRequest {
        index: retrovf_pci::IrqIndex::MSIX,
        start: 0,
        action: retrovf_pci::IrqAction::Install(vec![None]),
    };
    pf.set_irqs(lost).unwrap();
    pf.answer(&command, b"!");
    assert_eq!(next(&receiver).outcome.unwrap(), b"!");
}

/// Three commands are in flight; the device does something that no device may do.
#[track_caller]
fn breaks(evil: impl Fn(&Pf, &[u16])) {
    let pf = Pf::new();
    let (queue, receiver) = open(&pf, CompletionMode::Interrupt);
    for id in 0..3 {
        queue.submit(id, b"?", 8, LONG).unwrap();
    }
    let heads: Vec<u16> = pf.take(3).iter().map(|command| command.head).collect();
    evil(&pf, &heads);
    let mut failed: Vec<u64> = (0..3)
        .map(|_| next(&receiver))
        .filter(|completion| completion.outcome == Err(Failure::Device))
        .map(|completion| completion.id)
        .collect();
    failed.sort_unstable();
    assert!(failed.ends_with(&[1, 2]), "{failed:?}");
    let error = queue.submit(9, b"?", 8, LONG).unwrap_err();
    assert_eq!(error.code(), "ERR_ADMIN_DEVICE");
    silent(&receiver);
}

#[test]
fn a_used_id_out_of_range_breaks_the_queue() {
    breaks(|pf, _| pf.use_raw(64, 8, 1));
}

#[test]
fn a_used_id_beyond_16_bits_breaks_the_queue() {
    breaks(|pf, heads| pf.use_raw(u32::from(heads[0]) | 1 << 16, 8, 1));
}

#[test]
fn a_used_id_in_the_middle_of_a_chain_breaks_the_queue() {
    breaks(|pf, heads| pf.use_raw(u32::from(heads[0]) + 1, 8, 1));
}

#[test]
fn a_used_id_that_is_not_in_flight_breaks_the_queue() {
    breaks(|pf, heads| {
        let idle = (0..64)
            .step_by(2)
            .find(|head| !heads.contains(head))
            .unwrap();
        pf.use_raw(idle.into(), 8, 1);
    });
}

#[test]
fn a_used_id_given_back_twice_breaks_the_queue() {
    breaks(|pf, heads| {
        pf.use_raw(heads[0].into(), 8, 1);
        pf.use_raw(heads[0].into(), 8, 1);
    });
}

#[test]
fn a_used_index_that_jumps_ahead_breaks_the_queue() {
    breaks(|pf, heads| pf.use_raw(heads[0].into(), 8, 4));
}

#[test]
fn a_used_index_that_goes_back_breaks_the_queue() {
    breaks(|pf, heads| pf.use_raw(heads[0].into(), 8, u16::MAX));
}

#[test]
fn close_answers_what_is_in_flight_stops_the_device_and_only_then_takes_its_memory() {
    let pf = Pf::new();
    let (queue, receiver) = open_sized(&pf, CompletionMode::Interrupt, 4);
    for id in 0..5 {
        queue.submit(id, b"?", 8, LONG).unwrap();
    }
    assert!(pf.interrupt_installed() && pf.bus_master());
    queue.close();
    let mut ids: Vec<u64> = receiver
        .try_iter()
        .inspect(|completion| assert_eq!(completion.outcome, Err(Failure::Closed)))
        .map(|completion| completion.id)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    assert!(!pf.unmapped_alive() && !pf.interrupt_installed());
    assert!(pf.dma.load_u16(IOVA).is_err());
    assert_eq!(
        queue.submit(9, b"?", 8, LONG).unwrap_err().code(),
        "ERR_ADMIN_CLOSED"
    );
    queue.close();
    assert!(receiver.try_recv().is_err());
}

#[test]
fn a_device_that_does_not_reset_loses_the_bus_before_its_memory() {
    let pf = Pf::new();
    let (queue, _receiver) = open(&pf, CompletionMode::Poll);
    pf.ignores_reset.store(true, Ordering::Relaxed);
    let transport = Transport::open(Arc::clone(&pf) as Arc<dyn Function>).unwrap();
    transport.set_status(15).unwrap();
    drop(queue);
    assert!(!pf.bus_master() && !pf.unmapped_alive());
    assert!(pf.dma.load_u16(IOVA).is_err());
}

#[test]
fn the_callback_may_submit_and_close() {
    let pf = Pf::new();
    let slot: Arc<OnceLock<Arc<AdminQueue>>> = Arc::default();
    let (sender, receiver) = channel();
    let transport = Transport::open(Arc::clone(&pf) as Arc<dyn Function>).unwrap();
    let options = AdminQueueOptions {
        index: ADMIN_INDEX,
        ..AdminQueueOptions::default()
    };
    let own = Arc::clone(&slot);
    let done = move |completion: Completion| {
        let queue = own.get().unwrap();
        if completion.id == 1 {
            queue.submit(2, b"again", 8, LONG).unwrap();
        } else if completion.id == 2 {
            queue.submit(3, b"left over", 8, LONG).unwrap();
            queue.close();
        }
        let _ = sender.send(completion);
    };
    let queue = transport
        .create_admin_queue(options, Box::new(done))
        .unwrap();
    slot.set(Arc::clone(&queue)).unwrap();
    queue.submit(1, b"first", 8, LONG).unwrap();
    for id in 1..=2 {
        pf.answer(&pf.take(1)[0], b"done");
        assert_eq!(
            next(&receiver),
            Completion {
                id,
                outcome: Ok(b"done".to_vec())
            }
        );
    }
    assert_eq!(
        next(&receiver),
        Completion {
            id: 3,
            outcome: Err(Failure::Closed)
        }
    );
    queue.close();
    assert!(pf.dma.load_u16(IOVA).is_err());
}

#[test]
fn closing_from_many_threads_at_once_ends() {
    for _ in 0..50 {
        let pf = Pf::new();
        let (queue, receiver) = open(&pf, CompletionMode::Interrupt);
        queue.submit(1, b"?", 8, LONG).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    queue.close();
                    assert!(pf.dma.load_u16(IOVA).is_err());
                });
            }
        });
        assert_eq!(receiver.try_iter().count(), 1);
    }
}

#[test]
fn submitters_on_many_threads_each_get_their_own_answer_once() {
    let pf = Pf::new();
    pf.inline.store(true, Ordering::Relaxed);
    let (queue, receiver) = open_sized(&pf, CompletionMode::Interrupt, 8);
    let early = AtomicUsize::new(0);
    let late = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (queue, early, late) = (&queue, &early, &late);
            scope.spawn(move || {
                for n in 0..500u64 {
                    let id = thread << 32 | n;
                    let answer = loop {
                        match queue.submit(id, &id.to_le_bytes(), 16, LONG) {
                            Err(Error::Full { .. }) => std::thread::yield_now(),
                            answer => break answer.unwrap(),
                        }
                    };
                    if let Some(answer) = answer {
                        assert_eq!(answer[8..], id.to_le_bytes());
                        early.fetch_add(1, Ordering::Relaxed);
                    } else {
                        late.lock().unwrap().push(id);
                    }
                }
            });
        }
    });
    let mut late = late.into_inner().unwrap();
    let mut called: Vec<u64> = late
        .iter()
        .map(|_| next(&receiver))
        .inspect(|c| assert_eq!(c.outcome.as_ref().unwrap()[8..], c.id.to_le_bytes()))
        .map(|completion| completion.id)
        .collect();
    called.sort_unstable();
    late.sort_unstable();
    assert_eq!(called, late);
    assert_eq!(early.into_inner() + late.len(), 2000);
    silent(&receiver);
    assert_eq!(queue.stats().completed, 2000);
}

/// The readable part of a notify command of member 7.
fn notify_command(queue: u8) -> Vec<u8> {
    let mut bytes = vec![0; 34];
    (bytes[0], bytes[2], bytes[16]) = (2, 1, 7);
    (bytes[24], bytes[32]) = (0x10, queue);
    bytes
}

#[test]
fn a_command_doorbell_has_one_command_per_queue_under_way_and_makes_up_for_later_rings() {
    let pf = Pf::new();
    let (queue, receiver) = open(&pf, CompletionMode::Interrupt);
    let doorbell = CommandDoorbell::new(queue, 7, 2);
    for _ in 0..10 {
        doorbell.ring(QueueIndex(1));
    }
    doorbell.ring(QueueIndex(0));
    doorbell.ring(QueueIndex(2));
    let commands = pf.take(2);
    assert_eq!(commands[0].readable, notify_command(1));
    assert_eq!(commands[1].readable, notify_command(0));
    assert_eq!(commands.len(), 2);
    for command in &commands {
        pf.answer(command, &[0; 8]);
    }
    let again = pf.take(1);
    assert_eq!(again[0].readable, notify_command(1));
    pf.answer(&again[0], &[0; 8]);
    silent(&receiver);
    assert_eq!((pf.held(), doorbell.failed()), (0, 0));
    doorbell.ring(QueueIndex(1));
    assert_eq!(pf.take(1)[0].readable, notify_command(1));
}

#[test]
fn a_command_doorbell_tries_again_when_told_so_and_counts_what_fails() {
    let pf = Pf::new();
    let (queue, _receiver) = open(&pf, CompletionMode::Interrupt);
    let doorbell = CommandDoorbell::new(queue, 7, 1);
    doorbell.ring(QueueIndex(0));
    pf.answer(&pf.take(1)[0], &[11, 0, 7, 0, 0, 0, 0, 0]);
    pf.answer(&pf.take(1)[0], &[22, 0, 5, 0, 0, 0, 0, 0]);
    assert!(eventually(|| doorbell.failed() == 1));
    assert_eq!(pf.held(), 0);
}

#[test]
fn no_ring_of_a_command_doorbell_is_lost() {
    let pf = Pf::new();
    pf.inline.store(true, Ordering::Relaxed);
    let (queue, _receiver) = open(&pf, CompletionMode::Interrupt);
    let doorbell = CommandDoorbell::new(Arc::clone(&queue), 7, 1);
    for _ in 0..200 {
        let before = pf.notified();
        doorbell.ring(QueueIndex(0));
        doorbell.ring(QueueIndex(0));
        assert!(eventually(|| pf.notified() > before));
        assert!(eventually(|| queue.stats().in_flight == 0));
    }
    queue.close();
    doorbell.ring(QueueIndex(0));
    assert_eq!(doorbell.failed(), 1);
}

#[test]
fn a_command_doorbell_moves_to_another_queue_while_it_rings() {
    for _ in 0..50 {
        let (old, new) = (Pf::new(), Pf::new());
        old.inline.store(true, Ordering::Relaxed);
        // The doorbell has the only handle of the old queue: moving on closes it.
        let (queue, _receiver) = open(&old, CompletionMode::Interrupt);
        let doorbell = CommandDoorbell::new(queue, 7, 1);
        for _ in 0..20 {
            doorbell.ring(QueueIndex(0));
        }
        let (queue, _receiver) = open(&new, CompletionMode::Interrupt);
        doorbell.set_queue(queue);
        assert!(old.dma.load_u16(IOVA).is_err());
        doorbell.ring(QueueIndex(0));
        assert_eq!(new.take(1)[0].readable, notify_command(0));
    }
}
