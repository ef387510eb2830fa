//! Models of the mailbox: loom tries every interleaving of the threads. A wake that is lost is a
//! deadlock, which fails the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::sync::thread;

/// Takes notifications like an event loop until it has so many, and sleeps in between.
fn run_loop(mailbox: &Mailbox, wanted: usize, budget: usize) -> VecDeque<Notification> {
    let mut taken = VecDeque::new();
    loop {
        mailbox.collect(&mut taken, budget);
        if taken.len() >= wanted {
            return taken;
        }
        if mailbox.prepare_park() {
            mailbox.wakeup().wait();
        }
        mailbox.wake_up();
    }
}

fn token(number: usize) -> Token {
    Token::new(number, 0)
}

/// Counts how often it is abandoned.
struct Counted(Arc<AtomicUsize>);

impl Job for Counted {
    fn taken(&mut self) -> (Instant, Instant) {
        (Instant::now(), Instant::now())
    }

    fn run(&mut self) -> bool {
        true
    }

    fn abandoned(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[test]
fn a_loop_that_goes_to_sleep_gets_what_two_threads_post() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let posters = [1, 2].map(|number| {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(Notification::SendQueue(token(number))))
        });
        let taken = run_loop(&mailbox, 2, 1);
        assert_eq!(taken.len(), 2);
        posters.into_iter().for_each(|poster| poster.join().unwrap());
        assert!(!mailbox.has_notifications());
    });
}

#[test]
fn a_coalesced_notification_wakes_a_loop_that_has_not_taken_the_earlier_one() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let asked = Arc::new(crate::sync::AtomicUsize::new(0));
        let posters = [(); 2].map(|()| {
            let (mailbox, asked) = (mailbox.clone(), asked.clone());
            thread::spawn(move || {
                asked.fetch_add(1, SeqCst);
                mailbox.post(Notification::Wake);
            })
        });
        // The loop looks at `asked` after each notification, and must see both.
        while asked.load(SeqCst) < 2 {
            run_loop(&mailbox, 1, 8);
        }
        posters.into_iter().for_each(|poster| poster.join().unwrap());
    });
}

#[test]
fn a_job_that_returns_at_the_end_of_a_run_is_abandoned_once() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        mailbox.begin_run(1);
        let abandoned = Arc::new(AtomicUsize::new(0));
        let worker = {
            let (mailbox, job) = (mailbox.clone(), Box::new(Counted(abandoned.clone())));
            thread::spawn(move || mailbox.return_job(1, token(1), job))
        };
        mailbox.end_run();
        mailbox.begin_run(2);
        worker.join().unwrap();
        assert_eq!(abandoned.load(SeqCst), 1);
        assert!(!mailbox.has_notifications());
    });
}

#[test]
fn nothing_is_left_in_a_mailbox_that_is_closed_while_threads_post() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let poster = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(Notification::CapacityFreed))
        };
        mailbox.close();
        poster.join().unwrap();
        assert!(!mailbox.has_notifications());
    });
}
