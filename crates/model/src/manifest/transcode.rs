//! TranscodingPolicy: gRPC services for callers who speak JSON. Descriptors are compiled here, so that whatever is wrong with
//! them is told with its place. What Envoy's grpc_json_transcoder has a name for has that name in camel case.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::backend::{TARGETS_MAX, targets};
use super::cursor::{At, Fields};
use crate::document::{Meta, TranscodingPolicy};
use crate::resource::transcode::{Options, Print, Problem, Transcoding, Validation};

const SERVICES_MAX: usize = 32;
const PARAMETERS_MAX: usize = 64;

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<TranscodingPolicy> {
    let mut fields = spec.fields()?;
    fields.later(&[
        "captureUnknownQueryParameters",
        "urlUnescapeSpec",
        "matchUnregisteredCustomVerb",
        "maxRequestBodySize",
        "maxResponseBodySize",
    ]);
    let targets = fields.need("targetRefs").map(|at| {
        let items = at.items(TARGETS_MAX);
        if items.is_empty() {
            at.refuse::<()>("an empty list of targets");
        }
        targets(&items, &meta)
    });
    let set = fields.need("descriptorSet");
    let descriptors = set.as_ref().and_then(descriptors);
    let services_at = fields.need("services");
    let items = services_at.iter().flat_map(|at| at.items(SERVICES_MAX));
    let services: Vec<String> = items.filter_map(|at| Some(at.text()?.to_owned())).collect();
    if let Some(at) = services_at.as_ref().filter(|_| services.is_empty()) {
        at.refuse::<()>("an empty list of services");
    }
    let options = options(&mut fields);
    let transcoding = match Transcoding::try_new(descriptors?, services, options) {
        Ok(transcoding) => transcoding,
        Err(problems) => {
            for problem in problems {
                let at = match problem {
                    Problem::NoService { .. } => services_at.as_ref(),
                    _ => set.as_ref(),
                };
                if let Some(at) = at {
                    at.refuse::<()>(problem.to_string());
                }
            }
            return None;
        }
    };
    Some(TranscodingPolicy {
        meta,
        targets: targets?,
        transcoding: Arc::new(transcoding),
    })
}

fn descriptors(at: &At<'_>) -> Option<Vec<u8>> {
    let mut fields = at.fields()?;
    if let Some(at) = fields.get("file") {
        return at.refuse_with(
            "a file is read by `phalanx apply` and `phalanx lint`, which write its bytes in its place",
            "write `descriptorSet: {file: PATH}`, or `inline` with the bytes in base64",
        );
    }
    if let Some(at) = fields.get("reflection") {
        return at.refuse_with(
            "a server is asked by `phalanx apply` and `phalanx lint`, which write its descriptors in its place",
            "write `descriptorSet: {reflection: HOST:PORT}`, or `inline` with the bytes in base64",
        );
    }
    let inline = fields.need("inline")?;
    match STANDARD.decode(inline.text()?) {
        Ok(bytes) => Some(bytes),
        Err(error) => inline.refuse(format!("no base64: {error}")),
    }
}

/// What isn't said is as it is safest: a request that is no call is refused, and not passed on.
fn options(fields: &mut Fields<'_>) -> Options {
    let ignored = fields.list("ignoredQueryParameters", PARAMETERS_MAX);
    let ignored = ignored.iter().filter_map(|at| Some(at.text()?.to_owned()));
    let ignored_query_parameters = ignored.collect();
    Options {
        auto_mapping: flag(fields, "autoMapping", false),
        match_incoming_request_route: flag(fields, "matchIncomingRequestRoute", true),
        ignore_unknown_query_parameters: flag(fields, "ignoreUnknownQueryParameters", false),
        ignored_query_parameters,
        convert_grpc_status: flag(fields, "convertGrpcStatus", true),
        case_insensitive_enum_parsing: flag(fields, "caseInsensitiveEnumParsing", false),
        query_param_unescape_plus: flag(fields, "queryParamUnescapePlus", true),
        print: print(fields.get("printOptions").and_then(|at| at.fields())),
        validation: validation(
            fields
                .get("requestValidationOptions")
                .and_then(|at| at.fields()),
        ),
    }
}

fn print(fields: Option<Fields<'_>>) -> Print {
    let mut fields = fields;
    let mut said = |key, default| match &mut fields {
        Some(fields) => flag(fields, key, default),
        None => default,
    };
    Print {
        add_whitespace: said("addWhitespace", false),
        always_print_primitive_fields: said("alwaysPrintPrimitiveFields", false),
        always_print_enums_as_ints: said("alwaysPrintEnumsAsInts", false),
        preserve_proto_field_names: said("preserveProtoFieldNames", false),
        stream_newline_delimited: said("streamNewlineDelimited", true),
        stream_sse_style_delimited: said("streamSseStyleDelimited", false),
    }
}

fn validation(fields: Option<Fields<'_>>) -> Validation {
    let mut fields = fields;
    let mut said = |key| match &mut fields {
        Some(fields) => flag(fields, key, true),
        None => true,
    };
    Validation {
        reject_unknown_method: said("rejectUnknownMethod"),
        reject_unknown_query_parameters: said("rejectUnknownQueryParameters"),
        reject_binding_body_field_collisions: said("rejectBindingBodyFieldCollisions"),
    }
}

fn flag(fields: &mut Fields<'_>, key: &'static str, default: bool) -> bool {
    let said = fields.get(key).and_then(|at| at.boolean());
    said.unwrap_or(default)
}
