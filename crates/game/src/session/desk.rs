//! Who is in the rooms that are served here, and who may come back. Everything about a pass is checked before anything is
//! changed, so that a wrong, stolen, old or late one leaves the session that it names as it was. Pure: time, connections
//! and players are handed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::name::{Key, Stage};
use super::pass::{Pass, ResumeError};

/// Bounds of a desk, and how long things are good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeskOptions {
    /// 100,000.
    pub sessions_max: usize,
    /// 10,000.
    pub rooms_max: usize,
    /// How long a player may be away, beyond the time that his last pass told him to wait, before the session is over;
    /// 2 minutes.
    pub away_max: Duration,
    /// How long a pass is good from its earliest time; 10 minutes.
    pub pass_life: Duration,
}

impl Default for DeskOptions {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            rooms_max: 10_000,
            away_max: Duration::from_secs(120),
            pass_life: Duration::from_secs(600),
        }
    }
}

/// Sessions of one room that are remembered as over, each by itself.
pub const OVER_MAX: usize = 10_000;

/// The sessions of one room server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desk {
    options: DeskOptions,
    rooms: HashMap<Key, Room>,
    sessions: HashMap<Key, Session>,
    /// Who is away, by when the session is over.
    away: BTreeSet<(Duration, Key)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Room {
    epoch: u64,
    sessions: BTreeSet<Key>,
    /// Sessions that are over, with the last pass that each was given: those let nobody in again.
    over: BTreeMap<Key, u64>,
    /// The last pass of those that are not remembered each: whoever is not known begins behind it.
    floor: u64,
}

impl Room {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            sessions: BTreeSet::new(),
            over: BTreeMap::new(),
            floor: 0,
        }
    }

    fn end(&mut self, session: &Key, issued: u64) {
        self.sessions.remove(session);
        match self.over.len() < OVER_MAX {
            true => drop(self.over.insert(session.clone(), issued)),
            false => self.floor = self.floor.max(issued),
        }
    }
}

/// One player's stay in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub player: u64,
    pub room: Key,
    pub region: u16,
    pub stage: Stage,
    /// The number that whoever serves the socket gave it; none: away.
    pub connection: Option<u64>,
    /// None: not away.
    over_at: Option<Duration>,
    /// What the last pass says.
    spread: Duration,
    /// Of the last pass that was issued, and that was used.
    issued: u64,
    used: u64,
}

/// Somebody is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    pub room: Key,
    pub epoch: u64,
    /// The connection that this one replaces: to be closed.
    pub replaced: Option<u64>,
    /// The session was not known here: its room came from another server.
    pub adopted: bool,
}

/// Why somebody can't be let in, or a room not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    #[error("room {0} is not served here")]
    NotHere(Key),
    #[error("session {0} is not known")]
    Unknown(Key),
    #[error("session {0} is another player's, or of another room")]
    Another(Key),
    #[error("room {room} is served at epoch {now} already")]
    OldEpoch { room: Key, now: u64 },
    #[error("no more are taken here")]
    Full,
}

impl Desk {
    pub fn new(options: DeskOptions) -> Self {
        Self {
            options,
            rooms: HashMap::new(),
            sessions: HashMap::new(),
            away: BTreeSet::new(),
        }
    }

    /// A room is served here, by this epoch of its seat. Of a later one than before (it went away and came back), passes of
    /// the former end. An epoch that was given up, or that a former life of this server had, has to be left for a later one
    /// ([`Drain::open`](super::Drain::open) does): which of its passes were used is not known any more.
    ///
    /// # Errors
    /// [`DeskError::OldEpoch`], [`DeskError::Full`]
    pub fn host(&mut self, room: &Key, epoch: u64) -> Result<(), DeskError> {
        if let Some(known) = self.rooms.get_mut(room) {
            if epoch < known.epoch {
                return Err(DeskError::OldEpoch {
                    room: room.clone(),
                    now: known.epoch,
                });
            }
            if epoch > known.epoch {
                known.epoch = epoch;
                known.over.clear();
                known.floor = 0;
                for key in &known.sessions {
                    if let Some(session) = self.sessions.get_mut(key) {
                        (session.issued, session.used) = (0, 0);
                    }
                }
            }
            return Ok(());
        }
        if self.rooms.len() >= self.options.rooms_max {
            return Err(DeskError::Full);
        }
        self.rooms.insert(room.clone(), Room::new(epoch));
        Ok(())
    }

