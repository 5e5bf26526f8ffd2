//! Secrets are asked for by name by whoever was told who names them, come first, and are never taken away.

use super::*;

fn secret(body: &str) -> Encoded {
    resource(Kind::Secret, "cert", body, &[])
}

fn guarded(body: &str) -> Encoded {
    cluster("a", body).with_secrets(list(&["cert"]))
}

#[test]
fn a_subscription_to_a_secret_that_does_not_exist_yet_is_held() {
    let mut delta = Delta::new(snapshot(1, [guarded("1")]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Secret, &["cert"]));
    assert_eq!(delta.settle(), ["CDS +a"]);
    delta.now_ms += 100 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 1);
    assert_eq!(
        delta.rounds(snapshot(2, [guarded("1"), secret("1")])),
        ["SDS +cert"]
    );
    let mut sotw = Sotw::new(snapshot(1, [guarded("1")]));
    sotw.ask(Kind::Secret, &["cert"], "");
    assert!(sotw.batch().is_empty());
    assert_eq!(
        sotw.rounds(snapshot(2, [secret("1")]), &["cert"]),
        ["SDS cert"]
    );
}

#[test]
fn secrets_go_out_before_the_clusters_and_listeners_that_name_them() {
    let all = |revision, body: &str| {
        let listener = listener(body).with_secrets(list(&["cert"]));
        snapshot(revision, [guarded(body), listener, secret(body)])
    };
    let mut delta = Delta::new(all(1, "1"));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Listener, &["*"]));
    delta.send(ask(Kind::Secret, &["cert"]));
    assert_eq!(delta.settle(), ["SDS +cert", "CDS +a | LDS +outbound"]);
    // A rotation keeps nobody waiting: there is one that works.
    assert_eq!(
        delta.rounds(all(2, "2")),
        ["SDS +cert | CDS +a | LDS +outbound"]
    );
}

#[test]
fn who_does_not_ask_for_the_secret_yet_gets_the_cluster_at_once() {
    let mut delta = Delta::new(snapshot(1, [guarded("1"), secret("1")]));
    delta.send(ask(Kind::Cluster, &["*"]));
    assert_eq!(delta.settle(), ["CDS +a"]);
    delta.send(ask(Kind::Secret, &["cert"]));
    assert_eq!(delta.settle(), ["SDS +cert"]);
}

#[test]
fn a_refused_secret_does_not_freeze_who_names_it() {
    let mut delta = Delta::new(snapshot(1, [guarded("1"), secret("bad")]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Secret, &["cert"]));
    let first = delta.one();
    delta.nack(&first, "KEY_VALUES_MISMATCH");
    assert_eq!(delta.settle(), ["CDS +a"]);
}

#[test]
fn a_secret_that_is_gone_is_never_removed_from_who_asks_for_it() {
    let mut delta = Delta::new(snapshot(1, [secret("1")]));
    delta.send(ask(Kind::Secret, &["cert"]));
    delta.settle();
    assert!(delta.rounds(snapshot(2, [])).is_empty());
    delta.now_ms += 100 * PATIENCE_MS;
    assert!(delta.batch().is_empty());
    assert_eq!(delta.acked(), 2);
    assert!(delta.rounds(snapshot(3, [secret("1")])).is_empty());
    assert_eq!(delta.rounds(snapshot(4, [secret("2")])), ["SDS +cert"]);
    delta.send(leave(Kind::Secret, &["cert"]));
    assert!(delta.rounds(snapshot(5, [secret("3")])).is_empty());
}

#[test]
fn secrets_come_again_on_a_new_stream_because_envoy_does_not_claim_them() {
    let before = snapshot(1, [guarded("1"), secret("1")]);
    let mut delta = Delta::new(before);
    delta.send(claim(Kind::Cluster, &["*"], &[&guarded("1")]));
    delta.send(ask(Kind::Secret, &["cert"]));
    assert_eq!(delta.settle(), ["SDS +cert | CDS"]);
    // Who does claim gets it only if it changed.
    let mut delta = Delta::new(snapshot(1, [secret("1")]));
    delta.send(claim(Kind::Secret, &["cert"], &[&secret("1")]));
    assert!(delta.settle().is_empty());
}
