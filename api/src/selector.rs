//! Label and field selectors: parsing with upstream's errors, matching, and the canonical text.

use crate::error::ApiError;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A selector that can't be read, in upstream's words. As an [`ApiError`] it is a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl From<SelectorError> for ApiError {
    fn from(error: SelectorError) -> Self {
        ApiError::bad_request(error.0)
    }
}

/// Where a selector looks labels up.
pub trait Labels {
    /// The label's value.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Option<BTreeMap<String, String>> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

impl Labels for serde_json::Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl<A: AsRef<str>, B: AsRef<str>> Labels for [(A, B)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k.as_ref() == key).map(|(_, v)| v.as_ref())
    }
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `a in (x,y)`
    In,
    /// `a notin (x,y)`: also true where the label is missing.
    NotIn,
    /// `a=x`
    Equals,
    /// `a==x`
    DoubleEquals,
    /// `a!=x`: also true where the label is missing.
    NotEquals,
    /// `a`
    Exists,
    /// `!a`
    DoesNotExist,
    /// `a>1`, integers only.
    GreaterThan,
    /// `a<1`, integers only.
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks key, number of values and their form.
    pub fn new(
        key: &str,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Self, SelectorError> {
        check_key(key, "key")?;
        let wrong = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                "for 'in', 'notin' operators, values set can't be empty"
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals
                if values.len() != 1 =>
            {
                "exact-match compatibility requires one single value"
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                "values set must be empty for exists and does not exist"
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                "for 'Gt', 'Lt' operators, exactly one value is required"
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                return Err(SelectorError(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    values[0]
                )));
            }
            _ => "",
        };
        if !wrong.is_empty() {
            return Err(SelectorError(format!(
                "values: Invalid value: {}: {wrong}",
                Value::from(values)
            )));
        }
        for (i, value) in values.iter().enumerate() {
            if let Some(fault) = label_value_fault(value) {
                return Err(SelectorError(format!(
                    "values[{i}][{key}]: Invalid value: {value:?}: {fault}"
                )));
            }
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.into(), operator, values })
    }

    /// Whether a label's value (None where it is missing) meets the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::In | Operator::Equals | Operator::DoubleEquals, v) => v.is_some_and(has),
            (Operator::NotIn | Operator::NotEquals, v) => !v.is_some_and(has),
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, v) => v.is_none(),
            (Operator::GreaterThan, v) => self.compare(v).is_some_and(|(a, b)| a > b),
            (Operator::LessThan, v) => self.compare(v).is_some_and(|(a, b)| a < b),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Conditions on labels that must all hold. Without conditions it selects everything, unless it
/// is [`LabelSelector::nothing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing: what a missing `metav1.LabelSelector` means.
    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// From the form of a URL or a command line: `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self::of(Parser { tokens: lex(text), next: 0 }.selector()?))
    }

    /// From a map of exact values, as in `spec.selector` of a Service.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::of(labels.into_iter().map(|(k, v)| equals(k, v)).collect())
    }

    /// From a `metav1.LabelSelector` in JSON. Null or missing selects nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let typed: meta::LabelSelector = serde::Deserialize::deserialize(selector)
            .map_err(|e| SelectorError(format!("invalid label selector: {e}")))?;
        Self::from_typed(&typed)
    }

    /// From a typed `metav1.LabelSelector`.
    pub fn from_typed(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for e in selector.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            let values = e.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(&e.key, operator, values)?);
        }
        Ok(Self::of(requirements))
    }

    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// The same with one more condition.
    pub fn and(mut self, requirement: Requirement) -> Self {
        self.requirements.push(requirement);
        LabelSelector { nothing: self.nothing, ..Self::of(self.requirements) }
    }

    /// The conditions, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// No condition at all.
    pub fn selects_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether an object with these labels is selected.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels.label(&r.key)))
    }
}

impl fmt::Display for LabelSelector {
    /// Upstream's canonical text: conditions sorted by key, joined by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.into(), operator: Operator::Equals, values: vec![value.into()] }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    Word,
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    End,
    Unknown,
}

/// The text cut into tokens; the last is always `End`.
fn lex(text: &str) -> Vec<(Token, &str)> {
    let special = |c: char| "=!(),><".contains(c);
    let blank = |c: char| " \t\r\n".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(blank);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if special(first) {
            symbol(rest)
        } else {
            let length = rest.find(|c| special(c) || blank(c)).unwrap_or(rest.len());
            let token = match &rest[..length] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Word,
            };
            (token, length)
        };
        tokens.push((token, &rest[..length]));
        rest = rest[length..].trim_start_matches(blank);
    }
    tokens.push((Token::End, ""));
    tokens
}

