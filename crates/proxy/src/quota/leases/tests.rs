use std::time::Duration;

use phalanx_model::resource::limit::Rate;

use super::super::clock::MILLISECOND;
use super::*;

fn leases(by: LimitKey, requests: u32, closed: bool) -> Leases {
    let rate = Rate {
        requests,
        per: Duration::from_secs(1),
        burst: requests,
    };
    Leases::new("BackendPolicy/arena/p", &GlobalLimit { rate, by, closed })
}

/// How many of `count` requests pass.
fn taken(leases: &Leases, key: u64, count: usize, now_ns: u64) -> usize {
    (0..count).filter(|_| leases.take(key, now_ns)).count()
}

fn granted(tokens: u32) -> Grant {
    Grant { tokens, dry_ns: 0 }
}

#[test]
fn unknown_key_goes_on_credit_that_is_told() {
    let leases = leases(LimitKey::All, 50, false);
    let mut held = BTreeSet::new();
    assert_eq!(taken(&leases, 0, 20, SECOND), 5, "a tenth of the burst");
    let asks = leases.gather(SECOND, 100, &mut held);
    assert_eq!((asks.len(), asks[0].spent, asks[0].wanted), (1, 5, 80));
    assert!(
        leases.gather(SECOND, 100, &mut held).is_empty(),
        "told once"
    );
    leases.grant(&asks[0], granted(30), SECOND, &mut held);
    assert_eq!(taken(&leases, 0, 50, SECOND), 30 + 5);
}

#[test]
fn refusal_holds_until_a_token_can_be_there() {
    let leases = leases(LimitKey::All, 50, false);
    let mut held = BTreeSet::new();
    taken(&leases, 0, 20, SECOND);
    let asks = leases.gather(SECOND, 100, &mut held);
    let dry = Grant {
        tokens: 0,
        dry_ns: 70 * MILLISECOND,
    };
    leases.grant(&asks[0], dry, SECOND, &mut held);
    assert_eq!(taken(&leases, 0, 10, SECOND + 69 * MILLISECOND), 0);
    // One, to ask about: there may be many who would.
    assert_eq!(taken(&leases, 0, 10, SECOND + 70 * MILLISECOND), 1);
}

#[test]
fn unspent_tokens_go_back() {
    let leases = leases(LimitKey::All, 50, false);
    let mut held = BTreeSet::new();
    taken(&leases, 0, 3, 0);
    let asks = leases.gather(0, 100, &mut held);
    leases.grant(&asks[0], granted(12), 0, &mut held);
    assert_eq!(taken(&leases, 0, 2, 0), 2);
    leases.gather(0, 100, &mut held);
    assert!(leases.gather(LEASE - 1, 100, &mut held).is_empty());
    let asks = leases.gather(LEASE, 100, &mut held);
    assert_eq!((asks.len(), asks[0].returned), (1, 10));
    assert!(held.is_empty());
}

#[test]
fn while_nobody_answers_each_sidecar_keeps_the_limit_or_lets_nothing_in() {
    for (closed, expected) in [(false, 50), (true, 0)] {
        let leases = leases(LimitKey::All, 50, closed);
        let mut held = BTreeSet::new();
        assert_eq!(taken(&leases, 0, 20, SECOND), 5);
        let asks = leases.gather(SECOND, 100, &mut held);
        leases.unanswered(&asks[0]);
        assert_eq!(taken(&leases, 0, 100, SECOND), expected);
        // What went on credit is still told when somebody listens.
        let asks = leases.gather(SECOND, 100, &mut held);
        assert_eq!(asks[0].spent, 5);
        leases.grant(&asks[0], granted(20), SECOND, &mut held);
        assert_eq!(taken(&leases, 0, 100, SECOND), 20 + 5);
    }
}

#[test]
fn keys_are_apart_and_those_without_a_place_share_one() {
    let leases = leases(LimitKey::Header("x-player".into()), 10, false);
    let (one, other) = (key_of(b"one"), key_of(b"other"));
    assert_eq!(taken(&leases, one, 5, SECOND), 1);
    assert_eq!(taken(&leases, other, 5, SECOND), 1);
    let flood = (0..100_000u64).map(|n| key_of(&n.to_be_bytes()));
    let passed = flood.filter(|key| leases.take(*key, SECOND)).count();
    assert!(passed <= SLOTS, "{passed}");
    assert!(passed > SLOTS / 2, "{passed}");
    // Two seconds later nobody needs them any more, once they were told.
    let mut held = BTreeSet::new();
    while let asks = leases.gather(SECOND, 1_000, &mut held)
        && !asks.is_empty()
    {
        assert!(asks.len() <= 1_000);
        asks.iter()
            .for_each(|ask| leases.grant(ask, granted(0), SECOND, &mut held));
    }
    let later = 4 * SECOND + 1;
    let fresh = (0..1_000u64).map(|n| key_of(&(1 << 40 | n).to_be_bytes()));
    let passed = fresh.filter(|key| leases.take(*key, later)).count();
    assert_eq!(passed, 1_000);
}

#[test]
fn cores_never_spend_a_token_twice() {
    let leases = leases(LimitKey::All, 100_000, true);
    let mut held = BTreeSet::new();
    leases.take(0, SECOND);
    let asks = leases.gather(SECOND, 100, &mut held);
    leases.grant(&asks[0], granted(30_000), SECOND, &mut held);
    leases.silent.store(true, Ordering::Relaxed); // no credit
    let passed: usize = std::thread::scope(|scope| {
        let take = || taken(&leases, 0, 20_000, SECOND);
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 30_000);
}
