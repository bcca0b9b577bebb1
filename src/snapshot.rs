//! `rkube snapshot`: the whole state in a file, and a new cluster from one.

use crate::cli::{SnapshotCommand, SnapshotRestoreArgs, SnapshotSaveArgs};
use crate::{client, server};
use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use kube::client::Body;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rkube_apiserver::ApiServerConfig;
use rkube_apiserver::member_file::HexId;
use rkube_apiserver::snapshot_file::{self, Summary};
use rkube_apiserver::store_setup::{self, REVISIONS_SKIPPED};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Carries out a subcommand.
pub async fn run(command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Save(args) => save(&args).await,
        SnapshotCommand::Restore(args) => restore(&args),
        SnapshotCommand::Status(args) => {
            print!("{}", shown(&snapshot_file::check(&args.file)?));
            Ok(())
        }
    }
}

fn shown(summary: &Summary) -> String {
    format!(
        "revision  {}\nobjects   {}\nsize      {} bytes\nsha256    {}\ncluster   {}\nsaved     {} by rkube {}\n",
        summary.revision,
        summary.objects,
        summary.bytes,
        summary.sha256,
        summary.cluster_id,
        summary.created,
        summary.version,
    )
}

async fn save(args: &SnapshotSaveArgs) -> Result<()> {
    let part = Part::of(&args.file)?;
    let client = client::admin(&args.admin).await?;
    let request = http::Request::get("/rkube/v1/snapshot").body(Body::empty())?;
    let response = client.send(request).await.context("asking for a snapshot")?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        let text = body.collect().await?.to_bytes();
        let said: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let why = said["message"].as_str().unwrap_or("").to_owned();
        bail!("asking for a snapshot: the server answered {}: {why}", head.status);
    }
    part.receive(body).await?;
    let summary = snapshot_file::check(&part.path)?;
    part.keep(&args.file)?;
    print!("{}", shown(&summary));
    Ok(())
}

/// A file that is not there before it is whole; it is removed when this is dropped.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// Beside the file that it is to be.
    fn of(file: &Path) -> Result<Self> {
        ensure!(!file.is_dir(), "{} is a folder", file.display());
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        let beside = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let path = file.with_file_name(beside);
        let mut options = OpenOptions::new();
        // It holds Secrets.
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("writing {}", path.display()))?;
        Ok(Part { path, file })
    }

    async fn receive(&self, mut body: Body) -> Result<()> {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("receiving the snapshot")?.into_data() {
                let written = (&self.file).write_all(&data);
                written.with_context(|| format!("writing {}", self.path.display()))?;
            }
        }
        Ok(())
    }

    fn keep(self, file: &Path) -> Result<()> {
        let attempt = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, file)?;
            sync_folder(file)
        };
        attempt().with_context(|| format!("writing {}", file.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Once it was renamed there is nothing left to remove.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes what stands in the folder of a file durable.
fn sync_folder(file: &Path) -> std::io::Result<()> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn restore(args: &SnapshotRestoreArgs) -> Result<()> {
    let mut config = ApiServerConfig::new(&args.data.data_dir);
    config.member_name = server::member_name("");
    config.advertise_address = server::own_address();
    config.encryption_key = args.encryption_key_file.clone();
    let summary = snapshot_file::check(&args.file)?;
    ensure_empty(&config)?;
    let keys = rkube_apiserver::pki::ca_in(&config)?.is_some();
    let staged = Staged::new(&config)?;
    let identity = staged.fill(&args.file, &config)?;
    staged.put_in_place(&config.store_dir())?;
    print!("{}", shown(&summary));
    println!(
        "restored  into {} as cluster {}, from revision {} on",
        config.data_dir.display(),
        HexId(identity.cluster_id),
        summary.revision + REVISIONS_SKIPPED
    );
    match keys {
        true => println!("The keys that were there are kept: agents and kubeconfigs stay good."),
        false => println!(
            "A snapshot holds no keys: new ones are made at the first start. Agents must join \
             again, and kubeconfigs of the lost cluster are no good any more."
        ),
    }
    println!(
        "Start it: rkube server --data-dir {}. Other members join it with empty data directories.",
        config.data_dir.display()
    );
    Ok(())
}

/// What may be there: keys, and what belongs to the node of the same machine.
fn ensure_empty(config: &ApiServerConfig) -> Result<()> {
    let store = config.store_dir();
    if store_setup::member_in(config)?.is_some() {
        bail!(
            "{} holds a member already; a snapshot is restored into a directory without one",
            config.data_dir.display()
        );
    }
    for (dir, may) in [
        (&config.data_dir, &["server", "server.restoring", "agent", "admin.kubeconfig"][..]),
        (&store, &["pki", "lock"][..]),
    ] {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("reading {}", dir.display())),
        };
        for entry in entries {
            let name = entry?.file_name();
            if !may.iter().any(|m| name == *m) {
                bail!(
                    "{} is not empty: it holds {}; only keys (server/pki) may be there",
                    dir.display(),
                    name.to_string_lossy()
                );
            }
        }
    }
    Ok(())
}

