//! The binary `fpo` again, where the tests of this package find it.

fn main() -> std::process::ExitCode {
    fpo_trainer::cli::main()
}
