//! What a snapshot says of its bytes is what the allocator gave it, and never more than 1 MiB.

use phalanx_game::board::kind::{PAGE_MAX, SNAPSHOT_BYTES_MAX, TOP_MAX};
use phalanx_game::board::sketch::Pivot;
use phalanx_game::board::snapshot::BODIES_BYTES;
use phalanx_game::board::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.with(|live| live.set(live.get() + bytes));
}

fn live() -> isize {
    LIVE.with(Cell::get)
}

// SAFETY: all of it is the system's allocator; the count is a thread's own cell, which neither allocates nor is dropped.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; `at` came from `alloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More members than any snapshot holds, with names of that many bytes.
fn fill(board: &Board, name_bytes: usize) -> Snapshot {
    let mut builder = Builder::new(board.spec(), board.law(), Version::new(1, 1), 0);
    for at in 0.. {
        let order = Order::from_bits(at).unwrap();
        if !builder
            .push(&format!("{at:0>name_bytes$x}"), order)
            .unwrap()
        {
            break;
        }
    }
    let total = 1 << 40;
    let pivots = Sketch::ladder(builder.len() as u64, total)
        .into_iter()
        .map(|place| Pivot {
            place,
            order: Order::from_bits(place).unwrap(),
        });
    builder
        .total(total)
        .sketch(Sketch::new(pivots, 0))
        .build()
        .unwrap()
}

#[test]
fn a_snapshot_and_its_bodies_stay_within_a_mebibyte() {
    let spec = BoardSpec {
        top: TOP_MAX,
        ..BoardSpec::new("arena", Kind::Best(Better::Higher))
    };
    for name_bytes in [1, 8, 20, 64] {
        let board = Board::try_new(spec.clone()).unwrap();
        let before = live();
        let snapshot = Arc::new(fill(&board, name_bytes));
        let taken = live() - before;
        assert_eq!(taken as usize + BODIES_BYTES, snapshot.bytes());
        assert!(snapshot.bytes() <= SNAPSHOT_BYTES_MAX);
        println!(
            "{} places with names of {name_bytes} bytes: {taken} bytes",
            snapshot.len()
        );

        // And with every page's body asked for, as a board holds it.
        drop(snapshot);
        board.publish(fill(&board, name_bytes)).unwrap();
        let mut query = PageQuery {
            limit: PAGE_MAX,
            ..PageQuery::default()
        };
        for page in 0..64 {
            query.offset = page * PAGE_MAX;
            let page = board.page(&query, 0).unwrap();
            assert_eq!(board.page_answer(&page, None).status, 200);
        }
        drop(query);
        let held = live() - before;
        assert!(held as usize <= SNAPSHOT_BYTES_MAX, "{held}");
        println!("with bodies: {held} bytes");
    }
}
