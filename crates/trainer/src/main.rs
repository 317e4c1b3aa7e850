//! The binary `fpo`.

fn main() -> std::process::ExitCode {
    fpo_trainer::cli::main()
}
