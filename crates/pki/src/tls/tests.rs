use std::collections::BTreeSet;
use std::time::Duration;

use rustls::{ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};

use super::*;
use crate::clock::ManualClock;
use crate::tests::*;

use crate::name::SpiffeId;
use crate::ocsp::{Responder, Status};
use crate::revocation::{Reason, Revocations, Revoked, build_crl};

fn server(identity: &Arc<Identity>, client_auth: ClientAuth) -> ServerTls {
    let options = ServerOptions {
        client_auth,
        expected: Expected::trust_domain(domain()),
        crl: CrlPolicy::IfPresent,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    ServerTls::try_new(identity.clone(), options).unwrap()
}

fn client(
    identity: &Arc<Identity>,
    expected: impl IntoIterator<Item = SpiffeId>,
    staple: StaplePolicy,
) -> ClientTls {
    let options = ClientOptions {
        expected: Expected::Ids(expected.into_iter().collect::<BTreeSet<_>>()),
        crl: CrlPolicy::IfPresent,
        staple,
        alpn: vec![b"h2".to_vec()],
    };
    ClientTls::try_new(identity.clone(), options).unwrap()
}

struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

/// Runs a handshake in memory; an error is the first that either end had, and which end that was.
fn connect(client: &ClientTls, server: &ServerTls) -> Result<Pair, (&'static str, Refusal)> {
    shake(client.config().clone(), server.config().clone())
}

fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<Pair, (&'static str, Refusal)> {
    let name = ServerName::try_from("battle.arena.svc.mesh").unwrap();
    let mut pair = Pair {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
    };
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            pair.server.read_tls(&mut rest).unwrap();
            pair.server
                .process_new_packets()
                .map_err(|e| ("server", Refusal::of_handshake(&e)))?;
        }
        let mut bytes = Vec::new();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            pair.client.read_tls(&mut rest).unwrap();
            pair.client
                .process_new_packets()
                .map_err(|e| ("client", Refusal::of_handshake(&e)))?;
        }
    }
    Ok(pair)
}

struct Mesh {
    issuer: Issuer,
    battle: Arc<Identity>,
    battle_clock: Arc<ManualClock>,
    gateway: Arc<Identity>,
    gateway_clock: Arc<ManualClock>,
}

fn mesh() -> Mesh {
    let issuer = issuer();
    let (battle, battle_clock) = identity(&issuer, "battle");
    let (gateway, gateway_clock) = identity(&issuer, "gateway");
    Mesh {
        issuer,
        battle,
        battle_clock,
        gateway,
        gateway_clock,
    }
}

impl Mesh {
    fn advance(&self, span: Duration) {
        self.battle_clock.advance(span);
        self.gateway_clock.advance(span);
    }

    fn revoke(&self, who: &Identity, at: &Identity) {
        let serial = who.credentials().unwrap().peer().serial.clone();
        let revoked = [Revoked {
            serial,
            at: NOW,
            reason: Reason::KeyCompromise,
        }];
        let crl = build_crl(self.issuer.ca(), &revoked, 1, NOW, HOUR).unwrap();
        let lists = Revocations::try_new(&[crl], &self.issuer.chain(), NOW, SKEW).unwrap();
        assert!(at.publish_revocations(lists));
    }

    fn ends(&self) -> (ClientTls, ServerTls) {
        (
            client(&self.gateway, [id("battle")], StaplePolicy::IfPresent),
            server(&self.battle, ClientAuth::Required),
        )
    }
}

