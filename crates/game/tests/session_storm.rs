//! Everybody is dropped at once: the logins never see more than they bear, all are back soon, the most urgent first, and
//! whoever ignores his time gains nothing and costs nobody anything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use phalanx_game::dice::Dice;
use phalanx_game::session::{
    AGAIN, Arrival, Budget, CLIENTS_MAX, Claim, Governor, Stage, Verdict, Why,
};

const START: Duration = Duration::from_secs(1_700_000_000);
/// Between the server and a client.
const LATENCY_MS: u64 = 80;
/// What somebody who ignores his time waits between two attempts.
const RUDE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Obedient,
    /// Comes at once, and again and again.
    Rude,
    /// Has no pass.
    Stranger,
}

struct Client {
    stage: Stage,
    manner: Manner,
    spread: Duration,
    knocks: u32,
    back: Option<Duration>,
}

struct Storm {
    clients: Vec<Client>,
    /// When each came through to the logins, in order.
    logins: Vec<Duration>,
    budget: u32,
    governor: Governor,
}

struct Case {
    clients: u32,
    budget: u32,
    rude_percent: u64,
    stranger_percent: u64,
    /// How many of those who are there the governor was told of.
    known_percent: u32,
    announced: bool,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            clients: 20_000,
            budget: 1_000,
            rude_percent: 0,
            stranger_percent: 0,
            known_percent: 100,
            announced: false,
            seed: 1,
        }
    }
}

/// Of a hundred: in battle, reconnecting, loading, queueing, browsing.
const SHARES: [u64; Stage::COUNT] = [40, 5, 5, 20, 30];

fn run(case: &Case) -> Storm {
    let mut dice = Dice::new(case.seed);
    let budgets = [Budget {
        region: "eu".into(),
        per_second: case.budget,
    }];
    let mut governor = Governor::try_new(&budgets, dice.bits()).unwrap();
    let mut counts = [0; Stage::COUNT];
    let mut clients: Vec<Client> = (0..case.clients)
        .map(|_| {
            let stage = stage(&mut dice);
            let manner = match dice.below(100) {
                n if n < case.rude_percent => Manner::Rude,
                n if n < case.rude_percent + case.stranger_percent => Manner::Stranger,
                _ => Manner::Obedient,
            };
            if manner != Manner::Stranger {
                counts[stage.index()] += 1;
            }
            Client {
                stage,
                manner,
                spread: Duration::ZERO,
                knocks: 0,
                back: None,
            }
        })
        .collect();
    let known = counts.map(|count| count * case.known_percent / 100);
    governor.population(0, known).unwrap();
    for client in &mut clients {
        client.spread = governor.spread(0, client.stage).unwrap();
    }

    let all_at_once = u64::from(case.clients) * 1_000 / u64::from(case.budget);
    let latency = |dice: &mut Dice| Duration::from_micros(dice.below(LATENCY_MS * 1_000));
    let mut events = BinaryHeap::new();
    for (id, client) in clients.iter().enumerate() {
        let after = match client.manner {
            Manner::Obedient => client.spread,
            Manner::Rude => Duration::ZERO,
            Manner::Stranger => Duration::from_millis(dice.below(all_at_once)),
        };
        events.push(Reverse((START + after + latency(&mut dice), id)));
    }
    if case.announced {
        assert!(governor.storm(START, 0).unwrap());
    }
    let mut logins = Vec::new();
    while let Some(Reverse((now, id))) = events.pop() {
        assert!(now < START + Duration::from_secs(3_600), "it ends");
        let client = &mut clients[id];
        client.knocks += 1;
        let claim = match client.manner {
            Manner::Stranger => Claim::Nothing,
            _ => Claim::Pass {
                stage: client.stage,
                issued: START - Duration::from_secs(60),
                earliest: Duration::ZERO,
                spread: client.spread,
            },
        };
        let arrival = Arrival {
            client: id as u64,
            region: 0,
            claim,
        };
        match governor.arrive(now, &arrival).unwrap() {
            Verdict::Admit { hold } => {
                client.back = Some(now + hold - START);
                logins.push(now + hold);
            }
            Verdict::Wait { at, why } => {
                assert_ne!(why, Why::Full, "there is a place for everybody");
                assert!(at > now, "a time that is told is yet to come");
                let next = match client.manner {
                    Manner::Rude => now + RUDE,
                    _ => at + latency(&mut dice),
                };
                events.push(Reverse((next, id)));
            }
        }
    }
    logins.sort_unstable();
    Storm {
        clients,
        logins,
        budget: case.budget,
        governor,
    }
}

