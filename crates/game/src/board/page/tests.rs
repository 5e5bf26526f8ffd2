use super::*;
use crate::board::kind::{Better, BoardSpec, Kind};
use crate::board::tests::{NOW, Pending, best, board, of, ranked, snapshot, spec};
use proptest::prelude::*;

fn players(page: &Page) -> Vec<String> {
    page.rows().map(|row| row.player.to_owned()).collect()
}

fn query(offset: usize, limit: usize) -> PageQuery {
    PageQuery {
        offset,
        limit,
        ..PageQuery::default()
    }
}

/// All pages, from the first to the last, with a publication between each two.
fn read_all(board: &Board, first: PageQuery, mut between: impl FnMut()) -> Vec<(u64, String)> {
    let (mut rows, mut query) = (Vec::new(), first);
    loop {
        let page = board.page(&query, NOW).unwrap();
        rows.extend(page.rows().map(|row| (row.place, row.player.to_owned())));
        let Some(next) = page.next() else {
            return rows;
        };
        query.token = Some(next.to_owned());
        between();
    }
}

/// Results of players: best, sum and decayed alike.
fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Best(Better::Higher)),
        Just(Kind::Best(Better::Lower)),
        Just(Kind::Sum(Better::Higher)),
        Just(Kind::Sum(Better::Lower)),
        Just(Kind::Decayed {
            half_life_ms: 3_600_000
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pages_are_the_slices_of_a_sorted_list(
        kind in kinds(),
        results in prop::collection::vec((0_u8..60, 1_i64..40, 0_u64..100_000), 0..150),
        offset in 0_usize..70, limit in 1_usize..30,
    ) {
        let board = board(spec(kind));
        let mut members = std::collections::BTreeMap::new();
        for (player, points, after) in results {
            let standing = members.entry(format!("p{player}")).or_insert(None);
            *standing = Some(board.law().apply(*standing, points, NOW + after).unwrap());
        }
        let oracle = ranked(members.into_iter().map(|(player, order)| (player, order.unwrap())));
        board.publish(snapshot(&board, 1, &oracle)).unwrap();
        let page = board.page(&query(offset, limit), NOW).unwrap();
        let expected: Vec<_> = oracle.iter().enumerate().skip(offset).take(limit)
            .map(|(at, (order, player))| (at as u64 + 1, player.as_str(), *order)).collect();
        let rows: Vec<_> = page.rows().map(|row| (row.place, row.player, row.order)).collect();
        prop_assert_eq!(rows, expected);
        prop_assert_eq!(page.next().is_some(), offset + limit < oracle.len());
        prop_assert_eq!(page.total(), oracle.len() as u64);
    }

    #[test]
    fn a_viewer_sees_her_own_write_as_if_the_store_had_it(
        members in prop::collection::btree_map("[a-f]{1,3}", 0_u64..60, 0..40),
        viewer in "[a-f]{1,3}", order in 0_u64..60, limit in 1_usize..12,
    ) {
        let order = Order::from_bits(order).unwrap();
        let board = board(best());
        let mut members: std::collections::BTreeMap<_, _> = members.into_iter()
            .map(|(player, bits)| (player, Order::from_bits(bits).unwrap())).collect();
        board.publish(snapshot(&board, 1, &ranked(members.clone()))).unwrap();
        let pending = Pending::on(&board);
        pending.write(&viewer, order);
        members.insert(viewer.clone(), order);
        let first = PageQuery { viewer: Some(PlayerId::parse(&viewer).unwrap()), ..query(0, limit) };
        // She writes again while she pages: what she reads stays what it was.
        let rows = read_all(&board, first, || pending.write(&viewer, Order::BEST));
        let expected: Vec<_> = ranked(members).into_iter().enumerate()
            .map(|(at, (_, player))| (at as u64 + 1, player)).collect();
        prop_assert_eq!(rows, expected);
    }

    #[test]
    fn garbage_is_no_token(text in "[0-9a-f]{68}", other in ".{0,80}") {
        let board = of(10, best());
        for text in [text, other] {
            let asked = PageQuery { token: Some(text), ..PageQuery::default() };
            prop_assert!(matches!(board.page(&asked, NOW), Err(ReadError::Token(_))));
        }
    }
}

#[test]
fn paging_reads_one_version_while_others_are_published() {
    let board = of(
        100,
        BoardSpec {
            versions: 64,
            ..best()
        },
    );
    let mut seq = 1;
    let rows = read_all(&board, query(0, 7), || {
        seq += 1;
        let members =
            (0..100 + seq).map(|at| (format!("q{at}"), Order::from_bits(at * seq).unwrap()));
        board
            .publish(snapshot(&board, seq, &ranked(members)))
            .unwrap();
    });
    let expected: Vec<_> = (0..100).map(|at| (at + 1, format!("p{at}"))).collect();
    assert_eq!(rows, expected);
    assert!(seq > 10);
}

#[test]
fn a_version_that_is_gone_says_begin_again() {
    let board = of(100, best());
    let token = board
        .page(&query(0, 7), NOW)
        .unwrap()
        .next()
        .unwrap()
        .to_owned();
    for seq in 2..=4 {
        board.publish(snapshot(&board, seq, &[])).unwrap();
    }
    let asked = PageQuery {
        token: Some(token),
        ..PageQuery::default()
    };
    let gone = board.page(&asked, NOW).unwrap_err();
    let (board, asked, newest) = ("arena".to_owned(), Version::new(1, 1), Version::new(1, 4));
    assert_eq!(
        gone,
        ReadError::Gone {
            board,
            asked,
            newest
        }
    );
}

#[test]
fn a_version_of_the_same_number_but_another_picture_is_gone() {
    let (here, there) = (of(100, best()), of(99, best()));
    let token = here
        .page(&query(0, 7), NOW)
        .unwrap()
        .next()
        .map(str::to_owned);
    let asked = PageQuery {
        token,
        ..PageQuery::default()
    };
    assert!(here.page(&asked, NOW).is_ok());
    assert!(matches!(
        there.page(&asked, NOW),
        Err(ReadError::Gone { .. })
    ));
}

#[test]
fn a_token_with_any_digit_changed_is_refused() {
    let board = of(100, best());
    let token = board
        .page(&query(0, 7), NOW)
        .unwrap()
        .next()
        .unwrap()
        .to_owned();
    for at in 0..token.len() {
        let mut digits = token.clone().into_bytes();
        digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
        let token = String::from_utf8(digits).ok();
        let asked = PageQuery {
            token,
            ..PageQuery::default()
        };
        let refused = board.page(&asked, NOW).unwrap_err();
        assert_eq!(refused, ReadError::Token(BadToken::Check));
    }
}

#[test]
fn a_token_belongs_to_its_board_and_its_viewer() {
    let (board, other) = (
        of(100, best()),
        of(100, BoardSpec::new("other", Kind::Best(Better::Higher))),
    );
    let pending = Pending::on(&board);
    pending.write("p50", Order::BEST);
    let viewer = |name| Some(PlayerId::parse(name).unwrap());
    let first = PageQuery {
        viewer: viewer("p50"),
        ..query(0, 7)
    };
    let page = board.page(&first, NOW).unwrap();
    assert_eq!(players(&page)[..2], ["p50", "p0"]);
    assert!(page.rows().next().unwrap().pending);
    let token = page.next().map(str::to_owned);
    let refused = Err(ReadError::Token(BadToken::Check));
    let stranger = PageQuery {
        token: token.clone(),
        viewer: viewer("p51"),
        ..query(0, 7)
    };
    assert_eq!(
        board.page(&stranger, NOW).map(|page| players(&page)),
        refused
    );
    let elsewhere = PageQuery { token, ..first };
    assert_eq!(
        other.page(&elsewhere, NOW).map(|page| players(&page)),
        refused
    );
    // Without pending writes a page is everybody's, and so is its token.
    let token = board
        .page(&query(0, 7), NOW)
        .unwrap()
        .next()
        .map(str::to_owned);
    let shared = PageQuery {
        token,
        viewer: viewer("p51"),
        ..query(0, 7)
    };
    assert_eq!(players(&board.page(&shared, NOW).unwrap())[0], "p7");
}

#[test]
fn a_viewer_whose_write_leads_out_of_the_top_is_not_in_it() {
    let board = of(100, BoardSpec { top: 10, ..best() });
    Pending::on(&board).write("p3", Order::WORST);
    let first = PageQuery {
        viewer: PlayerId::parse("p3").ok(),
        ..query(0, 50)
    };
    let rows = read_all(&board, first, || ());
    assert_eq!(rows.len(), 9);
    assert!(rows.iter().all(|(_, player)| player != "p3"));
}

#[test]
fn age_decides_between_fresh_stale_and_refused() {
    let board = of(
        10,
        BoardSpec {
            refuse_after_ms: Some(60_000),
            ..best()
        },
    );
    let fresh = |after| {
        board
            .page(&query(0, 5), NOW + after)
            .map(|page| page.freshness())
    };
    assert!(!fresh(1_000).unwrap().stale);
    assert!(fresh(1_001).unwrap().stale);
    assert_eq!(fresh(4_000).unwrap().ttl_ms, Some(-3_000));
    assert!(fresh(60_000).is_ok());
    let stale = |age_ms, allowed_ms| ReadError::Stale {
        board: "arena".into(),
        age_ms,
        allowed_ms,
    };
    assert_eq!(fresh(60_001), Err(stale(60_001, 60_000)));
    let asked = PageQuery {
        max_age_ms: Some(500),
        ..query(0, 5)
    };
    assert!(board.page(&asked, NOW + 500).is_ok());
    assert_eq!(board.page(&asked, NOW + 501).unwrap_err(), stale(501, 500));
    // A clock that went back makes nothing young forever: the age is never negative.
    assert_eq!(board.page(&asked, NOW - 5).unwrap().freshness().age_ms, 0);
}

#[test]
fn an_empty_board_is_not_a_board_without_a_snapshot() {
    let board = board(best());
    let missing = board.page(&query(0, 5), NOW).unwrap_err();
    assert_eq!(
        missing,
        ReadError::Empty {
            board: "arena".into()
        }
    );
    board.publish(snapshot(&board, 1, &[])).unwrap();
    let page = board.page(&query(0, 5), NOW).unwrap();
    assert_eq!((page.rows().len(), page.next()), (0, None));
}

#[test]
fn pages_are_bounded() {
    let board = of(10, best());
    for limit in [0, PAGE_MAX + 1] {
        let refused = board.page(&query(0, limit), NOW).unwrap_err();
        assert!(matches!(refused, ReadError::TooMany { asked, .. } if asked == limit));
    }
    assert_eq!(
        board.page(&query(usize::MAX, 5), NOW).unwrap().rows().len(),
        0
    );
}
