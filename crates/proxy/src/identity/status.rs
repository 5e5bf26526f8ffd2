//! How it stands with the certificate, for people and for metrics. Never a key, never a token.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_client::secure::Rejection;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::identity::Identity;
use phalanx_pki::name::Workload;
use phalanx_telemetry::metrics::{Exposition, Family};
use serde_json::{Value, json};

const EXPIRY: Family = Family::gauge(
    "phalanx_certificate_expiry_seconds",
    "Until the sidecar's certificate ends; below zero after that, and absent without one.",
);
const RENEWALS: Family = Family::counter(
    "phalanx_certificate_renewals_total",
    "Certificates that were asked for or found in files, the first included, by result.",
);
const ALARM: Family = Family::gauge(
    "phalanx_certificate_alarm",
    "Whether something is wrong with the certificate or with whom to trust, by what it is.",
);
const TRUST_VERSION: Family = Family::gauge(
    "phalanx_trust_version",
    "Version of the roots and revocations in force, as the control plane counts; 0 before the first.",
);
const TRUST_UPDATES: Family = Family::counter(
    "phalanx_trust_updates_total",
    "What the control plane told of whom to trust, by whether it was taken.",
);
const REVOKED: Family = Family::gauge(
    "phalanx_revoked_certificates",
    "Serials on the revocation lists in force.",
);

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The next certificate could not be had.
    Renewal,
    /// What the control plane tells of whom to trust is not taken.
    Trust,
    /// What is new in the watched files can't be used.
    Files,
    /// The files that are watched end soon, and nobody has replaced them.
    Expiring,
    /// The identity directory can't be written.
    Directory,
}

impl Topic {
    pub const ALL: [Self; 5] = [
        Self::Renewal,
        Self::Trust,
        Self::Files,
        Self::Expiring,
        Self::Directory,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Renewal => "renewal",
            Self::Trust => "trust",
            Self::Files => "files",
            Self::Expiring => "expiring",
            Self::Directory => "directory",
        }
    }
}

#[derive(Debug)]
pub struct Status {
    dir: PathBuf,
    /// By the control plane; else the files are somebody else's.
    is_issued: bool,
    renewed: AtomicU64,
    failed: AtomicU64,
    trust_version: AtomicU64,
    trust_taken: AtomicU64,
    trust_refused: AtomicU64,
    /// Held for a few lines, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is wrong now.
    alarms: BTreeMap<Topic, String>,
    /// The last that was wrong, even if it is not any more.
    last_error: Option<String>,
    trust_told_at: Option<UnixMillis>,
    staple_error: Option<String>,
    /// Which certificate the control plane does not take.
    rejected: Option<Rejection>,
}