fn stage(dice: &mut Dice) -> Stage {
    let mut left = dice.below(100);
    for (stage, share) in Stage::ALL.into_iter().zip(SHARES) {
        if left < share {
            return stage;
        }
        left -= share;
    }
    Stage::Browsing
}

impl Storm {
    /// How long, sorted, those took who are meant.
    fn back(&self, is_meant: impl Fn(&Client) -> bool) -> Vec<Duration> {
        let meant = self.clients.iter().filter(|client| is_meant(client));
        let mut back: Vec<Duration> = meant
            .map(|client| client.back.expect("all are back"))
            .collect();
        back.sort_unstable();
        back
    }

    /// No second, wherever it begins, has more than the budget.
    fn check_budget(&self) {
        let budget = self.budget as usize;
        for (first, next) in self.logins.iter().zip(self.logins.iter().skip(budget)) {
            let took = *next - *first;
            assert!(took >= Duration::from_secs(1), "{budget} took {took:?}");
        }
    }

    fn check_done_within(&self, factor: f64) {
        let last = *self.logins.last().expect("somebody came") - START;
        let least = self.clients.len() as f64 / f64::from(self.budget);
        let most = least * factor;
        assert!(last.as_secs_f64() <= most, "{last:?}, not {most} s");
        assert_eq!(self.logins.len(), self.clients.len());
    }
}

impl Storm {
    /// For whoever looks with `--nocapture`.
    fn show(&self, what: &str) {
        let budget = self.budget as usize;
        let mut most = 0;
        for (at, first) in self.logins.iter().enumerate() {
            let end = self
                .logins
                .partition_point(|login| *login < *first + Duration::from_secs(1));
            most = most.max(end - at);
        }
        let least = self.clients.len() as f64 / budget as f64;
        let last = (*self.logins.last().expect("somebody came") - START).as_secs_f64();
        let knocks: u32 = self.clients.iter().map(|client| client.knocks).sum();
        let of_each = f64::from(knocks) / self.clients.len() as f64;
        println!(
            "{what}: {} clients, {budget}/s: at most {most} in any second, the last after {last:.1} s ({:.2} of the least), {of_each:.2} knocks each",
            self.clients.len(),
            last / least,
        );
    }
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

#[test]
fn when_all_are_dropped_at_once_logins_see_their_budget_and_all_are_back_soon() {
    for (announced, budget, clients) in [
        (false, 1_000, 20_000),
        (true, 1_000, 20_000),
        (false, 37, 1_500),
        (true, 5_000, 30_000),
    ] {
        let storm = run(&Case {
            announced,
            budget,
            clients,
            ..Case::default()
        });
        storm.show(if announced {
            "announced"
        } else {
            "unannounced"
        });
        storm.check_budget();
        storm.check_done_within(1.25);
        let knocks: u32 = storm.clients.iter().map(|client| client.knocks).sum();
        let most = storm.clients.iter().map(|client| client.knocks).max();
        assert!(f64::from(knocks) < 1.1 * f64::from(clients), "{knocks}");
        assert!(most <= Some(4), "{most:?}");
    }
}

#[test]
fn whoever_has_most_to_lose_is_back_first() {
    let storm = run(&Case::default());
    let medians: Vec<Duration> = Stage::ALL
        .into_iter()
        .map(|stage| median(&storm.back(|client| client.stage == stage)))
        .collect();
    assert!(medians.is_sorted(), "{medians:?}");
    let battle = storm.back(|client| client.stage == Stage::InBattle);
    let of_all = storm.clients.len() as f64 / f64::from(storm.budget);
    let last = battle.last().unwrap().as_secs_f64();
    println!("medians by stage: {medians:?}; all of those in battle after {last:.1} s");
    assert!(last < 0.4 * 1.25 * of_all + 1.0, "{last}");
}

#[test]
fn ignoring_the_time_gains_nothing_and_costs_the_others_nothing() {
    let quiet = run(&Case::default());
    for announced in [true, false] {
        let storm = run(&Case {
            rude_percent: 30,
            announced,
            ..Case::default()
        });
        storm.show("three of ten ignore their time");
        storm.check_budget();
        storm.check_done_within(1.25);
        let obedient = |client: &Client| client.manner == Manner::Obedient;
        let (with, without) = (storm.back(obedient), quiet.back(obedient));
        for percent in [50, 90, 99] {
            let at = |back: &[Duration]| back[(back.len() - 1) * percent / 100];
            let (with, without) = (at(&with), at(&without));
            println!("  P{percent} of those who obey: {with:?}, without rude ones {without:?}");
            assert!(
                with <= without + Duration::from_millis(1_000),
                "P{percent}: {with:?} beside rude ones, {without:?} without"
            );
        }
        let rude = storm.back(|client| client.manner == Manner::Rude);
        assert!(
            median(&rude) + Duration::from_secs(2) > median(&with),
            "{:?}, {:?}",
            median(&rude),
            median(&with)
        );
    }
}

#[test]
fn if_nobody_obeys_the_logins_still_see_their_budget() {
    let storm = run(&Case {
        rude_percent: 100,
        ..Case::default()
    });
    storm.show("nobody obeys");
    storm.check_budget();
    storm.check_done_within(1.35);
    assert_eq!(storm.governor.metrics()[0].storms, 1);
}

#[test]
fn a_governor_that_knows_of_half_or_twice_as_many_keeps_the_budget_all_the_same() {
    for (known_percent, factor) in [(50, 1.35), (200, 2.5), (0, 1.5)] {
        for announced in [true, false] {
            let storm = run(&Case {
                known_percent,
                announced,
                clients: 8_000,
                ..Case::default()
            });
            storm.show(&format!("{known_percent} % are known"));
            storm.check_budget();
            storm.check_done_within(factor);
        }
    }
}

#[test]
fn one_who_keeps_knocking_uses_up_nobodys_turn() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 100,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    let mut admitted = 0;
    for ms in 0..20_000 {
        let now = START + Duration::from_millis(ms);
        for claim in [Claim::Nothing, in_battle(START)] {
            let arrival = Arrival {
                client: 7,
                region: 0,
                claim,
            };
            match governor.arrive(now, &arrival).unwrap() {
                Verdict::Admit { .. } => admitted += 1,
                Verdict::Wait { at, why } => {
                    assert_eq!(why, Why::Again);
                    assert!(now < at && at <= now + AGAIN);
                }
            }
        }
    }
    assert_eq!(admitted, 20 / AGAIN.as_secs());
}

