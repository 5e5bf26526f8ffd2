//! What is said of files alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

const SET: &[u8] = include_bytes!("../../../../../fuzz/corpus/descriptors/battle.pb");

fn said(text: &str) -> Vec<String> {
    let file = File {
        name: "a.yaml".to_owned(),
        text: text.to_owned(),
    };
    match look(&[file], "default") {
        Ok(warnings) => warnings.iter().map(ToString::to_string).collect(),
        Err(AdmitError::Invalid { problems, .. }) => {
            panic!("{problems:?}")
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_route_that_a_gateway_does_not_take_is_told_without_a_control_plane() {
    let files = |hostname: &str| {
        format!(
            r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: phalanx
  listeners: [{{name: web, port: 8080, protocol: HTTP, hostname: "*.example.com"}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: play}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{hostname}]
  rules: [{{backendRefs: [{{name: web, port: 80}}]}}]
---
{}"#,
            service("web", 80)
        )
    };
    assert_eq!(said(&files("play.example.com")), Vec::<String>::new());
    let told = said(&files("play.other.com"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("a.yaml:13:16: spec.parentRefs[0]: "),
        "{told:?}"
    );
    assert!(
        told[0].contains("has no listener for its hostnames"),
        "{told:?}"
    );
}

#[test]
fn a_service_that_speaks_no_grpc_is_not_called_with_json_and_that_is_told() {
    let files = |target: &str, protocol: &str| {
        let set = STANDARD.encode(SET);
        format!(
            r#"
apiVersion: phalanx.dev/v1alpha1
kind: TranscodingPolicy
metadata: {{name: battle}}
spec:
  targetRefs: [{{kind: Service, name: {target}}}]
  descriptorSet: {{inline: "{set}"}}
  services: [battle.v1.Battle]
---
apiVersion: v1
kind: Service
metadata: {{name: battle}}
spec: {{ports: [{{port: 80{protocol}}}]}}
"#
        )
    };
    for protocol in [
        "",
        ", appProtocol: grpc",
        ", appProtocol: kubernetes.io/h2c",
    ] {
        assert_eq!(said(&files("battle", protocol)), Vec::<String>::new());
    }
    let told = said(&files("battle", ", appProtocol: http"));
    assert!(
        told[0].contains("no port of Service default/battle speaks gRPC"),
        "{told:?}"
    );
    let told = said(&files("batle", ""));
    assert!(
        told[0].starts_with("a.yaml:6:16: spec.targetRefs[0]: "),
        "{told:?}"
    );
    assert!(
        told[0].contains("no Service default/batle (yet)"),
        "{told:?}"
    );
}

#[test]
fn a_document_in_two_files_is_refused_without_a_control_plane() {
    let file = |name: &str| File {
        name: name.to_owned(),
        text: service("web", 80),
    };
    let refused = look(&[file("a.yaml"), file("b.yaml")], "default").unwrap_err();
    let AdmitError::Invalid { problems, .. } = refused else {
        panic!("{refused}")
    };
    assert!(
        problems[0].to_string().starts_with("b.yaml:1"),
        "{problems:?}"
    );
}
