//! Is a proposal within the rules? Worked out from the rules and the tickets alone, by other means than the search's, so
//! that tests, simulations and a suspicious shard can ask.

use std::collections::HashSet;

use super::Proposal;
use crate::matchmaking::rules::{Brownout, MILLI, MatchRules};
use crate::matchmaking::ticket::{Backfill, OpenSeats, Problems, ROLES_MAX, Ticket, TicketId};

/// Everything in which a proposal made at `now_ms` breaks the rules. `ticket` finds a ticket by its id; `backfill` is the
/// offer that a backfill's proposal answers.
pub fn verify<'a>(
    rules: &MatchRules,
    brownout: Brownout,
    now_ms: u64,
    proposal: &Proposal,
    ticket: impl Fn(TicketId) -> Option<&'a Ticket>,
    backfill: Option<&Backfill>,
) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let mut seen = HashSet::new();
    let mut teams: Vec<Vec<&Ticket>> = Vec::new();
    for ids in &proposal.teams {
        let mut team = Vec::new();
        for id in ids {
            if !seen.insert(*id) {
                problems.add(format!("ticket {id} is there twice"));
            }
            match ticket(*id) {
                Some(found) => team.push(found),
                None => problems.add(format!("ticket {id} isn't known")),
            }
        }
        teams.push(team);
    }
    if teams.len() != rules.teams() {
        problems.add(format!("{} teams of {}", teams.len(), rules.teams()));
    }
    if proposal.backfill != backfill.map(|backfill| backfill.id) {
        problems.add("the offer isn't the one that was answered");
    }
    check_seats(rules, proposal, &teams, backfill, &mut problems);
    check_latency(rules, now_ms, proposal, &teams, &mut problems);
    match backfill {
        None => check_match(rules, brownout, now_ms, &teams, &mut problems),
        Some(backfill) => check_open(rules, brownout, now_ms, backfill, &teams, &mut problems),
    }
    problems.or(())
}

/// Seats are taken by those who can play them, no seat twice.
fn check_seats(
    rules: &MatchRules,
    proposal: &Proposal,
    teams: &[Vec<&Ticket>],
    backfill: Option<&Backfill>,
    problems: &mut Problems,
) {
    let spec = rules.spec();
    let asked: Vec<u8> = spec.roles.iter().map(|role| role.seats).collect();
    let any = spec.team_size - asked.iter().sum::<u8>();
    let all = OpenSeats { roles: asked, any };
    for (at, team) in teams.iter().enumerate() {
        let open = match backfill {
            Some(backfill) => backfill.open.get(at).cloned().unwrap_or_default(),
            None => all.clone(),
        };
        let players: Vec<_> = team.iter().flat_map(|ticket| &ticket.players).collect();
        let is_filled = players.len() == open.total();
        if players.len() > open.total() || backfill.is_none() && !is_filled {
            problems.add(format!(
                "team {at}: {} players on {} seats",
                players.len(),
                open.total()
            ));
        }
        if spec.roles.is_empty() {
            continue;
        }
        let roles = proposal.roles.get(at).map_or(&[][..], Vec::as_slice);
        if roles.len() != players.len() {
            problems.add(format!(
                "team {at}: {} roles for {} players",
                roles.len(),
                players.len()
            ));
            continue;
        }
        let mut left = [0_i32; ROLES_MAX + 1];
        for (left, seats) in left.iter_mut().zip(&open.roles) {
            *left = i32::from(*seats);
        }
        left[ROLES_MAX] = i32::from(open.any);
        for (player, role) in players.iter().zip(roles) {
            let seat = role.map_or(ROLES_MAX, usize::from).min(ROLES_MAX);
            left[seat] -= 1;
            let can = seat == ROLES_MAX || player.roles.is_empty() || player.roles.contains(seat);
            if !can || left[seat] < 0 {
                problems.add(format!(
                    "team {at}: player {} has no seat for {role:?}",
                    player.id
                ));
            }
        }
    }
}

/// Everybody is near enough to the region, by what his own ticket has waited for.
fn check_latency(
    rules: &MatchRules,
    now_ms: u64,
    proposal: &Proposal,
    teams: &[Vec<&Ticket>],
    problems: &mut Problems,
) {
    let Some(region) = rules.spec().regions.get(usize::from(proposal.region.0)) else {
        problems.add(format!("region {} isn't known", proposal.region.0));
        return;
    };
    for ticket in teams.iter().flatten() {
        let step = rules.step(now_ms.saturating_sub(ticket.enqueued_ms));
        let extra = rules.ladder(Brownout::Off)[step].latency_ms;
        let most = u32::from(region.latency_ms_max) + u32::from(extra);
        for player in &ticket.players {
            let latency = player.latency_ms.to(proposal.region);
            if latency.is_none_or(|latency| u32::from(latency) > most) {
                problems.add(format!(
                    "player {}: {latency:?} ms to {}",
                    player.id, region.name
                ));
            }
        }
    }
}

/// The spread and the parties' gap are within everybody's patience.
fn check_match(
    rules: &MatchRules,
    brownout: Brownout,
    now_ms: u64,
    teams: &[Vec<&Ticket>],
    problems: &mut Problems,
) {
    let all: Vec<&&Ticket> = teams.iter().flatten().collect();
    let largest = |team: &Vec<&Ticket>| team.iter().map(|t| t.players.len()).max().unwrap_or(0);
    let sizes: Vec<usize> = teams.iter().map(largest).collect();
    let gap = sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0);
    let step = |ticket: &Ticket| {
        rules.ladder(brownout)[rules.step(now_ms.saturating_sub(ticket.enqueued_ms))]
    };
    let window = all
        .iter()
        .map(|ticket| step(ticket).window)
        .min()
        .unwrap_or(0);
    for one in &all {
        if gap > usize::from(step(one).gap) {
            problems.add(format!(
                "ticket {}: parties differ by {gap} players",
                one.id
            ));
        }
        for two in &all {
            let distance = (rules.value(one) - rules.value(two)).abs();
            if distance > window {
                problems.add(format!(
                    "tickets {} and {}: {distance} thousandths apart, {window} are allowed",
                    one.id, two.id
                ));
            }
        }
    }
}

/// Whoever joins a running match is within its window and its own.
fn check_open(
    rules: &MatchRules,
    brownout: Brownout,
    now_ms: u64,
    backfill: &Backfill,
    teams: &[Vec<&Ticket>],
    problems: &mut Problems,
) {
    let value = (backfill.rating * MILLI).round() as i32;
    let window =
        |since_ms: u64| rules.ladder(brownout)[rules.step(now_ms.saturating_sub(since_ms))].window;
    if teams.iter().all(Vec::is_empty) {
        problems.add("nobody takes a seat");
    }
    for ticket in teams.iter().flatten() {
        let most = window(backfill.since_ms).min(window(ticket.enqueued_ms));
        if (rules.value(ticket) - value).abs() > most {
            problems.add(format!("ticket {} is too far from the match", ticket.id));
        }
    }
}
