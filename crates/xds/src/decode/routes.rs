//! Route tables: hosts, then each route's match, header edits and action. Clusters need not be known.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::reason::{REASON_HEADER, Reason};
use phalanx_model::resource::limit::{PRIORITY_HEADER, Priority};
use phalanx_model::resource::{
    Action, HeaderEdit, HeaderMatch, PathMatch, QueryMatch, RouteTable, Rule, RuleMatch,
    Transcoding, ValueMatch, VirtualHost,
};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;

use self::transcode::Said;
use super::DecodeError;
use super::field::{At, each, header_name, is_token, nonempty, refuse};
use crate::encode::routes::transcode::TRANSCODER_FILTER;

mod action;
mod beside;
mod transcode;

pub(super) fn resource(message: route_v3::RouteConfiguration) -> Result<RouteTable, DecodeError> {
    let at = At::Root("RouteConfiguration");
    let route_v3::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins: _, // orders edits of hosts and tables, of which there are none
        validate_clusters,
        max_direct_response_body_size_bytes: _, // there are no bodies
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = message;
    refuse!(at;
        vhds, internal_only_headers, response_headers_to_add, response_headers_to_remove, request_headers_to_add,
        request_headers_to_remove, cluster_specifier_plugins, request_mirror_policies, vhost_header, ignore_path_parameters_in_path_matching, route_specifiers,
    );
    if validate_clusters == Some(true) {
        return Err(at.field("validate_clusters").unsupported());
    }
    let of_table = of_table(&at, typed_per_filter_config)?;
    let table = RouteTable {
        name: nonempty(&at.field("name"), name)?,
        hosts: each(&at, "virtual_hosts", virtual_hosts, |at, of| {
            host(at, of, of_table.as_ref())
        })?,
    };
    if table.ignores_ports() != ignore_port_in_host_matching {
        let why = format!("must be {} for this table", table.ignores_ports());
        return Err(at.field("ignore_port_in_host_matching").invalid(why));
    }
    Ok(table)
}

#[expect(deprecated, reason = "every field is named")]
fn host(
    at: At<'_>,
    message: route_v3::VirtualHost,
    of_table: Option<&Arc<Transcoding>>,
) -> Result<VirtualHost, DecodeError> {
    let route_v3::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters: _, // Envoy's own statistics
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = message;
    refuse!(at;
        matcher, require_tls, rate_limits, request_headers_to_add, request_headers_to_remove,
        response_headers_to_add, response_headers_to_remove, cors, typed_per_filter_config,
        include_request_attempt_count, include_attempt_count_in_response, retry_policy, retry_policy_typed_config,
        hedge_policy, include_is_timeout_retry_header, per_request_buffer_limit_bytes, request_body_buffer_limit,
        request_mirror_policies, route_specifiers,
    );
    if domains.is_empty() {
        return Err(at.field("domains").missing());
    }
    Ok(VirtualHost {
        name: nonempty(&at.field("name"), name)?,
        domains: each(&at, "domains", domains, domain)?,
        rules: each(&at, "routes", routes, |at, of| rule(at, of, of_table))?,
    })
}

/// What holds for rules that say nothing else: of filters, only the transcoder is said there.
fn of_table(
    at: &At<'_>,
    configs: BTreeMap<String, prost_types::Any>,
) -> Result<Option<Arc<Transcoding>>, DecodeError> {
    let at = at.field("typed_per_filter_config");
    let mut of_table = None;
    for (name, config) in configs {
        if name != TRANSCODER_FILTER {
            return Err(at.invalid(format!("`{name}` is not supported by this sidecar")));
        }
        if let Said::On(transcoding) = transcode::said(&at, &config)? {
            of_table = Some(transcoding);
        }
    }
    Ok(of_table)
}

/// An authority, `*.suffix` or `*`; Envoy's `prefix.*` is not among them.
fn domain(at: At<'_>, domain: String) -> Result<String, DecodeError> {
    let rest = domain.strip_prefix('*').unwrap_or(&domain);
    if domain.is_empty() || rest.contains('*') {
        return Err(at.invalid(format!("`{domain}` is no authority, `*.suffix` or `*`")));
    }
    Ok(domain.to_ascii_lowercase())
}

