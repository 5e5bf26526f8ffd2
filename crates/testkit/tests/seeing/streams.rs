//! Messages and bytes are counted while a stream is open, not at its end.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use phalanx_testkit::mesh::Mesh;
use phalanx_testkit::{address, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{LIMIT, metric};

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: game}
spec:
  selector: {app: game}
  ports: [{name: grpc, port: 80, appProtocol: grpc}]
---
apiVersion: v1
kind: Service
metadata: {name: chat}
spec:
  selector: {app: chat}
  ports: [{name: http, port: 80, appProtocol: http}]
"#;

async fn reaches(
    admin: SocketAddr,
    name: &str,
    labels: &[&str],
    wanted: f64,
) -> anyhow::Result<()> {
    eventually(&format!("{name} to be {wanted}"), LIMIT, async || {
        let value = metric(admin, name, labels).await.ok()?;
        (value == wanted).then_some(())
    })
    .await
}

#[tokio::test]
async fn grpc_messages_are_counted_while_the_call_is_open() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let game = mesh.instance("game", "v1", "game").await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    mesh.apply(MANIFESTS).await?;
    let stream = TcpStream::connect(caller.outbound).await?;
    let (mut client, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post("http://game/arena.v1.Battle/Fight")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut sender) = client.send_request(request, false)?;
    let message = |length: u32| {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.resize(5 + length as usize, 7);
        bytes
    };
    // Two at once, and one in two pieces.
    sender.send_data(Bytes::from([message(3), message(0)].concat()), false)?;
    let labels = [
        "reporter=\"source\"",
        "destination_service_name=\"game\"",
        "request_protocol=\"grpc\"",
    ];
    let requests = "istio_request_messages_total";
    reaches(caller.admin, requests, &labels, 2.0).await?;
    let third = message(100);
    sender.send_data(Bytes::copy_from_slice(&third[..50]), false)?;
    sender.send_data(Bytes::copy_from_slice(&third[50..]), false)?;
    reaches(caller.admin, requests, &labels, 3.0).await?;
    let bytes = "phalanx_stream_request_bytes_total";
    reaches(caller.admin, bytes, &labels, (8 + 5 + 105).into()).await?;
    let inbound = ["reporter=\"destination\"", "request_protocol=\"grpc\""];
    reaches(game.admin, requests, &inbound, 3.0).await?;
    assert_eq!(
        metric(caller.admin, "istio_response_messages_total", &labels).await?,
        0.0
    );
    sender.send_data(Bytes::new(), true)?;
    let mut body = answer.await?.into_body();
    while let Some(chunk) = body.data().await {
        body.flow_control().release_capacity(chunk?.len())?;
    }
    reaches(caller.admin, "istio_response_messages_total", &labels, 1.0).await?;
    driver.abort();
    Ok(())
}

/// Answers one WebSocket with what it says.
async fn socket_app(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut seen = vec![0; 4096];
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut seen).await {
                    Ok(read @ 1..) => head.extend_from_slice(&seen[..read]),
                    _ => return,
                }
            }
            let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            if stream.write_all(switch.as_bytes()).await.is_err() {
                return;
            }
            while let Ok(read @ 1..) = stream.read(&mut seen).await {
                if stream.write_all(&seen[..read]).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn messages_of_a_websocket_are_counted_while_it_is_open() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let ip = address::fresh();
    let app = SocketAddr::new(ip, 8080);
    let served = tokio::spawn(socket_app(TcpListener::bind(app).await?));
    let _sidecar = mesh.sidecar("chat", "v1", ip, &["--app", &app.to_string()])?;
    mesh.registered("chat", SocketAddr::new(ip, 15006)).await?;
    let caller = mesh.instance("caller", "v1", "caller").await?;
    mesh.apply(MANIFESTS).await?;
    let mut stream = TcpStream::connect(caller.outbound).await?;
    let head = "GET /ws HTTP/1.1\r\nhost: chat\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut seen = vec![0; 4096];
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut seen).await?;
        anyhow::ensure!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&seen[..read]);
    }
    anyhow::ensure!(
        answer.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // A text of five, a ping, a binary of 200 in two frames.
    let mut frames = vec![0x81, 5];
    frames.extend_from_slice(b"hello");
    frames.extend_from_slice(&[0x89, 0]);
    frames.extend_from_slice(&[0x02, 100]);
    frames.extend_from_slice(&[1; 100]);
    frames.extend_from_slice(&[0x80, 100]);
    frames.extend_from_slice(&[2; 100]);
    stream.write_all(&frames).await?;
    let mut echoed = 0;
    while echoed < frames.len() {
        echoed += stream.read(&mut seen).await?;
    }
    let labels = ["reporter=\"source\"", "destination_service_name=\"chat\""];
    reaches(caller.admin, "istio_request_messages_total", &labels, 2.0).await?;
    reaches(caller.admin, "istio_response_messages_total", &labels, 2.0).await?;
    let bytes = "phalanx_stream_response_bytes_total";
    reaches(caller.admin, bytes, &labels, frames.len() as f64).await?;
    drop(stream);
    served.abort();
    Ok(())
}
