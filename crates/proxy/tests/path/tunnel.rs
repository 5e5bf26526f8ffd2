//! WebSockets and raw TCP: bytes both ways.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::resource::Cluster;
use phalanx_proxy::account::Event;
use phalanx_relay::Deadlines;

use crate::support::*;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: battle\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn websocket_passes_both_sidecars() {
    let app = Upstream::start(|_, _| Act::Echo);
    let peer = Setup::default()
        .app(8080, app.address, Protocol::Auto)
        .start();
    let sidecar = Setup::battle(&[peer.inbound]).start();
    let mut client = Client::connect(sidecar.outbound);
    let answer = client.ask(UPGRADE);
    assert_eq!(
        (answer.status(), answer.header("upgrade")),
        (101, Some("websocket"))
    );
    assert_eq!(
        answer
            .header("connection")
            .map(str::to_lowercase)
            .as_deref(),
        Some("upgrade")
    );
    assert_eq!(answer.header("sec-websocket-accept"), Some("x"));
    let seen = app.last();
    assert_eq!(
        seen.header("connection").map(str::to_lowercase).as_deref(),
        Some("upgrade")
    );
    for size in [1, 1000, 200_000] {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let sent = bytes.clone();
        let mut writer = client.stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        assert_eq!(client.exactly(size).unwrap(), bytes);
        writing.join().unwrap();
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed());
    eventually("the tunnel is counted as over", || {
        sidecar.sum(|edge| edge.requests()) == 1
    });
}

#[test]
fn refused_upgrade_is_answered_and_ends_the_connection() {
    let app = Upstream::start(|_, _| ok("no websocket here"));
    let sidecar = Setup::battle(&[app.address]).start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.ask(UPGRADE).text(), "no websocket here");
    assert!(client.is_closed(), "what follows could be no HTTP any more");
}

#[test]
fn idle_websocket_ends() {
    let app = Upstream::start(|_, _| Act::Echo);
    let deadlines = Deadlines {
        stream_idle: Duration::from_secs(1), // the upgrade itself is well within it
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[app.address])
    }
    .start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.ask(UPGRADE).status(), 101);
    assert!(client.is_closed());
}

fn tcp_setup(address: std::net::SocketAddr) -> Setup {
    let setup = Setup::default().cluster(
        Cluster::new(cluster_name("store"), Protocol::Tcp),
        &[address],
    );
    Setup {
        tcp: vec![cluster_name("store")],
        ..setup
    }
}

#[test]
fn tcp_passes_both_sidecars_with_half_close() {
    let peer = Setup::default()
        .app(6379, echo_server(), Protocol::Tcp)
        .start();
    let sidecar = tcp_setup(peer.inbound).start();
    let mut stream = TcpStream::connect(sidecar.tcp[0]).unwrap();
    let bytes: Vec<u8> = (0..1_000_000).map(|i| (i % 253) as u8).collect();
    let sent = bytes.clone();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == bytes);
    eventually("the tunnel is counted", || {
        sidecar.sum(|edge| edge.tcp_closed) == 1
    });
    assert_eq!(sidecar.sum(|edge| edge.tcp_sent_bytes), 1_000_000);
    assert_eq!(sidecar.sum(|edge| edge.tcp_received_bytes), 1_000_000);
}

#[test]
fn much_and_little_take_turns_in_one_tunnel() {
    let sidecar = tcp_setup(echo_server()).start();
    let mut client = Client::connect(sidecar.tcp[0]);
    for round in 0..4 {
        let much: Vec<u8> = (0..3_000_000).map(|i| ((i + round) % 251) as u8).collect();
        let sent = much.clone();
        let mut writer = client.stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        assert!(client.exactly(much.len()).unwrap() == much, "round {round}");
        writing.join().unwrap();
        for little in 0..50_u8 {
            client.send(&[little; 40]);
            assert_eq!(client.exactly(40).unwrap(), [little; 40]);
        }
    }
    eventually("every byte is counted", || {
        sidecar.sum(|edge| edge.tcp_sent_bytes) == 4 * 3_002_000
            && sidecar.sum(|edge| edge.tcp_received_bytes) == 4 * 3_002_000
    });
}