#[expect(deprecated, reason = "every field is named")]
fn rule(
    at: At<'_>,
    message: route_v3::Route,
    of_table: Option<&Arc<Transcoding>>,
) -> Result<Rule, DecodeError> {
    use route_v3::route::Action as Sent;
    let route_v3::Route {
        name,
        r#match,
        metadata,
        decorator,
        mut typed_per_filter_config,
        mut request_headers_to_add,
        request_headers_to_remove,
        mut response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix: _, // Envoy's own statistics
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = message;
    refuse!(at;
        decorator, tracing, per_request_buffer_limit_bytes, request_body_buffer_limit, route_specifiers,
    );
    let priority = priority(&at, &mut request_headers_to_add)?;
    let said = match typed_per_filter_config.remove(TRANSCODER_FILTER) {
        Some(config) => transcode::said(&at.field("typed_per_filter_config"), &config)?,
        None => Said::Nothing,
    };
    let beside = beside::read(&at, typed_per_filter_config, metadata)?;
    let forwards = matches!(action, Some(Sent::Route(_)));
    if priority.is_some() && !forwards {
        let why = format!("`{PRIORITY_HEADER}` only of routes that forward");
        return Err(at.field("request_headers_to_add").invalid(why));
    }
    if !beside.is_empty() && !forwards {
        let why = "only of routes that forward";
        return Err(at.field("typed_per_filter_config").invalid(why));
    }
    let matches = route_match(
        at.field("match"),
        r#match.ok_or_else(|| at.field("match").missing())?,
    )?;
    let action = match action {
        Some(Sent::Route(to)) => {
            let at = at.field("route");
            let mut forward = action::forward(at, to, &matches, beside, priority)?;
            forward.transcoding = match said {
                Said::Nothing => of_table.cloned(),
                Said::Off => None,
                Said::On(transcoding) => Some(transcoding),
            };
            Action::Forward(forward)
        }
        Some(Sent::Redirect(to)) => {
            Action::Redirect(action::redirect(at.field("redirect"), to, &matches.path)?)
        }
        Some(Sent::DirectResponse(response)) => {
            Action::Respond(respond(at, response, &mut response_headers_to_add)?)
        }
        Some(Sent::FilterAction(_)) => return Err(at.field("filter_action").unsupported()),
        Some(Sent::NonForwardingAction(_)) => {
            return Err(at.field("non_forwarding_action").unsupported());
        }
        None => return Err(at.field("action").missing()),
    };
    Ok(Rule {
        name,
        matches,
        request_headers: edit(
            &at,
            REQUEST,
            request_headers_to_add,
            request_headers_to_remove,
        )?,
        response_headers: edit(
            &at,
            RESPONSE,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        action,
    })
}

/// A rule's word on urgency is the one header that is set only where it is absent.
fn priority(
    at: &At<'_>,
    headers: &mut Vec<core_v3::HeaderValueOption>,
) -> Result<Option<Priority>, DecodeError> {
    let absent = i32::from(HeaderAppendAction::AddIfAbsent);
    let is_word = |option: &core_v3::HeaderValueOption| {
        let header = option.header.as_ref();
        option.append_action == absent && header.is_some_and(|of| of.key == PRIORITY_HEADER)
    };
    let Some(index) = headers.iter().position(is_word) else {
        return Ok(None);
    };
    let value = headers.remove(index).header.unwrap_or_default().value;
    let priority = Priority::parse(value.as_bytes());
    let wrong = || {
        at.item("request_headers_to_add", index)
            .invalid(format!("`{value}` is no priority"))
    };
    priority.map(Some).ok_or_else(wrong)
}

/// A direct response is one of our reasons, told by the header that it sets first.
fn respond(
    at: At<'_>,
    response: route_v3::DirectResponseAction,
    headers: &mut Vec<core_v3::HeaderValueOption>,
) -> Result<Reason, DecodeError> {
    let first = headers.first().and_then(|option| option.header.as_ref());
    let reason = first
        .filter(|header| header.key == REASON_HEADER)
        .and_then(|header| Reason::parse(&header.value));
    let Some(reason) = reason else {
        return Err(at.field("direct_response").invalid(format!(
            "must set `{REASON_HEADER}` first, to a known reason"
        )));
    };
    headers.remove(0);
    let at = at.field("direct_response");
    let route_v3::DirectResponseAction {
        status,
        body,
        body_format,
    } = response;
    refuse!(at; body, body_format);
    if status != u32::from(reason.http_status()) {
        return Err(at
            .field("status")
            .invalid(format!("must be {} for `{reason}`", reason.http_status())));
    }
    Ok(reason)
}

fn route_match(at: At<'_>, message: route_v3::RouteMatch) -> Result<RuleMatch, DecodeError> {
    use route_v3::route_match::PathSpecifier;
    let route_v3::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = message;
    refuse!(at; runtime_fraction, cookies, tls_context, dynamic_metadata, filter_state);
    if case_sensitive == Some(false) {
        return Err(at.field("case_sensitive").unsupported());
    }
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathMatch::Prefix(prefix),
        Some(PathSpecifier::Prefix(prefix)) => {
            let why = format!(
                "`{prefix}` would match within a segment; only `/`, or path_separated_prefix"
            );
            return Err(at.field("prefix").invalid(why));
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') {
                return Err(at
                    .field("path_separated_prefix")
                    .invalid("must start, and not end, with `/`"));
            }
            PathMatch::Prefix(prefix)
        }
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path),
        Some(PathSpecifier::SafeRegex(pattern)) => {
            PathMatch::Regex(regex(at.field("safe_regex"), pattern)?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            return Err(at.field("connect_matcher").unsupported());
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(at.field("path_match_policy").unsupported());
        }
        None => return Err(at.field("path_specifier").missing()),
    };
    let mut method = None;
    let mut matches = Vec::with_capacity(headers.len());
    for (index, matcher) in headers.into_iter().enumerate() {
        let at = at.item("headers", index);
        if matcher.name == ":method" {
            if method.replace(method_match(at, matcher)?).is_some() {
                return Err(at.invalid("a second match of `:method`"));
            }
        } else {
            matches.push(header_match(at, matcher)?);
        }
    }
    Ok(RuleMatch {
        path,
        method,
        headers: matches,
        query: each(&at, "query_parameters", query_parameters, query_match)?,
        grpc: grpc.is_some(),
    })
}

