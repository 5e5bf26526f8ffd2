//! Datagrams over real sockets: workers with a plan, endpoints that echo, clients on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{Token, TokenAt, UdpLimits, UdpPort, UdpRules};
use phalanx_model::resource::*;
use phalanx_proxy::account::udp::{Dropped, Moved, Totals};
use phalanx_proxy::account::{Account, Traffic};
use phalanx_proxy::directory::{Directory, Entry};
use phalanx_proxy::drive::{DriveConfig, Workers};
use phalanx_proxy::plan::{Bootstrap, Plan, Resources};
use phalanx_relay::{Deadlines, Limits};

const NAME: &str = "UDPRoute/default/room";

fn service() -> ServiceName {
    ServiceName::new("default", "room")
}

/// Answers each datagram with its own name, what came, and how it knows who asks.
struct Room {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    socket: UdpSocket,
}

impl Room {
    fn open(name: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let room = Self {
            address: socket.local_addr().unwrap(),
            stop: Arc::default(),
            socket: socket.try_clone().unwrap(),
        };
        let stop = room.stop.clone();
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let mut answer = vec![name];
                answer.extend_from_slice(&from.port().to_be_bytes());
                answer.extend_from_slice(&buffer[..length.min(65_000)]);
                let _ = socket.send_to(&answer, from);
            }
        });
        room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Setup {
    at: SocketAddr,
    rules: UdpRules,
    endpoints: Vec<(SocketAddr, Health)>,
    directory: Arc<Directory>,
    is_open: bool,
    workers: usize,
}

struct Gate {
    setup: Setup,
    account: Arc<Account>,
    plan: Arc<ArcSwap<Plan>>,
    workers: Option<Workers>,
}

fn rules() -> UdpRules {
    UdpRules::default()
}

fn by_token() -> UdpRules {
    UdpRules {
        token: Some(Token {
            at: TokenAt::Suffix,
            len: 4,
            strip: true,
            required: true,
        }),
        ..rules()
    }
}

/// A port that nobody has, at an address of this test.
fn free(ip: [u8; 4]) -> SocketAddr {
    let socket = UdpSocket::bind(SocketAddr::from((ip, 0))).unwrap();
    socket.local_addr().unwrap()
}

impl Setup {
    fn new(at: SocketAddr, rules: UdpRules, rooms: &[&Room]) -> Self {
        let directory = Directory::new();
        directory.fill(&service(), Vec::new());
        let healthy = |room: &&Room| (room.address, Health::Healthy);
        Self {
            at,
            rules,
            endpoints: rooms.iter().map(healthy).collect(),
            directory,
            is_open: true,
            workers: 2,
        }
    }

    fn resources(&self) -> Resources {
        let name = ClusterName::outbound(service(), 7000);
        let cluster = Cluster::new(name.clone(), Protocol::Udp);
        let endpoint = |(address, health): &(SocketAddr, Health)| Endpoint {
            address: *address,
            weight: 1,
            zone: String::new(),
            is_far: false,
            health: *health,
            version: "v1".into(),
            instance: String::new(),
            target: 0,
            mutual_tls: false,
            datagrams: true,
            token: String::new(),
        };
        let mut endpoints: Vec<_> = self.endpoints.iter().map(endpoint).collect();
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let assignment = Assignment {
            cluster: name.clone(),
            endpoints,
            overprovision: None,
        };
        let mut resources = Resources {
            directory: self.directory.clone(),
            ..Resources::default()
        };
        let share = Share {
            cluster: Some(name.clone()),
            weight: 1,
        };
        let listener = Listener {
            name: format!("udp/{}", self.at),
            address: self.at,
            direction: Direction::Outbound,
            protocol: ListenerProtocol::Udp(UdpPort {
                name: NAME.into(),
                backends: vec![share],
                by_source: Vec::new(),
                rules: self.rules,
            }),
        };
        if self.is_open {
            resources.listeners.insert(listener.name.clone(), listener);
        }
        resources.clusters.insert(name.clone(), Arc::new(cluster));
        resources.assignments.insert(name, Arc::new(assignment));
        resources
    }

