//! Explanations of documents: whose endpoints take a request with a colour, and why.

use clap::Parser;
use phalanx_proxy::explain::{Explanation, TakenBy};

use super::*;

const MESH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec: {selector: {app: battle}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: battle-v1}
spec: {selector: {app: battle, version: v1}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: battle-next}
spec: {selector: {app: battle, version: next}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: battle}
spec:
  parentRefs: [{kind: Service, name: battle}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /own}, headers: [{name: x-env, value: dev-wu}]}]
    backendRefs: [{name: battle-v1, port: 80}]
  - filters:
    - type: RequestMirror
      requestMirror: {backendRef: {name: battle-next, port: 80}, percent: 10}
    backendRefs: [{name: battle-v1, port: 80}]
---
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: colours}
spec:
  lanes:
  - {colour: dev-li, selector: {lane: dev-li}}
  - {colour: dev-wu, selector: {lane: dev-wu}}
  - {colour: alone, selector: {lane: alone}, fallback: Refuse, services: [battle-v1]}
"#;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

/// Of a `GET` at the lobby.
fn told(path: &str, colour: &str, instances: &[&str]) -> Explanation {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    let file = folder.path().display().to_string();
    let url = format!("http://battle{path}");
    let header = format!("x-env: {colour}");
    let mut arguments = vec!["explain", "-f", &file, "--from", "lobby", "GET", &url];
    if !colour.is_empty() {
        arguments.extend(["-H", &header]);
    }
    for instance in instances {
        arguments.extend(["--instance", instance]);
    }
    let Ok(Command { options }) = Command::try_parse_from(arguments) else {
        panic!("the arguments are none");
    };
    let Ok(files) = Files::read(&options.files, "default") else {
        panic!("the file can't be read");
    };
    from_files(&options, &files).unwrap_or_else(|_| panic!("nothing is told"))
}

fn taken(path: &str, colour: &str, instances: &[&str]) -> (Option<TakenBy>, String) {
    let colour = told(path, colour, instances).colour.unwrap_or_default();
    (colour.taken_by, colour.why.unwrap_or_default())
}

const BASELINE: &str = "battle=10.0.0.1:80,version=v1";
const LANE: &str = "battle=10.0.0.2:80,version=v1,lane=dev-li";

#[test]
fn it_is_told_who_takes_a_colour_and_why_it_is_not_its_lane() {
    let both = [BASELINE, LANE];
    assert_eq!(
        taken("/", "dev-li", &both),
        (Some(TakenBy::Lane), String::new())
    );
    let why = |path: &str, colour: &str, instances: &[&str], by: TakenBy, part: &str| {
        let (taken, why) = taken(path, colour, instances);
        assert_eq!(taken, Some(by), "{colour}: {why}");
        assert!(why.contains(part), "{colour}: {why}");
    };
    use TakenBy::{Baseline, Nobody, Rule};
    why(
        "/",
        "dev-wu",
        &both,
        Baseline,
        "no instance with lane=dev-wu for battle-v1.default",
    );
    why(
        "/own",
        "dev-wu",
        &both,
        Rule,
        "speaks of this colour itself",
    );
    why(
        "/",
        "dev-no",
        &both,
        Baseline,
        "no ColourPolicy in force has a lane dev-no",
    );
    why("/", "Dev Li", &both, Baseline, "no colour");
    why("/", "", &both, Baseline, "no x-env");
    why("/", "", &[LANE], Nobody, "belong to lanes");
    why(
        "/",
        "alone",
        &both,
        Nobody,
        "no instance of the lane is ready",
    );
}

#[test]
fn endpoints_that_stand_in_are_told_from_those_of_the_lane() {
    let told = told("/", "dev-li", &[BASELINE, LANE]);
    let endpoints = told.backends.iter().flat_map(|backend| &backend.endpoints);
    let seen: Vec<(&str, bool)> = endpoints
        .map(|endpoint| (endpoint.address.as_str(), endpoint.stands_in))
        .collect();
    assert_eq!(seen, [("10.0.0.1:15006", true), ("10.0.0.2:15006", false)]);
}

#[test]
fn copies_are_told_with_whether_somebody_gets_them() {
    let next = "battle=10.0.0.3:80,version=next";
    let counts = |instances: &[&str]| {
        let copies = told("/", "", instances).copies;
        let copies: Vec<_> = copies
            .iter()
            .map(|one| (one.share_percent, one.working))
            .collect();
        copies
    };
    assert_eq!(counts(&[BASELINE, next]), [(10.0, 1)]);
    let in_lane = format!("{next},lane=dev-li");
    assert_eq!(counts(&[BASELINE, &in_lane]), [(10.0, 0)]);
}
