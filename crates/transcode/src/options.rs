//! What a policy may say of transcoding, by Envoy's names. The defaults are Envoy's; what a manifest leaves out is filled in
//! there.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Methods without an annotation are `POST /<package>.<Service>/<Method>` with the whole message as body.
    pub auto_mapping: bool,
    /// The route of the HTTP request holds for the call too; otherwise one is chosen anew, by the call's path.
    pub match_incoming_request_route: bool,
    pub ignore_unknown_query_parameters: bool,
    pub ignored_query_parameters: Vec<String>,
    /// A failed call is answered with `google.rpc.Status` as JSON.
    pub convert_grpc_status: bool,
    pub case_insensitive_enum_parsing: bool,
    /// `+` in a query stands for a blank.
    pub query_param_unescape_plus: bool,
    pub print: Print,
    pub validation: Validation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Print {
    pub add_whitespace: bool,
    pub always_print_primitive_fields: bool,
    pub always_print_enums_as_ints: bool,
    pub preserve_proto_field_names: bool,
    /// A stream is one JSON text per line, not an array.
    pub stream_newline_delimited: bool,
    /// A stream is server-sent events, whatever is asked for.
    pub stream_sse_style_delimited: bool,
}

/// What is refused instead of passed on as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    pub reject_unknown_method: bool,
    pub reject_unknown_query_parameters: bool,
    /// The body says of a field something else than path or query.
    pub reject_binding_body_field_collisions: bool,
}
