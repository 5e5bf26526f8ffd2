//! `health`: the endpoints that policies want checked, who checks them and what they say.

use clap::Args;
use phalanx_client::api::HealthViews;

use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// Only this service
    service: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let found = client
        .health(options.service.as_deref(), options.namespace.as_deref())
        .await?;
    output::show(options.output, &found, || render(&found))
}

fn render(found: &HealthViews) -> String {
    if found.items.is_empty() {
        return "nothing is checked: no BackendPolicy with a healthCheck names a service with endpoints\n"
            .to_owned();
    }
    let now = output::now_ms();
    let mut table = Table::new(&[
        "NAMESPACE",
        "SERVICE",
        "ADDRESS",
        "ZONE",
        "STATE",
        "SINCE",
        "CHECKERS",
        "REASON",
    ]);
    for item in &found.items {
        let checkers: Vec<&str> = item.checkers.iter().map(|c| c.checker.as_str()).collect();
        let since = match item.since_ms {
            0 => "-".to_owned(),
            since => output::age(since, now),
        };
        table.row(vec![
            item.namespace.clone(),
            item.service.clone(),
            item.address.clone(),
            dash(&item.zone),
            item.state.clone(),
            since,
            dash(&checkers.join(",")),
            dash(&item.reason),
        ]);
    }
    table.render(output::stdout_style())
}

fn dash(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    }
}
