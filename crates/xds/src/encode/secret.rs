//! Secrets over SDS: a certificate with its key and staple, and whom to trust. Their bytes hold a private key: they go to the
//! one stream that they were made for, and are neither stored nor logged.

use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use prost::Message;

use super::tls::{OWN, ROOTS};
use crate::kind::Kind;
use crate::snapshot::Encoded;

/// `staple`: an OCSP response in DER; empty: none.
pub fn own(chain_pem: &str, key_pem: &str, staple: &[u8]) -> Encoded {
    let staple = (!staple.is_empty()).then(|| inline(staple));
    let certificate = tls_v3::TlsCertificate {
        certificate_chain: Some(inline(chain_pem.as_bytes())),
        private_key: Some(inline(key_pem.as_bytes())),
        ocsp_staple: staple,
        ..Default::default()
    };
    secret(OWN, tls_v3::secret::Type::TlsCertificate(certificate))
}

/// `crl_pem`: of every issuer below the roots, or empty. Envoy asks for the list of each certificate in a chain if there are
/// any, so only leaves are looked up.
pub fn roots(roots_pem: &str, crl_pem: &str) -> Encoded {
    let context = tls_v3::CertificateValidationContext {
        trusted_ca: Some(inline(roots_pem.as_bytes())),
        crl: (!crl_pem.is_empty()).then(|| inline(crl_pem.as_bytes())),
        only_verify_leaf_cert_crl: !crl_pem.is_empty(),
        ..Default::default()
    };
    secret(ROOTS, tls_v3::secret::Type::ValidationContext(context))
}

fn secret(name: &str, r#type: tls_v3::secret::Type) -> Encoded {
    let message = tls_v3::Secret {
        name: name.to_owned(),
        r#type: Some(r#type),
    };
    Encoded::new(
        Kind::Secret,
        name,
        message.encode_to_vec().into(),
        Vec::new(),
    )
}

fn inline(bytes: &[u8]) -> core_v3::DataSource {
    core_v3::DataSource {
        specifier: Some(core_v3::data_source::Specifier::InlineBytes(bytes.to_vec())),
        ..Default::default()
    }
}
