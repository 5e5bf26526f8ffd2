//! `hedging` of a BackendPolicy. What would hedge nothing is refused.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::report::quoted;
use crate::resource::{HEDGES_MAX, Hedging};

const METHODS_MAX: usize = 64;
const METHOD_LEN_MAX: usize = 256;
const DELAY_MIN: Duration = Duration::from_millis(1);
const DELAY_MAX: Duration = Duration::from_secs(60);

pub(super) fn hedging(fields: &mut Fields<'_>) -> Option<Hedging> {
    let delay = fields
        .need("delay")
        .and_then(|at| at.go_duration(DELAY_MIN, DELAY_MAX));
    let extra_max = fields.number("maxExtra", 1..=HEDGES_MAX, 1);
    let mut grpc = Vec::new();
    for at in fields.list("grpcMethods", METHODS_MAX) {
        let Some(path) = method(&at) else { continue };
        if grpc.contains(&path) {
            at.refuse::<()>("the method stands twice in this list");
        }
        grpc.push(path);
    }
    Some(Hedging {
        delay: delay?,
        extra_max,
        grpc,
    })
}

/// `<service>/<method>` or `<service>/*`, as a path.
fn method(at: &At<'_>) -> Option<String> {
    let text = at.bounded(METHOD_LEN_MAX)?;
    let is_name = |text: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && text.starts_with(|c: char| !c.is_ascii_digit())
    };
    let is_service = |text: &str| text.split('.').all(is_name);
    match text.split_once('/') {
        Some((service, "*")) if is_service(service) => Some(format!("/{service}/")),
        Some((service, method)) if is_service(service) && is_name(method) => {
            Some(format!("/{service}/{method}"))
        }
        _ => at.refuse_with(
            format!("{} is no gRPC method", quoted(text)),
            "`package.Service/Method`, or `package.Service/*` for all of them",
        ),
    }
}
