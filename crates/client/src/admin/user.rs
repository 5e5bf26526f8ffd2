//! Users and who one is oneself. Each call fails as every call of the admin API does: [`AdminError`].

use bytes::Bytes;
use hyper::Method;

use super::{Admin, AdminError, encode};
use crate::api::{Me, UserRequest, UserToken, UserView, UserViews};

impl Admin {
    pub async fn add_user(&self, request: &UserRequest) -> Result<UserToken, AdminError> {
        self.post("/api/v1/users", request).await
    }

    pub async fn users(&self) -> Result<UserViews, AdminError> {
        self.get("/api/v1/users").await
    }

    /// Its token is worth nothing from now on.
    pub async fn remove_user(&self, name: &str) -> Result<UserView, AdminError> {
        let path = format!("/api/v1/users/{}", encode(name));
        let answer = self
            .call(Method::DELETE, &path, Bytes::new(), self.timeout)
            .await?;
        self.json(answer)
    }

    /// Who this token is.
    pub async fn me(&self) -> Result<Me, AdminError> {
        self.get("/api/v1/me").await
    }
}