/// The longest operator at the start of a text that starts with a special character.
fn symbol(rest: &str) -> (Token, usize) {
    match rest.as_bytes() {
        [b'=', b'=', ..] => (Token::DoubleEquals, 2),
        [b'!', b'=', ..] => (Token::NotEquals, 2),
        [b'=', ..] => (Token::Equals, 1),
        [b'!', ..] => (Token::Not, 1),
        [b'(', ..] => (Token::Open, 1),
        [b')', ..] => (Token::Close, 1),
        [b',', ..] => (Token::Comma, 1),
        [b'>', ..] => (Token::Greater, 1),
        [b'<', ..] => (Token::Less, 1),
        _ => (Token::Unknown, 1),
    }
}

/// Recursive descent over the tokens. `in` and `notin` are words where a value may stand.
struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    next: usize,
}

fn found(text: &str, expected: &str) -> SelectorError {
    SelectorError(format!("found '{text}', expected: {expected}"))
}

impl<'a> Parser<'a> {
    /// The next token where a keyword counts as a word.
    fn peek(&self) -> (Token, &'a str) {
        match self.tokens[self.next.min(self.tokens.len() - 1)] {
            (Token::In | Token::NotIn, text) => (Token::Word, text),
            other => other,
        }
    }

    fn take(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn take_operator(&mut self) -> (Token, &'a str) {
        let token = self.tokens[self.next.min(self.tokens.len() - 1)];
        self.next += 1;
        token
    }

    fn selector(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Word | Token::Not, _) => {}
                (Token::End, _) => return Ok(requirements),
                (_, text) => return Err(found(text, "!, identifier, or 'end of string'")),
            }
            let requirement = self
                .requirement()
                .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
            requirements.push(requirement);
            match self.take() {
                (Token::End, _) => return Ok(requirements),
                (Token::Comma, _) => match self.peek() {
                    (Token::Word | Token::Not, _) => {}
                    (_, text) => return Err(found(text, "identifier after ','")),
                },
                (_, text) => return Err(found(text, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.take();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.take();
        }
        if token != Token::Word {
            return Err(found(key, "identifier"));
        }
        check_key(key, "<nil>")?;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = match self.take_operator() {
            (Token::In, _) => Operator::In,
            (Token::NotIn, _) => Operator::NotIn,
            (Token::Equals, _) => Operator::Equals,
            (Token::DoubleEquals, _) => Operator::DoubleEquals,
            (Token::NotEquals, _) => Operator::NotEquals,
            (Token::Greater, _) => Operator::GreaterThan,
            (Token::Less, _) => Operator::LessThan,
            (_, text) => return Err(found(text, "in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.take() {
            (Token::Word, text) => Ok(text.into()),
            (_, text) => Err(found(text, "identifier")),
        }
    }

    /// `(x,,y)`: values may be empty.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.take() {
            (Token::Open, _) => {}
            (_, text) => return Err(SelectorError(format!("found '{text}' expected: '('"))),
        }
        let mut values = Vec::new();
        let mut pending = true;
        loop {
            match self.take() {
                (Token::Word, text) if pending => {
                    values.push(text.to_string());
                    pending = false;
                }
                (Token::Comma, _) => {
                    if pending {
                        values.push(String::new());
                    }
                    pending = true;
                }
                (Token::Close, _) => {
                    if pending {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                (_, text) if pending => return Err(found(text, "',', ')' or identifier")),
                (_, text) => return Err(found(text, "',' or ')'")),
            }
        }
    }
}

fn check_key(key: &str, path: &str) -> Result<(), SelectorError> {
    match qualified_name_fault(key) {
        Some(fault) => Err(SelectorError(format!("{path}: Invalid value: {key:?}: {fault}"))),
        None => Ok(()),
    }
}

/// What is wrong with a qualified name (`[prefix/]name`), in upstream's words; faults are joined
/// by `; `.
pub fn qualified_name_fault(name: &str) -> Option<String> {
    const WHOLE: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
    const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let (prefix, name) = match name.split_once('/') {
        Some((_, rest)) if rest.contains('/') => return Some(WHOLE.into()),
        Some((prefix, rest)) => (Some(prefix), rest),
        None => (None, name),
    };
    let mut faults = Vec::new();
    match prefix {
        Some("") => faults.push("prefix part must be non-empty".to_string()),
        Some(p) => faults.extend(subdomain_faults(p).map(|f| format!("prefix part {f}"))),
        None => {}
    }
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        faults.push("name part must be no more than 63 bytes".into());
    }
    if !is_label_text(name) {
        faults.push(NAME.into());
    }
    (!faults.is_empty()).then(|| faults.join("; "))
}

/// What is wrong with a label's value, in upstream's words.
pub fn label_value_fault(value: &str) -> Option<String> {
    const FORM: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".into());
    }
    (!value.is_empty() && !is_label_text(value)).then(|| FORM.into())
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn subdomain_faults(text: &str) -> impl Iterator<Item = &'static str> {
    const FORM: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |l: &str| {
        let b = l.as_bytes();
        b.first().is_some_and(|b| plain(*b))
            && b.last().is_some_and(|b| plain(*b))
            && b.iter().all(|b| plain(*b) || *b == b'-')
    };
    let long = (text.len() > 253).then_some("must be no more than 253 bytes");
    let form = (!text.split('.').all(label)).then_some(FORM);
    long.into_iter().chain(form)
}

/// One comparison of a field selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldTerm {
    /// The field's label: `metadata.name`, `spec.nodeName`.
    pub field: String,
    /// What it is compared with.
    pub value: String,
    /// `=` and `==`; else `!=`.
    pub equal: bool,
}

