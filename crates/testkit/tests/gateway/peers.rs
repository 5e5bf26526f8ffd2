//! Who talks raw TCP and TLS through an edge: applications that send everything back, and clients that trust one certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Clone)]
pub struct Tls(Arc<RootCertStore>);

impl Tls {
    pub fn trusting(certificate: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        Ok(Self(Arc::new(roots)))
    }

    pub async fn connect(
        &self,
        to: SocketAddr,
        name: &'static str,
        alpn: &[&[u8]],
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(provider());
        let config = config.with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(Arc::clone(&self.0));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(to).await.context("no connection")?;
        let name = ServerName::try_from(name)?;
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect(name, stream)
            .await
            .context("no handshake")
    }
}

/// How a client begins who asks for that name.
pub fn hello(name: ServerName<'static>) -> anyhow::Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(provider());
    let config = config.with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(RootCertStore::empty());
    let config = Arc::new(config.with_no_client_auth());
    let mut bytes = Vec::new();
    ClientConnection::new(config, name)?.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// An application that echoes bytes.
pub async fn parrot(at: SocketAddr) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(at).await?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    }))
}

/// The same in TLS that it ends itself, with the key beside its certificate.
pub async fn tls_parrot(at: SocketAddr, certificate: &Path) -> anyhow::Result<JoinHandle<()>> {
    let chain = vec![CertificateDer::from_pem_file(certificate)?];
    let key = PrivateKeyDer::from_pem_file(certificate.with_file_name("tls.key"))?;
    let config = ServerConfig::builder_with_provider(provider());
    let config = config.with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(at).await?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    }))
}
