use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use phalanx_model::name::ServiceName;
use phalanx_model::resource::udp::{Token, TokenAt, UdpLimits};

use super::*;
use crate::account::udp::Moved;
use crate::directory::Directory;
use crate::udp::kin::Owners;

const PORT: u16 = 0;
/// Of what tests send, the first bytes.
const TOKEN: usize = 4;

/// A plan with endpoints that tests change.
struct Fake {
    endpoints: Vec<SocketAddr>,
    labels: HashMap<Vec<u8>, SocketAddr>,
    directory: Arc<Directory>,
    service: ServiceName,
    epoch: u64,
    ended: Vec<SocketAddr>,
}

impl World for Fake {
    fn seat(&self, _: SocketAddr, token: &[u8]) -> Seated {
        if !self.directory.is_filled(&self.service) {
            return Seated::Elsewhere;
        }
        let Some(held) = self.directory.hold(&self.service, token) else {
            return Seated::Nobody;
        };
        let address = held.addresses.first().copied();
        match address.filter(|address| self.endpoints.contains(address)) {
            Some(address) => Seated::At(Seat { address, held }),
            None => Seated::Elsewhere,
        }
    }

    fn changes(&self) -> u64 {
        self.directory.changes()
    }

    fn is_endpoint(&self, _: SocketAddr, address: SocketAddr) -> bool {
        self.endpoints.contains(&address)
    }

    fn labelled(&self, _: SocketAddr, token: &[u8]) -> Option<SocketAddr> {
        self.labels.get(token).copied()
    }

    fn choose(
        &mut self,
        _: SocketAddr,
        _: SocketAddr,
        live: &dyn Fn(SocketAddr) -> u32,
    ) -> Option<SocketAddr> {
        self.endpoints.iter().copied().min_by_key(|one| live(*one))
    }

    fn fate(&self, _: SocketAddr, endpoint: SocketAddr) -> Fate {
        match self.endpoints.contains(&endpoint) {
            true => Fate::Stays,
            false => Fate::Gone,
        }
    }

    fn edge(&self, _: SocketAddr, _: SocketAddr) -> Option<Arc<Edge>> {
        None
    }

    fn ended(&mut self, told: &Told<'_>) {
        self.ended.push(told.client);
    }
}

impl Fake {
    fn seat_at(&mut self, token: &[u8], endpoint: SocketAddr) {
        self.epoch += 1;
        let instance = endpoint.to_string().as_str().into();
        let entry = Entry::new(token, self.epoch, instance, [endpoint].into());
        self.directory.change(&self.service, vec![entry], &[]);
    }
}

struct Fixture {
    table: Table,
    world: Fake,
    counts: Arc<account::Port>,
    strangers: Arc<account::Port>,
    now: Now,
}

fn endpoint(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000 + number))
}

fn client(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([172, a, b, c], 40_000))
}

fn rules(token: bool, limits: UdpLimits) -> UdpRules {
    let rule = Token {
        at: TokenAt::Prefix,
        len: TOKEN as u8,
        strip: true,
        required: true,
    };
    UdpRules {
        idle_timeout: Duration::from_secs(60),
        token: token.then_some(rule),
        limits,
    }
}

fn config(core: usize, sockets_max: usize, strangers: &Arc<account::Port>) -> Config {
    Config {
        seed: 99,
        core,
        sockets_max,
        sources_max: 1 << 20,
        everybody: None,
        kin: None,
        strangers: strangers.clone(),
    }
}

fn world(endpoints: u16) -> Fake {
    let directory = Directory::new();
    let service = ServiceName::new("game", "room");
    directory.fill(&service, Vec::new());
    Fake {
        endpoints: (0..endpoints).map(endpoint).collect(),
        labels: HashMap::new(),
        directory,
        service,
        epoch: 0,
        ended: Vec::new(),
    }
}

fn fixture(rules: UdpRules, endpoints: u16, sockets_max: usize) -> Fixture {
    let counts = Arc::new(account::Port::new("UDPRoute/game/room", None, 1));
    let strangers = Arc::new(account::Port::new("", None, 1));
    let mut table = Table::new(config(0, sockets_max, &strangers));
    let address = "192.0.2.1:7777".parse().unwrap();
    assert_eq!(
        table.open(address, rules, counts.clone(), Arc::default()),
        PORT
    );
    Fixture {
        table,
        world: world(endpoints),
        counts,
        strangers,
        now: Now {
            ns: 1_000 * TICK_NS,
        },
    }
}

