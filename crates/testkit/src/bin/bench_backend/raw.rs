//! HTTP as bytes, as far as idle and hostile peers speak it, with or without TLS under it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// One request, and its answer to the end.
pub async fn get_http1(wire: &mut dyn Wire) -> anyhow::Result<()> {
    wire.write_all(b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n")
        .await?;
    let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let read = wire.read(&mut chunk).await?;
        ensure!(read > 0, "closed before the answer's end");
        got.extend_from_slice(&chunk[..read]);
        let Some(head) = got.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&got[..head]).to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "answered: {text}");
        let length = text.lines().find_map(|l| l.strip_prefix("content-length:"));
        let length: usize = length.context("no length")?.trim().parse()?;
        if got.len() >= head + 4 + length {
            return Ok(());
        }
    }
}

/// The same in HTTP/2, on a new connection.
pub async fn get_http2(wire: &mut dyn Wire) -> anyhow::Result<()> {
    let mut hello = HELLO.to_vec();
    request(1, &mut hello);
    wire.write_all(&hello).await?;
    loop {
        let mut head = [0; 9];
        wire.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        wire.read_exact(&mut payload).await?;
        let (kind, flags, stream) = (head[3], head[4], &head[5..]);
        match kind {
            SETTINGS if flags & ACK == 0 => {
                wire.write_all(&[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0])
                    .await?;
            }
            RST_STREAM | GOAWAY => bail!("told to go away"),
            // `:status: 200` has an index of its own.
            HEADERS if stream == [0, 0, 0, 1] && flags & END_STREAM == 0 => {
                ensure!(payload.contains(&0x88), "not answered with 200");
            }
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && stream == [0, 0, 0, 1] && flags & END_STREAM != 0 {
            return Ok(());
        }
    }
}

/// A complete `POST /bench.Bench/Call` on a stream.
pub fn request(stream: u32, out: &mut Vec<u8>) {
    let mut block = vec![0x83, 0x86]; // POST, http
    let path = b"/bench.Bench/Call";
    block.extend([0x04, path.len() as u8]);
    block.extend(path);
    block.extend(b"\x01\x07backend");
    block.extend(b"\x0f\x10\x10application/grpc");
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block, out);
}

pub fn reset(stream: u32, out: &mut Vec<u8>) {
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    frame(RST_STREAM, 0, stream, &CANCEL, out);
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// With the certificate and key of these files, or with none; whoever is at the other end is fine.
pub fn tls(alpn: &str, pem: Option<(&Path, &Path)>) -> anyhow::Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match pem {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<_, _>>()?;
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Ok(Arc::new(config))
}

/// The proxies are measured, not whom they are.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The preface and empty settings.
pub const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
