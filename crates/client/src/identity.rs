//! Certificates from the control plane, and whom to trust. A request for a key that stays here goes out; a chain, roots,
//! revocation lists and staples come in. Their form and size are checked here, their truth by whoever publishes them
//! ([`phalanx_pki::credentials`]).

mod wire;

use std::fmt;
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_pki::revocation::Link;
use phalanx_pki::roots::{Roots, RootsError};
use phalanx_pki::x509::Serial;
use phalanx_proto::phalanx::identity::v1::identity_client::IdentityClient;
use phalanx_proto::phalanx::identity::v1::{
    JoinRequest, RenewRequest, TrustRequest, TrustResponse, join_request,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::why::why;

/// Of one call. A control plane that restarts has a whole fleet before its door.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Until a word of ours is taken off our hands.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer; revocation lists make nearly all of it.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Words on their way out.
const WORDS_MAX: usize = 8;
/// Of what a control plane says in refusing, what is passed on.
const MESSAGE_MAX: usize = 500;

/// The Identity service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    client: IdentityClient<Channel>,
}

/// By what somebody proves who he is who has no certificate. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    JoinToken(String),
    /// A JWT.
    ServiceAccount(String),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JoinToken(_) => "JoinToken",
            Self::ServiceAccount(_) => "ServiceAccount",
        })
    }
}

/// A certificate that was issued for a key of ours.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub roots: Roots,
    /// An OCSP response for the leaf, DER.
    pub staple: Option<Vec<u8>>,
}

/// Whom to trust.
#[derive(Clone, Debug)]
pub struct Trust {
    pub roots: Roots,
    /// DER, one of each issuer.
    pub crls: Vec<Vec<u8>>,
    /// The CA certificates behind them.
    pub issuers: Vec<CertificateDer<'static>>,
    /// What is revoked and on none of the lists yet.
    pub told: Vec<Link>,
    /// An OCSP response for the certificate that we said we show, DER.
    pub staple: Option<Vec<u8>>,
    /// The root of that certificate goes: another should be asked for soon.
    pub renew: bool,
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        let client = IdentityClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Self { client }
    }

    /// The first certificate; `zone` is where we are, if that is known, and `csr` DER.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn join(
        &self,
        proof: Proof,
        service: &ServiceName,
        zone: Option<&str>,
        csr: Vec<u8>,
    ) -> Result<Grant, CallError> {
        let proof = match proof {
            Proof::JoinToken(token) => join_request::Proof::JoinToken(token),
            Proof::ServiceAccount(jwt) => join_request::Proof::ServiceAccountToken(jwt),
        };
        let request = JoinRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            zone: zone.unwrap_or_default().to_owned(),
            csr,
            proof: Some(proof),
        };
        let mut client = self.client.clone();
        let answer = within(client.join(request)).await?;
        Ok(wire::grant(answer)?)
    }

    /// The next certificate for whoever the connection's own says that we are; `csr` is DER, of another key.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn renew(&self, csr: Vec<u8>) -> Result<Grant, CallError> {
        let mut client = self.client.clone();
        let answer = within(client.renew(RenewRequest { csr })).await?;
        Ok(wire::grant(answer)?)
    }

    /// Follows whom to trust, showing the certificate `serial`; `version` is in force from before, 0 for none.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn trust(&self, version: u64, serial: &Serial) -> Result<Following, CallError> {
        let (words, outgoing) = mpsc::channel(WORDS_MAX);
        let first = TrustRequest {
            version,
            serial: serial.to_string(),
            error: String::new(),
        };
        let _ = words.try_send(first);
        let mut client = self.client.clone();
        let told = within(client.trust(ReceiverStream::new(outgoing))).await?;
        Ok(Following { words, told })
    }
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time").into()),
    }
}

/// An open stream of whom to trust.
#[derive(Debug)]
pub struct Following {
    words: mpsc::Sender<TrustRequest>,
    told: Streaming<TrustResponse>,
}

/// What was told: its version, and whether it can be used.
#[derive(Debug)]
pub struct Told {
    pub version: u64,
    pub trust: Result<Trust, AnswerError>,
}

impl Following {
    /// What is told next; none at the end of the stream. May be dropped and called again.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn next(&mut self) -> Result<Option<Told>, CallError> {
        let answer = self.told.message().await?;
        Ok(answer.map(|answer| Told {
            version: answer.version,
            trust: wire::trust(answer),
        }))
    }

    /// Says which version is in force here, which certificate is shown, and why the last that was told was not taken
    /// (empty when it was).
    ///
    /// # Errors
    /// [`CallError::Unavailable`] when the stream has ended or nobody reads it.
    pub async fn say(&self, version: u64, serial: &Serial, error: &str) -> Result<(), CallError> {
        let word = TrustRequest {
            version,
            serial: serial.to_string(),
            error: error.chars().take(MESSAGE_MAX).collect(),
        };
        let sent = timeout(SEND_TIMEOUT, self.words.send(word)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(Status::unavailable("the stream takes no words").into()),
        }
    }
}

/// Why there is no certificate, or no word on whom to trust.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Asking again with the same proof changes nothing.
    #[error("the control plane refuses: {message}")]
    Refused { code: Code, message: String },
    /// It may work later.
    #[error("the control plane can't be reached or has no answer now: {message}")]
    Unavailable { message: String },
    #[error("what the control plane answered can't be used")]
    Answer(#[from] AnswerError),
}

impl CallError {
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let message = why(&status);
        match status.code() {
            code @ (Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented) => Self::Refused { code, message },
            _ => Self::Unavailable { message },
        }
    }
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("it has no certificate")]
    Empty,
    #[error("it has more certificates or lists than anybody needs, or larger ones")]
    TooMuch,
    #[error("it tells of a revoked certificate that there can't be")]
    Told,
    #[error("its roots can't be used")]
    Roots(#[from] RootsError),
}
