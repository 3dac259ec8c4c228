//! A grid with a running portal, for the tests of this folder.

#![allow(dead_code, reason = "every test binary uses a part of this")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aerie_identity::{Credential, EnrolRequest, JoinToken, NodeKeys, RenewRequest, UserKey, UserRequest};
use aerie_portal::{Clock, EnrolClient, Portal, ServeConfig, Server, TokenRequest};
use aerie_types::{NodeName, Role, Roles, VirtualRange, WallMillis};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn now() -> WallMillis {
    WallMillis::from(SystemTime::now())
}

/// A new grid with one group, `physics`.
pub(crate) fn create(dir: &Path, grid: &str) -> Portal {
    let portal = Portal::create_grid(
        dir,
        grid.parse().unwrap(),
        "100.96.0.0/11".parse::<VirtualRange>().unwrap(),
        now(),
    )
    .unwrap();
    portal.add_group(&"physics".parse().unwrap(), now()).unwrap();
    portal
}

pub(crate) fn token_request(uses: u32) -> TokenRequest {
    TokenRequest {
        group: "physics".parse().unwrap(),
        roles: Roles::from(Role::Submit),
        user: "alice".parse().unwrap(),
        ttl: HOUR,
        uses,
    }
}

pub(crate) fn token(portal: &Portal, uses: u32) -> JoinToken {
    portal.create_token(&token_request(uses), now()).unwrap().token
}

/// A node's keys with its requests.
pub(crate) struct Node {
    pub(crate) keys: NodeKeys,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            keys: NodeKeys::generate().unwrap(),
        }
    }

    pub(crate) fn wish(&self, portal: &Portal, name: &str) -> EnrolRequest {
        self.request(portal, name, false)
    }

    pub(crate) fn request(&self, portal: &Portal, name: &str, exact: bool) -> EnrolRequest {
        let name: NodeName = name.parse().unwrap();
        EnrolRequest::create(&self.keys, portal.grid().id, name, exact).unwrap()
    }

    pub(crate) fn renewal(&self, credential: &Credential) -> RenewRequest {
        RenewRequest::create(&self.keys, credential).unwrap()
    }

    pub(crate) fn for_user(&self, credential: &Credential, user: &str) -> UserRequest {
        let key = UserKey::generate().unwrap();
        self.keys
            .user_request(credential, &key, &user.parse().unwrap())
            .unwrap()
    }
}

/// A running server on a loopback address, whose clock a test can move.
pub(crate) struct Site {
    pub(crate) portal: Arc<Portal>,
    pub(crate) server: Server,
    ahead: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start(grid: &str) -> Self {
        Self::start_with(grid, &["127.0.0.1"], Duration::ZERO).await
    }

    pub(crate) async fn start_with(grid: &str, names: &[&str], ahead: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let portal = Arc::new(create(dir.path(), grid));
        let ahead = Arc::new(AtomicU64::new(ahead.as_millis() as u64));
        let offset = Arc::clone(&ahead);
        let clock: Clock = Arc::new(move || now().plus(Duration::from_millis(offset.load(Ordering::SeqCst))));
        let config = ServeConfig {
            clock,
            ..ServeConfig::new(
                "127.0.0.1:0".parse().unwrap(),
                names.iter().map(ToString::to_string).collect(),
            )
        };
        let server = Server::start(Arc::clone(&portal), config).await.unwrap();
        Self {
            portal,
            server,
            ahead,
            _dir: dir,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.server.local_addr())
    }

    pub(crate) fn client(&self) -> EnrolClient {
        EnrolClient::new(&[self.url()], self.portal.grid().ca_hash).unwrap()
    }

    /// Moves the server's clock to this long after the real time.
    pub(crate) fn set_ahead(&self, ahead: Duration) {
        self.ahead.store(ahead.as_millis() as u64, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> WallMillis {
        now().plus(Duration::from_millis(self.ahead.load(Ordering::SeqCst)))
    }
}
