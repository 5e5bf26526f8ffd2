//! What users, and control planes of others, say: manifests, xDS resources, durations.

use std::time::Duration;

use phalanx_model::manifest::{self, PROBLEMS_MAX};
use phalanx_proxy::limit::deadline::{self, Timeout};
use phalanx_xds::decode::{self, Resource};
use phalanx_xds::{Kind, encode};

/// What was read without a problem reads the same from the form in which it is stored.
pub fn manifests(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let manifest = manifest::parse("fuzz.yaml", text, "default");
    assert!(manifest.problems.len() <= PROBLEMS_MAX + 1);
    for problem in &manifest.problems {
        assert!(!problem.to_string().is_empty());
    }
    for parsed in manifest.documents {
        let again = manifest::parse("fuzz.json", &parsed.json, "default");
        let again = again.into_result().unwrap_or_else(|problems| {
            panic!("{}\n{problems:?}", parsed.json);
        });
        let [again] = &again[..] else {
            panic!("one document: {}", parsed.json);
        };
        assert_eq!(again.document, parsed.document, "{}", parsed.json);
        assert_eq!(again.json, parsed.json);
    }
}

/// The first byte says which kind. What was understood is written, and understood as the same.
pub fn xds(bytes: &[u8]) {
    const KINDS: [Kind; 4] = [Kind::Listener, Kind::Routes, Kind::Cluster, Kind::Endpoints];
    let Some((kind, body)) = bytes.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let resource = match decode::decode(kind, body) {
        Ok(resource) => resource,
        Err(error) => {
            assert!(error.to_string().len() < 4 << 10, "{error}");
            return;
        }
    };
    let encoded = match &resource {
        Resource::Listener(listener) => encode::listener(listener),
        Resource::Routes(table) => encode::routes(table),
        Resource::Cluster(cluster) => encode::cluster(cluster),
        Resource::Endpoints(assignment) => encode::endpoints(assignment),
    };
    let again = decode::decode(kind, &encoded.body);
    match again {
        Ok(again) => assert_eq!(again, resource),
        Err(error) => panic!("{error}\n{resource:?}"),
    }
}

/// As `grpc-timeout`, and as the timeout of a route.
pub fn durations(bytes: &[u8]) {
    if let Some(ns) = deadline::parse(bytes) {
        assert!((2..=9).contains(&bytes.len()));
        if let Some(sent) = Timeout::new(ns) {
            let again = deadline::parse(sent.as_bytes()).unwrap();
            assert!(
                again <= ns && ns - again <= ns / 1_000 + 1_000,
                "{again} of {ns}"
            );
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if text.len() > 64
        || !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
    {
        return;
    }
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: a}}\nspec:\n  parentRefs: [{{kind: Service, name: a, group: \"\"}}]\n  rules: [{{timeouts: {{request: \"{text}\"}}, backendRefs: [{{name: a, port: 80}}]}}]\n"
    );
    let taken = manifest::parse("fuzz.yaml", &yaml, "default")
        .problems
        .is_empty();
    let meant = gateway(text);
    assert!(!taken || meant.is_some(), "{text:?} was taken");
    let usual = meant.is_some_and(|meant| meant <= Duration::from_secs(3600));
    assert!(taken || !usual, "{text:?} was refused");
}

/// GEP-2257, as its regular expression has it: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`.
fn gateway(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 5)?;
        rest = &rest[digits..];
        let (unit, ms) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * ms);
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}
