//! `get KIND [NAME]`: documents as they are stored.

use clap::Args;
use phalanx_client::api::StoredDocument;
use phalanx_model::document::Kind;

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Table};
use crate::{AdminOptions, NamespaceOptions};

#[derive(Args)]
pub struct Options {
    /// Kind, such as service or httproute; `all` for every kind; or KIND/NAME
    kind: String,
    name: Option<String>,
    /// Every namespace
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(mut options: Options) -> Outcome {
    if let Some((kind, name)) = one(&options.kind) {
        if options.name.is_some() || options.all_namespaces {
            return Err(Failure::usage(format!(
                "`{kind}/{name}` names one document, and nothing else goes with it"
            )));
        }
        options.name = Some(name.to_owned());
        options.kind = kind.to_owned();
    }
    let kind = match options.kind.as_str() {
        "all" => None,
        text => Some(
            Kind::parse(text)
                .ok_or_else(|| unknown_kind(text))?
                .as_str(),
        ),
    };
    let client = options.admin.client();
    if let Some(name) = &options.name {
        let kind = kind.ok_or_else(|| Failure::usage("a name needs one kind, not `all`"))?;
        let found = client
            .document(kind, &options.namespace.namespace, name)
            .await?;
        return match options.output {
            Format::Table => output::print(&table(&[found])),
            format => output::show(format, &found.document, String::new),
        };
    }
    let namespace = (!options.all_namespaces).then_some(options.namespace.namespace.as_str());
    let found = client.documents(kind, namespace).await?;
    if options.output == Format::Yaml {
        let documents = found.items.iter().map(|d| output::yaml(&d.document));
        return output::print(&documents.collect::<Vec<_>>().join("---\n"));
    }
    output::show(options.output, &found, || table(&found.items))
}

/// `KIND/NAME`, as kubectl has it.
pub fn one(text: &str) -> Option<(&str, &str)> {
    let (kind, name) = text.split_once('/')?;
    (!kind.is_empty() && !name.is_empty()).then_some((kind, name))
}

fn table(documents: &[StoredDocument]) -> String {
    if documents.is_empty() {
        return "no documents found\n".to_owned();
    }
    let now = output::now_ms();
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "GENERATION", "REVISION", "AGE"]);
    for d in documents {
        table.row(vec![
            d.kind.clone(),
            d.namespace.clone(),
            d.name.clone(),
            d.generation.to_string(),
            d.revision.to_string(),
            output::age(d.created_ms, now),
        ]);
    }
    table.render(output::stdout_style())
}

fn unknown_kind(text: &str) -> Failure {
    let known: Vec<&str> = Kind::ALL.iter().map(|k| k.as_str()).collect();
    Failure::usage(format!("unknown kind `{text}`"))
        .hint(format!("known kinds: {}", known.join(", ")))
}
