//! `-f FILE|DIR|-`: manifests as text, so that findings carry the lines of the user's own files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use phalanx_client::api::File;

use crate::exit::Failure;

/// All files behind the arguments: a folder stands for its `*.yaml`, `*.yml` and `*.json` in order of name, not deeper.
pub fn read_all(arguments: &[PathBuf]) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    for argument in arguments {
        if argument.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::file(format!("cannot read standard input: {e}")))?;
            files.push(File {
                name: "stdin".into(),
                text,
            });
        } else if argument.is_dir() {
            for path in list(argument)? {
                files.push(read(&path)?);
            }
        } else {
            files.push(read(argument)?);
        }
    }
    Ok(files)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(folder)
        .map_err(|e| Failure::file(format!("cannot list {}: {e}", folder.display())))?;
    let manifest = |p: &PathBuf| {
        p.extension()
            .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known))
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(manifest)
        .collect();
    if paths.is_empty() {
        return Err(Failure::file(format!(
            "{} holds no .yaml, .yml or .json file",
            folder.display()
        )));
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|e| Failure::file(format!("cannot read {}: {e}", path.display())))?;
    Ok(File {
        name: path.display().to_string(),
        text,
    })
}
