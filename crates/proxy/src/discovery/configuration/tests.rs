use phalanx_model::ServiceName;
use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::gateway::{Chain, ChainTls};
use phalanx_model::resource::udp::{UdpPort, UdpRules};
use phalanx_model::resource::{Assignment, Cluster, Listener, MtlsMode, RouteTable};
use phalanx_xds::{Encoded, encode};

use super::*;

fn cluster_name() -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", "battle"), 80)
}

fn cluster() -> Encoded {
    encode::cluster(&Cluster::new(cluster_name(), Protocol::Auto))
}

fn endpoints() -> Encoded {
    encode::endpoints(&Assignment {
        cluster: cluster_name(),
        endpoints: Vec::new(),
        overprovision: None,
    })
}

fn listener(route_table: &str) -> Encoded {
    let protocol = ListenerProtocol::Http {
        route_table: route_table.into(),
    };
    let address = "127.0.0.1:15001".parse().unwrap();
    encode::listener(&Listener {
        name: "outbound".into(),
        address,
        direction: Direction::Outbound,
        protocol,
    })
}

fn routes(name: &str) -> Encoded {
    encode::routes(&RouteTable {
        name: name.into(),
        hosts: Vec::new(),
    })
}

fn take(configuration: &mut Configuration, resource: Encoded) -> Vec<Refusal> {
    let upsert = (resource.name, resource.version, resource.body.to_vec());
    configuration.apply(resource.kind, vec![upsert], &[])
}

fn names(configuration: &Configuration) -> Vec<String> {
    configuration
        .held()
        .keys()
        .map(|(kind, name)| format!("{kind} {name}"))
        .collect()
}

#[test]
fn it_is_complete_with_clusters_listeners_and_the_tables_they_name() {
    let mut configuration = Configuration::default();
    assert!(!configuration.is_complete());
    assert!(take(&mut configuration, listener("outbound")).is_empty());
    assert_eq!(configuration.tables_named(), ["outbound".to_owned()].into());
    configuration.apply(Kind::Cluster, Vec::new(), &[]);
    assert!(!configuration.is_complete());
    assert!(take(&mut configuration, routes("outbound")).is_empty());
    assert!(configuration.is_complete());
}

#[test]
fn a_mesh_without_anything_is_complete_too() {
    let mut configuration = Configuration::default();
    configuration.apply(Kind::Cluster, Vec::new(), &[]);
    configuration.apply(Kind::Listener, Vec::new(), &[]);
    assert!(configuration.is_complete());
}

#[test]
fn a_refused_resource_leaves_the_last_good_one_and_its_siblings() {
    let mut configuration = Configuration::default();
    take(&mut configuration, routes("outbound"));
    let good = configuration.held()[&(Kind::Routes, "outbound".into())]
        .version
        .clone();
    let bad = |name: &str| (name.to_owned(), "bad".to_owned(), b"\xff".to_vec());
    let other = routes("other");
    let good_sibling = (other.name, other.version, other.body.to_vec());
    let refusals = configuration.apply(Kind::Routes, vec![bad("outbound"), good_sibling], &[]);
    assert_eq!(
        refusals
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>(),
        ["outbound"]
    );
    assert_eq!(names(&configuration), ["RDS other", "RDS outbound"]);
    assert_eq!(
        configuration.held()[&(Kind::Routes, "outbound".into())].version,
        good
    );
    assert_eq!(
        configuration.refused()[&(Kind::Routes, "outbound".into())].version,
        "bad"
    );
    take(&mut configuration, routes("outbound"));
    assert!(configuration.refused().is_empty());
}

#[test]
fn a_resource_under_another_name_is_refused() {
    let mut configuration = Configuration::default();
    let resource = routes("inside");
    let refusals = configuration.apply(
        Kind::Routes,
        vec![("outside".into(), resource.version, resource.body.to_vec())],
        &[],
    );
    assert_eq!(
        refusals,
        [(
            "outside".to_owned(),
            "the resource calls itself `inside`".to_owned()
        )]
    );
}

