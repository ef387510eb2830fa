//! The services of a run: their transports, modes, framings, limits and hooks, chosen at random.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use socketserver::testing::World;
use socketserver::{
    Accepted, Builder, CloseReason, FixedSize, Framing, Hooks, LengthPrefixed, Limits, Lines, Mode,
    Offload, Peer, Raw, Reactor, Server, Service, WhenFull,
};

use crate::handler::Random;
use crate::records::{FIXED, Records, Wire};

/// The limits of a service that the model knows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// Some limit may end a connection, or keep a client waiting.
    pub(crate) any: bool,
    pub(crate) connections: Option<usize>,
    pub(crate) memory: Option<usize>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
}

/// What a client gets that is turned away.
pub(crate) const BUSY: &[u8] = b"busy";

/// How many actions the hooks of a run ask for at most, so that it ends.
const MOST_ACTIONS: usize = 40;

/// Chooses limits; none in half of the runs.
fn choose_limits(world: &World) -> (Limits, Bounds) {
    let mut bounds = Bounds::default();
    if world.choose(2) == 0 {
        return (Limits::off(), bounds);
    }
    bounds.any = true;
    bounds.write_timeout = Some(Duration::from_secs(30));
    let mut limits = Limits::default().write_timeout(bounds.write_timeout);
    let time = |world: &World| Duration::from_millis(100 + 400 * world.choose(40) as u64);
    for _ in 0..1 + world.choose(3) {
        limits = match world.choose(13) {
            0 => limits.message_deadline(time(world)),
            1 => limits.first_message_deadline(time(world)),
            2 => {
                bounds.write_timeout = Some(time(world));
                limits.write_timeout(bounds.write_timeout)
            }
            3 => limits.max_buffered_input(1 + world.choose(5000)),
            4 => limits.max_lifetime(time(world)),
            5 => limits.max_messages(1 + world.choose(20) as u32),
            6 => limits.accept_rate(1 + world.choose(3) as u32),
            7 => limits.max_per_address(1 + world.choose(3)),
            8 => limits.message_rate(1 + world.choose(5000) as u32),
            9 => {
                bounds.idle_timeout = Some(time(world));
                limits.idle_timeout(bounds.idle_timeout)
            }
            10 => limits.when_overloaded(WhenFull::turn_away(BUSY)),
            full => {
                bounds.connections = Some(1 + world.choose(3));
                let whens = [WhenFull::CloseSilent, WhenFull::Wait, WhenFull::turn_away(BUSY)];
                let when = whens[(full + world.choose(3)) % 3].clone();
                limits.max_connections(bounds.connections).when_full(when)
            }
        };
    }
    if world.choose(3) == 2 {
        bounds.memory = Some(20_000 + world.choose(60_000));
    }
    (limits, bounds)
}

/// One service, as the model knows it.
pub(crate) struct ServiceModel {
    pub(crate) wire: Wire,
    pub(crate) high: usize,
    pub(crate) bounds: Bounds,
    pub(crate) has_hooks: bool,
}

/// Chooses a service.
pub(crate) fn choose(
    world: &World,
    records: &Arc<Records>,
    number: usize,
    is_unix: bool,
) -> (Service, ServiceModel) {
    let wire = Wire::ALL[world.choose(4)];
    let high = [64 * 1024, 4, 100, 3000][world.choose(4)];
    let (limits, bounds) = choose_limits(world);
    let has_hooks = world.choose(2) == 1;
    let mut builder = match is_unix {
        false => Server::tcp("127.0.0.1:0").unwrap(),
        true => Server::unix_stream(format!("/simulated/server/{number}")).unwrap(),
    }
    .write_watermarks(high, high / 4)
    .limits(limits)
    .poll_interval(Duration::from_secs(5));
    if world.choose(4) == 3 {
        builder = builder.sender_limit(200);
    }
    let model = ServiceModel { wire, high, bounds, has_hooks };
    let service = match wire {
        Wire::Raw => serve(world, records, number, builder, Raw, &model),
        Wire::Lines => {
            let framing = Lines::default().max_len(30_000);
            serve(world, records, number, builder, framing, &model)
        }
        Wire::Prefixed => serve(world, records, number, builder, LengthPrefixed::default(), &model),
        Wire::Fixed => serve(world, records, number, builder, FixedSize::new(FIXED), &model),
    };
    (service, model)
}

