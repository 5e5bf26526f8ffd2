use super::*;

#[test]
fn every_problem_of_rules_is_named_at_once() {
    let text = r#"{
        "teams": 2, "team_size": 3,
        "roles": [{"name": "tank", "seats": 2}, {"name": "tank", "seats": 2}],
        "regions": [{"name": "eu west", "latency_ms_max": 0}],
        "rating": {"window": {"start": 5.0, "per_s": 0.0, "cap": 9.0}, "conservative": -1.0},
        "party": {"players_max": 4},
        "step_ms": 1
    }"#;
    let spec: RulesSpec = serde_json::from_str(text).unwrap();
    let problems = spec.check().unwrap_err();
    let wanted = [
        "party.players_max",
        "roles: 4 seats",
        "roles[1].name",
        "regions[0].name",
        "regions[0].latency_ms_max",
        "rating.conservative",
        "rating.window.per_s",
        "step_ms",
    ];
    for path in wanted {
        assert!(
            problems
                .list()
                .iter()
                .any(|problem| problem.starts_with(path)),
            "{path}: {problems}"
        );
    }
    assert_eq!(problems.list().len(), wanted.len(), "{problems}");
}

#[test]
fn unknown_keys_are_refused_and_checked_rules_come_back_from_json() {
    let unknown =
        r#"{"teams":2,"team_size":1,"regions":[{"name":"eu","latency_ms_max":80}],"windo":1}"#;
    assert!(serde_json::from_str::<MatchRules>(unknown).is_err());
    let text = r#"{"teams":2,"team_size":1,"regions":[{"name":"eu","latency_ms_max":80}]}"#;
    let rules: MatchRules = serde_json::from_str(text).unwrap();
    let again: MatchRules = serde_json::from_str(&serde_json::to_string(&rules).unwrap()).unwrap();
    assert_eq!(rules, again);
    assert_eq!(rules.region("eu"), Some(RegionIndex(0)));
    assert_eq!(rules.region_name(RegionIndex(1)), None);
    assert!(serde_json::from_str::<MatchRules>(&text.replace("80", "0")).is_err());
}

#[test]
fn a_ladder_that_is_too_long_names_the_step_that_would_do() {
    let mut spec = RulesSpec::simple(2, 1, "eu", 80);
    spec.rating.window = Widening {
        start: 0.0,
        per_s: 1.0,
        cap: 150.0,
    };
    spec.step_ms = 1_000;
    let problems = spec.clone().check().unwrap_err();
    assert!(
        problems.to_string().contains("raise step_ms to 10000"),
        "{problems}"
    );
    spec.step_ms = 10_000;
    let rules = spec.check().unwrap();
    let ladder = rules.ladder(Brownout::Off);
    assert_eq!(ladder.len(), STEPS_MAX);
    assert_eq!((ladder[1].after_ms, ladder[1].window), (10_000, 10_000));
    assert_eq!(ladder[15].window, 150_000);
    assert_eq!(rules.ladder(Brownout::Slowed)[15].window, 225_000);
    assert_eq!((rules.step(9_999), rules.step(10_000)), (0, 1));
    assert_eq!(rules.step(u64::MAX), 15);
}

#[test]
fn the_largest_numbers_that_are_admitted_dont_overflow() {
    let mut spec = RulesSpec::simple(2, 1, "eu", u16::MAX);
    spec.rating.conservative = 10.0;
    spec.rating.floor = -RATING_MAX;
    spec.rating.ceiling = RATING_MAX;
    spec.rating.window = Widening::fixed(RATING_MAX);
    spec.brownout.widen_percent = 1_000;
    spec.latency = Widening::fixed(10_000.0);
    let rules = spec.check().unwrap().shared();
    let mut search = crate::matchmaking::search::Search::new(Arc::clone(&rules));
    let extremes = [(RATING_MAX, 0.0), (-RATING_MAX, RATING_MAX), (0.0, 0.0)];
    for (id, (mu, sigma)) in (0..).zip(extremes) {
        let player = ticket::Player {
            id,
            rating: crate::matchmaking::rating::Rating::new(mu, sigma),
            roles: ticket::Roles::default(),
            latency_ms: ticket::Latency::of(&[u16::MAX]),
        };
        search
            .insert(Ticket {
                id: ticket::TicketId(id),
                players: vec![player],
                enqueued_ms: 0,
            })
            .unwrap();
    }
    let mut out = Vec::new();
    for brownout in Brownout::ALL {
        search.tick(u64::MAX, rules.budget(brownout), &mut out);
    }
    assert_eq!(out.len(), 1);
}

#[test]
fn brownouts_go_up_and_down_by_levels() {
    let up: Vec<_> = Brownout::ALL.iter().map(|level| level.more()).collect();
    assert_eq!(
        up,
        [
            Brownout::Widened,
            Brownout::Unimproved,
            Brownout::Slowed,
            Brownout::Slowed
        ]
    );
    assert_eq!(Brownout::Widened.less(), Brownout::Off);
    let rules = RulesSpec::simple(2, 1, "eu", 80).check().unwrap();
    assert_eq!(
        rules.period(Brownout::Unimproved),
        Duration::from_millis(100)
    );
    assert_eq!(rules.period(Brownout::Slowed), Duration::from_millis(200));
}
