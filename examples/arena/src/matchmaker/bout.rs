//! Matches that are fought, or were a moment ago: who fights, what was told of it, and who listens. A match has the same
//! name whoever asks and however often, so that both of its players, and who asks again after a connection broke, hear the
//! same fight from its beginning.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

use super::caller::Caller;
use super::lobby::{self, Player, rated};
use crate::carry::Carried;
use crate::proto::arena::v1::{Fighter, PlayReply, Proposal, Round, play_event};

/// Matches that ended and can still be told again; the oldest is forgotten first.
const KEPT_MAX: usize = 256;

/// Who is to fight whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairing {
    /// Made of the tickets, so that every process gives a match the same one.
    pub key: u64,
    /// The player who waited longer, where there are two.
    pub left: Fighter,
    pub right: Fighter,
    /// The right one is the house's.
    pub house: bool,
}

impl Pairing {
    pub fn of(tickets: [u64; 2], [left, right]: [Fighter; 2]) -> Self {
        Self {
            key: tickets[0] ^ tickets[1],
            left,
            right,
            house: false,
        }
    }

    pub fn with_house(ticket: u64, player: &Fighter) -> Self {
        Self {
            key: ticket,
            left: player.clone(),
            right: lobby::house(player.rating),
            house: true,
        }
    }
}

/// How a match ended.
#[derive(Clone)]
pub struct Outcome {
    pub winner: String,
    pub version: String,
    pub rules: String,
    pub legs: u32,
}

/// One match.
pub struct Bout {
    pub id: String,
    pub pairing: Pairing,
    /// Of the call that came first.
    pub carried: Carried,
    /// A mutex, because the process has one thread and nothing is awaited under it.
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Numbered through all legs.
    rounds: Vec<Round>,
    ended: Option<Outcome>,
    /// Who will hear what comes.
    audience: Vec<Caller>,
}

impl Bout {
    pub fn new(pairing: Pairing, carried: Carried) -> Self {
        Self {
            id: format!("{:016x}", pairing.key),
            pairing,
            carried,
            told: Mutex::default(),
        }
    }

    /// Tells a player what was told before, and then what comes.
    pub fn join(&self, caller: Caller) {
        let mut told = self.told();
        if caller.live {
            let proposal = Proposal {
                match_id: self.id.clone(),
                opponent: Some(self.facing(&caller.fighter.player).1.clone()),
                house: self.pairing.house,
            };
            caller.tell(play_event::Event::Proposal(proposal));
            for round in &told.rounds {
                caller.tell(play_event::Event::Round(round.clone()));
            }
        }
        match &told.ended {
            Some(outcome) => {
                let rounds = told.rounds.len();
                caller.tell(self.result(&caller.fighter.player, outcome, rounds));
            }
            None => told.audience.push(caller),
        }
    }

    /// Whether anybody wants to hear the rounds as they are fought.
    pub fn is_live(&self) -> bool {
        self.told().audience.iter().any(|caller| caller.live)
    }

    /// Whether nobody listens any more.
    pub fn is_left(&self) -> bool {
        self.told().audience.iter().all(Player::left)
    }

    pub fn round(&self, mut round: Round) {
        let mut told = self.told();
        round.number = told.rounds.len() as u32 + 1;
        for caller in told.audience.iter().filter(|caller| caller.live) {
            caller.tell(play_event::Event::Round(round.clone()));
        }
        told.rounds.push(round);
    }

    /// What the match does to its players, the house's not among them: name, rating, whether he won.
    pub fn scores(&self, outcome: &Outcome) -> impl Iterator<Item = (&Fighter, u32, bool)> {
        let Pairing {
            left, right, house, ..
        } = &self.pairing;
        let players = std::iter::once(left).chain((!house).then_some(right));
        players.map(|player| {
            let won = outcome.winner == player.player;
            let other = self.facing(&player.player).1;
            (player, rated(player.rating, other.rating, won), won)
        })
    }

    pub fn end(&self, outcome: Outcome) {
        let mut told = self.told();
        let rounds = told.rounds.len();
        for caller in told.audience.drain(..) {
            caller.tell(self.result(&caller.fighter.player, &outcome, rounds));
        }
        told.ended = Some(outcome);
    }

    pub fn fail(&self, status: &Status) {
        for caller in self.told().audience.drain(..) {
            caller.fail(status.clone());
        }
    }

    /// The player of this name as he came, and his opponent.
    fn facing(&self, player: &str) -> (&Fighter, &Fighter) {
        let Pairing { left, right, .. } = &self.pairing;
        match left.player == player {
            true => (left, right),
            false => (right, left),
        }
    }

