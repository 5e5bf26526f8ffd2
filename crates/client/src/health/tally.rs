//! From answers to a state. One answer does not make a state: the thresholds say how many in a row do.

use phalanx_model::resource::HealthCheck;

/// Of an endpoint, as one checker sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody knows yet; nothing follows from it.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Answers in a row.
#[derive(Clone, Debug)]
pub struct Tally {
    state: State,
    healthy_threshold: u32,
    unhealthy_threshold: u32,
    good: u32,
    bad: u32,
}

impl Tally {
    pub fn new(check: &HealthCheck, before: State) -> Self {
        Self {
            state: before,
            healthy_threshold: check.healthy_threshold,
            unhealthy_threshold: check.unhealthy_threshold,
            good: 0,
            bad: 0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// The first good answer about an endpoint of which nothing is known is enough.
    pub fn good(&mut self) {
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        if self.state == State::Unknown || self.good >= self.healthy_threshold {
            self.state = State::Healthy;
        }
    }

    pub fn bad(&mut self) {
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        if self.bad >= self.unhealthy_threshold {
            self.state = State::Unhealthy;
        }
    }
}

#[cfg(test)]
mod tests {
    use phalanx_model::resource::Probe;

    use super::*;

    /// The state after each of the answers (`+` good, `-` bad), as letters.
    fn states(before: State, healthy: u32, unhealthy: u32, answers: &str) -> String {
        let check = HealthCheck {
            healthy_threshold: healthy,
            unhealthy_threshold: unhealthy,
            ..HealthCheck::new(Probe::Tcp)
        };
        let mut tally = Tally::new(&check, before);
        let after = answers.chars().map(|answer| {
            if answer == '+' {
                tally.good();
            } else {
                tally.bad();
            }
            match tally.state() {
                State::Unknown => '?',
                State::Healthy => 'h',
                State::Unhealthy => 'u',
            }
        });
        after.collect()
    }

    #[test]
    fn only_so_many_bad_answers_in_a_row_make_unhealthy() {
        assert_eq!(states(State::Healthy, 1, 3, "--+---"), "hhhhhu");
    }

    #[test]
    fn only_so_many_good_answers_in_a_row_make_healthy_again() {
        assert_eq!(states(State::Unhealthy, 2, 3, "+-++-"), "uuuhh");
    }

    #[test]
    fn what_is_not_known_is_healthy_with_the_first_good_answer_and_unhealthy_not_with_the_first_bad()
     {
        assert_eq!(states(State::Unknown, 3, 2, "+"), "h");
        assert_eq!(states(State::Unknown, 3, 2, "--"), "?u");
    }
}
