//! From a request's bytes to an answer's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aerie_identity::{EnrolRequest, JoinToken, RenewRequest, UserRequest};
use aerie_types::WallMillis;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::Clock;
use super::rate::RateLimit;
use crate::wire::{
    ENROL, EnrolBody, ErrorAnswer, HEALTH, HealthAnswer, MAX_BODY, MemberAnswer, RENEW, REVOCATIONS,
    RevocationsAnswer, RevocationsQuery, SignedBody, USER_CREDENTIAL, UserAnswer,
};
use crate::{Denied, Enrolled, Portal, Refusal};

/// Threads that wait for the database at a time. It has one writer; more would only queue on its lock.
const WORKERS: usize = 4;

/// How long a request may take from its first byte to the decision.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What the handlers share.
#[derive(Clone)]
pub(super) struct State {
    portal: Arc<Portal>,
    clock: Clock,
    requests: Arc<AtomicU64>,
    rate: Arc<Mutex<RateLimit>>,
    workers: Arc<Semaphore>,
}

impl State {
    pub(super) fn new(portal: Arc<Portal>, clock: Clock, requests: Arc<AtomicU64>) -> Self {
        Self {
            portal,
            clock,
            requests,
            rate: Arc::new(Mutex::new(RateLimit::new())),
            workers: Arc::new(Semaphore::new(WORKERS)),
        }
    }

    /// Runs what blocks on a thread for it, a few at a time.
    async fn decide<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Portal, WallMillis) -> Result<T, Denied> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.workers)
            .acquire_owned()
            .await
            .map_err(|_| Failure::Internal)?;
        let (portal, now) = (Arc::clone(&self.portal), (self.clock)());
        let decided = tokio::task::spawn_blocking(move || {
            let decided = f(&portal, now);
            drop(permit);
            decided
        });
        match decided.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(denied)) => Err(denied.into()),
            Err(error) => {
                tracing::error!(%error, "a request failed");
                Err(Failure::Internal)
            }
        }
    }
}

pub(super) fn router(state: State) -> Router {
    Router::new()
        .route(ENROL, post(enrol))
        .route(RENEW, post(renew))
        .route(USER_CREDENTIAL, post(user_credential))
        .route(REVOCATIONS, get(revocations))
        .route(HEALTH, get(health))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(state.clone(), admit))
        .with_state(state)
}

/// Counts, limits and times every request.
async fn admit(
    axum::extract::State(state): axum::extract::State<State>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let admitted = {
        let mut rate = state.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.admit(peer.ip(), Instant::now())
    };
    if let Err(wait) = admitted {
        return Failure::TooMany(wait).into_response();
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::Timeout.into_response(),
    }
}

type Shared = axum::extract::State<State>;

async fn enrol(axum::extract::State(state): Shared, body: Bytes) -> Result<Json<MemberAnswer>, Failure> {
    let body: EnrolBody = parse(&body)?;
    let token: JoinToken = body
        .token
        .parse()
        .map_err(|error: aerie_identity::Error| Refusal::TokenMalformed(error.to_string()))?;
    let request = EnrolRequest::decode(&unhex(&body.request)?).map_err(malformed)?;
    let enrolled = state
        .decide(move |portal, now| portal.enrol(&token, &request, now))
        .await?;
    Ok(Json(member_answer(enrolled)))
}

async fn renew(axum::extract::State(state): Shared, body: Bytes) -> Result<Json<MemberAnswer>, Failure> {
    let body: SignedBody = parse(&body)?;
    let request = RenewRequest::decode(&unhex(&body.request)?).map_err(malformed)?;
    let enrolled = state
        .decide(move |portal, now| portal.renew(&request, now))
        .await?;
    Ok(Json(member_answer(enrolled)))
}

async fn user_credential(
    axum::extract::State(state): Shared,
    body: Bytes,
) -> Result<Json<UserAnswer>, Failure> {
    let body: SignedBody = parse(&body)?;
    let request = UserRequest::decode(&unhex(&body.request)?).map_err(malformed)?;
    let issued = state
        .decide(move |portal, now| portal.issue_user(&request, now))
        .await?;
    Ok(Json(UserAnswer {
        certificate_pem: issued.certificate_pem,
        ca_pem: issued.ca_pem,
    }))
}

async fn revocations(
    axum::extract::State(state): Shared,
    Query(query): Query<RevocationsQuery>,
) -> Result<Json<RevocationsAnswer>, Failure> {
    let newer = state
        .decide(move |portal, _| Ok(portal.revocations_after(query.after)?))
        .await?;
    Ok(Json(RevocationsAnswer {
        revocations: newer.map(|list| hex::encode(list.encode())),
    }))
}

async fn health(axum::extract::State(state): Shared) -> Result<Json<HealthAnswer>, Failure> {
    // Reads the database, so that a full or broken disk shows.
    state.decide(|portal, _| Ok(portal.revocations()?)).await?;
    let grid = state.portal.grid();
    Ok(Json(HealthAnswer {
        grid: grid.id.to_string(),
        name: grid.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

fn member_answer(enrolled: Enrolled) -> MemberAnswer {
    MemberAnswer {
        node: enrolled.node.to_string(),
        overlay: hex::encode(&enrolled.credentials.overlay_der),
        condor_pem: enrolled.credentials.condor_pem,
        ca_pem: enrolled.credentials.ca_pem,
        revocations: hex::encode(enrolled.revocations.encode()),
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::Request(format!("the request is not understood: {error}")).into())
}

fn unhex(text: &str) -> Result<Vec<u8>, Failure> {
    hex::decode(text).map_err(|_| Refusal::Request("the request is not hexadecimal".to_owned()).into())
}

fn malformed(error: aerie_identity::Error) -> Failure {
    Refusal::Request(error.to_string()).into()
}

/// Why a request has no good answer, as the requester learns it.
enum Failure {
    Refused(Refusal),
    TooMany(Duration),
    Timeout,
    Internal,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Refused(refusal) => Self::Refused(refusal),
            Denied::Failed(error) => {
                // What failed here is no business of the requester's.
                tracing::error!(%error, "a request failed");
                Self::Internal
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(refusal) => {
                tracing::warn!(code = refusal.code(), %refusal, "request refused");
                let status = match refusal {
                    Refusal::Request(_) | Refusal::TokenMalformed(_) => StatusCode::BAD_REQUEST,
                    Refusal::NameTaken(_) | Refusal::KeysNamed(_) => StatusCode::CONFLICT,
                    _ => StatusCode::FORBIDDEN,
                };
                answer(status, refusal.code(), &refusal.to_string())
            }
            Self::TooMany(wait) => {
                let seconds = wait.as_secs() + 1;
                let message = format!("too many requests from this address; try again in {seconds} s");
                let mut response = answer(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", &message);
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                response
            }
            Self::Timeout => answer(
                StatusCode::SERVICE_UNAVAILABLE,
                "timeout",
                "the portal is too busy to answer in time; try again later",
            ),
            Self::Internal => answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the portal failed; its log says why; try again later",
            ),
        }
    }
}

fn answer(status: StatusCode, code: &str, message: &str) -> Response {
    let body = ErrorAnswer {
        code: code.to_owned(),
        message: message.to_owned(),
    };
    (status, Json(body)).into_response()
}
