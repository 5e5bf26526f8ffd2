//! A gRPC client that costs as little as it can: HTTP/2 frames and length-prefixed messages, nothing between.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// One connection. Dropped, it is gone at once, without a goodbye.
pub struct Link {
    sender: SendRequest<Bytes>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .handshake(tcp)
            .await?;
        let task = tokio::spawn(async move {
            // The calls tell what became of it.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            task: task.abort_handle(),
        })
    }

    /// Opens a call; messages go both ways.
    pub async fn call(&self, path: &str) -> anyhow::Result<Call> {
        let request = http::Request::post(format!("http://control{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, send) = sender.send_request(request, false)?;
        Ok(Call {
            send,
            answers: Answers::Coming(response),
            buffer: BytesMut::new(),
        })
    }

    /// One question, one answer.
    pub async fn ask<A: Message + Default>(
        &self,
        path: &str,
        question: &impl Message,
    ) -> anyhow::Result<A> {
        let mut call = self.call(path).await?;
        call.send.send_data(frame(question), true)?;
        let answer = call.next().await?.context("no answer came")?;
        Ok(A::decode(answer)?)
    }
}

pub struct Call {
    send: SendStream<Bytes>,
    answers: Answers,
    buffer: BytesMut,
}

enum Answers {
    Coming(ResponseFuture),
    Here(RecvStream),
}

impl Call {
    pub fn send(&mut self, message: &impl Message) -> anyhow::Result<()> {
        Ok(self.send.send_data(frame(message), false)?)
    }

    /// None at the end of a call that went well.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        if let Answers::Coming(response) = &mut self.answers {
            let response = response.await?;
            if let Some(status) = response.headers().get("grpc-status").filter(|s| *s != "0") {
                let message = response.headers().get("grpc-message");
                bail!("refused with status {status:?}: {message:?}");
            }
            self.answers = Answers::Here(response.into_body());
        }
        let Answers::Here(body) = &mut self.answers else {
            bail!("the response is gone");
        };
        loop {
            if self.buffer.len() >= PREFIX {
                let length = u32::from_be_bytes([
                    self.buffer[1],
                    self.buffer[2],
                    self.buffer[3],
                    self.buffer[4],
                ]) as usize;
                if self.buffer.len() >= PREFIX + length {
                    self.buffer.advance(PREFIX);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
                self.buffer.reserve(PREFIX + length - self.buffer.len());
            }
            let Some(data) = body.data().await else {
                let trailers = body.trailers().await?;
                let status = trailers.as_ref().and_then(|t| t.get("grpc-status"));
                if let Some(status) = status.filter(|status| *status != "0") {
                    let message = trailers.as_ref().and_then(|t| t.get("grpc-message"));
                    bail!("ended with status {status:?}: {message:?}");
                }
                return Ok(None);
            };
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    bytes.put(message.encode_to_vec().as_slice());
    bytes.freeze()
}

const PREFIX: usize = 5;
const WINDOW: u32 = 4 << 20;
const FRAME: u32 = 64 << 10;
