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
