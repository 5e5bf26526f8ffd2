//! What is known of each endpoint: who was asked to check it, what each says, and the verdict. Times come in.
//!
//! The rule: an endpoint is unhealthy only if every checker that can be heard says so. One that says it is healthy decides;
//! one that was told only just now is waited for; a word that is too old, or of one that left, does not count. Where nobody
//! says anything, the verdict stays as it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::health::State;
use phalanx_model::ServiceName;
use phalanx_model::resource::HealthCheck;
use tokio::time::Instant;

use super::assign::Spread;
use super::targets::{Target, Targets};
use super::{Gauges, Key};
use crate::admit::unix_ms;
use crate::world::{Verdict, VerdictState, World};

/// Number of a checker's stream.
pub type Who = u64;
/// This process, asking itself.
pub const PROBER: Who = 0;

#[derive(Debug, Default)]
pub struct Board {
    entries: BTreeMap<Key, Entry>,
}

#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    checkers: BTreeMap<Who, Word>,
    state: State,
    reason: String,
    by: String,
    /// Unix milliseconds.
    since_ms: u64,
}

/// What one checker says.
#[derive(Debug)]
struct Word {
    told: Instant,
    heard: Option<Instant>,
    is_healthy: bool,
    reason: String,
    /// It has said so once: then it keeps to the threshold itself.
    was_healthy: bool,
}

/// One endpoint, for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub service: ServiceName,
    pub address: SocketAddr,
    pub zone: String,
    pub instance: String,
    pub state: State,
    pub reason: String,
    /// Whose word the verdict follows, separated by `, `.
    pub by: String,
    /// Unix milliseconds.
    pub since_ms: u64,
    pub checkers: Vec<Opinion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    pub checker: String,
    pub state: State,
    pub reason: String,
}

impl View {
    pub fn is_unhealthy(&self) -> bool {
        self.state == State::Unhealthy
    }
}

impl Board {
    /// From now on these endpoints. Of a new one is believed what the world says: a verdict survives the control plane that
    /// gave it.
    pub fn set(&mut self, targets: &Targets, world: &World) {
        self.entries.retain(|key, _| targets.contains_key(key));
        for (key, target) in targets {
            match self.entries.get_mut(key) {
                Some(entry) if entry.target == *target => {}
                Some(entry) => {
                    // Another question: what was answered to the last one says nothing.
                    entry.target = target.clone();
                    entry.checkers.clear();
                }
                None => {
                    self.entries.insert(
                        key.clone(),
                        Entry::new(target, world.verdict(&key.0, &key.1)),
                    );
                }
            }
        }
    }

    /// Notes who was told to check what.
    pub fn assign(&mut self, spread: Spread, now: Instant) {
        let mut told: BTreeMap<Key, Vec<Who>> = BTreeMap::new();
        let by_prober = spread.alone.into_iter().map(|key| (PROBER, key));
        let by_others = spread.by_checker.into_iter();
        let by_others =
            by_others.flat_map(|(who, keys)| keys.into_iter().map(move |key| (who, key)));
        for (who, key) in by_others.chain(by_prober) {
            told.entry(key).or_default().push(who);
        }
        for (key, entry) in &mut self.entries {
            let told = told.remove(key).unwrap_or_default();
            entry.checkers.retain(|who, _| told.contains(who));
            for who in told {
                entry.checkers.entry(who).or_insert_with(|| Word::none(now));
            }
        }
    }

    pub fn leave(&mut self, who: Who) {
        for entry in self.entries.values_mut() {
            entry.checkers.remove(&who);
        }
    }

    /// None when this checker was not asked about that endpoint, else whether it says something new.
    pub fn report(
        &mut self,
        who: Who,
        key: &Key,
        is_healthy: bool,
        reason: String,
        now: Instant,
    ) -> Option<bool> {
        let word = self.entries.get_mut(key)?.checkers.get_mut(&who)?;
        let is_other = word.heard.is_none() || word.is_healthy != is_healthy;
        word.heard = Some(now);
        word.is_healthy = is_healthy;
        word.was_healthy |= is_healthy;
        word.reason = reason;
        Some(is_other)
    }

