//! What every lease has to do, said once and run against each: a lock on this machine, a store in memory, a real etcd.

use std::{sync::Arc, time::Duration};

use phalanx_game::matchmaking::{Lease, LeaseError, LocalLease, ReplicaId, lease::Claim};

const A: ReplicaId = ReplicaId(1);
const B: ReplicaId = ReplicaId(2);

fn claim(replica: ReplicaId) -> Claim {
    Claim {
        replica,
        address: format!("127.0.0.1:{}", 7000 + replica.0),
        force: false,
    }
}

/// `one` and `other` are two processes' views of the same shard.
async fn keeps_the_contract(one: Arc<dyn Lease>, other: Arc<dyn Lease>) {
    // Nobody ever was here.
    let seen = one.look().await.unwrap();
    assert!(!seen.held && seen.roll.is_none());
    let first = one.acquire(claim(A)).await.unwrap();
    assert!(matches!(
        other.acquire(claim(B)).await,
        Err(LeaseError::Held)
    ));
    assert!(matches!(one.acquire(claim(A)).await, Err(LeaseError::Held)));
    let seen = other.look().await.unwrap();
    let roll = seen.roll.unwrap();
    assert!(seen.held);
    assert_eq!(
        (roll.owner, roll.epoch, &roll.in_sync[..]),
        (A, first.epoch, &[A][..])
    );
    assert_eq!(roll.address, "127.0.0.1:7001");
    assert_eq!(one.renew().await.unwrap().epoch, first.epoch);
    assert!(matches!(other.renew().await, Err(LeaseError::Lost)));
    assert!(matches!(
        other.amend(first.epoch, vec![A, B]).await,
        Err(LeaseError::Lost)
    ));

    // A released lease is free for whoever is on the roll, and for nobody else.
    one.release().await.unwrap();
    assert!(matches!(one.renew().await, Err(LeaseError::Lost)));
    let late = one.amend(first.epoch, vec![A, B]).await;
    assert!(matches!(late, Err(LeaseError::Lost)));
    assert!(!other.look().await.unwrap().held);
    let refused = other.acquire(claim(B)).await;
    assert!(
        matches!(refused, Err(LeaseError::NotInSync { replica: B, .. })),
        "{refused:?}"
    );
    assert!(
        !other.look().await.unwrap().held,
        "a refused claim leaves nothing behind"
    );
    let second = one.acquire(claim(A)).await.unwrap();
    assert!(second.epoch > first.epoch);
    // What was asked for under the lease before doesn't reach the roll of this one.
    let late = one.amend(first.epoch, vec![A, B]).await;
    assert!(matches!(late, Err(LeaseError::Lost)));
    assert_eq!(one.look().await.unwrap().roll.unwrap().in_sync, [A]);
    for _ in 0..2 {
        one.amend(second.epoch, vec![A, B]).await.unwrap();
    }
    one.release().await.unwrap();
    let third = other.acquire(claim(B)).await.unwrap();
    assert!(third.epoch > second.epoch);
    let roll = one.look().await.unwrap().roll.unwrap();
    assert_eq!(
        roll.in_sync,
        [B],
        "a new owner is alone until somebody caught up"
    );

    // An operator may say otherwise.
    other.release().await.unwrap();
    assert!(matches!(
        one.acquire(claim(A)).await,
        Err(LeaseError::NotInSync { .. })
    ));
    let forced = Claim {
        force: true,
        ..claim(A)
    };
    let fourth = one.acquire(forced).await.unwrap();
    assert!(fourth.epoch > third.epoch);
    let waiting = tokio::spawn(async move {
        while other.look().await.unwrap().held {
            other.changed().await;
        }
    });
    one.release().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_lock_on_this_machine_is_a_lease() {
    let directory = tempfile::tempdir().unwrap();
    let view = || Arc::new(LocalLease::try_new(directory.path()).unwrap());
    keeps_the_contract(view(), view()).await;
}

#[tokio::test]
async fn a_roll_that_is_not_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let lease = LocalLease::try_new(directory.path()).unwrap();
    for foreign in [&b"{"[..], b"[]", &[b' '; 100_000]] {
        std::fs::write(directory.path().join("roll.json"), foreign).unwrap();
        assert!(matches!(
            lease.look().await,
            Err(LeaseError::Foreign { .. })
        ));
        let refused = lease.acquire(claim(A)).await;
        assert!(matches!(refused, Err(LeaseError::Foreign { .. })));
    }
}

#[cfg(feature = "etcd")]
mod stores {
    use std::time::Instant;

    use phalanx_game::matchmaking::StoreLease;
    use phalanx_store::{EtcdConfig, Store};
    use phalanx_testkit::etcd::{Etcd, START_MAX};

    use super::*;

    fn view(store: &Store) -> StoreLease {
        StoreLease::new(store.clone(), "duel/eu/v1")
    }

    /// One that doesn't run out while the machine is busy.
    fn long(store: &Store) -> Arc<StoreLease> {
        Arc::new(view(store).with_ttl(Duration::from_secs(120)))
    }

    async fn store(etcd: &Etcd) -> Store {
        let mut config = EtcdConfig::new([etcd.endpoint()]);
        config.patience = START_MAX;
        Store::etcd(config).await.unwrap()
    }

    #[tokio::test]
    async fn a_store_is_a_lease() {
        let store = Store::memory().await.unwrap();
        keeps_the_contract(long(&store), long(&store)).await;
    }

    #[tokio::test]
    async fn an_etcd_is_a_lease() {
        let etcd = Etcd::start(&[]).await.unwrap();
        let (one, other) = (store(&etcd).await, store(&etcd).await);
        keeps_the_contract(long(&one), long(&other)).await;
    }

    #[tokio::test]
    async fn a_holder_stops_before_another_can_begin() {
        let etcd = Etcd::start(&[]).await.unwrap();
        let (one, other) = (store(&etcd).await, store(&etcd).await);
        let (holder, next) = (view(&one), view(&other));
        // On a machine that stalls it may run out before it is renewed. Then once more.
        let deadline = Instant::now() + Duration::from_secs(120);
        let (epoch, until) = loop {
            assert!(Instant::now() < deadline, "it is never renewed");
            let Ok(grant) = holder.acquire(claim(A)).await else {
                continue;
            };
            let amended = holder.amend(grant.epoch, vec![A, B]).await;
            if let (Ok(()), Ok(renewed)) = (amended, holder.renew().await) {
                break (grant.epoch, renewed.until.unwrap());
            }
            holder.release().await.unwrap();
        };
        // It says nothing more. The other asks without pause.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            match next.acquire(claim(B)).await {
                Ok(_) => break,
                Err(LeaseError::Held) => assert!(Instant::now() < deadline, "it never ends"),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            Instant::now() > until,
            "the holder would still have acknowledged"
        );
        assert!(matches!(holder.renew().await, Err(LeaseError::Lost)));
        let late = holder.amend(epoch, vec![A]).await;
        assert!(matches!(late, Err(LeaseError::Lost)));
    }
}
