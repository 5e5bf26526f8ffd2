//! The certificate authority: who gets which certificate, on which proof.
