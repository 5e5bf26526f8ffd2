//! Sessions that stay at one endpoint: the token in a cookie or header is the endpoint's address, so that nothing has to be
//! remembered, and whoever has the same rule understands it. It is Envoy's own form (`stateful_session`): base64 of the
//! address, or of a message with the address and when the token ends.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_model::resource::{Carrier, Session};
use phalanx_relay::header::FieldError;
use phalanx_relay::{Field, HeaderList};

use super::key::cookie;

pub struct SessionPlan {
    carrier: Carrier,
    name: Box<str>,
    /// Where requests have it: the header itself, or `cookie`; with no value.
    field: Field,
    absolute_s: Option<u64>,
    idle_s: Option<u64>,
}

/// What a request's token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub address: SocketAddr,
    /// Seconds since 1970 from which on the token means nothing; 0: none.
    expires_s: u64,
    /// When the session ends, however busy it is; 0: never, or with the token.
    ends_s: u64,
}

impl SessionPlan {
    /// # Errors
    /// The name is none.
    pub fn new(session: &Session) -> Result<Self, FieldError> {
        let field = match session.carrier {
            Carrier::Header => Field::new(&session.name, "")?,
            Carrier::Cookie | Carrier::PermanentCookie => {
                Field::new("set-cookie", &format!("{}=", session.name))?;
                Field::new("cookie", "")?
            }
        };
        Ok(Self {
            carrier: session.carrier,
            name: session.name.as_str().into(),
            field,
            absolute_s: session.absolute.map(|time| time.as_secs()),
            idle_s: session.idle.map(|time| time.as_secs()),
        })
    }

    /// The session that a request belongs to, unless that has ended.
    pub fn find(&self, headers: &HeaderList) -> Option<Held> {
        let token = match self.carrier {
            Carrier::Header => headers.get(self.field.name())?,
            Carrier::Cookie | Carrier::PermanentCookie => {
                let mut fields = headers.get_all(self.field.name());
                fields.find_map(|field| cookie(field, self.name.as_bytes()))?
            }
        };
        let held = read(token)?;
        let is_over = held.is_dated() && held.expires_s <= now_s();
        Some(held).filter(|_| !is_over)
    }

    /// What the client is to send from now on, having been served at `address`; none when what it `held` still holds.
    pub fn renewed(&self, held: Option<&Held>, address: SocketAddr) -> Option<Field> {
        let same = held.filter(|held| held.address == address);
        if same.is_some() && self.idle_s.is_none() {
            return None;
        }
        let is_timed = self.absolute_s.is_some() || self.idle_s.is_some();
        self.token(same, address, if is_timed { now_s() } else { 0 })
    }

    fn token(&self, same: Option<&Held>, address: SocketAddr, now_s: u64) -> Option<Field> {
        let ends = same.map(|held| held.ends_s).filter(|ends| *ends > 0);
        let ends = ends.or(self.absolute_s.map(|time| now_s.saturating_add(time)));
        let idle = self.idle_s.map(|time| now_s.saturating_add(time));
        let expires = [ends, idle].into_iter().flatten().min().unwrap_or(0);
        if same.is_some_and(|held| held.expires_s == expires) {
            return None;
        }
        let token = Held {
            address,
            expires_s: expires,
            ends_s: ends.filter(|_| idle.is_some()).unwrap_or(0),
        };
        match self.carrier {
            Carrier::Header => Field::new(&self.name, &token.plain()).ok(),
            Carrier::Cookie => self.cookie(&token, ""),
            Carrier::PermanentCookie => {
                let age = ends.unwrap_or(expires).saturating_sub(now_s);
                self.cookie(&token, &format!("; Max-Age={age}"))
            }
        }
    }

    fn cookie(&self, token: &Held, age: &str) -> Option<Field> {
        let (name, token) = (&self.name, token.message());
        let value = format!("{name}=\"{token}\"{age}; Path=/; HttpOnly");
        Field::new("set-cookie", &value).ok()
    }

    /// How the token goes into an answer: a cookie beside others, a header in place of another.
    pub fn answer(&self, token: &Field, headers: &mut HeaderList) {
        match self.carrier {
            Carrier::Header => headers.set_field(token),
            Carrier::Cookie | Carrier::PermanentCookie => headers.push_field(token),
        }
    }
}

impl Held {
    /// Envoy's own dates count from when its machine started: only it can read them.
    fn is_dated(&self) -> bool {
        self.expires_s >= SINCE_1970_MIN
    }

    /// The bare address while there is nothing else to say, which is all that Envoy takes in a header.
    fn plain(&self) -> String {
        match self.expires_s {
            0 => STANDARD.encode(self.address.to_string()),
            _ => self.message(),
        }
    }

    /// Protobuf: 1 the address, 2 and 3 the dates.
    fn message(&self) -> String {
        let address = self.address.to_string();
        let mut bytes = vec![ADDRESS, u8::try_from(address.len()).unwrap_or(0)];
        bytes.extend_from_slice(address.as_bytes());
        for (tag, date) in [(EXPIRES, self.expires_s), (ENDS, self.ends_s)] {
            if date > 0 {
                bytes.push(tag);
                put_varint(&mut bytes, date);
            }
        }
        STANDARD.encode(bytes)
    }
}

fn read(token: &[u8]) -> Option<Held> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let bytes = STANDARD.decode(token).ok()?;
    message(&bytes).or_else(|| {
        Some(Held {
            address: address(&bytes)?,
            expires_s: 0,
            ends_s: 0,
        })
    })
}

