//! The rules, as pure functions: a request and impacts in, rounds and a winner out. No socket and no clock. A [`Bout`] is a
//! battle of the game kit, so that an executor runs it, may record it and may run it again.

use phalanx_game::battle::{Battle, Context, Reject};
use phalanx_game::dice::Dice;
use prost::Message;
use tonic::Status;

use crate::physics::{SPEED_MAX, UNIT};
use crate::proto::arena::v1::{
    Body, FightReply, FightRequest, Fighter, Impact, Round, SimulateReply, SimulateRequest,
    SparAnswer, SparMove, StepReply, StepRequest,
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

    /// As an executor counts versions of rules.
    pub fn number(self) -> u64 {
        match self {
            Self::Classic => 1,
            Self::Momentum => 2,
        }
    }

    /// Damage of a hit, and whether it was critical.
    fn damage(self, number: u32, impact: &Impact, dice: &mut Dice) -> (u32, bool) {
        match self {
            Self::Classic => (14 + dice.below(5) as u32, false),
            Self::Momentum => {
                let worth = 6 + (impact.impulse / 20).min(18) as u32;
                let critical = number.is_multiple_of(3);
                (if critical { 2 * worth } else { worth }, critical)
            }
        }
    }
}

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct Fight {
    match_id: String,
    left: Fighter,
    right: Fighter,
}

impl Fight {
    pub fn try_new(request: FightRequest) -> Result<Self, Status> {
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
        })
    }

    /// Where the fighters start: on opposite sides, a little apart in everything, as the match id says.
    pub fn opening(&self) -> SimulateRequest {
        let mut dice = Dice::new(seed(&self.match_id, "opening"));
        let mut body = |side: i64| {
            let mut within =
                |limit: i64| dice.below(2 * limit as u64 * 16) as i64 * UNIT / 16 - limit * UNIT;
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

    /// What the rounds are diced with.
    pub fn seed(&self, rules: Rules) -> u64 {
        seed(&self.match_id, rules.name())
    }

    fn request(&self) -> FightRequest {
        FightRequest {
            match_id: self.match_id.clone(),
            left: Some(self.left.clone()),
            right: Some(self.right.clone()),
        }
    }
}

/// All that decides a fight besides its rules and its dice.
#[derive(Clone, Debug, PartialEq)]
pub struct Bout {
    pub fight: Fight,
    /// What physics made of its opening; those beyond [`ROUNDS_MAX`] don't count.
    pub impacts: Vec<Impact>,
}

/// The arena's kind of battle.
pub struct Ring;

impl Battle for Ring {
    type Input = Bout;
    /// Without the version of the service, which decides nothing.
    type Output = FightReply;
    type Rules = Rules;

    const OUTCOMES: usize = 2;

    /// One round per impact until a fighter falls; on points if both stand at the end.
    fn fight(&self, cx: &mut Context<'_, Rules>, bout: &Bout) -> Result<FightReply, Reject> {
        let rules = *cx.rules();
        let Fight {
            match_id,
            left,
            right,
        } = &bout.fight;
        let (mut left_health, mut right_health) = (HEALTH, HEALTH);
        let mut rounds = Vec::new();
        for (number, impact) in (1..).zip(bout.impacts.iter().take(ROUNDS_MAX)) {
            cx.check()?;
            let left_hits = cx.dice.chance(chance(left.rating, right.rating), 1000);
            let (damage, critical) = rules.damage(number, impact, &mut cx.dice);
            let (attacker, health) = if left_hits {
                (left, &mut right_health)
            } else {
                (right, &mut left_health)
            };
            *health = health.saturating_sub(damage);
            rounds.push(Round {
                number,
                attacker: attacker.player.clone(),
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
            left_health > right_health || (left_health == right_health && cx.dice.chance(1, 2));
        let winner = if left_wins { left } else { right };
        Ok(FightReply {
            match_id: match_id.clone(),
            winner: winner.player.clone(),
            version: String::new(),
            rules: rules.name().to_string(),
            rounds,
        })
    }

    fn write_input(bout: &Bout, out: &mut Vec<u8>) {
        // Neither message has a map, so that equal ones have equal bytes.
        out.extend(bout.fight.request().encode_length_delimited_to_vec());
        let impacts = SimulateReply {
            bodies: Vec::new(),
            impacts: bout.impacts.clone(),
        };
        out.extend(impacts.encode_to_vec());
    }

    fn read_input(mut bytes: &[u8]) -> Option<Bout> {
        let request = FightRequest::decode_length_delimited(&mut bytes).ok()?;
        let impacts = SimulateReply::decode(bytes).ok()?.impacts;
        let fight = Fight::try_new(request).ok()?;
        Some(Bout { fight, impacts })
    }

    fn write_output(reply: &FightReply, out: &mut Vec<u8>) {
        out.extend(reply.encode_to_vec());
    }

    /// Whether somebody fell.
    fn outcome(reply: &FightReply) -> usize {
        let fell = |round: &Round| round.left_health == 0 || round.right_health == 0;
        usize::from(reply.rounds.last().is_some_and(fell))
    }
}

/// That the left fighter has the better of a round, out of 1000: 50 points of rating are worth about five percent.
fn chance(left: u32, right: u32) -> u64 {
    let lead = i64::from(left.min(4000)) - i64::from(right.min(4000));
    (500 + lead).clamp(100, 900) as u64
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
            let faster = |speed: i64, by| {
                let speed = speed.saturating_add(thrust(by));
                speed.clamp(-SPEED_MAX, SPEED_MAX)
            };
            player.vx = faster(player.vx, step.thrust_x);
            player.vy = faster(player.vy, step.thrust_y);
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

/// FNV-1a. Written out, because a result must not change with a dependency.
fn seed(match_id: &str, purpose: &str) -> u64 {
    let bytes = match_id.bytes().chain([0]).chain(purpose.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use phalanx_game::battle::{Call, rerun};

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
        let fight = Fight::try_new(request).unwrap();
        let opening = fight.opening();
        let mut world = World::try_new(opening.bodies).unwrap();
        (1..=opening.ticks).for_each(|tick| world.step(tick));
        let call = Call::new(fight.seed(rules));
        let impacts = world.impacts;
        let bout = Bout { fight, impacts };
        let mut bytes = Vec::new();
        Ring::write_input(&bout, &mut bytes);
        assert_eq!(Ring::read_input(&bytes).as_ref(), Some(&bout));
        rerun(&Ring, rules.number(), &rules, &call, &bout).unwrap()
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
    fn no_answer_of_physics_makes_a_player_too_fast() {
        let mut training = Training::new();
        for body in &mut training.bodies {
            (body.vx, body.vy) = (i64::MAX, i64::MIN);
        }
        let thrust = SparMove {
            thrust_x: i32::MAX,
            thrust_y: i32::MIN,
        };
        let player = training.thrust(&thrust).bodies.remove(0);
        assert_eq!((player.vx, player.vy), (SPEED_MAX, -SPEED_MAX));
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
        assert!(Fight::try_new(request).is_err());
    }
}
