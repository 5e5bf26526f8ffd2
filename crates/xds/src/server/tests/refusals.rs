//! After a NACK the client's state is unknown; one offender must not hold the others back.

use super::*;

/// Clusters of these names with body `2`, the others `1`.
fn clusters(revision: u64, all: &[&str], changed: &[&str]) -> Arc<Snapshot> {
    let body = |name| if changed.contains(name) { "2" } else { "1" };
    snapshot(revision, all.iter().map(|name| cluster(name, body(name))))
}

const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

fn subscribed() -> Delta {
    let mut delta = Delta::new(clusters(1, &ALL, &[]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.settle();
    delta
}

#[test]
fn the_offender_named_is_quarantined_and_the_others_come_again() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a", "b", "c"]));
    delta.nack(
        &batch[0],
        "Error adding/updating cluster(s) b: no such policy",
    );
    let again = delta.one();
    assert_eq!(told_one(&again), "CDS +a +c");
    delta.ack(&again);
    assert!(delta.batch().is_empty());
    let progress = delta.session.progress();
    assert_eq!((progress.target, progress.acked), (2, 1));
    let expected = Nack {
        kind: Kind::Cluster,
        name: Some("b".into()),
        version: cluster("b", "2").version,
        message: "Error adding/updating cluster(s) b: no such policy".into(),
        since_revision: 2,
    };
    assert_eq!(progress.nacks, [expected]);
}

#[test]
fn an_offender_without_name_is_found_by_halving() {
    let mut delta = subscribed();
    let mut batch = delta.push(clusters(2, &ALL, &ALL));
    let mut sent = Vec::new();
    while let Some(response) = batch.pop() {
        sent.push(told_one(&response));
        let bad = response.resources.iter().any(|r| r.name == "d");
        match bad {
            true => delta.nack(&response, "Proto constraint validation failed"),
            false => delta.ack(&response),
        }
        if delta
            .session
            .progress()
            .nacks
            .iter()
            .any(|n| n.name.is_none())
        {
            assert!(
                delta.session.progress().nacks[0]
                    .message
                    .contains("constraint")
            );
        }
        batch = delta.batch();
    }
    assert_eq!(
        sent,
        [
            "CDS +a +b +c +d +e",
            "CDS +a +b",
            "CDS +c +d +e",
            "CDS +c",
            "CDS +d +e",
            "CDS +d",
            "CDS +e"
        ]
    );
    let nacks = delta.session.progress().nacks;
    assert_eq!(nacks.len(), 1);
    assert_eq!(nacks[0].name.as_deref(), Some("d"));
}

#[test]
fn a_refusal_that_names_all_says_nothing() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a", "b"]));
    delta.nack(&batch[0], "a, b");
    assert_eq!(told(&delta.batch()), "CDS +a");
}

#[test]
fn the_same_bytes_are_not_sent_again_until_they_change() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a"]));
    delta.nack(&batch[0], "whatever");
    assert!(delta.batch().is_empty());
    assert!(delta.push(clusters(3, &ALL, &["a"])).is_empty());
    delta.now_ms += 100 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 1);
    // The old version is what the client still holds.
    assert!(delta.push(clusters(4, &ALL, &[])).is_empty());
    assert_eq!((delta.acked(), delta.session.progress().nacks), (4, vec![]));
    let next = snapshot(
        5,
        ALL.map(|name| cluster(name, if name == "a" { "3" } else { "1" })),
    );
    assert_eq!(delta.rounds(next), ["CDS +a"]);
    assert_eq!(delta.acked(), 5);
}

#[test]
fn whatever_was_refused_together_is_unknown_until_acknowledged() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a", "b"]));
    delta.nack(&batch[0], "b: bad");
    // `a` goes back to what was acknowledged before, but the client may have applied the newer one.
    assert_eq!(delta.rounds(clusters(3, &ALL, &["b"])), ["CDS +a"]);
}

#[test]
fn a_removal_refused_together_with_a_bad_sibling_is_told_again() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &["a", "b", "c", "d"], &["a"]));
    assert_eq!(told(&batch), "CDS +a -e");
    delta.nack(&batch[0], "a: bad");
    assert_eq!(delta.settle(), ["CDS -e"]);
}

