//! The whole game in one process and without a mesh: one router stands for all sidecars.

mod killed;
mod redis;
mod router;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arena::bots::{self, BotConfig};
use arena::call::{Call, HttpClient};
use arena::carry::Carried;
use arena::gateway::message::{ClientMessage, Login, Played, Problem, ServerMessage, Welcome};
use arena::leaderboard::{MatchScores, Recorded, Score, Top};
use arena::proto::arena::v1::{FightRequest, Fighter, PlayRequest};
use arena::proto::grpc::health::v1::HealthCheckRequest;
use arena::proto::grpc::health::v1::health_client::HealthClient;
use arena::{ServiceConfig, battle, call, gateway, leaderboard, matchmaker, physics};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::header::HeaderMap;
use hyper::{Method, Response};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

struct Game {
    gateway: SocketAddr,
    outbound: SocketAddr,
    battles: Vec<SocketAddr>,
    seen: router::Seen,
    names: router::Addresses,
    stop: watch::Sender<bool>,
    services: JoinSet<anyhow::Result<()>>,
    _folder: TempDir,
}

/// All services; `missing` has a process but no name.
async fn start(missing: Option<&str>) -> Game {
    start_at(bind().await, tempfile::tempdir().unwrap(), missing, None).await
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// The same behind `front`, with one matchmaker of its own or with those that run elsewhere.
async fn start_at(
    front: TcpListener,
    folder: TempDir,
    missing: Option<&str>,
    matchmakers: Option<Vec<SocketAddr>>,
) -> Game {
    let outbound = front.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut services = JoinSet::new();
    let mut names = HashMap::<_, Vec<_>>::new();
    macro_rules! service {
        ($service:ident, $version:literal) => {{
            let listener = bind().await;
            let listen = listener.local_addr().unwrap();
            let config = ServiceConfig {
                folder: Some(folder.path().to_owned()),
                ..ServiceConfig::new(listen, outbound, $version)
            };
            let mut stopped = stopped.clone();
            let shutdown = async move { _ = stopped.wait_for(|stopped| *stopped).await };
            services.spawn($service::serve(listener, config, shutdown));
            if missing != Some($service::NAME) {
                names.entry($service::NAME).or_default().push(listen);
            }
            listen
        }};
    }
    let gateway = service!(gateway, "v1");
    match matchmakers {
        Some(elsewhere) => _ = names.insert(matchmaker::NAME, elsewhere),
        None => {
            let here = service!(matchmaker, "v1");
            let serves = async || is_serving(here).await.then_some(());
            until("the matchmaker to own its queue", serves).await;
        }
    }
    let battles = vec![service!(battle, "v1"), service!(battle, "v2")];
    service!(physics, "v1");
    service!(leaderboard, "v1");
    let names = Arc::new(Mutex::new(names));
    let seen = router::spawn(front, names.clone());
    Game {
        gateway,
        outbound,
        battles,
        seen,
        names,
        stop,
        services,
        _folder: folder,
    }
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_serving(matchmaker: SocketAddr) -> bool {
    let mut health = HealthClient::new(call::grpc(matchmaker, matchmaker::NAME).unwrap());
    let answer = health.check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| answer.into_inner().status == 1)
}

async fn metric(client: &HttpClient, family: &str) -> Option<f64> {
    let answer = client.send(call(Method::GET, "/metrics", "", &[])).await;
    let text = String::from_utf8(answer.ok()?.body().to_vec()).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(family));
    lines.next()?.rsplit(' ').next()?.parse().ok()
}

impl Game {
    fn player(&self) -> HttpClient {
        HttpClient::new(self.gateway, gateway::NAME)
    }

    fn paths(&self, authority: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|(name, ..)| name == authority)
            .map(|(_, path, _)| path.clone())
            .collect()
    }
}

