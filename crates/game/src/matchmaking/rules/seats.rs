//! Who sits where: players to seats that ask for roles, by augmenting paths (Kuhn). Exact: if the players that were taken
//! and the next one can be seated at all, the next one is taken. A party's players are bound to a team, one who came alone
//! may be moved to another team to make room.

use crate::matchmaking::rules::MATCH_PLAYERS_MAX;
use crate::matchmaking::ticket::ROLES_MAX;

/// Of a player who may sit in every team.
pub(crate) const ANY_TEAM: u8 = u8::MAX;

const FREE: u8 = u8::MAX;

/// Seats of one or several teams and who sits there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seating {
    /// Team and role of each seat.
    seats: Vec<(u8, u8)>,
    /// Of each seat: a player, by his place in `players`, or [`FREE`].
    taken: Vec<u8>,
    /// Roles and team of each.
    players: Vec<(u8, u8)>,
    /// Seats looked at since the start.
    pub looked: u64,
}

impl Seating {
    /// One team (0) with these seats.
    pub fn team(roles: &[u8]) -> Self {
        let mut seating = Self::default();
        seating.reset(1, roles);
        seating
    }

    /// Empties everything and sets up `teams` teams of the same seats.
    pub fn reset(&mut self, teams: usize, roles: &[u8]) {
        self.clear();
        for team in 0..teams {
            for role in roles {
                self.open(team as u8, *role);
            }
        }
    }

    pub fn clear(&mut self) {
        self.seats.clear();
        self.taken.clear();
        self.players.clear();
    }

    /// One more seat; seats beyond [`MATCH_PLAYERS_MAX`] are left out.
    pub fn open(&mut self, team: u8, role: u8) {
        if self.seats.len() < MATCH_PLAYERS_MAX {
            self.seats.push((team, role));
            self.taken.push(FREE);
        }
    }

    pub fn len(&self) -> usize {
        self.players.len()
    }

    pub fn is_full(&self) -> bool {
        self.players.len() == self.seats.len()
    }

    /// Takes the player if there is a way to seat him and all before him. Roles 0: every role.
    pub fn add(&mut self, roles: u8, team: u8) -> bool {
        if self.is_full() {
            return false;
        }
        let player = self.players.len() as u8;
        self.players.push((roles, team));
        let mut seen = 0_u128;
        if self.seat(player, &mut seen) {
            return true;
        }
        self.players.pop();
        false
    }

    /// Takes all of a party into `team`, or none.
    pub fn add_party(&mut self, roles: impl Iterator<Item = u8>, team: u8) -> bool {
        let before = self.players.len();
        for roles in roles {
            if !self.add(roles, team) {
                self.shrink(before);
                return false;
            }
        }
        true
    }

    /// Takes the players that came after the first `count` away.
    pub fn shrink(&mut self, count: usize) {
        self.players.truncate(count);
        for taken in &mut self.taken {
            if *taken != FREE && usize::from(*taken) >= count {
                *taken = FREE;
            }
        }
    }

    /// Team and role of each player's seat, in the order in which they were added.
    pub fn places(&self) -> Vec<(u8, Option<u8>)> {
        let mut places = vec![(0, None); self.players.len()];
        for (taken, (team, role)) in self.taken.iter().zip(&self.seats) {
            if let Some(place) = places.get_mut(usize::from(*taken)) {
                *place = (*team, (usize::from(*role) < ROLES_MAX).then_some(*role));
            }
        }
        places
    }

    fn seat(&mut self, player: u8, seen: &mut u128) -> bool {
        let (roles, bound) = self.players[usize::from(player)];
        let fits = |(team, role): (u8, u8)| {
            (bound == ANY_TEAM || bound == team)
                && (roles == 0 || usize::from(role) >= ROLES_MAX || roles & (1 << role) != 0)
        };
        self.looked += self.seats.len() as u64;
        for at in 0..self.seats.len() {
            if self.taken[at] == FREE && fits(self.seats[at]) {
                self.taken[at] = player;
                return true;
            }
        }
        for at in 0..self.seats.len() {
            if *seen & (1 << at) != 0 || self.taken[at] == FREE || !fits(self.seats[at]) {
                continue;
            }
            *seen |= 1 << at;
            let other = self.taken[at];
            if self.seat(other, seen) {
                self.taken[at] = player;
                return true;
            }
        }
        false
    }
}

const _: () = assert!(MATCH_PLAYERS_MAX < FREE as usize && MATCH_PLAYERS_MAX <= 128);

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u8 = ROLES_MAX as u8;

    #[test]
    fn a_later_player_moves_an_earlier_one_to_another_role() {
        let mut team = Seating::team(&[0, 1]);
        assert!(team.add(0b11, ANY_TEAM));
        assert!(team.add(0b01, ANY_TEAM));
        assert_eq!(team.places(), [(0, Some(1)), (0, Some(0))]);
        assert!(!team.add(0, ANY_TEAM), "both seats are taken");
    }

    #[test]
    fn a_party_is_taken_whole_or_not_at_all() {
        let mut team = Seating::team(&[0, 1, 1]);
        assert!(team.add(0b01, ANY_TEAM));
        assert!(!team.add_party([0b10, 0b01].into_iter(), 0));
        assert_eq!(team.len(), 1);
        assert!(team.add_party([0b10, 0b10].into_iter(), 0));
        assert!(team.is_full());
    }

    #[test]
    fn one_who_came_alone_makes_room_for_a_party_by_changing_teams() {
        let mut teams = Seating::default();
        teams.reset(2, &[ALL, ALL]);
        assert!(teams.add(0, ANY_TEAM));
        assert!(teams.add_party([0, 0].into_iter(), 0));
        assert_eq!(teams.places(), [(1, None), (0, None), (0, None)]);
        assert!(!teams.add_party([0, 0].into_iter(), 1));
        assert!(teams.add(0, ANY_TEAM));
    }

    #[test]
    fn what_is_seated_agrees_with_trying_every_order() {
        let mut dice = crate::dice::Dice::new(11);
        for _ in 0..300 {
            let roles: Vec<u8> = (0..4).map(|_| dice.below(4).min(2) as u8).collect();
            let seats: Vec<u8> = roles
                .iter()
                .map(|r| if *r == 2 { ALL } else { *r })
                .collect();
            let players: Vec<u8> = (0..4).map(|_| dice.below(4) as u8).collect();
            let mut team = Seating::team(&seats);
            let taken = players.iter().all(|player| team.add(*player, ANY_TEAM));
            assert_eq!(taken, brute(&seats, &players, 0), "{seats:?} {players:?}");
        }
    }

    fn brute(seats: &[u8], players: &[u8], used: u32) -> bool {
        let Some((first, rest)) = players.split_first() else {
            return true;
        };
        (0..seats.len()).any(|at| {
            let fits = *first == 0 || seats[at] == ALL || first & (1 << seats[at]) != 0;
            used & (1 << at) == 0 && fits && brute(seats, rest, used | 1 << at)
        })
    }
}
