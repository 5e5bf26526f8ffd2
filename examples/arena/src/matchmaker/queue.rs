//! The queue of all who play by the rules that everybody plays by: a shard of the game kit with a log on disk, a standby
//! and a lease. A ticket waits, is reserved in a proposal, its player confirms by still being on the line, and the match is
//! made. Nothing of that is lost when this process is killed: whoever asks again, here or at the next owner, finds the
//! ticket where it stood. What a match needs to be fought anew is in its room.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use phalanx_game::matchmaking::node::write;
use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, How, Latency, Limits, LocalLease, Match, Node,
    NodeConfig, Player, Rating, Refusal, Role, Roles, RulesSpec, Seal, Shard, ShardConfig,
    ShardKey, Stage, Ticket, TicketId, Watching,
};
use phalanx_telemetry::metrics::Exposition;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::bout::Pairing;
use super::caller::{Caller, settled};
use super::lobby::{SIGMA, ratings};
use crate::carry::pushed_back;
use crate::proto::arena::v1::Fighter;

/// Players who wait for the search, and for a place in it.
const INSIDE_MAX: usize = 4096;
const OUTSIDE_MAX: usize = 4096;
/// As often as a search may look.
const TICK_MS: u64 = 10;
/// Longer than anybody waits.
const TICKET_TTL: Duration = Duration::from_secs(60);
/// For players to be back on the line, too, after a takeover.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// How long a play can be asked for again.
const RESULTS_KEPT: Duration = Duration::from_secs(60);
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// What a player who is refused waits at least.
const PUSHBACK: Duration = Duration::from_millis(100);
/// How long a standby is waited for at the end.
const HANDOVER: Duration = Duration::from_secs(5);

pub struct Queue {
    node: Node,
    shard: Shard,
    callers: Arc<Callers>,
}

impl Queue {
    /// Opens the shard in `folder`, which all replicas share; each has a log of its own there.
    pub async fn open(listen: SocketAddr, folder: &Path, replica: u32) -> anyhow::Result<Self> {
        let node = NodeConfig {
            listen: (listen.ip(), 0).into(),
            advertise: None,
            // Owner and standby are on one machine, and talk over loopback.
            seal: Seal::none(),
        };
        let node = Node::start(node).await?;
        let mut rules = RulesSpec::simple(2, 1, "arena", 1);
        rules.rating = ratings();
        rules.tick.period_ms = TICK_MS;
        let key = ShardKey::try_new("duel", "arena", "v1")?;
        let lease = LocalLease::try_new(folder.join("lease")).context("the queue's lease")?;
        let log = folder.join(format!("log-{replica}"));
        let rules = rules.check()?.shared();
        let mut config = ShardConfig::new(key, log, lease, rules);
        config.limits = Limits {
            inside_max: INSIDE_MAX,
            outside_max: OUTSIDE_MAX,
            ticket_ttl: TICKET_TTL,
            confirm_within: CONFIRM_WITHIN,
            allocate_within: CONFIRM_WITHIN,
            keep_results: RESULTS_KEPT,
            checkpoint_bytes: CHECKPOINT_BYTES,
            ..Limits::default()
        };
        let callers = Arc::<Callers>::default();
        let shard = node.open(config, Rooms(callers.clone()))?;
        Ok(Self {
            node,
            shard,
            callers,
        })
    }

    /// Whether this process owns the shard. Follows it until the process ends.
    pub fn owned(&self) -> watch::Receiver<bool> {
        let (said, owned) = watch::channel(false);
        let mut roles = self.shard.roles();
        tokio::spawn(async move {
            loop {
                let owner = matches!(*roles.borrow_and_update(), Role::Owner { .. });
                said.send_replace(owner);
                if roles.changed().await.is_err() {
                    return;
                }
            }
        });
        owned
    }

