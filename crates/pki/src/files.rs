//! Files at rest: private ones are 0600 and read only if nobody else could have, every write is atomic and durable, and a
//! set of files that belong together changes as one. Nothing here knows what the bytes mean.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest file that is read: a bundle of certificates, a key, a token.
pub const FILE_MAX: u64 = 1024 * 1024;
/// Mode of what only its owner may read.
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// How old a set is that nobody is writing any more.
const ABANDONED: Duration = Duration::from_secs(600);
/// The link through which readers of a set see it, as Kubernetes' mounted secrets have it.
const DATA: &str = "..data";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// 0600
    Private,
    /// 0644
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => PRIVATE,
            Self::Public => PUBLIC,
        }
    }
}

/// Reads at most [`FILE_MAX`] bytes. A private file that its group or others could read or write is refused.
///
/// # Errors
/// [`FileError`] with the path.
pub fn read(path: &Path, access: Access) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if access == Access::Private && meta.mode() & 0o077 != 0 {
        return Err(FileError::Open {
            path: path.to_owned(),
            mode: meta.mode() & 0o777,
        });
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// Makes a directory (and those above it) that only its owner may enter. One that is there and that others may write to is
/// refused: they could put files of theirs in the place of ours.
///
/// # Errors
/// [`FileError::Write`], [`FileError::Shared`]
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let meta = made.and_then(|()| fs::metadata(path));
    let meta = meta.map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })?;
    if meta.mode() & 0o022 != 0 {
        return Err(FileError::Shared {
            path: path.to_owned(),
            mode: meta.mode() & 0o777,
        });
    }
    Ok(())
}

/// Writes a temporary file beside the target, syncs it, renames it over the target and syncs the directory: a reader sees
/// the old bytes or the new ones, and a crash leaves one of the two.
///
/// # Errors
/// [`FileError::Write`]; the target is then unchanged.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    let failed = |source| FileError::Write {
        path: path.to_owned(),
        source,
    };
    let temp = beside(path, "tmp");
    let done = write_new(&temp, bytes, access)
        .and_then(|()| fs::rename(&temp, path))
        .and_then(|()| sync_dir(path.parent()));
    if done.is_err() {
        let _ = fs::remove_file(&temp);
    }
    done.map_err(failed)
}

/// Replaces several files of a directory as one: they are written into a directory of their own, and one rename of the link
/// `..data` shows all of them at once. Readers open `dir/<name>`.
///
/// # Errors
/// [`FileError::Write`]; readers then see the old set.
pub fn write_set(dir: &Path, files: &[(&str, &[u8], Access)]) -> Result<(), FileError> {
    let failed = |source| FileError::Write {
        path: dir.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(failed)?;
    let link = dir.join(DATA);
    let old = fs::read_link(&link).ok();
    let fresh = fresh_name();
    let made = fill_set(dir, &fresh, files).and_then(|()| {
        let temp = dir.join(format!("{DATA}_tmp"));
        let _ = fs::remove_file(&temp);
        symlink(&fresh, &temp)?;
        fs::rename(&temp, &link)
    });
    if let Err(source) = made {
        let _ = fs::remove_dir_all(dir.join(&fresh));
        return Err(failed(source));
    }
    for (name, _, _) in files {
        show(dir, name).map_err(failed)?;
    }
    sync_dir(Some(dir)).map_err(failed)?;
    if let Some(old) = old.filter(|old| is_set_name(old)) {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    sweep(dir, Path::new(&fresh));
    Ok(())
}

/// Removes sets that a writer left behind which was killed: there are keys in them. One that is being written is young.
fn sweep(dir: &Path, current: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = Path::new(&name);
        let age = entry.metadata().and_then(|m| m.modified()).ok();
        let age = age.and_then(|at| at.elapsed().ok());
        if is_set_name(name) && name != current && age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn fill_set(dir: &Path, fresh: &str, files: &[(&str, &[u8], Access)]) -> io::Result<()> {
    let folder = dir.join(fresh);
    DirBuilder::new().mode(0o755).create(&folder)?;
    for (name, bytes, access) in files {
        write_new(&folder.join(name), bytes, *access)?;
    }
    sync_dir(Some(&folder))
}

/// `dir/<name>` → `..data/<name>`
fn show(dir: &Path, name: &str) -> io::Result<()> {
    let (path, target) = (dir.join(name), Path::new(DATA).join(name));
    if fs::read_link(&path).is_ok_and(|at| at == target) {
        return Ok(());
    }
    let temp = beside(&path, "lnk");
    let _ = fs::remove_file(&temp);
    symlink(&target, &temp)?;
    fs::rename(&temp, &path)
}

fn write_new(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(dir: Option<&Path>) -> io::Result<()> {
    let dir = dir
        .filter(|d| !d.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn beside(path: &Path, kind: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{kind}{}", fresh_name()))
}

/// A name that no other write uses: two processes may write the same file.
fn fresh_name() -> String {
    let mut random = [0u8; 8];
    // Without randomness a second writer at the same time would be refused by create_new, not mixed in.
    let _ = aws_lc_rs::rand::fill(&mut random);
    format!("..{:016x}", u64::from_le_bytes(random))
}

fn is_set_name(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.len() == 18
        && text.starts_with("..")
        && text.bytes().skip(2).all(|b| b.is_ascii_hexdigit())
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has mode {mode:o}, so others can read the secret in it (chmod 600)", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("the directory {} has mode {mode:o}, so others can put files of theirs in it (chmod go-w)", path.display())]
    Shared { path: PathBuf, mode: u32 },
    #[error("{} is larger than {FILE_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_file_is_0600_and_a_wider_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write(&path, b"secret", Access::Private).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path, Access::Private).unwrap(), b"secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = read(&path, Access::Private).unwrap_err();
        assert!(refused.to_string().contains("mode 640"), "{refused}");
    }

    #[test]
    fn a_private_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        for (mode, is_taken) in [(0o755, true), (0o777, false), (0o770, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(private_dir(&path).is_ok(), is_taken, "{mode:o}");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), b"").unwrap();
        assert!(write(&path, b"new", Access::Public).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_set_changes_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let set = |v: &'static str| {
            [
                ("cert.pem", v.as_bytes(), Access::Public),
                ("key.pem", v.as_bytes(), Access::Private),
            ]
        };
        for version in ["one", "two", "three"] {
            write_set(dir.path(), &set(version)).unwrap();
            let both =
                ["cert.pem", "key.pem"].map(|n| fs::read_to_string(dir.path().join(n)).unwrap());
            assert_eq!(both, [version, version]);
        }
        // ..data, one set behind it, two links.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        assert_eq!(
            read(&dir.path().join("key.pem"), Access::Private).unwrap(),
            b"three"
        );
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_later() {
        let dir = tempfile::tempdir().unwrap();
        let orphan = |name: &str, age: Duration| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("key.pem"), b"secret").unwrap();
            let at = std::time::SystemTime::now() - age;
            File::open(&path).unwrap().set_modified(at).unwrap();
            path
        };
        let old = orphan("..00112233445566aa", 2 * ABANDONED);
        let young = orphan("..00112233445566bb", Duration::ZERO);
        let foreign = orphan("..data_of_others", 2 * ABANDONED);
        write_set(dir.path(), &[("key.pem", b"new", Access::Private)]).unwrap();
        assert!(!old.exists() && young.exists() && foreign.exists());
    }

    #[test]
    fn a_huge_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        File::create(&path).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert!(matches!(
            read(&path, Access::Public),
            Err(FileError::TooLarge { .. })
        ));
    }
}
