//! Who meets whom in developers' lanes: a search of the game kit for each colour; besides, the house's fighters, and what a
//! result does to a rating. No I/O. A lane's players are bound to the call that brought them, and nothing of this outlives
//! the process: few play there, and who is interrupted asks again.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_game::matchmaking::rating::{self, Rating, Scale};
use phalanx_game::matchmaking::rules::{
    Brownout, MatchRules, RatingRules, RulesSpec, TickRules, Widening,
};
use phalanx_game::matchmaking::search::{Proposal, Search};
use phalanx_game::matchmaking::ticket::{self, Latency, Problems, TicketId};

use crate::proto::arena::v1::Fighter;

/// Players who wait at the same time, and colours that they come in.
const WAITING_MAX: usize = 4096;
const COLOURS_MAX: usize = 16;
/// Difference in rating that is fine.
const WINDOW: f64 = 100.0;
/// Between ticks nobody has time to become patient: a tick follows each arrival.
const OPERATIONS: u64 = 100_000;

pub const RATING_MIN: u32 = 100;
pub const RATING_MAX: u32 = 3000;
/// How sure a rating is, always, and what a difference means: a win over an equal is worth 16 points.
pub const SIGMA: f64 = 100.0;
const SCALE: Scale = Scale { beta: 200.0 };

const HOUSE: [(&str, u32); 8] = [
    ("house-straw-man", 700),
    ("house-doorman", 850),
    ("house-brawler", 950),
    ("house-sergeant", 1000),
    ("house-duellist", 1050),
    ("house-veteran", 1150),
    ("house-champion", 1300),
    ("house-legend", 1600),
];

/// What the lobby has to know of somebody who waits.
pub trait Player {
    fn name(&self) -> &str;
    fn rating(&self) -> u32;
    /// Who plays by other rules than the rest meets only those who do too.
    fn colour(&self) -> &[u8];
    /// Nobody waits for this player's match any more.
    fn left(&self) -> bool;
}

/// A player who came in, and whom this brought together: the one who waited longer first.
pub type Entered<P> = (TicketId, Vec<(P, P)>);

pub struct Lobby<P> {
    rules: Arc<MatchRules>,
    colours: HashMap<Box<[u8]>, Search>,
    waiting: HashMap<TicketId, Waiting<P>>,
    arrivals: u64,
}

struct Waiting<P> {
    player: P,
    ticket: Arc<ticket::Ticket>,
}

impl<P: Player> Lobby<P> {
    pub fn try_new() -> Result<Self, Problems> {
        let mut rules = RulesSpec::simple(2, 1, "arena", 1);
        rules.rating = ratings();
        rules.tick = TickRules {
            operations: OPERATIONS,
            ..TickRules::default()
        };
        Ok(Self {
            rules: Arc::new(rules.check()?),
            colours: HashMap::new(),
            waiting: HashMap::new(),
            arrivals: 0,
        })
    }

    /// Lets a player in, unless there is no room. `now_ms`: since any fixed start.
    pub fn enter(&mut self, player: P, now_ms: u64) -> Option<Entered<P>> {
        if self.waiting.len() >= WAITING_MAX || !self.has_room_for(player.colour()) {
            return None;
        }
        self.arrivals += 1;
        let id = TicketId(self.arrivals);
        let ticket = Arc::new(ticket::Ticket {
            id,
            players: vec![ticket::Player {
                id: self.arrivals,
                rating: Rating::new(f64::from(player.rating()), SIGMA),
                roles: ticket::Roles::default(),
                latency_ms: Latency::of(&[0]),
            }],
            enqueued_ms: now_ms,
        });
        let colour: Box<[u8]> = player.colour().into();
        // Nobody meets themselves: who waits already under that name waits for the house alone.
        let twice = self.waits(&player);
        let waiting = Waiting {
            player,
            ticket: ticket.clone(),
        };
        self.waiting.insert(id, waiting);
        if twice {
            return Some((id, Vec::new()));
        }
        let rules = &self.rules;
        let search = self
            .colours
            .entry(colour.clone())
            .or_insert_with(|| Search::new(rules.clone()));
        if let Err(error) = search.insert(ticket) {
            tracing::warn!(%error, "waits for the house alone");
        }
        Some((id, self.meet(&colour, now_ms)))
    }

    /// Takes a player out. None: met somebody before.
    pub fn leave(&mut self, id: TicketId) -> Option<P> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(search) = self.colours.get_mut(waiting.player.colour()) {
            search.remove(id);
        }
        Some(waiting.player)
    }

    /// Whether the player still waits.
    pub fn holds(&self, id: TicketId) -> bool {
        self.waiting.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Until nobody is left who could meet. A proposal with somebody who left fails, and the other waits on from when he
    /// came.
    fn meet(&mut self, colour: &[u8], now_ms: u64) -> Vec<(P, P)> {
        let mut met = Vec::new();
        let budget = self.rules.budget(Brownout::Off);
        loop {
            let mut proposals = Vec::new();
            let Some(search) = self.colours.get_mut(colour) else {
                return met;
            };
            search.tick(now_ms, budget, &mut proposals);
            if proposals.is_empty() {
                return met;
            }
            for proposal in proposals {
                met.extend(self.take(colour, &proposal));
            }
        }
    }

    fn take(&mut self, colour: &[u8], proposal: &Proposal) -> Option<(P, P)> {
        let taken = proposal.tickets().filter_map(|id| self.waiting.remove(&id));
        let (mut here, left): (Vec<_>, Vec<_>) = taken.partition(|one| !one.player.left());
        here.sort_by_key(|waiting| waiting.ticket.id);
        if left.is_empty()
            && let Ok([one, other]) = <[Waiting<P>; 2]>::try_from(std::mem::take(&mut here))
        {
            return Some((one.player, other.player));
        }
        for waiting in here {
            let ticket = waiting.ticket.clone();
            self.waiting.insert(ticket.id, waiting);
            if let Some(search) = self.colours.get_mut(colour) {
                // It was in the search a moment ago, and there is room for one less.
                let _ = search.insert(ticket);
            }
        }
        None
    }

    fn waits(&self, player: &P) -> bool {
        let mut others = self.waiting.values().map(|waiting| &waiting.player);
        others.any(|other| other.name() == player.name() && other.colour() == player.colour())
    }

    fn has_room_for(&mut self, colour: &[u8]) -> bool {
        if !self.colours.contains_key(colour) && self.colours.len() >= COLOURS_MAX {
            self.colours.retain(|_, search| !search.is_empty());
        }
        self.colours.contains_key(colour) || self.colours.len() < COLOURS_MAX
    }
}