fn serve<F: Framing + Clone + Send>(
    world: &World,
    records: &Arc<Records>,
    number: usize,
    builder: Builder,
    framing: F,
    model: &ServiceModel,
) -> Service {
    // A turn delivers 256 messages, others may block meanwhile, and a job waits for up to 100 ms.
    let (mode, lag) = match world.choose(3) {
        2 => (Mode::Offload(Offload::default()), Duration::from_secs(4)),
        _ => (Mode::Reactor(Reactor), Duration::from_secs(2)),
    };
    let builder = builder.framing(framing).mode(mode);
    let (wire, idle_timeout) = (model.wire, model.bounds.idle_timeout);
    let hooks = RandomHooks {
        world: world.clone(),
        records: records.clone(),
        number,
        wants_actions: model.has_hooks && world.choose(8) == 7,
        is_fresh: true,
    };
    let (world, records) = (world.clone(), records.clone());
    let make = move |accepted: &Accepted<'_>| {
        let name = accepted.peer().to_string();
        assert!(records.is_new(accepted.id(), &name), "the number of a connection is new");
        Random::new(&world, &records, name, number, wire, idle_timeout, lag)
    };
    match model.has_hooks {
        false => builder.service(make),
        true => builder.hooks(hooks).service(make),
    }
    .unwrap()
}

/// Hooks that refuse, fail, and ask for actions at random.
struct RandomHooks {
    world: World,
    records: Arc<Records>,
    number: usize,
    wants_actions: bool,
    /// It has not asked for an action yet.
    is_fresh: bool,
}

impl RandomHooks {
    fn strikes(&self) -> bool {
        !self.records.calm.load(SeqCst) && self.world.choose(16) == 15
    }

    fn refuse(&self, peer: &Peer) {
        self.world.mark("refused by a hook");
        self.records.hooks().refused.insert(peer.to_string());
    }

    /// When the next action is to come, from now on.
    fn plan(&self) -> Option<Instant> {
        let mut hooks = self.records.hooks();
        if hooks.actions >= MOST_ACTIONS || self.world.choose(4) == 0 {
            return None;
        }
        hooks.actions += 1;
        Some(self.world.now() + Duration::from_millis(self.world.choose(8000) as u64))
    }

    fn set(&self, next: Option<Instant>) {
        let mut hooks = self.records.hooks();
        match next {
            Some(next) => hooks.next_action.insert(self.number, next),
            None => hooks.next_action.remove(&self.number),
        };
    }
}

impl Hooks for RandomHooks {
    fn verify_request(&mut self, peer: &Peer) -> bool {
        if self.strikes() {
            self.refuse(peer);
            assert!(self.world.choose(4) != 3, "a panic of a hook on purpose");
            return false;
        }
        true
    }

    fn on_accept(&mut self, _: BorrowedFd<'_>, peer: &Peer) -> io::Result<()> {
        if self.strikes() {
            self.refuse(peer);
            return Err(io::Error::other("an error of a hook on purpose"));
        }
        Ok(())
    }

    fn handle_error(&mut self, peer: &Peer, reason: &CloseReason) {
        self.world.mark("handle_error");
        let mut hooks = self.records.hooks();
        if !reason.is_fault() {
            hooks.faults.push(format!("handle_error for {peer}: {reason}"));
        }
        hooks.failed.push(peer.to_string());
    }

    fn service_actions(&mut self) {
        self.world.mark("service_actions");
        let now = self.world.now();
        let due = self.records.hooks().next_action.get(&self.number).copied();
        match due {
            Some(due) if due <= now => {
                let next = self.plan();
                self.set(next);
            }
            _ if self.wants_actions => {}
            due => {
                let text = format!("an action comes early or was not asked for: {due:?}, {now:?}");
                self.records.hooks().faults.push(text);
            }
        }
    }

    fn next_action(&mut self) -> Option<Instant> {
        if std::mem::take(&mut self.is_fresh) {
            let first = self.plan();
            self.set(first);
        }
        self.records.hooks().next_action.get(&self.number).copied()
    }

    fn wants_service_actions(&self) -> bool {
        self.wants_actions
    }
}
