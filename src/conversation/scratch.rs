//! The memory and the numbers that the calls of conversations share.

use super::context::Driver;
use super::{OutputBuffer, READ_SIZE, StepCx};
use crate::counters::Tally;

/// What conversations are served with, one after the other: it belongs to a thread, or to one job of
/// a worker.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// What is read into; empty where nothing is read.
    pub(crate) buffer: Box<[u8]>,
    /// Where output is collected, to be sent before the next call.
    pub(crate) output_buffer: OutputBuffer,
    /// What has happened, counted and not yet published.
    pub(crate) tally: Tally,
}

impl Scratch {
    /// With a read buffer of [`READ_SIZE`] bytes; the default is without one.
    pub(crate) fn with_read_buffer() -> Self {
        Scratch { buffer: vec![0; READ_SIZE].into_boxed_slice(), ..Scratch::default() }
    }

    /// What a conversation works with for one turn.
    #[inline(always)]
    pub(crate) fn step_cx<'a>(&'a mut self, driver: &'a dyn Driver, room: usize) -> StepCx<'a> {
        StepCx::new(&mut self.output_buffer, &mut self.tally, driver, room)
    }

    /// Takes what a job has made: its output, and what it has counted. There is no other output; the job
    /// gets the empty buffer in exchange.
    pub(crate) fn take_over(&mut self, job: &mut Scratch) {
        debug_assert!(self.output_buffer.is_empty());
        std::mem::swap(&mut self.output_buffer, &mut job.output_buffer);
        self.tally.absorb(&mut job.tally);
    }
}