fn address(text: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn message(bytes: &[u8]) -> Option<Held> {
    let (mut found, mut expires_s, mut ends_s) = (None, 0, 0);
    let mut rest = bytes;
    while let Some((&tag, after)) = rest.split_first() {
        let (number, after) = varint(after)?;
        rest = after;
        match tag {
            ADDRESS => {
                let (text, after) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                found = Some(address(text)?);
                rest = after;
            }
            EXPIRES => expires_s = number,
            ENDS => ends_s = number,
            _ => return None,
        }
    }
    Some(Held {
        address: found?,
        expires_s,
        ends_s,
    })
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (place, byte) in bytes.iter().enumerate().take(VARINT_MAX) {
        number |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(place).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(place + 1..)?));
        }
    }
    None
}

fn now_s() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |unix| unix.as_secs())
}

/// Tags of a protobuf message: bytes, and two numbers.
const ADDRESS: u8 = 0x0a;
const EXPIRES: u8 = 0x10;
const ENDS: u8 = 0x18;
/// Bytes of a number.
const VARINT_MAX: usize = 10;
/// Bytes in base64: an address of IPv6 and two dates.
const TOKEN_MAX: usize = 256;
/// Dates before (2001) are none of ours.
const SINCE_1970_MIN: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn plan(carrier: Carrier, absolute: Option<u64>, idle: Option<u64>) -> SessionPlan {
        let session = Session {
            name: "room".into(),
            carrier,
            absolute: absolute.map(Duration::from_secs),
            idle: idle.map(Duration::from_secs),
        };
        SessionPlan::new(&session).unwrap()
    }

    fn address() -> SocketAddr {
        "127.0.0.1:15006".parse().unwrap()
    }

    fn text(field: &Field) -> String {
        String::from_utf8(field.value().as_bytes().to_vec()).unwrap()
    }

    fn token(set_cookie: &str) -> Held {
        let value = cookie(set_cookie.as_bytes(), b"room").unwrap();
        read(value).unwrap()
    }

    #[test]
    fn a_cookie_is_what_envoy_makes_of_the_same_address() {
        let plan = plan(Carrier::Cookie, None, None);
        let made = plan.token(None, address(), 0).unwrap();
        assert_eq!(
            text(&made),
            "room=\"Cg8xMjcuMC4wLjE6MTUwMDY=\"; Path=/; HttpOnly"
        );
        assert_eq!(token(&text(&made)).address, address());
    }

    #[test]
    fn a_header_is_the_bare_address() {
        let made = plan(Carrier::Header, None, None).token(None, address(), 0);
        assert_eq!(text(&made.unwrap()), STANDARD.encode("127.0.0.1:15006"));
    }

    #[test]
    fn a_permanent_cookie_says_how_long_it_lives() {
        let made = plan(Carrier::PermanentCookie, Some(60), None).token(None, address(), NOW_S);
        let made = text(&made.unwrap());
        assert!(made.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{made}");
        assert_eq!(token(&made).expires_s, NOW_S + 60);
    }

    #[test]
    fn a_busy_session_goes_on_until_its_absolute_end() {
        let plan = plan(Carrier::Cookie, Some(100), Some(30));
        let first = token(&text(&plan.token(None, address(), NOW_S).unwrap()));
        assert_eq!((first.expires_s, first.ends_s), (NOW_S + 30, NOW_S + 100));
        // In the same second there is nothing new to tell.
        assert_eq!(plan.token(Some(&first), address(), NOW_S), None);
        let later = plan.token(Some(&first), address(), NOW_S + 20).unwrap();
        let later = token(&text(&later));
        assert_eq!((later.expires_s, later.ends_s), (NOW_S + 50, NOW_S + 100));
        let last = plan.token(Some(&later), address(), NOW_S + 90).unwrap();
        assert_eq!(token(&text(&last)).expires_s, NOW_S + 100);
    }

    #[test]
    fn what_is_kept_is_not_told_again_and_what_moved_is() {
        let plan = plan(Carrier::Header, None, None);
        let held = read(STANDARD.encode("127.0.0.1:15006").as_bytes()).unwrap();
        assert_eq!(plan.renewed(Some(&held), address()), None);
        let other: SocketAddr = "[::1]:80".parse().unwrap();
        let moved = plan.renewed(Some(&held), other).unwrap();
        assert_eq!(read(text(&moved).as_bytes()).unwrap().address, other);
    }

    #[test]
    fn ended_tokens_and_dates_of_another_clock_are_told_apart() {
        let mut headers = HeaderList::new();
        let mut held = |expires_s| {
            let token = Held {
                address: address(),
                expires_s,
                ends_s: 0,
            };
            headers.clear();
            headers.push_field(&Field::new("room", &token.message()).unwrap());
            plan(Carrier::Header, Some(60), None).find(&headers)
        };
        assert_eq!(held(SINCE_1970_MIN + 1), None);
        assert!(held(now_s() + 60).is_some());
        assert!(
            held(12_345).is_some(),
            "seconds since Envoy's machine started"
        );
    }

    #[test]
    fn no_bytes_are_too_strange_to_be_read() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = vec![0; rng.usize(0..40)];
            rng.fill(&mut bytes);
            if rng.bool() && !bytes.is_empty() {
                bytes.splice(0..0, [ADDRESS, 14]);
            }
            let _ = message(&bytes);
            let _ = read(&bytes);
            let _ = read(STANDARD.encode(&bytes).as_bytes());
        }
        assert_eq!(read(&vec![b'A'; TOKEN_MAX + 4]), None);
    }
}
