//! Messages and descriptors over a Unix socket: JSON behind its length, and batches of descriptors beside one byte each.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[derive(Debug)]
pub struct Parley(UnixStream);

impl Parley {
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, message)?;
        let length = (bytes.len() - 4) as u32; // a few hundred bytes
        if let Some(head) = bytes.first_chunk_mut() {
            *head = length.to_be_bytes();
        }
        self.0.write_all(&bytes).await
    }

    /// The next message, however long it takes to come.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone, `InvalidData` when it said something else.
    pub async fn hear<M: DeserializeOwned>(&mut self) -> io::Result<M> {
        let length = self.0.read_u32().await? as usize;
        if length > MESSAGE_BYTES_MAX {
            let told = format!("a message of {length} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, told));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The next message, if it comes `within`.
    pub async fn hear_within<M: DeserializeOwned>(&mut self, within: Duration) -> io::Result<M> {
        match timeout(within, self.hear()).await {
            Ok(heard) => heard,
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    pub async fn give_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// As many as come: memory is taken when they do.
    pub async fn take_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut rest = (&mut self.0).take(count as u64);
        rest.read_to_end(&mut bytes).await?;
        match bytes.len() == count {
            true => Ok(bytes),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    pub async fn give(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        for batch in files.chunks(BATCH) {
            self.0
                .async_io(Interest::WRITABLE, || send_batch(&self.0, batch))
                .await?;
        }
        Ok(())
    }

    pub async fn take(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        while files.len() < count {
            let wanted = BATCH.min(count - files.len());
            let batch = self
                .0
                .async_io(Interest::READABLE, || receive_batch(&self.0))
                .await?;
            if batch.len() != wanted {
                let told = format!("{} descriptors of {wanted} came", batch.len());
                return Err(io::Error::new(ErrorKind::InvalidData, told));
            }
            files.extend(batch);
        }
        Ok(files)
    }
}

fn send_batch(stream: &UnixStream, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(batch)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    sendmsg(
        stream,
        &[IoSlice::new(b"f")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive_batch(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let messages = control.drain();
    Ok(messages
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect())
}

/// Descriptors beside one byte; the kernel takes 253.
const BATCH: usize = 64;
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
