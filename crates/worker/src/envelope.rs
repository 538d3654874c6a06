//! The public form of an event: a JSON object with the same fields on every topic.

use std::{borrow::Cow, fmt::Display};

use domain::{Event, EventId, EventKind, TenantId, Timestamp, UserId};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// The value of a message (SPEC §6).
#[derive(Serialize, Deserialize)]
struct Envelope<'a, T> {
    event_id: T,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    tenant_id: Option<T>,
    user_id: Option<T>,
    timestamp: T,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Serialises a value as text without an intermediate string.
struct Text<'a>(&'a dyn Display);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// The header with an event's `traceparent` (CloudEvents, Distributed Tracing extension).
pub(crate) const TRACEPARENT: &str = "ce_traceparent";

/// An upper bound of the envelope's size without the payload, in bytes.
const MAX_OVERHEAD: usize = 320;

/// Encodes an event as the value of a message. A payload that is not JSON, which no event of ours has, is sent unchanged: the
/// consumer rejects it with the reason.
pub(crate) fn encode(event: &Event) -> Vec<u8> {
    let mut value = Vec::with_capacity(MAX_OVERHEAD + event.data.len());
    let encoded = serde_json::from_str(&event.data).and_then(|data| {
        let envelope = Envelope {
            event_id: Text(&event.id),
            event_type: event.kind.as_str().into(),
            tenant_id: event.tenant_id.as_ref().map(|id| Text(id)),
            user_id: event.user_id.as_ref().map(|id| Text(id)),
            timestamp: Text(&event.at),
            data,
        };
        serde_json::to_writer(&mut value, &envelope)
    });
    encoded.map_or_else(|_| event.data.clone().into_bytes(), |()| value)
}

/// Decodes an event from the value of a message. Ignores unknown fields, which later versions may add.
///
/// # Errors
/// Why the value is not an event.
pub(crate) fn decode(value: &[u8], traceparent: Option<String>) -> Result<Event, String> {
    let envelope: Envelope<'_, String> = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    let id = |name: &str, text: &str| text.parse::<uuid::Uuid>().map_err(|_| format!("{name} is not a UUID"));
    Ok(Event {
        id: EventId::from(id("event_id", &envelope.event_id)?),
        kind: EventKind::parse(&envelope.event_type).ok_or_else(|| format!("unknown event_type {}", envelope.event_type))?,
        tenant_id: envelope.tenant_id.map(|text| id("tenant_id", &text)).transpose()?.map(TenantId::from),
        user_id: envelope.user_id.map(|text| id("user_id", &text)).transpose()?.map(UserId::from),
        at: Timestamp::parse(&envelope.timestamp).ok_or("timestamp is not in RFC 3339 format")?,
        data: envelope.data.get().to_owned(),
        traceparent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_round_trip() {
        let tenant = Some(TenantId::from(uuid::Uuid::from_u128(2)));
        for (tenant_id, user_id) in [(tenant, Some(UserId::from(uuid::Uuid::from_u128(3)))), (None, None)] {
            let event = Event {
                id: EventId::from(uuid::Uuid::from_u128(1)),
                kind: EventKind::AuditLog,
                tenant_id,
                user_id,
                at: Timestamp::from_micros(1_795_990_668_777_268),
                data: r#"{"action":"a.b","n":12345678901234567890}"#.to_owned(),
                traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            };
            let value = encode(&event);
            assert_eq!(decode(&value, event.traceparent.clone()).unwrap(), event);
        }
        for invalid in ["", "{}", "[]", r#"{"event_id":"x","event_type":"audit.log","timestamp":"2026-11-24T09:30:00Z","data":{}}"#] {
            assert!(decode(invalid.as_bytes(), None).is_err(), "{invalid}");
        }
    }
}
