//! Requests under `inline`, `threading`, `pool` and `forking`: the loop accepts them, and they are
//! served by blocking.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{Door, Driven, Driver, Ground, Make, Needs, Serve, Start, made};
use crate::address::Peer;
use crate::dispatch::{
    Alongside, Assigned, Family, Forking, Homeward, Pool, Threading, Threads, When,
};
use crate::error::CloseReason;
use crate::guard;
use crate::reactor::{Acceptor, Answerer, Fork, Lingers, Newcomer, Request, Taker, Turn};
use crate::session::{Answering, Packet, Served, Session};
use crate::sys::{Child, ChildProcess, Received};
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
    fn accept<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Acceptor + 'a>> {
        Ok(Box::new(InlineTaker::new(self, ground)?))
    }

    fn answer<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Answerer + 'a>> {
        ground.door.answering.retried_by(&ground.control.mailbox, ground.listener);
        Ok(Box::new(InlineTaker::new(self, ground)?))
    }
}

struct InlineTaker<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    door: Door,
    listener: Token,
    alongside: Alongside<'static>,
}

impl<'a, T: 'static, S: Serve<T>> InlineTaker<'a, T, S> {
    fn new(driver: &'a mut OnLoopsThread<T, S>, ground: &Ground<'_>) -> io::Result<Self> {
        let signals = ground.signals.clone();
        let (control, asked) = (ground.control.clone(), ground.control.clone());
        let wakeup = signals.as_ref().map(|signals| signals.wakeup());
        let is_stopping = move || {
            control.stop_requested()
                || control.mailbox.asks_shutdown()
                || signals.as_ref().is_some_and(|signals| signals.is_due())
        };
        Ok(InlineTaker {
            make: driver.start.start()?,
            serve: &driver.serve,
            door: ground.door.clone(),
            listener: ground.listener,
            alongside: Alongside::new(
                ground.control.mailbox.clone(),
                wakeup,
                ground.control.asked_by_child().cloned(),
                is_stopping,
                move || asked.request_stop(),
                ground.drain,
            ),
        })
    }

    fn serve(&mut self, session: impl Session, turn: &mut Turn) {
        let (served, overtaken) = self.alongside.serve(Box::new(session), &mut turn.tally);
        let Served { peer, reason, lingering, .. } = served;
        if let Some(lingering) = lingering {
            // On the loop, since it would hold up the next request here.
            match Lingers::new(lingering) {
                Ok(lingers) => turn.let_in(Newcomer {
                    descriptor: lingers.descriptor(),
                    live: Box::new(lingers),
                    parent: self.listener,
                }),
                Err(_) => turn.tally.closed += 1,
            }
        }
        turn.end(&peer, reason);
        turn.overtaken = overtaken;
        turn.shutdown |= self.alongside.is_stopping();
    }
}

impl<T, S> Taker for InlineTaker<'_, T, S> {
    fn burst(&self) -> usize {
        1
    }
}

impl<T: 'static, S: Serve<T>> Acceptor for InlineTaker<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        let socket = Arc::new(socket);
        let Some(session) = made(&peer, turn, || {
            self.serve.stream(self.make.make(&peer), &self.door, socket, peer.clone())
        }) else {
            turn.tally.closed += 1;
            return;
        };
        self.serve(session, turn);
    }
}

impl<T: 'static, S: Serve<T>> Answerer for InlineTaker<'_, T, S> {
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn) {
        let Some(answerer) = made(&peer, turn, || self.make.make(&peer)) else { return };
        let session = self.serve.datagram(answerer, &self.door, Packet::new(bytes, peer, received));
        self.serve(session, turn);
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
    fn accept<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Acceptor + 'a>> {
        Ok(Box::new(ThreadTaker::new(self, ground)?))
    }

    fn answer<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Answerer + 'a>> {
        ground.door.answering.retried_by(&ground.control.mailbox, ground.listener);
        Ok(Box::new(ThreadTaker::new(self, ground)?))
    }

    fn needs(&self) -> Needs {
        Needs { threads: true, ..Needs::default() }
    }
}

struct ThreadTaker<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    threads: &'a Threads,
    door: Door,
    home: Arc<Homeward>,
    run: usize,
}

impl<'a, T, S> ThreadTaker<'a, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn new(driver: &'a mut OnThreads<T, S>, ground: &Ground<'_>) -> io::Result<Self> {
        let OnThreads { start, serve, threads, home } = driver;
        let home = home.get_or_insert_with(|| Arc::new(homeward(ground))).clone();
        let run = ground.control.mailbox.run();
        threads.seats.reopen();
        threads.count_into(&ground.control.published);
        let door = ground.door.clone();
        Ok(ThreadTaker { make: start.start()?, serve, threads, door, home, run })
    }

    /// Whether a request is turned away, rather than left in the kernel's queue.
    fn rejects(&self, turn: &mut Turn) -> bool {
        let rejected = self.threads.when_full == When::Reject && !self.threads.has_room(&self.home);
        turn.tally.rejected_full += u64::from(rejected);
        rejected
    }
}

fn homeward(ground: &Ground<'_>) -> Homeward {
    let Ground { control, service, .. } = ground;
    Homeward::new(control.mailbox.clone(), control.published.clone(), *service)
}

