//! What a process that serves datagrams leaves to the next beside its listeners: its sockets, and who used which. A connection
//! ends where it began; a session of datagrams never ends by itself, and its endpoint knows it by the socket's port.
//!
//! After `draining`, and when the heir says `inherit`: `bequests` with their sizes, and for each the bytes and then the
//! descriptors. Those who don't know of it don't offer it, and are not given any.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::parley::Parley;
use super::{FromHeir, FromHolder};

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
    /// All that come whole.
    ///
    /// # Errors
    /// When the other side breaks off or hangs before the first, or is about to give too much.
    pub async fn take(mut self) -> io::Result<Vec<Bequest>> {
        self.0.say(&FromHeir::Inherit).await?;
        let wrong = |told: String| io::Error::new(ErrorKind::InvalidData, told);
        let sizes = match self.0.hear_within(LEGACY_MAX).await? {
            FromHolder::Bequests(sizes) => sizes,
            said => return Err(wrong(format!("{said:?} instead of bequests"))),
        };
        let bytes = sizes.iter().map(|next| next.bytes);
        let bytes = bytes.fold(0, usize::saturating_add);
        let files = sizes.iter().map(|next| next.files);
        let files = files.fold(0, usize::saturating_add);
        if bytes > BYTES_MAX || files > FILES_MAX {
            let told = format!("bequests of {bytes} bytes and {files} descriptors");
            return Err(wrong(told));
        }
        let mut bequests = Vec::new();
        for Sizes { core, bytes, files } in sizes {
            let come = async {
                let told = self.0.take_bytes(bytes).await?;
                Ok::<_, io::Error>((told, self.0.take(files).await?))
            };
            match timeout(LEGACY_MAX, come).await {
                Ok(Ok((told, files))) => bequests.push(Bequest { core, told, files }),
                Ok(Err(error)) if bequests.is_empty() => return Err(error),
                Err(late) if bequests.is_empty() => return Err(late.into()),
                _ => break,
            }
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
const LEGACY_MAX: Duration = Duration::from_secs(8);
/// A million sessions are a quarter of it.
const BYTES_MAX: usize = 512 << 20;
const FILES_MAX: usize = 65_536;
