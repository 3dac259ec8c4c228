//! From a request's bytes to an answer's. The paths are listed in `aerie_context_proto::wire`.

use std::sync::Arc;
use std::time::Duration;

use aerie_context_proto::limits::{MAX_DATA_BYTES, MAX_DOCUMENT_BYTES};
use aerie_context_proto::wire::{
    CreateQuery, Created, ErrorAnswer, ExitAnswer, INSTANCE_HEADER, MAX_REPORT_BYTES, MAX_WAIT_SECS, Members,
    Quantity, Registered, Report,
};
use aerie_context_proto::{
    Answer, Cluster, Command, ContextId, DataName, Exit, Instance, MemberName, Refusal, Registration,
    Retrieved, SetName, Settings, xml,
};
use aerie_types::WallMillis;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::Clock;
use super::tls::Peer;
use crate::{Broker, Denied};

/// Threads that wait for the disk at a time. It has one writer; more would only queue on its lock.
const WORKERS: usize = 8;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    broker: Arc<Broker>,
    clock: Clock,
    workers: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(broker: Arc<Broker>, clock: Clock) -> Self {
        Self {
            broker,
            clock,
            workers: Arc::new(Semaphore::new(WORKERS)),
        }
    }

    /// Runs what blocks on a thread for it, a few at a time. What has begun is ended even if the asker goes away.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Broker, WallMillis) -> Result<T, Denied> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.workers)
            .acquire_owned()
            .await
            .map_err(|_| Failure::Internal)?;
        let (broker, now) = (Arc::clone(&self.broker), (self.clock)());
        let done = tokio::task::spawn_blocking(move || {
            let done = f(&broker, now);
            drop(permit);
            done
        });
        match done.await {
            Ok(done) => Ok(done?),
            Err(error) => {
                tracing::error!(%error, "a request failed");
                Err(Failure::Internal)
            }
        }
    }

    async fn ask(&self, id: ContextId, command: Command) -> Result<Answer, Failure> {
        self.run(move |broker, now| broker.ask(id, command, now)).await
    }
}

pub(super) fn router(shared: Shared) -> Router {
    let documents = DefaultBodyLimit::max(MAX_DOCUMENT_BYTES);
    let reports = DefaultBodyLimit::max(MAX_REPORT_BYTES);
    Router::new()
        .route("/ctx/", post(create).layer(documents).get(list))
        .route("/ctx/{id}", get(status).delete(destroy))
        .route("/ctx/{id}/contact", get(contact))
        .route("/ctx/{id}/user-data/{set}", get(user_data))
        .route("/ctx/{id}/close", post(close))
        .route(
            "/ctx/{id}/data/{name}",
            put(inject).layer(DefaultBodyLimit::max(MAX_DATA_BYTES)),
        )
        .route("/ctx/{id}/sets/{set}", put(expect).layer(reports))
        .route("/ctx/{id}/members", post(register).layer(reports))
        .route("/ctx/{id}/members/{member}", get(retrieve).merge(delete(leave)))
        .route("/ctx/{id}/members/{member}/exit", post(exit).layer(reports))
        .route("/health", get(health))
        .with_state(shared)
}

/// Somebody who showed the broker's token.
struct Creator;

impl FromRequestParts<Shared> for Creator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        let shown = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match shown.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if shared.broker.is_token(token) => Ok(Self),
            _ => Err(Failure::Stranger(
                "this takes the broker's token, which is in broker.json in the broker's folder",
            )),
        }
    }
}

/// Somebody who proved the key of the context that the path names.
struct Member(ContextId);

impl FromRequestParts<Shared> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        let id = context_id(parts, shared).await?;
        let peer = parts.extensions.get::<Peer>().and_then(|peer| peer.0);
        match peer {
            Some(shown) if shared.broker.is_members(id, shown) => Ok(Self(id)),
            _ => Err(Failure::Stranger(
                "this takes the key of the context, which is in the members' user-data",
            )),
        }
    }
}

/// A creator or a member.
struct Either {
    id: ContextId,
    creator: bool,
}

impl FromRequestParts<Shared> for Either {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        if Creator::from_request_parts(parts, shared).await.is_ok() {
            return Ok(Self {
                id: context_id(parts, shared).await?,
                creator: true,
            });
        }
        let Member(id) = Member::from_request_parts(parts, shared).await?;
        Ok(Self { id, creator: false })
    }
}

