//! `explain`: what becomes of a request and why, from files or at a sidecar that runs.

mod files;
mod lanes;
mod text;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use phalanx_model::identity::SpiffeId;
use phalanx_model::matching::canonical::canonical_authority;
use phalanx_model::name::Direction;
use phalanx_model::resource::{RouteTable, RuleMatch};
use phalanx_model::{ClusterName, ServiceName};
use phalanx_proxy::discovery::Configuration;
use phalanx_proxy::explain::{
    Answer, Asking, Ends, Explanation, Setting, Supposed, explain as explain_at,
};
use phalanx_xds::Kind;
use phalanx_xds::decode::Resource;

use self::files::{Files, Supposition};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::page::{self, encoded};
use crate::{AdminOptions, NamespaceOptions};

#[derive(Args)]
#[command(
    after_help = "Exit code 1: some share of such requests is answered with an error by a sidecar."
)]
pub struct Options {
    /// GET, POST, …; udp for datagrams, with --proxy
    method: String,
    /// http://HOST[:PORT]/PATH, as the application would call it; grpc://HOST/SERVICE/METHOD for gRPC; for datagrams the
    /// socket's [IP:]PORT (their token: -H token:HEX)
    url: String,
    /// Documents to explain from; beside --proxy they only tell lines
    #[arg(
        short,
        long = "file",
        value_name = "FILE|DIR|-",
        required_unless_present = "proxy"
    )]
    files: Vec<PathBuf>,
    /// Who calls; with --proxy at an edge the caller's IP
    #[arg(
        long,
        value_name = "[NAMESPACE/]SERVICE|IP",
        required_unless_present = "proxy"
    )]
    from: Option<String>,
    /// Ask this sidecar instead, with what it has in force
    #[arg(long, value_name = "HOST:PORT|NAME")]
    proxy: Option<String>,
    /// Of a sidecar: what it says to those who call its application, in the name of --from
    #[arg(long, requires = "proxy")]
    inbound: bool,
    /// Of a sidecar with several applications' ports: the one that is called
    #[arg(long, requires = "inbound")]
    port: Option<u16>,
    /// A header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// From files: that this instance is registered; may be repeated. Without, one is supposed for each Service
    #[arg(
        long,
        value_name = "[NAMESPACE/]SERVICE=IP:PORT[,LABEL=VALUE]",
        conflicts_with = "proxy"
    )]
    instance: Vec<String>,
    /// From files: nobody has an identity, everything is plain text
    #[arg(long, conflicts_with = "proxy")]
    plain: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let files = match options.files.is_empty() {
        true => Files::default(),
        false => Files::read(&options.files, &options.namespace.namespace)?,
    };
    let told = match &options.proxy {
        Some(proxy) => at_sidecar(&options, proxy, &files).await?,
        None => from_files(&options, &files)?,
    };
    output::show(options.output, &told, || {
        text::write(&told, output::stdout_style())
    })?;
    match told.is_error() {
        true => Err(Failure::refused("")),
        false => Ok(()),
    }
}

async fn at_sidecar(options: &Options, proxy: &str, files: &Files) -> Result<Explanation, Failure> {
    let namespace = &options.namespace.namespace;
    let found = page::find(proxy, namespace, &options.admin).await?;
    let Some(sidecar) = found.first() else {
        return Err(Failure::refused(format!("no sidecar `{proxy}`")));
    };
    let mut page = format!(
        "/explain?method={}&url={}",
        encoded(&options.method),
        encoded(&options.url)
    );
    for header in &options.headers {
        page.push_str(&format!("&h={}", encoded(header)));
    }
    if options.inbound {
        page.push_str("&direction=inbound");
        if let Some(from) = &options.from {
            page.push_str(&format!("&from={}", encoded(from)));
        }
        if let Some(port) = options.port {
            page.push_str(&format!("&port={port}"));
        }
    } else if let Some(from) = &options.from {
        if from.parse::<IpAddr>().is_err() {
            return Err(Failure::usage(
                "--from with --proxy is said of --inbound only, and at an edge, where it is an IP: a sidecar's outbound requests are its own application's",
            ));
        }
        page.push_str(&format!("&from={}", encoded(from)));
    }
    let value = sidecar.get(&page).await?.json(sidecar).await?;
    let told = serde_json::from_value(value);
    let mut told: Explanation =
        told.map_err(|e| Failure::refused(format!("the sidecar speaks of something else: {e}")))?;
    for rule in &mut told.rules {
        rule.source = files.rule(&rule.name, None);
    }
    tell_policy(&mut told, files);
    // The control plane knows all lanes; where it can't be asked, the sidecar's word is good enough.
    if let Some(colour) = lanes::missed(&told)
        && let Ok(found) = options.admin.client().lanes(Some(colour)).await
    {
        lanes::tell(&mut told, &lanes::Known::of(found));
    }
    Ok(told)
}

