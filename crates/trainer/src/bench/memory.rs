//! The memory of this process.

/// The most memory that this process ever held at once, in MiB, where the system tells (Linux).
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    high_water_mark(&status)
}

/// `VmHWM:    12345 kB`, as proc(5) has it.
fn high_water_mark(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        let status = "Name:\tfpo\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(high_water_mark(status), Some(2.0));
        assert_eq!(high_water_mark("Name:\tfpo\n"), None);
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
