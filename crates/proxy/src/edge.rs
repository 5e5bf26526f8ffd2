//! What a data plane at the edge has of its own: sockets that it opens as its Gateway says, and certificates from files. What
//! can't be opened or shown is refused with a reason, and asked about again.

pub mod tls_dir;

use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::resource::gateway::{ChainTls, GatewayPort};

pub use self::tls_dir::TlsDir;

/// Opens listening sockets on all workers.
pub trait Sockets: Send + Sync {
    /// One that is open stays as it is.
    ///
    /// # Errors
    /// A sentence for whoever wrote the Gateway.
    fn open(&self, address: SocketAddr) -> Result<(), String>;

    /// What was accepted there goes on.
    fn close(&self, address: SocketAddr);

    /// Where the process before listens and nothing is open here yet; none: there is no process that is to be replaced.
    fn left(&self) -> Option<Vec<SocketAddr>>;
}

pub struct Edge {
    sockets: Arc<dyn Sockets>,
    certificates: Arc<TlsDir>,
}

impl Edge {
    pub fn new(sockets: Arc<dyn Sockets>, certificates: Arc<TlsDir>) -> Arc<Self> {
        Arc::new(Self {
            sockets,
            certificates,
        })
    }

    pub fn certificates(&self) -> &Arc<TlsDir> {
        &self.certificates
    }

    /// Makes ready for a listener: nothing of it is open unless all of it can be served.
    ///
    /// # Errors
    /// A sentence that names the certificate or the address.
    pub fn open(&self, address: SocketAddr, port: &GatewayPort) -> Result<(), String> {
        for chain in &port.chains {
            if let ChainTls::Terminate(names) = &chain.tls {
                self.certificates.server(names)?;
            }
        }
        self.sockets.open(address)
    }

    pub fn close(&self, address: SocketAddr) {
        self.sockets.close(address);
    }

    /// As [`Sockets::left`].
    pub fn left(&self) -> Option<Vec<SocketAddr>> {
        self.sockets.left()
    }
}
