//! What players of a room that was handed over are told: where it is, when to come there, and a token that lets them in.

use std::time::Duration;

use tracing::warn;

use super::desk::Desk;
use super::drain::Moved;
use super::name::{Instance, Key};
use super::storm::Governor;
use super::token::Keyring;

/// To be sent to one player, before his connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub session: Key,
    pub player: u64,
    /// As the desk knows it; none: away, he finds out by coming back.
    pub connection: Option<u64>,
    /// Who serves the room now. Clients need not know: the mesh leads them there.
    pub to: Instance,
    /// When to come, since the Unix epoch; zero: after a moment of the client's choice.
    pub earliest: Duration,
    /// None: it can't be sealed, he logs in anew.
    pub token: Option<String>,
}

/// Ends a room at the desk and makes a notice for each of its sessions, with a time that the governor keeps for it.
pub fn notices(
    desk: &mut Desk,
    governor: &mut Governor,
    keyring: &Keyring,
    now: Duration,
    moved: &Moved,
) -> Vec<Notice> {
    let passes = desk.hand_over(&moved.room, moved.epoch, now);
    let notice = |(mut pass, connection): (super::pass::Pass, Option<u64>)| {
        let booked = governor.book(now, pass.region, pass.stage, pass.player);
        let earliest = booked.ok().flatten().unwrap_or_default();
        let life = pass.expires.saturating_sub(pass.issued);
        pass.earliest = earliest;
        pass.expires = pass.issued.max(earliest) + life;
        let token = keyring.seal(&pass, now);
        if let Err(error) = &token {
            warn!(room = %moved.room, %error, "a player of a room that moves gets no token");
        }
        Notice {
            session: pass.session,
            player: pass.player,
            connection,
            to: moved.to.clone(),
            earliest,
            token: token.ok(),
        }
    };
    passes.into_iter().map(notice).collect()
}
