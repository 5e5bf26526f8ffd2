//! The demo as a newcomer runs it, on a shorter clock.

use std::net::TcpListener;
use std::process::Command;

use phalanx_testkit::process::executable;

#[test]
fn the_demo_plays_without_a_failure_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let ports = [
        ["--xds", "127.0.0.1:25010"],
        ["--admin", "127.0.0.1:25080"],
        ["--dns", "127.0.0.1:25053"],
    ];
    // A debug build on two busy cores: fewer actions than a user's demo.
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["demo", "--duration", "10s", "--rate", "60"])
        .args(ports.as_flattened());
    let output = command.output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("battle-v2") && said.contains("0 failed"),
        "{said}"
    );
    for address in [
        "127.0.0.1:25010",
        "127.0.0.1:25080",
        "127.0.0.1:25053",
        "127.0.1.1:15006",
        "127.0.1.3:8080",
    ] {
        TcpListener::bind(address).unwrap_or_else(|e| panic!("{address} is still taken: {e}"));
    }
    Ok(())
}

#[test]
fn a_taken_port_is_said_before_anything_starts() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = Command::new(executable("phalanx")?)
        .args(["demo", "--duration", "1s", "--admin", &address])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&address) && said.contains("--admin"),
        "{said}"
    );
    Ok(())
}
