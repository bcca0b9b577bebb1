//! The image of a pod's sandbox, made here: a process that waits, in some 300 bytes.
//!
//! As process 1 of a sandbox it ignores SIGCHLD, so that the kernel reaps what a pod with a shared
//! process namespace leaves behind, and ends on SIGTERM and SIGINT. It is assembled by hand for
//! each architecture (the listings below) and wrapped into an ELF file and an OCI archive, so that
//! a node needs no registry for it.

use sha2::{Digest, Sha256};

/// The name under which nodes know the image.
pub const IMAGE: &str = "rkube.local/pause:1";

/// Where the program is mapped; the code begins behind the ELF and program headers.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 0x78;

/// ```text
/// rt_sigaction(SIGCHLD, &{SIG_IGN}, NULL, 8)
/// rt_sigaction(SIGTERM, &{quit, SA_RESTORER}, NULL, 8)
/// rt_sigaction(SIGINT,  &{quit, SA_RESTORER}, NULL, 8)
/// loop: pause(); goto loop
/// quit: exit_group(0)
/// ```
#[cfg(target_arch = "x86_64")]
mod machine {
    pub const ELF_MACHINE: u16 = 62;
    pub const OCI_ARCHITECTURE: &str = "amd64";
    pub const CODE: &str = "b80d000000bf11000000488d355700000031d241ba080000000f05\
        b80d000000bf0f000000488d355c00000031d241ba080000000f05\
        b80d000000bf02000000488d354100000031d241ba080000000f05\
        b8220000000f05ebf7b8e700000031ff0f050f1f440000\
        0100000000000000000000000000000000000000000000000000000000000000\
        d2004000000000000000000400000000d2004000000000000000000000000000";
}

/// The same with arm64's numbers; `ppoll(NULL, 0, NULL, NULL)` stands for the missing `pause`.
#[cfg(target_arch = "aarch64")]
mod machine {
    pub const ELF_MACHINE: u16 = 183;
    pub const OCI_ARCHITECTURE: &str = "arm64";
    pub const CODE: &str = "c81080d2200280d281030010020080d2030180d2010000d4\
        c81080d2e00180d2c1030010020080d2030180d2010000d4\
        c81080d2400080d201030010020080d2030180d2010000d4\
        280980d2000080d2010080d2020080d2030080d2040080d2010000d4f9ffff17\
        c80b80d2000080d2010000d41f2003d5\
        0100000000000000000000000000000000000000000000000000000000000000\
        e000400000000000000000000000000000000000000000000000000000000000";
}

/// The program as a static ELF file.
fn elf() -> Vec<u8> {
    let code = unhex(machine::CODE);
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::with_capacity(size as usize);
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    let put16 = |file: &mut Vec<u8>, n: u16| file.extend(n.to_le_bytes());
    put16(&mut file, 2); // ET_EXEC
    put16(&mut file, machine::ELF_MACHINE);
    file.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [64, 56, 1, 0, 0, 0] {
        put16(&mut file, half);
    }
    file.extend(1u32.to_le_bytes()); // PT_LOAD
    file.extend(5u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn unhex(text: &str) -> Vec<u8> {
    let nibble = |c: u8| if c <= b'9' { c - b'0' } else { c - b'a' + 10 };
    text.as_bytes().chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
}

/// The image as an OCI archive that `ctr images import` takes.
pub fn oci_archive() -> Vec<u8> {
    let layer = tar(&[("pause", 0o755, &elf())]);
    let layer_digest = digest(&layer);
    let config = serde_json::json!({
        "architecture": machine::OCI_ARCHITECTURE,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    })
    .to_string();
    let descriptor = |kind: &str, content: &[u8]| {
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", digest(content)),
            "size": content.len(),
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config.as_bytes()),
        "layers": [descriptor("layer.v1.tar", &layer)],
    })
    .to_string();
    let mut entry = descriptor("manifest.v1+json", manifest.as_bytes());
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": IMAGE});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let blob = |content: &[u8]| format!("blobs/sha256/{}", digest(content));
    tar(&[
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, index.as_bytes()),
        (&blob(&layer), 0o644, &layer),
        (&blob(config.as_bytes()), 0o644, config.as_bytes()),
        (&blob(manifest.as_bytes()), 0o644, manifest.as_bytes()),
    ])
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A ustar archive of these files (name, mode, content).
fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in files {
        archive.extend(tar_header(name, *mode, content.len()));
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn tar_header(name: &str, mode: u32, size: usize) -> [u8; 512] {
    let mut header = [0u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_program_waits_and_ends_on_term() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, elf()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        // It waits in the kernel (state S) once its handlers are set.
        let waiting = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let caught = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            stat.contains(") S ") && caught.contains("SigCgt:\t0000000000004002")
        };
        while !waiting() {
            assert!(child.try_wait().unwrap().is_none(), "ended by itself");
            std::thread::yield_now();
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }

    #[test]
    fn the_archive_is_a_tar_that_names_the_image() {
        let archive = oci_archive();
        assert_eq!(archive.len() % 512, 0);
        assert_eq!(&archive[257..262], b"ustar");
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains(IMAGE));
    }
}
