//! The guard over keys that went by expiry alone, as the registry's is over heartbeats: what may be etcd's trouble and not the
//! instances' is held until there is evidence. Pure; time comes in.

use std::collections::{BTreeMap, VecDeque};

/// What goes by expiry within this time counts together.
pub const GUARD_MS: u64 = 10_000;

/// Of one service.
#[derive(Debug, Default)]
pub struct Guard {
    /// When some went by expiry alone.
    gone: VecDeque<u64>,
    held: BTreeMap<String, Held>,
}

/// Since when, in time and in revisions of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub since_ms: u64,
    pub revision: u64,
}

/// How it is with what is served and has no key any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub go: Vec<String>,
    /// To be held; a look at their addresses may say that they are dead.
    pub held: Vec<String>,
}

impl Guard {
    /// `missing` have no key any more, by expiry; `live` others have one.
    pub fn judge(
        &mut self,
        missing: Vec<String>,
        live: usize,
        now_ms: u64,
        revision: u64,
    ) -> Verdict {
        self.held.retain(|id, _| missing.contains(id));
        while self.gone.front().is_some_and(|at| at + GUARD_MS <= now_ms) {
            self.gone.pop_front();
        }
        if missing.is_empty() {
            return Verdict::default();
        }
        let taken = missing.len() + self.gone.len();
        let all = live + taken;
        let is_guarded = live == 0 || taken * 2 > all;
        let mut verdict = Verdict::default();
        for id in missing {
            let held = self.held.get(&id);
            // What was held goes when others have taken over for a while.
            let is_due = held.is_none_or(|held| held.since_ms + GUARD_MS <= now_ms);
            if is_guarded || !is_due {
                let now = Held {
                    since_ms: now_ms,
                    revision,
                };
                self.held.entry(id.clone()).or_insert(now);
                verdict.held.push(id);
            } else {
                self.let_go(&id, now_ms);
                verdict.go.push(id);
            }
        }
        verdict
    }

    /// By evidence or somebody's word, this says nothing about others.
    pub fn release(&mut self, id: &str) {
        self.held.remove(id);
    }

    pub fn held(&self) -> &BTreeMap<String, Held> {
        &self.held
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.gone.is_empty()
    }

    fn let_go(&mut self, id: &str, now_ms: u64) {
        self.held.remove(id);
        self.gone.push_back(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("i{i}")).collect()
    }

    #[test]
    fn one_of_many_goes_and_the_last_is_held() {
        let mut guard = Guard::default();
        let verdict = guard.judge(ids(1), 3, 0, 7);
        assert_eq!((verdict.go.len(), verdict.held.len()), (1, 0));
        let mut guard = Guard::default();
        let verdict = guard.judge(ids(1), 0, 0, 7);
        assert_eq!((verdict.go.len(), verdict.held.len()), (0, 1));
    }

    #[test]
    fn one_after_the_other_half_of_a_service_goes_and_the_rest_is_held() {
        let mut guard = Guard::default();
        let mut live = 6;
        let mut gone = 0;
        for second in 0..6 {
            live -= 1;
            let missing = guard.held().len() + 1;
            let all: Vec<String> = (0..missing).map(|i| format!("{second}/{i}")).collect();
            gone += guard.judge(all, live, second * 1000, 7).go.len();
        }
        assert_eq!(gone, 3);
    }

    #[test]
    fn what_is_held_stays_until_as_many_others_live_for_a_while_or_it_is_back() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(ids(2), 0, 0, 7).held.len(), 2);
        assert_eq!(guard.judge(ids(2), 1, 20_000, 7).held.len(), 2);
        assert_eq!(guard.judge(ids(2), 2, 20_000, 7).go.len(), 2);

        let mut guard = Guard::default();
        assert_eq!(guard.judge(ids(2), 0, 0, 7).held.len(), 2);
        assert_eq!(
            guard.judge(ids(2), 2, GUARD_MS - 1, 7).held.len(),
            2,
            "too soon"
        );
        assert_eq!(guard.judge(Vec::new(), 2, 5000, 7), Verdict::default());
        assert!(guard.is_idle());
    }
}
