//! The house rules that a machine can check: who may know whom, the size of files, and that the
//! mutants still apply.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// For each crate of the workspace the other crates of the workspace that it may depend on.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("rkube-api", &[]),
    ("rkube-proto", &[]),
    ("rkube-etcd-api", &[]),
    ("rkube-streaming", &[]),
    ("rkube-net", &[]),
    ("rkube-hollow", &["rkube-api", "rkube-runtime"]),
    ("rkube-store", &["rkube-api", "rkube-proto"]),
    ("rkube-peer", &["rkube-store", "rkube-proto"]),
    ("rkube-cri", &["rkube-proto"]),
    ("rkube-runtime", &["rkube-api"]),
    ("rkube-apiserver", &["rkube-api", "rkube-store", "rkube-streaming"]),
    ("rkube-controller", &["rkube-api", "rkube-runtime"]),
    ("rkube-scheduler", &["rkube-api", "rkube-runtime"]),
    ("rkube-kubelet", &["rkube-api", "rkube-runtime", "rkube-cri", "rkube-net", "rkube-streaming"]),
    ("rkube-kubectl", &["rkube-api"]),
];

/// What the pure crate must not bring in.
const NOT_IN_API: &[&str] = &["tokio", "tonic", "sled", "raft", "rand", "hyper", "kube"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    serde_json::from_slice(&output.stdout).expect("cargo metadata answers JSON")
}

/// The normal dependencies of each crate.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let normal = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        let normal = all.filter(|d| d["kind"].is_null());
        normal.map(|d| d["name"].as_str().unwrap().to_string()).collect()
    };
    packages.iter().map(|p| (p["name"].as_str().unwrap().to_string(), normal(p))).collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let dependencies = dependencies();
    for (name, may) in MAY_KNOW {
        let has = dependencies.get(*name).unwrap_or_else(|| panic!("{name} is gone"));
        for other in has.iter().filter(|d| d.starts_with("rkube-")) {
            assert!(may.contains(&other.as_str()), "{name} may not know {other}");
        }
    }
    let known = |name: &String| MAY_KNOW.iter().any(|(n, _)| n == name);
    for name in dependencies.keys().filter(|n| n.starts_with("rkube-")) {
        assert!(known(name), "say in MAY_KNOW whom {name} may know");
    }
}

#[test]
fn the_objects_are_pure() {
    for banned in NOT_IN_API {
        let has = &dependencies()["rkube-api"];
        assert!(!has.contains(&banned.to_string()), "rkube-api brings in {banned}");
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder of the repository").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 50, "the sources are not where they should be");
    found
}

#[test]
fn no_file_is_longer_than_a_room() {
    for path in all_sources() {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 800, "{} has {lines} lines: it wants a second room", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in all_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not begin with //!", path.display());
    }
}

#[test]
fn every_mutant_names_its_bug_and_applies() {
    let folder = std::fs::read_dir(root().join("tests/mutants")).expect("the mutants").flatten();
    let patches = folder.map(|entry| entry.path());
    let patches: Vec<_> = patches.filter(|p| p.extension().is_some_and(|e| e == "patch")).collect();
    assert!(patches.len() >= 20, "the mutants are not where they should be");
    for path in patches {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("Upstream: "), "{} names no bug", path.display());
        let mut git = Command::new("git");
        let check = git.args(["apply", "--check"]).arg(&path).current_dir(root()).status();
        assert!(check.expect("git").success(), "{} does not apply", path.display());
    }
}