#[test]
fn what_is_no_longer_subscribed_to_goes_with_what_named_it() {
    let mut configuration = Configuration::default();
    for resource in [
        cluster(),
        endpoints(),
        listener("outbound"),
        routes("outbound"),
    ] {
        assert!(take(&mut configuration, resource).is_empty());
    }
    configuration.apply(Kind::Cluster, Vec::new(), &[cluster_name().to_string()]);
    assert_eq!(names(&configuration), ["LDS outbound", "RDS outbound"]);
    assert!(configuration.resources().assignments.is_empty());
    take(&mut configuration, listener("another"));
    assert_eq!(names(&configuration), ["LDS outbound"]);
    assert!(configuration.resources().tables.is_empty() && !configuration.is_complete());
}

#[test]
fn on_demand_a_refused_host_is_an_answer_until_a_better_one_comes() {
    let mut configuration = Configuration::default();
    take(&mut configuration, listener("outbound/"));
    configuration.apply(Kind::Cluster, Vec::new(), &[]);
    assert!(configuration.is_complete() && configuration.tables_named().is_empty());
    let name = "outbound/battle".to_owned();
    let bad = (name.clone(), "1".to_owned(), b"\xff".to_vec());
    assert_eq!(configuration.apply(Kind::Routes, vec![bad], &[]).len(), 1);
    let stand_in = &configuration.resources().tables[&name];
    assert!(stand_in.rules().host("battle").is_some() && !configuration.is_nothing(&name));
    take(&mut configuration, routes("outbound/battle"));
    assert!(configuration.is_nothing(&name), "it has no hosts");
    // Another word of the listener leaves hosts alone.
    take(&mut configuration, listener("outbound/"));
    assert_eq!(
        names(&configuration),
        ["LDS outbound", "RDS outbound/battle"]
    );
    configuration.forget(&[name]);
    assert_eq!(names(&configuration), ["LDS outbound"]);
}

#[test]
fn what_callers_are_asked_for_is_compiled_and_unknown_again_when_it_goes() {
    let rules = phalanx_model::resource::Inbound {
        default: phalanx_model::resource::InboundRule {
            mode: MtlsMode::Strict,
            ..Default::default()
        },
        ports: Default::default(),
        colours: Default::default(),
    };
    let listener = Listener {
        name: "inbound".into(),
        address: "0.0.0.0:15006".parse().unwrap(),
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Inbound {
            trust_domain: TrustDomain::parse("phalanx.local").unwrap(),
            rules,
        },
    };
    let mut configuration = Configuration::default();
    assert!(configuration.resources().inbound.is_none());
    assert_eq!(take(&mut configuration, encode::listener(&listener)), []);
    let entries = configuration.resources().inbound.clone().unwrap();
    assert_eq!(entries.of(80).mode, MtlsMode::Strict);
    // A worse one is refused, and the last good one stays.
    let upsert = ("inbound".to_owned(), "2".to_owned(), vec![0xff; 3]);
    let refused = configuration.apply(Kind::Listener, vec![upsert], &[]);
    assert_eq!(refused.len(), 1);
    assert!(configuration.resources().inbound.is_some());
    configuration.apply(Kind::Listener, Vec::new(), &["inbound".into()]);
    assert!(configuration.resources().inbound.is_none());
}

fn datagrams(name: &str, address: SocketAddr) -> Encoded {
    let port = UdpPort {
        name: "UDPRoute/default/room".into(),
        backends: Vec::new(),
        by_source: Vec::new(),
        rules: UdpRules::default(),
    };
    encode::listener(&Listener {
        name: name.into(),
        address,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Udp(port),
    })
}

