//! Where anybody may ask whether a certificate was revoked.
