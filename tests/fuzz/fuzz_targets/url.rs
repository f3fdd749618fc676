//! Connection URLs.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| step_redis::fuzzing::parse_url(text));
