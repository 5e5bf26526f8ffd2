//! `control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use phalanx_control::access::Role;
use phalanx_control::ca::{JwksConfig, JwksSource};
use phalanx_control::limits::RedisAddress;
use phalanx_control::{ServeError, serve};
use phalanx_model::identity::{SpiffeId, TrustDomain};
use phalanx_store::{Error, EtcdConfig};

use crate::etcd::{self, Access};
use crate::exit::{Failure, Outcome};
use crate::signal;

#[derive(Args)]
pub struct Options {
    /// Where the state is kept: in a folder of its own, or in an etcd (etcds:// is over TLS)
    #[arg(long, value_name = "embedded|etcd[s]://HOST:PORT[,HOST:PORT]", default_value = "embedded", value_parser = place)]
    store: serve::Place,
    #[command(flatten)]
    access: Access,
    /// An etcd in which services register by themselves, by leased keys /services/<name>/<ip:port>; with --store etcd://… it
    /// is the same one unless said otherwise, and the access is the same
    #[arg(long, value_name = "none|etcd[s]://HOST:PORT[,HOST:PORT]", value_parser = services)]
    services: Option<Services>,
    /// Under which prefix they do
    #[arg(long, value_name = "PREFIX", default_value = phalanx_control::import::PREFIX)]
    services_prefix: String,
    /// Folder of the embedded store
    #[arg(long, value_name = "DIR", default_value = "phalanx-data")]
    data: PathBuf,
    /// xDS and registry
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    xds: SocketAddr,
    /// Admin API and console
    #[arg(long, value_name = "HOST:PORT", default_value = phalanx_client::api::DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// Names of the mesh (<service>.<namespace>.svc.mesh), over UDP and TCP
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15053")]
    dns: SocketAddr,
    /// OCSP and revocation lists over plain HTTP; none: nobody can ask
    #[arg(long, value_name = "HOST:PORT|none", default_value = "127.0.0.1:15082", value_parser = ocsp)]
    ocsp: Ocsp,
    /// Under which address others reach --ocsp, written into certificates; that address itself by default, unless it is a
    /// wildcard
    #[arg(long, value_name = "http://HOST[:PORT]", value_parser = ocsp_url)]
    ocsp_url: Option<String>,
    /// Its name among several control planes over one etcd; made of the host's name and the port by default
    #[arg(long, value_name = "NAME")]
    plane: Option<String>,
    /// Where the buckets of global rate limits are kept, so that several control planes share them and they outlive a
    /// restart; in memory by default
    #[arg(long, value_name = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]")]
    rate_limit_store: Option<RedisAddress>,
    /// Take plain-text clients that do not prove who they are too, on loopback only
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    trust: TrustOptions,
}

#[derive(Args)]
#[command(next_help_heading = "Identity")]
struct TrustOptions {
    /// Sign with this intermediate (root-cert.pem, ca-cert.pem, ca-key.pem, cert-chain.pem) instead of a root of its own
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// The mesh's, in every name that it certifies
    #[arg(long, value_name = "NAME", default_value_t, value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// How long a workload's certificate lives
    #[arg(long, value_name = "TIME", default_value = "72h", value_parser = crate::demo::parse_duration)]
    leaf_ttl: Duration,
    /// A host name or address by which curl, browsers and other tools call this control plane; may be repeated
    #[arg(long = "name", value_name = "HOST|IP")]
    names: Vec<String>,
    /// Whoever shows this certificate is a user with this role; may be repeated
    #[arg(long = "admin-id", value_name = "SPIFFE ID=viewer|operator|admin", value_parser = admin_id)]
    admins: Vec<(SpiffeId, Role)>,
    /// Take service-account tokens for a proof: a JWKS with the keys that sign them, as a file or an address
    #[arg(long, value_name = "FILE|http[s]://…", requires = "jwt_issuer")]
    jwks: Option<String>,
    /// PEM of the roots of an https:// address of --jwks
    #[arg(long, value_name = "FILE", requires = "jwks")]
    jwks_roots: Option<PathBuf>,
    /// A bearer token to show to the address of --jwks, such as a pod's own
    #[arg(long, value_name = "FILE", requires = "jwks")]
    jwks_token_file: Option<PathBuf>,
    /// Who has to have made service-account tokens (iss)
    #[arg(long, value_name = "TEXT", requires = "jwks")]
    jwt_issuer: Option<String>,
    /// Whom they have to be made for (aud)
    #[arg(long, value_name = "TEXT", default_value = "phalanx")]
    jwt_audience: String,
}

impl TrustOptions {
    fn trust(self) -> Result<serve::Trust, Failure> {
        let jwks = self.jwks()?;
        Ok(serve::Trust {
            domain: self.trust_domain,
            outside: self.ca,
            leaf_ttl: self.leaf_ttl,
            names: self.names,
            admins: self.admins.into_iter().collect(),
            jwks,
        })
    }

