use phalanx_proto::envoy::config::core::v3::Node as WireNode;
use phalanx_proto::envoy::service::health::v3::health_discovery_service_client::HealthDiscoveryServiceClient;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::service::InterceptorLayer;
use tonic::transport::{Channel, Server};

use super::*;

async fn serve(health: Health) -> (HealthDiscoveryServiceClient<Channel>, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let service = Hds::new(health, stop.clone()).into_service();
    let open = InterceptorLayer::new(|mut request: tonic::Request<()>| {
        request.extensions_mut().insert(Who::Open);
        Ok(request)
    });
    let server = Server::builder().layer(open).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = phalanx_client::channel::channel(&address.to_string()).unwrap();
    (HealthDiscoveryServiceClient::new(channel), stop)
}

fn node(metadata: &[(&str, &str)]) -> WireNode {
    let text = |value: &str| Value {
        kind: Some(ValueKind::StringValue(value.to_owned())),
    };
    let fields = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), text(value)));
    WireNode {
        id: "default/gateway/g1".into(),
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
        user_agent_name: "phalanx".into(),
        ..WireNode::default()
    }
}

fn introduction() -> Message {
    hds::introduction(node(&[("service", "gateway"), ("namespace", "default")]))
}

/// Sends these messages and nothing more; how the stream ends, and how many specifiers came before.
async fn outcome(health: Health, messages: Vec<Message>) -> (usize, Code, String) {
    let (mut client, _stop) = serve(health).await;
    let (_open, never) = mpsc::channel::<Message>(1);
    let messages = tokio_stream::iter(messages);
    let messages = tokio_stream::StreamExt::chain(messages, ReceiverStream::new(never));
    let mut specifiers = 0;
    let mut stream = match client.stream_health_check(messages).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (0, status.code(), status.message().to_owned()),
    };
    loop {
        match timeout(Duration::from_secs(20), stream.message())
            .await
            .expect("it goes on")
        {
            Ok(Some(_)) => specifiers += 1,
            Ok(None) => return (specifiers, Code::Ok, String::new()),
            Err(status) => return (specifiers, status.code(), status.message().to_owned()),
        }
    }
}

#[tokio::test]
async fn who_does_not_say_who_it_is_is_told_so() {
    let nobody = hds::introduction(node(&[("service", "gateway")]));
    let (_, code, message) = outcome(Health::default(), vec![nobody]).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("node.metadata.namespace"), "{message}");
    for first in [hds::report([]), Message { request_type: None }] {
        let (_, code, message) = outcome(Health::default(), vec![first]).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains("HealthCheckRequest"), "{message}");
    }
}

#[tokio::test]
async fn a_flood_of_reports_ends_the_stream_and_leaves_the_room_usable() {
    let health = Health::default();
    let address = ([10, 0, 0, 1], 80).into();
    let flood = (0..200).map(|_| hds::report([("x", address, Err("down"))]));
    let messages = [introduction()].into_iter().chain(flood).collect();
    let (specifiers, code, message) = outcome(health.clone(), messages).await;
    assert_eq!(
        (specifiers, code),
        (1, Code::ResourceExhausted),
        "{message}"
    );
    assert!(
        health
            .counts()
            .ignored
            .load(std::sync::atomic::Ordering::Relaxed)
            <= 100
    );
    for _ in 0..500 {
        if health.gauges().checkers == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its seat is still taken");
}

#[tokio::test]
async fn an_oversized_report_ends_the_stream() {
    let address = ([10, 0, 0, 1], 80).into();
    let name = "n".repeat(MESSAGE_MAX);
    let huge = hds::report([(name.as_str(), address, Ok(()))]);
    let (_, code, message) = outcome(Health::default(), vec![introduction(), huge]).await;
    assert_eq!(code, Code::OutOfRange, "{message}");
}

#[tokio::test]
async fn checks_are_not_fetched() {
    let (mut client, _stop) = serve(Health::default()).await;
    let status = client.fetch_health_check(introduction()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("StreamHealthCheck"));
}

#[tokio::test]
async fn a_stop_ends_streams() {
    let (mut client, stop) = serve(Health::default()).await;
    let (send, messages) = mpsc::channel(1);
    send.send(introduction()).await.unwrap();
    let answer = client
        .stream_health_check(ReceiverStream::new(messages))
        .await
        .unwrap();
    let mut stream = answer.into_inner();
    assert!(
        stream
            .message()
            .await
            .unwrap()
            .unwrap()
            .cluster_health_checks
            .is_empty()
    );
    stop.cancel();
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::Unavailable
    );
}
