//! What the examples have in common: where the server is, and how a failure is told.
#![allow(dead_code, reason = "no example uses all of it")]

use std::error::Error as StdError;
use std::process::ExitCode;

use step_redis::{PoolParams, Result};

/// Whatever ends an example.
pub(crate) type AnyError = Box<dyn StdError + Send + Sync>;

/// The server that `REDIS_URL` names, or the one on this machine.
pub(crate) fn server() -> Result<PoolParams> {
    match std::env::var("REDIS_URL") {
        Ok(url) if !url.is_empty() => PoolParams::from_url(&url),
        _ => PoolParams::from_url("redis://127.0.0.1:6379"),
    }
}

/// Says what went wrong, if anything did; the program is to end with what this returns.
pub(crate) fn exit_code(ended: Result<(), AnyError>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what led to it, on one line.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    // Errors of the `redis` crate are their own cause.
    texts.dedup();
    texts.join(": ")
}
