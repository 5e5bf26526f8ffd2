use std::collections::BTreeMap;

use phalanx_client::session::{SEAT_TYPE, SHELF_TYPE};
use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use phalanx_proto::phalanx::sessions::v1 as wire;
use prost::Message;
use tokio::sync::watch::Sender;
use tokio::task::JoinHandle;

use super::tend::AWAY_MAX;
use super::*;
use crate::world::World;
use crate::world::fixture::{Fixture, instance};
use crate::world::record::{DrainRecord, InstanceRecord, drain_key, instance_key};

const IDS: [&str; 3] = ["b1", "b2", "b3"];

fn battle() -> ServiceName {
    ServiceName::new("default", "battle")
}

fn id(key: &str) -> SessionId {
    SessionId::parse("default", "battle", key).unwrap()
}

fn fixture(ids: &[&str]) -> Fixture {
    let mut fixture = Fixture::default();
    for (n, id) in ids.iter().enumerate() {
        let one = instance("battle", id, &format!("10.0.0.{n}:15006"), &[("", 80)]);
        let record = InstanceRecord::new(&one, 1, 30_000).of("alone", State::Accepting);
        fixture.put(instance_key(&one.id), serde_json::to_vec(&record).unwrap());
    }
    fixture
}

fn world(ids: &[&str]) -> World {
    fixture(ids).world()
}

/// A control plane's directory over a store that others may write, too.
struct Plane {
    sessions: Sessions,
    worlds: Sender<Arc<World>>,
    work: Option<Work>,
    running: Option<JoinHandle<()>>,
}

impl Plane {
    async fn new(store: &Store) -> Self {
        let worlds = Sender::new(Arc::new(world(&IDS)));
        let stop = CancellationToken::new();
        let loaded = Sessions::load(store.clone(), worlds.subscribe(), "alone", stop);
        let (sessions, work) = loaded.await.unwrap();
        Self {
            sessions,
            worlds,
            work: Some(work),
            running: None,
        }
    }

    async fn running(store: &Store) -> Self {
        let mut plane = Self::new(store).await;
        plane.run();
        plane
    }

    fn run(&mut self) {
        let (sessions, work) = (self.sessions.clone(), self.work.take().unwrap());
        self.running = Some(tokio::spawn(sessions.run(work)));
    }

    /// Writes, but hears of nobody else's writes but where they are in its way.
    fn run_deaf(&mut self) {
        let (stop, work) = (self.sessions.stop.clone(), self.work.take().unwrap());
        self.running = Some(tokio::spawn(work.writer.run(stop)));
    }

    async fn claim(&self, key: &str, instance: &str, expected: u64) -> Result<u64, Option<u64>> {
        let done = self.sessions.claim(id(key), instance, expected, None).await;
        outcome(done.unwrap())
    }

    async fn move_to(&self, key: &str, to: &str, expected: u64) -> Result<u64, Option<u64>> {
        outcome(self.sessions.move_to(id(key), to, expected).await.unwrap())
    }

