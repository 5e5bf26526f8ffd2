//! Proofs: join tokens and service-account tokens.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::ca::{JwksConfig, JwksError, JwksSource};

#[tokio::test]
async fn a_token_is_good_for_one_key() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let battle = workload("battle");
    let token = ca.token(&battle, HOUR, "tester").await.unwrap();
    let (mine, other) = (new_key(), new_key());
    let first = ca.join(join(&battle, &token, &mine)).await.unwrap();
    assert!(matches!(
        first.record.attested,
        Attestation::JoinToken { .. }
    ));
    assert!(see(&first, &ca.roots(), plane.now()).is_ok());
    let refused = ca.join(join(&battle, &token, &other)).await;
    assert!(matches!(refused, Err(CaError::TokenUsed)), "{refused:?}");
    // The answer was lost: the same key asks again. Not for ever.
    let again = ca.join(join(&battle, &token, &mine)).await.unwrap();
    assert_ne!(again.record.serial, first.record.serial);
    plane.clock.advance(Duration::from_secs(601));
    let refused = ca.join(join(&battle, &token, &mine)).await;
    assert!(matches!(refused, Err(CaError::TokenUsed)), "{refused:?}");
}

#[tokio::test]
async fn of_many_who_show_one_token_at_once_exactly_one_joins() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let mut second = plane.beside("b");
    second.take_intermediate(&ca).await;
    let planes = [ca.clone(), second.open().await];
    let battle = workload("battle");
    let token = ca.token(&battle, HOUR, "tester").await.unwrap();
    let joins: Vec<_> = (0..16)
        .map(|n| {
            let (ca, request) = (planes[n % 2].clone(), join(&battle, &token, &new_key()));
            tokio::spawn(async move { ca.join(request).await })
        })
        .collect();
    let mut joined = 0;
    for join in joins {
        match join.await.unwrap() {
            Ok(_) => joined += 1,
            Err(CaError::TokenUsed) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn one_key_that_asks_twice_at_once_is_not_taken_for_two() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let (battle, mine) = (workload("battle"), new_key());
    let token = ca.token(&battle, HOUR, "tester").await.unwrap();
    let joins: Vec<_> = (0..3)
        .map(|_| {
            let (ca, request) = (ca.clone(), join(&battle, &token, &mine));
            tokio::spawn(async move { ca.join(request).await })
        })
        .collect();
    for join in joins {
        join.await.unwrap().unwrap();
    }
    let refused = ca.join(join(&battle, &token, &new_key())).await;
    assert!(matches!(refused, Err(CaError::TokenUsed)), "{refused:?}");
}

#[tokio::test]
async fn a_token_is_bound_to_service_zone_and_time() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let battle = Workload::parse(&domain(), "arena", "battle", Some("az1")).unwrap();
    let token = ca.token(&battle, HOUR, "tester").await.unwrap();
    let key = new_key();
    let refused = ca.join(join(&workload("match"), &token, &key)).await;
    assert!(
        matches!(refused, Err(CaError::TokenOfAnother { .. })),
        "{refused:?}"
    );
    let zone = JoinRequest {
        zone: "az2".into(),
        ..join(&battle, &token, &key)
    };
    assert!(matches!(ca.join(zone).await, Err(CaError::Join(_))));
    // Asking for a name of somebody else's uses nothing up.
    let greedy = JoinRequest {
        csr: csr::request(&key, &workload("match")).unwrap(),
        ..join(&battle, &token, &key)
    };
    assert!(matches!(ca.join(greedy).await, Err(CaError::Csr(_))));
    let forged = format!("{}x", &token[..token.len() - 1]);
    assert!(ca.join(join(&battle, &forged, &key)).await.is_err());
    // Without saying which zone, it is the token's.
    let issued = ca.join(join(&battle, &token, &key)).await.unwrap();
    assert_eq!(issued.record.names, battle.names());
    let late = ca.token(&battle, HOUR, "tester").await.unwrap();
    plane.clock.advance(HOUR + Duration::from_secs(1));
    let refused = ca.join(join(&battle, &late, &key)).await.unwrap_err();
    assert!(refused.to_string().contains("expired"), "{refused}");
    ca.prune_tokens().await.unwrap();
    let left = plane.store.list(crate::ca::record::TOKENS).await.unwrap();
    assert!(left.entries.is_empty());
    let long = ca
        .token(&battle, Duration::from_secs(8 * 86_400), "tester")
        .await;
    assert!(matches!(long, Err(CaError::Join(_))));
}

