//! What players and gateway say to each other, in JSON: the bodies of HTTP and the messages over the WebSocket.

use serde::{Deserialize, Serialize};

use crate::leaderboard::Top;

/// `POST /login`, and the first message over a WebSocket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// 1 to 32 letters, digits, `-` and `_`.
    pub player: String,
}

/// The answer to a login. HTTP requests then send `Authorization: Bearer <session>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    pub player: String,
    pub session: String,
    pub rating: u32,
    /// Over a WebSocket: what brings the player back, once, when the connection breaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

/// The answer to `POST /play`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Played {
    pub match_id: String,
    pub opponent: String,
    /// The opponent is a fighter of the house.
    pub house: bool,
    pub won: bool,
    /// After the match.
    pub rating: u32,
    /// Of the battle service that fought the last leg.
    pub version: String,
    pub rules: String,
    /// Of all legs.
    pub rounds: u32,
    /// Fights: 1 against the house, 2 against a player.
    pub legs: u32,
}

/// What a player says over a WebSocket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum ClientMessage {
    Login(Login),
    /// Instead of a login, with what a welcome said before the connection broke.
    Resume {
        token: String,
    },
    Play {
        /// How long to wait for another player before a fighter of the house will do; 0: a moment.
        #[serde(default, skip_serializing_if = "is_nought")]
        wait_ms: u32,
    },
    /// Training: thrusts in thousandths of a unit per tick, at most 64.
    Spar {
        thrusts: Vec<(i32, i32)>,
    },
    Board {},
}

fn is_nought(wait_ms: &u32) -> bool {
    *wait_ms == 0
}

/// What a player hears: several messages may answer one, the last of them is no `proposal`, `round` or `moved`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ServerMessage {
    Welcome(Welcome),
    /// With it a match is told from its beginning; again when a matchmaker died meanwhile.
    Proposal {
        match_id: String,
        opponent: String,
        house: bool,
    },
    Round {
        number: u32,
        attacker: String,
        damage: u32,
        critical: bool,
    },
    Played(Played),
    Moved {
        number: u32,
        x: i32,
        y: i32,
        hit: bool,
    },
    Spared {
        moves: u32,
        hits: u32,
        version: String,
    },
    Board(Top),
    /// The gateway stops: come again after so long, wherever you are led then.
    Away {
        after_ms: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<String>,
    },
    Error(Problem),
}

impl ServerMessage {
    /// Whether nothing more comes until the player speaks.
    pub fn is_last(&self) -> bool {
        !matches!(
            self,
            Self::Proposal { .. } | Self::Round { .. } | Self::Moved { .. }
        )
    }
}

/// Every answer of HTTP that is no 2xx has one as its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub status: u16,
    pub error: String,
    /// Why the mesh answered instead of a service (`x-phalanx-reason`), where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
