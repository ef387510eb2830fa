//! Requests under `inline`, `threading`, `pool` and `forking`: the loop accepts them, and they are
//! served by blocking.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{Door, Driven, Driver, Make, Needs, RunContext, Serve, Start, made};
use crate::address::Peer;
use crate::dispatch::{
    Alongside, Assigned, Family, Forking, Homeward, Pool, Threading, Threads, When,
};
use crate::error::CloseReason;
use crate::event_loop::{
    DatagramDispatcher, Dispatcher, Incoming, LingeringConnection, LoopCx, NewConnection,
    PendingFork, StreamDispatcher,
};
use crate::guard;
use crate::session::{Answering, Packet, Served, Session};
use crate::sys::{Child, ChildProcess, RecvMeta};
use crate::token::Token;

/// One request at a time, on the loop's thread.
struct OnLoopsThread<T, S> {
    start: Box<dyn Start<T>>,
    serve: S,
}

pub(super) fn inline<T: 'static, S: Serve<T>>(start: Box<dyn Start<T>>, serve: S) -> Driven {
    Driven(Box::new(OnLoopsThread { start, serve }))
}

impl<T: 'static, S: Serve<T>> Driver for OnLoopsThread<T, S> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(InlineDispatcher::new(self, run_cx)?))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        run_cx.door.answering.retried_by(&run_cx.control.mailbox, run_cx.listener);
        Ok(Box::new(InlineDispatcher::new(self, run_cx)?))
    }
}

struct InlineDispatcher<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    door: Door,
    listener: Token,
    alongside: Alongside<'static>,
}

impl<'a, T: 'static, S: Serve<T>> InlineDispatcher<'a, T, S> {
    fn new(driver: &'a mut OnLoopsThread<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let signals = run_cx.signals.clone();
        let (control, asked) = (run_cx.control.clone(), run_cx.control.clone());
        let wakeup = signals.as_ref().map(|signals| signals.wakeup());
        let is_stopping = move || {
            control.stop_requested()
                || control.mailbox.asks_shutdown()
                || signals.as_ref().is_some_and(|signals| signals.is_due())
        };
        Ok(InlineDispatcher {
            make: driver.start.start()?,
            serve: &driver.serve,
            door: run_cx.door.clone(),
            listener: run_cx.listener,
            alongside: Alongside::new(
                run_cx.control.mailbox.clone(),
                wakeup,
                run_cx.control.asked_by_child().cloned(),
                is_stopping,
                move || asked.request_stop(),
                run_cx.drain,
            ),
        })
    }

    fn serve(&mut self, session: impl Session, cx: &mut LoopCx) {
        let (served, overtaken) = self.alongside.serve(Box::new(session), &mut cx.tally);
        let Served { peer, reason, lingering, .. } = served;
        if let Some(lingering) = lingering {
            // On the loop, since it would hold up the next request here.
            match LingeringConnection::new(lingering) {
                Ok(lingers) => cx.register(NewConnection {
                    descriptor: lingers.descriptor(),
                    source: Box::new(lingers),
                    parent: self.listener,
                }),
                Err(_) => cx.tally.closed += 1,
            }
        }
        cx.end(&peer, reason);
        cx.inline_outcome = overtaken;
        cx.shutdown |= self.alongside.is_stopping();
    }
}

impl<T, S> Dispatcher for InlineDispatcher<'_, T, S> {
    fn burst(&self) -> usize {
        1
    }
}

impl<T: 'static, S: Serve<T>> StreamDispatcher for InlineDispatcher<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        let socket = Arc::new(socket);
        let Some(session) = made(&peer, cx, || {
            self.serve.stream(self.make.make(&peer), &self.door, socket, peer.clone())
        }) else {
            cx.tally.closed += 1;
            return;
        };
        self.serve(session, cx);
    }
}

impl<T: 'static, S: Serve<T>> DatagramDispatcher for InlineDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = made(&peer, cx, || self.make.make(&peer)) else { return };
        let session = self.serve.datagram(handler, &self.door, Packet::new(bytes, peer, received));
        self.serve(session, cx);
    }

    fn answering(&self) -> Option<Arc<Answering>> {
        Some(self.door.answering.clone())
    }
}

