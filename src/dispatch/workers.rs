//! A bounded pool of threads for jobs that a loop lends out.
//!
//! **Invariant:** the loop wakes at most one worker per turn, and none while one that is awake will
//! look for work again anyway; a worker that finds more work than its own wakes the next.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::mailbox::{Mail, Mailbox, Work, lock};
use crate::session::Workers;
use crate::token::Token;

struct Job {
    home: Arc<Mailbox>,
    token: Token,
    work: Box<dyn Work>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads there are.
    threads: usize,
    /// Threads that sleep and have not been woken.
    asleep: usize,
    /// Threads that have been woken and are on their way.
    woken: usize,
    closed: bool,
}

/// The pool; dropped, it lets its threads end when their work is done.
pub(crate) struct WorkerPool {
    inside: Arc<Inside>,
}

struct Inside {
    queue: Mutex<Queue>,
    work: Condvar,
    most: usize,
}

impl WorkerPool {
    /// A pool of at most so many threads, none of which is started yet.
    pub(crate) fn new(most: usize) -> Self {
        let queue = Mutex::default();
        WorkerPool {
            inside: Arc::new(Inside {
                queue,
                work: Condvar::new(),
                most,
            }),
        }
    }
}

impl Inside {
    /// Sees to it that someone comes for the work: wakes a sleeper, or starts a thread.
    fn call_one(self: &Arc<Self>, queue: &mut Queue) {
        // Who is on its way will see to the next itself.
        if queue.jobs.is_empty() || queue.woken > 0 {
            return;
        }
        if queue.asleep > 0 {
            queue.asleep -= 1;
            queue.woken += 1;
            self.work.notify_one();
        } else if queue.threads < self.most {
            queue.threads += 1;
            let inside = self.clone();
            let name = format!("worker-{}", queue.threads);
            let started = thread::Builder::new()
                .name(name)
                .spawn(move || inside.work());
            if let Err(error) = started {
                queue.threads -= 1;
                // With no thread at all nobody would ever come for it; with some, they will.
                log::error!("a worker could not be started: {error}");
            }
        }
    }

    fn work(self: Arc<Self>) {
        // If a job panics all the same, another thread takes this one's place.
        let _replacement = Replacement(&self);
        let mut queue = lock(&self.queue);
        loop {
            if let Some(Job {
                home,
                token,
                mut work,
            }) = queue.jobs.pop_front()
            {
                self.call_one(&mut queue);
                drop(queue);
                work.run();
                home.post(Mail::Returned(token, work));
                queue = lock(&self.queue);
            } else if queue.closed {
                queue.threads -= 1;
                return;
            } else {
                queue.asleep += 1;
                while queue.woken == 0 && !queue.closed {
                    queue = self
                        .work
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                queue.woken = queue.woken.saturating_sub(1);
            }
        }
    }
}

/// Takes a thread's place when it ends by a panic.
struct Replacement<'a>(&'a Arc<Inside>);

impl Drop for Replacement<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut queue = lock(&self.0.queue);
            queue.threads -= 1;
            self.0.call_one(&mut queue);
        }
    }
}

impl Workers for WorkerPool {
    fn submit(&self, home: &Arc<Mailbox>, token: Token, work: Box<dyn Work>) {
        let mut queue = lock(&self.inside.queue);
        queue.jobs.push_back(Job {
            home: home.clone(),
            token,
            work,
        });
    }

    fn call(&self) {
        let mut queue = lock(&self.inside.queue);
        self.inside.call_one(&mut queue);
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        lock(&self.inside.queue).closed = true;
        self.inside.work.notify_all();
    }
}
