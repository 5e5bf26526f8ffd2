//! Colours: what a request from outside is given at a trust edge (ColourPolicy), and the words for it. `x-env` picks a lane,
//! `x-canary-id` says whose request it is; both travel the whole way.
//!
//! An edge's rules are one line of words between data planes and the control plane ([`EdgeColours`] as text).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub use crate::name::{COLOUR_LEN_MAX, is_colour};

/// The header that carries a request's colour.
pub const COLOUR_HEADER: &str = "x-env";
/// The header that says whose request it is.
pub const CANARY_HEADER: &str = "x-canary-id";

/// Bytes of a canary id.
pub const CANARY_LEN_MAX: usize = 64;
/// Colours that have lanes, in one mesh.
pub const LANES_MAX: usize = 64;
/// Of one list of an edge's rules.
pub const RULES_MAX: usize = 64;

/// `[A-Za-z0-9._-]{1,64}`
pub fn is_canary_id(text: &[u8]) -> bool {
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    (1..=CANARY_LEN_MAX).contains(&text.len()) && text.iter().all(is_token)
}

/// What a trust edge makes of the two headers. Whatever it does not give is taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeColours {
    /// Colours that are taken from the request's own header; none: it is not looked at.
    pub taken: Vec<ColourPattern>,
    /// Else by the address of the connection's other end; the longest prefix decides.
    pub networks: Vec<(Network, String)>,
    /// Else this one.
    pub default: Option<String>,
    pub canary: CanaryId,
}

/// Where a canary id comes from: the header, else the cookie, else it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanaryId {
    /// Lower case; may be `x-canary-id` itself.
    pub header: Option<String>,
    pub cookie: Option<String>,
    pub generate: bool,
}

/// A colour, or what colours begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColourPattern {
    Exact(String),
    /// `dev-*`; empty: any colour.
    Prefix(String),
}

/// A range of addresses; bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

impl EdgeColours {
    /// The colour of a request from outside, by its header and the other end of its connection.
    pub fn colour<'a>(&'a self, header: Option<&'a [u8]>, peer: Option<IpAddr>) -> Option<&'a str> {
        let said = header.filter(|value| is_colour(value));
        let said = said.and_then(|value| std::str::from_utf8(value).ok());
        let said = said.filter(|value| self.taken.iter().any(|pattern| pattern.takes(value)));
        said.or_else(|| self.of_network(peer?))
            .or(self.default.as_deref())
    }

    fn of_network(&self, peer: IpAddr) -> Option<&str> {
        let holding = self.networks.iter().filter(|(net, _)| net.holds(peer));
        let narrowest = holding.max_by_key(|(net, _)| net.prefix);
        narrowest.map(|(_, colour)| colour.as_str())
    }

    /// Those that are written out, whose number is bounded by the document.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let taken = self.taken.iter().filter_map(|pattern| match pattern {
            ColourPattern::Exact(colour) => Some(colour.as_str()),
            ColourPattern::Prefix(_) => None,
        });
        let networks = self.networks.iter().map(|(_, colour)| colour.as_str());
        taken.chain(networks).chain(self.default.as_deref())
    }
}

impl ColourPattern {
    pub fn takes(&self, colour: &str) -> bool {
        match self {
            Self::Exact(own) => own == colour,
            Self::Prefix(prefix) => colour.starts_with(prefix.as_str()),
        }
    }
}

impl fmt::Display for ColourPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(colour) => f.write_str(colour),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl FromStr for ColourPattern {
    type Err = ColourError;

    fn from_str(text: &str) -> Result<Self, ColourError> {
        let wrong = || ColourError::Pattern(text.chars().take(SHOWN).collect());
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Prefix(String::new())),
            Some(prefix) if is_colour(prefix.as_bytes()) => Ok(Self::Prefix(prefix.to_owned())),
            None if is_colour(text.as_bytes()) => Ok(Self::Exact(text.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl Network {
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix).min(32);
                (u64::from(own.to_bits()) >> shift) == (u64::from(other.to_bits()) >> shift)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix).min(128);
                let cut = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
                cut(own.to_bits()) == cut(other.to_bits())
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = ColourError;

    /// `10.10.0.0/16`, `fd00::/8`, or an address alone.
    fn from_str(text: &str) -> Result<Self, ColourError> {
        let wrong = || ColourError::Network(text.chars().take(SHOWN).collect());
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" if !text.contains('/') => bits,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            _ => return Err(wrong()),
        };
        if prefix > bits {
            return Err(wrong());
        }
        let network = Self { address, prefix };
        let base = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        match base == address {
            true => Ok(network),
            false => Err(ColourError::Base(
                text.to_owned(),
                Self {
                    address: base,
                    prefix,
                },
            )),
        }
    }
}

