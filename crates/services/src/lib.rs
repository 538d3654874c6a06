//! What users can do: one method of [`Services`] for each, with its rules, permissions and transactions. The only crate that
//! begins and commits.

mod access;
mod accounts;
mod documents;
mod events;
mod health;
mod idempotency;
mod leases;
mod storage;
mod tenants;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use domain::{Clock, Quota, TenantId, Timestamp};
use models::{MainDatabase, TenantDatabases};
use tokio::sync::Notify;
use uuid::Uuid;

pub use access::Caller;
pub use accounts::passwords::{PasswordSettings, Passwords};
pub use accounts::sessions::{Login, TokenPair};
pub use accounts::tokens::{Claims, SecretKey, TokenSettings, Tokens};
pub use accounts::users::Registration;
pub use documents::direct_uploads::{Announcement, Begun, PartAt, PartUpload, PartUrl};
pub use documents::documents::{Download, DownloadAt, Precondition};
pub use documents::garbage::Collected;
pub use documents::tus::{Append, Checksum};
pub use documents::uploads::{Upload, Uploaded};
pub use documents::verification::{Finding, ObjectProblem, Verification};
pub use events::demo::{DEMO_KEPT, DEMO_PREFIX, DEMO_TOPICS, DemoBus, DemoInProcess, DemoMessage, DemoReceived};
pub use events::events::{EventKey, traced};
pub use events::outbox::{Backlog, Forgotten, OUTBOX_LEASE, OutboxStatus, Unpublished};
pub use health::{Dependency, ServerConnections};
pub use idempotency::{Answered, Once};
pub use models::{Connections, Mark, TableSum};
pub use storage::content_disposition::content_disposition;
pub use storage::signed_urls::{SignedDownload, SignedPart, UrlSigner};
pub use storage::spool::{Spool, SpooledContent};
pub use storage::{
    ContentHeaders, DirectUploads, DownloadUrl, LocalStorage, Object, ObjectEntry, ObjectStorage, S3Credentials, S3Settings, S3Storage,
    UnfinishedUpload,
};
pub use tenants::deletion::Deletion;
pub use tenants::members::Candidate;
pub use tenants::migrations::{FleetMigration, MigrationPlan, MigrationStatus, MigrationStep};
pub use tenants::moves::{MoveError, MoveStep, Moved};
pub use tenants::tenants::{TenantDetails, TenantReport, TenantSummary};

use access::Access;
use documents::multipart_uploads::Completions;
use events::audit::Denials;
use events::events::Woken;
use health::LastCheck;
use tenants::migrations::Awaited;

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
    /// Password hashing.
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
    /// How long an upload in parts is waited for after its last part.
    pub upload_life: Duration,
    /// How long an orphaned file is kept before it is collected.
    pub garbage_grace: Duration,
    /// How long a deleted document can be brought back; zero for not at all.
    pub trash_retention: Duration,
    /// How many contents of a document are kept, the current one included; at least 1.
    pub versions_kept: u64,
    /// How long events are kept after they were published, and remembered after they were handled.
    pub event_retention: Duration,
    /// How much a tenant may store, unless the operator set something else for it.
    pub quota: Quota,
    /// How many databases each server keeps ready for tenants to come; only PostgreSQL servers do.
    pub spare_databases: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_upload_bytes: 100 * 1024 * 1024,
            download_url_life: Duration::from_secs(3600),
            upload_life: Duration::from_secs(24 * 3600),
            garbage_grace: Duration::from_secs(24 * 3600),
            trash_retention: Duration::from_secs(30 * 24 * 3600),
            versions_kept: 100,
            event_retention: Duration::from_secs(24 * 3600),
            quota: Quota::default(),
            spare_databases: 0,
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
    /// Tells this instance from others, for leases.
    instance: Uuid,
    spare_taken: Notify,
    woken: Arc<Woken>,
    /// Tenants that are marked for their events.
    marks: moka::future::Cache<TenantId, ()>,
    denials: Denials,
    /// Servers of tenants' databases that failed to make one, and when.
    troubled_servers: Mutex<HashMap<String, Instant>>,
    awaited_migrations: Mutex<Awaited>,
    completions: Completions,
    last_check: LastCheck,
}

impl Services {
    /// Assembles the services. Connects to nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let access = Access::new(parts.main.clone());
        let assembled_at = parts.clock.now();
        let instance = parts.clock.new_uuid();
        Self(Arc::new(Inner {
            parts,
            access,
            assembled_at,
            instance,
            spare_taken: Notify::new(),
            woken: Arc::default(),
            marks: events::events::marks(),
            denials: events::audit::denials(),
            troubled_servers: Mutex::default(),
            awaited_migrations: Mutex::default(),
            completions: Completions::default(),
            last_check: LastCheck::default(),
        }))
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
