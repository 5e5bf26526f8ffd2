//! Real control planes over a real etcd that loses members, goes away, forgets, fills up; and over a disk that is full. Data
//! planes go on without a single failed request, changes are refused clearly, and all heals by itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hyper::Method;
use phalanx_client::admin::AdminError;
use phalanx_client::api::{ApplyRequest, File};
use phalanx_testkit::etcd::{Cluster, Etcd};
use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use phalanx_testkit::process::executable;

/// Longer than the TTL of an instance.
const AWAY: Duration = Duration::from_secs(15);
const AWAY_SOAK: Duration = Duration::from_secs(60);

fn service(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: battle}}\nspec:\n  selector: {{app: battle}}\n  ports: [{{name: http, port: {port}, appProtocol: http}}, {{name: other, port: 80, appProtocol: http}}]\n"
    )
}

/// A battle, and a caller that calls it all the time.
struct Running {
    load: Load,
    caller: Instance,
    _battle: Instance,
}

impl Running {
    async fn start(mesh: &mut Mesh) -> anyhow::Result<Self> {
        let battle = mesh.instance("battle", "v1", "battle").await?;
        let caller = mesh.instance("gateway", "v1", "gateway").await?;
        mesh.apply(&service(8000)).await?;
        reaches(&caller, 8000).await?;
        let load = Load::start(
            caller.outbound,
            &Call::get("battle", "/"),
            4,
            Duration::from_millis(5),
        );
        Ok(Self {
            load,
            caller,
            _battle: battle,
        })
    }

    async fn without_a_failure(self) -> anyhow::Result<()> {
        let report = self.load.stop().await;
        anyhow::ensure!(report.failed() == 0, "{report:?}");
        Ok(())
    }
}

