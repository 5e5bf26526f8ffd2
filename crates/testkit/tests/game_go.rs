//! The example client in Go against the kit's services: what a studio sees who writes in another language.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use phalanx_game::board::memory::{Memory, MemoryOptions};
use phalanx_game::board::{Better, Board, BoardSpec, Kind};
use phalanx_game::grpc::{Boards, Served, Shards};
use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, LocalLease, Node, NodeConfig, Role, RulesSpec,
    Seal, ShardConfig,
};
use phalanx_testkit::eventually;
use phalanx_testkit::process::Process;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// On a machine that is ten times slower.
const PLAYED: Duration = Duration::from_secs(90);

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

#[tokio::test]
async fn a_client_in_go_submits_reads_queues_and_is_matched() -> anyhow::Result<()> {
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/tools/game-go-client"
    );
    anyhow::ensure!(
        Path::new(program).is_file(),
        "{program} is not built; run `cargo xtask setup`"
    );
    let folder = tempfile::tempdir()?;

    let season = BoardSpec::new("season", Kind::Best(Better::Higher));
    let board = Arc::new(Board::try_new(season)?);
    let memory = Memory::attach(board.clone(), MemoryOptions::default());
    tokio::spawn(memory.clone().run());
    let scores = Some(memory as _);
    let boards = Boards::try_new([Served { board, scores }])?;

    let node = Node::start(NodeConfig {
        listen: "127.0.0.1:0".parse()?,
        advertise: None,
        seal: Seal::none(),
    })
    .await?;
    let rules = Arc::new(RulesSpec::simple(2, 1, "eu-west", 80).check()?);
    let lease = LocalLease::try_new(folder.path().join("lease"))?;
    let config = ShardConfig::new(
        "duel/eu/v1".parse()?,
        folder.path().join("log"),
        lease,
        rules.clone(),
    );
    let shard = node.open(config, Rooms)?;
    assert!(matches!(shard.owned().await, Role::Owner { .. }));
    let shards = Shards::try_new([(shard, rules)])?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = Server::builder()
        .add_service(boards.into_server())
        .add_service(shards.into_server())
        .serve_with_incoming(TcpIncoming::from(listener));
    let serving = tokio::spawn(serving);

    let mut command = Command::new(program);
    command.args(["-server", &address.to_string()]);
    let mut client = Process::spawn(command, &folder.path().join("client.log"))?;
    let ended = async || client.has_ended().then_some(());
    eventually("the client's end", PLAYED, ended)
        .await
        .with_context(|| "the client is still there".to_string())?;
    let said = client.log();
    for expected in [
        "one of them again: counted=false",
        "   1  player-00  100\n",
        "12 rows of one version",
        "player-11: place 12 to 12 by SOURCE_TOP",
        "of three friends player-03 is the best",
        "a match is proposed; yes",
        "both are in match 1-1, in eu-west, at room-1-1",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    serving.abort();
    Ok(())
}
