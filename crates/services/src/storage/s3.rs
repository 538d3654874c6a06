//! Objects in a bucket of an S3-compatible store.

mod multipart;
mod reading;
mod requests;
mod responses;
mod signing;
mod uploads;

use std::{ops::Range, time::Duration};

use domain::{Error, Result};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, Checksum},
    client::{HttpClient, HttpConnector, ReqwestConnector},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use self::{
    reading::{exact_chunks, with_idle_timeout},
    requests::{FIRST_BACKOFF, LONGEST_BACKOFF, REQUEST_TIMEOUT, RETRY_TIMEOUT, TRANSFER_TIMEOUT},
    responses::AnyResponse,
};
use super::{
    ContentHeaders, DirectUploads, DownloadUrl, Object, ObjectEntry, ObjectStorage, UnfinishedUpload, bad_key, check_key, is_prefix,
};
use crate::storage::spool::SpooledContent;

/// How long a request may still take effect after a retry of it was answered: much longer than any store keeps a request.
const LATE_WRITE_WINDOW: Duration = Duration::from_secs(30 * 60);

/// The query of a request for the first object.
const FIRST_OBJECT: [(&str, &str); 3] = [("list-type", "2"), ("max-keys", "1"), ("prefix", "tenants/")];

/// The longest lifetime of a signed URL in Signature Version 4.
const MAX_URL_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The location of an S3 store, and how to access it.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// The URL of the store; by default Amazon's of the region. With `http://` there is no TLS.
    pub endpoint: Option<String>,
    /// The URL of the store in signed URLs, where clients need a different one.
    pub public_endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket, which must exist.
    pub bucket: String,
    /// What requests are signed with.
    pub credentials: S3Credentials,
    /// Whether the bucket is part of the path rather than of the host name.
    pub path_style: bool,
}

/// What requests to an S3 store are signed with.
#[derive(Clone, Debug)]
pub enum S3Credentials {
    /// An access key.
    AccessKey {
        /// The id of the key.
        id: String,
        /// The secret of the key.
        secret: SecretString,
    },
    /// The credentials that the platform provides, as described by the `AWS_*` variables of the process: an access key, a web
    /// identity, the role of the container; without any of them, the role of the machine.
    Ambient(Vec<(String, SecretString)>),
}

/// Objects in a bucket. Transient failures are retried for ten seconds. When the store is down, callers get an error within 16
/// seconds; a slow store is waited for as long as it answers probes.
///
/// Content above 8 MiB is sent in parts, several at once. A put that fails or is dropped removes them; parts that a crash leaves are
/// [listed as unfinished](ObjectStorage::list_unfinished). The store verifies the SHA-256 of every request.
#[derive(Clone)]
pub struct S3Storage {
    bucket: String,
    /// Sends checksums with everything it stores.
    store: AmazonS3,
    /// Sends no checksums: for parts that clients send.
    plain: AmazonS3,
    /// Signs URLs with the public endpoint.
    public: AmazonS3,
    http: HttpClient,
}

impl S3Storage {
    /// Prepares access to the store, without connecting to it.
    ///
    /// # Errors
    /// When an endpoint is not a URL, or the variables for ambient credentials are malformed.
    pub fn new(settings: &S3Settings) -> Result<Self> {
        let options = ClientOptions::new().with_connect_timeout(Duration::from_secs(3)).with_allow_http(true);
        let base = builder(settings)?
            .with_client_options(options.clone().with_timeout_disabled().with_read_timeout(TRANSFER_TIMEOUT))
            .with_retry(retry())
            // The signature already covers the content by its checksum.
            .with_unsigned_payload(true)
            .with_disable_bulk_delete(true)
            .with_virtual_hosted_style_request(!settings.path_style);
        let at = |endpoint: Option<&String>| match endpoint {
            Some(endpoint) => Ok(base.clone().with_endpoint(bucket_endpoint(endpoint, settings)?)),
            None => Ok::<_, Error>(base.clone()),
        };
        let plain = at(settings.endpoint.as_ref())?;
        Ok(Self {
            bucket: settings.bucket.clone(),
            store: build(plain.clone().with_checksum_algorithm(Checksum::SHA256))?,
            plain: build(plain)?,
            public: build(at(settings.public_endpoint.as_ref().or(settings.endpoint.as_ref()))?)?,
            http: ReqwestConnector::default().connect(&options.with_timeout(REQUEST_TIMEOUT)).map_err(Error::internal)?,
        })
    }
}

fn builder(settings: &S3Settings) -> Result<AmazonS3Builder> {
    let builder = AmazonS3Builder::new().with_bucket_name(&settings.bucket).with_region(&settings.region);
    match &settings.credentials {
        S3Credentials::AccessKey { id, secret } => Ok(builder.with_access_key_id(id).with_secret_access_key(secret.expose_secret())),
        // Only credentials come from the variables, no other options.
        S3Credentials::Ambient(variables) => {
            let credentials = build(with_variables(builder.clone(), variables))?.credentials().clone();
            Ok(builder.with_credentials(credentials))
        }
    }
}

/// Sets the options of these variables, and skips variables of other programs.
fn with_variables(builder: AmazonS3Builder, variables: &[(String, SecretString)]) -> AmazonS3Builder {
    variables.iter().fold(builder, |builder, (name, value)| match name.to_ascii_lowercase().parse() {
        Ok(option) => builder.with_config(option, value.expose_secret()),
        Err(_) => builder,
    })
}

fn build(builder: AmazonS3Builder) -> Result<AmazonS3> {
    builder.build().map_err(Error::internal)
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: FIRST_BACKOFF, max_backoff: LONGEST_BACKOFF, base: 2. },
        // The timeout is the limit.
        max_retries: usize::MAX,
        retry_timeout: RETRY_TIMEOUT,
    }
}

