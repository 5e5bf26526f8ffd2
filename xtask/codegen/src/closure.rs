//! The transitive closure of some protobuf definitions: descriptors in, fewer descriptors out.
//! The unit is the top-level message, which keeps all of its nested types and fields.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Keeps what `roots` reach: `package.*`, messages, enums or services, by full name.
pub fn prune(set: FileDescriptorSet, roots: &[&str]) -> Result<FileDescriptorSet> {
    let references = references(&set);
    let mut reached = BTreeSet::new();
    let mut pending = Vec::new();
    for root in roots {
        let before = pending.len();
        match root.strip_suffix(".*") {
            Some(package) => pending.extend(members(&set, package)),
            None => pending.extend(references.contains_key(*root).then(|| root.to_string())),
        }
        ensure!(
            pending.len() > before,
            "root {root} is not in the descriptor set"
        );
    }
    while let Some(name) = pending.pop() {
        let Some(mentioned) = references.get(&name) else {
            // A nested type: its outermost message is the unit.
            let parent = name.rsplit_once('.').map(|(parent, _)| parent.to_string());
            ensure!(
                parent.is_some(),
                "a field mentions a type that is nowhere defined"
            );
            pending.extend(parent);
            continue;
        };
        if reached.insert(name) {
            pending.extend(mentioned.iter().cloned());
        }
    }
    Ok(keep(set, &reached))
}

/// Counts for the generator's report.
pub fn census(set: &FileDescriptorSet) -> String {
    fn messages(message: &DescriptorProto) -> usize {
        1 + message.nested_type.iter().map(messages).sum::<usize>()
    }
    let ours = || {
        set.file
            .iter()
            .filter(|file| file.package() != "google.protobuf")
    };
    let packages: BTreeSet<_> = ours().map(|file| file.package()).collect();
    let count: usize = ours()
        .flat_map(|file| &file.message_type)
        .map(messages)
        .sum();
    format!(
        "{} packages, {} proto files, {count} messages",
        packages.len(),
        ours().count()
    )
}

/// Names of the top-level messages and enums of a package.
fn members(set: &FileDescriptorSet, package: &str) -> Vec<String> {
    set.file
        .iter()
        .filter(|file| file.package() == package)
        .flat_map(|file| {
            let messages = file.message_type.iter().map(|message| message.name());
            messages.chain(file.enum_type.iter().map(|e| e.name()))
        })
        .map(|name| format!("{package}.{name}"))
        .collect()
}

/// The types that each top-level definition mentions, all by full name without the leading dot.
fn references(set: &FileDescriptorSet) -> BTreeMap<String, BTreeSet<String>> {
    let mut references = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            let mut mentioned = BTreeSet::new();
            mentions(message, &mut mentioned);
            references.insert(qualified(file, message.name()), mentioned);
        }
        for e in &file.enum_type {
            references.insert(qualified(file, e.name()), BTreeSet::new());
        }
        for service in &file.service {
            let methods = service.method.iter();
            let mentioned = methods
                .flat_map(|method| [method.input_type(), method.output_type()])
                .map(bare)
                .collect();
            references.insert(qualified(file, service.name()), mentioned);
        }
    }
    references
}

fn mentions(message: &DescriptorProto, mentioned: &mut BTreeSet<String>) {
    let fields = message
        .field
        .iter()
        .filter(|field| field.type_name.is_some());
    mentioned.extend(fields.map(|field| bare(field.type_name())));
    for nested in &message.nested_type {
        mentions(nested, mentioned);
    }
}

fn keep(set: FileDescriptorSet, reached: &BTreeSet<String>) -> FileDescriptorSet {
    let mut files = Vec::new();
    for mut file in set.file {
        let package = file.package().to_string();
        let reaches = |name: &str| reached.contains(&format!("{package}.{name}"));
        file.message_type.retain(|message| reaches(message.name()));
        file.enum_type.retain(|e| reaches(e.name()));
        file.service.retain(|service| reaches(service.name()));
        // Extensions are options for other generators; comments would be most of the text.
        file.extension.clear();
        file.source_code_info = None;
        if !(file.message_type.is_empty() && file.enum_type.is_empty() && file.service.is_empty()) {
            files.push(file);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    FileDescriptorSet { file: files }
}

fn qualified(file: &FileDescriptorProto, name: &str) -> String {
    format!("{}.{name}", file.package())
}

fn bare(name: &str) -> String {
    name.trim_start_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::FieldDescriptorProto;

    fn message(name: &str, fields: &[&str], nested: Vec<DescriptorProto>) -> DescriptorProto {
        let field = |type_name: &&str| FieldDescriptorProto {
            type_name: Some(type_name.to_string()),
            ..Default::default()
        };
        DescriptorProto {
            name: Some(name.into()),
            field: fields.iter().map(field).collect(),
            nested_type: nested,
            ..Default::default()
        }
    }

    fn set() -> FileDescriptorSet {
        let file = |name: &str, package: &str, message_type| FileDescriptorProto {
            name: Some(name.into()),
            package: Some(package.into()),
            message_type,
            ..Default::default()
        };
        let hash = message("Hash", &[".b.Regex"], vec![]);
        FileDescriptorSet {
            file: vec![
                file(
                    "z",
                    "a",
                    vec![message("Route", &[".b.Policy.Hash"], vec![])],
                ),
                file(
                    "b",
                    "b",
                    vec![
                        message("Policy", &[], vec![hash]),
                        message("Regex", &[], vec![]),
                    ],
                ),
                file("c", "b", vec![message("Unused", &[".a.Route"], vec![])]),
            ],
        }
    }

    fn kept(roots: &[&str]) -> Vec<String> {
        let set = prune(set(), roots).unwrap();
        let names = |file: &FileDescriptorProto| {
            let messages = file.message_type.iter();
            messages
                .map(|message| qualified(file, message.name()))
                .collect::<Vec<_>>()
        };
        set.file.iter().flat_map(names).collect()
    }

    #[test]
    fn a_nested_type_brings_its_parent_and_what_that_mentions() {
        assert_eq!(kept(&["a.Route"]), ["b.Policy", "b.Regex", "a.Route"]);
    }

    #[test]
    fn a_package_root_takes_every_member() {
        assert_eq!(
            kept(&["b.*"]),
            ["b.Policy", "b.Regex", "b.Unused", "a.Route"]
        );
    }

    #[test]
    fn an_unknown_root_is_an_error() {
        let error = prune(set(), &["a.Rout"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "root a.Rout is not in the descriptor set"
        );
    }
}
