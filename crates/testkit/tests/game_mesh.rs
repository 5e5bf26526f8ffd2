//! The game kit in a mesh of real processes: room servers register, find each other, hold seats of which each has one owner,
//! hear that they are drained, and finish their rooms.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_client::api::DrainRequest;
use phalanx_game::mesh::{
    Control, DrainOrder, Handover, IdentityError, InstanceId, InstancePort, Mesh as Joined,
    MeshError, MeshOptions, MeshWatch, Presence, Protocol, Registered, ServiceName, Traffic,
};
use phalanx_game::session::{
    Clock, Directory, DirectoryError, Drain, Follow, Instance, Key, Moved, Phase,
};
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::{address, eventually};
use tokio::time::timeout;

fn service() -> ServiceName {
    ServiceName::new("default", "battle")
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn options(mesh: &Mesh, presence: Presence) -> anyhow::Result<MeshOptions> {
    let control = Control::parse(&mesh.xds.to_string())?;
    let mut options = MeshOptions::new(control, service(), presence);
    options.admin = Some(mesh.client());
    Ok(options)
}

/// A room server without a sidecar.
async fn join(mesh: &Mesh, id: &str) -> anyhow::Result<Joined> {
    Ok(Joined::join(options(mesh, by_itself(id))?).await?)
}

fn by_itself(id: &str) -> Presence {
    let port = InstancePort {
        name: String::new(),
        number: 8080,
        address: SocketAddr::new(address::fresh(), 8080),
        protocol: Protocol::Auto,
    };
    let instance = Registered {
        id: InstanceId {
            service: service(),
            id: id.into(),
        },
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ports: vec![port],
        zone: String::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    };
    Presence::Itself {
        instance: Box::new(instance),
        ttl: phalanx_game::mesh::TTL,
    }
}

async fn drain(mesh: &Mesh, instance: &Instance, grace: Option<Duration>) -> anyhow::Result<()> {
    let request = DrainRequest {
        namespace: "default".into(),
        service: Some("battle".into()),
        instance: instance.to_string(),
        undo: grace.is_none(),
        grace_ms: grace.map(|grace| grace.as_millis() as u64),
        handover: grace.map(|_| "move".into()),
        reconnects_per_second: grace.map(|_| 200),
        author: "ann".into(),
    };
    mesh.client().drain(&request).await?;
    Ok(())
}

/// Waits for an epoch, and says whether everything was told anew before it.
async fn told(watch: &mut MeshWatch, epoch: u64) -> anyhow::Result<bool> {
    let mut begun = false;
    loop {
        let update = watch.next().await?;
        begun |= update.begins;
        if update.changed.iter().any(|seat| seat.epoch == epoch) {
            return Ok(begun);
        }
    }
}

async fn until(joined: &Joined, is_meant: impl FnMut(&Traffic) -> bool) -> anyhow::Result<Traffic> {
    let mut traffic = joined.traffic();
    Ok(timeout(READY_MAX, traffic.wait_for(is_meant))
        .await??
        .clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn room_servers_find_each_other_and_of_two_who_claim_one_has_the_room() -> anyhow::Result<()>
{
    let mut mesh = Mesh::start().await?;
    let (one, two) = (join(&mesh, "one").await?, join(&mesh, "two").await?);
    let endpoints = one.endpoints(&service());
    let mut changes = endpoints.changes();
    let both = changes.wait_for(|known| known.current && known.instances.len() == 2);
    timeout(READY_MAX, both).await??;

    let (first, second) = (one.directory(), two.directory());
    let mut watch = first.watch().await?;
    let mut owners = Vec::new();
    for n in 0..20 {
        let room = key(&format!("room-{n}"));
        let claims = tokio::join!(
            first.claim(&room, one.instance(), None, None),
            second.claim(&room, two.instance(), None, None),
        );
        let (seat, refused) = match claims {
            (Ok(seat), Err(refused)) | (Err(refused), Ok(seat)) => (seat, refused),
            both => panic!("exactly one has it: {both:?}"),
        };
        let DirectoryError::Conflict(Some(owner)) = refused else {
            panic!("{refused}");
        };
        assert_eq!(*owner, seat);
        assert_eq!(first.show(&room).await?, Some(seat.clone()));
        owners.push(seat);
    }
    // Who has it no more is refused, whatever it wants; who has it may have it again.
    let seat = owners[0].clone();
    let to = match seat.instance == *one.instance() {
        true => two.instance(),
        false => one.instance(),
    };
    let moved = first.move_to(&seat.key, to, seat.epoch).await?;
    assert!(moved.epoch > seat.epoch);
    for late in [
        first.move_to(&seat.key, to, seat.epoch).await.err(),
        first.release(&seat.key, seat.epoch).await.err(),
        first
            .claim(&seat.key, &seat.instance, Some(seat.epoch), None)
            .await
            .err(),
    ] {
        let late = late.expect("it is another's");
        assert!(
            matches!(&late, DirectoryError::Conflict(Some(now)) if **now == moved),
            "{late}"
        );
    }
    let again = first.claim(&seat.key, to, Some(moved.epoch), None).await?;
    assert_eq!(again, moved);
    let unfenced = first.release(&seat.key, 0).await;
    assert!(matches!(unfenced, Err(DirectoryError::Invalid)));
    let nobody = Instance::parse("nobody")?;
    let unknown = first.move_to(&seat.key, &nobody, moved.epoch).await;
    assert!(matches!(unknown, Err(DirectoryError::Unknown(who)) if who == nobody));

    // The one who follows hears of it, and after a kill -9 of the control plane of all that it holds.
    timeout(READY_MAX, told(&mut watch, moved.epoch)).await??;
    mesh.restart_control().await?;
    let begun = timeout(READY_MAX, told(&mut watch, moved.epoch)).await??;
    assert!(begun);
    // A seat that was not changed outlived it, and is released by who has it.
    let seat = owners[1].clone();
    assert_eq!(
        eventually("it is shown", READY_MAX, async || first
            .show(&seat.key)
            .await
            .ok())
        .await?,
        Some(seat.clone())
    );
    eventually("it is released", READY_MAX, async || {
        first.release(&seat.key, seat.epoch).await.ok()
    })
    .await?;
    assert_eq!(first.show(&seat.key).await?, None);
    assert!(two.leave(READY_MAX).await);
    let alone = changes.wait_for(|known| known.current && known.instances.len() == 1);
    timeout(READY_MAX, alone).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_server_hears_of_its_drain_and_finishes_its_rooms() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    // The one has a sidecar, the other has none.
    let app = mesh.instance("battle", "v1", "one").await?;
    let nowhere = Presence::Sidecar {
        admin: SocketAddr::new(app.admin.ip(), 1),
    };
    let mut absent = options(&mesh, nowhere)?;
    absent.join_within = Duration::from_millis(200);
    let absent = Joined::join(absent).await.err();
    assert!(matches!(absent, Some(MeshError::NotRegistered { .. })));
    let one = Joined::join(options(&mesh, Presence::Sidecar { admin: app.admin })?).await?;
    let two = join(&mesh, "two").await?;
    // The same as somebody who may not look: hears that it drains, and no more.
    let id = one.instance().to_string();
    let mut blind = options(&mesh, Presence::Known { id })?;
    blind.admin = None;
    let blind = Joined::join(blind).await?;
    until(&one, |traffic| *traffic == Traffic::Accepting).await?;

    let clock = Clock::start();
    let mut rooms = Drain::new(one.directory(), one.instance().clone(), 100);
    let mut watch = one.directory().watch().await?;
    for n in 0..6 {
        rooms
            .open(clock.now(), &key(&format!("room-{n}")), None)
            .await?;
    }
    drain(&mesh, one.instance(), Some(Duration::from_secs(3_600))).await?;
    let traffic = until(
        &one,
        |traffic| matches!(traffic, Traffic::Draining(order) if order.deadline.is_some()),
    )
    .await?;
    let Traffic::Draining(order) = traffic else {
        unreachable!("it was waited for");
    };
    assert_eq!(order.handover, Some(Handover::Move));
    assert_eq!(order.author.as_deref(), Some("ann"));
    assert_eq!(order.order().per_second, 200);
    rooms.rooms_mut().drain(clock.now(), order.order());
    let status = rooms.rooms().status(clock.now());
    assert_eq!((status.phase, status.rooms), (Phase::Finishing, 6));
    let left = status.deadline.expect("it has a deadline");
    assert!((Duration::from_secs(3_000)..=Duration::from_secs(3_600)).contains(&left));
    assert!(rooms.open(clock.now(), &key("new"), None).await.is_err());
    let traffic = until(&blind, |traffic| matches!(traffic, Traffic::Draining(_))).await?;
    assert_eq!(traffic, Traffic::Draining(DrainOrder::default()));
    // Neither does the directory take one for it.
    let refused = one
        .directory()
        .claim(&key("new"), one.instance(), None, None)
        .await;
    assert!(matches!(refused, Err(DirectoryError::Closed(who)) if who == *one.instance()));

    // Two come to their end, two are handed over when it suits their game.
    for n in 0..2 {
        rooms.end(clock.now(), &key(&format!("room-{n}"))).await?;
    }
    for n in 2..4 {
        let room = key(&format!("room-{n}"));
        let step = rooms.hand_over_now(&room, two.instance()).await;
        let seat = two.directory().show(&room).await?.expect("it has a seat");
        let moved = Moved {
            room,
            to: two.instance().clone(),
            epoch: seat.epoch,
        };
        assert_eq!(step.moved, [moved]);
    }
    // The deadline comes nearer: the control plane moves the rest, and the room server hears of that.
    drain(&mesh, one.instance(), Some(Duration::ZERO)).await?;
    let mut moved = Vec::new();
    while rooms.rooms().phase() != Phase::Drained {
        let update = timeout(READY_MAX, watch.next()).await??;
        for seat in update.changed {
            let step = rooms.told(&seat.key, Some(&seat)).await?;
            moved.extend(step.into_iter().flat_map(|step| step.moved));
        }
    }
    let mut names: Vec<&str> = moved.iter().map(|moved| moved.room.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["room-4", "room-5"]);
    eventually("it is drained", READY_MAX, async || {
        let drains = mesh.client().drains().await.ok()?;
        let mut ours = drains
            .items
            .iter()
            .filter(|d| d.id == one.instance().as_str());
        ours.next()
            .filter(|drain| drain.traffic == "drained")
            .map(drop)
    })
    .await?;
    drain(&mesh, one.instance(), None).await?;
    until(&one, |traffic| *traffic == Traffic::Accepting).await?;
    rooms.rooms_mut().accept();
    rooms.open(clock.now(), &key("new"), None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_server_with_a_certificate_in_a_folder_joins_a_mesh_with_identities()
-> anyhow::Result<()> {
    let plane = Guarded::start().await?;
    for name in ["battle", "shop"] {
        plane.does(&["cert", "issue", "--service", name, "--out", name])?;
    }
    let address = plane.xds.to_string();
    // Another service's certificate is none, and without one nobody is let in.
    let shop = plane.folder().join("shop");
    let wrong = MeshOptions::secure(&address, &shop, service(), by_itself("one"));
    assert!(matches!(wrong.err(), Some(IdentityError::Files { .. })));
    let mut open = MeshOptions::new(Control::parse(&address)?, service(), by_itself("one"));
    open.join_within = Duration::from_millis(500);
    let refused = Joined::join(open).await.err();
    assert!(matches!(refused, Some(MeshError::NotRegistered { .. })));

    let folder = plane.folder().join("battle");
    let options = MeshOptions::secure(&address, &folder, service(), by_itself("one"))?;
    let one = Joined::join(options).await?;
    until(&one, |traffic| *traffic == Traffic::Accepting).await?;
    let (directory, room) = (one.directory(), key("room"));
    let seat = directory.claim(&room, one.instance(), None, None).await?;
    assert_eq!(seat.instance, *one.instance());
    plane.does(&["drain", "battle/one"])?;
    until(&one, |traffic| matches!(traffic, Traffic::Draining(_))).await?;
    assert!(one.leave(READY_MAX).await);
    Ok(())
}
