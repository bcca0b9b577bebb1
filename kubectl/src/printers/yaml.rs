//! YAML as kubectl prints it: keys in natural order, lists not indented, text quoted wherever a
//! YAML 1.1 reader would take it for something else, several lines as a literal block.

use serde_json::{Map, Value};
use std::cmp::Ordering;

/// A document, with a newline at the end.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    node(&mut out, value, 0, Place::Top);
    out
}

/// Where a node stands, which decides how it begins.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// At the start of a line.
    Top,
    /// Behind `key:`.
    Value,
    /// Behind `- `.
    Item,
}

fn node(out: &mut String, value: &Value, indent: usize, place: Place) {
    match value {
        Value::Object(map) if !map.is_empty() => object(out, map, indent, place),
        Value::Array(items) if !items.is_empty() => array(out, items, indent, place),
        leaf => {
            if place == Place::Value {
                out.push(' ');
            }
            // A block's lines stand two deeper than the key or the dash before it.
            let inner = if place == Place::Item { indent } else { indent + 2 };
            scalar(out, leaf, inner);
            out.push('\n');
        }
    }
}

fn object(out: &mut String, map: &Map<String, Value>, indent: usize, place: Place) {
    let indent = if place == Place::Value { indent + 2 } else { indent };
    if place == Place::Value {
        out.push('\n');
    }
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_by(|a, b| natural(a, b));
    for (i, key) in keys.into_iter().enumerate() {
        if i > 0 || place != Place::Item {
            pad(out, indent);
        }
        text(out, key, indent, true);
        out.push(':');
        node(out, &map[key], indent, Place::Value);
    }
}

fn array(out: &mut String, items: &[Value], indent: usize, place: Place) {
    if place == Place::Value {
        out.push('\n');
    }
    for (i, item) in items.iter().enumerate() {
        if i > 0 || place != Place::Item {
            pad(out, indent);
        }
        out.push_str("- ");
        node(out, item, indent + 2, Place::Item);
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => text(out, s, indent, false),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

/// What a string's characters allow.
#[derive(Default)]
struct Traits {
    multiline: bool,
    plain: bool,
    single_quoted: bool,
    block: bool,
}

fn text(out: &mut String, s: &str, indent: usize, key: bool) {
    let traits = analyze(s);
    if s.contains('\n') && traits.block && !key {
        return literal(out, s, indent);
    }
    let plain_text = resolves_to_text(s);
    if !s.contains('\n') && plain_text && traits.plain {
        out.push_str(s);
    } else if (plain_text && !s.contains('\n')) && traits.single_quoted && !traits.multiline {
        out.push('\'');
        out.push_str(&s.replace('\'', "''"));
        out.push('\'');
    } else {
        double_quoted(out, s);
    }
}

/// Whether a reader takes the bare characters for a string.
fn resolves_to_text(s: &str) -> bool {
    let bare = match s {
        "" | "<<" => false,
        _ if s.as_bytes()[0].is_ascii_digit() && (is_timestamp(s) || is_base60(s)) => false,
        _ if s.starts_with(['+', '-']) && is_base60(&s[1..]) => false,
        _ => true,
    };
    bare && !is_number_or_word(s)
}

fn is_number_or_word(s: &str) -> bool {
    match s {
        "~" | "null" | "Null" | "NULL" | "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True"
        | "TRUE" | "on" | "On" | "ON" | "n" | "N" | "no" | "No" | "NO" | "false" | "False"
        | "FALSE" | "off" | "Off" | "OFF" => true,
        _ if s.starts_with(['+', '-', '.']) || s.as_bytes()[0].is_ascii_digit() => {
            rkube_api::yaml::parse_plain(s).map_or(true, |v| !v.is_string())
        }
        _ => false,
    }
}

/// `12:30:45` was a number once.
fn is_base60(s: &str) -> bool {
    let (whole, fraction) = s.split_once('.').unwrap_or((s, ""));
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or("");
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let rest: Vec<&str> = parts.collect();
    digits(first)
        && first.as_bytes()[0].is_ascii_digit()
        && !rest.is_empty()
        && rest.iter().all(|p| {
            (1..=2).contains(&p.len())
                && p.bytes().all(|b| b.is_ascii_digit())
                && (p.len() == 1 || p.as_bytes()[0] <= b'5')
        })
        && fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

/// `2006-1-2`, alone or with a time behind `T`, `t` or a space.
fn is_timestamp(s: &str) -> bool {
    let Some((date, time)) = (match s.find(['T', 't', ' ']) {
        Some(at) => Some((&s[..at], Some((s.as_bytes()[at], &s[at + 1..])))),
        None => Some((s, None)),
    }) else {
        return false;
    };
    let parts: Vec<&str> = date.split('-').collect();
    let number = |p: &str, min: usize, max: usize| {
        (min..=max).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit())
    };
    let date_good = parts.len() == 3
        && number(parts[0], 4, 4)
        && number(parts[1], 1, 2)
        && number(parts[2], 1, 2);
    date_good && time.is_none_or(|(mark, time)| is_time(time, mark != b' '))
}

fn is_time(time: &str, zoned: bool) -> bool {
    let (clock, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], &time[at..]),
        None => (time, ""),
    };
    if zoned == zone.is_empty() {
        return false;
    }
    let parts: Vec<&str> = clock.split(':').collect();
    parts.len() == 3
        && parts.iter().all(|p| p.starts_with(|c: char| c.is_ascii_digit()))
        && parts[..2].iter().all(|p| p.len() <= 2 && p.bytes().all(|b| b.is_ascii_digit()))
        && parts[2].bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && (zone.is_empty() || zone == "Z" || zone.len() == 6)
}

