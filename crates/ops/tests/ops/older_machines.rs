//! The fast paths on emulated processors with fewer instructions: the instruction set is detected at run time.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::process::Command;

/// Runs the tests of `fast_paths` in this executable on an emulated processor.
fn on(processor: &str) {
    let emulator = "qemu-x86_64";
    if Command::new(emulator).arg("--version").output().is_err() {
        eprintln!("skipped: {emulator} is not installed (Debian: qemu-user)");
        return;
    }
    let program = std::env::current_exe().expect("the test knows its executable");
    let output = Command::new(emulator)
        .args(["-cpu", processor])
        .arg(program)
        .arg("fast_paths::")
        .output()
        .expect("the emulator runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{processor}:\n{said}");
    assert!(said.contains("fast_paths::") && !said.contains("running 0 tests"), "{said}");
}

#[test]
fn without_avx512() {
    on("Haswell");
}

#[test]
fn without_avx() {
    on("Westmere");
}
