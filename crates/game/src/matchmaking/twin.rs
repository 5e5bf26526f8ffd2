//! The digital twin: yesterday's tickets against today's rules, or a candidate's. The very search that matches players runs
//! here by a clock of its own; in come recorded or made-up arrivals, out come waiting, quality and fairness per cohort.
//! The same arrivals and rules give the same report, on every machine.

mod arrivals;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub use self::arrivals::{ARRIVALS_MAX, Arrival, LINE_MAX, Synthetic, TwinError, read, write};
use super::fairness::{By, Cohort, Fairness};
use super::rules::{Brownout, MatchRules};
use super::search::{Proposal, Refused, Search, verify};
use super::ticket::{Ticket, TicketId};

/// How long a run goes on after the last arrival, unless told otherwise.
pub const TAIL_MS: u64 = 300_000;

/// A run ends after this time at the latest, whatever its arrivals say: a month.
pub const SPAN_MAX_MS: u64 = 31 * 86_400_000;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    pub brownout: Brownout,
    /// How long to go on after the last arrival.
    pub tail_ms: u64,
    /// From which waiting on somebody counts as left alone.
    pub alone_ms: u64,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            brownout: Brownout::Off,
            tail_ms: TAIL_MS,
            alone_ms: super::fairness::ALONE_MS,
        }
    }
}

/// What a run showed. Tickets are conserved: `arrived = refused + matched + left + waiting`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Tickets that came.
    pub arrived: u64,
    /// Those that the rules don't admit.
    pub refused: u64,
    pub matched: u64,
    /// Those whose patience ended.
    pub left: u64,
    /// Those that still waited at the end.
    pub waiting: u64,
    pub matches: u64,
    /// Proposals that break the rules, which would be an error of the search: the first few.
    pub violations: Vec<String>,
    pub ticks: u64,
    /// Ticks that ran out of operations.
    pub exhausted: u64,
    /// Operations of the dearest tick.
    pub operations_max: u64,
    /// Most tickets that waited at once.
    pub crowd: u64,
    pub cohorts: Vec<Cohort>,
}

const VIOLATIONS_MAX: usize = 8;

/// Runs arrivals (by time) through the search, for [`SPAN_MAX_MS`] at most.
pub fn run(rules: &Arc<MatchRules>, arrivals: &[Arrival], course: &Course) -> Report {
    let mut twin = Twin::new(rules, course);
    let Some(first) = arrivals.first() else {
        return twin.report(0);
    };
    let period = rules.period(course.brownout).as_millis() as u64;
    let last = arrivals.last().map_or(0, |last| last.ticket.enqueued_ms);
    let mut arrivals = arrivals.iter().peekable();
    let mut now = first.ticket.enqueued_ms;
    let end = last
        .saturating_add(course.tail_ms)
        .min(now.saturating_add(SPAN_MAX_MS));
    loop {
        while let Some(arrival) = arrivals.next_if(|next| next.ticket.enqueued_ms <= now) {
            twin.arrive(arrival);
        }
        twin.leave(now);
        twin.tick(now);
        let is_over = arrivals.peek().is_none() && twin.search.is_empty();
        if is_over || now >= end {
            return twin.report(now);
        }
        let mut periods = 1;
        // Nothing happens until somebody comes.
        if let Some(next) = arrivals.peek().filter(|_| twin.search.is_empty()) {
            let idle = next.ticket.enqueued_ms.min(end).saturating_sub(now);
            periods = idle.div_ceil(period).max(1);
        }
        now = now.saturating_add(period.saturating_mul(periods));
    }
}

struct Twin<'a> {
    rules: &'a Arc<MatchRules>,
    course: &'a Course,
    search: Search,
    fairness: Fairness,
    waiting: HashMap<TicketId, Arc<Ticket>>,
    /// When patience ends.
    patience: BTreeSet<(u64, TicketId)>,
    patience_of: HashMap<TicketId, u64>,
    proposals: Vec<Proposal>,
    report: Report,
}

impl<'a> Twin<'a> {
    fn new(rules: &'a Arc<MatchRules>, course: &'a Course) -> Self {
        let mut fairness = Fairness::new(Arc::clone(rules));
        fairness.set_alone(course.alone_ms);
        Self {
            rules,
            course,
            search: Search::new(Arc::clone(rules)),
            fairness,
            waiting: HashMap::new(),
            patience: BTreeSet::new(),
            patience_of: HashMap::new(),
            proposals: Vec::new(),
            report: Report {
                arrived: 0,
                refused: 0,
                matched: 0,
                left: 0,
                waiting: 0,
                matches: 0,
                violations: Vec::new(),
                ticks: 0,
                exhausted: 0,
                operations_max: 0,
                crowd: 0,
                cohorts: Vec::new(),
            },
        }
    }

    fn arrive(&mut self, arrival: &Arrival) {
        self.report.arrived += 1;
        let ticket = Arc::new(arrival.ticket.clone());
        match self.search.insert(Arc::clone(&ticket)) {
            Ok(()) => {
                self.fairness.arrived(&ticket);
                if let Some(leaves) = arrival.leaves_ms {
                    self.patience.insert((leaves, ticket.id));
                    self.patience_of.insert(ticket.id, leaves);
                }
                self.waiting.insert(ticket.id, ticket);
            }
            Err(
                Refused::Waiting(_) | Refused::Offered(_) | Refused::Invalid(_) | Refused::Full(_),
            ) => {
                self.report.refused += 1;
            }
        }
    }

