//! Kubeconfig files: finding, merging, choosing, writing.

use crate::cli::GlobalFlags;
use crate::error::{Error, Result};
use crate::printers::yaml;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What a `rkube` on this machine leaves for its admin.
pub const ADMIN_KUBECONFIG: &str = "/var/lib/rkube/admin.kubeconfig";

/// The lists of named entries, with the key of each entry's content.
pub const SECTIONS: [(&str, &str); 3] =
    [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];

/// One kubeconfig from all files that count.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    /// The merged content.
    pub value: Value,
    /// The files that were looked at, in order.
    pub files: Vec<PathBuf>,
}

/// Which cluster, as whom.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// The cluster's entry.
    pub cluster: Value,
    /// The user's entry.
    pub user: Value,
    /// The namespace of the context.
    pub namespace: String,
    /// The context's name, if there is one.
    pub context: String,
}

impl Kubeconfig {
    /// Reads and merges the files that the flags and the environment name.
    pub fn load(flags: &GlobalFlags) -> Result<Self> {
        if let Some(file) = &flags.kubeconfig {
            let path = PathBuf::from(file);
            if !path.exists() {
                return Err(Error::msg(format!("stat {file}: no such file or directory")));
            }
            return Ok(Kubeconfig { value: read(&path)?.unwrap_or_else(empty), files: vec![path] });
        }
        let mut files = default_files();
        let mut value = merged(&files)?;
        if is_empty(&value) {
            let admin = PathBuf::from(ADMIN_KUBECONFIG);
            if let Some(found) = read(&admin)? {
                value = found;
                files = vec![admin];
            }
        }
        Ok(Kubeconfig { value, files })
    }

    /// The entry with this name of a section (`clusters`, …), without the name.
    pub fn entry(&self, section: &str, name: &str) -> Option<&Value> {
        let key = SECTIONS.iter().find(|(s, _)| *s == section)?.1;
        let list = self.value[section].as_array()?;
        list.iter().find(|e| e["name"] == name).map(|e| &e[key])
    }

    /// The current context's name; the flag goes first.
    pub fn context_name(&self, flags: &GlobalFlags) -> String {
        flags
            .context
            .clone()
            .or_else(|| self.value["current-context"].as_str().map(Into::into))
            .unwrap_or_default()
    }

    /// Cluster and user after all flags.
    pub fn choose(&self, flags: &GlobalFlags) -> Result<Chosen> {
        let name = self.context_name(flags);
        let context = match self.entry("contexts", &name) {
            Some(context) => context.clone(),
            None if name.is_empty() => json!({}),
            None if flags.context.is_some() => {
                return Err(Error::Plain(format!(
                    "Error in configuration: context was not found for specified context: {name}"
                )));
            }
            None => json!({}),
        };
        let pick = |section: &str, flag: &Option<String>, key: &str| -> Result<Value> {
            let name = flag.as_deref().or(context[key].as_str()).unwrap_or("");
            match self.entry(section, name) {
                Some(found) => Ok(found.clone()),
                None if flag.is_some() => {
                    let what = section.trim_end_matches('s');
                    let what = if what == "user" { "auth info" } else { what };
                    Err(Error::msg(format!("{what} {name:?} does not exist")))
                }
                None => Ok(json!({})),
            }
        };
        let mut cluster = pick("clusters", &flags.cluster, "cluster")?;
        let mut user = pick("users", &flags.user, "user")?;
        override_cluster(&mut cluster, flags);
        override_user(&mut user, flags);
        let namespace = context["namespace"].as_str().unwrap_or("").to_owned();
        Ok(Chosen { cluster, user, namespace, context: name })
    }

    /// The file that a change goes to: the one that has the entry, else the first.
    pub fn file_of(&self, section: &str, name: &str) -> PathBuf {
        let has = |path: &&PathBuf| {
            read(path).ok().flatten().is_some_and(|value| match section {
                "current-context" => value[section].as_str().is_some_and(|c| !c.is_empty()),
                _ => value[section].as_array().is_some_and(|l| l.iter().any(|e| e["name"] == name)),
            })
        };
        let found = self.files.iter().find(has).or(self.files.iter().find(|f| f.exists()));
        found.or(self.files.first()).cloned().unwrap_or_else(home_file)
    }
}

fn override_cluster(cluster: &mut Value, flags: &GlobalFlags) {
    let mut set = |key: &str, value: &Option<String>| {
        if let Some(v) = value {
            cluster[key] = v.clone().into();
        }
    };
    set("server", &flags.server);
    set("certificate-authority", &flags.certificate_authority);
    set("tls-server-name", &flags.tls_server_name);
    if flags.certificate_authority.is_some() {
        remove(cluster, "certificate-authority-data");
    }
    if flags.insecure_skip_tls_verify {
        cluster["insecure-skip-tls-verify"] = true.into();
        remove(cluster, "certificate-authority-data");
        remove(cluster, "certificate-authority");
    }
    if let Some(server) = cluster["server"].as_str().map(with_scheme) {
        cluster["server"] = server.into();
    }
}

fn override_user(user: &mut Value, flags: &GlobalFlags) {
    if let Some(token) = &flags.token {
        user["token"] = token.clone().into();
        remove(user, "tokenFile");
    }
    if let Some(file) = &flags.client_certificate {
        user["client-certificate"] = file.clone().into();
        remove(user, "client-certificate-data");
    }
    if let Some(file) = &flags.client_key {
        user["client-key"] = file.clone().into();
        remove(user, "client-key-data");
    }
}

fn remove(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(key);
    }
}

