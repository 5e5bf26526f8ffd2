use std::time::Duration;

use phalanx_model::identity::TrustDomain;
use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::issuer::{Attestation, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::Workload;
use phalanx_store::Store;
use tokio_util::sync::CancellationToken;

use super::*;

/// `<namespace>/sa/<service>`, with a certificate of its own.
fn peer(name: &str) -> Arc<Peer> {
    let (namespace, service) = name.split_once("/sa/").unwrap();
    let domain = TrustDomain::parse("phalanx.local").unwrap();
    let (now, year) = (SystemClock.now(), Duration::from_secs(365 * 86_400));
    let root = RootCa::create(&domain, KeyKind::default(), now, 2 * year).unwrap();
    let issuer = root.intermediate(KeyKind::default(), now, year).unwrap();
    let workload = match namespace {
        SYSTEM_NAMESPACE => Workload::control(&domain).unwrap(),
        _ => Workload::parse(&domain, namespace, service, None).unwrap(),
    };
    let key = Key::generate(KeyKind::default()).unwrap();
    let attested = Attestation::Operator {
        name: "test".into(),
    };
    let order = Order::new(&workload, Duration::from_secs(3600), attested);
    let issued = issuer.issue_to(key.spki(), &order, now).unwrap();
    let parts = Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    };
    let made = Credentials::try_new(parts, &workload, now).unwrap();
    made.peer().clone()
}

async fn access(open: bool) -> Access {
    let users = Users::load(Store::memory().await.unwrap()).await.unwrap();
    let ops = "spiffe://phalanx.local/ns/tools/sa/ops".parse().unwrap();
    let ids = BTreeMap::from([(ops, Role::Operator)]);
    Access::new(open, ids, users, Refusals::default())
}

async fn token(access: &Access, role: Role) -> String {
    let name = role.as_str();
    let added = access.users().add(name, role, None, "test").await.unwrap();
    added.0.to_string()
}

#[tokio::test]
async fn every_method_refuses_nobody_and_says_why() {
    let access = access(false).await;
    for (service, method, needs) in METHODS {
        let judged = access.judge(&Who::Nobody, None, needs);
        match needs {
            // It is how one becomes somebody.
            Needs::Tls => assert_eq!(judged, Ok(Who::Nobody), "{service}/{method}"),
            _ => assert!(judged.is_err(), "{service}/{method} takes anybody"),
        }
        let plain = access.judge(&Who::Open, None, needs);
        assert_eq!(plain, Err(Denied::Plain), "{service}/{method}");
    }
}

#[tokio::test]
async fn a_workload_gets_what_is_for_workloads_and_nothing_else() {
    let access = access(false).await;
    let who = Who::Workload(peer("default/sa/battle"));
    let allowed = |needs| access.judge(&who, None, needs).is_ok();
    assert!(allowed(Needs::DataPlane) && allowed(Needs::Certificate) && allowed(Needs::Tls));
    for needs in [Needs::Role(Role::Viewer), Needs::Secret, Needs::Plane] {
        assert_eq!(access.judge(&who, None, needs), Err(Denied::NoUser));
    }
}

