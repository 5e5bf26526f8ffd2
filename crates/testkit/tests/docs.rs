//! What the documents show is taken by the program: every YAML block of theirs is a checked manifest.

use std::path::{Path, PathBuf};
use std::process::Command;

use phalanx_testkit::process::executable;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            Some(_) if line.trim() == "```" => found.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None if line.trim() == format!("```{language}") => open = Some(String::new()),
            None => {}
        }
    }
    found
}

#[test]
fn every_yaml_block_of_the_documents_is_a_checked_manifest() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut count = 0;
    for document in [
        "README.md",
        "README.zh-CN.md",
        "docs/colour.md",
        "docs/gateway.md",
        "docs/manifests.md",
        "docs/mirrors.md",
        "docs/proxyless.md",
        "docs/rollout.md",
        "docs/sessions.md",
        "docs/udp.md",
    ] {
        let text = std::fs::read_to_string(root().join(document))?;
        for block in blocks(&text, "yaml") {
            count += 1;
            std::fs::write(folder.path().join(format!("{count}.yaml")), block)?;
        }
    }
    assert!(count >= 6, "{count} blocks found");
    let output = Command::new(executable("phalanx")?)
        .arg("lint")
        .arg("-f")
        .arg(folder.path())
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

#[test]
fn the_manifests_of_the_arena_are_checked_manifests() -> anyhow::Result<()> {
    for folder in ["examples/arena/mesh", "examples/arena/mesh-variants"] {
        let output = Command::new(executable("phalanx")?)
            .arg("lint")
            .arg("-f")
            .arg(root().join(folder))
            .output()?;
        assert!(
            output.status.success(),
            "{folder}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}
