//! What users can do: one method of [`Services`] for each, with its rules, permissions and transactions. The only crate that
//! begins and commits.

mod access;
mod content_disposition;
mod documents;
mod events;
mod files;
mod garbage;
mod health;
mod members;
mod passwords;
mod sessions;
mod signed_urls;
mod spool;
mod storage;
mod tenants;
pub mod tokens;
mod users;

use std::{sync::Arc, time::Duration};

use domain::{Clock, Timestamp};
use models::{MainDatabase, TenantDatabases};

pub use access::Caller;
pub use content_disposition::content_disposition;
pub use documents::{Download, DownloadAt, Upload, Uploaded};
pub use garbage::Collected;
pub use health::Dependency;
pub use members::Candidate;
pub use passwords::{PasswordSettings, Passwords};
pub use sessions::{Login, TokenPair};
pub use signed_urls::{SignedDownload, UrlSigner};
pub use spool::{Spool, SpooledContent};
pub use storage::{LocalStorage, Object, ObjectStorage, Presentation};
pub use tenants::TenantDetails;
pub use tokens::{SecretKey, TokenSettings, Tokens};
pub use users::Registration;

use access::Access;

/// What the services are assembled from.
pub struct Parts {
    /// Users, tenants, memberships, sessions.
    pub main: MainDatabase,
    /// A database for every tenant.
    pub tenant_databases: TenantDatabases,
    /// Where objects are kept.
    pub storage: Arc<dyn ObjectStorage>,
    /// Where uploads are received.
    pub spool: Spool,
    /// The hashing gate.
    pub passwords: Passwords,
    /// Access and refresh tokens.
    pub tokens: Tokens,
    /// Signs downloads where the storage can't.
    pub url_signer: UrlSigner,
    /// Now, and new ids.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub settings: Settings,
}

/// Limits that are the operator's to choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The most bytes of an upload.
    pub max_upload_bytes: u64,
    /// How long a download's URL is good for.
    pub download_url_life: Duration,
    /// How long an orphaned file is kept before it is collected.
    pub garbage_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_upload_bytes: 100 * 1024 * 1024,
            download_url_life: Duration::from_secs(3600),
            garbage_grace: Duration::from_secs(24 * 3600),
        }
    }
}

/// Everything that Tenantry does, for whoever calls: the API, the command line, later the worker. Cheap to clone.
#[derive(Clone)]
pub struct Services(Arc<Inner>);

struct Inner {
    parts: Parts,
    access: Access,
    assembled_at: Timestamp,
}

impl Services {
    /// Assembles the services. Connects to nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let access = Access::new(parts.main.clone());
        let assembled_at = parts.clock.now();
        Self(Arc::new(Inner { parts, access, assembled_at }))
    }

    /// The limits in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.parts.settings
    }

    /// Where objects are kept, for serving signed downloads.
    #[must_use]
    pub fn storage(&self) -> &dyn ObjectStorage {
        &*self.0.parts.storage
    }

    fn main(&self) -> &MainDatabase {
        &self.0.parts.main
    }

    fn clock(&self) -> &dyn Clock {
        &*self.0.parts.clock
    }
}
