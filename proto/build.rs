//! Compiles the protocol definitions in Rust: a build needs no `protoc`.

use std::error::Error;

const FILES: [&str; 4] =
    ["proto/cri.proto", "proto/events.proto", "proto/peer.proto", "proto/tasks.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Maps are ordered, so that two equal requests have equal bytes and tests compare them whole.
    tonic_prost_build::configure()
        .btree_map(".")
        // Frames are handed on as they came in, without a copy.
        .bytes(".rkube.peer.v1")
        .build_server(true)
        .compile_fds(descriptors)?;
    Ok(())
}
