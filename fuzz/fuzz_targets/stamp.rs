#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    unirl::fuzzing::stamp(data);
});
