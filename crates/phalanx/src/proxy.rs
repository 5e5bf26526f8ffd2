//! `proxy`: the sidecar of one application.

mod intercept;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::Probe;
use phalanx_model::{Labels, ServiceName};
use phalanx_proxy::Config;
use phalanx_proxy::config::{AccessLogConfig, Correlate, CorrelateMode, LogPolicy, Sample, Target};
use phalanx_proxy::config::{
    GatewayConfig, IdentityConfig, Proof, Source, TRUST_DOMAIN, UpgradeConfig,
};
use phalanx_proxy::serve::{self, ServeError};

use self::intercept::Intercept;
use crate::exit::{Failure, Outcome};
use crate::{demo, signal};

#[derive(Args)]
pub struct Options {
    /// Service the application belongs to
    #[arg(long, value_name = "NAME", required_unless_present_any = ["gateway", "intercept_clean"])]
    service: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Where the application listens; with a name when it has several ports, with udp:// where it takes datagrams, which
    /// others send to it directly
    #[arg(long, required_unless_present_any = ["gateway", "intercept_clean"], value_name = "[NAME=][udp://]HOST:PORT", value_parser = parse_app)]
    app: Vec<App>,
    /// Labels of the instance, such as version=v1,zone=az1
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Traffic for the application
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:15006")]
    inbound: SocketAddr,
    /// The application's own calls
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15001")]
    outbound: SocketAddr,
    /// Metrics, health and configuration of this sidecar
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Raw TCP to a service; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE[.NAMESPACE]:PORT")]
    tcp: Vec<String>,
    /// Datagrams to a service; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE[.NAMESPACE]:PORT")]
    udp: Vec<String>,
    /// Ask the application whether it is ready: GET of a path, or gRPC's health check; until it says so, and whenever it
    /// does not, it stays registered and gets no traffic
    #[arg(long, value_name = "/PATH|grpc[:SERVICE]", value_parser = parse_ready)]
    ready: Option<Probe>,
    /// The control plane's xDS address; of several over one etcd one is used, and another when that is gone
    #[arg(
        long,
        value_name = "HOST:PORT[,HOST:PORT]",
        default_value = "127.0.0.1:15010"
    )]
    control: String,
    /// What the instance registers as its address; the inbound address, or the one that leads to the control plane
    #[arg(long, value_name = "IP:PORT")]
    advertise: Option<SocketAddr>,
    /// Threads that carry traffic; one per core by default
    #[arg(long)]
    workers: Option<usize>,
    /// Lease of the registration
    #[arg(long, default_value = "30s", value_parser = demo::parse_duration)]
    ttl: Duration,
    /// How long the routes and endpoints of a host are held that the application calls no more
    #[arg(long, default_value = "10m", value_parser = demo::parse_duration)]
    unused: Duration,
    /// How long streams may go on after SIGTERM
    #[arg(long, default_value = "5s", value_parser = demo::parse_duration)]
    drain: Duration,
    #[command(flatten)]
    upgrade: Upgrade,
    #[command(flatten)]
    correlation: Correlation,
    #[command(flatten)]
    intercept: Intercept,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    identity: Identity,
}

/// At the edge there is no application: what comes from outside goes to the mesh as the Gateway and its routes say.
#[derive(Args)]
#[command(next_help_heading = "Gateway")]
struct Edge {
    /// Run this Gateway instead of standing beside an application; its identity is that of a service of the same name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["service", "app", "tcp", "udp", "ready", "inbound", "outbound", "advertise"])]
    gateway: Option<String>,
    /// Where to listen, whatever the Gateway's addresses are
    #[arg(long, value_name = "IP", requires = "gateway")]
    bind: Option<IpAddr>,
    /// Certificates for HTTPS: <name>/tls.crt and <name>/tls.key by the names of certificateRefs; watched
    #[arg(long, value_name = "DIR", requires = "gateway")]
    tls_dir: Option<PathBuf>,
}

/// Colour and trace of what comes in, for calls of an application that does not pass them on.
#[derive(Args)]
#[command(next_help_heading = "Correlation")]
struct Correlation {
    /// on: a call gets the colour of the request that must be its cause, or none where that is not sure; strict: a call whose
    /// colour was lost is refused, for test environments
    #[arg(long, value_name = "off|on|strict", default_value = "on", value_parser = CorrelateMode::parse)]
    correlate: CorrelateMode,
    /// How long after its answer a request may still make calls
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = demo::parse_duration)]
    correlate_linger: Duration,
    /// How long after the start the application may be at work for requests that came by a sidecar before this one; 0s where
    /// both start together
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = demo::parse_duration)]
    correlate_settle: Duration,
}

