//! A room server that ends without ending a game: it takes no new rooms, lets those that it has come to their end, says how
//! many are left and for how long, and hands over what is there at the deadline, through the directory, no faster than the
//! logins bear. [`Rooms`] is the life cycle as data; [`Drain`] does to the directory what follows from it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tracing::{info, warn};

use super::directory::{Directory, DirectoryError, Seat};
use super::name::{Instance, Key};

/// Rooms of a server, unless said otherwise.
pub const ROOMS_MAX: usize = 10_000;
/// Rooms that ended and whose length is remembered, to tell when the others will.
pub const LENGTHS_MAX: usize = 256;
/// Players handed over in a second, where nothing is said; as `phalanx drain` has it.
pub const PER_SECOND: u32 = 100;
/// A room that could not be handed over is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes rooms.
    Accepting,
    /// Takes none, and has some.
    Finishing,
    /// Has none, and may stop.
    Drained,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepting => "accepting",
            Self::Finishing => "finishing",
            Self::Drained => "drained",
        }
    }
}

/// How to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Then what is left is handed over; none: rooms are let come to their end, however long that takes.
    pub deadline: Option<Duration>,
    /// Players handed over in a second, at least one room at a time; [`PER_SECOND`].
    pub per_second: u32,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            deadline: None,
            per_second: PER_SECOND,
        }
    }
}

/// One room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of its seat.
    pub epoch: u64,
    /// As they are now.
    pub players: u32,
    /// Since when it is there.
    pub opened: Duration,
    /// When it ends, if it knows.
    pub ends: Option<Duration>,
    retry_at: Duration,
}

/// How far a drain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub phase: Phase,
    pub rooms: usize,
    pub players: u64,
    /// When the last room is likely to be over, or handed over; none: not known.
    pub left: Option<Duration>,
    /// Until rooms are handed over.
    pub deadline: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomsError {
    #[error("this server is {}: it takes no new rooms", .0.as_str())]
    Closed(Phase),
    #[error("room {0} is here already")]
    Already(Key),
    #[error("no more rooms are taken here")]
    Full,
}

/// The rooms of one server and whether it takes more. Pure: the time is handed in.
#[derive(Clone, Debug)]
pub struct Rooms {
    rooms: BTreeMap<Key, Room>,
    rooms_max: usize,
    /// None: accepting.
    order: Option<Ordered>,
    /// Of rooms that ended by themselves.
    lengths: VecDeque<Duration>,
}

#[derive(Clone, Debug)]
struct Ordered {
    /// Of the clock that is handed in.
    deadline: Option<Duration>,
    per_second: u32,
    /// When the next room may be handed over.
    next: Duration,
}

impl Rooms {
    pub fn new(rooms_max: usize) -> Self {
        Self {
            rooms: BTreeMap::new(),
            rooms_max,
            order: None,
            lengths: VecDeque::new(),
        }
    }

    /// A room begins, by the epoch of its seat.
    ///
    /// # Errors
    /// [`RoomsError`]
    pub fn open(
        &mut self,
        now: Duration,
        key: &Key,
        epoch: u64,
        ends: Option<Duration>,
    ) -> Result<(), RoomsError> {
        self.may_open()?;
        self.take(now, key, epoch, ends)
    }

    /// Whether a room may begin, before anybody claims its seat.
    ///
    /// # Errors
    /// [`RoomsError::Closed`], [`RoomsError::Full`]
    pub fn may_open(&self) -> Result<(), RoomsError> {
        if self.order.is_some() {
            return Err(RoomsError::Closed(self.phase()));
        }
        match self.rooms.len() >= self.rooms_max {
            true => Err(RoomsError::Full),
            false => Ok(()),
        }
    }

    /// A room that is here whether it was wanted or not: its seat was moved to this server.
    ///
    /// # Errors
    /// [`RoomsError::Already`], [`RoomsError::Full`]
    pub fn take(
        &mut self,
        now: Duration,
        key: &Key,
        epoch: u64,
        ends: Option<Duration>,
    ) -> Result<(), RoomsError> {
        if self.rooms.get(key).is_some_and(|room| room.epoch >= epoch) {
            return Err(RoomsError::Already(key.clone()));
        }
        if self.rooms.len() >= self.rooms_max && !self.rooms.contains_key(key) {
            return Err(RoomsError::Full);
        }
        let room = Room {
            epoch,
            players: 0,
            opened: now,
            ends,
            retry_at: Duration::ZERO,
        };
        self.rooms.insert(key.clone(), room);
        Ok(())
    }

    /// How many are in a room now.
    pub fn set_players(&mut self, key: &Key, players: u32) {
        if let Some(room) = self.rooms.get_mut(key) {
            room.players = players;
        }
    }

    /// A room came to its end by itself.
    pub fn end(&mut self, now: Duration, key: &Key) -> Option<Room> {
        let room = self.rooms.remove(key)?;
        if self.lengths.len() >= LENGTHS_MAX {
            self.lengths.pop_front();
        }
        self.lengths.push_back(now.saturating_sub(room.opened));
        Some(room)
    }

