//! What a user says about an etcd, checked once.

use std::{fmt, time::Duration};

use crate::{Error, Result};

/// Members that a list may name.
const ENDPOINTS_MAX: usize = 16;
/// What a URL begins with, in plain text and over TLS.
const SCHEME: &str = "etcd://";
const SCHEME_TLS: &str = "etcds://";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `HOST:PORT` of members of one cluster. One is used at a time, the next when it fails.
    pub endpoints: Vec<String>,
    pub credentials: Option<Credentials>,
    /// None: plain text.
    pub tls: Option<Tls>,
    /// Written before every key, so that one etcd can hold several meshes and other things, too.
    pub prefix: String,
    /// Of the keys and values of one list, which is held in memory.
    pub list_bytes_max: usize,
    /// How long [`Store::etcd`](crate::Store::etcd) waits for an answer before it gives up.
    pub patience: Duration,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

/// Whom to believe, and how to prove who we are. All in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that etcd's own may come from. The system's are not asked: an etcd has its own.
    pub ca: Vec<u8>,
    /// Chain and key, for an etcd that asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that etcd's certificate has to be for, where it is not the endpoint's host.
    pub server_name: Option<String>,
}

impl EtcdConfig {
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdConfig {
        EtcdConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            credentials: None,
            tls: None,
            prefix: "/phalanx/".into(),
            list_bytes_max: usize::MAX,
            patience: Duration::from_secs(10),
        }
    }

    /// `etcd://HOST:PORT[,HOST:PORT]`, or `etcds://…` over TLS, which wants a [`Tls::ca`] before it is used.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is wrong with the address.
    pub fn parse(url: &str) -> Result<EtcdConfig> {
        let (list, tls) = match url.split_once("://") {
            Some(("etcd", list)) => (list, None),
            Some(("etcds", list)) => (list, Some(Tls::default())),
            Some(("https", _)) => return Err(invalid(NO_HTTPS)),
            _ => {
                return Err(invalid(format!(
                    "`{url}` is no address of an etcd, which is {SCHEME}HOST:PORT[,HOST:PORT], or {SCHEME_TLS}… over TLS"
                )));
            }
        };
        let mut config = EtcdConfig::new(list.split(','));
        config.tls = tls;
        config.check()?;
        Ok(config)
    }

    /// As it may be shown.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() {
            SCHEME_TLS
        } else {
            SCHEME
        };
        format!("{scheme}{}", self.endpoints.join(","))
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
        return Err(invalid(NO_HTTPS));
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

const NO_HTTPS: &str = "an etcd over TLS is written etcds://HOST:PORT[,HOST:PORT]";

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

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("server_name", &self.server_name)
            .field("has_identity", &self.identity.is_some())
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
        let safe = EtcdConfig::parse("etcds://a:1,b:2").unwrap();
        assert_eq!(safe.url(), "etcds://a:1,b:2");
        assert!(three.tls.is_none() && safe.tls.is_some());
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (url, reason) in [
            ("https://a:1", "is written etcds://"),
            ("etcd://https://a:1", "is written etcds://"),
            ("etcds://https://a:1", "is written etcds://"),
            ("etcds://a", "HOST:PORT"),
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
        config.tls = Some(Tls {
            identity: Some((b"chain".to_vec(), b"hunter3".to_vec())),
            ..Tls::default()
        });
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter") && !shown.contains("104, 117"));
    }
}