fn plain(endpoints: u16) -> Fixture {
    fixture(rules(false, UdpLimits::default()), endpoints, 10_000)
}

impl Fixture {
    fn up(&mut self, from: SocketAddr, datagram: &[u8]) -> Result<Up, Dropped> {
        let arrived = Arrived {
            port: PORT,
            from,
            local: None,
            datagram,
            is_paid: false,
        };
        self.table.up(&arrived, self.now, &mut self.world)
    }

    fn onward(&mut self, from: SocketAddr, datagram: &[u8]) -> (SocketId, SocketAddr) {
        match self.up(from, datagram) {
            Ok(Up::Onward { socket, to, .. }) => (socket, to),
            other => panic!("{other:?}"),
        }
    }

    /// Says something, is answered, and says something again.
    fn stay(&mut self, from: SocketAddr) -> (SocketId, SocketAddr) {
        let way = self.onward(from, b"x");
        self.down(way.0, way.1);
        self.onward(from, b"x")
    }

    fn down(&mut self, socket: SocketId, from: SocketAddr) -> Option<SocketAddr> {
        let down = self.table.down(socket, from, 10, self.now, &mut self.world);
        down.ok().map(|down| down.to)
    }

    fn later(&mut self, seconds: u64) {
        self.now.ns += seconds * 10 * TICK_NS;
        while self.table.tick(self.now, &mut self.world) {}
    }

    fn dropped(&self, why: Dropped) -> u64 {
        self.counts.totals().dropped(why)
    }
}

#[test]
fn a_session_keeps_its_endpoint_and_its_answers_reach_its_client_only() {
    let mut game = plain(3);
    let ways: Vec<_> = (0..30).map(|n| game.onward(client(n), b"hello")).collect();
    for (number, (socket, to)) in ways.iter().enumerate() {
        let from = client(number as u32);
        assert_eq!(game.onward(from, b"again"), (*socket, *to));
        assert_eq!(game.down(*socket, *to), Some(from));
    }
    let mut told = ways.clone();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), 30, "an endpoint can tell its sessions apart");
    assert!(
        ways.iter().all(|(socket, _)| socket >> 1 < 10),
        "sockets are shared"
    );
    let totals = game.counts.totals();
    assert_eq!(
        (totals.sessions(), totals.packets, totals.bytes),
        (30, [60, 30], [300, 300])
    );
}

#[test]
fn nothing_is_sent_to_whom_nothing_came_from() {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut game = plain(4);
    let mut known = std::collections::BTreeSet::new();
    for _ in 0..20_000 {
        match rng.u8(..) {
            0..60 => {
                let from = client(rng.u32(0..500));
                if game.up(from, b"x").is_ok() {
                    known.insert(from);
                }
            }
            60..62 => game.later(rng.u64(1..40)),
            _ => {
                let from = match rng.bool() {
                    true => endpoint(rng.u16(0..6)),
                    false => client(rng.u32(0..500)),
                };
                if let Some(to) = game.down(rng.u32(0..400), from) {
                    assert!(known.contains(&to));
                    assert!(game.world.endpoints.contains(&from));
                }
            }
        }
        for ended in game.world.ended.drain(..) {
            known.remove(&ended);
        }
    }
    assert!(game.strangers.totals().dropped(Dropped::Stranger) > 1_000);
}

#[test]
fn an_idle_session_ends_and_a_used_one_does_not() {
    let mut game = plain(1);
    let (idle, asked, answered) = (client(1), client(2), client(3));
    for from in [idle, asked, answered] {
        game.stay(from);
    }
    let (socket, to) = game.stay(answered);
    for round in 0..10 {
        game.later(20);
        game.onward(asked, b"x");
        // What an endpoint says to somebody who says nothing keeps no session.
        let heard = game.down(socket, to);
        assert_eq!(heard, (round < 2).then_some(answered), "{round}");
    }
    assert_eq!(game.world.ended.len(), 2);
    assert!(!game.world.ended.contains(&asked));
    game.later(61);
    assert_eq!(game.world.ended.len(), 3);
    assert!(game.table.is_empty());
    assert_eq!(game.down(socket, to), None);
    assert_eq!(game.counts.totals().sessions(), 0);
}