#[test]
fn a_refused_removal_is_not_repeated() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &["a", "b", "c", "d"], &[]));
    delta.nack(&batch[0], "never");
    assert!(delta.batch().is_empty());
    assert_eq!(delta.session.progress().nacks[0].version, "");
    assert_eq!(delta.acked(), 1);
    assert!(delta.push(clusters(3, &ALL, &[])).is_empty());
    assert_eq!(delta.acked(), 3);
}

#[test]
fn a_refusal_of_nothing_is_not_answered() {
    let mut delta = Delta::new(snapshot(1, []));
    delta.send(ask(Kind::Cluster, &[]));
    let empty = delta.one();
    delta.nack(&empty, "nothing is too much");
    assert!(delta.batch().is_empty());
}

#[test]
fn only_error_detail_makes_a_refusal() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a"]));
    delta.ack_all(&batch);
    assert!(delta.session.progress().nacks.is_empty());
    // A second answer to the same nonce changes nothing.
    delta.nack(&batch[0], "a: bad");
    assert!(delta.session.progress().nacks.is_empty());
    assert_eq!(delta.acked(), 2);
}

#[test]
fn messages_are_kept_in_bounds() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a"]));
    delta.nack(&batch[0], &"x".repeat(1 << 20));
    assert!(delta.session.progress().nacks[0].message.len() <= MESSAGE_BYTES_MAX);
}

#[test]
fn a_refused_route_keeps_the_clusters_of_the_last_good_one() {
    let mut delta = Delta::settled(mesh(1, &["old"], &["old"]), &["old", "new"]);
    let add = delta.push(mesh(2, &["new"], &["new"]));
    delta.ack_all(&add);
    let shift = delta.one();
    delta.nack(&shift, "outbound: bad regex");
    delta.now_ms += 100 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
    let table = resource(Kind::Routes, "outbound", "fixed", &["new"]);
    let mut fixed = services(&["new"]);
    fixed.extend([listener("1"), table]);
    assert_eq!(
        delta.rounds(snapshot(3, fixed)),
        ["RDS +outbound", "CDS -old", "EDS -old"]
    );
    assert_eq!(delta.acked(), 3);
}

#[test]
fn a_refused_cluster_does_not_freeze_the_routes() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a", "b"]);
    let add = delta.push(mesh(2, &["a", "b"], &["a", "b"]));
    assert_eq!(told(&add), "CDS +b | EDS +b");
    assert!(
        delta
            .session
            .progress()
            .pending
            .iter()
            .any(|p| p.blocked == 1)
    );
    delta.nack(&add[0], "b: bad");
    delta.ack(&add[1]);
    assert_eq!(delta.settle(), ["RDS +outbound"]);
    assert_eq!(delta.acked(), 1);
}

#[test]
fn routes_wait_while_the_offender_among_their_clusters_is_looked_for() {
    let mut delta = Delta::settled(mesh(1, &["a"], &["a"]), &["a", "b", "c"]);
    let add = delta.push(mesh(2, &["a", "b", "c"], &["a", "b", "c"]));
    delta.nack(&add[0], "something is wrong");
    delta.ack(&add[1]);
    let half = delta.batch();
    assert_eq!(told(&half), "CDS +b | EDS +b");
    delta.ack_all(&half);
    assert_eq!(delta.settle(), ["CDS +c | EDS +c", "RDS +outbound"]);
}

#[test]
fn a_refusal_of_what_has_changed_meanwhile_is_not_told() {
    let mut delta = subscribed();
    let batch = delta.push(clusters(2, &ALL, &["a"]));
    delta.push(clusters(3, &ALL, &[]));
    delta.nack(&batch[0], "a: bad");
    assert!(delta.settle().is_empty());
    assert_eq!((delta.acked(), delta.session.progress().nacks), (3, vec![]));
}

#[test]
fn what_was_accepted_before_is_above_suspicion() {
    let mut delta = Delta::settled(mesh(1, &["a", "b"], &["a"]), &["a", "b"]);
    let mut next = services(&["a", "b"]);
    next.extend([
        cluster("a", "2"),
        endpoints("b", "bad"),
        listener("1"),
        routes(&["a"]),
    ]);
    let batch = delta.push(snapshot(2, next));
    assert_eq!(told(&batch), "CDS +a | EDS +a +b");
    delta.ack(&batch[0]);
    delta.nack(&batch[1], "no");
    assert_eq!(delta.settle(), ["EDS +a"]);
    assert_eq!(delta.session.progress().nacks[0].name.as_deref(), Some("b"));
}
