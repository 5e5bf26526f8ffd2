//! gRPC for callers who speak JSON, as [`crate::encode`] writes it. Descriptors are compiled here: what can't be is refused.

use std::sync::Arc;

use phalanx_model::resource::transcode::{Options, Print, Transcoding, Validation};
use phalanx_proto::envoy::config::route::v3::FilterConfig;
use phalanx_proto::envoy::extensions::filters::http::grpc_json_transcoder::v3::{
    GrpcJsonTranscoder, grpc_json_transcoder as transcoder_v3,
};
use prost::Name;

use super::super::DecodeError;
use super::super::field::{At, refuse, unpack};
use crate::encode::routes::transcode::BODY_MAX;

/// What a route or table says.
pub(super) enum Said {
    Nothing,
    /// None holds, whatever the table says.
    Off,
    On(Arc<Transcoding>),
}

pub(super) fn said(at: &At<'_>, config: &prost_types::Any) -> Result<Said, DecodeError> {
    if config.type_url.rsplit('/').next() == Some(FilterConfig::full_name().as_str()) {
        let FilterConfig {
            config,
            is_optional: _,
            disabled,
        } = unpack(at, config)?;
        return match config.is_none() && disabled {
            true => Ok(Said::Off),
            false => Err(at.invalid("a filter's config here only disables it")),
        };
    }
    Ok(Said::On(Arc::new(transcoding(at, unpack(at, config)?)?)))
}

fn transcoding(at: &At<'_>, message: GrpcJsonTranscoder) -> Result<Transcoding, DecodeError> {
    let GrpcJsonTranscoder {
        services,
        print_options,
        match_incoming_request_route,
        ignored_query_parameters,
        auto_mapping,
        ignore_unknown_query_parameters,
        convert_grpc_status,
        url_unescape_spec,
        query_param_unescape_plus,
        match_unregistered_custom_verb,
        request_validation_options,
        case_insensitive_enum_parsing,
        max_request_body_size,
        max_response_body_size,
        capture_unknown_query_parameters,
        descriptor_set,
    } = message;
    refuse!(at; url_unescape_spec, match_unregistered_custom_verb, capture_unknown_query_parameters);
    for (name, max) in [
        ("max_request_body_size", max_request_body_size),
        ("max_response_body_size", max_response_body_size),
    ] {
        if max.is_some_and(|max| max != BODY_MAX) {
            return Err(at.field(name).invalid(format!("must be {BODY_MAX}")));
        }
    }
    let descriptors = match descriptor_set {
        Some(transcoder_v3::DescriptorSet::ProtoDescriptorBin(set)) => set,
        Some(transcoder_v3::DescriptorSet::ProtoDescriptor(_)) => {
            return Err(at.field("proto_descriptor").unsupported());
        }
        None => return Err(at.field("descriptor_set").missing()),
    };
    let print = print_options.unwrap_or_default();
    let validation = request_validation_options.unwrap_or_default();
    let options = Options {
        auto_mapping,
        match_incoming_request_route,
        ignore_unknown_query_parameters,
        ignored_query_parameters,
        convert_grpc_status,
        case_insensitive_enum_parsing,
        query_param_unescape_plus,
        print: Print {
            add_whitespace: print.add_whitespace,
            always_print_primitive_fields: print.always_print_primitive_fields,
            always_print_enums_as_ints: print.always_print_enums_as_ints,
            preserve_proto_field_names: print.preserve_proto_field_names,
            stream_newline_delimited: print.stream_newline_delimited,
            stream_sse_style_delimited: print.stream_sse_style_delimited,
        },
        validation: Validation {
            reject_unknown_method: validation.reject_unknown_method,
            reject_unknown_query_parameters: validation.reject_unknown_query_parameters,
            reject_binding_body_field_collisions: validation.reject_binding_body_field_collisions,
        },
    };
    Transcoding::try_new(descriptors, services, options).map_err(|problems| {
        let first = problems.first().map(ToString::to_string);
        at.invalid(first.unwrap_or_default())
    })
}