    fn start(self) -> Gate {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = DriveConfig {
            redirected: None,
            is_edge: true,
            inbound: any,
            outbound: any,
            tcp: Vec::new(),
            workers: self.workers,
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            identity: None,
        };
        let account = Arc::new(Account::new(config.cores()));
        let plan = Arc::new(ArcSwap::from_pointee(Plan::empty()));
        let mut gate = Gate {
            workers: Some(Workers::spawn(&config, plan.clone(), account.clone()).unwrap()),
            setup: self,
            account,
            plan,
        };
        gate.change(|_| {});
        gate
    }
}

impl Gate {
    fn change(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        let bootstrap = Bootstrap {
            service: ServiceName::new("default", "gate"),
            version: String::new(),
            inbound: Vec::new(),
            tcp: Vec::new(),
        };
        let resources = self.setup.resources();
        let next = Plan::assemble(&resources, &bootstrap, &self.plan.load(), &self.account);
        self.plan.store(Arc::new(next));
    }

    fn totals(&self) -> Totals {
        let ports = self.account.datagrams().ports();
        let port = ports.iter().find(|port| port.name == NAME);
        port.map(|port| port.totals()).unwrap_or_default()
    }

    fn seat(&self, token: &[u8], epoch: u64, room: &Room) {
        let key: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        let entry = Entry::new(key.as_bytes(), epoch, "i".into(), [room.address].into());
        self.setup.directory.change(&service(), vec![entry], &[]);
    }

    async fn drain(mut self, deadline: Duration) {
        self.workers.take().unwrap().drain(deadline).await;
    }
}

struct Client(UdpSocket);