#[test]
fn a_port_for_datagrams_that_another_has_is_refused_until_it_is_free() {
    let stranger = std::net::UdpSocket::bind("127.0.61.1:0").unwrap();
    let address = stranger.local_addr().unwrap();
    let mut configuration = Configuration::default();
    configuration.with_datagrams(udp::Ports::new(1).0);
    let name = format!("gateway/default/play/udp/{address}");
    let refusals = take(&mut configuration, datagrams(&name, address));
    let [(refused, why)] = refusals.as_slice() else {
        panic!("{refusals:?}");
    };
    assert_eq!(*refused, name);
    assert!(
        why.contains("another process takes datagrams there"),
        "{why}"
    );
    assert!(configuration.resources().listeners.is_empty());
    assert_eq!(configuration.again(), Again::default());
    assert!(configuration.is_waiting());
    drop(stranger);
    let again = configuration.again();
    assert_eq!(again.taken.len(), 1, "{again:?}");
    assert!(configuration.refused().is_empty() && !configuration.has_to_look());
    assert!(configuration.resources().listeners.contains_key(&name));
    configuration.apply(Kind::Listener, Vec::new(), &[name]);
    std::net::UdpSocket::bind(address).expect("what goes is let go");
}

#[test]
fn a_port_for_datagrams_that_the_process_before_did_not_leave_is_refused_then() {
    let stranger = std::net::UdpSocket::bind("127.0.61.2:0").unwrap();
    let address = stranger.local_addr().unwrap();
    let (ports, _own) = udp::Ports::new(1);
    ports.defer();
    let mut configuration = Configuration::default();
    configuration.with_datagrams(ports.clone());
    let name = format!("udp/{address}");
    assert!(take(&mut configuration, datagrams(&name, address)).is_empty());
    assert_eq!(configuration.again(), Again::default(), "not known yet");
    assert!(configuration.has_to_look() && !configuration.is_waiting());
    ports.settle();
    let again = configuration.again();
    let [(lost, why)] = again.lost.as_slice() else {
        panic!("{again:?}");
    };
    assert_eq!(*lost, name);
    assert!(why.contains("--udp"), "{why}");
    assert!(configuration.resources().listeners.is_empty());
    assert!(
        configuration
            .refused()
            .contains_key(&(Kind::Listener, name))
    );
    assert!(configuration.is_waiting());
}

/// Counts what is open.
#[derive(Default)]
struct Opened(std::sync::Mutex<BTreeSet<SocketAddr>>);

impl crate::edge::Sockets for Opened {
    fn open(&self, address: SocketAddr) -> Result<(), String> {
        self.0.lock().unwrap().insert(address);
        Ok(())
    }

    fn close(&self, address: SocketAddr) {
        self.0.lock().unwrap().remove(&address);
    }

    fn left(&self) -> Option<Vec<SocketAddr>> {
        None
    }
}

#[test]
fn connections_and_datagrams_have_the_same_port_without_knowing_of_each_other() {
    let free = std::net::UdpSocket::bind("127.0.61.3:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let opened = Arc::<Opened>::default();
    let certificates = crate::edge::TlsDir::new(None);
    let mut configuration = Configuration::default();
    configuration.at_edge(Edge::new(opened.clone(), certificates));
    configuration.with_datagrams(udp::Ports::new(1).0);
    let of_datagrams = format!("gateway/default/play/udp/{address}");
    assert!(take(&mut configuration, datagrams(&of_datagrams, address)).is_empty());
    let gateway = encode::listener(&Listener {
        name: format!("gateway/default/play/{address}"),
        address,
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Gateway(GatewayPort {
            gateway: ServiceName::new("default", "play"),
            certificates_in: String::new(),
            colours: EdgeColours::default(),
            chains: vec![Chain {
                names: Vec::new(),
                tls: ChainTls::Off,
                target: ChainTarget::Http("gateway/default/play/web".into()),
            }],
        }),
    });
    assert_eq!(take(&mut configuration, gateway), Vec::new());
    configuration.apply(Kind::Listener, Vec::new(), &[of_datagrams]);
    assert!(opened.0.lock().unwrap().contains(&address));
}
