//! `bootstrap`: what a stock Envoy has to be told at its start to take part in the mesh, as a sidecar or at the edge: who it
//! is, and where the control plane is. Everything else comes from there.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use phalanx_model::ServiceName;
use phalanx_model::identity::TrustDomain;
use phalanx_model::name::check_label;
use serde_json::{Map, Value, json};

use crate::NamespaceOptions;
use crate::exit::{Failure, Outcome};
use crate::{output, proxy};

/// The cluster that the control plane is; it is asked about global limits by this name too.
const CONTROL: &str = "xds";

#[derive(Args)]
#[command(group = ArgGroup::new("role").required(true).args(["gateway", "service"]))]
pub struct Options {
    /// It runs this Gateway
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// It stands beside an application of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    namespace: NamespaceOptions,
    /// Unique within the Gateway or the service
    #[arg(long, value_name = "NAME", default_value = "envoy-1")]
    instance: String,
    /// The control plane's xDS address
    #[arg(long, value_name = "HOST:PORT", default_value = phalanx_proxy::config::CONTROL)]
    control: String,
    /// Envoy's own pages
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Where to listen, whatever the Gateway's addresses are
    #[arg(long, value_name = "IP", requires = "gateway")]
    bind: Option<IpAddr>,
    /// Certificates for HTTPS: <name>/tls.crt and <name>/tls.key by the names of certificateRefs
    #[arg(long, value_name = "DIR", requires = "gateway")]
    tls_dir: Option<PathBuf>,
    /// The application's own calls
    #[arg(long, value_name = "IP:PORT", conflicts_with = "gateway")]
    outbound: Option<SocketAddr>,
    /// Datagrams to a service; may be repeated
    #[arg(
        long,
        value_name = "LISTEN=SERVICE[.NAMESPACE]:PORT",
        conflicts_with = "gateway"
    )]
    udp: Vec<String>,
    /// Where others call it
    #[arg(
        long,
        value_name = "IP:PORT",
        requires = "app",
        conflicts_with = "gateway"
    )]
    inbound: Option<SocketAddr>,
    /// The application behind it
    #[arg(
        long,
        value_name = "IP:PORT",
        requires = "inbound",
        conflicts_with = "gateway"
    )]
    app: Option<SocketAddr>,
    /// What `phalanx cert issue --out DIR --watch` keeps: cert.pem, key.pem and roots.pem. Without it Envoy speaks plain text
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    #[arg(long, value_name = "NAME", default_value = phalanx_proxy::config::TRUST_DOMAIN, value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// Also write the files through which Envoy watches certificates: own.yaml and trust.yaml into --cert-dir, and into
    /// --tls-dir one for each certificate there
    #[arg(long)]
    write_secrets: bool,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

pub fn run(options: &Options) -> Outcome {
    let hears_datagrams = !options.udp.is_empty();
    let hears_calls = options.outbound.is_some() || options.inbound.is_some();
    if options.service.is_some() && !hears_calls && !hears_datagrams {
        let failure = Failure::usage("this Envoy would listen nowhere");
        return Err(
            failure.hint("say --outbound IP:PORT, --inbound IP:PORT with --app IP:PORT, --udp LISTEN=SERVICE:PORT, or several")
        );
    }
    for text in &options.udp {
        proxy::parse_raw("--udp", text, &options.namespace.namespace)?;
    }
    let bootstrap = bootstrap(options)?;
    if options.write_secrets {
        if options.tls_dir.is_none() && options.cert_dir.is_none() {
            let failure = Failure::usage("--write-secrets has nowhere to write");
            return Err(failure.hint("say --tls-dir DIR, --cert-dir DIR or both"));
        }
        if let Some(dir) = &options.tls_dir {
            certificates(dir)?;
        }
        if let Some(dir) = &options.cert_dir {
            write(dir, "own", &pair("own", dir, "cert.pem", "key.pem", None))?;
            write(dir, "trust", &trust(dir, &options.trust_domain))?;
        }
    }
    output::print(&output::yaml(&bootstrap))
}

