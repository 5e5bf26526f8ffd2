//! Stubs for programs in Go: the example, and a grpc-gateway to compare ours with. The plugins are programs of `target/tools`,
//! which the setup builds from the pins in `go.mod`; they are handed the descriptors as protoc would hand them, so that no
//! protoc is needed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::compiler::CodeGeneratorResponse;

use crate::Files;

/// A program in Go.
pub struct Module {
    /// Below the workspace; the stubs are in one below that.
    pub folder: &'static str,
    pub stubs: &'static str,
    /// Its own name, below which the option `go_package` of its protos stands, or what `parameter` says in its place.
    name: &'static str,
    package: &'static str,
    parameter: &'static str,
    plugins: &'static [&'static str],
}

pub const CLIENT: Module = Module {
    folder: "examples/go-client",
    stubs: "gamev1",
    name: "phalanx.dev/examples/go-client",
    package: "phalanx.game.v1",
    parameter: "",
    plugins: &["protoc-gen-go", "protoc-gen-go-grpc"],
};

pub const GATEWAY: Module = Module {
    folder: "crates/testkit/clients/gateway",
    stubs: "battle",
    name: "phalanx.dev/testkit/gateway",
    package: "battle.v1",
    parameter: ",Mbattle/v1/battle.proto=phalanx.dev/testkit/gateway/battle/v1\
        ,Mgoogle/api/annotations.proto=google.golang.org/genproto/googleapis/api/annotations\
        ,Mgoogle/api/httpbody.proto=google.golang.org/genproto/googleapis/api/httpbody",
    plugins: &[
        "protoc-gen-go",
        "protoc-gen-go-grpc",
        "protoc-gen-grpc-gateway",
    ],
};

/// Whether the setup has built the plugins.
pub fn is_ready(tools: &Path) -> bool {
    let wanted = GATEWAY.plugins.iter();
    wanted.copied().all(|name| tools.join(name).is_file())
}

/// A `FileDescriptorSet`, and what a plugin is asked, with the files as they are: decoded they would lose their options, of
/// which one makes a gateway.
#[derive(Clone, PartialEq, Message)]
struct RawSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct RawRequest {
    #[prost(string, repeated, tag = "1")]
    file_to_generate: Vec<String>,
    #[prost(string, tag = "2")]
    parameter: String,
    #[prost(bytes = "vec", repeated, tag = "15")]
    proto_file: Vec<Vec<u8>>,
}

/// What the plugins make of a module's package; `set` is a serialized `FileDescriptorSet`.
pub fn stubs(
    module: &Module,
    set: &[u8],
    tools: &Path,
    root: &Path,
    files: &mut Files,
) -> Result<()> {
    let Module { name, package, .. } = module;
    let typed = FileDescriptorSet::decode(set)?;
    let wanted = typed.file.iter().filter(|file| file.package() == *package);
    let wanted: Vec<String> = wanted.map(|file| file.name().to_owned()).collect();
    ensure!(!wanted.is_empty(), "no file has the package {package}");
    let folder = root.join(module.folder);
    let request = RawRequest {
        file_to_generate: wanted,
        parameter: format!("module={name}{}", module.parameter),
        proto_file: RawSet::decode(set)?.file,
    };
    for plugin in module.plugins {
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
