//! Certificates, join tokens and the rotation of the root, for operators. What is a secret is told over TLS only; what may be
//! done is the authority's to say.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use phalanx_client::api::{
    CaView, ISSUED_MAX, Intermediate, IntermediateRequest, IssuedCertificate, IssuedCertificates,
    JoinToken, JoinTokenRequest, JoinTokenView, JoinTokens, ReleaseCertificatesRequest, Released,
    RevokeRequest, RevokeTokenRequest, Revoked, RotateRequest, Rotation, SERIALS_MAX, SignRequest,
    Signed, Trust, Unconfirmed,
};
use phalanx_model::ServiceName;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::csr::Csr;
use phalanx_pki::issuer::{Attestation, Issuer};
use phalanx_pki::join::JoinToken as Token;
use phalanx_pki::name::{Name, SpiffeId, Workload};
use phalanx_pki::revocation::Reason;
use phalanx_pki::roots::Root;
use phalanx_pki::x509::{self, Serial};

use super::Api;
use super::answer::{Failure, Params};
use super::write::read;
use crate::access::Who;
use crate::ca::{
    Ca, CaError, Fault, IssuedEntry, IssuedQuery, RevokeError, RotationPhase, RotationStatus,
    Target, Waits,
};

pub async fn roots(State(api): State<Api>, query: RawQuery) -> Result<Json<Trust>, Failure> {
    Params::parse(query, &[])?;
    let ca = ca(&api)?;
    let trusted = ca.roots();
    Ok(Json(Trust {
        trust_domain: ca.trust_domain().to_string(),
        pem: trusted.to_pem(),
        roots: trusted.iter().map(of_root).collect(),
        issuer: of_issuer(ca.authority().active()),
    }))
}

