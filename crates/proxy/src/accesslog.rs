//! The access log: lines that workers leave in a bounded queue, written by a thread of its own. A file that was moved or
//! removed is opened anew, at once on request ([`AccessLog::reopen`], which SIGHUP asks for), else within a second.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::account::{Account, Lookout, Sight};
use crate::config::{AccessLogConfig, Target};

/// A log at work. Dropped, it writes what is left and ends.
pub struct AccessLog {
    orders: Arc<Orders>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders {
    reopen: AtomicBool,
    stop: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    #[error("the access log {0} can't be opened")]
    Open(String, #[source] io::Error),
    #[error("the access log is open already")]
    Twice,
    #[error("no thread for the access log")]
    Thread(#[source] io::Error),
}

impl AccessLog {
    /// # Errors
    /// The file can't be opened for appending.
    pub fn open(config: &AccessLogConfig, account: &Account) -> Result<Self, AccessLogError> {
        let named = match &config.target {
            Target::Stdout => "-".to_owned(),
            Target::File(path) => path.display().to_string(),
        };
        let sink = Sink::open(&config.target);
        let sink = sink.map_err(|error| AccessLogError::Open(named, error))?;
        let lines = account.lookout().log(config.policy);
        let lines = lines.ok_or(AccessLogError::Twice)?;
        let orders = Arc::new(Orders::default());
        let mut writer = Writer {
            sink,
            lookout: account.lookout().clone(),
            orders: orders.clone(),
            text: Vec::new(),
            complained: false,
        };
        let writer = thread::Builder::new()
            .name("access-log".into())
            .stack_size(STACK_BYTES)
            .spawn(move || writer.run(&lines))
            .map_err(AccessLogError::Thread)?;
        Ok(Self {
            orders,
            writer: Some(writer),
        })
    }

    /// The file is somebody else's by now: opens the one at the same path.
    pub fn reopen(&self) {
        self.orders.reopen.store(true, Ordering::Relaxed);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join(); // a writer that panicked has said so
        }
    }
}

struct Writer {
    sink: Sink,
    lookout: Arc<Lookout>,
    orders: Arc<Orders>,
    text: Vec<u8>,
    complained: bool,
}

impl Writer {
    /// Looks now and then: a worker that leaves a line wakes nobody.
    fn run(&mut self, lines: &Receiver<Box<Sight>>) {
        let mut looked = Instant::now();
        loop {
            let stop = self.orders.stop.load(Ordering::Relaxed);
            let written = self.drain(lines);
            if self.orders.reopen.swap(false, Ordering::Relaxed)
                || (looked.elapsed() >= LOOK && self.sink.is_gone())
            {
                self.reopen();
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
            }
            if stop && written == 0 {
                return;
            }
            if written < BATCH_MAX && !stop {
                thread::sleep(PAUSE);
            }
        }
    }

    /// Writes what is there, at most [`BATCH_MAX`] lines.
    fn drain(&mut self, lines: &Receiver<Box<Sight>>) -> usize {
        self.text.clear();
        let mut count = 0;
        while count < BATCH_MAX {
            let Ok(sight) = lines.try_recv() else { break };
            self.text.extend_from_slice(sight.json().as_bytes());
            self.text.push(b'\n');
            count += 1;
        }
        if count == 0 {
            return 0;
        }
        match self.sink.write(&self.text) {
            Ok(()) => {
                self.complained = false;
                self.lookout.wrote(count as u64);
            }
            Err(error) => {
                self.lookout.lost(count as u64);
                self.complain(&error);
            }
        }
        count
    }

    fn reopen(&mut self) {
        if let Err(error) = self.sink.reopen() {
            self.complain(&error);
        }
    }

    /// Once, until it works again.
    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            warn!(%error, "the access log can't be written, lines are lost");
        }
    }
}

enum Sink {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Sink {
    fn open(target: &Target) -> io::Result<Self> {
        Ok(match target {
            Target::Stdout => Self::Stdout,
            Target::File(path) => Self::File {
                file: append(path)?,
                path: path.clone(),
            },
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { path, file } = self {
            *file = append(path)?;
        }
        Ok(())
    }

    /// Another file, or none, is where ours was.
    fn is_gone(&self) -> bool {
        let Self::File { path, file } = self else {
            return false;
        };
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        let there = std::fs::metadata(path).map(id).ok();
        there != file.metadata().map(id).ok()
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(text),
        }
    }
}

/// Paths of requests may name players: others have no business there.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

/// Between two looks at an empty queue.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether the file is still ours.
const LOOK: Duration = Duration::from_secs(1);
/// Lines in one write.
const BATCH_MAX: usize = 1_024;
const STACK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogPolicy, Sample};

    fn tell(account: &Account, path: &str) {
        let mut sight = Sight::take();
        sight.path.push_str(path);
        assert!(account.lookout().keeps(&mut sight));
        account.lookout().tell(sight);
    }

    fn until(path: &Path, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(path).is_ok_and(|text| text.contains(wanted)) {
            assert!(Instant::now() < deadline, "{wanted} never came");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_file_that_was_moved_is_opened_anew_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
        let account = Account::new(1);
        let config = AccessLogConfig {
            target: Target::File(path.clone()),
            policy: LogPolicy {
                sample: Sample::ALL,
                errors: false,
                query: false,
            },
        };
        let log = AccessLog::open(&config, &account).unwrap();
        tell(&account, "/first");
        until(&path, "/first");
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        until(&path, "");
        tell(&account, "/second");
        until(&path, "/second");
        // Nobody says so: it is noticed.
        std::fs::remove_file(&path).unwrap();
        until(&path, "");
        tell(&account, "/third");
        drop(log);
        until(&path, "/third");
        let lines = std::fs::read_to_string(&moved).unwrap();
        assert_eq!(lines.lines().count(), 1);
    }
}
