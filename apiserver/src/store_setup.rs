//! How the store below a data directory is opened, and what is done to one that does not run: all
//! that commands offline and the start of a server need of it, in one place.

use crate::config::ApiServerConfig;
use crate::member_file::{ListedMember, MemberFile, State};
use crate::pki::authority;
use crate::server::StartError;
use rkube_store::{Begin, StoreConfig};

pub use rkube_store::{
    Identity, LogEnd, Member, MemberInfo, REVISIONS_SKIPPED, Role, Store, log_end, recover, restore,
};

/// What this member says of itself.
pub fn member_info(config: &ApiServerConfig) -> MemberInfo {
    MemberInfo {
        name: config.member_name.clone(),
        peer_address: authority(config.advertise_address, config.peer_port),
        api_url: format!("https://{}", authority(config.advertise_address, config.secure_port)),
        version: env!("CARGO_PKG_VERSION").into(),
        ..MemberInfo::default()
    }
}

/// The settings of the store, by what the data directory says of the member.
///
/// # Errors
/// If the member was removed from its cluster.
pub fn settings(config: &ApiServerConfig) -> Result<StoreConfig, StartError> {
    member_in(config)?;
    let mut settings = StoreConfig::new(config.store_dir());
    if let Some(file) = MemberFile::load(&config.store_dir())? {
        settings.begin = Begin::Join(file.identity());
        settings.seeds = file.members.into_iter().map(seed).collect();
    }
    settings.encryption_key = config.encryption_key.clone();
    settings.info = member_info(config);
    Ok(settings)
}

fn seed(listed: ListedMember) -> Member {
    let ListedMember { id, name, peer_address } = listed;
    let info = MemberInfo { name, peer_address, ..MemberInfo::default() };
    Member { id: id.0, role: Role::Voter, info }
}

/// The member in a data directory, be it one that was added and has not started yet.
///
/// # Errors
/// If the files can't be read, or the member was removed from its cluster.
pub fn member_in(config: &ApiServerConfig) -> Result<Option<Identity>, StartError> {
    let dir = config.store_dir();
    if let Some(member) = MemberFile::load(&dir)? {
        if member.state == State::Removed {
            let (id, dir) = (member.member_id, config.data_dir.clone());
            return Err(StartError::Removed { id, dir });
        }
        return Ok(Some(member.identity()));
    }
    rkube_store::existing(&dir).map_err(|e| StartError::Store(Box::new(e)))
}
