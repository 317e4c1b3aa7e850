//! Memory of this process and of the machine.

/// Peak resident memory of this process in MiB; `None` except on Linux.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(kib(&status, "VmHWM:")? / 1024.0)
}

/// Lets [`peak_rss_mib`] begin again, where the system can (proc(5), `clear_refs`); elsewhere it goes on.
pub fn forget_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Total memory of the machine in GiB; `None` except on Linux.
pub(crate) fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib(&text, "MemTotal:")? / f64::from(1 << 20))
}

/// The processor's name; `None` except on Linux, and where it says none.
pub(crate) fn processor_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The number in a line such as `VmHWM:    12345 kB` (proc(5)).
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_parsed() {
        let status = "Name:\tfpo\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(kib(status, "VmHWM:"), Some(2048.0));
        assert_eq!(kib("Name:\tfpo\n", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_memory_counts() {
        let before = peak_rss_mib().unwrap();
        let block = vec![1u8; 300 << 20];
        std::hint::black_box(&block);
        assert!(peak_rss_mib().unwrap() >= 300.0 && before > 0.0);
        drop(block);
    }
}
