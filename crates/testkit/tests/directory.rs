//! The session directory end to end: requests follow a session that moves, a drain hands sessions over, what was answered
//! outlives `kill -9`, and fifty followers hear of a move at once.

mod directory {
    mod lasting;
}

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phalanx_client::api::{DrainRequest, SessionRequest};
use phalanx_client::session::{SEAT_TYPE, Sessions};
use phalanx_model::ServiceName;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Answer, Call, Connection, call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const POLICY: &str = "
apiVersion: v1
kind: Service
metadata: {name: battle}
spec: {selector: {app: battle}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: battle}
spec:
  targetRefs: [{kind: Service, name: battle}]
  sessionDirectory: {header: x-game-session, missing: Refuse}
";

/// The id under which an instance is registered.
async fn id_of(mesh: &Mesh, service: &str, instance: &Instance) -> anyhow::Result<String> {
    let inbound = instance.inbound.to_string();
    let instances = mesh.client().instances(Some(service), None).await?;
    let mut items = instances.items.into_iter();
    let found = items.find(|item| item.ports.iter().any(|port| port.address == inbound));
    Ok(found
        .ok_or_else(|| anyhow::anyhow!("{inbound} is not registered"))?
        .id)
}

fn request(key: &str, instance: &str) -> SessionRequest {
    SessionRequest {
        namespace: "default".into(),
        service: "battle".into(),
        key: key.into(),
        instance: instance.into(),
        ..SessionRequest::default()
    }
}

/// Claims or moves; the epoch.
async fn change(mesh: &Mesh, what: &str, key: &str, instance: &str) -> anyhow::Result<u64> {
    let answer = mesh.client().session(what, &request(key, instance)).await?;
    let session = answer.session;
    Ok(session
        .ok_or_else(|| anyhow::anyhow!("nobody has {key}"))?
        .epoch)
}

fn to(key: &str) -> Call {
    Call::get("battle", "/").header("x-game-session", key)
}

/// What the application was told.
fn epoch(answer: &Answer) -> Option<u64> {
    let told = &answer.json()["headers"]["x-session-epoch"];
    told.as_str()?.parse().ok()
}

async fn at(outbound: SocketAddr, key: &str, name: &str) -> anyhow::Result<Answer> {
    eventually(&format!("{key} at {name}"), READY_MAX, async || {
        let answer = call(outbound, &to(key)).await.ok()?;
        (answer.status == 200 && answer.header("x-echo") == name).then_some(answer)
    })
    .await
}

/// Asks again and again, and counts what does not come back as 200.
struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    running: tokio::task::JoinHandle<u64>,
}

