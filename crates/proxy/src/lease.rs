//! Asks the control plane for tokens of limits that sidecars share, a few times a second and only about what is used; what
//! it says is for the requests that come next.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_client::limits::{ASKS_MAX, Ask, Lessee};
use phalanx_telemetry::metrics::{Exposition, Family};
use tokio::time::sleep;
use tracing::debug;

use crate::plan::Plan;
use crate::quota::clock;
use crate::quota::leases::{self, Grant, Leases};

#[derive(Debug, Default)]
pub struct Counts {
    questions: AtomicU64,
    failures: AtomicU64,
}

const QUESTIONS: Family = Family::counter(
    "phalanx_limit_questions_total",
    "Questions about keys of global rate limits that the control plane was asked.",
);
const FAILURES: Family = Family::counter(
    "phalanx_limit_failures_total",
    "Calls about global rate limits that were not answered.",
);

impl Counts {
    pub fn write(&self, out: &mut Exposition) {
        let counts = [(&QUESTIONS, &self.questions), (&FAILURES, &self.failures)];
        for (family, count) in counts {
            out.family(family)
                .sample(&[], count.load(Ordering::Relaxed));
        }
    }
}

/// Asks as long as the sidecar lives.
pub async fn run(lessee: Lessee, plan: Arc<ArcSwap<Plan>>, counts: Arc<Counts>) {
    let asker = Asker {
        lessee,
        plan,
        counts,
        held: HashMap::new(),
    };
    asker.run().await;
}

struct Asker {
    lessee: Lessee,
    plan: Arc<ArcSwap<Plan>>,
    counts: Arc<Counts>,
    /// Slots with tokens, by policy.
    held: HashMap<String, BTreeSet<usize>>,
}

impl Asker {
    async fn run(mut self) {
        loop {
            let all: Vec<Arc<Leases>> = self.plan.load().leases();
            if all.is_empty() {
                self.held.clear();
                sleep(NOTHING_TO_ASK).await;
                continue;
            }
            self.held
                .retain(|policy, _| all.iter().any(|leases| leases.policy == *policy));
            match self.ask(&all).await {
                true => sleep(PAUSE).await,
                false => sleep(FAILED).await,
            }
        }
    }

    /// False when nobody answered.
    async fn ask(&mut self, all: &[Arc<Leases>]) -> bool {
        let now_ns = clock::now_ns();
        let mut asked: Vec<(&Arc<Leases>, leases::Ask)> = Vec::new();
        for leases in all {
            let held = self.held.entry(leases.policy.clone()).or_default();
            let room = ASKS_MAX.saturating_sub(asked.len());
            if room >= ROOM_MIN {
                let asks = leases.gather(now_ns, room, held);
                asked.extend(asks.into_iter().map(|ask| (leases, ask)));
            }
        }
        asked.truncate(ASKS_MAX);
        if asked.is_empty() {
            return true;
        }
        let questions: Vec<Ask> = asked
            .iter()
            .map(|(leases, ask)| Ask {
                policy: leases.policy.clone(),
                key: ask.key,
                spent: ask.spent,
                wanted: ask.wanted,
                returned: ask.returned,
            })
            .collect();
        self.counts
            .questions
            .fetch_add(questions.len() as u64, Ordering::Relaxed);
        let answer = self.lessee.lease(&questions).await;
        let is_heard = answer.is_ok();
        let grants = answer.unwrap_or_else(|error| {
            debug!(%error, "no tokens");
            self.counts.failures.fetch_add(1, Ordering::Relaxed);
            vec![None; asked.len()]
        });
        let now_ns = clock::now_ns();
        for ((leases, ask), grant) in asked.iter().zip(grants) {
            let held = self.held.entry(leases.policy.clone()).or_default();
            match grant {
                Some(grant) => {
                    let grant = Grant {
                        tokens: grant.tokens,
                        dry_ns: grant.dry_ns,
                    };
                    leases.grant(ask, grant, now_ns, held);
                }
                None => leases.unanswered(ask),
            }
        }
        is_heard
    }
}

/// Between two calls: how long a request may be let through unseen.
const PAUSE: Duration = Duration::from_millis(20);
const FAILED: Duration = Duration::from_millis(200);
/// Until a plan with limits is noticed.
const NOTHING_TO_ASK: Duration = Duration::from_millis(200);
/// Questions come by words of 64 keys.
const ROOM_MIN: usize = 64;