#[test]
fn under_pressure_the_established_stay_and_the_new_are_dropped_and_counted() {
    let limits = UdpLimits {
        sessions: 50,
        ..UdpLimits::default()
    };
    let mut game = fixture(rules(false, limits), 2, 10_000);
    for n in 0..50 {
        game.stay(client(n));
    }
    assert!((50..80).all(|n| game.up(client(n), b"x").is_err()));
    assert_eq!(game.dropped(Dropped::Sessions), 30);
    assert!((0..50).all(|n| game.up(client(n), b"x").is_ok()));
    // One endpoint with more sessions than sockets may be.
    let mut game = fixture(rules(false, UdpLimits::default()), 1, 20);
    for n in 0..20 {
        game.stay(client(n));
    }
    game.later(2);
    assert!((20..80).all(|n| game.up(client(n), b"x").is_err()));
    assert_eq!(game.dropped(Dropped::Sockets), 60);
    assert_eq!(game.table.len(), 20);
}

#[test]
fn a_source_has_its_own_bounds_and_takes_nothing_from_others() {
    let limits = UdpLimits {
        sessions_per_source: 5,
        packets_per_second_per_source: 100,
        ..UdpLimits::default()
    };
    let mut game = fixture(rules(false, limits), 2, 10_000);
    let of = |port: u16| SocketAddr::from(([9, 9, 9, 9], port));
    let begun = (1..20).filter(|port| game.up(of(*port), b"x").is_ok());
    assert_eq!(begun.count(), 5);
    assert_eq!(game.dropped(Dropped::SourceSessions), 14);
    let passed = (0..10_000).filter(|_| game.up(of(1), b"x").is_ok()).count();
    assert_eq!(passed, 81, "what is left of its hundred");
    assert_eq!(game.table.flooding(), Some((PORT, of(1))));
    assert!((0..90).all(|_| game.up(client(1), b"x").is_ok()));
    assert_eq!(game.table.flooding(), None);
}

#[test]
fn who_can_not_be_answered_begins_nothing() {
    let mut game = plain(1);
    for from in [
        "0.0.0.0:5",
        "255.255.255.255:5",
        "224.0.0.1:5",
        "10.1.1.1:0",
        "192.0.2.1:7777",
        // An endpoint: what it answers would be asked of it again.
        "10.0.0.1:7000",
    ] {
        assert_eq!(
            game.up(from.parse().unwrap(), b"x"),
            Err(Dropped::BadSource)
        );
    }
    assert!(game.table.is_empty());
}

#[test]
fn a_token_leads_to_its_instance_is_cut_off_and_one_that_leads_nowhere_is_dropped() {
    let mut game = fixture(rules(true, UdpLimits::default()), 5, 100);
    game.world.seat_at(b"seat", endpoint(3));
    game.world.labels.insert(b"labl".to_vec(), endpoint(4));
    let up = game.up(client(1), b"seatbody").unwrap();
    assert!(matches!(up, Up::Onward { to, body, .. } if to == endpoint(3) && body == (4..8)));
    assert_eq!(game.onward(client(1), b"lablbody").1, endpoint(4));
    assert_eq!(game.onward(client(1), b"seat").1, endpoint(3));
    assert_eq!(game.up(client(1), b"nonebody"), Err(Dropped::Token));
    assert_eq!(game.up(client(1), b"no"), Err(Dropped::Token));
    assert_eq!(
        game.table.len(),
        2,
        "two rooms over one socket are two sessions"
    );
    let suffix = UdpRules {
        token: Some(Token {
            at: TokenAt::Suffix,
            len: TOKEN as u8,
            strip: true,
            required: false,
        }),
        ..rules(true, UdpLimits::default())
    };
    let mut game = fixture(suffix, 5, 100);
    game.world.seat_at(b"seat", endpoint(3));
    let up = game.up(client(1), b"bodyseat").unwrap();
    assert!(matches!(up, Up::Onward { body, .. } if body == (0..4)));
    let up = game.up(client(1), b"bodynone").unwrap();
    assert!(
        matches!(up, Up::Onward { body, .. } if body == (0..8)),
        "as without a token"
    );
}

