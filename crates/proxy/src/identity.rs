//! The sidecar's certificate: fetched, renewed before it ends, and whom to trust.
