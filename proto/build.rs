//! Compiles the protocol definitions in Rust: a build needs no `protoc`.

use std::error::Error;

const FILES: [&str; 3] = ["proto/cri.proto", "proto/events.proto", "proto/tasks.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Maps are ordered, so that two equal requests have equal bytes and tests compare them whole.
    tonic_prost_build::configure().btree_map(".").build_server(true).compile_fds(descriptors)?;
    Ok(())
}
