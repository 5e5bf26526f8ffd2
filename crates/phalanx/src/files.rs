//! `-f FILE|DIR|-`: manifests as text, so that findings carry the lines of the user's own files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_client::api::File;
use phalanx_client::reflection;

use crate::exit::Failure;

/// All files behind the arguments: a folder stands for its `*.yaml`, `*.yml` and `*.json` in order of name, not deeper. Servers
/// that a `descriptorSet` names are asked.
pub fn read_all(arguments: &[PathBuf]) -> Result<Vec<File>, Failure> {
    read_with(arguments, true)
}

/// The same, and nobody is asked unless `asks`.
pub fn read_with(arguments: &[PathBuf], asks: bool) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    for argument in arguments {
        if argument.as_os_str() == "-" {
            files.push(text("standard input", "stdin", std::io::stdin())?);
        } else if argument.is_dir() {
            for path in list(argument)? {
                files.push(read(&path, asks)?);
            }
        } else {
            files.push(read(argument, asks)?);
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

fn read(path: &Path, asks: bool) -> Result<File, Failure> {
    let name = path.display().to_string();
    let file =
        fs::File::open(path).map_err(|e| Failure::file(format!("cannot read {name}: {e}")))?;
    let mut read = text(&name, &name, file)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    read.text =
        inlined(read.text, folder, asks).map_err(|why| Failure::file(format!("{name}: {why}")))?;
    Ok(read)
}

/// A `descriptorSet` that is a file, or that a running server tells (reflection), becomes its bytes, in the same line: the
/// control plane sees no file of ours, and what was applied stays the same when the server changes. Paths are seen from the
/// manifest's folder.
fn inlined(text: String, folder: &Path, asks: bool) -> Result<String, String> {
    if !text.contains("descriptorSet") {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(told) = descriptors(rest) {
        let bytes = match told.source {
            Source::File => of_file(&folder.join(told.value))?,
            Source::Reflection if asks => of_server(told.value)?,
            Source::Reflection => {
                let server = told.value;
                return Err(format!(
                    "its descriptors are those of {server}, which is not asked (`phalanx lint --ask` does)"
                ));
            }
        };
        let quote = if told.quoted { "\"" } else { "" };
        out.push_str(told.before);
        out.push_str(&format!(
            "{quote}inline{quote}: \"{}\"",
            STANDARD.encode(bytes)
        ));
        rest = told.after;
    }
    out.push_str(rest);
    Ok(out)
}

fn of_file(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    match bytes.len() > DESCRIPTORS_MAX {
        true => Err(format!(
            "{} is over {DESCRIPTORS_MAX} bytes",
            path.display()
        )),
        false => Ok(bytes),
    }
}

/// On a thread of its own: whoever reads manifests may be in a runtime already.
fn of_server(address: &str) -> Result<Vec<u8>, String> {
    let asked = || -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start: {e}"))?;
        let set = reflection::descriptor_set(address, DESCRIPTORS_MAX);
        let no_set = |e| {
            let e = anyhow::Error::from(e);
            let (first, root) = (e.to_string(), e.root_cause().to_string());
            match first == root {
                true => format!("no descriptors from {address}: {first}"),
                false => format!("no descriptors from {address}: {first}: {root}"),
            }
        };
        runtime.block_on(set).map_err(no_set)
    };
    std::thread::scope(|scope| scope.spawn(asked).join())
        .map_err(|_| format!("no descriptors from {address}"))?
}

enum Source {
    File,
    Reflection,
}

/// The next source of a `descriptorSet` in a text.
struct Told<'a> {
    before: &'a str,
    source: Source,
    /// Its key.
    quoted: bool,
    value: &'a str,
    after: &'a str,
}

const SOURCES: [(&str, bool, Source); 4] = [
    ("\"file\"", true, Source::File),
    ("file", false, Source::File),
    ("\"reflection\"", true, Source::Reflection),
    ("reflection", false, Source::Reflection),
];

fn descriptors(text: &str) -> Option<Told<'_>> {
    let mut from = 0;
    loop {
        let found = from + text.get(from..)?.find("descriptorSet")?;
        from = found + "descriptorSet".len();
        let line = text.get(..found)?.rsplit('\n').next().unwrap_or_default();
        if line.trim_start().starts_with('#') {
            continue;
        }
        let begin = text.get(from..)?;
        let value = begin.strip_prefix('"').unwrap_or(begin);
        let value = value.trim_start_matches([':', ' ', '{', '\n', '\r', '\t']);
        let start = text.len() - value.len();
        let mut sources = SOURCES.into_iter();
        let key = sources.find_map(|(key, quoted, source)| {
            let told = value.strip_prefix(key)?.trim_start().strip_prefix(':')?;
            Some((quoted, source, told))
        });
        let Some((quoted, source, told)) = key else {
            continue;
        };
        let told = told.trim_start_matches([' ', '\t']);
        let (value, after) = match told.chars().next()? {
            quote @ ('"' | '\'') => told.get(1..)?.split_once(quote)?,
            _ => {
                let end = told.find([',', '}', '\n', '\r', ' ']).unwrap_or(told.len());
                told.split_at(end)
            }
        };
        return Some(Told {
            before: text.get(..start)?,
            source,
            quoted,
            value,
            after,
        });
    }
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
/// Of a descriptor set: in base64 it has to fit into a document.
const DESCRIPTORS_MAX: usize = 760 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_set_in_a_file_is_written_into_the_manifest() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.pb"), "abc").unwrap();
        for (text, wanted) in [
            (
                "spec:\n  descriptorSet:\n    file: a.pb\n  services: [x]\n",
                "spec:\n  descriptorSet:\n    inline: \"YWJj\"\n  services: [x]\n",
            ),
            (
                "descriptorSet: {file: 'a.pb'}\ndescriptorSet: {file: a.pb}",
                "descriptorSet: {inline: \"YWJj\"}\ndescriptorSet: {inline: \"YWJj\"}",
            ),
            (
                "{\"descriptorSet\": {\"file\": \"a.pb\"}}",
                "{\"descriptorSet\": {\"inline\": \"YWJj\"}}",
            ),
            (
                "descriptorSet: {inline: eA==}",
                "descriptorSet: {inline: eA==}",
            ),
        ] {
            assert_eq!(
                inlined(text.to_owned(), folder.path(), true).unwrap(),
                wanted
            );
        }
        assert!(
            inlined(
                "descriptorSet: {file: no.pb}".to_owned(),
                folder.path(),
                true
            )
            .is_err()
        );
        let nobody = "descriptorSet: {reflection: 127.0.0.1:1}".to_owned();
        let told = inlined(nobody.clone(), folder.path(), true).unwrap_err();
        assert!(told.contains("127.0.0.1:1"), "{told}");
        let told = inlined(nobody, folder.path(), false).unwrap_err();
        assert!(told.contains("--ask"), "{told}");
        let remark = "# descriptorSet: {reflection: 127.0.0.1:1}\n".to_owned();
        assert_eq!(inlined(remark.clone(), folder.path(), true), Ok(remark));
    }

    #[test]
    fn a_source_without_an_end_is_refused() {
        assert!(text("a pipe", "stdin", std::io::repeat(b' ')).is_err());
        assert_eq!(
            text("a", "a", &b"kind: Service"[..]).unwrap().text,
            "kind: Service"
        );
    }
}
