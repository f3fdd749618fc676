//! TLS as users meet it, against real servers with certificates made in the test: what is wrong is said, in time, and
//! without a secret; what is right works as it does without TLS.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "tls")]
mod bounds;
#[cfg(feature = "tls")]
mod core_suite;
#[cfg(feature = "tls")]
mod mistakes;
#[cfg(feature = "tls")]
mod pool;
#[cfg(feature = "tls")]
mod publishers;
#[cfg(feature = "encrypted-keys")]
mod secrets;
#[cfg(feature = "tls")]
mod support;
#[cfg(feature = "tls")]
mod trust;
#[cfg(not(feature = "tls"))]
mod without_tls;
