//! Credentials: got once, kept, renewed at two thirds of their life without a restart.
//!
//! ```text
//!           kept and valid                     2/3 of the life over
//!  start ───────────────────► member ──────────────────────────────► renewing
//!    │                          ▲  ▲                                    │  │
//!    │ none, or expired         │  └──────── new credentials ───────────┘  │ refused: revoked
//!    ▼                          │                                          ▼
//!  enrolling ── credentials ────┘                                     failed, says so
//!    └── no portal answers: again after a while (backoff, jitter); refused: again, but rarely
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aerie_config::Spec;
use aerie_identity::{
    Credential, EnrolRequest, JoinToken, NodeKeys, Rejection, RenewRequest, UserKey, Verifier,
};
use aerie_identity::{files, pem_to_der, sha256};
use aerie_portal::{ClientError, EnrolClient, Membership};
use aerie_types::{NodeName, Role, WallMillis};
use rand::RngExt;
use tokio::sync::watch;

use super::shared::Shared;
use super::source;
use super::trust::Trust;
use crate::error::Error;
use crate::paths::GridPaths;
use crate::status::Stage;

/// First and longest pause between attempts while no portal answers.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Pause after a portal said no: only a person can change that.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// How long a wait for a time of day goes on in one piece: the clock may be set, and the machine may sleep.
const WALL_CLOCK: Duration = Duration::from_secs(15);

/// How soon a clock that was wrong is looked at again.
const CLOCK_AGAIN: Duration = Duration::from_secs(5);

/// The shortest time between two renewals.
const RENEW_FLOOR: Duration = Duration::from_secs(60);

/// How often a revocation list is fetched from the portal, by a node that members bring the news to.
const REVOCATIONS_EVERY: Duration = Duration::from_secs(60);

/// The same for relays, of which a grid has few and which pass it on to all, and at first for a node without a member:
/// it may be the one that was revoked.
const REVOCATIONS_SOON: Duration = Duration::from_secs(8);

/// What the node is, once it is a member.
pub(crate) struct Member {
    pub(crate) keys: Arc<NodeKeys>,
    pub(crate) trust: Trust,
    /// The newest credential; renewals arrive here.
    pub(crate) credential: watch::Sender<Arc<Credential>>,
    pub(crate) client: EnrolClient,
}

pub(crate) fn now() -> WallMillis {
    SystemTime::now().into()
}

/// Takes the kept credentials, or enrols; goes on until the node is a member.
pub(crate) async fn become_member(spec: &Spec, paths: &GridPaths, shared: &Shared) -> Result<Member, Error> {
    let failed = |source| Error::Files {
        path: paths.keys(),
        source,
    };
    let keys = Arc::new(NodeKeys::load_or_generate(&paths.keys()).map_err(failed)?);
    let urls: Vec<_> = spec
        .enrol
        .urls
        .iter()
        .map(|url| url.as_str().to_owned())
        .collect();
    let client = EnrolClient::new(&urls, spec.grid.ca_hash.0).map_err(Error::Portal)?;
    if let Some((credential, verifier)) = kept(spec, paths, &keys)? {
        let member = Member {
            keys: Arc::clone(&keys),
            trust: Trust::load(verifier, paths.revocations()),
            credential: watch::Sender::new(Arc::new(credential)),
            client: client.clone(),
        };
        if let Some(member) = judge_kept(member, spec, paths, shared).await? {
            return Ok(member);
        }
    }
    let membership = enrol(spec, &keys, &client, shared).await?;
    let verifier = Verifier::new(&membership.ca_der).map_err(failed)?;
    keep(paths, &keys, &membership)?;
    files::write_atomic(&paths.revocations(), &membership.revocations.encode(), 0o644).map_err(failed)?;
    source::forget_token(paths, spec)?;
    shared.done(Stage::Certificate, describe(&membership.credential));
    let trust = Trust::load(verifier, paths.revocations());
    Ok(Member {
        keys,
        trust,
        credential: watch::Sender::new(Arc::new(membership.credential)),
        client,
    })
}

