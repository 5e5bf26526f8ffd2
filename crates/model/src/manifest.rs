//! Manifests: YAML (or JSON, which is YAML) becomes checked documents, all problems told at once, each with its place.
//! Text goes in by [`parse`]; nothing here opens files or knows what other documents exist (control's admission does).
//!
//! Module order: access, peer, colour, rollout, transcode, backend, udp, limit, stream, route, gateway, session, filter, cors, service, value, cursor, json, place, tree, report.

mod access;
mod backend;
mod colour;
mod cors;
mod cursor;
mod directory;
mod filter;
mod gateway;
mod hedge;
mod json;
mod limit;
mod peer;
mod place;
mod report;
mod rollout;
mod route;
mod service;
mod session;
mod stream;
mod transcode;
mod tree;
mod udp;
mod value;

use std::collections::HashMap;

use self::cursor::{At, Fields};
pub use self::place::Places;
pub use self::report::{PROBLEMS_MAX, Problem, ProblemKind};
use self::report::{Report, quoted};
pub use self::tree::{DEPTH_MAX, DOCUMENT_LEN_MAX, DOCUMENTS_MAX, NODES_MAX};
use crate::document::{Document, DocumentId, Kind, Meta};
use crate::instance::Labels;
use crate::name::check_label;

/// Bytes of all annotations of one document, as in Kubernetes.
const ANNOTATIONS_LEN_MAX: usize = 256 * 1024;

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Documents without problems, in order. Apply them only if `problems` is empty.
    pub documents: Vec<Parsed>,
    /// By place.
    pub problems: Vec<Problem>,
}

impl Manifest {
    /// All documents, or all problems.
    ///
    /// # Errors
    /// The problems, if there is one.
    pub fn into_result(self) -> Result<Vec<Parsed>, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(self.documents)
        } else {
            Err(self.problems)
        }
    }
}

/// A checked document and its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub document: Document,
    /// As written, as JSON on one line, the namespace filled in, without `status` and what a Kubernetes server adds.
    /// [`parse`] reads it to the same document.
    pub json: String,
    /// Where it starts, from 1.
    pub line: usize,
}

/// Reads all documents of `text`. `source_name` is what problems call it, `default_namespace` is for documents (and the
/// references in them) that name none.
pub fn parse(source_name: &str, text: &str, default_namespace: &str) -> Manifest {
    let report = Report::new(source_name);
    let mut reader = Reader {
        report: &report,
        default_namespace,
        documents: Vec::new(),
        seen: HashMap::new(),
        count: 0,
    };
    for root in tree::read(text, &report) {
        reader.root(&At::root(&root.node, &report), root.sound);
    }
    let documents = reader.documents;
    Manifest {
        documents,
        problems: report.into_problems(),
    }
}

struct Reader<'a> {
    report: &'a Report<'a>,
    default_namespace: &'a str,
    documents: Vec<Parsed>,
    /// Line of each document.
    seen: HashMap<DocumentId, usize>,
    count: usize,
}

impl Reader<'_> {
    /// `sound`: there was no problem so far.
    fn root(&mut self, at: &At<'_>, sound: bool) {
        if at.field_text("kind") == Some("List") {
            self.list(at, sound)
        } else {
            self.document(at, sound)
        }
    }

    /// What `kubectl get -o yaml` prints for several objects.
    fn list(&mut self, at: &At<'_>, sound: bool) {
        let Some(mut fields) = at.fields() else {
            return;
        };
        fields.ignore(&["kind", "metadata"]);
        if let Some(version) = fields.need("apiVersion") {
            version.choose(&[("v1", ())], &[]);
        }
        for item in fields.list("items", DOCUMENTS_MAX) {
            self.document(&item, sound);
        }
    }

    fn document(&mut self, at: &At<'_>, sound: bool) {
        self.count += 1;
        if self.count > DOCUMENTS_MAX {
            if self.count == DOCUMENTS_MAX + 1 {
                at.refuse::<()>(format!("more than {DOCUMENTS_MAX} documents in one file"));
            }
            return;
        }
        let problems = self.report.count();
        let Some(document) = document(at, self.default_namespace) else {
            return;
        };
        let id = document.id();
        if let Some(first) = self.seen.get(&id) {
            at.refuse::<()>(format!("{id} stands in this file already, at line {first}"));
        }
        self.seen.entry(id).or_insert(at.mark.line);
        if sound && self.report.count() == problems {
            let json = json::canonical(at.node, &document.meta().namespace);
            self.documents.push(Parsed {
                document,
                json,
                line: at.mark.line,
            });
        }
    }
}

