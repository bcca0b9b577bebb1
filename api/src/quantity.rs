//! `resource.Quantity`: exact decimal amounts with SI and binary suffixes.
//!
//! An amount is held as an integer count of nano units. More than nine decimal places are rounded
//! away from zero and more than 2^63-1 is capped, as upstream documents.

use serde_json::Value;
use std::fmt;

const NANO: i128 = 1_000_000_000;
/// 2^63-1 units, in nano units.
const MAX: i128 = (i64::MAX as i128) * NANO;

/// How an amount was written, and is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// An exact amount. Comparison is by amount, whatever the format.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form number and suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number is none.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::DecimalSi };

    /// So many units, in decimal form.
    pub fn from_i64(units: i64) -> Self {
        Quantity { nano: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// So many thousandths, in decimal form.
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Reads `100m`, `1.5Gi`, `2e3`, `-1`.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let parts = split(text)?;
        let (scale, format) = scale_of(parts.suffix)?;
        if parts.whole.is_empty() && parts.fraction.is_empty() {
            return Err(QuantityError::Number);
        }
        let magnitude = magnitude(&parts, scale);
        let nano = if parts.negative { -magnitude } else { magnitude };
        Ok(Quantity { nano, format })
    }

    /// From JSON: a text, or a number as YAML without quotes gives it.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::Null => Ok(Self::ZERO),
            _ => Err(QuantityError::Format),
        }
    }

    /// How it was written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        clamp(divide_away(self.nano, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn as_milli(&self) -> i64 {
        clamp(divide_away(self.nano, NANO / 1000))
    }

    /// Below zero.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// A whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    /// The sum, capped at 2^63-1; the format is that of `self` unless `self` is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nano == 0 { other.format } else { self.format };
        Quantity { nano: (self.nano + other.nano).clamp(-MAX, MAX), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    /// The difference, with the format as in the sum.
    fn sub(self, other: Quantity) -> Quantity {
        self + Quantity { nano: -other.nano, ..other }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        match self.format {
            // A fraction is told in decimal, as upstream does: rounding would change the amount.
            Format::BinarySi if !small && self.nano % NANO == 0 => {
                let (number, exponent) = strip(self.nano / NANO, 1024, 6);
                write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][exponent])
            }
            Format::DecimalExponent => {
                let (number, exponent) = strip(self.nano, 1000, 9);
                match exponent as i32 * 3 - 9 {
                    0 => write!(f, "{number}"),
                    power => write!(f, "{number}e{power}"),
                }
            }
            _ => {
                let (number, exponent) = strip(self.nano, 1000, 9);
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{number}{}", suffixes[exponent])
            }
        }
    }
}

/// The text rewritten in canonical form.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    Quantity::parse(text).map(|q| q.to_string())
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let run = |s: &str, good: fn(u8) -> bool| s.bytes().take_while(|b| good(*b)).count();
    let digit = |b: u8| b.is_ascii_digit();
    let (whole, rest) = rest.split_at(run(rest, digit));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(run(rest, digit)),
        None => ("", rest),
    };
    let letters = run(suffix, |b| b"eEinumkKMGTP".contains(&b));
    let exponent = suffix[letters..].trim_start_matches(['-', '+']);
    let signs = suffix.len() - letters - exponent.len();
    if signs > 1 || exponent.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix })
}

enum Scale {
    Ten(i64),
    Two(u32),
}

fn scale_of(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let power = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let power: i64 = power.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((Scale::Ten(power), Format::DecimalExponent))
        }
    }
}

/// Nano units, rounded up and capped. Leading and trailing zeros cost no precision; 40 digits
/// are looked at, the rest counts as "more than nothing".
fn magnitude(parts: &Parts<'_>, scale: Scale) -> i128 {
    let (ten, two) = match scale {
        Scale::Ten(power) => (power, 0),
        Scale::Two(power) => (0, power),
    };
    let digits = parts.whole.bytes().chain(parts.fraction.bytes());
    let mut number: i128 = 0;
    let mut power = (parts.whole.len() as i64).saturating_add(ten).saturating_add(9);
    let mut remainder = false;
    for digit in digits {
        // 27 significant digits hold the cap; the factor 2^60 of `Ei` still fits below.
        if number >= 10_i128.pow(27) {
            remainder |= digit != b'0';
        } else {
            number = number * 10 + i128::from(digit - b'0');
            power -= 1;
        }
    }
    if number == 0 {
        return 0;
    }
    scaled(number, power, two, remainder).min(MAX)
}

