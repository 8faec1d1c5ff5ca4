//! Whether outcalld runs in a container of its own, where the paths it sees are not those that Docker mounts.

use std::path::Path;

use super::super::client::{Client, DockerError};
use super::calls;
use crate::unix_http::own_container;

/// Files that engines put into the root of a container.
const MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// Signs of a container, without asking anybody.
pub(super) fn looks_contained() -> bool {
    MARKS.iter().any(|mark| Path::new(mark).exists()) || own_container().is_some()
}

/// True when the Engine's files are not the ones seen here. A machine that is a container itself and runs both is not
/// meant: there the Engine does not know our container, and its own directory is seen from here.
pub(super) fn apart_from_engine(client: &Client) -> Result<bool, DockerError> {
    if !looks_contained() {
        return Ok(false);
    }
    if let Some(id) = own_container()
        && calls::inspect(client, &id).is_ok()
    {
        return Ok(true);
    }
    let root = calls::info(client)?.docker_root_dir;
    Ok(root.is_empty() || !Path::new(&root).join("containers").is_dir())
}