/// The URL of a bucket's store, with the bucket in the host name unless it is part of the path.
fn bucket_endpoint(endpoint: &str, settings: &S3Settings) -> Result<String> {
    let mut url = Url::parse(endpoint).map_err(Error::internal)?;
    if !settings.path_style {
        let host = format!("{}.{}", settings.bucket, url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).map_err(Error::internal)?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn object_path(key: &str) -> Result<Path> {
    check_key(key)?;
    Ok(Path::from(key))
}

impl ObjectStorage for S3Storage {
    fn put<'a>(&'a self, key: &'a str, content: &'a SpooledContent) -> BoxFuture<'a, Result<()>> {
        async move {
            let path = object_path(key)?;
            match content.in_memory() {
                Some(bytes) => self.put_bytes(&path, bytes.clone()).await,
                None => self.put_spooled(path, content.clone()).await,
            }
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Object>> {
        async move {
            let path = object_path(key)?;
            let beyond = |size| Error::internal(format!("bytes {range:?} of an object of {size} bytes"));
            // HTTP has no empty ranges.
            if let Some(empty) = range.as_ref().filter(|range| range.is_empty()) {
                let size = self.head(key).await?;
                let object = Object { size, bytes: stream::empty().boxed() };
                return if empty.end <= size { Ok(object) } else { Err(beyond(size)) };
            }
            let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
            let found = self.request(self.store.get_opts(&path, options)).await?;
            let (size, found_range) = (found.meta.size, found.range.clone());
            if range.as_ref().is_some_and(|range| *range != found_range) {
                return Err(beyond(size));
            }
            Ok(Object { size, bytes: exact_chunks(found_range.end - found_range.start, with_idle_timeout(found.into_stream())) })
        }
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<u64>> {
        async move { Ok(self.request(self.plain.head(&object_path(key)?)).await?.size) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.request(self.plain.delete(&object_path(key)?)).await {
                Err(Error::NotFound(_)) => Ok(()),
                deleted => deleted,
            }
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.transfer(self.plain.copy(&object_path(from)?, &object_path(to)?)).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.translate(error).await),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<ObjectEntry>> {
        if !is_prefix(prefix) {
            return stream::once(async move { Err(bad_key(prefix)) }).boxed();
        }
        let entries = with_idle_timeout(self.plain.list(Some(&Path::from(prefix))));
        entries.map_ok(|meta| ObjectEntry { key: meta.location.into(), size: meta.size }).map_err(|error| self.refused(&error)).boxed()
    }

    fn late_write_window(&self) -> Duration {
        LATE_WRITE_WINDOW
    }

    fn list_unfinished<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<UnfinishedUpload>> {
        if is_prefix(prefix) { self.list_multiparts(prefix) } else { stream::once(async move { Err(bad_key(prefix)) }).boxed() }
    }

    fn abort_unfinished<'a>(&'a self, upload: &'a UnfinishedUpload) -> BoxFuture<'a, Result<()>> {
        async move { self.abort_multipart(&object_path(&upload.key)?, &upload.upload_id).await }.boxed()
    }

    fn signed_url<'a>(&'a self, key: &'a str, life: Duration, headers: &'a ContentHeaders) -> BoxFuture<'a, Result<DownloadUrl>> {
        async move {
            let ContentHeaders { content_type, content_disposition } = headers;
            let options = SignedUrlOptions::new()
                .with_query([("response-content-type", content_type), ("response-content-disposition", content_disposition)]);
            let life = life.min(MAX_URL_LIFETIME);
            let url = self.request(self.public.signed_url_opts(Method::GET, &object_path(key)?, life, &options)).await?;
            Ok(DownloadUrl::Store(url.into()))
        }
        .boxed()
    }

    /// Lists the first object, which requires the bucket, and credentials that may list it.
    fn check(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            let _: AnyResponse = self.query_once(&Path::default(), &FIRST_OBJECT).await.map_err(|error| self.refused(&error))?;
            Ok(())
        }
        .boxed()
    }

    fn direct_uploads(&self) -> Option<&dyn DirectUploads> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path_style: bool, variables: &[(&str, &str)]) -> S3Settings {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        S3Settings {
            endpoint: None,
            public_endpoint: None,
            region: "us-east-1".to_owned(),
            bucket: "b".to_owned(),
            credentials: S3Credentials::Ambient(variables.collect()),
            path_style,
        }
    }

    #[test]
    fn the_bucket_is_part_of_the_path_or_of_the_host_name() {
        let settings = |path_style| settings(path_style, &[]);
        assert_eq!(bucket_endpoint("https://s3.example.com:9000/", &settings(true)).unwrap(), "https://s3.example.com:9000");
        assert_eq!(bucket_endpoint("https://s3.example.com:9000/", &settings(false)).unwrap(), "https://b.s3.example.com:9000");
    }

    #[tokio::test]
    async fn ambient_credentials_come_from_the_given_variables_and_nothing_else_does() {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_REGION", "eu-north-1"),
            ("AWS_PAGER", ""),
        ];
        let storage = S3Storage::new(&settings(true, &variables)).unwrap();
        let credential = storage.store.credentials().get_credential().await.unwrap();
        assert_eq!((&*credential.key_id, &*credential.secret_key, credential.token.as_deref()), ("id", "secret", Some("token")));
        let url = storage.direct_uploads().unwrap().part_url("tenants/a", "upload", 1, 10, Duration::from_secs(60)).await.unwrap();
        assert!(url.contains("us-east-1") && !url.contains("eu-north-1"), "{url}");
    }
}