#[test]
fn a_session_roams_with_its_token_and_answers_go_to_the_new_address_at_once() {
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.seat_at(b"seat", endpoint(1));
    let (before, after) = (client(1), client(2));
    let way = game.onward(before, b"seat1");
    assert_eq!(game.down(way.0, way.1), Some(before));
    assert_eq!(
        game.onward(after, b"seat2"),
        way,
        "the endpoint sees no change"
    );
    assert_eq!(game.down(way.0, way.1), Some(after));
    assert_eq!(
        (game.table.len(), game.counts.totals().moved(Moved::Roamed)),
        (1, 1)
    );
    // A token that the directory does not know any more moves nothing.
    game.world.directory.fill(&game.world.service, Vec::new());
    assert_eq!(game.up(client(3), b"seat3"), Err(Dropped::Token));
    assert_eq!(game.down(way.0, way.1), Some(after));
}

#[test]
fn a_token_that_two_addresses_use_in_turn_gives_each_a_session() {
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.seat_at(b"room", endpoint(1));
    for _ in 0..5 {
        for number in 0..6 {
            game.onward(client(number), b"room!");
        }
    }
    for number in 0..6 {
        let way = game.onward(client(number), b"room!");
        assert_eq!(game.down(way.0, way.1), Some(client(number)));
    }
    // The labels of an instance are all its clients'.
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.labels.insert(b"labl".to_vec(), endpoint(2));
    let ways: Vec<_> = (0..9).map(|n| game.onward(client(n), b"labl")).collect();
    assert_eq!(
        (game.table.len(), game.counts.totals().moved(Moved::Roamed)),
        (9, 0)
    );
    assert!(ways.iter().all(|(_, to)| *to == endpoint(2)));
}

#[test]
fn the_directory_moves_a_session_and_answers_follow_before_its_client_speaks() {
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.seat_at(b"seat", endpoint(1));
    let player = client(1);
    let (socket, _) = game.onward(player, b"seat1");
    game.world.seat_at(b"seat", endpoint(2));
    assert_eq!(
        game.down(socket, endpoint(2)),
        Some(player),
        "whom it was handed to"
    );
    assert_eq!(game.down(socket, endpoint(1)), None, "who had it");
    assert_eq!(game.onward(player, b"seat2"), (socket, endpoint(2)));
    game.world.seat_at(b"seat", endpoint(0));
    assert_eq!(game.down(socket, endpoint(2)), None);
    assert_eq!(game.dropped(Dropped::Left), 1);
    assert_eq!(game.onward(player, b"seat3").1, endpoint(0));
    assert_eq!(game.counts.totals().moved(Moved::Seat), 2);
}

/// A session with a token at endpoint 1, which its client has heard of.
fn seated() -> (Fixture, SocketId) {
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.seat_at(b"seat", endpoint(1));
    let (socket, _) = game.onward(client(1), b"seat1");
    assert_eq!(game.down(socket, endpoint(1)), Some(client(1)));
    game.onward(client(1), b"seat2");
    (game, socket)
}

#[test]
fn a_session_whose_seat_is_at_no_endpoint_of_ours_goes_nowhere_until_it_is() {
    let (mut game, socket) = seated();
    game.world.seat_at(b"seat", endpoint(9));
    for _ in 0..3 {
        assert_eq!(game.up(client(1), b"seat3"), Err(Dropped::Elsewhere));
        assert_eq!(game.down(socket, endpoint(1)), None, "who had it");
        assert_eq!(game.up(client(2), b"seat3"), Err(Dropped::Elsewhere));
        game.later(2);
    }
    // By a plan that knows that endpoint, whoever speaks first.
    game.world.endpoints.push(endpoint(9));
    game.table.renew(&game.world);
    assert_eq!(game.down(socket, endpoint(9)), Some(client(1)));
    assert_eq!(game.onward(client(1), b"seat4"), (socket, endpoint(9)));
    // It leaves the plan, and the session does not go to another room for it.
    game.world.endpoints.retain(|one| *one != endpoint(9));
    game.table.renew(&game.world);
    game.later(2);
    assert_eq!(game.up(client(1), b"seat5"), Err(Dropped::Elsewhere));
    assert_eq!(game.down(socket, endpoint(9)), None);
    game.world.seat_at(b"seat", endpoint(2));
    assert_eq!(game.onward(client(1), b"seat6").1, endpoint(2));
}

