use super::*;

const MS: u64 = 1_000_000;

fn queue(max: usize) -> Queue<u64> {
    let lane = |share| LaneOptions {
        share,
        target: 5 * MS,
        max,
    };
    Queue::new([lane(70), lane(20), lane(10)], 100 * MS)
}

fn entry(at: u64, item: u64) -> Entry<u64> {
    Entry { at, cost: MS, item }
}

#[test]
fn classes_get_their_shares_when_all_have_work() {
    let mut queue = queue(10_000);
    for item in 0..3_000 {
        for class in 0..CLASSES {
            // Just arrived, so that nobody is late.
            queue
                .push(class, entry(u64::MAX, item * 10 + class as u64))
                .unwrap();
        }
    }
    let mut served = [0_u32; CLASSES];
    for _ in 0..1_000 {
        let item = queue.pop(0, &mut Vec::new()).unwrap();
        served[(item % 10) as usize] += 1;
    }
    let near = |count: u32, share: u32| count.abs_diff(share * 10) <= 5;
    assert!(
        near(served[0], 70) && near(served[1], 20) && near(served[2], 10),
        "{served:?}"
    );
}

#[test]
fn unused_shares_are_lent_and_not_owed_afterwards() {
    let mut queue = queue(10_000);
    for item in 0..1_000 {
        queue.push(2, entry(0, item)).unwrap();
    }
    for item in 0..500 {
        assert_eq!(queue.pop(0, &mut Vec::new()), Some(item), "all of the core");
    }
    for item in 5_000..5_070 {
        queue.push(0, entry(0, item)).unwrap();
    }
    let first: Vec<u64> = (0..80)
        .filter_map(|_| queue.pop(0, &mut Vec::new()))
        .collect();
    let live = first.iter().filter(|&&item| item >= 5_000).count();
    assert!(
        (68..=70).contains(&live),
        "live work isn't behind, nor ahead for ever: {live}"
    );
}

#[test]
fn a_full_lane_refuses_and_leaves_the_others_alone() {
    let mut queue = queue(2);
    for item in 0..2 {
        assert_eq!(queue.push(0, entry(0, item)), Ok(None));
    }
    assert_eq!(queue.push(0, entry(0, 2)), Err(2));
    assert_eq!(queue.push(1, entry(0, 3)), Ok(None));
    assert_eq!(queue.len(), 3);
}

/// Arrivals each `gap`, one served each `step`, as long as `steps`; what was served, in order, and what was refused.
fn overload(queue: &mut Queue<u64>, gap: u64, step: u64, steps: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut served, mut refused, mut next) = (Vec::new(), Vec::new(), 0);
    for now in (0..steps).map(|at| at * step) {
        while next * gap <= now {
            let _ = queue.push(0, entry(next * gap, next));
            next += 1;
        }
        served.extend(queue.pop(now, &mut refused));
    }
    (served, refused)
}

#[test]
fn a_standing_queue_turns_to_newest_first_and_refuses_the_late() {
    let mut queue = queue(10_000);
    let (served, refused) = overload(&mut queue, MS / 2, MS, 1_000);
    assert_eq!(served.len(), 1_000, "the core never idles");
    assert_eq!(queue.turned(), 1);
    assert!(!refused.is_empty());
    // In the second half whoever is served came less than the target ago.
    for (at, item) in served.iter().enumerate().skip(500) {
        let waited = at as u64 * MS - item * (MS / 2);
        assert!(waited <= 5 * MS, "{waited} ns at {at}");
    }
    assert!(queue.len() < 20, "the queue stays short: {}", queue.len());
}

#[test]
fn a_burst_that_is_worked_off_in_time_keeps_its_order() {
    let mut queue = queue(10_000);
    for item in 0..50 {
        queue.push(0, entry(0, item)).unwrap();
    }
    let mut refused = Vec::new();
    // 50 ms of lateness are less than an interval.
    let served: Vec<u64> = (0..50)
        .filter_map(|at| queue.pop(at * MS, &mut refused))
        .collect();
    assert_eq!(served, (0..50).collect::<Vec<_>>());
    assert!(refused.is_empty());
}

#[test]
fn the_order_turns_back_when_the_load_is_gone() {
    let mut queue = queue(10_000);
    overload(&mut queue, MS / 2, MS, 1_000);
    assert_eq!(queue.newest_first(), 1);
    let mut now = 1_000 * MS;
    while queue.pop(now, &mut Vec::new()).is_some() {
        now += MS;
    }
    assert_eq!(queue.newest_first(), 0);
    for item in 0..3 {
        queue.push(0, entry(now, item)).unwrap();
    }
    let served: Vec<u64> = (0..3)
        .filter_map(|_| queue.pop(now, &mut Vec::new()))
        .collect();
    assert_eq!(served, [0, 1, 2]);
}

#[test]
fn a_full_lane_with_newest_first_gives_up_its_oldest() {
    let mut queue = queue(8);
    overload(&mut queue, MS / 2, MS, 1_000);
    let mut displaced = None;
    for item in 90_000..90_020 {
        displaced = queue
            .push(0, entry(1_000 * MS, item))
            .unwrap()
            .or(displaced);
    }
    assert!(displaced.is_some());
    assert_eq!(queue.pop(1_006 * MS, &mut Vec::new()), Some(90_019));
}

proptest::proptest! {
    #[test]
    fn what_is_pushed_comes_out_exactly_once(
        steps in proptest::collection::vec((0_usize..4, 0_u64..20 * MS), 0..400), max in 1_usize..30,
    ) {
        let mut queue = queue(max);
        let (mut now, mut next, mut out) = (0, 0, Vec::new());
        for (step, pause) in steps {
            now += pause;
            if step < CLASSES {
                match queue.push(step, entry(now, next)) {
                    Ok(displaced) => out.extend(displaced),
                    Err(item) => out.push(item),
                }
                next += 1;
            } else {
                let mut refused = Vec::new();
                out.extend(queue.pop(now, &mut refused));
                out.append(&mut refused);
            }
            proptest::prop_assert_eq!(queue.len() + out.len(), next as usize);
        }
        out.append(&mut queue.take_all());
        out.sort_unstable();
        proptest::prop_assert_eq!(out, (0..next).collect::<Vec<_>>());
    }
}
