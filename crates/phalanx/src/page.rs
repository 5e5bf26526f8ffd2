//! Pages of a sidecar's admin address, which is loopback unless told otherwise: whoever asks stands beside the sidecar.
//! Which address, an instance's name tells through the control plane.

use std::net::SocketAddr;
use std::time::Duration;

use phalanx_client::api::{InstanceView, Proxy};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::AdminOptions;
use crate::exit::Failure;

/// A sidecar's admin.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// `<namespace>/<service>/<instance>`, where the control plane told.
    pub node: Option<String>,
    pub admin: String,
}

/// An answer whose body is still to come.
pub struct Page {
    status: u16,
    node: Option<String>,
    body: BufReader<TcpStream>,
}

/// `HOST:PORT` of an admin address, or `[NAMESPACE/]SERVICE[/INSTANCE]`, where a Gateway's name will do too.
pub async fn find(
    named: &str,
    namespace: &str,
    admin: &AdminOptions,
) -> Result<Vec<Sidecar>, Failure> {
    if named.parse::<SocketAddr>().is_ok() {
        return Ok(vec![Sidecar {
            node: None,
            admin: named.to_owned(),
        }]);
    }
    let parts: Vec<&str> = named.split('/').collect();
    let is_meant = |told: [&str; 3]| match parts.as_slice() {
        [service] => told[..2] == [namespace, *service],
        [namespace, service] => told[..2] == [*namespace, *service],
        [namespace, service, id] => told == [*namespace, *service, *id],
        _ => false,
    };
    let found = all(admin).await?;
    let mut found: Vec<Sidecar> = found
        .into_iter()
        .filter(|(of, _)| is_meant([&of.namespace, &of.service, &of.id]))
        .map(|(_, sidecar)| sidecar)
        .collect();
    let edges = admin.client().proxies().await?.items.into_iter();
    let edges = edges.filter(|of| is_meant([&of.namespace, &of.service, &of.instance]));
    found.extend(edges.filter_map(edge));
    if found.is_empty() {
        return Err(
            Failure::refused(format!("no sidecar and no Gateway `{named}` is known")).hint(
                "`phalanx instances` and `phalanx ps` list them; HOST:PORT of an admin address will do too",
            ),
        );
    }
    Ok(found)
}

/// One that runs a Gateway.
fn edge(proxy: Proxy) -> Option<Sidecar> {
    Some(Sidecar {
        admin: proxy.admin?,
        node: Some(proxy.node),
    })
}

/// All that are registered, each with its instance.
pub async fn all(admin: &AdminOptions) -> Result<Vec<(InstanceView, Sidecar)>, Failure> {
    let instances = admin.client().instances(None, None).await?;
    let meshed = instances
        .items
        .into_iter()
        .filter(|instance| !instance.proxy_admin.is_empty());
    let sidecar = |instance: InstanceView| {
        let node = format!(
            "{}/{}/{}",
            instance.namespace, instance.service, instance.id
        );
        let admin = instance.proxy_admin.clone();
        (
            instance,
            Sidecar {
                node: Some(node),
                admin,
            },
        )
    };
    Ok(meshed.map(sidecar).collect())
}

impl Sidecar {
    /// Its name, or where it is.
    pub fn name(&self) -> &str {
        self.node.as_deref().unwrap_or(&self.admin)
    }

    /// Asks for a page.
    pub async fn get(&self, page: &str) -> Result<Page, Failure> {
        let asked = timeout(ANSWER_MAX, self.ask(page)).await;
        let page = match asked {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return Err(self.unreachable(&error.to_string())),
            Err(_) => return Err(self.unreachable("it does not answer")),
        };
        if let (Some(wanted), Some(found)) = (&self.node, &page.node)
            && wanted != found
        {
            return Err(self.unreachable(&format!("that is {found} there")));
        }
        Ok(page)
    }

    fn unreachable(&self, why: &str) -> Failure {
        let Self { node, admin } = self;
        let name = node.as_deref().unwrap_or("the sidecar");
        Failure::unreachable(format!("{name} at {admin}: {why}"))
            .hint("a sidecar's admin address is loopback: ask on its machine, or name an address that leads there")
    }

    /// HTTP/1.0: the body ends with the connection, and comes as it is.
    async fn ask(&self, page: &str) -> std::io::Result<Page> {
        let mut stream = TcpStream::connect(&self.admin).await?;
        let head = format!("GET {page} HTTP/1.0\r\nhost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut body = BufReader::new(stream);
        let (mut status, mut node) = (0, None);
        for place in 0..HEAD_LINES_MAX {
            let mut line = String::new();
            (&mut body)
                .take(LINE_BYTES_MAX)
                .read_line(&mut line)
                .await?;
            let line = line.trim_end();
            if place == 0 {
                let code = line.split(' ').nth(1);
                status = code.and_then(|code| code.parse().ok()).unwrap_or(0);
            } else if line.is_empty() {
                return Ok(Page { status, node, body });
            } else if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("x-phalanx-node")
            {
                node = Some(value.trim().to_owned());
            }
        }
        Err(std::io::Error::other("it speaks no HTTP"))
    }
}

impl Page {
    /// The whole body, as JSON.
    pub async fn json(mut self, of: &Sidecar) -> Result<Value, Failure> {
        let mut text = String::new();
        let body = (&mut self.body).take(PAGE_BYTES_MAX);
        let read = timeout(ANSWER_MAX, { body }.read_to_string(&mut text)).await;
        if !matches!(read, Ok(Ok(_))) {
            return Err(of.unreachable("it broke off"));
        }
        let value: Value =
            serde_json::from_str(&text).map_err(|_| of.unreachable("that is no JSON"))?;
        self.check(of, &value)?;
        Ok(value)
    }

    /// The next line; none at the end.
    pub async fn line(&mut self, of: &Sidecar) -> Result<Option<String>, Failure> {
        let mut line = String::new();
        let read = (&mut self.body)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .await;
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line.trim_end().to_owned())),
            Err(error) => Err(of.unreachable(&error.to_string())),
        }
    }

    pub fn is_ok(&self) -> bool {
        self.status == 200
    }

    fn check(&self, of: &Sidecar, value: &Value) -> Result<(), Failure> {
        if self.is_ok() {
            return Ok(());
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let failure = match self.status {
            503 => Failure::unreachable(format!("{}: {}", of.name(), text("error"))),
            _ => Failure::refused(format!("{}: {}", of.name(), text("error"))),
        };
        Err(failure.hint(text("hint")))
    }
}

/// A value in a query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

const ANSWER_MAX: Duration = Duration::from_secs(10);
const HEAD_LINES_MAX: usize = 64;
const LINE_BYTES_MAX: u64 = 1 << 20;
const PAGE_BYTES_MAX: u64 = 64 << 20;
