//! What once got into the store stops nothing: a thousand services of which one rule in a hundred is broken, planted behind
//! admission's back as an older version could have left it. The others change on time; the broken ones keep their last good
//! version and are told with the reason.

use std::time::Duration;

use phalanx_store::{Config, Store, Txn};
use phalanx_testkit::envoy::{Envoy, Protocol};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, Connection};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use serde_json::{Value, json};

const SERVICES: usize = 1000;
const BROKEN: [usize; 10] = [7, 107, 207, 307, 407, 507, 607, 707, 807, 907];
/// Sound, but its parent does not exist.
const UNATTACHED: usize = 907;
const BACKEND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: pool}\nspec:\n  selector: {app: pool}\n  ports: [{port: 80, appProtocol: http}]\n";
/// Keys of one transaction.
const PLANTED_AT_ONCE: usize = 500;

fn name(number: usize) -> String {
    format!("svc-{number:03}")
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {"selector": {"app": "pool"}, "ports": [{"port": 80, "appProtocol": "http"}]},
    })
}

/// Marks answers with `x-rev`.
fn route(number: usize, rev: u32) -> Value {
    let mark = json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-rev", "value": rev.to_string()}]}});
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {
            "parentRefs": [{"kind": "Service", "name": name(number)}],
            "rules": [{"filters": [mark], "backendRefs": [{"name": "pool", "port": 80}]}],
        },
    })
}

fn record(document: &Value) -> Vec<u8> {
    json!({"created": 1, "updated": 1, "generation": 1, "document": document})
        .to_string()
        .into_bytes()
}

