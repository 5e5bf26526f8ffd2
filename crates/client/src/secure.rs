//! TLS to a control plane. Who serves is told by its SPIFFE id, not by the name it was called by, so an address may be
//! anything that leads there; what was presented is checked by [`phalanx_pki`], which also gives the reason to refuse.

use std::fmt;
use std::io;
use std::sync::Arc;

use phalanx_model::identity::{CONTROL_SERVICE, SYSTEM_NAMESPACE};
use phalanx_pki::clock::SystemClock;
use phalanx_pki::identity::Identity;
use phalanx_pki::name::ServiceName;
use phalanx_pki::roots::Roots;
use phalanx_pki::tls::{ClientOptions, ClientTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, Peer, Refusal, StaplePolicy};
use phalanx_pki::x509::Serial;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, InvalidMessage};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// A way to be sure of the control plane. Cheap to clone; clones share what resumes sessions.
#[derive(Clone, Debug)]
pub struct Secure {
    identity: Arc<Identity>,
    tls: ClientTls,
    /// Nothing is dialled before there is a certificate to show.
    waits: bool,
    /// The last certificate that was not taken, until one is.
    rejected: watch::Sender<Option<Rejection>>,
}

/// A control plane did not take a certificate of ours, by its word in TLS: nobody else's, for it had proven who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub serial: Serial,
    pub alert: AlertDescription,
}

impl Rejection {
    /// Why, as a word that people search for.
    pub fn reason(&self) -> &'static str {
        match self.alert {
            AlertDescription::CertificateRevoked => "revoked",
            AlertDescription::CertificateExpired => "expired",
            AlertDescription::UnknownCA => "of a root that is not trusted",
            _ => "not taken",
        }
    }

    fn of(alert: AlertDescription, serial: Serial) -> Option<Self> {
        use AlertDescription as A;
        let is_about_ours = matches!(
            alert,
            A::CertificateRevoked
                | A::CertificateExpired
                | A::UnknownCA
                | A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateUnknown
                | A::AccessDenied
        );
        is_about_ours.then_some(Self { serial, alert })
    }
}

impl Secure {
    /// The roots of an identity are trusted; its certificate, if there is one, is shown.
    ///
    /// # Errors
    /// [`rustls::Error`], as [`ClientTls::try_new`].
    pub fn try_new(identity: Arc<Identity>, protocol: Protocol) -> Result<Self, rustls::Error> {
        let alpn = match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        };
        let options = ClientOptions {
            expected: Expected::Service(ServiceName::new(SYSTEM_NAMESPACE, CONTROL_SERVICE)),
            crl: CrlPolicy::IfPresent,
            staple: StaplePolicy::IfPresent,
            alpn: vec![alpn],
        };
        let tls = ClientTls::try_new(identity.clone(), options)?;
        Ok(Self {
            identity,
            tls,
            waits: false,
            rejected: watch::Sender::new(None),
        })
    }

    /// For whoever has nothing to say before it has a certificate.
    #[must_use]
    pub fn as_workload(self) -> Self {
        Self {
            waits: true,
            ..self
        }
    }

    /// Whether there is any use in dialling now.
    pub fn is_ready(&self) -> bool {
        !self.waits || self.identity.credentials().is_some()
    }

    /// Shakes hands over a connection to `address`, `HOST:PORT`.
    ///
    /// # Errors
    /// [`SecureError`]
    pub async fn connect(
        &self,
        stream: TcpStream,
        address: &str,
    ) -> Result<(TlsStream<TcpStream>, Arc<Peer>), SecureError> {
        let connector = TlsConnector::from(self.tls.config().clone());
        let shown = self.shown();
        let stream = connector.connect(server_name(address), stream).await;
        // A server of TLS 1.2 says it here.
        let stream = stream.inspect_err(|error| self.heard(shown.as_ref(), Err(error)));
        let stream = stream.map_err(SecureError::of)?;
        let peer = self.tls.admit(stream.get_ref().1);
        let peer = peer.map_err(SecureError::Refused)?;
        Ok((stream, peer))
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The certificate that a connection which begins now shows.
    pub fn shown(&self) -> Option<Serial> {
        let credentials = self.identity.credentials();
        credentials.map(|credentials| credentials.peer().serial.clone())
    }

    /// Which certificate of ours was not taken last; none once one was.
    pub fn rejected(&self) -> watch::Receiver<Option<Rejection>> {
        self.rejected.subscribe()
    }

    /// What the first read of a connection that showed `shown` came to: a server of TLS 1.3 takes or refuses a client then.
    pub fn heard(&self, shown: Option<&Serial>, first: Result<(), &io::Error>) {
        let next = match first {
            Ok(()) => None,
            Err(error) => match (SecureError::of_alert(error), shown) {
                (Some(SecureError::Alert(alert)), Some(serial)) => {
                    match Rejection::of(alert, serial.clone()) {
                        Some(rejection) => Some(rejection),
                        None => return,
                    }
                }
                _ => return,
            },
        };
        self.rejected.send_if_modified(|known| {
            let is_news = *known != next;
            *known = next;
            is_news
        });
    }
}

