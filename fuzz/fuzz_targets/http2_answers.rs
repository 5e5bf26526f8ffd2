#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx_hostile::http::http2_answers(bytes));
