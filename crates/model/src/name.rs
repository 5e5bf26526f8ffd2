//! Names: services, mesh hosts and clusters. Parsed once, compared whole.

use std::fmt;
use std::str::FromStr;

/// The suffix of every host name of the mesh: `<service>.<namespace>.svc.mesh`.
pub const MESH_SUFFIX: &str = "svc.mesh";

/// The cluster a route names when a backend does not exist; no such cluster is ever sent.
pub const INVALID_BACKEND: &str = "invalid_backend";

/// A service within its namespace; both parts are DNS labels (RFC 1123, at most 63 bytes).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    /// Takes parts that are known to be DNS labels; foreign input goes through [`ServiceName::parse`].
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Checks both parts.
    ///
    /// # Errors
    /// [`NameError`] names the part that is no DNS label.
    pub fn parse(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_label(namespace)?;
        check_label(name)?;
        Ok(Self::new(namespace, name))
    }

    /// `<service>.<namespace>.svc.mesh`
    pub fn host(&self) -> String {
        format!("{}.{}.{MESH_SUFFIX}", self.name, self.namespace)
    }
}

/// `<namespace>/<name>`
impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `outbound|<port>|<service>.<namespace>.svc.mesh`, also the name of its endpoint set; that of a lane
/// `outbound|<port>|<colour>|<service>.<namespace>.svc.mesh`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName {
    pub direction: Direction,
    pub port: u16,
    pub service: ServiceName,
    /// The colour of a lane of it.
    pub lane: Option<String>,
}

/// Seen from the sidecar: traffic to its application, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl ClusterName {
    pub fn outbound(service: ServiceName, port: u16) -> Self {
        Self {
            direction: Direction::Outbound,
            port,
            service,
            lane: None,
        }
    }

    /// The same port's, for requests of this colour.
    #[must_use]
    pub fn lane(&self, colour: &str) -> Self {
        Self {
            lane: Some(colour.to_owned()),
            ..self.clone()
        }
    }

    /// The same port's, whatever the colour.
    #[must_use]
    pub fn baseline(&self) -> Self {
        Self {
            lane: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|", self.direction.as_str(), self.port)?;
        if let Some(colour) = &self.lane {
            write!(f, "{colour}|")?;
        }
        f.write_str(&self.service.host())
    }
}

impl FromStr for ClusterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Cluster(text.to_owned());
        let mut parts = text.splitn(3, '|');
        let direction = match parts.next() {
            Some("inbound") => Direction::Inbound,
            Some("outbound") => Direction::Outbound,
            _ => return Err(wrong()),
        };
        let port = parts
            .next()
            .and_then(|p| p.parse().ok())
            .ok_or_else(wrong)?;
        let host = parts.next().ok_or_else(wrong)?;
        let (lane, host) = match host.split_once('|') {
            Some((lane, host)) if is_colour(lane.as_bytes()) => (Some(lane.to_owned()), host),
            Some(_) => return Err(wrong()),
            None => (None, host),
        };
        let short = host
            .strip_suffix(MESH_SUFFIX)
            .and_then(|h| h.strip_suffix('.'))
            .ok_or_else(wrong)?;
        let (name, namespace) = short.split_once('.').ok_or_else(wrong)?;
        Ok(Self {
            direction,
            port,
            service: ServiceName::parse(namespace, name)?,
            lane,
        })
    }
}

/// Bytes of a colour.
pub const COLOUR_LEN_MAX: usize = 32;

/// `[a-z0-9-]{1,32}`: what `x-env` may say.
pub fn is_colour(text: &[u8]) -> bool {
    let is_token = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=COLOUR_LEN_MAX).contains(&text.len()) && text.iter().all(is_token)
}

/// Checks a DNS label of RFC 1123: 1–63 of `a-z`, `0-9`, `-`, starting and ending with a letter or digit.
///
/// # Errors
/// [`NameError::Label`] with the text.
pub fn check_label(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits =
        bytes.len() <= 63 && bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last());
    if fits {
        Ok(())
    } else {
        Err(NameError::Label(text.to_owned()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "`{0}` is no DNS label (a-z, 0-9 and -, at most 63, starting and ending with a letter or digit)"
    )]
    Label(String),
    #[error("`{0}` is no cluster name (outbound|<port>|<service>.<namespace>.{MESH_SUFFIX})")]
    Cluster(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_name_survives_text() {
        let name = ClusterName::outbound(ServiceName::new("default", "battle"), 80);
        assert_eq!(name.to_string(), "outbound|80|battle.default.svc.mesh");
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        let lane = name.lane("dev-li");
        assert_eq!(
            lane.to_string(),
            "outbound|80|dev-li|battle.default.svc.mesh"
        );
        assert_eq!(lane.to_string().parse(), Ok(lane.clone()));
        assert_eq!(lane.baseline(), name);
    }

    #[test]
    fn foreign_cluster_names_are_refused() {
        for text in [
            "",
            "outbound",
            "outbound|x|a.b.svc.mesh",
            "outbound|80||a.b.svc.mesh",
            "outbound|80|Dev|a.b.svc.mesh",
            "outbound|80|a|b|a.b.svc.mesh",
            "outbound|80|a.b",
            "outbound|80|A.b.svc.mesh",
            "up|80|a.b.svc.mesh",
        ] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }
}
