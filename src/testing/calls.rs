//! The system calls of the simulated kernel.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Type};

use super::fault::Fault;
use super::kernel::{
    Descriptor, FakeKernel, FakeListener, Happening, KernelState, Object, Pace, Watch,
};
use super::stream::{FakeStream, ServerEnd, move_bytes};
use crate::sys::Socket;
use crate::sys::simulated::{Kernel, Simulated, SimulatedEvent, bits};

fn os_error<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

/// The address of a TCP client.
pub(super) fn inet_address(stream: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 1024 + (stream % 60_000) as u16))
}

/// The path of a client over a Unix socket.
pub(super) fn unix_path(stream: usize) -> String {
    format!("/simulated/client/{stream}")
}

impl Kernel for FakeKernel {
    fn now(&self) -> Instant {
        self.origin + self.lock().now
    }

    fn wait(
        &self,
        poller: RawFd,
        events: &mut Vec<SimulatedEvent>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.clear();
        let deadline = {
            let mut state = self.lock();
            state.begin_turn(timeout != Some(Duration::ZERO));
            if timeout == Some(Duration::ZERO) {
                // A turn takes time: budgets of a turn are refilled when the time is another.
                state.now += Duration::from_nanos(1);
            }
            state.is_settled = false;
            if state.strikes(Fault::Interrupted) {
                return os_error(libc::EINTR);
            }
            if state.strikes(Fault::ClockLeap) {
                let leap = Duration::from_secs(1 + state.choices.below(3600) as u64);
                let now = state.now;
                state.note("leap", 0, leap.as_secs() as usize);
                state.pass_until(now + leap);
            }
            // epoll_wait(2) takes milliseconds, and mio rounds up.
            timeout.map(|timeout| {
                let millis = timeout.as_nanos().div_ceil(1_000_000) as u64;
                state.now.saturating_add(Duration::from_millis(millis))
            })
        };
        self.race();
        loop {
            self.perform_due();
            let mut state = self.lock();
            state.collect(poller, events);
            if !events.is_empty() || timeout == Some(Duration::ZERO) || !state.sleep(deadline) {
                return Ok(());
            }
        }
    }

    fn register(
        &self,
        poller: RawFd,
        descriptor: RawFd,
        token: mio::Token,
        again: bool,
    ) -> io::Result<()> {
        let mut state = self.lock();
        if state.descriptor(descriptor).is_none() {
            state.open(descriptor, Object::Other);
        }
        let refuses = !again && state.strikes(Fault::RegisterFailure);
        let Some((_, found)) = state.descriptor(descriptor) else { return os_error(libc::EBADF) };
        let is_stream = matches!(found.object, Object::Stream(_));
        if refuses && is_stream {
            state.mark("a connection cannot be registered");
            return os_error(libc::ENOSPC);
        }
        // The present state is reported once.
        let changed = if matches!(found.object, Object::Other) { 0 } else { bits::IN | bits::OUT };
        found.registration = Some(Watch { poller, token, changed });
        Ok(())
    }

    fn wake(&self, wakeup: RawFd) {
        let mut state = self.lock();
        if let Some((number, _)) = state.descriptor(wakeup) {
            state.note("wake", 0, 0);
            state.change(number, bits::IN);
        }
    }

    fn duplicate(&self, descriptor: RawFd) -> io::Result<()> {
        let mut state = self.lock();
        if state.descriptors.len() >= state.descriptor_limit {
            return os_error(libc::EMFILE);
        }
        state.open(descriptor, Object::Other);
        Ok(())
    }

    fn bind(&self, unix: bool) -> io::Result<Socket> {
        let domain = if unix { Domain::UNIX } else { Domain::IPV4 };
        let listener = FakeListener { is_unix: unix, backlog: None, queue: Default::default() };
        self.socket(domain, Object::Listener(listener)).map(|(socket, _)| socket)
    }

    fn listen(&self, listener: RawFd, backlog: i32) -> io::Result<()> {
        let mut state = self.lock();
        let Some((_, Descriptor { object: Object::Listener(listening), .. })) =
            state.descriptor(listener)
        else {
            return os_error(libc::EOPNOTSUPP);
        };
        listening.backlog = Some(usize::try_from(backlog).unwrap_or(0).min(4096));
        Ok(())
    }

    fn accept(&self, listener: RawFd) -> io::Result<(Socket, SockAddr)> {
        self.race();
        let (stream, domain, address) = self.lock().accept(listener)?;
        let (socket, number) = self.socket(domain, Object::Stream(stream))?;
        let mut state = self.lock();
        state.streams[stream].server = ServerEnd::Open(number);
        state.note("accept", stream, number);
        Ok((socket, address))
    }

