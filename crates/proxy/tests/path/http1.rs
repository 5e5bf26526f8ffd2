//! HTTP/1.1 through one sidecar: what arrives, what comes back, what is refused.

use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::reason::Reason;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;

use crate::support::*;

#[test]
fn request_arrives_and_answer_returns() {
    let upstream = Upstream::start(|_, _| ok("hello"));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    for _ in 0..3 {
        let answer = client.get("battle", "/a/../b?x=1");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
    let seen = upstream.last();
    assert_eq!(seen.line, "GET /b?x=1 HTTP/1.1");
    assert_eq!(seen.header("host"), Some("battle"));
    assert_eq!(seen.header("traceparent").unwrap().len(), 55);
    assert_eq!(seen.header("x-request-id").unwrap().len(), 36);
    assert_eq!(upstream.connections(), 1, "the connection is used again");
    assert_eq!(sidecar.sum(|edge| edge.requests()), 3);
    assert_eq!(sidecar.sum(|edge| edge.attempts), 3);
    eventually("nothing is active", || sidecar.sum(|edge| edge.active) == 0);
}
