//! `--redis`: where the leaderboard is kept. With an address, there; without one, in a Redis of the demo's own, which is
//! started again when somebody kills it, after a pause in which the board answers without it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::Process;
use crate::exit::Failure;

const PROGRAM: &str = "redis-server";
/// What the board's scripts need.
const VERSION_MIN: u32 = 7;
const HINT: &str = "install Redis 7 or later, name one that runs (--redis redis://HOST:PORT), or leave --redis out";
/// Somebody else may take a free port first.
const ATTEMPTS: u32 = 5;
const START_MAX: Duration = Duration::from_secs(20);
const ANSWER_MAX: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long one that was killed stays away, so that there is something to see.
const AWAY: Duration = Duration::from_secs(5);

pub struct Redis {
    process: Process,
    url: String,
    /// When it was first seen to be gone.
    gone: Option<Instant>,
}

impl Redis {
    /// On a free port, with what it keeps in `folder`.
    pub async fn start(folder: &Path) -> Result<Self, Failure> {
        let home = folder.join("redis");
        let home = std::fs::create_dir_all(&home)
            .and_then(|()| home.canonicalize())
            .map_err(|e| Failure::file(format!("cannot make {}: {e}", home.display())))?;
        for _ in 0..ATTEMPTS {
            let address = free_address()?;
            let arguments = arguments(address, &home);
            let program = Some(PROGRAM.into());
            let mut process =
                Process::start_program(program, "redis", arguments.into_iter(), folder)?;
            if answers(&mut process, address, &home).await {
                return Ok(Self {
                    process,
                    url: format!("redis://{address}"),
                    gone: None,
                });
            }
        }
        let home = folder.join("redis.out").display().to_string();
        Err(Failure::refused(format!("{PROGRAM} does not start; it says why in {home}")).hint(HINT))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again some seconds after somebody ended it; what to tell of that.
    pub fn supervise(&mut self) -> Result<Option<String>, Failure> {
        let Some(fallen) = self.process.fallen() else {
            return Ok(None);
        };
        let gone = *self.gone.get_or_insert_with(Instant::now);
        if gone.elapsed() < AWAY {
            return Ok(None);
        }
        self.gone = None;
        self.process.restart()?;
        Ok(Some(format!("{fallen} and was started again")))
    }
}

/// Whether there is one, before anything else is started.
pub fn check_version() -> Result<(), Failure> {
    let said = Command::new(PROGRAM).arg("--version").output();
    let said =
        said.map_err(|e| Failure::refused(format!("cannot run `{PROGRAM}`: {e}")).hint(HINT));
    let said = String::from_utf8_lossy(&said?.stdout).into_owned();
    match version(&said) {
        Some(version) if version < VERSION_MIN => Err(Failure::refused(format!(
            "`{PROGRAM}` is version {version}, the leaderboard needs {VERSION_MIN} or later"
        ))
        .hint(HINT)),
        // What names itself in another way shows what it can do.
        _ => Ok(()),
    }
}

/// Of `Redis server v=7.0.15 sha=…`.
fn version(said: &str) -> Option<u32> {
    let (_, version) = said.split_once(" v=")?;
    version.split('.').next()?.parse().ok()
}

fn free_address() -> Result<SocketAddr, Failure> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
    free.map_err(|e| Failure::refused(format!("no free port for Redis: {e}")))
}

/// It keeps what it acknowledged, so that a kill costs the board nothing.
fn arguments(address: SocketAddr, home: &Path) -> Vec<String> {
    let flags = [
        ("--port", address.port().to_string()),
        ("--bind", address.ip().to_string()),
        ("--dir", home.display().to_string()),
        ("--save", String::new()),
        ("--appendonly", "yes".to_owned()),
        ("--daemonize", "no".to_owned()),
    ];
    let flags = flags.into_iter();
    flags
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// False: it ended, or another's server has the port.
async fn answers(process: &mut Process, address: SocketAddr, home: &Path) -> bool {
    let deadline = Instant::now() + START_MAX;
    while process.fallen().is_none() && Instant::now() < deadline {
        let said = ask(address, "CONFIG GET dir\r\n").unwrap_or_default();
        if said.contains(&home.display().to_string()) {
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

fn ask(address: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_write_them() {
        let said = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";
        assert_eq!(version(said), Some(7));
        assert_eq!(version("Valkey server v=8.1.0 sha=0"), Some(8));
        assert_eq!(version("who knows"), None);
    }
}