/// `number * 10^power * 2^two`, rounded up.
fn scaled(number: i128, power: i64, two: u32, remainder: bool) -> i128 {
    let mut number = number;
    let mut left = power;
    let mut remainder = remainder;
    // Dividing first would lose the exactness of 0.5Ki, multiplying first may overflow: so the
    // binary factor goes in where it fits and is capped where it does not.
    number = match number.checked_mul(1 << two) {
        Some(n) => n,
        None if left >= -27 => return wide(number, two, left, remainder),
        None => number,
    };
    while left > 0 {
        if number > MAX {
            return MAX;
        }
        number *= 10;
        left -= 1;
    }
    while left < 0 && number > 0 {
        remainder |= number % 10 != 0;
        number /= 10;
        left += 1;
    }
    number + i128::from(remainder)
}

/// The same where `number * 2^two` does not fit: the decimal part goes first, in two halves.
fn wide(number: i128, two: u32, power: i64, remainder: bool) -> i128 {
    if power >= 0 {
        return MAX;
    }
    let divisor = 10_i128.pow(power.unsigned_abs() as u32);
    let (quotient, rest) = (number / divisor, number % divisor);
    let factor = 1_i128 << two;
    let Some(high) = quotient.checked_mul(factor) else { return MAX };
    let low = match rest.checked_mul(factor) {
        Some(product) => divide_away(product, divisor),
        // Too fine to matter exactly: rounded up to the next step of the quotient's last digits.
        None => divide_away(rest, divisor / (1 << 30)).saturating_mul(factor >> 30),
    };
    high.saturating_add(low).saturating_add(i128::from(remainder))
}

/// Divides out `base` while the number stays whole, at most `most` times.
fn strip(mut number: i128, base: i128, most: usize) -> (i128, usize) {
    let mut exponent = 0;
    while exponent < most && number % base == 0 {
        number /= base;
        exponent += 1;
    }
    (number, exponent)
}

fn divide_away(number: i128, divisor: i128) -> i128 {
    let up = i128::from(number % divisor != 0) * number.signum();
    number / divisor + up
}

fn clamp(number: i128) -> i64 {
    number.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms() {
        for (text, expected) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("1000k", "1M"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("0.5Gi", "512Mi"),
            ("1023", "1023"),
            ("100Ki", "100Ki"),
            ("1e3", "1e3"),
            ("1200e-1", "120"),
            ("12E6", "12e6"),
            ("1E", "1E"),
            (".5", "500m"),
            ("5.", "5"),
            ("+3", "3"),
            ("-1Gi", "-1Gi"),
            ("1n", "1n"),
            ("0.0000000001", "1n"),
            ("1.1n", "2n"),
            ("2.5Mi", "2560Ki"),
            ("1Ei", "1Ei"),
            ("123456789", "123456789"),
            ("00012k", "12k"),
            ("543941378354.492Ki", "556995971434999808m"),
        ] {
            assert_eq!(q(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("1001m").value(), 2);
        assert_eq!(q("-100m").value(), -1);
        assert_eq!(q("1.0001").as_milli(), 1001);
        assert_eq!(q("2").as_milli(), 2000);
        assert_eq!(q("128Mi").value(), 128 << 20);
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!((q("100m") + q("0.9")).to_string(), "1");
    }

    #[test]
    fn faults() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1Gib", QuantityError::Format),
            ("--1", QuantityError::Suffix),
            ("1.2.3", QuantityError::Format),
            ("1é", QuantityError::Format),
            (".", QuantityError::Number),
            ("m", QuantityError::Number),
            ("1kk", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("1e99999999999999999999", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn hostile_amounts_are_capped() {
        let long = "9".repeat(100_000);
        for text in ["1e30", "9999Ei", "1e999999999", "9223372036854775808", &long] {
            assert_eq!(q(text).value(), i64::MAX, "{:.20}", text);
        }
        assert_eq!(q("1e-999999999").to_string(), "1e-9");
        assert_eq!(q(&format!("0.{}1", "0".repeat(90_000))).to_string(), "1n");
        assert_eq!(q(&format!("1.{long}Ei")).value(), 2 << 60);
        assert_eq!(q("9223372036854775807").value(), i64::MAX);
    }

    proptest! {
        #[test]
        fn canonical_is_stable(whole in 0_u64..1 << 40, milli in 0_u32..1000, suffix in "(|m|k|M|Ki|Mi|e2)") {
            let first = q(&format!("{whole}.{milli:03}{suffix}"));
            // Its format may change: 2000 from 1.953125Ki is read back as a decimal number.
            let second = q(&first.to_string());
            prop_assert!(second == first, "{} became {}", first, second);
            if !suffix.ends_with('i') {
                prop_assert_eq!(second.to_string(), first.to_string());
            }
            let third = q(&second.to_string());
            prop_assert_eq!(third.to_string(), second.to_string());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.eEinumkKMGTPx]{0,12}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert!(Quantity::parse(&quantity.to_string()).is_ok());
            }
        }

        #[test]
        fn sums_are_exact(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            let (x, y) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!((x + y).as_milli(), a + b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }
    }
}