/// A port that only the newest configuration has.
async fn reaches(caller: &Instance, port: u16) -> anyhow::Result<()> {
    let request = Call::get(&format!("battle:{port}"), "/");
    eventually("the new port to answer", READY_MAX, async || {
        let answer = call(caller.outbound, &request).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

fn request(port: u16) -> ApplyRequest {
    ApplyRequest {
        files: vec![File {
            name: "test.yaml".into(),
            text: service(port),
        }],
        author: "test".into(),
        ..ApplyRequest::default()
    }
}

/// Applied as a person would who tries again.
async fn applied_in_the_end(mesh: &Mesh, port: u16) -> anyhow::Result<()> {
    let client = mesh.client().with_timeout(Duration::from_secs(30));
    let answer = eventually("the change to be taken", READY_MAX, async || {
        client.apply(&request(port)).await.ok()
    })
    .await?;
    mesh.applied(answer.revision).await.map(drop)
}

async fn read_only(mesh: &Mesh, wanted: bool) -> anyhow::Result<String> {
    let client = mesh.client();
    eventually(
        "the status to say how the store is",
        READY_MAX,
        async || {
            let status = client.status(None).await.ok()?;
            (status.read_only.is_some() == wanted).then(|| status.read_only.unwrap_or_default())
        },
    )
    .await
}

fn store(etcd: &Etcd) -> Vec<String> {
    vec!["--store".into(), format!("etcd://{}", etcd.endpoint())]
}

async fn mesh_over(etcd: &Etcd) -> anyhow::Result<Mesh> {
    let options = store(etcd);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Mesh::start_with(&options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_any_of_its_members_goes_on() -> anyhow::Result<()> {
    let mut etcd = Cluster::start().await?;
    let url = format!("etcd://{}", etcd.endpoints());
    let mut mesh = Mesh::start_with(&["--store", &url]).await?;
    let running = Running::start(&mut mesh).await?;
    // One of the three is the leader.
    for member in 0..3 {
        etcd.members[member].kill();
        let port = 8001 + member as u16;
        applied_in_the_end(&mesh, port).await?;
        reaches(&running.caller, port).await?;
        etcd.members[member].restart().await?;
        applied_in_the_end(&mesh, 8000).await?;
    }
    running.without_a_failure().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_etcd_is_away_data_planes_go_on_changes_are_refused_and_it_heals()
-> anyhow::Result<()> {
    let mut etcd = Etcd::start(&[]).await?;
    let mut mesh = mesh_over(&etcd).await?;
    let running = Running::start(&mut mesh).await?;
    let client = mesh.client().with_timeout(Duration::from_secs(30));
    let before = client.documents(None, None).await?;

    let is_soak = std::env::var_os("PHALANX_SOAK").is_some();
    let away = tokio::time::Instant::now() + if is_soak { AWAY_SOAK } else { AWAY };
    etcd.kill();
    let refused = client.apply(&request(8001)).await.unwrap_err();
    anyhow::ensure!(
        matches!(&refused, AdminError::Refused { status: 503, body } if body.error.contains("store")),
        "{refused:?}"
    );
    let reason = read_only(&mesh, true).await?;
    anyhow::ensure!(reason.contains("etcd does not answer"), "{reason}");
    // What is known is still told.
    anyhow::ensure!(client.documents(None, None).await? == before);
    tokio::time::sleep_until(away).await;

    etcd.restart().await?;
    read_only(&mesh, false).await?;
    applied_in_the_end(&mesh, 8002).await?;
    reaches(&running.caller, 8002).await?;
    // Nobody was expired for the store's silence.
    let instances = client.instances(None, None).await?.items;
    anyhow::ensure!(instances.len() == 2, "{instances:?}");
    running.without_a_failure().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_slept_through_a_compaction_reads_everything_again()
-> anyhow::Result<()> {
    let etcd = Etcd::start(&[]).await?;
    let mut mesh = mesh_over(&etcd).await?;
    let running = Running::start(&mut mesh).await?;
    mesh.control.pause()?;
    let mut revision = String::new();
    for i in 0..20 {
        let put = format!(
            r#"{{"key":"{}","value":"{}"}}"#,
            base64(format!("/phalanx/other/{i}").as_bytes()),
            base64(b"x")
        );
        let answer = gateway(&etcd, "/v3/kv/put", &put).await?;
        revision = answer["header"]["revision"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }
    gateway(
        &etcd,
        "/v3/kv/compaction",
        &format!(r#"{{"revision":"{revision}"}}"#),
    )
    .await?;
    mesh.control.resume()?;
    applied_in_the_end(&mesh, 8003).await?;
    reaches(&running.caller, 8003).await?;
    running.without_a_failure().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_changes_with_its_reason_and_heals_when_there_is_room()
-> anyhow::Result<()> {
    let etcd = Etcd::start(&["--quota-backend-bytes", "16777216"]).await?;
    let mut mesh = mesh_over(&etcd).await?;
    let running = Running::start(&mut mesh).await?;
    let filler = base64(&vec![7; 1 << 20]);
    let put = format!(r#"{{"key":"{}","value":"{filler}"}}"#, base64(b"/filler"));
    let mut revision = String::new();
    loop {
        let answer = gateway(&etcd, "/v3/kv/put", &put).await?;
        if answer["error"]
            .as_str()
            .unwrap_or_default()
            .contains("space")
        {
            break;
        }
        revision = answer["header"]["revision"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }
    let client = mesh.client().with_timeout(Duration::from_secs(30));
    let refused = client.apply(&request(8001)).await.unwrap_err().to_string();
    anyhow::ensure!(
        refused.contains("read-only") || refused.contains("full"),
        "{refused}"
    );
    let reason = read_only(&mesh, true).await?;
    anyhow::ensure!(reason.to_lowercase().contains("space"), "{reason}");
    reaches(&running.caller, 8000).await?;

    gateway(
        &etcd,
        "/v3/kv/compaction",
        &format!(r#"{{"revision":"{revision}"}}"#),
    )
    .await?;
    gateway(&etcd, "/v3/maintenance/defragment", "{}").await?;
    let alarms = gateway(&etcd, "/v3/maintenance/alarm", "{}").await?;
    let member = alarms["alarms"][0]["memberID"].as_str().unwrap_or_default();
    let disarm = format!(r#"{{"action":"DEACTIVATE","alarm":"NOSPACE","memberID":"{member}"}}"#);
    gateway(&etcd, "/v3/maintenance/alarm", &disarm).await?;
    read_only(&mesh, false).await?;
    applied_in_the_end(&mesh, 8002).await?;
    reaches(&running.caller, 8002).await?;
    running.without_a_failure().await
}

/// etcd's API as JSON.
async fn gateway(etcd: &Etcd, path: &str, body: &str) -> anyhow::Result<serde_json::Value> {
    let request = Call::get("etcd", path)
        .method(Method::POST)
        .header("content-type", "application/json")
        .body(body.to_owned());
    let answer = call(etcd.endpoint().parse()?, &request).await?;
    Ok(answer.json())
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for i in 0..3 {
            bits = bits << 8 | u32::from(group.get(i).copied().unwrap_or(0));
        }
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i <= group.len() { letter } else { '=' });
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_control_plane_proves_who_it_is_and_asks_who_etcd_is() -> anyhow::Result<()> {
    let etcd = Etcd::start_tls().await?;
    let certificates = etcd.certificates().unwrap().clone();
    let text = |path: &Path| path.display().to_string();
    let (ca, chain, key) = (
        text(&certificates.ca),
        text(&certificates.client.0),
        text(&certificates.client.1),
    );
    let url = format!("etcds://{}", etcd.endpoint());
    let access = [
        "--store",
        &url,
        "--store-ca",
        &ca,
        "--store-cert",
        &chain,
        "--store-key",
        &key,
    ];
    let mut mesh = Mesh::start_with(&access).await?;
    let running = Running::start(&mut mesh).await?;
    running.without_a_failure().await?;
    mesh.control.kill();

    // The client's certificate is no authority; nor is no name a name.
    for (wrong, code) in [
        (
            vec![
                "--store",
                &url,
                "--store-ca",
                &chain,
                "--store-cert",
                &chain,
                "--store-key",
                &key,
            ],
            4,
        ),
        (
            vec![
                "--store",
                &url,
                "--store-ca",
                &ca,
                "--store-cert",
                &chain,
                "--store-key",
                &key,
                "--store-server-name",
                "etcd.elsewhere",
            ],
            4,
        ),
        (vec!["--store", &url, "--store-ca", &ca], 4),
        (vec!["--store", &url], 2),
        (vec!["--store", "embedded", "--store-ca", &ca], 2),
    ] {
        let output = Command::new(executable("phalanx")?)
            .args([
                "control",
                "--open",
                "--xds",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--dns",
                "127.0.0.1:0",
                "--ocsp",
                "none",
            ])
            .args(&wrong)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.code() == Some(code), "{wrong:?}: {said}");
        anyhow::ensure!(!said.contains("PRIVATE"), "{said}");
    }
    Ok(())
}

/// A file system of its own that is as small as a test needs; needs root, as everything that the suites install does.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u32) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(folder.path())
            .status()?;
        anyhow::ensure!(mounted.success(), "no file system of a size can be mounted");
        Ok(Self { folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_the_embedded_store_is_read_only_while_data_planes_go_on_and_it_heals()
-> anyhow::Result<()> {
    let disk = SmallDisk::new(48)?;
    let data = disk.folder.path().join("data").display().to_string();
    let mut mesh = Mesh::start_with(&["--data", &data]).await?;
    let running = Running::start(&mut mesh).await?;
    let filler = disk.folder.path().join("filler");
    let filling = std::fs::File::create(&filler)?;
    // Until there is no room.
    std::io::copy(&mut std::io::repeat(7), &mut &filling).unwrap_err();

    let client = mesh.client().with_timeout(Duration::from_secs(30));
    let mut port = 8001;
    let refused = eventually("a change to be refused", READY_MAX, async || {
        port += 1;
        client.apply(&request(port)).await.err()
    })
    .await?;
    anyhow::ensure!(
        matches!(refused, AdminError::Refused { status: 503, .. }),
        "{refused:?}"
    );
    let reason = read_only(&mesh, true).await?;
    anyhow::ensure!(reason.contains("space"), "{reason}");
    reaches(&running.caller, 80).await?;

    std::fs::remove_file(&filler)?;
    drop(filling);
    read_only(&mesh, false).await?;
    applied_in_the_end(&mesh, 9000).await?;
    reaches(&running.caller, 9000).await?;
    running.without_a_failure().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_larger_than_etcd_takes_is_one_change() -> anyhow::Result<()> {
    const COUNT: usize = 300;
    let etcd = Etcd::start(&[]).await?;
    let mut mesh = mesh_over(&etcd).await?;
    let text = |port: u16| {
        let note = "x".repeat(9 << 10);
        let one = |i| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: s{i}\n  annotations: {{note: \"{note}\"}}\nspec:\n  selector: {{app: s{i}}}\n  ports: [{{port: {port}}}]\n"
            )
        };
        (0..COUNT).map(one).collect::<Vec<_>>().join("---\n")
    };
    let client = mesh.client().with_timeout(Duration::from_secs(60));
    let mut revisions = Vec::new();
    for port in [8001, 8002] {
        let mut request = request(port);
        request.files[0].text = text(port);
        let answer = client.apply(&request).await?;
        anyhow::ensure!(
            answer.changes.len() == COUNT,
            "{} changes",
            answer.changes.len()
        );
        revisions.push(answer.revision);
    }
    // The second record of the history holds all of both.
    mesh.restart_control().await?;
    let history = client.history(None).await?.entries;
    anyhow::ensure!(history.len() == 2 && history.iter().all(|e| e.changes.len() == COUNT));
    let items = client.documents(Some("Service"), None).await?.items;
    anyhow::ensure!(items.len() == COUNT && items.iter().all(|i| i.revision == revisions[1]));
    Ok(())
}
