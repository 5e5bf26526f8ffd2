//! Writes the committed protobuf code: Envoy's subset and our own services into `crates/proto`, the
//! arena's services into the example; and for the example client the stubs in Go. No protoc: Envoy's descriptors come from
//! a crate, ours from protox. `--check` writes nothing and fails where the committed files differ.

mod closure;
mod envoy;
mod go;
mod render;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prost::Message;
use prost_types::FileDescriptorSet;

/// File contents by absolute path.
type Files = BTreeMap<PathBuf, String>;

fn main() -> Result<()> {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        other => bail!("unknown arguments {other:?}, expected none or --check"),
    };
    let workspace = envoy::Workspace::locate()?;
    let mut files = Files::new();

    let proto = workspace.root.join("crates/proto");
    let mut descriptors = envoy::subset(&workspace)?;
    let raw = compile(&proto.join("proto"))?;
    let own = decoded(&raw)?;
    let tools = workspace.root.join("target/tools");
    let mut outputs = vec![proto.join("src/generated")];
    if go::is_ready(&tools) {
        let battle = compile(&workspace.root.join("crates/transcode/tests/protos"))?;
        for (module, set) in [(&go::CLIENT, &raw), (&go::GATEWAY, &battle)] {
            go::stubs(module, set, &tools, &workspace.root, &mut files)?;
            outputs.push(workspace.root.join(module.folder).join(module.stubs));
        }
    } else if check {
        bail!("no plugins of protoc in target/tools, run `cargo xtask setup`");
    } else {
        println!("stubs in Go: left as they are; `cargo xtask setup` brings what makes them");
    }
    merge(&mut descriptors, own);
    println!("crates/proto: {}", closure::census(&descriptors));
    render::tree(descriptors, &proto.join("src/generated.rs"), &mut files)?;

    let arena = workspace.root.join("examples/arena");
    let descriptors = decoded(&compile(&arena.join("proto"))?)?;
    if !descriptors.file.is_empty() {
        println!("examples/arena: {}", closure::census(&descriptors));
        render::packages(descriptors, &arena.join("src/generated"), &mut files)?;
    }

    outputs.push(arena.join("src/generated"));
    let stale = stale(&files, &outputs)?;
    if check {
        compare(&files, &stale)
    } else {
        write(&files, &stale)
    }
}

/// Decoded, which is without the options that prost does not know.
fn decoded(set: &[u8]) -> Result<FileDescriptorSet> {
    Ok(FileDescriptorSet::decode(set)?)
}

/// Compiles every .proto file below `root` to a serialized `FileDescriptorSet`, an empty one if there is none.
fn compile(root: &Path) -> Result<Vec<u8>> {
    let mut sources = Vec::new();
    if root.is_dir() {
        visit(root, &mut sources)?;
    }
    sources.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "proto")
    });
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_source_info(true).include_imports(true);
    for source in &sources {
        compiler.open_file(source)?;
    }
    Ok(compiler.encode_file_descriptor_set())
}

/// Adds the files of `other` that `set` does not have; both may carry Google's well-known types.
fn merge(set: &mut FileDescriptorSet, other: FileDescriptorSet) {
    for file in other.file {
        if !set.file.iter().any(|known| known.name == file.name) {
            set.file.push(file);
        }
    }
}

/// Files in the output folders that this run does not produce.
fn stale(files: &Files, outputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for output in outputs.iter().filter(|output| output.is_dir()) {
        visit(output, &mut found)?;
    }
    found.retain(|path| !files.contains_key(path));
    Ok(found)
}

fn compare(files: &Files, stale: &[PathBuf]) -> Result<()> {
    let mut differing = stale.to_vec();
    differing.extend(
        files
            .iter()
            .filter(|(path, text)| std::fs::read_to_string(path).ok().as_ref() != Some(text))
            .map(|(path, _)| path.clone()),
    );
    if differing.is_empty() {
        println!("{} files are up to date", files.len());
        return Ok(());
    }
    for path in &differing {
        println!("differs: {}", path.display());
    }
    bail!("generated code is out of date, run `cargo run -p phalanx-codegen`")
}

fn write(files: &Files, stale: &[PathBuf]) -> Result<()> {
    for path in stale {
        std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    let mut written = 0;
    for (path, text) in files {
        // Unchanged files keep their time, so that cargo rebuilds only what it must.
        if std::fs::read_to_string(path).ok().as_ref() == Some(text) {
            continue;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        written += 1;
    }
    let lines: usize = files.values().map(|text| text.lines().count()).sum();
    println!(
        "{} files with {lines} lines, {written} written, {} removed",
        files.len(),
        stale.len()
    );
    Ok(())
}

/// Collects the files below `folder` in a stable order.
fn visit(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            visit(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_services_becomes_one_file_per_package() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("arena/v1/room.proto");
        std::fs::create_dir_all(source.parent().unwrap()).unwrap();
        let text = r#"
            syntax = "proto3";
            package arena.v1;
            import "google/protobuf/duration.proto";
            // Rooms by name.
            service Rooms { rpc Join(Player) returns (Player); }
            message Player { map<string, string> labels = 1; google.protobuf.Duration age = 2; }
        "#;
        std::fs::write(&source, text).unwrap();

        let mut files = Files::new();
        let descriptors = decoded(&compile(folder.path()).unwrap()).unwrap();
        render::packages(descriptors, folder.path(), &mut files).unwrap();

        assert_eq!(files.len(), 1, "well-known types are not generated");
        let code = &files[&folder.path().join("arena.v1.rs")];
        for expected in [
            "Rooms by name.",
            "BTreeMap",
            "prost_types::Duration",
            "mod rooms_client",
            "mod rooms_server",
        ] {
            assert!(code.contains(expected), "no {expected} in {code}");
        }
    }

    #[test]
    fn a_missing_folder_yields_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let set = compile(&folder.path().join("proto")).unwrap();
        assert!(set.is_empty());
    }
}
