//! Running other programs: loudly, and with an error that names the command.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Prints the command, runs it, and fails unless it succeeds.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = describe(command);
    println!("\u{203a} {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// As [`run`], and gives what the command said on its standard error beside how it failed, if it did.
pub fn heard(command: &mut Command) -> anyhow::Result<(Option<String>, String)> {
    let line = describe(command);
    println!("\u{203a} {line}");
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    // A thread of its own: what a test left running holds the pipe open after its suite has ended.
    let (send, said) = mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || {
            for words in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let words = String::from_utf8_lossy(&words).into_owned();
                eprintln!("{words}");
                if send.send(words).is_err() {
                    break;
                }
            }
        });
    }
    let status = child.wait()?;
    let mut heard = String::new();
    while let Ok(words) = said.recv_timeout(Duration::from_secs(1)) {
        heard.push_str(&words);
        heard.push('\n');
    }
    let failed = (!status.success()).then(|| format!("`{line}` ended with {status}"));
    Ok((failed, heard))
}

/// `cargo` of the toolchain that runs us, in the workspace's root.
pub fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(arguments);
    command
}

/// Whether a program of this name is on the path.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        || Path::new("/usr/sbin").join(program).is_file()
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
