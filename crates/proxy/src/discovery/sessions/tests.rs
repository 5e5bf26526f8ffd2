use prost_types::Any;

use super::*;

fn battle() -> ServiceName {
    ServiceName::new("default", "battle")
}

fn any(type_url: &str, message: &impl Message) -> Option<Any> {
    Some(Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    })
}

fn seat(key: &str, epoch: u64, address: &str) -> Resource {
    let seat = wire::Seat {
        instance: "a".into(),
        epoch,
        addresses: vec![address.to_owned()],
    };
    Resource {
        name: format!("default/battle/{key}"),
        resource: any(SEAT_TYPE, &seat),
        ..Default::default()
    }
}

fn shelf(place: &str, begins: bool, complete: bool) -> Resource {
    Resource {
        name: "default/battle/*".into(),
        version: place.into(),
        resource: any(SHELF_TYPE, &wire::Shelf { begins, complete }),
        ..Default::default()
    }
}

fn response(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        removed_resources: removed
            .iter()
            .map(|key| format!("default/battle/{key}"))
            .collect(),
        nonce: "s1".into(),
        ..Default::default()
    }
}

const A: &str = "10.0.0.1:15006";
const B: &str = "10.0.0.2:15006";

fn epoch(directory: &Directory, key: &str) -> Option<u64> {
    directory
        .find(&battle(), key.as_bytes())
        .map(|seat| seat.epoch)
}

#[test]
fn a_service_is_there_when_all_of_it_is_and_then_changes_key_by_key() {
    let directory = Directory::new();
    let mut followed = Followed::new(directory.clone());
    assert_eq!(followed.connect(), None);
    let asked = followed.want(&[battle()].into()).unwrap();
    assert_eq!(asked.resource_names_subscribe, ["default/battle/*"]);
    assert_eq!(followed.want(&[battle()].into()), None);
    let first = response(vec![shelf("", true, false), seat("one/1", 3, A)], &[]);
    let (answer, is_filled) = followed.on_response(first).unwrap();
    assert_eq!((answer.response_nonce.as_str(), is_filled), ("s1", false));
    assert!(!directory.is_filled(&battle()));
    let last = response(vec![shelf("7:2", false, true), seat("*", 4, A)], &[]);
    assert!(followed.on_response(last).unwrap().1);
    assert_eq!(epoch(&directory, "one/1"), Some(3));
    assert_eq!(epoch(&directory, "*"), Some(4));
    let moved = response(
        vec![shelf("7:3", false, false), seat("*", 5, B)],
        &["one/1"],
    );
    assert!(!followed.on_response(moved).unwrap().1);
    assert_eq!(epoch(&directory, "one/1"), None);
    assert_eq!(epoch(&directory, "*"), Some(5));
    let again = followed.connect().unwrap();
    let held = again.initial_resource_versions.get("default/battle/*");
    assert_eq!(held.map(String::as_str), Some("7:3"));
    let gone = followed.want(&BTreeSet::new()).unwrap();
    assert_eq!(gone.resource_names_unsubscribe, ["default/battle/*"]);
    assert!(!directory.is_filled(&battle()));
}

#[test]
fn a_stream_that_broke_in_the_middle_begins_again_and_what_was_held_stays_meanwhile() {
    let directory = Directory::new();
    let mut followed = Followed::new(directory.clone());
    followed.want(&[battle()].into());
    let all = response(vec![shelf("7:1", true, true), seat("one", 1, A)], &[]);
    followed.on_response(all).unwrap();
    let half = response(vec![shelf("", true, false), seat("two", 2, A)], &[]);
    followed.on_response(half).unwrap();
    assert_eq!(epoch(&directory, "one"), Some(1));
    assert!(
        followed
            .connect()
            .unwrap()
            .initial_resource_versions
            .is_empty()
    );
    let all = response(vec![shelf("8:1", true, true), seat("two", 2, A)], &[]);
    followed.on_response(all).unwrap();
    assert_eq!(
        (epoch(&directory, "one"), epoch(&directory, "two")),
        (None, Some(2))
    );
}

#[test]
fn what_is_no_session_is_refused_by_name_and_its_siblings_are_taken() {
    let directory = Directory::new();
    let mut followed = Followed::new(directory.clone());
    followed.want(&[battle()].into());
    let bad = seat("bad", 1, "nowhere");
    let all = response(vec![shelf("7:1", true, true), bad, seat("one", 1, A)], &[]);
    let (answer, _) = followed.on_response(all).unwrap();
    assert_eq!(
        answer.error_detail.unwrap().message,
        "default/battle/bad: is no session"
    );
    assert_eq!(epoch(&directory, "one"), Some(1));
}
