//! What `parse` says of each `golden/*.yaml` stands beside it as `.txt`; `UPDATE_GOLDEN=1` writes it anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use phalanx_model::manifest::parse;

#[test]
fn manifests_read_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    assert!(!files.is_empty());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let listing = listing(name, &std::fs::read_to_string(&path).unwrap());
        let recorded = path.with_extension("txt");
        if update {
            std::fs::write(&recorded, listing).unwrap();
        } else {
            assert_eq!(
                listing,
                std::fs::read_to_string(&recorded).unwrap_or_default(),
                "{name}"
            );
        }
    }
}

fn listing(name: &str, text: &str) -> String {
    let manifest = parse(name, text, "default");
    let mut out = String::new();
    for problem in &manifest.problems {
        writeln!(out, "{problem}").unwrap();
    }
    for parsed in &manifest.documents {
        writeln!(
            out,
            "{} at line {}\n  {}",
            parsed.document.id(),
            parsed.line,
            parsed.json
        )
        .unwrap();
    }
    out
}
