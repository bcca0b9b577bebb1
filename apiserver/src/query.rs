//! Query strings.

use rkube_api::ApiError;

/// The parameters of a query string, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query string; what is not valid UTF-8 is dropped.
    pub fn parse(text: &str) -> Self {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Some((percent_decode(key, true)?, percent_decode(value, true)?))
        };
        Query(text.split('&').filter(|p| !p.is_empty()).filter_map(pair).collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of a parameter that is not empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|v| !v.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A flag; `true`, `1` and the bare name count as set.
    ///
    /// # Errors
    /// 400 for anything that is no truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some("true" | "1" | "True" | "t" | "T" | "TRUE" | "") => Ok(Some(true)),
            Some("false" | "0" | "False" | "f" | "F" | "FALSE") => Ok(Some(false)),
            Some(other) => Err(ApiError::bad_request(format!(
                "strconv.ParseBool: parsing {other:?}: invalid syntax"
            ))),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        self.text(key)
            .map(|v| {
                v.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "strconv.ParseInt: parsing {v:?}: invalid syntax"
                    ))
                })
            })
            .transpose()
    }
}

/// Undoes percent encoding (and `+` for a space in a query); None if the result is not UTF-8.
pub fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = || {
            let pair = text.get(i + 1..i + 3)?;
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            u8::from_str_radix(pair, 16).ok()
        };
        match bytes[i] {
            b'%' => match hex() {
                Some(byte) => {
                    out.push(byte);
                    i += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let q = Query::parse("a=1&b=x%2Cy+z&command=ls&command=-l&flag&bad=%ff");
        assert_eq!(q.get("a"), Some("1"));
        assert_eq!(q.get("b"), Some("x,y z"));
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["ls", "-l"]);
        assert_eq!(q.flag("flag").unwrap(), Some(true));
        assert_eq!(q.get("bad"), None);
        assert_eq!(q.number("a").unwrap(), Some(1));
        assert!(q.number("b").is_err());
        assert_eq!(percent_decode("100%", false).as_deref(), Some("100%"));
    }
}
