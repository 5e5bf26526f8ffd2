//! Teams, parties, roles.

use super::*;
use crate::matchmaking::rules::{ANY_TEAM, RoleSeats, Seating};

/// The oracle: is there any match among these? Tries every set and every split.
fn any_match(world: &World) -> Option<Vec<TicketId>> {
    let all: Vec<&Ticket> = world.waiting.values().collect();
    assert!(all.len() <= 16);
    for set in 1_u32..1 << all.len() {
        let chosen: Vec<&Ticket> = (0..all.len())
            .filter(|at| set & (1 << at) != 0)
            .map(|at| all[at])
            .collect();
        let players: usize = chosen.iter().map(|ticket| ticket.players.len()).sum();
        if players == world.rules.players() && world.suit(&chosen) && splits(world, &chosen) {
            return Some(chosen.iter().map(|ticket| ticket.id).collect());
        }
    }
    None
}

fn splits(world: &World, tickets: &[&Ticket]) -> bool {
    let step = tickets
        .iter()
        .map(|ticket| world.step(ticket))
        .min()
        .unwrap();
    let gap = usize::from(world.rules.ladder(world.brownout)[step].gap);
    let mut teams = vec![Vec::new(); world.rules.teams()];
    split(world, tickets, &mut teams, gap)
}

fn split<'a>(
    world: &World,
    tickets: &[&'a Ticket],
    teams: &mut Vec<Vec<&'a Ticket>>,
    gap: usize,
) -> bool {
    let size = |team: &[&Ticket]| team.iter().map(|t| t.players.len()).sum::<usize>();
    let Some((first, rest)) = tickets.split_first() else {
        let largest = |team: &Vec<&Ticket>| team.iter().map(|t| t.players.len()).max().unwrap();
        let sizes: Vec<usize> = teams.iter().map(largest).collect();
        let fair = sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= gap;
        return fair && teams.iter().all(|team| seated(world, team));
    };
    (0..teams.len()).any(|at| {
        if size(&teams[at]) + first.players.len() > world.rules.team_size() {
            return false;
        }
        teams[at].push(first);
        let found = split(world, rest, teams, gap);
        teams[at].pop();
        found
    })
}

fn seated(world: &World, team: &[&Ticket]) -> bool {
    let mut seating = Seating::team(world.rules.seats());
    team.iter()
        .flat_map(|ticket| &ticket.players)
        .all(|player| seating.add(player.roles.0, ANY_TEAM))
}

fn course(spec: &RulesSpec, seed: u64, width: u64) -> usize {
    let mut dice = Dice::new(seed);
    let mut world = World::new(spec.clone());
    let mut matches = 0;
    for _ in 0..25 {
        for _ in 0..dice.below(4) {
            if world.waiting.len() < 11 {
                world.insert_random(width, &mut dice);
            }
        }
        if world.waiting.len() >= 9
            && let Some(id) = world.waiting.keys().next().copied()
        {
            world.remove(id);
        }
        world.now += dice.below(5_000);
        let (proposals, report) = world.tick(None);
        assert!(!report.exhausted && report.pending == 0);
        matches += proposals.len();
        if let Some(ids) = any_match(&world) {
            panic!("seed {seed}: {ids:?} should have met");
        }
    }
    matches
}

#[test]
fn every_group_that_must_meet_meets() {
    let mut matches = 0;
    for seed in 0..rounds(6) {
        for (teams, size) in [(2, 2), (1, 3), (3, 1), (2, 3)] {
            let mut spec = spec(teams, size);
            spec.party.gap = Widening {
                start: 0.0,
                per_s: 0.1,
                cap: 2.0,
            };
            matches += course(&spec, seed, 12);
        }
    }
    assert!(matches > 50, "{matches}");
}

#[test]
fn every_group_with_roles_that_must_meet_meets() {
    let mut matches = 0;
    for seed in 0..rounds(6) {
        for (teams, size) in [(2, 2), (2, 3)] {
            let mut spec = spec(teams, size);
            for name in ["tank", "healer"] {
                spec.roles.push(RoleSeats {
                    name: name.to_owned(),
                    seats: 1,
                });
            }
            matches += course(&spec, seed, 8);
        }
    }
    assert!(matches > 20, "{matches}");
}

#[test]
fn five_against_five_with_parties_and_roles_keeps_every_rule() {
    for seed in 0..rounds(2) {
        let mut dice = Dice::new(seed);
        let mut spec = spec(2, 5);
        for (name, seats) in [("tank", 1), ("healer", 1), ("damage", 2)] {
            spec.roles.push(RoleSeats {
                name: name.to_owned(),
                seats,
            });
        }
        let mut world = World::new(spec);
        let mut matches = 0;
        for _ in 0..40 {
            for _ in 0..30 {
                world.insert_random(20, &mut dice);
            }
            world.now += 1_000;
            // Every proposal is verified by the world.
            matches += world.tick(None).0.len();
        }
        assert!(matches > 60, "{matches}");
    }
}

