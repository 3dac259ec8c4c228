//! The first stage: which grid this machine is to join, and as what.
//!
//! A blob that is found decides; where there is none, what an earlier start was given is used again, so that a
//! restart needs no floppy and no metadata service.

use std::path::Path;
use std::time::Duration;

use aerie_config::{Ec2, SourceConfig, Spec};

use super::shared::Shared;
use crate::cli::UpArgs;
use crate::error::Error;
use crate::paths::{GridPaths, grids_dir};
use crate::status::Stage;

/// How often the sources are searched again while none of them holds a blob.
const SEARCH_AGAIN: Duration = Duration::from_secs(10);

const HINT_NONE: &str = "make a blob with 'aerie grid blob' and hand it over: to 'aerie join' on this machine, as a \
                         floppy, as cloud user-data, at /etc/aerie/blob, or with 'aerie up --config FILE'";

/// Searches until there is a spec. A node without one joins nothing and says how to get one.
pub(crate) async fn find(args: &UpArgs, shared: &Shared) -> Result<Spec, Error> {
    let mut reloads = shared.reloads();
    loop {
        match look(args, shared).await {
            Ok(Some(spec)) => return keep(&args.state, spec),
            Ok(None) => {}
            Err(reason) => shared.failed(
                Stage::Source,
                reason,
                "mend or replace the blob; the search goes on",
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(SEARCH_AGAIN) => {}
            _ = reloads.changed() => {}
        }
    }
}

/// Says in the log whether another configuration than the one in force is to be found.
pub(crate) async fn compare(args: &UpArgs, in_force: &Spec) {
    let found = match &args.config {
        Some(path) => aerie_config::load(path).map(Some),
        None => aerie_config::find(&places(args)).await.outcome,
    };
    match found {
        Ok(Some(found)) if found.spec.clone().without_token() != in_force.clone().without_token() => {
            tracing::warn!(
                source = %found.source,
                "the configuration there differs from the one in force; it is taken at the next start: \
                 'systemctl restart aerie'"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the configuration there is not usable; the one in force stays"),
    }
}

async fn look(args: &UpArgs, shared: &Shared) -> Result<Option<Spec>, String> {
    if let Some(path) = &args.config {
        let found = aerie_config::load(path).map_err(|error| error.to_string())?;
        shared.done(Stage::Source, path.display().to_string());
        return Ok(Some(found.spec));
    }
    let search = aerie_config::find(&places(args)).await;
    tracing::debug!(report = %search.report, "searched for a blob");
    if let Some(found) = search.outcome.map_err(|error| error.to_string())? {
        for warning in &found.warnings {
            tracing::warn!("{warning}");
        }
        shared.done(Stage::Source, found.source.to_string());
        return Ok(Some(found.spec));
    }
    match kept(&args.state)? {
        Some(spec) => {
            shared.done(Stage::Source, "as at the last start");
            Ok(Some(spec))
        }
        None => {
            let tried = search.report.attempts.len();
            shared.waiting(
                Stage::Source,
                format!("none of {tried} places holds a blob"),
                HINT_NONE,
            );
            Ok(None)
        }
    }
}

fn places(args: &UpArgs) -> SourceConfig {
    let mut places = SourceConfig::default();
    if let Some(floppy) = &args.floppy {
        places.floppies = vec![floppy.clone()];
        places.scan = None;
    }
    places.ec2 = Some(Ec2 {
        base: args.metadata_url.clone(),
        allow_v1: args.allow_imds_v1,
    });
    places
}

/// The spec of an earlier start, if there was one.
fn kept(state: &Path) -> Result<Option<Spec>, String> {
    let Ok(entries) = std::fs::read_dir(grids_dir(state)) else {
        return Ok(None);
    };
    let mut specs: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join("aerie.toml")))
        .filter(|path| path.is_file())
        .collect();
    specs.sort();
    match specs.as_slice() {
        [] => Ok(None),
        [one] => {
            let text = std::fs::read_to_string(one).map_err(|error| format!("{}: {error}", one.display()))?;
            Spec::parse(&text)
                .map(Some)
                .map_err(|error| format!("{}: {error}", one.display()))
        }
        _ => Err(format!(
            "this machine is a member of {} grids; say which one with --config {}/grids/ID/aerie.toml",
            specs.len(),
            state.display()
        )),
    }
}

/// Keeps the spec for the next start. The token stays in it until the node has enrolled.
fn keep(state: &Path, spec: Spec) -> Result<Spec, Error> {
    let paths = GridPaths::new(state, spec.grid.id());
    write(&paths, &spec)?;
    Ok(spec)
}

/// Forgets the token, which has done its work.
pub(crate) fn forget_token(paths: &GridPaths, spec: &Spec) -> Result<(), Error> {
    write(paths, &spec.clone().without_token())
}

fn write(paths: &GridPaths, spec: &Spec) -> Result<(), Error> {
    paths.prepare().map_err(|source| Error::Folder {
        path: paths.root().to_owned(),
        source,
    })?;
    aerie_identity::files::write_atomic(&paths.spec(), spec.to_toml().as_bytes(), 0o600).map_err(|source| {
        Error::Files {
            path: paths.spec(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let hash = "ab".repeat(32);
        Spec::parse(&format!(
            "version = 1\n[grid]\nname = \"lab\"\nca_hash = \"{hash}\"\nrange = \"100.96.0.0/11\"\n\
             [enrol]\nurls = [\"https://192.0.2.1:8443\"]\ntoken = \"secret\"\n\
             [node]\nroles = [\"worker\"]\ngroup = \"physics\"\n"
        ))
        .unwrap()
    }

    #[test]
    fn a_spec_is_kept_for_the_next_start_and_its_token_can_be_forgotten() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(kept(state.path()), Ok(None));
        let spec = keep(state.path(), spec()).unwrap();
        assert_eq!(kept(state.path()), Ok(Some(spec.clone())));
        let paths = GridPaths::new(state.path(), spec.grid.id());
        forget_token(&paths, &spec).unwrap();
        assert!(!std::fs::read_to_string(paths.spec()).unwrap().contains("secret"));
        assert_eq!(kept(state.path()), Ok(Some(spec.without_token())));
    }

    #[test]
    fn a_machine_of_two_grids_is_asked_which_one() {
        let state = tempfile::tempdir().unwrap();
        for id in ["1", "2"] {
            let dir = grids_dir(state.path()).join(id);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("aerie.toml"), "").unwrap();
        }
        assert!(kept(state.path()).unwrap_err().contains("2 grids"));
    }
}
