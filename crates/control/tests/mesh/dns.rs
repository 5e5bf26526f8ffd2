//! DNS over real sockets, asked by a small client that reads and writes messages with `hickory-proto`.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use phalanx_client::registry::to_wire;
use phalanx_control::{ServeError, start};
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_proto::phalanx::registry::v1::{DeregisterRequest, RegisterRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use crate::{Control, battle_instance, config, control};

const BATTLE: &str = "battle.default.svc.mesh.";
const PATIENCE: Duration = Duration::from_secs(20);

fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], message].concat()
}

async fn read(stream: &mut TcpStream) -> Message {
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

async fn udp(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

/// Asks until an answer comes; a datagram may be lost.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let socket = udp(server).await;
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 2048];
    while Instant::now() < deadline {
        socket.send(&question(1, name, kind)).await.unwrap();
        if let Ok(length) = timeout(Duration::from_secs(1), socket.recv(&mut bytes)).await {
            return Message::from_vec(&bytes[..length.unwrap()]).unwrap();
        }
    }
    panic!("no answer about {name}");
}

/// Polls until the name has this many addresses.
async fn until(server: SocketAddr, name: &str, count: usize) -> Message {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask(server, name, RecordType::A).await;
        if answer.answers.len() == count {
            return answer;
        }
        assert!(Instant::now() < deadline, "{name}: {answer}");
        sleep(Duration::from_millis(20)).await;
    }
}

impl Control {
    fn dns(&self) -> SocketAddr {
        self.running.dns_address().unwrap()
    }

    async fn come(&self, id: &str) {
        let mut registry = self.registry().await;
        let request = RegisterRequest {
            instance: Some(to_wire(&battle_instance(id))),
            epoch: 1,
            ttl_ms: 30_000,
        };
        registry.register(request).await.unwrap();
    }

    async fn registry(&self) -> RegistryClient<tonic::transport::Channel> {
        RegistryClient::connect(format!("http://{}", self.running.xds_address()))
            .await
            .unwrap()
    }

    async fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.running.admin_address())
            .await
            .unwrap();
        let head = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {text}"))
            .trim()
            .parse()
            .unwrap()
    }
}

#[tokio::test]
async fn a_registration_becomes_a_name_and_its_end_takes_the_name_away() {
    let control = control().await;
    let nobody = ask(control.dns(), BATTLE, RecordType::A).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    control.come("b1").await;
    let answer = until(control.dns(), BATTLE, 1).await;
    assert_eq!(answer.answers[0].data.to_string(), "127.0.0.5");
    let request = DeregisterRequest {
        namespace: "default".into(),
        service: "battle".into(),
        id: "b1".into(),
        epoch: 1,
        ..DeregisterRequest::default()
    };
    control.registry().await.deregister(request).await.unwrap();
    let gone = until(control.dns(), BATTLE, 0).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    assert!(
        control
            .metric("phalanx_dns_queries_total{transport=\"udp\"}")
            .await
            >= 3.0
    );
    assert!(
        control
            .metric("phalanx_dns_responses_total{code=\"NXDOMAIN\"}")
            .await
            >= 2.0
    );
    control.running.shutdown().await;
}

#[tokio::test]
async fn questions_sent_ahead_over_one_connection_are_answered_in_order() {
    let control = control().await;
    control.come("b1").await;
    until(control.dns(), BATTLE, 1).await;
    let mut stream = TcpStream::connect(control.dns()).await.unwrap();
    let ahead: Vec<u8> = (0..500)
        .flat_map(|id| framed(&question(id, BATTLE, RecordType::A)))
        .collect();
    let (mut reader, mut writer) = stream.split();
    let asking = async { writer.write_all(&ahead).await.unwrap() };
    let hearing = async {
        for id in 0..500 {
            let length = reader.read_u16().await.unwrap();
            let mut bytes = vec![0; length.into()];
            reader.read_exact(&mut bytes).await.unwrap();
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
        }
    };
    timeout(PATIENCE, async { tokio::join!(asking, hearing) })
        .await
        .unwrap();
    control.running.shutdown().await;
}

#[tokio::test]
async fn garbage_hurts_nobody_else() {
    let control = control().await;
    let socket = udp(control.dns()).await;
    for length in [0, 1, 11, 12, 512, 4096, 9000] {
        for byte in [0x00, 0x01, 0x55, 0xc0, 0xff] {
            socket.send(&vec![byte; length]).await.unwrap();
        }
    }
    // Too long, cut off, an answer instead of a question.
    for garbage in [&[0xff; 600][..], &[0, 40, 1], &framed(&[0xff; 30])] {
        let mut stream = TcpStream::connect(control.dns()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        // Whether the end comes as one or as a reset is the kernel's choice.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut heard))
            .await
            .unwrap();
        assert!(heard.is_empty());
    }
    let answer = ask(control.dns(), "svc.mesh.", RecordType::SOA).await;
    assert_eq!(answer.answers.len(), 1);
    control.running.shutdown().await;
}

#[tokio::test]
async fn a_full_house_of_idle_connections_leaves_udp_and_gives_way() {
    let control = control().await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(control.dns()).await.unwrap());
    }
    let deadline = Instant::now() + PATIENCE;
    while control.metric("phalanx_dns_connections").await < 256.0 {
        assert!(Instant::now() < deadline, "not all are let in");
        sleep(Duration::from_millis(20)).await;
    }
    let mut late = TcpStream::connect(control.dns()).await.unwrap();
    let asked = framed(&question(9, "svc.mesh.", RecordType::SOA));
    late.write_all(&asked).await.unwrap();
    let waits = timeout(Duration::from_millis(100), late.read_u8()).await;
    assert!(waits.is_err(), "there is no seat yet");
    let answer = ask(control.dns(), "svc.mesh.", RecordType::SOA).await;
    assert_eq!(answer.answers.len(), 1);
    drop(idle.pop());
    let answer = timeout(PATIENCE, read(&mut late)).await.unwrap();
    assert_eq!(answer.metadata.id, 9);
    control.running.shutdown().await;
}

#[tokio::test]
async fn an_idle_connection_and_half_a_question_end() {
    let control = control().await;
    let mut idle = TcpStream::connect(control.dns()).await.unwrap();
    let mut half = TcpStream::connect(control.dns()).await.unwrap();
    half.write_all(&[0, 30, 1, 2, 3]).await.unwrap();
    for stream in [&mut idle, &mut half] {
        let end = timeout(PATIENCE, stream.read_u8()).await;
        assert!(end.expect("let go in time").is_err());
    }
    control.running.shutdown().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_with_its_flag() {
    let data = tempfile::tempdir().unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let by_udp = taken.local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let by_tcp = listener.local_addr().unwrap();
    for address in [by_udp, by_tcp] {
        let mut config = config(data.path());
        config.dns = Some(address);
        let error = start(config).await.err().unwrap();
        assert!(matches!(error, ServeError::Taken { .. }));
        let said = error.to_string();
        assert!(
            said.contains(&format!("--dns {address} is taken")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn names_are_there_at_once_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let first = Control {
        admin: phalanx_client::admin::Admin::new("127.0.0.1:1"),
        running: start(config(data.path())).await.unwrap(),
        _data: tempfile::tempdir().unwrap(),
    };
    first.come("b1").await;
    first.running.shutdown().await;
    let second = start(config(data.path())).await.unwrap();
    let answer = ask(second.dns_address().unwrap(), BATTLE, RecordType::A).await;
    assert_eq!(answer.answers.len(), 1);
    second.shutdown().await;
}