#[test]
fn before_the_directory_has_come_no_token_leads_anywhere() {
    let optional = Token {
        required: false,
        ..rules(true, UdpLimits::default()).token.unwrap()
    };
    let rules = UdpRules {
        token: Some(optional),
        ..rules(true, UdpLimits::default())
    };
    let mut game = fixture(rules, 3, 100);
    let service = game.world.service.clone();
    game.world.directory.forget(&service);
    assert_eq!(game.up(client(1), b"seat1"), Err(Dropped::Elsewhere));
    game.world.directory.fill(&service, Vec::new());
    game.world.seat_at(b"seat", endpoint(2));
    assert_eq!(game.onward(client(1), b"seat1").1, endpoint(2));
}

#[test]
fn a_client_that_may_be_made_up_gets_three_times_what_came_from_it_and_no_more() {
    let mut game = plain(1);
    let (socket, to) = game.onward(client(1), &[0; 100]);
    let heard = |game: &mut Fixture, bytes: usize| {
        let said = (0..1000).map(|_| {
            game.table
                .down(socket, to, bytes, game.now, &mut game.world)
        });
        said.filter(Result::is_ok).count()
    };
    assert_eq!(heard(&mut game, 100), 3);
    assert_eq!(game.dropped(Dropped::Unproven), 997);
    // It answers, so it is there.
    game.onward(client(1), &[0; 100]);
    assert_eq!(heard(&mut game, 1000), 1000);
    // Not so before it was told anything.
    let mut game = plain(1);
    for _ in 0..3 {
        game.onward(client(1), &[0; 100]);
    }
    assert_eq!(heard(&mut game, 100), 9);
    // An application on this machine can't be made up by others.
    let mut game = plain(1);
    game.onward("127.0.0.1:5000".parse().unwrap(), b"x");
    assert_eq!(heard(&mut game, 1000), 1000);
}

#[test]
fn who_roams_proves_anew_that_it_is_there() {
    let (mut game, socket) = seated();
    let heard = |game: &mut Fixture| {
        (0..100)
            .filter(|_| game.down(socket, endpoint(1)).is_some())
            .count()
    };
    assert_eq!(heard(&mut game), 100);
    // 33 bytes with headers; an answer has 38.
    game.onward(client(2), b"seat3");
    assert_eq!(heard(&mut game), 2);
    game.onward(client(2), b"seat4");
    assert_eq!(heard(&mut game), 100);
}

#[test]
fn a_socket_that_a_session_left_is_another_ones_only_after_silence() {
    let mut game = plain(1);
    let (socket, to) = game.stay(client(1));
    game.later(61);
    assert!(game.table.is_empty());
    for number in 2..12 {
        game.later(4);
        assert_eq!(game.down(socket, to), None, "late");
        assert_ne!(game.onward(client(number), b"x").0, socket);
    }
    game.later(4);
    let ways = (12..40).map(|number| game.onward(client(number), b"x").0);
    assert!(ways.into_iter().all(|way| way != socket));
    game.later(2);
    let ways: Vec<_> = (40..80)
        .map(|number| game.onward(client(number), b"x").0)
        .collect();
    assert!(ways.contains(&socket));
}

#[test]
fn a_session_of_one_datagram_ends_soon_and_makes_room_before_others_do() {
    let limits = UdpLimits {
        sessions: 50,
        ..UdpLimits::default()
    };
    let mut game = fixture(rules(false, limits), 2, 10_000);
    for n in 0..20 {
        game.stay(client(n));
    }
    // Made up, all of them.
    for number in 1000..5000 {
        game.onward(client(number), b"x");
    }
    assert_eq!((game.table.len(), game.dropped(Dropped::Sessions)), (50, 0));
    assert!((0..20).all(|n| !game.world.ended.contains(&client(n))));
    game.later(6);
    assert_eq!(game.table.len(), 20);
    assert!(
        game.table
            .ports
            .iter()
            .flatten()
            .all(|port| port.half.is_empty())
    );
    // The sockets of an endpoint: those that were not answered, and not at once, for they might be.
    let mut game = fixture(rules(false, UdpLimits::default()), 1, 20);
    for n in 0..10 {
        game.stay(client(n));
    }
    let (socket, to) = game.onward(client(99), b"x");
    game.down(socket, to);
    for n in 1000..1009 {
        game.onward(client(n), b"x");
    }
    assert_eq!(game.up(client(2000), b"x"), Err(Dropped::Sockets));
    game.later(1);
    let begun = (2000..2020).filter(|n| game.up(client(*n), b"x").is_ok());
    assert_eq!(begun.count(), 9);
    assert_eq!(game.down(socket, to), Some(client(99)));
    assert!((0..10).all(|n| game.up(client(n), b"x").is_ok()));
    assert_eq!(game.table.len(), 20);
}

