//! Users: names with a role, whose tokens open the admin API.

use serde::{Deserialize, Serialize};

/// `POST /api/v1/users`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    pub name: String,
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// How long the token is good; left out: until the user is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// The answer: the one time that the token is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserToken {
    pub user: UserView,
    pub token: String,
    /// PEM of whom to trust.
    #[serde(default)]
    pub roots: String,
}

/// `GET /api/v1/users`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserViews {
    /// By name.
    pub items: Vec<UserView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    pub name: String,
    pub role: String,
    /// Who made it.
    pub author: String,
    pub created_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
}

/// `POST /api/v1/login`, from browsers: the token becomes a cookie that scripts can't read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    pub token: String,
}

/// `GET /api/v1/me`, and the answer to a login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    pub name: String,
    pub role: String,
}
