//! Who is logged in, in memory and bounded: the oldest session ends when there are too many.
//! Sessions are random numbers and no credentials; this is a demo.

use std::collections::{HashMap, VecDeque};

const SESSIONS_MAX: usize = 10_000;
const RATING_FIRST: u32 = 1000;
pub const PLAYER_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub player: String,
    pub rating: u32,
}

#[derive(Default)]
pub struct Sessions {
    by_id: HashMap<String, Session>,
    order: VecDeque<String>,
}

impl Sessions {
    /// Opens a session; None when the name is not fit to show.
    pub fn open(&mut self, player: &str) -> Option<(String, Session)> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=PLAYER_MAX).contains(&player.len())
            || !player.bytes().all(fits)
            || player.starts_with("house-")
        {
            return None;
        }
        if self.order.len() >= SESSIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        let id = format!("{:032x}", fastrand::u128(..));
        let session = Session {
            player: player.to_string(),
            rating: RATING_FIRST,
        };
        self.by_id.insert(id.clone(), session.clone());
        self.order.push_back(id.clone());
        Some((id, session))
    }

    pub fn find(&self, id: &str) -> Option<Session> {
        self.by_id.get(id).cloned()
    }

    pub fn rate(&mut self, id: &str, rating: u32) {
        if let Some(session) = self.by_id.get_mut(id) {
            session.rating = rating;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_session_ends_when_there_are_too_many() {
        let mut sessions = Sessions::default();
        let (first, _) = sessions.open("ann").unwrap();
        assert!(sessions.find(&first).is_some());
        for _ in 0..SESSIONS_MAX {
            sessions.open("bob").unwrap();
        }
        assert!(sessions.find(&first).is_none());
        assert_eq!(sessions.by_id.len(), SESSIONS_MAX);
    }

    #[test]
    fn names_are_plain_and_not_the_houses() {
        let mut sessions = Sessions::default();
        for name in ["", "a b", "näme", "house-legend", &"x".repeat(33)] {
            assert!(sessions.open(name).is_none(), "{name}");
        }
    }
}