/// Ten kinds of broken, and what has to be told of each.
fn broken(number: usize) -> (Vec<u8>, &'static str) {
    let mut document = route(number, 666);
    let told = match BROKEN.iter().position(|b| *b == number) {
        Some(0) => return (b"{\"created\": 1, \"docu".to_vec(), "damaged"),
        Some(1) => {
            document["spec"]["rules"][0]["backendRef"] = json!([]);
            "backendRef"
        }
        Some(2) => {
            document["spec"]["rules"][0]["matches"] =
                json!([{"path": {"type": "RegularExpression", "value": "/(a"}}]);
            "matches[0].path"
        }
        Some(3) => {
            document["kind"] = json!("Telemetry");
            "Telemetry"
        }
        Some(4) => {
            document["metadata"]["name"] = json!("somebody-else");
            "somebody-else"
        }
        Some(5) => {
            document["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(-1);
            "weight"
        }
        Some(6) => {
            document["spec"]["rules"][0]["matches"] =
                json!([{"path": {"type": "PathPrefix", "value": "no-slash"}}]);
            "path"
        }
        Some(7) => {
            document = json!([1, 2, 3]);
            "expected"
        }
        Some(8) => {
            document["spec"] = json!("text");
            "spec"
        }
        _ => {
            document["spec"]["parentRefs"][0]["name"] = json!("gone");
            "gone does not exist"
        }
    };
    (record(&document), told)
}

async fn plant(mesh: &Mesh) -> anyhow::Result<()> {
    let store = Store::embedded(Config::at(mesh.folder().join("data"))).await?;
    let mut puts: Vec<(String, Vec<u8>)> = Vec::new();
    let mut changes = Vec::new();
    for number in 0..SERVICES {
        let name = name(number);
        puts.push((
            format!("config/Service/default/{name}"),
            record(&service(number)),
        ));
        let key = format!("config/HTTPRoute/default/{name}");
        if BROKEN.contains(&number) {
            puts.push((key, broken(number).0));
            // How it was when it was good.
            let id = format!("HTTPRoute/default/{name}");
            changes.push(json!({"id": id, "before": null, "after": route(number, 1)}));
        } else {
            puts.push((key, record(&route(number, 1))));
        }
    }
    let history = json!({"time": 1, "author": "an older version", "changes": changes});
    puts.push((
        format!("history/{:020}", 900),
        history.to_string().into_bytes(),
    ));
    for some in puts.chunks(PLANTED_AT_ONCE) {
        let txn = some.iter().fold(Txn::new(), |txn, (key, value)| {
            txn.put(key.clone(), value.clone())
        });
        store.commit(txn).await?;
    }
    store.close().await;
    Ok(())
}

/// What every service answers in `x-rev`, through one proxy.
async fn revs(outbound: std::net::SocketAddr) -> anyhow::Result<Vec<String>> {
    let mut connection = Connection::open(outbound, false).await?;
    let mut revs = Vec::new();
    for number in 0..SERVICES {
        let answer = connection.send(&Call::get(&name(number), "/")).await?;
        revs.push(match answer.status {
            200 => answer.header("x-rev").to_owned(),
            status => status.to_string(),
        });
    }
    Ok(revs)
}

#[tokio::test]
async fn of_a_thousand_services_ten_are_broken_and_the_others_change_on_time() -> anyhow::Result<()>
{
    let mut mesh = Mesh::start().await?;
    mesh.apply(BACKEND).await?;
    let _pool = mesh.instance("pool", "v1", "pool").await?;
    let gate = mesh.instance("gate", "v1", "gate").await?;
    let envoy = Envoy::start(&mut mesh, "door", Protocol::Delta).await?;

    mesh.control.terminate(Duration::from_secs(20)).await?;
    plant(&mesh).await?;
    mesh.restart_control().await?;
    let proxies = async || {
        let status = mesh.client().status(None).await.ok()?;
        (status.proxies == 3 && status.complete()).then_some(status)
    };
    let status = eventually("every proxy to have what was planted", READY_MAX, proxies).await?;
    for number in BROKEN {
        let id = format!("HTTPRoute/default/{}", name(number));
        let quarantined = status.quarantined.iter().find(|q| q.id == id);
        let finding = status.findings.iter().find(|f| f.id == id);
        let message = match number {
            UNATTACHED => finding.map(|f| &f.message),
            _ => quarantined.map(|q| &q.message),
        };
        let told = broken(number).1;
        assert!(
            message.is_some_and(|message| message.contains(told)),
            "{id}: {message:?} does not tell `{told}`"
        );
    }
    assert_eq!((status.quarantined.len(), status.findings.len()), (9, 1));

    let good = (0..SERVICES).filter(|number| !BROKEN.contains(number));
    let text: Vec<String> = good.map(|number| route(number, 2).to_string()).collect();
    let started = std::time::Instant::now();
    let answer = mesh.apply(&text.join("\n---\n")).await?;
    let took = started.elapsed();
    assert_eq!(answer.changes.len(), SERVICES - BROKEN.len());
    let status = mesh.client().status(Some(answer.revision)).await?;
    println!(
        "990 routes changed at 3 proxies: {took:?} with admission, {:?} ms from stored to the last acknowledgement",
        status.elapsed_ms
    );

    for (proxy, outbound) in [("sidecar", gate.outbound), ("envoy", envoy.outbound)] {
        // An acknowledgement comes before all cores have taken it up.
        let all = async || {
            let revs = revs(outbound).await.ok()?;
            (0..SERVICES)
                .all(|n| BROKEN.contains(&n) || revs[n] == "2")
                .then_some(revs)
        };
        let revs = eventually(&format!("all to change at the {proxy}"), READY_MAX, all).await?;
        for number in BROKEN {
            // Without its route a Service's traffic goes to itself.
            let kept = if number == UNATTACHED { "" } else { "1" };
            assert_eq!(revs[number], kept, "{proxy}: {}", name(number));
        }
    }

    // The command line lists them, and so the way out: apply a good one.
    mesh.apply(&route(BROKEN[0], 3).to_string()).await?;
    let status = mesh.client().status(None).await?;
    assert_eq!(status.quarantined.len(), 8, "{:?}", status.quarantined);
    Ok(())
}
