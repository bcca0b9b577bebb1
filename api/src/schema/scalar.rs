//! Texts of scalars: times, durations, base64 and quantities, checked and put in Go's own form.

use super::Scalar;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

/// The text in the form in which Go writes it, or Go's error.
pub(super) fn normalize(scalar: Scalar, text: &str) -> Result<String, String> {
    match scalar {
        Scalar::Time => time(text),
        Scalar::MicroTime => micro_time(text),
        Scalar::Duration => duration_nanos(text)
            .map(duration_text)
            .ok_or_else(|| format!("time: invalid duration {text:?}")),
        Scalar::Quantity => quantity(text),
        Scalar::Bytes => base64_text(text),
        _ => Ok(text.to_string()),
    }
}

/// `2006-01-02T15:04:05Z`
fn time(text: &str) -> Result<String, String> {
    parse_time(text, "2006-01-02T15:04:05Z07:00").map(|t| time_text(t.as_second()))
}

/// `2006-01-02T15:04:05.000000Z`
fn micro_time(text: &str) -> Result<String, String> {
    parse_time(text, "2006-01-02T15:04:05.000000Z07:00")
        .map(|t| micro_time_text(t.as_second(), t.subsec_nanosecond()))
}

fn parse_time(text: &str, layout: &str) -> Result<Timestamp, String> {
    let shaped = text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T');
    text.parse().ok().filter(|_| shaped).ok_or_else(|| {
        format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
    })
}

/// The text of a time in whole seconds since 1970; the years 1 to 9999 are kept to.
pub(super) fn time_text(seconds: i64) -> String {
    clamp(seconds, 0).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The text of a time with microseconds.
pub(super) fn micro_time_text(seconds: i64, nanos: i32) -> String {
    let time = clamp(seconds, nanos);
    let micros = time.subsec_nanosecond().abs() / 1000;
    format!("{}.{micros:06}Z", time.strftime("%Y-%m-%dT%H:%M:%S"))
}

fn clamp(seconds: i64, nanos: i32) -> Timestamp {
    Timestamp::new(seconds, nanos.clamp(0, 999_999_999)).unwrap_or(match seconds < 0 {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    })
}

/// Seconds and nanoseconds of a time's text.
pub(super) fn time_parts(text: &str) -> Option<(i64, i32)> {
    let time: Timestamp = text.parse().ok()?;
    Some((time.as_second(), time.subsec_nanosecond()))
}

/// Nanoseconds of a Go duration (`1h2m3.5s`).
pub(super) fn duration_nanos(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number * unit_nanos(&rest[..end])?;
        rest = &rest[end..];
    }
    (total < 9.2e18).then_some(if negative { -total as i64 } else { total as i64 })
}

fn unit_nanos(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

/// A duration as Go prints it.
pub(super) fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    if total == 0 {
        return "0s".into();
    }
    for (unit, size) in [("ns", 1u64), ("µs", 1000), ("ms", 1_000_000)] {
        if total < size * 1000 {
            return format!("{sign}{}{unit}", total as f64 / size as f64);
        }
    }
    let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
    let seconds = rest as f64 / 1e9;
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, m) => format!("{sign}{m}m{seconds}s"),
        (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
    }
}

fn base64_text(text: &str) -> Result<String, String> {
    let clean: String = match text.contains(['\r', '\n']) {
        true => text.replace(['\r', '\n'], ""),
        false => text.to_string(),
    };
    let fault = match STANDARD.decode(&clean) {
        Ok(_) => return Ok(clean),
        Err(
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _),
        ) => at,
        Err(_) => clean.len() / 4 * 4,
    };
    Err(format!("illegal base64 data at input byte {fault}"))
}

const QUANTITY_FORM: &str = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$";

/// Quantities are put in their canonical form.
fn quantity(text: &str) -> Result<String, String> {
    crate::quantity::canonical(text.trim())
        .map_err(|_| format!("quantities must match the regular expression '{QUANTITY_FORM}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_as_go_does() {
        for (scalar, text, want) in [
            (Scalar::Time, "2026-11-20T16:53:00Z", "2026-11-20T16:53:00Z"),
            (Scalar::Time, "2026-11-20T16:53:00.9+01:00", "2026-11-20T15:53:00Z"),
            (Scalar::MicroTime, "2026-11-20T16:53:00.123456Z", "2026-11-20T16:53:00.123456Z"),
            (Scalar::MicroTime, "2026-11-20T16:53:00Z", "2026-11-20T16:53:00.000000Z"),
            (Scalar::Duration, "90s", "1m30s"),
            (Scalar::Duration, "1.5h", "1h30m0s"),
            (Scalar::Duration, "-250ms", "-250ms"),
            (Scalar::Bytes, "aGk=", "aGk="),
            (Scalar::Quantity, "1024Mi", "1Gi"),
            (Scalar::Quantity, " 1000m ", "1"),
        ] {
            assert_eq!(normalize(scalar, text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for (scalar, text, want) in [
            (Scalar::Quantity, "1x", "quantities must match the regular expression"),
            (Scalar::Quantity, "1.2.3", "quantities must match"),
            (Scalar::Quantity, "", "quantities must match"),
            (Scalar::Time, "yesterday", "parsing time \"yesterday\" as"),
            (Scalar::Bytes, "a*b=", "illegal base64 data at input byte 1"),
            (Scalar::Duration, "5", "invalid duration"),
        ] {
            let error = normalize(scalar, text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
