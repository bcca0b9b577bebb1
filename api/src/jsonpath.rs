//! kubectl's dialect of JSONPath: text with `{…}` in it, ranges, filters, wildcards, unions,
//! slices, recursive descent. A key that is missing gives nothing; an index past the end is an
//! error.

use serde_json::Value;
use std::cmp::Ordering;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
    /// Give results as one JSON list instead of text.
    pub as_json: bool,
}

/// Why a template can't be read or does not fit an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonPathError(String);

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    /// Expressions whose results are printed one after the other.
    Action(Vec<Expr>),
    Range(Path, Vec<Node>),
}

#[derive(Clone, Debug)]
enum Expr {
    Literal(Value),
    Path(Path),
}

#[derive(Clone, Debug, Default)]
struct Path {
    /// Starts at the innermost range's item, not at the whole object, unless `$` says so.
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Wildcard,
    Descend,
    Slice(Option<i64>, Option<i64>, Option<i64>),
    Index(i64),
    Union(Vec<Step>),
    Filter(Box<Filter>),
}

#[derive(Clone, Debug)]
struct Filter {
    left: Expr,
    test: Option<(Test, Expr)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Test {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

type Result<T> = std::result::Result<T, JsonPathError>;

fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(JsonPathError(text.into()))
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { rest: text };
        let nodes = parser.nodes(0)?;
        Ok(Template { text: text.into(), nodes, as_json: false })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text for an object.
    pub fn render(&self, object: &Value) -> Result<String> {
        if self.as_json {
            let found = self.find(object)?;
            return pretty(&Value::Array(found.into_iter().cloned().collect()));
        }
        let mut out = String::new();
        let scope = Scope { root: object, here: object };
        render(&self.nodes, scope, &mut out)?;
        Ok(out)
    }

    /// All values that the template's paths lead to, in order.
    pub fn find<'a>(&self, object: &'a Value) -> Result<Vec<&'a Value>> {
        let mut found = Vec::new();
        collect(&self.nodes, Scope { root: object, here: object }, &mut found)?;
        Ok(found)
    }
}

/// JSON as kubectl indents it, with a newline at the end.
fn pretty(value: &Value) -> Result<String> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    let failed = |e: &dyn std::fmt::Display| JsonPathError(e.to_string());
    serde::Serialize::serialize(value, &mut serializer).map_err(|e| failed(&e))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

/// `x.y`, `.x.y`, `{x.y}` and `{.x.y}` all mean the same where a single path is expected.
pub fn relaxed(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok(String::new());
    }
    let bare = match path.strip_prefix('{') {
        Some(rest) => match rest.strip_suffix('}') {
            Some(inner) => inner,
            None => return fail(bad_relaxed(path)),
        },
        None => path,
    };
    if bare.contains(['{', '}']) {
        return fail(bad_relaxed(path));
    }
    let bare = bare.strip_prefix('.').unwrap_or(bare);
    Ok(format!("{{.{bare}}}"))
}

fn bad_relaxed(path: &str) -> String {
    format!(
        "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{{name1.name2}}' or '{{.name1.name2}}': {path:?}"
    )
}

/// A value as a template prints it: text bare, lists and maps as JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    root: &'a Value,
    here: &'a Value,
}

fn render(nodes: &[Node], scope: Scope<'_>, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Action(exprs) => {
                for expr in exprs {
                    out.push_str(&expr_text(expr, scope)?);
                }
            }
            Node::Range(path, body) => {
                for item in items(eval(path, scope)?) {
                    render(body, Scope { here: item, ..scope }, out)?;
                }
            }
        }
    }
    Ok(())
}

fn expr_text(expr: &Expr, scope: Scope<'_>) -> Result<String> {
    Ok(match expr {
        Expr::Literal(value) => text_of(value),
        Expr::Path(path) => {
            eval(path, scope)?.into_iter().map(text_of).collect::<Vec<_>>().join(" ")
        }
    })
}

fn collect<'a>(nodes: &[Node], scope: Scope<'a>, found: &mut Vec<&'a Value>) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Action(exprs) => {
                for expr in exprs {
                    if let Expr::Path(path) = expr {
                        found.extend(eval(path, scope)?);
                    }
                }
            }
            Node::Range(path, body) => {
                for item in items(eval(path, scope)?) {
                    collect(body, Scope { here: item, ..scope }, found)?;
                }
            }
        }
    }
    Ok(())
}

/// A range over one list goes over its items.
fn items(found: Vec<&Value>) -> Vec<&Value> {
    match found.as_slice() {
        [Value::Array(items)] => items.iter().collect(),
        _ => found,
    }
}

