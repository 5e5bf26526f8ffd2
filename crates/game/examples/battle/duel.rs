//! A battle to show, test and measure with: two teams of heroes strike each other in rounds until one is down. Integers only,
//! chance from the dice only, memory from the arena only; the work of one fight is about its rounds times its heroes.

use phalanx_game::battle::bumpalo::collections::Vec as ArenaVec;
use phalanx_game::battle::{Battle, Context, Reject};

/// Heroes of one team, at most.
pub const TEAM_MAX: usize = 64;

/// What [`golden_cases`] hash to on [`Rules::first`]. Committed, so that every build is compared with every other one: the
/// tests' (debug) and `bench/game`'s (release).
pub const GOLDEN: u64 = 0x1136_3caf_297a_83f5;

pub struct Duel;

/// Seeds and inputs.
pub fn golden_cases() -> Vec<(u64, Teams)> {
    (0..100)
        .map(|seed| (seed, Teams::sample(seed, 4, 900, 60)))
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hero {
    pub attack: u32,
    pub armour: u32,
    pub health: u32,
    pub speed: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teams {
    pub teams: [Vec<Hero>; 2],
    /// After so many rounds it is a draw.
    pub rounds: u32,
}

/// What designers may turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub critical_percent: u64,
    /// Damage of a critical strike, in percent of a plain one.
    pub critical_damage: u64,
    /// Armour that halves a strike.
    pub armour_half: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Won {
    /// 0 or 1; 2: nobody.
    pub winner: u8,
    pub rounds: u32,
    pub damage: [u64; 2],
    /// Strikes that hit, by hero.
    pub hits: Vec<u32>,
}

impl Rules {
    pub fn first() -> Self {
        Self {
            critical_percent: 20,
            critical_damage: 150,
            armour_half: 100,
        }
    }

    /// More chance, less armour: other results from the same dice.
    pub fn second() -> Self {
        Self {
            critical_percent: 35,
            critical_damage: 200,
            armour_half: 120,
        }
    }
}

impl Teams {
    /// Two teams of `heroes` each, made from a number.
    pub fn sample(number: u64, heroes: usize, health: u32, rounds: u32) -> Self {
        let mut dice = phalanx_game::dice::Dice::new(number ^ 0xD0E1);
        let mut team = || {
            (0..heroes.clamp(1, TEAM_MAX))
                .map(|_| Hero {
                    attack: 50 + dice.below(50) as u32,
                    armour: 20 + dice.below(80) as u32,
                    health,
                    speed: dice.below(100) as u32,
                })
                .collect::<Vec<_>>()
        };
        Self {
            teams: [team(), team()],
            rounds,
        }
    }
}

struct Fighter {
    hero: Hero,
    team: usize,
    index: usize,
    health: u64,
}

impl Battle for Duel {
    type Input = Teams;
    type Output = Won;
    type Rules = Rules;

    const OUTCOMES: usize = 3;

    fn fight(&self, cx: &mut Context<'_, Rules>, input: &Teams) -> Result<Won, Reject> {
        let (rules, arena) = (cx.rules(), cx.arena());
        if input
            .teams
            .iter()
            .any(|team| team.is_empty() || team.len() > TEAM_MAX)
        {
            return Err(Reject::Foul("a team has 1 to 64 heroes"));
        }
        let mut fighters = ArenaVec::new_in(arena);
        for (team, heroes) in input.teams.iter().enumerate() {
            fighters.extend(heroes.iter().enumerate().map(|(at, &hero)| Fighter {
                hero,
                team,
                index: team * TEAM_MAX + at,
                health: u64::from(hero.health),
            }));
        }
        // Stable, so that equal speeds keep the order of the input.
        fighters.sort_by_key(|fighter| std::cmp::Reverse(fighter.hero.speed));
        let mut hits = ArenaVec::new_in(arena);
        hits.resize(2 * TEAM_MAX, 0_u32);
        let (mut damage, mut rounds) = ([0_u64; 2], 0);
        let mut winner = 2;
        let mut alive = [input.teams[0].len() as u64, input.teams[1].len() as u64];
        'fight: for _ in 0..input.rounds {
            rounds += 1;
            for at in 0..fighters.len() {
                cx.check()?;
                let (team, attack, index) = {
                    let fighter = &fighters[at];
                    if fighter.health == 0 {
                        continue;
                    }
                    (fighter.team, u64::from(fighter.hero.attack), fighter.index)
                };
                let mut nth = cx.dice.below(alive[1 - team]);
                let critical = cx.dice.chance(rules.critical_percent, 100);
                let strike = if critical {
                    attack * rules.critical_damage / 100
                } else {
                    attack
                };
                for enemy in fighters
                    .iter_mut()
                    .filter(|enemy| enemy.team != team && enemy.health > 0)
                {
                    if nth > 0 {
                        nth -= 1;
                        continue;
                    }
                    let armour = u64::from(enemy.hero.armour);
                    let hit = strike * rules.armour_half / (rules.armour_half + armour);
                    damage[team] += hit.min(enemy.health);
                    enemy.health = enemy.health.saturating_sub(hit);
                    hits[index] += 1;
                    alive[1 - team] -= u64::from(enemy.health == 0);
                    break;
                }
                if alive[1 - team] == 0 {
                    winner = team as u8;
                    break 'fight;
                }
            }
        }
        Ok(Won {
            winner,
            rounds,
            damage,
            hits: hits.iter().copied().collect(),
        })
    }

    fn write_input(input: &Teams, out: &mut Vec<u8>) {
        out.extend(input.rounds.to_le_bytes());
        for team in &input.teams {
            out.extend((team.len() as u32).to_le_bytes());
            for hero in team {
                for number in [hero.attack, hero.armour, hero.health, hero.speed] {
                    out.extend(number.to_le_bytes());
                }
            }
        }
    }

    fn read_input(bytes: &[u8]) -> Option<Teams> {
        let mut numbers = bytes.chunks_exact(4);
        if !numbers.remainder().is_empty() {
            return None;
        }
        let mut next = || Some(u32::from_le_bytes(numbers.next()?.try_into().ok()?));
        let rounds = next()?;
        let mut team = || {
            let heroes = next()? as usize;
            (heroes <= TEAM_MAX).then_some(())?;
            (0..heroes)
                .map(|_| {
                    Some(Hero {
                        attack: next()?,
                        armour: next()?,
                        health: next()?,
                        speed: next()?,
                    })
                })
                .collect::<Option<Vec<_>>>()
        };
        let teams = [team()?, team()?];
        numbers.next().is_none().then_some(Teams { teams, rounds })
    }

    fn write_output(output: &Won, out: &mut Vec<u8>) {
        out.push(output.winner);
        out.extend(output.rounds.to_le_bytes());
        out.extend(output.damage.iter().flat_map(|damage| damage.to_le_bytes()));
        out.extend(output.hits.iter().flat_map(|hits| hits.to_le_bytes()));
    }

    fn outcome(output: &Won) -> usize {
        usize::from(output.winner)
    }
}
