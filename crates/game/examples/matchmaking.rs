//! Matchmaking without a server: three parties meet in the search, then an evening of made-up tickets runs through two sets
//! of rules. `cargo run -p phalanx-game --example matchmaking`; with a recording (JSON lines of arrivals) as its
//! argument, that evening is replayed instead.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use phalanx_game::matchmaking::rating::{self, Rating, Scale};
use phalanx_game::matchmaking::rules::{Brownout, MatchRules, RulesSpec};
use phalanx_game::matchmaking::search::Search;
use phalanx_game::matchmaking::ticket::{Latency, Player, Roles, Ticket, TicketId};
use phalanx_game::matchmaking::twin::{self, Comparison, Course, Synthetic};

const RULES: &str = r#"{
    "teams": 2, "team_size": 3,
    "roles": [{"name": "tank", "seats": 1}, {"name": "healer", "seats": 1}],
    "regions": [{"name": "eu", "latency_ms_max": 60}, {"name": "us", "latency_ms_max": 60}],
    "rating": {"window": {"start": 2.0, "per_s": 0.2, "cap": 10.0}},
    "latency": {"start": 0.0, "per_s": 1.0, "cap": 60.0}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rules: Arc<MatchRules> = Arc::new(serde_json::from_str(RULES)?);
    live(&rules)?;
    replay(&rules)
}

fn live(rules: &Arc<MatchRules>) -> Result<(), Box<dyn std::error::Error>> {
    let mut search = Search::new(Arc::clone(rules));
    search.insert(party(1, &[25.0, 26.0], 0))?;
    search.insert(party(2, &[24.0, 25.0], 500))?;
    for id in 3..5 {
        search.insert(party(id, &[25.5], 900))?;
    }
    let mut proposals = Vec::new();
    search.tick(1_000, rules.budget(Brownout::Off), &mut proposals);
    for proposal in &proposals {
        let region = rules.region_name(proposal.region).unwrap_or("?");
        println!(
            "a match in {region}: {:?}, {:?}\n",
            proposal.teams, proposal.quality
        );
    }
    let teams = vec![vec![Rating::NEWCOMER; 3], vec![Rating::NEWCOMER; 3]];
    let after = rating::update(&teams, &[1, 2], &Scale::default())?;
    println!(
        "newcomers who win have {:.1} ± {:.1} then, those who lose {:.1} ± {:.1}\n",
        after[0][0].mu, after[0][0].sigma, after[1][0].mu, after[1][0].sigma
    );
    Ok(())
}

fn party(id: u64, mus: &[f64], enqueued_ms: u64) -> Ticket {
    let player = |(at, mu): (u64, &f64)| Player {
        id: id * 10 + at,
        rating: Rating::new(*mu, 2.0),
        roles: Roles::default(),
        latency_ms: Latency::of(&[25, 110]),
    };
    Ticket {
        id: TicketId(id),
        players: (0..).zip(mus).map(player).collect(),
        enqueued_ms,
    }
}

fn replay(rules: &Arc<MatchRules>) -> Result<(), Box<dyn std::error::Error>> {
    let arrivals = match std::env::args_os().nth(1) {
        Some(path) => twin::read(BufReader::new(File::open(path)?))?,
        None => Synthetic {
            seconds: 120,
            per_s: 8.0,
            parties: vec![6, 3, 1],
            homes: vec![4, 1],
            patience_s: 120,
            ..Synthetic::default()
        }
        .arrivals(rules),
    };
    let mut candidate: RulesSpec = rules.spec().clone();
    candidate.rating.window.per_s = 0.6;
    let candidate = candidate.check()?.shared();
    let now = twin::run(rules, &arrivals, &Course::default());
    let then = twin::run(&candidate, &arrivals, &Course::default());
    println!("the rules of now\n{now}");
    println!("what a window that widens three times as fast would change");
    let both = Comparison {
        current: &now,
        candidate: &then,
    };
    print!("{both}");
    Ok(())
}
