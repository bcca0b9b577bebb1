//! Manifests, read exactly as kubectl reads them.
//!
//! kubectl's scalars are YAML 1.1's (`on`, `yes` and `y` are true, `0755` is octal, `1_000` and
//! `1e3` are numbers, dates stay text) with merge keys. No ready-made reader has these rules, so
//! this one resolves the events of yaml-rust2 itself. Beyond kubectl it refuses duplicate keys and
//! bounds depth and aliases, and it remembers where each field stands, so that a complaint about
//! `spec.replicas` can name a line and a column.

use serde_json::{Map, Number, Value};
use std::collections::HashMap;
use yaml_rust2::parser::{Event, Parser, Tag};
use yaml_rust2::scanner::{Marker, ScanError, TScalarStyle};

/// Deeper nesting is refused: every consumer of a value recurses.
pub const MAX_DEPTH: usize = 200;
/// How much aliases may add to one document, as [`weight`] counts (an alias bomb adds billions).
pub const MAX_ALIASED: usize = 100_000;
/// How much may stand behind anchors, each of which keeps a copy.
const MAX_ANCHORED: usize = 1_000_000;

/// One document of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What it says.
    pub value: Value,
    /// The line where it begins, from 1.
    pub line: usize,
    /// Where each field's key, or each item, stands (`spec.containers[0].image`).
    pub positions: HashMap<String, Position>,
}

/// A place in a text; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// Why a text can't be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct YamlError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl Document {
    /// Where a field stands, or its nearest ancestor that is written down.
    pub fn position(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(position) = self.positions.get(path) {
                return Some(*position);
            }
            let cut = path.rfind(['.', '['])?;
            path = &path[..cut];
        }
    }
}

/// All documents of a text that say something; empty ones are left out, as kubectl does.
///
/// A text that begins with `{` is a stream of JSON objects.
pub fn parse_documents(text: &str) -> Result<Vec<Document>, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') {
        return parse_json(text).or_else(|json| parse_yaml(text, Places::Kept).map_err(|_| json));
    }
    parse_yaml(text, Places::Kept)
}

/// One value as kubectl would read it from YAML: `a: on` gives `{"a": true}`; nothing gives null.
/// The places of its fields are not kept, so a text of any kind costs a small multiple of its size.
pub fn parse_value(text: &str) -> Result<Value, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    Ok(parse_yaml(text, Places::Forgotten)?.into_iter().next().map_or(Value::Null, |d| d.value))
}

/// What a reader makes of bare characters; an error for numbers that JSON lacks.
pub fn parse_plain(text: &str) -> Result<Value, String> {
    resolve_plain(text)
}

fn parse_json(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut documents = Vec::new();
    loop {
        let line = 1 + text[..stream.byte_offset()].matches('\n').count();
        match stream.next() {
            None => break,
            Some(Ok(Value::Null)) => {}
            Some(Ok(value)) => documents.push(Document { value, line, positions: HashMap::new() }),
            Some(Err(e)) => {
                return Err(YamlError {
                    line: e.line(),
                    column: e.column().max(1),
                    message: e.to_string(),
                });
            }
        }
    }
    // JSON is YAML too: a second reading finds the fields' places.
    if let ([one], Ok(mut again)) = (documents.as_mut_slice(), parse_yaml(text, Places::Kept))
        && again.len() == 1
    {
        one.positions = again.remove(0).positions;
    }
    Ok(documents)
}

/// Whether the positions of fields are wanted: each holds a path, which can be long.
#[derive(Clone, Copy, PartialEq)]
enum Places {
    Kept,
    Forgotten,
}

fn parse_yaml(text: &str, places: Places) -> Result<Vec<Document>, YamlError> {
    let mut parser = Parser::new_from_str(text);
    let mut documents = Vec::new();
    let mut builder: Option<Builder> = None;
    loop {
        let (event, marker) = parser.next_token().map_err(|e| scan_error(text, &e))?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart => builder = Some(Builder::new(marker, places)),
            Event::DocumentEnd => {
                let Some(done) = builder.take() else { continue };
                if done.value != Value::Null {
                    documents.push(Document {
                        value: done.value,
                        line: done.line,
                        positions: done.positions,
                    });
                }
            }
            event => {
                if let Some(builder) = &mut builder {
                    builder.event(event, marker)?;
                }
            }
        }
    }
    Ok(documents)
}

