//! Checks of names, label keys and the like, by hand: they run for every field of every write.
//! Each returns what is wrong in upstream's words; a sound text costs no allocation.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Starts and ends with `edge`, and holds nothing but `inner`.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(b)) if edge(*a) && edge(*b))
        && bytes.iter().all(|b| inner(*b))
}

fn label_shaped(text: &str) -> bool {
    shaped(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn qualified_shaped(text: &str) -> bool {
    shaped(
        text,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
    )
}

/// RFC 1123 label, at most 63 bytes.
pub(super) fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(too_long(63));
    }
    if !label_shaped(text) {
        wrong.push(LABEL.into());
    }
    wrong
}

/// RFC 1123 subdomain, at most 253 bytes.
pub(super) fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(too_long(253));
    }
    if !text.split('.').all(label_shaped) {
        wrong.push(SUBDOMAIN.into());
    }
    wrong
}

/// A label's or annotation's key: an optional subdomain and `/`, and a name of at most 63 bytes.
pub(super) fn label_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(""), Some(name), None) => {
            wrong.push("prefix part must be non-empty".into());
            name
        }
        (Some(prefix), Some(name), None) => {
            wrong.extend(dns_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            name
        }
        _ => {
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {NAME_PART} {tail}")];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", too_long(63)));
    }
    if !qualified_shaped(name) {
        wrong.push(format!("name part {NAME_PART}"));
    }
    wrong
}

/// A label's value: at most 63 bytes, may be empty.
pub(super) fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(too_long(63));
    }
    if !text.is_empty() && !qualified_shaped(text) {
        wrong.push(LABEL_VALUE.into());
    }
    wrong
}

/// An environment variable's name.
pub(super) fn env_name(text: &str) -> Vec<String> {
    let sound = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    if sound { Vec::new() } else { vec![ENV_NAME.into()] }
}

/// A key of a ConfigMap or Secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(too_long(253));
    }
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(inner) {
        wrong.push(CONFIG_KEY.into());
    }
    match text {
        "." => wrong.push("must not be '.'".into()),
        ".." => wrong.push("must not be '..'".into()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".into()),
        _ => {}
    }
    wrong
}

/// The name of a port: IANA's rules.
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 bytes".into());
    }
    let bytes = text.as_bytes();
    if !bytes.iter().all(|b| lower_alnum(*b) || *b == b'-') || bytes.is_empty() {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

/// A port's number.
pub(super) fn port_number(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".into()]
    }
}

/// The name of an HTTP header.
pub(super) fn http_header(text: &str) -> Vec<String> {
    let sound = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if sound { Vec::new() } else { vec![HTTP_HEADER.into()] }
}

/// An IP address.
pub(super) fn ip(text: &str) -> Vec<String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
    }
}

/// An address range, as in `10.9.8.0/24`.
pub(super) fn cidr(text: &str) -> Vec<String> {
    let sound = text.split_once('/').is_some_and(|(address, bits)| {
        let max = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
    });
    if sound {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()]
    }
}

/// A value as the `Strategy::validate_name` of a kind wants it.
pub(super) fn first(wrong: Vec<String>) -> Option<String> {
    if wrong.is_empty() { None } else { Some(wrong.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for (check, good, bad) in [
            (dns_label as fn(&str) -> Vec<String>, "a-1", "a."),
            (dns_label, "1a", "A"),
            (dns_subdomain, "a.b-c.1", "a..b"),
            (dns_subdomain, "1", "a.-b"),
            (label_key, "a.b/C_d", "a.b/"),
            (label_key, "A", "/a"),
            (label_value, "", "-a"),
            (label_value, "A_1.b", "a b"),
            (env_name, "A b", "a=b"),
            (config_key, ".a", ".."),
            (config_key, "A_b-c", "a/b"),
            (port_name, "http-2", "80"),
            (port_name, "h", "a--b"),
            (ip, "::1", "1.2.3"),
            (cidr, "10.0.0.0/8", "10.0.0.0/33"),
            (http_header, "X-A", "X A"),
        ] {
            assert_eq!(check(good), Vec::<String>::new(), "{good:?}");
            assert!(!check(bad).is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn long_names_are_refused() {
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(dns_subdomain(&"a".repeat(254)), ["must be no more than 253 bytes"]);
    }

    proptest::proptest! {
        /// The checks by hand accept what the regular expressions in their messages do.
        #[test]
        fn hand_written_checks_agree_with_their_expressions(
            text in "[-_.aZ9/ ]{0,6}", long in "[a.]{60,64}"
        ) {
            for text in [text.as_str(), long.as_str()] {
                let is = |expression: &str| {
                    regex::Regex::new(&format!("^(?:{expression})$")).unwrap().is_match(text)
                };
                let label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
                let word = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
                let short = text.len() <= 63;
                proptest::prop_assert_eq!(dns_label(text).is_empty(), is(label) && short);
                let subdomain = format!("{label}(\\.{label})*");
                proptest::prop_assert_eq!(dns_subdomain(text).is_empty(), is(&subdomain));
                proptest::prop_assert_eq!(
                    label_value(text).is_empty(), is(&format!("({word})?")) && short
                );
                let name = text.rsplit('/').next().unwrap_or("");
                let key = format!("({subdomain}/)?{word}");
                proptest::prop_assert_eq!(
                    label_key(text).is_empty(), is(&key) && name.len() <= 63
                );
            }
        }
    }
}
