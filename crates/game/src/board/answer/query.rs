//! What a request asks for, out of its path and query.

use crate::board::Board;
use crate::board::kind::{BadPlayer, FRIENDS_MAX, PlayerId};
use crate::board::own::Own;
use crate::board::page::PageQuery;

/// Bytes of a query: room for [`FRIENDS_MAX`] ids, each of 64 encoded bytes.
const QUERY_BYTES_MAX: usize = FRIENDS_MAX * 210;

#[derive(Debug)]
pub enum Read {
    Top,
    Rank(PlayerId),
    Around(PlayerId),
    Friends,
}

/// All that any read may ask; [`Query::parse`] refuses what the read at hand doesn't know.
#[derive(Debug, Default)]
pub struct Query {
    pub page: PageQuery,
    pub radius: usize,
    pub players: Vec<PlayerId>,
    hint: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    #[error("query parameter {0}: not known here")]
    Unknown(String),
    #[error("query parameter {0}: not a whole number")]
    Number(&'static str),
    #[error("query parameter require: only \"fresh\" can be required")]
    Require,
    #[error("query parameter {name}: {source}")]
    Player {
        name: &'static str,
        #[source]
        source: BadPlayer,
    },
    #[error("query parameter score: not one that this board can have")]
    Score,
    #[error("query of more than {QUERY_BYTES_MAX} bytes, or {FRIENDS_MAX} players")]
    Long,
    #[error("percent-encoding of \"{0}\"")]
    Encoding(String),
}

impl Read {
    /// `None`: no such path.
    pub fn parse(path: &str) -> Option<Result<Self, BadQuery>> {
        match path.split_once('/') {
            None if path == "top" => Some(Ok(Self::Top)),
            None if path == "friends" => Some(Ok(Self::Friends)),
            Some(("rank", player)) => Some(self::player("player", player, false).map(Self::Rank)),
            Some(("around", player)) => {
                Some(self::player("player", player, false).map(Self::Around))
            }
            _ => None,
        }
    }
}

impl Query {
    pub fn parse(read: &Read, text: &str, board: &Board) -> Result<Self, BadQuery> {
        if text.len() > QUERY_BYTES_MAX {
            return Err(BadQuery::Long);
        }
        let mut query = Self {
            radius: 5,
            ..Self::default()
        };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (read, name) {
                (_, "require") if value == "fresh" => {
                    query.no_older(board.spec().fresh_ms);
                }
                (_, "require") => return Err(BadQuery::Require),
                (_, "max_age_ms") => query.no_older(number("max_age_ms", value)?),
                (Read::Top, "offset") => query.page.offset = number("offset", value)?,
                (Read::Top, "limit") => query.page.limit = number("limit", value)?,
                (Read::Top, "token") => query.page.token = Some(decode(value, true)?),
                (Read::Top, "viewer") => query.page.viewer = Some(player("viewer", value, true)?),
                (Read::Around(_), "radius") => query.radius = number("radius", value)?,
                (Read::Rank(_) | Read::Around(_), "score") => {
                    let score = number("score", value)?;
                    board.law().orders(score).ok_or(BadQuery::Score)?;
                    query.hint = Some(score);
                }
                (Read::Friends, "player") => {
                    if query.players.len() == FRIENDS_MAX {
                        return Err(BadQuery::Long);
                    }
                    query.players.push(player("player", value, true)?);
                }
                _ => {
                    let name = decode(name, true)?;
                    return Err(BadQuery::Unknown(name.chars().take(64).collect()));
                }
            }
        }
        Ok(query)
    }

    pub fn own(&self, player: PlayerId) -> Own {
        Own {
            player,
            hint: self.hint,
            max_age_ms: self.page.max_age_ms,
        }
    }

    fn no_older(&mut self, ms: u64) {
        let stricter = self.page.max_age_ms.map_or(ms, |known| known.min(ms));
        self.page.max_age_ms = Some(stricter);
    }
}

fn number<T: std::str::FromStr>(name: &'static str, value: &str) -> Result<T, BadQuery> {
    value.parse().map_err(|_| BadQuery::Number(name))
}

fn player(name: &'static str, value: &str, form: bool) -> Result<PlayerId, BadQuery> {
    PlayerId::parse(&decode(value, form)?).map_err(|source| BadQuery::Player { name, source })
}

/// Percent-decoding; in a query (`form`) a plus is a space.
fn decode(text: &str, form: bool) -> Result<String, BadQuery> {
    let bad = || BadQuery::Encoding(text.chars().take(64).collect());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut nibble = || {
                    let digit = rest.next().and_then(|digit| char::from(digit).to_digit(16));
                    digit.ok_or_else(bad)
                };
                (nibble()? << 4 | nibble()?) as u8
            }
            b'+' if form => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}
