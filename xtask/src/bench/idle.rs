//! Connections that have made a request each and now do nothing: what each of them costs the proxy in memory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use super::case::{Case, Wire};
use super::load::{SETTLED, printed};
use super::pair;
use super::running::{Child, LOAD_CORE, Running};
use super::sample::Sample;

/// A sidecar takes 10,000 unless told otherwise, and those who ask whether it is up come on top.
pub const CONNECTIONS: usize = 9900;
/// Until buffers are given back, and allocators have done their cleaning.
const STEADY: Duration = Duration::from_secs(6);

/// Of datagrams: as many clients that are there, each from an address of its own.
const SESSIONS: u32 = 100_000;

/// Not until they are steady: they end after a minute.
fn sessions(root: &Path, proxy: &Running) -> anyhow::Result<Sample> {
    std::thread::sleep(SETTLED);
    let before = proxy.all().proportional_kb()?;
    let mut hello = Command::new("taskset");
    hello.args(["-c", LOAD_CORE]);
    hello.arg(root.join("target/dist/bench-backend"));
    hello.args(["udp-hello", proxy.entry, &SESSIONS.to_string()]);
    let opened = printed(
        &Child::listened(&mut hello, "the clients")?.finish()?,
        "open ",
    )?;
    let full = proxy.all().proportional_kb()?;
    if opened < f64::from(SESSIONS) {
        bail!("of {SESSIONS} clients {opened} had an answer");
    }
    let mut sample = Sample::default();
    sample.add("KB/session", (full - before) / opened, 3);
    sample.add("sessions", opened, 0);
    sample.add("descriptors", proxy.all().descriptors()? as f64, 0);
    sample.add("MB before", before / 1024.0, 1);
    sample.add("MB with them", full / 1024.0, 1);
    Ok(sample)
}

/// The proportional set size, after less what it was before: the kernel's memory for sockets is not in it. One request went
/// through before, so that what is made once is there.
pub fn measure(case: &Case, root: &Path, proxy: &Running) -> anyhow::Result<Sample> {
    if case.is_udp() {
        return sessions(root, proxy);
    }
    let server = match case.paired {
        true => proxy.last(),
        false => proxy.all(),
    };
    std::thread::sleep(SETTLED);
    let before = server.proportional_kb()?;
    let mut holder = Command::new("taskset");
    holder.args(["-c", LOAD_CORE]);
    holder.arg(root.join("target/dist/bench-backend"));
    holder.args(["idle", if case.wire == Wire::Http2 { "h2" } else { "h1" }]);
    let to = match case.paired {
        true => pair::BETWEEN,
        false => proxy.entry,
    };
    holder.args([to, &CONNECTIONS.to_string()]);
    if let Some((cert, key)) = proxy.pem.as_ref().filter(|_| case.paired) {
        holder.arg(cert).arg(key);
    }
    let mut holding = Child::listened(&mut holder, "the idle connections")?;
    let opened = printed(&holding.line()?, "open ")?;
    std::thread::sleep(STEADY);
    let full = server.proportional_kb()?;
    let held = printed(&holding.finish()?, "held ")?;
    if held < opened || opened != CONNECTIONS as f64 {
        bail!("of {CONNECTIONS} connections {opened} were opened, and {held} held");
    }
    let mut sample = Sample::default();
    sample.add("KB/connection", (full - before) / opened, 2);
    sample.add("connections", opened, 0);
    sample.add("MB before", before / 1024.0, 1);
    sample.add("MB with them", full / 1024.0, 1);
    Ok(sample)
}
