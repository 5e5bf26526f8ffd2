//! Who is connected over a WebSocket, and who may come back. Each login there gets a token; with it a player whose connection
//! broke is back in the same session, once, as fast as the door allows. All of it lives as long as this process: the secret
//! is its own, so that after a restart everybody logs in anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_game::session::{
    Arrival, BadName, Budget, Clock, Desk, DeskError, DeskOptions, Directory, Governor, Instance,
    Key, Keyring, Local, Pass, ResumeError, Secret, Stage, TokenError, Verdict,
};
use phalanx_telemetry::metrics::Exposition;
use tokio::sync::Notify;

/// The room that everybody of a gateway is in.
const HALL: &str = "hall";
/// Of the one region of the demo's logins.
const REGION: u16 = 0;
const LOGINS_PER_SECOND: u32 = 2_000;
const SESSIONS_MAX: usize = 10_000;
/// A session without a connection is over after this.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Why nobody is let back in.
#[derive(Debug, thiserror::Error)]
pub enum Unwelcome {
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    #[error("the token: {0}")]
    Pass(#[from] ResumeError),
    #[error("come again in {0:?}")]
    Later(Duration),
}

/// What a stopping gateway tells a player.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    pub token: Option<String>,
    /// When to come to whoever is there then.
    pub after: Duration,
}

pub struct Presence {
    desk: Desk,
    governor: Governor,
    keyring: Keyring,
    clock: Clock,
    hall: Key,
    /// Open sockets of sessions, to be closed when another takes their place: as many as the desk has sessions at most.
    sockets: HashMap<u64, Arc<Notify>>,
    next_socket: u64,
}

/// One WebSocket.
pub struct Socket {
    pub number: u64,
    /// The player came back by another one.
    pub replaced: Arc<Notify>,
}

impl Presence {
    /// `secret`: 32 random bytes. Claims the hall's seat in a directory of this process.
    pub async fn try_new(secret: [u8; 32], seed: u64) -> anyhow::Result<Self> {
        let (hall, me) = (Key::parse(HALL)?, Instance::parse("gateway")?);
        let seat = Local::new().claim(&hall, &me, None, None).await?;
        let mut desk = Desk::new(DeskOptions {
            sessions_max: SESSIONS_MAX,
            away_max: AWAY_MAX,
            ..DeskOptions::default()
        });
        desk.host(&hall, seat.epoch)?;
        let budget = Budget {
            region: "arena".into(),
            per_second: LOGINS_PER_SECOND,
        };
        let secret = Secret {
            id: 1,
            bytes: secret.to_vec(),
            seals_from: Duration::ZERO,
            opens_until: None,
        };
        Ok(Self {
            desk,
            governor: Governor::try_new(&[budget], seed)?,
            keyring: Keyring::try_new(&[secret])?,
            clock: Clock::start(),
            hall,
            sockets: HashMap::new(),
            next_socket: 0,
        })
    }

    /// A WebSocket is open.
    pub fn connect(&mut self) -> Socket {
        self.next_socket += 1;
        Socket {
            number: self.next_socket,
            replaced: Arc::default(),
        }
    }

    /// A player has logged in there. The token to come back with; none: he will have to log in anew.
    pub fn enter(&mut self, session: &str, player: &str, socket: &Socket) -> Option<String> {
        self.expire();
        match self.try_enter(session, player, socket) {
            Ok(key) => self.token(&key),
            Err(error) => {
                tracing::warn!(%error, "a session without a way back");
                None
            }
        }
    }

    fn try_enter(&mut self, session: &str, player: &str, socket: &Socket) -> Result<Key, NoEntry> {
        let key = Key::parse(session)?;
        let (player, stage) = (number(player), Stage::Browsing);
        self.sockets.remove(&socket.number);
        let entered = self
            .desk
            .enter(&key, player, &self.hall, REGION, stage, socket.number)?;
        self.replace(entered, socket);
        Ok(key)
    }

    /// Somebody comes with a token. What it says, and how long he is held at the door before [`Presence::resume`].
    pub fn knock(&mut self, token: &str) -> Result<(Pass, Duration), Unwelcome> {
        self.expire();
        let now = self.clock.now();
        let pass = self.keyring.open(token, now)?;
        // Looked at before it costs a place at the door.
        self.desk.check(&pass, pass.player, now)?;
        match self.governor.arrive(now, &Arrival::from(&pass)) {
            Ok(Verdict::Admit { hold }) => Ok((pass, hold)),
            Ok(Verdict::Wait { at, .. }) => Err(Unwelcome::Later(at.saturating_sub(now))),
            // A pass of a region that is not there is none of ours.
            Err(_) => Err(Unwelcome::Token(TokenError::Garbled)),
        }
    }