/// An identity that shows nothing and trusts these roots, for whoever has no certificate.
pub fn trusting(roots: Roots) -> Arc<Identity> {
    let identity = Identity::new(Arc::new(SystemClock));
    // Without credentials there is nothing that the roots could contradict.
    let _ = identity.publish_roots(roots);
    Arc::new(identity)
}

/// Only where we went; a host that is no name for TLS goes by another, for who serves is told by the id.
fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned());
    name.unwrap_or_else(|_| ServerName::from(std::net::IpAddr::from([127, 0, 0, 1])))
}

/// Why a connection isn't secure.
#[derive(Debug)]
pub enum SecureError {
    /// It isn't whom we expect, or can't prove it.
    Refused(Refusal),
    /// It did not answer in TLS.
    Plain,
    /// It did not take our certificate, or asks for one; with its word for why.
    Alert(AlertDescription),
    Io(io::Error),
}

impl SecureError {
    /// Of a handshake, or of what is read after it: a server of TLS 1.3 refuses a client only then.
    pub fn of(error: io::Error) -> Self {
        match tls_error(&error) {
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::Plain,
            Some(error) => Self::Refused(Refusal::of_handshake(error)),
            None => Self::Io(error),
        }
    }

    /// Of a connection that was open already; none if it just broke.
    pub fn of_alert(error: &io::Error) -> Option<Self> {
        match tls_error(error) {
            Some(rustls::Error::AlertReceived(alert)) => Some(Self::Alert(*alert)),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Refused(Refusal::UnknownCa) => {
                "it was signed by another root than those trusted here: take the roots of this mesh (roots.pem in the control plane's DATA/admin)"
            }
            Self::Refused(Refusal::Expired | Refusal::NotYetValid | Refusal::IssuerExpired) => {
                "are the clocks of both machines right?"
            }
            Self::Refused(Refusal::WrongName) => {
                "something else of this mesh listens there: is the address the control plane's?"
            }
            Self::Plain => "it speaks no TLS: is it another port, or another program?",
            Self::Alert(AlertDescription::CertificateRequired) => {
                "it takes only those who have a certificate"
            }
            Self::Alert(AlertDescription::CertificateExpired) => {
                "our certificate has expired: take a new one (`phalanx cert`)"
            }
            Self::Alert(AlertDescription::CertificateRevoked) => "our certificate is revoked",
            Self::Alert(AlertDescription::UnknownCA) => {
                "our certificate is of another mesh, or of a root that is trusted no more"
            }
            Self::Refused(_) | Self::Alert(_) | Self::Io(_) => return None,
        };
        Some(text.to_owned())
    }
}

/// The one behind it, if it is TLS's.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl fmt::Display for SecureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Plain => f.write_str("the peer answered in plain text"),
            Self::Alert(alert) => write!(f, "the peer refused us: {alert:?}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for SecureError {}

impl From<SecureError> for io::Error {
    fn from(error: SecureError) -> Self {
        match error {
            SecureError::Io(error) => error,
            other => Self::other(other),
        }
    }
}
