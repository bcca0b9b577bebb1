//! `rkube`: the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    rkube::main()
}
