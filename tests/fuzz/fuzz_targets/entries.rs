//! Stream entries, decoded straight from the bytes of a reply.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| step_redis::fuzzing::decode_entries(bytes));