    fn receive(&self, socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
        self.race();
        self.lock().receive(socket, buffer)
    }

    fn receive_message(&self, socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        self.receive(socket, buffer).map(|count| (count, false))
    }

    fn peek(&self, socket: RawFd) -> io::Result<usize> {
        let mut state = self.lock();
        let number = state.stream_of(socket);
        if state.strikes(Fault::Interrupted) {
            return os_error(libc::EINTR);
        }
        let stream = &mut state.streams[number];
        match stream.input.is_empty() {
            true => stream.nothing_to_read(),
            false => Ok(1),
        }
    }

    fn send(&self, socket: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.race();
        self.lock().send(socket, slices)
    }

    fn waiting_connections(&self, listener: RawFd) -> Option<usize> {
        match self.lock().descriptor(listener) {
            Some((_, Descriptor { object: Object::Listener(listening), .. })) => {
                (!listening.is_unix).then_some(listening.queue.len())
            }
            _ => None,
        }
    }

    fn unsent(&self, socket: RawFd) -> usize {
        let mut state = self.lock();
        let number = state.stream_of(socket);
        state.streams[number].unsent()
    }

    fn shutdown(&self, socket: RawFd, how: Shutdown) -> io::Result<()> {
        let mut state = self.lock();
        let number = state.stream_of(socket);
        let stream = &mut state.streams[number];
        if stream.failed {
            return os_error(libc::ENOTCONN);
        }
        if how != Shutdown::Read {
            stream.is_shut = true;
        }
        if how != Shutdown::Write {
            stream.input_ended = true;
        }
        state.note("shutdown", number, 0);
        state.plan_deliveries(number);
        Ok(())
    }

    fn take_error(&self, socket: RawFd) -> io::Result<Option<io::Error>> {
        let mut state = self.lock();
        let number = state.stream_of(socket);
        Ok(state.streams[number].error.take().map(io::Error::from_raw_os_error))
    }

    fn reset_on_close(&self, socket: RawFd) {
        let mut state = self.lock();
        let number = state.stream_of(socket);
        state.streams[number].resets_on_close = true;
    }

    fn close(&self, descriptor: RawFd) {
        self.lock().close(descriptor);
    }

    fn run_later(&self, job: Box<dyn FnOnce() + Send>) {
        let mut state = self.lock();
        let delay = state.delay();
        state.plan(delay, Happening::Job(job));
    }
}

impl FakeKernel {
    /// Makes a socket. Its descriptor is one of the real kernel, so that options can be set.
    fn socket(&self, domain: Domain, object: Object) -> io::Result<(Socket, usize)> {
        let system = socket2::Socket::new(domain, Type::STREAM, None)?;
        system.set_nonblocking(true)?;
        let number = self.lock().open(system.as_raw_fd(), object);
        let Some(this) = self.this.upgrade() else { return os_error(libc::ENOTSOCK) };
        let this: Arc<dyn Kernel> = this;
        Ok((Simulated::socket(this, system), number))
    }
}

impl FakeStream {
    /// What a read returns when no input is there.
    pub(super) fn nothing_to_read(&mut self) -> io::Result<usize> {
        if let Some(error) = self.error.take() {
            return os_error(error);
        }
        if self.input_ended || self.failed {
            return Ok(0);
        }
        os_error(libc::EAGAIN)
    }
}

