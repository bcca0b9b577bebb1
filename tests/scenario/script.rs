//! A script's form, its run and its comparison.
//!
//! `$ ` begins a command for bash and `> ` continues it; what follows is its output on both
//! streams, then `exit N` if it fails. `# ` begins a remark, which ends the output before it. A
//! last line without its newline ends in `<no newline>`. All commands run in one empty folder,
//! with `eventually COMMAND` to repeat something until it succeeds.

use crate::pattern::{generalise, line_matches};
use crate::server::{Server, within};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const NO_NEWLINE: &str = "<no newline>";

/// What every command begins with.
const PRELUDE: &str = "eventually() { until \"$@\" >eventually.log 2>&1; do sleep 0.02; done; }\n";

/// The longest that one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Step {
    /// Lines before the command, as they are.
    remarks: Vec<String>,
    command: Vec<String>,
    expected: Vec<String>,
}

/// Runs a script.
///
/// # Errors
/// The differences, for a person.
pub fn run(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut steps = parse(&text);
    let server = Server::start();
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut differences = String::new();
    for step in &mut steps {
        let Some(actual) = step.run(&server) else { continue };
        if matches(&step.expected, &actual) {
            continue;
        }
        if update {
            step.expected = actual.iter().map(|line| generalise(line)).collect();
            continue;
        }
        let _ =
            write!(differences, "\n{}{}", step.command.join("\n"), diff(&step.expected, &actual));
    }
    if update {
        std::fs::write(path, print(&steps)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps = vec![Step::default()];
    for line in text.lines() {
        let step = steps.last_mut().expect("there is always one");
        let begins = line.starts_with("$ ") || line == "#" || line.starts_with("# ");
        if begins && !step.command.is_empty() {
            steps.push(Step::default());
        }
        let step = steps.last_mut().expect("there is always one");
        if line.starts_with("$ ")
            || (line.starts_with('>') && !step.command.is_empty() && step.expected.is_empty())
        {
            step.command.push(line.into());
        } else if step.command.is_empty() {
            step.remarks.push(line.into());
        } else {
            step.expected.push(line.into());
        }
    }
    for step in &mut steps {
        trim_end(&mut step.expected);
    }
    steps
}

/// Blank lines between a command's output and the next command are for the reader.
fn trim_end(lines: &mut Vec<String>) {
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
}

impl Step {
    /// The output's lines; `None` for remarks without a command.
    fn run(&self, server: &Server) -> Option<Vec<String>> {
        let (first, more) = self.command.split_first()?;
        let mut script = String::from(PRELUDE);
        script.push_str(&first[2..]);
        for line in more {
            script.push('\n');
            script.push_str(line.strip_prefix("> ").unwrap_or(&line[1..]));
        }
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec 2>&1\n{script}")]);
        server.equip(&mut command);
        let output = within(PATIENCE, &mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let text =
            text.replace(&server.address(), "<server>").replace(&server.folder(), "<folder>");
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        trim_end(&mut lines);
        if !text.is_empty() && !text.ends_with('\n') {
            lines.last_mut().expect("text has a line").push_str(NO_NEWLINE);
        }
        match output.status.code() {
            Some(0) => (),
            code => lines.push(format!("exit {}", code.unwrap_or(-1))),
        }
        Some(lines)
    }
}

fn matches(expected: &[String], actual: &[String]) -> bool {
    expected.len() == actual.len() && expected.iter().zip(actual).all(|(e, a)| line_matches(e, a))
}

/// The longest common part is kept, around it what is missing and what is new.
fn diff(expected: &[String], actual: &[String]) -> String {
    let same = |(e, a): &(&String, &String)| line_matches(e, a);
    let head = expected.iter().zip(actual).take_while(same).count();
    let (old, new) = (&expected[head..], &actual[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let mut text = String::from("\n");
    let mut put = |sign: &str, lines: &[String]| {
        lines.iter().for_each(|line| text.push_str(&format!("{sign}{line}\n")));
    };
    put("  ", &expected[..head]);
    put("- ", &old[..old.len() - tail]);
    put("+ ", &new[..new.len() - tail]);
    put("  ", &old[old.len() - tail..]);
    text
}

fn print(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let before = if step.remarks.first().is_some_and(|r| !r.is_empty()) && !text.is_empty() {
            "\n"
        } else {
            ""
        };
        text.push_str(before);
        for line in step.remarks.iter().chain(&step.command).chain(&step.expected) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
