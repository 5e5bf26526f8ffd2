//! Two replicas of a shard, a lease service, clients and rooms in simulated time, with crashes, torn writes, partitions,
//! lost answers and clocks that run differently; all from one seed. `PHALANX_SOAK=N` runs N times as many seeds.
//!
//! What is claimed: whatever anybody outside learns comes from the owner of the newest epoch; nothing that was
//! acknowledged is lost; nobody is matched twice; and when all is well again, there is one owner with a standby in sync.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::{
    dice::Dice,
    matchmaking::{
        lease::Roll,
        ledger::{How, tests::ticket},
        node::replica::apply,
        rules::RulesSpec,
        search::Quality,
    },
};

const SEEDS: u64 = 24;
const STEP_MS: u64 = 10;
/// Trouble for so long, then peace for as long.
const TROUBLE_MS: u64 = 15_000;
const PEACE_MS: u64 = 15_000;
const TTL_MS: u64 = 2_000;
const RENEW_MS: u64 = 300;
const SILENCE_MS: u64 = 3_000;
const INVALID_MS: u64 = 3_000;

/// As the store has it.
#[derive(Default)]
struct Service {
    holder: Option<(usize, u64)>,
    roll: Option<Roll>,
    epoch: u64,
}

/// What survives a crash.
#[derive(Default)]
struct Disk {
    base: Option<Checkpoint>,
    records: Vec<Record>,
    /// Being written: (done at, what).
    writing: VecDeque<(u64, Record)>,
}

impl Disk {
    fn position(&self) -> Position {
        let base = self
            .base
            .as_ref()
            .map_or_else(Position::default, |base| base.position);
        self.records.last().map_or(base, Record::position)
    }

    fn ledger(&self) -> Ledger {
        let base = self
            .base
            .as_ref()
            .map(|base| Ledger::restore(&base.state).unwrap());
        let mut ledger = base.unwrap_or_default();
        for record in &self.records {
            apply(&mut ledger, record).unwrap();
        }
        ledger
    }

    /// What was being written is whole, or torn and cut off.
    fn crash(&mut self, dice: &mut Dice) {
        if let Some((_, record)) = self.writing.pop_front()
            && dice.chance(1, 2)
        {
            self.records.push(record);
        }
        self.writing.clear();
    }

    fn finish(&mut self) {
        for (_, record) in self.writing.drain(..) {
            self.records.push(record);
        }
    }
}

enum State {
    Down {
        until: u64,
    },
    Idle,
    /// Asked for the lease: the answer comes then, if it comes.
    Asking {
        answer: u64,
        grant: Option<(u64, u64)>,
        sent: u64,
    },
    Following,
    Owning(Box<Owning>),
}

struct Owning {
    owner: Owner<u64>,
    epoch: u64,
    /// What the search holds.
    searched: BTreeSet<TicketId>,
    /// Inputs that arrive later.
    coming: Vec<(u64, Input<u64>)>,
    amends: Vec<(u64, Amend)>,
    renewed: u64,
    invalid_since: Option<u64>,
    lost: bool,
}

struct Node {
    disk: Disk,
    state: State,
    /// Of a follower.
    ledger: Ledger,
    /// Clock speed in thousandths.
    speed: u64,
    reaches_service: bool,
    /// Long enough for a lease to run out under a living owner.
    cut_off_until: u64,
    looked: u64,
}

enum Frame {
    State(Checkpoint),
    Record(Record),
}

/// From the owner to the follower, which are told by their numbers.
struct Connection {
    owner: usize,
    session: u64,
    frames: VecDeque<(u64, Frame)>,
    acks: VecDeque<(u64, u64)>,
    heard: u64,
    turned: bool,
}

/// What clients were told.
#[derive(Default)]
struct Witness {
    requests: HashMap<u64, Request>,
    /// Tickets that were acknowledged, with the last thing heard of them.
    known: BTreeMap<TicketId, Option<How>>,
    matched: HashMap<u64, MatchId>,
    asked: HashMap<MatchId, BTreeSet<TicketId>>,
    seats: BTreeSet<(MatchId, u64)>,
    /// What clients will ask next.
    intents: VecDeque<Request>,
    acknowledged: u64,
    matches: BTreeSet<MatchId>,
}

