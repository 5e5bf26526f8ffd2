//! What a verb shows and whom it trusts when it asks the control plane: roots, so that it speaks TLS at all, and the token of
//! a user. Files are read before anything is asked.

use std::path::Path;

use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::secure::{Protocol, Secure, trusting};
use phalanx_pki::files::{self, Access};
use phalanx_pki::roots::Roots;

/// Without roots the control plane is asked in plain text, which only one with `--open` takes.
#[derive(Args, Clone)]
pub struct Credentials {
    /// PEM of the roots to trust (the control plane's DATA/admin/roots.pem)
    #[arg(long, env = "PHALANX_ROOTS", value_name = "FILE", value_parser = parse_roots)]
    roots: Option<Secure>,
    /// Token of a user (the control plane's DATA/admin/token is an administrator's); PHALANX_TOKEN may have the token itself
    #[arg(long, env = "PHALANX_TOKEN_FILE", value_name = "FILE", value_parser = parse_token)]
    token_file: Option<Token>,
}

/// A token's line, and the roots if they stand below it.
#[derive(Clone)]
struct Token {
    text: String,
    roots: Option<Secure>,
}

impl Credentials {
    pub fn apply(&self, admin: Admin) -> Admin {
        let file = self.token_file.as_ref();
        let roots = self.roots.as_ref();
        let roots = roots.or_else(|| file.and_then(|file| file.roots.as_ref()));
        let admin = match roots {
            Some(secure) => admin.with_secure(secure.clone()),
            None => admin,
        };
        let bare = std::env::var("PHALANX_TOKEN").ok();
        match (file, bare) {
            (Some(file), _) => admin.with_token(&file.text),
            (None, Some(token)) if !token.trim().is_empty() => admin.with_token(&token),
            _ => admin,
        }
    }
}

fn parse_roots(path: &str) -> Result<Secure, String> {
    secure(&read(path)?)
}

fn parse_token(path: &str) -> Result<Token, String> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is no text")?;
    let mut lines = text.lines().map(str::trim);
    let token = lines.next().unwrap_or_default().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its first line is no token".to_owned());
    }
    let roots = text.contains("-----BEGIN").then(|| secure(&bytes));
    Ok(Token {
        text: token,
        roots: roots.transpose()?,
    })
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    files::read(Path::new(path), Access::Public).map_err(|error| with_sources(&error))
}

fn secure(pem: &[u8]) -> Result<Secure, String> {
    let roots = Roots::from_pem(pem).map_err(|error| error.to_string())?;
    Secure::try_new(trusting(roots), Protocol::Http1).map_err(|error| error.to_string())
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |e| e.source());
    sources.fold(error.to_string(), |text, source| {
        format!("{text}: {source}")
    })
}
