//! One stream: its request to the services, and their answer piece by piece, as the peer takes it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use phalanx_relay::http2::Stream;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;

use super::message;
use super::shared::{Inbound, Lost, Outbound, Shared};

/// What a connection has taken in and nobody serves yet.
pub struct Begun {
    pub outbound: Outbound,
    pub request: Request<Incoming>,
}

impl Begun {
    pub fn new(shared: &Arc<Shared>, stream: Stream, head: Request<()>) -> Self {
        let inbound = Inbound::new(shared.clone(), stream);
        Self {
            outbound: Outbound::new(shared.clone(), stream),
            request: head.map(|()| Incoming(inbound)),
        }
    }
}

/// Ends with the answer, or when the peer gives it up; then what serves it is dropped where it stands.
pub fn serve(begun: Begun, routes: Routes) -> impl Future<Output = ()> + Send + use<> {
    // Most streams live long after it, and a task is as large as all that it ever holds.
    let answering: Answering = Box::pin(answer(routes, begun.request));
    run(begun.outbound, answering)
}

type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

async fn run(outbound: Outbound, answering: Answering) {
    if let Some(response) = unless_lost(&outbound, answering).await {
        // An answer that can't be completed is cancelled when the stream is let go of.
        if let Ok(Some(body)) = begin(&outbound, response) {
            let _ = send(&outbound, body).await;
        }
    }
}

async fn answer(mut routes: Routes, request: Request<Incoming>) -> Response<Body> {
    let patience = message::patience(request.headers());
    let calling = routes.call(request);
    let called = match patience {
        Some(patience) => timeout(patience, calling).await,
        None => Ok(calling.await),
    };
    match called {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => Status::deadline_exceeded("the caller's time is up").into_http(),
    }
}

async fn unless_lost(outbound: &Outbound, mut answering: Answering) -> Option<Response<Body>> {
    poll_fn(|cx| {
        if outbound.is_lost(cx) {
            return Poll::Ready(None);
        }
        answering.as_mut().poll(cx).map(Some)
    })
    .await
}

/// The head; and what is to follow it.
fn begin(outbound: &Outbound, response: Response<Body>) -> Result<Option<Body>, Lost> {
    let is_whole = response.body().is_end_stream();
    outbound.respond(&message::answer(&response, is_whole))?;
    Ok((!is_whole).then(|| response.into_body()))
}

async fn send(outbound: &Outbound, mut body: Body) -> Result<(), Lost> {
    loop {
        let next = poll_fn(|cx| {
            if outbound.is_lost(cx) {
                return Poll::Ready(Err(Lost));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        let Some(frame) = next.await? else {
            return outbound.end(None);
        };
        let frame = frame.map_err(|_| Lost)?;
        match frame.into_data() {
            Ok(mut data) => poll_fn(|cx| outbound.poll_body(cx, &mut data)).await?,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return outbound.end(Some(&message::trailers(&trailers)));
            }
        }
    }
}

/// The body of a request.
pub struct Incoming(Inbound);

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_data(cx).map(|next| {
            let lost = |Lost| Status::cancelled("the peer gave the stream up, or is gone");
            next.map(|data| data.map(Frame::data).map_err(lost))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_ended()
    }
}
