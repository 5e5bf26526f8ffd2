//! What peers show and ask for: certificates, requests for one, tokens, names.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use phalanx_model::identity::{SpiffeId, TrustDomain};
use phalanx_model::name::check_label;
use phalanx_model::resource::{Carrier, Session};
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::csr::Csr;
use phalanx_pki::issuer::{Issuer, RootCa};
use phalanx_pki::join::JoinToken;
use phalanx_pki::jwt::{self, Accept, Jwks};
use phalanx_pki::key::KeyKind;
use phalanx_pki::name::Name;
use phalanx_pki::ocsp::{Responder, Status, decode_get};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::{self, Cert, Serial};
use phalanx_proxy::plan::session::SessionPlan;
use phalanx_relay::{Field, HeaderList, Value};

const NOW: UnixMillis = UnixMillis(1_795_362_049_000);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn issuer() -> &'static Issuer {
    static ISSUER: OnceLock<Issuer> = OnceLock::new();
    ISSUER.get_or_init(|| {
        let root = RootCa::create(&TrustDomain::default(), KeyKind::default(), NOW, 10 * YEAR);
        let issuer = root.and_then(|root| root.intermediate(KeyKind::default(), NOW, YEAR));
        issuer.unwrap_or_else(|error| panic!("no issuer: {error}"))
    })
}

/// DER, PEM, and serial numbers as openssl prints them.
pub fn certificates(bytes: &[u8]) {
    if let Ok(cert) = Cert::parse(bytes) {
        let serial = Serial::parse(&cert.serial.to_string());
        assert_eq!(serial.ok(), Some(cert.serial.clone()));
        assert!(cert.subject().len() <= bytes.len() * 8 && cert.issuer().len() <= bytes.len() * 8);
    }
    if let Ok(certs) = x509::certs_from_pem(bytes) {
        let text = x509::certs_to_pem(&certs);
        let again = x509::certs_from_pem(text.as_bytes());
        assert_eq!(again.ok().as_deref(), Some(&certs[..]));
    }
    if let Ok(roots) = Roots::from_pem(bytes) {
        assert!(Roots::from_pem(roots.to_pem().as_bytes()).is_ok());
    }
    if let Some(serial) = text(bytes).and_then(|text| Serial::parse(text).ok()) {
        assert_eq!(Serial::parse(&serial.to_string()).ok(), Some(serial));
    }
}

/// A request that was taken proves its key, and asks for names that have a meaning.
pub fn requests_to_sign(bytes: &[u8]) {
    for csr in [Csr::from_der(bytes), Csr::from_pem(bytes)] {
        let Ok(csr) = csr else {
            continue;
        };
        assert!(!csr.spki().is_empty());
        for name in csr.names() {
            if let Name::Uri(uri) = name
                && let Ok(id) = uri.parse::<SpiffeId>()
            {
                assert_eq!(id.to_string(), *uri);
            }
        }
    }
}

/// By POST and by GET: whatever comes, an answer in DER goes out.
pub fn ocsp(bytes: &[u8]) {
    static RESPONDER: OnceLock<Responder> = OnceLock::new();
    let responder = RESPONDER.get_or_init(|| {
        let made = Responder::try_new([Arc::clone(issuer().ca())], Duration::from_secs(3600));
        made.unwrap_or_else(|error| panic!("no responder: {error}"))
    });
    let answer = |request: &[u8]| {
        let answer = responder.respond(request, NOW, |_, _| Status::Good);
        assert!(answer.first() == Some(&0x30) && answer.len() < 16 << 10);
    };
    answer(bytes);
    if let Some(request) = text(bytes).and_then(|text| decode_get(text).ok()) {
        answer(&request);
    }
}

/// A key that nobody has: of P-256, x and y are those of its generator.
const KEYS: &[u8] = br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","alg":"ES256","x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}]}"#;

/// Keys, and tokens, none of which was signed.
pub fn jwt(bytes: &[u8]) {
    let accept = Accept {
        issuer: "https://kubernetes.default.svc",
        audience: "phalanx",
    };
    if let Ok(keys) = Jwks::parse(bytes) {
        let taken = jwt::verify(&keys, "e30.e30.e30", &accept, NOW);
        assert!(taken.is_err());
    }
    let keys = Jwks::parse(KEYS).unwrap_or_else(|error| panic!("{error}"));
    if let Some(token) = text(bytes) {
        let taken = jwt::verify(&keys, token, &accept, NOW);
        assert!(taken.is_err(), "{taken:?}");
    }
}

pub fn join_tokens(bytes: &[u8]) {
    let Some(token) = text(bytes).and_then(|text| JoinToken::parse(text).ok()) else {
        return;
    };
    let again = JoinToken::parse(&token.to_text());
    assert!(again.is_ok_and(|again| again.id() == token.id() && again.is_of(&token.digest())));
    assert!(token.id().bytes().all(|byte| byte.is_ascii_hexdigit()));
}

/// SPIFFE ids, trust domains, labels, host names: written as they were read.
pub fn names_of_peers(bytes: &[u8]) {
    let Some(text) = text(bytes) else {
        return;
    };
    if let Ok(domain) = TrustDomain::parse(text) {
        assert_eq!(domain.as_str(), text);
        assert!(!text.contains(['/', '@', ':', ' ']));
    }
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert!(id.to_string().starts_with("spiffe://") && !text.contains(['?', '#', '%']));
    }
    if check_label(text).is_ok() {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!((1..=63).contains(&text.len()) && text.bytes().all(plain));
    }
    if let Ok(name) = Name::host(text) {
        assert!(!format!("{name:?}").contains('\n'));
    }
}

/// The token of a session, in a header and in a cookie.
pub fn sessions(bytes: &[u8]) {
    for carrier in [Carrier::Header, Carrier::Cookie, Carrier::PermanentCookie] {
        let session = Session {
            name: "room".into(),
            carrier,
            absolute: None,
            idle: None,
        };
        let Ok(plan) = SessionPlan::new(&session) else {
            panic!("a good session");
        };
        let name = match carrier {
            Carrier::Header => "room",
            _ => "cookie",
        };
        let (Ok(field), Some(value)) = (Field::new(name, ""), Value::new(bytes)) else {
            continue;
        };
        let mut headers = HeaderList::new();
        headers.push(field.name(), value);
        let Some(held) = plan.find(&headers) else {
            continue;
        };
        // Somewhere else, it is told anew, and that reads as where it is told.
        let other: SocketAddr = ([10, 1, 2, 3], 15006).into();
        let Some(told) = plan.renewed(Some(&held), other) else {
            continue; // it is there already
        };
        let told = told.value().as_bytes().to_vec();
        let pair = told.split(|byte| *byte == b';').next().unwrap_or_default();
        headers.clear();
        if let Some(value) = Value::new(pair) {
            headers.push(field.name(), value);
        }
        let moved = plan
            .find(&headers)
            .and_then(|held| plan.renewed(Some(&held), other));
        assert!(moved.is_none(), "{}", told.escape_ascii());
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
