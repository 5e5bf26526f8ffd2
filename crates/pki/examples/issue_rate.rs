//! How many leaves one core issues in a second; compare with `openssl speed ecdsap256` on the same machine.
//! `cargo run --release -p phalanx-pki --example issue_rate`

use std::time::{Duration, Instant};

use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::{Attestation, Order, RootCa, Urls};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::ocsp::{Responder, Status};
use phalanx_pki::revocation::Revocations;
use phalanx_pki::verifier::{self, Expected, Policy, Role};

const SPAN: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = SystemClock.now();
    let hour = Duration::from_secs(3600);
    let domain = TrustDomain::parse("phalanx.local")?;
    let root = RootCa::create(&domain, KeyKind::default(), now, 1000 * hour)?;
    let urls = Urls {
        ocsp: Some("http://127.0.0.1:15082/".into()),
        crl: Some("http://127.0.0.1:15082/crl".into()),
    };
    let issuer = root
        .intermediate(KeyKind::default(), now, 500 * hour)?
        .with_urls(urls);
    let workload = Workload::parse(&domain, "arena", "battle", Some("az1"))?;
    let key = Key::generate(KeyKind::default())?;
    let request = csr::request(&key, &workload)?;
    let order = Order::new(
        &workload,
        72 * hour,
        Attestation::Operator {
            name: "bench".into(),
        },
    );
    let issued = issuer.issue_to(key.spki(), &order, now)?;
    let responder = Responder::try_new([issuer.ca().clone()], hour)?;
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain));
    let staple = responder.staple(&issued.chain[0], Status::Good, now)?;
    let stapled = Policy::new(Role::Server, policy.expected.clone());

    rate("leaves", || {
        issuer.issue_to(key.spki(), &order, now).map(|_| ())
    })?;
    rate("requests checked and leaves", || {
        issuer
            .issue(&Csr::from_der(&request)?, &order, now)
            .map(|_| ())
    })?;
    rate("staples", || {
        responder
            .staple(&issued.chain[0], Status::Good, now)
            .map(|_| ())
    })?;
    let revocations = Revocations::default();
    rate("chains verified", || {
        verifier::verify(
            &issued.chain,
            &[],
            issuer.roots(),
            &revocations,
            &policy,
            now,
        )
        .map(|_| ())
    })?;
    rate("chains and staples verified", || {
        verifier::verify(
            &issued.chain,
            &staple,
            issuer.roots(),
            &revocations,
            &stapled,
            now,
        )
        .map(|_| ())
    })?;
    rate("key pairs made", || {
        Key::generate(KeyKind::default()).map(|_| ())
    })?;
    Ok(())
}

/// By this thread's time on a CPU, so that a busy machine doesn't count.
fn rate<E: std::error::Error + 'static>(
    what: &str,
    mut one: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let (start, before) = (Instant::now(), on_cpu());
    let mut count = 0u32;
    while start.elapsed() < SPAN {
        for _ in 0..16 {
            one()?;
        }
        count += 16;
    }
    let spent = match (before, on_cpu()) {
        (Some(before), Some(after)) => after - before,
        _ => start.elapsed(),
    };
    println!(
        "{:>9.0} {what} per second of a core",
        f64::from(count) / spent.as_secs_f64()
    );
    Ok(())
}

/// Linux only: the first number of schedstat is nanoseconds on a CPU.
fn on_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}