impl Load {
    fn start(outbound: SocketAddr, keys: Vec<String>) -> Self {
        let (stop, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ended, bad) = (stop.clone(), failed.clone());
        let running = tokio::spawn(async move {
            let mut sent = 0;
            let mut connection = None;
            while !ended.load(Ordering::Relaxed) {
                for key in &keys {
                    sent += 1;
                    let open = match connection.take() {
                        Some(open) => Ok(open),
                        None => Connection::open(outbound, true).await,
                    };
                    let Ok(mut open) = open else {
                        bad.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    match open.send(&to(key)).await {
                        Ok(answer) if answer.status == 200 => connection = Some(open),
                        other => {
                            println!("{key}: {other:?}");
                            bad.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            sent
        });
        Self {
            stop,
            failed,
            running,
        }
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.running.await?;
        assert!(sent > 0);
        assert_eq!(self.failed.load(Ordering::Relaxed), 0, "of {sent}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_a_session_that_moves_and_none_fails() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    mesh.apply(POLICY).await?;
    let (first, second) = (
        id_of(&mesh, "battle", &one).await?,
        id_of(&mesh, "battle", &two).await?,
    );
    let claimed = change(&mesh, "claim", "room", &first).await?;
    let answer = at(caller.outbound, "room", "one").await?;
    assert_eq!(epoch(&answer), Some(claimed));

    let load = Load::start(caller.outbound, vec!["room".into()]);
    let mut before = claimed;
    for turn in 0..10 {
        let (instance, name) = [(&second, "two"), (&first, "one")][turn % 2];
        let moved = change(&mesh, "move", "room", instance).await?;
        assert!(moved > before);
        let answer = at(caller.outbound, "room", name).await?;
        assert_eq!(epoch(&answer), Some(moved));
        before = moved;
    }
    load.end().await?;

    // A late owner is refused, and told who has it.
    let mut late = request("room", &second);
    late.expect = claimed;
    let refused = mesh.client().session("move", &late).await.unwrap_err();
    assert!(
        refused.to_string().contains(&format!("epoch {before}")),
        "{refused}"
    );
    // Nobody has this one, and it may not be placed; without a session anybody serves.
    let answer = call(caller.outbound, &to("nobody")).await?;
    assert_eq!(answer.status, 503);
    let free = Call::get("battle", "/").header("x-session-epoch", "7");
    let answer = call(caller.outbound, &free).await?;
    assert_eq!((answer.status, epoch(&answer)), (200, None));

    // The session's instance is gone: nobody else gets its requests.
    drop(one);
    let answer = eventually("nobody answers for room", READY_MAX, async || {
        let answer = call(caller.outbound, &to("room")).await.ok()?;
        (answer.status == 503).then_some(answer)
    });
    answer.await?;
    change(&mesh, "move", "room", &second).await?;
    at(caller.outbound, "room", "two").await?;
    mesh.client()
        .session("release", &request("room", ""))
        .await?;
    eventually("room is nobody's", READY_MAX, async || {
        let answer = call(caller.outbound, &to("room")).await.ok()?;
        (answer.status == 503).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn seats_outlive_a_killed_control_plane_and_a_new_sidecar_knows_them_before_its_first_request()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let mut caller = mesh.instance("caller", "v1", "caller").await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    mesh.apply(POLICY).await?;
    let ids = [
        id_of(&mesh, "battle", &one).await?,
        id_of(&mesh, "battle", &two).await?,
    ];
    let keys: Vec<String> = (0..8).map(|n| format!("room-{n}")).collect();
    let mut epochs = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        epochs.push(change(&mesh, "claim", key, &ids[n % 2]).await?);
    }
    let names = ["one", "two"];
    for (n, key) in keys.iter().enumerate() {
        at(caller.outbound, key, names[n % 2]).await?;
    }
    let load = Load::start(caller.outbound, keys.clone());
    mesh.control.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    mesh.restart_control().await?;
    let page = mesh
        .client()
        .sessions("default", Some("battle"), None, None, None)
        .await?;
    let held: Vec<u64> = page.items.iter().map(|item| item.epoch).collect();
    assert_eq!((held, page.count), (epochs, 8));
    // The stream is open again once a move arrives.
    change(&mesh, "move", "room-0", &ids[1]).await?;
    at(caller.outbound, "room-0", "two").await?;
    load.end().await?;

    caller.sidecar.kill();
    let ip = caller.outbound.ip();
    let app = caller.app_address.to_string();
    caller.sidecar = mesh.sidecar("caller", "v1", ip, &["--app", &app])?;
    mesh.ready(caller.admin).await?;
    let answer = phalanx_testkit::http::first_call(caller.outbound, &to("room-3")).await?;
    assert_eq!((answer.status, answer.header("x-echo")), (200, "two"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_rooms_be_then_hands_them_over_and_no_request_fails() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    mesh.apply(POLICY).await?;
    let (first, second) = (
        id_of(&mesh, "battle", &one).await?,
        id_of(&mesh, "battle", &two).await?,
    );
    let keys: Vec<String> = (0..20).map(|n| format!("room-{n}")).collect();
    for key in &keys {
        change(&mesh, "claim", key, &first).await?;
    }
    at(caller.outbound, "room-19", "one").await?;
    let load = Load::start(caller.outbound, keys.clone());
    let drain = DrainRequest {
        namespace: "default".into(),
        service: Some("battle".into()),
        instance: first.clone(),
        grace_ms: Some(2_000),
        handover: Some("move".into()),
        reconnects_per_second: Some(20),
        author: "test".into(),
        ..DrainRequest::default()
    };
    mesh.client().drain(&drain).await?;
    let drains = mesh.client().drains().await?;
    let drained = drains.items.first().expect("it is being drained");
    assert_eq!(
        (drained.traffic.as_str(), drained.sessions),
        ("draining", 20)
    );
    let refused = change(&mesh, "claim", "new", &first).await;
    assert!(refused.is_err(), "it takes no new sessions");
    let ended = eventually("it is drained", READY_MAX, async || {
        let drains = mesh.client().drains().await.ok()?;
        let drained = drains.items.into_iter().next()?;
        (drained.traffic == "drained").then_some(drained)
    });
    assert_eq!(ended.await?.sessions, 0);
    for key in &keys {
        at(caller.outbound, key, "two").await?;
    }
    load.end().await?;
    let client = mesh.client();
    let page = client.sessions("default", Some("battle"), None, Some(&second), None);
    assert_eq!(page.await?.count, 20);
    Ok(())
}

/// Says how long it takes; what is required is that everybody hears of every move.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_reaches_fifty_followers() -> anyhow::Result<()> {
    const FOLLOWERS: usize = 50;
    let moves = match std::env::var_os("PHALANX_SOAK") {
        Some(_) => 500,
        None => 20,
    };
    let mut mesh = Mesh::start().await?;
    let one = mesh.instance("battle", "v1", "one").await?;
    let two = mesh.instance("battle", "v1", "two").await?;
    let ids = [
        id_of(&mesh, "battle", &one).await?,
        id_of(&mesh, "battle", &two).await?,
    ];
    let service = ServiceName::new("default", "battle");
    let control: Channel = Channel::from_shared(format!("http://{}", mesh.xds))?
        .connect()
        .await?;
    let mut sessions = Sessions::new(control);
    for n in 0..100 {
        let key = format!("other-{n}");
        sessions.claim(&service, &key, &ids[0], 0, None).await?;
    }
    let mut epoch = sessions
        .claim(&service, "room", &ids[0], 0, None)
        .await?
        .epoch;

    let (heard, mut hearing) = mpsc::channel(FOLLOWERS * 2);
    let mut followers = Vec::new();
    for n in 0..FOLLOWERS {
        let channel = Channel::from_shared(format!("http://{}", mesh.xds))?
            .connect()
            .await?;
        followers.push(tokio::spawn(follow(channel, n, heard.clone())));
    }
    for _ in 0..FOLLOWERS {
        let heard = tokio::time::timeout(READY_MAX, hearing.recv()).await?;
        assert_eq!(heard.map(|(seen, _)| seen), Some(epoch));
    }
    let mut took = Vec::new();
    for turn in 0..moves {
        let begun = Instant::now();
        let to = &ids[(turn + 1) % 2];
        epoch = sessions.move_to(&service, "room", to, epoch).await?.epoch;
        for _ in 0..FOLLOWERS {
            let heard = tokio::time::timeout(READY_MAX, hearing.recv()).await?;
            let (seen, when) = heard.expect("all follow");
            assert_eq!(seen, epoch);
            took.push(when.duration_since(begun));
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    println!(
        "{moves} moves to {FOLLOWERS} followers, from the call to each: P50 {:?}, P99 {:?}, longest {:?}",
        at(50),
        at(99),
        took[took.len() - 1]
    );
    followers.iter().for_each(|follower| follower.abort());
    Ok(())
}

/// Tells each epoch of `room`, and when it came.
async fn follow(
    channel: Channel,
    number: usize,
    heard: mpsc::Sender<(u64, Instant)>,
) -> anyhow::Result<()> {
    let (requests, outgoing) = mpsc::channel(16);
    requests
        .send(DeltaDiscoveryRequest {
            node: Some(Node {
                id: format!("default/gateway/g{number}"),
                metadata: Some(metadata(&[
                    ("service", "gateway"),
                    ("namespace", "default"),
                    ("outbound", "15001"),
                ])),
                ..Default::default()
            }),
            type_url: SEAT_TYPE.into(),
            resource_names_subscribe: vec!["default/battle/*".into()],
            ..Default::default()
        })
        .await?;
    let mut ads = AggregatedDiscoveryServiceClient::new(channel);
    let stream = ads.delta_aggregated_resources(ReceiverStream::new(outgoing));
    let mut responses = stream.await?.into_inner();
    while let Some(response) = responses.message().await? {
        if response.type_url != SEAT_TYPE {
            continue;
        }
        let when = Instant::now();
        let mut resources = response.resources.iter();
        if let Some(room) = resources.find(|r| r.name == "default/battle/room") {
            heard.send((room.version.parse()?, when)).await?;
        }
        let ack = DeltaDiscoveryRequest {
            type_url: SEAT_TYPE.into(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(ack).await?;
    }
    Ok(())
}

fn metadata(words: &[(&str, &str)]) -> prost_types::Struct {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let fields = words
        .iter()
        .map(|(name, word)| ((*name).to_owned(), text(word)));
    prost_types::Struct {
        fields: fields.collect(),
    }
}