fn in_battle(issued: Duration) -> Claim {
    Claim::Pass {
        stage: Stage::InBattle,
        issued,
        earliest: Duration::ZERO,
        spread: Duration::from_secs(1),
    }
}

#[test]
fn a_storm_during_another_follows_it() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 100,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    governor.population(0, [850, 0, 0, 0, 0]).unwrap();
    let pass = |issued| Arrival {
        client: 1,
        region: 0,
        claim: in_battle(issued),
    };
    let at = |seconds| START + Duration::from_secs(seconds);
    let told = |time| Verdict::Wait {
        at: time,
        why: Why::Early,
    };
    assert!(governor.storm(START, 0).unwrap());
    // Ten seconds of those who were dropped first, then three in which somebody may be late.
    assert!(governor.storm(at(5), 0).unwrap());
    let first = governor.arrive(START, &pass(START)).unwrap();
    assert_eq!(first, told(at(1)));
    let second = governor.arrive(at(5), &pass(at(3))).unwrap();
    assert_eq!(second, told(at(14)));
    // Whoever came back since is told nothing.
    let later = governor.arrive(at(6), &pass(at(6))).unwrap();
    assert!(matches!(later, Verdict::Admit { .. }));
}

#[test]
fn strangers_leave_places_to_others_and_whoever_gets_none_is_told_a_time_to_come() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 1_000,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    let mut book = |stage, from: usize| {
        let places = (from..).take_while(|client| {
            let booked = governor.book(START, 0, stage, *client as u64);
            booked.unwrap().is_some()
        });
        places.count()
    };
    let strangers = book(Stage::Browsing, 0);
    assert_eq!(strangers, CLIENTS_MAX * 3 / 4);
    assert_eq!(book(Stage::InBattle, strangers), CLIENTS_MAX - strangers);
    let mut clients = 1_000_000_u64..;
    let told = clients.find_map(|client| {
        let arrival = Arrival {
            client,
            region: 0,
            claim: Claim::Pass {
                stage: Stage::Loading,
                issued: START,
                earliest: Duration::ZERO,
                spread: Duration::ZERO,
            },
        };
        match governor.arrive(START, &arrival).unwrap() {
            Verdict::Admit { .. } => None,
            Verdict::Wait { at, why } => Some((at, why)),
        }
    });
    let (at, why) = told.unwrap();
    assert!(why == Why::Full && at >= START + AGAIN, "{why:?} at {at:?}");
}

