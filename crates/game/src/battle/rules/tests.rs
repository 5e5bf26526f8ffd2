use super::*;

fn numbers(book: &Rulebook<u32>) -> Vec<u64> {
    book.view().iter().map(|view| view.version).collect()
}

#[test]
fn a_pinned_version_stays_until_its_last_pin_is_gone() {
    let book = Rulebook::new(1, 10);
    let pin = book.pin();
    let second = pin.clone();
    book.publish(2, 20, None).unwrap();
    assert_eq!(numbers(&book), [1, 2]);
    assert_eq!((book.view()[0].pins, book.view()[0].current), (2, false));
    assert_eq!((*pin.rules(), *book.pin().rules()), (10, 20));
    drop(pin);
    assert_eq!(book.pin_of(1).map(|pin| *pin.rules()), Some(10));
    drop(second);
    assert_eq!(numbers(&book), [2]);
    assert!(book.pin_of(1).is_none());
}

#[test]
fn versions_are_bounded_and_unique() {
    let book = Rulebook::new(0, 0);
    let mut pins = vec![book.pin()];
    for number in 1..VERSIONS_MAX as u64 {
        book.publish(number, 0, None).unwrap();
        pins.push(book.pin());
    }
    assert_eq!(
        book.publish(99, 0, None),
        Err(RulesError::TooMany { oldest: 0 })
    );
    assert_eq!(
        book.publish(3, 0, None),
        Err(RulesError::Known { version: 3 })
    );
    pins.remove(0);
    book.publish(99, 0, None).unwrap();
}

#[test]
fn a_version_that_is_still_there_can_be_reinstated() {
    let book = Rulebook::new(1, 10);
    let _pin = book.pin();
    book.publish(2, 20, None).unwrap();
    book.reinstate(1).unwrap();
    assert_eq!(book.current().number, 1);
    assert_eq!(book.reinstate(2), Err(RulesError::Unknown { version: 2 }));
}

#[test]
fn a_trial_that_diverges_brings_the_version_before_back() {
    let book = Rulebook::new(1, 10);
    let judge = Judge::default();
    let few = book.publish(2, 20, Some(judge));
    assert_eq!(
        few,
        Err(RulesError::NoBaseline {
            version: 1,
            fights: 0
        })
    );
    for at in 0..2_000 {
        book.current().count(at % 2);
    }
    book.publish(2, 20, Some(judge)).unwrap();
    assert_eq!(book.on_trial(), Some(2));
    for at in 0..2_000 {
        book.current().count(usize::from(at % 10 == 0));
    }
    assert!(!book.review());
    assert_eq!(book.current().number, 1);
    let rollback = &book.rollbacks()[0];
    assert_eq!((rollback.from, rollback.to, rollback.fights), (2, 1, 2_000));
    assert_eq!(numbers(&book), [1]);
}

#[test]
fn a_trial_that_stays_the_same_ends_in_favour_of_the_new() {
    let book = Rulebook::new(1, 10);
    for at in 0..2_000 {
        book.current().count(at % 2);
    }
    book.publish(2, 20, Some(Judge::default())).unwrap();
    for at in 0..19_999 {
        book.current().count(at % 2);
    }
    assert!(book.review(), "not yet");
    book.current().count(1);
    assert!(!book.review());
    assert_eq!((book.current().number, book.on_trial()), (2, None));
    assert!(book.rollbacks().is_empty());
}