fn scan_error(text: &str, e: &ScanError) -> YamlError {
    let error = error(*e.marker(), e.info());
    if error.message.contains("found a tab") { at_tab(text, error) } else { error }
}

/// The scanner names the value before a line that a tab indents; the tab is what has to go.
fn at_tab(text: &str, error: YamlError) -> YamlError {
    let lines = text.lines().enumerate().skip(error.line.saturating_sub(1));
    let indents = lines.map(|(n, line)| (n, &line[..line.len() - line.trim_start().len()]));
    let found = indents.filter_map(|(n, indent)| Some((n, indent.find('\t')?))).next();
    match found {
        Some((line, column)) => YamlError { line: line + 1, column: column + 1, ..error },
        None => error,
    }
}

fn error(marker: Marker, message: impl Into<String>) -> YamlError {
    YamlError { line: marker.line(), column: marker.col() + 1, message: message.into() }
}

/// A list or map that is being read.
struct Frame {
    path: String,
    anchor: usize,
    parts: Parts,
}

enum Parts {
    List(Vec<Value>),
    Map {
        map: Map<String, Value>,
        /// The key whose value comes next.
        key: Option<Key>,
        /// Filled in behind the map's own keys.
        merged: Vec<Map<String, Value>>,
    },
}

enum Key {
    Field(String),
    Merge,
}

/// Turns a document's events into a value. Holds one frame per open list or map; the finished
/// value is in `value` when the last frame is closed.
struct Builder {
    value: Value,
    line: usize,
    positions: HashMap<String, Position>,
    frames: Vec<Frame>,
    places: Places,
    anchors: HashMap<usize, Value>,
    anchored: usize,
    aliased: usize,
}

impl Builder {
    fn new(marker: Marker, places: Places) -> Self {
        Builder {
            places,
            value: Value::Null,
            line: marker.line(),
            positions: HashMap::new(),
            frames: Vec::new(),
            anchors: HashMap::new(),
            anchored: 0,
            aliased: 0,
        }
    }

