//! Datagrams: what a UDP socket of a data plane takes, and where that leads.
//!
//! A *session* is all that one peer (address and port) sends to one socket; it keeps its endpoint until it was idle for a
//! while. A *token* in each datagram may name the endpoint instead (Quilkin's way), whatever address it comes from.

use std::time::Duration;

use super::colour::Network;
use super::gateway::Share;

/// Begins the names of the listeners of sidecars: `udp/<address>`. Those of an edge are `gateway/<namespace>/<name>/udp/<address>`.
pub const UDP: &str = "udp/";

/// What follows from a datagram that comes to a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPort {
    /// `UDPRoute/<namespace>/<name>` or `Service/<namespace>/<name>`: where it came from.
    pub name: String,
    /// By weight, none of which is 0; what falls to a share without a cluster is dropped. Empty: everything is.
    pub backends: Vec<Share>,
    /// Instead of them, for sources in a network; the narrowest that holds one decides. Each once.
    pub by_source: Vec<(Network, Vec<Share>)>,
    pub rules: UdpRules,
}

/// BackendPolicy's `udp`, with defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpRules {
    /// A session without a datagram in either direction ends after this. 1 s to 1 h.
    pub idle_timeout: Duration,
    pub token: Option<Token>,
    pub limits: UdpLimits,
}

impl Default for UdpRules {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60),
            token: None,
            limits: UdpLimits::default(),
        }
    }
}

/// The bytes of each datagram that name an endpoint: by the session directory, else by the instance's label [`TOKEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub at: TokenAt,
    /// In bytes, 1 to [`TOKEN_MAX`].
    pub len: u8,
    /// Whether it is cut off before the endpoint gets the datagram.
    pub strip: bool,
    /// Datagrams whose token leads nowhere are dropped; else they go by weight, as if there were no tokens.
    pub required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAt {
    /// The first bytes.
    Prefix,
    /// The last.
    Suffix,
}

impl Token {
    /// The token and what the endpoint gets; none for a datagram that is too short to have one.
    #[inline]
    pub fn split<'d>(&self, datagram: &'d [u8]) -> Option<(&'d [u8], &'d [u8])> {
        let len = usize::from(self.len);
        let (token, rest) = match self.at {
            TokenAt::Prefix => datagram.split_at_checked(len)?,
            TokenAt::Suffix => {
                let (rest, token) = datagram.split_at_checked(datagram.len().checked_sub(len)?)?;
                (token, rest)
            }
        };
        Some((token, if self.strip { rest } else { datagram }))
    }
}

/// Per data plane, not per core. A *source* is an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpLimits {
    /// Of one port; at least 1.
    pub sessions: u32,
    /// At least 1.
    pub sessions_per_source: u32,
    /// Datagrams from one source, with a burst of one second; 0: no limit.
    pub packets_per_second_per_source: u32,
    /// Their bytes, likewise; 0: no limit.
    pub bytes_per_second_per_source: u64,
}

impl Default for UdpLimits {
    fn default() -> Self {
        Self {
            sessions: 100_000,
            sessions_per_source: 1024,
            packets_per_second_per_source: 10_000,
            bytes_per_second_per_source: 0,
        }
    }
}

/// Label of an instance: the token that leads to it, in lower-case hex.
pub const TOKEN: &str = "phalanx.dev/token";
/// In bytes. As a label's value it is twice as long, and those have 63 characters: longer ones are the directory's alone.
pub const TOKEN_MAX: u8 = 64;

/// Bytes of a token in hex, as in a label; any case.
pub fn token(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let fits = rest.is_empty() && !pairs.is_empty() && pairs.len() <= usize::from(TOKEN_MAX);
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    fits.then(|| pairs.iter().map(byte).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_at_one_end_and_what_remains_is_the_datagram() {
        let token = |at, strip| Token {
            at,
            len: 2,
            strip,
            required: false,
        };
        let of = |at, strip| token(at, strip).split(b"abcde");
        assert_eq!(of(TokenAt::Prefix, true), Some((&b"ab"[..], &b"cde"[..])));
        assert_eq!(of(TokenAt::Suffix, true), Some((&b"de"[..], &b"abc"[..])));
        assert_eq!(
            of(TokenAt::Suffix, false),
            Some((&b"de"[..], &b"abcde"[..]))
        );
        assert_eq!(token(TokenAt::Suffix, true).split(b"a"), None);
        assert_eq!(token(TokenAt::Prefix, true).split(b"a"), None);
    }

    #[test]
    fn a_label_is_hex_of_whole_bytes() {
        assert_eq!(token("00fF10"), Some(vec![0, 255, 16]));
        for bad in ["", "0", "0g", "+1", "ä0", &"00".repeat(65)] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}
