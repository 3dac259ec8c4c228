//! Where the user-data is: a file, or a metadata service.
//!
//! The places in their order: the file named by `--user-data`, Aerie's own, cloud-init's copy; the server that
//! Nimbus's file names; EC2's service by its second version, which wants a token, and by its first where that is
//! allowed. The first that has user-data of a context is taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aerie_context_proto::limits::MAX_DOCUMENT_BYTES;
use aerie_context_proto::{UserData, xml};
use ureq::http::StatusCode;

use crate::error::Error;
use crate::files;

/// Files in which user-data lie.
const FILES: [&str; 3] = [
    "/etc/aerie/context",
    "/opt/aerie/context",
    "/var/lib/cloud/instance/user-data.txt",
];

/// In it Nimbus leaves its metadata server's address.
const NIMBUS_FILE: &str = "/var/nimbus-metadata-server-url";

/// How long a metadata service may take for an answer: it is on the link.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Where to look.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// This file and nothing else.
    pub(crate) file: Option<PathBuf>,
    /// What stands before the paths of files that are looked for.
    pub(crate) root: PathBuf,
    /// EC2's service.
    pub(crate) metadata_url: String,
    /// Whether it may be asked without a token.
    pub(crate) allow_imds_v1: bool,
}

/// Looks for the user-data.
pub(crate) fn find(sources: &Sources) -> Result<UserData, Error> {
    if let Some(file) = &sources.file {
        let text =
            files::read(file)?.ok_or_else(|| Error::io("read", file)(std::io::ErrorKind::NotFound.into()))?;
        return parse(&file.display().to_string(), &text);
    }
    let mut tried = Vec::new();
    for file in FILES {
        let path = under(&sources.root, file);
        match files::read(&path)? {
            Some(text) if is_ours(&text) => return parse(file, &text),
            Some(_) => tried.push(format!("{file}: it is no user-data of a context")),
            None => tried.push(format!("{file}: there is none")),
        }
    }
    let nimbus = under(&sources.root, NIMBUS_FILE);
    let mut services: Vec<(String, Result<String, String>)> = Vec::new();
    match files::read(&nimbus)? {
        Some(text) => {
            let base = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim()
                .trim_end_matches('/')
                .to_owned();
            services.push((base.clone(), nimbus_user_data(&base)));
        }
        None => tried.push(format!("{NIMBUS_FILE}: there is none")),
    }
    if !services.iter().any(|(_, found)| found.is_ok()) {
        let base = sources.metadata_url.trim_end_matches('/').to_owned();
        let found = ec2_user_data(&base, sources.allow_imds_v1);
        services.push((base, found));
    }
    for (base, found) in services {
        match found {
            Ok(text) if is_ours(&text) => return parse(&base, &text),
            Ok(_) => tried.push(format!("{base}: its user-data are of no context")),
            Err(why) => tried.push(format!("{base}: {why}")),
        }
    }
    Err(Error::NoUserData(tried.join("\n")))
}

/// A path below the root that the agent was given.
pub(crate) fn under(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn is_ours(text: &str) -> bool {
    text.contains("<nimbusctx") || (text.trim_start().starts_with('{') && text.contains("\"broker_url\""))
}

fn parse(place: &str, text: &str) -> Result<UserData, Error> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| Error::UserData {
            place: place.to_owned(),
            why: error.to_string(),
        });
    }
    xml::read_user_data(text).map_err(|error| Error::user_data(place, &error))
}

fn plain() -> ureq::Agent {
    // Neither proxy nor redirect: anything but what is on the link is not the service.
    ureq::Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into()
}

type Answer = (StatusCode, String);

fn take(answered: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
    let mut response = answered.map_err(|error| format!("nobody is there: {error}"))?;
    let status = response.status();
    let body = response
        .body_mut()
        .with_config()
        .limit(MAX_DOCUMENT_BYTES as u64)
        .read_to_string();
    Ok((
        status,
        body.map_err(|error| format!("its answer cannot be used: {error}"))?,
    ))
}

fn good((status, text): Answer) -> Result<String, String> {
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::NOT_FOUND => Err("it has no user-data".to_owned()),
        status => Err(format!("it answers with {status}")),
    }
}

fn nimbus_user_data(base: &str) -> Result<String, String> {
    if !base.starts_with("http://") {
        return Err(format!("{NIMBUS_FILE} names no http:// address"));
    }
    match take(plain().get(format!("{base}/latest/user-data")).call())? {
        (StatusCode::NOT_FOUND, _) => good(take(plain().get(format!("{base}/2007-01-19/user-data")).call())?),
        answer => good(answer),
    }
}

fn ec2_user_data(base: &str, allow_v1: bool) -> Result<String, String> {
    let url = format!("{base}/latest/user-data");
    let token = take(
        plain()
            .put(format!("{base}/latest/api/token"))
            .header("x-aws-ec2-metadata-token-ttl-seconds", "60")
            .send_empty(),
    )
    .and_then(good);
    match token {
        Ok(token) => good(take(
            plain()
                .get(url)
                .header("x-aws-ec2-metadata-token", token.trim())
                .call(),
        )?),
        Err(_) if allow_v1 => good(take(plain().get(url).call())?),
        Err(why) => Err(format!("no token ({why}); --allow-imds-v1 asks without")),
    }
}