fn describe(credential: &Credential) -> String {
    let days = credential.not_after.since(now()).as_secs() / 86_400;
    format!(
        "{} of group {}, good for {days} days",
        credential.node, credential.group
    )
}

/// Waits until the kept credential is good: its time may have come only by a clock that is not set yet, or be over
/// because the machine was off. `None` where the node has to enrol anew.
async fn judge_kept(
    member: Member,
    spec: &Spec,
    paths: &GridPaths,
    shared: &Shared,
) -> Result<Option<Member>, Error> {
    let mut backoff = BACKOFF_MIN;
    loop {
        let credential = member.credential.borrow().clone();
        let verdict = member
            .trust
            .read(|verifier| verifier.verify(&credential.der, now()));
        let rejection = match verdict {
            Ok(_) => {
                // The token has done its work, also where the daemon was killed right after it enrolled.
                source::forget_token(paths, spec)?;
                shared.done(Stage::Certificate, as_kept(spec, &credential, paths));
                return Ok(Some(member));
            }
            Err(rejection) => rejection,
        };
        match &rejection {
            Rejection::NotYetValid { .. } => {
                shared.waiting(
                    Stage::Certificate,
                    rejection.to_string(),
                    "this is looked at again every few seconds",
                );
                tokio::time::sleep(CLOCK_AGAIN).await;
            }
            Rejection::Expired { .. } => match renew(&member, paths, &credential).await {
                Ok(()) => {}
                Err(RenewError::Client(error)) if error.is_retryable() || error.is_about_time() => {
                    let pause = pause(&error, &mut backoff).min(CLOCK_AGAIN * 6);
                    let again = format!("{error}; next attempt in {} s", pause.as_secs().max(1));
                    shared.waiting(Stage::Certificate, rejection.to_string(), again);
                    tokio::time::sleep(pause).await;
                }
                Err(RenewError::Client(error)) => {
                    shared.waiting(
                        Stage::Certificate,
                        format!("not renewed: {error}"),
                        "enrolling anew",
                    );
                    return Ok(None);
                }
                Err(RenewError::Local(error)) => rest(shared, &error).await,
            },
            _ => {
                shared.waiting(Stage::Certificate, rejection.to_string(), "enrolling anew");
                tracing::warn!(%rejection, "the kept credential is of no use");
                return Ok(None);
            }
        }
    }
}

/// Says who the node is, and where that is not what its configuration now asks for.
fn as_kept(spec: &Spec, credential: &Credential, paths: &GridPaths) -> String {
    let described = describe(credential);
    let other_name = spec
        .node
        .name
        .as_ref()
        .is_some_and(|name| *name != credential.node);
    let other_group = spec
        .node
        .group
        .as_ref()
        .filter(|group| **group != credential.group);
    if !other_name && spec.node.roles == credential.roles && other_group.is_none() {
        return described;
    }
    tracing::warn!(
        "this node is enrolled as {} with roles {}, which its configuration does not ask for; to enrol it anew, stop \
         the daemon, remove {} and start with a fresh blob",
        credential.node,
        credential.roles,
        paths.root().display()
    );
    format!(
        "{described}; enrolled before, so that what the configuration says of name, role and group does not count"
    )
}