fn eval<'a>(path: &Path, scope: Scope<'a>) -> Result<Vec<&'a Value>> {
    let start = if path.from_root { scope.root } else { scope.here };
    path.steps.iter().try_fold(vec![start], |found, step| {
        let mut next = Vec::new();
        for value in found {
            apply(step, value, &mut next)?;
        }
        Ok(next)
    })
}

fn apply<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) -> Result<()> {
    match step {
        Step::Field(name) => out.extend(value.get(name.as_str())),
        Step::Wildcard => out.extend(children(value)),
        Step::Descend => descend(value, out),
        Step::Index(index) => {
            let Value::Array(list) = value else { return not_a_list(value) };
            let at = if *index < 0 { index + list.len() as i64 } else { *index };
            match usize::try_from(at).ok().and_then(|i| list.get(i)) {
                Some(item) => out.push(item),
                None => {
                    return fail(format!(
                        "array index out of bounds: index {at}, length {}",
                        list.len()
                    ));
                }
            }
        }
        Step::Slice(from, to, by) => {
            let Value::Array(list) = value else { return not_a_list(value) };
            out.extend(slice(list, *from, *to, *by)?);
        }
        Step::Union(steps) => {
            for step in steps {
                apply(step, value, out)?;
            }
        }
        Step::Filter(filter) => {
            let Value::Array(list) = value else { return not_a_list(value) };
            for item in list {
                if passes(filter, item)? {
                    out.push(item);
                }
            }
        }
    }
    Ok(())
}

