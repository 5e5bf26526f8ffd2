//! Peers that do not read, on streams without sockets, in a time that nobody waits for.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_xds::Kind;
use prost_types::value::Kind as Value;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic_prost::ProstCodec;

use super::*;

type Delta = wire::DeltaDiscoveryRequest;

struct Requests(mpsc::Receiver<Bytes>);

impl http_body::Body for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = self.0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

struct Peer {
    requests: mpsc::Sender<Bytes>,
    answers: Answers<wire::DeltaDiscoveryResponse>,
}

fn discovery() -> (Discovery, Fleet, Publisher) {
    let fleet = Fleet::default();
    let (_, worlds) = watch::channel(Arc::new(World::empty()));
    let publisher = Publisher::new(worlds, fleet.clone());
    let loads = Loads::new(LOAD_INTERVAL, publisher.published());
    let stop = CancellationToken::new();
    let discovery = Discovery::new(publisher.published(), fleet.clone(), loads, stop);
    (discovery, fleet, publisher)
}

fn connect(discovery: &Discovery) -> Peer {
    let (requests, body) = mpsc::channel(8);
    let settings = BufferSettings::default();
    let decoder = ProstCodec::<wire::DeltaDiscoveryResponse, Delta>::raw_decoder(settings);
    let body = Body::new(Requests(body));
    let inbound = Streaming::new_request(decoder, body, None, None);
    let mut request = Request::new(inbound);
    request.extensions_mut().insert(Who::Open);
    let answers = discovery.serve(request, Session::delta());
    let answers = answers.unwrap();
    Peer { requests, answers }
}

impl Peer {
    async fn ask(&self, kind: Kind) {
        let text = |text: &str| prost_types::Value {
            kind: Some(Value::StringValue(text.to_owned())),
        };
        let fields = [("service", "match"), ("namespace", "default")];
        let node = Node {
            id: "default/match/e1".into(),
            metadata: Some(prost_types::Struct {
                fields: fields
                    .map(|(key, value)| (key.to_owned(), text(value)))
                    .into(),
            }),
            ..Node::default()
        };
        let request = Delta {
            node: Some(node),
            type_url: kind.type_url().into(),
            ..Delta::default()
        };
        self.requests.send(frames::frame(&request)).await.unwrap();
    }
}

/// Time passes only when every task waits.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_dropped_after_a_minute_and_told_why_if_it_reads_at_last() {
    let (discovery, fleet, _publisher) = discovery();
    let mut peer = connect(&discovery);
    peer.ask(Kind::Cluster).await;
    peer.ask(Kind::Listener).await;
    pass(Duration::from_secs(59)).await;
    assert_eq!(fleet.len(), 1);
    pass(Duration::from_millis(1_500)).await;
    assert_eq!(fleet.len(), 0, "what it had is given back");
    assert!(peer.answers.next().await.unwrap().is_ok());
    let told = peer.answers.next().await.unwrap().unwrap_err();
    assert!(told.message().contains("does not read"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn who_never_reads_keeps_no_task() {
    let (discovery, fleet, _publisher) = discovery();
    let peer = connect(&discovery);
    peer.ask(Kind::Cluster).await;
    peer.ask(Kind::Listener).await;
    pass(Duration::from_secs(65)).await;
    assert_eq!((fleet.len(), discovery.tasks.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_with_a_response_before_it_still_hears_why() {
    let (discovery, _, _publisher) = discovery();
    let mut peer = connect(&discovery);
    peer.ask(Kind::Cluster).await;
    pass(Duration::from_millis(10)).await;
    let request = Delta::default();
    peer.requests.send(frames::frame(&request)).await.unwrap();
    pass(Duration::from_millis(10)).await;
    assert!(peer.answers.next().await.unwrap().is_ok());
    let told = peer.answers.next().await.unwrap().unwrap_err();
    assert!(told.message().contains("is not served"), "{told}");
}
