//! Certificates from the control plane, and whom to trust.