    /// A player comes in by the login, with or without having been here: passes from before end. The connection that is
    /// replaced is to be closed.
    ///
    /// # Errors
    /// [`DeskError`]
    pub fn enter(
        &mut self,
        session: &Key,
        player: u64,
        room: &Key,
        region: u16,
        stage: Stage,
        connection: u64,
    ) -> Result<Option<u64>, DeskError> {
        let here = self.rooms.get_mut(room);
        let here = here.ok_or_else(|| DeskError::NotHere(room.clone()))?;
        if let Some(known) = self.sessions.get_mut(session) {
            if known.player != player || known.room != *room {
                return Err(DeskError::Another(session.clone()));
            }
            (known.region, known.stage) = (region, stage);
            known.used = known.issued;
            return Ok(connect(&mut self.away, session, known, connection));
        }
        if self.sessions.len() >= self.options.sessions_max {
            return Err(DeskError::Full);
        }
        let used = here.over.remove(session).unwrap_or(0).max(here.floor);
        here.sessions.insert(session.clone());
        let fresh = Session {
            player,
            room: room.clone(),
            region,
            stage,
            connection: Some(connection),
            over_at: None,
            spread: Duration::ZERO,
            issued: used,
            used,
        };
        self.sessions.insert(session.clone(), fresh);
        Ok(None)
    }

    /// What the player does from now on. Issue him a new pass then.
    pub fn set_stage(&mut self, session: &Key, stage: Stage) {
        if let Some(known) = self.sessions.get_mut(session) {
            known.stage = stage;
        }
    }

    /// A pass for a session, to be sealed and sent. `spread`: how long to wait after a connection that broke, of a
    /// [`Governor`](super::Governor).
    ///
    /// # Errors
    /// [`DeskError::Unknown`]
    pub fn pass(
        &mut self,
        session: &Key,
        now: Duration,
        spread: Duration,
    ) -> Result<Pass, DeskError> {
        let life = self.options.pass_life;
        let known = self.sessions.get_mut(session);
        let known = known.ok_or_else(|| DeskError::Unknown(session.clone()))?;
        let epoch = self.rooms.get(&known.room).map_or(0, |room| room.epoch);
        known.issued += 1;
        known.spread = spread;
        let now = Duration::from_millis(super::name::millis(now));
        Ok(Pass {
            session: session.clone(),
            player: known.player,
            room: known.room.clone(),
            epoch,
            serial: known.issued,
            region: known.region,
            stage: known.stage,
            issued: now,
            earliest: Duration::ZERO,
            spread,
            expires: now + spread + life,
        })
    }

    /// Whether `player`, as the login knows him, may come back by a pass. Changes nothing.
    ///
    /// # Errors
    /// [`ResumeError`]
    pub fn check(&self, pass: &Pass, player: u64, now: Duration) -> Result<(), ResumeError> {
        pass.in_time(now)?;
        if pass.player != player {
            return Err(ResumeError::OtherPlayer);
        }
        let room = self.rooms.get(&pass.room);
        let room = room.ok_or_else(|| ResumeError::NotHere(pass.room.clone()))?;
        pass.of_epoch(room.epoch)?;
        match self.sessions.get(&pass.session) {
            Some(known) if known.player != player || known.room != pass.room => {
                Err(ResumeError::OtherPlayer)
            }
            Some(known) if pass.serial <= known.used => Err(ResumeError::Used),
            Some(_) => Ok(()),
            None if room.over.contains_key(&pass.session) => Err(ResumeError::Over),
            None if pass.serial <= room.floor => Err(ResumeError::Over),
            None if self.sessions.len() >= self.options.sessions_max => Err(ResumeError::Full),
            None => Ok(()),
        }
    }

    /// Lets a player come back by a pass, once: [`Desk::check`], and only then the pass is used, and with it all before it.
    ///
    /// # Errors
    /// [`ResumeError`]; nothing has changed then.
    pub fn resume(
        &mut self,
        pass: &Pass,
        player: u64,
        connection: u64,
        now: Duration,
    ) -> Result<Resumed, ResumeError> {
        self.check(pass, player, now)?;
        let adopted = !self.sessions.contains_key(&pass.session);
        let known = self.sessions.entry(pass.session.clone());
        let known = known.or_insert_with(|| Session {
            player,
            room: pass.room.clone(),
            region: pass.region,
            stage: pass.stage,
            connection: None,
            over_at: None,
            spread: pass.spread,
            issued: 0,
            used: 0,
        });
        known.used = pass.serial;
        known.issued = known.issued.max(pass.serial);
        let replaced = connect(&mut self.away, &pass.session, known, connection);
        if let Some(room) = self.rooms.get_mut(&pass.room) {
            room.sessions.insert(pass.session.clone());
        }
        Ok(Resumed {
            room: pass.room.clone(),
            epoch: pass.epoch,
            replaced,
            adopted,
        })
    }