/// How ratings are compared, in lanes and in the queue.
pub fn ratings() -> RatingRules {
    RatingRules {
        // All ratings are as sure as one another.
        conservative: 0.0,
        window: Widening::fixed(WINDOW),
        floor: 0.0,
        ceiling: f64::from(RATING_MAX),
        ..RatingRules::default()
    }
}

/// The house's fighter nearest to a rating.
pub fn house(rating: u32) -> Fighter {
    let nearest = HOUSE.iter().min_by_key(|(_, own)| own.abs_diff(rating));
    let (player, rating) = nearest.copied().unwrap_or(("house", 1000));
    Fighter {
        player: player.to_string(),
        rating,
    }
}

/// A rating after a match against another one.
pub fn rated(own: u32, other: u32, won: bool) -> u32 {
    let of = |rating: u32| vec![Rating::new(f64::from(rating), SIGMA)];
    let places = if won { [1, 2] } else { [2, 1] };
    let after = rating::update(&[of(own), of(other)], &places, &SCALE);
    let after = after
        .ok()
        .and_then(|teams| Some(teams.first()?.first()?.mu));
    let after = after.unwrap_or(f64::from(own)).round();
    after.clamp(f64::from(RATING_MIN), f64::from(RATING_MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Someone(&'static str, u32, bool);

    impl Player for Someone {
        fn name(&self) -> &str {
            self.0
        }
        fn rating(&self) -> u32 {
            self.1
        }
        fn colour(&self) -> &[u8] {
            let colour = self.0.split_once('@').map_or("", |(_, colour)| colour);
            colour.as_bytes()
        }
        fn left(&self) -> bool {
            self.2
        }
    }

    fn lobby() -> Lobby<Someone> {
        Lobby::try_new().unwrap()
    }

    fn waits(lobby: &mut Lobby<Someone>, name: &'static str, rating: u32) -> TicketId {
        let (id, met) = lobby.enter(Someone(name, rating, false), 1).unwrap();
        assert!(met.is_empty(), "{met:?}");
        id
    }

    #[test]
    fn the_nearest_in_the_window_is_met_and_the_others_wait_on() {
        let mut lobby = lobby();
        waits(&mut lobby, "low", 700);
        waits(&mut lobby, "near", 960);
        let far = waits(&mut lobby, "far", 1390);
        let (_, met) = lobby.enter(Someone("new", 1000, false), 2).unwrap();
        assert_eq!(met.len(), 1);
        assert_eq!((met[0].0.0, met[0].1.0), ("near", "new"));
        assert_eq!(lobby.leave(far).unwrap().0, "far");
        assert!(lobby.leave(far).is_none());
        assert_eq!(lobby.len(), 1);
    }

    #[test]
    fn nobody_meets_themselves_and_who_left_is_forgotten() {
        let mut lobby = lobby();
        lobby.enter(Someone("gone", 1000, true), 1).unwrap();
        waits(&mut lobby, "ann", 1000);
        waits(&mut lobby, "ann", 1000);
        assert_eq!(lobby.len(), 2, "whoever was gone was let go");
        let (_, met) = lobby.enter(Someone("bob", 1000, false), 2).unwrap();
        assert_eq!(met.len(), 1);
        assert_eq!((met[0].0.0, met[0].1.0), ("ann", "bob"));
    }

    #[test]
    fn the_lobby_is_bounded_in_players_and_colours() {
        let mut lobby = lobby();
        for rating in 0..WAITING_MAX as u32 {
            // Whoever waits already under a name is not searched for.
            waits(&mut lobby, "p", rating);
        }
        assert!(lobby.enter(Someone("q", 100, false), 1).is_none());
        assert!(lobby.colours.len() <= COLOURS_MAX);
    }

    #[test]
    fn players_of_other_colours_never_meet() {
        let mut lobby = lobby();
        waits(&mut lobby, "ann", 1000);
        waits(&mut lobby, "ben@dev", 1000);
        let (_, met) = lobby.enter(Someone("cat@dev", 1000, false), 2).unwrap();
        assert_eq!(met[0].0.0, "ben@dev");
    }

    #[test]
    fn a_win_over_an_equal_is_worth_sixteen_points_and_what_one_wins_the_other_loses() {
        assert_eq!(
            (rated(1000, 1000, true), rated(1000, 1000, false)),
            (1016, 984)
        );
        for other in [700, 990, 1250] {
            assert_eq!(
                rated(1000, other, true) + rated(other, 1000, false),
                1000 + other
            );
        }
        assert!(rated(1000, 1300, true) > rated(1000, 700, true));
        assert_eq!(rated(RATING_MIN, 100, false), RATING_MIN);
        assert_eq!(house(1040).player, "house-duellist");
    }
}
