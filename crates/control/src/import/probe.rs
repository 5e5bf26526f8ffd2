//! Asks addresses whether anybody listens there. Only a refusal is evidence; silence is not.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Those whose address refuses a connection.
pub async fn refusing<T>(asked: Vec<(T, SocketAddr)>) -> Vec<T> {
    let asking = stream::iter(asked).map(|(who, address)| async move {
        let answer = timeout(PATIENCE, TcpStream::connect(address)).await;
        let refuses =
            matches!(answer, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused);
        refuses.then_some(who)
    });
    let answers = asking.buffer_unordered(AT_ONCE_MAX);
    answers.filter_map(async |answer| answer).collect().await
}

const PATIENCE: Duration = Duration::from_millis(500);
const AT_ONCE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_a_refusal_is_evidence() {
        let listens = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [&listens, &closed].map(|l| l.local_addr().unwrap());
        drop(closed);
        let asked = vec![("listens", addresses[0]), ("closed", addresses[1])];
        assert_eq!(refusing(asked).await, ["closed"]);
    }
}
