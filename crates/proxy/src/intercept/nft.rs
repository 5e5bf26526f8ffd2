//! The program `nft`: a script on its standard input is one transaction of the kernel.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// # Errors
/// [`NftError`]; nothing of the script is in force then.
pub(super) fn run(script: &str) -> Result<(), NftError> {
    let mut nft = Command::new(PROGRAM);
    nft.args(["-f", "-"]);
    nft.stdin(Stdio::piped());
    nft.stdout(Stdio::null());
    nft.stderr(Stdio::piped());
    let started = nft.spawn();
    let mut child = started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NftError::Missing,
        _ => NftError::Run(error),
    })?;
    if let Some(mut input) = child.stdin.take() {
        // One that ended early says why.
        let _ = input.write_all(script.as_bytes());
    }
    let done = child.wait_with_output().map_err(NftError::Run)?;
    match done.status.success() {
        true => Ok(()),
        false => Err(NftError::of(&String::from_utf8_lossy(&done.stderr))),
    }
}

/// Where it is not in the path, as for a service of root that has none.
const PROGRAM: &str = "nft";
const WORDS_MAX: usize = 400;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error(
        "the program `nft` is not there: install the package nftables, or start without --intercept"
    )]
    Missing,
    #[error("interception takes root, or CAP_NET_ADMIN in this network namespace: {0}")]
    NotAllowed(String),
    #[error("the kernel has no NAT for nftables (modules nft_nat, nft_redir, nft_fib_inet): {0}")]
    NoNat(String),
    #[error("nft refuses the rules: {0}")]
    Refused(String),
    #[error("cannot run nft")]
    Run(#[source] io::Error),
}

impl NftError {
    fn of(said: &str) -> Self {
        let said: String = said.trim().chars().take(WORDS_MAX).collect();
        let lower = said.to_lowercase();
        if lower.contains("not permitted") || lower.contains("permission denied") {
            return Self::NotAllowed(said);
        }
        // Of a chain or an expression whose module is missing the kernel says that there is no such file.
        match ["no such file", "not supported", "protocol not available"]
            .iter()
            .any(|word| lower.contains(word))
        {
            true => Self::NoNat(said),
            false => Self::Refused(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_says_becomes_a_hint() {
        let of = |said| NftError::of(said).to_string();
        assert!(of("Error: Operation not permitted (you must be root)").contains("CAP_NET_ADMIN"));
        assert!(of("Error: Could not process rule: No such file or directory").contains("nft_nat"));
        assert!(of("Error: syntax error").contains("refuses"));
    }
}