#[tokio::test]
async fn a_token_survives_a_restart_and_holds_at_every_plane() {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let data = tempfile::tempdir().unwrap();
    let at = || phalanx_store::Config::at(data.path().join("store"));
    let mut plane = Plane::of("a", Store::embedded(at()).await.unwrap(), clock);
    let ca = plane.open().await;
    let battle = workload("battle");
    let (one, two) = (
        ca.token(&battle, HOUR, "tester").await.unwrap(),
        ca.token(&battle, HOUR, "tester").await.unwrap(),
    );
    ca.join(join(&battle, &one, &new_key())).await.unwrap();
    drop(ca);
    plane.store.close().await;
    plane.store = Store::embedded(at()).await.unwrap();
    let ca = plane.open().await;
    let mut second = plane.beside("b");
    second.take_intermediate(&ca).await;
    let b = second.open().await;
    let refused = b.join(join(&battle, &one, &new_key())).await;
    assert!(matches!(refused, Err(CaError::TokenUsed)), "{refused:?}");
    b.join(join(&battle, &two, &new_key())).await.unwrap();
    let secret = two.rsplit('.').next().unwrap();
    let stored = plane.store.list("ca/").await.unwrap();
    for entry in stored.entries {
        assert!(
            !String::from_utf8_lossy(&entry.value).contains(secret),
            "{}",
            entry.key
        );
    }
}

struct Issuer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { pair, kid }
    }

    fn jwks(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"{}","x":"{}","y":"{}"}}]}}"#,
            self.kid,
            part(&point[1..33]),
            part(&point[33..])
        )
    }

    fn token(&self, account: &str, audience: &str, now: UnixMillis) -> String {
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, self.kid);
        let claims = format!(
            r#"{{"iss":"https://kube","sub":"system:serviceaccount:{account}","aud":["{audience}"],"exp":{}}}"#,
            now.as_secs() + 600
        );
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let mac = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref()))
    }
}

fn account(workload: &Workload, token: &str, key: &Key) -> JoinRequest {
    JoinRequest {
        proof: Proof::ServiceAccount(token.into()),
        ..join(workload, "", key)
    }
}

#[tokio::test]
async fn a_service_account_joins_as_itself_only() {
    let mut plane = Plane::first().await;
    let battle = workload("battle");
    let kube = Issuer::new("k1");
    let now = plane.now();
    let token = kube.token("arena:battle", "phalanx", now);
    let key = new_key();
    let refused = plane
        .open()
        .await
        .join(account(&battle, &token, &key))
        .await;
    assert!(
        matches!(refused, Err(CaError::Jwks(JwksError::None))),
        "{refused:?}"
    );
    let file = plane.dir.path().join("jwks.json");
    fs::write(&file, kube.jwks()).unwrap();
    plane.config.jwks = Some(JwksConfig {
        source: JwksSource::File(file),
        issuer: "https://kube".into(),
        audience: "phalanx".into(),
    });
    let ca = plane.open().await;
    let issued = ca.join(account(&battle, &token, &key)).await.unwrap();
    assert_eq!(issued.record.id, *battle.id());
    assert!(matches!(
        issued.record.attested,
        Attestation::ServiceAccount { .. }
    ));
    let refused = ca.join(account(&workload("match"), &token, &key)).await;
    assert!(
        matches!(refused, Err(CaError::JwtOfAnother { .. })),
        "{refused:?}"
    );
    let zone = JoinRequest {
        zone: "az1".into(),
        ..account(&battle, &token, &key)
    };
    assert!(matches!(ca.join(zone).await, Err(CaError::ZoneUnproven)));
    for bad in [
        kube.token("arena:battle", "somebody", now),
        Issuer::new("k1").token("arena:battle", "phalanx", now),
        kube.token("arena:battle", "phalanx", now.minus(HOUR)),
        kube.token("phalanx-system:control", "phalanx", now),
    ] {
        let whom = match bad.contains(&URL_SAFE_NO_PAD.encode("phalanx-system")[..8]) {
            true => Workload::control(&domain()).unwrap(),
            false => battle.clone(),
        };
        let refused = ca.join(account(&whom, &bad, &key)).await;
        assert!(refused.is_err());
    }
    let control = Workload::control(&domain()).unwrap();
    let forged = kube.token("phalanx-system:control", "phalanx", now);
    let refused = ca.join(account(&control, &forged, &key)).await;
    assert!(
        matches!(refused, Err(CaError::Reserved { .. })),
        "{refused:?}"
    );
}