    fn event(&mut self, event: Event, marker: Marker) -> Result<(), YamlError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_key = self.awaits_key();
                if is_key && style == TScalarStyle::Plain && text == "<<" && tag.is_none() {
                    return self.set_key(Key::Merge, marker);
                }
                let value = resolve(&text, style, tag.as_ref()).map_err(|m| error(marker, m))?;
                self.remember(anchor, &value, marker)?;
                self.put(value, marker)
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, Parts::List(Vec::new()), marker),
            Event::MappingStart(anchor, _) => {
                let parts = Parts::Map { map: Map::new(), key: None, merged: Vec::new() };
                self.open(anchor, parts, marker)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(marker),
            Event::Alias(anchor) => {
                let value = self.alias(anchor, marker)?;
                self.put(value, marker)
            }
            _ => Ok(()),
        }
    }

    fn awaits_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame { parts: Parts::Map { key: None, .. }, .. }))
    }

    fn remember(&mut self, anchor: usize, value: &Value, marker: Marker) -> Result<(), YamlError> {
        if anchor == 0 {
            return Ok(());
        }
        self.anchored += weight(value);
        if self.anchored > MAX_ANCHORED {
            return Err(error(marker, "document contains excessive anchors"));
        }
        self.anchors.insert(anchor, value.clone());
        Ok(())
    }

    fn alias(&mut self, anchor: usize, marker: Marker) -> Result<Value, YamlError> {
        let Some(value) = self.anchors.get(&anchor) else {
            return Err(error(marker, "an anchor contains itself"));
        };
        self.aliased += weight(value);
        if self.aliased > MAX_ALIASED {
            return Err(error(marker, "document contains excessive aliasing"));
        }
        if self.frames.len() + depth(value) > MAX_DEPTH {
            return Err(error(marker, "exceeded max depth"));
        }
        Ok(value.clone())
    }

    /// The path of the value that comes next.
    fn next_path(&self) -> String {
        match self.frames.last() {
            _ if self.places == Places::Forgotten => String::new(),
            None => String::new(),
            Some(frame) => match &frame.parts {
                Parts::List(items) => format!("{}[{}]", frame.path, items.len()),
                Parts::Map { key: Some(Key::Field(key)), .. } => join(&frame.path, key),
                Parts::Map { .. } => frame.path.clone(),
            },
        }
    }

    fn open(&mut self, anchor: usize, parts: Parts, marker: Marker) -> Result<(), YamlError> {
        if self.frames.len() >= MAX_DEPTH {
            return Err(error(marker, "exceeded max depth"));
        }
        if self.awaits_key() {
            return Err(error(marker, "a list or map can't be a key"));
        }
        let path = self.next_path();
        if matches!(self.frames.last(), Some(Frame { parts: Parts::List(_), .. })) {
            self.note(path.clone(), marker);
        }
        self.frames.push(Frame { path, anchor, parts });
        Ok(())
    }

    fn close(&mut self, marker: Marker) -> Result<(), YamlError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let value = match frame.parts {
            Parts::List(items) => Value::Array(items),
            Parts::Map { mut map, merged, .. } => {
                for (key, value) in merged.into_iter().flatten() {
                    map.entry(key).or_insert(value);
                }
                Value::Object(map)
            }
        };
        self.remember(frame.anchor, &value, marker)?;
        self.put(value, marker)
    }

    fn note(&mut self, path: String, marker: Marker) {
        if self.places == Places::Forgotten {
            return;
        }
        self.positions
            .entry(path)
            .or_insert(Position { line: marker.line(), column: marker.col() + 1 });
    }

    fn set_key(&mut self, new: Key, marker: Marker) -> Result<(), YamlError> {
        let Some(Frame { path, parts: Parts::Map { map, key, .. }, .. }) = self.frames.last_mut()
        else {
            return Ok(());
        };
        if let Key::Field(name) = &new {
            if map.contains_key(name) {
                return Err(error(marker, format!("key {name:?} already set in map")));
            }
            if self.places == Places::Forgotten {
                *key = Some(new);
                return Ok(());
            }
            // A map's own start is reported at its first colon: its first key is the better place.
            let item = (map.is_empty() && path.ends_with(']')).then(|| path.clone());
            let path = join(path, name);
            *key = Some(new);
            if let Some(item) = item {
                let place = Position { line: marker.line(), column: marker.col() + 1 };
                self.positions.insert(item, place);
            }
            self.note(path, marker);
        } else {
            *key = Some(new);
        }
        Ok(())
    }

    fn put(&mut self, value: Value, marker: Marker) -> Result<(), YamlError> {
        if self.awaits_key() {
            let key = key_text(&value).ok_or_else(|| error(marker, "unsupported map key"))?;
            return self.set_key(Key::Field(key), marker);
        }
        let item_path = match self.frames.last() {
            Some(Frame { path, parts: Parts::List(items), .. }) => {
                Some(format!("{path}[{}]", items.len()))
            }
            _ => None,
        };
        if let Some(path) = item_path {
            self.note(path, marker);
        }
        match self.frames.last_mut().map(|f| &mut f.parts) {
            None => self.value = value,
            Some(Parts::List(items)) => items.push(value),
            Some(Parts::Map { map, key, merged }) => match key.take() {
                Some(Key::Field(name)) => {
                    map.insert(name, value);
                }
                Some(Key::Merge) => merged.extend(merge_sources(value, marker)?),
                None => {}
            },
        }
        Ok(())
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What `<<` takes over: a map, or a list of maps of which the first wins.
fn merge_sources(value: Value, marker: Marker) -> Result<Vec<Map<String, Value>>, YamlError> {
    let wrong = || error(marker, "map merge requires map or sequence of maps as the value");
    match value {
        Value::Object(map) => Ok(vec![map]),
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(map) => Ok(map),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

/// Keys are text in JSON: a number or a bool becomes its text.
fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// What a copy of a value costs: one for itself and each value in it, and one for each 64 bytes
/// of text.
fn weight(value: &Value) -> usize {
    let text = |s: &str| s.len() / 64;
    1 + match value {
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(key, v)| text(key) + weight(v)).sum(),
        Value::String(s) => text(s),
        _ => 0,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The value of a scalar by its style and tag.
fn resolve(text: &str, style: TScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let core = tag.filter(|t| t.handle == "tag:yaml.org,2002:").map(|t| t.suffix.as_str());
    if let Some(name) = core {
        return resolve_tagged(text, name);
    }
    if style != TScalarStyle::Plain || tag.is_some() {
        return Ok(Value::String(text.into()));
    }
    resolve_plain(text)
}

fn resolve_tagged(text: &str, tag: &str) -> Result<Value, String> {
    let wrong = || format!("cannot decode `{text}` as a !!{tag}");
    match tag {
        "str" => Ok(Value::String(text.into())),
        "binary" => {
            use base64::Engine;
            let packed: String = text.split_whitespace().collect();
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(packed).map_err(|_| wrong())?;
            String::from_utf8(bytes).map(Value::String).map_err(|_| wrong())
        }
        "int" => resolve_plain(text)?.as_i64().map(Value::from).ok_or_else(wrong),
        "float" => Some(resolve_plain(text)?).filter(Value::is_number).ok_or_else(wrong),
        "bool" => Some(resolve_plain(text)?).filter(Value::is_boolean).ok_or_else(wrong),
        "null" => Ok(Value::Null),
        _ => Ok(Value::String(text.into())),
    }
}

/// A plain scalar by YAML 1.1's rules as Go's reader has them.
fn resolve_plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".into()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Err("json: unsupported value: +Inf".into());
        }
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".into()),
        _ => {}
    }
    let number = match text.as_bytes()[0] {
        b'+' | b'-' | b'0'..=b'9' => number(&text.replace('_', "")),
        b'.' => float(text),
        _ => None,
    };
    Ok(number.unwrap_or_else(|| Value::String(text.into())))
}

/// An integer in Go's notation (`0x`, `0o`, `0b`, a leading 0 for octal), else a decimal fraction.
fn number(plain: &str) -> Option<Value> {
    integer(plain).or_else(|| float(plain))
}

fn integer(plain: &str) -> Option<Value> {
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain),
    };
    let prefixed = |n: usize| {
        digits.get(n..).filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    let (radix, rest) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, prefixed(2)?),
        [b'0', b'o' | b'O', ..] => (8, prefixed(2)?),
        [b'0', b'b' | b'B', ..] => (2, prefixed(2)?),
        [b'0', _, ..] => (8, prefixed(1)?),
        _ => (10, prefixed(0)?),
    };
    let magnitude = u64::from_str_radix(rest, radix).ok()?;
    if negative {
        0i64.checked_sub_unsigned(magnitude).map(Value::from)
    } else {
        Some(Value::from(magnitude))
    }
}

