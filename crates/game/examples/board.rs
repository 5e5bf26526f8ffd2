//! A leaderboard through an outage of its store: `cargo run -p phalanx-game --example board`. With an address it serves
//! HTTP until Ctrl-C: `… --example board 127.0.0.1:8080`, then `curl -i http://127.0.0.1:8080/top?limit=3`.

use phalanx_game::board::*;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // 5,000 players, of whom the best 100 are kept; the others are in the sketch.
    let spec = BoardSpec {
        top: 100,
        ..BoardSpec::new("arena", Kind::Best(Better::Higher))
    };
    let board = Arc::new(Board::try_new(spec)?);
    board.publish(refresh(&board, Version::new(1, 1))?)?;
    board.set_store(StoreState::Up);

    if let Some(address) = std::env::args().nth(1) {
        let listener = TcpListener::bind(&address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, Arc::clone(&board)));
        }
    }

    let now = now_ms();
    show(&board, "top", "limit=2", now).await;
    // The store has been away for four seconds: same version, same speed, older.
    board.set_store(StoreState::Open);
    show(&board, "top", "limit=2", now + 4_000).await;
    show(&board, "around/p7", "radius=1", now + 4_000).await;
    // Outside the top, from the score in her profile.
    show(&board, "rank/p4321", "score=995679", now + 4_000).await;
    // Rewards are not paid from an old board.
    show(&board, "top", "require=fresh", now + 4_000).await;

    // A process that starts during the outage.
    let file = std::env::temp_dir().join(format!("phalanx-board-{}", std::process::id()));
    let newest = board.snapshot().ok_or("no snapshot")?;
    persist::save(&file, &newest)?;
    let cold = Board::try_new(board.spec().clone())?;
    cold.restore(&file, now_ms())?;
    std::fs::remove_file(&file)?;
    show(&cold, "top", "limit=1", now + 9_000).await;
    Ok(())
}

/// What a refresher does with what its store says (the Redis half of this module does it for you).
fn refresh(board: &Board, version: Version) -> Result<Snapshot, Box<dyn std::error::Error>> {
    let (law, now) = (board.law(), now_ms());
    let member = |at: i64| law.order(1_000_000 - at, now - 60_000);
    let mut builder = Builder::new(board.spec(), law, version, now);
    let mut at = 0;
    while at < 5_000 && builder.push(&format!("p{at}"), member(at)?)? {
        at += 1;
    }
    let mut pivots = Vec::new();
    for place in Sketch::ladder(builder.len() as u64, 5_000) {
        pivots.push(sketch::Pivot {
            place,
            order: member(place as i64 - 1)?,
        });
    }
    Ok(builder
        .total(5_000)
        .sketch(Sketch::new(pivots, now))
        .build()?)
}

async fn show(board: &Board, path: &str, query: &str, now: u64) {
    let answer = board
        .answer(
            Request {
                path,
                query,
                if_none_match: None,
            },
            now,
        )
        .await;
    println!("GET /{path}?{query}\n{}", answer.status);
    for (name, value) in &answer.headers {
        println!("{name}: {value}");
    }
    println!("{}\n", String::from_utf8_lossy(&answer.body));
}

/// One request per connection: a service would put [`Board::answer`] into its own framework's handler.
async fn serve(mut stream: TcpStream, board: Arc<Board>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).await?;
    let target = line
        .split(' ')
        .nth(1)
        .unwrap_or("/")
        .trim_start_matches('/');
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let answer = board
        .answer(
            Request {
                path,
                query,
                if_none_match: None,
            },
            now_ms(),
        )
        .await;
    let mut head = format!("HTTP/1.1 {} \r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&answer.body).await
}