fn not_a_list<T>(value: &Value) -> Result<T> {
    match value {
        Value::Null => fail("<nil> is not array or slice"),
        _ => fail(format!("{value} is not array or slice")),
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    for child in children(value) {
        descend(child, out);
    }
}

fn slice(
    list: &[Value],
    from: Option<i64>,
    to: Option<i64>,
    by: Option<i64>,
) -> Result<Vec<&Value>> {
    let length = list.len() as i64;
    let place = |n: i64| if n < 0 { n + length } else { n };
    let from = place(from.unwrap_or(0));
    let to = place(to.unwrap_or(length)).min(length);
    let by = by.unwrap_or(1);
    if by <= 0 {
        return fail("step must be > 0");
    }
    if from < 0 || from > length {
        return fail(format!("array index out of bounds: index {from}, length {length}"));
    }
    // Both bounds are within the list and `by` is positive.
    let range = (from.max(0) as usize)..(to.max(from) as usize);
    Ok(list[range].iter().step_by(by as usize).collect())
}

fn passes(filter: &Filter, item: &Value) -> Result<bool> {
    let scope = Scope { root: item, here: item };
    let left = operand(&filter.left, scope)?;
    let Some((test, right)) = &filter.test else { return Ok(!left.is_empty()) };
    let right = operand(right, scope)?;
    let (Some(left), Some(right)) = (left.first(), right.first()) else { return Ok(false) };
    Ok(holds(*test, left, right))
}

fn operand(expr: &Expr, scope: Scope<'_>) -> Result<Vec<Value>> {
    match expr {
        Expr::Literal(value) => Ok(vec![value.clone()]),
        Expr::Path(path) => Ok(eval(path, scope)?.into_iter().cloned().collect()),
    }
}

fn holds(test: Test, left: &Value, right: &Value) -> bool {
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b))
        }
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(Ordering::Equal),
    };
    match test {
        Test::Equal => order == Some(Ordering::Equal),
        Test::Unequal => order != Some(Ordering::Equal),
        Test::Less => order == Some(Ordering::Less),
        Test::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Test::Greater => order == Some(Ordering::Greater),
        Test::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// Nodes up to the end, or to the `{end}` of the range that they stand in.
    fn nodes(&mut self, depth: usize) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        loop {
            let open = self.rest.find('{').unwrap_or(self.rest.len());
            if open > 0 {
                nodes.push(Node::Text(self.rest[..open].into()));
                self.rest = &self.rest[open..];
            }
            if self.rest.is_empty() {
                return if depth > 0 {
                    fail("unexpected end of range: {end} is missing")
                } else {
                    Ok(nodes)
                };
            }
            self.rest = &self.rest[1..];
            self.skip_spaces();
            if self.keyword("end") {
                self.expect('}')?;
                return if depth == 0 { fail("not in range, nothing to end") } else { Ok(nodes) };
            }
            if self.keyword("range") {
                let path = self.path()?;
                self.expect('}')?;
                nodes.push(Node::Range(path, self.nodes(depth + 1)?));
                continue;
            }
            nodes.push(Node::Action(self.exprs()?));
        }
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let follows = self.rest.strip_prefix(word).and_then(|r| r.chars().next());
        follows.is_some_and(|c| !c.is_alphanumeric()) && self.take(word)
    }

    fn expect(&mut self, c: char) -> Result<()> {
        self.skip_spaces();
        match self.peek() {
            Some(found) if found == c => {
                self.rest = &self.rest[c.len_utf8()..];
                Ok(())
            }
            Some(found) if c == '}' => fail(format!("unrecognized character in action: {found:?}")),
            _ if c == '}' => fail("unclosed action"),
            _ => fail(format!("unterminated array or filter: {c} is missing")),
        }
    }

    fn exprs(&mut self) -> Result<Vec<Expr>> {
        let mut exprs = Vec::new();
        loop {
            self.skip_spaces();
            match self.peek() {
                None => return fail("unclosed action"),
                Some('}') => {
                    self.rest = &self.rest[1..];
                    return Ok(exprs);
                }
                Some(_) => exprs.push(self.expr()?),
            }
        }
    }

    fn expr(&mut self) -> Result<Expr> {
        match self.peek() {
            Some('"' | '\'') => Ok(Expr::Literal(Value::String(self.quoted()?))),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '+' => self.number(),
            Some('.' | '$' | '@' | '[') => Ok(Expr::Path(self.path()?)),
            Some(c) if c.is_alphabetic() => self.word(),
            Some(c) => fail(format!("unrecognized character in action: {c:?}")),
            None => fail("unclosed action"),
        }
    }

    fn word(&mut self) -> Result<Expr> {
        let end = self.rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let value = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return fail(format!("unrecognized identifier {word}")),
        };
        self.rest = &self.rest[end..];
        Ok(Expr::Literal(value))
    }

    fn number(&mut self) -> Result<Expr> {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '+' | '-'))
            .unwrap_or(self.rest.len());
        let text = &self.rest[..end];
        let value = match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(i), _) => Value::from(i),
            (_, Ok(f)) => Value::from(f),
            _ => return fail(format!("cannot parse number {text}")),
        };
        self.rest = &self.rest[end..];
        Ok(Expr::Literal(value))
    }

    fn quoted(&mut self) -> Result<String> {
        let Some(quote) = self.peek() else { return fail("unterminated quoted string") };
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, other)) => text.push(other),
                    None => break,
                },
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        fail("unterminated quoted string")
    }

    fn path(&mut self) -> Result<Path> {
        self.skip_spaces();
        let mut path = Path { from_root: self.take("$"), steps: Vec::new() };
        if !path.from_root {
            self.take("@");
        }
        loop {
            if self.take("..") {
                path.steps.push(Step::Descend);
                if self.peek() == Some('[') {
                    continue;
                }
                self.field(&mut path.steps)?;
            } else if self.take(".") {
                if self.peek() == Some('[') {
                    continue;
                }
                self.field(&mut path.steps)?;
            } else if self.take("[") {
                path.steps.push(self.bracket()?);
            } else {
                return Ok(path);
            }
        }
    }

    /// A name up to the next character with a meaning; `\.` is a dot in the name.
    fn field(&mut self, steps: &mut Vec<Step>) -> Result<()> {
        if self.take("*") {
            steps.push(Step::Wildcard);
            return Ok(());
        }
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ']' | '}' | '{' | ')' | '(' | ',' | '=' | '!' | '<' | '>' | '|'
                | '&' | '@' | '\'' | '"' => {
                    end = at;
                    break;
                }
                c if c.is_whitespace() => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        if !name.is_empty() {
            steps.push(Step::Field(name));
        }
        Ok(())
    }

    fn bracket(&mut self) -> Result<Step> {
        self.skip_spaces();
        if self.take("?(") {
            let filter = self.filter()?;
            self.expect(')')?;
            self.expect(']')?;
            return Ok(Step::Filter(Box::new(filter)));
        }
        let mut steps = vec![self.member()?];
        loop {
            self.skip_spaces();
            if self.take(",") {
                steps.push(self.member()?);
                continue;
            }
            self.expect(']')?;
            return Ok(if steps.len() == 1 { steps.remove(0) } else { Step::Union(steps) });
        }
    }

    fn member(&mut self) -> Result<Step> {
        self.skip_spaces();
        match self.peek() {
            Some('\'' | '"') => Ok(Step::Field(self.quoted()?)),
            Some('*') => {
                self.rest = &self.rest[1..];
                Ok(Step::Wildcard)
            }
            _ => self.index_or_slice(),
        }
    }

    fn index_or_slice(&mut self) -> Result<Step> {
        let end = self.rest.find([',', ']']).unwrap_or(self.rest.len());
        let text = self.rest[..end].trim();
        let bad = || JsonPathError(format!("invalid array index {text}"));
        let parts: Vec<Option<i64>> = text
            .split(':')
            .map(|p| match p.trim() {
                "" => Ok(None),
                p => p.parse().map(Some).map_err(|_| bad()),
            })
            .collect::<Result<_>>()?;
        self.rest = &self.rest[end..];
        match parts.as_slice() {
            [Some(index)] => Ok(Step::Index(*index)),
            [from, to] => Ok(Step::Slice(*from, *to, None)),
            [from, to, by] => Ok(Step::Slice(*from, *to, *by)),
            _ => Err(bad()),
        }
    }

    fn filter(&mut self) -> Result<Filter> {
        self.skip_spaces();
        let left = self.expr()?;
        self.skip_spaces();
        let tests = [
            ("==", Test::Equal),
            ("!=", Test::Unequal),
            ("<=", Test::LessOrEqual),
            (">=", Test::GreaterOrEqual),
            ("<", Test::Less),
            (">", Test::Greater),
        ];
        for (sign, test) in tests {
            if self.take(sign) {
                self.skip_spaces();
                return Ok(Filter { left, test: Some((test, self.expr()?)) });
            }
        }
        Ok(Filter { left, test: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn object() -> Value {
        json!({
            "kind": "List",
            "metadata": {"annotations": {"a.b/c": "dotted"}, "name": "m"},
            "items": [
                {"metadata": {"name": "one"}, "n": 1, "ready": true},
                {"metadata": {"name": "two"}, "n": 2, "caps": {"cpu": "4"}},
                {"metadata": {"name": "three"}, "n": 3},
            ],
        })
    }

    #[test]
    fn what_kubectl_documents() {
        let cases = [
            ("{.kind}", "List"),
            ("kind is {.kind}", "kind is List"),
            ("{['kind']}", "List"),
            ("{..name}", "one two three m"),
            ("{.items[*].metadata.name}", "one two three"),
            ("{.items[0].metadata.name}", "one"),
            ("{.items[-1:].metadata.name}", "three"),
            ("{.items[-1].n}", "3"),
            ("{.items[0:3:2].n}", "1 3"),
            ("{.items[0,2].n}", "1 3"),
            ("{.items[?(@.n>1)].metadata.name}", "two three"),
            ("{.items[?(@.metadata.name==\"two\")].n}", "2"),
            ("{.items[?(@.ready==true)].n}", "1"),
            ("{.items[?(@.caps)].n}", "2"),
            ("{.items[1]['metadata','caps']}", "{\"name\":\"two\"} {\"cpu\":\"4\"}"),
            ("{range .items[*]}[{.metadata.name}, {.n}] {end}", "[one, 1] [two, 2] [three, 3] "),
            ("{range .items}{.n}{\"\\n\"}{end}", "1\n2\n3\n"),
            ("{range.items[*]}{.n}{end}", "123"),
            ("{.metadata.annotations.a\\.b/c}", "dotted"),
            ("{.metadata.annotations['a.b/c']}", "dotted"),
            ("{.nope.deeper}", ""),
            ("{range .items[*]}{$.kind}{'\\t'}{end}", "List\tList\tList\t"),
            ("{@.kind}{\" \"}{$.kind}", "List List"),
            ("{.items[*]['metadata.name', 'n']}", "1 2 3"),
        ];
        for (template, want) in cases {
            let parsed = Template::parse(template).unwrap_or_else(|e| panic!("{template}: {e}"));
            assert_eq!(parsed.render(&object()).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn faults() {
        for template in
            ["{.x", "{range .items}", "{end}", "{.items[a]}", "{\"x}", "{.items[?(@.n", "{%}"]
        {
            assert!(Template::parse(template).is_err(), "{template}");
        }
        let e = Template::parse("{.items[5]}").unwrap().render(&object()).unwrap_err();
        assert_eq!(e.to_string(), "array index out of bounds: index 5, length 3");
    }

    #[test]
    fn single_paths_may_be_relaxed() {
        for path in ["x.y", ".x.y", "{x.y}", "{.x.y}"] {
            assert_eq!(relaxed(path).unwrap(), "{.x.y}");
        }
        assert!(relaxed("{x.y").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ -~]{0,40}") {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.render(&object());
            }
        }
    }
}