/// Words between spaces; what has two parts has `=` between them.
impl fmt::Display for EdgeColours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.taken.iter().map(|pattern| format!("take={pattern}")));
        let networks = self.networks.iter();
        words.extend(networks.map(|(net, colour)| format!("net={net}={colour}")));
        words.extend(
            self.default
                .iter()
                .map(|colour| format!("default={colour}")),
        );
        let canary = &self.canary;
        words.extend(canary.header.iter().map(|name| format!("id-header={name}")));
        words.extend(canary.cookie.iter().map(|name| format!("id-cookie={name}")));
        words.extend(canary.generate.then(|| "id-made".to_owned()));
        f.write_str(&words.join(" "))
    }
}

impl FromStr for EdgeColours {
    type Err = ColourError;

    fn from_str(text: &str) -> Result<Self, ColourError> {
        let mut colours = Self::default();
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let wrong = || ColourError::Word(word.chars().take(SHOWN).collect());
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "take" => colours.taken.push(value.parse()?),
                "net" => {
                    let (network, colour) = value.split_once('=').ok_or_else(wrong)?;
                    let colour = Some(colour).filter(|colour| is_colour(colour.as_bytes()));
                    let colour = colour.ok_or_else(wrong)?.to_owned();
                    colours.networks.push((network.parse()?, colour));
                }
                "default" if is_colour(value.as_bytes()) => colours.default = Some(value.into()),
                "id-header" if !value.is_empty() => colours.canary.header = Some(value.into()),
                "id-cookie" if !value.is_empty() => colours.canary.cookie = Some(value.into()),
                "id-made" if value.is_empty() => colours.canary.generate = true,
                _ => return Err(wrong()),
            }
        }
        match colours.taken.len().max(colours.networks.len()) {
            0..=RULES_MAX => Ok(colours),
            _ => Err(ColourError::Many),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColourError {
    #[error(
        "`{0}` is no colour (a-z, 0-9 and -, at most 32), nor the beginning of one with a `*` behind it"
    )]
    Pattern(String),
    #[error("`{0}` is no network (like 10.10.0.0/16 or fd00::/8)")]
    Network(String),
    #[error("`{0}` has bits behind its prefix (write `{1}`)")]
    Base(String, Network),
    #[error("`{0}` is no rule for colours")]
    Word(String),
    #[error("more than {RULES_MAX} rules of one kind")]
    Many,
}

/// Characters of what was wrong.
const SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn colours(text: &str) -> EdgeColours {
        text.parse().unwrap()
    }

    #[test]
    fn the_header_is_taken_where_it_may_be_and_else_the_network_decides() {
        let rules = colours(
            "take=staging take=dev-* net=10.10.0.0/16=staging net=10.10.7.0/24=qa default=prod",
        );
        let of = |header: &str, peer: &str| {
            let header = Some(header.as_bytes()).filter(|header| !header.is_empty());
            rules
                .colour(header, peer.parse().ok())
                .map(str::to_owned)
                .unwrap()
        };
        assert_eq!(of("dev-li", "192.0.2.1"), "dev-li");
        assert_eq!(
            of("qa", "192.0.2.1"),
            "prod",
            "not among those that are taken"
        );
        assert_eq!(of("", "10.10.3.4"), "staging");
        assert_eq!(of("", "::ffff:10.10.3.4"), "staging");
        assert_eq!(of("", "10.10.7.4"), "qa", "the narrower network");
        assert_eq!(of("dev-LI", "10.11.0.1"), "prod", "no colour at all");
        assert_eq!(of("dev-", "fd00::1"), "dev-");
    }

    #[test]
    fn without_rules_nothing_is_given() {
        assert_eq!(EdgeColours::default().colour(Some(b"dev"), None), None);
        assert_eq!(colours("take=*").colour(Some(b"dev"), None), Some("dev"));
        let long = [b'a'; COLOUR_LEN_MAX + 1];
        assert_eq!(colours("take=*").colour(Some(&long), None), None);
    }

    #[test]
    fn rules_survive_their_text() {
        let text = "take=staging take=dev-* net=10.10.0.0/16=staging net=fd00::/8=lab default=prod id-header=x-user id-cookie=uid id-made";
        assert_eq!(colours(text).to_string(), text);
        assert_eq!(colours(""), EdgeColours::default());
        for wrong in [
            "take",
            "take=A",
            "net=10.0.0.0/8",
            "net=10.0.0.1/8=a",
            "net=10.0.0.0/33=a",
            "default=",
            "x=1",
            "id-made=2",
        ] {
            assert!(wrong.parse::<EdgeColours>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_hold_what_their_prefix_covers() {
        let holds = |net: &str, address: &str| {
            let net: Network = net.parse().unwrap();
            net.holds(address.parse().unwrap())
        };
        assert!(holds("0.0.0.0/0", "255.1.2.3") && holds("::/0", "fd00::1"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3/32", "10.1.2.2"));
        assert!(!holds("0.0.0.0/0", "::1") && !holds("fd00::/8", "fe00::1"));
        assert_eq!(
            "10.1.2.3/8".parse::<Network>().unwrap_err().to_string(),
            "`10.1.2.3/8` has bits behind its prefix (write `10.0.0.0/8`)"
        );
    }
}
