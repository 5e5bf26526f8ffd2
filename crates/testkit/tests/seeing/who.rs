//! Who may: an explanation names the policy that decides, and a sidecar that runs decides so.

use phalanx_testkit::eventually;
use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::Mesh;
use serde_json::Value;

use crate::{LIMIT, page, phalanx};

const POLICIES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  ports: [{name: http, port: 80, appProtocol: http}]
---
apiVersion: phalanx.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  targetRefs: [{kind: Service, name: shop}]
  action: Deny
  rules: [{paths: [{type: PathPrefix, value: /admin}]}]
"#;

#[tokio::test]
async fn the_policy_that_denies_is_named_offline_and_live_and_denies() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let shop = mesh.instance("shop", "v1", "shop").await?;
    mesh.apply(POLICIES).await?;
    let file = mesh.folder().join("policies.yaml");
    std::fs::write(&file, POLICIES)?;
    let file = file.display().to_string();
    let denied = Call::get("shop", "/admin/x");
    eventually("the policy", LIMIT, async || {
        let answer = call(shop.inbound, &denied).await.ok()?;
        (answer.status == 403).then_some(())
    })
    .await?;
    for (path, status) in [("/admin/x", 403), ("/admin", 403), ("/administration", 200)] {
        let answer = call(shop.inbound, &Call::get("shop", path)).await?;
        assert_eq!(answer.status, status, "{path}");
        let url = format!("http://shop{path}");
        let live = page(shop.admin, &format!("/explain?direction=inbound&url={url}")).await?;
        let live = live.json();
        let output = phalanx(&[
            "explain", "-f", &file, "--from", "gateway", "GET", &url, "-o", "json",
        ])?;
        let offline: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(
            output.status.code(),
            Some(i32::from(status != 200)),
            "{path}"
        );
        for told in [&live, &offline["next"]] {
            let access = &told["authorization"];
            let outcome = &told["outcomes"][0];
            if status == 200 {
                assert_eq!(access["decision"], "allowed", "{told:#}");
                assert_eq!(outcome["ends"], "forward", "{told:#}");
            } else {
                assert_eq!(access["decision"], "denied", "{told:#}");
                let policy = access["policy"].as_str().unwrap_or_default();
                assert!(policy.contains("no-admin"), "{told:#}");
                assert_eq!(outcome["status"], 403, "{told:#}");
                assert_eq!(outcome["reason"], "denied", "{told:#}");
            }
        }
        if status == 403 {
            let source = &offline["next"]["authorization"]["source"];
            assert!(
                source
                    .as_str()
                    .is_some_and(|s| s.contains("policies.yaml:")),
                "{source}"
            );
        }
    }
    Ok(())
}
