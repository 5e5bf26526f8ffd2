//! The keys of those who issue service-account tokens: from a file, or from an address such as Kubernetes'
//! `https://kubernetes.default.svc/openid/v1/jwks`. Fetched when a token first needs them, again every ten minutes, and sooner when
//! a token names a key that is new. An answer is bounded, and one that can't be had leaves the keys before in force for a day.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::files::{self, Access, FileError};
use phalanx_pki::jwt::{self, Accept, JWKS_MAX, JwtError, ServiceAccount};
use phalanx_pki::x509;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::CaError;

/// How often keys are fetched again.
const EVERY: Duration = Duration::from_secs(600);
/// How often at most, for tokens whose key is unknown, and after a failure.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// How long keys are good that can't be fetched again.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// For connecting, asking and reading together.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksConfig {
    pub source: JwksSource,
    /// What `iss` has to be.
    pub issuer: String,
    /// What `aud` has to have in it.
    pub audience: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    File(PathBuf),
    Address {
        /// `http://` or `https://`
        url: String,
        /// PEM of the roots that the server's certificate ends in; needed for https.
        roots: Option<PathBuf>,
        /// A file with a bearer token to show, read each time.
        token: Option<PathBuf>,
    },
}

pub(super) struct Jwks {
    config: JwksConfig,
    /// Held for a look or a swap, never across an await.
    state: Mutex<State>,
    /// One fetch at a time.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<jwt::Jwks>, Instant)>,
    tried: Option<Instant>,
}

