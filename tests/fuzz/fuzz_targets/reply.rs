//! The RESP decoder, in one piece and in random pieces, against the parser of the `redis` crate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| step_redis::fuzzing::decode_reply(bytes));