fn method_match(at: At<'_>, matcher: route_v3::HeaderMatcher) -> Result<String, DecodeError> {
    match header_value(at, matcher)? {
        ValueMatch::Exact(method) if is_token(&method) => Ok(method),
        ValueMatch::Exact(_) => Err(at.invalid("`:method` must be a token")),
        ValueMatch::Regex(_) => {
            Err(at.invalid("`:method` can only be matched exactly by this sidecar"))
        }
    }
}

fn header_match(at: At<'_>, matcher: route_v3::HeaderMatcher) -> Result<HeaderMatch, DecodeError> {
    let name = header_name(&at.field("name"), &matcher.name)?;
    Ok(HeaderMatch {
        name,
        value: header_value(at, matcher)?,
    })
}

pub(super) fn header_value(
    at: At<'_>,
    matcher: route_v3::HeaderMatcher,
) -> Result<ValueMatch, DecodeError> {
    use route_v3::header_matcher::HeaderMatchSpecifier;
    let route_v3::HeaderMatcher {
        name: _,
        invert_match,
        treat_missing_header_as_empty,
        header_match_specifier,
    } = matcher;
    refuse!(at; invert_match, treat_missing_header_as_empty);
    match header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            string_match(at.field("string_match"), matcher)
        }
        _ => Err(at.invalid("only string_match is supported by this sidecar")),
    }
}

/// Exact text comes as it is sent and is matched decoded; in a pattern nothing is decoded.
fn query_match(
    at: At<'_>,
    matcher: route_v3::QueryParameterMatcher,
) -> Result<QueryMatch, DecodeError> {
    use route_v3::query_parameter_matcher::QueryParameterMatchSpecifier;
    let sent = nonempty(&at.field("name"), matcher.name)?;
    let name = query_text(&at.field("name"), &sent)?;
    match matcher.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            let at = at.field("string_match");
            let value = match string_match(at, matcher)? {
                ValueMatch::Exact(text) => {
                    ValueMatch::Exact(query_text(&at.field("exact"), &text)?)
                }
                regex @ ValueMatch::Regex(_) => regex,
            };
            Ok(QueryMatch { name, value })
        }
        _ => Err(at.invalid("only string_match is supported by this sidecar")),
    }
}

