//! Bots in rooms: a datagram per frame, with the room's token in front, to wherever players come in. Now and then one
//! changes its address, as a telephone that leaves a building does, and expects to be in the same room still.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::room::frame::{MOVED_LEN, Moved, Step};

/// Between frames of one player.
const FRAME: Duration = Duration::from_millis(50);
/// A frame without an answer by then is lost.
const LOST: Duration = Duration::from_millis(1000);
/// After so many frames a player comes from another address.
const ROAM_EVERY: u32 = 64;
/// What a room's token is long.
pub const TOKEN_LEN: usize = 8;

/// The token of a room, which its instance has as label, in hex.
pub fn token(room: u8) -> [u8; TOKEN_LEN] {
    [b'a', b'r', b'e', b'n', b'a', b'-', b'r', room]
}

/// What happened in the rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rooms {
    pub frames: u64,
    pub lost: u64,
    /// Changes of address after which the room went on.
    pub roamed: u64,
    /// Answers of another room, or of one that had forgotten the player.
    pub astray: u64,
    /// The slowest answer.
    pub worst_ms: f64,
}

impl Rooms {
    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.lost += other.lost;
        self.roamed += other.roamed;
        self.astray += other.astray;
        self.worst_ms = self.worst_ms.max(other.worst_ms);
    }
}

/// Moves until `ended`.
///
/// # Errors
/// No socket could be had.
pub async fn play(
    player: u32,
    room: u8,
    edge: SocketAddr,
    ended: impl Future<Output = ()>,
) -> std::io::Result<Rooms> {
    tokio::pin!(ended);
    let mut rooms = Rooms::default();
    let mut socket = open(edge).await?;
    let (mut frame, mut steps, mut moved_house) = (0, 0, false);
    let mut every = tokio::time::interval(FRAME);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => return Ok(rooms),
            _ = every.tick() => {}
        }
        frame += 1;
        if frame % ROAM_EVERY == 0 {
            socket = open(edge).await?;
            moved_house = true;
        }
        let sent = Instant::now();
        let heard = timeout(LOST, exchange(&socket, room, player, frame)).await;
        rooms.frames += 1;
        match heard {
            Ok(Some(moved)) => {
                rooms.worst_ms = rooms.worst_ms.max(sent.elapsed().as_secs_f64() * 1000.0);
                let is_there = moved.room == room && moved.steps > steps;
                rooms.astray += u64::from(!is_there);
                rooms.roamed += u64::from(std::mem::take(&mut moved_house) && is_there);
                steps = moved.steps;
            }
            Ok(None) | Err(_) => rooms.lost += 1,
        }
    }
}

async fn open(edge: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    socket.connect(edge).await?;
    Ok(socket)
}

/// Sends one frame and waits for its answer; answers to earlier ones are passed over.
async fn exchange(socket: &UdpSocket, room: u8, player: u32, frame: u32) -> Option<Moved> {
    let sway = |by: u32| i16::try_from((frame / by) % 3).unwrap_or(0) * 50 - 50;
    let step = Step {
        player,
        frame,
        dx: sway(7),
        dy: sway(11),
    };
    let mut datagram = token(room).to_vec();
    datagram.extend_from_slice(&step.written());
    socket.send(&datagram).await.ok()?;
    let mut answer = [0; MOVED_LEN + 1];
    loop {
        let len = socket.recv(&mut answer).await.ok()?;
        let moved = answer.get(..len).and_then(Moved::read)?;
        if moved.player == player && moved.frame == frame {
            return Some(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room;
    use crate::serve::ServiceConfig;

    /// Takes the token off, as an edge does, and remembers nothing but the way back.
    async fn edge(room: SocketAddr) -> SocketAddr {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = front.local_addr().unwrap();
        tokio::spawn(async move {
            let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut bytes = [0; 256];
            loop {
                let (len, player) = front.recv_from(&mut bytes).await.unwrap();
                back.send_to(&bytes[TOKEN_LEN..len], room).await.unwrap();
                let len = back.recv(&mut bytes).await.unwrap();
                front.send_to(&bytes[..len], player).await.unwrap();
            }
        });
        at
    }

    #[tokio::test]
    async fn a_player_that_roams_stays_in_its_room() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let config = ServiceConfig::new(at, at, "v1");
        tokio::spawn(room::serve(socket, config, std::future::pending()));
        let edge = edge(at).await;
        let over = tokio::time::sleep(FRAME * 80);
        let rooms = play(5, 1, edge, over).await.unwrap();
        assert!(rooms.frames > 20, "{rooms:?}");
        assert_eq!((rooms.lost, rooms.astray), (0, 0), "{rooms:?}");
        assert!(rooms.roamed <= 1, "{rooms:?}");
    }
}
