//! Events in JSON.

use domain::Event;
use serde_json::{Value, json};

/// An event, as consumers receive it.
pub(super) fn event_json(event: &Event) -> Value {
    json!({
        "event_id": event.id.to_string(),
        "event_type": event.kind.as_str(),
        "tenant_id": event.tenant_id.map(|id| id.to_string()),
        "user_id": event.user_id.map(|id| id.to_string()),
        "timestamp": event.at.to_string(),
        "traceparent": event.traceparent,
        "data": serde_json::from_str::<Value>(&event.data).unwrap_or_default(),
    })
}