    fn result(&self, player: &str, outcome: &Outcome, rounds: usize) -> play_event::Event {
        let (own, other) = self.facing(player);
        let won = outcome.winner == own.player;
        play_event::Event::Result(PlayReply {
            match_id: self.id.clone(),
            opponent: Some(other.clone()),
            house: self.pairing.house,
            won,
            rating: rated(own.rating, other.rating, won),
            version: outcome.version.clone(),
            rules: outcome.rules.clone(),
            rounds: rounds as u32,
            legs: outcome.legs,
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All matches of this process.
#[derive(Default)]
pub struct Bouts(
    /// A mutex, because the process has one thread and nothing is awaited under it.
    Mutex<Known>,
);

#[derive(Default)]
struct Known {
    bouts: HashMap<u64, Arc<Bout>>,
    /// Those that ended, oldest first.
    ended: VecDeque<u64>,
}

impl Bouts {
    /// Lets a player in on a match. Some: it is new, and somebody has to fight it.
    pub fn join(&self, pairing: Pairing, caller: Caller) -> Option<Arc<Bout>> {
        let mut known = self.known();
        if let Some(bout) = known.bouts.get(&pairing.key) {
            bout.join(caller);
            return None;
        }
        let bout = Arc::new(Bout::new(pairing, caller.carried.clone()));
        bout.join(caller);
        known.bouts.insert(bout.pairing.key, bout.clone());
        Some(bout)
    }

    pub fn end(&self, bout: &Bout, outcome: Outcome) {
        let mut known = self.known();
        bout.end(outcome);
        known.ended.push_back(bout.pairing.key);
        if known.ended.len() > KEPT_MAX
            && let Some(oldest) = known.ended.pop_front()
        {
            known.bouts.remove(&oldest);
        }
    }

    /// One that came to nothing: who asks again has it fought anew.
    pub fn fail(&self, bout: &Bout, status: &Status) {
        let mut known = self.known();
        known.bouts.remove(&bout.pairing.key);
        bout.fail(status);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matchmaker::caller::Events;
    use crate::proto::arena::v1::{PlayEvent, PlayRequest};
    use play_event::Event;

    fn caller(player: &str, live: bool) -> (Caller, Events) {
        let request = PlayRequest {
            player: player.into(),
            rating: 1000,
            ..PlayRequest::default()
        };
        Caller::of(tonic::Request::new(request), live).unwrap()
    }

    fn heard(events: &mut Events) -> Vec<Event> {
        let mut all = Vec::new();
        while let Ok(Ok(PlayEvent { event: Some(event) })) = events.try_recv() {
            all.push(event);
        }
        all
    }

    #[test]
    fn who_comes_late_or_again_hears_the_match_from_its_beginning() {
        let bouts = Bouts::default();
        let (ann, mut of_ann) = caller("ann", true);
        let (bob, mut of_bob) = caller("bob", true);
        let pairing = Pairing::of([6, 3], [ann.fighter.clone(), bob.fighter.clone()]);
        let bout = bouts.join(pairing.clone(), ann).expect("new");
        bout.round(Round::default());
        assert!(bouts.join(pairing.clone(), bob).is_none(), "one fight");
        bout.round(Round::default());
        let outcome = Outcome {
            winner: "bob".into(),
            version: "v1".into(),
            rules: "classic".into(),
            legs: 2,
        };
        bouts.end(&bout, outcome);
        let (again, mut of_again) = caller("ann", true);
        assert!(bouts.join(pairing, again).is_none());
        let (ann, bob, again) = (heard(&mut of_ann), heard(&mut of_bob), heard(&mut of_again));
        assert_eq!(ann, again);
        let result = |events: &[Event]| match events {
            [
                Event::Proposal(_),
                Event::Round(one),
                Event::Round(two),
                Event::Result(result),
            ] if (one.number, two.number) == (1, 2) => result.clone(),
            other => panic!("{other:?}"),
        };
        let (ann, bob) = (result(&ann), result(&bob));
        assert!(!ann.won && bob.won);
        assert_eq!((ann.rounds, ann.rating + bob.rating), (2, 2000));
        assert_eq!(ann.match_id, bob.match_id);
    }

    #[test]
    fn a_match_that_failed_is_fought_anew_for_who_asks_again() {
        let bouts = Bouts::default();
        let (ann, _events) = caller("ann", false);
        let pairing = Pairing::with_house(7, &ann.fighter);
        let bout = bouts.join(pairing.clone(), ann).expect("new");
        bouts.fail(&bout, &Status::unavailable("no battle"));
        let (again, _events) = caller("ann", false);
        assert!(bouts.join(pairing, again).is_some());
    }

    #[test]
    fn matches_that_ended_are_kept_for_a_while_only() {
        let bouts = Bouts::default();
        for ticket in 0..2 * KEPT_MAX as u64 {
            let (ann, _events) = caller("ann", false);
            let pairing = Pairing::with_house(ticket, &ann.fighter);
            let bout = bouts.join(pairing, ann).expect("new");
            let outcome = Outcome {
                winner: "ann".into(),
                version: String::new(),
                rules: String::new(),
                legs: 1,
            };
            bouts.end(&bout, outcome);
        }
        assert_eq!(bouts.known().bouts.len(), KEPT_MAX);
    }
}