    fn holder(&self, key: &str) -> Option<(String, u64)> {
        let session = self.sessions.session(&id(key))?;
        Some((session.held.instance.to_string(), session.held.epoch))
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if what(self) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came to that");
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// The epoch, or that of whoever has it.
fn outcome(done: Done) -> Result<u64, Option<u64>> {
    let epoch = done.session.map(|session| session.held.epoch);
    match done.done {
        true => Ok(epoch.unwrap_or_default()),
        false => Err(epoch),
    }
}

#[tokio::test]
async fn a_key_has_one_owner_and_a_late_one_is_refused() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let first = plane.claim("room", "b1", 0).await.unwrap();
    assert_eq!(plane.claim("room", "b1", 0).await, Ok(first), "again");
    assert_eq!(plane.claim("room", "b2", 0).await, Err(Some(first)));
    let second = plane.claim("room", "b2", first).await.unwrap();
    assert!(second > first);
    assert_eq!(plane.claim("room", "b1", first).await, Err(Some(second)));
    assert_eq!(plane.move_to("room", "b3", first).await, Err(Some(second)));
    let third = plane.move_to("room", "b3", second).await.unwrap();
    assert_eq!(plane.holder("room"), Some(("b3".into(), third)));
    let late = plane.sessions.release(id("room"), second).await.unwrap();
    assert!(!late.done);
    let released = plane.sessions.release(id("room"), third).await.unwrap();
    assert!(released.done && plane.holder("room").is_none());
    let again = plane.claim("room", "b1", 0).await.unwrap();
    assert!(again > third, "an epoch never comes again");
    assert_eq!(plane.move_to("nothing", "b1", 0).await, Err(None));
}

#[tokio::test]
async fn who_is_not_registered_or_drained_gets_nothing() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let refused = plane.sessions.claim(id("room"), "nobody", 0, None).await;
    assert!(matches!(refused, Err(SessionError::Unknown(_))));
    let short = Some(Duration::from_secs(1));
    let refused = plane.sessions.claim(id("room"), "b1", 0, short).await;
    assert!(matches!(refused, Err(SessionError::Ttl)));
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_with_the_same_epochs() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let plane_ref = &plane;
    let claims = (0..100).map(|n| async move {
        let key = format!("room-{n}");
        let epoch = plane_ref.claim(&key, IDS[n % 3], 0).await.unwrap();
        (key, epoch)
    });
    let claimed = futures_util::future::join_all(claims).await;
    drop(plane);
    let plane = Plane::new(&store).await;
    assert_eq!(plane.sessions.len(), 100);
    for (key, epoch) in claimed {
        assert_eq!(plane.holder(&key).map(|(_, epoch)| epoch), Some(epoch));
    }
}

