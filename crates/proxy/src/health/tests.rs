use std::pin::Pin;

use phalanx_model::resource::{HealthCheck, Probe};
use phalanx_proto::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use phalanx_proto::envoy::service::health::v3::health_discovery_service_server::{
    HealthDiscoveryService, HealthDiscoveryServiceServer,
};
use phalanx_xds::hds::Reported;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Streaming};

use super::*;

type Said = mpsc::UnboundedSender<wire::HealthCheckRequestOrEndpointHealthResponse>;

/// A control plane that tells what it is given and passes on what it hears.
struct Script {
    told: watch::Receiver<wire::HealthCheckSpecifier>,
    heard: Said,
}

#[tonic::async_trait]
impl HealthDiscoveryService for Script {
    type StreamHealthCheckStream =
        Pin<Box<dyn Stream<Item = Result<wire::HealthCheckSpecifier, Status>> + Send>>;

    async fn stream_health_check(
        &self,
        request: Request<Streaming<wire::HealthCheckRequestOrEndpointHealthResponse>>,
    ) -> Result<Response<Self::StreamHealthCheckStream>, Status> {
        let (mut inbound, heard) = (request.into_inner(), self.heard.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let _ = heard.send(message);
            }
        });
        let told = WatchStream::new(self.told.clone()).map(Ok);
        Ok(Response::new(Box::pin(told)))
    }

    async fn fetch_health_check(
        &self,
        _: Request<wire::HealthCheckRequestOrEndpointHealthResponse>,
    ) -> Result<Response<wire::HealthCheckSpecifier>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Fixture {
    tell: watch::Sender<wire::HealthCheckSpecifier>,
    heard: mpsc::UnboundedReceiver<wire::HealthCheckRequestOrEndpointHealthResponse>,
    checks: HealthChecks,
}

impl Fixture {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, told) = watch::channel(hds::specifier(&[], REPORT_INTERVAL));
        let (said, heard) = mpsc::unbounded_channel();
        let service = HealthDiscoveryServiceServer::new(Script { told, heard: said });
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = phalanx_client::channel::channel(&address.to_string()).unwrap();
        let node = Node {
            id: "default/shop/i1".into(),
            ..Node::default()
        };
        let (_, complete) = watch::channel(true);
        let checks = HealthChecks::spawn(channel, node, None, complete, &Lasting::default());
        Self {
            tell,
            heard,
            checks,
        }
    }

    async fn hear(&mut self) -> RequestType {
        let heard = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
        heard.unwrap().unwrap().request_type.unwrap()
    }

    /// The next report in which the endpoint is as wanted.
    async fn hear_of(&mut self, address: SocketAddr, is_healthy: bool) -> Reported {
        loop {
            let RequestType::EndpointHealthResponse(response) = self.hear().await else {
                continue;
            };
            let line = hds::reported(response).find(|line| line.address == address);
            if let Some(line) = line.filter(|line| line.is_healthy == is_healthy) {
                return line;
            }
        }
    }
}

fn group(address: SocketAddr) -> Group {
    Group {
        name: "default/shop|0|h1".into(),
        check: HealthCheck {
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            ..HealthCheck::new(Probe::Tcp)
        },
        authority: String::new(),
        port: 0,
        http2: false,
        tls: None,
        endpoints: vec![(address, String::new())],
    }
}

#[tokio::test]
async fn what_it_is_told_to_check_it_reports_and_says_why() {
    let mut fixture = Fixture::new().await;
    let RequestType::HealthCheckRequest(request) = fixture.hear().await else {
        panic!("it must introduce itself first");
    };
    assert_eq!(request.node.unwrap().id, "default/shop/i1");

    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = endpoint.local_addr().unwrap();
    fixture
        .tell
        .send_replace(hds::specifier(&[group(address)], REPORT_INTERVAL));
    fixture.hear_of(address, true).await;
    drop(endpoint);
    let line = fixture.hear_of(address, false).await;
    assert_eq!(line.reason, "connection refused");
    let mut out = Exposition::new();
    fixture.checks.checks().write(&mut out);
    assert!(out.finish().contains("phalanx_health_unhealthy 1"));

    let _endpoint = TcpListener::bind(address).await.unwrap();
    fixture.hear_of(address, true).await;
}

#[tokio::test]
async fn what_it_cannot_check_changes_nothing_and_is_counted() {
    let mut fixture = Fixture::new().await;
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = endpoint.local_addr().unwrap();
    let good = hds::specifier(&[group(address)], REPORT_INTERVAL);
    fixture.tell.send_replace(good.clone());
    fixture.hear_of(address, true).await;
    let mut bad = good;
    bad.cluster_health_checks[0].health_checks[0].alt_port = Some(1);
    fixture.tell.send_replace(bad);
    while fixture.checks.checks().refused.value() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.hear_of(address, true).await;
}

#[tokio::test]
async fn who_is_told_nothing_says_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.hear().await;
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), fixture.heard.recv())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn however_much_fails_at_once_it_is_told_a_few_times_a_second() {
    let mut fixture = Fixture::new().await;
    fixture.hear().await;
    // Nobody listens there.
    let addresses: Vec<SocketAddr> = (1..=200).map(|i| ([127, 7, 7, i], 9).into()).collect();
    let group = Group {
        endpoints: addresses.iter().map(|at| (*at, String::new())).collect(),
        ..group(addresses[0])
    };
    let start = Instant::now();
    let specifier = hds::specifier(&[group], Duration::from_secs(60));
    fixture.tell.send_replace(specifier);
    let mut reports = 0;
    loop {
        let RequestType::EndpointHealthResponse(response) = fixture.hear().await else {
            continue;
        };
        reports += 1;
        if hds::reported(response)
            .filter(|line| !line.is_healthy)
            .count()
            == 200
        {
            break;
        }
    }
    let most = 3 + start.elapsed().as_millis() / REPORT_INTERVAL_MIN.as_millis();
    assert!(reports <= most, "{reports} reports, at most {most}");
}