#[derive(Deserialize)]
struct InContext {
    id: ContextId,
}

async fn context_id(parts: &mut Parts, shared: &Shared) -> Result<ContextId, Failure> {
    let Path(InContext { id }) = Path::<InContext>::from_request_parts(parts, shared)
        .await
        .map_err(|error| Failure::Request(error.body_text()))?;
    Ok(id)
}

/// The names in a path beside the context's.
#[derive(Deserialize)]
struct Named<T> {
    #[serde(alias = "set", alias = "member")]
    name: T,
}

async fn create(
    State(shared): State<Shared>,
    _: Creator,
    Query(query): Query<CreateQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Created>), Failure> {
    let text = std::str::from_utf8(&body)
        .map_err(|error| Failure::Request(format!("the document is not UTF-8: {error}")))?;
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let json = content_type.is_some_and(|value| value.contains("json"));
    let cluster = if json {
        Cluster::from_json(text)
    } else {
        xml::read_cluster(text)
    };
    let cluster = cluster.map_err(Refusal::Document)?;
    let usual = Settings::default();
    let settings = Settings {
        report_secs: query.report_secs.unwrap_or(usual.report_secs),
        exit_secs: query.exit_secs.unwrap_or(usual.exit_secs),
        attempts: query.attempts.unwrap_or(usual.attempts),
        retry_secs: query.retry_secs.unwrap_or(usual.retry_secs),
    };
    let created = shared
        .run(move |broker, now| broker.create(cluster, settings, query.open, now))
        .await?;
    let answer = Created {
        id: created.contact.context,
        contact: created.contact,
        members: created.members,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn list(State(shared): State<Shared>, _: Creator) -> Result<Response, Failure> {
    let list = shared.run(|broker, now| Ok(broker.list(now))).await?;
    Ok(Json(list).into_response())
}

async fn status(State(shared): State<Shared>, Either { id, .. }: Either) -> Result<Response, Failure> {
    let status = shared.run(move |broker, now| broker.status(id, now)).await?;
    Ok(Json(status).into_response())
}

async fn contact(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
) -> Result<Response, Failure> {
    let contact = shared.run(move |broker, _| broker.contact(id)).await?;
    Ok(Json(contact).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserDataQuery {
    member: Option<MemberName>,
}

async fn user_data(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
    Path(Named { name: set }): Path<Named<SetName>>,
    Query(query): Query<UserDataQuery>,
) -> Result<Response, Failure> {
    let data = shared
        .run(move |broker, _| broker.user_data(id, &set, query.member))
        .await?;
    Ok(Json(data).into_response())
}

async fn close(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
) -> Result<StatusCode, Failure> {
    shared.ask(id, Command::Close).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn inject(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
    Path(Named { name }): Path<Named<DataName>>,
    body: Bytes,
) -> Result<StatusCode, Failure> {
    let content = String::from_utf8(body.to_vec()).map_err(|_| {
        Failure::Request("the data is not text; encode what is binary, such as by base64".to_owned())
    })?;
    shared.ask(id, Command::Inject { name, content }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn expect(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
    Path(Named { name: set }): Path<Named<SetName>>,
    body: Bytes,
) -> Result<Json<Members>, Failure> {
    let Quantity { quantity } = parse(&body)?;
    match shared.ask(id, Command::Expect { set, quantity }).await? {
        Answer::Expected(members) => Ok(Json(Members { members })),
        _ => Err(Failure::Internal),
    }
}

async fn destroy(
    State(shared): State<Shared>,
    _: Creator,
    Path(InContext { id }): Path<InContext>,
) -> Result<StatusCode, Failure> {
    match shared.ask(id, Command::Destroy).await {
        Ok(_) | Err(Failure::Denied(Denied::Refused(Refusal::Destroyed(_)))) => Ok(StatusCode::NO_CONTENT),
        Err(failure) => Err(failure),
    }
}

async fn register(
    State(shared): State<Shared>,
    Member(id): Member,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Registered>, Failure> {
    let instance = instance(&headers)?.hash();
    let Report {
        member,
        set,
        provided,
    } = parse(&body)?;
    let registration = Registration {
        member,
        set,
        instance,
        provided,
    };
    match shared.ask(id, Command::Register(registration)).await? {
        Answer::Registered(member) => Ok(Json(Registered { member })),
        _ => Err(Failure::Internal),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct RetrieveQuery {
    after: u32,
    wait: u64,
}

async fn retrieve(
    State(shared): State<Shared>,
    Member(id): Member,
    Path(Named { name }): Path<Named<MemberName>>,
    Query(query): Query<RetrieveQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let instance = instance(&headers)?.hash();
    let wait = Duration::from_secs(query.wait.min(MAX_WAIT_SECS));
    let now = (shared.clock)();
    let found = shared
        .broker
        .retrieve(id, &name, instance, query.after, wait, now)
        .await?;
    let xml_wanted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("xml"));
    Ok(match found {
        Retrieved::View(view) if xml_wanted => (
            [(header::CONTENT_TYPE, "application/xml")],
            xml::write_view(&view),
        )
            .into_response(),
        Retrieved::View(view) => Json(*view).into_response(),
        Retrieved::Wait => StatusCode::NO_CONTENT.into_response(),
    })
}

async fn exit(
    State(shared): State<Shared>,
    Member(id): Member,
    Path(Named { name: member }): Path<Named<MemberName>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<ExitAnswer>, Failure> {
    let instance = instance(&headers)?.hash();
    let exit: Exit = parse(&body)?;
    let command = Command::Exit {
        member,
        instance,
        exit,
    };
    match shared.ask(id, command).await? {
        Answer::Exit(verdict) => Ok(Json(verdict.into())),
        _ => Err(Failure::Internal),
    }
}

/// A member leaves, or a creator takes it out.
async fn leave(
    State(shared): State<Shared>,
    Either { id, creator }: Either,
    Path(Named { name: member }): Path<Named<MemberName>>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let command = if creator {
        Command::Remove { member }
    } else {
        let instance = instance(&headers)?.hash();
        Command::Leave { member, instance }
    };
    shared.ask(id, command).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }))
}

fn instance(headers: &HeaderMap) -> Result<Instance, Failure> {
    let shown = headers.get(INSTANCE_HEADER).and_then(|value| value.to_str().ok());
    let shown = shown.ok_or_else(|| Failure::Request(format!("the header {INSTANCE_HEADER} is missing")))?;
    Ok(shown.parse::<Instance>().map_err(Refusal::Name)?)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::Request(format!("the request is not understood: {error}")))
}

/// Why a request has no good answer, as the requester learns it.
pub(super) enum Failure {
    Denied(Denied),
    Request(String),
    Stranger(&'static str),
    Internal,
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Denied(refusal.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(Denied::Refused(refusal)) => {
                tracing::warn!(code = refusal.code(), %refusal, "request refused");
                answer(status_of(&refusal), refusal.code(), &refusal.to_string())
            }
            Self::Denied(denied @ Denied::UnknownContext(_)) => {
                answer(StatusCode::NOT_FOUND, "unknown-context", &denied.to_string())
            }
            Self::Denied(denied @ Denied::Full { .. }) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, "full", &denied.to_string())
            }
            Self::Denied(Denied::Failed(error)) => {
                // What failed here is no business of the requester's.
                tracing::error!(%error, "a request failed");
                Self::Internal.into_response()
            }
            Self::Request(message) => answer(StatusCode::BAD_REQUEST, "request", &message),
            Self::Stranger(message) => answer(StatusCode::FORBIDDEN, "stranger", message),
            Self::Internal => answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the broker failed; its log says why; try again later",
            ),
        }
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Destroyed(_) => StatusCode::GONE,
        Refusal::UnknownSet(_) | Refusal::UnknownMember(_) => StatusCode::NOT_FOUND,
        Refusal::NotYours(_) => StatusCode::FORBIDDEN,
        Refusal::AlreadyMember(_)
        | Refusal::Differs { .. }
        | Refusal::IdentityTaken { .. }
        | Refusal::NoPlace { .. }
        | Refusal::Closed
        | Refusal::UnknownVersion { .. }
        | Refusal::Limit { .. } => StatusCode::CONFLICT,
        Refusal::Document(_)
        | Refusal::Name(_)
        | Refusal::Invalid { .. }
        | Refusal::InterfaceMissing { .. }
        | Refusal::IdentityMissing(_)
        | Refusal::PartMissing { .. }
        | Refusal::Data { .. } => StatusCode::BAD_REQUEST,
    }
}

fn answer(status: StatusCode, code: &str, message: &str) -> Response {
    let body = ErrorAnswer {
        code: code.to_owned(),
        message: message.to_owned(),
    };
    (status, Json(body)).into_response()
}