/// Three control planes over one store, two of which hear nothing of the others for a while.
#[tokio::test]
async fn planes_that_are_cut_off_leave_one_owner_of_each_key_and_each_epoch_is_one_owners() {
    for seed in 0..20 {
        let store = Store::memory().await.unwrap();
        let mut planes = [
            Plane::running(&store).await,
            Plane::new(&store).await,
            Plane::new(&store).await,
        ];
        planes[1].run_deaf();
        planes[2].run_deaf();
        // What each client believes of a key: instance and epoch.
        let mut believed: BTreeMap<(usize, String), u64> = BTreeMap::new();
        let mut given: BTreeMap<(String, u64), String> = BTreeMap::new();
        let mut latest: BTreeMap<String, u64> = BTreeMap::new();
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..150 {
            let (plane, key) = (rng.usize(..3), format!("room-{}", rng.usize(..4)));
            let instance = IDS[rng.usize(..3)];
            let expected = match rng.usize(..4) {
                0 => 0,
                _ => believed.get(&(plane, key.clone())).copied().unwrap_or(0),
            };
            let took = match rng.usize(..6) {
                0 if expected > 0 => {
                    let done = planes[plane].sessions.release(id(&key), expected).await;
                    let done = done.unwrap();
                    if done.done && done.session.is_some() {
                        assert_eq!(
                            latest.get(&key),
                            Some(&expected),
                            "a stale release went through"
                        );
                    }
                    continue;
                }
                1 | 2 if expected > 0 => planes[plane].move_to(&key, instance, expected).await,
                _ => planes[plane].claim(&key, instance, expected).await,
            };
            let Ok(epoch) = took else {
                let now = took.unwrap_err();
                believed.insert((plane, key), now.unwrap_or(0));
                continue;
            };
            let owner = given.entry((key.clone(), epoch)).or_insert(instance.into());
            assert_eq!(owner, instance, "two have {key} at one epoch");
            let before = latest.insert(key.clone(), epoch).unwrap_or(0);
            assert!(epoch >= before, "{key}: {epoch} after {before}");
            if expected > 0 && epoch != before {
                assert_eq!(expected, before, "{key}: a stale epoch went through");
            }
            believed.insert((plane, key), epoch);
        }
        for key in 0..4 {
            let key = format!("room-{key}");
            let stored = store.get(&id(&key).store_key()).await.unwrap();
            let stored = stored.map(|entry| {
                let record = record::SessionRecord::read(&entry.value).unwrap();
                (record.instance, record.epoch.unwrap_or(entry.modified))
            });
            // Who was cut off hears of it by asking.
            for plane in &planes[1..] {
                plane.sessions.read().await.unwrap();
                assert_eq!(plane.holder(&key), stored);
            }
            planes[0].until(|plane| plane.holder(&key) == stored).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_of_an_instance_that_stays_away_are_let_go_and_those_of_one_that_returns_are_not()
{
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    for instance in ["b1", "b2"] {
        plane.claim(instance, instance, 0).await.unwrap();
    }
    plane.worlds.send_replace(Arc::new(world(&["none"])));
    plane
        .until(|plane| {
            plane
                .sessions
                .session(&id("b2"))
                .is_some_and(|s| s.addresses.is_none())
        })
        .await;
    sleep(AWAY_MAX / 2).await;
    plane.worlds.send_replace(Arc::new(world(&["b1"])));
    plane.until(|plane| plane.holder("b2").is_none()).await;
    assert!(
        plane
            .sessions
            .session(&id("b1"))
            .unwrap()
            .addresses
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_a_time_to_live_ends_unless_it_is_made_again() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let ttl = Some(Duration::from_secs(6));
    let claim = || plane.sessions.claim(id("room"), "b1", 0, ttl);
    let first = outcome(claim().await.unwrap()).unwrap();
    for _ in 0..5 {
        sleep(Duration::from_secs(4)).await;
        assert_eq!(outcome(claim().await.unwrap()), Ok(first));
    }
    plane.until(|plane| plane.holder("room").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn however_often_a_session_is_claimed_again_one_deadline_is_remembered() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    for n in 0..200 {
        let ttl = Some(Duration::from_secs(60 + n));
        let done = plane.sessions.claim(id("room"), "b1", 0, ttl).await;
        assert!(done.unwrap().done);
    }
    assert_eq!(plane.sessions.board().due_len(), 1);
    plane
        .sessions
        .claim(id("room"), "b1", 0, None)
        .await
        .unwrap();
    assert_eq!(
        plane.sessions.board().due_len(),
        0,
        "it is held until it is released by now"
    );
    let ttl = Some(Duration::from_secs(60));
    plane
        .sessions
        .claim(id("room"), "b1", 0, ttl)
        .await
        .unwrap();
    plane.sessions.release(id("room"), 0).await.unwrap();
    assert_eq!(plane.sessions.board().due_len(), 0);
}

#[tokio::test]
async fn what_is_anothers_since_a_drain_looked_is_not_let_go_for_it() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    plane.claim("room", "b1", 0).await.unwrap();
    let b1 = InstanceId {
        service: battle(),
        id: "b1".into(),
    };
    let seen = plane.sessions.board().stored_of(&b1, 10);
    let [(key, modified)] = &seen[..] else {
        panic!("one session: {seen:?}");
    };
    let epoch = plane.move_to("room", "b2", 0).await.unwrap();
    let release = Ask::Release {
        expected: 0,
        at: Some(*modified),
    };
    let done = plane.sessions.change(key.clone(), release).await.unwrap();
    assert!(!done.done);
    assert_eq!(plane.holder("room"), Some(("b2".to_owned(), epoch)));
}

fn asked(place: Option<&str>) -> DeltaDiscoveryRequest {
    let name = "default/battle/*".to_owned();
    let held = place.map(|place| (name.clone(), place.to_owned()));
    DeltaDiscoveryRequest {
        type_url: SEAT_TYPE.into(),
        resource_names_subscribe: vec![name],
        initial_resource_versions: held.into_iter().collect(),
        ..Default::default()
    }
}

/// Where it is, whether it begins and is complete, keys with epochs, keys that went.
fn read(response: DeltaDiscoveryResponse) -> (String, bool, bool, Vec<(String, u64)>, Vec<String>) {
    let (mut place, mut begins, mut complete) = (String::new(), false, false);
    let mut seats = Vec::new();
    for resource in response.resources {
        let body = resource.resource.unwrap();
        if body.type_url == SHELF_TYPE {
            let shelf = wire::Shelf::decode(&*body.value).unwrap();
            (place, begins, complete) = (resource.version, shelf.begins, shelf.complete);
        } else {
            let seat = wire::Seat::decode(&*body.value).unwrap();
            seats.push((resource.name, seat.epoch));
        }
    }
    (place, begins, complete, seats, response.removed_resources)
}

#[tokio::test]
async fn a_follower_gets_all_of_a_service_in_pieces_then_each_change_and_goes_on_after_a_reconnect()
{
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let plane_ref = &plane;
    let claims = (0..2_500).map(|n| async move {
        let key = format!("room-{n:04}");
        plane_ref.claim(&key, "b1", 0).await.unwrap()
    });
    futures_util::future::join_all(claims).await;
    let mut feed = plane.sessions.feed();
    feed.on_request(&asked(None)).unwrap();
    let mut pieces = Vec::new();
    while let Some(response) = feed.tell() {
        pieces.push(read(response));
    }
    let shape: Vec<_> = pieces.iter().map(|p| (p.1, p.2, p.3.len())).collect();
    assert_eq!(
        shape,
        [
            (true, false, 1000),
            (false, false, 1000),
            (false, true, 500)
        ]
    );
    let place = pieces.pop().unwrap().0;
    let epoch = plane.move_to("room-0007", "b2", 0).await.unwrap();
    feed.changed().await;
    let (_, begins, _, seats, _) = read(feed.tell().unwrap());
    assert_eq!(
        (begins, seats),
        (false, vec![("default/battle/room-0007".into(), epoch)])
    );
    assert!(feed.tell().is_none());
    plane.sessions.release(id("room-0008"), 0).await.unwrap();
    let mut again = plane.sessions.feed();
    again.on_request(&asked(Some(&place))).unwrap();
    let (_, begins, _, seats, removed) = read(again.tell().unwrap());
    assert!(!begins);
    assert_eq!(seats.len(), 1);
    assert_eq!(removed, ["default/battle/room-0008"]);
    let mut stranger = plane.sessions.feed();
    stranger.on_request(&asked(Some("1234:5"))).unwrap();
    assert!(
        read(stranger.tell().unwrap()).1,
        "another process' place is none"
    );
    let mut bad = asked(None);
    bad.resource_names_subscribe = vec!["battle".into()];
    assert!(stranger.on_request(&bad).is_err());
}

#[tokio::test(start_paused = true)]
async fn at_a_drains_deadline_sessions_go_to_others_no_faster_than_was_said() {
    let store = Store::memory().await.unwrap();
    let plane = Plane::running(&store).await;
    let claims = (0..40).map(|n| {
        let plane = &plane;
        async move { plane.claim(&format!("room-{n}"), "b1", 0).await.unwrap() }
    });
    futures_util::future::join_all(claims).await;
    let record = DrainRecord {
        since: 0,
        author: "ann".into(),
        state: "draining".into(),
        grace_ms: Some(5_000),
        handover: Some("move".into()),
        reconnects_per_second: Some(10),
    };
    let b1 = phalanx_model::InstanceId {
        service: battle(),
        id: "b1".into(),
    };
    let value = serde_json::to_vec(&record).unwrap();
    let txn = phalanx_store::Txn::new().put(drain_key(&b1), value.clone());
    store.commit(txn).await.unwrap();
    let mut drained = fixture(&IDS);
    drained.put(drain_key(&b1), value);
    plane.worlds.send_replace(Arc::new(drained.world()));
    sleep(Duration::from_millis(4_500)).await;
    assert_eq!(
        plane.sessions.count_of(&b1),
        40,
        "before the deadline they may stay"
    );
    sleep(Duration::from_millis(2_500)).await;
    let left = plane.sessions.count_of(&b1);
    assert!((10..40).contains(&left), "{left}");
    plane.until(|plane| plane.sessions.count_of(&b1) == 0).await;
    let others = ["b2", "b3"].map(|other| {
        plane.sessions.count_of(&phalanx_model::InstanceId {
            service: battle(),
            id: other.into(),
        })
    });
    assert_eq!(others, [20, 20]);
    let mut state = String::new();
    for _ in 0..100 {
        let entry = store.get(&drain_key(&b1)).await.unwrap().unwrap();
        state = serde_json::from_slice::<DrainRecord>(&entry.value)
            .unwrap()
            .state;
        if state == "drained" {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(state, "drained");
    let refused = plane.sessions.move_to(id("room-0"), "b1", 0).await;
    assert!(matches!(refused, Err(SessionError::Closed { .. })));
}