/// One line of JSON for each request that is chosen, once it is over.
#[derive(Args)]
#[command(next_help_heading = "Access log")]
struct Log {
    /// Where requests are logged, `-` for standard output; a file that was moved is opened anew, at once on SIGHUP
    #[arg(long, value_name = "FILE|-")]
    access_log: Option<String>,
    /// Which part of all traces; the same traces at every hop
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = Sample::parse, requires = "access_log")]
    access_log_sample: Sample,
    /// Requests that end in an error are logged whatever the sample says
    #[arg(long, requires = "access_log")]
    access_log_errors: bool,
    /// With their query, where secrets may stand
    #[arg(long, requires = "access_log")]
    access_log_query: bool,
}

impl Log {
    fn config(self) -> Option<AccessLogConfig> {
        Some(AccessLogConfig {
            target: Target::parse(&self.access_log?),
            policy: LogPolicy {
                sample: self.access_log_sample,
                errors: self.access_log_errors,
                query: self.access_log_query,
            },
        })
    }
}

/// Without these, connections are refused between the end of one sidecar and the start of the next.
#[derive(Args)]
#[command(next_help_heading = "Upgrade")]
struct Upgrade {
    /// A Unix socket for this user only: a sidecar started with the path of one that runs takes its listeners, its
    /// connections to come and its registration over, and that one ends when its streams have
    #[arg(long, value_name = "PATH")]
    upgrade_socket: Option<PathBuf>,
    /// How long streams may go on in the sidecar that is replaced
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = demo::parse_duration, requires = "upgrade_socket")]
    upgrade_drain: Duration,
    /// How long this sidecar may take to get its configuration and certificate before it leaves the other one alone
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = demo::parse_duration, requires = "upgrade_socket")]
    upgrade_wait: Duration,
}

/// Without any of these the sidecar speaks plain text, which only a `control --open` takes.
#[derive(Args)]
#[command(next_help_heading = "Identity")]
struct Identity {
    /// What `phalanx cert token` wrote: a join token, good for one use, and the roots. Needed until the identity directory
    /// holds a certificate
    #[arg(
        long,
        value_name = "FILE",
        requires = "identity_dir",
        conflicts_with = "service_account_token_file"
    )]
    token_file: Option<PathBuf>,
    /// A service account's JWT to join by instead, as Kubernetes mounts it; read again at each use
    #[arg(long, value_name = "FILE", requires = "identity_dir")]
    service_account_token_file: Option<PathBuf>,
    /// Where the certificate is kept that the control plane issues and this sidecar renews: cert.pem, key.pem (0600),
    /// roots.pem and crls.pem, replaced as one set
    #[arg(long, value_name = "DIR", conflicts_with = "cert_dir")]
    identity_dir: Option<PathBuf>,
    /// Where somebody else puts cert.pem, key.pem (0600) and roots.pem, and replaces them; watched
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// PEM of the roots to trust the control plane by before joining; those in the token's file, or kept in the identity
    /// directory
    #[arg(long, value_name = "FILE", requires = "identity_dir")]
    roots: Option<PathBuf>,
    /// The mesh's, as the control plane has it
    #[arg(long, value_name = "NAME", default_value = TRUST_DOMAIN, value_parser = parse_trust_domain)]
    trust_domain: TrustDomain,
    /// Renew when less than this remains; of a short life, when two thirds do
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = demo::parse_duration)]
    renew_before: Duration,
    /// How often the remaining life is looked at
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = demo::parse_duration)]
    cert_check: Duration,
}

pub fn run(options: Options) -> Outcome {
    signal::start_log();
    if options.intercept.intercept_clean {
        return intercept::clean();
    }
    let config = configure(options)?;
    crate::block_on(async {
        tokio::spawn(crate::resident::release_start());
        serve::run(config, signal::shutdown())
            .await
            .map_err(|error| match error {
                ServeError::Fallen(_) => Failure::defect(error),
                error => Failure::from_error(error),
            })
    })
}

