//! `release`: what is held of a service is let go.

use clap::Args;
use phalanx_client::api::ReleaseRequest;

use crate::exit::Outcome;
use crate::output::{self, Format};
use crate::{AdminOptions, NamespaceOptions};

#[derive(Args)]
pub struct Options {
    /// Whose held instances go
    #[arg(value_name = "SERVICE")]
    service: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let request = ReleaseRequest {
        namespace: options.namespace.namespace,
        service: options.service,
        author: crate::apply::author(),
    };
    let answer = options.admin.client().release(&request).await?;
    output::show(options.output, &answer, || {
        let name = format!("{}/{}", request.namespace, request.service);
        let gone = match answer.released.as_slice() {
            // Only others know what they hold.
            [] => "told to the other control planes".to_owned(),
            ids => ids.join(", "),
        };
        format!("released {name}: {gone}\nrevision {}\n", answer.revision)
    })
}
