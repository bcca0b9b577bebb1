//! The binary `rkubectl`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The first provider wins; a second call could only find the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: can't start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(rkube_kubectl::main(std::env::args_os()));
    // A blocked read of stdin must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}
