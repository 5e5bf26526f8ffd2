//! What is known of a player's strength, and how a result changes it: Weng and Lin's Bradley-Terry model (JMLR 12, 2011) as
//! crate `skillratings` computes it. In come the ratings of the teams and their places, out come the new ratings.

use serde::{Deserialize, Serialize};
use skillratings::MultiTeamOutcome;
use skillratings::weng_lin::{self, WengLinConfig, WengLinRating};

/// Largest amount of `mu`, and largest `sigma`: enough for every scale in use (Weng-Lin 25, Elo 1,500).
pub const RATING_MAX: f64 = 100_000.0;

/// Teams and players of a team that [`update`] takes at most.
pub const SIDES_MAX: usize = 128;

/// An estimate of strength: its mean and its standard deviation. A newcomer of the default scale has 25 and 25/3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rating {
    pub mu: f64,
    pub sigma: f64,
}

impl Rating {
    pub const NEWCOMER: Rating = Rating {
        mu: 25.0,
        sigma: 25.0 / 3.0,
    };

    pub const fn new(mu: f64, sigma: f64) -> Self {
        Self { mu, sigma }
    }

    /// The strength that a player has with some certainty: `mu - factor × sigma` (3 sigmas: 99.9 %).
    pub fn conservative(&self, factor: f64) -> f64 {
        self.mu - factor * self.sigma
    }

    /// True if both are numbers within [`RATING_MAX`] and sigma isn't negative.
    pub fn is_sound(&self) -> bool {
        self.mu.abs() <= RATING_MAX && (0.0..=RATING_MAX).contains(&self.sigma)
    }
}

impl Default for Rating {
    fn default() -> Self {
        Self::NEWCOMER
    }
}

/// The scale: what a difference of ratings means.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// The difference that wins two games of three. Default 25/6; less for a game of pure skill, more for one of chance.
    pub beta: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self { beta: 25.0 / 6.0 }
    }
}

impl Scale {
    fn config(&self) -> WengLinConfig {
        WengLinConfig {
            beta: self.beta,
            ..WengLinConfig::default()
        }
    }

