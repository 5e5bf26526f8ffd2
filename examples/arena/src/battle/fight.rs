//! The rules, as pure functions: a request and impacts in, rounds and a winner out. No socket and no clock.

use tonic::Status;

use crate::physics::{SPEED_MAX, UNIT};
use crate::proto::arena::v1::{
    Body, FightReply, FightRequest, Fighter, Impact, Round, SimulateRequest, SparAnswer, SparMove,
    StepReply, StepRequest,
};

pub const ROUNDS_MAX: usize = 24;
pub const NAME_MAX: usize = 64;
const HEALTH: u32 = 100;
const TICKS: u32 = 1200;
const FIGHTER_RADIUS: u32 = 48;
/// In [`SparMove`]: thousandths of a unit per tick.
const THRUST_MAX: i32 = 8000;

/// What a version of the service fights by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// v1: every hit takes a fixed number of points and up to four more.
    Classic,
    /// v2: a hit takes what the impact was worth, every third one double.
    Momentum,
}

impl Rules {
    pub fn of_version(version: &str) -> Self {
        if version == "v2" {
            Self::Momentum
        } else {
            Self::Classic
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Momentum => "momentum",
        }
    }

    /// Damage of a hit, and whether it was critical.
    fn damage(self, number: u32, impact: &Impact, dice: &mut Dice) -> (u32, bool) {
        match self {
            Self::Classic => (14 + dice.below(5), false),
            Self::Momentum => {
                let worth = 6 + (impact.impulse / 20).min(18) as u32;
                let critical = number.is_multiple_of(3);
                (if critical { 2 * worth } else { worth }, critical)
            }
        }
    }
}

/// A checked request.
pub struct Fight {
    match_id: String,
    left: Fighter,
    right: Fighter,
    rules: Rules,
}

impl Fight {
    pub fn try_new(request: FightRequest, rules: Rules) -> Result<Self, Status> {
        let named =
            |fighter: Option<Fighter>| fighter.filter(|f| (1..=NAME_MAX).contains(&f.player.len()));
        let (Some(left), Some(right)) = (named(request.left), named(request.right)) else {
            return Err(Status::invalid_argument(
                "a fight needs two fighters with names",
            ));
        };
        if !(1..=NAME_MAX).contains(&request.match_id.len()) || left.player == right.player {
            return Err(Status::invalid_argument(
                "a fight needs a match id and two different fighters",
            ));
        }
        Ok(Self {
            match_id: request.match_id,
            left,
            right,
            rules,
        })
    }

    /// Where the fighters start: on opposite sides, a little apart in everything, as the match id says.
    pub fn opening(&self) -> SimulateRequest {
        let mut dice = Dice::of(&self.match_id, "opening");
        let mut body = |side: i64| {
            let mut within = |limit: u32| {
                i64::from(dice.below(2 * limit * 16)) * UNIT / 16 - i64::from(limit) * UNIT
            };
            Body {
                x: side * 280 * UNIT + within(40),
                y: within(24),
                vx: within(3),
                vy: within(1),
                mass: 10,
                radius: FIGHTER_RADIUS,
            }
        };
        SimulateRequest {
            bodies: vec![body(-1), body(1)],
            ticks: TICKS,
        }
    }

    /// One round per impact until a fighter falls; on points if both stand at the end.
    pub fn decide(self, impacts: &[Impact], version: &str) -> FightReply {
        let mut dice = Dice::of(&self.match_id, self.rules.name());
        let (mut left_health, mut right_health) = (HEALTH, HEALTH);
        let mut rounds = Vec::new();
        for (number, impact) in (1..).zip(impacts.iter().take(ROUNDS_MAX)) {
            let left_hits = dice.below(1000) < chance(self.left.rating, self.right.rating);
            let (damage, critical) = self.rules.damage(number, impact, &mut dice);
            let (attacker, health) = if left_hits {
                (&self.left, &mut right_health)
            } else {
                (&self.right, &mut left_health)
            };
            *health = health.saturating_sub(damage);
            let attacker = attacker.player.clone();
            rounds.push(Round {
                number,
                attacker,
                damage,
                critical,
                left_health,
                right_health,
            });
            if left_health == 0 || right_health == 0 {
                break;
            }
        }
        let left_wins =
            left_health > right_health || (left_health == right_health && dice.below(2) == 0);
        let winner = if left_wins {
            self.left.player
        } else {
            self.right.player
        };
        let rules = self.rules.name().to_string();
        FightReply {
            match_id: self.match_id,
            winner,
            version: version.to_string(),
            rules,
            rounds,
        }
    }
}