    /// Judges every endpoint; returns those whose verdict is another now.
    pub fn judge(&mut self, now: Instant, names: &BTreeMap<Who, String>) -> Vec<View> {
        let mut transitions = Vec::new();
        for (key, entry) in &mut self.entries {
            if entry.judge(now, names) {
                transitions
                    .push(entry.view(key, &|who| names.get(&who).cloned().unwrap_or_default()));
            }
        }
        transitions
    }

    /// What should be stored: of the others nothing.
    pub fn unhealthy(&self) -> impl Iterator<Item = (&Key, Verdict)> {
        let entries = self.entries.iter();
        let unhealthy = entries.filter(|(_, entry)| entry.state == State::Unhealthy);
        unhealthy.map(|(key, entry)| {
            let verdict = Verdict {
                state: VerdictState::Unhealthy,
                reason: entry.reason.clone(),
                by: entry.by.clone(),
                since_ms: entry.since_ms,
            };
            (key, verdict)
        })
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub fn state(&self, key: &Key) -> State {
        self.entries
            .get(key)
            .map_or(State::Unknown, |entry| entry.state)
    }

    pub fn gauges(&self) -> Gauges {
        let entries = self.entries.values();
        Gauges {
            checkers: 0,
            targets: self.entries.len(),
            probed: entries
                .clone()
                .filter(|e| e.checkers.contains_key(&PROBER))
                .count(),
            unhealthy: entries.filter(|e| e.state == State::Unhealthy).count(),
        }
    }

    pub fn views(&self, name: impl Fn(Who) -> String) -> Vec<View> {
        let entries = self.entries.iter();
        entries.map(|(key, entry)| entry.view(key, &name)).collect()
    }
}

impl Entry {
    fn new(target: &Arc<Target>, known: Option<&Verdict>) -> Self {
        let known = known.filter(|verdict| verdict.is_unhealthy());
        Self {
            target: target.clone(),
            checkers: BTreeMap::new(),
            state: known.map_or(State::Unknown, |_| State::Unhealthy),
            reason: known.map_or_else(String::new, |verdict| verdict.reason.clone()),
            by: known.map_or_else(String::new, |verdict| verdict.by.clone()),
            since_ms: known.map_or(0, |verdict| verdict.since_ms),
        }
    }

    /// True when the verdict changed.
    fn judge(&mut self, now: Instant, names: &BTreeMap<Who, String>) -> bool {
        let check = &self.target.check;
        let words = self.checkers.iter();
        let words = words.map(|(who, word)| (*who, word.says(check, now), word));
        let of = |wanted: Says| words.clone().filter(move |(_, says, _)| *says == wanted);
        let (state, decisive) = if let Some(healthy) = of(Says::Healthy).next() {
            (State::Healthy, vec![healthy])
        } else if of(Says::NothingYet).next().is_some() {
            return false;
        } else {
            match of(Says::Unhealthy).collect::<Vec<_>>() {
                nobody if nobody.is_empty() => return false,
                all => (State::Unhealthy, all),
            }
        };
        if state == self.state {
            return false;
        }
        let by: Vec<&str> = decisive
            .iter()
            .map(|(who, ..)| names.get(who).map_or("", String::as_str))
            .collect();
        self.by = by.join(", ");
        self.reason = decisive
            .first()
            .map_or_else(String::new, |(.., word)| match state {
                State::Unhealthy => word.reason.clone(),
                _ => String::new(),
            });
        // Where nothing was known, that it is healthy changes nothing for anybody.
        let is_news = state == State::Unhealthy || self.state == State::Unhealthy;
        self.state = state;
        self.since_ms = unix_ms();
        is_news
    }

