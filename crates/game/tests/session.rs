//! Seats have one owner, epochs only grow, tokens are what was sealed or nothing, and no pass that fails changes anything.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use phalanx_game::session::{
    Budget, CLOSED_MAX, Desk, DeskOptions, Directory, DirectoryError, Drain, Follow, Governor,
    Instance, Key, Load, Local, Order, Pass, Phase, PlaceError, Placement, PlacementOptions,
    ResumeError, Seat, Stage, TTL_MIN, Table, Update,
};
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(1_700_000_000);

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn instance(text: &str) -> Instance {
    Instance::parse(text).unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

// --- the directory

#[derive(Clone, Debug)]
enum Change {
    Claim(u8, u8, Option<u64>, bool),
    Move(u8, u8, u64),
    Release(u8, u64),
    Close(u8, bool),
    Pass(u64),
}

/// Epochs are told from the newest one back, so that many are those that seats have.
fn change() -> impl Strategy<Value = Change> {
    let ago = 0..6_u64;
    prop_oneof![
        4 => (0..6_u8, 0..3_u8, prop::option::of(ago.clone()), any::<bool>())
            .prop_map(|(key, to, over, ttl)| Change::Claim(key, to, over, ttl)),
        3 => (0..6_u8, 0..3_u8, ago.clone()).prop_map(|(key, to, ago)| Change::Move(key, to, ago)),
        2 => (0..6_u8, ago).prop_map(|(key, ago)| Change::Release(key, ago)),
        1 => (0..3_u8, any::<bool>()).prop_map(|(of, closed)| Change::Close(of, closed)),
        1 => (0..8_u64).prop_map(Change::Pass),
    ]
}

proptest! {
    #[test]
    fn a_seat_has_one_owner_and_epochs_only_grow(changes in prop::collection::vec(change(), 1..120)) {
        let mut table = Table::new(100, 4);
        let mut now = Duration::ZERO;
        let (mut newest, mut at) = (100, None);
        let mut told: BTreeMap<Key, Seat> = BTreeMap::new();
        for change in changes {
            let keys: Vec<Key> = (0..6).map(|n| key(&format!("k{n}"))).collect();
            let before: Vec<Option<Seat>> = keys.iter().map(|key| table.show(now, key)).collect();
            let name = |n: u8| instance(&format!("i{n}"));
            let done = match &change {
                Change::Claim(k, to, over, ttl) => {
                    let ttl = ttl.then_some(TTL_MIN);
                    let over = over.map(|ago| newest - ago);
                    let found = before[usize::from(*k)].clone();
                    let done = table.claim(now, &keys[usize::from(*k)], &name(*to), over, ttl);
                    if let (Ok(seat), Some(found)) = (&done, found) {
                        let is_own = found.instance == name(*to);
                        prop_assert!(is_own || over == Some(found.epoch));
                        prop_assert_eq!(is_own, seat.epoch == found.epoch);
                    }
                    done.map(|seat| Some(seat.epoch))
                }
                Change::Move(k, to, ago) => {
                    let done = table.move_to(now, &keys[usize::from(*k)], &name(*to), newest - ago);
                    done.map(|seat| Some(seat.epoch))
                }
                Change::Release(k, ago) => {
                    let done = table.release(now, &keys[usize::from(*k)], newest - ago);
                    done.map(|_| None)
                }
                Change::Close(of, closed) => table.close(&name(*of), *closed).map(|()| None),
                Change::Pass(secs) => {
                    now += Duration::from_secs(*secs);
                    Ok(None)
                }
            };
            match done {
                Ok(Some(epoch)) => newest = newest.max(epoch),
                Ok(None) => {}
                // What is refused changes nothing.
                Err(_) => for (key, before) in keys.iter().zip(before) {
                    prop_assert_eq!(table.show(now, key), before);
                },
            }
            table.sweep(now);
            // Counts are those of the seats, whatever happened.
            let mut count = 0;
            for n in 0..3 {
                let name = name(n);
                let seats = keys.iter().filter_map(|key| table.show(now, key));
                let of = seats.filter(|seat| seat.instance == name).count();
                prop_assert_eq!(of, table.count_of(&name));
                count += of;
            }
            prop_assert_eq!(count, table.len());
            prop_assert!(count <= 4);
            // Whoever follows knows the same.
            let (update, next) = table.since(at);
            at = Some(next);
            if let Some(Update { begins, changed, removed, .. }) = update {
                if begins {
                    told.clear();
                }
                for key in removed {
                    told.remove(&key);
                }
                told.extend(changed.into_iter().map(|seat| (seat.key.clone(), seat)));
            }
            for key in &keys {
                let (told, is) = (told.get(key), table.show(now, key));
                let owner = |seat: &Seat| (seat.instance.clone(), seat.epoch);
                prop_assert_eq!(told.map(owner), is.as_ref().map(owner));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_told_of_changes_and_of_what_is_over() {
    let directory = Local::new();
    let (room, one, two) = (key("room"), instance("one"), instance("two"));
    let seat = directory.claim(&room, &one, None, Some(secs(10))).await;
    let seat = seat.unwrap();
    let mut watch = directory.watch().await.unwrap();
    let first = watch.next().await.unwrap();
    assert!(first.begins && first.complete);
    assert_eq!(first.changed, std::slice::from_ref(&seat));
    let moved = directory.move_to(&room, &two, seat.epoch).await.unwrap();
    assert!(moved.epoch > seat.epoch);
    let late = directory.release(&room, seat.epoch).await;
    assert!(matches!(late, Err(DirectoryError::Conflict(Some(now))) if *now == moved));
    assert_eq!(watch.next().await.unwrap().changed, [moved]);
    // Nobody claims it again; the clock goes on by itself.
    let over = watch.next().await.unwrap();
    assert_eq!(over.removed, std::slice::from_ref(&room));
    assert_eq!(directory.show(&room).await.unwrap(), None);
    assert!(directory.is_empty());
}

#[tokio::test]
async fn of_many_who_claim_at_once_one_has_it() {
    let directory = Local::new();
    let claims = (0..50).map(|n| {
        let directory = directory.clone();
        tokio::spawn(async move {
            let me = instance(&format!("i{n}"));
            directory.claim(&key("room"), &me, None, None).await.is_ok()
        })
    });
    let mut owners = 0;
    for claim in claims.collect::<Vec<_>>() {
        owners += u32::from(claim.await.unwrap());
    }
    assert_eq!(owners, 1);
}

#[test]
fn instances_that_are_long_gone_keep_no_other_from_being_closed() {
    let mut table = Table::new(100, 4);
    let drained = instance("drained");
    table
        .claim(secs(0), &key("room"), &drained, None, None)
        .unwrap();
    table.close(&drained, true).unwrap();
    for n in 0..2 * CLOSED_MAX {
        table.close(&instance(&format!("i{n}")), true).unwrap();
    }
    let more = table.claim(secs(0), &key("new"), &drained, None, None);
    assert!(matches!(more, Err(DirectoryError::Closed(_))));
}

// --- the desk

fn desk() -> Desk {
    Desk::new(DeskOptions {
        away_max: secs(60),
        ..DeskOptions::default()
    })
}

/// A desk with one room, and a session in it.
fn seated() -> (Desk, Key, Key) {
    let (mut desk, room, session) = (desk(), key("room"), key("ann"));
    desk.host(&room, 5).unwrap();
    desk.enter(&session, 7, &room, 0, Stage::InBattle, 1)
        .unwrap();
    (desk, room, session)
}

#[test]
fn a_pass_lets_in_once_and_ends_those_before_it() {
    let (mut desk, _, session) = seated();
    let first = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    let second = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    assert!(desk.closed(&session, 1, NOW));
    let back = desk.resume(&second, 7, 2, NOW).unwrap();
    assert_eq!((back.epoch, back.replaced, back.adopted), (5, None, false));
    for used in [&first, &second] {
        assert_eq!(desk.resume(used, 7, 3, NOW), Err(ResumeError::Used));
    }
    // The connection that is left behind ends late: the session has another by now.
    let third = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    assert_eq!(desk.resume(&third, 7, 3, NOW).unwrap().replaced, Some(2));
    assert!(!desk.closed(&session, 2, NOW));
    assert_eq!(desk.session(&session).unwrap().connection, Some(3));
}

#[test]
fn no_pass_brings_back_what_is_over() {
    let (mut desk, room, session) = seated();
    let pass = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    desk.leave(&session);
    assert_eq!(desk.resume(&pass, 7, 2, NOW), Err(ResumeError::Over));
    // Neither after the player came by the login again.
    desk.enter(&session, 7, &room, 0, Stage::InBattle, 3)
        .unwrap();
    assert_eq!(desk.resume(&pass, 7, 4, NOW), Err(ResumeError::Used));
    let pass = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    desk.closed(&session, 3, NOW);
    assert!(desk.expire(NOW + secs(59)).is_empty());
    assert_eq!(desk.expire(NOW + secs(60)).len(), 1);
    assert_eq!(desk.away(), 0);
    let late = desk.resume(&pass, 7, 4, NOW + secs(61));
    assert_eq!(late, Err(ResumeError::Over));
    // The room was elsewhere meanwhile.
    desk.host(&room, 6).unwrap();
    let old = desk.resume(&pass, 7, 4, NOW);
    assert_eq!(old, Err(ResumeError::OldEpoch { pass: 5, now: 6 }));
    assert!(desk.host(&room, 5).is_err());
}

#[test]
fn whoever_waits_for_the_time_that_he_was_told_is_not_over() {
    let (mut desk, _, session) = seated();
    let pass = desk.pass(&session, NOW, secs(300)).unwrap();
    desk.closed(&session, 1, NOW);
    assert!(desk.expire(NOW + secs(359)).is_empty());
    assert!(desk.resume(&pass, 7, 2, NOW + secs(359)).is_ok());
    desk.closed(&session, 2, NOW + secs(400));
    assert_eq!(desk.expire(NOW + secs(760)).len(), 1);
}

#[test]
fn a_login_ends_the_passes_from_before_it() {
    let (mut desk, room, session) = seated();
    let stolen = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    desk.enter(&session, 7, &room, 0, Stage::InBattle, 2)
        .unwrap();
    assert_eq!(desk.resume(&stolen, 7, 3, NOW), Err(ResumeError::Used));
    let pass = desk.pass(&session, NOW, Duration::ZERO).unwrap();
    assert!(desk.resume(&pass, 7, 3, NOW).is_ok());
}

#[test]
fn a_room_that_moves_takes_its_players_by_passes_of_the_new_epoch() {
    let (mut old, room, session) = seated();
    let before = old.pass(&session, NOW, Duration::ZERO).unwrap();
    let passes = old.hand_over(&room, 9, NOW);
    let [(pass, Some(1))] = passes.as_slice() else {
        panic!("{passes:?}");
    };
    assert!(old.is_empty() && old.rooms() == 0);
    let gone = ResumeError::NotHere(room.clone());
    assert_eq!(old.resume(pass, 7, 2, NOW), Err(gone));
    let mut new = desk();
    new.host(&room, 9).unwrap();
    let stale = ResumeError::OldEpoch { pass: 5, now: 9 };
    assert_eq!(new.resume(&before, 7, 1, NOW), Err(stale));
    assert!(new.resume(pass, 7, 1, NOW).unwrap().adopted);
    assert_eq!(new.resume(pass, 7, 2, NOW), Err(ResumeError::Used));
    let seat = |epoch| Seat {
        key: room.clone(),
        instance: instance("two"),
        epoch,
        ttl: None,
        away: false,
    };
    assert_eq!(pass.whereto(Some(&seat(9))).unwrap().as_str(), "two");
    let behind = pass.whereto(Some(&seat(5))).unwrap_err();
    assert_eq!(behind, ResumeError::LaterEpoch { pass: 9, known: 5 });
    assert!(before.whereto(Some(&seat(9))).is_err());
    assert!(pass.whereto(None).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u8),
    Issue(u8),
    /// Which of the issued, by whom, how it was spoilt.
    Resume(usize, u64, u8),
    Close(u8, u64),
    Leave(u8),
    Later(u64),
    Host(u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8).prop_map(Step::Enter),
        (0..4_u8).prop_map(Step::Issue),
        (any::<usize>(), 0..5_u64, 0..8_u8)
            .prop_map(|(n, player, spoil)| Step::Resume(n, player, spoil)),
        (any::<usize>(), 0..5_u64).prop_map(|(n, player)| Step::Resume(n, player, 0)),
        (0..4_u8, 0..30_u64).prop_map(|(session, connection)| Step::Close(session, connection)),
        (0..4_u8).prop_map(Step::Leave),
        (0..40_u64).prop_map(Step::Later),
        (0..2_u8, 0..4_u64).prop_map(|(room, epoch)| Step::Host(room, epoch)),
    ]
}

proptest! {
    #[test]
    fn no_pass_that_fails_changes_anything_and_none_works_twice(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut desk = desk();
        let mut now = NOW;
        let mut connection = 100;
        let mut issued: Vec<Pass> = Vec::new();
        let mut used: HashSet<(Key, Key, u64, u64)> = HashSet::new();
        let room = |n: u8| key(["east", "west"][usize::from(n % 2)]);
        let session = |n: u8| key(&format!("s{n}"));
        for step in steps {
            connection += 1;
            match step {
                Step::Host(n, epoch) => drop(desk.host(&room(n), epoch)),
                Step::Enter(n) => {
                    let to = room(n);
                    drop(desk.enter(&session(n), n.into(), &to, 0, Stage::Loading, connection));
                }
                Step::Issue(n) => issued.extend(desk.pass(&session(n), now, Duration::ZERO)),
                Step::Close(n, connection) => drop(desk.closed(&session(n), connection + 100, now)),
                Step::Leave(n) => drop(desk.leave(&session(n))),
                Step::Later(more) => {
                    now += secs(more);
                    desk.expire(now);
                }
                Step::Resume(n, player, spoil) => {
                    let Some(pass) = issued.get(n % issued.len().max(1)) else { continue };
                    let mut pass = pass.clone();
                    match spoil {
                        1 => pass.epoch += 1_000,
                        2 => pass.epoch = pass.epoch.wrapping_sub(1),
                        3 => pass.player += 1,
                        4 => pass.earliest = now + secs(30),
                        5 => pass.expires = now,
                        6 => pass.room = key("nowhere"),
                        7 => pass.session = session(player as u8),
                        _ => {}
                    }
                    let before = desk.clone();
                    let connected = before.session(&pass.session).and_then(|known| known.connection);
                    match desk.resume(&pass, player, connection, now) {
                        Err(_) => prop_assert_eq!(&desk, &before),
                        Ok(back) => {
                            prop_assert!(pass.player == player && !(1..=6).contains(&spoil));
                            prop_assert_eq!(back.replaced, connected);
                            let name = (pass.session.clone(), pass.room.clone(), pass.epoch, pass.serial);
                            prop_assert!(used.insert(name), "{:?} was used twice", pass);
                            let known = desk.session(&pass.session).map(|known| known.connection);
                            prop_assert_eq!(known, Some(Some(connection)));
                        }
                    }
                }
            }
            let of_rooms = ["east", "west"].map(|room| desk.sessions_of(&key(room)).count());
            prop_assert_eq!(of_rooms.iter().sum::<usize>(), desk.len());
        }
    }
}

// --- placement

fn load(name: &str, sequence: u64, rooms: u32, settled: u64) -> Load {
    Load {
        instance: instance(name),
        life: 1,
        sequence,
        rooms,
        capacity: 3,
        settled,
    }
}

#[test]
fn a_place_is_reserved_before_it_is_answered_and_counts_are_the_owners() {
    let mut placement = Placement::new(PlacementOptions::default());
    assert_eq!(placement.place(secs(0)), Err(PlaceError::Nobody));
    placement.report(secs(0), &load("a", 1, 1, 0)).unwrap();
    placement.report(secs(0), &load("b", 1, 0, 0)).unwrap();
    // The fullest that has room, until it has none: what is reserved counts.
    let placed: Vec<_> = (0..5).map(|_| placement.place(secs(1)).unwrap()).collect();
    let names: Vec<&str> = placed.iter().map(|p| p.instance.as_str()).collect();
    assert_eq!(names, ["a", "a", "b", "b", "b"]);
    assert_eq!(placement.place(secs(1)), Err(PlaceError::Full));
    // What was reserved is rooms by now: counted once.
    let settled = placed[1].number;
    placement
        .report(secs(2), &load("a", 2, 3, settled))
        .unwrap();
    assert_eq!(placement.taken(&instance("a")), Some(3));
    assert!(placement.cancel(placed[2].number));
    assert!(!placement.cancel(placed[2].number));
    assert_eq!(placement.place(secs(2)).unwrap().instance.as_str(), "b");
    // A report that was overtaken is not taken; a new life begins anew.
    let late = placement.report(secs(3), &load("a", 1, 0, 0));
    assert_eq!(late, Err(PlaceError::Stale));
    let reborn = Load {
        life: 2,
        ..load("a", 1, 0, settled)
    };
    placement.report(secs(3), &reborn).unwrap();
    assert_eq!(placement.taken(&instance("a")), Some(0));
}

#[test]
fn whoever_stalls_is_given_nothing_and_is_right_again_with_its_next_report() {
    let mut placement = Placement::new(PlacementOptions::default());
    placement.report(secs(0), &load("a", 1, 0, 0)).unwrap();
    placement.report(secs(9), &load("b", 1, 2, 0)).unwrap();
    assert_eq!(placement.place(secs(10)).unwrap().instance.as_str(), "b");
    assert_eq!(placement.place(secs(10)), Err(PlaceError::Full));
    placement.report(secs(11), &load("a", 2, 2, 0)).unwrap();
    assert_eq!(placement.place(secs(11)).unwrap().instance.as_str(), "a");
    // Rooms that were never opened are free again.
    placement.report(secs(30), &load("b", 2, 2, 0)).unwrap();
    assert_eq!(placement.place(secs(30)).unwrap().instance.as_str(), "b");
    assert_eq!(placement.reserved(), 1);
}

#[test]
fn a_report_of_a_former_life_is_not_taken_whatever_its_number() {
    let mut placement = Placement::new(PlacementOptions::default());
    let of = |life, sequence, rooms| Load {
        life,
        ..load("a", sequence, rooms, 0)
    };
    placement.report(secs(0), &of(2, 0, 3)).unwrap();
    for late in [of(1, 9, 0), of(2, 0, 0)] {
        let late = placement.report(secs(0), &late);
        assert_eq!(late, Err(PlaceError::Stale));
    }
    assert_eq!(placement.taken(&instance("a")), Some(3));
}

// --- the drain

#[tokio::test]
async fn a_server_that_starts_again_has_its_seats_at_later_epochs() {
    let directory = Local::new();
    let (one, room) = (instance("one"), key("room"));
    let open = async |life: &mut Drain<Local>| life.open(secs(0), &room, None).await;
    let mut first = Drain::new(directory.clone(), one.clone(), 10);
    let before = open(&mut first).await.unwrap();
    assert_eq!(open(&mut first).await.unwrap(), before, "it is here");
    let mut second = Drain::new(directory.clone(), one, 10);
    assert!(open(&mut second).await.unwrap() > before);
    // The former life changes nothing any more.
    let step = first.hand_over_now(&room, &instance("two")).await;
    assert_eq!(step.moved.len(), 1);
    let seat = directory.show(&room).await.unwrap().unwrap();
    assert_eq!(seat.instance.as_str(), "one");
}

#[tokio::test]
async fn a_room_is_not_lost_by_what_is_told_late_of_its_former_life() {
    let directory = Local::new();
    let (mut drain, room) = (
        Drain::new(directory.clone(), instance("one"), 10),
        key("room"),
    );
    drain.open(secs(0), &room, None).await.unwrap();
    drain.end(secs(1), &room).await.unwrap();
    let epoch = drain.open(secs(2), &room, None).await.unwrap();
    let step = drain.hand_over_now(&room, &instance("one")).await;
    assert_eq!((step.stuck, drain.rooms().len()), (1, 1), "to itself");
    // That it was released is told after it is there again.
    assert_eq!(drain.told(&room, None).await.unwrap(), None);
    assert_eq!(drain.rooms().len(), 1);
    directory.release(&room, epoch).await.unwrap();
    let step = drain.told(&room, None).await.unwrap().unwrap();
    assert_eq!(step.lost, [room]);
}

#[tokio::test]
async fn rooms_that_nobody_takes_are_not_in_the_way_of_others() {
    let mut drain = Drain::new(Local::new(), instance("one"), 100);
    for n in 0..40 {
        let room = key(&format!("room-{n:02}"));
        drain.open(secs(0), &room, None).await.unwrap();
        drain.rooms_mut().set_players(&room, 10);
    }
    let order = Order {
        deadline: Some(Duration::ZERO),
        per_second: 100,
    };
    drain.rooms_mut().drain(secs(0), order);
    let heir = |room: &Key| (room.as_str() >= "room-20").then(|| instance("two"));
    for at in 1..10 {
        drain.step(secs(at), heir).await;
    }
    assert_eq!(drain.rooms().len(), 20);
}

#[tokio::test]
async fn a_drain_lets_rooms_finish_and_hands_over_the_rest_at_the_deadline() {
    let directory = Local::new();
    let (one, two) = (instance("one"), instance("two"));
    let mut drain = Drain::new(directory.clone(), one.clone(), 100);
    let rooms: Vec<Key> = (0..20).map(|n| key(&format!("room-{n:02}"))).collect();
    for room in &rooms {
        drain.open(secs(0), room, None).await.unwrap();
        drain.rooms_mut().set_players(room, 10);
    }
    // Ten come to their end by themselves: it is known how long a room takes.
    for room in &rooms[..5] {
        drain.end(secs(300), room).await.unwrap();
    }
    let order = Order {
        deadline: Some(secs(1_800)),
        per_second: 50,
    };
    drain.rooms_mut().drain(secs(100), order);
    directory.close(&one, true).unwrap();
    let refused = drain.open(secs(100), &key("new"), None).await;
    assert!(refused.is_err(), "no new room");
    let status = drain.rooms().status(secs(100));
    assert_eq!(
        (status.phase, status.rooms, status.players),
        (Phase::Finishing, 15, 150)
    );
    assert_eq!(status.deadline, Some(secs(1_800)));
    assert_eq!(status.left, Some(secs(200)), "as old as the others got");
    for room in &rooms[5..10] {
        drain.end(secs(400), room).await.unwrap();
    }
    let none = drain.step(secs(1_899), |_| Some(two.clone())).await;
    assert!(none.moved.is_empty() && none.stuck == 0);
    // Ten players each, fifty a second: five rooms a second.
    let mut moved = Vec::new();
    let mut at = secs(1_900);
    while drain.rooms().phase() != Phase::Drained {
        let step = drain.step(at, |_| Some(two.clone())).await;
        assert!(step.moved.len() <= 6 && step.lost.is_empty());
        moved.extend(step.moved);
        at += secs(1);
        assert!(at < secs(1_910));
    }
    assert!(at >= secs(1_902));
    assert_eq!(moved.len(), 10);
    assert_eq!(
        (directory.count_of(&one), directory.count_of(&two)),
        (0, 10)
    );
    for moved in moved {
        let seat = directory.show(&moved.room).await.unwrap().unwrap();
        assert_eq!((seat.instance, seat.epoch), (moved.to, moved.epoch));
    }
}

#[tokio::test]
async fn a_drain_hands_over_nothing_that_is_anothers_and_keeps_what_nobody_takes() {
    let directory = Local::new();
    let (one, two, three) = (instance("one"), instance("two"), instance("three"));
    let mut drain = Drain::new(directory.clone(), one.clone(), 100);
    let (taken, free, kept) = (key("taken"), key("free"), key("kept"));
    for room in [&taken, &free, &kept] {
        drain.open(secs(0), room, None).await.unwrap();
    }
    let seat = directory.show(&taken).await.unwrap().unwrap();
    let seat = directory.move_to(&taken, &three, seat.epoch).await.unwrap();
    let epoch = drain.rooms().get(&free).unwrap().epoch;
    directory.release(&free, epoch).await.unwrap();
    directory.close(&two, true).unwrap();
    let order = Order {
        deadline: Some(Duration::ZERO),
        per_second: 1_000,
    };
    drain.rooms_mut().drain(secs(0), order);
    let step = drain.step(secs(1), |_| Some(two.clone())).await;
    let [moved] = step.moved.as_slice() else {
        panic!("{step:?}");
    };
    assert_eq!(
        (&moved.room, &moved.to, moved.epoch),
        (&taken, &three, seat.epoch)
    );
    assert_eq!(step.lost, [free]);
    assert_eq!((step.stuck, drain.rooms().len()), (1, 1));
    // Told by a watch, late or of what is known: nothing.
    let known = directory.show(&kept).await.unwrap();
    assert_eq!(drain.told(&kept, known.as_ref()).await.unwrap(), None);
    // It was not meant so.
    drain.rooms_mut().accept();
    assert_eq!(drain.rooms().phase(), Phase::Accepting);
    let epoch = drain.rooms().get(&kept).unwrap().epoch;
    let moved = directory.move_to(&kept, &three, epoch).await.unwrap();
    let step = drain.told(&kept, Some(&moved)).await.unwrap();
    let step = step.expect("it is another's");
    assert_eq!(step.moved.len(), 1);
    assert!(drain.rooms().is_empty());
    // Ending what was lost is no failure.
    drain.end(secs(9), &kept).await.unwrap();
}

// --- tokens

#[cfg(feature = "tokens")]
mod tokens {
    use phalanx_game::session::{
        Keyring, KeyringError, SealError, Secret, TOKEN_MAX, TokenError, notices,
    };

    use super::*;

    fn secret(id: u32, seals_from: u64, opens_until: Option<u64>) -> Secret {
        Secret {
            id,
            bytes: vec![id as u8; 32],
            seals_from: secs(seals_from),
            opens_until: opens_until.map(secs),
        }
    }

    fn ring() -> Keyring {
        Keyring::try_new(&[secret(1, 0, None)]).unwrap()
    }

    fn pass() -> impl Strategy<Value = Pass> {
        let name = "[!-~]{1,128}";
        let names = (name, name);
        let numbers = any::<(u64, u64, u64, u16)>();
        let times = (0..1_u64 << 40, 0..1_u64 << 40, 0..1_u64 << 32);
        (names, numbers, times, 0..5_u8).prop_map(|(names, numbers, times, stage)| Pass {
            session: key(&names.0),
            player: numbers.0,
            room: key(&names.1),
            epoch: numbers.1,
            serial: numbers.2,
            region: numbers.3,
            stage: Stage::from_index(stage).unwrap(),
            issued: Duration::from_millis(times.0),
            earliest: Duration::from_millis(times.1),
            spread: Duration::from_millis(times.2),
            expires: Duration::from_millis(times.0.max(times.1) + 60_000),
        })
    }

    proptest! {
        #[test]
        fn a_token_is_what_was_sealed_or_nothing(
            pass in pass(),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let (ring, now) = (ring(), pass.issued);
            let token = ring.seal(&pass, now).unwrap();
            prop_assert!(token.len() <= TOKEN_MAX);
            prop_assert_eq!(ring.open(&token, now), Ok(pass.clone()));
            let mut bytes = token.clone().into_bytes();
            bytes[at.index(token.len())] ^= 1 << bit;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(ring.open(&text, now).is_err(), "{}", text);
            }
            prop_assert!(ring.open(&token[..cut.index(token.len())], now).is_err());
            let mut longer = token.clone();
            longer.push('A');
            prop_assert!(ring.open(&longer, now).is_err());
            let expired = ring.open(&token, pass.expires);
            prop_assert_eq!(expired, Err(TokenError::Expired { ago: Duration::ZERO }));
            let other = Keyring::try_new(&[Secret { bytes: vec![9; 32], ..secret(1, 0, None) }]).unwrap();
            prop_assert_eq!(other.open(&token, now), Err(TokenError::Forged));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,600}", raw in "[A-Za-z0-9_-]{0,480}") {
            prop_assert!(ring().open(&text, NOW).is_err());
            prop_assert!(ring().open(&raw, NOW).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_of_a_token_is_found() {
        let (mut desk, _, session) = seated();
        let pass = desk.pass(&session, NOW, Duration::ZERO).unwrap();
        let token = ring().seal(&pass, NOW).unwrap();
        for at in 0..token.len() {
            for bit in 0..8 {
                let mut bytes = token.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(text) = String::from_utf8(bytes) else {
                    continue;
                };
                assert!(ring().open(&text, NOW).is_err(), "bit {bit} of {at}");
            }
        }
        assert_eq!(ring().open(&token, NOW), Ok(pass));
    }

    #[test]
    fn secrets_change_without_a_gap() {
        let (mut desk, _, session) = seated();
        let pass = desk.pass(&session, NOW, Duration::ZERO).unwrap();
        let start = NOW.as_secs();
        // The next one is known to all before it seals; the former opens until its last token is over.
        let old = secret(1, 0, Some(start + 900));
        let both = Keyring::try_new(&[old.clone(), secret(2, start + 10, None)]).unwrap();
        let first = both.seal(&pass, NOW).unwrap();
        let second = both.seal(&pass, NOW + secs(10)).unwrap();
        assert_ne!(first, second);
        let only_old = Keyring::try_new(&[old]).unwrap();
        assert!(only_old.open(&first, NOW).is_ok());
        assert_eq!(
            only_old.open(&second, NOW),
            Err(TokenError::UnknownSecret(2))
        );
        for token in [&first, &second] {
            assert_eq!(both.open(token, NOW + secs(599)), Ok(pass.clone()));
        }
        let late = both.open(&first, NOW + secs(900));
        assert_eq!(late, Err(TokenError::RetiredSecret(1)));
        let none = only_old.seal(
            &Pass {
                expires: NOW + secs(9_000),
                ..pass.clone()
            },
            NOW + secs(900),
        );
        assert_eq!(none, Err(SealError::NoSecret));
        let useless = both.seal(&pass, pass.expires);
        assert_eq!(useless, Err(SealError::Useless));
    }

    #[test]
    fn a_keyring_is_checked() {
        assert_eq!(Keyring::try_new(&[]).unwrap_err(), KeyringError::Count);
        let twice = [secret(1, 0, None), secret(1, 5, None)];
        assert_eq!(
            Keyring::try_new(&twice).unwrap_err(),
            KeyringError::Twice(1)
        );
        let short = Secret {
            bytes: vec![1; 31],
            ..secret(1, 0, None)
        };
        assert_eq!(
            Keyring::try_new(&[short]).unwrap_err(),
            KeyringError::Short(1)
        );
        assert_eq!(format!("{:?}", secret(7, 0, None)), "Secret(7)");
        assert_eq!(ring().open("", NOW), Err(TokenError::Garbled));
        assert_eq!(
            ring().open(&"A".repeat(TOKEN_MAX + 1), NOW),
            Err(TokenError::Garbled)
        );
    }

    /// The whole way: a room moves, its players are told when and how, and come back to the new server.
    #[tokio::test]
    async fn players_of_a_room_that_moves_come_back_when_they_were_told() {
        let directory = Local::new();
        let (one, two) = (instance("one"), instance("two"));
        let budget = Budget {
            region: "eu".into(),
            per_second: 100,
        };
        let mut governor = Governor::try_new(&[budget], 1).unwrap();
        let (mut here, mut there) = (desk(), desk());
        let mut drain = Drain::new(directory.clone(), one, 10);
        let room = key("room");
        let epoch = drain.open(NOW, &room, None).await.unwrap();
        here.host(&room, epoch).unwrap();
        for player in 0..30 {
            let session = key(&format!("p{player}"));
            here.enter(&session, player, &room, 0, Stage::InBattle, player)
                .unwrap();
        }
        let step = drain.hand_over_now(&room, &two).await;
        let [moved] = step.moved.as_slice() else {
            panic!("{step:?}");
        };
        let told = notices(&mut here, &mut governor, &ring(), NOW, moved);
        assert_eq!(told.len(), 30);
        let seat = directory.show(&room).await.unwrap().unwrap();
        there.host(&room, seat.epoch).unwrap();
        let mut times = HashSet::new();
        for notice in told {
            assert!(notice.earliest > NOW && notice.earliest < NOW + secs(1));
            assert_eq!(notice.connection, Some(notice.player));
            times.insert(notice.earliest);
            let token = notice.token.expect("it can be sealed");
            let at = notice.earliest;
            let pass = ring().open(&token, at).unwrap();
            assert_eq!(pass.whereto(Some(&seat)).unwrap(), &two);
            let back = there.resume(&pass, notice.player, 1_000 + notice.player, at);
            assert!(back.unwrap().adopted);
        }
        assert!(times.len() > 15, "each at a time of its own: {times:?}");
        assert_eq!(there.len(), 30);
    }
}
