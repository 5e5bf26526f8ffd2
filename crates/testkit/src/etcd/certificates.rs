//! An authority of a test's own, and what it signs: for a server on loopback, and for its clients. Files in PEM.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A name that the server's certificate is for, beside its address.
pub const NAME: &str = "etcd.test";

/// Paths; the folder is whoever's who asked for them.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    /// Chain and key.
    pub server: (PathBuf, PathBuf),
    pub client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes them in a folder, the server's for [`NAME`] and an address.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn make(folder: &Path, address: IpAddr) -> anyhow::Result<Certificates> {
        std::fs::create_dir_all(folder)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of a test");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);

        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        let sign = |name: &str, names: Vec<SanType>| -> anyhow::Result<(PathBuf, PathBuf)> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = names;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            // etcd calls itself with its own certificate, for its HTTP gateway.
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let key = KeyPair::generate()?;
            let chain = params.signed_by(&key, &issuer)?.pem();
            let paths = (
                folder.join(format!("{name}.pem")),
                folder.join(format!("{name}.key")),
            );
            std::fs::write(&paths.0, chain)?;
            std::fs::write(&paths.1, key.serialize_pem())?;
            Ok(paths)
        };
        let names = vec![
            SanType::DnsName(NAME.try_into()?),
            SanType::IpAddress(address),
        ];
        Ok(Certificates {
            ca,
            server: sign("server", names)?,
            client: sign("client", Vec::new())?,
        })
    }
}
