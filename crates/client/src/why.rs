//! Why a call failed, for people: the causes behind it, and what to do where that is known.

use std::error::Error;

use tonic::{Code, Status};

/// What a control plane says that takes no plain text, in the version of HTTP that it was spoken to in.
pub const SPEAKS_TLS: &str = "this port speaks TLS, plain text is not taken";
/// Whoever has yet to join knocks nowhere before.
pub const NO_CERTIFICATE: &str = "there is no certificate to show yet";
/// Of what is foreign, what is passed on.
const TEXT_MAX: usize = 500;

/// The message and its causes; the last says the most: of a handshake, for one, which certificate was not taken and why.
pub fn why(status: &Status) -> String {
    if is_plain_refused(status) {
        return PLAIN.to_owned();
    }
    let mut text = status.message().to_owned();
    for more in causes(status) {
        if !more.is_empty() && !text.contains(&more) {
            text = match text.is_empty() {
                true => more,
                false => format!("{text}: {more}"),
            };
        }
    }
    clip(&text)
}

/// Whether the control plane asks for an identity, and was spoken to without.
pub fn is_plain_refused(status: &Status) -> bool {
    // That HTTP/2 wants better security is what it says to plain text, with these words beside it.
    let is_said = |text: &str| text.contains(SPEAKS_TLS);
    status.code() == Code::PermissionDenied
        && (is_said(status.message()) || causes(status).any(|cause| is_said(&cause)))
}

/// Whether nothing is wrong: the certificate is on its way.
pub fn is_joining(status: &Status) -> bool {
    let is_said = |text: &str| text.contains(NO_CERTIFICATE);
    is_said(status.message()) || causes(status).any(|cause| is_said(&cause))
}

fn causes(status: &Status) -> impl Iterator<Item = String> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error.to_string())
    })
}

/// What of a foreign text is fit to be shown.
pub fn clip(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(TEXT_MAX).map(plain).collect()
}

const PLAIN: &str = "this control plane asks for an identity, and takes no plain text: start with --token-file FILE, which `phalanx cert token --service NAME --out FILE` writes, and --identity-dir DIR (or --cert-dir DIR)";
