//! Models of the send queue: loom tries every interleaving of the threads. A notification that is
//! lost is a deadlock, which fails the model.

use std::sync::Arc;

use super::*;
use crate::sync::thread;

fn recipient() -> Recipient {
    Recipient { id: ConnectionId::next(), peer: Peer::Unnamed }
}

fn of_loop() -> (Arc<Mailbox>, Arc<SendQueue>) {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let waker = Waker::Loop(mailbox.clone(), Token::new(1, 0));
    (mailbox, Arc::new(SendQueue::new(waker, SenderLimit::default(), recipient())))
}

fn of_thread() -> (Arc<ThreadWaker>, Arc<SendQueue>) {
    let waker = ThreadWaker { wakeup: Wakeup::new().unwrap(), memory: Arc::default() };
    let waker = Arc::new(waker);
    let send_queue =
        SendQueue::new(Waker::Thread(waker.clone()), SenderLimit::default(), recipient());
    (waker, Arc::new(send_queue))
}

fn sender(send_queue: &Arc<SendQueue>) -> Sender {
    Sender::new(send_queue.clone(), Encodable::Any)
}

/// Waits, like an event loop, for the notification that the queue has entries.
fn wait_for_notification(mailbox: &Mailbox) {
    let mut taken = VecDeque::new();
    loop {
        mailbox.collect(&mut taken, 8);
        if !taken.is_empty() {
            return;
        }
        if mailbox.prepare_park() {
            mailbox.wakeup().wait();
        }
        mailbox.wake_up();
    }
}

#[test]
fn an_event_loop_gets_what_two_threads_send() {
    loom::model(|| {
        let (mailbox, send_queue) = of_loop();
        let threads = [b"one", b"two"].map(|message| {
            let sender = sender(&send_queue);
            thread::spawn(move || sender.send(message).unwrap())
        });
        let mut taken = 0;
        while taken < 2 {
            wait_for_notification(&mailbox);
            send_queue.enable_notification();
            while send_queue.take().is_some() {
                taken += 1;
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(send_queue.is_empty());
        assert_eq!(mailbox.memory().held(), 0);
    });
}

#[test]
fn a_thread_that_begins_to_wait_gets_what_another_sends_and_its_close() {
    loom::model(|| {
        let (waker, send_queue) = of_thread();
        let other = {
            let sender = sender(&send_queue);
            thread::spawn(move || {
                sender.send(b"last words").unwrap();
                sender.close();
            })
        };
        let mut messages = 0;
        loop {
            match send_queue.take() {
                Some(Command::Message(_)) => messages += 1,
                Some(_) => break,
                None if send_queue.enable_notification() => {}
                None => waker.wakeup.wait(),
            }
        }
        other.join().unwrap();
        assert_eq!((messages, waker.memory.held()), (1, 0));
    });
}

#[test]
fn a_connection_that_waits_for_its_last_sender_is_told_when_it_is_dropped() {
    loom::model(|| {
        let (mailbox, send_queue) = of_loop();
        let threads = [(); 2].map(|()| {
            let sender = sender(&send_queue);
            thread::spawn(move || drop(sender))
        });
        while !send_queue.is_abandoned() {
            wait_for_notification(&mailbox);
            send_queue.enable_notification();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_message_that_is_sent_while_the_connection_closes_is_refused_or_dropped() {
    for refuse_first in [false, true] {
        loom::model(move || {
            let (mailbox, send_queue) = of_loop();
            let other = {
                let sender = sender(&send_queue);
                thread::spawn(move || sender.send(b"late"))
            };
            if refuse_first {
                send_queue.refuse();
            }
            send_queue.close();
            let _ = other.join().unwrap();
            assert!(send_queue.take().is_none());
            assert_eq!(mailbox.memory().held(), 0);
        });
    }
}
