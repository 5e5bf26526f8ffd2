//! DNS as `dig` sees it: a real control plane, instances behind sidecars, over UDP and TCP.

use std::net::IpAddr;
use std::process::Command;

use phalanx_testkit::eventually;
use phalanx_testkit::mesh::{Mesh, READY_MAX};

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  selector: {app: battle}
  ports: [{name: game, port: 80}]
";

/// What `dig` prints. An exit code other than 0 means that it got no answer at all.
fn dig(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", mesh.dns.ip()))
        .args(["-p", &mesh.dns.port().to_string()])
        .args(["+time=2", "+tries=5"])
        .args(arguments);
    let output = command
        .output()
        .map_err(|e| anyhow::anyhow!("dig (cargo xtask setup installs it): {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(said)
}

/// The lines of `+short`.
fn short(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    let said = dig(mesh, &[&["+short"], arguments].concat())?;
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

async fn until(mesh: &Mesh, what: &str, arguments: &[&str], count: usize) -> anyhow::Result<()> {
    eventually(what, READY_MAX, async || {
        let lines = short(mesh, arguments).ok()?;
        (lines.len() == count).then_some(())
    })
    .await
}

#[tokio::test]
async fn dig_finds_instances_by_name_and_loses_those_that_go() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    mesh.apply(SERVICE).await?;
    let near = mesh.instance("battle", "v1,zone=az1", "b1").await?;
    let mut far = mesh.instance("battle", "v2,zone=az2", "b2").await?;
    let name = "battle.default.svc.mesh";
    let mut addresses = [near.inbound, far.inbound].map(|a| a.ip().to_string());
    addresses.sort();

    until(&mesh, "both instances to have names", &[name, "A"], 2).await?;
    for transport in ["+notcp", "+tcp", "+noedns", "+bufsize=512"] {
        assert_eq!(short(&mesh, &[transport, name, "A"])?, addresses);
    }
    let said = dig(&mesh, &["+norecurse", "bAttLe.dEfault.svc.MESH", "A"])?;
    assert!(said.contains("status: NOERROR"), "{said}");
    assert!(said.contains("flags: qr aa;"), "no recursion: {said}");
    assert!(said.contains("bAttLe.dEfault.svc.MESH. 5"), "{said}");
    assert!(said.contains("udp: 1232"), "{said}");

    check_services(&mesh, &near, &addresses)?;
    check_zones(&mesh, [near.inbound.ip(), far.inbound.ip()])?;
    check_absence(&mesh)?;

    // Its sidecar stays, and says so.
    far.app.kill();
    until(&mesh, "the dead application to be gone", &[name, "A"], 1).await?;
    assert_eq!(short(&mesh, &[name, "A"])?, [near.inbound.ip().to_string()]);
    mesh.restart_control().await?;
    assert_eq!(short(&mesh, &[name, "A"])?.len(), 1, "at once");
    Ok(())
}

fn check_services(
    mesh: &Mesh,
    near: &phalanx_testkit::mesh::Instance,
    addresses: &[String],
) -> anyhow::Result<()> {
    let targets = short(mesh, &["_game._tcp.battle.default.svc.mesh", "SRV"])?;
    assert_eq!(targets.len(), 2, "{targets:?}");
    let mut resolved = Vec::new();
    for target in &targets {
        let [_priority, _weight, port, host] = target.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{target}");
        };
        assert_eq!(port, near.inbound.port().to_string(), "of the sidecar");
        resolved.extend(short(mesh, &[host, "A"])?);
    }
    resolved.sort();
    assert_eq!(resolved, addresses);
    Ok(())
}

fn check_zones(mesh: &Mesh, instances: [IpAddr; 2]) -> anyhow::Result<()> {
    for ip in instances.map(|ip| ip.to_string()) {
        for _ in 0..5 {
            let said = dig(mesh, &["+short", "-b", &ip, "battle.default.svc.mesh", "A"])?;
            assert_eq!(said.lines().next(), Some(ip.as_str()), "its own zone first");
        }
    }
    Ok(())
}

fn check_absence(mesh: &Mesh) -> anyhow::Result<()> {
    for (name, kind, status) in [
        ("nobody.default.svc.mesh", "A", "NXDOMAIN"),
        ("_game._udp.battle.default.svc.mesh", "SRV", "NXDOMAIN"),
        ("battle.default.svc.mesh", "AAAA", "NOERROR"),
        ("default.svc.mesh", "A", "NOERROR"),
        ("_tcp.battle.default.svc.mesh", "SRV", "NOERROR"),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let said = dig(mesh, &[transport, name, kind])?;
            assert!(said.contains(&format!("status: {status}")), "{said}");
            let soa = "SOA\tns.svc.mesh. hostmaster.svc.mesh.";
            assert!(said.contains("ANSWER: 0, AUTHORITY: 1"), "{said}");
            assert!(said.contains(soa), "{said}");
        }
    }
    let elsewhere = dig(mesh, &["example.com", "A"])?;
    assert!(elsewhere.contains("status: REFUSED"), "{elsewhere}");
    let version = dig(mesh, &["+edns=1", "+noednsneg", "svc.mesh", "SOA"])?;
    assert!(version.contains("status: BADVERS"), "{version}");
    let opcode = dig(mesh, &["+opcode=notify", "svc.mesh", "SOA"])?;
    assert!(opcode.contains("status: NOTIMP"), "{opcode}");
    let any = dig(mesh, &["+notcp", "battle.default.svc.mesh", "ANY"])?;
    assert!(any.contains("HINFO\t\"RFC8482\""), "{any}");
    assert_eq!(short(mesh, &["svc.mesh", "NS"])?, ["ns.svc.mesh."]);
    assert_eq!(
        short(mesh, &["ns.svc.mesh", "A"])?,
        [mesh.dns.ip().to_string()]
    );
    Ok(())
}

/// Endpoints that don't register, so that a crowd costs nothing.
fn crowd(count: usize) -> String {
    let endpoint = |at: usize| format!("- {{addresses: [10.9.{}.{}]}}\n", at / 250, at % 250);
    let endpoints: String = (0..count).map(endpoint).collect();
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: crowd}}
spec:
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: crowd-1, labels: {{kubernetes.io/service-name: crowd}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{endpoints}"
    )
}

#[tokio::test]
async fn what_is_too_long_for_a_datagram_comes_over_tcp() -> anyhow::Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&crowd(90)).await?;
    let name = "crowd.default.svc.mesh";
    until(&mesh, "the crowd to have names", &["+tcp", name, "A"], 90).await?;
    let cut = dig(&mesh, &["+ignore", "+notcp", name, "A"])?;
    assert!(cut.contains("flags: qr aa tc rd;"), "{cut}");
    assert!(cut.contains("ANSWER: 0"), "{cut}");
    let whole = dig(&mesh, &[name, "A"])?;
    assert!(whole.contains("Truncated, retrying in TCP mode"), "{whole}");
    assert!(whole.contains("ANSWER: 90"), "{whole}");
    let pipelined = dig(
        &mesh,
        &[
            "+tcp",
            "+keepopen",
            name,
            "A",
            name,
            "AAAA",
            "svc.mesh",
            "SOA",
        ],
    )?;
    assert_eq!(
        pipelined.matches("status: NOERROR").count(),
        3,
        "{pipelined}"
    );
    Ok(())
}