/// None, or one that is incomplete, when problems were told.
fn document(at: &At<'_>, default_namespace: &str) -> Option<Document> {
    let mut fields = at.fields()?;
    let Some(kind) = kind(&mut fields) else {
        fields.skip(); // without a kind nobody knows which fields there are
        return None;
    };
    fields.ignore(&["status"]);
    let meta = fields
        .need("metadata")
        .and_then(|at| metadata(&at, kind, default_namespace));
    if kind == Kind::EndpointSlice {
        return service::endpoint_slice(&mut fields, meta).map(Document::EndpointSlice);
    }
    let spec = fields.need("spec");
    let (meta, spec) = (meta.unwrap_or_default(), spec?); // the spec's problems are worth telling without a name too
    match kind {
        Kind::Service => service::service(&spec, meta).map(Document::Service),
        Kind::HttpRoute | Kind::GrpcRoute => route::route(&spec, meta, kind).map(Document::Route),
        Kind::Gateway => gateway::gateway(&spec, meta).map(Document::Gateway),
        Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            stream::route(&spec, meta, kind).map(Document::StreamRoute)
        }
        Kind::BackendPolicy => backend::policy(&spec, meta).map(Document::BackendPolicy),
        Kind::AuthorizationPolicy => access::policy(&spec, meta).map(Document::AuthorizationPolicy),
        Kind::PeerAuthentication => peer::policy(&spec, meta).map(Document::PeerAuthentication),
        Kind::ColourPolicy => colour::policy(&spec, meta).map(Document::ColourPolicy),
        Kind::Rollout => rollout::rollout(&spec, meta).map(Document::Rollout),
        Kind::TranscodingPolicy => transcode::policy(&spec, meta).map(Document::TranscodingPolicy),
        Kind::EndpointSlice => None,
    }
}

fn kind(fields: &mut Fields<'_>) -> Option<Kind> {
    const LATER: [&str; 6] = [
        "Telemetry",
        "Contract",
        "ReferenceGrant",
        "GatewayClass",
        "BackendTLSPolicy",
        "ListenerSet",
    ];
    let choices = Kind::ALL.map(|kind| (kind.as_str(), kind));
    let kind = fields
        .need("kind")
        .and_then(|at| at.choose(&choices, &LATER));
    let version = fields.need("apiVersion");
    let kind = kind?;
    let (version, expected) = (version?, kind.api_version());
    if version.text()? != expected && !kind.api_versions_before().contains(&version.text()?) {
        version.refuse_with::<()>(
            format!(
                "{} is no apiVersion of {}",
                quoted(version.text()?),
                kind.as_str()
            ),
            format!("write `{expected}`"),
        );
    }
    Some(kind)
}

fn metadata(at: &At<'_>, kind: Kind, default_namespace: &str) -> Option<Meta> {
    let mut fields = at.fields()?;
    fields.ignore(&json::SERVER_FIELDS);
    fields.later(&[
        "finalizers",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ]);
    let name = fields.need("name").and_then(|at| {
        if matches!(kind, Kind::Service | Kind::Gateway) {
            at.dns_label()
        } else {
            at.dns_name()
        }
    });
    let namespace = match fields.get("namespace") {
        Some(at) => at.dns_label(),
        None if check_label(default_namespace).is_ok() => Some(default_namespace.to_owned()),
        None => at.refuse(format!(
            "the default namespace {} is no DNS label",
            quoted(default_namespace)
        )),
    };
    let labels = fields
        .get("labels")
        .map_or_else(Labels::new, |at| value::labels(&at));
    let annotations = fields
        .get("annotations")
        .map_or_else(Labels::new, |at| annotations(&at));
    Some(Meta {
        namespace: namespace?,
        name: name?,
        labels,
        annotations,
    })
}

fn annotations(at: &At<'_>) -> Labels {
    let annotations: Labels = at
        .entries()
        .into_iter()
        .filter_map(|(key, at)| {
            at.check(
                value::is_label_key(key),
                "is no annotation's name ([prefix/]name)",
            )?;
            Some((key.to_owned(), at.text()?.to_owned()))
        })
        .collect();
    if annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > ANNOTATIONS_LEN_MAX
    {
        at.refuse::<()>(format!(
            "more than {ANNOTATIONS_LEN_MAX} bytes of annotations"
        ));
    }
    annotations
}

#[cfg(test)]
mod tests;
