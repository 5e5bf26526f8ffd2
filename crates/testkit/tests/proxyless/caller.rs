//! Whoever calls a service of the mesh: an application behind our sidecar or behind Envoy, or one with xDS in its gRPC.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use phalanx_testkit::http::{Call, call};
use phalanx_testkit::load::Load;
use serde_json::json;

use crate::peer::Client;

pub enum Caller {
    Proxied {
        name: &'static str,
        outbound: SocketAddr,
        load: Option<Load>,
    },
    Proxyless(Client),
}

/// What is called, and how.
#[derive(Clone, Debug)]
pub struct Order {
    pub target: String,
    pub method: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
    pub timeout: Duration,
}

impl Order {
    pub fn new(target: &str, method: &'static str) -> Self {
        Self {
            target: target.into(),
            method,
            headers: Vec::new(),
            timeout: Duration::from_secs(5),
        }
    }

    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn json(&self, op: &str) -> serde_json::Value {
        let headers: BTreeMap<_, _> = self.headers.iter().copied().collect();
        json!({
            "op": op, "target": self.target, "method": self.method, "headers": headers,
            "timeout_ms": self.timeout.as_millis() as u64, "interval_ms": 5,
        })
    }

    fn call(&self) -> Call {
        let call = Call::grpc(&self.target, self.method);
        let edit = |call: Call, (name, value): &(&str, &str)| call.header(name, value);
        self.headers.iter().fold(call, edit)
    }
}

/// How a call ended: gRPC's status, and who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u64,
    pub by: String,
    pub message: String,
}

impl Ended {
    pub fn is_by(&self, name: &str) -> bool {
        (self.code, self.by.as_str()) == (0, name)
    }
}

impl Caller {
    pub fn proxied(name: &'static str, outbound: SocketAddr) -> Self {
        Self::Proxied {
            name,
            outbound,
            load: None,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Proxied { name, .. } => name,
            Self::Proxyless(client) => client.stack.name(),
        }
    }

    pub async fn one(&self, order: &Order) -> anyhow::Result<Ended> {
        let mut ended = self.many(order, 1).await?;
        ended.pop().ok_or_else(|| anyhow::anyhow!("no answer"))
    }

    /// One after the other.
    pub async fn many(&self, order: &Order, count: usize) -> anyhow::Result<Vec<Ended>> {
        match self {
            Self::Proxied { outbound, .. } => {
                let mut ended = Vec::new();
                for _ in 0..count {
                    ended.push(proxied(*outbound, order).await);
                }
                Ok(ended)
            }
            Self::Proxyless(client) => {
                let mut text = order.json("call");
                text["count"] = count.into();
                let answer = client.order(text).await?;
                let results = answer["results"].as_array().cloned().unwrap_or_default();
                let word =
                    |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                let ended = results.iter().map(|result| Ended {
                    code: result["code"].as_u64().unwrap_or(u64::MAX),
                    by: word(&result["by"]),
                    message: word(&result["message"]),
                });
                Ok(ended.collect())
            }
        }
    }

    /// Calls without end.
    pub async fn begin(&mut self, order: &Order) -> anyhow::Result<()> {
        match self {
            Self::Proxied { outbound, load, .. } => {
                let pause = Duration::from_millis(5);
                *load = Some(Load::start(*outbound, &order.call(), 1, pause));
            }
            Self::Proxyless(client) => drop(client.order(order.json("load")).await?),
        }
        Ok(())
    }

    /// How many calls there were since, and which failed.
    pub async fn end(&mut self) -> anyhow::Result<(u64, BTreeMap<String, u64>)> {
        match self {
            Self::Proxied { load, .. } => {
                let Some(load) = load.take() else {
                    anyhow::bail!("there is no load")
                };
                let report = load.stop().await;
                Ok((report.sent, report.failures))
            }
            Self::Proxyless(client) => {
                let answer = client.order(json!({"op": "stop"})).await?;
                let failures = serde_json::from_value(answer["failures"].clone())?;
                Ok((answer["sent"].as_u64().unwrap_or(0), failures))
            }
        }
    }
}

/// An answer without a gRPC status has the one that gRPC makes of its HTTP status.
async fn proxied(outbound: SocketAddr, order: &Order) -> Ended {
    let answer = match tokio::time::timeout(order.timeout, call(outbound, &order.call())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Ended {
                code: 14,
                by: String::new(),
                message: format!("{error:#}"),
            };
        }
        Err(_) => {
            return Ended {
                code: 4,
                by: String::new(),
                message: "no answer in time".into(),
            };
        }
    };
    let of_http = || if answer.status == 200 { 2 } else { 14 };
    let told = answer.grpc_status().and_then(|status| status.parse().ok());
    let code = told.unwrap_or_else(of_http);
    let by = if code == 0 {
        answer.header("x-echo")
    } else {
        ""
    };
    Ended {
        code,
        by: by.to_owned(),
        message: answer.header("x-phalanx-reason").to_owned(),
    }
}
