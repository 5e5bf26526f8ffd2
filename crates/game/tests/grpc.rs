//! The services as a client in another language sees them: codes, bounds, streams.
#![cfg(feature = "grpc")]

#[cfg(feature = "redis")]
#[path = "board/server.rs"]
#[allow(dead_code, reason = "the boards' own suite needs more of it")]
mod server;

use std::sync::Arc;
use std::time::Duration;

use phalanx_game::board::memory::{Memory, MemoryOptions};
use phalanx_game::board::{Better, Board, BoardSpec, Kind, PlayerId, Reply, now_ms};
use phalanx_game::grpc::wire::leaderboard_client::LeaderboardClient;
use phalanx_game::grpc::wire::matchmaking_client::MatchmakingClient;
use phalanx_game::grpc::wire::{self, freshness, gone, rank, ticket_state::Stage};
use phalanx_game::grpc::{Act, Boards, BoardsError, Caller, Scores, Served, Shards, SubmitError};
use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, Limits, LocalLease, Node, NodeConfig, Role,
    RulesSpec, Seal, Shard, ShardConfig,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Channel, Server};
use tonic::{Code, Status, Streaming};

/// On a machine that is ten times slower.
const LATE: Duration = Duration::from_secs(60);

async fn serve(services: Router) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(services.serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    channel.connect().await.unwrap()
}

fn memory(name: &str, kind: Kind, top: usize) -> Arc<Memory> {
    let spec = BoardSpec {
        top,
        ..BoardSpec::new(name, kind)
    };
    let board = Arc::new(Board::try_new(spec).unwrap());
    Memory::attach(board, MemoryOptions::default())
}

async fn boards(memories: &[&Arc<Memory>]) -> LeaderboardClient<Channel> {
    let served = memories.iter().map(|memory| Served {
        board: memory.board().clone(),
        scores: Some((*memory).clone()),
    });
    let boards = Boards::try_new(served).unwrap();
    LeaderboardClient::new(serve(Server::builder().add_service(boards.into_server())).await)
}

fn result(board: &str, player: &str, points: i64, id: &str) -> wire::SubmitRequest {
    wire::SubmitRequest {
        board: board.into(),
        player: player.into(),
        points,
        id: id.into(),
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, says: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(says), "{status}");
}

