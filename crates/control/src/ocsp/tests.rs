use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::issuer::{Issuer, RootCa};
use phalanx_pki::key::KeyKind;
use phalanx_pki::name::TrustDomain;
use phalanx_pki::ocsp::{Responder, Status};
use proptest::prelude::*;

use super::*;

/// An issuer that everybody is good for.
struct Good(Responder);

impl Source for Good {
    fn respond(&self, request: &[u8]) -> Vec<u8> {
        let now = SystemClock.now();
        self.0.respond(request, now, |_, _| Status::Good)
    }

    fn list(&self, issuer_key: &str) -> Option<Vec<u8>> {
        (issuer_key == "ab12").then(|| vec![0x30, 0x00])
    }

    fn ailment(&self) -> Option<String> {
        None
    }
}

fn issuer() -> Issuer {
    let domain = TrustDomain::parse("phalanx.local").unwrap();
    let (now, kind) = (SystemClock.now(), KeyKind::EcdsaP256);
    let root = RootCa::create(&domain, kind, now, Duration::from_secs(36_000)).unwrap();
    root.intermediate(kind, now, Duration::from_secs(3600))
        .unwrap()
}

const VALID: Duration = Duration::from_secs(600);

#[tokio::test]
async fn lists_go_by_their_issuers_key() {
    let responder = Responder::try_new([issuer().ca().clone()], VALID).unwrap();
    let router = router(Good(responder));
    for (path, status) in [
        ("/crl/ab12.crl", 200),
        ("/crl/ab12", 404),
        ("/crl/cd34.crl", 404),
        ("/crl/../ab12.crl", 404),
        ("/healthz", 200),
    ] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(send(&router, request).await, status, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_path_and_no_body_harms(path in "[ -~]{0,200}", body in prop::collection::vec(any::<u8>(), 0..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (get, post) = runtime.block_on(async {
            let responder = Responder::try_new([issuer().ca().clone()], VALID).unwrap();
            let router = router(Good(responder));
            let get = match axum::http::Uri::try_from(format!("/{path}")) {
                Ok(uri) => Some(send(&router, Request::get(uri).body(Body::empty()).unwrap()).await),
                Err(_) => None,
            };
            let post = Request::post("/").body(Body::from(body)).unwrap();
            (get, send(&router, post).await)
        });
        prop_assert!(get.is_none_or(|status| matches!(status.as_u16(), 200 | 404)));
        prop_assert_eq!(post, StatusCode::OK);
    }
}

async fn send(router: &Router, request: Request) -> StatusCode {
    use tower::ServiceExt;
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    status
}
