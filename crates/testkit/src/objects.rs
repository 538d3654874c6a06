//! Objects for one test.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use domain::TenantId;
use futures_util::TryStreamExt;
use secrecy::ExposeSecret;
use services::{LocalStorage, ObjectStorage, S3Credentials, S3Settings, S3Storage, Spool};

/// Where the objects of one test are: in its folder, or in the bucket that the test run is for. All tests share that, and find
/// their own objects by their tenants.
#[derive(Clone, Debug)]
pub struct TestObjects {
    folder: PathBuf,
    s3: Option<S3Settings>,
}

impl TestObjects {
    /// Objects in `folder`, or in the S3 store of `TEST_S3_ENDPOINT_URL`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { s3: s3_settings(), ..Self::files(folder) }
    }

    /// Objects in `folder` whatever the test run is for.
    #[must_use]
    pub fn files(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), s3: None }
    }

    /// Whether they are in a bucket.
    #[must_use]
    pub fn is_s3(&self) -> bool {
        self.s3.is_some()
    }

    /// A fresh handle, for the runtime that it is used on.
    #[must_use]
    pub fn open(&self) -> Arc<dyn ObjectStorage> {
        match &self.s3 {
            None => Arc::new(LocalStorage::open(&self.folder.join("objects")).unwrap()),
            Some(settings) => Arc::new(S3Storage::new(settings).unwrap()),
        }
    }

    /// A fresh handle that reaches the bucket by this address, where somebody stands in between.
    ///
    /// # Panics
    /// When the objects are files.
    #[must_use]
    pub fn open_at(&self, url: String) -> Arc<dyn ObjectStorage> {
        let settings = self.s3.clone().expect("objects in a bucket");
        Arc::new(S3Storage::new(&S3Settings { endpoint: Some(url), ..settings }).unwrap())
    }

    /// Where the store listens, if they are in a bucket.
    #[must_use]
    pub fn s3_address(&self) -> Option<SocketAddr> {
        let endpoint = self.s3.as_ref()?.endpoint.as_ref()?;
        let authority = endpoint.trim_start_matches("http://").trim_end_matches('/');
        Some(authority.parse().expect("the endpoint for tests is http://ADDRESS:PORT"))
    }

    /// The access key's id and its secret, if they are in a bucket: what must never be seen.
    #[must_use]
    pub fn s3_credentials(&self) -> Option<(String, String)> {
        access_key(self.s3.as_ref()?)
    }

    /// The values of S3_* for a process of its own.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let Some(settings) = &self.s3 else { return Vec::new() };
        let (id, secret) = access_key(settings).unwrap();
        vec![
            ("S3_ENDPOINT_URL", settings.endpoint.clone().unwrap()),
            ("S3_BUCKET", settings.bucket.clone()),
            ("S3_ACCESS_KEY_ID", id),
            ("S3_SECRET_ACCESS_KEY", secret),
        ]
    }

    /// Stores an object that nobody knows of.
    pub async fn leave(&self, key: &str, bytes: &'static [u8]) {
        let mut upload = Spool::new(&self.folder.join("spool")).unwrap().begin(u64::MAX);
        upload.write(Bytes::from_static(bytes)).await.unwrap();
        self.open().put(key, &upload.finish().await.unwrap()).await.unwrap();
    }

    /// The keys of all objects of these tenants; in a folder of one's own, of anybody.
    pub async fn list(&self, tenants: &[TenantId]) -> BTreeSet<String> {
        let storage = self.open();
        let prefixes: Vec<String> =
            if self.is_s3() { tenants.iter().map(|id| format!("tenants/{id}")).collect() } else { vec!["tenants".to_owned()] };
        let mut keys = BTreeSet::new();
        for prefix in prefixes {
            keys.extend(storage.list(&prefix).map_ok(|entry| entry.key).try_collect::<Vec<_>>().await.unwrap());
        }
        keys
    }
}

fn access_key(settings: &S3Settings) -> Option<(String, String)> {
    match &settings.credentials {
        S3Credentials::AccessKey { id, secret } => Some((id.clone(), secret.expose_secret().to_owned())),
        S3Credentials::Ambient(_) => None,
    }
}

#[expect(clippy::disallowed_methods, reason = "which store a test run uses is the environment's to say")]
fn s3_settings() -> Option<S3Settings> {
    let endpoint = std::env::var("TEST_S3_ENDPOINT_URL").ok().filter(|url| !url.is_empty())?;
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} goes with TEST_S3_ENDPOINT_URL"));
    Some(S3Settings {
        endpoint: Some(endpoint),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        bucket: variable("TEST_S3_BUCKET"),
        credentials: S3Credentials::AccessKey {
            id: variable("TEST_S3_ACCESS_KEY_ID"),
            secret: variable("TEST_S3_SECRET_ACCESS_KEY").into(),
        },
        path_style: true,
    })
}