impl Jwks {
    pub fn new(config: JwksConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// Who the bearer of a token is.
    pub async fn verify(&self, token: &str, now: UnixMillis) -> Result<ServiceAccount, CaError> {
        let keys = match self.current() {
            Some(keys) => keys,
            None => self.fetch().await?,
        };
        match self.check(&keys, token, now) {
            // It may be a key of today's.
            Err(JwtError::UnknownKey) if self.may_try() => {
                let keys = self.fetch().await?;
                self.check(&keys, token, now).map_err(CaError::Jwt)
            }
            checked => checked.map_err(CaError::Jwt),
        }
    }

    fn check(
        &self,
        keys: &jwt::Jwks,
        token: &str,
        now: UnixMillis,
    ) -> Result<ServiceAccount, JwtError> {
        let accept = Accept {
            issuer: &self.config.issuer,
            audience: &self.config.audience,
        };
        jwt::verify(keys, token, &accept, now)
    }

    /// Fetches again what is older than ten minutes.
    pub async fn tend(&self) -> Result<(), JwksError> {
        let old = match &self.state().keys {
            Some((_, at)) => at.elapsed() >= EVERY,
            None => true,
        };
        if old && self.may_try() {
            self.fetch().await?;
        }
        Ok(())
    }

    fn current(&self) -> Option<Arc<jwt::Jwks>> {
        let state = self.state();
        let (keys, at) = state.keys.as_ref()?;
        (at.elapsed() < AGE_MAX).then(|| keys.clone())
    }

    fn may_try(&self) -> bool {
        let tried = self.state().tried;
        tried.is_none_or(|at| at.elapsed() >= AT_MOST_EVERY)
    }

    async fn fetch(&self) -> Result<Arc<jwt::Jwks>, JwksError> {
        let asked = Instant::now();
        let _one = self.fetching.lock().await;
        if let Some((keys, at)) = &self.state().keys
            && *at >= asked
        {
            return Ok(keys.clone());
        }
        // Whoever waited here for another's attempt has had his own: tokens of strangers keep nobody for longer.
        let tried = self.state().tried.is_some_and(|at| at >= asked);
        match self.current() {
            Some(keys) if tried => return Ok(keys),
            None if tried || !self.may_try() => return Err(JwksError::Later),
            _ => {}
        }
        self.state().tried = Some(Instant::now());
        let json = match &self.config.source {
            JwksSource::File(path) => files::read(path, Access::Public)?,
            JwksSource::Address { url, roots, token } => {
                let get = get(url, roots.as_deref(), token.as_deref());
                let got = tokio::time::timeout(PATIENCE, get).await;
                got.map_err(|_| JwksError::Slow { url: url.clone() })??
            }
        };
        let keys = Arc::new(jwt::Jwks::parse(&json).map_err(JwksError::Content)?);
        self.state().keys = Some((keys.clone(), Instant::now()));
        Ok(keys)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn get(
    url: &str,
    roots: Option<&std::path::Path>,
    token: Option<&std::path::Path>,
) -> Result<Vec<u8>, JwksError> {
    let wrong = || JwksError::Url {
        url: url.to_owned(),
    };
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']);
    let failed = |source| JwksError::Connect {
        url: url.to_owned(),
        source,
    };
    let connect = |port| TcpStream::connect((host.to_owned(), port));
    match uri.scheme_str() {
        Some("http") => {
            let port = uri.port_u16().unwrap_or(80);
            let stream = connect(port).await.map_err(failed)?;
            ask(stream, &uri, url, token).await
        }
        Some("https") => {
            let tls = tls(roots.ok_or(JwksError::NoRoots)?)?;
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(|_| wrong())?;
            let port = uri.port_u16().unwrap_or(443);
            let stream = connect(port).await.map_err(failed)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream);
            ask(stream.await.map_err(failed)?, &uri, url, token).await
        }
        _ => Err(wrong()),
    }
}

fn tls(roots: &std::path::Path) -> Result<Arc<ClientConfig>, JwksError> {
    let pem = files::read(roots, Access::Public)?;
    let unfit = || JwksError::Roots {
        path: roots.to_owned(),
    };
    let mut store = RootCertStore::empty();
    let certs = x509::certs_from_pem(&pem).map_err(|_| unfit())?;
    store.add_parsable_certificates(certs);
    if store.is_empty() {
        return Err(unfit());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| unfit())?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn ask<S>(
    stream: S,
    uri: &http::Uri,
    url: &str,
    token: Option<&std::path::Path>,
) -> Result<Vec<u8>, JwksError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| JwksError::Ask {
        url: url.to_owned(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let host = uri.authority().map_or("", |a| a.as_str());
    let mut request = http::Request::get(path).header("host", host);
    if let Some(token) = token {
        if uri.scheme_str() != Some("https") {
            return Err(JwksError::PlainToken);
        }
        let secret = files::read(token, Access::Public)?;
        let secret = String::from_utf8_lossy(&secret).trim().to_owned();
        request = request.header("authorization", format!("Bearer {secret}"));
    }
    let wrong = |_| JwksError::Url {
        url: url.to_owned(),
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(wrong)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            let url = url.to_owned();
            return Err(JwksError::Status { url, status });
        }
        let body = Limited::new(response.into_body(), JWKS_MAX).collect().await;
        let body = body.map_err(|_| JwksError::Body {
            url: url.to_owned(),
        })?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(failed)?;
            answer.await
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("service-account tokens are not taken here (`control --jwks FILE|URL`)")]
    None,
    #[error("the keys of service-account tokens could not be had a moment ago")]
    Later,
    #[error("the JWKS is refused")]
    Content(#[source] JwtError),
    #[error("`{url}` is no address of a JWKS (http://HOST/PATH or https://HOST/PATH)")]
    Url { url: String },
    #[error(
        "the token that the JWKS is asked for with is not sent in plain text: the address has to be https"
    )]
    PlainToken,
    #[error("a JWKS over https needs the roots that its server's certificate ends in")]
    NoRoots,
    #[error("{} has no root for the JWKS's server", path.display())]
    Roots { path: PathBuf },
    #[error("cannot connect to {url}")]
    Connect {
        url: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{url} does not answer")]
    Ask {
        url: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{url} answered {status}")]
    Status {
        url: String,
        status: http::StatusCode,
    },
    #[error("{url} answered with more than {JWKS_MAX} bytes, or broke off")]
    Body { url: String },
    #[error("{url} took longer than {}s", PATIENCE.as_secs())]
    Slow { url: String },
    #[error(transparent)]
    File(#[from] FileError),
}
