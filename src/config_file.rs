//! `--config FILE`: a YAML map from flags' names to values.
//!
//! A key becomes a flag in front of those that were typed, unless its environment variable is
//! set: a typed flag wins over the environment, the environment over the file.

use anyhow::{Context, Result, bail};
use serde_yaml::Value;
use std::ffi::OsString;

/// The subcommands that take a configuration file.
const WITH_FILE: [&str; 3] = ["up", "server", "agent"];

/// The arguments with those of the configuration file put in, if one is named.
pub fn expand(args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = config_path(&args) else { return Ok(args) };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("reading the configuration file {path}"))?;
    let from_file = flags(&text, |name| std::env::var_os(name).is_some())
        .with_context(|| format!("configuration file {path}"))?;
    let subcommand = args.iter().position(|a| WITH_FILE.iter().any(|name| a == name));
    let Some(at) = subcommand.map(|i| i + 1) else {
        bail!("--config goes with {}", WITH_FILE.join(", "));
    };
    let mut all = args;
    all.splice(at..at, from_file.into_iter().map(OsString::from));
    Ok(all)
}

fn config_path(args: &[OsString]) -> Option<String> {
    let mut rest = args.iter().map(|a| a.to_string_lossy());
    while let Some(arg) = rest.next() {
        if arg == "--config" {
            return rest.next().map(|p| p.into_owned());
        }
        if let Some(path) = arg.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    None
}

/// The flags that a configuration file stands for.
fn flags(text: &str, is_set: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let map = match serde_yaml::from_str(text)? {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        _ => bail!("a map from flags' names to values is expected"),
    };
    let mut flags = Vec::new();
    for (key, value) in &map {
        let Some(key) = key.as_str() else { bail!("{key:?} is no flag's name") };
        if is_set(&format!("RKUBE_{}", key.replace('-', "_").to_uppercase())) {
            continue;
        }
        let scalar = |value: &Value| -> Result<String> {
            match value {
                Value::String(s) => Ok(s.clone()),
                Value::Number(n) => Ok(n.to_string()),
                Value::Bool(b) => Ok(b.to_string()),
                _ => bail!("{key}: a plain value or a list of them is expected"),
            }
        };
        match value {
            Value::Bool(true) => flags.push(format!("--{key}")),
            Value::Bool(false) | Value::Null => {}
            Value::Sequence(items) => {
                for item in items {
                    flags.push(format!("--{key}={}", scalar(item)?));
                }
            }
            other => flags.push(format!("--{key}={}", scalar(other)?)),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_flags() {
        let text = "secure-port: 7443\nno-agent: true\ntls-san: [a, b]\nfresh: false\n";
        let expected = ["--secure-port=7443", "--no-agent", "--tls-san=a", "--tls-san=b"];
        assert_eq!(flags(text, |_| false).unwrap(), expected);
        assert_eq!(flags(text, |name| name == "RKUBE_SECURE_PORT").unwrap(), expected[1..]);
        assert!(flags("- a", |_| false).is_err());
        assert!(flags("a: {b: c}", |_| false).is_err());
        assert!(flags("a: [", |_| false).unwrap_err().to_string().contains("line"));
    }

    #[test]
    fn the_path_is_found_in_both_forms() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(config_path(&args(&["rkube", "--config", "x", "up"])).as_deref(), Some("x"));
        assert_eq!(config_path(&args(&["rkube", "up", "--config=y"])).as_deref(), Some("y"));
        assert_eq!(config_path(&args(&["rkube", "up"])), None);
    }
}
