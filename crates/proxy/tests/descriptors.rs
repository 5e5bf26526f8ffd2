//! Out of file descriptors: a process of its own, because the limit is one of the process.

#[path = "path/support.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests of the path, which use all of it"
)]
mod support;

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use phalanx_proxy::account::Event;

use support::{Client, Setup, Upstream, eventually, ok};

const INSIDE: &str = "PHALANX_TEST_FEW_DESCRIPTORS";

#[test]
fn without_descriptors_nothing_spins_and_with_them_everything_goes_on() {
    if std::env::var_os(INSIDE).is_some() {
        return few_descriptors();
    }
    let own = std::env::current_exe().unwrap();
    let inside = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --nocapture"])
        .arg(own)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(
        inside.status.success(),
        "{}{}",
        String::from_utf8_lossy(&inside.stdout),
        String::from_utf8_lossy(&inside.stderr)
    );
}

fn few_descriptors() {
    let upstream = Upstream::start(|_, _| ok("x"));
    let sidecar = Setup::battle(&[upstream.address]).start();
    let mut first = Client::connect(sidecar.outbound);
    assert_eq!(first.get("battle", "/").text(), "x", "its workers are up");
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken.pop();
    let mut caller = Client::connect(sidecar.outbound); // with the last one
    eventually("it is out of descriptors", || {
        sidecar.event(Event::AcceptFailed) > 0
    });
    let before = sidecar.event(Event::AcceptFailed);
    std::thread::sleep(Duration::from_millis(500));
    let failed = sidecar.event(Event::AcceptFailed) - before;
    assert!(failed <= 100, "{failed} failures in half a second");
    assert_eq!(first.get("battle", "/").text(), "x", "who is in is served");
    drop(taken);
    assert_eq!(caller.get("battle", "/").text(), "x", "it was not lost");
}
