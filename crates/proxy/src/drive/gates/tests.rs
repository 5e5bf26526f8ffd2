//! Which sockets are whose, between two processes; here two lots of gates in one.

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::takeover::Listeners;

type Workers = Vec<mpsc::Receiver<Opened>>;

fn gates(workers: usize, before: Inherited) -> (Arc<Gates>, Workers) {
    Gates::new(workers, true, before)
}

/// As if its sockets had come from another process.
fn inherited(gates: &Gates) -> Inherited {
    let mut inherited = Inherited::default();
    for bundle in gates.lend() {
        let listeners: Listeners = bundle.listeners();
        let files = bundle.files().map(|file| file.try_clone_to_owned());
        let files = files.collect::<Result<_, _>>().unwrap();
        inherited.add(&listeners, files).unwrap();
    }
    inherited
}

/// An address that nobody else has.
fn free() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    ([127, high | 0x80, low, next], 15_900).into()
}

fn listens(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

#[test]
fn every_socket_of_the_one_before_is_some_workers_whatever_their_number() {
    for (theirs, ours) in [(1, 3), (3, 1), (2, 3), (3, 2)] {
        let (old, _workers) = gates(theirs, Inherited::default());
        let address = free();
        old.open(address).unwrap();
        let (new, mut workers) = gates(ours, inherited(&old));
        assert_eq!(new.left(), Some(vec![address]));
        new.open(address).unwrap();
        assert_eq!(new.left(), Some(Vec::new()));
        let opened = workers.iter_mut().map(|w| w.try_recv().unwrap());
        let counts: Vec<usize> = opened.map(|opened| opened.listeners.len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), theirs.max(ours), "{counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}

#[test]
fn while_they_are_lent_nothing_is_opened_but_by_the_heir() {
    let (old, _workers) = gates(1, Inherited::default());
    let (address, later) = (free(), free());
    old.open(address).unwrap();
    let (new, _others) = gates(1, inherited(&old));
    let refused = old.open(later).unwrap_err();
    assert!(refused.contains("takes over"), "{refused}");
    new.open(later).unwrap();
    new.close(later);
    drop(_others);
    old.take_back();
    old.open(later).unwrap();
    old.open(address).unwrap();
}

#[test]
fn what_is_sealed_holds_nothing_open_and_opens_nothing() {
    let (old, workers) = gates(1, Inherited::default());
    let (address, later) = (free(), free());
    old.open(address).unwrap();
    drop(workers);
    assert!(listens(address), "kept for who comes next");
    old.seal();
    assert!(!listens(address));
    old.open(later).unwrap();
    assert!(!listens(later), "another's by now");
    old.take_back();
    old.open(later).unwrap();
    assert!(!listens(later));
}

#[test]
fn what_the_gateway_has_no_more_closes_with_the_last_word() {
    let (old, workers) = gates(1, Inherited::default());
    let address = free();
    old.open(address).unwrap();
    let (new, _workers) = gates(1, inherited(&old));
    drop(workers);
    old.seal();
    assert!(listens(address));
    new.settle();
    assert!(!listens(address));
    assert_eq!(new.left(), None);
}