/// A decimal fraction; whole ones below 10^21 are written without a point, as Go does.
fn float(plain: &str) -> Option<Value> {
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(plain);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['+', '-']).unwrap_or(e))),
        None => (unsigned, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_good = exponent.is_none_or(|e| !e.is_empty() && digits(e));
    if !digits(whole)
        || !digits(fraction)
        || (whole.is_empty() && fraction.is_empty())
        || !exponent_good
    {
        return None;
    }
    let value: f64 = plain.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        // Below 2^53 the conversion is exact.
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn scalars_as_kubectl_reads_them() {
        let cases = [
            ("on", json!(true)),
            ("yes", json!(true)),
            ("y", json!(true)),
            ("N", json!(false)),
            ("Off", json!(false)),
            ("0755", json!(493)),
            ("010", json!(8)),
            ("0o755", json!(493)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("0x1F", json!(31)),
            ("1_000", json!(1000)),
            ("1e3", json!(1000)),
            ("08", json!(8)),
            ("12:30:45", json!("12:30:45")),
            ("2024-01-02", json!("2024-01-02")),
            ("2024-01-02T03:04:05Z", json!("2024-01-02T03:04:05Z")),
            ("~", Value::Null),
            ("", Value::Null),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("+12", json!(12)),
            ("18446744073709551615", json!(18446744073709551615u64)),
            ("1.2.3", json!("1.2.3")),
            ("100m", json!("100m")),
            ("1e", json!("1e")),
            ("\"on\"", json!("on")),
            ("'0755'", json!("0755")),
            ("!!str 123", json!("123")),
            ("!!int \"7\"", json!(7)),
            ("True", json!(true)),
            ("tRue", json!("tRue")),
        ];
        for (text, want) in cases {
            let got = parse_value(&format!("a: {text}\n")).unwrap();
            assert_eq!(got["a"], want, "{text}");
        }
    }

    #[test]
    fn keys_that_are_no_strings_become_text() {
        assert_eq!(parse_value("1: a\ny: b\n").unwrap(), json!({"1": "a", "true": "b"}));
    }

    #[test]
    fn merge_keys_give_way_to_own_keys() {
        let text =
            "base: &b {x: 1, y2: 2}\none: {<<: *b, x: 3}\ntwo: {x: 4, <<: [*b, {z: 5, x: 9}]}\n";
        let value = parse_value(text).unwrap();
        assert_eq!(value["one"], json!({"x": 3, "y2": 2}));
        assert_eq!(value["two"], json!({"x": 4, "y2": 2, "z": 5}));
    }

    #[test]
    fn duplicate_keys_are_refused_with_their_place() {
        let e = parse_documents("a: 1\nb:\n  c: 1\n  c: 2\n").unwrap_err();
        assert_eq!((e.line, e.column), (4, 3));
        assert_eq!(e.message, "key \"c\" already set in map");
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let e = parse_documents("apiVersion: v1\nkind: Pod\n  metadata: {name: x\n").unwrap_err();
        assert_eq!(e.line, 3);
        assert!(e.message.contains("mapping values are not allowed in this context"), "{e}");
    }

    #[test]
    fn documents_and_positions() {
        let text =
            "# only a comment\n---\na: 1\n---\n---\nspec:\n  list:\n  - name: x\n    image: y\n";
        let documents = parse_documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        let second = &documents[1];
        assert_eq!(second.value, json!({"spec": {"list": [{"name": "x", "image": true}]}}));
        assert_eq!(second.position("spec.list[0].image"), Some(Position { line: 9, column: 5 }));
        assert_eq!(
            second.position("spec.list[0].nope.deep"),
            Some(Position { line: 8, column: 5 })
        );
        assert_eq!(second.position("metadata"), None);
    }

    #[test]
    fn json_streams_have_positions() {
        let documents = parse_documents("{\"a\": 1}\n{\"b\": 2}\n").unwrap();
        assert_eq!(documents.len(), 2);
        let one = parse_documents("{\n\t\"spec\": {\n\t\t\"x\": \"on\"}}").unwrap();
        assert_eq!(one[0].value, json!({"spec": {"x": "on"}}));
        assert_eq!(one[0].position("spec.x").map(|p| p.line), Some(3));
    }

    #[test]
    fn values_are_read_like_documents() {
        for text in
            ["a: {b: [on, 0755, {c: }]}", "{\"a\": [1, 2]}", "{a: b}", "- x\n- y: z\n", "", "1"]
        {
            let documents = parse_documents(text).unwrap();
            let value = documents.into_iter().next().map_or(Value::Null, |d| d.value);
            assert_eq!(parse_value(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn long_texts_are_not_multiplied() {
        let long = "x".repeat(1 << 20);
        let aliases = format!("a: &a {long}\nb: [{}*a]\n", "*a, ".repeat(500));
        let e = parse_value(&aliases).unwrap_err();
        assert_eq!(e.message, "document contains excessive aliasing");
        let anchors: String = (0..150).map(|n| format!("&a{n} [")).collect();
        let e = parse_value(&format!("{anchors}{long}{}", "]".repeat(150))).unwrap_err();
        assert_eq!(e.message, "document contains excessive anchors");
        let key = format!("? {long}\n: [{}x]\n", "x, ".repeat(100_000));
        parse_value(&key).unwrap();
    }

    #[test]
    fn a_tab_is_where_it_stands() {
        let e = parse_documents("a: b\n\tc: d\n").unwrap_err();
        assert_eq!((e.line, e.column), (2, 1), "{e}");
    }

    #[test]
    fn alias_bombs_and_depth_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let e = parse_documents(&bomb).unwrap_err();
        assert_eq!(e.message, "document contains excessive aliasing");
        let deep = "[".repeat(5000);
        assert!(parse_documents(&deep).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ -~\\n]{0,80}") {
            let _ = parse_documents(&text);
        }
    }
}