impl KernelState {
    /// The call of the poller sleeps until the next thing happens. Returns false if the call returns
    /// without an event.
    fn sleep(&mut self, deadline: Option<Duration>) -> bool {
        if self.servers.iter().any(|server| server.has_notifications()) {
            self.violate(|| "the event loop sleeps, and a notification waits".to_owned());
        }
        let next = self.agenda.keys().next().map(|key| key.0);
        let horizon = match self.pace {
            // It does not wait for a deadline of the server.
            Pace::Settle if next.is_none() => {
                self.is_settled = true;
                return false;
            }
            Pace::Until(horizon) => Some(horizon),
            Pace::Settle | Pace::Free => None,
        };
        let Some(until) = [next, deadline, horizon].into_iter().flatten().min() else {
            self.violate(|| "the server sleeps, and nothing can wake it".to_owned());
            return false;
        };
        self.pass_until(until);
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            if self.strikes(Fault::LateWakeUp) {
                let late = Duration::from_micros(100 * self.choices.below(200) as u64);
                self.pass_until(self.now + late);
            }
            return false;
        }
        horizon.is_none_or(|horizon| horizon > self.now) || next.is_some_and(|at| at <= self.now)
    }

    /// Takes a client from the queue of a listener.
    fn accept(&mut self, listener: RawFd) -> io::Result<(usize, Domain, SockAddr)> {
        if self.strikes(Fault::Interrupted) {
            return os_error(libc::EINTR);
        }
        let is_full = self.descriptors.len() >= self.descriptor_limit;
        let exhausted = self.strikes(Fault::NoDescriptors);
        let aborted = self.strikes(Fault::AbortedAccept);
        let Some((_, Descriptor { object: Object::Listener(listening), .. })) =
            self.descriptor(listener)
        else {
            return os_error(libc::EBADF);
        };
        // As in Linux, this is checked before the queue.
        if is_full {
            self.mark("accept fails without a descriptor");
            return os_error(libc::EMFILE);
        }
        let is_unix = listening.is_unix;
        if listening.queue.is_empty() {
            return os_error(libc::EAGAIN);
        }
        if exhausted {
            let errors = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
            let error = errors[self.choices.below(errors.len())];
            self.note("accept fails", 0, error as usize);
            return os_error(error);
        }
        let Some(stream) = listening.queue.pop_front() else { return os_error(libc::EAGAIN) };
        if aborted {
            let errors = [libc::ECONNABORTED, libc::EPROTO, libc::EPERM];
            let error = errors[self.choices.below(errors.len())];
            self.streams[stream].server = ServerEnd::Closed;
            self.streams[stream].reset_client(false);
            self.note("accept aborts", stream, error as usize);
            return os_error(error);
        }
        self.accepted_in_turn += 1;
        Ok(match is_unix {
            true => (stream, Domain::UNIX, SockAddr::unix(unix_path(stream))?),
            false => (stream, Domain::IPV4, inet_address(stream).into()),
        })
    }

    fn receive(&mut self, socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
        let number = self.stream_of(socket);
        if self.strikes(Fault::Interrupted) {
            return os_error(libc::EINTR);
        }
        let stream = &mut self.streams[number];
        if stream.input.is_empty() {
            let result = stream.nothing_to_read();
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                self.note("read ends", number, usize::from(result.is_ok()));
            }
            return result;
        }
        let count = buffer.len().min(stream.input.len());
        let mut rest = buffer;
        move_bytes(&mut stream.input, count, |bytes| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            part.copy_from_slice(bytes);
            rest = left;
        });
        stream.read_in_turn += count;
        stream.read += count as u64;
        if stream.is_shut {
            self.mark("input is discarded after the output has ended");
        }
        self.note("read", number, count);
        self.plan_deliveries(number);
        Ok(count)
    }

    fn send(&mut self, socket: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let number = self.stream_of(socket);
        if self.strikes(Fault::Interrupted) {
            return os_error(libc::EINTR);
        }
        let stream = &mut self.streams[number];
        if let Some(error) = stream.error.take() {
            return os_error(error);
        }
        if stream.failed || stream.is_shut || stream.hung_up {
            return os_error(libc::EPIPE);
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = stream.output_capacity.saturating_sub(stream.output.len());
        let mut count = offered.min(room);
        if self.strikes(Fault::ShortSend) {
            count = self.choices.below(count + 1);
            let delay = self.delay();
            self.plan(delay, Happening::Room(number));
        }
        let stream = &mut self.streams[number];
        let mut left = count;
        for slice in slices {
            let part = left.min(slice.len());
            stream.output.extend(&slice[..part]);
            left -= part;
        }
        stream.sent += count as u64;
        stream.lacks_room |= count < offered;
        if count < offered {
            self.mark("the kernel has no room for output");
        }
        self.plan_deliveries(number);
        if count == 0 && offered > 0 {
            return os_error(libc::EAGAIN);
        }
        self.note("send", number, count);
        Ok(count)
    }

    fn close(&mut self, descriptor: RawFd) {
        let Some(number) = self.by_number.remove(&descriptor) else { return };
        match self.descriptors.remove(&number).map(|found| found.object) {
            Some(Object::Stream(stream)) => {
                let has_output = !self.streams[stream].output.is_empty();
                let after_output = has_output && self.choices.below(2) == 1;
                self.streams[stream].close_server(after_output);
                self.note("close", stream, number);
                self.plan_deliveries(stream);
            }
            Some(Object::Listener(listener)) => {
                for stream in listener.queue {
                    self.streams[stream].server = ServerEnd::Closed;
                    self.streams[stream].reset_client(false);
                }
            }
            Some(Object::Other) | None => {}
        }
    }
}