/// Each request in a thread of its own, while it lasts.
struct OnThreads<T, S> {
    start: Box<dyn Start<T>>,
    serve: S,
    threads: Threads,
    /// Made with the first run: a request may end in a later one than it came in.
    home: Option<Arc<Homeward>>,
}

pub(super) fn threading<T, S>(mode: Threading, start: Box<dyn Start<T>>, serve: S) -> Driven
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    Driven(Box::new(OnThreads {
        start,
        serve,
        threads: Threads::for_each_request(mode),
        home: None,
    }))
}

pub(super) fn pool<T, S>(mode: Pool, start: Box<dyn Start<T>>, serve: S) -> Driven
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    Driven(Box::new(OnThreads { start, serve, threads: Threads::pooled(mode), home: None }))
}

impl<T, S> Driver for OnThreads<T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        run_cx.door.answering.retried_by(&run_cx.control.mailbox, run_cx.listener);
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn needs(&self) -> Needs {
        Needs { threads: true, ..Needs::default() }
    }
}

struct ThreadDispatcher<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    threads: &'a Threads,
    door: Door,
    home: Arc<Homeward>,
    run: usize,
}

impl<'a, T, S> ThreadDispatcher<'a, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn new(driver: &'a mut OnThreads<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let OnThreads { start, serve, threads, home } = driver;
        let home = home.get_or_insert_with(|| Arc::new(homeward(run_cx))).clone();
        let run = run_cx.control.mailbox.run();
        threads.seats.reopen();
        threads.count_into(&run_cx.control.published);
        let door = run_cx.door.clone();
        Ok(ThreadDispatcher { make: start.start()?, serve, threads, door, home, run })
    }

    /// Whether a request is on_turn_end away, rather than left in the kernel's queue.
    fn rejects(&self, cx: &mut LoopCx) -> bool {
        let rejected = self.threads.when_full == When::Reject && !self.threads.has_room(&self.home);
        cx.tally.rejected_full += u64::from(rejected);
        rejected
    }
}

fn homeward(run_cx: &RunContext<'_>) -> Homeward {
    let RunContext { control, service, .. } = run_cx;
    Homeward::new(control.mailbox.clone(), control.published.clone(), *service)
}

impl<T, S> Dispatcher for ThreadDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.threads.when_full == When::Reject || self.threads.has_room(&self.home)
    }

    fn tell_ends(&mut self) {
        self.home.want();
    }

    fn burst(&self) -> usize {
        self.threads.room()
    }

    fn stop(&mut self) {
        self.threads.stop(&self.home);
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        cx.tally.closed += self.threads.abort_all() as u64;
    }

    fn in_flight(&self) -> usize {
        self.threads.load()
    }

    fn ended_idle(&self) -> usize {
        self.threads.ended_idle()
    }
}

impl<T, S> StreamDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        if self.rejects(cx) {
            cx.tally.closed += 1;
            return;
        }
        let socket = Arc::new(socket);
        let Some(session) = made(&peer, cx, || {
            self.serve.stream(self.make.make(&peer), &self.door, socket.clone(), peer.clone())
        }) else {
            cx.tally.closed += 1;
            return;
        };
        let seat = Some(self.threads.seats.take(socket));
        let session = Box::new(session);
        self.threads.assign(Assigned { session, seat, home: self.home.clone(), run: self.run });
    }
}

impl<T, S> DatagramDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        if self.rejects(cx) {
            return;
        }
        let Some(handler) = made(&peer, cx, || self.make.make(&peer)) else { return };
        let packet = Packet::new(bytes, peer, received);
        let session = Box::new(self.serve.datagram(handler, &self.door, packet));
        let (home, run) = (self.home.clone(), self.run);
        self.threads.assign(Assigned { session, seat: None, home, run });
    }

    fn answering(&self) -> Option<Arc<Answering>> {
        Some(self.door.answering.clone())
    }
}

/// Each request in a process of its own.
struct InChildren<T, S> {
    start: Box<dyn Start<T>>,
    serve: S,
    family: Family,
}

