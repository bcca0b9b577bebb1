//! `GET /rkube/v1/snapshot`: the whole state as one file, for administrators.
//!
//! It is written beside the store's files and hashed, and then goes out; its name is gone as soon as
//! it is open, so an answer that breaks off leaves nothing.

use crate::body::{Body, BoxError};
use crate::config::ApiServerConfig;
use crate::member_file::HexId;
use crate::negotiate::PLAIN;
use crate::server::ApiServer;
use crate::snapshot_file::{Hashed, Summary};
use crate::{ids, response};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use rkube_api::ApiError;
use rkube_store::SnapshotStream;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio_util::io::ReaderStream;

/// Where it is asked for.
pub const PATH: &str = "/rkube/v1/snapshot";

/// The folder in which snapshots are written before they go out.
fn folder(config: &ApiServerConfig) -> PathBuf {
    config.store_dir().join("outgoing")
}

/// Removes what a crash has left.
pub fn remove_leftovers(config: &ApiServerConfig) {
    // None may be there, and one that can't go now goes at the next start.
    let _ = std::fs::remove_dir_all(folder(config));
}

/// Answers the request; the caller was authorized.
pub async fn answer(api: &ApiServer) -> Response<Body> {
    match save(api).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(%error, "saving a snapshot failed");
            response::error(&error, PLAIN)
        }
    }
}

async fn save(api: &ApiServer) -> Result<Response<Body>, ApiError> {
    let snapshot = api.storage.store().snapshot().await.map_err(ApiError::internal)?;
    let (info, folder) = (snapshot.info, folder(api.config()));
    let written = tokio::task::spawn_blocking(move || {
        write(snapshot, &folder).map_err(|error| failed(&folder, &error))
    });
    let (file, bytes, sha256) = written.await.map_err(ApiError::internal)??;
    let summary = Summary {
        cluster_id: HexId(info.cluster_id),
        revision: info.revision,
        objects: info.objects,
        bytes,
        sha256,
        version: env!("CARGO_PKG_VERSION").into(),
        created: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let head = summary.head().map_err(ApiError::internal)?;
    let length = head.len() as u64 + bytes;
    let head = futures::stream::iter([Ok::<_, BoxError>(Bytes::from(head))]);
    let state = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 1 << 16);
    let mut response = Response::new(Body::stream(head.chain(state.map_err(BoxError::from))));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

fn failed(path: &Path, error: &std::io::Error) -> ApiError {
    ApiError::internal(format!("writing a snapshot to {}: {error}", path.display()))
}

/// Writes the chunks to a file of which only the open end is left: that at its beginning, its
/// length and its hash.
fn write(snapshot: SnapshotStream, folder: &Path) -> std::io::Result<(File, u64, String)> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(ids::uuid());
    let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).to_owned();
    let mut file = options.open(&path)?;
    // It stays readable as long as it is open.
    std::fs::remove_file(&path)?;
    let mut out = Hashed::new(&mut file);
    for chunk in snapshot {
        out.write_all(&chunk)?;
    }
    let (bytes, sha256) = out.finish();
    file.seek(SeekFrom::Start(0))?;
    Ok((file, bytes, sha256))
}
