//! The question to a responder.

use x509_cert::der::Encode;
use x509_ocsp::{OcspRequest, Request, TbsRequest};

use super::{IssuerIds, Subject};
use crate::x509::X509Error;

/// About one certificate, by SHA-1 ids, without a nonce: answers made ahead will do.
pub(crate) fn request(subject: &Subject<'_>) -> Result<Vec<u8>, X509Error> {
    let ids = IssuerIds::of(subject.issuer, subject.issuer_spki)?;
    let request = OcspRequest {
        tbs_request: TbsRequest {
            request_list: vec![Request {
                req_cert: ids.cert_id(subject.serial)?,
                single_request_extensions: None,
            }],
            ..TbsRequest::default()
        },
        optional_signature: None,
    };
    request.to_der().map_err(|_| X509Error::Encode)
}