fn analyze(s: &str) -> Traits {
    if s.is_empty() {
        return Traits { plain: true, single_quoted: true, ..Traits::default() };
    }
    let chars: Vec<char> = s.chars().collect();
    let blank_at = |i: usize| {
        chars.get(i).is_none_or(|c| {
            matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
        })
    };
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut indicators = s.starts_with("---") || s.starts_with("...");
    let (mut special, mut line_breaks) = (false, false);
    let (mut space_break, mut break_space) = (false, false);
    for (i, &c) in chars.iter().enumerate() {
        let first = i == 0;
        indicators |= match c {
            '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
            | '@' | '`'
                if first =>
            {
                true
            }
            '?' | '-' if first => blank_at(i + 1),
            ':' => blank_at(i + 1),
            '#' => blank_at(i - 1),
            _ => false,
        };
        special |= !printable(c);
        line_breaks |= is_break(c);
        let before = i.checked_sub(1).map(|j| chars[j]);
        space_break |= is_break(c) && before == Some(' ');
        break_space |= c == ' ' && before.is_some_and(is_break);
    }
    let (head, tail) = (chars[0], chars[chars.len() - 1]);
    let ends_badly = head == ' ' || is_break(head) || tail == ' ' || is_break(tail);
    Traits {
        multiline: line_breaks,
        plain: !(indicators || special || line_breaks || ends_badly || break_space || space_break),
        single_quoted: !(special || space_break || break_space),
        block: !(special || space_break || tail == ' '),
    }
}

fn printable(c: char) -> bool {
    matches!(c, '\n' | '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && c != '\u{feff}'
}

fn literal(out: &mut String, s: &str, indent: usize) {
    let body = s.trim_end_matches('\n');
    let ends = s.len() - body.len();
    out.push('|');
    if s.starts_with([' ', '\n']) {
        out.push('2');
    }
    match ends {
        0 => out.push('-'),
        1 if !body.is_empty() => {}
        _ => out.push('+'),
    }
    let shown = s.strip_suffix('\n').unwrap_or(s);
    for line in shown.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

fn double_quoted(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            c if printable(c) => out.push(c),
            c if (c as u32) <= 0xff => out.push_str(&format!("\\x{:02X}", c as u32)),
            c if (c as u32) <= 0xffff => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push_str(&format!("\\U{:08X}", c as u32)),
        }
    }
    out.push('"');
}

/// Numbers in keys count as numbers, and letters come last.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    for i in 0..a.len().min(b.len()) {
        if a[i] == b[i] {
            continue;
        }
        return match (a[i].is_alphabetic(), b[i].is_alphabetic()) {
            (true, true) => a[i].cmp(&b[i]),
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => natural_digits(&a, &b, i),
        };
    }
    a.len().cmp(&b.len())
}

fn natural_digits(a: &[char], b: &[char], i: usize) -> Ordering {
    let inside = (a[i] == '0' || b[i] == '0')
        && a[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let number = |s: &[char]| {
        let digits = s[i..].iter().take_while(|c| c.is_ascii_digit());
        digits.fold((u128::from(inside), 0usize), |(n, len), c| {
            (n.saturating_mul(10).saturating_add(u128::from(c.to_digit(10).unwrap_or(0))), len + 1)
        })
    };
    number(a).cmp(&number(b)).then(a[i].cmp(&b[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn as_kubectl_prints_it() {
        let value = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-11-20T16:53:44Z",
                "annotations": {"a10": "x", "a2": "on", "last": "{\"a\":1}\n"}},
            "list": [{"b": 1, "a": "0755"}, [1, 2], [], {}, "plain text", "# no", "a: b", "12:30", "1.5", "-1", "- x", ""],
            "none": null, "no": false, "empty": {}, "two": "a\nb", "tab": "a\tb\n", "colon": "nginx:1", "pct": "25%", "at": "@x", "lead": " x", "q": "it's",
        });
        let want = r#"at: '@x'
colon: nginx:1
empty: {}
lead: ' x'
list:
- a: "0755"
  b: 1
- - 1
  - 2
- []
- {}
- plain text
- '# no'
- 'a: b'
- "12:30"
- "1.5"
- "-1"
- '- x'
- ""
metadata:
  annotations:
    a2: "on"
    a10: x
    last: |
      {"a":1}
  creationTimestamp: "2026-11-20T16:53:44Z"
  name: web
"no": false
none: null
pct: 25%
q: it's
tab: "a\tb\n"
two: |-
  a
  b
"#;
        assert_eq!(to_string(&value), want);
    }

    proptest! {
        /// What is printed is read back the same.
        #[test]
        fn round_trip(key in "[ -~]{0,12}", text in "[ -~\\n\\t\u{e4}\u{2028}]{0,20}", number in any::<i64>()) {
            let value = json!({"k": {key: [text.clone(), number, {"t": text}]}});
            let printed = to_string(&value);
            let read = rkube_api::yaml::parse_value(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
            prop_assert_eq!(read, value, "{}", printed);
        }
    }
}
