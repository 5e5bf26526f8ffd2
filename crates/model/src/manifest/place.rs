//! Where a field of a checked document stands, for remarks that need more than the document itself.

use super::report::{Mark, Report};
use super::tree::{self, Node, Root, Value};

/// The trees of one text.
pub struct Places {
    roots: Vec<Root>,
}

impl Places {
    pub fn of(text: &str) -> Self {
        // Its problems have been told by `parse`.
        let report = Report::new("");
        Self {
            roots: tree::read(text, &report),
        }
    }

    /// Line and column, from 1, of the field at `path` (as in problems: `spec.rules[0].backendRefs[1]`) of the document that
    /// starts at `line`; of the longest part of the path that is there.
    pub fn find(&self, line: usize, path: &str) -> Option<(usize, usize)> {
        let roots = self.roots.iter().flat_map(|root| documents(&root.node));
        let mut node = roots.into_iter().find(|node| node.mark.line == line)?;
        for step in steps(path) {
            let Some(child) = child(node, step) else {
                break;
            };
            node = child;
        }
        let Mark { line, column } = node.mark;
        Some((line, column))
    }
}

/// The node itself, and the items when it is a `List`.
fn documents(node: &Node) -> Vec<&Node> {
    let items = match child(node, "items").map(|items| &items.value) {
        Some(Value::List(items)) => items.iter().collect(),
        _ => Vec::new(),
    };
    if items.is_empty() { vec![node] } else { items }
}

fn child<'n>(node: &'n Node, step: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .find(|entry| entry.key == step)
            .map(|entry| &entry.value),
        Value::List(items) => items.get(step.parse::<usize>().ok()?),
        _ => None,
    }
}

fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[', ']']).filter(|step| !step.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_in_its_document() {
        let text = "kind: A\n---\nkind: B\nspec:\n  rules:\n  - name: x\n  - backendRefs: [{name: a, port: 80}]\n";
        let places = Places::of(text);
        assert_eq!(places.find(1, "kind"), Some((1, 7)));
        assert_eq!(
            places.find(3, "spec.rules[1].backendRefs[0].port"),
            Some((7, 35))
        );
        assert_eq!(places.find(3, "spec.rules[1].nothing"), Some((7, 5)));
        assert_eq!(places.find(2, "kind"), None);
    }
}
