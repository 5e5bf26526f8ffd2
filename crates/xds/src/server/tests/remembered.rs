//! What was refused on an earlier stream is not sent first on the next.

use super::*;

fn refusal(kind: Kind, of: &Encoded) -> Nack {
    Nack {
        kind,
        name: Some(of.name.clone()),
        version: of.version.clone(),
        message: "no such policy".into(),
        since_revision: 1,
    }
}

fn again(target: Arc<Snapshot>, nacks: Vec<Nack>) -> Delta {
    let mut session = Session::delta();
    session.remember(nacks);
    session.set_snapshot(target);
    Delta { session, now_ms: 0 }
}

#[test]
fn the_offending_bytes_do_not_come_again_and_the_innocent_do() {
    let bad = cluster("b", "bad");
    let target = snapshot(2, [cluster("a", "1"), bad.clone()]);
    let mut delta = again(target, vec![refusal(Kind::Cluster, &bad)]);
    delta.send(claim(Kind::Cluster, &["*"], &[&cluster("b", "1")]));
    assert_eq!(delta.settle(), ["CDS +a"]);
    let progress = delta.session.progress();
    assert_eq!(progress.nacks, [refusal(Kind::Cluster, &bad)]);
    assert!(progress.acked < 2);
    assert_eq!(
        delta.rounds(snapshot(3, [cluster("a", "1"), cluster("b", "2")])),
        ["CDS +b"]
    );
    assert_eq!(delta.acked(), 3);
}

#[test]
fn another_version_than_the_refused_one_comes_at_once() {
    let bad = cluster("a", "bad");
    let target = snapshot(2, [cluster("a", "1")]);
    let mut delta = again(target, vec![refusal(Kind::Cluster, &bad)]);
    delta.send(ask(Kind::Cluster, &["*"]));
    assert_eq!(delta.settle(), ["CDS +a"]);
    assert!(delta.session.progress().nacks.is_empty());
}

#[test]
fn over_state_of_the_world_the_refused_is_left_out() {
    let bad = cluster("b", "bad");
    let mut session = Session::sotw();
    session.remember([refusal(Kind::Cluster, &bad)]);
    session.set_snapshot(snapshot(2, [cluster("a", "1"), bad]));
    let mut sotw = Sotw { session, now_ms: 0 };
    sotw.ask(Kind::Cluster, &[], "");
    assert_eq!(sotw.settle(&[]), ["CDS a"]);
}

#[test]
fn who_comes_back_holding_what_it_refused_once_refuses_it_no_more() {
    let mut delta = Delta::new(mesh(2, &["a"], &["a"]));
    let held = cluster("a", "1");
    delta.session.remember([Nack {
        kind: Kind::Cluster,
        name: Some("a".into()),
        version: held.version.clone(),
        message: "no".into(),
        since_revision: 1,
    }]);
    delta.send(claim(Kind::Cluster, &[], &[&held]));
    delta.settle();
    assert!(delta.session.progress().nacks.is_empty());
    assert_eq!(delta.acked(), 2);
}
