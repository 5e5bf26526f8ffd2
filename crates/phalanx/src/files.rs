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
            files.push(text("standard input", "stdin", std::io::stdin())?);
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
    let name = path.display().to_string();
    let file =
        fs::File::open(path).map_err(|e| Failure::file(format!("cannot read {name}: {e}")))?;
    text(&name, &name, file)
}

fn text(source: &str, name: &str, from: impl Read) -> Result<File, Failure> {
    let mut text = String::new();
    from.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|e| Failure::file(format!("cannot read {source}: {e}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let most = FILE_BYTES_MAX >> 20;
        return Err(Failure::file(format!("{source} is over {most} MiB")));
    }
    Ok(File {
        name: name.to_owned(),
        text,
    })
}

/// Far above what a control plane takes at once; a pipe may have no end.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_an_end_is_refused() {
        assert!(text("a pipe", "stdin", std::io::repeat(b' ')).is_err());
        assert_eq!(
            text("a", "a", &b"kind: Service"[..]).unwrap().text,
            "kind: Service"
        );
    }
}
