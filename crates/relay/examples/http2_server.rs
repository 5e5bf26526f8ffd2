//! A server that sends back what it is sent, for h2spec, h2load and curl to try.
//! `cargo run -p phalanx-relay --example http2_server -- 127.0.0.1:8080`

#[path = "../tests/http2/drive.rs"]
#[allow(dead_code)]
mod drive;

use std::sync::Arc;

use phalanx_relay::Limits;
use phalanx_relay::http2::Config;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let config = Arc::new(Config::server(Limits::default()));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let config = config.clone();
        tokio::spawn(async move {
            if let Some(broken) = drive::echo(stream, &config).await.broken {
                eprintln!("{broken}");
            }
        });
    }
}
