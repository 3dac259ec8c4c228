//! What a node needs to know before it can enrol.

use std::time::Duration;

use aerie_types::{GridId, GridName, GroupName, Roles, UserName, WallMillis};
use zeroize::Zeroizing;

use crate::{Error, GridSettings, Portal, TokenRequest};

/// What a blob is to be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRequest {
    /// The group of the nodes that boot with it.
    pub group: GroupName,
    /// Their roles.
    pub roles: Roles,
    /// Their owner.
    pub user: UserName,
    /// Where the portal is reached: `https://host:port`, in the order to try.
    pub urls: Vec<String>,
    /// Members to connect to first: multiaddresses that end in `/p2p/<peer id>`.
    pub bootstrap: Vec<String>,
    /// How long nodes may enrol with it.
    pub ttl: Duration,
    /// How many nodes may enrol with it.
    pub uses: u32,
}

/// The values of a blob. The token in it is a secret.
#[derive(Debug, Clone)]
pub struct BlobParams {
    /// The grid's name.
    pub grid_name: GridName,
    /// The grid's id.
    pub grid_id: GridId,
    /// The SHA-256 of the grid CA's certificate, which the node pins.
    pub ca_hash: [u8; 32],
    /// What is decided for the whole grid.
    pub settings: GridSettings,
    /// Where the portal is reached.
    pub urls: Vec<String>,
    /// The join token's text.
    pub token: Zeroizing<String>,
    /// What lists call the token.
    pub token_id: String,
    /// When the token ends.
    pub expires_at: WallMillis,
    /// The node's roles.
    pub roles: Roles,
    /// The node's group.
    pub group: GroupName,
    /// The node's owner.
    pub user: UserName,
    /// Members to connect to first.
    pub bootstrap: Vec<String>,
}

impl Portal {
    /// Makes a token and puts everything together that a blob carries.
    ///
    /// # Errors
    /// As [`Portal::create_token`]; [`Error::Invalid`] for a URL that a node could not use.
    pub fn make_blob(&self, request: BlobRequest, now: WallMillis) -> Result<BlobParams, Error> {
        if request.urls.is_empty() {
            return Err(Error::Invalid {
                what: "the list of URLs".to_owned(),
                reason: "name at least one under which nodes reach the portal, such as https://portal.example.org:8443",
            });
        }
        for url in &request.urls {
            check_url(url)?;
        }
        let made = self.create_token(
            &TokenRequest {
                group: request.group.clone(),
                roles: request.roles,
                user: request.user.clone(),
                ttl: request.ttl,
                uses: request.uses,
            },
            now,
        )?;
        let grid = self.grid();
        Ok(BlobParams {
            grid_name: grid.name,
            grid_id: grid.id,
            ca_hash: grid.ca_hash,
            settings: self.settings()?,
            urls: request.urls,
            token: made.token.to_text(),
            token_id: made.id,
            expires_at: made.expires_at,
            roles: request.roles,
            group: request.group,
            user: request.user,
            bootstrap: request.bootstrap,
        })
    }
}

/// Checks the URL of a portal and gives its parsed form: HTTPS, a host, and nothing behind the port.
///
/// # Errors
/// [`Error::Invalid`] with the reason.
pub fn check_url(url: &str) -> Result<reqwest::Url, Error> {
    let invalid = |reason| Error::Invalid {
        what: format!("the portal's URL '{url}'"),
        reason,
    };
    let parsed = reqwest::Url::parse(url)
        .map_err(|_| invalid("it is not a URL; write for example https://portal.example.org:8443"))?;
    if parsed.scheme() != "https" {
        return Err(invalid(
            "it must begin with https://, because a token is sent to it",
        ));
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(invalid("it has no host"));
    }
    let bare = parsed.username().is_empty() && parsed.password().is_none();
    if !bare || parsed.path() != "/" || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(invalid("it must end behind the host or port"));
    }
    Ok(parsed)
}