#[test]
fn whoever_reads_late_gets_every_byte_and_holds_up_nobody() {
    let sidecar = tcp_setup(echo_server()).start();
    let mut late = TcpStream::connect(sidecar.tcp[0]).unwrap();
    let bytes: Vec<u8> = (0..20_000_000).map(|i| (i % 253) as u8).collect();
    let sent = bytes.clone();
    let mut writer = late.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // All that fits is on its way, and nothing moves any more.
    let mut before = u64::MAX;
    eventually("it stands still", || {
        std::thread::sleep(Duration::from_millis(30));
        let moved = sidecar.sum(|edge| edge.tcp_received_bytes);
        std::mem::replace(&mut before, moved) == moved && moved > 0
    });
    let mut other = Client::connect(sidecar.tcp[0]);
    other.send(b"ping");
    assert_eq!(other.exactly(4).unwrap(), b"ping");
    let mut back = Vec::new();
    late.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == bytes);
}

#[test]
fn a_tunnel_whose_bytes_nobody_takes_ends() {
    let deadlines = Deadlines {
        tunnel_idle: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..tcp_setup(echo_server())
    }
    .start();
    let mut late = TcpStream::connect(sidecar.tcp[0]).unwrap();
    let sent = late.write_all(&vec![0; 64 << 20]);
    assert!(sent.is_err(), "the tunnel ended under it");
    assert_eq!(sidecar.event(Event::TunnelIdleDeadline), 1);
}

#[test]
fn tcp_goes_to_an_endpoint_that_listens() {
    let sidecar = {
        let mut setup = tcp_setup(dead_end());
        setup.clusters[0].1.push(endpoint(echo_server()));
        setup.start()
    };
    for _ in 0..5 {
        let mut stream = TcpStream::connect(sidecar.tcp[0]).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ping");
    }
}

#[test]
fn mixed_applications_are_told_apart_by_first_bytes_or_silence() {
    let http = Upstream::start(|_, _| ok("http"));
    let peer = Setup::default()
        .app(80, http.address, Protocol::Http1)
        .app(6379, echo_server(), Protocol::Tcp)
        .start();
    let mut raw = TcpStream::connect(peer.inbound).unwrap();
    raw.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    let mut back = [0; 14];
    raw.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"*1\r\n$4\r\nPING\r\n");
    let answer = Client::connect(peer.inbound)
        .ask("GET / HTTP/1.1\r\nhost: x\r\nx-phalanx-port: 80\r\n\r\n");
    assert_eq!(answer.text(), "http");
    let mut silent = TcpStream::connect(peer.inbound).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    silent.write_all(b"GET / late").unwrap();
    let mut back = [0; 10];
    silent.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"GET / late");
}

#[test]
fn silent_connection_goes_where_it_was_let_in_whatever_the_plan_says_by_then() {
    let (http, trap) = (
        Upstream::start(|_, _| ok("http")),
        Upstream::start(|_, _| ok("trap")),
    );
    let mut peer = Setup::battle(&[http.address])
        .app(80, http.address, Protocol::Http1)
        .app(6379, echo_server(), Protocol::Tcp)
        .start();
    let mut silent = TcpStream::connect(peer.inbound).unwrap();
    std::thread::sleep(Duration::from_millis(100)); // it is being waited for
    for service in ["zebra", "zoo", "zorro"] {
        peer.change(|setup| {
            let cluster = Cluster::new(cluster_name(service), Protocol::Tcp);
            let trap = vec![endpoint(trap.address)];
            setup.clusters.push((cluster, trap));
        });
    }
    std::thread::sleep(Duration::from_millis(500));
    silent.write_all(b"echo me").unwrap();
    let mut back = [0; 7];
    silent.read_exact(&mut back).unwrap();
    assert_eq!((&back, trap.connections()), (b"echo me", 0));
}

#[test]
fn idle_tcp_tunnel_ends() {
    let deadlines = Deadlines {
        tunnel_idle: Duration::from_millis(600),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..tcp_setup(echo_server())
    }
    .start();
    let mut client = Client::connect(sidecar.tcp[0]);
    client.send(b"ping");
    assert_eq!(client.exactly(4).unwrap(), b"ping");
    assert!(client.is_closed());
    assert_eq!(sidecar.event(Event::TunnelIdleDeadline), 1);
}
