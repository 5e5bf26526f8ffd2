//! A control plane that is killed again and again while workloads join and renew all the time: whatever certificate somebody was
//! given is in the log of those that come after, no serial is given twice, and a token is good for one workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use phalanx_client::admin::Admin;
use phalanx_client::api::{IssuedCertificate, IssuedQuery, JoinTokenRequest};
use phalanx_client::identity::Proof;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_testkit::eventually;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::member::Member;
use tokio::task::JoinSet;
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(60);
const KILLS: usize = 4;
const KILLS_SOAK: usize = 30;
/// Workloads that come, renew a few times and go.
const AT_ONCE: usize = 4;
const RENEWALS: usize = 6;

/// What workloads were given, by serial: of which service.
type Given = Arc<Mutex<BTreeMap<String, String>>>;

struct Crowd {
    client: Admin,
    control: String,
    roots: String,
    given: Given,
    /// Serials that were given before.
    twice: Mutex<Vec<String>>,
    /// Tokens that two keys were taken for.
    shared: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Crowd {
    fn note(&self, serial: String, service: &str) {
        let before = self
            .given
            .lock()
            .ok()
            .and_then(|mut given| given.insert(serial.clone(), service.to_owned()));
        if before.is_some()
            && let Ok(mut twice) = self.twice.lock()
        {
            twice.push(serial);
        }
    }

    /// One after the other, until it is over.
    async fn live(self: Arc<Self>, place: usize) -> anyhow::Result<usize> {
        let mut lives = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let service = format!("w-{place}-{lives}");
            if self.join_and_renew(&service).await.is_ok() {
                lives += 1;
            } else {
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(lives)
    }

    async fn join_and_renew(&self, service: &str) -> anyhow::Result<()> {
        let request = JoinTokenRequest {
            namespace: "default".into(),
            service: service.to_owned(),
            ttl_ms: 600_000,
            ..JoinTokenRequest::default()
        };
        let token = self.client.join_token(&request).await?.token;
        let member = Member::new(&self.control, &self.roots, service)?;
        let key = Key::generate(KeyKind::default())?;
        // An answer may be lost: the same key asks again, as a sidecar does.
        let mut tries = 0;
        loop {
            let proof = Proof::JoinToken(token.clone());
            match member.join_as(proof, key.clone()).await {
                Ok(serial) => break self.note(serial.to_string(), service),
                Err(error) if tries > 200 => return Err(error),
                Err(_) => tries += 1,
            }
            sleep(Duration::from_millis(50)).await;
        }
        // Somebody else who has it comes too late, whatever was killed in between.
        let thief = Member::new(&self.control, &self.roots, service)?;
        if let Ok(serial) = thief.join(Proof::JoinToken(token)).await
            && let Ok(mut shared) = self.shared.lock()
        {
            shared.push(format!("{service} {serial}"));
        }
        for _ in 0..RENEWALS {
            if let Ok(serial) = member.renew().await {
                self.note(serial.to_string(), service);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The whole log, service by service: an answer has a bound.
async fn log(
    plane: &Guarded,
    services: &BTreeSet<String>,
) -> anyhow::Result<Vec<IssuedCertificate>> {
    let mut all = Vec::new();
    for service in services {
        let query = IssuedQuery {
            service: Some(service.clone()),
            limit: Some(1000),
            ..IssuedQuery::default()
        };
        let found = plane.client()?.issued(&query).await?;
        anyhow::ensure!(!found.more, "{service} has more than are told");
        all.extend(found.items);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_survives_each_kill() -> anyhow::Result<()> {
    let is_soak = std::env::var_os("PHALANX_SOAK").is_some();
    let kills = if is_soak { KILLS_SOAK } else { KILLS };
    let mut plane = Guarded::start().await?;
    let crowd = Arc::new(Crowd {
        client: plane.client()?.with_timeout(Duration::from_secs(5)),
        control: plane.xds.to_string(),
        roots: plane.roots()?,
        given: Given::default(),
        twice: Mutex::default(),
        shared: Mutex::default(),
        is_over: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for place in 0..AT_ONCE {
        tasks.spawn(crowd.clone().live(place));
    }
    let given = || crowd.given.lock().map_or(0, |given| given.len());
    for round in 0..kills {
        // Never before something came of the start before.
        let before = given();
        eventually("certificates", LIMIT, async || {
            (given() >= before + 5).then_some(())
        })
        .await
        .with_context(|| plane.process.log())?;
        // At any moment of what is under way.
        sleep(Duration::from_millis((round as u64 * 37) % 200)).await;
        plane.restart().await?;
    }
    crowd.is_over.store(true, Ordering::Relaxed);
    let mut lives = 0;
    while let Some(lived) = tasks.join_next().await {
        lives += lived??;
    }
    let told = crowd.given.lock().map(|given| given.clone());
    let told = told.unwrap_or_default();
    let services: BTreeSet<String> = told.values().cloned().collect();
    let log = log(&plane, &services).await?;
    println!(
        "{kills} kills, {lives} workloads, {} certificates given, {} of these services in the log",
        told.len(),
        log.len()
    );
    let logged: BTreeMap<&str, &IssuedCertificate> =
        log.iter().map(|line| (&*line.serial, line)).collect();
    assert_eq!(logged.len(), log.len(), "a serial is there twice");
    for (serial, service) in &told {
        let line = logged.get(&**serial);
        let line = line.with_context(|| format!("{serial} of {service} is not in the log"))?;
        assert!(line.id.ends_with(&format!("/sa/{service}")), "{line:?}");
    }
    assert_eq!(crowd.twice.lock().map_or(1, |twice| twice.len()), 0);
    let shared = crowd.shared.lock().map(|shared| shared.clone());
    assert_eq!(shared.unwrap_or_default(), Vec::<String>::new());
    // No renewal but of what is in the log, too.
    for line in log.iter().filter(|line| line.attested_by == "certificate") {
        assert!(logged.contains_key(&*line.attested), "{line:?}");
    }
    Ok(())
}
