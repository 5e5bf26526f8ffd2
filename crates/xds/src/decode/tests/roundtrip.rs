use proptest::collection::vec;
use proptest::prelude::*;

use super::models;
use crate::decode::{self, DecodeError, Resource};
use crate::{Kind, encode};

proptest! {
    #[test]
    fn listeners_come_back(listener in models::listener()) {
        let sent = encode::listener(&listener);
        prop_assert_eq!(&sent.version, &encode::listener(&listener.clone()).version);
        prop_assert_eq!(decode::decode(Kind::Listener, &sent.body).unwrap(), Resource::Listener(listener.clone()));
        prop_assert_eq!(decode::listener(&sent.name, &sent.body).unwrap(), listener);
    }

    #[test]
    fn route_tables_come_back(table in models::table()) {
        let sent = encode::routes(&table);
        prop_assert_eq!(&sent.version, &encode::routes(&table.clone()).version);
        prop_assert_eq!(decode::decode(Kind::Routes, &sent.body).unwrap(), Resource::Routes(table.clone()));
        prop_assert_eq!(decode::routes(&sent.name, &sent.body).unwrap(), table);
    }

    #[test]
    fn clusters_come_back(cluster in models::cluster()) {
        let sent = encode::cluster(&cluster);
        prop_assert_eq!(&sent.version, &encode::cluster(&cluster.clone()).version);
        prop_assert_eq!(decode::decode(Kind::Cluster, &sent.body).unwrap(), Resource::Cluster(cluster.clone()));
        prop_assert_eq!(decode::cluster(&sent.name, &sent.body).unwrap(), cluster);
    }

    #[test]
    fn endpoint_sets_come_back(assignment in models::assignment()) {
        let sent = encode::endpoints(&assignment);
        prop_assert_eq!(&sent.version, &encode::endpoints(&assignment.clone()).version);
        prop_assert_eq!(decode::decode(Kind::Endpoints, &sent.body).unwrap(), Resource::Endpoints(assignment.clone()));
        prop_assert_eq!(decode::endpoints(&sent.name, &sent.body).unwrap(), assignment);
    }

    #[test]
    fn different_tables_have_different_versions(one in models::table(), other in models::table()) {
        prop_assert_eq!(one == other, encode::routes(&one).version == encode::routes(&other).version);
    }

    #[test]
    fn random_bytes_never_panic(body in vec(any::<u8>(), 0..512)) {
        for kind in Kind::ALL {
            let _ = decode::decode(kind, &body);
        }
    }

    #[test]
    fn damaged_tables_never_panic(table in models::table(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = encode::routes(&table).body.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = decode::decode(Kind::Routes, &body);
        body.truncate(at);
        let _ = decode::decode(Kind::Routes, &body);
    }

    #[test]
    fn damaged_clusters_and_listeners_never_panic(
        cluster in models::cluster(),
        listener in models::listener(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        for sent in [encode::cluster(&cluster), encode::listener(&listener)] {
            let mut body = sent.body.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = decode::decode(sent.kind, &body);
        }
    }
}

#[test]
fn a_resource_under_another_name_is_refused() {
    let table = phalanx_model::resource::RouteTable {
        name: "outbound".into(),
        hosts: Vec::new(),
    };
    let error = decode::routes("inbound", &encode::routes(&table).body).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the resource calls itself `outbound`, not `inbound`"
    );
}

#[test]
fn a_body_beyond_the_limit_is_refused_unread() {
    let error = decode::decode(Kind::Cluster, &vec![0; decode::BODY_MAX + 1]).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
}

mod gateway {
    use phalanx_model::ServiceName;
    use phalanx_model::name::{ClusterName, Direction};
    use phalanx_model::resource::gateway::{Chain, ChainTarget, ChainTls, GatewayPort, Share};
    use phalanx_model::resource::{Listener, ListenerProtocol};

    use super::*;

    fn listener(chains: Vec<Chain>) -> Listener {
        Listener {
            name: "gateway/default/edge/127.0.0.1:443".into(),
            address: ([127, 0, 0, 1], 443).into(),
            direction: Direction::Outbound,
            protocol: ListenerProtocol::Gateway(GatewayPort {
                gateway: ServiceName::new("default", "edge"),
                certificates_in: "/etc/tls".into(),
                colours: "take=dev-* net=10.10.0.0/16=staging default=prod id-made"
                    .parse()
                    .unwrap(),
                chains,
            }),
        }
    }

    fn chain(names: &[&str], tls: ChainTls, target: ChainTarget) -> Chain {
        Chain {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            tls,
            target,
        }
    }

    #[test]
    fn listeners_of_an_edge_come_back() {
        let cluster = ClusterName::outbound(ServiceName::new("default", "tls"), 443);
        let shares = |clusters: &[Option<&ClusterName>]| {
            let share = |(place, cluster): (usize, &Option<&ClusterName>)| Share {
                cluster: cluster.cloned(),
                weight: place as u32 + 1,
            };
            ChainTarget::Stream(clusters.iter().enumerate().map(share).collect())
        };
        let http = || ChainTarget::Http("gateway/default/edge/443/secure".into());
        let certificates = ChainTls::Terminate(vec!["web".into(), "other".into()]);
        for chains in [
            vec![chain(&[], ChainTls::Off, http())],
            vec![chain(&[], ChainTls::Off, shares(&[Some(&cluster), None]))],
            vec![
                chain(&["*.example.com", "a.org"], certificates, http()),
                chain(
                    &["pass.example.com"],
                    ChainTls::Passthrough,
                    shares(&[Some(&cluster)]),
                ),
                chain(&[], ChainTls::Passthrough, shares(&[])),
            ],
        ] {
            let listener = listener(chains);
            let sent = encode::listener(&listener);
            assert_eq!(decode::listener(&sent.name, &sent.body).unwrap(), listener);
        }
    }

    #[test]
    fn what_an_edge_can_not_honour_is_refused_by_chain() {
        use phalanx_proto::envoy::config::listener::v3 as listener_v3;
        use prost::Message;
        let http = ChainTarget::Http("gateway/default/edge/443/secure".into());
        let told = listener(vec![chain(&[], ChainTls::Off, http)]);
        let sent = encode::listener(&told);
        let mut message = listener_v3::Listener::decode(sent.body).unwrap();
        message.filter_chains[0].name = "other".into();
        let error = decode::listener(&sent.name, &message.encode_to_vec()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Listener.filter_chains[0]: holds something that this sidecar can't honour"
        );
    }
}
