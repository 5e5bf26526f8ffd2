//! gRPC for callers who speak JSON, in the words of Envoy's filter. A table says once what holds for most of its rules, since
//! descriptors may be large: rules that it does not hold for say so, and those for which another holds say that.

use std::ptr;

use phalanx_model::resource::transcode::{Options, Print, Validation};
use phalanx_model::resource::{Action, RouteTable, Transcoding};
use phalanx_proto::envoy::config::route::v3::FilterConfig;
use phalanx_proto::envoy::extensions::filters::http::grpc_json_transcoder::v3::{
    GrpcJsonTranscoder, grpc_json_transcoder as transcoder_v3,
};

use super::super::any;

pub(crate) const TRANSCODER_FILTER: &str = "envoy.filters.http.grpc_json_transcoder";

/// Of a message, as everywhere in the mesh.
pub(crate) const BODY_MAX: u32 = 4 * 1024 * 1024;

/// Does nothing but for routes that say so.
pub(crate) fn idle() -> GrpcJsonTranscoder {
    GrpcJsonTranscoder {
        descriptor_set: Some(transcoder_v3::DescriptorSet::ProtoDescriptorBin(Vec::new())),
        ..Default::default()
    }
}

fn of(action: &Action) -> Option<&Transcoding> {
    match action {
        Action::Forward(forward) => forward.transcoding.as_deref(),
        Action::Redirect(_) | Action::Respond(_) => None,
    }
}

/// What holds for most rules that have one.
pub(super) fn of_table(table: &RouteTable) -> Option<&Transcoding> {
    let mut counted: Vec<(&Transcoding, usize)> = Vec::new();
    let rules = table.hosts.iter().flat_map(|host| &host.rules);
    for transcoding in rules.filter_map(|rule| of(&rule.action)) {
        let same = |(known, _): &&mut (&Transcoding, usize)| *known == transcoding;
        match counted.iter_mut().find(same) {
            Some((_, count)) => *count += 1,
            None => counted.push((transcoding, 1)),
        }
    }
    // Of several the first.
    let most = counted.iter().map(|(_, count)| *count).max()?;
    let of_most = counted.into_iter().find(|(_, count)| *count == most);
    of_most.map(|(transcoding, _)| transcoding)
}

/// What a rule says where its table says something else.
pub(super) fn of_rule(
    action: &Action,
    of_table: Option<&Transcoding>,
) -> Option<(String, prost_types::Any)> {
    match (of(action), of_table) {
        (None, None) => None,
        (Some(rule), Some(table)) if ptr::eq(rule, table) || rule == table => None,
        (Some(rule), _) => Some(config(rule)),
        (None, Some(_)) => {
            let disabled = FilterConfig {
                disabled: true,
                ..Default::default()
            };
            Some((TRANSCODER_FILTER.to_owned(), any(&disabled)))
        }
    }
}

pub(super) fn config(transcoding: &Transcoding) -> (String, prost_types::Any) {
    let Options {
        auto_mapping,
        match_incoming_request_route,
        ignore_unknown_query_parameters,
        ignored_query_parameters,
        convert_grpc_status,
        case_insensitive_enum_parsing,
        query_param_unescape_plus,
        print,
        validation,
    } = transcoding.options().clone();
    let set = transcoding.descriptors().to_vec();
    let config = GrpcJsonTranscoder {
        descriptor_set: Some(transcoder_v3::DescriptorSet::ProtoDescriptorBin(set)),
        services: transcoding.services().to_vec(),
        print_options: Some(printed(print)),
        match_incoming_request_route,
        ignored_query_parameters,
        auto_mapping,
        ignore_unknown_query_parameters,
        convert_grpc_status,
        query_param_unescape_plus,
        request_validation_options: Some(validated(validation)),
        case_insensitive_enum_parsing,
        max_request_body_size: Some(BODY_MAX),
        max_response_body_size: Some(BODY_MAX),
        ..Default::default()
    };
    (TRANSCODER_FILTER.to_owned(), any(&config))
}

fn printed(print: Print) -> transcoder_v3::PrintOptions {
    transcoder_v3::PrintOptions {
        add_whitespace: print.add_whitespace,
        always_print_primitive_fields: print.always_print_primitive_fields,
        always_print_enums_as_ints: print.always_print_enums_as_ints,
        preserve_proto_field_names: print.preserve_proto_field_names,
        stream_newline_delimited: print.stream_newline_delimited,
        stream_sse_style_delimited: print.stream_sse_style_delimited,
    }
}

fn validated(validation: Validation) -> transcoder_v3::RequestValidationOptions {
    transcoder_v3::RequestValidationOptions {
        reject_unknown_method: validation.reject_unknown_method,
        reject_unknown_query_parameters: validation.reject_unknown_query_parameters,
        reject_binding_body_field_collisions: validation.reject_binding_body_field_collisions,
    }
}
