//! How numbers, texts and tickets stand in entries and snapshots. Everything is read with bounds; what isn't whole, too
//! long or out of bounds is `None`, never a panic.

use super::{TEAMS_MAX, entry::Seating};
use crate::matchmaking::{
    rating::Rating,
    rules::MATCH_PLAYERS_MAX,
    search::Quality,
    ticket::{
        Latency, OpenSeats, PARTY_MAX, Player, REGIONS_MAX, ROLES_MAX, RegionIndex, Roles, Ticket,
        TicketId,
    },
};

/// Variable-length integers: seven bits a byte, lowest first.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub fn put_fixed(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub fn put_float(out: &mut Vec<u8>, number: f64) {
    put_fixed(out, number.to_bits());
}

pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub fn put_ticket(out: &mut Vec<u8>, ticket: &Ticket) {
    put_fixed(out, ticket.id.0);
    put_number(out, ticket.enqueued_ms);
    put_number(out, ticket.players.len() as u64);
    for player in &ticket.players {
        put_fixed(out, player.id);
        put_float(out, player.rating.mu);
        put_float(out, player.rating.sigma);
        out.push(player.roles.0);
        put_latency(out, &player.latency_ms);
    }
}

fn put_latency(out: &mut Vec<u8>, latency: &Latency) {
    let regions = (0..REGIONS_MAX as u8).map(RegionIndex);
    let measured = |region: &RegionIndex| latency.to(*region).is_some();
    let mask = regions
        .clone()
        .filter(measured)
        .fold(0_u16, |mask, region| mask | 1 << region.0);
    out.extend_from_slice(&mask.to_le_bytes());
    for value in regions.filter_map(|region| latency.to(region)) {
        put_number(out, u64::from(value));
    }
}

pub fn put_seats(out: &mut Vec<u8>, open: &[OpenSeats]) {
    put_number(out, open.len() as u64);
    for seats in open {
        put_number(out, seats.roles.len() as u64);
        out.extend_from_slice(&seats.roles);
        out.push(seats.any);
    }
}

/// A role is its place; 255 is a seat that takes everybody.
pub fn put_seating(out: &mut Vec<u8>, teams: &[Vec<Option<u8>>]) {
    put_number(out, teams.len() as u64);
    for team in teams {
        put_number(out, team.len() as u64);
        out.extend(team.iter().map(|role| role.unwrap_or(u8::MAX)));
    }
}

pub fn put_quality(out: &mut Vec<u8>, quality: &Quality) {
    put_number(out, u64::from(quality.score));
    put_number(out, u64::from(quality.spread_milli));
    put_number(out, u64::from(quality.imbalance_milli));
    put_number(out, u64::from(quality.latency_ms));
    put_number(out, quality.waited_ms);
}

/// Reads from the start of foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    pub fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A number of things that follow, each of at least one byte.
    pub fn count(&mut self, most: usize) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= most && count <= self.0.len()).then_some(count)
    }

    pub fn fixed(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    pub fn float(&mut self) -> Option<f64> {
        self.fixed().map(f64::from_bits)
    }

    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    pub fn text(&mut self, most: usize) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        if length > most {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    pub fn list<T>(
        &mut self,
        most: usize,
        mut one: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let count = self.count(most)?;
        (0..count).map(|_| one(self)).collect()
    }

    pub fn ticket(&mut self) -> Option<Ticket> {
        let id = TicketId(self.fixed()?);
        let enqueued_ms = self.number()?;
        let players = self.list(PARTY_MAX, Self::player)?;
        Some(Ticket {
            id,
            players,
            enqueued_ms,
        })
    }

    fn player(&mut self) -> Option<Player> {
        let id = self.fixed()?;
        let (mu, sigma) = (self.float()?, self.float()?);
        let roles = Roles(self.byte()?);
        let (low, high) = (self.byte()?, self.byte()?);
        let mask = u16::from_le_bytes([low, high]);
        let mut latency_ms = Latency::NONE;
        for region in 0..REGIONS_MAX as u8 {
            if mask & 1 << region != 0 {
                let value = u16::try_from(self.number()?).ok()?;
                latency_ms.set(RegionIndex(region), Some(value));
            }
        }
        Some(Player {
            id,
            rating: Rating { mu, sigma },
            roles,
            latency_ms,
        })
    }

    pub fn seating(&mut self) -> Option<Seating> {
        let role = |reader: &mut Self| Some(Some(reader.byte()?).filter(|&role| role != u8::MAX));
        self.list(TEAMS_MAX, |reader| reader.list(MATCH_PLAYERS_MAX, role))
    }

    pub fn quality(&mut self) -> Option<Quality> {
        Some(Quality {
            score: self.number()?.try_into().ok()?,
            spread_milli: self.number()?.try_into().ok()?,
            imbalance_milli: self.number()?.try_into().ok()?,
            latency_ms: self.number()?.try_into().ok()?,
            waited_ms: self.number()?,
        })
    }

    pub fn seats(&mut self, teams_max: usize) -> Option<Vec<OpenSeats>> {
        self.list(teams_max, |reader| {
            let roles = reader.list(ROLES_MAX, Self::byte)?;
            let any = reader.byte()?;
            Some(OpenSeats { roles, any })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_overlong_ones_are_refused() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(Reader(&out).number(), Some(number));
        }
        assert_eq!(Reader(&[0xff; 10]).number(), None);
        assert_eq!(Reader(&[0x80; 11]).number(), None);
        assert_eq!(Reader(&[]).number(), None);
        assert_eq!(Reader(&[200]).count(500), None);
    }

    #[test]
    fn a_ticket_reads_back_bit_for_bit() {
        let mut latency_ms = Latency::of(&[20, 65_535]);
        latency_ms.set(RegionIndex(15), Some(300));
        let player = Player {
            id: u64::MAX,
            rating: Rating {
                mu: 25.123_456_789,
                sigma: 1.0 / 3.0,
            },
            roles: Roles::of(&[0, 7]),
            latency_ms,
        };
        let ticket = Ticket {
            id: TicketId(7),
            players: vec![player.clone(), Player { id: 2, ..player }],
            enqueued_ms: 1_900_000_000_000,
        };
        let mut out = Vec::new();
        put_ticket(&mut out, &ticket);
        assert_eq!(Reader(&out).ticket(), Some(ticket));
        for length in 0..out.len() {
            assert_eq!(Reader(&out[..length]).ticket(), None, "{length}");
        }
    }
}
