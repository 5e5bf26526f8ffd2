//! Over TLS: what is believed, and what is refused.

use phalanx_testkit::etcd::{Certificates, certificates::NAME};

use super::*;
use crate::etcd::Tls;

/// The server's certificates as its clients have them.
fn tls(certificates: &Certificates) -> Tls {
    let read = |path| std::fs::read(path).unwrap();
    Tls {
        ca: read(&certificates.ca),
        identity: Some((read(&certificates.client.0), read(&certificates.client.1))),
        server_name: None,
    }
}

fn over(server: &Server, tls: Tls) -> EtcdConfig {
    EtcdConfig {
        tls: Some(tls),
        patience: Duration::from_millis(1500),
        ..config(server)
    }
}

#[tokio::test]
async fn over_tls_everything_goes_on_as_in_plain_text() {
    let mut server = Server::start_tls().await.unwrap();
    let tls = tls(server.certificates().unwrap());
    let named = Tls {
        server_name: Some(NAME.into()),
        ..tls.clone()
    };
    let mut config = over(&server, tls);
    config.patience = START_MAX;
    let store = Store::etcd(config.clone()).await.unwrap();
    let from = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", from).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let put = Txn::new().put_leased("a", "2", lease);
    let revision = store.commit(put).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, revision);

    server.restart().await.unwrap();
    let third = settled(&store, Txn::new().put("a", "3")).await;
    assert_eq!(next(&mut watch).await.unwrap().revision, third);

    config.tls = Some(named);
    let by_name = Store::etcd(config).await.unwrap();
    assert_eq!(by_name.get("a").await.unwrap().unwrap().modified, third);
}

#[tokio::test]
async fn an_etcd_that_does_not_prove_who_it_is_is_not_talked_to() {
    let server = Server::start_tls().await.unwrap();
    let right = tls(server.certificates().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let foreign = Certificates::make(folder.path(), "127.0.0.1".parse().unwrap()).unwrap();
    let foreign_ca = Tls {
        ca: std::fs::read(&foreign.ca).unwrap(),
        ..right.clone()
    };
    let other_name = Tls {
        server_name: Some("etcd.elsewhere".into()),
        ..right.clone()
    };
    for (wrong, reason) in [
        (foreign_ca, "invalid peer certificate"),
        (other_name, "not valid for name"),
    ] {
        let error = Store::etcd(over(&server, wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    // In plain text a server of TLS makes no sense.
    let mut plain = config(&server);
    plain.patience = Duration::from_millis(1500);
    let error = Store::etcd(plain).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn an_etcd_that_wants_a_certificate_takes_no_one_without_the_right_one() {
    let server = Server::start_tls().await.unwrap();
    let right = tls(server.certificates().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let foreign = Certificates::make(folder.path(), "127.0.0.1".parse().unwrap()).unwrap();
    for identity in [None, tls(&foreign).identity] {
        let wrong = Tls {
            identity,
            ..right.clone()
        };
        let error = Store::etcd(over(&server, wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn certificates_that_are_none_are_refused_before_anything_is_sent() {
    let garbage = |ca: &[u8], identity: Option<&[u8]>| Tls {
        ca: ca.to_vec(),
        identity: identity.map(|chain| (chain.to_vec(), b"no key".to_vec())),
        server_name: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let good = Certificates::make(folder.path(), "127.0.0.1".parse().unwrap()).unwrap();
    let ca = std::fs::read(&good.ca).unwrap();
    for tls in [
        garbage(b"", None),
        garbage(b"no certificate", None),
        garbage(&ca, Some(b"no certificate")),
        garbage(&ca, Some(&ca)),
    ] {
        let mut config = EtcdConfig::new([nowhere()]);
        config.tls = Some(tls);
        let error = Store::etcd(config).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
}
