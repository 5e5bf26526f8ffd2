//! TranscodingPolicies: descriptors are compiled when a manifest is read, and what is wrong with them has a place.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_model::document::Document;
use phalanx_model::manifest;

const SET: &[u8] = include_bytes!("../../../fuzz/corpus/descriptors/battle.pb");

fn policy(set: &str, service: &str, more: &str) -> String {
    format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: TranscodingPolicy\nmetadata: {{name: battle}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: battle}}]\n  descriptorSet: {set}\n  services: [{service}]\n{more}"
    )
}

fn inline() -> String {
    format!("{{inline: \"{}\"}}", STANDARD.encode(SET))
}

fn problems(text: &str) -> Vec<String> {
    let manifest = manifest::parse("a.yaml", text, "default");
    manifest.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_holds_its_table_and_strict_defaults() {
    let text = policy(&inline(), "battle.v1.Battle", "  autoMapping: true\n");
    let manifest = manifest::parse("a.yaml", &text, "default");
    assert_eq!(manifest.problems, []);
    let Document::TranscodingPolicy(policy) = &manifest.documents[0].document else {
        panic!("{:?}", manifest.documents);
    };
    let options = policy.transcoding.options();
    assert!(options.auto_mapping && options.match_incoming_request_route);
    assert!(options.validation.reject_unknown_method && options.convert_grpc_status);
    let found = policy.transcoding.table().find("GET", "/v1/rooms/7");
    assert_eq!(found.unwrap().binding.call, "/battle.v1.Battle/GetRoom");
    let again = manifest::parse("a.json", &manifest.documents[0].json, "default");
    assert_eq!(again.documents[0].document, manifest.documents[0].document);
}

#[test]
fn what_is_wrong_with_descriptors_is_told_with_its_place() {
    let first = |text: &str| problems(text).join("\n");
    for (set, service, more, wanted) in [
        (
            inline(),
            "battle.v1.War",
            "",
            "there is no service `battle.v1.War`",
        ),
        (
            "{inline: \"AAAA\"}".to_owned(),
            "a.B",
            "",
            "spec.descriptorSet",
        ),
        ("{inline: \"%\"}".to_owned(), "a.B", "", "no base64"),
        ("{file: a.pb}".to_owned(), "a.B", "", "a file is read by"),
        ("{reflection: true}".to_owned(), "a.B", "", "reflection"),
        (
            inline(),
            "battle.v1.Battle",
            "  urlUnescapeSpec: ALL\n",
            "urlUnescapeSpec",
        ),
        (
            inline(),
            "battle.v1.Battle",
            "  printOptions: {addWhitespaces: true}\n",
            "addWhitespace",
        ),
    ] {
        let told = first(&policy(&set, service, more));
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
}
