//! What `--version` says.

use std::sync::LazyLock;

use fpo_device::Kind;

/// The release.
pub const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Release, commit and the backends that are compiled in.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let backends: Vec<&str> = Kind::compiled().map(Kind::name).collect();
        format!("{SHORT} (commit {}; backends: {})", env!("FPO_COMMIT"), backends.join(", "))
    });
    &LONG
}
