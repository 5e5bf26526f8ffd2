//! Child processes: started with a log of their own, ended in good order, never left behind.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::exit::Failure;

/// After SIGTERM; then it is killed. Longer than the sidecar's default drain.
const STOP_MAX: Duration = Duration::from_secs(8);
/// How much of a log an error shows.
const LAST_WORDS_BYTES: usize = 2000;

pub struct Process {
    name: String,
    child: Child,
    folder: PathBuf,
    /// None: this executable.
    program: Option<PathBuf>,
    arguments: Vec<String>,
    stopped: bool,
}

impl Process {
    /// Starts this executable with other arguments; output goes to `<name>.out` and `<name>.log` in the folder.
    pub fn start(
        name: &str,
        arguments: impl Iterator<Item = String>,
        folder: &Path,
    ) -> Result<Self, Failure> {
        Self::start_program(None, name, arguments, folder)
    }

    /// The same of another program.
    pub fn start_program(
        program: Option<PathBuf>,
        name: &str,
        arguments: impl Iterator<Item = String>,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let arguments: Vec<String> = arguments.collect();
        let child = spawn(program.as_deref(), name, &arguments, folder)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            folder: folder.to_owned(),
            program,
            arguments,
            stopped: false,
        })
    }

    /// Starts one that has ended once more, with the same arguments; its log goes on.
    pub fn restart(&mut self) -> Result<(), Failure> {
        let program = self.program.as_deref();
        self.child = spawn(program, &self.name, &self.arguments, &self.folder)?;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `<name> ended (…)` if it has ended without being asked.
    pub fn fallen(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        (!self.stopped).then(|| format!("{} ended ({status})", self.name))
    }

    /// What it printed on standard output.
    pub fn output(&mut self) -> String {
        std::fs::read_to_string(self.folder.join(format!("{}.out", self.name))).unwrap_or_default()
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(self.folder.join(format!("{}.log", self.name)))
            .and_then(|mut f| f.read_to_end(&mut bytes));
        let from = read.map_or(0, |n| n.saturating_sub(LAST_WORDS_BYTES));
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    fn signal(&self, signal: libc::c_int) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: kill takes two integers; the child is not yet reaped, so the id is still its own.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(pid, signal);
            }
        }
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn spawn(
    program: Option<&Path>,
    name: &str,
    arguments: &[String],
    folder: &Path,
) -> Result<Child, Failure> {
    let wrong = |what: &str, error: std::io::Error| {
        Failure::defect(format!("cannot {what} for {name}: {error}"))
    };
    let file = |ending| {
        let path = folder.join(format!("{name}.{ending}"));
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| wrong("make a log", e))
    };
    let executable = match program {
        Some(program) => program.to_owned(),
        None => std::env::current_exe().map_err(|e| wrong("find the executable", e))?,
    };
    let mut command = Command::new(executable);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file("out")?)
        .stderr(file("log")?);
    // Ctrl-C at the terminal reaches the demo alone, which then stops them in order.
    command.process_group(0);
    die_with_parent(&mut command);
    command.spawn().map_err(|e| wrong("start a process", e))
}

/// Asks all to end, waits for all, and kills what is left.
pub async fn stop(processes: impl Iterator<Item = &mut Process>) {
    let mut open: Vec<&mut Process> = processes
        .filter_map(|p| if p.ended() { None } else { Some(p) })
        .collect();
    for process in &mut open {
        process.stopped = true;
        process.signal(libc::SIGTERM);
    }
    let deadline = Instant::now() + STOP_MAX;
    while Instant::now() < deadline && !open.iter_mut().all(|p| p.ended()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for process in open {
        if !process.ended() {
            process.signal(libc::SIGKILL);
            let _ = process.child.wait();
        }
    }
}

/// The kernel kills the child when the thread that started it ends, so that even `kill -9` leaves nothing behind.
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and touches no memory.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
