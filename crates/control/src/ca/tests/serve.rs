//! The gRPC service over real sockets; who calls is put where the control plane's ports put it.

use phalanx_proto::phalanx::identity::v1 as wire;
use phalanx_proto::phalanx::identity::v1::identity_client::IdentityClient;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};

use super::*;
use crate::access::Who;

async fn client(ca: &Ca, who: Who) -> IdentityClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = ca.service();
    let named = move |mut request: Request<()>| -> Result<Request<()>, Status> {
        request.extensions_mut().insert(who.clone());
        Ok(request)
    };
    let service = tonic::service::interceptor::InterceptedService::new(service, named);
    let server = Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    IdentityClient::new(channel.connect().await.unwrap())
}

#[tokio::test]
async fn a_sidecar_joins_renews_and_follows() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let battle = workload("battle");
    let token = ca.token(&battle, HOUR, "tester").await.unwrap();
    let key = new_key();
    let mut nobody = client(&ca, Who::Nobody).await;
    let csr = csr::request(&key, &battle).unwrap();
    let ask = |token: &str| wire::JoinRequest {
        proof: Some(wire::join_request::Proof::JoinToken(token.into())),
        namespace: "arena".into(),
        service: "battle".into(),
        zone: String::new(),
        csr: csr.clone(),
    };
    let refused = nobody.join(ask("phxj1.nothing.here")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let given = nobody.join(ask(&token)).await.unwrap().into_inner();
    assert_eq!((given.chain.len(), given.roots.len()), (2, 1));
    let refused = nobody.renew(wire::RenewRequest { csr: csr.clone() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let counted = ca.requests();
    assert_eq!(counted[&("join", "granted")], 1);
    assert_eq!(counted[&("join", "malformed_token")], 1);
    let chain: Vec<_> = given.chain.into_iter().map(Into::into).collect();
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain()));
    let none = Revocations::default();
    let peer = verifier::verify(&chain, &[], &ca.roots(), &none, &policy, ca.now()).unwrap();
    let mut sidecar = client(&ca, Who::Workload(peer.clone())).await;
    let renewed = sidecar.renew(wire::RenewRequest { csr }).await.unwrap();
    assert_eq!(renewed.into_inner().chain.len(), 2);

    let (said, requests) = mpsc::channel(8);
    let stream = sidecar.trust(ReceiverStream::new(requests)).await.unwrap();
    let mut stream = stream.into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.roots.len(), 1);
    assert!(first.version > 0);
    let confirm = |version: u64, error: &str| wire::TrustRequest {
        version,
        serial: peer.serial.to_string(),
        error: error.into(),
    };
    said.send(confirm(first.version, "")).await.unwrap();
    ca.rotate_begin("tester").await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut second = stream.message().await.unwrap().unwrap();
    while second.roots.len() < 2 {
        second = stream.message().await.unwrap().unwrap();
    }
    assert!(second.version > first.version);
    said.send(confirm(first.version, "no room")).await.unwrap();
    let waiting = |ca: &Ca| {
        let all = ca.rotation().waiting;
        all.into_iter().find(|w| w.serial == peer.serial)
    };
    while waiting(&ca).is_none_or(|w| w.error != "no room") {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            ca.rotation()
        );
        ca.say_trusting().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    said.send(confirm(second.version, "")).await.unwrap();
    while waiting(&ca).is_some() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            ca.rotation()
        );
        ca.say_trusting().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(said);
    drop(stream);
    while ca.peers().len() > 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "a stream that is over is forgotten"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nobody_follows_and_one_peer_not_too_often() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let (_quiet, requests) = mpsc::channel(1);
    let mut nobody = client(&ca, Who::Nobody).await;
    let refused = nobody.trust(ReceiverStream::new(requests)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let peer = peer(&ca, &leaf(&ca, "battle").await);
    let mut sidecar = client(&ca, Who::Workload(peer)).await;
    let mut open = Vec::new();
    for n in 0..super::super::peers::STREAMS_PER_PEER_MAX + 1 {
        let (sender, requests) = mpsc::channel(1);
        let stream = sidecar.trust(ReceiverStream::new(requests)).await;
        match stream {
            Ok(stream) => open.push((sender, stream)),
            Err(refused) => {
                assert_eq!(refused.code(), Code::ResourceExhausted);
                assert_eq!(n, super::super::peers::STREAMS_PER_PEER_MAX);
                return;
            }
        }
    }
    panic!("{} streams of one peer", open.len());
}

#[tokio::test]
async fn who_reads_slowly_gets_the_latest_and_not_each() {
    let plane = Plane::first().await;
    let ca = plane.open().await;
    let peer = peer(&ca, &leaf(&ca, "battle").await);
    let mut sidecar = client(&ca, Who::Workload(peer)).await;
    let (_said, requests) = mpsc::channel(1);
    let mut stream = sidecar
        .trust(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..20 {
        ca.rotate_begin("tester").await.unwrap();
        ca.rotate_abort("tester").await.unwrap();
    }
    ca.rotate_begin("tester").await.unwrap();
    let last = ca.bundle();
    let mut messages = 0;
    loop {
        let message = stream.message().await.unwrap().unwrap();
        messages += 1;
        let roots: Vec<_> = last.roots.iter().map(|r| r.der().to_vec()).collect();
        if message.roots == roots {
            break;
        }
    }
    assert!(messages <= 43, "{messages}");
}