impl Status {
    pub fn new(dir: PathBuf, is_issued: bool) -> Self {
        Self {
            dir,
            is_issued,
            renewed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            trust_version: AtomicU64::new(0),
            trust_taken: AtomicU64::new(0),
            trust_refused: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Says that something is wrong; whether that is news.
    pub fn alarm(&self, topic: Topic, why: String) -> bool {
        let mut state = self.state();
        state.last_error = Some(format!("{}: {why}", topic.as_str()));
        state.alarms.insert(topic, why.clone()).as_ref() != Some(&why)
    }

    /// Says that it is in order (again).
    pub fn settle(&self, topic: Topic) {
        self.state().alarms.remove(&topic);
    }

    pub fn renewed(&self) {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        self.settle(Topic::Renewal);
    }

    /// Whether that is news.
    pub fn failed(&self, topic: Topic, why: String) -> bool {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.alarm(topic, why)
    }

    pub fn trusted(&self, version: u64, now: UnixMillis) {
        self.trust_version.store(version, Ordering::Relaxed);
        self.trust_taken.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.trust_told_at = Some(now);
        state.alarms.remove(&Topic::Trust);
    }

    /// Whether that is news.
    pub fn distrusted(&self, why: String) -> bool {
        self.trust_refused.fetch_add(1, Ordering::Relaxed);
        self.alarm(Topic::Trust, why)
    }

    pub fn trust_version(&self) -> u64 {
        self.trust_version.load(Ordering::Relaxed)
    }

    /// What the last staple came to.
    pub fn staple(&self, error: Option<String>) {
        self.state().staple_error = error;
    }

    /// Which certificate the control plane does not take any more; none: it takes what we have.
    pub fn rejected(&self, rejection: Option<&Rejection>) {
        self.state().rejected = rejection.cloned();
    }

    pub fn not_ready(&self, identity: &Identity) -> Option<String> {
        let state = self.state();
        let why = |topics: &[Topic]| {
            let known = topics.iter().find_map(|topic| state.alarms.get(topic));
            known.map(|why| format!(": {why}")).unwrap_or_default()
        };
        let topics = [Topic::Renewal, Topic::Files];
        match identity.credentials() {
            None if self.is_issued => Some(format!(
                "no certificate from the control plane yet{}",
                why(&topics)
            )),
            None => Some(format!(
                "no certificate in {} yet{}",
                self.dir.display(),
                why(&topics)
            )),
            Some(credentials) if credentials.not_after() <= identity.now() => Some(format!(
                "the certificate expired at {}{}",
                credentials.not_after(),
                why(&topics)
            )),
            Some(credentials) => {
                let serial = &credentials.peer().serial;
                let rejected = state.rejected.as_ref().filter(|r| r.serial == *serial)?;
                Some(format!(
                    "the control plane does not take the certificate, it is {}{}",
                    rejected.reason(),
                    why(&topics)
                ))
            }
        }
    }

    pub fn write(&self, identity: &Identity, out: &mut Exposition) {
        let mut samples = out.family(&EXPIRY);
        if let Some(credentials) = identity.credentials() {
            let left = credentials.not_after().0.saturating_sub(identity.now().0);
            samples.sample(&[], left as f64 / 1000.0);
        }
        out.family(&RENEWALS)
            .sample(&[("result", "ok")], self.renewed.load(Ordering::Relaxed))
            .sample(&[("result", "failed")], self.failed.load(Ordering::Relaxed));
        let state = self.state();
        let mut samples = out.family(&ALARM);
        for topic in Topic::ALL {
            let is_on = state.alarms.contains_key(&topic);
            samples.sample(&[("about", topic.as_str())], u64::from(is_on));
        }
        drop(state);
        out.family(&TRUST_VERSION).sample(&[], self.trust_version());
        out.family(&TRUST_UPDATES)
            .sample(
                &[("result", "taken")],
                self.trust_taken.load(Ordering::Relaxed),
            )
            .sample(
                &[("result", "refused")],
                self.trust_refused.load(Ordering::Relaxed),
            );
        out.family(&REVOKED)
            .sample(&[], identity.revocations().len() as u64);
    }

    pub fn page(&self, own: &Workload, identity: &Identity) -> Value {
        let now = identity.now();
        let state = self.state();
        let alarms: BTreeMap<&str, &String> = state
            .alarms
            .iter()
            .map(|(topic, why)| (topic.as_str(), why))
            .collect();
        json!({
            "id": own.id().to_string(),
            "source": self.source(),
            "directory": self.dir.display().to_string(),
            "certificate": certificate(identity, state.staple_error.as_deref()),
            "roots": roots(identity),
            "crls": crls(identity, now),
            "trust": {
                "version": self.trust_version(),
                "told_at": state.trust_told_at.map(|at| at.to_string()),
                "taken": self.trust_taken.load(Ordering::Relaxed),
                "refused": self.trust_refused.load(Ordering::Relaxed),
            },
            "renewals": {
                "ok": self.renewed.load(Ordering::Relaxed),
                "failed": self.failed.load(Ordering::Relaxed),
            },
            "alarms": alarms,
            "last_error": state.last_error,
        })
    }

    pub fn line(&self, identity: &Identity) -> Value {
        let credentials = identity.credentials();
        let peer = credentials.as_ref().map(|c| c.peer());
        json!({
            "source": self.source(),
            "id": peer.map(|peer| peer.id.to_string()),
            "serial": peer.map(|peer| peer.serial.to_string()),
            "not_after": peer.map(|peer| peer.not_after.to_string()),
            "trust_version": self.trust_version(),
        })
    }

    fn source(&self) -> &'static str {
        match self.is_issued {
            true => "control plane",
            false => "files",
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn certificate(identity: &Identity, staple_error: Option<&str>) -> Value {
    let Some(credentials) = identity.credentials() else {
        return Value::Null;
    };
    let peer = credentials.peer();
    let staple = credentials.staple().map(|staple| {
        json!({
            "this_update": staple.this_update.to_string(),
            "next_update": staple.next_update.to_string(),
        })
    });
    json!({
        "serial": peer.serial.to_string(),
        "id": peer.id.to_string(),
        "dns_names": peer.dns_names,
        "not_before": peer.not_before.to_string(),
        "not_after": peer.not_after.to_string(),
        "remaining_seconds": identity.now().until(peer.not_after).as_secs(),
        "sha256": hex(&peer.fingerprint),
        "staple": staple,
        "staple_error": staple_error,
    })
}

fn roots(identity: &Identity) -> Vec<Value> {
    let roots = identity.roots();
    let shown = roots.iter().flat_map(|roots| roots.iter()).map(|root| {
        json!({
            "subject": root.subject(),
            "sha256": hex(root.fingerprint()),
            "not_after": root.not_after().to_string(),
        })
    });
    shown.collect()
}

fn crls(identity: &Identity, now: UnixMillis) -> Vec<Value> {
    let revocations = identity.revocations();
    let lists = revocations.lists().map(|list| {
        json!({
            "issuer_key": hex(&list.issuer_key),
            "number": list.number,
            "next_update": list.next_update.to_string(),
            "is_stale": list.next_update < now,
            "serials": list.serials,
        })
    });
    lists.collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
