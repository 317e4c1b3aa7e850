//! The binary `fpo`.

// glibc returns large buffers to the kernel as soon as they are freed, and the page faults of allocating them again cost more
// than the arithmetic on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    fpo_cli::main()
}
