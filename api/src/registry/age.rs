//! Spans of time as people read them.

use jiff::Timestamp;
use serde_json::Value;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A span in at most two units, coarser the longer it is (`duration.HumanDuration` upstream):
/// `7s`, `3m5s`, `25m`, `4h2m`, `12h`, `3d4h`, `12d`, `2y5d`, `9y`. Up to two seconds in the future
/// count as none; more is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / MINUTE, seconds / HOUR, seconds / DAY);
    match seconds {
        i64::MIN..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % MINUTE, "s"),
        600..10800 => format!("{minutes}m"),
        10800..28800 => pair(hours, "h", minutes % 60, "m"),
        28800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(seconds / YEAR, "y", days % 365, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

fn pair(big: i64, big_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{big}{big_unit}")
    } else {
        format!("{big}{big_unit}{small}{small_unit}")
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` if there is none.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => human_duration((now.as_millisecond() - then.as_millisecond()) / 1000),
        Err(_) => "<unknown>".into(),
    }
}

/// The cell of the `Age` column.
pub(super) fn age_cell(object: &Value, now: Timestamp) -> Value {
    since(crate::meta::metadata_str(object, "creationTimestamp"), now).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_get_coarser() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (14520, "4h2m"),
            (28800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (273_600, "3d4h"),
            (691_200, "8d"),
            (63_071_999, "729d"),
            (63_072_000 + 5 * 86400, "2y5d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds} s");
        }
    }

    #[test]
    fn a_missing_time_has_no_age() {
        assert_eq!(since("", Timestamp::UNIX_EPOCH), "<unknown>");
    }
}
