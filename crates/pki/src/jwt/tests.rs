use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256,
};
use aws_lc_rs::{hmac, rsa};
use serde_json::{Value, json};
use x509_cert::der::Decode;
use x509_cert::der::asn1::Uint;

use super::*;

const NOW: UnixMillis = UnixMillis(1_795_000_000_000);
const ACCEPT: Accept<'_> = Accept {
    issuer: "https://kubernetes.default.svc",
    audience: "phalanx",
};

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

struct Signer {
    ec: EcdsaKeyPair,
    rsa: rsa::KeyPair,
    jwks: Vec<u8>,
    n: Vec<u8>,
}

impl Signer {
    fn new() -> Self {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let point = ec.public_key().as_ref();
        let numbers = Vec::<Uint>::from_der(rsa.public_key().as_ref()).unwrap();
        let components = PublicKeyComponents {
            n: numbers[0].as_bytes().to_vec(),
            e: numbers[1].as_bytes().to_vec(),
        };
        let jwks = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "alg": "ES256", "x": b64(&point[1..33]), "y": b64(&point[33..])},
            {"kty": "RSA", "kid": "rsa", "n": b64(&components.n), "e": b64(&components.e)},
            {"kty": "oct", "kid": "oct", "k": "AAAA"},
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": b64(&components.n), "e": b64(&components.e)},
        ]});
        let jwks = serde_json::to_vec(&jwks).unwrap();
        Self {
            ec,
            rsa,
            jwks,
            n: components.n,
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let rng = SystemRandom::new();
        let signature = if header["kid"] == "rsa" {
            let mut out = vec![0; self.rsa.public_modulus_len()];
            self.rsa
                .sign(&RSA_PKCS1_SHA256, &rng, message.as_bytes(), &mut out)
                .unwrap();
            out
        } else {
            self.ec
                .sign(&rng, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec()
        };
        format!("{message}.{}", b64(signature))
    }

    fn check(&self, header: &Value, claims: &Value) -> Result<ServiceAccount, JwtError> {
        self.verify(&self.sign(header, claims))
    }

    fn verify(&self, token: &str) -> Result<ServiceAccount, JwtError> {
        verify(&Jwks::parse(&self.jwks).unwrap(), token, &ACCEPT, NOW)
    }
}