fn configure(options: Options) -> Result<Config, Failure> {
    let gateway = options.edge.gateway.as_deref();
    let name = gateway.or(options.service.as_deref()).unwrap_or_default();
    let service = ServiceName::parse(&options.namespace, name).map_err(Failure::usage)?;
    let gateway = gateway.map(|_| GatewayConfig {
        bind: options.edge.bind,
        tls_dir: options.edge.tls_dir,
    });
    // An edge is known by where it is and its pages are: it has no other address of its own.
    let inbound = match &gateway {
        None => options.inbound,
        Some(gateway) => {
            let ip = gateway.bind.unwrap_or(options.inbound.ip());
            SocketAddr::new(ip, options.admin.port())
        }
    };
    let tcp = options
        .tcp
        .iter()
        .map(|text| parse_raw("--tcp", text, &options.namespace))
        .collect::<Result<_, _>>()?;
    let udp = options
        .udp
        .iter()
        .map(|text| parse_raw("--udp", text, &options.namespace))
        .collect::<Result<_, _>>()?;
    let (udp_apps, apps): (Vec<App>, Vec<App>) =
        options.app.into_iter().partition(|app| app.takes_datagrams);
    let ports = |apps: Vec<App>| {
        apps.into_iter()
            .map(|app| (app.name, app.address))
            .collect()
    };
    let identity = identity(options.identity);
    let defaults = Config::new(service, ports(apps));
    Ok(Config {
        labels: options.labels.into_iter().collect::<Labels>(),
        inbound,
        gateway,
        outbound: options.outbound,
        admin: options.admin,
        tcp,
        udp,
        udp_apps: ports(udp_apps),
        ready: options.ready,
        control: options.control,
        advertise: options.advertise,
        workers: options.workers.unwrap_or(defaults.workers),
        ttl: options.ttl,
        unused: options.unused,
        drain: options.drain,
        correlate: Correlate {
            mode: options.correlation.correlate,
            linger: options.correlation.correlate_linger,
            settle: options.correlation.correlate_settle,
        },
        access_log: options.log.config(),
        intercept: options.intercept.config(),
        identity,
        upgrade: options.upgrade.upgrade_socket.map(|socket| UpgradeConfig {
            socket,
            drain: options.upgrade.upgrade_drain,
            wait: options.upgrade.upgrade_wait,
        }),
        ..defaults
    })
}

fn identity(options: Identity) -> Option<IdentityConfig> {
    let join = options.token_file.map(Proof::JoinToken);
    let account = options
        .service_account_token_file
        .map(Proof::ServiceAccount);
    let source = match (options.identity_dir, options.cert_dir) {
        (Some(dir), _) => Source::Issued {
            dir,
            proof: join.or(account),
        },
        (None, Some(dir)) => Source::Files { dir },
        (None, None) => return None,
    };
    let defaults = IdentityConfig::new(source);
    let mut renewal = defaults.renewal;
    (renewal.before, renewal.check) = (options.renew_before, options.cert_check);
    Some(IdentityConfig {
        trust_domain: options.trust_domain,
        roots: options.roots,
        renewal,
        ..defaults
    })
}

fn parse_trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

/// A port of the application.
#[derive(Clone, Debug)]
struct App {
    name: String,
    address: SocketAddr,
    takes_datagrams: bool,
}

fn parse_app(text: &str) -> Result<App, String> {
    let (name, address) = text.split_once('=').unwrap_or(("", text));
    let udp = address.strip_prefix("udp://");
    let address = udp.unwrap_or(address);
    let wrong = || format!("`{address}` is no HOST:PORT with a numeric host");
    let socket: SocketAddr = address.parse().map_err(|_| wrong())?;
    if udp.is_some() && socket.port() == 0 {
        return Err("datagrams are sent to a port, and 0 is none".to_owned());
    }
    Ok(App {
        name: name.to_owned(),
        address: socket,
        takes_datagrams: udp.is_some(),
    })
}

fn parse_ready(text: &str) -> Result<Probe, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("grpc", service) => Ok(Probe::Grpc {
            service: service.to_owned(),
        }),
        _ if text.starts_with('/') && !text.contains(char::is_whitespace) => Ok(Probe::Http {
            path: text.to_owned(),
        }),
        _ => Err(format!("`{text}` is neither /PATH nor grpc[:SERVICE]")),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is no KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `127.0.0.1:6379=redis:6379`, or with a namespace `=redis.infra:6379`.
pub fn parse_raw(
    flag: &str,
    text: &str,
    namespace: &str,
) -> Result<(SocketAddr, ServiceName, u16), Failure> {
    let wrong = || {
        Failure::usage(format!("{flag} `{text}` is no LISTEN=SERVICE:PORT"))
            .hint("such as 127.0.0.1:6379=redis:6379")
    };
    let (listen, target) = text.split_once('=').ok_or_else(wrong)?;
    let (host, port) = target.rsplit_once(':').ok_or_else(wrong)?;
    let (name, namespace) = host.split_once('.').unwrap_or((host, namespace));
    let service = ServiceName::parse(namespace, name).map_err(Failure::usage)?;
    Ok((
        listen.parse().map_err(|_| wrong())?,
        service,
        port.parse().map_err(|_| wrong())?,
    ))
}
