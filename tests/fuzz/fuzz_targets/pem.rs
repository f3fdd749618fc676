//! Certificates and keys in PEM.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| step_redis::fuzzing::parse_pem(bytes));
