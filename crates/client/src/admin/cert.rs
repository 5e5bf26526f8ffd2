//! Certificates, join tokens and roots. Each call fails as every call of the admin API does: [`AdminError`].

use super::{Admin, AdminError, path};
use crate::api::{
    Intermediate, IntermediateRequest, IssuedCertificates, IssuedQuery, JoinToken,
    JoinTokenRequest, JoinTokenView, JoinTokens, ReleaseCertificatesRequest, Released,
    RevokeRequest, RevokeTokenRequest, Revoked, RotateRequest, Rotation, SignRequest, Signed,
    Trust,
};

impl Admin {
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<JoinToken, AdminError> {
        self.post("/api/v1/cert/token", request).await
    }

    pub async fn join_tokens(&self) -> Result<JoinTokens, AdminError> {
        self.get("/api/v1/cert/tokens").await
    }

    pub async fn revoke_token(
        &self,
        request: &RevokeTokenRequest,
    ) -> Result<JoinTokenView, AdminError> {
        self.post("/api/v1/cert/token/revoke", request).await
    }

    pub async fn sign(&self, request: &SignRequest) -> Result<Signed, AdminError> {
        self.post("/api/v1/cert/sign", request).await
    }

    pub async fn issued(&self, query: &IssuedQuery) -> Result<IssuedCertificates, AdminError> {
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        let (expiring, limit) = (number(query.expiring_ms), number(query.limit));
        self.get(&path(
            "/api/v1/cert/issued",
            &[
                ("namespace", query.namespace.as_deref()),
                ("service", query.service.as_deref()),
                ("serial", query.serial.as_deref()),
                ("revoked", query.revoked.then_some("1")),
                ("expiring_ms", expiring.as_deref()),
                ("limit", limit.as_deref()),
            ],
        ))
        .await
    }

    pub async fn revoke(&self, request: &RevokeRequest) -> Result<Revoked, AdminError> {
        self.post("/api/v1/cert/revoke", request).await
    }

    pub async fn release_certificates(
        &self,
        request: &ReleaseCertificatesRequest,
    ) -> Result<Released, AdminError> {
        self.post("/api/v1/cert/release", request).await
    }

    pub async fn trust(&self) -> Result<Trust, AdminError> {
        self.get("/api/v1/cert/roots").await
    }

    pub async fn rotation(&self) -> Result<Rotation, AdminError> {
        self.get("/api/v1/cert/rotation").await
    }

    pub async fn rotate(&self, request: &RotateRequest) -> Result<Rotation, AdminError> {
        self.post("/api/v1/cert/rotate", request).await
    }

    pub async fn intermediate(
        &self,
        request: &IntermediateRequest,
    ) -> Result<Intermediate, AdminError> {
        self.post("/api/v1/cert/intermediate", request).await
    }
}