    /// Lets him in, once. The token for the next time.
    pub fn resume(&mut self, pass: &Pass, socket: &Socket) -> Result<Option<String>, Unwelcome> {
        let now = self.clock.now();
        let resumed = self.desk.resume(pass, pass.player, socket.number, now)?;
        self.replace(resumed.replaced, socket);
        Ok(self.token(&pass.session))
    }

    /// What a player does, which decides who comes back first.
    pub fn stage(&mut self, session: &str, stage: Stage) {
        if let Ok(key) = Key::parse(session) {
            self.desk.set_stage(&key, stage);
        }
    }

    /// A session goes on without this WebSocket.
    pub fn leave(&mut self, session: &str, socket: &Socket) {
        if let Ok(key) = Key::parse(session) {
            self.desk.closed(&key, socket.number, self.clock.now());
        }
    }

    /// A WebSocket has ended.
    pub fn disconnect(&mut self, socket: &Socket, session: Option<&str>) {
        self.sockets.remove(&socket.number);
        if let Some(session) = session {
            self.leave(session, socket);
        }
    }

    /// The gateway stops. A time of his own for each player, so that not all come at once.
    pub fn farewell(&mut self, session: &str) -> Option<Farewell> {
        let key = Key::parse(session).ok()?;
        let now = self.clock.now();
        let (player, stage) = {
            let known = self.desk.session(&key)?;
            (known.player, known.stage)
        };
        let booked = self.governor.book(now, REGION, stage, player);
        let earliest = booked.ok().flatten().unwrap_or(now);
        let mut pass = self.desk.pass(&key, now, Duration::ZERO).ok()?;
        pass.earliest = earliest;
        Some(Farewell {
            token: self.keyring.seal(&pass, now).ok(),
            after: earliest.saturating_sub(now),
        })
    }

    pub fn write(&self, out: &mut Exposition) {
        self.governor.write(out);
    }

    fn token(&mut self, session: &Key) -> Option<String> {
        let now = self.clock.now();
        let stage = self.desk.session(session)?.stage;
        let counts = self.desk.population(REGION);
        let _ = self.governor.population(REGION, counts);
        let spread = self.governor.spread(REGION, stage).unwrap_or_default();
        let pass = self.desk.pass(session, now, spread).ok()?;
        self.keyring.seal(&pass, now).ok()
    }

    fn replace(&mut self, former: Option<u64>, socket: &Socket) {
        if let Some(former) = former.and_then(|number| self.sockets.remove(&number)) {
            former.notify_one();
        }
        self.sockets.insert(socket.number, socket.replaced.clone());
    }

    fn expire(&mut self) {
        self.desk.expire(self.clock.now());
    }
}

#[derive(Debug, thiserror::Error)]
enum NoEntry {
    #[error(transparent)]
    Name(#[from] BadName),
    #[error(transparent)]
    Desk(#[from] DeskError),
}

/// A player's name as a number (FNV-1a).
fn number(player: &str) -> u64 {
    player.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_brings_a_player_back_once_and_takes_the_place_of_the_old_connection() {
        let mut presence = Presence::try_new([7; 32], 1).await.unwrap();
        let first = presence.connect();
        let token = presence.enter("s-1", "ann", &first).unwrap();
        assert!(presence.knock("made up").is_err());

        let second = presence.connect();
        let (pass, _) = presence.knock(&token).unwrap();
        let next = presence.resume(&pass, &second).unwrap().unwrap();
        first.replaced.notified().await;
        presence.disconnect(&first, Some("s-1"));
        assert!(presence.knock(&token).is_err(), "it was used");

        // Whoever comes back again and again is told when to.
        presence.disconnect(&second, Some("s-1"));
        assert!(matches!(presence.knock(&next), Err(Unwelcome::Later(_))));
        assert!(presence.sockets.is_empty(), "who has no session has none");
        assert!(presence.farewell("s-1").unwrap().token.is_some());
        assert!(presence.farewell("s-2").is_none());
    }
}
