//! Numbers as people read them: thousands apart, sizes, shares, durations.

use std::time::Duration;

/// An integer with its thousands apart: `10,646,784`.
pub fn integer(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share of a whole, in percent: `37.2 %`. Nothing of nothing is 0.
pub fn share(part: u64, whole: u64) -> String {
    percent(ratio(part, whole))
}

/// `part / whole`, 0 for nothing of nothing.
#[allow(clippy::cast_precision_loss)]
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A ratio in percent: `37.2 %`.
pub fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// A size in decimal units: `90.9 MB`.
#[allow(clippy::cast_precision_loss)]
pub fn bytes(size: u64) -> String {
    scaled(size as f64, &[" B", " kB", " MB", " GB", " TB"])
}

/// A large number with a unit: `10.6 M`.
#[allow(clippy::cast_precision_loss)]
pub fn count(value: u64) -> String {
    scaled(value as f64, &["", " k", " M", " G", " T"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}{}", units[0]) } else { format!("{value:.1}{}", units[unit]) }
}

/// Names in a row, the first few of many.
pub fn names(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0..=SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
    }
}

/// A count with its noun: `1 epoch`, `2.5 epochs`; the plural with an s.
pub fn counted(count: impl std::fmt::Display, noun: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// A duration: `4.82 ms`, `820 ms`, `4.2 s`, `3 min 12 s`, `2 h 05 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if seconds < 0.009_995 => format!("{:.2} ms", seconds * 1e3),
        _ if seconds < 0.099_95 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 59.95 => format!("{seconds:.1} s"),
        _ => {
            let whole = duration.as_secs() + u64::from(duration.subsec_millis() >= 500);
            match whole {
                0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
                _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
            }
        }
    }
}

/// A rate with three significant figures or so: `1,234`, `56.7`, `0.84`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn rate(value: f64) -> String {
    match value {
        _ if !value.is_finite() || value < 0.0 => "-".to_owned(),
        _ if value >= 100.0 => integer(value.round() as u64),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(integer(0), "0");
        assert_eq!(integer(999), "999");
        assert_eq!(integer(1000), "1,000");
        assert_eq!(integer(10_646_784), "10,646,784");
        assert_eq!(share(0, 0), "0.0 %");
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(90_868_376), "90.9 MB");
        assert_eq!(count(999_999), "1.0 M");
        assert_eq!(counted(1, "step"), "1 step");
        assert_eq!(counted("2.5", "epoch"), "2.5 epochs");
        assert_eq!(rate(1234.4), "1,234");
        assert_eq!(rate(0.8449), "0.84");
    }

    #[test]
    fn durations_choose_their_unit() {
        assert_eq!(duration(Duration::from_micros(4_820)), "4.82 ms");
        assert_eq!(duration(Duration::from_millis(820)), "820 ms");
        assert_eq!(duration(Duration::from_millis(4240)), "4.2 s");
        assert_eq!(duration(Duration::from_millis(59_990)), "1 min 00 s");
        assert_eq!(duration(Duration::from_secs(192)), "3 min 12 s");
        assert_eq!(duration(Duration::from_secs(7500)), "2 h 05 min");
    }
}
