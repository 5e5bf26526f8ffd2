//! When to look at which session again. Sessions are linked by their places, so that the wheel costs them twelve bytes; being
//! used costs nothing, for a session is looked at when it would have been idle for long enough, and put back.

use super::session::Session;
use super::slots::{NONE, Slots};

pub struct Wheel {
    heads: Box<[u32]>,
    /// Ticks before this one are done.
    hand: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            heads: vec![NONE; SIZE as usize].into(),
            hand: 0,
        }
    }
}

impl Wheel {
    /// Looks at `place` at `due`, or earlier if that is far away; not before the hand has moved on.
    pub fn add(&mut self, sessions: &mut Slots<Session>, place: u32, due: u32) {
        let due = due.clamp(self.hand, self.hand + SIZE - 1);
        let Some(head) = self.heads.get_mut((due % SIZE) as usize) else {
            return;
        };
        let next = std::mem::replace(head, place);
        if let Some(session) = sessions.get_mut(place) {
            (session.due, session.prev, session.next) = (due, NONE, next);
        }
        if let Some(session) = sessions.get_mut(next) {
            session.prev = place;
        }
    }

    pub fn remove(&mut self, sessions: &mut Slots<Session>, place: u32) {
        let Some(session) = sessions.get(place) else {
            return;
        };
        let (prev, next, due) = (session.prev, session.next, session.due);
        match sessions.get_mut(prev) {
            Some(session) => session.next = next,
            None => {
                if let Some(head) = self.heads.get_mut((due % SIZE) as usize) {
                    *head = next;
                }
            }
        }
        if let Some(session) = sessions.get_mut(next) {
            session.prev = prev;
        }
    }

    /// Takes one off that is to be looked at by `now`.
    pub fn next(&mut self, sessions: &mut Slots<Session>, now: u32) -> Option<u32> {
        if now.saturating_sub(self.hand) > SIZE {
            self.hand = now - SIZE; // all of them are looked at
        }
        while self.hand <= now {
            let head = self.heads.get((self.hand % SIZE) as usize).copied();
            match head {
                Some(NONE) | None => self.hand += 1,
                Some(place) => {
                    self.remove(sessions, place);
                    return Some(place);
                }
            }
        }
        None
    }
}

/// Ticks of 100 ms.
const SIZE: u32 = 1024;
