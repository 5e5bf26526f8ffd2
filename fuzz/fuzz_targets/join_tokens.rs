#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx_hostile::identity::join_tokens(bytes));