/// The store's directory as it is to be, beside its place, so that a crash leaves all or nothing.
struct Staged(PathBuf);

impl Staged {
    fn new(config: &ApiServerConfig) -> Result<Self> {
        let dir = config.data_dir.join("server.restoring");
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Staged(dir))
    }

    fn fill(&self, file: &Path, config: &ApiServerConfig) -> Result<store_setup::Identity> {
        let state = self.0.join("state");
        let mut out =
            File::create(&state).with_context(|| format!("writing {}", state.display()))?;
        snapshot_file::extract(file, &mut out)?;
        drop(out);
        let info = store_setup::member_info(config);
        let identity = store_setup::restore(&state, &self.0, &info, config.encryption_key.clone())
            .with_context(|| format!("restoring {}", file.display()))?;
        std::fs::remove_file(&state)?;
        copy_keys(&config.pki_dir(), &self.0.join("pki"))?;
        Ok(identity)
    }

    /// Puts it where the store is looked for; what was there, keys that were copied, goes.
    fn put_in_place(self, place: &Path) -> Result<()> {
        let attempt = || -> std::io::Result<()> {
            File::open(&self.0)?.sync_all()?;
            if place.exists() {
                renameat2(AT_FDCWD, &self.0, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE)?;
            } else {
                std::fs::rename(&self.0, place)?;
            }
            sync_folder(place)
        };
        attempt().with_context(|| format!("putting the new cluster into {}", place.display()))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What can't go now goes at the next attempt.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn copy_keys(from: &Path, to: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(from) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", from.display())),
    };
    let copy = |entry: std::fs::DirEntry| -> std::io::Result<()> {
        let target = to.join(entry.file_name());
        std::fs::copy(entry.path(), &target)?;
        File::open(&target)?.sync_all()
    };
    std::fs::create_dir_all(to)?;
    for entry in entries {
        copy(entry?).with_context(|| format!("copying the keys in {}", from.display()))?;
    }
    Ok(File::open(to)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::DataDir;

    fn tree(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .map(|entries| {
                entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    #[test]
    fn a_bad_file_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "rubbish\n").unwrap();
        let data_dir = dir.path().join("data");
        let args = SnapshotRestoreArgs {
            data: DataDir { data_dir: data_dir.clone() },
            encryption_key_file: None,
            file,
        };
        let said = restore(&args).unwrap_err().to_string();
        assert!(said.contains("no snapshot"), "{said}");
        assert!(!data_dir.exists());
    }

    #[test]
    fn only_an_empty_directory_is_restored_into() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path().join("data"));
        ensure_empty(&config).unwrap();
        std::fs::create_dir_all(config.pki_dir()).unwrap();
        std::fs::create_dir_all(config.data_dir.join("agent")).unwrap();
        ensure_empty(&config).unwrap();
        std::fs::write(config.data_dir.join("notes"), "").unwrap();
        let said = ensure_empty(&config).unwrap_err().to_string();
        assert!(said.contains("holds notes"), "{said}");
        std::fs::remove_file(config.data_dir.join("notes")).unwrap();
        let wal = config.store_dir().join("wal");
        std::fs::create_dir_all(&wal).unwrap();
        std::fs::write(wal.join("0"), "x").unwrap();
        let said = ensure_empty(&config).unwrap_err().to_string();
        assert!(said.contains("holds wal"), "{said}");
    }

    #[test]
    fn keys_stay_and_a_crash_leaves_all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        let pki = config.pki_dir();
        std::fs::create_dir_all(&pki).unwrap();
        std::fs::write(pki.join("ca.key"), "key").unwrap();
        // Broken off half-way: nothing has changed, and the next attempt begins anew.
        let staged = Staged::new(&config).unwrap();
        std::fs::write(staged.0.join("half"), "").unwrap();
        std::mem::forget(staged);
        ensure_empty(&config).unwrap();
        let staged = Staged::new(&config).unwrap();
        assert_eq!(tree(&staged.0), [""; 0]);
        std::fs::create_dir(staged.0.join("wal")).unwrap();
        copy_keys(&pki, &staged.0.join("pki")).unwrap();
        staged.put_in_place(&config.store_dir()).unwrap();
        assert_eq!(tree(&config.data_dir), ["server"]);
        assert_eq!(tree(&config.store_dir()), ["pki", "wal"]);
        assert_eq!(std::fs::read_to_string(pki.join("ca.key")).unwrap(), "key");
    }

    #[test]
    fn a_part_is_private_and_goes_unless_it_is_kept() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        drop(Part::of(&file).unwrap());
        assert_eq!(tree(dir.path()), [""; 0]);
        let part = Part::of(&file).unwrap();
        (&part.file).write_all(b"x").unwrap();
        part.keep(&file).unwrap();
        assert_eq!(tree(dir.path()), ["f"]);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Part::of(dir.path()).err().unwrap().to_string().contains("is a folder"));
    }
}
