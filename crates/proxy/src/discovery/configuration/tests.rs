use phalanx_model::ServiceName;
use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
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
