//! Who meets whom: a queue ordered by rating, the house's fighters, and what a result does to a rating. No I/O.

use std::collections::BTreeMap;

use crate::proto::arena::v1::Fighter;

/// Players who wait at the same time.
const WAITING_MAX: usize = 4096;
/// Difference in rating that is fine at once, and after the wait.
const WINDOW: u32 = 50;
const WINDOW_LATE: u32 = 150;
/// Neighbours that are looked at on each side.
const NEIGHBOURS_MAX: usize = 4;

/// Elo's factor for how far one match moves a rating.
const ELO_K: f64 = 32.0;
pub const RATING_MIN: u32 = 100;
pub const RATING_MAX: u32 = 3000;

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

/// What the queue has to know of somebody who waits.
pub trait Player {
    fn name(&self) -> &str;
    fn rating(&self) -> u32;
    /// Who plays by other rules than the rest meets only those who do too.
    fn colour(&self) -> &[u8];
    /// Nobody waits for this player's match any more.
    fn left(&self) -> bool;
}

/// By rating, then by arrival.
pub type Place = (u32, u64);

pub struct Queue<P> {
    waiting: BTreeMap<Place, P>,
    arrivals: u64,
}

impl<P> Default for Queue<P> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }
}

pub enum Queued<P> {
    /// The one who waited longer first.
    Paired(P, P),
    Waits(Place),
    Full,
}

impl<P: Player> Queue<P> {
    /// Pairs a newcomer with the nearest neighbour in the window, or lets it wait.
    pub fn enter(&mut self, player: P) -> Queued<P> {
        if let Some(partner) = self.nearest(&player, WINDOW) {
            return Queued::Paired(partner, player);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Queued::Full;
        }
        self.arrivals += 1;
        let place = (player.rating(), self.arrivals);
        self.waiting.insert(place, player);
        Queued::Waits(place)
    }

    /// Takes a player out after the wait, with a partner from further away if there is one. None: paired before.
    pub fn leave(&mut self, place: Place) -> Option<(P, Option<P>)> {
        let player = self.waiting.remove(&place)?;
        let partner = self.nearest(&player, WINDOW_LATE);
        Some((player, partner))
    }

    fn nearest(&mut self, player: &P, window: u32) -> Option<P> {
        let rating = player.rating();
        let fits = |(place, other): &(&Place, &P)| {
            place.0.abs_diff(rating) <= window
                && !other.left()
                && other.name() != player.name()
                && other.colour() == player.colour()
        };
        let below = self
            .waiting
            .range(..(rating, 0))
            .rev()
            .take(NEIGHBOURS_MAX)
            .find(fits);
        let above = self
            .waiting
            .range((rating, 0)..)
            .take(NEIGHBOURS_MAX)
            .find(fits);
        let nearest = below
            .into_iter()
            .chain(above)
            .min_by_key(|(place, _)| place.0.abs_diff(rating));
        let place = *nearest?.0;
        self.waiting.remove(&place)
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

/// A rating after a match against another one (Elo).
pub fn rated(own: u32, other: u32, won: bool) -> u32 {
    let expected = 1.0 / (1.0 + 10f64.powf((f64::from(other) - f64::from(own)) / 400.0));
    let change = ELO_K * (f64::from(u8::from(won)) - expected);
    (f64::from(own) + change.round()).clamp(f64::from(RATING_MIN), f64::from(RATING_MAX)) as u32
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

    fn waits(queue: &mut Queue<Someone>, player: Someone) -> Place {
        match queue.enter(player) {
            Queued::Waits(place) => place,
            Queued::Paired(a, b) => panic!("{a:?} met {b:?}"),
            Queued::Full => panic!("full"),
        }
    }

    #[test]
    fn the_nearest_in_the_window_is_met_and_the_others_wait_on() {
        let mut queue = Queue::default();
        waits(&mut queue, Someone("low", 700, false));
        waits(&mut queue, Someone("near", 960, false));
        let far = waits(&mut queue, Someone("far", 1390, false));
        let Queued::Paired(seed, newcomer) = queue.enter(Someone("new", 1000, false)) else {
            panic!("not paired")
        };
        assert_eq!((seed.0, newcomer.0), ("near", "new"));
        assert!(
            matches!(queue.leave(far), Some((Someone("far", ..), None))),
            "low is too far away"
        );
    }

    #[test]
    fn after_the_wait_the_window_is_wider() {
        let mut queue = Queue::default();
        let first = waits(&mut queue, Someone("ann", 1000, false));
        let second = waits(&mut queue, Someone("bob", 1120, false));
        let (ann, bob) = queue.leave(first).unwrap();
        assert_eq!((ann.0, bob.unwrap().0), ("ann", "bob"));
        assert!(queue.leave(second).is_none());
    }

    #[test]
    fn nobody_meets_themselves_or_someone_who_left() {
        let mut queue = Queue::default();
        waits(&mut queue, Someone("gone", 1000, true));
        waits(&mut queue, Someone("ann", 1000, false));
        waits(&mut queue, Someone("ann", 1000, false));
        assert_eq!(queue.waiting.len(), 3);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = Queue::default();
        for rating in 0..WAITING_MAX as u32 {
            waits(&mut queue, Someone("p", rating * 200, false));
        }
        assert!(matches!(
            queue.enter(Someone("p", 100, false)),
            Queued::Full
        ));
    }

    #[test]
    fn players_of_other_colours_never_meet() {
        let mut queue = Queue::default();
        waits(&mut queue, Someone("ann", 1000, false));
        waits(&mut queue, Someone("ben@dev", 1000, false));
        match queue.enter(Someone("cat@dev", 1000, false)) {
            Queued::Paired(first, _) => assert_eq!(first.0, "ben@dev"),
            _ => panic!("nobody met"),
        }
    }

    #[test]
    fn a_win_over_an_equal_is_worth_half_the_factor() {
        assert_eq!(
            (rated(1000, 1000, true), rated(1000, 1000, false)),
            (1016, 984)
        );
        assert_eq!(rated(RATING_MIN, 100, false), RATING_MIN);
        assert_eq!(house(1040).player, "house-duellist");
    }
}