    /// Why the shard failed for good; pending while it has not.
    pub async fn failed(&self) -> String {
        let mut roles = self.shard.roles();
        let failed = |role: &Role| matches!(role, Role::Failed { .. });
        let reason = match roles.wait_for(failed).await.as_deref() {
            Ok(Role::Failed { reason }) => Some(reason.clone()),
            _ => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Hands the shard to the standby.
    pub async fn drain(&self) {
        self.node.drain(HANDOVER).await;
    }

    pub fn len(&self) -> u64 {
        let owner = self.shard.metrics().owner;
        owner.inside + owner.outside
    }

    pub fn write(&self, out: &mut Exposition) {
        write(std::slice::from_ref(&self.shard), out);
    }

    /// Waits with a player until there is somebody to fight. None: the player left.
    pub async fn seek(&self, caller: &Caller) -> Option<Result<Pairing, Status>> {
        self.callers.enter(caller);
        let sought = tokio::select! {
            biased;
            sought = self.sought(caller) => Some(sought),
            () = caller.events.closed() => None,
        };
        let was_last = self.callers.leave(caller.ticket);
        if sought.is_none() && was_last {
            let player = number(&caller.fighter.player);
            self.withdraw(TicketId(caller.ticket), player).await;
        }
        sought
    }

    async fn sought(&self, caller: &Caller) -> Result<Pairing, Status> {
        let with_house = || Pairing::with_house(caller.ticket, &caller.fighter);
        let until = Instant::now() + caller.wait;
        let ticket = ticket(caller);
        let (id, player) = (ticket.id, number(&caller.fighter.player));
        let Some(mut watching) = self.enter(&ticket, player).await? else {
            return Ok(with_house());
        };
        let mut state = watching.state();
        let mut confirmed = None;
        loop {
            let next = match state.stage {
                Stage::Outside(_) | Stage::Waiting { .. } => tokio::select! {
                    next = watching.next() => next,
                    () = sleep_until(until) => Some(match self.shard.cancel(id).await {
                        // A match was found meanwhile.
                        Err(Refusal::Reserved { .. }) => self.shard.look(id).await,
                        answer => answer,
                    }.map_err(refused)?),
                },
                // On the line all this time: that is a yes.
                Stage::Reserved { id: of, ask, .. } if ask && confirmed != Some(of) => {
                    confirmed = Some(of);
                    let answer = match self.shard.confirm(of, player).await {
                        Err(Refusal::NoSeat { .. }) => self.shard.look(id).await,
                        answer => answer,
                    };
                    Some(answer.map_err(refused)?)
                }
                Stage::Reserved { .. } => watching.next().await,
                Stage::Ended(How::Matched(made)) => return fought_in(&made),
                // Nobody came in time; or nobody was on the line when it was time to say yes.
                Stage::Ended(_) | Stage::Offered(_) => return Ok(with_house()),
            };
            let handed_over = || Status::unavailable("the queue changed hands");
            state = next.ok_or_else(handed_over)?;
        }
    }

    /// Into the queue. None: the player waits there already, under another ticket, and nobody meets themselves.
    async fn enter(&self, ticket: &Ticket, player: u64) -> Result<Option<Watching>, Status> {
        let (mut entered, mut watching) = self.enqueue(ticket).await;
        if let Err(Refusal::Queued { ticket: other, .. }) = entered {
            if self.callers.has(other.0) {
                return Ok(None);
            }
            // Left behind by a gateway that died together with an owner.
            self.withdraw(other, player).await;
            (entered, watching) = self.enqueue(ticket).await;
        }
        entered.map_err(refused)?;
        watching.map(Some).map_err(refused)
    }

    async fn enqueue(&self, ticket: &Ticket) -> (Result<(), Refusal>, Result<Watching, Refusal>) {
        let entered = self.shard.enqueue(ticket.clone());
        let (entered, watching) = tokio::join!(entered, self.shard.watch(ticket.id));
        (entered.map(drop), watching)
    }

    async fn withdraw(&self, ticket: TicketId, player: u64) {
        let gone = match self.shard.cancel(ticket).await {
            Err(Refusal::Reserved { id, .. }) => self.shard.refuse(id, player).await,
            answer => answer,
        };
        if let Err(refusal) = gone {
            tracing::debug!(%refusal, "a ticket is left to expire");
        }
    }
}

fn ticket(caller: &Caller) -> Ticket {
    Ticket {
        id: TicketId(caller.ticket),
        players: vec![Player {
            id: number(&caller.fighter.player),
            rating: Rating::new(f64::from(caller.fighter.rating), SIGMA),
            roles: Roles::default(),
            latency_ms: Latency::of(&[0]),
        }],
        // The shard's clock says.
        enqueued_ms: 0,
    }
}

/// A player as the shard knows him: FNV-1a of the name, the same in every process and version.
fn number(player: &str) -> u64 {
    player.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn refused(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Full { .. } | Refusal::Busy | Refusal::WatchesFull { .. } => {
            pushed_back(message, PUSHBACK)
        }
        Refusal::NotOwner { .. }
        | Refusal::Draining
        | Refusal::Unknown
        | Refusal::NoTicket(_)
        | Refusal::Queued { .. } => Status::unavailable(message),
        Refusal::Unfit(_) | Refusal::Taken(_) => settled(Status::invalid_argument(message)),
        _ => settled(Status::internal(message)),
    }
}

/// One of a match's two, in its room.
#[derive(Serialize, Deserialize)]
struct Seat {
    player: String,
    rating: u32,
}

/// Who fights in a match that was made.
fn fought_in(made: &Match) -> Result<Pairing, Status> {
    let unreadable = || settled(Status::internal("a match without its fighters"));
    let parties = made.teams.iter().flatten();
    let tickets: Vec<u64> = parties.map(|party| party.ticket.0).collect();
    let seats: Vec<Seat> = serde_json::from_str(&made.room).map_err(|_| unreadable())?;
    let fighters = seats
        .into_iter()
        .map(|Seat { player, rating }| Fighter { player, rating });
    let tickets = tickets.try_into().map_err(|_| unreadable())?;
    let fighters = fighters.collect::<Vec<_>>().try_into();
    Ok(Pairing::of(tickets, fighters.map_err(|_| unreadable())?))
}

/// A match's room is the fight itself, which begins when both of its players are on the line.
struct Rooms(Arc<Callers>);

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        Box::pin(async {
            let mut tickets: Vec<_> = wanted.teams.iter().flatten().collect();
            tickets.sort_by_key(|ticket| (ticket.enqueued_ms, ticket.id));
            let fighters = self.0.all(|callers| {
                let fighters = tickets.iter().map(|ticket| callers.get(&ticket.id.0));
                fighters
                    .map(|on| on.map(|on| on.fighter.clone()))
                    .collect::<Option<Vec<Fighter>>>()
            });
            let seats = fighters.await.into_iter();
            let seats: Vec<_> = seats
                .map(|Fighter { player, rating }| Seat { player, rating })
                .collect();
            serde_json::to_string(&seats).map_err(|error| AllocateError(error.to_string()))
        })
    }
}

