//! The buffers and counters that the conversations of one thread share.

use super::context::Driver;
use super::{OutputBuffer, READ_SIZE, StepCx};
use crate::counters::Tally;

/// The buffers and counters for serving conversations, one after the other. A thread has one, and
/// so has each job of a worker.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The read buffer; empty where nothing is read.
    pub(crate) buffer: Box<[u8]>,
    /// Collects output, which is sent before the next call.
    pub(crate) output_buffer: OutputBuffer,
    /// Counts that are not published yet.
    pub(crate) tally: Tally,
}

impl Scratch {
    /// With a read buffer of [`READ_SIZE`] bytes; the default has none.
    pub(crate) fn with_read_buffer() -> Self {
        Scratch { buffer: vec![0; READ_SIZE].into_boxed_slice(), ..Scratch::default() }
    }

    /// The context of a conversation for one step.
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