#[test]
fn both_ends_know_each_other_over_tls_1_3_with_the_hybrid_group() {
    let (client, server) = mesh().ends();
    let pair = connect(&client, &server).unwrap();
    assert_eq!(
        server.admit(&pair.server).unwrap().unwrap().id,
        id("gateway")
    );
    assert_eq!(client.admit(&pair.client).unwrap().id, id("battle"));
    assert_eq!(
        pair.server.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        pair.server.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
    assert_eq!(pair.server.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn a_client_meets_only_whom_it_expects() {
    let mesh = mesh();
    let server = server(&mesh.battle, ClientAuth::Required);
    let other = client(&mesh.gateway, [id("leaderboard")], StaplePolicy::IfPresent);
    assert_eq!(
        connect(&other, &server).err(),
        Some(("client", Refusal::WrongName))
    );
}

#[test]
fn a_client_without_a_certificate_is_nobody_or_not_let_in() {
    let mesh = mesh();
    let nobody = Arc::new(Identity::new(mesh.gateway_clock.clone()));
    nobody.publish_roots(mesh.issuer.roots().clone()).unwrap();
    let client = client(&nobody, [id("battle")], StaplePolicy::IfPresent);
    let required = server(&mesh.battle, ClientAuth::Required);
    assert_eq!(
        connect(&client, &required).err(),
        Some(("server", Refusal::NoCertificate))
    );
    for auth in [ClientAuth::Optional, ClientAuth::Off] {
        let server = server(&mesh.battle, auth);
        let pair = connect(&client, &server).unwrap();
        assert_eq!(server.admit(&pair.server), Ok(None));
    }
}

#[test]
fn a_stranger_is_refused_where_certificates_are_optional_too() {
    let (mesh, foreign) = (mesh(), issuer());
    let (stranger, _) = identity(&foreign, "gateway");
    stranger
        .publish_roots(foreign.roots().and(mesh.issuer.roots()).unwrap())
        .unwrap();
    let client = client(&stranger, [id("battle")], StaplePolicy::IfPresent);
    let server = server(&mesh.battle, ClientAuth::Optional);
    assert_eq!(
        connect(&client, &server).err(),
        Some(("server", Refusal::UnknownCa))
    );
}

#[test]
fn a_second_connection_resumes_and_is_admitted_again() {
    let (client, server) = mesh().ends();
    connect(&client, &server).unwrap();
    let pair = connect(&client, &server).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(
        server.admit(&pair.server).unwrap().unwrap().id,
        id("gateway")
    );
    assert_eq!(client.admit(&pair.client).unwrap().id, id("battle"));
}

#[test]
fn no_revoked_peer_resumes() {
    let mesh = mesh();
    let (client, server) = mesh.ends();
    connect(&client, &server).unwrap();
    mesh.revoke(&mesh.gateway, &mesh.battle);
    assert_eq!(
        connect(&client, &server).err(),
        Some(("server", Refusal::Revoked))
    );
}

#[test]
fn a_server_that_was_revoked_is_not_resumed_with() {
    let mesh = mesh();
    let (client, server) = mesh.ends();
    connect(&client, &server).unwrap();
    mesh.revoke(&mesh.battle, &mesh.gateway);
    assert_eq!(
        connect(&client, &server).err(),
        Some(("client", Refusal::Revoked))
    );
}

#[test]
fn a_peer_whose_certificate_has_expired_since_is_not_admitted_even_if_it_resumes() {
    let mesh = mesh();
    let (client, server) = mesh.ends();
    connect(&client, &server).unwrap();
    // Only the server's clock moves: the client would resume.
    mesh.battle_clock
        .set(NOW.plus(72 * HOUR).minus(Duration::from_secs(1)));
    connect(&client, &server).unwrap();
    mesh.battle_clock.advance(Duration::from_secs(2));
    match connect(&client, &server) {
        Ok(pair) => assert_eq!(server.admit(&pair.server), Err(Refusal::Expired)),
        Err(refused) => assert_eq!(refused, ("server", Refusal::Expired)),
    }
}

#[test]
fn rotation_on_either_side_fails_no_connection() {
    let mesh = mesh();
    let (client, server) = mesh.ends();
    for round in 0..20 {
        let pair = connect(&client, &server).unwrap();
        let seen = server.admit(&pair.server).unwrap().unwrap();
        assert_eq!(
            seen.serial,
            mesh.gateway.credentials().unwrap().peer().serial,
            "round {round}"
        );
        let seen = client.admit(&pair.client).unwrap();
        assert_eq!(
            seen.serial,
            mesh.battle.credentials().unwrap().peer().serial,
            "round {round}"
        );
        let (who, name) = if round % 2 == 0 {
            (&mesh.gateway, "gateway")
        } else {
            (&mesh.battle, "battle")
        };
        mesh.advance(HOUR);
        who.publish(credentials(&mesh.issuer, name, who.now()));
    }
}

#[test]
fn a_root_rotates_under_both_ends() {
    let (mesh, new) = (mesh(), issuer());
    let both = mesh.issuer.roots().and(new.roots()).unwrap();
    let (client, server) = mesh.ends();
    let fine = || {
        let pair = connect(&client, &server).unwrap();
        server.admit(&pair.server).unwrap().unwrap();
        client.admit(&pair.client).unwrap();
    };
    for identity in [&mesh.battle, &mesh.gateway] {
        identity.publish_roots(both.clone()).unwrap();
        fine();
    }
    for (identity, name) in [(&mesh.battle, "battle"), (&mesh.gateway, "gateway")] {
        let (issued, key) = leaf(&new, name, 72 * HOUR, NOW);
        let parts = crate::credentials::Parts {
            chain: issued.chain,
            key,
            staple: None,
            roots: both.clone(),
        };
        identity.publish(
            crate::credentials::Credentials::try_new(parts, &workload(name), NOW).unwrap(),
        );
        fine();
    }
    for identity in [&mesh.gateway, &mesh.battle] {
        identity.publish_roots(new.roots().clone()).unwrap();
        fine();
    }
}

#[test]
fn staples_are_sent_checked_and_can_be_demanded() {
    let mesh = mesh();
    let server = server(&mesh.battle, ClientAuth::Required);
    let strict = || client(&mesh.gateway, [id("battle")], StaplePolicy::Require);
    assert_eq!(
        connect(&strict(), &server).err(),
        Some(("client", Refusal::MissingStaple))
    );
    let responder = Responder::try_new([mesh.issuer.ca().clone()], HOUR).unwrap();
    let leaf = mesh.battle.credentials().unwrap().parts().chain[0].clone();
    mesh.battle
        .publish_staple(responder.staple(&leaf, Status::Good, NOW).unwrap())
        .unwrap();
    let pair = connect(&strict(), &server).unwrap();
    assert!(server.admit(&pair.server).is_ok());
    // Past nextUpdate the server sends none, rather than one that is refused.
    mesh.advance(HOUR);
    assert_eq!(
        connect(&strict(), &server).err(),
        Some(("client", Refusal::MissingStaple))
    );
    let lenient = client(&mesh.gateway, [id("battle")], StaplePolicy::IfPresent);
    assert!(connect(&lenient, &server).is_ok());
}

#[test]
fn a_staple_that_turns_bad_on_the_way_is_refused() {
    let mesh = mesh();
    let server = server(&mesh.battle, ClientAuth::Required);
    let responder = Responder::try_new([mesh.issuer.ca().clone()], HOUR).unwrap();
    let leaf = mesh.battle.credentials().unwrap().parts().chain[0].clone();
    mesh.battle
        .publish_staple(responder.staple(&leaf, Status::Good, NOW).unwrap())
        .unwrap();
    // The server's clock stands still, so it goes on sending the old staple.
    mesh.gateway_clock.advance(2 * HOUR);
    let lenient = client(&mesh.gateway, [id("battle")], StaplePolicy::IfPresent);
    assert_eq!(
        connect(&lenient, &server).err(),
        Some(("client", Refusal::StaleStaple))
    );
}

#[test]
fn tls_1_2_is_taken_and_nothing_in_common_is_said() {
    let mesh = mesh();
    let (client, server) = mesh.ends();
    let with = |versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[u8]| {
        let verifier = Arc::new(Servers(client.end.clone()));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Shown(mesh.gateway.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    };
    let old = with(&[&version::TLS12], b"h2");
    let pair = shake(old.clone(), server.config().clone()).unwrap();
    assert_eq!(
        pair.server.protocol_version(),
        Some(ProtocolVersion::TLSv1_2)
    );
    assert_eq!(
        server.admit(&pair.server).unwrap().unwrap().id,
        id("gateway")
    );
    let pair = shake(old.clone(), server.config().clone()).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(
        server.admit(&pair.server).unwrap().unwrap().id,
        id("gateway")
    );
    mesh.revoke(&mesh.gateway, &mesh.battle);
    assert_eq!(
        shake(old, server.config().clone()).err(),
        Some(("server", Refusal::Revoked))
    );
    let odd = with(&[&version::TLS13], b"smtp");
    assert_eq!(
        shake(odd, server.config().clone()).err(),
        Some(("server", Refusal::NoProtocol))
    );
}
