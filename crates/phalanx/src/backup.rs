//! `backup`: everything stored, into one file, while the control plane goes on or from the folder of one that is stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use phalanx_client::admin::BackupFailed;
use phalanx_store::{Backup, Config, Error, Store};

use crate::AdminOptions;
use crate::exit::{Failure, Outcome};
use crate::output;
use crate::progress::Progress;

#[derive(Args)]
pub struct Options {
    /// Where the backup is written; a file by that name is replaced when the new one is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder of an embedded store that no control plane uses; else a running one is asked
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let file = replaceable(&options.file)?;
    let partial = partial(&file)?;
    let outcome = take(&options, &partial, &file).await;
    if outcome.is_err() {
        // Only a half one is lost by that.
        let _ = fs::remove_file(&partial);
    }
    let backup = outcome?;
    output::print(&format!(
        "revision {}: {} in {}\n",
        backup.revision,
        described(&backup),
        options.file.display()
    ))
}

async fn take(options: &Options, partial: &Path, to: &Path) -> Result<Backup, Failure> {
    let written = |e: io::Error| Failure::file(format!("cannot write {}: {e}", partial.display()));
    // Of a process that died and had our number. What comes now is made by us, whatever a link there points at.
    let _ = fs::remove_file(partial);
    let mut new = OpenOptions::new();
    let file = new.write(true).create_new(true).mode(0o600);
    let mut into = Counted::new(BufWriter::new(file.open(partial).map_err(written)?));
    match &options.data {
        Some(data) => {
            for piece in closed(data).await?.1.encode() {
                into.write_all(&piece).map_err(written)?;
            }
        }
        None => {
            let asked = options.admin.client().backup(&mut into).await;
            asked.map_err(|error| match error {
                BackupFailed::Admin(error) => Failure::from(error),
                BackupFailed::Write(error) => written(error),
            })?;
        }
    }
    let file = into.finish().map_err(written)?;
    file.sync_all().map_err(written)?;
    // Read back before it takes the place of an older one that is whole.
    let backup = read(partial)?;
    fs::rename(partial, to).map_err(written)?;
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Failure::file(format!("cannot sync {}: {e}", folder.display())))?;
    Ok(backup)
}

/// A store that nobody uses meanwhile, and what is in it.
pub async fn closed(data: &Path) -> Result<(Store, Backup), Failure> {
    // Opening would make one.
    let file = data.join("store.redb");
    if let Err(error) = fs::metadata(&file) {
        return Err(Failure::file(match error.kind() {
            io::ErrorKind::NotFound => format!("{} holds no store", data.display()),
            _ => format!("cannot look at {}: {error}", file.display()),
        }));
    }
    let store = Store::embedded(Config::at(data)).await;
    let store = store.map_err(|error| in_use(error, data))?;
    let backup = store.backup().await.map_err(Failure::from_error)?;
    Ok((store, backup))
}

pub fn in_use(error: Error, data: &Path) -> Failure {
    let is_used = matches!(error, Error::InUse { .. });
    let failure = Failure::from_error(error);
    match is_used {
        true => failure.hint(format!(
            "stop the control plane that uses {}, or leave --data out to ask it for a backup",
            data.display()
        )),
        false => failure,
    }
}

/// A backup file, all of it checked.
pub fn read(path: &Path) -> Result<Backup, Failure> {
    let mut progress = Progress::new("checked", "entries");
    let read = Backup::open(path, |done, all| progress.at(done, all));
    progress.end();
    read.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let cause = cause.unwrap_or_default();
        Failure::file(format!("{} can't be used: {error}{cause}", path.display()))
    })
}

/// As people read it.
pub fn described(backup: &Backup) -> String {
    format!(
        "{} entries, {} KiB",
        backup.entries.len(),
        backup.bytes().div_ceil(1024)
    )
}

/// Where the backup goes, behind links. What is there and is no backup stays: a device, a store, somebody's notes.
fn replaceable(file: &Path) -> Result<PathBuf, Failure> {
    let read =
        |error: io::Error| Failure::file(format!("cannot look at {}: {error}", file.display()));
    let found = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(file.to_owned()),
        found => found.map_err(read)?,
    };
    let is_replaceable = found.is_file() && {
        let mut begin = Vec::new();
        let there = File::open(file).map_err(read)?;
        let most = phalanx_store::backup::MAGIC.len() as u64;
        there.take(most).read_to_end(&mut begin).map_err(read)?;
        begin.is_empty() || begin == phalanx_store::backup::MAGIC
    };
    match is_replaceable {
        true => fs::canonicalize(file).map_err(read),
        false => Err(
            Failure::usage(format!("{} is there and is no backup", file.display()))
                .hint("choose another name"),
        ),
    }
}

/// In the same folder, because only there a rename is one step.
fn partial(file: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = file.file_name().filter(|_| !file.is_dir()) else {
        return Err(Failure::usage(format!("{} is no file", file.display())));
    };
    let mut partial = name.to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    Ok(file.with_file_name(partial))
}

/// Says now and then how much was written.
struct Counted {
    file: BufWriter<File>,
    bytes: u64,
    progress: Progress,
}

impl Counted {
    fn new(file: BufWriter<File>) -> Self {
        let progress = Progress::new("received", "KiB");
        Self {
            file,
            bytes: 0,
            progress,
        }
    }

    fn finish(self) -> io::Result<File> {
        self.progress.end();
        self.file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes += count as u64;
        self.progress.at(self.bytes / 1024, 0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
