//! Models of the thread pool: loom tries every interleaving of the threads. A job for which no thread
//! is woken is left in the queue, or is a deadlock; both fail the model.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

/// Counts the jobs that are run, and checks the count when the last thread has ended.
struct Counts {
    run: AtomicUsize,
    expected: usize,
}

impl RunJob<()> for Counts {
    type After = ();

    fn run(&self, (): ()) {
        self.run.fetch_add(1, SeqCst);
    }

    fn after(&self, (): ()) {}

    fn refuse(&self, (): ()) {
        panic!("a job is refused");
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        assert_eq!(self.run.load(SeqCst), self.expected, "each job is run");
    }
}

fn pool(max_threads: usize, keep_alive: Option<Duration>, jobs: usize) -> ThreadPool<(), Counts> {
    let config =
        PoolConfig { name: "model", max_threads, waits: true, keep_alive, stack_size: None };
    ThreadPool::new(config, Counts { run: AtomicUsize::new(0), expected: jobs })
}

fn submit(pool: &ThreadPool<(), Counts>) {
    pool.push(());
    pool.call();
}

#[test]
fn two_threads_run_all_jobs_and_end_when_the_pool_is_dropped() {
    loom::model(|| {
        let pool = pool(2, None, 2);
        submit(&pool);
        submit(&pool);
    });
}

#[test]
fn one_thread_runs_the_jobs_that_two_others_submit() {
    loom::model(|| {
        let pool = Arc::new(pool(1, None, 2));
        let other = {
            let pool = pool.clone();
            thread::spawn(move || submit(&pool))
        };
        submit(&pool);
        other.join().unwrap();
    });
}

#[test]
fn a_job_is_run_if_the_thread_that_is_woken_for_it_would_have_ended() {
    loom::model(|| {
        let pool = pool(1, Some(Duration::from_secs(1)), 2);
        submit(&pool);
        submit(&pool);
    });
}

#[test]
fn a_job_that_is_submitted_while_two_threads_end_is_run() {
    loom::model(|| {
        let pool = pool(2, Some(Duration::from_secs(1)), 3);
        pool.push(());
        submit(&pool);
        submit(&pool);
    });
}