struct World {
    at: u64,
    dice: Dice,
    service: Service,
    nodes: [Node; 2],
    connection: Option<Connection>,
    /// Between the two.
    apart: bool,
    sessions: u64,
    next_ticket: u64,
    next_request: u64,
    witness: Witness,
    takeovers: u64,
    /// Steps in which a replaced owner lived on without knowing it.
    stale: u64,
    peace: bool,
    /// Whether players confirm.
    ask: bool,
    /// Few requests: then an owner who was replaced may have nothing unwritten that would hold its tongue.
    quiet: bool,
}

fn limits(ask: bool) -> Limits {
    Limits {
        ask,
        inside_max: 40,
        outside_max: 30,
        confirm_within: Duration::from_millis(900),
        allocate_within: Duration::from_millis(700),
        ticket_ttl: Duration::from_secs(6),
        keep_results: Duration::from_secs(3_600),
        ..Limits::default()
    }
}

fn rules() -> Arc<MatchRules> {
    let mut spec = RulesSpec::simple(2, 2, "eu", 200);
    spec.regions.push(crate::matchmaking::rules::RegionRules {
        name: "us".into(),
        latency_ms_max: 200,
    });
    Arc::new(spec.check().unwrap())
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let nodes = [0, 1].map(|_| Node {
            disk: Disk::default(),
            state: State::Idle,
            ledger: Ledger::new(),
            speed: 970 + dice.below(61),
            reaches_service: true,
            cut_off_until: 0,
            looked: 0,
        });
        World {
            at: 1_000,
            dice,
            service: Service::default(),
            nodes,
            connection: None,
            apart: false,
            sessions: 0,
            next_ticket: 1,
            next_request: 1,
            witness: Witness::default(),
            takeovers: 0,
            stale: 0,
            peace: false,
            ask: !seed.is_multiple_of(3),
            quiet: seed.is_multiple_of(4),
        }
    }

    fn id(node: usize) -> ReplicaId {
        ReplicaId(node as u64 + 1)
    }

    fn now(&self, node: usize) -> Now {
        let mono = self.at * self.nodes[node].speed;
        Now {
            mono: Duration::from_micros(mono),
            ms: 1_700_000_000_000 + mono / 1_000 + node as u64 * 300,
        }
    }

    fn delay(&mut self) -> u64 {
        match self.dice.below(20) {
            0 if !self.peace => self.dice.below(400),
            _ => self.dice.below(20),
        }
    }

    fn step(&mut self) {
        self.at += STEP_MS;
        if self
            .service
            .holder
            .is_some_and(|(_, until)| until <= self.at)
        {
            self.service.holder = None;
        }
        if !self.peace {
            self.trouble();
        }
        for node in [0, 1] {
            self.live(node);
        }
        self.carry();
        self.clients();
    }

    fn trouble(&mut self) {
        // In quiet runs long cuts are what happens, so that leases run out under owners who live.
        let (rare, cut) = if self.quiet { (2_000, 300) } else { (150, 800) };
        for node in [0, 1] {
            if self.dice.chance(1, rare) {
                self.nodes[node].reaches_service = false;
            }
            // Whole again more often than apart.
            if self.dice.chance(1, 60) {
                self.nodes[node].reaches_service = true;
            }
            if self.dice.chance(1, cut) {
                self.nodes[node].cut_off_until = self.at + TTL_MS + self.dice.below(3_000);
            }
            if self.at < self.nodes[node].cut_off_until {
                self.nodes[node].reaches_service = false;
            }
            if self.dice.chance(1, 2 * rare) {
                self.crash(node);
            }
        }
        if self.dice.chance(1, rare) {
            self.apart = true;
        }
        if self.dice.chance(1, 60) {
            self.apart = false;
        }
        if self.dice.chance(1, 2 * rare) {
            self.disconnect();
        }
    }

    fn crash(&mut self, node: usize) {
        if matches!(self.nodes[node].state, State::Down { .. }) {
            return;
        }
        self.disconnect();
        self.nodes[node].disk.crash(&mut self.dice);
        let until = self.at + 50 + self.dice.below(3_000);
        self.nodes[node].state = State::Down { until };
    }

    fn disconnect(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let (session, follower) = (connection.session, 1 - connection.owner);
        let replica = World::id(follower);
        if let State::Owning(owning) = &mut self.nodes[connection.owner].state {
            let left = Input::Left { session, replica };
            owning.coming.push((self.at, left));
        }
        self.stop_following(follower);
    }

    fn stop_following(&mut self, node: usize) {
        if let State::Following = self.nodes[node].state {
            // The disk's thread finishes what it was given.
            self.nodes[node].disk.finish();
            self.nodes[node].state = State::Idle;
        }
    }

    fn live(&mut self, node: usize) {
        match self.nodes[node].state {
            State::Down { until } if until <= self.at || self.peace => {
                self.nodes[node].state = State::Idle;
            }
            State::Down { .. } => {}
            State::Idle | State::Following => self.look(node),
            State::Asking { answer, .. } if answer > self.at => {}
            State::Asking { grant, sent, .. } => match grant {
                Some((epoch, asked)) if self.nodes[node].reaches_service => {
                    assert_eq!(asked, sent);
                    self.own(node, epoch, sent);
                }
                _ => self.nodes[node].state = State::Idle,
            },
            State::Owning(_) => self.work(node),
        }
    }

    fn look(&mut self, node: usize) {
        if self.at < self.nodes[node].looked + 50 || !self.nodes[node].reaches_service {
            return;
        }
        self.nodes[node].looked = self.at;
        let following = matches!(self.nodes[node].state, State::Following);
        match self.service.holder {
            None => {
                let roll = self.service.roll.as_ref();
                let may = roll.is_none_or(|roll| roll.in_sync.contains(&World::id(node)));
                if following {
                    self.disconnect();
                    self.stop_following(node);
                }
                if may {
                    let (there, back) = (self.delay(), self.delay());
                    // Granted now, known later: everything between is the network's.
                    let grant = self.grant(node);
                    self.nodes[node].state = State::Asking {
                        answer: self.at + there + back,
                        grant: grant.map(|epoch| (epoch, self.at)),
                        sent: self.at,
                    };
                }
            }
            Some((holder, _)) if holder != node && !following && !self.apart => {
                self.connect(node, holder);
            }
            Some(_) => {}
        }
    }

    fn grant(&mut self, node: usize) -> Option<u64> {
        if self.service.holder.is_some() {
            return None;
        }
        self.service.epoch += 1;
        self.service.holder = Some((node, self.at + TTL_MS));
        self.service.roll = Some(Roll {
            owner: World::id(node),
            address: String::new(),
            epoch: self.service.epoch,
            in_sync: vec![World::id(node)],
        });
        Some(self.service.epoch)
    }

    fn until(&self, node: usize, sent: u64) -> Duration {
        let held = Duration::from_millis(TTL_MS - TTL_MS / 8);
        Duration::from_micros(sent * self.nodes[node].speed) + held
    }

    fn own(&mut self, node: usize, epoch: u64, sent: u64) {
        let now = self.now(node);
        let disk = &self.nodes[node].disk;
        let (ledger, position) = (disk.ledger(), disk.position());
        self.check_nothing_is_lost(&ledger);
        self.takeovers += 1;
        let start = Start {
            ledger,
            position,
            epoch,
            lease_until: self.until(node, sent),
            log_bytes: 0,
        };
        let mut out = Vec::new();
        let owner = Owner::open(start, rules(), limits(self.ask), now, &mut out).unwrap();
        self.nodes[node].state = State::Owning(Box::new(Owning {
            owner,
            epoch,
            searched: BTreeSet::new(),
            coming: Vec::new(),
            amends: Vec::new(),
            renewed: self.at,
            invalid_since: None,
            lost: false,
        }));
        self.perform(node, out);
    }

    fn connect(&mut self, node: usize, holder: usize) {
        let State::Owning(owning) = &mut self.nodes[holder].state else {
            return;
        };
        self.sessions += 1;
        let session = self.sessions;
        owning.coming.push((
            self.at,
            Input::Joined {
                session,
                replica: World::id(node),
                position: self.nodes[node].disk.position(),
            },
        ));
        self.nodes[node].ledger = self.nodes[node].disk.ledger();
        self.nodes[node].state = State::Following;
        self.connection = Some(Connection {
            owner: holder,
            session,
            frames: VecDeque::new(),
            acks: VecDeque::new(),
            heard: self.at,
            turned: false,
        });
    }

    fn work(&mut self, node: usize) {
        let now = self.now(node);
        let State::Owning(mut owning) = std::mem::replace(&mut self.nodes[node].state, State::Idle)
        else {
            return;
        };
        let mut out = Vec::new();
        let mut inputs = vec![Input::Tick];
        // The disk.
        let disk = &mut self.nodes[node].disk;
        while disk
            .writing
            .front()
            .is_some_and(|&(done, _)| done <= self.at)
        {
            let (_, record) = disk.writing.pop_front().unwrap();
            inputs.push(Input::Synced(record.last()));
            disk.records.push(record);
        }
        // What comes from elsewhere.
        let (due, later) = owning.coming.drain(..).partition(|(at, _)| *at <= self.at);
        owning.coming = later;
        let due: Vec<(u64, Input<u64>)> = due;
        inputs.extend(due.into_iter().map(|(_, input)| input));
        self.stale += u64::from(owning.epoch < self.service.epoch);
        self.keep_lease(node, &mut owning);
        if self.dice.chance(1, 8) && owning.searched.len() >= 4 {
            let mut four: Vec<TicketId> = owning.searched.iter().copied().take(4).collect();
            four.iter().for_each(|ticket| {
                owning.searched.remove(ticket);
            });
            let second = four.split_off(2);
            inputs.push(Input::Proposed(vec![Proposal {
                teams: vec![four, second],
                roles: Vec::new(),
                region: RegionIndex(0),
                quality: Quality::default(),
                backfill: None,
            }]));
        }
        for input in inputs {
            owning.owner.take(input, now, &mut out).unwrap();
        }
        owning.owner.settle(now, &mut out).unwrap();
        owning.owner.ledger().audit().unwrap();
        let valid = owning.owner.is_valid(now.mono);
        let since = (!valid).then(|| owning.invalid_since.unwrap_or(self.at));
        owning.invalid_since = since;
        let over = owning.lost || since.is_some_and(|since| self.at > since + INVALID_MS);
        self.nodes[node].state = State::Owning(owning);
        self.perform(node, out);
        if over {
            self.disconnect();
            self.nodes[node].disk.finish();
            self.nodes[node].state = State::Idle;
        }
    }

    /// Renewals and changes of the roll: each reaches the service, or doesn't; its answer comes back, or doesn't.
    fn keep_lease(&mut self, node: usize, owning: &mut Owning) {
        let holds = self
            .service
            .holder
            .is_some_and(|(holder, _)| holder == node)
            && self.service.epoch == owning.epoch;
        if self.at >= owning.renewed + RENEW_MS && self.nodes[node].reaches_service {
            owning.renewed = self.at;
            let answered = self.at + self.delay();
            if holds {
                self.service.holder = Some((node, self.at + TTL_MS));
                let until = self.until(node, self.at);
                owning.coming.push((answered, Input::Renewed(until)));
            } else {
                owning.lost = true;
            }
        }
        let due = owning.amends.iter().position(|&(at, _)| at <= self.at);
        if let Some(due) = due {
            let (_, amend) = owning.amends.remove(due);
            if !self.nodes[node].reaches_service || self.dice.chance(1, 10) {
                owning.amends.push((self.at + 50, amend));
                return;
            }
            if !holds {
                owning.lost = true;
                return;
            }
            let mut in_sync = vec![World::id(node)];
            if let Amend::Add(standby) = amend {
                in_sync.push(standby);
            }
            self.service.roll.as_mut().unwrap().in_sync = in_sync;
            match self.dice.chance(1, 10) {
                // The answer is lost: said once more.
                true => owning.amends.push((self.at + 50, amend)),
                false => {
                    let answered = self.at + self.delay();
                    owning.coming.push((answered, Input::Amended(amend)));
                }
            }
        }
    }

    fn perform(&mut self, node: usize, out: Vec<Output<u64>>) {
        for output in out {
            let epoch = match &self.nodes[node].state {
                State::Owning(owning) => owning.epoch,
                _ => return,
            };
            let seen = matches!(
                output,
                Output::Answer(..) | Output::Told(_) | Output::Allocate(..) | Output::GiveBack(_)
            );
            assert!(
                !seen || epoch == self.service.epoch,
                "an owner of epoch {epoch} is heard in epoch {}",
                self.service.epoch
            );
            self.perform_one(node, output);
        }
    }

    fn perform_one(&mut self, node: usize, output: Output<u64>) {
        let later = self.at + self.delay();
        let sync = self.at + 1 + self.dice.below(40);
        let room_at = self.at + self.dice.below(900);
        let no_room = self.dice.chance(1, 10);
        let State::Owning(owning) = &mut self.nodes[node].state else {
            return;
        };
        match output {
            Output::Append(record) => {
                let after = self.nodes[node]
                    .disk
                    .writing
                    .back()
                    .map_or(0, |&(at, _)| at);
                let disk = &mut self.nodes[node].disk;
                disk.writing.push_back((sync.max(after), record.clone()));
                self.ship(node, Frame::Record(record));
            }
            Output::Checkpoint(_) => {}
            Output::Answer(request, answer) => self.hear(request, answer),
            Output::Told(state) => self.learn(state),
            Output::Search(Command::Insert(ticket) | Command::Return(ticket)) => {
                owning.searched.insert(ticket.id);
            }
            Output::Search(Command::Remove(ticket)) => {
                owning.searched.remove(&ticket);
            }
            Output::Search(_) => {}
            Output::Allocate(allocation, _) => {
                let id = allocation.id;
                let room = match no_room {
                    true => Err("none".to_owned()),
                    false => Ok(format!("room of {id}")),
                };
                owning.coming.push((room_at, Input::Allocated(id, room)));
                let tickets = allocation.teams.iter().flatten().map(|ticket| ticket.id);
                let tickets: BTreeSet<TicketId> = tickets.collect();
                let before = self.witness.asked.insert(id, tickets.clone());
                assert!(
                    before.is_none_or(|before| before == tickets),
                    "{id} is two matches"
                );
            }
            Output::GiveBack(id) => {
                assert!(
                    !self.witness.matches.contains(&id),
                    "the room of {id} is in use"
                );
            }
            Output::Amend(amend) => owning.amends.push((later, amend)),
            Output::Attach {
                session,
                checkpoint,
                tail,
            } => {
                if self
                    .connection
                    .as_ref()
                    .is_none_or(|connection| connection.session != session)
                {
                    return;
                }
                if let Some(checkpoint) = checkpoint {
                    self.ship(node, Frame::State(checkpoint));
                }
                for record in tail {
                    self.ship(node, Frame::Record(record));
                }
            }
            Output::Turned { session } => {
                if let Some(connection) = &mut self.connection
                    && connection.session == session
                {
                    connection.turned = true;
                }
            }
            Output::Drained => unreachable!("nobody drains"),
        }
    }

    fn ship(&mut self, owner: usize, frame: Frame) {
        let at = self.at + self.delay();
        if let Some(connection) = &mut self.connection
            && connection.owner == owner
        {
            let after = connection.frames.back().map_or(0, |&(at, _)| at);
            connection.frames.push_back((at.max(after), frame));
        }
    }

    /// The connection, and the follower's disk at its end.
    fn carry(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let (owner, silent) = (connection.owner, self.at > connection.heard + SILENCE_MS);
        let owned = matches!(self.nodes[owner].state, State::Owning(_));
        if silent || connection.turned || !owned {
            self.disconnect();
            return;
        }
        let follower = 1 - owner;
        // The disk goes on without the network.
        let mut done = None;
        let node = &mut self.nodes[follower];
        while node
            .disk
            .writing
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            let (_, record) = node.disk.writing.pop_front().unwrap();
            apply(&mut node.ledger, &record).unwrap();
            node.disk.records.push(record);
            done = Some(node.disk.position().seq);
        }
        if self.at.is_multiple_of(100) {
            done = Some(node.disk.position().seq);
        }
        let ack_at = self.at + self.delay();
        let Some(connection) = &mut self.connection else {
            return;
        };
        connection.acks.extend(done.map(|seq| (ack_at, seq)));
        if self.apart {
            return;
        }
        connection.heard = self.at;
        let mut frames = Vec::new();
        while connection
            .frames
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            frames.extend(connection.frames.pop_front().map(|(_, frame)| frame));
        }
        let replica = World::id(follower);
        while connection
            .acks
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            let (_, seq) = connection.acks.pop_front().unwrap();
            if let State::Owning(owning) = &mut self.nodes[owner].state {
                owning.coming.push((self.at, Input::Acked { replica, seq }));
            }
        }
        for frame in frames {
            if !self.store(follower, frame) {
                self.disconnect();
                return;
            }
        }
    }

    /// As a log does: what is of an older epoch or doesn't follow is refused.
    fn store(&mut self, follower: usize, frame: Frame) -> bool {
        let sync = self.at + self.dice.below(40);
        let disk = &mut self.nodes[follower].disk;
        let written = disk.position();
        let position = disk
            .writing
            .back()
            .map_or(written, |(_, record)| record.position());
        match frame {
            Frame::Record(record) if record.follows(&position) => {
                let after = disk.writing.back().map_or(0, |&(at, _)| at);
                disk.writing.push_back((sync.max(after), record));
                true
            }
            Frame::Record(_) => false,
            Frame::State(checkpoint) if checkpoint.position.epoch >= position.epoch => {
                assert!(disk.writing.is_empty());
                disk.records.clear();
                self.nodes[follower].ledger = Ledger::restore(&checkpoint.state).unwrap();
                self.nodes[follower].disk.base = Some(checkpoint);
                true
            }
            Frame::State(_) => false,
        }
    }

    fn clients(&mut self) {
        for node in [0, 1] {
            if !matches!(self.nodes[node].state, State::Owning(_)) {
                continue;
            }
            if self.quiet && !self.dice.chance(1, 12) {
                continue;
            }
            for _ in 0..self.dice.below(5) {
                let request = self.request();
                let State::Owning(owning) = &mut self.nodes[node].state else {
                    continue;
                };
                let number = self.next_request;
                self.next_request += 1;
                self.witness.requests.insert(number, request.clone());
                let at = self.at + self.dice.below(30);
                owning.coming.push((at, Input::Request(request, number)));
            }
        }
    }

    fn request(&mut self) -> Request {
        // Now and then one is forgotten, or the owner it goes to is none any more.
        if self.dice.chance(2, 3)
            && let Some(intent) = self.witness.intents.pop_front()
        {
            return intent;
        }
        let old = TicketId(1 + self.dice.below(self.next_ticket));
        match self.dice.below(12) {
            0..=4 => {
                // Now and then the same again: an answer may have been lost.
                let again = self.dice.chance(1, 4);
                if !again {
                    self.next_ticket += 1;
                }
                let id = if again { old.0 } else { self.next_ticket };
                let players = [id * 10, id * 10 + 1];
                let count = 1 + (id % 2) as usize;
                Request::Enqueue {
                    ticket: (*ticket(id, &players[..count], 0)).clone(),
                    class: (id % 4) as u8,
                }
            }
            5 if !self.witness.seats.is_empty() => {
                // Any seat there ever was.
                let at = self.dice.below(self.witness.seats.len() as u64) as usize;
                let (id, player) = *self.witness.seats.iter().nth(at).unwrap();
                match self.dice.chance(1, 3) {
                    true => Request::Refuse { id, player },
                    false => Request::Confirm { id, player },
                }
            }
            9 if self.dice.chance(1, 3) => Request::Cancel { ticket: old },
            10 => Request::LookFor { player: old.0 * 10 },
            _ => Request::Watch { ticket: old },
        }
    }

    fn hear(&mut self, request: u64, answer: Answer) {
        let Ok(state) = answer else {
            return;
        };
        self.witness.acknowledged += 1;
        let request = self
            .witness
            .requests
            .remove(&request)
            .expect("an answer to somebody");
        if let Request::Enqueue { ticket, .. } = request {
            let watch = Request::Watch { ticket: ticket.id };
            self.witness.intents.push_back(watch);
        }
        self.learn(state);
    }

    fn learn(&mut self, state: TicketState) {
        let witness = &mut self.witness;
        let known = witness.known.entry(state.ticket).or_default();
        let how = match state.stage {
            Stage::Ended(how) => how,
            Stage::Reserved { id, .. } => {
                assert!(
                    known.is_none(),
                    "{} is reserved after {known:?}",
                    state.ticket
                );
                let players = [state.ticket.0 * 10, state.ticket.0 * 10 + 1];
                let count = 1 + (state.ticket.0 % 2) as usize;
                for &player in &players[..count] {
                    if witness.seats.insert((id, player)) {
                        let no = (id.number + player).is_multiple_of(23);
                        witness.intents.push_back(match no {
                            true => Request::Refuse { id, player },
                            false => Request::Confirm { id, player },
                        });
                    }
                }
                return;
            }
            _ => {
                assert!(known.is_none(), "{} waits after {known:?}", state.ticket);
                return;
            }
        };
        if let Some(before) = known {
            assert_eq!(*before, how, "{} ended twice", state.ticket);
        }
        if let How::Matched(made) = &how {
            witness.matches.insert(made.id);
            for party in made.teams.iter().flatten() {
                for &player in &party.players {
                    let before = witness.matched.insert(player, made.id);
                    assert!(
                        before.is_none_or(|before| before == made.id),
                        "player {player} is matched twice"
                    );
                }
            }
        }
        *known = Some(how);
    }

    fn check_nothing_is_lost(&self, ledger: &Ledger) {
        for (&ticket, how) in &self.witness.known {
            let ended = ledger.ended(ticket).map(|ended| &ended.how);
            match how {
                Some(how) => assert_eq!(ended, Some(how), "what {ticket} was told"),
                None => {
                    let there = ledger.live(ticket).is_some() || ended.is_some();
                    assert!(there, "{ticket} is lost");
                }
            }
        }
    }

    fn check_the_end(&self) {
        let owners = self.nodes.iter().filter_map(|node| match &node.state {
            State::Owning(owning) => Some(owning),
            _ => None,
        });
        let owners: Vec<_> = owners.collect();
        assert_eq!(owners.len(), 1, "one owner");
        let owner = &owners[0].owner;
        self.check_nothing_is_lost(owner.ledger());
        assert!(owner.copies.in_sync().is_some(), "a standby in sync");
        let follower = self
            .nodes
            .iter()
            .find(|node| matches!(node.state, State::Following));
        let follower = follower.expect("a follower");
        let behind = owner.ledger().seq() - follower.ledger.seq();
        assert!(behind < 200, "the standby is {behind} entries behind");
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    while world.at < TROUBLE_MS {
        world.step();
    }
    world.peace = true;
    world.apart = false;
    for node in &mut world.nodes {
        node.reaches_service = true;
    }
    while world.at < TROUBLE_MS + PEACE_MS {
        world.step();
    }
    world.check_the_end();
    world
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_is_matched_twice_through_crashes_and_partitions() {
    let seeds = match std::env::var("PHALANX_SOAK_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS * soak(),
    };
    let (mut takeovers, mut stale, mut acknowledged, mut matches) = (0, 0, 0, 0);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| run(seed));
        let world = run.unwrap_or_else(|_| panic!("seed {seed} (PHALANX_SOAK_SEED={seed})"));
        takeovers += world.takeovers;
        stale += world.stale;
        acknowledged += world.witness.acknowledged;
        matches += world.witness.matches.len();
    }
    println!(
        "{takeovers} takeovers, {stale} steps of stale owners, {acknowledged} answers, {matches} matches"
    );
    assert!(
        takeovers > SEEDS && stale > SEEDS && matches as u64 > SEEDS,
        "nothing happened"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (one, other) = (run(7), run(7));
    assert_eq!(one.witness.known, other.witness.known);
    assert_eq!(one.takeovers, other.takeovers);
}

fn soak() -> u64 {
    let rounds = std::env::var("PHALANX_SOAK").ok();
    rounds
        .and_then(|rounds| rounds.parse().ok())
        .map_or(1, |rounds: u64| rounds.clamp(1, 1_000))
}
