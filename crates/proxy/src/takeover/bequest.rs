//! What a process that serves datagrams leaves to the next beside its listeners: its sockets, and who used which. A connection
//! ends where it began; a session of datagrams never ends by itself, and its endpoint knows it by the socket's port.
//!
//! After `draining`: `bequests` with their sizes, and for each the bytes and then the descriptors. Those who don't know of
//! it don't offer it, and are not given any.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::FromHolder;
use super::parley::Parley;

/// Of one core.
#[derive(Debug)]
pub struct Bequest {
    pub core: usize,
    /// In its owner's words.
    pub told: Vec<u8>,
    /// In the order that `told` names them.
    pub files: Vec<OwnedFd>,
}

/// A [`Bequest`] that is about to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    pub core: usize,
    pub bytes: usize,
    pub files: usize,
}

/// Who has something to leave.
pub trait Testator: Send + Sync {
    /// Stops serving it, all at once.
    fn bequeath(&self) -> Pin<Box<dyn Future<Output = Vec<Bequest>> + Send + '_>>;
}

/// The conversation with a process that has said that it drains and has more to say.
#[derive(Debug)]
pub struct Legacy(pub(super) Parley);

impl Legacy {
    /// # Errors
    /// When the other side breaks off, hangs, or gives too much.
    pub async fn take(mut self) -> io::Result<Vec<Bequest>> {
        let sizes = match self.0.hear_within(LEGACY_MAX).await? {
            FromHolder::Bequests(sizes) => sizes,
            said => {
                let told = format!("{said:?} instead of bequests");
                return Err(io::Error::new(ErrorKind::InvalidData, told));
            }
        };
        let (bytes, files) = sizes
            .iter()
            .fold((0_usize, 0_usize), |(bytes, files), next| {
                (
                    bytes.saturating_add(next.bytes),
                    files.saturating_add(next.files),
                )
            });
        if bytes > BYTES_MAX || files > FILES_MAX {
            let told = format!("bequests of {bytes} bytes and {files} descriptors");
            return Err(io::Error::new(ErrorKind::InvalidData, told));
        }
        let mut bequests = Vec::with_capacity(sizes.len());
        for Sizes { core, bytes, files } in sizes {
            let come = async {
                let told = self.0.take_bytes(bytes).await?;
                Ok::<_, io::Error>((told, self.0.take(files).await?))
            };
            let (told, files) = timeout(LEGACY_MAX, come).await??;
            bequests.push(Bequest { core, told, files });
        }
        Ok(bequests)
    }
}

/// # Errors
/// When the heir breaks off or hangs.
pub(super) async fn give(heir: &mut Parley, bequests: Vec<Bequest>) -> io::Result<()> {
    let given = async {
        let sizes = bequests.iter().map(|bequest| Sizes {
            core: bequest.core,
            bytes: bequest.told.len(),
            files: bequest.files.len(),
        });
        heir.say(&FromHolder::Bequests(sizes.collect())).await?;
        for bequest in &bequests {
            heir.give_bytes(&bequest.told).await?;
            let files: Vec<BorrowedFd<'_>> = bequest.files.iter().map(AsFd::as_fd).collect();
            heir.give(&files).await?;
        }
        Ok(())
    };
    timeout(LEGACY_MAX, given).await?
}

/// For each step: datagrams wait in the system meanwhile, which keeps few.
const LEGACY_MAX: Duration = Duration::from_secs(5);
/// A million sessions are a quarter of it.
const BYTES_MAX: usize = 512 << 20;
const FILES_MAX: usize = 65_536;