    fn leave(&mut self, now: u64) {
        while let Some(next) = self.patience.first().copied().filter(|(at, _)| *at <= now) {
            self.patience.remove(&next);
            self.patience_of.remove(&next.1);
            self.waiting.remove(&next.1);
            if let Some(ticket) = self.search.remove(next.1) {
                self.report.left += 1;
                self.fairness.left(&ticket);
            }
        }
    }

    fn tick(&mut self, now: u64) {
        self.report.crowd = self.report.crowd.max(self.search.len() as u64);
        let budget = self.rules.budget(self.course.brownout);
        let mut proposals = std::mem::take(&mut self.proposals);
        let tick = self.search.tick(now, budget, &mut proposals);
        self.report.ticks += 1;
        self.report.exhausted += u64::from(tick.exhausted);
        self.report.operations_max = self.report.operations_max.max(tick.operations);
        for proposal in proposals.drain(..) {
            self.check(now, &proposal);
            self.report.matches += 1;
            for id in proposal.tickets() {
                let Some(ticket) = self.waiting.remove(&id) else {
                    continue;
                };
                if let Some(leaves) = self.patience_of.remove(&id) {
                    self.patience.remove(&(leaves, id));
                }
                self.report.matched += 1;
                self.fairness.matched(&ticket, &proposal.quality, now);
            }
        }
        self.proposals = proposals;
    }

    fn check(&mut self, now: u64, proposal: &Proposal) {
        let find = |id| self.waiting.get(&id).map(|ticket| &**ticket);
        let checked = verify::verify(self.rules, self.course.brownout, now, proposal, find, None);
        if let Err(problems) = checked
            && self.report.violations.len() < VIOLATIONS_MAX
        {
            self.report.violations.push(problems.to_string());
        }
    }

    fn report(mut self, now: u64) -> Report {
        self.fairness
            .look(self.search.iter().map(|ticket| &**ticket), now);
        self.report.waiting = self.search.len() as u64;
        self.report.cohorts = self.fairness.cohorts();
        self.report
    }
}

/// Two reports side by side: the rules of now, and a candidate's.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    pub current: &'a Report,
    pub candidate: &'a Report,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} tickets: {} matched in {} matches, {} left, {} waiting, {} refused; {} ticks ({} exhausted), at most {} at once",
            self.arrived,
            self.matched,
            self.matches,
            self.left,
            self.waiting,
            self.refused,
            self.ticks,
            self.exhausted,
            self.crowd
        )?;
        writeln!(
            f,
            "{:<11}{:<10}{:>9}{:>7}{:>7}{:>10}{:>10}{:>10}{:>9}{:>8}",
            "by", "cohort", "matched", "left", "alone", "p50 s", "p95 s", "p99 s", "quality", "p5"
        )?;
        for cohort in &self.cohorts {
            writeln!(
                f,
                "{:<11}{:<10}{:>9}{:>7}{:>7}{:>10.1}{:>10.1}{:>10.1}{:>9.3}{:>8.3}",
                cohort.by.as_str(),
                cohort.name,
                cohort.matched,
                cohort.left,
                cohort.alone,
                seconds(cohort.wait_ms.p50),
                seconds(cohort.wait_ms.p95),
                seconds(cohort.wait_ms.p99),
                seconds(cohort.quality_mean),
                seconds(cohort.quality_p5),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (now, then) = (self.current, self.candidate);
        writeln!(
            f,
            "matched {} → {}, left {} → {}, waiting {} → {}",
            now.matched, then.matched, now.left, then.left, now.waiting, then.waiting
        )?;
        writeln!(
            f,
            "{:<11}{:<10}{:>18}{:>18}{:>18}{:>18}",
            "by", "cohort", "p50 s", "p95 s", "quality", "left"
        )?;
        for old in &now.cohorts {
            let Some(new) = find(then, old.by, &old.name) else {
                continue;
            };
            let waits = |a: u64, b: u64| format!("{:.1} → {:.1}", seconds(a), seconds(b));
            writeln!(
                f,
                "{:<11}{:<10}{:>18}{:>18}{:>18}{:>18}",
                old.by.as_str(),
                old.name,
                waits(old.wait_ms.p50, new.wait_ms.p50),
                waits(old.wait_ms.p95, new.wait_ms.p95),
                format!(
                    "{:.3} → {:.3}",
                    seconds(old.quality_mean),
                    seconds(new.quality_mean)
                ),
                format!("{} → {}", old.left, new.left),
            )?;
        }
        Ok(())
    }
}

impl Report {
    pub fn cohort(&self, by: By, name: &str) -> Option<&Cohort> {
        find(self, by, name)
    }
}

fn find<'a>(report: &'a Report, by: By, name: &str) -> Option<&'a Cohort> {
    report
        .cohorts
        .iter()
        .find(|cohort| cohort.by == by && cohort.name == name)
}

/// Of milliseconds, and of thousandths.
fn seconds(thousandths: u64) -> f64 {
    thousandths as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