/// The credential of an earlier start with its CA. One that has expired is still given: it is judged later.
fn kept(spec: &Spec, paths: &GridPaths, keys: &NodeKeys) -> Result<Option<(Credential, Verifier)>, Error> {
    let read = |path: &Path| {
        files::read_small(path).map_err(|source| Error::Files {
            path: path.to_owned(),
            source,
        })
    };
    let (Some(der), Some(ca)) = (read(&paths.credential())?, read(&paths.ca())?) else {
        return Ok(None);
    };
    let broken = |what, path: std::path::PathBuf, reason: String| Error::State { what, path, reason };
    let ca = pem_to_der(&String::from_utf8_lossy(&ca))
        .filter(|der| sha256(der) == spec.grid.ca_hash.0)
        .ok_or_else(|| {
            broken(
                "the CA certificate",
                paths.ca(),
                "it is not this grid's".to_owned(),
            )
        })?;
    let verifier =
        Verifier::new(&ca).map_err(|error| broken("the CA certificate", paths.ca(), error.to_string()))?;
    match verifier.read(&der) {
        Ok(credential) if credential.peer == keys.peer_id() => Ok(Some((credential, verifier))),
        Ok(_) => Err(broken(
            "the credential",
            paths.credential(),
            "it is for other keys".to_owned(),
        )),
        Err(rejection) => Err(broken(
            "the credential",
            paths.credential(),
            rejection.to_string(),
        )),
    }
}