    /// A connection has ended. False: it was no longer the session's, which goes on by a later one.
    pub fn closed(&mut self, session: &Key, connection: u64, now: Duration) -> bool {
        let known = self.sessions.get_mut(session);
        let Some(known) = known.filter(|known| known.connection == Some(connection)) else {
            return false;
        };
        known.connection = None;
        let over_at = now + known.spread + self.options.away_max;
        known.over_at = Some(over_at);
        self.away.insert((over_at, session.clone()));
        true
    }

    /// The player leaves for good: no pass lets him in again.
    pub fn leave(&mut self, session: &Key) -> Option<Session> {
        let known = self.sessions.remove(session)?;
        if let Some(over_at) = known.over_at {
            self.away.remove(&(over_at, session.clone()));
        }
        if let Some(room) = self.rooms.get_mut(&known.room) {
            room.end(session, known.issued);
        }
        Some(known)
    }

    /// Ends sessions whose players were away for too long.
    pub fn expire(&mut self, now: Duration) -> Vec<(Key, Session)> {
        let mut ended = Vec::new();
        while let Some((over_at, key)) = self.away.first()
            && now >= *over_at
        {
            let key = key.clone();
            match self.leave(&key) {
                Some(session) => ended.push((key, session)),
                None => drop(self.away.pop_first()),
            }
        }
        ended
    }

    /// A room is served here no more: it is over, or another's. Passes of it let nobody in.
    pub fn give_up(&mut self, room: &Key) -> Vec<(Key, Session)> {
        let Some(gone) = self.rooms.remove(room) else {
            return Vec::new();
        };
        let mut sessions = Vec::with_capacity(gone.sessions.len());
        for key in gone.sessions {
            if let Some(session) = self.sessions.remove(&key) {
                if let Some(over_at) = session.over_at {
                    self.away.remove(&(over_at, key.clone()));
                }
                sessions.push((key, session));
            }
        }
        sessions
    }

    /// The same for a room that another has from `epoch` on, with a pass to go there for each session. Their earliest times
    /// are yet to be chosen.
    pub fn hand_over(&mut self, room: &Key, epoch: u64, now: Duration) -> Vec<(Pass, Option<u64>)> {
        let keys: Vec<Key> = self.sessions_of(room).cloned().collect();
        let passes = keys.iter().filter_map(|key| {
            let mut pass = self.pass(key, now, Duration::ZERO).ok()?;
            let connection = self.sessions.get(key)?.connection;
            // Of a new epoch: nobody there has used one.
            (pass.epoch, pass.serial) = (epoch, 1);
            Some((pass, connection))
        });
        let passes = passes.collect();
        self.give_up(room);
        passes
    }

    pub fn session(&self, session: &Key) -> Option<&Session> {
        self.sessions.get(session)
    }

    pub fn sessions_of(&self, room: &Key) -> impl Iterator<Item = &Key> {
        self.rooms
            .get(room)
            .into_iter()
            .flat_map(|room| &room.sessions)
    }

    /// Sessions of each stage in a region: the absolute counts that a governor plans with.
    pub fn population(&self, region: u16) -> [u32; Stage::COUNT] {
        let mut counts = [0_u32; Stage::COUNT];
        let here = self.sessions.values();
        for session in here.filter(|session| session.region == region) {
            if let Some(count) = counts.get_mut(session.stage.index()) {
                *count += 1;
            }
        }
        counts
    }

    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Sessions whose player is away.
    pub fn away(&self) -> usize {
        self.away.len()
    }
}

/// The connection before, unless it is this one.
fn connect(
    away: &mut BTreeSet<(Duration, Key)>,
    key: &Key,
    session: &mut Session,
    connection: u64,
) -> Option<u64> {
    if let Some(over_at) = session.over_at.take() {
        away.remove(&(over_at, key.clone()));
    }
    let before = session.connection.replace(connection);
    before.filter(|before| *before != connection)
}