impl Client {
    fn at(ip: &str) -> Self {
        let socket = UdpSocket::bind(format!("{ip}:0")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self(socket)
    }

    fn new() -> Self {
        Self::at("127.0.0.1")
    }

    fn hear(&self) -> Option<Answer> {
        let mut buffer = [0; 65_536];
        let (length, from) = self.0.recv_from(&mut buffer).ok()?;
        let (head, body) = buffer[..length].split_at(3);
        Some(Answer {
            room: head[0],
            known_as: u16::from_be_bytes([head[1], head[2]]),
            body: body.to_vec(),
            from,
        })
    }

    fn once(&self, to: SocketAddr, body: &[u8]) -> Option<Answer> {
        self.0.send_to(body, to).unwrap();
        loop {
            let answer = self.hear()?;
            if answer.body.first() == body.first() {
                return Some(answer);
            }
        }
    }

    /// Says it until it is answered: datagrams get lost, and a port opens when it does.
    fn ask(&self, to: SocketAddr, body: &[u8]) -> Answer {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if let Some(answer) = self.once(to, body) {
                return answer;
            }
        }
        panic!("no answer from {to}");
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    room: u8,
    known_as: u16,
    body: Vec<u8>,
    from: SocketAddr,
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn clients_reach_a_room_each_by_its_own_port_and_hear_from_whom_they_asked() {
    let rooms = [Room::open(1), Room::open(2)];
    let at = free([127, 0, 3, 1]);
    let gate = Setup::new(at, rules(), &[&rooms[0], &rooms[1]]).start();
    let clients: Vec<_> = (0..20).map(|_| Client::new()).collect();
    let first: Vec<_> = clients.iter().map(|client| client.ask(at, b"a")).collect();
    for (client, first) in clients.iter().zip(&first) {
        for length in [1, 100, 1400, 9000] {
            let again = client.ask(at, &vec![b'z'; length]);
            assert_eq!((again.room, again.known_as), (first.room, first.known_as));
            assert_eq!((again.body.len(), again.from), (length, at));
        }
    }
    let mut known: Vec<_> = first.iter().map(|one| (one.room, one.known_as)).collect();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known.len(), 20, "a room tells its players apart");
    assert!(
        rooms
            .iter()
            .zip(1..)
            .all(|(_, name)| first.iter().any(|one| one.room == name))
    );
    let totals = gate.totals();
    assert_eq!(totals.sessions(), 20);
    let edges = gate.account.collect();
    let udp = edges
        .iter()
        .find(|edge| edge.key.traffic == Traffic::Udp)
        .unwrap();
    assert_eq!((udp.tcp_opened, udp.tcp_closed), (20, 0));
    assert!(udp.tcp_sent_bytes > 20 * 10_000 && udp.tcp_received_bytes > udp.tcp_sent_bytes);
}

#[test]
fn a_port_at_every_address_answers_from_the_one_that_was_asked() {
    let room = Room::open(1);
    for (any, asked, client) in [
        ("0.0.0.0", "127.0.3.9", "127.0.0.1"),
        ("[::]", "[::1]", "[::1]"),
    ] {
        let taken = UdpSocket::bind(format!("{any}:0")).unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let at = format!("{any}:{port}").parse().unwrap();
        let _gate = Setup::new(at, rules(), &[&room]).start();
        let asked: SocketAddr = format!("{asked}:{port}").parse().unwrap();
        assert_eq!(Client::at(client).ask(asked, b"who").from, asked);
    }
}

#[test]
fn a_player_roams_between_addresses_whichever_core_meets_it_and_the_room_sees_no_change() {
    let rooms = [Room::open(1), Room::open(2)];
    let at = free([127, 0, 3, 2]);
    let gate = Setup::new(at, by_token(), &[&rooms[0], &rooms[1]]).start();
    gate.seat(b"play", 1, &rooms[1]);
    let first = Client::new().ask(at, b"hello play"[..].into());
    assert_eq!((first.room, &*first.body), (2, &b"hello "[..]));
    let mut last = Client::new();
    for round in 0..12 {
        let client = Client::new();
        let again = client.ask(at, b"hi play");
        assert_eq!((again.room, again.known_as), (2, first.known_as), "{round}");
        // What the room says by itself goes to the new address.
        let known = SocketAddr::from(([127, 0, 0, 1], again.known_as));
        rooms[1].socket.send_to(b"\x02\0\0news", known).unwrap();
        assert_eq!(client.hear().map(|news| news.body), Some(b"news".to_vec()));
        assert_eq!(last.hear(), None);
        last = client;
    }
    assert_eq!(gate.totals().sessions(), 1);
    assert_eq!(gate.totals().moved(Moved::Roamed), 12);
    // Whom the directory does not know is not answered, and moves nothing.
    let stranger = Client::new();
    assert_eq!(stranger.once(at, b"hi nope"), None);
    assert!(gate.totals().dropped(Dropped::Token) > 0);
}

#[test]
fn a_session_follows_the_directory_and_who_had_it_is_not_heard_any_more() {
    // A busy one has a socket for itself.
    for (last, said) in [(3, 1), (13, 200)] {
        let rooms = [Room::open(1), Room::open(2)];
        let at = free([127, 0, 3, last]);
        let gate = Setup::new(at, by_token(), &[&rooms[0], &rooms[1]]).start();
        gate.seat(b"play", 1, &rooms[0]);
        let client = Client::new();
        let first = client.ask(at, b"a play");
        assert_eq!(first.room, 1);
        for _ in 1..said {
            assert_eq!(client.ask(at, b"a play").known_as, first.known_as);
        }
        while client.hear().is_some() {}
        gate.seat(b"play", 2, &rooms[1]);
        // Handed over from room to room: the new one speaks first, to where the old one knew the player.
        let known = SocketAddr::from(([127, 0, 0, 1], first.known_as));
        rooms[1].socket.send_to(b"\x02\0\0welcome", known).unwrap();
        assert_eq!(client.hear().map(|one| one.body), Some(b"welcome".to_vec()));
        rooms[0].socket.send_to(b"\x01\0\0late", known).unwrap();
        assert_eq!(client.hear(), None);
        for _ in 0..said {
            let again = client.ask(at, b"b play");
            assert_eq!((again.room, again.known_as), (2, first.known_as));
        }
        assert_eq!(gate.totals().moved(Moved::Seat), 1);
        assert!(gate.totals().dropped(Dropped::Stranger) <= 1);
    }
}

#[test]
fn a_session_that_went_where_no_endpoint_is_yet_is_nobodys_meanwhile() {
    let rooms = [Room::open(1), Room::open(2)];
    let at = free([127, 0, 3, 10]);
    let mut gate = Setup::new(at, by_token(), &[&rooms[0]]).start();
    gate.seat(b"play", 1, &rooms[0]);
    let client = Client::new();
    let known = client.ask(at, b"a play").known_as;
    gate.seat(b"play", 2, &rooms[1]);
    assert_eq!(client.once(at, b"b play"), None);
    assert_eq!(Client::new().once(at, b"c play"), None);
    let known = SocketAddr::from(([127, 0, 0, 1], known));
    rooms[0].socket.send_to(b"\x01\0\0late", known).unwrap();
    assert!(client.hear().is_none_or(|heard| heard.body != b"late"));
    eventually("counted", || {
        let totals = gate.totals();
        totals.dropped(Dropped::Elsewhere) >= 2 && totals.dropped(Dropped::Left) >= 1
    });
    let added = (rooms[1].address, Health::Healthy);
    gate.change(|setup| setup.endpoints.push(added));
    assert_eq!(client.ask(at, b"d play").room, 2);
}

#[test]
fn sessions_stay_under_a_new_plan_and_leave_an_endpoint_that_is_gone() {
    let rooms = [Room::open(1), Room::open(2)];
    let at = free([127, 0, 3, 4]);
    let mut gate = Setup::new(at, rules(), &[&rooms[0]]).start();
    let player = Client::new();
    let first = player.ask(at, b"a");
    // Draining, beside another: who is there stays, who is new goes elsewhere.
    gate.change(|setup| {
        setup.endpoints[0].1 = Health::Draining;
        setup.endpoints.push((rooms[1].address, Health::Healthy));
    });
    assert_eq!(player.ask(at, b"b").known_as, first.known_as);
    eventually("new ones go elsewhere", || {
        Client::new().ask(at, b"c").room == 2
    });
    assert_eq!(player.ask(at, b"d").room, 1);
    gate.change(|setup| {
        setup.endpoints.remove(0);
    });
    eventually("it leaves", || player.ask(at, b"e").room == 2);
    assert_eq!(gate.totals().moved(Moved::Endpoint), 1);
    // Without its listener there is nobody.
    gate.change(|setup| setup.is_open = false);
    eventually("closed", || player.once(at, b"f").is_none());
    eventually("its sessions end", || gate.totals().sessions() == 0);
    gate.change(|setup| setup.is_open = true);
    assert_eq!(player.ask(at, b"g").room, 2);
}

#[test]
fn nobody_is_sent_anything_who_sent_nothing() {
    let room = Room::open(1);
    let at = free([127, 0, 3, 5]);
    let gate = Setup::new(at, rules(), &[&room]).start();
    let (player, other) = (Client::new(), Client::new());
    let known = player.ask(at, b"a").known_as;
    // To the socket that a room knows the player by: from anybody else it leads nowhere.
    let upstream = SocketAddr::from(([127, 0, 0, 1], known));
    let metrics = || {
        let mut out = phalanx_telemetry::metrics::Exposition::new();
        gate.account.datagrams().write(&mut out);
        out.finish()
    };
    assert!(!metrics().contains("\"upstream\""), "nothing is told of it");
    for _ in 0..50 {
        other.0.send_to(b"\x01\0\0forged", upstream).unwrap();
    }
    let strangers = || {
        let ports = gate.account.datagrams().ports();
        let port = ports.iter().find(|port| port.name == "upstream").unwrap();
        port.totals().dropped(Dropped::Stranger)
    };
    eventually("counted", || strangers() == 50);
    assert!(metrics().contains("\"upstream\""));
    assert_eq!(player.hear(), None);
    assert_eq!(other.hear(), None);
    let totals = gate.totals();
    assert!(
        totals.packets[1] <= totals.packets[0],
        "no more answers than questions"
    );
}

#[test]
fn a_flood_from_one_source_costs_the_others_nothing() {
    let room = Room::open(1);
    let at = free([127, 0, 3, 6]);
    let limits = UdpLimits {
        packets_per_second_per_source: 200,
        ..UdpLimits::default()
    };
    let rules = UdpRules { limits, ..rules() };
    let gate = Setup::new(at, rules, &[&room]).start();
    let players: Vec<_> = (1..5)
        .map(|n| Client::at(&format!("127.0.4.{n}")))
        .collect();
    players.iter().for_each(|player| drop(player.ask(at, b"a")));
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = {
        let stop = stop.clone();
        thread::spawn(move || {
            let flooder = Client::at("127.0.5.1").0;
            let mut sent = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(flooder.send_to(&[7; 100], at).is_ok());
            }
            sent
        })
    };
    eventually("it is shut out", || {
        gate.totals().dropped(Dropped::Kernel) > 1000
    });
    let before = gate.totals();
    let mut lost = 0;
    for _ in 0..100 {
        for player in &players {
            player
                .0
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            lost += u32::from(player.once(at, b"b").is_none());
        }
        thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    let sent = flooding.join().unwrap();
    assert_eq!(lost, 0);
    let totals = gate.totals();
    assert_eq!(totals.dropped(Dropped::SourceSessions), 0);
    let passed = totals.packets[0] - before.packets[0] - 400;
    assert!(passed < sent / 2, "{passed} of {sent}");
    assert!(totals.sessions() <= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_process_ends_with_its_last_session() {
    let room = Room::open(1);
    let at = free([127, 0, 3, 7]);
    let idle_timeout = Duration::from_secs(1);
    let rules = UdpRules {
        idle_timeout,
        ..rules()
    };
    let gate = Setup::new(at, rules, &[&room]).start();
    let player = Client::new();
    let first = player.ask(at, b"a");
    let account = gate.account.clone();
    let draining = tokio::spawn(gate.drain(Duration::from_secs(60)));
    let dropped = || {
        let ports = account.datagrams().ports();
        let port = ports.iter().find(|port| port.name == NAME).unwrap();
        port.totals().dropped(Dropped::Draining)
    };
    eventually("new ones are refused", || {
        // It goes on being served meanwhile.
        assert_eq!(player.ask(at, b"b").known_as, first.known_as);
        let _ = Client::new().once(at, b"c");
        dropped() > 0
    });
    let begun = Instant::now();
    draining.await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "before its deadline"
    );
}

/// In a process of its own: the memory and the descriptors of other tests are not these sessions'.
#[test]
fn sessions_are_small_and_few_sockets_carry_them() {
    let own = std::env::current_exe().unwrap();
    let name = "sessions_and_nothing_else";
    let told = std::process::Command::new(own)
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    let is_run = text.contains("1 passed");
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success() && is_run, "{text}{errors}");
}

/// 100,000 take long to make, so that fewer have to do every day.
#[test]
#[ignore = "run by the one above"]
fn sessions_and_nothing_else() {
    let count: u32 = match std::env::var_os("PHALANX_SOAK") {
        Some(_) => 100_000,
        None => 5_000,
    };
    let rooms: Vec<_> = (0..20).map(Room::open).collect();
    let at = free([127, 0, 3, 8]);
    let mut gate = Setup::new(at, rules(), &rooms.iter().collect::<Vec<_>>());
    gate.workers = 1;
    let gate = gate.start();
    for _ in 0..100 {
        Client::new().ask(at, b"a");
    }
    let before = gate.totals().opened;
    let (memory, sockets) = (resident_kb(), descriptors());
    for number in 0..count {
        let [_, a, b, _] = (number / 50 * 256).to_be_bytes();
        let client = Client::at(&format!("127.9.{a}.{b}"));
        client.ask(at, b"x");
    }
    let kb = resident_kb().saturating_sub(memory);
    // Some of them were given the same port of the same address.
    let sessions = gate.totals().opened - before;
    assert!(sessions > u64::from(count) * 8 / 10, "{sessions}");
    assert_eq!(gate.totals().dropped(Dropped::Sockets), 0);
    let each = kb * 1024 / sessions;
    assert!(each < 640, "{each} bytes for a session");
    let more = descriptors() - sockets;
    assert!(more < count as usize / 10, "{more} sockets");
}

fn resident_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
