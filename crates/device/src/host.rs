//! The memory of this process and of its machine.

/// The most memory that this process ever held at once, in MiB, where the system tells (Linux).
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(kib(&status, "VmHWM:")? / 1024.0)
}

/// All of the machine's memory, in GiB, where the system tells (Linux).
pub fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib(&text, "MemTotal:")? / f64::from(1 << 20))
}

/// The number in `VmHWM:    12345 kB`, as proc(5) has such lines.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        let status = "Name:\tfpo\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(kib(status, "VmHWM:"), Some(2048.0));
        assert_eq!(kib("Name:\tfpo\n", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_shows() {
        let before = peak_rss_mib().unwrap();
        let block = vec![1u8; 300 << 20];
        std::hint::black_box(&block);
        assert!(peak_rss_mib().unwrap() >= 300.0 && before > 0.0);
        drop(block);
    }
}
