//! What a tick of the matchmaking search costs with 100,000 live tickets on one core: where everybody can be matched (the
//! pool is refilled before each tick), and where hardly anybody can (5,000 tickets come and 5,000 give up per second).
//! Time stands in the simulation (100 ms per tick); only `Search::tick` is measured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use phalanx_game::dice::Dice;
use phalanx_game::matchmaking::rating::Rating;
use phalanx_game::matchmaking::rules::{Brownout, RegionRules, RoleSeats, RulesSpec, Widening};
use phalanx_game::matchmaking::search::Search;
use phalanx_game::matchmaking::ticket::{Latency, Player, Roles, Ticket, TicketId};

use crate::{Options, Row};

const LIVE: usize = 100_000;
const PERIOD_MS: u64 = 100;
/// Tickets that come and go per tick where few can be matched.
const CHANGE: usize = 500;
const START_MS: u64 = 1_700_000_000_000;
const BAR_MS: f64 = 50.0;

struct Case {
    name: &'static str,
    worst: &'static str,
    rules: fn() -> RulesSpec,
    /// Rating and party size, and the roles of one who came alone.
    ticket: fn(&mut Dice) -> (f64, u64, Roles),
    /// All come back to 100,000 before each tick, or only [`CHANGE`] come.
    refilled: bool,
    note: &'static str,
}

const CASES: [Case; 6] = [
    Case {
        name: "search: tick, 1v1, all can match",
        worst: "search: worst tick, 1v1, all can match",
        rules: duel,
        ticket: |dice| (uniform(dice, 50.0), 1, Roles::default()),
        refilled: true,
        note: "refilled to 100,000 before each tick, 3 regions",
    },
    Case {
        name: "search: tick, 5v5 roles and parties, all can match",
        worst: "search: worst tick, 5v5 roles and parties, all can match",
        rules: five,
        ticket: |dice| {
            let size = [1, 1, 1, 1, 1, 1, 2, 2, 3, 5][dice.below(10) as usize];
            (uniform(dice, 50.0), size, wish(dice))
        },
        refilled: true,
        note: "refilled to 100,000 before each tick, 3 regions, 3 roles, parties of 1, 2, 3 and 5",
    },
    Case {
        name: "search: tick, 1v1, few can match",
        worst: "search: worst tick, 1v1, few can match",
        rules: sparse_duel,
        ticket: |dice| (uniform(dice, 90_000.0), 1, Roles::default()),
        refilled: false,
        note: "ratings far apart, windows widening; 5,000 come and go per second",
    },
    Case {
        name: "search: tick, 5v5, too few in every window",
        worst: "search: worst tick, 5v5, too few in every window",
        rules: sparse_five,
        ticket: |dice| (uniform(dice, 90_000.0), 1, wish(dice)),
        refilled: false,
        note: "about seven players per window, 3 roles; 5,000 come and go per second",
    },
    Case {
        name: "search: tick, 5v5, nobody plays tank",
        worst: "search: worst tick, 5v5, nobody plays tank",
        rules: five,
        ticket: |dice| {
            (
                uniform(dice, 50.0),
                1,
                Roles::of(&[1 + dice.below(2) as usize]),
            )
        },
        refilled: false,
        note: "3 regions; 5,000 come and go per second",
    },
    Case {
        name: "search: tick, 5v5, parties of three only",
        worst: "search: worst tick, 5v5, parties of three only",
        rules: five,
        ticket: |dice| (uniform(dice, 50.0), 3, Roles::default()),
        refilled: false,
        note: "3 regions, 3 roles; 5,000 come and go per second",
    },
];

pub fn rows(options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let share = Duration::from_millis(options.seconds * 1_000 / CASES.len() as u64 * 2);
    for case in &CASES {
        let (mut medians, mut worsts, mut told) = (Vec::new(), Vec::new(), String::new());
        for round in 0..options.rounds {
            let figures = measure(case, u64::from(round), share)
                .with_context(|| format!("measuring {}", case.name))?;
            medians.push(figures.median_ms);
            worsts.push(figures.worst_ms);
            told = format!("{}; {}", case.note, figures.note);
        }
        let bar = Some(format!("≤ {BAR_MS} ms"));
        rows.push(row(case.name, "ms", medians, None, told));
        rows.push(row(case.worst, "ms", worsts, bar, String::new()));
    }
    let mut rates = Vec::new();
    for round in 0..options.rounds {
        rates.push(inserts(u64::from(round))?);
    }
    rows.push(row(
        "search: tickets taken in",
        "/s",
        rates,
        Some("≥ 50000 /s".to_owned()),
        "Search::insert into 0 to 100,000 and the tick's share of placing them, one core"
            .to_owned(),
    ));
    Ok(rows)
}

fn row(
    case: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
    bar: Option<String>,
    note: String,
) -> Row {
    Row {
        case,
        who: "phalanx",
        unit,
        samples,
        bar,
        note,
    }
}

struct Figures {
    median_ms: f64,
    worst_ms: f64,
    note: String,
}

