//! What of a request keeps it together with others: hashed as Envoy hashes it, so that the same key is the same number
//! everywhere.

use std::net::IpAddr;

use phalanx_model::resource::HashOn;
use phalanx_relay::header::FieldError;
use phalanx_relay::{Field, HeaderList};

use xxhash_rust::xxh64::xxh64;

pub enum KeyPlan {
    /// With no value.
    Header(Field),
    Cookie {
        name: Box<str>,
        /// `cookie`, with no value.
        field: Field,
    },
    SourceIp,
}

impl KeyPlan {
    /// # Errors
    /// The name is none.
    pub fn new(on: &HashOn) -> Result<Self, FieldError> {
        Ok(match on {
            HashOn::Header(name) => Self::Header(Field::new(name, "")?),
            HashOn::Cookie(name) => {
                Field::new("set-cookie", &set_cookie(name, 0))?;
                Self::Cookie {
                    name: name.as_str().into(),
                    field: Field::new("cookie", "")?,
                }
            }
            HashOn::SourceIp => Self::SourceIp,
        })
    }

    /// The key's hash; and where there is none, of a cookie that is made now and goes with the answer.
    pub fn find(
        &self,
        headers: &HeaderList,
        peer: Option<IpAddr>,
        rng: &mut fastrand::Rng,
    ) -> (Option<u64>, Option<Field>) {
        match self {
            Self::Header(field) => {
                let value = headers.get(field.name());
                (value.map(|value| xxh64(value, 0)), None)
            }
            Self::Cookie { name, field } => {
                let mut values = headers.get_all(field.name());
                let known = values.find_map(|value| cookie(value, name.as_bytes()));
                if let Some(value) = known {
                    return (Some(xxh64(value, 0)), None);
                }
                let made = rng.u64(..);
                let field = Field::new("set-cookie", &set_cookie(name, made)).ok();
                (Some(xxh64(value_of(made).as_bytes(), 0)), field)
            }
            Self::SourceIp => {
                let text = peer.map(|peer| peer.to_canonical().to_string());
                (text.map(|text| xxh64(text.as_bytes(), 0)), None)
            }
        }
    }
}

/// The value of a cookie in a `cookie` field (RFC 6265 §4.2.1), without quotes.
pub fn cookie<'h>(field: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let pairs = field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let value = pairs
        .filter_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
        .next()?;
    let quoted = value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""));
    Some(quoted.unwrap_or(value))
}

fn value_of(made: u64) -> String {
    format!("{made:016x}")
}

/// For the client's session, unread by scripts.
fn set_cookie(name: &str, made: u64) -> String {
    format!("{name}=\"{}\"; Path=/; HttpOnly", value_of(made))
}

#[cfg(test)]
mod tests {
    use phalanx_relay::Value;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderList {
        let mut headers = HeaderList::new();
        for (name, value) in pairs {
            headers.push_field(&Field::new(name, value).unwrap());
        }
        headers
    }

    fn found(on: HashOn, pairs: &[(&str, &str)]) -> (Option<u64>, Option<String>) {
        let mut rng = fastrand::Rng::with_seed(1);
        let peer = Some("10.1.2.3".parse().unwrap());
        let key = KeyPlan::new(&on).unwrap();
        let (hash, cookie) = key.find(&headers(pairs), peer, &mut rng);
        let text = |field: Field| {
            let value: Value<'_> = field.value();
            String::from_utf8(value.as_bytes().to_vec()).unwrap()
        };
        (hash, cookie.map(text))
    }

    #[test]
    fn header_is_hashed_by_its_value() {
        let on = || HashOn::Header("x-room".into());
        assert_eq!(
            found(on(), &[("x-room", "7")]),
            (Some(xxh64(b"7", 0)), None)
        );
        assert_eq!(found(on(), &[("x-other", "7")]), (None, None));
    }

    #[test]
    fn cookie_is_found_among_others_and_made_where_it_is_missing() {
        let on = || HashOn::Cookie("room".into());
        for text in ["room=ab", "a=1; room=ab", "broom=x;room=\"ab\" ; c=2"] {
            let seen = found(on(), &[("cookie", text)]);
            assert_eq!(seen, (Some(xxh64(b"ab", 0)), None), "{text}");
        }
        let (hash, made) = found(on(), &[("cookie", "broom=1")]);
        let made = made.unwrap();
        let value = made.strip_prefix("room=\"").unwrap();
        let (value, rest) = value.split_once('"').unwrap();
        assert_eq!(rest, "; Path=/; HttpOnly");
        // The next request comes with it, and goes where this one went.
        let next = found(on(), &[("cookie", &format!("room={value}"))]);
        assert_eq!(next, (hash, None));
    }

    #[test]
    fn source_address_is_a_key() {
        let of = xxh64(b"10.1.2.3", 0);
        assert_eq!(found(HashOn::SourceIp, &[]), (Some(of), None));
    }
}
