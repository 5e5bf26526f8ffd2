//! Whether two versions of the rules give the same kinds of results. Pure: counts in, a verdict out.

/// Classes of outcome that a battle may tell apart.
pub const OUTCOMES_MAX: usize = 15;
/// Counts by class, and as the last one everything that ended without a result by the battle's own doing (foul, panic,
/// fuel).
pub(crate) const COUNTS: usize = OUTCOMES_MAX + 1;
/// The class of what ended without a result.
pub(crate) const WITHOUT_RESULT: usize = OUTCOMES_MAX;

/// What counts as another distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judge {
    /// How far the share of a class may be from what it was, in shares of all results. 0.05
    pub tolerance: f64,
    /// Results of each version before anything is said. 1,000
    pub fights_min: u64,
    /// Results of the new version after which a trial ends in its favour. 20,000
    pub fights_max: u64,
    /// Standard errors by which a difference must be above the tolerance, so that chance is not a finding. 4
    pub sigmas: f64,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            tolerance: 0.05,
            fights_min: 1_000,
            fights_max: 20_000,
            sigmas: 4.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Too few results so far.
    Open,
    Same,
    /// The class whose share moved most, and its shares; class [`OUTCOMES_MAX`] is "without a result".
    Diverged {
        class: usize,
        before: f64,
        after: f64,
    },
}

/// Compares counts by class. Shares differ when their distance exceeds the tolerance by more than chance explains
/// (normal approximation of the difference of two proportions).
pub fn judge(before: &[u64], after: &[u64], judge: &Judge) -> Verdict {
    let (all_before, all_after) = (before.iter().sum::<u64>(), after.iter().sum::<u64>());
    if all_before.min(all_after) < judge.fights_min.max(1) {
        return Verdict::Open;
    }
    let (n, m) = (all_before as f64, all_after as f64);
    let mut verdict = Verdict::Same;
    let mut worst = 0.0;
    for class in 0..before.len().max(after.len()) {
        let share = |counts: &[u64], all: f64| counts.get(class).copied().unwrap_or(0) as f64 / all;
        let (p, q) = (share(before, n), share(after, m));
        let error = (p * (1.0 - p) / n + q * (1.0 - q) / m).sqrt();
        let excess = (p - q).abs() - judge.tolerance - judge.sigmas * error;
        if excess > worst {
            worst = excess;
            verdict = Verdict::Diverged {
                class,
                before: p,
                after: q,
            };
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    /// Counts of `fights` that the attacker wins in `percent` of all cases.
    fn counts(seed: u64, fights: u64, percent: u64) -> [u64; 2] {
        let mut dice = Dice::new(seed);
        let won = (0..fights).filter(|_| dice.chance(percent, 100)).count() as u64;
        [won, fights - won]
    }

    #[test]
    fn equal_rules_are_never_judged_different() {
        for seed in 0..500 {
            let before = counts(seed, 2_000, 50);
            let after = counts(seed + 1_000, 1_000, 50);
            assert_eq!(judge(&before, &after, &Judge::default()), Verdict::Same);
        }
    }

    #[test]
    fn a_shift_beyond_the_tolerance_is_found() {
        for seed in 0..100 {
            let before = counts(seed, 5_000, 50);
            let after = counts(seed + 1_000, 5_000, 65);
            let verdict = judge(&before, &after, &Judge::default());
            assert!(matches!(verdict, Verdict::Diverged { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn a_shift_within_the_tolerance_is_let_through() {
        let verdict = judge(&[500_000, 500_000], &[540_000, 460_000], &Judge::default());
        assert_eq!(verdict, Verdict::Same);
    }

    #[test]
    fn a_class_that_is_new_counts() {
        let mut after = vec![0; COUNTS];
        after[WITHOUT_RESULT] = 2_000;
        let verdict = judge(&[1_000, 1_000], &after, &Judge::default());
        assert!(
            matches!(
                verdict,
                Verdict::Diverged {
                    class: WITHOUT_RESULT,
                    ..
                }
            ),
            "{verdict:?}"
        );
    }

    #[test]
    fn few_results_say_nothing() {
        assert_eq!(
            judge(&[999, 0], &[0, 5_000], &Judge::default()),
            Verdict::Open
        );
    }
}