pub async fn token(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<JoinToken>, Failure> {
    let request: JoinTokenRequest = read(body).await?;
    let ca = ca(&api)?;
    let of = (&*request.namespace, &*request.service);
    let workload = workload(ca, of, request.zone.as_deref())?;
    let ttl = Duration::from_millis(request.ttl_ms);
    let author = who.author(&request.author);
    let text = ca.token(&workload, ttl, &author).await?;
    let id = Token::parse(&text).map_err(CaError::from)?.id().to_owned();
    let expires = UnixMillis(now_ms()).plus(ttl);
    Ok(Json(JoinToken {
        token: text.to_string(),
        id,
        namespace: request.namespace,
        service: request.service,
        zone: request.zone,
        expires_ms: ms(expires),
        roots: ca.roots().to_pem(),
    }))
}

pub async fn tokens(State(api): State<Api>, query: RawQuery) -> Result<Json<JoinTokens>, Failure> {
    Params::parse(query, &[])?;
    let waiting = ca(&api)?.tokens().await?;
    let items = waiting.into_iter().map(of_token).collect();
    Ok(Json(JoinTokens { items }))
}

pub async fn revoke_token(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<JoinTokenView>, Failure> {
    let request: RevokeTokenRequest = read(body).await?;
    let author = who.author(&request.author);
    let gone = ca(&api)?.revoke_token(&request.id, &author).await?;
    Ok(Json(of_token(gone)))
}

pub async fn sign(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Signed>, Failure> {
    let request: SignRequest = read(body).await?;
    let ca = ca(&api)?;
    let of = (&*request.namespace, &*request.service);
    let workload = workload(ca, of, request.zone.as_deref())?;
    let csr = Csr::from_pem(request.csr.as_bytes()).map_err(CaError::from)?;
    let attested = Attestation::Operator {
        name: who.author(&request.author),
    };
    let ttl = request.ttl_ms.map(Duration::from_millis);
    let issued = ca.issue(&workload, &csr, ttl, attested).await?;
    Ok(Json(Signed {
        chain: issued.chain_pem(),
        roots: ca.roots().to_pem(),
        serial: issued.record.serial.to_string(),
        id: issued.record.id.to_string(),
        not_after_ms: ms(issued.record.not_after),
    }))
}

pub async fn issued(
    State(api): State<Api>,
    query: RawQuery,
) -> Result<Json<IssuedCertificates>, Failure> {
    let known = [
        "service",
        "namespace",
        "serial",
        "revoked",
        "expiring_ms",
        "limit",
    ];
    let params = Params::parse(query, &known)?;
    let most = params.number("limit")?.map_or(ISSUED_MAX, |limit| {
        usize::try_from(limit).unwrap_or(ISSUED_MAX).min(ISSUED_MAX)
    });
    let serial = params.text("serial").map(Serial::parse).transpose();
    let serial = serial.map_err(|e| wrong(format!("parameter `serial`: {e}")))?;
    let revoked = params.text("revoked").is_some_and(|text| text != "0");
    let expiring = params.number("expiring_ms")?.map(Duration::from_millis);
    // Everything that can be told from the log is asked of it; what is left is looked at here.
    let query = IssuedQuery {
        serial,
        namespace: params.text("namespace").map(str::to_owned),
        living_only: expiring.is_some(),
        ..IssuedQuery::default()
    };
    let (service, now) = (params.text("service"), UnixMillis(now_ms()));
    let is_wanted = |entry: &IssuedEntry| {
        service.is_none_or(|service| entry.id.service.name == service)
            && (!revoked || entry.revoked.is_some())
            && expiring.is_none_or(|span| now.until(entry.not_after) <= span)
    };
    let found = ca(&api)?.issued(&query);
    let mut wanted = found.iter().filter(|entry| is_wanted(entry));
    let items = wanted.by_ref().take(most).map(of_entry).collect();
    Ok(Json(IssuedCertificates {
        items,
        more: wanted.next().is_some(),
    }))
}

pub async fn revoke(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Revoked>, Failure> {
    let request: RevokeRequest = read(body).await?;
    let ca = ca(&api)?;
    let reason = Reason::parse(&request.reason).ok_or_else(|| {
        let known: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        wrong("that is no reason for a revocation").hint(format!("known are {}", known.join(", ")))
    })?;
    let target = target(ca, &request)?;
    let author = who.author(&request.author);
    let revoked = ca.revoke(&target, reason, &author).await?;
    let left = match &target {
        Target::Serials(serials) => ca.left_of(serials),
        Target::Holders(_) | Target::Workload(_) => Vec::new(),
    };
    let texts = |serials: &[Serial]| serials.iter().map(Serial::to_string).collect();
    Ok(Json(Revoked {
        serials: texts(&revoked),
        left: texts(&left),
    }))
}

/// Exactly one of what may be named.
fn target(ca: &Ca, request: &RevokeRequest) -> Result<Target, Failure> {
    let (named, held) = (!request.serials.is_empty(), !request.holders.is_empty());
    match (&request.service, &request.workload, named, held) {
        (Some(service), None, false, false) => {
            let namespace = request.namespace.as_deref().unwrap_or("default");
            let service = ServiceName::parse(namespace, service);
            Ok(Target::Workload(service.map_err(|e| wrong(e.to_string()))?))
        }
        (None, Some(workload), false, false) => {
            let id: Result<SpiffeId, _> = workload.parse();
            let id = id.map_err(|e| wrong(e.to_string()))?;
            match id.trust_domain == *ca.trust_domain() {
                true => Ok(Target::Workload(id.service)),
                false => Err(wrong(format!(
                    "{id} is of another trust domain, this mesh is `{}`",
                    ca.trust_domain()
                ))),
            }
        }
        (None, None, true, false) => Ok(Target::Serials(serials(&request.serials)?)),
        (None, None, false, true) => Ok(Target::Holders(serials(&request.holders)?)),
        _ => Err(wrong(
            "one of serials, holders, a service and a workload is needed",
        )),
    }
}

pub async fn release(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Released>, Failure> {
    let request: ReleaseCertificatesRequest = read(body).await?;
    let author = who.author(&request.author);
    let serials = serials(&request.serials)?;
    let released = ca(&api)?.release(&serials, &author).await?;
    Ok(Json(Released {
        serials: released.iter().map(Serial::to_string).collect(),
    }))
}

pub async fn rotation(State(api): State<Api>, query: RawQuery) -> Result<Json<Rotation>, Failure> {
    Params::parse(query, &[])?;
    let ca = ca(&api)?;
    Ok(Json(of_rotation(ca, ca.rotation())))
}

pub async fn rotate(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Rotation>, Failure> {
    let request: RotateRequest = read(body).await?;
    let ca = ca(&api)?;
    let author = who.author(&request.author);
    // A step that was taken already is no error: whoever asks twice gets the same answer.
    let status = match (request.step.as_str(), ca.rotation().phase) {
        ("begin", RotationPhase::Overlap)
        | ("switch", RotationPhase::Switched)
        | ("finish" | "abort", RotationPhase::Steady) => Ok(ca.rotation()),
        ("begin", _) => ca.rotate_begin(&author).await,
        ("abort", _) => ca.rotate_abort(&author).await,
        ("switch", _) => ca.rotate_switch(&author).await,
        ("finish", _) => match ca.rotate_finish(&author).await {
            // It went on by itself at this very moment.
            Err(CaError::NoRotation) => Ok(ca.rotation()),
            finished => finished,
        },
        _ => {
            return Err(wrong("that is no step").hint("steps are begin, abort, switch and finish"));
        }
    };
    Ok(Json(of_rotation(ca, status?)))
}

pub async fn intermediate(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Intermediate>, Failure> {
    let request: IntermediateRequest = read(body).await?;
    let ca = ca(&api)?;
    let author = who.author(&request.author);
    let files = ca.intermediate(&author).await?;
    Ok(Json(Intermediate {
        trust_domain: ca.trust_domain().to_string(),
        root_cert: files.root_cert,
        ca_cert: files.ca_cert,
        ca_key: files.ca_key.to_string(),
        cert_chain: files.cert_chain,
        not_after_ms: ms(files.not_after),
    }))
}

fn ca(api: &Api) -> Result<&Ca, Failure> {
    api.inner.ca.as_ref().ok_or_else(|| {
        let error = "this control plane has no authority, so there are no certificates";
        Failure::new(StatusCode::NOT_FOUND, error)
    })
}

fn workload(ca: &Ca, of: (&str, &str), zone: Option<&str>) -> Result<Workload, Failure> {
    let workload = Workload::parse(ca.trust_domain(), of.0, of.1, zone);
    workload.map_err(|e| wrong(e.to_string()))
}

fn serials(texts: &[String]) -> Result<Vec<Serial>, Failure> {
    if texts.is_empty() || texts.len() > SERIALS_MAX {
        return Err(wrong(format!("1 to {SERIALS_MAX} serials are needed")));
    }
    let parsed = texts.iter().map(|text| Serial::parse(text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(e.to_string()))
}

fn wrong(error: impl Into<String>) -> Failure {
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error)
}

fn of_root(root: &Root) -> CaView {
    let cert = x509::Cert::parse(root.der()).ok();
    CaView {
        subject: root.subject().to_owned(),
        serial: cert.map(|c| c.serial.to_string()).unwrap_or_default(),
        fingerprint: hex(root.fingerprint()),
        not_after_ms: ms(root.not_after()),
    }
}

fn of_issuer(issuer: &Issuer) -> CaView {
    let cert = issuer.ca().cert();
    CaView {
        subject: cert.subject(),
        serial: cert.serial.to_string(),
        fingerprint: hex(&x509::fingerprint(issuer.ca().der())),
        not_after_ms: ms(cert.not_after),
    }
}

fn of_rotation(ca: &Ca, status: RotationStatus) -> Rotation {
    let (led_by, author, begun) = status.led.unwrap_or_default();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let waiting = status.waiting.into_iter().map(|who| Unconfirmed {
        id: who.id.to_string(),
        serial: who.serial.to_string(),
        not_after_ms: ms(who.not_after),
        plane: who.plane.unwrap_or_default(),
        error: who.error,
    });
    Rotation {
        phase: match status.phase {
            RotationPhase::Steady => "steady",
            RotationPhase::Overlap => "overlap",
            RotationPhase::Switched => "switched",
        }
        .to_owned(),
        roots: ca.roots().iter().map(of_root).collect(),
        issuer: of_issuer(ca.authority().active()),
        led_by,
        author,
        begun_ms: ms(begun),
        old: status.old,
        new: status.new,
        unconfirmed: count(status.untrusting),
        unconfirmed_connected: count(status.connected),
        settling: status.settling,
        waiting: waiting.collect(),
        outstanding: count(status.outstanding),
        outstanding_until_ms: status.outstanding_until.map(ms),
    }
}

fn of_token(token: Waits) -> JoinTokenView {
    JoinTokenView {
        id: token.id,
        namespace: token.namespace,
        service: token.service,
        zone: token.zone,
        expires_ms: ms(token.expires),
        author: token.author,
    }
}

fn of_entry(entry: &IssuedEntry) -> IssuedCertificate {
    let (attested_by, attested) = match &entry.attested {
        Attestation::JoinToken { id } => ("join_token", id.clone()),
        Attestation::Certificate { serial } => ("certificate", serial.to_string()),
        Attestation::ServiceAccount { subject } => ("service_account", subject.clone()),
        Attestation::Operator { name } => ("operator", name.clone()),
        Attestation::ControlPlane { name } => ("control_plane", name.clone()),
    };
    IssuedCertificate {
        serial: entry.serial.to_string(),
        id: entry.id.to_string(),
        names: entry.names.iter().map(Name::to_string).collect(),
        issued_ms: ms(entry.issued_at),
        not_before_ms: ms(entry.not_before),
        not_after_ms: ms(entry.not_after),
        issuer: entry.issuer.to_string(),
        fingerprint: entry.fingerprint.clone(),
        attested_by: attested_by.to_owned(),
        attested,
        revoked_ms: entry.revoked.as_ref().map(|r| ms(r.at)),
        reason: entry.revoked.as_ref().map(|r| r.reason.as_str().to_owned()),
    }
}

fn ms(at: UnixMillis) -> u64 {
    u64::try_from(at.0).unwrap_or_default()
}

fn now_ms() -> i64 {
    i64::try_from(crate::admit::unix_ms()).unwrap_or(i64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    x509::hex(bytes)
}

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        let text = told(&error);
        let failure = Self::new(status(error.fault()), text);
        let hint = match &error {
            CaError::NoToken { .. } => "`phalanx cert tokens` lists those that wait to be used",
            CaError::TokenUsed => {
                "what was joined with it shows in `phalanx cert list`; `phalanx cert revoke` ends that"
            }
            CaError::Csr(_) => {
                "ask for the service's own names, or for none: all of them are given"
            }
            CaError::Authority(_)
            | CaError::RotationUnderWay { .. }
            | CaError::NoRotation
            | CaError::LedElsewhere { .. } => {
                "`phalanx cert rotate-root --status` shows where it stands"
            }
            CaError::Store(_) => "nothing was issued; see `phalanx status`",
            _ => return failure,
        };
        failure.hint(hint)
    }
}

impl From<RevokeError> for Failure {
    fn from(error: RevokeError) -> Self {
        let failure = Self::new(status(error.fault()), told(&error));
        match &error {
            RevokeError::NotIssued { .. } | RevokeError::Expired { .. } => {
                failure.hint("`phalanx cert list` shows what was issued")
            }
            RevokeError::Own => failure.hint("`phalanx cert rotate-root` replaces what signs"),
            _ => failure,
        }
    }
}

fn status(fault: Fault) -> StatusCode {
    match fault {
        Fault::Request => StatusCode::UNPROCESSABLE_ENTITY,
        Fault::Denied => StatusCode::FORBIDDEN,
        Fault::State => StatusCode::CONFLICT,
        Fault::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Fault::Ours => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// With everything that its sources say.
fn told(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |e| e.source());
    sources.fold(error.to_string(), |text, source| match source.to_string() {
        more if text.contains(&more) => text,
        more => format!("{text}: {more}"),
    })
}
