#![no_main]

#[allow(dead_code, reason = "one of several targets")]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::safetensors(data);
});
