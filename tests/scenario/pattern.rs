//! Expected output with placeholders for what varies.

use regex::{Captures, Regex};
use std::sync::LazyLock;

const UID: &str = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const TIME: &str = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| \+0000)";
const DATE: &str = r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000";
const SUFFIX: &str = "[bcdfghjklmnpqrstvwxz2456789]{5}";
const AGE: &str = r"(?:\d{1,3}[smhd]){1,2}";

/// Placeholders and what they stand for.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("<age>", AGE),
    ("<any>", r".*?"),
    ("<date>", DATE),
    ("<number>", r"\d+"),
    ("<suffix>", SUFFIX),
    ("<time>", TIME),
    ("<uid>", UID),
];

/// What is written as a placeholder when a script is written anew: what stands before it, what it
/// is, and the placeholder.
static VOLATILE: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let rules = [
        ("", UID, "<uid>"),
        ("", TIME, "<time>"),
        ("", DATE, "<date>"),
        (r#"resourceVersion"?: ""#, r"\d+", "<number>"),
        (r"\b[a-z]+-[a-z0-9]{8,10}-", SUFFIX, "<suffix>"),
        (r"(?:^|  )", AGE, "<age>"),
    ];
    let rule = |before, what, name| {
        (regex(&format!("(?<before>{before})(?<what>{what})(?<end>\"| +|$|\\b)")), name)
    };
    rules.map(|(before, what, name)| rule(before, what, name)).into()
});

fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Whether a line is what was expected.
pub fn line_matches(expected: &str, actual: &str) -> bool {
    if expected == actual {
        return true;
    }
    expected.contains('<') && regex(&line_pattern(expected)).is_match(actual)
}

fn line_pattern(expected: &str) -> String {
    let mut pattern = String::from("^");
    let mut rest = expected;
    while !rest.is_empty() {
        let found = PLACEHOLDERS.iter().find(|(name, _)| rest.starts_with(name));
        let Some((name, meaning)) = found else {
            let c = rest.chars().next().expect("the rest is not empty");
            pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            rest = &rest[c.len_utf8()..];
            continue;
        };
        pattern.push_str(meaning);
        rest = &rest[name.len()..];
        // The column's padding depends on the value's length.
        let padding = rest.len() - rest.trim_start_matches(' ').len();
        if padding > 0 {
            pattern.push_str(" +");
            rest = &rest[padding..];
        }
    }
    pattern + "$"
}

/// A line of output as a script has it.
pub fn generalise(line: &str) -> String {
    VOLATILE.iter().fold(line.to_string(), |text, (rule, name)| {
        rule.replace_all(&text, |found: &Captures<'_>| placed(found, name)).into_owned()
    })
}

/// The placeholder in its place, in line with the columns as far as it fits.
fn placed(found: &Captures<'_>, name: &str) -> String {
    let (what, end) = (&found["what"], &found["end"]);
    if name == "<age>" && !(end.is_empty() || end.starts_with("  ")) {
        return found[0].to_string();
    }
    let longer = name.len().saturating_sub(what.len());
    let kept =
        if end.starts_with("  ") { end.len().saturating_sub(longer).max(2) } else { end.len() };
    format!("{}{name}{}", &found["before"], &end[..kept])
}
