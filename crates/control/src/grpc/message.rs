//! Heads between the codec's types and those of the crate `http`, which tonic's services speak.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use phalanx_relay::header::{Name, Value};
use phalanx_relay::{Checked, Framing, HeaderList, ResponseHead};

/// The head of a request; none when it can't be said in those types.
pub fn request(checked: &Checked) -> Option<Request<()>> {
    let uri = match checked.query() {
        Some(query) => Uri::try_from(format!("{}?{query}", checked.path())),
        None => Uri::try_from(checked.path()),
    };
    let mut request = Request::new(());
    *request.uri_mut() = uri.ok()?;
    *request.method_mut() = match checked.method_str() {
        "POST" => Method::POST,
        other => Method::from_bytes(other.as_bytes()).ok()?,
    };
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    for (name, value) in checked.headers().iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers
            .try_append(name, HeaderValue::from_bytes(value).ok()?)
            .ok()?;
    }
    Some(request)
}

/// The head of an answer. `is_whole`: no body follows it.
pub fn answer<B>(response: &Response<B>, is_whole: bool) -> ResponseHead {
    let mut head = ResponseHead::blank();
    let framing = if is_whole {
        Framing::None
    } else {
        Framing::Chunked
    };
    head.own(response.status().as_u16(), framing);
    fill(&mut head.headers, response.headers());
    head
}

pub fn trailers(map: &HeaderMap) -> HeaderList {
    let mut list = HeaderList::new();
    fill(&mut list, map);
    list
}

/// What our own services make up is always a name and a value.
fn fill(list: &mut HeaderList, map: &HeaderMap) {
    for (name, value) in map {
        if let (Some(name), Some(value)) = (
            Name::new(name.as_str().as_bytes()),
            Value::new(value.as_bytes()),
        ) {
            list.push(name, value);
            // Most connections see one head of an answer, for which the codec would make a table of a kilobyte.
            list.mark_never_indexed(name);
        }
    }
}

/// How long the caller waits for an answer, if it says so: up to eight digits and a unit (gRPC over HTTP/2, `Timeout`).
pub fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (unit_at, unit) = text.char_indices().next_back()?;
    let digits = text.get(..unit_at)?;
    let is_number = (1..=DIGITS_MAX).contains(&digits.len());
    let is_number = is_number && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok())??;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

const DIGITS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        assert_eq!(of("15S"), Some(Duration::from_secs(15)));
        assert_eq!(of("100m"), Some(Duration::from_millis(100)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        assert_eq!(of("9n"), Some(Duration::from_nanos(9)));
        for bad in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1 S"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
