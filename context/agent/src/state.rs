//! What the agent remembers between its starts: who it is, and how far it got.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use aerie_context_proto::{ContextId, Exit, Instance, MemberName};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files;

const FILE: &str = "state.json";

/// The state, and the folder that it is kept in.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    pub(crate) instance: Instance,
    pub(crate) kept: Kept,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    context: ContextId,
    /// What this machine proves itself by.
    instance: String,
    pub(crate) member: Option<MemberName>,
    /// The version that is done with, whatever came of it.
    pub(crate) version: u32,
    /// The version that is tried, and at which attempt.
    pub(crate) trying: (u32, u32),
    /// A report that the broker may not have: exactly this one is sent, however often.
    pub(crate) unsent: Option<Exit>,
}

impl State {
    /// Reads the state, or begins anew where there is none or it is of another context.
    pub(crate) fn open(dir: &Path, context: ContextId) -> Result<Self, Error> {
        files::folder(dir, 0o700)?;
        let path = dir.join(FILE);
        let damaged = |why: String| Error::State {
            path: path.clone(),
            why,
        };
        if let Some(text) = files::read(&path)? {
            let kept: Kept = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            if kept.context == context {
                let instance = kept
                    .instance
                    .parse()
                    .map_err(|_| damaged("its instance is none".to_owned()))?;
                return Ok(Self { path, instance, kept });
            }
        }
        let instance = Instance::new(random()?);
        let state = Self {
            kept: Kept {
                context,
                instance: instance.expose().to_string(),
                member: None,
                version: 0,
                trying: (0, 0),
                unsent: None,
            },
            path,
            instance,
        };
        // Versions of another context are not this one's.
        let versions = dir.join("versions");
        match std::fs::remove_dir_all(&versions) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &versions)(error));
            }
            _ => {}
        }
        // Before the broker learns of the instance: an agent that is killed now comes back as the same member.
        state.save()?;
        Ok(state)
    }

    pub(crate) fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(&self.kept).map_err(|error| Error::State {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        files::replace(&self.path, &text, 0o600)
    }
}

fn random() -> Result<[u8; 32], Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_the_same_member_after_a_restart_and_a_new_one_in_another_context() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = State::open(dir.path(), ContextId([1; 16])).unwrap();
        first.kept.version = 3;
        first.save().unwrap();
        let again = State::open(dir.path(), ContextId([1; 16])).unwrap();
        assert_eq!(
            (again.kept.clone(), again.instance),
            (first.kept, first.instance.clone())
        );
        let other = State::open(dir.path(), ContextId([2; 16])).unwrap();
        assert_ne!(other.instance, first.instance);
        assert_eq!(other.kept.version, 0);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let error = State::open(dir.path(), ContextId([2; 16]))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("remove it to start as a new member"), "{error}");
    }
}
