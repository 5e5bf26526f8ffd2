#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx_hostile::game::reconnect_tokens(bytes));