    fn jwks(&self) -> Result<Option<JwksConfig>, Failure> {
        let Some(source) = &self.jwks else {
            return Ok(None);
        };
        let is_address = ["http://", "https://"]
            .iter()
            .any(|scheme| source.starts_with(scheme));
        if !is_address && (self.jwks_roots.is_some() || self.jwks_token_file.is_some()) {
            return Err(Failure::usage(
                "--jwks-roots and --jwks-token-file are for an address, --jwks is a file",
            ));
        }
        if source.starts_with("https://") && self.jwks_roots.is_none() {
            return Err(Failure::usage(
                "--jwks over https needs --jwks-roots FILE: the roots that its server's certificate ends in (the system's are not asked)",
            ));
        }
        if source.starts_with("http://") && self.jwks_token_file.is_some() {
            return Err(Failure::usage(
                "--jwks-token-file is not sent in plain text, --jwks has to be https://…",
            ));
        }
        let source = match is_address {
            false => JwksSource::File(source.into()),
            true => JwksSource::Address {
                url: source.clone(),
                roots: self.jwks_roots.clone(),
                token: self.jwks_token_file.clone(),
            },
        };
        Ok(Some(JwksConfig {
            source,
            issuer: self.jwt_issuer.clone().unwrap_or_default(),
            audience: self.jwt_audience.clone(),
        }))
    }
}

/// Where OCSP is answered, if it is.
#[derive(Clone)]
struct Ocsp(Option<SocketAddr>);

fn ocsp(text: &str) -> Result<Ocsp, String> {
    match text {
        "none" => Ok(Ocsp(None)),
        text => match text.parse() {
            Ok(address) => Ok(Ocsp(Some(address))),
            Err(_) => Err("expected HOST:PORT with an IP address, or none".to_owned()),
        },
    }
}

fn ocsp_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").unwrap_or_default();
    let is_plain = rest
        .chars()
        .all(|c| c.is_ascii_graphic() && !"?#{}\"<>".contains(c));
    if rest.is_empty() || rest.starts_with(['/', ':']) || !is_plain || text.len() > OCSP_URL_MAX {
        return Err("expected http://HOST[:PORT][/PATH]: OCSP and lists are fetched in plain text (RFC 5280, 8)".to_owned());
    }
    Ok(text.to_owned())
}

/// It is written into every certificate, twice.
const OCSP_URL_MAX: usize = 200;

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|e| e.to_string())
}

fn admin_id(text: &str) -> Result<(SpiffeId, Role), String> {
    let wrong = || "expected spiffe://<trust domain>/ns/<namespace>/sa/<service>=ROLE".to_owned();
    let (id, role) = text.rsplit_once('=').ok_or_else(wrong)?;
    let id = id.parse::<SpiffeId>().map_err(|e| e.to_string())?;
    let role = Role::parse(role).ok_or("roles are viewer, operator and admin")?;
    Ok((id, role))
}

pub fn run(options: Options) -> Outcome {
    signal::start_log();
    let config = serve::Config {
        store: options.place()?,
        services: options.services()?,
        data: options.data,
        xds: options.xds,
        admin: options.admin,
        dns: Some(options.dns),
        ocsp: options.ocsp.0,
        ocsp_url: options.ocsp_url,
        open: options.open,
        trust: options.trust.trust()?,
        plane: options.plane,
        limits: options.rate_limit_store,
        ..serve::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failure::defect(format!("cannot start a runtime: {e}")))?;
    runtime
        .block_on(serve::run(config, signal::shutdown()))
        .map_err(|error| match error {
            ServeError::TaskEnded { .. } => Failure::defect(error),
            ServeError::Etcd {
                url,
                source: source @ Error::Unreachable { .. },
            } => etcd::unreachable(&url, &source),
            error => Failure::from_error(error),
        })
}

/// Where services that register themselves are looked for.
#[derive(Clone)]
enum Services {
    None,
    Etcd(Box<EtcdConfig>),
}

impl Options {
    fn services(&self) -> Result<Option<EtcdConfig>, Failure> {
        let etcd = match (&self.services, &self.store) {
            (Some(Services::None), _) | (None, serve::Place::Embedded) => return Ok(None),
            (Some(Services::Etcd(etcd)), _) => (**etcd).clone(),
            (None, serve::Place::Etcd(etcd)) => (**etcd).clone(),
        };
        if !self.services_prefix.ends_with('/') {
            return Err(Failure::usage("--services-prefix has to end with /"));
        }
        let mut etcd = self.access.apply(etcd)?;
        etcd.prefix = self.services_prefix.clone();
        Ok(Some(etcd))
    }

    fn place(&self) -> Result<serve::Place, Failure> {
        let is_for_services = matches!(self.services, Some(Services::Etcd(_)));
        match &self.store {
            serve::Place::Embedded if self.access.is_given() && !is_for_services => {
                Err(Failure::usage(
                    "--store-user, --store-ca and the like are for an etcd, the embedded store has neither users nor TLS",
                ))
            }
            serve::Place::Embedded => Ok(serve::Place::Embedded),
            serve::Place::Etcd(etcd) => self
                .access
                .apply((**etcd).clone())
                .map(|etcd| serve::Place::Etcd(Box::new(etcd))),
        }
    }
}

fn services(text: &str) -> Result<Services, String> {
    match text {
        "none" => Ok(Services::None),
        url => etcd::parse(url).map(|etcd| Services::Etcd(Box::new(etcd))),
    }
}

fn place(text: &str) -> Result<serve::Place, String> {
    match text {
        "embedded" => Ok(serve::Place::Embedded),
        url => etcd::parse(url).map(|etcd| serve::Place::Etcd(Box::new(etcd))),
    }
}
