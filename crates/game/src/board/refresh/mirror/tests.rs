use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn player(number: u8) -> PlayerId {
    PlayerId::parse(&format!("p{number}")).unwrap()
}

fn order(bits: u64) -> Order {
    Order::from_bits(bits).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u64),
    Remove(u8),
    /// The mirror hears of what changed.
    Sync,
    Cut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Few orders, so that there are ties.
        6 => (0_u8..40, 0_u64..12).prop_map(|(who, order)| Step::Set(who, order)),
        2 => (0_u8..40).prop_map(Step::Remove),
        3 => Just(Step::Sync),
        1 => (1_usize..30).prop_map(Step::Cut),
    ]
}

fn sorted(board: &BTreeMap<u8, u64>) -> Vec<(Order, PlayerId)> {
    let mut members: Vec<_> = board
        .iter()
        .map(|(&who, &bits)| (order(bits), player(who)))
        .collect();
    members.sort();
    members
}

/// What the store would send from `from` on, at most `most`.
fn chunk(board: &BTreeMap<u8, u64>, from: Option<Order>, most: usize) -> Vec<(PlayerId, Order)> {
    sorted(board)
        .into_iter()
        .filter(|(order, _)| from.is_none_or(|from| *order >= from))
        .take(most)
        .map(|(order, player)| (player, order))
        .collect()
}

proptest! {
    /// Read in chunks while the board changes between any two of them, then kept in step: always the first members of the
    /// board, none missing and none too many.
    #[test]
    fn it_is_the_head_of_the_board(
        first in proptest::collection::btree_map(0_u8..40, 0_u64..12, 0..40),
        between in proptest::collection::vec(proptest::collection::vec(step(), 0..4), 12),
        steps in proptest::collection::vec(step(), 0..60),
        wanted in 1_usize..30,
    ) {
        let mut board = first;
        let mut changed: BTreeMap<u8, Option<u64>> = BTreeMap::new();
        let apply = |board: &mut BTreeMap<u8, u64>, changed: &mut BTreeMap<u8, Option<u64>>, step: &Step| match step {
            Step::Set(who, order) => {
                board.insert(*who, *order);
                changed.insert(*who, Some(*order));
            }
            Step::Remove(who) => {
                board.remove(who);
                changed.insert(*who, None);
            }
            Step::Sync | Step::Cut(_) => {}
        };

        let (mut chunks, mut from, mut whole) = (Vec::new(), None, false);
        let mut most = 5;
        for steps in &between {
            let read = chunk(&board, from, most);
            whole = read.len() < most;
            let before = from;
            from = read.last().map(|(_, order)| *order);
            if before.is_some() && from == before {
                most *= 2;
            }
            chunks.extend(read);
            if whole || chunks.len() >= wanted {
                break;
            }
            for step in steps {
                apply(&mut board, &mut changed, step);
            }
        }
        // As the refresher does it: chunks end in ascending order, what came twice is dropped with the changes.
        let mut mirror = Mirror::collect(chunks, whole);
        let sync = |mirror: &mut Mirror, changed: &mut BTreeMap<u8, Option<u64>>| {
            let changes = std::mem::take(changed);
            mirror.change(
                changes
                    .into_iter()
                    .map(|(who, bits)| (player(who), bits.map(order)))
                    .collect(),
            );
        };
        sync(&mut mirror, &mut changed);
        for step in steps.iter().chain([&Step::Sync]) {
            apply(&mut board, &mut changed, step);
            match step {
                Step::Sync => sync(&mut mirror, &mut changed),
                Step::Cut(most) => mirror.cut(*most),
                Step::Set(..) | Step::Remove(_) => continue,
            }
            if !changed.is_empty() {
                continue;
            }
            let truth = sorted(&board);
            prop_assert_eq!(&mirror.members[..], &truth[..mirror.len()]);
            if mirror.is_whole() {
                prop_assert_eq!(mirror.len(), truth.len());
            }
        }
    }
}
