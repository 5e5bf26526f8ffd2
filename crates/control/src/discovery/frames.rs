//! The aggregated service without buffers: what tonic would keep for each stream (8 KiB for either direction, and the whole
//! of the last response) is most of what an idle proxy costs.
//!
//! Requests are read by tonic as ever; each response becomes one piece of memory that is gone once it is sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use phalanx_xds::server::Session;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::message::Message;
use super::{Answers, Discovery};

/// Serves what [`AggregatedDiscoveryServiceServer`] does.
#[derive(Clone)]
pub struct Aggregated(pub Discovery);

impl NamedService for Aggregated {
    const NAME: &'static str = AggregatedDiscoveryServiceServer::<Discovery>::NAME;
}

impl Service<http::Request<Body>> for Aggregated {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        let response = match method {
            Some("DeltaAggregatedResources") => {
                serve::<wire::DeltaDiscoveryRequest>(&self.0, request, Session::delta())
            }
            Some("StreamAggregatedResources") => {
                serve::<wire::DiscoveryRequest>(&self.0, request, Session::sotw())
            }
            _ => Status::unimplemented("").into_http(),
        };
        std::future::ready(Ok(response))
    }
}

fn serve<M>(
    discovery: &Discovery,
    request: http::Request<Body>,
    session: Session,
) -> http::Response<Body>
where
    M: Message + prost::Message + Default,
    M::Response: prost::Message + Default,
{
    let (head, body) = request.into_parts();
    let settings = BufferSettings::new(REQUEST_BYTES, REQUEST_BYTES);
    let decoder = ProstCodec::<M::Response, M>::raw_decoder(settings);
    let inbound = Streaming::new_request(decoder, body, None, None);
    let metadata = MetadataMap::from_headers(head.headers);
    let request = Request::from_parts(metadata, head.extensions, inbound);
    let answers = match discovery.serve(request, session) {
        Ok(answers) => answers,
        Err(status) => return status.into_http(),
    };
    let mut response = http::Response::new(Body::new(Frames(Some(answers))));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// Responses as the body of an HTTP/2 response; none after the trailers.
struct Frames<T>(Option<Answers<T>>);

impl<T: prost::Message> HttpBody for Frames<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(answers) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let status = match ready!(answers.as_mut().poll_next(context)) {
            Some(Ok(answer)) => return Poll::Ready(Some(Ok(Frame::data(frame(&answer))))),
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.0 = None;
        let mut trailers = HeaderMap::new();
        let added = status.add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Not compressed, its length, the message.
pub(super) fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

const PREFIX: usize = 5;
/// Set aside for requests: nothing, then the decoder takes over the piece that came, and only the last is kept.
const REQUEST_BYTES: usize = 0;

#[cfg(test)]
mod tests {
    use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_frame_is_as_long_as_its_message() {
        let response = DeltaDiscoveryResponse {
            nonce: "7".into(),
            ..Default::default()
        };
        let frame = frame(&response);
        assert_eq!(frame.get(..5), Some(&[0, 0, 0, 0, 3][..]));
        let decoded = DeltaDiscoveryResponse::decode(frame.slice(5..)).unwrap();
        assert_eq!(decoded, response);
    }
}
