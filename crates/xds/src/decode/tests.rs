//! `decode ∘ encode` is the identity on valid models; what our sidecar can't honour is refused by its path.

mod models;
mod refusals;
mod roundtrip;
