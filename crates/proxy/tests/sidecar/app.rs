//! An application: answers HTTP/1.1 with its name, `/slow` only when it is let; dies with all of its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

pub struct App {
    runtime: Option<Runtime>,
    pub address: SocketAddr,
    /// One permit lets one `/slow` request go on.
    pub slow: Arc<Semaphore>,
    /// Requests for `/slow` that have arrived.
    pub waiting: Arc<Semaphore>,
}

impl App {
    pub fn start(address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (slow, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let gates = (slow.clone(), waiting.clone());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, gates.clone()));
            }
        });
        Self {
            runtime: Some(runtime),
            address,
            slow,
            waiting,
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread that may wait: when this returns, every socket is closed.
            let ended =
                std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10)));
            ended.join().unwrap();
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    (slow, waiting): (Arc<Semaphore>, Arc<Semaphore>),
) -> Option<()> {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        if text.starts_with("GET /close") {
            return None;
        }
        if text.starts_with("GET /slow") {
            waiting.add_permits(1);
            slow.acquire().await.ok()?.forget();
        }
        let traced = text
            .lines()
            .any(|line| line.to_ascii_lowercase().starts_with("traceparent: 00-"));
        let body = format!("hello traced={traced}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}
