use super::*;
use crate::board::kind::{BoardSpec, PlayerId};
use crate::board::tests::{NOW, best, board, ranked, snapshot};
use crate::board::{Board, Kind};
use proptest::prelude::*;

fn builder(board: &Board) -> Builder {
    Builder::new(board.spec(), board.law(), Version::new(1, 1), NOW)
}

fn order(bits: u64) -> Order {
    Order::from_bits(bits).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn players_and_places_find_each_other(
        members in prop::collection::btree_map("[a-z\u{4e00}-\u{4e20}]{1,12}", 0_u64..40, 0..400),
        strangers in prop::collection::vec("[A-Z]{1,8}", 8)
    ) {
        let board = board(best());
        let members = ranked(members.into_iter().map(|(player, bits)| (player, order(bits))));
        let snapshot = snapshot(&board, 1, &members);
        prop_assert_eq!(snapshot.len(), members.len());
        for (at, (order, player)) in members.iter().enumerate() {
            prop_assert_eq!(snapshot.index(player), Some(at));
            prop_assert_eq!(snapshot.index_of(*order, player), at);
            let entry = Entry { place: at as u64 + 1, player, order: *order };
            prop_assert_eq!(snapshot.entry(at), Some(entry));
        }
        let entries: Vec<_> = snapshot.entries().map(|entry| (entry.order, entry.player.to_owned())).collect();
        prop_assert_eq!(entries, members);
        for stranger in strangers {
            prop_assert_eq!(snapshot.index(&stranger), None);
        }
        prop_assert_eq!(snapshot.entry(snapshot.len()), None);
    }
}

#[test]
fn a_snapshot_keeps_fewer_places_rather_than_take_more_bytes() {
    for (name_bytes, bytes_max) in [
        (64, SNAPSHOT),
        (1, SNAPSHOT),
        (64, 128 << 10),
        (20, SNAPSHOT),
    ] {
        let top = crate::board::kind::TOP_MAX;
        let board = board(BoardSpec {
            top,
            bytes_max,
            ..best()
        });
        let mut builder = builder(&board);
        let mut at = 0;
        loop {
            let player = format!("{at:0>name_bytes$x}");
            at += 1;
            if !builder.push(&player, order(at)).unwrap() {
                break;
            }
        }
        let snapshot = builder.total(1 << 40).build().unwrap();
        assert!(
            snapshot.bytes() <= bytes_max,
            "{} of {bytes_max}",
            snapshot.bytes()
        );
        // And not many fewer: one more doubles the index at worst.
        assert!(snapshot.len() == top || snapshot.bytes() > bytes_max * 3 / 4);
    }
}

const SNAPSHOT: usize = crate::board::kind::SNAPSHOT_BYTES_MAX;

#[test]
fn the_places_that_are_wanted_bound_the_snapshot() {
    let board = board(BoardSpec { top: 3, ..best() });
    let mut builder = builder(&board);
    let kept: Vec<bool> = (0..5)
        .map(|at| builder.push(&format!("p{at}"), order(at)).unwrap())
        .collect();
    assert_eq!(kept, [true, true, true, false, false]);
    let snapshot = builder.build().unwrap();
    assert_eq!((snapshot.len(), snapshot.total()), (3, 5));
}

#[test]
fn what_is_out_of_order_or_there_twice_is_refused() {
    let board = board(best());
    let mut disordered = builder(&board);
    disordered.push("b", order(5)).unwrap();
    let index = 1;
    assert_eq!(
        disordered.push("a", order(5)),
        Err(BuildError::OutOfOrder { index })
    );
    assert_eq!(
        disordered.push("c", order(4)),
        Err(BuildError::OutOfOrder { index })
    );
    let mut twice = builder(&board);
    twice.push("a", order(1)).unwrap();
    twice.push("b", order(2)).unwrap();
    twice.push("a", order(3)).unwrap();
    assert_eq!(
        twice.build().unwrap_err(),
        BuildError::Twice(PlayerId::parse("a").unwrap())
    );
    let mut nameless = builder(&board);
    assert!(matches!(
        nameless.push("", order(1)),
        Err(BuildError::Player { index: 0, .. })
    ));
    let mut fewer = builder(&board);
    fewer.push("a", order(1)).unwrap();
    let too_few = fewer.total(0).build().unwrap_err();
    assert_eq!(
        too_few,
        BuildError::Total {
            entries: 1,
            total: 0
        }
    );
}

#[test]
fn two_pictures_of_one_number_have_two_tags() {
    let board = board(BoardSpec::new(
        "arena",
        Kind::Best(crate::board::Better::Higher),
    ));
    let one = snapshot(&board, 1, &ranked([("a".to_owned(), order(1))]));
    let same = snapshot(&board, 1, &ranked([("a".to_owned(), order(1))]));
    let other = snapshot(&board, 1, &ranked([("b".to_owned(), order(1))]));
    assert_eq!(one.etag(), same.etag());
    assert_ne!(one.etag(), other.etag());
    assert!(one.etag().starts_with("\"1.1-"));
}

#[test]
fn bodies_are_written_once_and_bounded() {
    let board = board(best());
    let snapshot = snapshot(&board, 1, &[]);
    let mut written = 0;
    for _ in 0..3 {
        for page in 0..BODIES_KEPT {
            let body = snapshot.body(page * 50, page * 50 + 50, || {
                written += 1;
                format!("page {page}").into_bytes()
            });
            assert_eq!(body, format!("page {page}"));
        }
    }
    assert_eq!(written, BODIES_KEPT);
    // There is no room for more; they are written each time.
    for _ in 0..2 {
        snapshot.body(5_000, 5_050, || {
            written += 1;
            Vec::new()
        });
    }
    assert_eq!(written, BODIES_KEPT + 2);
}
