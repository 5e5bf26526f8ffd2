//! Boards and matchmaking for clients in other languages: a board in memory and a shard of 1 against 1, over gRPC, until
//! Ctrl-C. `cargo run -p phalanx-game --features grpc --example grpc`, then `examples/go-client`.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_game::board::memory::{Memory, MemoryOptions};
use phalanx_game::board::{Better, Board, BoardSpec, Kind};
use phalanx_game::grpc::{Boards, Served, Shards};
use phalanx_game::matchmaking::{
    AllocateError, Allocates, Allocation, Allocator, LocalLease, Node, NodeConfig, RulesSpec, Seal,
    ShardConfig,
};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// A room for every match, without asking anybody.
struct Rooms;

impl Allocator for Rooms {
    fn allocate<'a>(
        &'a self,
        wanted: &'a Allocation,
    ) -> Allocates<'a, Result<String, AllocateError>> {
        let room = format!("room-{}.example.com:7777", wanted.id);
        Box::pin(std::future::ready(Ok(room)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:7450".into());
    let address: SocketAddr = address.parse()?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| format!("{address}: {error}"))?;

    let season = BoardSpec::new("season", Kind::Best(Better::Higher));
    let board = Arc::new(Board::try_new(season)?);
    let memory = Memory::attach(board.clone(), MemoryOptions::default());
    tokio::spawn(memory.clone().run());
    let scores = Some(memory as _);
    let boards = Boards::try_new([Served { board, scores }])?;

    // A real shard keeps its log on a disk that outlives it, and has a standby.
    let folder = std::env::temp_dir().join(format!("phalanx-game-{}", std::process::id()));
    let node = Node::start(NodeConfig {
        listen: "127.0.0.1:0".parse()?,
        advertise: None,
        seal: Seal::none(),
    })
    .await?;
    let rules = Arc::new(RulesSpec::simple(2, 1, "eu-west", 80).check()?);
    let lease = LocalLease::try_new(folder.join("lease"))?;
    let key = "duel/eu/v1".parse()?;
    let config = ShardConfig::new(key, folder.join("log"), lease, rules.clone());
    let shard = node.open(config, Rooms)?;
    println!("shard {}: {:?}", shard.key(), shard.owned().await);
    let shards = Shards::try_new([(shard.clone(), rules)])?;

    println!("serving phalanx.game.v1 on {address}");
    let serving = Server::builder()
        .add_service(boards.into_server())
        .add_service(shards.into_server())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
            let _ = tokio::signal::ctrl_c().await;
            // Ends the watches, for which the server would wait.
            shard.close().await;
        });
    serving.await?;
    drop(node);
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
