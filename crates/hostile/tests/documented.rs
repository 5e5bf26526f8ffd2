//! The table of bounds in `docs/limits.md`: every event it names is counted by that name, every test it names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use phalanx_proxy::account::Event;

const TITLE: &str = "## Hostile peers";
/// Events that tell of no bound.
const OTHERS: &[Event] = &[
    Event::Accepted,
    Event::Closed,
    Event::AcceptFailed,
    Event::Panicked,
    // A bound, but loopback is not counted, so that no test on loopback reaches it.
    Event::SourceLimit,
    Event::StaleConnection,
    Event::PoolOpened,
    Event::PoolReused,
    Event::PoolEvicted,
    Event::DownstreamAborted,
    Event::UnknownProtocol,
    Event::NotRedirected,
    Event::PassedThrough,
    Event::OutboundRefused,
    Event::SessionMoved,
    Event::AccessDenied,
    Event::SecuredOpened,
    Event::SecuredResumed,
    Event::SecuredRevoked,
    Event::PickedFar,
    Event::PickedInPanic,
    Event::Hedged,
    Event::HedgeWon,
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The words in back quotes of one column.
fn words(column: &str) -> impl Iterator<Item = &str> {
    column.split('`').skip(1).step_by(2)
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ends| ends == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_bound_names_what_counts_it_and_a_test_that_is_there() {
    let page = fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let (_, page) = page.split_once(TITLE).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let mut tests = String::new();
    sources(&root().join("crates/proxy/tests"), &mut tests);
    let known: BTreeSet<&str> = Event::ALL.iter().map(|event| event.as_str()).collect();
    let (mut told, mut count) = (BTreeSet::new(), 0);
    for row in rows.skip(1) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, bound, default, event, test, _] = columns[..] else {
            panic!("a row of four columns: {row}");
        };
        assert!(!bound.is_empty() && !default.is_empty(), "{row}");
        if !event.starts_with('(') {
            for event in words(event) {
                assert!(known.contains(event), "nothing counts {event}: {row}");
                told.insert(event.to_owned());
            }
        }
        assert!(words(test).count() > 0, "no test: {row}");
        for test in words(test) {
            let is_there = tests.contains(&format!("#[test]\nfn {test}() {{"));
            assert!(is_there, "no test is called {test}: {row}");
        }
        count += 1;
    }
    assert!(count >= 20, "{count} rows");
    for event in Event::ALL.iter().filter(|event| !OTHERS.contains(event)) {
        assert!(
            told.contains(event.as_str()),
            "no row tells of {}",
            event.as_str()
        );
    }
}