fn measure(case: &Case, seed: u64, share: Duration) -> anyhow::Result<Figures> {
    let rules = (case.rules)().check()?.shared();
    let mut dice = Dice::new(seed);
    let mut search = Search::new(rules.clone());
    let (mut now, mut next) = (START_MS, 1);
    let mut order = VecDeque::new();
    // Those who can't be matched have come one after the other in the last minute.
    for at in 0..LIVE as u64 {
        let waited = if case.refilled {
            0
        } else {
            60_000 - at * 60_000 / LIVE as u64
        };
        search.insert(ticket(case, next, now - waited, &mut dice))?;
        order.push_back(TicketId(next));
        next += 1;
    }
    let (mut times, mut proposals) = (Vec::new(), Vec::new());
    let (mut matches, mut exhausted, mut least, mut operations) = (0, 0, usize::MAX, 0);
    let began = Instant::now();
    while times.len() < 100 || (began.elapsed() < share && times.len() < 2_000) {
        least = least.min(search.len());
        let start = Instant::now();
        let report = search.tick(now, rules.budget(Brownout::Off), &mut proposals);
        times.push(start.elapsed().as_secs_f64() * 1_000.0);
        matches += proposals.len();
        exhausted += usize::from(report.exhausted);
        operations += report.operations;
        proposals.clear();
        now += PERIOD_MS;
        if !case.refilled {
            for _ in 0..CHANGE {
                while let Some(oldest) = order.pop_front() {
                    if search.remove(oldest).is_some() {
                        break;
                    }
                }
            }
        }
        while search.len() < LIVE {
            search.insert(ticket(case, next, now, &mut dice))?;
            order.push_back(TicketId(next));
            next += 1;
        }
    }
    let ticks = times.len();
    times.sort_by(f64::total_cmp);
    Ok(Figures {
        median_ms: times[ticks / 2],
        worst_ms: times[ticks - 1],
        note: format!(
            "{ticks} ticks, {:.0} matches and {:.0} thousand operations each, {exhausted} out of operations, {least} live at least, {} bytes per ticket",
            matches as f64 / ticks as f64,
            operations as f64 / ticks as f64 / 1_000.0,
            search.bytes() / search.len().max(1)
        ),
    })
}

/// Tickets per second, from the call until the search has placed them.
fn inserts(seed: u64) -> anyhow::Result<f64> {
    let case = &CASES[2];
    let rules = (case.rules)().check()?.shared();
    let mut dice = Dice::new(seed);
    let tickets: Vec<Ticket> = (0..LIVE as u64)
        .map(|id| ticket(case, id, START_MS, &mut dice))
        .collect();
    let mut search = Search::new(rules.clone());
    let mut nothing = rules.budget(Brownout::Off);
    nothing.operations = 0;
    let start = Instant::now();
    for ticket in tickets {
        search.insert(ticket)?;
    }
    search.tick(START_MS, nothing, &mut Vec::new());
    Ok(LIVE as f64 / start.elapsed().as_secs_f64())
}

fn ticket(case: &Case, id: u64, enqueued_ms: u64, dice: &mut Dice) -> Ticket {
    let (mu, size, roles) = (case.ticket)(dice);
    let home = dice.below(3);
    let players = (0..size)
        .map(|at| {
            let latency: [u16; 3] = std::array::from_fn(|region| {
                15 + dice.below(30) as u16 + 70 * (region as u64).abs_diff(home) as u16
            });
            Player {
                id: id * 8 + at,
                rating: Rating::new(mu, 1.0),
                roles: if size == 1 { roles } else { Roles::default() },
                latency_ms: Latency::of(&latency),
            }
        })
        .collect();
    Ticket {
        id: TicketId(id),
        players,
        enqueued_ms,
    }
}

fn uniform(dice: &mut Dice, width: f64) -> f64 {
    dice.below(1_000_000_000) as f64 / 1e9 * width
}

fn wish(dice: &mut Dice) -> Roles {
    match dice.below(4) {
        0 => Roles::of(&[0]),
        1 => Roles::of(&[1]),
        2 => Roles::of(&[2]),
        _ => Roles::of(&[dice.below(3) as usize, dice.below(3) as usize]),
    }
}

fn duel() -> RulesSpec {
    let mut spec = RulesSpec::simple(2, 1, "eu", 80);
    for name in ["us", "asia"] {
        spec.regions.push(RegionRules {
            name: name.to_owned(),
            latency_ms_max: 80,
        });
    }
    spec.rating.conservative = 0.0;
    spec.latency = Widening {
        start: 0.0,
        per_s: 2.0,
        cap: 100.0,
    };
    spec
}

fn five() -> RulesSpec {
    let mut spec = RulesSpec {
        teams: 2,
        team_size: 5,
        ..duel()
    };
    for (name, seats) in [("tank", 1), ("healer", 1), ("damage", 2)] {
        spec.roles.push(RoleSeats {
            name: name.to_owned(),
            seats,
        });
    }
    spec
}

/// 100,000 over 90,000 points, windows from a twentieth to half a point.
fn sparse_duel() -> RulesSpec {
    let mut spec = duel();
    spec.rating.ceiling = 90_000.0;
    spec.rating.floor = 0.0;
    spec.rating.window = Widening {
        start: 0.05,
        per_s: 0.0075,
        cap: 0.5,
    };
    spec
}

/// A little more than one player per point and about half of them in each region: windows from two to twelve points.
fn sparse_five() -> RulesSpec {
    let mut spec = five();
    spec.rating = sparse_duel().rating;
    spec.rating.window = Widening {
        start: 2.0,
        per_s: 0.17,
        cap: 12.0,
    };
    spec
}