/// Comparisons of an object's fields that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// From the form of a URL: `a=b,c!=d,e==f`, with `\\`, `\,` and `\=` in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text).into_iter().filter(|p| !p.is_empty()) {
            let Some((field, operator, value)) = split_term(part) else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            terms.push(FieldTerm {
                field: field.into(),
                value: unescape(value)?,
                equal: operator != "!=",
            });
        }
        terms.sort();
        Ok(FieldSelector { terms })
    }

    /// The comparisons, sorted.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// No comparison at all.
    pub fn selects_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that this field must have exactly, if the selector asks for one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// 400 for the first field that the kind does not know.
    pub fn check(&self, supported: impl Fn(&str) -> bool) -> Result<(), ApiError> {
        match self.terms.iter().find(|t| !supported(&t.field)) {
            Some(term) => {
                Err(ApiError::bad_request(format!("field label not supported: {}", term.field)))
            }
            None => Ok(()),
        }
    }

    /// Whether an object with these fields is selected; a field that the look-up lacks is empty.
    pub fn matches<'v>(&self, field: impl Fn(&str) -> Option<&'v str>) -> bool {
        self.terms.iter().all(|t| (field(&t.field).unwrap_or("") == t.value) == t.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

/// Cuts at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Field, operator and value at the first operator.
fn split_term(term: &str) -> Option<(&str, &'static str, &str)> {
    let at = term.find(['=', '!'])?;
    let operator = ["!=", "==", "="].into_iter().find(|op| term[at..].starts_with(op))?;
    Some((&term[..at], operator, &term[at + operator.len()..]))
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some(next @ ('\\' | ',' | '='))) => out.push(next),
            ('\\', next) => {
                return Err(SelectorError(format!(
                    "invalid field selector: invalid escape sequence: \\{}",
                    next.map(String::from).unwrap_or_default()
                )));
            }
            (',' | '=', _) => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(text: &str) -> LabelSelector {
        LabelSelector::parse(text).unwrap()
    }

    #[test]
    fn label_selectors_match() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "in": "x"});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("missing notin (web)", true),
            ("missing!=x", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app>1", false),
            ("in=x", true),
            ("in in (x)", true),
            ("in in (in,notin)", false),
            ("app=", false),
            ("app in (,web)", true),
        ] {
            assert_eq!(parsed(text).matches(&labels), expected, "{text}");
        }
    }

    #[test]
    fn label_selectors_print_canonically() {
        for (text, canonical) in [
            ("b=1, a==2", "a==2,b=1"),
            ("x notin (c,b , a)", "x notin (a,b,c)"),
            ("!z,y", "y,!z"),
            ("a in ()", "a in ()"),
            ("n>1", "n>1"),
        ] {
            assert_eq!(parsed(text).to_string(), canonical);
        }
    }

    #[test]
    fn bad_label_selectors_say_why() {
        for (text, message) in [
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().0, message, "{text}");
        }
        let key = LabelSelector::parse("a/b/c=d").unwrap_err().0;
        assert!(
            key.starts_with(
                "unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key"
            ),
            "{key}"
        );
        assert_eq!(ApiError::from(SelectorError("x".into())).reason.code(), 400);
    }

    #[test]
    fn typed_selectors() {
        let s = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        assert_eq!(LabelSelector::from_value(&s).unwrap().to_string(), "a=b,c");
        let empty = LabelSelector::from_value(&json!({})).unwrap();
        assert!(empty.selects_everything() && empty.matches(&json!({})));
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(&json!({})));
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Is", "values": ["b"]}]});
        let error = LabelSelector::from_value(&bad).unwrap_err();
        assert_eq!(error.0, "\"Is\" is not a valid label selector operator");
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=a,spec.x!=b,c==d\\,e").unwrap();
        assert_eq!(s.to_string(), "c=d\\,e,metadata.name=a,spec.x!=b");
        assert_eq!(s.exact("metadata.name"), Some("a"));
        let get = |f: &str| match f {
            "metadata.name" => Some("a"),
            "c" => Some("d,e"),
            _ => None,
        };
        assert!(s.matches(get));
        assert!(!FieldSelector::parse("metadata.name!=a").unwrap().matches(get));
        let error = s.check(|f| f == "metadata.name").unwrap_err();
        assert_eq!(error.message, "field label not supported: c");
        for (text, message) in [
            ("abc", "invalid selector: 'abc'; can't understand 'abc'"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
            ("a=\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().0, message);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-c=!(),<> in\\\\é]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
            }
        }
    }
}
