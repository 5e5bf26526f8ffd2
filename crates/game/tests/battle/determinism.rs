//! The same input has the same result: on every thread, through the executor, and in another build.

use phalanx_game::battle::{Call, Executor, Options, digest, prove, rerun};

use super::duel::{Duel, GOLDEN, Rules, Teams, golden_cases};

/// Of single fights: seed and digest.
const GOLDEN_FIGHTS: [(u64, u64); 3] = [
    (0, 10_172_445_479_720_782_057),
    (1, 14_214_828_110_268_671_672),
    (99, 5_465_742_786_878_613_907),
];
/// Fights in the test run; a soak fights a million.
const FIGHTS: u64 = 10_000;

#[test]
fn a_million_fights_on_all_threads_have_the_committed_hash() {
    let fights = std::env::var("PHALANX_SOAK").map_or(FIGHTS, |_| 1_000_000);
    let hash = prove(&Duel, 1, &Rules::first(), &golden_cases(), fights, 4);
    assert_eq!(hash, Ok(GOLDEN), "a result changed: was that meant?");
}

#[test]
fn single_fights_have_the_committed_digests() {
    let digests = GOLDEN_FIGHTS.map(|(seed, _)| {
        let input = Teams::sample(seed, 4, 900, 60);
        let end = rerun(&Duel, 1, &Rules::first(), &Call::new(seed), &input);
        (seed, digest::<Duel>(&end).unwrap_or(0))
    });
    assert_eq!(digests, GOLDEN_FIGHTS);
}

#[test]
fn other_rules_have_another_hash() {
    let first = prove(&Duel, 1, &Rules::first(), &golden_cases(), 100, 2);
    let second = prove(&Duel, 2, &Rules::second(), &golden_cases(), 100, 2);
    assert_ne!(first, second);
}

#[tokio::test]
async fn the_executor_changes_no_result() {
    let executor = Executor::start(Options {
        cores: 3,
        // As often as it gets: looks must not matter.
        check_every: 1,
        ..super::act::patient(3)
    })
    .unwrap();
    let duels = executor.register("duel", Duel, 1, Rules::first()).unwrap();
    for (seed, input) in golden_cases() {
        let here = rerun(&Duel, 1, &Rules::first(), &Call::new(seed), &input);
        let there = duels.submit(input, Call::new(seed)).await;
        assert_eq!(there.map(|fought| fought.output), here);
    }
}

#[test]
fn inputs_survive_their_bytes_and_foreign_bytes_are_refused() {
    use phalanx_game::battle::Battle;
    for (_, input) in golden_cases() {
        let mut bytes = Vec::new();
        Duel::write_input(&input, &mut bytes);
        assert_eq!(Duel::read_input(&bytes), Some(input));
        bytes.pop();
        assert_eq!(Duel::read_input(&bytes), None);
    }
}
