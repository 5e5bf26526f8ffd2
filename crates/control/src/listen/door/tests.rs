use phalanx_model::ServiceName;
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::Attestation;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::Workload;
use phalanx_pki::revocation::Reason;
use phalanx_pki::verifier::{Policy, Role};
use phalanx_store::Store;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::ca::{Ca, CaConfig, Target};

async fn ca(dir: &std::path::Path) -> Ca {
    let config = CaConfig {
        dir: dir.join("ca"),
        outside: None,
        trust_domain: TrustDomain::default(),
        leaf_ttl: Duration::from_secs(3600),
        names: Vec::new(),
        ocsp_url: None,
        crl_url: None,
        jwks: None,
        plane: "a".to_owned(),
    };
    let store = Store::memory().await.unwrap();
    Ca::open(config, store).await.unwrap()
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_it_was_made_with_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path()).await;
    let domain = ca.trust_domain().clone();
    let workload = Workload::parse(&domain, "arena", "battle", None).unwrap();
    let key = Key::generate(KeyKind::default()).unwrap();
    let csr = Csr::from_der(&csr::request(&key, &workload).unwrap()).unwrap();
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain.clone()));
    let peer = |chain: &[_]| ca.own().verify(chain, &[], &policy).unwrap();
    let name = "test".to_owned();
    let issued = ca.issue(&workload, &csr, None, Attestation::Operator { name });
    let mut peers = vec![peer(&issued.await.unwrap().chain)];
    for _ in 0..3 {
        // Each renews over the connection of the one before.
        let renewed = ca.renew(peers.last().unwrap(), &csr).await.unwrap();
        peers.push(peer(&renewed.chain));
    }
    let own = Some((ca.own(), domain));
    let door = Door::try_new(XDS, own, false, Refusals::default()).unwrap();
    let secured = door.secure.as_ref().unwrap();
    let remote = SocketAddr::from(([127, 0, 0, 1], 1));
    let open = |peer: &Arc<Peer>| door.live(secured, peer, remote).unwrap();
    let mut cuts: Vec<_> = peers.iter().map(open).collect();
    let mut ended = async |target: Target| {
        ca.revoke(&target, Reason::Superseded, "test")
            .await
            .unwrap();
        door.live.recheck(&secured.identity);
        let is_cut = |cut: &mut Cut| cut.is_cut.try_recv() == Err(TryRecvError::Closed);
        cuts.iter_mut().map(is_cut).collect::<Vec<_>>()
    };
    let serial = |n: usize| vec![peers[n].serial.clone()];
    // An old one, then the newest; then all that is left, by one that is revoked already.
    let old = ended(Target::Serials(serial(1))).await;
    assert_eq!(old, [false, true, false, false]);
    let newest = ended(Target::Serials(serial(3))).await;
    assert_eq!(newest, [false, true, false, true]);
    let rest = ended(Target::Holders(serial(3))).await;
    assert_eq!(rest, [true, true, true, true]);
}

#[tokio::test]
async fn who_is_revoked_between_the_handshake_and_the_first_word_is_not_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path()).await;
    let domain = ca.trust_domain().clone();
    let service = ServiceName::new("arena", "battle");
    let workload = Workload::parse(&domain, "arena", "battle", None).unwrap();
    let name = "test".to_owned();
    let attested = Attestation::Operator { name };
    let issued = ca.issue_with_key(&workload, None, attested).await;
    let chain = issued.unwrap().0.chain;
    let policy = Policy::new(Role::Client, Expected::trust_domain(domain.clone()));
    let peer = ca.own().verify(&chain, &[], &policy).unwrap();

    let own = Some((ca.own(), domain));
    let door = Door::try_new(XDS, own, false, Refusals::default()).unwrap();
    let secured = door.secure.as_ref().unwrap();
    let remote = SocketAddr::from(([127, 0, 0, 1], 1));
    assert!(door.live(secured, &peer, remote).is_some());
    // Nobody watches: whoever does has looked at the open connections already.
    let target = Target::Workload(service);
    let revoked = ca.revoke(&target, Reason::KeyCompromise, "test").await;
    assert_eq!(revoked.unwrap().len(), 1);
    assert!(door.live(secured, &peer, remote).is_none());
    assert_eq!(door.refusals.of_tls()[&(XDS, "revoked")], 1);
}
