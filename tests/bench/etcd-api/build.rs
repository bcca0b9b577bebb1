//! Compiles the protocol definition in Rust: a build needs no `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=etcd.proto");
    let descriptors = protox::compile(["etcd.proto"], ["."])?;
    // Keys and values are taken out of a request without copying them.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
