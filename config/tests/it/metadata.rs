//! The metadata services, against real servers on the loopback interface.

use std::fs;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aerie_config::{Bundle, Ec2, Outcome, Search, SourceConfig, SourceKind, find};
use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::common::{bundle, message, noise};

/// How a service behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// As EC2 does today: a token is needed.
    V2,
    /// As EC2 did once: no token is known.
    V1,
    /// Requests for tokens are never answered, as beyond the hop limit; others need none.
    TokensLost,
    /// No request is ever answered.
    Mute,
    /// A redirect elsewhere.
    Redirect,
}

const SERVED_TOKEN: &str = "AQAEAFhs-token==";

/// A metadata service on the loopback interface, and the requests it saw. Ends when dropped.
struct Service {
    base: String,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    async fn start(manner: Manner, user_data: Option<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&seen);
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap| {
            log.lock().unwrap().push(format!("{method} {}", uri.path()));
            answer(manner, user_data.clone(), method, uri, headers)
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { base, seen, task }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    manner: Manner,
    user_data: Option<Vec<u8>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, Vec<u8>) {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    match (manner, method.as_str(), uri.path()) {
        (Manner::Mute, ..) | (Manner::TokensLost, "PUT", _) => pending().await,
        (Manner::Redirect, ..) => (StatusCode::FOUND, Vec::new()),
        (Manner::V2, "PUT", "/latest/api/token") => {
            let ttl = header("x-aws-ec2-metadata-token-ttl-seconds")
                .parse()
                .unwrap_or(0);
            if (1..=21_600).contains(&ttl) {
                (StatusCode::OK, SERVED_TOKEN.as_bytes().to_vec())
            } else {
                (StatusCode::BAD_REQUEST, Vec::new())
            }
        }
        (_, "PUT", _) => (StatusCode::METHOD_NOT_ALLOWED, Vec::new()),
        (Manner::V2, ..) if header("x-aws-ec2-metadata-token") != SERVED_TOKEN => {
            (StatusCode::UNAUTHORIZED, Vec::new())
        }
        (_, "GET", "/latest/user-data") => match user_data {
            Some(data) => (StatusCode::OK, data),
            None => (StatusCode::NOT_FOUND, b"<html>404</html>".to_vec()),
        },
        _ => (StatusCode::NOT_FOUND, Vec::new()),
    }
}

async fn ask_ec2(base: &str, allow_v1: bool, budget: Duration) -> Search {
    find(&SourceConfig {
        ec2: Some(Ec2 {
            base: base.to_owned(),
            allow_v1,
        }),
        network_budget: budget,
        ..SourceConfig::nowhere()
    })
    .await
}

const AMPLE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn absence(search: &Search) -> String {
    assert!(matches!(search.outcome, Ok(None)), "{:?}", search.outcome);
    match &search.report.attempts[0].outcome {
        Outcome::Absent(reason) | Outcome::NotOurs(reason) => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_blob_comes_from_imdsv2_with_a_token_asked_first() {
    let service = Service::start(Manner::V2, Some(bundle().to_user_data().unwrap())).await;
    let search = ask_ec2(&service.base, false, AMPLE).await;
    let found = search.outcome.unwrap().unwrap();
    assert_eq!(found.bundle, bundle());
    assert_eq!(found.source, SourceKind::Ec2(service.base.clone()));
    assert_eq!(service.seen(), ["PUT /latest/api/token", "GET /latest/user-data"]);
}

#[tokio::test]
async fn a_blob_may_come_in_base64_or_as_bare_text() {
    let packed = bundle().to_user_data().unwrap();
    let text = crate::common::minimal();
    for (data, len) in [(STANDARD.encode(packed).into_bytes(), 3), (text.into_bytes(), 1)] {
        let service = Service::start(Manner::V2, Some(data)).await;
        let found = ask_ec2(&service.base, false, AMPLE)
            .await
            .outcome
            .unwrap()
            .unwrap();
        assert_eq!(found.bundle.len(), len);
    }
}

#[tokio::test]
async fn the_old_protocol_is_used_only_where_it_is_allowed() {
    let service = Service::start(Manner::V1, Some(bundle().to_user_data().unwrap())).await;
    let refused = ask_ec2(&service.base, false, AMPLE).await;
    let said = absence(&refused);
    assert!(
        said.contains("405") && said.contains("IMDSv1 is not allowed here"),
        "{said}"
    );
    assert_eq!(service.seen(), ["PUT /latest/api/token"]);
    let allowed = ask_ec2(&service.base, true, AMPLE).await;
    assert_eq!(allowed.outcome.unwrap().unwrap().bundle, bundle());
}

#[tokio::test]
async fn a_token_lost_beyond_the_hop_limit_leaves_time_for_the_old_protocol() {
    let service = Service::start(Manner::TokensLost, Some(bundle().to_user_data().unwrap())).await;
    let search = ask_ec2(&service.base, false, SHORT).await;
    assert!(absence(&search).contains("raise the instance's metadata hop limit"));
    let search = ask_ec2(&service.base, true, Duration::from_secs(4)).await;
    assert_eq!(search.outcome.unwrap().unwrap().bundle, bundle());
}

#[tokio::test]
async fn an_instance_without_user_data_is_no_error() {
    for data in [None, Some(Vec::new()), Some(b"\n".to_vec())] {
        let service = Service::start(Manner::V2, data).await;
        let search = ask_ec2(&service.base, false, AMPLE).await;
        assert_eq!(absence(&search), "this instance was started without user-data");
    }
}

#[tokio::test]
async fn user_data_for_cloud_init_is_passed_over() {
    let service = Service::start(Manner::V2, Some(b"#cloud-config\n{}\n".to_vec())).await;
    let search = ask_ec2(&service.base, false, AMPLE).await;
    assert!(absence(&search).contains("a cloud-init configuration"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let service = Service::start(Manner::Redirect, None).await;
    let search = ask_ec2(&service.base, true, AMPLE).await;
    assert!(absence(&search).contains("302"));
}

#[tokio::test]
async fn user_data_without_end_is_cut_at_the_limit() {
    let service = Service::start(Manner::V2, Some(noise(10 << 20))).await;
    let said = message(ask_ec2(&service.base, false, AMPLE).await.outcome);
    assert!(
        said.contains("EC2 user-data at") && said.contains("the limit is 16384"),
        "{said}"
    );
}

#[tokio::test]
async fn broken_user_data_ends_the_search() {
    let mut data = bundle().to_user_data().unwrap();
    data.truncate(data.len() - 30);
    let service = Service::start(Manner::V2, Some(data)).await;
    let said = message(ask_ec2(&service.base, false, AMPLE).await.outcome);
    assert!(said.contains("the gzip data is damaged: it is cut off"), "{said}");
}

#[tokio::test]
async fn a_mute_service_costs_the_time_limit_and_no_more() {
    let service = Service::start(Manner::Mute, None).await;
    let start = Instant::now();
    let search = ask_ec2(&service.base, true, SHORT).await;
    assert!(absence(&search).contains("no answer within 0.3 s"));
    assert!(start.elapsed() < SHORT * 10, "{:?}", start.elapsed());
}

#[tokio::test]
async fn by_default_both_services_together_cost_two_seconds_when_mute() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(Manner::Mute, None).await;
    let nimbus = dir.path().join("url");
    fs::write(&nimbus, &service.base).unwrap();
    let config = SourceConfig {
        ec2: Some(Ec2 {
            base: service.base.clone(),
            allow_v1: true,
        }),
        nimbus: Some(nimbus),
        ..SourceConfig::nowhere()
    };
    assert_eq!(config.network_budget, SourceConfig::default().network_budget);
    let start = Instant::now();
    let search = find(&config).await;
    assert_eq!(search.report.attempts.len(), 2);
    assert!(matches!(search.outcome, Ok(None)));
    // Less than one limit for each, with room for a busy machine.
    assert!(
        start.elapsed() < Duration::from_millis(3800),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    // Bound and closed again: nobody listens there.
    let base = format!(
        "http://{}",
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    );
    let start = Instant::now();
    let search = ask_ec2(&base, true, AMPLE).await;
    assert!(absence(&search).contains("nobody is there"), "{}", search.report);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_address_that_is_none_is_told() {
    for base in [
        "",
        "169.254.169.254",
        "https://169.254.169.254",
        "ftp://x",
        "http://",
    ] {
        let search = ask_ec2(base, true, AMPLE).await;
        assert!(
            absence(&search).contains("is not an http:// address"),
            "{base}: {}",
            search.report
        );
    }
}

#[tokio::test]
async fn nimbus_names_its_server_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("nimbus-metadata-server-url");
    let floppy = bundle().to_user_data().unwrap();
    let service = Service::start(Manner::V1, Some(STANDARD.encode(floppy).into_bytes())).await;
    fs::write(&url, format!("{}\n", service.base)).unwrap();
    let config = SourceConfig {
        nimbus: Some(url.clone()),
        network_budget: AMPLE,
        ..SourceConfig::nowhere()
    };
    let found = find(&config).await.outcome.unwrap().unwrap();
    assert_eq!(found.source, SourceKind::Nimbus(url));
    assert_eq!(found.bundle, bundle());
}

#[tokio::test]
async fn a_nimbus_server_of_old_is_asked_by_its_old_path() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("url");
    let service = Service::start(Manner::V1, None).await;
    fs::write(&url, &service.base).unwrap();
    let config = SourceConfig {
        nimbus: Some(url),
        network_budget: AMPLE,
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    assert_eq!(absence(&search), "this instance was started without user-data");
    assert_eq!(
        service.seen(),
        ["GET /latest/user-data", "GET /2007-01-19/user-data"]
    );
}

#[tokio::test]
async fn a_nimbus_file_with_nonsense_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("url");
    for contents in [b"".to_vec(), noise(4000), b"not a url".to_vec()] {
        fs::write(&url, contents).unwrap();
        let config = SourceConfig {
            nimbus: Some(url.clone()),
            ..SourceConfig::nowhere()
        };
        assert!(absence(&find(&config).await).contains("names no server"));
    }
}

#[tokio::test]
async fn ec2_comes_before_nimbus() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("url");
    let mut other = Bundle::default();
    other
        .insert("aerie.toml", crate::common::minimal().into_bytes())
        .unwrap();
    let ec2 = Service::start(Manner::V2, Some(bundle().to_user_data().unwrap())).await;
    let nimbus = Service::start(Manner::V1, Some(other.to_user_data().unwrap())).await;
    fs::write(&url, &nimbus.base).unwrap();
    let config = SourceConfig {
        ec2: Some(Ec2 {
            base: ec2.base.clone(),
            allow_v1: false,
        }),
        nimbus: Some(url),
        network_budget: AMPLE,
        ..SourceConfig::nowhere()
    };
    assert_eq!(find(&config).await.outcome.unwrap().unwrap().bundle, bundle());
}
