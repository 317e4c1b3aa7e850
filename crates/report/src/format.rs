//! Formats numbers, with the same rounding for the page and the terminal.

use serde::{Deserialize, Serialize};

/// The typographic minus sign, which is as wide as the plus sign.
const MINUS: char = '−';

/// Unit of a value. It determines rounding and suffix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share from 0 to 1, formatted in percent; changes are in percentage points.
    Percent,
    /// Nats, as for log-probabilities and divergences.
    Nats,
    /// Tokens, as for lengths.
    Tokens,
    /// Dimensionless.
    #[default]
    Plain,
}

/// Which direction of a metric is an improvement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Higher is better.
    Higher,
    /// Lower is better.
    Lower,
    /// Neither direction is an improvement.
    #[default]
    Neither,
}

/// Evaluation of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The metric improved.
    Better,
    /// The metric got worse.
    Worse,
    /// The change rounds to zero, isn't finite, or the metric has no better direction.
    Neutral,
}

impl Better {
    /// Evaluates the change from `before` to `after`. A change that rounds to zero in `unit` is neutral.
    pub fn judge(self, before: f64, after: f64, unit: Unit) -> Verdict {
        let change = after - before;
        if !change.is_finite() || unit.vanishes(change) {
            return Verdict::Neutral;
        }
        match (self, change > 0.0) {
            (Better::Neither, _) => Verdict::Neutral,
            (Better::Higher, true) | (Better::Lower, false) => Verdict::Better,
            (Better::Higher, false) | (Better::Lower, true) => Verdict::Worse,
        }
    }
}

impl Unit {
    /// A value with its unit: `61.2%`, `0.693 nats`, `38.5 tokens`, `12,345`.
    pub fn format(self, value: f64) -> String {
        self.with_suffix(value, "%")
    }

    /// A signed difference of two values: `+12.3 pp`, `−0.041 nats`, `±0`.
    pub fn format_change(self, change: f64) -> String {
        if change.is_finite() && self.vanishes(change) {
            return "±0".to_owned();
        }
        let text = self.with_suffix(change, " pp");
        if change > 0.0 { format!("+{text}") } else { text }
    }

    fn with_suffix(self, value: f64, percent: &str) -> String {
        if !value.is_finite() {
            return number(value);
        }
        match self {
            Unit::Percent => format!("{}{percent}", fixed(value * 100.0, percent_decimals(value))),
            Unit::Nats => format!("{} nats", fixed_or_short(value, 3)),
            Unit::Tokens => format!("{} tokens", fixed_or_short(value, 1)),
            Unit::Plain => number(value),
        }
    }

    /// Whether a change is zero at this unit's rounding.
    fn vanishes(self, change: f64) -> bool {
        change.abs()
            < match self {
                Unit::Percent | Unit::Nats => 0.000_5,
                Unit::Tokens => 0.05,
                Unit::Plain => f64::MIN_POSITIVE,
            }
    }
}

/// One decimal, or more for small shares, such as a feature's density, which would otherwise read 0.0%.
fn percent_decimals(share: f64) -> usize {
    match share.abs() * 100.0 {
        p if p == 0.0 || p >= 0.95 => 1,
        p if p >= 0.095 => 2,
        _ => 3,
    }
}

/// A number without unit, at about four significant digits.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        "n/a".to_owned()
    } else if value.is_infinite() {
        signed(value < 0.0, "∞")
    } else if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e9).contains(&size) {
        scientific(value)
    } else if value.fract() == 0.0 || size >= 1000.0 {
        fixed(value, 0)
    } else {
        // 3 decimals below 10, 2 below 100, 1 below 1,000; more below 1, where leading zeros aren't significant.
        let decimals = (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
        trim_zeros(&fixed(value, decimals))
    }
}

