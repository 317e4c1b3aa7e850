//! The binary `fpo`.

// glibc returns large buffers to the kernel as soon as they are freed, and the page faults of allocating them again cost more
// than the arithmetic on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long free memory stays with the process, in milliseconds. After mimalloc's own 10 ms, a step's buffers would be returned,
/// cleared by the kernel and mapped again in each step.
const PURGE_DELAY: std::ffi::c_long = 60_000;
/// `mi_option_purge_delay` of `mimalloc.h`, to which the crate gives no name.
const MI_OPTION_PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> std::process::ExitCode {
    // SAFETY: no other thread runs yet. A number from the environment, MIMALLOC_PURGE_DELAY, stays.
    unsafe { libmimalloc_sys::mi_option_set_default(MI_OPTION_PURGE_DELAY, PURGE_DELAY) };
    fpo_cli::main()
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// Oracle: mimalloc itself, which reads the option from a variable of its name. In a process of its own, because it reads it once.
    #[test]
    fn the_option_is_the_purge_delay() {
        const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";
        if env::var(VARIABLE).is_ok_and(|delay| delay == "77") {
            // SAFETY: nothing sets an option meanwhile.
            let found = || unsafe { libmimalloc_sys::mi_option_get(MI_OPTION_PURGE_DELAY) };
            assert_eq!(found(), 77);
            // SAFETY: as above.
            unsafe { libmimalloc_sys::mi_option_set_default(MI_OPTION_PURGE_DELAY, PURGE_DELAY) };
            assert_eq!(found(), 77);
            return;
        }
        let mut itself = Command::new(env::current_exe().unwrap());
        assert!(itself.env(VARIABLE, "77").status().unwrap().success());
    }
}
