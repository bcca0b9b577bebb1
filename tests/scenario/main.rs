//! Scripts of rkubectl against a control plane without nodes, and what bad input gets.
//!
//! Each `*.txt` beside this file is a script: what a person types and what they see. A server is
//! started for each, and every command's output is compared; what varies is written as a
//! placeholder such as `<age>` (the list is in `pattern.rs`). `UPDATE_SCENARIOS=1` writes what came
//! out into the scripts; `SCENARIO_KUBECTL=/path/to/kubectl` runs them with that kubectl.

mod bad_input;
mod pattern;
mod script;
mod server;

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenario");
    let mut trials: Vec<Trial> = scripts(&folder).into_iter().map(trial).collect();
    trials.extend(bad_input::TESTS.iter().map(|(name, test)| {
        Trial::test(format!("bad_input::{name}"), move || {
            test();
            Ok(())
        })
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn scripts(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder of the scripts");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut scripts: Vec<PathBuf> =
        paths.filter(|p| p.extension().is_some_and(|e| e == "txt")).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    scripts
}

fn trial(path: PathBuf) -> Trial {
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    Trial::test(name, move || script::run(&path).map_err(Failed::from))
}
