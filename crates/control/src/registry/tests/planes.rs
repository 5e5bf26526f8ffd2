//! Several control planes over one store, and what operators and callers say of instances.

use phalanx_client::registry::state_to_wire;
use phalanx_store::Txn;

use super::*;
use crate::world::record::{PlaneRecord, plane_key};

async fn named(store: &Store, name: &str) -> Mesh {
    let identity = Identity {
        name: name.to_owned(),
        ..Identity::default()
    };
    plane(store.clone(), identity).await
}

impl Mesh {
    /// As `kill -9` does.
    fn kill(&self) {
        self.tasks.iter().for_each(|task| task.abort());
    }

    async fn owner(&self, id: &str) -> String {
        let entry = self.store.get(&instance_key(&battle(id))).await.unwrap();
        let record: InstanceRecord = serde_json::from_slice(&entry.unwrap().value).unwrap();
        record.plane
    }

    fn world(&self) -> Arc<World> {
        self.registry.inner.worlds.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_over_to_another_plane_is_that_ones_and_the_first_lets_go() {
    let store = Store::memory().await.unwrap();
    let (a, b) = (named(&store, "a").await, named(&store, "b").await);
    for id in ["b1", "b2"] {
        a.register(wired(id), 1).await.unwrap();
    }
    pass(200).await;
    assert!(!b.beat("b1", 1).await, "it has to register there");
    b.register(wired("b1"), 1).await.unwrap();
    pass(200).await;
    assert_eq!(
        (a.owner("b1").await, a.owner("b2").await),
        ("b".into(), "a".into())
    );
    assert!(!a.beat("b1", 1).await && b.beat("b1", 1).await);
    for _ in 0..20 {
        pass(1_000).await;
        assert!(b.beat("b1", 1).await && a.beat("b2", 1).await);
    }
    assert_eq!(a.stored().await, ["b1", "b2"]);
    assert!(a.registry.held().is_empty() && b.registry.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_planes_instances_get_one_ttl_and_then_only_the_silent_go() {
    let store = Store::memory().await.unwrap();
    let planes = [
        named(&store, "a").await,
        named(&store, "b").await,
        named(&store, "c").await,
    ];
    let ids: Vec<String> = (0..30).map(|n| format!("b{n:02}")).collect();
    for id in &ids {
        planes[0].register(wired(id), 1).await.unwrap();
    }
    planes[0].kill();
    // 20 go over to the others, in turn, when they notice; 10 died with their plane.
    pass(1_000).await;
    for (n, id) in ids[..20].iter().enumerate() {
        planes[1 + n % 2].register(wired(id), 1).await.unwrap();
    }
    for _ in 0..5 {
        pass(1_000).await;
        for (n, id) in ids[..20].iter().enumerate() {
            assert!(planes[1 + n % 2].beat(id, 1).await, "{id}");
        }
    }
    let adopted: u64 = planes[1..]
        .iter()
        .map(|plane| plane.registry.counts().adopted.load(Ordering::Relaxed))
        .sum();
    assert_eq!(adopted, 10, "each of the rest has one heir");
    for _ in 0..5 {
        pass(1_000).await;
        for (n, id) in ids[..20].iter().enumerate() {
            assert!(planes[1 + n % 2].beat(id, 1).await, "{id}");
        }
    }
    let stored = planes[1].stored().await;
    assert_eq!(stored, ids[..20], "and went when its TTL was over");
}

#[tokio::test(start_paused = true)]
async fn who_beats_at_the_heir_never_has_to_register() {
    let store = Store::memory().await.unwrap();
    let (a, b) = (named(&store, "a").await, named(&store, "b").await);
    a.register(wired("b1"), 1).await.unwrap();
    a.kill();
    pass(6_000).await;
    assert!(b.beat("b1", 1).await, "known from the store");
    assert_eq!(b.owner("b1").await, "a");
    b.register(wired("b1"), 1).await.unwrap();
    assert_eq!(b.owner("b1").await, "b", "and taken over when asserted");
}

#[tokio::test(start_paused = true)]
async fn a_plane_whose_key_is_anothers_writes_nothing_and_answers_nobody() {
    let store = Store::memory().await.unwrap();
    let a = named(&store, "a").await;
    a.register(wired("b1"), 1).await.unwrap();
    let twin = PlaneRecord {
        admin: String::new(),
        xds: String::new(),
        started: u64::MAX,
        token: 1,
    };
    let value = serde_json::to_vec(&twin).unwrap();
    store
        .commit(Txn::new().put(plane_key("a"), value))
        .await
        .unwrap();
    let refused = a.register(wired("b2"), 1).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    pass(60_000).await;
    assert_eq!(
        a.stored().await,
        ["b1"],
        "silent, but not this plane's to let go"
    );
    store
        .commit(Txn::new().delete(plane_key("a")))
        .await
        .unwrap();
    pass(500).await;
    a.register(wired("b2"), 1).await.unwrap();
    assert_eq!(a.stored().await, ["b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn a_plane_that_slept_through_its_lease_expires_nobody_who_went_over() {
    let store = Store::memory().await.unwrap();
    let (a, b) = (named(&store, "a").await, named(&store, "b").await);
    for id in ["b1", "b2", "b3"] {
        a.register(wired(id), 1).await.unwrap();
    }
    // Everything of `a` stands still; what it decided before reaches the store late.
    let held = a.registry.planes().held().unwrap();
    a.kill();
    pass(6_000).await;
    let late = Txn::new()
        .expect_modified(plane_key("a"), held.fence)
        .delete(instance_key(&battle("b1")));
    assert!(store.commit(late).await.is_err(), "fenced off");
    assert!(a.registry.planes().held().is_none());
    for id in ["b1", "b2", "b3"] {
        b.register(wired(id), 1).await.unwrap();
    }
    assert_eq!(b.stored().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_vanishes_from_the_store_is_asserted_again() {
    let mesh = mesh().await;
    for id in ["b1", "b2"] {
        mesh.register(wired(id), 1).await.unwrap();
    }
    pass(200).await;
    let txn = Txn::new().delete(instance_key(&battle("b1")));
    mesh.store.commit(txn).await.unwrap();
    pass(200).await;
    assert!(!mesh.beat("b1", 1).await && mesh.beat("b2", 1).await);
    mesh.register(wired("b1"), 1).await.unwrap();
    assert_eq!(mesh.stored().await, ["b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_record_that_comes_back_is_known_and_replaced_by_its_owner() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    let old = mesh.store.get(&instance_key(&battle("b1"))).await.unwrap();
    mesh.register(wired("b1"), 9).await.unwrap();
    pass(200).await;
    // As after a restore of a backup.
    let txn = Txn::new().put(instance_key(&battle("b1")), old.unwrap().value);
    mesh.store.commit(txn).await.unwrap();
    pass(200).await;
    mesh.register(wired("b1"), 10).await.unwrap();
    let entry = mesh.store.get(&instance_key(&battle("b1"))).await.unwrap();
    let record: InstanceRecord = serde_json::from_slice(&entry.unwrap().value).unwrap();
    assert_eq!(record.epoch, 10);
}

#[tokio::test(start_paused = true)]
async fn beats_in_batches_tell_only_what_is_not_known() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    let beat = |id: &str, epoch, ttl_ms| wire::Beat {
        namespace: "default".into(),
        service: "battle".into(),
        id: id.into(),
        epoch,
        ttl_ms,
    };
    let batch = wire::HeartbeatBatch {
        sequence: 7,
        beats: vec![
            beat("b1", 1, 2_000),
            beat("b2", 1, 2_000),
            beat("b1", 1, 0),
            beat("b1", 2, 0),
            beat("a/b\n", 1, 0),
        ],
    };
    let answer = mesh.registry.beat(batch).await.unwrap();
    let change = wire::TtlChange {
        beat: 2,
        ttl_ms: 2_000,
    };
    assert_eq!((answer.sequence, answer.unknown), (7, vec![1, 3, 4]));
    assert_eq!(answer.ttls, [change]);
    let many = vec![beat("b1", 1, 0); 16_385];
    let batch = wire::HeartbeatBatch {
        sequence: 8,
        beats: many,
    };
    assert!(mesh.registry.beat(batch).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refused_caller_and_silence_are_death_and_one_alone_is_not() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    mesh.registry.refused(&["127.0.0.5:15006".parse().unwrap()]);
    pass(1_500).await;
    assert!(mesh.beat("b1", 1).await, "refused, but alive");
    pass(3_000).await;
    assert_eq!(
        mesh.registry.held().len(),
        1,
        "what was before its last beat counts for nothing"
    );
    mesh.registry.refused(&["127.0.0.5:15006".parse().unwrap()]);
    pass(300).await;
    assert!(mesh.stored().await.is_empty() && mesh.registry.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_held_service_is_released_by_hand_with_its_name_in_the_history() {
    let mesh = mesh().await;
    for id in ["b1", "b2"] {
        mesh.register(wired(id), 1).await.unwrap();
    }
    let service = ServiceName::new("default", "battle");
    assert!(
        mesh.registry.release(&service, "ann").await.is_err(),
        "nothing is held"
    );
    pass(3_000).await;
    assert_eq!(mesh.registry.held().len(), 2);
    let (_, released) = mesh.registry.release(&service, "ann").await.unwrap();
    assert_eq!(released.len(), 2);
    pass(300).await;
    assert!(mesh.stored().await.is_empty() && mesh.registry.held().is_empty());
    let history = mesh.store.list("history/").await.unwrap();
    let text = String::from_utf8_lossy(&history.entries[0].value).into_owned();
    assert!(
        text.contains("ann") && text.contains("release default/battle"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operators_drain_outlives_assertions_and_restarts() {
    let first = mesh().await;
    for id in ["b1", "b2"] {
        first.register(wired(id), 1).await.unwrap();
    }
    pass(200).await;
    let state = |mesh: &Mesh| mesh.world().instances.get(&battle("b1")).unwrap().state;
    let begin = Drain::Begin {
        grace: Some(Duration::from_secs(3)),
        handover: None,
    };
    first
        .registry
        .drain(&battle("b1"), begin, "ann")
        .await
        .unwrap();
    pass(200).await;
    assert_eq!(state(&first), State::Draining);
    first.register(wired("b1"), 2).await.unwrap();
    pass(200).await;
    assert_eq!(state(&first), State::Draining);
    first.stop.cancel();
    pass(200).await;
    let second = on(first.store.clone()).await;
    assert!(second.beat("b1", 2).await);
    assert_eq!(state(&second), State::Draining);
    for _ in 0..4 {
        pass(1_000).await;
        assert!(second.beat("b1", 2).await && second.beat("b2", 1).await);
    }
    assert_eq!(state(&second), State::Drained, "its grace is over");
    second
        .registry
        .drain(&battle("b1"), Drain::Undo, "ann")
        .await
        .unwrap();
    pass(200).await;
    assert_eq!(state(&second), State::Accepting);
    assert!(
        second
            .registry
            .drain(&battle("b1"), Drain::Undo, "ann")
            .await
            .is_err()
    );
    assert!(
        second
            .registry
            .drain(&battle("b9"), begin, "ann")
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn who_follows_one_instance_is_told_of_its_drain_and_of_nobody_else() {
    let mesh = mesh().await;
    mesh.register(wired("b1"), 1).await.unwrap();
    let mut worlds = mesh.registry.inner.worlds.clone();
    worlds
        .wait_for(|world| !world.instances.is_empty())
        .await
        .unwrap();
    let scope = |service: &str, id: &str| wire::WatchRequest {
        namespace: "default".into(),
        service: service.into(),
        id: id.into(),
    };
    let refused = mesh.registry.watch(open(scope("", "b1"))).await.err();
    assert_eq!(refused.unwrap().code(), tonic::Code::InvalidArgument);
    let watch = mesh.registry.watch(open(scope("battle", "b1"))).await;
    let mut watch = watch.unwrap().into_inner();
    let first = watch.next().await.unwrap().unwrap();
    let told = |told: &wire::WatchResponse| {
        let states = told.upserted.iter().map(|i| (i.id.clone(), i.state()));
        states.collect::<Vec<_>>()
    };
    let one = |state| vec![("b1".to_owned(), state)];
    assert!(first.full);
    assert_eq!(told(&first), one(wire::State::Accepting));

    mesh.register(wired("b2"), 1).await.unwrap();
    let begin = Drain::Begin {
        grace: Some(Duration::from_secs(30)),
        handover: None,
    };
    let registry = &mesh.registry;
    registry.drain(&battle("b1"), begin, "ann").await.unwrap();
    let second = watch.next().await.unwrap().unwrap();
    assert_eq!(told(&second), one(wire::State::Draining));
    let undone = registry.drain(&battle("b1"), Drain::Undo, "ann").await;
    undone.unwrap();
    let third = watch.next().await.unwrap().unwrap();
    assert_eq!(told(&third), one(wire::State::Accepting));
    mesh.deregister("b1", 1).await;
    let last = watch.next().await.unwrap().unwrap();
    assert_eq!((last.upserted.len(), last.removed.len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_says_it_is_not_ready_is_stored_so_and_goes_without_the_guard() {
    let mesh = mesh().await;
    let mut instance = wired("b1");
    instance.set_state(state_to_wire(State::NotReady));
    mesh.register(instance, 1).await.unwrap();
    pass(200).await;
    let world = mesh.world();
    let registered = world.instances.get(&battle("b1")).unwrap();
    assert_eq!(
        (registered.state, registered.state.is_served()),
        (State::NotReady, false)
    );
    assert!(mesh.beat("b1", 1).await, "it is alive");
    pass(2_300).await;
    assert!(mesh.stored().await.is_empty() && mesh.registry.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_refused_a_caller_of_another_plane_is_dead_when_silent_and_not_when_it_beat_since() {
    let store = Store::memory().await.unwrap();
    let (a, b) = (named(&store, "a").await, named(&store, "b").await);
    a.register(wired("b1"), 1).await.unwrap();
    let address = "127.0.0.5:15006".parse().unwrap();
    b.registry.refused(&[address]);
    pass(500).await;
    assert!(a.beat("b1", 1).await);
    pass(5_000).await;
    let ask = || {
        let silent = a.registry.silent(0);
        let now = a.registry.now_ms();
        let endpoint =
            |(address, beaten): (&SocketAddr, &u64)| phalanx_client::api::SilentEndpoint {
                address: address.to_string(),
                silent_ms: now - beaten,
            };
        let asked: Vec<_> = silent.iter().map(endpoint).collect();
        let refused = b.registry.witnessed(&asked);
        a.registry.learn(&silent, &refused);
        (asked.len(), refused.len())
    };
    assert_eq!(ask(), (1, 0), "held, and refused only before its last beat");
    b.registry.refused(&[address]);
    assert_eq!(ask(), (1, 1));
    pass(300).await;
    assert!(a.stored().await.is_empty() && a.registry.held().is_empty());
    assert_eq!(ask(), (0, 0), "nothing is asked while nothing is held");
}

#[tokio::test(start_paused = true)]
async fn a_name_is_one_processes_alone_and_an_earlier_life_is_no_other() {
    let store = Store::memory().await.unwrap();
    let at = |port: u16| Identity {
        name: "a".into(),
        admin: format!("127.0.0.1:{port}"),
        xds: format!("127.0.0.2:{port}"),
    };
    let first = plane(store.clone(), at(1)).await;
    let started = Instant::now();
    let refused = crate::planes::unclaimed(&store, &at(2)).await.unwrap();
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("127.0.0.1:1") && refused.contains("`a`"),
        "{refused}"
    );
    assert!(started.elapsed() > crate::planes::TTL);
    let again = crate::planes::unclaimed(&store, &at(1)).await.unwrap();
    assert_eq!(again, Ok(()), "a restart waits for nobody");
    first.kill();
    let after = crate::planes::unclaimed(&store, &at(2)).await.unwrap();
    assert_eq!(after, Ok(()), "its lease ended");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_recorded_of_a_service_that_nobody_knows() {
    let store = Store::memory().await.unwrap();
    let (a, _b) = (named(&store, "a").await, named(&store, "b").await);
    let service = ServiceName::new("default", "nobody");
    let refused = a.registry.release(&service, "ann").await.unwrap_err();
    assert!(matches!(refused, OperateError::NothingHeld(_)), "{refused}");
}
