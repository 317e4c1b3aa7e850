//! What `--version` says.

use std::sync::LazyLock;

use fpo_device::Kind;

/// The commit, which `cargo xtask` passes on. A build script that asks git would compile this crate anew after every commit.
const COMMIT: Option<&str> = option_env!("FPO_COMMIT");

/// The release.
pub const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Release, commit and the backends that are compiled in.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let backends: Vec<&str> = Kind::compiled().map(Kind::name).collect();
        format!(
            "{SHORT} (commit {}; backends: {})",
            COMMIT.unwrap_or("unknown"),
            backends.join(", ")
        )
    });
    &LONG
}