impl<T, S> Taker for ThreadTaker<'_, T, S> {
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

    fn cut(&mut self, turn: &mut Turn) {
        turn.tally.closed += self.threads.cut() as u64;
    }

    fn elsewhere(&self) -> usize {
        self.threads.load()
    }

    fn ended_idle(&self) -> usize {
        self.threads.ended_idle()
    }
}

impl<T, S> Acceptor for ThreadTaker<'_, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn nonblocking(&self) -> bool {
        false
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        if self.rejects(turn) {
            turn.tally.closed += 1;
            return;
        }
        let socket = Arc::new(socket);
        let Some(session) = made(&peer, turn, || {
            self.serve.stream(self.make.make(&peer), &self.door, socket.clone(), peer.clone())
        }) else {
            turn.tally.closed += 1;
            return;
        };
        let seat = Some(self.threads.seats.take(socket));
        let session = Box::new(session);
        self.threads.assign(Assigned { session, seat, home: self.home.clone(), run: self.run });
    }
}

impl<T, S> Answerer for ThreadTaker<'_, T, S>
where
    T: Send + 'static,
    S: Serve<T, Stream: Send, Datagram: Send>,
{
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn) {
        if self.rejects(turn) {
            return;
        }
        let Some(answerer) = made(&peer, turn, || self.make.make(&peer)) else { return };
        let packet = Packet::new(bytes, peer, received);
        let session = Box::new(self.serve.datagram(answerer, &self.door, packet));
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
    fn accept<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Acceptor + 'a>> {
        Ok(Box::new(ForkTaker { of_connections: true, ..ForkTaker::new(self, ground)? }))
    }

    fn answer<'a>(&'a mut self, ground: &Ground<'_>) -> io::Result<Box<dyn Answerer + 'a>> {
        Ok(Box::new(ForkTaker::new(self, ground)?))
    }

    fn close(&mut self) {
        self.family.terminate();
    }

    fn needs(&self) -> Needs {
        Needs { one_thread: true, ..Needs::default() }
    }
}

struct ForkTaker<'a, T, S> {
    make: Make<'a, T>,
    serve: &'a S,
    family: &'a mut Family,
    door: Door,
    listener: Token,
    /// The end of a child is the end of a connection.
    of_connections: bool,
}

impl<'a, T: 'static, S: Serve<T>> ForkTaker<'a, T, S> {
    fn new(driver: &'a mut InChildren<T, S>, ground: &Ground<'_>) -> io::Result<Self> {
        let InChildren { start, serve, family } = driver;
        let asked = ground.control.asked_by_child().cloned();
        family.begin(asked.expect("made when a service that forks is added"), ground.drain);
        Ok(ForkTaker {
            make: start.start()?,
            serve,
            family,
            door: ground.door.clone(),
            listener: ground.listener,
            of_connections: false,
        })
    }

    fn fork_for(&mut self, request: Request, turn: &mut Turn) {
        self.family.expect_one();
        let allow_threads = self.family.threads_allowed();
        turn.fork(Fork { request, parent: self.listener, allow_threads });
    }
}

impl<T: 'static, S: Serve<T>> Taker for ForkTaker<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.family.has_room()
    }

    fn burst(&self) -> usize {
        self.family.room().max(1)
    }

    fn look(&mut self, turn: &mut Turn) {
        let reaped = self.family.reap();
        if self.of_connections {
            turn.tally.closed += reaped as u64;
        }
        turn.freed |= reaped > 0;
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
        request: Request,
        process: &ChildProcess,
        fault: &mut dyn FnMut(&Peer, &CloseReason),
    ) -> i32 {
        let peer = match &request {
            Request::Stream(_, peer) => peer.clone(),
            Request::Datagram(packet) => packet.peer.clone(),
        };
        let mut connection = None;
        let made = guard::call(|| {
            let answerer = self.make.make(&peer);
            let session: Box<dyn Session> = match request {
                Request::Stream(socket, peer) => {
                    let socket = connection.insert(Arc::new(socket)).clone();
                    Box::new(self.serve.stream(answerer, &self.door, socket, peer))
                }
                Request::Datagram(packet) => {
                    Box::new(self.serve.datagram(answerer, &self.door, packet))
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

    fn cut(&mut self, turn: &mut Turn) {
        let killed = self.family.kill();
        if self.of_connections {
            turn.tally.closed += killed as u64;
        }
    }

    fn elsewhere(&self) -> usize {
        self.family.len()
    }

    fn ended_idle(&self) -> usize {
        self.family.ended_idle()
    }
}

impl<T: 'static, S: Serve<T>> Acceptor for ForkTaker<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn accept(&mut self, socket: Socket, peer: Peer, turn: &mut Turn) {
        self.fork_for(Request::Stream(socket, peer), turn);
    }
}

impl<T: 'static, S: Serve<T>> Answerer for ForkTaker<'_, T, S> {
    fn answer(&mut self, bytes: &[u8], peer: Peer, received: &Received, turn: &mut Turn) {
        self.fork_for(Request::Datagram(Packet::new(bytes, peer, received)), turn);
    }
}