pub(super) fn forking<T: 'static, S: Serve<T>>(
    mode: Forking,
    start: Box<dyn Start<T>>,
    serve: S,
) -> Driven {
    Driven(Box::new(InChildren { start, serve, family: Family::new(mode) }))
}

impl<T: 'static, S: Serve<T>> Driver for InChildren<T, S> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(ForkDispatcher { of_connections: true, ..ForkDispatcher::new(self, run_cx)? }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(ForkDispatcher::new(self, run_cx)?))
    }

    fn close(&mut self) {
        self.family.terminate();
    }

    fn needs(&self) -> Needs {
        Needs { one_thread: true, ..Needs::default() }
    }
}

struct ForkDispatcher<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    family: &'a mut Family,
    door: Door,
    listener: Token,
    /// The end of a child is the end of a connection.
    of_connections: bool,
}

impl<'a, T: 'static, S: Serve<T>> ForkDispatcher<'a, T, S> {
    fn new(driver: &'a mut InChildren<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let InChildren { start, serve, family } = driver;
        let asked = run_cx.control.asked_by_child().cloned();
        family.begin(asked.expect("made when a service that forks is added"), run_cx.drain);
        Ok(ForkDispatcher {
            make: start.start()?,
            serve,
            family,
            door: run_cx.door.clone(),
            listener: run_cx.listener,
            of_connections: false,
        })
    }

    fn fork_for(&mut self, request: Incoming, cx: &mut LoopCx) {
        self.family.expect_one();
        let allow_threads = self.family.threads_allowed();
        cx.fork(PendingFork { request, parent: self.listener, allow_threads });
    }
}

impl<T: 'static, S: Serve<T>> Dispatcher for ForkDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.family.has_room()
    }

    fn burst(&self) -> usize {
        self.family.room().max(1)
    }

    fn look(&mut self, cx: &mut LoopCx) {
        let reaped = self.family.reap();
        if self.of_connections {
            cx.tally.closed += reaped as u64;
        }
        cx.capacity_freed |= reaped > 0;
    }

    fn watched(&self) -> Vec<RawFd> {
        self.family.watched()
    }

    fn forked(&mut self, child: Option<Child>) {
        self.family.forked(child);
    }

    /// The child's whole life. Whoever answers is made here, as Python makes its handlers.
    fn serve_in_child(
        &mut self,
        request: Incoming,
        process: &ChildProcess,
        fault: &mut dyn FnMut(&Peer, &CloseReason),
    ) -> i32 {
        let peer = match &request {
            Incoming::Stream(_, peer) => peer.clone(),
            Incoming::Datagram(packet) => packet.peer.clone(),
        };
        let mut connection = None;
        let made = guard::call(|| {
            let handler = self.make.make(&peer);
            let session: Box<dyn Session> = match request {
                Incoming::Stream(socket, peer) => {
                    let socket = connection.insert(Arc::new(socket)).clone();
                    Box::new(self.serve.stream(handler, &self.door, socket, peer))
                }
                Incoming::Datagram(packet) => {
                    Box::new(self.serve.datagram(handler, &self.door, packet))
                }
            };
            session
        });
        match made {
            Ok(session) => {
                self.family.serve_in_child(session, connection.as_deref(), process, |served| {
                    fault(&served.peer, &served.reason);
                })
            }
            Err(message) => {
                fault(&peer, &CloseReason::Panic(message));
                1
            }
        }
    }

    fn stop(&mut self) {
        self.family.terminate();
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        let killed = self.family.kill();
        if self.of_connections {
            cx.tally.closed += killed as u64;
        }
    }

    fn in_flight(&self) -> usize {
        self.family.len()
    }

    fn ended_idle(&self) -> usize {
        self.family.ended_idle()
    }
}

impl<T: 'static, S: Serve<T>> StreamDispatcher for ForkDispatcher<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        self.fork_for(Incoming::Stream(socket, peer), cx);
    }
}

impl<T: 'static, S: Serve<T>> DatagramDispatcher for ForkDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        self.fork_for(Incoming::Datagram(Packet::new(bytes, peer, received)), cx);
    }
}
