//! Certificates: how fast they are signed beside openssl, joined and renewed over TLS; and what a sidecar pair under a constant load
//! has of it when 1,000 workloads renew at once.
//!
//! For the last, the pair, its backend and the load are on core 0, the control plane and the workloads on core 1: what these
//! machines would not share either.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value as Json;

use super::super::case::{BACKEND_H1, LISTEN, PAIR};
use super::super::pair;
use super::super::peer;
use super::super::running::{Child, LOAD_CORE, PROXY_CORE, Running, wait_for_port};
use super::super::sample::Cpu;
use super::{ADMIN, Bench, DNS, Figures, Load, Process, SECONDS, SETTLED, XDS, number};

/// Workloads that renew.
const WORKLOADS: usize = 1000;
/// Requests a second of the constant load, over so many connections.
const RATE: u32 = 1000;
const CONNECTIONS: u32 = 20;

impl Bench<'_> {
    pub(super) fn identity(&self, figures: &mut Figures) -> anyhow::Result<()> {
        self.signing(figures)?;
        self.joining(figures)?;
        self.under_load(figures)
    }

    fn signing(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let mut load = self.start_load()?;
        let leaves = number(&load.ask(&format!("sign {SECONDS}"))?, "per_cpu_second")?;
        let signatures = openssl_signs()?;
        println!("  openssl signs {signatures}/s");
        let of = |what: &str| format!("certificates, one core: {what}");
        figures.add(of("leaves issued a second, each request checked"), leaves);
        figures.add(
            of("signatures a second of `openssl speed ecdsap256`"),
            signatures,
        );
        Ok(())
    }

    fn joining(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let of = |what: &str| format!("certificates, {WORKLOADS} workloads over TLS: {what}");
        let data = self.work.join("guarded");
        let control = self.start_guarded(&data)?;
        let mut load = self.start_load()?;
        let before = control.cpu_ms()?;
        let join = format!("join {ADMIN} {XDS} {} {WORKLOADS}", data.display());
        let joined = load.ask(&join)?;
        figures.add(
            of("joins a second, each with a token and a connection of its own"),
            number(&joined, "per_second")?,
        );
        figures.add(
            of("joins, tokens made for them: CPU of the control plane, \u{b5}s each"),
            (control.cpu_ms()? - before) * 1e3 / WORKLOADS as f64,
        );
        for (word, over) in [("new", "new connections"), ("open", "open connections")] {
            std::thread::sleep(SETTLED);
            let before = control.cpu_ms()?;
            let renewed = load.ask(&format!("renew {word}"))?;
            let at_once = format!("all renew at once over {over}");
            figures.add(
                of(&format!("{at_once}, until the last has it, ms")),
                number(&renewed, "max_ms")?,
            );
            figures.add(
                of(&format!("{at_once}: CPU of the control plane, ms")),
                control.cpu_ms()? - before,
            );
        }
        let before = control.cpu_ms()?;
        let renewed = load.ask(&format!("renew-for {SECONDS}"))?;
        figures.add(
            of("renewals a second, as many as are answered"),
            number(&renewed, "per_second")?,
        );
        figures.add(
            of("renewals: CPU of the control plane, \u{b5}s each"),
            (control.cpu_ms()? - before) * 1e3 / number(&renewed, "count")?,
        );
        Ok(())
    }

    fn under_load(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let mut backend = Command::new("taskset");
        backend.args(["-c", PROXY_CORE]);
        backend.arg(self.root.join("target/dist/bench-backend"));
        let _backend = Child::spawn(backend.args(["h1", BACKEND_H1]), "the backend")?;
        wait_for_port(BACKEND_H1)?;
        let ours = peer::ALL.iter().find(|peer| peer.name == "phalanx");
        let ours = ours.context("no pair of ours")?;
        let pair = ours.start(self.root, &self.work, &PAIR)?;
        let (mut crowd, mut load) = (self.start_on(LOAD_CORE)?, self.start_on(PROXY_CORE)?);
        let data = self.work.join(pair::DATA);
        let (xds, admin) = (pair::XDS, pair::ADMIN);
        crowd.ask(&format!(
            "join {admin} {xds} {} {WORKLOADS}",
            data.display()
        ))?;
        // Everything is warm, and what joined has settled.
        pulse(&mut load)?;
        std::thread::sleep(SETTLED);
        for renewing in [false, true, false] {
            let before = pair.cpu()?;
            let answer = match renewing {
                false => pulse(&mut load)?,
                true => {
                    crowd.tell(&format!("waves {SECONDS}"))?;
                    let answer = pulse(&mut load)?;
                    crowd.answer("waves")?;
                    answer
                }
            };
            self.note(figures, &pair, before, &answer, renewing)?;
        }
        Ok(())
    }

    fn note(
        &self,
        figures: &mut Figures,
        pair: &Running,
        before: Cpu,
        answer: &Json,
        renewing: bool,
    ) -> anyhow::Result<()> {
        let when = match renewing {
            false => "nobody renews".to_owned(),
            true => format!("{WORKLOADS} renew at once, each second"),
        };
        let of =
            |what: &str| format!("certificates, a pair at {RATE} requests/s while {when}: {what}");
        let cpu = pair.cpu()?.since(before).ns as f64 / 1e3;
        figures.add(of("P50, \u{b5}s"), number(answer, "p50_ms")? * 1e3);
        figures.add(of("P99, \u{b5}s"), number(answer, "p99_ms")? * 1e3);
        figures.add(
            of("CPU of both, \u{b5}s a request"),
            cpu / number(answer, "count")?,
        );
        Ok(())
    }

    /// One that takes nobody without a proof. Returns when its operator can ask it.
    fn start_guarded(&self, data: &Path) -> anyhow::Result<Process> {
        let _ = std::fs::remove_dir_all(data);
        let mut command = Command::new(self.root.join("target/dist/phalanx"));
        command.args(["control", "--xds", XDS, "--admin", ADMIN, "--dns", DNS]);
        command.args(["--ocsp", "none", "--data"]).arg(data);
        let control = Process::start(&mut command, "the control plane")?;
        pair::wait_for_operator(data)?;
        super::wait_for(&[ADMIN, XDS])?;
        Ok(control)
    }

    fn start_on(&self, core: &str) -> anyhow::Result<Load> {
        let mut command = Command::new("taskset");
        command.args(["-c", core]);
        command.arg(self.root.join("target/dist/bench-control"));
        Load::start(&mut command)
    }
}

fn pulse(load: &mut Load) -> anyhow::Result<Json> {
    load.ask(&format!(
        "pulse {LISTEN} backend {CONNECTIONS} {RATE} {SECONDS}"
    ))
}

/// On one core.
fn openssl_signs() -> anyhow::Result<f64> {
    let mut command = Command::new("openssl");
    command.args(["speed", "-seconds", "3", "ecdsap256"]);
    let output = command.stderr(Stdio::null()).output();
    let output = output.context("openssl has to be installed")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // …ecdsa (nistp256)   0.0000s   0.0001s  40000.0  13000.0: of signing and verifying, time and count a second.
    let line = text.lines().find(|line| line.contains("ecdsa (nistp256)"));
    let line = line.with_context(|| format!("openssl printed no rate: {text}"))?;
    let count = line.split_whitespace().rev().nth(1);
    Ok(count.context("no rate of signing")?.parse()?)
}
