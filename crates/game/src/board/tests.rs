//! What the readers' tests share, and claims about publishing.

use super::snapshot::Builder;
use super::*;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// A time on the default season's second day.
pub(crate) const NOW: u64 = 1_767_225_600_000 + 86_400_000;

pub(crate) fn spec(kind: Kind) -> BoardSpec {
    BoardSpec::new("arena", kind)
}

pub(crate) fn best() -> BoardSpec {
    spec(Kind::Best(Better::Higher))
}

pub(crate) fn board(spec: BoardSpec) -> Board {
    Board::try_new(spec).unwrap()
}

/// Members, best first.
pub(crate) fn ranked(members: impl IntoIterator<Item = (String, Order)>) -> Vec<(Order, String)> {
    let mut ranked: Vec<_> = members
        .into_iter()
        .map(|(player, order)| (order, player))
        .collect();
    ranked.sort();
    ranked
}

/// A snapshot of the first `spec.top` of them, with a sketch of the others.
pub(crate) fn snapshot(board: &Board, seq: u64, ranked: &[(Order, String)]) -> Snapshot {
    let mut builder = Builder::new(board.spec(), board.law(), Version::new(1, seq), NOW);
    for (order, player) in ranked {
        if !builder.push(player, *order).unwrap() {
            break;
        }
    }
    let total = ranked.len() as u64;
    let pivots = Sketch::ladder(builder.len() as u64, total)
        .into_iter()
        .map(|place| sketch::Pivot {
            place,
            order: ranked[place as usize - 1].0,
        });
    builder
        .total(total)
        .sketch(Sketch::new(pivots, NOW))
        .build()
        .unwrap()
}

/// A board of best scores with `players` of them: `p0` has the most, 10,000,000, each next one less.
pub(crate) fn of(players: u64, spec: BoardSpec) -> Board {
    let board = board(spec);
    let law = *board.law();
    let members = (0..players).map(|at| (format!("p{at}"), law.order(score(at), NOW).unwrap()));
    let first = snapshot(&board, 1, &ranked(members));
    board.publish(first).unwrap();
    board
}

pub(crate) fn score(at: u64) -> i64 {
    10_000_000 - at as i64
}

/// Pending writes by hand.
#[derive(Default)]
pub(crate) struct Pending(pub Mutex<BTreeMap<String, Order>>);

impl Overlay for Pending {
    fn pending(&self, player: &str, _base: Option<Order>, _as_of_ms: u64) -> Option<Order> {
        self.0.lock().unwrap().get(player).copied()
    }
}

impl Pending {
    pub fn on(board: &Board) -> Arc<Self> {
        let pending = Arc::new(Self::default());
        board.attach_overlay(Arc::clone(&pending) as Arc<dyn Overlay>);
        pending
    }

    pub fn write(&self, player: &str, order: Order) {
        self.0.lock().unwrap().insert(player.into(), order);
    }
}

#[test]
fn specification_names_every_problem_at_once() {
    let wrong = BoardSpec {
        top: 0,
        bytes_max: 2 << 20,
        versions: 1,
        fresh_ms: 0,
        score_min: 5,
        score_max: 4,
        ..BoardSpec::new("a board", Kind::Sum(Better::Higher))
    };
    let text = wrong.check().unwrap_err().to_string();
    for field in [
        "name",
        "top",
        "bytes_max",
        "versions",
        "fresh_ms",
        "score_max",
        "a sum starts at 0",
    ] {
        assert!(text.contains(field), "{field} in {text}");
    }
    let decayed = BoardSpec::new(
        "hot",
        Kind::Decayed {
            half_life_ms: 59_999,
        },
    );
    assert!(
        decayed
            .check()
            .unwrap_err()
            .to_string()
            .contains("half_life_ms")
    );
    for kind in [
        Kind::Best(Better::Lower),
        Kind::Sum(Better::Higher),
        Kind::Decayed {
            half_life_ms: 60_000,
        },
    ] {
        BoardSpec::new("season-7.eu", kind).check().unwrap();
    }
}

#[test]
fn specification_reads_back_from_its_text_and_refuses_unknown_keys() {
    let text = r#"{"name":"arena","kind":{"best":"higher"},"top":500}"#;
    let spec: BoardSpec = serde_json::from_str(text).unwrap();
    assert_eq!(spec, BoardSpec { top: 500, ..best() });
    let unknown = r#"{"name":"arena","kind":{"best":"higher"},"topp":500}"#;
    assert!(serde_json::from_str::<BoardSpec>(unknown).is_err());
}

#[test]
fn player_ids_are_bounded() {
    assert_eq!(PlayerId::parse(""), Err(BadPlayer::Length(0)));
    assert_eq!(PlayerId::parse(&"x".repeat(65)), Err(BadPlayer::Length(65)));
    assert_eq!(PlayerId::parse("a\nb"), Err(BadPlayer::Control));
    assert!(serde_json::from_str::<PlayerId>("\"\"").is_err());
    assert_eq!(PlayerId::parse("玩家七").unwrap().as_str(), "玩家七");
}

#[test]
fn the_highest_version_wins() {
    let board = of(10, best());
    let members = ranked([("p1".to_owned(), Order::BEST)]);
    board.publish(snapshot(&board, 5, &members)).unwrap();
    let (offered, newest) = (Version::new(1, 5), Version::new(1, 5));
    let again = board.publish(snapshot(&board, 5, &members)).unwrap_err();
    assert_eq!(again, PublishError::Superseded { offered, newest });
    let offered = Version::new(1, 4);
    let older = board.publish(snapshot(&board, 4, &members)).unwrap_err();
    assert_eq!(older, PublishError::Superseded { offered, newest });
    assert!(Version::new(2, 0) > Version::new(1, u64::MAX));
    assert_eq!(board.snapshot().unwrap().version(), newest);
}