#[tokio::test]
async fn results_are_counted_once_by_name_and_pages_hold_their_version() {
    let kills = memory("kills", Kind::Sum(Better::Higher), 100);
    let mut client = boards(&[&kills]).await;
    for number in 0..12 {
        let request = result("kills", &format!("p{number:02}"), 100 - number, "m1");
        assert!(client.submit(request).await.unwrap().into_inner().counted);
    }
    let again = client
        .submit(result("kills", "p00", 100, "m1"))
        .await
        .unwrap();
    assert!(!again.into_inner().counted);
    kills.tick(now_ms());

    let page = |token: String, size| wire::PageRequest {
        board: "kills".into(),
        size,
        token,
        ..wire::PageRequest::default()
    };
    let answer = client.page(page(String::new(), 5)).await.unwrap();
    for name in ["x-cache", "age", "etag", "cache-status"] {
        assert!(answer.metadata().contains_key(name), "{name}");
    }
    let first = answer.into_inner();
    let fresh = first.freshness.unwrap();
    assert_ne!(fresh.cache(), freshness::Cache::Unspecified);
    assert_eq!(
        (first.rows[0].player.as_str(), first.rows[0].score),
        ("p00", 100.0)
    );
    assert_eq!((first.rows.len(), first.total), (5, 12));

    // The board moves on; the next page is of the version that the token came from.
    client
        .submit(result("kills", "p11", 1_000, "m2"))
        .await
        .unwrap();
    kills.tick(now_ms());
    let second = client
        .page(page(first.next_token.clone(), 0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(second.freshness.unwrap().version, fresh.version);
    assert_eq!(second.rows[0].player, "p05");

    // And when that is gone, the reader is told to begin again.
    for number in 0..8 {
        client
            .submit(result("kills", "p01", 1, &format!("n{number}")))
            .await
            .unwrap();
        kills.tick(now_ms());
    }
    refused(
        client.page(page(first.next_token, 0)).await,
        Code::Aborted,
        "is gone",
    );
}

/// Counts at once, and says so when the gate is open: as a disk that is slow.
struct Slow {
    memory: Arc<Memory>,
    gate: Semaphore,
}

impl Scores for Slow {
    fn submit<'a>(
        &'a self,
        player: &'a PlayerId,
        points: i64,
        at_ms: u64,
    ) -> Reply<'a, Result<(), SubmitError>> {
        Box::pin(async move {
            Scores::submit(&*self.memory, player, points, at_ms).await?;
            drop(self.gate.acquire().await);
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_named_result_counts_once_though_its_call_was_given_up() {
    let kills = memory("kills", Kind::Sum(Better::Higher), 100);
    let slow = Arc::new(Slow {
        memory: kills.clone(),
        gate: Semaphore::new(0),
    });
    let served = Served {
        board: kills.board().clone(),
        scores: Some(slow.clone()),
    };
    let services = Server::builder()
        .timeout(Duration::from_millis(100))
        .add_service(Boards::try_new([served]).unwrap().into_server());
    let mut client = LeaderboardClient::new(serve(services).await);
    let five = result("kills", "ann", 5, "m1");
    assert!(client.submit(five.clone()).await.is_err(), "given up");
    slow.gate.add_permits(1);
    let again = async {
        loop {
            // Aborted, while the first is being counted.
            if client.submit(five.clone()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(LATE, again).await.expect("in time");
    let order = kills.order("ann").unwrap();
    assert_eq!(kills.board().law().score(order, now_ms()), 5.0);
}

#[tokio::test]
async fn a_player_has_a_place_in_the_top_outside_of_it_or_none() {
    let best = memory("best", Kind::Best(Better::Higher), 3);
    let mut client = boards(&[&best]).await;
    for number in 0..10 {
        client
            .submit(result("best", &format!("p{number}"), 100 - number, ""))
            .await
            .unwrap();
    }
    best.tick(now_ms());
    let mut place = async |player: &str| {
        let request = wire::RankRequest {
            board: "best".into(),
            player: player.into(),
            max_age_ms: None,
        };
        let answer = client.rank(request).await.unwrap().into_inner();
        answer.rank.unwrap()
    };
    let top = place("p1").await;
    assert_eq!(
        (top.source(), top.place, top.score),
        (rank::Source::Top, 2, 99.0)
    );
    // The store is asked for a few milliseconds; a machine that stands still meanwhile estimates.
    let outside = place("p7").await;
    assert!(
        matches!(
            outside.source(),
            rank::Source::Store | rank::Source::Estimate
        ),
        "{outside:?}"
    );
    assert!((outside.low..=outside.high).contains(&8), "{outside:?}");
    let nobody = place("nobody").await;
    assert!(
        matches!(
            nobody.source(),
            rank::Source::Absent | rank::Source::Unknown
        ),
        "{nobody:?}"
    );

    let friends = wire::FriendsRequest {
        board: "best".into(),
        players: vec!["p2".into(), "nobody".into(), "p0".into()],
        max_age_ms: None,
    };
    let friends = client.friends(friends).await.unwrap().into_inner().friends;
    let names: Vec<_> = friends
        .iter()
        .map(|friend| friend.player.as_str())
        .collect();
    assert_eq!(names, ["p0", "p2", "nobody"]);

    let around = wire::AroundRequest {
        board: "best".into(),
        player: "p1".into(),
        radius: 1,
        max_age_ms: None,
    };
    let around = client.around(around).await.unwrap().into_inner();
    let names: Vec<_> = around.rows.iter().map(|row| row.player.as_str()).collect();
    assert_eq!(
        (names, around.rank.unwrap().place),
        (vec!["p0", "p1", "p2"], 2)
    );
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn results_over_redis_are_taken_through_its_outage_and_named_ones_once() {
    use phalanx_game::board::RedisBoard;

    let mut redis = server::Redis::durable();
    let folder = tempfile::tempdir().unwrap();
    let spec = BoardSpec::new("kills", Kind::Sum(Better::Higher));
    let board = Arc::new(Board::try_new(spec).unwrap());
    let config = server::config(redis.url(), Some(folder.path()));
    let live = Arc::new(RedisBoard::start(board.clone(), config).await.unwrap());
    let served = Served {
        board,
        scores: Some(live.clone()),
    };
    let boards = Boards::try_new([served]).unwrap();
    let services = Server::builder().add_service(boards.into_server());
    let mut client = LeaderboardClient::new(serve(services).await);
    let score = async |client: &mut LeaderboardClient<Channel>| {
        let request = wire::PageRequest {
            board: "kills".into(),
            ..wire::PageRequest::default()
        };
        // None before the first snapshot.
        let page = client.page(request).await.ok()?.into_inner();
        Some(page.rows.first()?.score)
    };
    assert!(
        client
            .submit(result("kills", "ann", 5, "m1"))
            .await
            .unwrap()
            .into_inner()
            .counted
    );
    let first = server::until("the first result", async || {
        score(&mut client).await.filter(|score| *score == 5.0)
    });
    first.await;

    redis.kill();
    assert!(
        client
            .submit(result("kills", "ann", 7, "m2"))
            .await
            .unwrap()
            .into_inner()
            .counted
    );
    assert!(
        !client
            .submit(result("kills", "ann", 7, "m2"))
            .await
            .unwrap()
            .into_inner()
            .counted
    );
    let own = wire::PageRequest {
        board: "kills".into(),
        viewer: "ann".into(),
        ..wire::PageRequest::default()
    };
    let own = client.page(own).await.unwrap().into_inner();
    assert_eq!((own.rows[0].score, own.rows[0].pending), (12.0, true));
    redis.restart();
    let both = server::until("both results", async || {
        score(&mut client).await.filter(|score| *score == 12.0)
    });
    both.await;
}

#[tokio::test]
async fn what_a_board_does_not_take_is_named() {
    let best = memory("best", Kind::Best(Better::Higher), 10);
    let mut client = boards(&[&best]).await;
    refused(
        client.submit(result("other", "ann", 1, "")).await,
        Code::NotFound,
        "other",
    );
    refused(
        client.submit(result("best", "", 1, "")).await,
        Code::InvalidArgument,
        "0 bytes",
    );
    refused(
        client.submit(result("best", "ann", -1, "")).await,
        Code::InvalidArgument,
        "range",
    );
    let long = "x".repeat(65);
    refused(
        client.submit(result("best", "ann", 1, &long)).await,
        Code::InvalidArgument,
        "id:",
    );
    // A refused result leaves its name free.
    refused(
        client.submit(result("best", "ann", -1, "m1")).await,
        Code::InvalidArgument,
        "range",
    );
    assert!(
        client
            .submit(result("best", "ann", 1, "m1"))
            .await
            .unwrap()
            .into_inner()
            .counted
    );

    let page = wire::PageRequest {
        board: "best".into(),
        size: 201,
        ..wire::PageRequest::default()
    };
    refused(
        client.page(page.clone()).await,
        Code::InvalidArgument,
        "201",
    );
    let forged = wire::PageRequest {
        size: 1,
        token: "00".repeat(30),
        ..page
    };
    refused(client.page(forged).await, Code::InvalidArgument, "token");
    let endless = "ä".repeat(30_000);
    let nowhere = client.submit(result(&endless, "ann", 1, "")).await;
    assert!(nowhere.as_ref().unwrap_err().message().len() < 200);
    refused(nowhere, Code::NotFound, "ääää");
    let friends = wire::FriendsRequest {
        board: "best".into(),
        players: vec!["ann".into(); 201],
        max_age_ms: None,
    };
    refused(client.friends(friends).await, Code::InvalidArgument, "201");

    let read_only = Boards::try_new([Served {
        board: best.board().clone(),
        scores: None,
    }]);
    let services = Server::builder().add_service(read_only.unwrap().into_server());
    let mut reader = LeaderboardClient::new(serve(services).await);
    refused(
        reader.submit(result("best", "ann", 1, "")).await,
        Code::FailedPrecondition,
        "no results here",
    );

    let twice = [&best, &best].map(|memory| Served {
        board: memory.board().clone(),
        scores: None,
    });
    assert_eq!(
        Boards::try_new(twice).err(),
        Some(BoardsError::Twice("best".into()))
    );
}

struct Rooms;

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        let room = format!("room-{}", wanted.id);
        Box::pin(std::future::ready(Ok(room)))
    }
}

/// A shard of duels in two regions, with what it lives in.
struct Duels {
    client: MatchmakingClient<Channel>,
    shard: Shard,
    _node: Node,
    _folder: tempfile::TempDir,
}

async fn duels() -> Duels {
    duels_behind(|shards| shards).await
}

async fn duels_behind(door: impl FnOnce(Shards) -> Shards) -> Duels {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        seal: Seal::none(),
    });
    let node = node.await.unwrap();
    let mut rules = RulesSpec::simple(2, 1, "eu", 80);
    rules.tick.period_ms = 10;
    let rules = Arc::new(rules.check().unwrap());
    let lease = LocalLease::try_new(folder.path().join("lease")).unwrap();
    let key = "duel/eu/v1".parse().unwrap();
    let mut config = ShardConfig::new(key, folder.path().join("log"), lease, rules.clone());
    config.limits = Limits {
        // Nobody is late for want of a processor.
        confirm_within: LATE,
        allocate_within: LATE,
        ..config.limits
    };
    let shard = node.open(config, Rooms).unwrap();
    assert!(matches!(shard.owned().await, Role::Owner { .. }));
    let shards = door(Shards::try_new([(shard.clone(), rules)]).unwrap());
    let channel = serve(Server::builder().add_service(shards.into_server())).await;
    Duels {
        client: MatchmakingClient::new(channel),
        shard,
        _node: node,
        _folder: folder,
    }
}

fn ticket(ticket: u64, player: u64) -> wire::EnqueueRequest {
    wire::EnqueueRequest {
        ticket,
        players: vec![wire::Player {
            id: player,
            latency_ms: [("eu".into(), 20)].into(),
            ..wire::Player::default()
        }],
        ..wire::EnqueueRequest::default()
    }
}

async fn until(
    states: &mut Streaming<wire::TicketState>,
    wanted: impl Fn(&Stage) -> bool,
) -> Stage {
    let next = async {
        loop {
            let state = states.message().await.unwrap().expect("the stream ended");
            if let Some(stage) = state.stage.filter(|stage| wanted(stage)) {
                return stage;
            }
        }
    };
    tokio::time::timeout(LATE, next).await.expect("in time")
}

async fn watch(
    client: &mut MatchmakingClient<Channel>,
    ticket: u64,
) -> Streaming<wire::TicketState> {
    let request = wire::WatchRequest {
        ticket,
        ..wire::WatchRequest::default()
    };
    client.watch(request).await.unwrap().into_inner()
}

fn is_proposed(stage: &Stage) -> bool {
    matches!(stage, Stage::Proposed(_))
}

#[tokio::test]
async fn two_players_are_proposed_confirm_and_are_matched() {
    let Duels {
        mut client,
        shard: _shard,
        _node,
        _folder,
    } = duels().await;
    let state = client.enqueue(ticket(1, 10)).await.unwrap().into_inner();
    assert!(matches!(state.stage, Some(Stage::Waiting(_))), "{state:?}");
    let again = client.enqueue(ticket(1, 10)).await.unwrap().into_inner();
    assert_eq!(again.ticket, 1, "the same ticket");
    refused(
        client.enqueue(ticket(2, 10)).await,
        Code::AlreadyExists,
        "player 10",
    );
    let mut ann = watch(&mut client, 1).await;
    client.enqueue(ticket(2, 20)).await.unwrap();
    let mut ben = watch(&mut client, 2).await;
    for (player, states) in [(10, &mut ann), (20, &mut ben)] {
        let Stage::Proposed(proposed) = until(states, is_proposed).await else {
            unreachable!()
        };
        assert!(proposed.ask && proposed.players == 2, "{proposed:?}");
        let yes = wire::ConfirmRequest {
            r#match: proposed.r#match,
            player,
            ..wire::ConfirmRequest::default()
        };
        client.confirm(yes).await.unwrap();
    }
    let is_matched = |stage: &Stage| matches!(stage, Stage::Matched(_));
    let one = until(&mut ann, is_matched).await;
    assert_eq!(one, until(&mut ben, is_matched).await);
    let Stage::Matched(matched) = one else {
        unreachable!()
    };
    assert_eq!(matched.region, "eu");
    assert!(
        matched.room.starts_with("room-") && matched.teams.len() == 2,
        "{matched:?}"
    );
    assert!((0.0..=1.0).contains(&matched.quality), "{matched:?}");
    assert!(ann.message().await.unwrap().is_none(), "that was the last");

    let by_player = wire::LookRequest {
        of: Some(wire::look_request::Of::Player(20)),
        ..wire::LookRequest::default()
    };
    let known = client.look(by_player).await.unwrap().into_inner();
    assert!(matches!(known.stage, Some(Stage::Matched(_))), "{known:?}");
}

#[tokio::test]
async fn who_refuses_is_out_and_the_other_waits_on() {
    let Duels {
        mut client,
        shard: _shard,
        _node,
        _folder,
    } = duels().await;
    client.enqueue(ticket(1, 10)).await.unwrap();
    client.enqueue(ticket(2, 20)).await.unwrap();
    let (mut ann, mut ben) = (watch(&mut client, 1).await, watch(&mut client, 2).await);
    let Stage::Proposed(proposed) = until(&mut ann, is_proposed).await else {
        unreachable!()
    };
    let no = wire::RefuseRequest {
        r#match: proposed.r#match.clone(),
        player: 10,
        ..wire::RefuseRequest::default()
    };
    client.refuse(no.clone()).await.unwrap();
    let Stage::Gone(gone) = until(&mut ann, |stage| matches!(stage, Stage::Gone(_))).await else {
        unreachable!()
    };
    assert_eq!(
        (gone.why(), gone.r#match),
        (gone::Why::Refused, proposed.r#match)
    );
    until(&mut ben, |stage| matches!(stage, Stage::Waiting(_))).await;
    let leave = wire::CancelRequest {
        ticket: 2,
        ..wire::CancelRequest::default()
    };
    client.cancel(leave).await.unwrap();
    let Stage::Gone(gone) = until(&mut ben, |stage| matches!(stage, Stage::Gone(_))).await else {
        unreachable!()
    };
    assert_eq!(gone.why(), gone::Why::Cancelled);
}

#[tokio::test]
async fn what_a_shard_does_not_take_is_named() {
    let Duels {
        mut client,
        shard,
        _node,
        _folder,
    } = duels().await;
    refused(
        client.enqueue(ticket(0, 1)).await,
        Code::InvalidArgument,
        "ticket:",
    );
    let mut nowhere = ticket(1, 1);
    nowhere.players[0].latency_ms = [("mars".into(), 20)].into();
    refused(client.enqueue(nowhere).await, Code::InvalidArgument, "mars");
    let mut healer = ticket(1, 1);
    healer.players[0].roles = vec!["healer".into()];
    refused(
        client.enqueue(healer).await,
        Code::InvalidArgument,
        "healer",
    );
    let mut unmeasured = ticket(1, 1);
    unmeasured.players[0].latency_ms.clear();
    refused(
        client.enqueue(unmeasured).await,
        Code::InvalidArgument,
        "latency_ms",
    );
    let mut late = ticket(1, 1);
    late.class = 4;
    refused(client.enqueue(late).await, Code::InvalidArgument, "class");
    let mut crowd = ticket(1, 1);
    crowd.players = vec![crowd.players[0].clone(); 17];
    refused(client.enqueue(crowd).await, Code::InvalidArgument, "17");
    let mut elsewhere = ticket(1, 1);
    elsewhere.shard = "raid/eu/v1".into();
    refused(client.enqueue(elsewhere).await, Code::NotFound, "raid");
    let endless = wire::StatusRequest {
        shard: "x".repeat(60_000),
    };
    let nowhere = client.status(endless).await;
    assert!(nowhere.as_ref().unwrap_err().message().len() < 200);
    refused(nowhere, Code::NotFound, "xxxx");
    let unknown = wire::WatchRequest {
        ticket: 77,
        ..wire::WatchRequest::default()
    };
    refused(client.watch(unknown).await, Code::NotFound, "77");
    let wrong = wire::ConfirmRequest {
        r#match: "first".into(),
        player: 1,
        ..wire::ConfirmRequest::default()
    };
    refused(
        client.confirm(wrong.clone()).await,
        Code::InvalidArgument,
        "match",
    );
    let none = wire::ConfirmRequest {
        r#match: "9-9".into(),
        ..wrong
    };
    refused(
        client.confirm(none).await,
        Code::FailedPrecondition,
        "no seat",
    );

    let open = wire::OpenBackfillRequest {
        backfill: 5,
        region: "eu".into(),
        rating: 0.0,
        open: vec![
            wire::OpenSeats {
                any: 1,
                ..wire::OpenSeats::default()
            },
            wire::OpenSeats::default(),
        ],
        room: "room-5".into(),
        ..wire::OpenBackfillRequest::default()
    };
    // The same again is the same offer, whenever it comes.
    for _ in 0..2 {
        let offer = client.open_backfill(open.clone()).await.unwrap();
        assert!(offer.into_inner().offered);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let close = wire::CloseBackfillRequest {
        backfill: 5,
        ..wire::CloseBackfillRequest::default()
    };
    assert!(
        !client
            .close_backfill(close)
            .await
            .unwrap()
            .into_inner()
            .offered
    );

    let status = client
        .status(wire::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(
        status.owner && status.regions == ["eu"] && status.team_size == 1,
        "{status:?}"
    );
    // Whoever watches is told, and doesn't hold up a server that stops.
    client.enqueue(ticket(3, 3)).await.unwrap();
    let mut watching = watch(&mut client, 3).await;
    until(&mut watching, |stage| matches!(stage, Stage::Waiting(_))).await;
    shard.close().await;
    refused(watching.message().await, Code::Unavailable, "changes hands");
    refused(
        client.enqueue(ticket(1, 1)).await,
        Code::Unavailable,
        "own the shard",
    );
}

/// As an interceptor or a sidecar would have found out: players are who the header says, `server` may do more.
fn by_header(caller: &Caller<'_>, act: &Act<'_>) -> Result<(), Status> {
    let who = caller.metadata.get("x-player");
    let who = who.and_then(|who| who.to_str().ok()).unwrap_or_default();
    let is_own = match act {
        Act::Submit { .. } | Act::Backfill { .. } => who == "server",
        Act::Enqueue { players, class, .. } => {
            *class > 0 && players.iter().all(|player| who == player.to_string())
        }
        Act::Player { player, .. } => who == player.to_string(),
        _ => true,
    };
    match is_own {
        true => Ok(()),
        false => Err(Status::permission_denied(format!("{who:?} may not"))),
    }
}

fn by<T>(who: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request
        .metadata_mut()
        .insert("x-player", who.parse().unwrap());
    request
}

#[tokio::test]
async fn who_is_not_let_in_by_the_guard_changes_nothing() {
    let kills = memory("kills", Kind::Sum(Better::Higher), 100);
    let served = Served {
        board: kills.board().clone(),
        scores: Some(kills.clone()),
    };
    let guarded = Boards::try_new([served]).unwrap().guarded(by_header);
    let channel = serve(Server::builder().add_service(guarded.into_server())).await;
    let mut client = LeaderboardClient::new(channel);
    let score = result("kills", "7", 9, "");
    let stranger = client.submit(by("7", score.clone())).await;
    refused(stranger, Code::PermissionDenied, "may not");
    assert!(client.submit(by("server", score)).await.is_ok());
    kills.tick(now_ms());
    let page = wire::PageRequest {
        board: "kills".into(),
        ..wire::PageRequest::default()
    };
    assert_eq!(client.page(page).await.unwrap().into_inner().total, 1);
}

#[tokio::test]
async fn no_call_goes_round_the_guard() {
    let nobody = |_: &Caller<'_>, act: &Act<'_>| Err(Status::permission_denied(format!("{act:?}")));
    let kills = memory("kills", Kind::Sum(Better::Higher), 100);
    let served = Served {
        board: kills.board().clone(),
        scores: Some(kills.clone()),
    };
    let boards = Boards::try_new([served]).unwrap().guarded(nobody);
    let channel = serve(Server::builder().add_service(boards.into_server())).await;
    let mut boards = LeaderboardClient::new(channel);
    let Duels {
        client: mut shard,
        shard: _shard,
        _node,
        _folder,
    } = duels_behind(|shards| shards.guarded(nobody)).await;
    macro_rules! denied {
        ($client:ident: $($call:ident $request:ident $act:literal,)*) => {$(
            let answer = $client.$call(wire::$request::default()).await;
            refused(answer.map(drop), Code::PermissionDenied, $act);
        )*};
    }
    denied! { boards:
        submit SubmitRequest "Submit",
        page PageRequest "Read",
        around AroundRequest "Read",
        rank RankRequest "Read",
        friends FriendsRequest "Read",
    }
    denied! { shard:
        enqueue EnqueueRequest "Enqueue",
        cancel CancelRequest "Ticket",
        look LookRequest "Ticket",
        watch WatchRequest "Ticket",
        confirm ConfirmRequest "Player",
        refuse RefuseRequest "Player",
        open_backfill OpenBackfillRequest "Backfill",
        close_backfill CloseBackfillRequest "Backfill",
        status StatusRequest "Status",
    }
}

#[tokio::test]
async fn a_player_says_yes_for_herself_alone_where_the_guard_says_so() {
    let Duels {
        client: mut shard,
        shard: _shard,
        _node,
        _folder,
    } = duels_behind(|shards| shards.guarded(by_header)).await;
    let mut own = ticket(1, 10);
    own.class = 3;
    let other = shard.enqueue(by("11", own.clone())).await;
    refused(other, Code::PermissionDenied, "may not");
    shard.enqueue(by("10", own)).await.unwrap();
    let mut own = ticket(2, 20);
    own.class = 3;
    shard.enqueue(by("20", own)).await.unwrap();
    let Stage::Proposed(proposed) = until(&mut watch(&mut shard, 1).await, is_proposed).await
    else {
        unreachable!("it was waited for");
    };
    let yes = |player| wire::ConfirmRequest {
        r#match: proposed.r#match.clone(),
        player,
        ..wire::ConfirmRequest::default()
    };
    let other = shard.confirm(by("20", yes(10))).await;
    refused(other, Code::PermissionDenied, "may not");
    for player in [10, 20] {
        let who = player.to_string();
        shard.confirm(by(&who, yes(player))).await.unwrap();
    }
}