async fn enrol(
    spec: &Spec,
    keys: &NodeKeys,
    client: &EnrolClient,
    shared: &Shared,
) -> Result<Membership, Error> {
    let (name, exact) = match &spec.node.name {
        Some(name) => (name.clone(), true),
        None => (host_name(), false),
    };
    let request = EnrolRequest::create(keys, spec.grid.id(), name, exact).map_err(|source| Error::Files {
        path: "the node's keys".into(),
        source,
    })?;
    let mut backoff = BACKOFF_MIN;
    loop {
        let Some(token) = spec.enrol.token.as_ref() else {
            shared.failed(
                Stage::Certificate,
                "the configuration has no token, and this node has no valid credential",
                "make a fresh blob with 'aerie grid blob' and start the node with it",
            );
            tokio::time::sleep(BACKOFF_MAX).await;
            continue;
        };
        let token: JoinToken = match token.expose().parse() {
            Ok(token) => token,
            Err(error) => {
                shared.failed(
                    Stage::Certificate,
                    format!("the token is damaged: {error}"),
                    "make a fresh blob",
                );
                tokio::time::sleep(BACKOFF_MAX).await;
                continue;
            }
        };
        shared.waiting(Stage::Certificate, "asking the portal", "");
        match client.enrol(&token, &request, now()).await {
            Ok(membership) => return Ok(membership),
            Err(error) => {
                let pause = pause(&error, &mut backoff);
                report(shared, &error, pause);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn pause(error: &ClientError, backoff: &mut Duration) -> Duration {
    if !error.is_retryable() {
        return REFUSED_PAUSE;
    }
    // Jittered, so that a rack of nodes does not come back in step.
    let pause = backoff.mul_f64(rand::rng().random_range(0.75..1.25));
    *backoff = (*backoff * 2).min(BACKOFF_MAX);
    pause
}

fn report(shared: &Shared, error: &ClientError, pause: Duration) {
    let again = format!("next attempt in {} s", pause.as_secs().max(1));
    if error.is_retryable() {
        shared.waiting(Stage::Certificate, error.to_string(), again);
    } else {
        shared.failed(Stage::Certificate, error.to_string(), again);
    }
}

/// The host's name as a node name: what cannot stand in one is left out.
fn host_name() -> NodeName {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    node_name(&host)
}

fn node_name(host: &str) -> NodeName {
    let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let clean: String = label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .skip_while(|c| !c.is_ascii_lowercase())
        .take(NodeName::MAX)
        .collect();
    #[expect(clippy::expect_used, reason = "a constant that is a valid name")]
    clean
        .trim_end_matches('-')
        .parse()
        .unwrap_or_else(|_| "node".parse().expect("valid"))
}

/// Writes what the credentials' readers need: this daemon, and HTCondor. The overlay credential comes last, so that
/// a crash in between leaves a node that enrols again with the same keys.
fn keep(paths: &GridPaths, keys: &NodeKeys, membership: &Membership) -> Result<(), Error> {
    let write = |path: std::path::PathBuf, bytes: &[u8], mode| {
        files::write_atomic(&path, bytes, mode).map_err(|source| Error::Files { path, source })
    };
    let condor = paths.condor();
    paths.prepare().map_err(|source| Error::Folder {
        path: condor.clone(),
        source,
    })?;
    write(condor.join("ca.pem"), membership.ca_pem.as_bytes(), 0o644)?;
    write(condor.join("node.key"), keys.condor_key_pem().as_bytes(), 0o600)?;
    write(condor.join("node.pem"), membership.condor_pem.as_bytes(), 0o644)?;
    write(paths.ca(), membership.ca_pem.as_bytes(), 0o644)?;
    write(paths.credential(), &membership.credential.der, 0o644)
}

/// Renews the credentials for as long as the daemon runs.
pub(crate) async fn keep_renewed(member: Arc<Member>, paths: GridPaths, shared: Arc<Shared>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let current = member.credential.borrow().clone();
        let wait = current.renew_at().since(now());
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(WALL_CLOCK)).await;
            continue;
        }
        match renew(&member, &paths, &current).await {
            Ok(()) => {
                backoff = BACKOFF_MIN;
                shared.done(Stage::Certificate, describe(&member.credential.borrow()));
                // By a clock that is weeks ahead, the next renewal is due already.
                tokio::time::sleep(RENEW_FLOOR).await;
            }
            Err(RenewError::Client(error)) => {
                let pause = pause(&error, &mut backoff);
                report(&shared, &error, pause);
                tokio::time::sleep(pause).await;
            }
            Err(RenewError::Local(error)) => rest(&shared, &error).await,
        }
    }
}

/// Says what is wrong with this machine, and leaves time to mend it.
async fn rest(shared: &Shared, error: &Error) {
    shared.failed(
        Stage::Certificate,
        error.to_string(),
        "tried again within a minute",
    );
    tokio::time::sleep(BACKOFF_MAX).await;
}

enum RenewError {
    Client(ClientError),
    Local(Error),
}

async fn renew(member: &Member, paths: &GridPaths, current: &Credential) -> Result<(), RenewError> {
    let request = RenewRequest::create(&member.keys, current).map_err(|source| {
        RenewError::Local(Error::Files {
            path: paths.keys(),
            source,
        })
    })?;
    let membership = member
        .client
        .renew(&request, now())
        .await
        .map_err(RenewError::Client)?;
    keep(paths, &member.keys, &membership).map_err(RenewError::Local)?;
    member.credential.send_replace(Arc::new(membership.credential));
    Ok(())
}

/// Gets the short-lived certificate by which ordinary users of this node may look at managers, and keeps it fresh.
/// Only nodes with people on them ask: submit nodes, clients and managers.
pub(crate) async fn keep_user_credential(member: Arc<Member>, paths: GridPaths, ready: watch::Sender<bool>) {
    let people = [Role::Submit, Role::Client, Role::Manager];
    if !people
        .into_iter()
        .any(|role| member.credential.borrow().roles.contains(role))
    {
        return;
    }
    let mut backoff = BACKOFF_MIN;
    let mut ends = kept_user_credential(&member, &paths);
    loop {
        if let Some((renew_at, _)) = ends.filter(|(_, ends)| *ends > now()) {
            ready.send_if_modified(|ready| !std::mem::replace(ready, true));
            let wait = renew_at.since(now());
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(WALL_CLOCK)).await;
                continue;
            }
        }
        let credential = member.credential.borrow().clone();
        match user_credential(&member, &paths, &credential).await {
            Ok(times) => {
                backoff = BACKOFF_MIN;
                ends = Some(times);
                ready.send_replace(true);
                tokio::time::sleep(RENEW_FLOOR).await;
            }
            Err(reason) => {
                tracing::info!(
                    reason,
                    "no new user credential; without one, only root can ask managers on other nodes"
                );
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// When the user credential of an earlier start is to be renewed, and when it ends; if it is there and goes with its key.
fn kept_user_credential(member: &Member, paths: &GridPaths) -> Option<(WallMillis, WallMillis)> {
    let condor = paths.condor();
    let certificate = std::fs::read_to_string(condor.join("user.pem")).ok()?;
    let key = UserKey::load(&condor.join("user.key")).ok()??;
    let der = pem_to_der(&certificate)?;
    let plain = member
        .trust
        .read(|verifier| verifier.verify_plain(&der, now()))
        .ok()
        .filter(|plain| plain.public == key.public())?;
    Some((renew_at(plain.not_before, plain.not_after), plain.not_after))
}

/// Two thirds of the way from one moment to the other.
fn renew_at(from: WallMillis, to: WallMillis) -> WallMillis {
    from.plus(to.since(from).mul_f64(2.0 / 3.0))
}

/// Gets a user credential; gives when it is to be renewed, and when it ends.
async fn user_credential(
    member: &Member,
    paths: &GridPaths,
    own: &Credential,
) -> Result<(WallMillis, WallMillis), String> {
    let key = UserKey::generate().map_err(|error| error.to_string())?;
    let request = member
        .keys
        .user_request(own, &key, &own.user)
        .map_err(|error| error.to_string())?;
    let issued = member
        .client
        .user_credential(&request, now())
        .await
        .map_err(|error| error.to_string())?;
    let condor = paths.condor();
    // The machine's ordinary users are the grid's: each may use the key, which is good for looking only, and briefly.
    files::write_atomic(&condor.join("user.key"), key.to_pem().as_bytes(), 0o644)
        .and_then(|()| {
            files::write_atomic(&condor.join("user.pem"), issued.certificate_pem.as_bytes(), 0o644)
        })
        .map_err(|error| error.to_string())?;
    Ok((renew_at(issued.not_before, issued.not_after), issued.not_after))
}

/// Fetches revocation lists from the portal, as the source of what gossip spreads. `apply` takes each.
pub(crate) async fn poll_revocations<R: Future<Output = ()>>(
    member: Arc<Member>,
    overlay: aerie_overlay::Handle,
    apply: impl Fn(Vec<u8>) -> R,
) {
    let mut alone = 0;
    let mut fetched = tokio::time::Instant::now();
    loop {
        let pause = REVOCATIONS_SOON.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::time::sleep(pause).await;
        let is_alone = overlay.members().await.is_ok_and(|members| members.is_empty());
        alone = if is_alone { alone + 1 } else { 0 };
        let relays = member.credential.borrow().roles.contains(Role::Relay);
        if fetched.elapsed() < revocations_after(relays, alone) {
            continue;
        }
        fetched = tokio::time::Instant::now();
        match member.client.revocations(member.trust.serial()).await {
            Ok(Some(list)) => apply(list.encode()).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "no revocation list from the portal"),
        }
    }
}

/// How old the newest list may get, on a node that looked around and saw nobody so many times in a row.
fn revocations_after(relays: bool, alone: u32) -> Duration {
    match alone {
        _ if relays => Duration::ZERO,
        0 => REVOCATIONS_EVERY,
        // As seldom as the others after a minute or two, for the portal's sake.
        _ => (REVOCATIONS_SOON * (alone / 4)).min(REVOCATIONS_EVERY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_fetched_often_by_relays_and_by_who_is_suddenly_alone() {
        assert_eq!(revocations_after(true, 0), Duration::ZERO);
        assert_eq!(revocations_after(false, 0), REVOCATIONS_EVERY);
        assert_eq!(revocations_after(false, 1), Duration::ZERO);
        assert_eq!(revocations_after(false, 8), REVOCATIONS_SOON * 2);
        assert_eq!(revocations_after(false, 1000), REVOCATIONS_EVERY);
    }

    #[test]
    fn any_host_name_gives_a_node_name() {
        for (host, node) in [
            ("w1", "w1"),
            ("W1.example.org", "w1"),
            ("7zip_box-", "zip-box"),
            ("", "node"),
            ("---", "node"),
            ("ümlaut", "mlaut"),
        ] {
            assert_eq!(node_name(host).as_str(), node, "{host}");
        }
    }
}
