//! `rkube`: the one binary.

use std::process::ExitCode;

/// Requests allocate on one thread and free on another, where glibc's allocator waits for its
/// arenas' locks: a quarter of the CPU that a pod costs (`cargo bench --bench figures -- scale`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    rkube::main()
}