/// That the left fighter has the better of a round, out of 1000: 50 points of rating are worth about five percent.
fn chance(left: u32, right: u32) -> u32 {
    let lead = i64::from(left.min(4000)) - i64::from(right.min(4000));
    (500 + lead).clamp(100, 900) as u32
}

/// A player and a partner that only swings on its spring.
pub struct Training {
    bodies: Vec<Body>,
}

impl Training {
    pub fn new() -> Self {
        let body = |x: i64| Body {
            x: x * UNIT,
            y: 0,
            vx: 0,
            vy: 0,
            mass: 10,
            radius: FIGHTER_RADIUS,
        };
        Self {
            bodies: vec![body(-100), body(100)],
        }
    }

    /// The next tick, with the player's thrust on top of the speed.
    pub fn thrust(&self, step: &SparMove) -> StepRequest {
        let mut bodies = self.bodies.clone();
        if let Some(player) = bodies.first_mut() {
            let thrust = |milli: i32| i64::from(milli.clamp(-THRUST_MAX, THRUST_MAX)) * UNIT / 1000;
            player.vx = (player.vx + thrust(step.thrust_x)).clamp(-SPEED_MAX, SPEED_MAX);
            player.vy = (player.vy + thrust(step.thrust_y)).clamp(-SPEED_MAX, SPEED_MAX);
        }
        StepRequest { bodies }
    }

    pub fn stepped(&mut self, reply: StepReply, number: u32, version: &str) -> SparAnswer {
        self.bodies = reply.bodies;
        let place = self
            .bodies
            .first()
            .map_or((0, 0), |body| (body.x / UNIT, body.y / UNIT));
        let hit = !reply.impacts.is_empty();
        SparAnswer {
            number,
            x: place.0 as i32,
            y: place.1 as i32,
            hit,
            version: version.to_string(),
        }
    }
}

/// SplitMix64, seeded by text (FNV-1a). Written out, because a result must not change with a dependency.
struct Dice(u64);

impl Dice {
    fn of(match_id: &str, purpose: &str) -> Self {
        let bytes = match_id.bytes().chain([0]).chain(purpose.bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// 0 to `limit` - 1.
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(limit)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physics::World;

    fn fight(id: usize, rules: Rules) -> FightReply {
        let fighter = |player: &str, rating| {
            Some(Fighter {
                player: player.into(),
                rating,
            })
        };
        let request = FightRequest {
            match_id: format!("m-{id}"),
            left: fighter("ann", 1000),
            right: fighter("bob", 1040),
        };
        let fight = Fight::try_new(request, rules).unwrap();
        let opening = fight.opening();
        let mut world = World::try_new(opening.bodies).unwrap();
        (1..=opening.ticks).for_each(|tick| world.step(tick));
        fight.decide(&world.impacts, "v0")
    }

    #[test]
    fn the_same_match_has_the_same_result() {
        for id in 0..20 {
            assert_eq!(fight(id, Rules::Classic), fight(id, Rules::Classic));
            assert_eq!(fight(id, Rules::Momentum), fight(id, Rules::Momentum));
        }
    }

    #[test]
    fn fights_have_several_rounds_and_both_sides_win_some() {
        for rules in [Rules::Classic, Rules::Momentum] {
            let fights: Vec<_> = (0..300).map(|id| fight(id, rules)).collect();
            assert!(
                fights
                    .iter()
                    .all(|f| (3..=ROUNDS_MAX).contains(&f.rounds.len())),
                "{rules:?}"
            );
            let won = fights.iter().filter(|f| f.winner == "ann").count();
            assert!((60..240).contains(&won), "{rules:?}: ann won {won} of 300");
        }
    }

    #[test]
    fn only_the_second_rules_have_critical_hits() {
        let critical = |rules| {
            (0..50)
                .flat_map(|id| fight(id, rules).rounds)
                .any(|round| round.critical)
        };
        assert!(!critical(Rules::Classic));
        assert!(critical(Rules::Momentum));
    }

    #[test]
    fn a_fight_against_oneself_is_refused() {
        let me = Some(Fighter {
            player: "ann".into(),
            rating: 1000,
        });
        let request = FightRequest {
            match_id: "m".into(),
            left: me.clone(),
            right: me,
        };
        assert!(Fight::try_new(request, Rules::Classic).is_err());
    }
}
