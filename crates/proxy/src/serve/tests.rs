//! How a sidecar ends.

use std::future::{pending, ready};
use std::net::TcpStream;

use phalanx_model::ServiceName;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Without a control plane.
fn config() -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let apps = vec![(String::new(), nobody)];
    Config {
        inbound: any,
        outbound: any,
        admin: any,
        control: nobody.to_string(),
        workers: 1,
        drain: Duration::from_millis(100),
        ..Config::new(ServiceName::new("default", "battle"), apps)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lasting_task_that_panics_ends_the_sidecar_with_an_error() {
    let running = start(config()).await.unwrap();
    let (outbound, lasting) = (running.outbound(), running.lasting.clone());
    assert!(TcpStream::connect(outbound).is_ok());
    tokio::spawn(lasting.guard("injected", async { panic!("injected") }));
    let ended = timeout(SOON, serve(running, std::pin::pin!(pending()))).await;
    assert!(matches!(ended, Ok(Err(ServeError::Fallen("injected")))));
    assert!(TcpStream::connect(outbound).is_err(), "nobody is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loop_of_a_worker_that_panics_ends_the_sidecar_with_an_error() {
    let running = start(config()).await.unwrap();
    running.workers.disturb();
    let ended = timeout(SOON, serve(running, std::pin::pin!(pending()))).await;
    assert!(matches!(ended, Ok(Err(ServeError::Fallen("worker")))));
}

#[tokio::test]
async fn heir_told_to_stop_after_its_last_word_serves_first_and_before_it_does_not() {
    let is_decided = AtomicBool::new(false);
    let (answer, answered) = tokio::sync::oneshot::channel();
    let (committed, is_committed) = tokio::sync::oneshot::channel();
    let starting = async {
        is_decided.store(true, Ordering::Relaxed);
        let _ = committed.send(());
        answered.await.map_err(|_| ServeError::Fallen("nobody"))
    };
    let stop = async {
        let _ = is_committed.await;
        // Seen by then; the holder's answer is later.
        tokio::spawn(async { answer.send("serving") });
    };
    let began = begun(starting, &is_decided, stop).await;
    assert_eq!(began.unwrap(), Begun::Stopping("serving"));

    let is_decided = AtomicBool::new(false);
    let never = begun(pending::<Result<(), _>>(), &is_decided, ready(())).await;
    assert_eq!(never.unwrap(), Begun::Never);
    let serving = begun(ready(Ok(1)), &is_decided, pending()).await;
    assert_eq!(serving.unwrap(), Begun::Serving(1));
}