#[test]
fn several_who_announce_a_storm_mean_the_same_one() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 100,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    governor.population(0, [850, 0, 0, 0, 0]).unwrap();
    for gateway in 0..12 {
        let seen = START + Duration::from_millis(gateway * 200);
        assert!(governor.storm(seen, 0).unwrap());
    }
    assert_eq!(governor.metrics()[0].storms, 1);
    let arrival = Arrival {
        client: 1,
        region: 0,
        claim: in_battle(START),
    };
    let told = governor.arrive(START, &arrival).unwrap();
    let at = START + Duration::from_secs(1);
    let why = Why::Early;
    assert_eq!(told, Verdict::Wait { at, why });
}

#[test]
fn strangers_come_after_all_others_and_are_not_left_out() {
    let storm = run(&Case {
        stranger_percent: 20,
        announced: true,
        ..Case::default()
    });
    storm.show("one of five has no pass");
    storm.check_budget();
    storm.check_done_within(1.6);
    let strangers = storm.back(|client| client.manner == Manner::Stranger);
    let battle =
        storm.back(|client| client.manner == Manner::Obedient && client.stage == Stage::InBattle);
    assert!(median(&battle) < median(&strangers));
}

#[test]
fn a_burst_that_is_no_storm_is_served_at_once_or_booked_within_the_budget() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 100,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    governor.population(0, [100_000, 0, 0, 0, 0]).unwrap();
    let (mut last, mut admitted) = (START, 0);
    for client in 0..500 {
        let spread = governor.spread(0, Stage::InBattle).unwrap();
        let claim = Claim::Pass {
            stage: Stage::InBattle,
            issued: START - Duration::from_secs(1),
            earliest: Duration::ZERO,
            spread,
        };
        let arrival = Arrival {
            client,
            region: 0,
            claim,
        };
        match governor.arrive(START, &arrival).unwrap() {
            Verdict::Admit { .. } => admitted += 1,
            Verdict::Wait { at, why } => {
                assert_eq!(why, Why::Booked);
                last = last.max(at);
                // Coming again before is told the same.
                let again = governor.arrive(START, &arrival).unwrap();
                assert_eq!(
                    again,
                    Verdict::Wait {
                        at,
                        why: Why::Early
                    }
                );
            }
        }
    }
    assert!(admitted >= 32, "{admitted}");
    assert!(last < START + Duration::from_secs(6), "{:?}", last - START);
    assert_eq!(governor.metrics()[0].storms, 0);
}

#[test]
fn a_drain_books_places_that_are_kept() {
    let budgets = [Budget {
        region: "eu".into(),
        per_second: 50,
    }];
    let mut governor = Governor::try_new(&budgets, 1).unwrap();
    let mut times: Vec<(Duration, u64)> = Vec::new();
    for client in 0..400 {
        let at = governor.book(START, 0, Stage::InBattle, client).unwrap();
        times.push((at.expect("an hour has room"), client));
    }
    times.sort_unstable();
    let mut logins = Vec::new();
    for (at, client) in times {
        let arrival = Arrival {
            client,
            region: 0,
            claim: Claim::Pass {
                stage: Stage::InBattle,
                issued: START,
                earliest: at,
                spread: Duration::ZERO,
            },
        };
        let early = governor.arrive(START, &arrival).unwrap();
        assert_eq!(
            early,
            Verdict::Wait {
                at,
                why: Why::Early
            }
        );
        match governor.arrive(at, &arrival).unwrap() {
            Verdict::Admit { hold } => logins.push(at + hold),
            Verdict::Wait { .. } => panic!("{client} had a place at {at:?}"),
        }
    }
    for (first, next) in logins.iter().zip(logins.iter().skip(50)) {
        assert!(*next - *first >= Duration::from_secs(1));
    }
    let took = *logins.last().unwrap() - START;
    assert!(took < Duration::from_millis(9_500), "{took:?}");
}

#[test]
fn many_storms_of_all_sizes_keep_the_budget() {
    let rounds = std::env::var("PHALANX_SOAK").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(6);
    for seed in 0..rounds {
        let mut dice = Dice::new(seed);
        let case = Case {
            clients: 200 + dice.below(4_000) as u32,
            budget: 20 + dice.below(800) as u32,
            rude_percent: dice.below(101),
            stranger_percent: 0,
            known_percent: 100,
            announced: dice.chance(1, 2),
            seed,
        };
        let storm = run(&case);
        storm.check_budget();
        let least = f64::from(case.clients) / f64::from(case.budget);
        // What is within two seconds is nobody's plan.
        storm.check_done_within(1.35 + 3.0 / least);
    }
}