#[test]
fn sources_that_lead_nowhere_are_not_remembered() {
    let mut game = fixture(rules(true, UdpLimits::default()), 3, 100);
    game.world.seat_at(b"seat", endpoint(1));
    for number in 0..1000 {
        assert_eq!(game.up(client(number), b"nope"), Err(Dropped::Token));
    }
    assert_eq!(game.table.sources.len(), 0);
    game.onward(client(1), b"seat");
    assert_eq!(game.table.sources.len(), 1);
}

#[test]
fn a_datagram_that_came_to_another_core_is_paid_for_once_and_shut_out_where_it_came() {
    let strangers = Arc::new(account::Port::new("", None, 2));
    let counts = Arc::new(account::Port::new("x", None, 2));
    let (owners, shared) = (Owners::new(7), Arc::<AtomicU32>::default());
    let everybody = Arc::<source::Everybody>::default();
    let limits = UdpLimits {
        packets_per_second_per_source: 100,
        ..UdpLimits::default()
    };
    let core = |core: u16| {
        let mut table = Table::new(Config {
            kin: Some(Kin::new(owners.clone(), core)),
            everybody: Some(everybody.clone()),
            ..config(core.into(), 100, &strangers)
        });
        // Cores see ports in any order.
        for port in 0..=core {
            let address = SocketAddr::from(([192, 0, 2, 1], 7777 + core - port));
            table.open(
                address,
                rules(false, limits),
                counts.clone(),
                shared.clone(),
            );
        }
        table
    };
    let (mut one, mut other, mut world) = (core(0), core(1), world(3));
    let now = Now { ns: 5 * TICK_NS };
    let arrived = |port, is_paid| Arrived {
        port,
        from: client(1),
        local: None,
        datagram: b"x",
        is_paid,
    };
    assert!(one.up(&arrived(0, false), now, &mut world).is_ok());
    let passed = (0..1000).filter(|_| {
        let passed = other.up(&arrived(1, false), now, &mut world) == Ok(Up::Elsewhere(0));
        assert!(!passed || one.up(&arrived(0, true), now, &mut world).is_ok());
        passed
    });
    assert_eq!(passed.count(), 99);
    assert_eq!(
        (one.flooding(), other.flooding()),
        (None, Some((1, client(1))))
    );
}

#[test]
fn a_session_stays_while_its_endpoint_is_there_and_goes_elsewhere_when_it_is_gone() {
    let mut game = plain(2);
    let way = game.stay(client(1));
    game.world.endpoints.push(endpoint(9));
    game.table.renew(&game.world);
    game.later(5);
    assert_eq!(game.onward(client(1), b"x"), way);
    game.world.endpoints.retain(|one| *one != way.1);
    game.table.renew(&game.world);
    game.later(5);
    let next = game.onward(client(1), b"x");
    assert_ne!(next.1, way.1);
    assert_eq!(game.counts.totals().moved(Moved::Endpoint), 1);
    assert_eq!(game.down(next.0, next.1), Some(client(1)));
    assert_eq!(game.down(way.0, way.1), None);
    game.world.endpoints.clear();
    game.table.renew(&game.world);
    assert_eq!(game.onward(client(1), b"x"), next, "there is no other");
    assert_eq!(game.up(client(2), b"x"), Err(Dropped::NoEndpoint));
}

#[test]
fn a_draining_process_serves_the_sessions_that_it_has() {
    let mut game = plain(2);
    let way = game.onward(client(1), b"x");
    game.table.drain();
    assert_eq!(game.onward(client(1), b"x"), way);
    assert_eq!(game.up(client(2), b"x"), Err(Dropped::Draining));
    game.later(61);
    assert!(game.table.is_empty());
}

#[test]
fn a_closed_port_loses_its_sessions_and_its_place_is_used_again() {
    let mut game = plain(2);
    for number in 0..3000 {
        game.onward(client(number), b"x");
    }
    game.table.close(PORT);
    (0..10).for_each(|_| game.later(1));
    assert!(game.table.is_empty());
    let address = "192.0.2.1:7778".parse().unwrap();
    let rules = rules(false, UdpLimits::default());
    let again = game
        .table
        .open(address, rules, game.counts.clone(), Arc::default());
    assert_eq!(again, PORT);
    game.onward(client(1), b"x");
}

