//! The seam between codecs and stages: a flat header list, the one checked request, the answer, and what a stage may say.
//!
//! Heads enter as borrowed bytes from whichever codec read them; what leaves can be written by whichever codec sends it.
//! No socket, no clock, no async, no foreign HTTP type and no unsafe may live here.
//!
//! [`http1`] and [`http2`] are such codecs; [`hpack`] is the compression of the latter.
//!
//! Module order (a module imports only later ones): http2, http1, hpack, pool, checked, response, verdict, framing, limits, header.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod checked;
pub mod framing;
pub mod header;
pub mod hpack;
pub mod http1;
pub mod http2;
pub mod limits;
pub mod pool;
pub mod response;
pub mod verdict;

pub use checked::{Checked, Http1Line, Http2Pseudo, Method, Refusal, Upgrade, Version, Workspace};
pub use framing::Framing;
pub use header::{Field, HeaderList, Name, Value, names};
pub use limits::{Deadlines, Limits};
pub use pool::Pool;
pub use response::{Asked, BadResponse, Delimiter, ResponseHead};
pub use verdict::{Reply, Verdict};
