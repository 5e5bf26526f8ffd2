//! What of the traffic around an application is taken without its knowing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Where redirected calls of the application arrive.
pub const INTERCEPT_OUTBOUND: u16 = 15002;
/// Where redirected connections to the application arrive.
pub const INTERCEPT_INBOUND: u16 = 15003;
/// How long a client may keep silent whose protocol nobody declared, until the server is taken for who speaks first.
pub const INTERCEPT_WAIT: Duration = Duration::from_millis(50);
/// Of each kind of exemption.
pub const EXEMPTIONS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptConfig {
    pub outbound: u16,
    pub inbound: u16,
    /// Only calls to these ports; none: to any.
    pub ports: Vec<u16>,
    /// Neither calls to these ports nor connections to them.
    pub exempt_ports: Vec<u16>,
    /// Neither calls to there nor connections from there.
    pub exempt_addresses: Vec<Prefix>,
    /// No calls of these users.
    pub exempt_uids: Vec<u32>,
    pub policy: OutboundPolicy,
    pub wait: Duration,
}

impl Default for InterceptConfig {
    fn default() -> Self {
        Self {
            outbound: INTERCEPT_OUTBOUND,
            inbound: INTERCEPT_INBOUND,
            ports: Vec::new(),
            exempt_ports: Vec::new(),
            exempt_addresses: Vec::new(),
            exempt_uids: Vec::new(),
            policy: OutboundPolicy::default(),
            wait: INTERCEPT_WAIT,
        }
    }
}

impl InterceptConfig {
    /// # Errors
    /// Says which of the flags holds too much or contradicts another.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let counts = [
            self.ports.len(),
            self.exempt_ports.len(),
            self.exempt_addresses.len(),
            self.exempt_uids.len(),
        ];
        if counts.into_iter().any(|count| count > EXEMPTIONS_MAX) {
            return Err("at most 256 ports, addresses or users are taken");
        }
        if self.outbound == self.inbound {
            return Err("--intercept-outbound and --intercept-inbound are the same port");
        }
        if self.outbound == 0 || self.inbound == 0 {
            return Err("--intercept-outbound and --intercept-inbound take a port of their own");
        }
        if self.wait > WAIT_MAX {
            return Err(
                "--intercept-wait takes at most 2s: all that time a server that speaks first says nothing",
            );
        }
        Ok(())
    }
}

const WAIT_MAX: Duration = Duration::from_secs(2);

/// What becomes of calls that lead to nobody of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// They go where they were going.
    #[default]
    Allow,
    /// They are refused.
    RegistryOnly,
}

impl OutboundPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::RegistryOnly => "registry-only",
        }
    }
}

impl FromStr for OutboundPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Allow, Self::RegistryOnly];
        let found = all.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is neither allow nor registry-only"))
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, `fd00::/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address and no prefix such as 10.0.0.0/8");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(length) => length.parse().map_err(|_| wrong())?,
            None => most,
        };
        if length > most {
            return Err(wrong());
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_an_address_with_a_length_or_alone() {
        for (text, is) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), is);
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "fd00::/129",
            "a/8",
            "10.0.0.0/",
            "10.0.0.0/8/8",
            "10.0.0.0; drop",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