fn bootstrap(options: &Options) -> Result<Value, Failure> {
    let name = options.gateway.as_ref().or(options.service.as_ref());
    let name = name.map_or("", String::as_str);
    let whose = ServiceName::parse(&options.namespace.namespace, name).map_err(Failure::usage)?;
    check_label(&options.instance).map_err(Failure::usage)?;
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let admin = &options.admin;
    Ok(json!({
        "node": {
            "id": format!("{whose}/{}", options.instance),
            "cluster": whose.name,
            "metadata": metadata(options, &whose),
        },
        "admin": { "address": socket(&admin.ip().to_string(), admin.port()) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": CONTROL } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": { "clusters": [control(options)?] },
    }))
}

/// Who it is, as the control plane reads it.
fn metadata(options: &Options, whose: &ServiceName) -> Value {
    let shown = |path: &Path| path.display().to_string();
    let role = match options.gateway {
        Some(_) => "gateway",
        None => "service",
    };
    let said = [
        (role, Some(whose.name.clone())),
        ("namespace", Some(whose.namespace.clone())),
        ("bind", options.bind.map(|ip| ip.to_string())),
        ("certificates_in", options.tls_dir.as_deref().map(shown)),
        ("outbound", options.outbound.map(|at| at.to_string())),
        (
            "udp",
            (!options.udp.is_empty()).then(|| options.udp.join(",")),
        ),
        ("inbound", options.inbound.map(|at| at.to_string())),
        ("app", options.app.map(|at| at.to_string())),
    ];
    let said = said
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), Value::String(value?))));
    Value::Object(said.collect::<Map<_, _>>())
}

fn control(options: &Options) -> Result<Value, Failure> {
    let text = &options.control;
    let wrong = || {
        let failure = Failure::usage(format!("--control `{text}` is no HOST:PORT"));
        failure.hint("such as 10.0.0.1:15010; an Envoy is told of one address, or of a name that has several")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = host.trim_matches(['[', ']']);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong());
    }
    let kind = match host.parse::<IpAddr>() {
        Ok(_) => "STATIC",
        Err(_) if host.contains(':') => return Err(wrong()),
        Err(_) => "STRICT_DNS",
    };
    let mut cluster = json!({
        "name": CONTROL,
        "type": kind,
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": CONTROL,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(host, port) } }] }],
        },
    });
    if let (Some(dir), Value::Object(fields)) = (&options.cert_dir, &mut cluster) {
        let watched = |name: &str| {
            json!({
                "name": name,
                "sds_config": { "path_config_source": {
                    "path": dir.join(format!("{name}.yaml")).display().to_string(),
                    "watched_directory": { "path": dir.display().to_string() },
                } },
            })
        };
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [watched("own")],
                "validation_context_sds_secret_config": watched("trust"),
            },
        });
        let socket = json!({ "name": "envoy.transport_sockets.tls", "typed_config": context });
        fields.insert("transport_socket".into(), socket);
    }
    Ok(cluster)
}

fn socket(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// A description for each certificate that is there.
fn certificates(dir: &Path) -> Outcome {
    let failed = |error| Failure::file(format!("cannot read {}: {error}", dir.display()));
    for entry in fs::read_dir(dir).map_err(failed)? {
        let folder = entry.map_err(failed)?.path();
        let name = folder.file_name().and_then(|name| name.to_str());
        if let Some(name) = name
            && folder.join("tls.crt").exists()
        {
            write(
                dir,
                name,
                &pair(name, &folder, "tls.crt", "tls.key", Some(&folder)),
            )?;
        }
    }
    Ok(())
}

fn pair(name: &str, dir: &Path, chain: &str, key: &str, watched: Option<&Path>) -> Value {
    let file = |name: &str| json!({ "filename": dir.join(name).display().to_string() });
    let mut pair = json!({ "certificate_chain": file(chain), "private_key": file(key) });
    if let (Some(watched), Value::Object(fields)) = (watched, &mut pair) {
        let watched = json!({ "path": watched.display().to_string() });
        fields.insert("watched_directory".into(), watched);
    }
    secret(name, "tls_certificate", &pair)
}

fn trust(dir: &Path, trust_domain: &TrustDomain) -> Value {
    let id = format!("spiffe://{trust_domain}/ns/phalanx-system/sa/control");
    let context = json!({
        "trusted_ca": { "filename": dir.join("roots.pem").display().to_string() },
        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": id } }],
    });
    secret("trust", "validation_context", &context)
}

fn secret(name: &str, kind: &str, body: &Value) -> Value {
    json!({ "resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": name,
        kind: body,
    }] })
}

/// In one step: Envoy may be looking.
fn write(dir: &Path, name: &str, what: &Value) -> Outcome {
    let path = dir.join(format!("{name}.yaml"));
    let failed = |error: &dyn std::fmt::Display| {
        Failure::file(format!("cannot write {}: {error}", path.display()))
    };
    let mut builder = tempfile::Builder::new();
    // Names of files and no secrets; Envoy may be another user.
    builder.permissions(fs::Permissions::from_mode(0o644));
    let mut file = builder.tempfile_in(dir).map_err(|error| failed(&error))?;
    let text = output::yaml(what);
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| failed(&error))?;
    file.persist(&path).map_err(|error| failed(&error))?;
    Ok(())
}