#[test]
fn a_crowd_that_cant_be_seated_doesnt_hold_up_whoever_can() {
    let mut spec = spec(2, 5);
    for (name, seats) in [("tank", 1), ("healer", 1), ("damage", 2)] {
        spec.roles.push(RoleSeats {
            name: name.to_owned(),
            seats,
        });
    }
    let mut world = World::new(spec);
    // Enough for every role by count; but of those who could play damage, all but one have to tank or heal.
    let plays = |id: u64, roles: &[&[usize]]| {
        let mut ticket = party(id, &vec![20.0; roles.len()], START - 60_000);
        for (player, roles) in ticket.players.iter_mut().zip(roles) {
            player.roles = Roles::of(roles);
        }
        ticket
    };
    for id in 0..20 {
        world.insert(plays(id, &[&[0, 1], &[0, 1]]));
        world.insert(plays(100 + id, &[&[0, 1]]));
        world.insert(plays(200 + id, &[&[0], &[1], &[0, 1, 2]]));
    }
    world.insert(plays(300, &[&[2]]));
    for id in 1_000..1_050 {
        world.insert(alone(id, 60.0 + (id % 10) as f64 / 100.0, START));
    }
    let mut matches = 0;
    for _ in 0..8 {
        world.now += 100;
        let (proposals, _) = world.tick(Some(100_000));
        let ids = |proposal: &Proposal| proposal.tickets().all(|id| id.0 >= 1_000);
        matches += proposals.iter().filter(|proposal| ids(proposal)).count();
    }
    assert_eq!(matches, 5);
}

#[test]
fn five_friends_meet_friends_first_and_strangers_after_a_while() {
    let mut spec = spec(2, 5);
    spec.party.gap = Widening {
        start: 1.0,
        per_s: 0.1,
        cap: 4.0,
    };
    let mut world = World::new(spec);
    world.insert(party(1, &[20.0; 5], START));
    for id in 2..7 {
        world.insert(alone(id, 20.0, START));
    }
    assert!(world.tick(None).0.is_empty());
    world.now = START + 25_000;
    assert!(world.tick(None).0.is_empty());
    world.insert(party(9, &[20.0; 4], START + 24_000));
    let (proposals, _) = world.tick(None);
    assert_eq!(proposals.len(), 1);
    let ids: Vec<_> = proposals[0].tickets().collect();
    assert!(
        ids.contains(&TicketId(1)) && ids.contains(&TicketId(9)),
        "{ids:?}"
    );
    world.insert(party(1, &[20.0; 5], START));
    world.insert(alone(10, 20.0, START));
    world.now = START + 30_000;
    assert_eq!(world.tick(None).0.len(), 1);
}

#[test]
fn teams_are_even() {
    let mut spec = spec(2, 2);
    spec.rating.window = Widening::fixed(20.0);
    let mut world = World::new(spec);
    for (id, mu) in [(1, 10.0), (2, 14.0), (3, 16.0), (4, 20.0)] {
        world.insert(alone(id, mu, START));
    }
    let (proposals, _) = world.tick(None);
    assert_eq!(proposals[0].quality.imbalance_milli, 0);
    assert_eq!(proposals[0].quality.spread_milli, 10_000);
}

#[test]
fn a_hundred_players_meet_in_twenty_five_teams() {
    let mut dice = Dice::new(1);
    let mut spec = spec(25, 4);
    spec.rating.window = Widening::fixed(20.0);
    spec.party.gap = Widening::fixed(4.0);
    let mut world = World::new(spec);
    let mut players = 0;
    for id in 0.. {
        let size = 1 + dice.below(4) as usize;
        if players + size > 100 {
            break;
        }
        players += size;
        world.insert(party(
            id,
            &vec![dice.below(15_000) as f64 / 1_000.0; size],
            START,
        ));
    }
    for id in 500..500 + 100 - players as u64 + 10 {
        world.insert(alone(id, 7.0, START));
    }
    assert_eq!(world.tick(None).0.len(), 1);
}

#[test]
fn a_role_that_nobody_plays_costs_nothing() {
    let mut spec = spec(2, 2);
    spec.roles.push(RoleSeats {
        name: "tank".to_owned(),
        seats: 1,
    });
    spec.roles.push(RoleSeats {
        name: "damage".to_owned(),
        seats: 1,
    });
    let mut world = World::new(spec);
    for id in 0..500 {
        let mut ticket = alone(id, 20.0, START);
        ticket.players[0].roles = Roles::of(&[1]);
        world.insert(ticket);
    }
    let (proposals, report) = world.tick(None);
    assert!(proposals.is_empty());
    assert_eq!(report.examined, 0);
    for id in 500..502 {
        let mut ticket = alone(id, 20.0, START);
        ticket.players[0].roles = Roles::of(&[0]);
        world.insert(ticket);
    }
    let (proposals, _) = world.tick(None);
    assert_eq!(proposals.len(), 1);
    let roles: HashMap<Option<u8>, usize> =
        proposals[0]
            .roles
            .iter()
            .flatten()
            .fold(HashMap::new(), |mut all, role| {
                *all.entry(*role).or_default() += 1;
                all
            });
    assert_eq!(roles, HashMap::from([(Some(0), 2), (Some(1), 2)]));
}