#[test]
fn what_comes_to_another_core_goes_to_the_one_that_has_the_session() {
    let strangers = Arc::new(account::Port::new("", None, 2));
    let counts = Arc::new(account::Port::new("x", None, 2));
    let (owners, shared) = (Owners::new(7), Arc::<AtomicU32>::default());
    let core = |core: u16| {
        let kin = Kin::new(owners.clone(), core);
        let mut table = Table::new(Config {
            kin: Some(kin),
            ..config(core.into(), 100, &strangers)
        });
        let address = "192.0.2.1:7777".parse().unwrap();
        table.open(
            address,
            rules(true, UdpLimits::default()),
            counts.clone(),
            shared.clone(),
        );
        table
    };
    let (mut one, mut other, mut world) = (core(0), core(1), world(3));
    world.seat_at(b"seat", endpoint(1));
    let mut now = Now { ns: TICK_NS };
    let arrived = |from| Arrived {
        port: PORT,
        from,
        local: None,
        datagram: b"seat",
        is_paid: false,
    };
    let way = one.up(&arrived(client(1)), now, &mut world).unwrap();
    for _ in 0..30 {
        now.ns += TICK_NS;
        let roamed = other.up(&arrived(client(2)), now, &mut world);
        assert_eq!(roamed, Ok(Up::Elsewhere(0)));
    }
    assert_eq!(
        one.up(&arrived(client(2)), now, &mut world),
        Ok(way.clone())
    );
    assert!(other.is_empty());
    // It ended there: whoever meets it next may have it.
    now.ns += 700 * TICK_NS;
    assert!(!one.tick(now, &mut world) && one.is_empty());
    assert!(matches!(
        other.up(&arrived(client(2)), now, &mut world),
        Ok(Up::Onward { .. })
    ));
}

/// Whatever happens, in whatever order: what the table says of itself stays true.
#[test]
fn sessions_sources_and_sockets_add_up_whatever_comes() {
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = UdpLimits {
            sessions: 300,
            sessions_per_source: 3,
            packets_per_second_per_source: 50,
            ..UdpLimits::default()
        };
        let optional = Token {
            required: false,
            ..rules(true, limits).token.unwrap()
        };
        let rules = UdpRules {
            token: Some(optional),
            ..rules(true, limits)
        };
        let mut game = fixture(rules, 6, 60);
        let mut ways: BTreeMap<(SocketId, SocketAddr), SocketAddr> = BTreeMap::new();
        for _ in 0..4_000 {
            match rng.u8(..) {
                0..3 => game.later(rng.u64(1..30)),
                3..6 => {
                    let token = [b't', b'o', b'k', rng.u8(0..40)];
                    game.world.seat_at(&token, endpoint(rng.u16(0..6)));
                }
                6..8 => {
                    game.world.endpoints =
                        (0..6).filter(|_| rng.u8(..) < 200).map(endpoint).collect();
                    game.table.renew(&game.world);
                }
                _ => {
                    let from = client(rng.u32(0..200));
                    let datagram = [b't', b'o', b'k', rng.u8(0..50), 1];
                    if let Ok(Up::Onward { socket, to, .. }) = game.up(from, &datagram) {
                        assert!(socket >> 1 < 60);
                        let same = game.down(socket, to);
                        assert!(same.is_none_or(|same| same == from), "{same:?} {from}");
                        ways.insert((socket, to), from);
                    }
                }
            }
            let totals = game.counts.totals();
            assert_eq!(totals.sessions(), game.table.len() as u64);
            assert!(game.table.len() <= 300);
        }
        game.world.endpoints.clear();
        game.later(200);
        assert!(game.table.is_empty());
        game.later(2000);
        (0..300).for_each(|_| game.later(1));
        assert_eq!(game.table.sources.len(), 0);
    }
}

#[test]
fn a_hundred_thousand_sessions_take_few_sockets() {
    let mut game = plain(100);
    for number in 0..100_000 {
        let (socket, _) = game.onward(client(number), b"x");
        assert!(socket >> 1 < 1_000);
    }
    assert_eq!(game.table.len(), 100_000);
}