/// Answers every request with what is set.
async fn serve(body: Arc<std::sync::Mutex<String>>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/openid/v1/jwks", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let body = body.lock().unwrap().clone();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, task)
}

#[tokio::test]
async fn keys_at_an_address_are_fetched_again_and_bounded() {
    let mut plane = Plane::first().await;
    let now = plane.now();
    let battle = workload("battle");
    let (old, new) = (Issuer::new("k1"), Issuer::new("k2"));
    let body = Arc::new(std::sync::Mutex::new(old.jwks()));
    let (url, task) = serve(body.clone()).await;
    plane.config.jwks = Some(JwksConfig {
        source: JwksSource::Address {
            url,
            roots: None,
            token: None,
        },
        issuer: "https://kube".into(),
        audience: "phalanx".into(),
    });
    let ca = plane.open().await;
    let key = new_key();
    let joined = |issuer: &Issuer| {
        let token = issuer.token("arena:battle", "phalanx", now);
        let request = account(&battle, &token, &key);
        let ca = ca.clone();
        async move { ca.join(request).await }
    };
    joined(&old).await.unwrap();
    *body.lock().unwrap() = new.jwks();
    // Keys were fetched a moment ago; a stranger's token doesn't make us ask at once again.
    assert!(joined(&new).await.is_err());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    joined(&new).await.unwrap();
    assert!(
        joined(&old).await.is_err(),
        "what is no longer listed is good no more"
    );
    *body.lock().unwrap() = "x".repeat(200_000);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(601)).await;
    tokio::time::resume();
    let jwks = ca.0.jwks.as_ref().unwrap();
    let refused = jwks.tend().await;
    assert!(
        matches!(refused, Err(JwksError::Body { .. })),
        "{refused:?}"
    );
    joined(&new).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn a_source_of_keys_that_hangs_is_waited_for_once_by_all() {
    let mut plane = Plane::first().await;
    let now = plane.now();
    let battle = workload("battle");
    let (known, strange) = (Issuer::new("k1"), Issuer::new("k2"));
    let (url, task) = serve(Arc::new(std::sync::Mutex::new(known.jwks()))).await;
    let address: std::net::SocketAddr = url["http://".len()..]
        .split_once('/')
        .unwrap()
        .0
        .parse()
        .unwrap();
    plane.config.jwks = Some(JwksConfig {
        source: JwksSource::Address {
            url,
            roots: None,
            token: None,
        },
        issuer: "https://kube".into(),
        audience: "phalanx".into(),
    });
    let ca = plane.open().await;
    let token = known.token("arena:battle", "phalanx", now);
    let key = new_key();
    ca.join(account(&battle, &token, &key)).await.unwrap();
    task.abort();
    let _ = task.await;
    let hanging = TcpListener::bind(address).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    let start = tokio::time::Instant::now();
    let joins: Vec<_> = (0..8)
        .map(|_| {
            let token = strange.token("arena:battle", "phalanx", now);
            let (ca, request) = (ca.clone(), account(&battle, &token, &key));
            tokio::spawn(async move { ca.join(request).await })
        })
        .collect();
    for join in joins {
        join.await.unwrap().unwrap_err();
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    drop(hanging);
}
