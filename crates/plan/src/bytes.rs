//! Parses sizes of memory.

/// Bytes of a size such as `24GB`, `80 GiB` or `512MiB`. Case doesn't matter; `G` and `M` are decimal.
///
/// # Errors
/// No positive number, or a unit other than GB, GiB, MB, MiB, G and M.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "gb" | "g" => 1e9,
        "gib" => f64::from(1u32 << 30),
        "mb" | "m" => 1e6,
        "mib" => f64::from(1u32 << 20),
        _ => {
            return Err(format!(
                "`{text}`: expected a number with GB, GiB, MB or MiB, such as 24GB"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err(format!(
            "`{text}`: expected a positive number with GB, GiB, MB or MiB, such as 24GB"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory() {
        for (text, bytes) in [("24GB", 24_000_000_000), ("1 GiB", 1 << 30), ("1.5mib", 3 << 19)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "24", "GB", "-1GB", "24TBs", "0GB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