    fn check(&self) -> Result<(), RatingError> {
        if self.beta > 0.0 && self.beta <= RATING_MAX {
            Ok(())
        } else {
            Err(RatingError::Beta(self.beta))
        }
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RatingError {
    #[error("{teams} teams with {places} places: each team needs one place")]
    Places { teams: usize, places: usize },
    #[error("{0} teams: a result has 2 to {SIDES_MAX}")]
    Teams(usize),
    #[error("team {team} has {players} players: 1 to {SIDES_MAX} are rated")]
    Players { team: usize, players: usize },
    #[error("team {team}, player {player}: rating {mu} ± {sigma} is out of bounds")]
    Unsound {
        team: usize,
        player: usize,
        mu: f64,
        sigma: f64,
    },
    #[error("beta {0} is out of bounds (0, {RATING_MAX}]")]
    Beta(f64),
    #[error("these ratings are out of all proportion to beta {0}: there is no result to reckon")]
    Proportion(f64),
}

/// The ratings after a result. `places[i]` is the place of `teams[i]`: 1 has won, equal places drew. The answer has the
/// shape of `teams`. Nothing is rounded; the same input gives the same output on every machine of one build.
pub fn update(
    teams: &[Vec<Rating>],
    places: &[u32],
    scale: &Scale,
) -> Result<Vec<Vec<Rating>>, RatingError> {
    scale.check()?;
    if teams.len() != places.len() {
        return Err(RatingError::Places {
            teams: teams.len(),
            places: places.len(),
        });
    }
    let theirs = converted(teams)?;
    let ranked: Vec<_> = theirs
        .iter()
        .zip(places)
        .map(|(team, place)| (team.as_slice(), MultiTeamOutcome::new(*place as usize)))
        .collect();
    let rated = weng_lin::weng_lin_multi_team(&ranked, &scale.config());
    let after: Vec<Vec<Rating>> = rated
        .into_iter()
        .map(|team| {
            team.into_iter()
                .map(|player| Rating::new(player.rating, player.uncertainty))
                .collect()
        })
        .collect();
    // Where its exponentials overflow, the model has no number to give.
    if after.iter().flatten().all(Rating::is_sound) {
        Ok(after)
    } else {
        Err(RatingError::Proportion(scale.beta))
    }
}

/// How likely each team is to win, in the order of `teams`; the sum is 1.
pub fn expected(teams: &[Vec<Rating>], scale: &Scale) -> Result<Vec<f64>, RatingError> {
    scale.check()?;
    let theirs = converted(teams)?;
    let sides: Vec<_> = theirs.iter().map(Vec::as_slice).collect();
    let chances = weng_lin::expected_score_multi_team(&sides, &scale.config());
    if chances.iter().all(|chance| chance.is_finite()) {
        Ok(chances)
    } else {
        Err(RatingError::Proportion(scale.beta))
    }
}

fn converted(teams: &[Vec<Rating>]) -> Result<Vec<Vec<WengLinRating>>, RatingError> {
    if !(2..=SIDES_MAX).contains(&teams.len()) {
        return Err(RatingError::Teams(teams.len()));
    }
    let mut all = Vec::with_capacity(teams.len());
    for (team, players) in teams.iter().enumerate() {
        if !(1..=SIDES_MAX).contains(&players.len()) {
            return Err(RatingError::Players {
                team,
                players: players.len(),
            });
        }
        if let Some(player) = players.iter().position(|rating| !rating.is_sound()) {
            return Err(RatingError::Unsound {
                team,
                player,
                mu: players[player].mu,
                sigma: players[player].sigma,
            });
        }
        all.push(
            players
                .iter()
                .map(|rating| WengLinRating {
                    rating: rating.mu,
                    uncertainty: rating.sigma,
                })
                .collect(),
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn winners_gain_losers_lose_and_both_become_more_certain() {
        let teams = vec![vec![Rating::NEWCOMER; 5], vec![Rating::NEWCOMER; 5]];
        let after = update(&teams, &[1, 2], &Scale::default()).unwrap();
        assert_eq!((after[0].len(), after[1].len()), (5, 5));
        for (winner, loser) in after[0].iter().zip(&after[1]) {
            assert!(winner.mu > 25.0 && loser.mu < 25.0);
            assert!(winner.sigma < Rating::NEWCOMER.sigma && loser.sigma < Rating::NEWCOMER.sigma);
        }
    }

    #[test]
    fn the_published_example_of_the_crate_is_reproduced() {
        let one = Rating::new(42.0, 2.1);
        let two = Rating::new(31.0, 1.2);
        let scores = expected(&[vec![one], vec![two]], &Scale::default()).unwrap();
        assert_eq!((scores[0] * 100.0).round(), 85.0);
        assert!((scores[0] + scores[1] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_draw_of_equals_moves_no_mean() {
        let teams = vec![vec![Rating::NEWCOMER], vec![Rating::NEWCOMER]];
        let after = update(&teams, &[1, 1], &Scale::default()).unwrap();
        assert!((after[0][0].mu - 25.0).abs() < 1e-9);
        assert!((after[1][0].mu - 25.0).abs() < 1e-9);
    }

    #[test]
    fn ratings_that_the_scale_was_not_made_for_are_refused_and_never_become_nan() {
        let teams = vec![vec![Rating::new(1_500.0, 2.0); 5]; 2];
        let out = RatingError::Proportion(Scale::default().beta);
        assert_eq!(update(&teams, &[1, 2], &Scale::default()), Err(out.clone()));
        assert_eq!(expected(&teams, &Scale::default()), Err(out));
        let elo = Scale { beta: 200.0 };
        assert!(update(&teams, &[1, 2], &elo).is_ok());
    }

    #[test]
    fn results_without_sense_are_refused_by_name() {
        let one = vec![Rating::NEWCOMER];
        let scale = Scale::default();
        assert_eq!(
            update(&[one.clone(), one.clone()], &[1], &scale),
            Err(RatingError::Places {
                teams: 2,
                places: 1
            })
        );
        assert_eq!(
            update(std::slice::from_ref(&one), &[1], &scale),
            Err(RatingError::Teams(1))
        );
        assert!(matches!(
            update(
                &[one.clone(), vec![Rating::new(f64::NAN, 1.0)]],
                &[1, 2],
                &scale
            ),
            Err(RatingError::Unsound {
                team: 1,
                player: 0,
                ..
            })
        ));
        assert!(matches!(
            update(&[one.clone(), vec![]], &[1, 2], &scale),
            Err(RatingError::Players {
                team: 1,
                players: 0
            })
        ));
        assert_eq!(
            update(&[one.clone(), one], &[1, 2], &Scale { beta: 0.0 }),
            Err(RatingError::Beta(0.0))
        );
    }
}