/// Without its escapes.
fn query_text(at: &At<'_>, sent: &str) -> Result<String, DecodeError> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut text = Vec::with_capacity(sent.len());
    let mut rest = sent.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = match after {
            [high, low, ..] if byte == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        text.push(escape.map_or(byte, |(high, low)| (high << 4 | low) as u8));
        rest = &after[if escape.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8(text)
        .map_err(|_| at.invalid(format!("`{sent}` holds escapes that make no UTF-8")))
}

pub(super) fn string_match(
    at: At<'_>,
    matcher: matcher_v3::StringMatcher,
) -> Result<ValueMatch, DecodeError> {
    use matcher_v3::string_matcher::MatchPattern;
    let matcher_v3::StringMatcher {
        ignore_case,
        match_pattern,
    } = matcher;
    refuse!(at; ignore_case);
    match match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(ValueMatch::Exact(text)),
        Some(MatchPattern::SafeRegex(pattern)) => {
            Ok(ValueMatch::Regex(regex(at.field("safe_regex"), pattern)?))
        }
        _ => Err(at.invalid("only exact and safe_regex are supported by this sidecar")),
    }
}

/// Envoy has one engine; naming it, as old configurations do, says nothing.
#[expect(deprecated, reason = "every field is named")]
fn regex(at: At<'_>, matcher: matcher_v3::RegexMatcher) -> Result<String, DecodeError> {
    use matcher_v3::regex_matcher::{EngineType, GoogleRe2};
    let matcher_v3::RegexMatcher { regex, engine_type } = matcher;
    if let Some(EngineType::GoogleRe2(GoogleRe2 {
        max_program_size: Some(_),
    })) = engine_type
    {
        return Err(at.field("google_re2").unsupported());
    }
    nonempty(&at.field("regex"), regex)
}

/// The names of the two fields of an edit.
type EditFields = (&'static str, &'static str);
const REQUEST: EditFields = ("request_headers_to_add", "request_headers_to_remove");
const RESPONSE: EditFields = ("response_headers_to_add", "response_headers_to_remove");

fn edit(
    at: &At<'_>,
    (to_add, to_remove): EditFields,
    options: Vec<core_v3::HeaderValueOption>,
    remove: Vec<String>,
) -> Result<HeaderEdit, DecodeError> {
    let mut edit = HeaderEdit {
        remove: each(at, to_remove, remove, |at, name| edited_name(&at, &name))?,
        ..Default::default()
    };
    for (index, option) in options.into_iter().enumerate() {
        let at = at.item(to_add, index);
        let (action, header) = header_option(at, option)?;
        match action {
            HeaderAppendAction::OverwriteIfExistsOrAdd => edit.set.push(header),
            HeaderAppendAction::AppendIfExistsOrAdd => edit.add.push(header),
            _ => return Err(at.field("append_action").unsupported()),
        }
    }
    Ok(edit)
}

#[expect(deprecated, reason = "every field is named")]
fn header_option(
    at: At<'_>,
    option: core_v3::HeaderValueOption,
) -> Result<(HeaderAppendAction, (String, String)), DecodeError> {
    let core_v3::HeaderValueOption {
        header,
        append,
        append_action,
        keep_empty_value,
    } = option;
    refuse!(at; append);
    let action = HeaderAppendAction::try_from(append_action)
        .map_err(|_| at.field("append_action").unsupported())?;
    let core_v3::HeaderValue {
        key,
        value,
        raw_value,
    } = header.ok_or_else(|| at.field("header").missing())?;
    let at = at.field("header");
    refuse!(at; raw_value);
    let value = literal(&at.field("value"), &value)?;
    if value.is_empty() && !keep_empty_value {
        return Err(at
            .field("value")
            .invalid("is empty without keep_empty_value"));
    }
    Ok((action, (edited_name(&at.field("key"), &key)?, value)))
}

/// Like Envoy: pseudo-headers and `host` have their own fields.
fn edited_name(at: &At<'_>, name: &str) -> Result<String, DecodeError> {
    let name = header_name(at, name)?;
    if name == "host" {
        Err(at.invalid("`host` can't be edited"))
    } else {
        Ok(name)
    }
}

/// The text of a format without commands: `%%` stands for `%`.
fn literal(at: &At<'_>, format: &str) -> Result<String, DecodeError> {
    if format.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return Err(at.invalid("holds a line break or NUL"));
    }
    let text = format.replace("%%", "\0");
    if text.contains('%') {
        return Err(at.invalid("formatting commands are not supported by this sidecar"));
    }
    Ok(text.replace('\0', "%"))
}
