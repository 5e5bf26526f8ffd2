//! A constant load that knows of every request how it ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::http::{Answer, Call, Connection, is_unsent};

/// Connections in a row that may end before a call is on its way.
const GONE_MAX: usize = 3;

/// What happened, in counts.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sent: u64,
    /// By what the answer's `x-echo` header says: who answered.
    pub answered_by: BTreeMap<String, u64>,
    /// By status and reason, or the error's text.
    pub failures: BTreeMap<String, u64>,
    /// When the last answer of each backend came.
    pub last_answer: BTreeMap<String, Instant>,
    /// When the last failure came.
    pub last_failure: Option<Instant>,
}

impl Report {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Runs until [`Load::stop`].
pub struct Load {
    report: Arc<Mutex<Report>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// `connections` clients, each sending `call` every `pause`, over one connection as long as it holds.
    pub fn start(address: SocketAddr, call: &Call, connections: usize, pause: Duration) -> Self {
        let report = Arc::new(Mutex::new(Report::default()));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(client(
                address,
                call.clone(),
                pause,
                Arc::clone(&report),
                stopped.clone(),
            ));
        }
        Self {
            report,
            stop,
            tasks,
        }
    }

    pub fn report(&self) -> Report {
        self.report.lock().map(|r| r.clone()).unwrap_or_default()
    }

    /// Ends after the requests under way.
    pub async fn stop(mut self) -> Report {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        self.report()
    }
}

/// Over a new connection, which stays.
async fn first(
    address: SocketAddr,
    call: &Call,
    connection: &mut Option<Connection>,
) -> anyhow::Result<Answer> {
    let open = Connection::open(address, call.http2).await?;
    connection.insert(open).send(call).await
}

async fn client(
    address: SocketAddr,
    call: Call,
    pause: Duration,
    report: Arc<Mutex<Report>>,
    stopped: watch::Receiver<bool>,
) {
    let mut connection: Option<Connection> = None;
    while !*stopped.borrow() {
        let mut outcome = match &mut connection {
            Some(open) => open.send(&call).await,
            None => first(address, &call, &mut connection).await,
        };
        // Nothing was asked yet: as every client does, over another connection.
        for _ in 0..GONE_MAX {
            if !outcome.as_ref().is_err_and(is_unsent) {
                break;
            }
            outcome = first(address, &call, &mut connection).await;
        }
        if let Ok(mut report) = report.lock() {
            report.sent += 1;
            let failure = match &outcome {
                Ok(answer)
                    if answer.status == 200 && answer.grpc_status().is_none_or(|s| s == "0") =>
                {
                    let by = answer.header("x-echo").to_owned();
                    report.last_answer.insert(by.clone(), Instant::now());
                    *report.answered_by.entry(by).or_default() += 1;
                    None
                }
                Ok(answer) => Some(format!(
                    "{} {} {}",
                    answer.status,
                    answer.header("x-phalanx-reason"),
                    answer.grpc_status().unwrap_or_default()
                )),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(failure) = failure {
                *report.failures.entry(failure).or_default() += 1;
                report.last_failure = Some(Instant::now());
            }
        }
        let closing = outcome
            .as_ref()
            .is_ok_and(|a| a.header("connection") == "close");
        if outcome.is_err() || closing {
            connection = None;
        }
        tokio::time::sleep(pause).await;
    }
}