fn from_files(options: &Options, files: &Files) -> Result<Explanation, Failure> {
    let namespace = &options.namespace.namespace;
    let asking = Asking::parse(&options.method, &options.url, &options.headers);
    let asking = asking.map_err(Failure::usage)?;
    if asking.method.eq_ignore_ascii_case("udp") {
        return Err(Failure::usage(
            "datagrams are explained where they are taken: --proxy says at which edge or sidecar",
        ));
    }
    let from = options.from.as_deref().unwrap_or_default();
    let (of, name) = from.split_once('/').unwrap_or((namespace, from));
    let from = ServiceName::parse(of, name).map_err(Failure::usage)?;
    let given = options.instance.iter();
    let given = given.map(|text| files::parse_instance(text, namespace));
    let given = given.collect::<Result<Vec<_>, _>>()?;
    let is_supposed = given.is_empty();
    let mesh = Supposition::new(files, given, !options.plain)?;

    let authority = canonical_authority(&asking.authority);
    let authority = authority.map_or_else(|_| String::new(), |a| a.as_str().to_owned());
    let caller = mesh.caller(&from, &authority);
    let mut told = tell(
        &caller,
        &asking,
        Direction::Outbound,
        None,
        &from.to_string(),
        !options.plain,
    )?;
    tell_places(&mut told, &caller.configuration, files);
    lanes::tell(&mut told, &mesh.lanes(files));
    told.notes.extend(mesh.findings.iter().cloned());
    if is_supposed && told.outcomes.iter().any(|o| o.ends == Ends::Forward) {
        told.notes.push(
            "no --instance is given, so one is supposed behind each Service that selects some"
                .to_owned(),
        );
    }
    let id = SpiffeId {
        trust_domain: mesh.trust_domain(),
        service: from,
    };
    told.next = next(&mesh, &caller, &told, &asking, &id, files)?.map(Box::new);
    Ok(told)
}

/// What the sidecar of the likeliest endpoint says.
fn next(
    mesh: &Supposition,
    caller: &Supposed,
    told: &Explanation,
    asking: &Asking,
    from: &SpiffeId,
    files: &Files,
) -> Result<Option<Explanation>, Failure> {
    let forwarded = told.outcomes.first().filter(|o| o.ends == Ends::Forward);
    let cluster = forwarded.and_then(|outcome| outcome.cluster.as_ref());
    let (Some(cluster), Some(upstream)) = (cluster, &told.upstream) else {
        return Ok(None);
    };
    let backend = told
        .backends
        .iter()
        .find(|b| b.cluster.as_ref() == Some(cluster));
    let endpoints = backend.map_or(&[][..], |backend| &backend.endpoints);
    let picked = endpoints
        .iter()
        .max_by(|a, b| a.picked_percent.total_cmp(&b.picked_percent));
    let Some(picked) = picked.filter(|picked| !picked.instance.is_empty()) else {
        return Ok(None);
    };
    let Ok(name) = cluster.parse::<ClusterName>() else {
        return Ok(None);
    };
    let Some(instance) = mesh.instance(&name.service, &picked.instance) else {
        return Ok(None);
    };
    let Some(callee) = mesh.callee(&name.service, &picked.instance) else {
        return Ok(None);
    };
    let assignments = &caller.configuration.resources().assignments;
    let sent = assignments
        .get(&name)
        .into_iter()
        .flat_map(|sent| &sent.endpoints);
    let mut sent = sent.filter(|sent| sent.address.to_string() == picked.address);
    let target = sent.next().map(|sent| match sent.target {
        0 => name.port,
        target => target,
    });
    let asked = Asking::of(upstream, target.map(|port| port.to_string()), asking.http2);
    let known = picked.mutual_tls.then(|| from.clone());
    let node = instance.id.to_string();
    let mut next = tell(&callee, &asked, Direction::Inbound, known, &node, true)?;
    tell_policy(&mut next, files);
    Ok(Some(next))
}

fn tell(
    at: &Supposed,
    asking: &Asking,
    direction: Direction,
    caller: Option<SpiffeId>,
    node: &str,
    guarded: bool,
) -> Result<Explanation, Failure> {
    let setting = Setting {
        node: node.to_owned(),
        plan: &at.plan,
        configuration: &at.configuration,
        direction,
        caller,
        peer: None,
        guarded,
        now_us: 0,
        describe: phalanx_proxy::admin::rule_json,
    };
    let mut told = match explain_at(&setting, asking) {
        Answer::Told(told) => *told,
        Answer::Park { authority } => {
            return Err(Failure::defect(format!(
                "nothing was said of host {authority}"
            )));
        }
    };
    let refused = at.refused.iter();
    let refused = refused.map(|(name, why)| format!("the sidecar would refuse {name}: {why}"));
    told.notes.extend(refused);
    Ok(told)
}

fn tell_places(told: &mut Explanation, configuration: &Configuration, files: &Files) {
    let matches = rules_of(told, configuration);
    for (place, rule) in told.rules.iter_mut().enumerate() {
        rule.source = files.rule(&rule.name, matches.get(place));
    }
    tell_policy(told, files);
}

fn tell_policy(told: &mut Explanation, files: &Files) {
    if let Some(access) = &mut told.authorization {
        access.source = access
            .policy
            .as_ref()
            .and_then(|policy| files.policy(policy));
    }
}

/// The conditions of the host's rules, in order.
fn rules_of(told: &Explanation, configuration: &Configuration) -> Vec<RuleMatch> {
    let Some(host) = &told.host else {
        return Vec::new();
    };
    let held = configuration.held().iter();
    let tables = held.filter_map(|((kind, _), held)| match &held.resource {
        Resource::Routes(RouteTable { hosts, .. }) if *kind == Kind::Routes => Some(hosts),
        _ => None,
    });
    let hosts = tables.flatten().find(|known| known.name == host.name);
    let rules = hosts.map_or(&[][..], |host| &host.rules);
    rules.iter().map(|rule| rule.matches.clone()).collect()
}

#[cfg(test)]
mod tests;
