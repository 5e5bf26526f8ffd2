//! Shards as processes have them: nodes, standbys over sockets, rooms, handing over.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, How, Latency, LocalLease, MatchId, Node,
    NodeConfig, NodeError, Player, Rating, Refusal, Request, Role, Roles, RulesSpec, Seal, Shard,
    ShardConfig, ShardKey, Stage, Ticket, TicketId, node,
};
use phalanx_telemetry::metrics::Exposition;

const DEADLINE: Duration = Duration::from_secs(60);

/// Fails as often as it is told to, then has a room.
#[derive(Default)]
struct Rooms {
    failures: AtomicUsize,
    given_back: AtomicUsize,
}

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        let fail = |left: usize| left.checked_sub(1);
        let failed = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fail);
        Box::pin(std::future::ready(match failed {
            Ok(_) => Err(AllocateError("none is free".into())),
            Err(_) => Ok(format!("room-{}", wanted.id)),
        }))
    }

    fn give_back(&self, _: MatchId) -> Allocates<'_, ()> {
        self.given_back.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(()))
    }
}

fn key(mode: &str) -> ShardKey {
    ShardKey::try_new(mode, "eu", "v1").unwrap()
}

fn config(folder: &Path, replica: &str) -> ShardConfig {
    let mut rules = RulesSpec::simple(2, 1, "eu", 100);
    rules.tick.period_ms = 20;
    let mut config = ShardConfig::new(
        key("duel"),
        folder.join(replica),
        LocalLease::try_new(folder.join("lease")).unwrap(),
        Arc::new(rules.check().unwrap()),
    );
    // A machine that is busy takes nobody off the roll; who goes is off it at once.
    config.limits.standby_patience = DEADLINE;
    config
}

async fn node(seal: Seal) -> Node {
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = NodeConfig {
        listen,
        advertise: None,
        seal,
    };
    Node::start(config).await.unwrap()
}

fn ticket(id: u64, mu: f64) -> Ticket {
    Ticket {
        id: TicketId(id),
        players: vec![Player {
            id,
            rating: Rating::new(mu, 1.0),
            roles: Roles::default(),
            latency_ms: Latency::of(&[20]),
        }],
        enqueued_ms: 0,
    }
}

/// Nobody of these plays with another.
fn lonely(id: u64) -> Ticket {
    ticket(id, id as f64 * 50.0)
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "not in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn owned(shard: &Shard) {
    let role = tokio::time::timeout(DEADLINE, shard.owned()).await.unwrap();
    assert!(matches!(role, Role::Owner { .. }), "{role:?}");
}