fn with_scheme(server: &str) -> String {
    if server.contains("://") { server.to_owned() } else { format!("http://{server}") }
}

/// A kubeconfig that says nothing.
pub fn empty() -> Value {
    json!({"apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "",
           "clusters": null, "contexts": null, "users": null})
}

fn is_empty(value: &Value) -> bool {
    SECTIONS.iter().all(|(s, _)| value[*s].as_array().is_none_or(Vec::is_empty))
}

fn home_file() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    home.join(".kube/config")
}

fn default_files() -> Vec<PathBuf> {
    match std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty()) {
        Some(list) => std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect(),
        None => vec![home_file()],
    }
}

fn merged(files: &[PathBuf]) -> Result<Value> {
    let mut whole = empty();
    for file in files {
        let Some(next) = read(file)? else { continue };
        merge(&mut whole, &next);
    }
    Ok(whole)
}

/// The first file that names something wins.
fn merge(whole: &mut Value, next: &Value) {
    if whole["current-context"].as_str().is_none_or(str::is_empty)
        && let Some(current) = next["current-context"].as_str()
    {
        whole["current-context"] = current.into();
    }
    for (section, _) in SECTIONS {
        for entry in next[section].as_array().into_iter().flatten() {
            if whole[section].is_null() {
                whole[section] = json!([]);
            }
            let Some(list) = whole[section].as_array_mut() else { continue };
            if !list.iter().any(|e| e["name"] == entry["name"]) {
                list.push(entry.clone());
            }
        }
    }
}

/// A file's content with its relative paths made absolute; None if there is no such file.
fn read(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::msg(format!("error loading config file {path:?}: {e}"))),
    };
    let mut value = rkube_api::yaml::parse_value(&text)
        .map_err(|e| Error::msg(format!("error loading config file {path:?}: yaml: {e}")))?;
    if value.is_null() {
        value = empty();
    }
    if !value.is_object() {
        return Err(Error::msg(format!("error loading config file {path:?}: not a kubeconfig")));
    }
    absolute_paths(&mut value, path.parent().unwrap_or(Path::new("")));
    Ok(Some(value))
}

fn absolute_paths(value: &mut Value, base: &Path) {
    for (section, key) in SECTIONS {
        for entry in value[section].as_array_mut().into_iter().flatten() {
            let Some(map) = entry.get_mut(key).and_then(Value::as_object_mut) else { continue };
            for name in ["certificate-authority", "client-certificate", "client-key", "tokenFile"] {
                if let Some(Value::String(file)) = map.get_mut(name)
                    && !file.is_empty()
                    && Path::new(file.as_str()).is_relative()
                {
                    *file = base.join(&*file).to_string_lossy().into_owned();
                }
            }
        }
    }
}

/// Changes a file in place (mode 0600, replaced at once) and makes it if it is missing.
pub fn update(path: &Path, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut value = match rkube_api::yaml::parse_value(&text) {
        Ok(Value::Null) => empty(),
        Ok(value) => value,
        Err(e) => return Err(Error::msg(format!("error loading config file {path:?}: yaml: {e}"))),
    };
    change(&mut value)?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    write_private(path, &yaml::to_string(&value))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&beside, path)?;
    Ok(())
}

/// The entry with this name, made if it is missing, sorted by name.
pub fn named_entry<'a>(value: &'a mut Value, section: &str, name: &str) -> (&'a mut Value, bool) {
    let key = SECTIONS.iter().find(|(s, _)| *s == section).map_or("context", |(_, k)| k);
    if !value[section].is_array() {
        value[section] = json!([]);
    }
    let Value::Array(list) = &mut value[section] else { unreachable!("made an array above") };
    let found = list.iter().position(|e| e["name"] == name);
    let created = found.is_none();
    if created {
        let mut entry = Map::new();
        entry.insert("name".into(), name.into());
        entry.insert(key.into(), json!({}));
        list.push(Value::Object(entry));
        list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    }
    let index = list.iter().position(|e| e["name"] == name).unwrap_or(0);
    (&mut list[index][key], created)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_wins_and_paths_become_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "clusters:\n- name: c\n  cluster: {server: 'https://a', certificate-authority: ca.crt}\n").unwrap();
        std::fs::write(&b, "current-context: x\nclusters:\n- name: c\n  cluster: {server: 'https://b'}\ncontexts:\n- name: x\n  context: {cluster: c, user: u, namespace: team}\n").unwrap();
        let value = merged(&[a, b, dir.path().join("none")]).unwrap();
        let config = Kubeconfig { value, files: vec![] };
        let chosen = config.choose(&GlobalFlags::default()).unwrap();
        assert_eq!(chosen.cluster["server"], "https://a");
        let ca = dir.path().join("ca.crt");
        assert_eq!(chosen.cluster["certificate-authority"], ca.to_str().unwrap());
        assert_eq!(chosen.namespace, "team");
        let flags = GlobalFlags { context: Some("nope".into()), ..Default::default() };
        assert_eq!(
            config.choose(&flags).unwrap_err().to_string(),
            "Error in configuration: context was not found for specified context: nope"
        );
    }

    #[test]
    fn a_change_keeps_the_rest_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/config");
        for name in ["b", "a"] {
            update(&file, |v| {
                named_entry(v, "clusters", name).0["server"] = format!("https://{name}").into();
                Ok(())
            })
            .unwrap();
        }
        let value = read(&file).unwrap().unwrap();
        assert_eq!(value["clusters"][0]["name"], "a");
        assert_eq!(value["clusters"][1]["cluster"]["server"], "https://b");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
