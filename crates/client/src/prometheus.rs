//! One number from a Prometheus, by its HTTP API. The answer is bounded, and only one that says exactly one number is one.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What `query` is now, as the Prometheus at `HOST:PORT` says.
///
/// # Errors
/// Why there is no such number, in words.
pub async fn query(address: &str, query: &str, patience: Duration) -> Result<f64, String> {
    match timeout(patience, ask(address, query)).await {
        Ok(told) => told,
        Err(_) => Err(format!("{address} did not answer within {patience:?}")),
    }
}

async fn ask(address: &str, query: &str) -> Result<f64, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("{address} can't be reached: {e}"))?;
    let broken = |e: hyper::Error| format!("{address} broke off: {e}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = Request::get(format!("/api/v1/query?query={}", encoded(query)))
        .header(HOST, address)
        .header(USER_AGENT, HeaderValue::from_static("phalanx"))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("it can't be asked: {e}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| format!("{address} answers what can't be read: {e}"))?;
        Ok::<_, String>((status, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let (status, body) = tokio::select! {
        biased;
        told = exchange.as_mut() => told?,
        // The answer may have come with the end of the connection.
        _ = connection => exchange.await?,
    };
    read(status, &body)
}

fn read(status: StatusCode, body: &[u8]) -> Result<f64, String> {
    let Ok(told) = serde_json::from_slice::<Value>(body) else {
        return Err(format!("the answer ({status}) is no JSON"));
    };
    if told["status"] != "success" {
        let error = told["error"].as_str().unwrap_or("it does not say why");
        let error: String = error
            .chars()
            .filter(|c| !c.is_control())
            .take(ERROR_MAX)
            .collect();
        return Err(format!("the query failed ({status}): {error}"));
    }
    let result = &told["data"]["result"];
    let sample = match told["data"]["resultType"].as_str() {
        Some("scalar") => result,
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([one]) => &one["value"],
            Some([]) => return Err("the query has no result".to_owned()),
            Some(many) => {
                let count = many.len();
                return Err(format!(
                    "the query has {count} results, one is needed (sum them)"
                ));
            }
            None => &Value::Null,
        },
        _ => &Value::Null,
    };
    let number = sample[1].as_str().and_then(|text| text.parse::<f64>().ok());
    match number {
        Some(number) if number.is_finite() => Ok(number),
        Some(number) => Err(format!("the query's result is {number}")),
        None => Err("the answer has no number".to_owned()),
    }
}

/// For a query string: what is not unreserved (RFC 3986 §2.3) is percent-encoded.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// Bytes of an answer.
const ANSWER_MAX: usize = 64 * 1024;
/// Characters of what it says went wrong.
const ERROR_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(body: &str) -> Result<f64, String> {
        read(StatusCode::OK, body.as_bytes())
    }

    #[test]
    fn one_number_is_an_answer_and_anything_else_is_not() {
        let vector = |items: &str| {
            told(&format!(
                r#"{{"status":"success","data":{{"resultType":"vector","result":[{items}]}}}}"#
            ))
        };
        let one = r#"{"metric":{},"value":[1.5,"0.25"]}"#;
        assert_eq!(vector(one), Ok(0.25));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}"#;
        assert_eq!(told(scalar), Ok(7.0));
        assert!(vector("").unwrap_err().contains("no result"));
        assert!(
            vector(&format!("{one},{one}"))
                .unwrap_err()
                .contains("2 results")
        );
        assert!(
            vector(r#"{"value":[1,"NaN"]}"#)
                .unwrap_err()
                .contains("NaN")
        );
        assert!(told("<html>").unwrap_err().contains("no JSON"));
        assert!(
            told(r#"{"status":"error","error":"parse error"}"#)
                .unwrap_err()
                .contains("parse error")
        );
        assert!(told(r#"{"status":"success"}"#).is_err());
    }

    #[tokio::test]
    async fn a_server_that_speaks_its_api_is_asked_and_one_that_is_gone_is_an_error() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            let body = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"42"]}]}}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let answer = [head.as_bytes(), body.as_bytes()].concat();
            stream.write_all(&answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let patience = Duration::from_secs(30);
        assert_eq!(query(&address, "sum(x) > 1", patience).await, Ok(42.0));
        let asked = served.await.unwrap();
        let line = "GET /api/v1/query?query=sum%28x%29%20%3E%201 HTTP/1.1";
        assert!(asked.starts_with(line), "{asked}");
        let gone = query(&address, "x", patience).await.unwrap_err();
        assert!(gone.contains("can't be reached"), "{gone}");
    }

    #[test]
    fn a_query_is_encoded_whole() {
        assert_eq!(
            encoded("sum(rate(x{a=\"b\"}[1m])) + 1"),
            "sum%28rate%28x%7Ba%3D%22b%22%7D%5B1m%5D%29%29%20%2B%201"
        );
    }
}