/// Players on the line, by ticket.
#[derive(Default)]
struct Callers {
    /// A mutex, because the process has one thread and nothing is awaited under it.
    on: Mutex<HashMap<u64, OnLine>>,
    entered: Notify,
}

struct OnLine {
    fighter: Fighter,
    /// More than one where the first has not been noticed to be broken.
    calls: usize,
}

impl Callers {
    fn enter(&self, caller: &Caller) {
        let mut on = self.on();
        let place = on.entry(caller.ticket).or_insert_with(|| OnLine {
            fighter: caller.fighter.clone(),
            calls: 0,
        });
        place.calls += 1;
        drop(on);
        self.entered.notify_waiters();
    }

    /// Whether that was the last call with this ticket.
    fn leave(&self, ticket: u64) -> bool {
        let mut on = self.on();
        let Some(place) = on.get_mut(&ticket) else {
            return true;
        };
        place.calls -= 1;
        let was_last = place.calls == 0;
        if was_last {
            on.remove(&ticket);
        }
        was_last
    }

    fn has(&self, ticket: u64) -> bool {
        self.on().contains_key(&ticket)
    }

    /// Waits until `found` finds what it wants.
    async fn all<T>(&self, found: impl Fn(&HashMap<u64, OnLine>) -> Option<T>) -> T {
        loop {
            let entered = self.entered.notified();
            if let Some(found) = found(&self.on()) {
                return found;
            }
            entered.await;
        }
    }

    fn on(&self) -> MutexGuard<'_, HashMap<u64, OnLine>> {
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