/// Fixed decimals, or scientific notation for numbers that would round to zero: 4e-5 nats rather than 0.000 nats.
pub(super) fn fixed_or_short(value: f64, decimals: usize) -> String {
    let size = value.abs();
    if !value.is_finite() {
        number(value)
    } else if size != 0.0 && (size < 0.5 * 10f64.powi(-(decimals as i32)) || size >= 1e9) {
        scientific(value)
    } else {
        fixed(value, decimals)
    }
}

/// Fixed decimals, with commas between thousands and the typographic minus sign.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::with_capacity(text.len() + whole.len() / 3);
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (whole.len() - position) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    // A negative number that rounds to zero is "0.0", not "−0.0".
    let negative = value < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b));
    signed(negative, &grouped)
}

/// Scientific notation with at most three significant digits: `1.5e-5`.
pub(super) fn scientific(value: f64) -> String {
    let text = format!("{:.2e}", value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    signed(value < 0.0, &format!("{}e{exponent}", trim_zeros(mantissa)))
}

fn signed(negative: bool, digits: &str) -> String {
    if negative { format!("{MINUS}{digits}") } else { digits.to_owned() }
}

fn trim_zeros(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_by_unit() {
        let cases = [
            (Unit::Percent, 0.6123, "61.2%"),
            (Unit::Percent, 0.0, "0.0%"),
            (Unit::Percent, 1.0, "100.0%"),
            (Unit::Percent, 0.00032, "0.032%"),
            (Unit::Percent, 0.0041, "0.41%"),
            (Unit::Nats, 0.6927, "0.693 nats"),
            (Unit::Nats, -12.5, "−12.500 nats"),
            (Unit::Nats, 0.00004, "4e-5 nats"),
            (Unit::Nats, 0.0, "0.000 nats"),
            (Unit::Tokens, 1234.56, "1,234.6 tokens"),
            (Unit::Tokens, -0.01, "−1e-2 tokens"),
            (Unit::Plain, 0.0, "0"),
            (Unit::Plain, 7.12345, "7.123"),
            (Unit::Plain, 0.0123456, "0.01235"),
            (Unit::Plain, 16384.0, "16,384"),
            (Unit::Plain, 1234567.8, "1,234,568"),
            (Unit::Plain, 2.5e-7, "2.5e-7"),
            (Unit::Plain, -1.0e12, "−1e12"),
            (Unit::Plain, f64::NAN, "n/a"),
            (Unit::Percent, f64::NEG_INFINITY, "−∞"),
        ];
        for (unit, value, expected) in cases {
            assert_eq!(unit.format(value), expected, "{unit:?} of {value}");
        }
    }

    #[test]
    fn changes_have_a_sign() {
        let cases = [
            (Unit::Percent, 0.123, "+12.3 pp"),
            (Unit::Percent, -0.5, "−50.0 pp"),
            (Unit::Percent, 0.0, "±0"),
            (Unit::Nats, -0.0411, "−0.041 nats"),
            (Unit::Tokens, 0.001, "±0"),
            (Unit::Plain, 7.0, "+7"),
            (Unit::Plain, f64::NAN, "n/a"),
            (Unit::Plain, f64::INFINITY, "+∞"),
        ];
        for (unit, change, expected) in cases {
            assert_eq!(unit.format_change(change), expected, "{unit:?} of {change}");
        }
    }

    #[test]
    fn the_verdict_follows_the_metric() {
        let cases = [
            (Better::Higher, 0.4, 0.6, Verdict::Better),
            (Better::Higher, 0.6, 0.4, Verdict::Worse),
            (Better::Lower, 0.4, 0.6, Verdict::Worse),
            (Better::Lower, 0.6, 0.4, Verdict::Better),
            (Better::Neither, 0.4, 0.6, Verdict::Neutral),
            (Better::Higher, 0.5, 0.5001, Verdict::Neutral),
            (Better::Lower, 0.5, f64::NAN, Verdict::Neutral),
        ];
        for (better, before, after, expected) in cases {
            assert_eq!(
                better.judge(before, after, Unit::Percent),
                expected,
                "{better:?} {before} -> {after}"
            );
        }
    }
}
