use std::time::Duration;

use super::*;

fn service() -> ServiceName {
    ServiceName::new("default", "battle")
}

fn entry(key: &str, epoch: u64, addresses: &[&str]) -> Entry {
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Entry::new(key.as_bytes(), epoch, "a".into(), addresses)
}

const SIDECAR: &str = "10.0.0.1:15006";
const ROOM: &str = "10.0.0.1:7000";
const OTHER: &str = "10.0.0.2:15006";

#[test]
fn a_key_is_where_it_was_last_said_to_be() {
    let directory = Directory::new();
    directory.change(&service(), vec![entry("early", 1, &[SIDECAR])], &[]);
    assert!(!directory.is_filled(&service()));
    directory.fill(&service(), vec![entry("one", 1, &[SIDECAR, ROOM])]);
    let found = directory.find(&service(), b"one").unwrap();
    assert_eq!((found.address, found.epoch), (SIDECAR.parse().unwrap(), 1));
    let room = directory.find_at(&service(), b"one", |address| address.port() == 7000);
    assert_eq!(room.unwrap().address, ROOM.parse().unwrap());
    directory.change(&service(), vec![entry("one", 2, &[OTHER])], &[]);
    assert_eq!(directory.find(&service(), b"one").unwrap().epoch, 2);
    directory.change(&service(), vec![entry("one", 1, &[SIDECAR])], &[]);
    assert_eq!(directory.find(&service(), b"one").unwrap().epoch, 2);
    assert_eq!(directory.len(), 1);
    directory.change(&service(), vec![], &[b"one".as_slice().into()]);
    assert_eq!(directory.find(&service(), b"one"), None);
    assert!(directory.is_empty());
}

#[test]
fn keys_of_one_service_are_not_those_of_another() {
    let directory = Directory::new();
    directory.fill(&service(), vec![entry("one", 1, &[SIDECAR])]);
    let other = ServiceName::new("other", "battle");
    assert_eq!(directory.find(&other, b"one"), None);
    directory.forget(&service());
    assert_eq!(directory.find(&service(), b"one"), None);
}

#[tokio::test(start_paused = true)]
async fn who_holds_an_entry_hears_of_its_end_and_of_nothing_else() {
    let directory = Directory::new();
    let all = || vec![entry("one", 1, &[SIDECAR]), entry("two", 1, &[SIDECAR])];
    directory.fill(&service(), all());
    let one = directory.hold(&service(), b"one").unwrap();
    let two = directory.hold(&service(), b"two").unwrap();
    directory.change(&service(), vec![entry("two", 2, &[OTHER])], &[]);
    two.replaced().await;
    directory.fill(&service(), all());
    assert!(!one.is_replaced());
    let waiting = tokio::time::timeout(Duration::from_secs(1), one.replaced());
    assert!(waiting.await.is_err());
    directory.fill(&service(), vec![]);
    one.replaced().await;
}

#[test]
fn a_refill_of_who_lags_behind_gives_no_key_back_to_who_had_it() {
    let directory = Directory::new();
    directory.fill(&service(), vec![entry("one", 2, &[OTHER])]);
    let held = directory.hold(&service(), b"one").unwrap();
    directory.fill(&service(), vec![entry("one", 1, &[SIDECAR])]);
    let found = directory.find(&service(), b"one").unwrap();
    assert_eq!((found.address, found.epoch), (OTHER.parse().unwrap(), 2));
    assert!(!held.is_replaced(), "nobody was moved");
    directory.fill(&service(), vec![entry("one", 2, &[SIDECAR])]);
    assert!(held.is_replaced(), "the same owner at another address");
    directory.fill(&service(), vec![]);
    assert_eq!(directory.find(&service(), b"one"), None);
}

#[test]
fn a_big_service_is_changed_key_by_key() {
    let directory = Directory::new();
    let keys = (0..5_000).map(|n| entry(&format!("room-{n}"), 1, &[SIDECAR]));
    directory.fill(&service(), keys.collect());
    assert_eq!(directory.len(), 5_000);
    for n in 0..5_000 {
        directory.change(
            &service(),
            vec![entry(&format!("room-{n}"), 2, &[OTHER])],
            &[],
        );
    }
    assert_eq!(directory.len(), 5_000);
    let found = |n| directory.find(&service(), format!("room-{n}").as_bytes());
    assert!((0..5_000).all(|n| found(n).is_some_and(|seat| seat.epoch == 2)));
}