async fn in_sync(owner: &Shard) {
    until("a standby in sync", || {
        owner.metrics().owner.standby_in_sync
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_is_made_and_everybody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let rooms = Arc::new(Rooms::default());
    rooms.failures.store(2, Ordering::SeqCst);
    let shard = node
        .open(config(folder.path(), "a"), rooms.clone())
        .unwrap();
    owned(&shard).await;
    for id in [1, 2] {
        let state = shard.enqueue(ticket(id, 25.0)).await.unwrap();
        assert!(matches!(state.stage, Stage::Waiting { .. }));
    }
    let mut watching = shard.watch(TicketId(1)).await.unwrap();
    let seat = loop {
        if let Stage::Reserved { id, ask: true, .. } = watching.state().stage {
            break id;
        }
        let next = tokio::time::timeout(DEADLINE, watching.next()).await;
        next.unwrap().expect("the shard stays");
    };
    // Who begins to watch is told how it stands, or nobody would say yes to what was proposed before.
    let mut late = shard.watch(TicketId(2)).await.unwrap();
    let first = tokio::time::timeout(DEADLINE, late.next()).await.unwrap();
    assert!(matches!(first.unwrap().stage, Stage::Reserved { id, .. } if id == seat));
    for player in [1, 2] {
        shard.confirm(seat, player).await.unwrap();
    }
    let end = tokio::time::timeout(DEADLINE, watching.end())
        .await
        .unwrap()
        .unwrap();
    let mut over = shard.watch(TicketId(1)).await.unwrap();
    assert_eq!(over.next().await.as_ref(), Some(&end));
    assert_eq!(over.next().await, None);
    let Stage::Ended(How::Matched(made)) = end.stage else {
        panic!("{end:?}");
    };
    assert_eq!((made.id, made.room.clone()), (seat, format!("room-{seat}")));
    let back = shard.look_for(2).await.unwrap();
    assert_eq!(
        back.stage,
        Stage::Ended(How::Matched(made)),
        "whoever reconnects learns of it"
    );
    assert_eq!(
        rooms.failures.load(Ordering::SeqCst),
        0,
        "it was tried again"
    );
    assert_eq!(shard.look_for(3).await, Err(Refusal::NoPlayer(3)));
    let cohorts = shard.fairness();
    assert!(
        cohorts.iter().any(|cohort| cohort.matched == 2),
        "{cohorts:?}"
    );

    let mut out = Exposition::new();
    until("the metrics are there", || {
        shard.metrics().owner.counts.matches == 1
    })
    .await;
    node::write(&node.shards(), &mut out);
    let text = out.finish();
    assert!(
        text.contains("phalanx_match_matches_total{shard=\"duel/eu/v1\"} 1\n"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_drained_is_handed_over_with_every_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let seal = Seal::shared(&[42; 32]).unwrap();
    let (one, other) = (node(seal.clone()).await, node(seal).await);
    let a = one
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    owned(&a).await;
    // Something before the standby comes, something after.
    let enqueue = |id| Request::Enqueue {
        ticket: lonely(id),
        class: 3,
    };
    for answer in a.ask_all((1..=300).map(enqueue).collect()).await {
        answer.unwrap();
    }
    let b = other
        .open(config(folder.path(), "b"), Rooms::default())
        .unwrap();
    in_sync(&a).await;
    assert!(matches!(b.role(), Role::Standby { .. }));
    let elsewhere = b.enqueue(lonely(1)).await;
    assert!(
        matches!(&elsewhere, Err(Refusal::NotOwner { owner: Some(owner) }) if owner == one.address()),
        "{elsewhere:?}"
    );
    for answer in a.ask_all((301..=600).map(enqueue).collect()).await {
        answer.unwrap();
    }
    a.cancel(TicketId(7)).await.unwrap();
    tokio::time::timeout(DEADLINE, a.drain()).await.unwrap();
    assert_eq!(a.role(), Role::Stopped);
    owned(&b).await;
    let look = |id| Request::Look {
        ticket: TicketId(id),
    };
    let answers = b.ask_all((1..=600).map(look).collect()).await;
    for (id, answer) in (1..).zip(answers) {
        match answer.unwrap().stage {
            Stage::Waiting { .. } => assert_ne!(id, 7),
            stage => assert_eq!((id, stage), (7, Stage::Ended(How::Cancelled))),
        }
    }
    assert!(matches!(
        a.enqueue(lonely(9)).await,
        Err(Refusal::NotOwner { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_closed_while_it_takes_over_closes() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (node(Seal::none()).await, node(Seal::none()).await);
    for round in 0..8 {
        let a = one
            .open(config(folder.path(), "a"), Rooms::default())
            .unwrap();
        owned(&a).await;
        let b = other
            .open(config(folder.path(), "b"), Rooms::default())
            .unwrap();
        in_sync(&a).await;
        a.close().await;
        // At whatever point of taking over it is by then.
        tokio::time::sleep(Duration::from_millis(4 * round)).await;
        tokio::time::timeout(DEADLINE, b.close()).await.unwrap();
        assert_eq!(b.role(), Role::Stopped);
        // Whoever was last has everything.
        for (node, replica) in [(&one, "a"), (&other, "b")] {
            let shard = node
                .open(config(folder.path(), replica), Rooms::default())
                .unwrap();
            let mut roles = shard.roles();
            let settled = |role: &Role| matches!(role, Role::Owner { .. } | Role::OutOfSync { .. });
            let settled = tokio::time::timeout(DEADLINE, roles.wait_for(settled)).await;
            let role = settled.unwrap().unwrap().clone();
            shard.close().await;
            if replica == "b" && matches!(role, Role::Owner { .. }) {
                // The other comes after it, and is the first of the next round.
                let b = other
                    .open(config(folder.path(), "b"), Rooms::default())
                    .unwrap();
                owned(&b).await;
                let a = one
                    .open(config(folder.path(), "a"), Rooms::default())
                    .unwrap();
                in_sync(&b).await;
                b.close().await;
                owned(&a).await;
                a.close().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_with_another_secret_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let one = node(Seal::shared(&[1; 32]).unwrap()).await;
    let other = node(Seal::shared(&[2; 32]).unwrap()).await;
    let a = one
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    owned(&a).await;
    let b = other
        .open(config(folder.path(), "b"), Rooms::default())
        .unwrap();
    let mut roles = b.roles();
    let refused = |role: &Role| matches!(role, Role::Trying { .. });
    // It may have connected; it is never told anything.
    tokio::time::timeout(DEADLINE, roles.wait_for(refused))
        .await
        .unwrap()
        .unwrap();
    a.enqueue(lonely(1)).await.unwrap();
    assert!(!a.metrics().owner.standby_in_sync);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_may_not_take_over_until_an_operator_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (node(Seal::none()).await, node(Seal::none()).await);
    let a = one
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    owned(&a).await;
    let b = other
        .open(config(folder.path(), "b"), Rooms::default())
        .unwrap();
    in_sync(&a).await;
    a.enqueue(lonely(1)).await.unwrap();
    b.close().await;
    // Waits until the standby is off the roll, and is answered.
    a.enqueue(lonely(2)).await.unwrap();
    a.close().await;

    let b = other
        .open(config(folder.path(), "b"), Rooms::default())
        .unwrap();
    let mut roles = b.roles();
    let out = |role: &Role| matches!(role, Role::OutOfSync { .. });
    tokio::time::timeout(DEADLINE, roles.wait_for(out))
        .await
        .unwrap()
        .unwrap();
    b.close().await;
    // The one that has everything may, and the other catches up.
    let a = one
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    owned(&a).await;
    let b = other
        .open(config(folder.path(), "b"), Rooms::default())
        .unwrap();
    in_sync(&a).await;
    b.close().await;
    a.enqueue(lonely(3)).await.unwrap();
    a.close().await;

    let mut forced = config(folder.path(), "b");
    forced.force = true;
    let b = other.open(forced, Rooms::default()).unwrap();
    owned(&b).await;
    assert!(b.look(TicketId(2)).await.is_ok());
    let lost = b.look(TicketId(3)).await;
    assert_eq!(
        lost,
        Err(Refusal::NoTicket(TicketId(3))),
        "the operator's word"
    );
    // Whoever was ahead learns what counts now.
    let a = one
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    in_sync(&b).await;
    b.close().await;
    owned(&a).await;
    assert_eq!(a.look(TicketId(3)).await, lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_holds_several_shards_and_tickets_find_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let mut shards = Vec::new();
    for mode in ["duel", "raid"] {
        let folder = folder.path().join(mode);
        let config = ShardConfig {
            key: key(mode),
            ..config(&folder, "a")
        };
        shards.push(node.open(config, Rooms::default()).unwrap());
    }
    for shard in &shards {
        owned(shard).await;
    }
    let again = node.open(config(folder.path(), "b"), Rooms::default());
    assert!(matches!(again, Err(NodeError::Open(_))));
    let mut large = config(folder.path(), "b");
    large.limits.checkpoint_bytes = u64::MAX;
    let refused = node.open(large, Rooms::default());
    assert!(matches!(refused, Err(NodeError::Limit(_))));
    let raid = node.shard(&"raid/eu/v1".parse().unwrap()).unwrap();
    raid.enqueue(lonely(1)).await.unwrap();
    assert!(shards[0].look(TicketId(1)).await.is_err());
    assert!(node.shard(&key("chess")).is_none());
    assert!("duel/eu".parse::<ShardKey>().is_err() && "du el/eu/v1".parse::<ShardKey>().is_err());
    node.drain(DEADLINE).await;
    assert!(shards.iter().all(|shard| shard.role() == Role::Stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_are_over_take_no_place() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for number in 0..node::SHARDS_MAX + 1 {
        let config = ShardConfig {
            key: key(&format!("mode-{number}")),
            ..config(folder.path(), "file")
        };
        let shard = node.open(config, Rooms::default()).unwrap();
        assert!(matches!(shard.owned().await, Role::Failed { .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_damaged_or_in_use_is_told_and_not_owned() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let shard = node
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    owned(&shard).await;
    let twin = ShardConfig {
        key: key("twin"),
        ..config(folder.path(), "a")
    };
    let twin = node.open(twin, Rooms::default()).unwrap();
    assert!(matches!(twin.owned().await, Role::Failed { .. }));
    for id in 1..=20 {
        shard.enqueue(lonely(id)).await.unwrap();
    }
    shard.close().await;
    let segment = folder.path().join("a/0000000000000001.segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let shard = node
        .open(config(folder.path(), "a"), Rooms::default())
        .unwrap();
    let role = shard.owned().await;
    assert!(
        matches!(&role, Role::Failed { reason } if reason.contains("damaged")),
        "{role:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_shard_takes_waits_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let mut config = config(folder.path(), "a");
    config.limits.inside_max = 10;
    config.limits.outside_max = 10;
    let shard = node.open(config, Rooms::default()).unwrap();
    owned(&shard).await;
    let enqueue = |id| Request::Enqueue {
        ticket: lonely(id),
        class: 3,
    };
    let answers = shard.ask_all((1..=30).map(enqueue).collect()).await;
    let outside = answers.iter().flatten();
    let outside = outside.filter(|state| matches!(state.stage, Stage::Outside(_)));
    assert_eq!(outside.count(), 10);
    let full = answers
        .iter()
        .filter(|answer| **answer == Err(Refusal::Full { max: 10 }));
    assert_eq!(full.count(), 10);
    let mut watching = shard.watch(TicketId(12)).await.unwrap();
    assert!(matches!(watching.state().stage, Stage::Outside(place) if place.ahead == 1));
    for id in 1..=2 {
        shard.cancel(TicketId(id)).await.unwrap();
    }
    let inside = async {
        while !matches!(watching.state().stage, Stage::Waiting { .. }) {
            watching.next().await.expect("the shard stays");
        }
    };
    tokio::time::timeout(DEADLINE, inside).await.unwrap();
    let many = vec![
        Request::Look {
            ticket: TicketId(1)
        };
        node::INTAKE_MAX + 1
    ];
    let answers = shard.ask_all(many).await;
    assert!(answers.iter().all(|answer| *answer == Err(Refusal::Busy)));
    assert!(shard.metrics().busy > 0);
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_cannot_renew_answers_nobody_until_it_owns_again() {
    let mut etcd = phalanx_testkit::etcd::Etcd::start(&[]).await.unwrap();
    let store = phalanx_store::EtcdConfig::new([etcd.endpoint()]);
    let store = phalanx_store::Store::etcd(store).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let node = node(Seal::none()).await;
    let lease = phalanx_game::matchmaking::StoreLease::new(store, "duel/eu/v1");
    let config = ShardConfig {
        lease: Arc::new(lease),
        ..config(folder.path(), "a")
    };
    let shard = node.open(config, Rooms::default()).unwrap();
    owned(&shard).await;
    // A busy machine may be without the lease for a moment; what is said twice is said once.
    answered(async || shard.enqueue(lonely(1)).await).await;
    etcd.kill();
    // Until the lease may be over it answers; then never.
    let deadline = Instant::now() + DEADLINE;
    let refusal = loop {
        assert!(Instant::now() < deadline, "it goes on answering");
        if let Err(refusal) = shard.look(TicketId(1)).await {
            break refusal;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(
        matches!(refusal, Refusal::Unknown | Refusal::NotOwner { .. }),
        "{refusal:?}"
    );
    etcd.restart().await.unwrap();
    answered(async || shard.look(TicketId(1)).await).await;
}

#[cfg(feature = "etcd")]
async fn answered<T>(mut ask: impl AsyncFnMut() -> Result<T, Refusal>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(refusal) => assert!(Instant::now() < deadline, "{refusal:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