    /// A room is another's, or nobody's.
    pub fn lose(&mut self, key: &Key) -> Option<Room> {
        self.rooms.remove(key)
    }

    /// No new rooms from now on. A later order replaces the former: a deadline may come nearer, or go away.
    pub fn drain(&mut self, now: Duration, order: Order) {
        let next = self.order.as_ref().map_or(now, |order| order.next);
        self.order = Some(Ordered {
            deadline: order.deadline.map(|deadline| now.saturating_add(deadline)),
            per_second: order.per_second.max(1),
            next,
        });
    }

    /// It was not meant so: rooms are taken again.
    pub fn accept(&mut self) {
        self.order = None;
    }

    pub fn phase(&self) -> Phase {
        match (&self.order, self.rooms.is_empty()) {
            (None, _) => Phase::Accepting,
            (Some(_), false) => Phase::Finishing,
            (Some(_), true) => Phase::Drained,
        }
    }

    pub fn status(&self, now: Duration) -> Status {
        let players = self.rooms.values().map(|room| u64::from(room.players));
        let deadline = self.order.as_ref().and_then(|order| order.deadline);
        Status {
            phase: self.phase(),
            rooms: self.rooms.len(),
            players: players.sum(),
            left: self.left(now),
            deadline: deadline.map(|at| at.saturating_sub(now)),
        }
    }

    /// What is to be handed over by now. Each call lets through as much as the time since the last one bears.
    pub fn due(&mut self, now: Duration) -> Vec<Key> {
        let Some(order) = &mut self.order else {
            return Vec::new();
        };
        if order.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        // Those that were not tried yet, or longest ago: rooms that nobody takes are not in the way of others.
        let mut rooms: Vec<(&Key, &mut Room)> = self.rooms.iter_mut().collect();
        rooms.retain(|(_, room)| room.retry_at <= now);
        rooms.sort_by_key(|(_, room)| room.retry_at);
        let mut due = Vec::new();
        // What could not be made use of is not saved up.
        order.next = order.next.max(now.saturating_sub(AGAIN));
        for (key, room) in rooms {
            if order.next > now {
                break;
            }
            room.retry_at = now + AGAIN;
            let turn = Duration::from_secs(1) * room.players.max(1) / order.per_second;
            order.next += turn;
            due.push(key.clone());
        }
        due
    }

    pub fn get(&self, key: &Key) -> Option<&Room> {
        self.rooms.get(key)
    }

    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// By what rooms say of themselves, else by how long those were that got as old; at most the time that handing over takes.
    fn left(&self, now: Duration) -> Option<Duration> {
        let mut lengths: Vec<Duration> = self.lengths.iter().copied().collect();
        lengths.sort_unstable();
        let room = |room: &Room| match room.ends {
            Some(ends) => Some(ends.saturating_sub(now)),
            None => {
                let age = now.saturating_sub(room.opened);
                let older = lengths.partition_point(|length| *length <= age);
                // Nine of ten that got as old were over by then.
                let of = lengths.get(older..)?;
                let at = of.len().checked_sub(1)? * 9 / 10;
                Some(of.get(at)?.saturating_sub(age))
            }
        };
        let natural = self
            .rooms
            .values()
            .map(room)
            .try_fold(Duration::ZERO, |most, left| Some(most.max(left?)));
        let order = self.order.as_ref();
        let forced = order.and_then(|order| {
            let players = self.rooms.values().map(|room| room.players.max(1));
            let players = players.fold(0_u32, u32::saturating_add);
            let moving = Duration::from_secs(1) * players / order.per_second;
            Some(order.deadline?.saturating_sub(now) + moving)
        });
        match (natural, forced) {
            (Some(natural), Some(forced)) => Some(natural.min(forced)),
            (natural, forced) => natural.or(forced),
        }
    }
}

/// A room that another serves now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub room: Key,
    pub to: Instance,
    /// Of the seat there.
    pub epoch: u64,
}

/// What a step of a drain came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Handed over, or found to be another's: their players go there. To this server itself: the room went away and came
    /// back, and what is known of it here is of a former life ([`Drain::adopt`] begins the new one).
    pub moved: Vec<Moved>,
    /// Nobody has them any more: their players log in anew.
    pub lost: Vec<Key>,
    /// Not handed over yet, because nobody (else) takes them or the directory does not answer.
    pub stuck: usize,
}

/// The rooms of a server, and the directory that says so to everybody else.
#[derive(Debug)]
pub struct Drain<D> {
    directory: D,
    me: Instance,
    rooms: Rooms,
}

impl<D: Directory> Drain<D> {
    pub fn new(directory: D, me: Instance, rooms_max: usize) -> Self {
        Self {
            directory,
            me,
            rooms: Rooms::new(rooms_max),
        }
    }

