//! Stubs for the Go example. The plugins are programs of `target/tools`, which the setup builds from the pins in the
//! example's own `go.mod`; they are handed the descriptors as protoc would hand them, so that no protoc is needed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::compiler::{CodeGeneratorRequest, CodeGeneratorResponse};

use crate::Files;

/// The example's module, below which the option `go_package` of its protos stands.
const MODULE: &str = "phalanx.dev/examples/go-client";
const PACKAGE: &str = "phalanx.game.v1";
const PLUGINS: [&str; 2] = ["protoc-gen-go", "protoc-gen-go-grpc"];

/// Whether the setup has built the plugins.
pub fn is_ready(tools: &Path) -> bool {
    PLUGINS.iter().all(|name| tools.join(name).is_file())
}

/// What both plugins make of the package, as files in `folder`.
pub fn stubs(
    set: &FileDescriptorSet,
    tools: &Path,
    folder: &Path,
    files: &mut Files,
) -> Result<()> {
    let wanted = set.file.iter().filter(|file| file.package() == PACKAGE);
    let wanted: Vec<String> = wanted.map(|file| file.name().to_owned()).collect();
    ensure!(!wanted.is_empty(), "no file has the package {PACKAGE}");
    let request = CodeGeneratorRequest {
        file_to_generate: wanted,
        parameter: Some(format!("module={MODULE}")),
        proto_file: set.file.clone(),
        ..CodeGeneratorRequest::default()
    };
    for plugin in PLUGINS {
        let answer = ask(&tools.join(plugin), &request.encode_to_vec())
            .with_context(|| format!("running {plugin}"))?;
        if let Some(error) = answer.error {
            bail!("{plugin}: {error}");
        }
        for file in answer.file {
            files.insert(folder.join(file.name()), file.content().to_owned());
        }
    }
    Ok(())
}

fn ask(plugin: &Path, request: &[u8]) -> Result<CodeGeneratorResponse> {
    let mut child = Command::new(plugin)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // A plugin reads all of its input before it writes.
    child
        .stdin
        .take()
        .context("the plugin has no input")?
        .write_all(request)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    Ok(CodeGeneratorResponse::decode(output.stdout.as_slice())?)
}