fn call(
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
    headers: &[(&'static str, &str)],
) -> Call {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    let (path, body) = (path.to_string(), body.into());
    Call {
        method,
        path,
        headers: map,
        body,
        repeatable: false,
        deadline: Duration::from_secs(20),
    }
}

fn json<T: serde::de::DeserializeOwned>(answer: &Response<Bytes>) -> T {
    serde_json::from_slice(answer.body())
        .unwrap_or_else(|error| panic!("{error}: {:?}", answer.body()))
}

async fn login(player: &HttpClient) -> String {
    login_as(player, "ann").await
}

async fn login_as(player: &HttpClient, name: &str) -> String {
    let body = format!(r#"{{"player":"{name}"}}"#);
    let answer = player
        .send(call(Method::POST, "/login", body, &[]))
        .await
        .unwrap();
    format!("Bearer {}", json::<Welcome>(&answer).session)
}

/// A play whose player waits for another one.
async fn play_as(game: &Game, name: &str) -> Played {
    let player = game.player();
    let session = login_as(&player, name).await;
    let headers = [("authorization", session.as_str())];
    let play = call(Method::POST, "/play?wait_ms=20000", "", &headers);
    let play = Call {
        deadline: Duration::from_secs(60),
        ..play
    };
    let answer = player.send(play).await.unwrap();
    assert_eq!(answer.status(), 200, "{name}: {:?}", answer.body());
    json(&answer)
}

#[tokio::test]
async fn one_action_crosses_all_services_and_its_headers_go_with_it() {
    let game = start(None).await;
    let player = game.player();
    let session = login(&player).await;
    let headers = [
        ("authorization", session.as_str()),
        ("traceparent", "00-11-22-01"),
        ("x-env", "blue"),
    ];
    let answer = player
        .send(call(Method::POST, "/play", "", &headers))
        .await
        .unwrap();
    let played: Played = json(&answer);
    assert!(
        played.house && played.rounds > 0 && played.rating != 1000,
        "{played:?}"
    );

    for (service, path) in [
        ("match", "/arena.v1.Matchmaker/Play"),
        ("battle", "/arena.v1.Battle/Fight"),
        ("physics", "/arena.v1.Physics/Simulate"),
        ("leaderboard", "/scores"),
    ] {
        let seen = game.seen.lock().unwrap();
        let calls: Vec<_> = seen.iter().filter(|(name, ..)| name == service).collect();
        assert_eq!(calls.len(), 1, "{service}");
        let (_, called, headers) = calls[0];
        assert_eq!(called, path);
        assert_eq!(headers.get("traceparent").unwrap(), "00-11-22-01");
        assert_eq!(headers.get("x-env").unwrap(), "blue");
        assert!(session.ends_with(headers.get("x-game-session").unwrap().to_str().unwrap()));
        assert!(!headers.contains_key("authorization"));
    }
    let board: Top = json(
        &player
            .send(call(Method::GET, "/leaderboard", "", &[]))
            .await
            .unwrap(),
    );
    assert_eq!(
        (board.top[0].player.as_str(), board.top[0].rating),
        ("ann", played.rating)
    );
}

#[tokio::test]
async fn two_hundred_actions_of_the_bots_have_no_failure() {
    let game = start(None).await;
    let config = BotConfig {
        gateway: vec![game.gateway],
        bots: 20,
        rate: 100.0,
        duration: None,
        edge: None,
    };
    let count = |name, path: &str| {
        game.paths(name)
            .iter()
            .filter(|p| p.ends_with(path))
            .count()
    };
    let enough = async {
        let deadline = Instant::now() + Duration::from_secs(60);
        let begun = || count("match", "") + count("battle", "/Spar") + count("leaderboard", "/top");
        while Instant::now() < deadline && (begun() < 200 || count("battle", "/Spar") == 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let summary = bots::run(config, enough).await;
    assert_eq!(summary.failed, 0, "{:?}", summary.failures);
    assert!(summary.actions >= 200, "{summary:?}");
    assert_eq!(summary.logins, 20);
    let fights = count("battle", "/Fight") + count("battle", "/Watch");
    assert_eq!(fights as u64, summary.plays, "two players fight two legs");
    assert!(
        summary.live_plays > 0 && summary.trainings > 0 && summary.boards > 0,
        "{summary:?}"
    );
    assert_eq!(summary.versions.keys().collect::<Vec<_>>(), ["v1", "v2"]);
    assert_eq!(
        summary.versions.values().sum::<u64>(),
        summary.plays + summary.trainings
    );
    let text = serde_json::to_string(&summary).unwrap();
    assert_eq!(
        serde_json::from_str::<bots::BotSummary>(&text)
            .unwrap()
            .actions,
        summary.actions
    );
}

#[tokio::test]
async fn the_same_match_has_the_same_result_and_the_versions_differ() {
    let game = start(None).await;
    let fighter = |player: &str, rating| {
        Some(Fighter {
            player: player.into(),
            rating,
        })
    };
    let (left, right) = (fighter("ann", 1000), fighter("bob", 1040));
    let request = FightRequest {
        match_id: "m-1".into(),
        left,
        right,
    };
    let mut results = Vec::new();
    for address in &game.battles {
        let mut client = battle::client(*address).unwrap();
        let first = client.fight(request.clone()).await.unwrap().into_inner();
        let second = client.fight(request.clone()).await.unwrap().into_inner();
        assert_eq!(first, second);
        let watched: Vec<_> = client
            .watch(request.clone())
            .await
            .unwrap()
            .into_inner()
            .collect()
            .await;
        assert_eq!(watched.len(), first.rounds.len() + 1);
        results.push(first);
    }
    assert_eq!(
        (results[0].version.as_str(), results[1].version.as_str()),
        ("v1", "v2")
    );
    assert_ne!(results[0].rules, results[1].rules);
    assert_ne!(results[0].rounds, results[1].rounds);
}

#[tokio::test]
async fn a_match_over_a_websocket_is_told_round_by_round() {
    let game = start(None).await;
    let stream = TcpStream::connect(game.gateway).await.unwrap();
    let (mut socket, _) = client_async("ws://gateway/ws", stream).await.unwrap();
    let mut talk = async |message: ClientMessage| {
        socket
            .send(Message::text(serde_json::to_string(&message).unwrap()))
            .await
            .unwrap();
        let mut heard = Vec::<ServerMessage>::new();
        while !heard.last().is_some_and(ServerMessage::is_last) {
            let said = socket.next().await.unwrap().unwrap();
            heard.push(serde_json::from_str(said.to_text().unwrap()).unwrap());
        }
        heard
    };
    let refused = talk(ClientMessage::Play { wait_ms: 0 }).await;
    assert!(
        matches!(
            &refused[..],
            [ServerMessage::Error(Problem { status: 401, .. })]
        ),
        "{refused:?}"
    );
    talk(ClientMessage::Login(Login {
        player: "ann".into(),
    }))
    .await;

    let heard = talk(ClientMessage::Play { wait_ms: 0 }).await;
    assert!(
        matches!(
            heard.first(),
            Some(ServerMessage::Proposal { house: true, .. })
        ),
        "{heard:?}"
    );
    let Some(ServerMessage::Played(played)) = heard.last() else {
        panic!("{heard:?}")
    };
    assert_eq!(played.rounds as usize, heard.len() - 2);

    let heard = talk(ClientMessage::Spar {
        thrusts: vec![(8000, 0); 5],
    })
    .await;
    assert!(
        matches!(heard.last(), Some(ServerMessage::Spared { moves: 5, .. })),
        "{heard:?}"
    );
    assert_eq!(heard.len(), 6);
    assert_eq!(
        game.paths("battle"),
        ["/arena.v1.Battle/Watch", "/arena.v1.Battle/Spar"]
    );
}

#[tokio::test]
async fn a_training_without_moves_ends_when_the_callers_time_is_up() {
    let game = start(None).await;
    let mut client = battle::client(game.outbound).unwrap();
    let mut ended = async || {
        let moves = futures_util::stream::pending();
        let request = Carried::default().request(moves, Duration::from_secs(1));
        // An error: the machine took longer than that to begin.
        let mut answers = client.spar(request).await.ok()?.into_inner();
        Some(answers.message().await.unwrap_err().code())
    };
    let soon = async {
        loop {
            if let Some(code) = ended().await {
                return code;
            }
        }
    };
    let code = tokio::time::timeout(Duration::from_secs(60), soon).await;
    assert_eq!(code.unwrap(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn players_of_one_rating_meet_each_other_and_agree_on_the_result() {
    let game = start(None).await;
    let (ann, bob) = tokio::join!(play_as(&game, "ann"), play_as(&game, "bob"));
    assert_eq!(ann.match_id, bob.match_id);
    assert_eq!(
        (ann.opponent.as_str(), bob.opponent.as_str()),
        ("bob", "ann")
    );
    assert_eq!((ann.legs, bob.legs), (2, 2));
    assert!(
        ann.won != bob.won && ann.rating + bob.rating == 2000,
        "{ann:?} {bob:?}"
    );
}

#[tokio::test]
async fn players_of_a_lane_meet_nobody_from_outside_of_it() {
    let game = start(None).await;
    let client = matchmaker::client(game.outbound).unwrap();
    let play = |player: &str, colour: Option<&'static str>| {
        let mut request = tonic::Request::new(PlayRequest {
            player: player.into(),
            rating: 1000,
            ticket: 0,
            wait_ms: 20_000,
        });
        if let Some(colour) = colour {
            let colour = tonic::metadata::AsciiMetadataValue::from_static(colour);
            request.metadata_mut().insert("x-env", colour);
        }
        let mut client = client.clone();
        async move { client.play(request).await.unwrap().into_inner() }
    };
    let (ann, ben, cat, dan) = tokio::join!(
        play("ann", None),
        play("ben", Some("blue")),
        play("cat", Some("blue")),
        play("dan", None),
    );
    let met = [&ann, &ben, &cat, &dan].map(|reply| reply.opponent.clone().unwrap().player);
    assert_eq!(met, ["dan", "cat", "ben", "ann"]);
}

#[tokio::test]
async fn who_asks_again_with_the_same_ticket_plays_once() {
    let game = start(None).await;
    let mut client = matchmaker::client(game.outbound).unwrap();
    let request = PlayRequest {
        player: "ann".into(),
        rating: 1000,
        ticket: 77,
        wait_ms: 1,
    };
    let first = client.play(request.clone()).await.unwrap().into_inner();
    let again = client.play(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let told = client.play_live(request.clone()).await.unwrap();
    let told: Vec<_> = told.into_inner().collect().await;
    assert_eq!(told.len(), first.rounds as usize + 2, "from the beginning");
    assert_eq!(game.paths("battle").len(), 1);
    let other = PlayRequest {
        player: "eve".into(),
        ..request
    };
    let refused = client.play(other).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.metadata().contains_key(matchmaker::SETTLED));
}

#[tokio::test]
async fn a_player_who_hangs_up_is_met_by_nobody() {
    let game = start(None).await;
    let mut client = matchmaker::client(game.outbound).unwrap();
    let gone = PlayRequest {
        player: "gone".into(),
        rating: 1000,
        ticket: 5,
        wait_ms: 20_000,
    };
    let waiting = async |count: f64| {
        until("the queue to be so long", async || {
            let client = HttpClient::new(game.outbound, matchmaker::NAME);
            let now = metric(&client, "arena_players_waiting").await?;
            (now == count).then_some(())
        })
        .await;
    };
    let call = tokio::spawn(async move { client.play(gone).await });
    waiting(1.0).await;
    call.abort();
    waiting(0.0).await;
    let (ann, bob) = tokio::join!(play_as(&game, "ann"), play_as(&game, "bob"));
    assert_eq!((ann.opponent, bob.opponent), ("bob".into(), "ann".into()));
}

#[tokio::test]
async fn a_score_counts_once_however_often_it_comes() {
    let game = start(None).await;
    let board = HttpClient::new(game.outbound, leaderboard::NAME);
    let score = Score {
        player: "ann".into(),
        rating: 1016,
        won: true,
    };
    let body = serde_json::to_vec(&MatchScores {
        match_id: "m-1".into(),
        scores: vec![score],
    })
    .unwrap();
    for recorded in [true, false] {
        let answer = board
            .send(call(Method::POST, "/scores", body.clone(), &[]))
            .await
            .unwrap();
        assert_eq!(json::<Recorded>(&answer), Recorded { recorded });
    }
}

#[tokio::test]
async fn the_board_says_how_old_it_is_and_is_not_sent_again_to_who_has_it() {
    let game = start(None).await;
    let player = game.player();
    let header = |answer: &Response<Bytes>, name: &str| {
        let value = answer
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned());
        value.unwrap_or_else(|| panic!("no {name} in {:?}", answer.headers()))
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = player.send(call(Method::GET, "/leaderboard?n=5", "", &[]));
        let answer = asked.await.unwrap();
        assert!(header(&answer, "age").parse::<u64>().is_ok());
        assert!(header(&answer, "cache-status").starts_with("phalanx-board; hit; ttl="));
        // On a machine that stands still for a second it is stale for a moment.
        if header(&answer, "x-cache") == "HIT" {
            break;
        }
        assert!(Instant::now() < deadline, "stale for 30 s");
    }

    // Between two changes the version stays, however old it is told to be.
    let board = HttpClient::new(game.outbound, leaderboard::NAME);
    let first = board
        .send(call(Method::GET, "/top?n=5", "", &[]))
        .await
        .unwrap();
    let etag = header(&first, "etag");
    let again = call(
        Method::GET,
        "/top?n=5",
        "",
        &[("if-none-match", etag.as_str())],
    );
    let again = board.send(again).await.unwrap();
    assert_eq!(
        (again.status().as_u16(), header(&again, "etag")),
        (304, etag)
    );
}

#[tokio::test]
async fn services_tell_what_they_count() {
    let game = start(None).await;
    let player = game.player();
    let session = login(&player).await;
    let headers = [("authorization", session.as_str())];
    player
        .send(call(Method::POST, "/play", "", &headers))
        .await
        .unwrap();
    for (service, families) in [
        (
            "match",
            &[
                "match_request_queue_length{",
                "avg_match_latency_ms{",
                "match_workers{",
            ][..],
        ),
        ("battle", &["phalanx_battle_"]),
        (
            "leaderboard",
            &["board_reads_total{", "board_snapshot_bytes{"],
        ),
    ] {
        let client = HttpClient::new(game.outbound, service);
        let answer = client
            .send(call(Method::GET, "/metrics", "", &[]))
            .await
            .unwrap();
        let text = String::from_utf8(answer.body().to_vec()).unwrap();
        for family in families {
            assert!(
                text.contains(family),
                "{service} does not tell {family}:\n{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_player_whose_connection_broke_is_back_in_the_same_session_once() {
    let game = start(None).await;
    let welcome = async |message: ClientMessage| {
        let stream = TcpStream::connect(game.gateway).await.unwrap();
        let (mut socket, _) = client_async("ws://gateway/ws", stream).await.unwrap();
        let text = serde_json::to_string(&message).unwrap();
        socket.send(Message::text(text)).await.unwrap();
        let said = socket.next().await.unwrap().unwrap();
        let heard: ServerMessage = serde_json::from_str(said.to_text().unwrap()).unwrap();
        (socket, heard)
    };
    let login = ClientMessage::Login(Login {
        player: "ann".into(),
    });
    let (mut first, ServerMessage::Welcome(ann)) = welcome(login).await else {
        panic!("not welcome")
    };
    let token = ann.resume.expect("a token");
    let resume = || ClientMessage::Resume {
        token: token.clone(),
    };
    // The old connection seems to be open still: it is replaced.
    let (_second, ServerMessage::Welcome(back)) = welcome(resume()).await else {
        panic!("not back")
    };
    assert_eq!((back.player, back.session), (ann.player, ann.session));
    assert_ne!(back.resume.as_ref(), Some(&token));
    let bye = tokio::time::timeout(Duration::from_secs(20), first.next()).await;
    assert!(matches!(bye, Ok(Some(Ok(Message::Close(_))))), "{bye:?}");
    let (_third, heard) = welcome(resume()).await;
    assert!(
        matches!(&heard, ServerMessage::Error(Problem { status: 401, .. })),
        "{heard:?}"
    );
}

#[tokio::test]
async fn why_the_mesh_refused_a_call_deep_inside_is_told_to_the_player() {
    for missing in ["leaderboard", "physics"] {
        let game = start(Some(missing)).await;
        let player = game.player();
        let session = login(&player).await;
        let headers = [("authorization", session.as_str())];
        let answer = player
            .send(call(Method::POST, "/play", "", &headers))
            .await
            .unwrap();
        let problem: Problem = json(&answer);
        assert!(problem.error.contains(missing), "{problem:?}");
        assert_eq!(problem.reason.as_deref(), Some("no_route"), "{problem:?}");
        assert_eq!(answer.headers()["x-phalanx-reason"], "no_route");
    }
}

#[tokio::test]
async fn every_service_says_that_it_is_healthy() {
    let game = start(None).await;
    for service in ["match", "battle", "physics"] {
        let mut health = HealthClient::new(call::grpc(game.outbound, service).unwrap());
        let mut states = health
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            states.message().await.unwrap().unwrap().status,
            1,
            "{service}"
        );
        let answer = health.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{service}");
    }
    for address in [game.gateway, game.outbound] {
        let answer = HttpClient::new(address, leaderboard::NAME)
            .send(call(Method::GET, "/healthz", "", &[]))
            .await;
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way() {
    let mut game = start(None).await;
    // An idle WebSocket doesn't hold up the stop.
    let stream = TcpStream::connect(game.gateway).await.unwrap();
    let (mut socket, _) = client_async("ws://gateway/ws", stream).await.unwrap();
    let player = game.player();
    let session = login(&player).await;
    let headers = [("authorization", session.as_str())];
    let playing = player.send(call(Method::POST, "/play", "", &headers));
    let stopping = async {
        while game.paths("match").is_empty() {
            tokio::task::yield_now().await;
        }
        game.stop.send_replace(true);
    };
    let (played, ()) = tokio::join!(playing, stopping);
    // The call to a service that stops at the same time may be refused; what the gateway began it answers.
    assert!(played.is_ok(), "{played:?}");
    let bye = tokio::time::timeout(Duration::from_secs(20), socket.next())
        .await
        .unwrap();
    assert!(matches!(bye, Some(Ok(Message::Close(Some(_))))), "{bye:?}");
    drop((socket, player));
    let all_stopped = async {
        while let Some(ended) = game.services.join_next().await {
            ended.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(40), all_stopped)
        .await
        .unwrap();
}

#[tokio::test]
async fn calls_carry_a_request_made_by_hand() {
    let game = start(None).await;
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "room=7".parse().unwrap());
    let carried = Carried::from_headers(&headers);
    let mut client = matchmaker::client(game.outbound).unwrap();
    let request = PlayRequest {
        player: "eve".into(),
        rating: u32::MAX,
        ..Default::default()
    };
    let reply = client
        .play(carried.request(request, Duration::from_secs(20)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        reply.opponent.unwrap().player,
        "house-legend",
        "a rating from outside is bounded"
    );
    let seen = game.seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|(_, _, headers)| headers["baggage"] == "room=7")
    );
}