    /// Claims a room's seat and begins it. Its epoch goes with everything that is written for it. A seat that this instance
    /// has already, for a room that is not here, is of its former life (or of an attempt that was not answered), and is taken
    /// anew, at a later epoch; a room that was moved here is for [`Drain::adopt`].
    ///
    /// # Errors
    /// [`OpenError`]: it is not here then.
    pub async fn open(
        &mut self,
        now: Duration,
        key: &Key,
        ends: Option<Duration>,
    ) -> Result<u64, OpenError> {
        self.rooms.may_open()?;
        if self.rooms.get(key).is_none()
            && let Some(seat) = self.directory.show(key).await?
            && seat.instance == self.me
        {
            self.directory.release(key, seat.epoch).await?;
        }
        let seat = self.directory.claim(key, &self.me, None, None).await?;
        match self.rooms.open(now, key, seat.epoch, ends) {
            Ok(()) => Ok(seat.epoch),
            // Claimed again: as it was.
            Err(RoomsError::Already(_)) => Ok(seat.epoch),
            Err(error) => Err(error.into()),
        }
    }

    /// A room is over: its seat is free.
    ///
    /// # Errors
    /// [`DirectoryError`], but for a seat that was lost before: the room is over here in any case, and its seat goes with this
    /// server at the latest.
    pub async fn end(&mut self, now: Duration, key: &Key) -> Result<(), DirectoryError> {
        let Some(room) = self.rooms.end(now, key) else {
            return Ok(());
        };
        match self.directory.release(key, room.epoch).await {
            Ok(_) | Err(DirectoryError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Hands over what is due by now to whom `heir` names.
    pub async fn step(
        &mut self,
        now: Duration,
        mut heir: impl FnMut(&Key) -> Option<Instance>,
    ) -> Step {
        let mut step = Step::default();
        for key in self.rooms.due(now) {
            match heir(&key) {
                Some(to) => self.hand_over(&key, &to, &mut step).await,
                None => step.stuck += 1,
            }
        }
        if !step.moved.is_empty() || !step.lost.is_empty() {
            let left = self.rooms.len();
            info!(moved = step.moved.len(), left, "rooms handed over");
        }
        step
    }

    /// Hands over one room now, at a moment that is safe for its game.
    pub async fn hand_over_now(&mut self, key: &Key, to: &Instance) -> Step {
        let mut step = Step::default();
        self.hand_over(key, to, &mut step).await;
        step
    }

    /// The directory says who has a key. Of a room here that is another's since, or nobody's, what is to be done about its
    /// players; whoever still writes for it does so in vain. That nobody has it may be told late and says no epoch: the
    /// directory is asked once more.
    ///
    /// # Errors
    /// [`DirectoryError`]; the room is still here.
    pub async fn told(
        &mut self,
        key: &Key,
        seat: Option<&Seat>,
    ) -> Result<Option<Step>, DirectoryError> {
        let Some(epoch) = self.rooms.get(key).map(|room| room.epoch) else {
            return Ok(None);
        };
        let seat = match seat {
            Some(seat) => Some(seat.clone()),
            None => self.directory.show(key).await?,
        };
        let is_known = |seat: &Seat| seat.instance == self.me && seat.epoch == epoch;
        // What is earlier is told late.
        if seat
            .as_ref()
            .is_some_and(|seat| seat.epoch < epoch || is_known(seat))
        {
            return Ok(None);
        }
        let mut step = Step::default();
        self.lost(key, seat, &mut step);
        Ok(Some(step))
    }

    /// A room was moved to this server.
    ///
    /// # Errors
    /// [`RoomsError`]
    pub fn adopt(&mut self, now: Duration, seat: &Seat) -> Result<(), RoomsError> {
        self.rooms.take(now, &seat.key, seat.epoch, None)
    }

    pub fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    pub fn rooms_mut(&mut self) -> &mut Rooms {
        &mut self.rooms
    }

    async fn hand_over(&mut self, key: &Key, to: &Instance, step: &mut Step) {
        let Some(epoch) = self.rooms.get(key).map(|room| room.epoch) else {
            return;
        };
        if *to == self.me {
            step.stuck += 1;
            return;
        }
        match self.directory.move_to(key, to, epoch).await {
            Ok(seat) => self.lost(key, Some(seat), step),
            Err(DirectoryError::Conflict(seat)) => self.lost(key, seat.map(|seat| *seat), step),
            Err(error) => {
                // It may have happened: the next time tells.
                warn!(room = %key, %to, %error, "a room can't be handed over yet");
                step.stuck += 1;
            }
        }
    }

    fn lost(&mut self, key: &Key, seat: Option<Seat>, step: &mut Step) {
        self.rooms.lose(key);
        match seat {
            Some(seat) => step.moved.push(Moved {
                room: key.clone(),
                to: seat.instance,
                epoch: seat.epoch,
            }),
            None => step.lost.push(key.clone()),
        }
    }
}

/// Why a room does not begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Rooms(#[from] RoomsError),
    #[error("the seat of the room is not ours")]
    Directory(#[from] DirectoryError),
}
