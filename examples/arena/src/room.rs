//! Room: players move in it, over UDP. A player is its number, not its address, so that one who comes back from another
//! address goes on where it was. What a datagram holds is in [`frame`]; a room neither knows nor cares who brought it. A room
//! that is to stop takes no new players, and lets those that it has finish.

pub mod frame;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use phalanx_game::session::{self, Clock, Drain, Key, Local, Order, Phase};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::serve::{ServiceConfig, Stop};
use frame::{Moved, Step};

pub const NAME: &str = "room";

/// Nobody is further from the middle than this, on either axis.
pub const HALF: i32 = 10_000;
/// Of one frame, on either axis.
const STEP_MAX: i16 = 200;
const PLAYERS_MAX: usize = 1024;
/// Who says nothing for so long has left.
const GONE: Duration = Duration::from_secs(30);
/// A room that stops is empty when nobody says anything for so long, and ends after [`FINISH`] at the latest.
const QUIET: Duration = Duration::from_millis(200);
const FINISH: Duration = Duration::from_secs(2);

/// Plays until the shutdown.
pub async fn run(
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let listening = || format!("listening on {} (UDP)", config.listen);
    let socket = UdpSocket::bind(config.listen)
        .await
        .with_context(listening)?;
    serve(socket, config, shutdown).await
}

/// The same on a socket that is bound already.
pub async fn serve(
    socket: UdpSocket,
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = Stop::on(shutdown);
    let mut room = Room::new(number(&config.version));
    let clock = Clock::start();
    let key = Key::parse(&format!("{NAME}-{}", room.number))?;
    let me = session::Instance::parse(&socket.local_addr()?.to_string())?;
    let mut life = Drain::new(Local::new(), me, 1);
    let epoch = life.open(clock.now(), &key, None).await?;
    tracing::info!(room = %key, epoch, "open");
    let stopped = stop.wait();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            () = room.answer(&socket, life.rooms().phase()) => {}
        }
    }
    let deadline = Some(FINISH);
    let order = Order {
        deadline,
        ..Order::default()
    };
    life.rooms_mut().drain(clock.now(), order);
    while life.rooms().status(clock.now()).deadline > Some(Duration::ZERO) {
        let answered = room.answer(&socket, life.rooms().phase());
        if timeout(QUIET, answered).await.is_err() {
            break;
        }
    }
    life.end(clock.now(), &key).await?;
    Ok(())
}

/// The number at the end of its name: `v2` is room 2.
pub(crate) fn number(version: &str) -> u8 {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or(0)
}

/// Where everybody is.
struct Room {
    number: u8,
    players: HashMap<u32, Player>,
}

struct Player {
    x: i32,
    y: i32,
    /// How many steps it has made.
    steps: u32,
    /// The newest frame that counted: an older one that comes late changes nothing.
    newest: u32,
    heard: Instant,
}

impl Room {
    fn new(number: u8) -> Self {
        Self {
            number,
            players: HashMap::new(),
        }
    }

    /// Takes one datagram.
    async fn answer(&mut self, socket: &UdpSocket, phase: Phase) {
        let mut datagram = [0; frame::STEP_LEN + 1];
        // An error is that of one peer (a port that nobody listens on any more), and it has left.
        let Ok((len, peer)) = socket.recv_from(&mut datagram).await else {
            return;
        };
        let step = datagram.get(..len).and_then(Step::read);
        if let Some(moved) = step.and_then(|step| self.step(step, phase, Instant::now())) {
            let _ = socket.send_to(&moved.written(), peer).await; // what is lost, is lost
        }
    }

    /// Moves a player, who enters with the first step. None when the room is full, or takes nobody any more.
    fn step(&mut self, step: Step, phase: Phase, now: Instant) -> Option<Moved> {
        if !self.players.contains_key(&step.player) {
            if phase != Phase::Accepting {
                return None;
            }
            if self.players.len() >= PLAYERS_MAX {
                self.players.retain(|_, player| now - player.heard < GONE);
            }
            if self.players.len() >= PLAYERS_MAX {
                return None;
            }
        }
        let others = self.players.len();
        let player = self.players.entry(step.player).or_insert(Player {
            x: 0,
            y: 0,
            steps: 0,
            newest: 0,
            heard: now,
        });
        player.heard = now;
        if player.steps == 0 || step.frame > player.newest {
            let go = |at: i32, by: i16| {
                (at + i32::from(by.clamp(-STEP_MAX, STEP_MAX))).clamp(-HALF, HALF)
            };
            (player.x, player.y) = (go(player.x, step.dx), go(player.y, step.dy));
            player.steps = player.steps.saturating_add(1);
            player.newest = step.frame;
        }
        Some(Moved {
            room: self.number,
            player: step.player,
            frame: step.frame,
            steps: player.steps,
            x: player.x,
            y: player.y,
            players: u32::try_from(others.max(1)).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(player: u32, frame: u32) -> Step {
        Step {
            player,
            frame,
            dx: 100,
            dy: -100,
        }
    }

    #[test]
    fn a_player_moves_once_per_frame_whatever_comes_late_or_twice() {
        let (mut room, now) = (Room::new(3), Instant::now());
        for (frame, steps) in [(1, 1), (3, 2), (2, 2), (3, 2), (4, 3)] {
            let moved = room.step(step(7, frame), Phase::Accepting, now).unwrap();
            assert_eq!((moved.room, moved.frame, moved.steps), (3, frame, steps));
            assert_eq!(moved.x, 100 * i32::try_from(steps).unwrap());
        }
    }

    #[test]
    fn a_full_room_takes_nobody_until_somebody_has_left() {
        let (mut room, now) = (Room::new(1), Instant::now());
        let mut enter = |step, now| room.step(step, Phase::Accepting, now);
        for player in 0..1024 {
            assert!(enter(step(player, 1), now).is_some());
        }
        assert_eq!(enter(step(5000, 1), now), None);
        assert!(enter(step(0, 2), now).is_some());
        assert!(enter(step(5000, 1), now + GONE).is_some());
    }

    #[test]
    fn a_room_that_stops_lets_its_players_finish_and_takes_nobody() {
        let (mut room, now) = (Room::new(1), Instant::now());
        assert!(room.step(step(1, 1), Phase::Accepting, now).is_some());
        assert!(room.step(step(1, 2), Phase::Finishing, now).is_some());
        assert_eq!(room.step(step(2, 1), Phase::Finishing, now), None);
    }

    #[tokio::test]
    async fn a_room_answers_who_sends_a_step_and_nothing_else() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let config = ServiceConfig::new(at, at, "v2");
        let serving = tokio::spawn(serve(socket, config, std::future::pending()));
        let player = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        player.send_to(b"what", at).await.unwrap();
        player.send_to(&step(9, 1).written(), at).await.unwrap();
        let mut answer = [0; 64];
        let len = player.recv(&mut answer).await.unwrap();
        let moved = Moved::read(&answer[..len]).unwrap();
        assert_eq!((moved.room, moved.player, moved.steps), (2, 9, 1));
        serving.abort();
    }
}
