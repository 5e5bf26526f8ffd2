//! Flags of transparent interception.

use std::time::Duration;

use clap::Args;
use phalanx_proxy::config::{InterceptConfig, OutboundPolicy, Prefix};
use phalanx_proxy::intercept;

use crate::demo;
use crate::exit::{Failure, Outcome};

/// The kernel brings the connections of an application that knows nothing of this: nftables, so root or CAP_NET_ADMIN.
#[derive(Args)]
#[command(next_help_heading = "Interception")]
pub struct Intercept {
    /// Take what the application sends and what is sent to it, over IPv4 and IPv6, and remove the rules on exit
    #[arg(long, conflicts_with = "gateway")]
    intercept: bool,
    /// Remove the rules that a killed sidecar left in this network namespace, and end
    #[arg(long, exclusive = true)]
    pub intercept_clean: bool,
    /// Take only calls to these ports; to all by default
    #[arg(long, value_name = "PORT", value_delimiter = ',', requires = "intercept", value_parser = parse_port)]
    intercept_ports: Vec<u16>,
    /// Leave calls to these ports alone, and connections to them; may be repeated
    #[arg(long, value_name = "PORT", value_delimiter = ',', requires = "intercept", value_parser = parse_port)]
    exempt_port: Vec<u16>,
    /// Leave calls to these addresses alone, and connections from them; may be repeated
    #[arg(
        long,
        value_name = "IP[/BITS]",
        value_delimiter = ',',
        requires = "intercept"
    )]
    exempt_address: Vec<Prefix>,
    /// Leave calls of these users alone; may be repeated
    #[arg(
        long,
        value_name = "UID",
        value_delimiter = ',',
        requires = "intercept",
        value_parser = parse_uid
    )]
    exempt_uid: Vec<u32>,
    /// What becomes of calls that lead to nobody of the mesh: allow or registry-only
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "allow",
        requires = "intercept"
    )]
    outbound_policy: OutboundPolicy,
    /// How long a client may keep silent, on a port of which nobody said what is spoken there, until the server is taken for
    /// who speaks first
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = demo::parse_duration, requires = "intercept")]
    intercept_wait: Duration,
    /// Where redirected calls arrive
    #[arg(long, value_name = "PORT", default_value_t = phalanx_proxy::config::INTERCEPT_OUTBOUND, value_parser = parse_port, requires = "intercept")]
    intercept_outbound: u16,
    /// Where redirected connections to the application arrive
    #[arg(long, value_name = "PORT", default_value_t = phalanx_proxy::config::INTERCEPT_INBOUND, value_parser = parse_port, requires = "intercept")]
    intercept_inbound: u16,
}

impl Intercept {
    pub fn config(self) -> Option<InterceptConfig> {
        self.intercept.then_some(InterceptConfig {
            outbound: self.intercept_outbound,
            inbound: self.intercept_inbound,
            ports: self.intercept_ports,
            exempt_ports: self.exempt_port,
            exempt_addresses: self.exempt_address,
            exempt_uids: self.exempt_uid,
            policy: self.outbound_policy,
            wait: self.intercept_wait,
        })
    }
}

/// `--intercept-clean`
pub fn clean() -> Outcome {
    intercept::clean().map_err(Failure::from_error)
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.trim().parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is no port"))
}

fn parse_uid(text: &str) -> Result<u32, String> {
    let uid = text.trim().parse().ok();
    uid.ok_or_else(|| format!("`{text}` is no user's number (`id -u {text}` tells one)"))
}