fn claims() -> Value {
    json!({
        "iss": ACCEPT.issuer, "aud": ["phalanx"], "exp": 1_795_003_600, "iat": 1_795_000_000, "nbf": 1_795_000_000,
        "sub": "system:serviceaccount:arena:battle", "kubernetes.io": {"namespace": "arena"},
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

#[test]
fn a_token_names_its_service_account() {
    let signer = Signer::new();
    for (alg, kid) in [("ES256", "ec"), ("RS256", "rsa")] {
        let account = signer
            .check(&json!({"alg": alg, "kid": kid}), &claims())
            .unwrap();
        assert_eq!(
            (account.namespace.as_str(), account.name.as_str()),
            ("arena", "battle")
        );
        assert_eq!(account.not_after, UnixMillis::from_secs(1_795_003_600));
    }
    let one = signer.check(
        &json!({"alg": "ES256", "kid": "ec"}),
        &with("aud", json!("phalanx")),
    );
    assert!(one.is_ok());
}

#[test]
fn no_forged_token_gets_through() {
    let signer = Signer::new();
    let (message, good) = {
        let token = signer.sign(&json!({"alg": "ES256", "kid": "ec"}), &claims());
        (token.rsplit_once('.').unwrap().0.to_owned(), token)
    };
    let unsigned =
        |header: Value| format!("{}.{}.", b64(header.to_string()), b64(claims().to_string()));
    for header in [
        json!({"alg": "none", "kid": "ec"}),
        json!({"alg": "None", "kid": "rsa"}),
        json!({"alg": "HS256", "kid": "rsa"}),
        json!({"alg": "RS256", "kid": "ec"}),
        json!({"alg": "ES256", "kid": "rsa"}),
        json!({"alg": "ES384", "kid": "ec"}),
    ] {
        assert_eq!(
            signer.verify(&unsigned(header.clone())),
            Err(JwtError::Algorithm),
            "{header}"
        );
    }
    // HMAC with the public key as secret, named as what it is and as RS256.
    for alg in ["HS256", "RS256"] {
        let text = format!(
            "{}.{}",
            b64(json!({"alg": alg, "kid": "rsa"}).to_string()),
            b64(claims().to_string())
        );
        let mac = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &signer.n),
            text.as_bytes(),
        );
        assert!(signer.verify(&format!("{text}.{}", b64(mac))).is_err());
    }
    for kid in ["../../../dev/null", "oct", "enc", ""] {
        let done = signer.verify(&unsigned(json!({"alg": "ES256", "kid": kid})));
        assert_eq!(done, Err(JwtError::UnknownKey), "{kid}");
    }
    assert_eq!(
        signer.verify(&unsigned(json!({"alg": "ES256"}))),
        Err(JwtError::UnknownKey),
        "ambiguous without kid"
    );
    assert_eq!(
        signer.verify(&format!("{message}.{}", b64([0u8; 64]))),
        Err(JwtError::Signature)
    );
    assert_eq!(
        signer.verify(&format!("{message}.")),
        Err(JwtError::Signature)
    );
    let crit = json!({"alg": "ES256", "kid": "ec", "crit": ["b64"], "b64": false});
    assert_eq!(signer.check(&crit, &claims()), Err(JwtError::Malformed));
    // An embedded key or address is not looked at.
    let jwk =
        json!({"alg": "ES256", "kid": "evil", "jku": "http://127.0.0.1/", "jwk": {"kty": "EC"}});
    assert_eq!(signer.check(&jwk, &claims()), Err(JwtError::UnknownKey));
    for at in 0..good.len() {
        let mut forged = good.clone().into_bytes();
        forged[at] ^= 1;
        let Ok(forged) = String::from_utf8(forged) else {
            continue;
        };
        assert!(signer.verify(&forged).is_err(), "byte {at}");
    }
}

#[test]
fn claims_have_to_fit() {
    let signer = Signer::new();
    let check = |claims: Value| {
        signer
            .check(&json!({"alg": "ES256", "kid": "ec"}), &claims)
            .err()
    };
    assert_eq!(check(claims()), None);
    assert_eq!(
        check(with("iss", json!("https://evil"))),
        Some(JwtError::Issuer)
    );
    assert_eq!(check(with("aud", json!(["api"]))), Some(JwtError::Audience));
    assert_eq!(check(with("aud", json!([]))), Some(JwtError::Audience));
    assert!(matches!(
        check(with("exp", json!(1_794_999_000))),
        Some(JwtError::Expired { .. })
    ));
    assert_eq!(
        check(with("nbf", json!(1_795_000_060))),
        Some(JwtError::NotYetValid)
    );
    assert_eq!(
        check(with("iat", json!(1_795_000_060))),
        Some(JwtError::NotYetValid)
    );
    for sub in [
        "battle",
        "system:serviceaccount:arena",
        "system:serviceaccount:arena:a:b",
        "system:serviceaccount:Arena:b",
    ] {
        assert_eq!(
            check(with("sub", json!(sub))),
            Some(JwtError::Subject),
            "{sub}"
        );
    }
    for (name, value) in [
        ("exp", Value::Null),
        ("iss", Value::Null),
        ("aud", Value::Null),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
    ] {
        assert_eq!(
            check(with(name, value)),
            Some(JwtError::Malformed),
            "{name}"
        );
    }
}

#[test]
fn sizes_are_bounded() {
    let signer = Signer::new();
    assert_eq!(
        signer.verify(&"a".repeat(TOKEN_MAX + 1)),
        Err(JwtError::Malformed)
    );
    let deep = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    assert_eq!(
        signer.verify(&format!("{}.e30.AA", b64(deep))),
        Err(JwtError::Malformed)
    );
    for bad in ["", ".", "..", "...", "a.b.c", "e30.e30.AA"] {
        assert_eq!(signer.verify(bad), Err(JwtError::Malformed), "{bad}");
    }
    assert_eq!(
        Jwks::parse(&vec![b' '; JWKS_MAX + 1]).err(),
        Some(JwtError::Jwks)
    );
    assert_eq!(Jwks::parse(br#"{"keys": []}"#).err(), Some(JwtError::Jwks));
    let short = json!({"keys": [{"kty": "RSA", "n": b64([0xffu8; 128]), "e": "AQAB"}]});
    assert_eq!(
        Jwks::parse(short.to_string().as_bytes()).err(),
        Some(JwtError::Jwks)
    );
}
