//! Which instance this process' sidecar has registered, by the sidecar's own word: its admin address is a loopback one on
//! every machine, so that the registry can't tell whose it is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use phalanx_model::ServiceName;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::debug;

const LOOK_AGAIN: Duration = Duration::from_millis(200);
const ANSWER_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Of its `/config_dump`.
#[derive(Deserialize)]
struct Said {
    /// namespace/service/id
    node: String,
    registration: Option<String>,
}

/// Waits at most `within` until the sidecar there says that an instance of `service` is registered, and which. Else what was
/// heard last.
pub async fn id(
    service: &ServiceName,
    admin: SocketAddr,
    within: Duration,
) -> Result<String, String> {
    let mut why = format!("no sidecar answers at {admin}");
    match timeout(within, asked(service, admin, &mut why)).await {
        Ok(id) => Ok(id),
        Err(_) => Err(why),
    }
}

async fn asked(service: &ServiceName, admin: SocketAddr, why: &mut String) -> String {
    loop {
        *why = match timeout(ANSWER_MAX, ask(admin)).await {
            Ok(Ok(said)) => {
                let id = said.node.strip_prefix(&format!("{service}/"));
                let is_registered = said.registration.as_deref() == Some("registered");
                if let Some(id) = id.filter(|_| is_registered) {
                    return id.to_owned();
                }
                match said.registration {
                    _ if id.is_none() => format!("the sidecar at {admin} is {}'s", said.node),
                    Some(state) => format!(
                        "the sidecar at {admin} says it is {state}: does its application answer?"
                    ),
                    None => format!("the sidecar at {admin} registers nobody"),
                }
            }
            Ok(Err(error)) => format!("no sidecar answers at {admin}: {error}"),
            Err(_) => format!("the sidecar at {admin} does not answer"),
        };
        debug!(%service, why, "the sidecar is asked again");
        sleep(LOOK_AGAIN).await;
    }
}

/// HTTP/1.0: the body ends with the connection, and comes as it is.
async fn ask(admin: SocketAddr) -> io::Result<Said> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = b"GET /config_dump HTTP/1.0\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let body = end
        .and_then(|end| answer.get(end + 4..))
        .unwrap_or_default();
    Ok(serde_json::from_slice(body)?)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_sidecar_is_asked_until_it_is_registered_as_one_of_the_service() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        let sidecar = tokio::spawn(async move {
            for body in [
                "no json",
                r#"{"node":"default/other/x","registration":"registered"}"#,
                r#"{"node":"default/battle/room-7","registration":null}"#,
                r#"{"node":"default/battle/room-7","registration":"registered","more":{}}"#,
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 256];
                let read = stream.read(&mut asked).await.unwrap();
                assert!(asked[..read].starts_with(b"GET /config_dump "));
                let answer = format!(
                    "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let service = ServiceName::new("default", "battle");
        let found = id(&service, admin, Duration::from_secs(60)).await;
        assert_eq!(found.as_deref(), Ok("room-7"));
        sidecar.await.unwrap();
    }

    #[tokio::test]
    async fn a_sidecar_whose_application_is_away_is_told_from_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        let sidecar = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 256];
                // Whoever had no more time to ask has gone.
                let _ = stream.read(&mut asked).await;
                let body = r#"{"node":"default/battle/room-7","registration":"withdrawn"}"#;
                let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let service = ServiceName::new("default", "battle");
        let mut why = String::new();
        for _ in 0..100 {
            why = id(&service, admin, LOOK_AGAIN).await.unwrap_err();
            if why.contains("withdrawn") {
                break;
            }
        }
        assert!(why.contains("withdrawn"), "{why}");
        sidecar.abort();
        let _ = sidecar.await;
        let alone = id(&service, admin, Duration::from_millis(300)).await;
        assert!(alone.unwrap_err().starts_with("no sidecar answers"));
    }
}
