//! `/api/demo/kafka`: a demonstration of the bus that events go by, for those who try the system.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
};
use domain::{Error, FieldErrors, TextProblem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use services::{DEMO_KEPT, DEMO_PREFIX, DemoBus, DemoMessage};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    error::ApiError,
    extract::{Authenticated, JsonBody, Query, all, optional, present, required},
    operation_errors::{DemoOff, Errors},
    response::{ApiResult, Response, Timestamp},
    schemas,
};

/// How many messages are shown unless more are asked for.
const DEFAULT_LIMIT: usize = 10;

/// The bus of the demonstration, where there is one.
pub(crate) struct Demo(Arc<dyn DemoBus>);

impl FromRequestParts<App> for Demo {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &App) -> Result<Self, ApiError> {
        app.settings.demo.clone().map(Self).ok_or(ApiError::NoRoute)
    }
}

/// A message to be sent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProduceIn {
    /// Where to: a topic of the demonstration.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::DemoTopic)]
    topic: Option<String>,
    /// What to send.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::DemoContent)]
    message: Option<Map<String, Value>>,
    /// Messages with the same key follow each other.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = false, value_type = schemas::DemoKey)]
    key: Option<String>,
}

/// A message that was sent.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProducedOut {
    event_id: Uuid,
    #[schema(value_type = schemas::DemoTopic)]
    topic: String,
    timestamp: Timestamp,
    /// Always `published`: the bus has it.
    #[schema(example = "published")]
    status: &'static str,
}

/// A message that was received.
#[derive(Serialize, ToSchema)]
pub(crate) struct DemoMessageOut {
    event_id: Uuid,
    /// Its topic.
    #[schema(example = "demo.greetings")]
    topic: String,
    #[schema(required = true, example = "a")]
    key: Option<String>,
    timestamp: Timestamp,
    /// Its content; text where whoever sent it sent no JSON.
    #[schema(value_type = schemas::DemoContent)]
    message: Value,
}

/// What the consumer received last.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConsumedOut {
    /// Which bus: `kafka` or `in-process`.
    #[schema(example = "kafka")]
    bus: &'static str,
    /// `up` or `down`.
    #[schema(example = "up")]
    status: &'static str,
    /// The latest first.
    messages: Vec<DemoMessageOut>,
}

/// The state of the bus.
#[derive(Serialize, ToSchema)]
pub(crate) struct DemoHealthOut {
    /// `healthy`: a bus that is not is answered with 503.
    #[schema(example = "healthy")]
    status: &'static str,
    /// Which bus: `kafka` or `in-process`.
    #[schema(example = "kafka")]
    bus: &'static str,
}

/// How many messages.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsumeQuery {
    /// How many at most.
    #[param(required = false, inline, value_type = schemas::DemoLimit)]
    limit: Option<i64>,
}

/// Send a message
///
/// To a topic of the demonstration. The answer comes when the bus has it.
#[utoipa::path(post, path = "/api/demo/kafka/produce", tag = "demo", request_body = ProduceIn,
    responses((status = 200, description = "Message published", body = Response<ProducedOut>), Errors<DemoOff>))]
pub(crate) async fn produce(
    Demo(bus): Demo,
    State(app): State<App>,
    Authenticated(_): Authenticated,
    JsonBody(body): JsonBody<ProduceIn>,
) -> ApiResult<ProducedOut> {
    let mut errors = FieldErrors::default();
    let topic = required(&mut errors, "topic", body.topic.as_ref(), parse_topic);
    let key = optional(&mut errors, "key", body.key.as_ref(), parse_key);
    if body.message.is_none() {
        errors.add("message", "is required");
    }
    let topic = all(errors, topic)?;
    let content = Value::from(body.message.unwrap_or_default()).to_string();
    let message = DemoMessage::new(&*app.clock, topic, key, content);
    bus.produce(&message).await?;
    let DemoMessage { id, topic, at, .. } = message;
    Ok(Response::ok("Message published", ProducedOut { event_id: id.into(), topic, timestamp: Timestamp(at), status: "published" }))
}

/// Show what was received
///
/// By a consumer of all topics of the demonstration, at this instance: what anybody sent, and what other programs did.
#[utoipa::path(get, path = "/api/demo/kafka/consume", tag = "demo", params(ConsumeQuery),
    responses((status = 200, description = "Messages found", body = Response<ConsumedOut>), Errors<DemoOff>))]
pub(crate) async fn consume(Demo(bus): Demo, Authenticated(_): Authenticated, Query(query): Query<ConsumeQuery>) -> ApiResult<ConsumedOut> {
    let limit = match query.limit.map(usize::try_from) {
        None => DEFAULT_LIMIT,
        Some(Ok(limit)) if (1..=DEMO_KEPT).contains(&limit) => limit,
        Some(_) => {
            let mut errors = FieldErrors::default();
            errors.add("limit", "must be a whole number from 1 to 50");
            return Err(Error::Invalid(errors).into());
        }
    };
    let status = if bus.check().await.is_ok() { "up" } else { "down" };
    let messages = bus.received(limit).into_iter().map(|DemoMessage { id, topic, key, message, at }| DemoMessageOut {
        event_id: id.into(),
        topic,
        key,
        timestamp: Timestamp(at),
        message: serde_json::from_str(&message).unwrap_or(Value::String(message)),
    });
    Ok(Response::ok("Messages found", ConsumedOut { bus: bus.name(), status, messages: messages.collect() }))
}

/// Bus alive?
///
/// Asks the bus. 503 when it does not answer.
#[utoipa::path(get, path = "/api/demo/kafka/health", tag = "demo", security(()),
    responses((status = 200, description = "Alive", body = Response<DemoHealthOut>), Errors<DemoOff>))]
pub(crate) async fn demo_health(Demo(bus): Demo) -> ApiResult<DemoHealthOut> {
    bus.check().await?;
    Ok(Response::ok("Alive", DemoHealthOut { status: "healthy", bus: bus.name() }))
}

/// A topic of the demonstration, named as Kafka lets it be.
fn parse_topic(text: &str) -> Result<String, TextProblem> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match text.strip_prefix(DEMO_PREFIX) {
        Some(rest) if !rest.is_empty() && text.len() <= 64 && text.bytes().all(is_legal) => Ok(text.to_owned()),
        _ => Err("must be demo. and letters, digits, dots, _ or -, 64 characters at most"),
    }
}

fn parse_key(text: &str) -> Result<String, TextProblem> {
    if text.chars().count() <= 64 { Ok(text.to_owned()) } else { Err("must have at most 64 characters") }
}
