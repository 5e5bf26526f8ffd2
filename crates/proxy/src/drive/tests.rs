//! What of the workers can be seen without running them.

use std::sync::Arc;

use super::*;

fn core() -> Rc<Core> {
    let account = Arc::new(Account::new(1));
    let plan = Arc::new(ArcSwap::from_pointee(Plan::empty()));
    Core::new(
        0,
        plan,
        account,
        Limits::default(),
        &Deadlines::default(),
        None,
    )
}

#[test]
fn every_socket_is_somebodys_and_every_worker_has_one() {
    for sockets in 1..=5 {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = Bound::open("inbound", any, sockets).unwrap();
        let named = |listener: &TcpListener| {
            use std::os::fd::AsRawFd;
            let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
            std::fs::read_link(path).unwrap()
        };
        for workers in 1..=5 {
            let shares = (0..workers).map(|index| bound.share(index, workers).unwrap());
            let shares: Vec<Vec<_>> = shares.map(|s| s.iter().map(named).collect()).collect();
            assert!(shares.iter().all(|share| !share.is_empty()));
            let mut all: Vec<_> = shares.into_iter().flatten().collect();
            assert_eq!(all.len(), sockets.max(workers));
            all.sort();
            all.dedup();
            assert_eq!(all.len(), sockets, "{workers} workers");
        }
    }
}

#[test]
fn connections_are_told_that_we_drain_one_after_the_other() {
    let core = core();
    let watches: Vec<_> = (0..1000).map(|_| Watch::new(&core, None)).collect();
    for watch in &watches {
        core.connections.borrow_mut().insert(watch.clone());
    }
    let start = Instant::now();
    let mut rollout = Rollout::new(&core, start, Duration::from_secs(60));
    // 5 ms for each.
    let spread = Duration::from_secs(5);
    let told = || {
        let told = watches.iter().filter(|watch| watch.is_draining());
        told.count()
    };
    for (tenth, range) in [(1, 50..200), (5, 400..600), (9, 850..960)] {
        rollout.tell(&core, start + spread * tenth / 10);
        assert!(range.contains(&told()), "{} after {tenth}/10", told());
    }
    assert!(
        core.is_draining(),
        "who comes now is told with its first answer"
    );
    rollout.tell(&core, start + spread);
    assert_eq!(told(), watches.len());
    let mut hurried = Rollout::new(&core, start, Duration::from_secs(1));
    hurried.tell(&core, start + Duration::from_secs(1));
    assert!(hurried.left.is_empty());
}

#[tokio::test]
async fn what_the_socket_has_is_seen_before_the_runtime_hears_of_it() {
    use std::io::Write;
    use std::task::{Context, Waker};
    let core = core();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut wire = wire::Wire::new(stream::Stream::Plain(listener.accept().await.unwrap().0));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        wire.poll_read(&mut cx, &core, &mut wire::Scratch::take())
            .is_pending()
    );
    assert!(!wire.has_unheard());
    // No turn of the runtime passes.
    peer.write_all(b"POST").unwrap();
    assert!(
        wire.poll_read(&mut cx, &core, &mut wire::Scratch::take())
            .is_pending()
    );
    assert!(wire.has_unheard());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(
        wire.poll_read(&mut cx, &core, &mut wire::Scratch::take())
            .is_ready()
    );
    // The end is nothing to wait for.
    drop(peer);
    assert!(!wire.has_unheard());
}