#[tokio::test]
async fn a_role_may_what_lower_ones_may_and_no_more() {
    let access = access(false).await;
    for has in Role::ALL {
        let token = token(&access, has).await;
        for needs in Role::ALL {
            let judged = access.judge(&Who::Nobody, Some(&token), Needs::Role(needs));
            assert_eq!(judged.is_ok(), has >= needs, "{has} {needs}");
        }
        let secret = access.judge(&Who::Nobody, Some(&token), Needs::Secret);
        assert_eq!(secret.is_ok(), has == Role::Admin);
        assert!(
            access
                .judge(&Who::Nobody, Some(&token), Needs::DataPlane)
                .is_err()
        );
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time_or_with_its_user() {
    let access = access(false).await;
    let viewer = Needs::Role(Role::Viewer);
    let judge = |token: &str| access.judge(&Who::Nobody, Some(token), viewer);
    let short = Duration::from_millis(1);
    let added = access
        .users()
        .add("brief", Role::Admin, Some(short), "test")
        .await;
    let brief = added.unwrap().0.to_string();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(judge(&brief), Err(Denied::BadToken));

    let token = token(&access, Role::Viewer).await;
    assert!(judge(&token).is_ok());
    let mut forged = token.clone();
    let last = if forged.ends_with('0') { '1' } else { '0' };
    forged.pop();
    forged.push(last);
    for wrong in ["", "x", "phalanx-user.viewer.", &forged, &token[1..]] {
        assert_eq!(judge(wrong), Err(Denied::BadToken), "{wrong}");
    }
    access.users().remove("viewer").await.unwrap();
    assert_eq!(judge(&token), Err(Denied::BadToken));
    assert_eq!(access.refusals().of_requests().get("bad_token"), Some(&7));
}

#[tokio::test]
async fn what_another_control_plane_stored_is_known_here() {
    let store = Store::memory().await.unwrap();
    let (here, there) = (
        Users::load(store.clone()).await.unwrap(),
        Users::load(store.clone()).await.unwrap(),
    );
    let stop = CancellationToken::new();
    let following = tokio::spawn(there.clone().run(stop.clone()));
    let (token, _) = here.add("ops", Role::Operator, None, "test").await.unwrap();
    let known = async {
        while there.check(&token.to_string()).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        here.remove("ops").await.unwrap();
        while there.check(&token.to_string()).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), known)
        .await
        .unwrap();
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn a_certificate_can_be_a_users_and_the_planes_look_only() {
    let access = access(false).await;
    let ops = Who::Workload(peer("tools/sa/ops"));
    let judged = access
        .judge(&ops, None, Needs::Role(Role::Operator))
        .unwrap();
    assert_eq!(judged.author("x"), "spiffe://phalanx.local/ns/tools/sa/ops");
    assert!(access.judge(&ops, None, Needs::Secret).is_err());
    // For its own service it stays what it is.
    assert_eq!(access.judge(&ops, None, Needs::DataPlane), Ok(ops));
    let plane = Who::Workload(peer("phalanx-system/sa/control"));
    assert!(access.judge(&plane, None, Needs::Plane).is_ok());
    assert!(
        access
            .judge(&plane, None, Needs::Role(Role::Viewer))
            .is_ok()
    );
    assert!(
        access
            .judge(&plane, None, Needs::Role(Role::Operator))
            .is_err()
    );
}

#[tokio::test]
async fn open_takes_plain_text_for_everything_but_secrets() {
    let access = access(true).await;
    for who in [Who::Open, Who::Nobody] {
        for needs in [Needs::DataPlane, Needs::Role(Role::Admin), Needs::Plane] {
            assert_eq!(access.judge(&who, None, needs), Ok(Who::Open));
        }
        assert_eq!(access.judge(&who, None, Needs::Secret), Err(Denied::Secret));
        assert!(access.judge(&who, None, Needs::Certificate).is_err());
    }
    assert_eq!(
        access.judge(&Who::Open, None, Needs::Tls),
        Err(Denied::Secret)
    );
    let admin = token(&access, Role::Admin).await;
    assert!(
        access
            .judge(&Who::Nobody, Some(&admin), Needs::Secret)
            .is_ok()
    );
    // Read by anybody on the way.
    assert!(
        access
            .judge(&Who::Open, Some(&admin), Needs::Secret)
            .is_err()
    );
}

#[test]
fn a_workload_speaks_for_itself() {
    let battle = Who::Workload(peer("default/sa/battle"));
    let own = ServiceName::new("default", "battle");
    let others = [
        ServiceName::new("default", "shop"),
        ServiceName::new("other", "battle"),
        ServiceName::new("", ""),
    ];
    assert!(battle.owns(&own).is_ok());
    assert!(battle.owns_node("default/battle/b-1").is_ok());
    assert!(battle.owns_node("some-pod").is_ok());
    assert!(battle.owns_node("default/shop/s-1").is_err());
    for other in others {
        assert!(battle.owns(&other).is_err());
        assert!(Who::Nobody.owns(&other).is_err());
        assert!(Who::Open.owns(&other).is_ok());
    }
    let user = Who::User {
        name: "a".into(),
        role: Role::Admin,
    };
    assert!(user.owns(&own).is_err());
    assert!(Who::of(&Extensions::new()).owns(&own).is_err());
}
