use super::*;
use crate::board::kind::{Better, Kind};
use crate::board::tests::{self, NOW, best, board, of, ranked, snapshot, spec};
use proptest::prelude::*;

fn bytes() -> (Board, Vec<u8>) {
    let board = of(2_000, BoardSpec { top: 300, ..best() });
    let bytes = encode(&board.snapshot().unwrap());
    (board, bytes)
}

fn read(board: &Board, bytes: &[u8]) -> Result<Snapshot, LoadError> {
    decode(bytes, board.spec(), board.law(), NOW + 60_000)
}

#[test]
fn what_was_saved_is_answered_after_a_cold_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena.board");
    let before = of(2_000, BoardSpec { top: 300, ..best() });
    let saved = before.snapshot().unwrap();
    before.confirm(saved.version(), NOW + 500);
    save(&path, &saved).unwrap();
    save(&path, &saved).unwrap();

    let after = board(before.spec().clone());
    let restored = after.restore(&path, NOW + 60_000).unwrap().unwrap();
    assert_eq!(
        (restored.version(), restored.tag()),
        (saved.version(), saved.tag())
    );
    assert_eq!(restored.sketch(), saved.sketch());
    assert!(restored.entries().eq(saved.entries()));
    // Its age goes on.
    assert_eq!(after.age_ms(NOW + 60_000), Some(59_500));
    // A second time there is nothing newer.
    assert!(after.restore(&path, NOW).unwrap().is_none());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "nothing is left beside it");
}

#[test]
fn no_file_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let board = board(best());
    assert!(
        board
            .restore(&folder.path().join("none"), NOW)
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_torn_file_says_so_wherever_it_is_torn() {
    let (board, bytes) = bytes();
    let near = (0..64).chain(bytes.len() - 64..bytes.len());
    for len in near.chain((64..bytes.len() - 64).step_by(97)) {
        match (len, read(&board, &bytes[..len])) {
            (0..8, Err(LoadError::NotABoard)) | (8.., Err(LoadError::Torn { .. })) => {}
            (_, other) => panic!("{len} bytes: {other:?}"),
        }
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(read(&board, &longer), Err(LoadError::Torn { .. })));
}

#[test]
fn a_changed_file_is_refused_wherever_it_is_changed() {
    let (board, bytes) = bytes();
    for at in (0..64).chain((64..bytes.len()).step_by(61)) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(read(&board, &changed).is_err(), "byte {at}");
    }
    assert!(matches!(
        read(&board, &[0; FILE_BYTES_MAX + 1]),
        Err(LoadError::TooLong(_))
    ));
    let mut later = bytes;
    later[8] = 2;
    assert!(matches!(read(&board, &later), Err(LoadError::Format(2))));
}

#[test]
fn a_damaged_file_leaves_the_board_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena.board");
    std::fs::write(&path, b"PHXBOARDgarbage").unwrap();
    let board = board(best());
    let error = board.restore(&path, NOW).unwrap_err();
    assert!(error.to_string().contains("format"), "{error}");
    assert!(board.snapshot().is_none());
    board.publish(snapshot(&board, 1, &[])).unwrap();
}

#[test]
fn a_file_of_another_board_is_foreign() {
    let (_, bytes) = bytes();
    for other in [
        spec(Kind::Sum(Better::Higher)),
        BoardSpec {
            season_ms: 1 << 50,
            ..best()
        },
        BoardSpec::new("other", Kind::Best(Better::Higher)),
    ] {
        let other = board(other);
        assert!(matches!(read(&other, &bytes), Err(LoadError::Foreign)));
    }
}

#[test]
fn a_specification_with_less_room_keeps_fewer_places() {
    let (board, bytes) = bytes();
    let smaller = tests::board(BoardSpec {
        top: 10,
        ..board.spec().clone()
    });
    let snapshot = read(&smaller, &bytes).unwrap();
    assert_eq!((snapshot.len(), snapshot.total()), (10, 2_000));
}

#[test]
fn another_machines_clock_makes_nothing_younger_than_now() {
    let (board, bytes) = bytes();
    let early = decode(&bytes, board.spec(), board.law(), NOW - 10_000).unwrap();
    assert_eq!(early.age_ms(NOW), 10_000);
}

#[test]
fn the_largest_snapshot_fits_a_file() {
    let board = board(BoardSpec {
        top: crate::board::kind::TOP_MAX,
        ..best()
    });
    for width in [5, 64] {
        let members =
            (0..40_000).map(|at| (format!("{at:0>width$x}"), Order::from_bits(at).unwrap()));
        let snapshot = snapshot(&board, 1, &ranked(members));
        let bytes = encode(&snapshot);
        assert!(bytes.len() <= FILE_BYTES_MAX);
        assert!(read(&board, &bytes).is_ok());
    }
}

/// Whatever a lying replica says, everything can be asked.
fn reads(of: &Board, snapshot: Snapshot) {
    let (len, total) = (snapshot.len() as u64, snapshot.total());
    for pivot in snapshot.sketch().pivots() {
        for bits in [pivot.order.bits(), pivot.order.bits() + 1] {
            let order = Order::from_bits(bits).unwrap_or(Order::WORST);
            let _ = snapshot.sketch().estimate(order, len, total);
        }
    }
    let board = board(of.spec().clone());
    board.publish(snapshot).unwrap();
    let page = board
        .page(&crate::board::PageQuery::default(), NOW)
        .unwrap();
    assert_eq!(board.page_answer(&page, None).status, 200);
}

#[test]
fn a_sketch_that_says_impossible_places_panics_nowhere() {
    let board = of(40, BoardSpec { top: 30, ..best() });
    let mut body = encode(&board.snapshot().unwrap())[HEADER_BYTES..].to_vec();
    let last = body.len() - 16;
    body[last..last + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    reads(&board, read(&board, &framed(&body)).unwrap());
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(FORMAT);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(xxhash_rust::xxh3::xxh3_64(body).to_le_bytes());
    out.extend(body);
    out
}

proptest! {
    #[test]
    fn no_bytes_panic(
        garbage in prop::collection::vec(any::<u8>(), 0..400),
        at in 0_usize..2_000, with in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        let board = of(40, BoardSpec { top: 30, ..best() });
        prop_assert!(read(&board, &garbage).is_err());
        // A right checksum over a wrong body: a replica that lies.
        let bytes = encode(&board.snapshot().unwrap());
        let mut body = bytes[HEADER_BYTES..].to_vec();
        let at = at % body.len();
        let end = (at + with.len()).min(body.len());
        body.splice(at..end, with);
        if let Ok(snapshot) = read(&board, &framed(&body)) {
            prop_assert!(snapshot.entries().len() <= 30);
            prop_assert!(snapshot.bytes() <= board.spec().bytes_max);
            reads(&board, snapshot);
        }
    }
}