#[test]
fn the_last_versions_stay_readable() {
    let board = of(10, best());
    for seq in 2..=5 {
        board.publish(snapshot(&board, seq, &[])).unwrap();
    }
    let held: Vec<u64> = (0..9)
        .filter(|&seq| board.version(Version::new(1, seq)).is_some())
        .collect();
    assert_eq!(held, [3, 4, 5]);
}

#[test]
fn a_snapshot_of_another_rule_is_refused() {
    let board = of(10, best());
    for other in [
        spec(Kind::Best(Better::Lower)),
        BoardSpec {
            score_max: 7,
            ..best()
        },
        BoardSpec::new("other", Kind::Best(Better::Higher)),
    ] {
        let other = super::tests::board(other);
        let foreign = board.publish(snapshot(&other, 9, &[])).unwrap_err();
        assert_eq!(foreign, PublishError::Foreign);
    }
}

#[test]
fn nothing_follows_a_final_version() {
    let board = of(
        10,
        BoardSpec {
            refuse_after_ms: Some(2_000),
            ..best()
        },
    );
    let last = Builder::new(board.spec(), board.law(), Version::new(1, 2), NOW).last(true);
    board.publish(last.build().unwrap()).unwrap();
    let later = board.publish(snapshot(&board, 3, &[])).unwrap_err();
    assert_eq!(later, PublishError::Final(Version::new(1, 2)));
    let page = board.page(&PageQuery::default(), NOW + 10_000_000).unwrap();
    assert!(!page.freshness().stale);
}

#[test]
fn confirming_makes_the_same_version_young() {
    let board = of(10, best());
    assert_eq!(board.age_ms(NOW + 700), Some(700));
    assert!(board.confirm(Version::new(1, 1), NOW + 600));
    assert_eq!(board.age_ms(NOW + 700), Some(100));
    assert!(!board.confirm(Version::new(1, 2), NOW + 700));
    // A late confirmation doesn't make it older.
    assert!(board.confirm(Version::new(1, 1), NOW));
    assert_eq!(board.age_ms(NOW + 700), Some(100));
}

#[test]
fn metrics_are_written_once_per_family() {
    let (one, two) = (
        of(10, best()),
        board(BoardSpec::new("two", Kind::Sum(Better::Higher))),
    );
    one.page(&PageQuery::default(), NOW).unwrap();
    two.page(&PageQuery::default(), NOW).unwrap_err();
    let mut out = phalanx_telemetry::metrics::Exposition::new();
    write([&one, &two], &mut out);
    let text = out.finish();
    for line in [
        "board_reads_total{board=\"arena\",result=\"answered\"} 1\n",
        "board_reads_total{board=\"two\",result=\"refused_stale\"} 1\n",
        "board_snapshot_places{board=\"arena\"} 10\n",
        "board_alarm{board=\"two\"} 1\n",
        "board_published_total{board=\"arena\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Readers on all cores against a publisher that swaps some thousand times a second: 10^7 reads, however long they take;
/// 10^9 under `PHALANX_SOAK`. Each version gives every row an order that says its number, so that a page of two versions
/// shows.
#[test]
fn no_page_mixes_versions_while_they_are_swapped() {
    let reads = match std::env::var_os("PHALANX_SOAK") {
        Some(_) => 1_000_000_000,
        None => 10_000_000,
    };
    let cores = thread::available_parallelism().map_or(2, |cores| cores.get() as u64);
    let readers = cores.clamp(2, READERS_MAX);
    let board = Arc::new(board(best()));
    let of_version = |board: &Board, seq: u64| {
        let order = |at| Order::from_bits(seq * 100 + at).unwrap();
        snapshot(
            board,
            seq,
            &ranked((0..ROWS).map(|at| (format!("p{at}"), order(at)))),
        )
    };
    board.publish(of_version(&board, 1)).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (board, done) = (Arc::clone(&board), Arc::clone(&done));
        thread::spawn(move || {
            let mut seq = 1;
            while !done.load(Ordering::Relaxed) {
                seq += 1;
                board.publish(of_version(&board, seq)).unwrap();
                thread::sleep(Duration::from_micros(300));
            }
            seq
        })
    };
    let began = Instant::now();
    let readers: Vec<_> = (0..readers)
        .map(|reader| {
            let mine = reads / readers + u64::from(reader < reads % readers);
            let board = Arc::clone(&board);
            thread::spawn(move || {
                let query = PageQuery {
                    limit: ROWS as usize,
                    ..PageQuery::default()
                };
                let (mut newest, mut done) = (0, 0);
                while done < mine {
                    let page = board.page(&query, NOW).unwrap();
                    let seq = page.version().seq();
                    assert!(seq >= newest, "a board went back in time");
                    newest = seq;
                    let orders = page.rows().map(|row| row.order.bits());
                    assert!(
                        orders.eq(seq * 100..seq * 100 + ROWS),
                        "a mixed page of {seq}"
                    );
                    done += 1;
                }
                done
            })
        })
        .collect();
    let read: u64 = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .sum();
    let took = began.elapsed();
    done.store(true, Ordering::Relaxed);
    let swaps = publisher.join().unwrap();
    println!("{read} reads, {swaps} swaps in {took:?}, none mixed");
    assert!(swaps > 2);
    assert_eq!(read, reads);
}

const READERS_MAX: u64 = 16;
const ROWS: u64 = 2;
