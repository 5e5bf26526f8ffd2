use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::udp::{Token, TokenAt};
use phalanx_model::resource::{Assignment, Cluster, Endpoint, Health};

use super::*;
use crate::account::Account;
use crate::plan::{Bootstrap, Resources};

fn name(service: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", service), 7000)
}

fn endpoint(address: &str, token: &str, health: Health) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        zone: String::new(),
        is_far: false,
        health,
        version: String::new(),
        instance: "i".into(),
        target: 7000,
        mutual_tls: false,
        datagrams: true,
        token: token.into(),
    }
}

fn plan(shares: &[(&str, u32)], of_room: Vec<Endpoint>) -> Plan {
    let share = |(service, weight): &(&str, u32)| Share {
        cluster: (*service != "-").then(|| name(service)),
        weight: *weight,
    };
    let port = UdpPort {
        name: "UDPRoute/default/room".into(),
        backends: shares.iter().map(share).collect(),
        by_source: Vec::new(),
        rules: UdpRules::default(),
    };
    let listener = Listener {
        name: "udp/127.0.0.1:7000".into(),
        address: "127.0.0.1:7000".parse().unwrap(),
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Udp(port),
    };
    let mut resources = Resources::default();
    resources.listeners.insert(listener.name.clone(), listener);
    for service in ["lobby", "room"] {
        let cluster = Arc::new(Cluster::new(name(service), Protocol::Tcp));
        resources.clusters.insert(name(service), cluster);
    }
    let assignment = Arc::new(Assignment {
        cluster: name("room"),
        endpoints: of_room,
        overprovision: None,
    });
    resources.assignments.insert(name("room"), assignment);
    let bootstrap = Bootstrap {
        service: ServiceName::new("default", "edge"),
        version: String::new(),
        inbound: Vec::new(),
        tcp: Vec::new(),
    };
    Plan::assemble(&resources, &bootstrap, &Plan::empty(), &Account::new(1))
}

#[test]
fn backends_get_their_shares_and_the_share_of_none_is_dropped() {
    let plan = plan(&[("lobby", 1), ("room", 2), ("-", 1)], Vec::new());
    let [port] = &*plan.udp else {
        panic!("there is one");
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = [0; 3];
    for _ in 0..4000 {
        match port
            .choose("10.9.9.9".parse().unwrap(), &mut rng)
            .unwrap()
            .cluster
        {
            Some(place) => counts[place] += 1,
            None => counts[2] += 1,
        }
    }
    for (count, expected) in counts.into_iter().zip([1000, 2000, 1000]) {
        assert!(i32::abs(count - expected) < 150, "{counts:?}");
    }
    assert!(
        super::UdpPortPlan::choose(
            &UdpPortPlan {
                backends: Box::default(),
                ..port.clone()
            },
            "10.9.9.9".parse().unwrap(),
            &mut rng
        )
        .is_none()
    );
}

#[test]
fn the_narrowest_network_that_holds_a_source_decides() {
    let mut port = plan(&[("lobby", 1)], Vec::new()).udp[0].clone();
    let backends = |cluster| {
        let backend = super::UdpBackend {
            weights: 1,
            cluster,
            service: None,
        };
        Box::from([backend])
    };
    let network = |text: &str| text.parse().unwrap();
    port.by_source = Box::from([
        (network("10.1.0.0/16"), backends(Some(7))),
        (network("10.0.0.0/8"), backends(Some(8))),
    ]);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut of = |from: &str| {
        let chosen = port.choose(from.parse().unwrap(), &mut rng);
        chosen.unwrap().cluster
    };
    assert_eq!(of("10.1.2.3"), Some(7));
    assert_eq!(of("::ffff:10.2.2.3"), Some(8));
    assert_eq!(of("11.1.2.3"), port.backends[0].cluster);
}

#[test]
fn a_token_leads_to_its_endpoint_also_while_that_drains_and_of_two_to_the_one_that_works() {
    let endpoints = vec![
        endpoint("10.0.0.1:7000", "0a0b", Health::Unhealthy),
        endpoint("10.0.0.2:7000", "0a0b", Health::Healthy),
        endpoint("10.0.0.3:7000", "ff", Health::Draining),
        endpoint("10.0.0.4:7000", "", Health::Healthy),
    ];
    let plan = plan(&[("lobby", 1), ("room", 1)], endpoints);
    let port = &plan.udp[0];
    let at = |token: &[u8]| {
        let target = port.by_token(&plan, token)?;
        Some(
            plan.clusters[target.cluster].endpoints[target.endpoint]
                .address
                .to_string(),
        )
    };
    assert_eq!(at(&[0x0a, 0x0b]).as_deref(), Some("10.0.0.2:7000"));
    assert_eq!(at(&[0xff]).as_deref(), Some("10.0.0.3:7000"));
    assert_eq!(at(&[0x0a]), None);
    assert_eq!(at(&[]), None);
    let address = "10.0.0.4:7000".parse().unwrap();
    let target = port.at(&plan, address).unwrap();
    assert_eq!(plan.clusters[target.cluster].name, name("room"));
}

#[test]
fn tokens_are_looked_for_in_the_directories_of_all_that_may_get_the_datagrams() {
    let share = |service: &str| Share {
        cluster: Some(name(service)),
        weight: 1,
    };
    let mut port = UdpPort {
        name: "UDPRoute/default/room".into(),
        backends: vec![share("room")],
        by_source: vec![("10.0.0.0/8".parse().unwrap(), vec![share("lobby")])],
        rules: UdpRules::default(),
    };
    let asked = |port: &UdpPort| {
        let mut resources = Resources::default();
        let listener = Listener {
            name: "udp/127.0.0.1:7000".into(),
            address: "127.0.0.1:7000".parse().unwrap(),
            direction: Direction::Outbound,
            protocol: ListenerProtocol::Udp(port.clone()),
        };
        resources.listeners.insert(listener.name.clone(), listener);
        let asked = resources.directories();
        asked.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(
        asked(&port).is_empty(),
        "without a token nobody has to know"
    );
    port.rules.token = Some(Token {
        at: TokenAt::Suffix,
        len: 16,
        strip: true,
        required: false,
    });
    assert_eq!(asked(&port), ["default/lobby", "default/room"]);
}