    fn view(&self, (service, address): &Key, name: &impl Fn(Who) -> String) -> View {
        let opinion = |(who, word): (&Who, &Word)| Opinion {
            checker: name(*who),
            state: match word.heard {
                None => State::Unknown,
                Some(_) if word.is_healthy => State::Healthy,
                Some(_) => State::Unhealthy,
            },
            reason: word.reason.clone(),
        };
        View {
            service: service.clone(),
            address: *address,
            zone: self.target.zone.clone(),
            instance: self.target.instance.clone(),
            state: self.state,
            reason: self.reason.clone(),
            by: self.by.clone(),
            since_ms: self.since_ms,
            checkers: self.checkers.iter().map(opinion).collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Healthy,
    Unhealthy,
    /// It was told only just now; or it says unhealthy before it can have asked often enough. (To Envoy an endpoint that
    /// it has not asked yet is unhealthy.)
    NothingYet,
    /// It has been told long ago, and is silent.
    Nothing,
}

impl Word {
    fn none(now: Instant) -> Self {
        Self {
            told: now,
            heard: None,
            is_healthy: false,
            reason: String::new(),
            was_healthy: false,
        }
    }

    fn says(&self, check: &HealthCheck, now: Instant) -> Says {
        let is_early = now.duration_since(self.told) < patience(check);
        let fresh = self
            .heard
            .filter(|heard| now.duration_since(*heard) <= fresh_for(check));
        match fresh {
            Some(_) if self.is_healthy => Says::Healthy,
            Some(_) if self.was_healthy || !is_early => Says::Unhealthy,
            _ if is_early => Says::NothingYet,
            _ => Says::Nothing,
        }
    }
}

/// The time in which a checker can have made sure that an endpoint does not work.
fn patience(check: &HealthCheck) -> Duration {
    // An interval may be a tenth longer than it says.
    let once = check.interval + check.interval / 10 + check.timeout;
    once * check.unhealthy_threshold
}

/// Reports come once a second, from here with each answer.
fn fresh_for(check: &HealthCheck) -> Duration {
    2 * (check.interval + check.timeout) + FRESH_MIN
}

const FRESH_MIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use phalanx_model::resource::Probe;

    use super::*;

    struct Fixture {
        board: Board,
        key: Key,
        now: Instant,
        names: BTreeMap<Who, String>,
    }

    impl Fixture {
        /// One endpoint, checked by these.
        fn new(checkers: &[Who]) -> Self {
            Self::in_world(checkers, &World::empty())
        }

        fn in_world(checkers: &[Who], world: &World) -> Self {
            let key = (
                ServiceName::new("default", "shop"),
                ([10, 0, 0, 1], 80).into(),
            );
            let target = Target {
                check: Arc::new(HealthCheck::new(Probe::Tcp)),
                zone: String::new(),
                instance: String::new(),
                authority: String::new(),
                port: 0,
                http2: false,
                tls: None,
            };
            let mut fixture = Self {
                board: Board::default(),
                key: key.clone(),
                now: Instant::now(),
                names: checkers
                    .iter()
                    .map(|who| (*who, format!("c{who}")))
                    .collect(),
            };
            fixture.board.set(&[(key, Arc::new(target))].into(), world);
            fixture.told(checkers);
            fixture
        }

        fn told(&mut self, checkers: &[Who]) {
            let by_checker = checkers.iter().map(|who| (*who, vec![self.key.clone()]));
            let spread = Spread {
                by_checker: by_checker.collect(),
                alone: Vec::new(),
            };
            self.board.assign(spread, self.now);
        }

        fn says(&mut self, who: Who, is_healthy: bool) -> &mut Self {
            let reason = if is_healthy { "" } else { "answered 503" };
            let taken = self
                .board
                .report(who, &self.key, is_healthy, reason.into(), self.now);
            assert!(taken.is_some());
            self
        }

        fn later(&mut self, seconds: u64) -> &mut Self {
            self.now += Duration::from_secs(seconds);
            self
        }

        fn state(&mut self) -> State {
            self.board.judge(self.now, &self.names);
            self.board.state(&self.key)
        }

        fn stored(&self) -> Option<Verdict> {
            self.board.unhealthy().next().map(|(_, verdict)| verdict)
        }
    }

    #[test]
    fn one_that_says_healthy_outweighs_one_that_says_not() {
        let mut f = Fixture::new(&[1, 2]);
        assert_eq!(f.says(1, true).says(2, true).state(), State::Healthy);
        assert_eq!(f.says(1, false).state(), State::Healthy);
        assert_eq!(f.says(2, false).state(), State::Unhealthy);
        assert_eq!(f.says(1, true).state(), State::Healthy);
    }

    #[test]
    fn a_word_that_is_too_old_does_not_count() {
        let mut f = Fixture::new(&[1, 2]);
        f.says(1, true).says(2, true).state();
        for _ in 0..6 {
            f.later(5).says(2, false);
        }
        assert_eq!(
            f.state(),
            State::Unhealthy,
            "the first has been silent for 30 s"
        );
    }

    #[test]
    fn where_nobody_says_anything_the_verdict_stays() {
        let mut f = Fixture::new(&[1]);
        f.says(1, true).says(1, false);
        assert_eq!(f.state(), State::Unhealthy);
        f.board.leave(1);
        assert_eq!(f.later(1000).state(), State::Unhealthy);
        f.told(&[2]);
        assert_eq!(f.later(1000).state(), State::Unhealthy);
        assert_eq!(f.says(2, true).state(), State::Healthy);
    }

    #[test]
    fn a_checker_that_was_told_only_just_now_is_waited_for() {
        let mut f = Fixture::new(&[1]);
        f.says(1, true).state();
        f.told(&[1, 2]);
        assert_eq!(
            f.says(1, false).state(),
            State::Healthy,
            "the second may know better"
        );
        assert_eq!(
            f.later(20).says(1, false).state(),
            State::Unhealthy,
            "it is silent"
        );
    }

    #[test]
    fn unhealthy_counts_only_once_it_can_have_been_made_sure() {
        let mut f = Fixture::new(&[1]);
        assert_eq!(f.says(1, false).state(), State::Unknown);
        assert_eq!(f.later(18).says(1, false).state(), State::Unknown);
        assert_eq!(f.later(2).says(1, false).state(), State::Unhealthy);
    }

    #[test]
    fn who_was_not_asked_is_not_heard() {
        let mut f = Fixture::new(&[1]);
        assert_eq!(f.board.report(2, &f.key, false, String::new(), f.now), None);
        let other = (f.key.0.clone(), ([10, 0, 0, 2], 80).into());
        assert_eq!(f.board.report(1, &other, false, String::new(), f.now), None);
        f.told(&[2]);
        assert_eq!(f.board.report(1, &f.key, false, String::new(), f.now), None);
    }

    #[test]
    fn a_verdict_says_why_who_and_is_stored_only_when_it_is_bad() {
        let mut f = Fixture::new(&[1, 2]);
        assert_eq!(f.stored(), None, "nobody knows yet");
        f.says(1, true).says(2, true).state();
        assert_eq!(f.stored(), None);
        f.says(1, false).says(2, false).state();
        let verdict = f.stored().unwrap();
        assert_eq!(
            (verdict.reason.as_str(), verdict.by.as_str()),
            ("answered 503", "c1, c2")
        );
        let since = verdict.since_ms;
        f.later(5).says(1, false).state();
        assert_eq!(f.stored().unwrap().since_ms, since);
    }

    #[test]
    fn a_verdict_survives_the_control_plane_that_gave_it() {
        let mut world = World::empty();
        let verdict = Verdict {
            state: VerdictState::Unhealthy,
            reason: "connection refused".into(),
            by: "c9".into(),
            since_ms: 7,
        };
        let key = Fixture::new(&[]).key;
        world.health = Arc::new([(key.0, Arc::new([(key.1, verdict.clone())].into()))].into());
        let mut f = Fixture::in_world(&[1], &world);
        assert_eq!(f.state(), State::Unhealthy);
        assert_eq!(f.stored(), Some(verdict));
        assert_eq!(f.says(1, true).state(), State::Healthy);
        assert_eq!(f.stored(), None);
    }
}
