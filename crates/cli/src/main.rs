//! The binary `fpo`.

// glibc hands large buffers back to the kernel at once, and the page faults of taking them again cost
// more than the arithmetic on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    fpo_cli::main()
}
