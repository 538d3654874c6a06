//! Requests to the store: their time limits, their retries, and the meaning of their errors.

use std::{error, time::Duration};

use backon::{ConstantBuilder, ExponentialBuilder, Retryable};
use domain::{Dependency, Error, ResourceKind, Result, error_chain};
use futures_util::StreamExt;
use object_store::{
    client::{HttpRequest, HttpRequestBody},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::{FIRST_OBJECT, S3Storage};
use crate::storage::ObjectStorage;

/// How long transient failures are retried.
pub(super) const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The pauses between attempts grow from the minimum to the maximum.
pub(super) const MIN_BACKOFF: Duration = Duration::from_millis(100);
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(2);

const BACKOFF: ExponentialBuilder =
    ExponentialBuilder::new().with_min_delay(MIN_BACKOFF).with_max_delay(MAX_BACKOFF).with_jitter().without_max_times();

/// The time limit of a request without content.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The time limit of a request with content while the store answers probes: for a part over a slow link, or until the store has
/// assembled an object.
pub(super) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a transfer goes unanswered before the store is probed, and how long the store has to answer.
const PROBE_AFTER: Duration = Duration::from_secs(8);
const PROBE_TIMEOUT: Duration = Duration::from_secs(6);

const PROBES: ConstantBuilder = ConstantBuilder::new().with_delay(Duration::from_millis(500)).without_max_times();

impl S3Storage {
    /// The response to a request without content.
    pub(super) async fn request<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.translate(error).await),
            Err(_) => Err(unavailable(format!("bucket {}: no response in time", self.bucket))),
        }
    }

    /// The response to a request with content, which may take long while the store answers probes.
    pub(super) async fn transfer<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        tokio::select! {
            response = request => response,
            () = self.until_unresponsive() => Err(generic("no response, and none to a probe either".into())),
        }
    }

    /// Probes the store until it does not respond. A refusal is a response.
    async fn until_unresponsive(&self) {
        loop {
            sleep(PROBE_AFTER).await;
            let root = Path::default();
            let probe = (|| self.send_get(&root, &FIRST_OBJECT)).retry(PROBES);
            if timeout(PROBE_TIMEOUT, probe).await.is_err() {
                return;
            }
        }
    }

    /// The response to a GET that the client library does not offer, with retries of transient failures.
    pub(super) async fn query<T: DeserializeOwned>(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<T> {
        let started = Instant::now();
        let is_worth_retrying = |error: &object_store::Error| is_transient(error) && started.elapsed() < RETRY_TIMEOUT;
        let response = (|| self.query_once(path, query)).retry(BACKOFF).when(is_worth_retrying);
        timeout(REQUEST_TIMEOUT, response).await.unwrap_or_else(|_| Err(generic("no response in time".into())))
    }

    /// The response to a GET that the client library does not offer.
    pub(super) async fn query_once<T: DeserializeOwned>(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<T> {
        let (status, text) = self.send_get(path, query).await?;
        let (path, source) = (path.to_string(), format!("{status}: {text}").into());
        match status {
            200..300 => quick_xml::de::from_str(&text).map_err(|error| generic(Box::new(error))),
            404 => Err(object_store::Error::NotFound { path, source }),
            429 | 500.. => Err(generic(source)),
            _ => Err(object_store::Error::PermissionDenied { path, source }),
        }
    }

    /// Sends a GET; returns the status and the body of the response.
    async fn send_get(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<(u16, String)> {
        let options = SignedUrlOptions::new().with_query(query.iter().copied());
        let url = self.plain.signed_url_opts(Method::GET, path, REQUEST_TIMEOUT, &options).await?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(|error| generic(Box::new(error)))?;
        let response = self.http.execute(request).await.map_err(|error| generic(error.into()))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let mut chunks = response.into_body().bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(|error| generic(error.into()))?);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// The error for callers when the client library fails. "Not found" can also mean that the bucket is missing.
    pub(super) async fn translate(&self, error: object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { .. } => self.check().await.err().unwrap_or(Error::NotFound(ResourceKind::Object)),
            error => self.refused(&error),
        }
    }

    /// The error for callers when the store refuses a request.
    pub(super) fn refused(&self, error: &(dyn error::Error + 'static)) -> Error {
        unavailable(format!("bucket {}: {}", self.bucket, reason(error)))
    }
}

fn is_transient(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. })
}

pub(super) fn generic(source: Box<dyn error::Error + Send + Sync>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source }
}

pub(super) fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { dependency: Dependency::ObjectStorage, source: reason.into().into() }
}

/// The cause of a failure on one line: the store's message, or the innermost error. Neither contains a URL or a secret.
pub(super) fn reason(error: &(dyn error::Error + 'static)) -> String {
    let text = error_chain(error).last().map(ToString::to_string).unwrap_or_default();
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0.to_owned())
    };
    let message = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text,
    };
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_one_line() {
        let response = "403 Forbidden: <?xml?>\n<Error><Code>InvalidAccessKeyId</Code><Message>No\n such key</Message></Error>";
        assert_eq!(reason(&*Box::<dyn error::Error>::from(response)), "InvalidAccessKeyId: No such key");
        assert_eq!(reason(&std::io::Error::other("connection\nrefused")), "connection refused");
    }
}
