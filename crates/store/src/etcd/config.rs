//! What a user says about an etcd, checked once.

use std::{fmt, time::Duration};

use crate::{Error, Result};

/// Members that a list may name.
const ENDPOINTS_MAX: usize = 16;
/// What a URL begins with.
const SCHEME: &str = "etcd://";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `HOST:PORT` of members of one cluster. One is used at a time, the next when it fails.
    pub endpoints: Vec<String>,
    pub credentials: Option<Credentials>,
    /// Written before every key, so that one etcd can hold several meshes and other things, too.
    pub prefix: String,
    /// How long [`Store::etcd`](crate::Store::etcd) waits for an answer before it gives up.
    pub patience: Duration,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl EtcdConfig {
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdConfig {
        EtcdConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            credentials: None,
            prefix: "/phalanx/".into(),
            patience: Duration::from_secs(10),
        }
    }

    /// `etcd://HOST:PORT[,HOST:PORT]`
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is wrong with the address.
    pub fn parse(url: &str) -> Result<EtcdConfig> {
        let list = match url.split_once("://") {
            Some(("etcd", list)) => list,
            Some(("etcds" | "https", _)) => return Err(invalid(NO_TLS)),
            _ => {
                return Err(invalid(format!(
                    "`{url}` is no address of an etcd, which is {SCHEME}HOST:PORT[,HOST:PORT]"
                )));
            }
        };
        let config = EtcdConfig::new(list.split(','));
        config.check()?;
        Ok(config)
    }

    /// As it may be shown.
    pub fn url(&self) -> String {
        format!("{SCHEME}{}", self.endpoints.join(","))
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.endpoints.is_empty() || self.endpoints.len() > ENDPOINTS_MAX {
            let count = self.endpoints.len();
            return Err(invalid(format!(
                "{count} endpoints of etcd, it takes 1 to {ENDPOINTS_MAX}"
            )));
        }
        self.endpoints
            .iter()
            .try_for_each(|endpoint| check_endpoint(endpoint))
    }
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    if endpoint.starts_with("https://") {
        return Err(invalid(NO_TLS));
    }
    if endpoint.contains('@') {
        return Err(invalid(
            "a user does not belong into the address of an etcd, where others could read the password",
        ));
    }
    let is_good = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bare = !host.is_empty() && !host.contains(['/', ' ', '?', '#']);
        // An IPv6 address in brackets, or no colon.
        let is_host = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        is_bare && is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !is_good {
        return Err(invalid(format!(
            "`{endpoint}` is no endpoint of an etcd, which is HOST:PORT"
        )));
    }
    Ok(())
}

const NO_TLS: &str = "TLS to etcd is not supported yet: use etcd:// over a network that is trusted, or a tunnel on loopback";

fn invalid(problem: impl Into<String>) -> Error {
    Error::Invalid {
        problem: problem.into(),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_one_or_more_endpoints() {
        let one = EtcdConfig::parse("etcd://127.0.0.1:2379").unwrap();
        assert_eq!(one.endpoints, ["127.0.0.1:2379"]);
        let three = EtcdConfig::parse("etcd://a:1,b.local:2,[::1]:3").unwrap();
        assert_eq!(three.endpoints, ["a:1", "b.local:2", "[::1]:3"]);
        assert_eq!(three.url(), "etcd://a:1,b.local:2,[::1]:3");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (url, reason) in [
            ("etcds://a:1", "TLS to etcd is not supported yet"),
            ("https://a:1", "TLS to etcd is not supported yet"),
            ("etcd://https://a:1", "TLS to etcd is not supported yet"),
            ("etcd://root:secret@a:1", "a user does not belong"),
            ("etcd://", "HOST:PORT"),
            ("etcd://a", "HOST:PORT"),
            ("etcd://a:0", "HOST:PORT"),
            ("etcd://a:b", "HOST:PORT"),
            ("etcd://a:1,", "HOST:PORT"),
            ("etcd://::1:1", "HOST:PORT"),
            ("etcd://a:1/path", "HOST:PORT"),
            ("redis://a:1", "no address of an etcd"),
            ("a:1", "no address of an etcd"),
        ] {
            let error = EtcdConfig::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        let many = (0..=ENDPOINTS_MAX).map(|i| format!("a:{}", i + 1));
        assert!(EtcdConfig::new(many).check().is_err());
    }

    #[test]
    fn a_password_is_not_shown() {
        let mut config = EtcdConfig::new(["a:1"]);
        config.credentials = Some(Credentials {
            user: "u".into(),
            password: "hunter2".into(),
        });
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
