//! The core that all services share, and the three facades over it.

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Clock, Quota, TenantId, Timestamp};
use models::{MainDatabase, TenantDatabases};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    access_cache::AccessCache,
    accounts::{login_throttle::Attempts, passwords::Passwords, tokens::Tokens},
    documents::multipart_uploads::Completions,
    events::{
        audit::{self, Denials},
        events::{self, Notified},
    },
    health::LastCheck,
    storage::{ObjectStorage, signed_urls::UrlSigner, spool::Spool},
    tenants::migrations::Awaited,
};

/// When a tenant's creation or deletion counts as abandoned. If it is still running, two instances complete it, which is
/// harmless.
const ABANDONED_AFTER: Duration = Duration::from_secs(30);

/// The parts that the services are assembled from.
pub struct Parts {
    /// Users, tenants, memberships, sessions.
    pub main: MainDatabase,
    /// A database for every tenant.
    pub tenant_databases: TenantDatabases,
    /// The object storage.
    pub storage: Arc<dyn ObjectStorage>,
    /// Receives uploads.
    pub spool: Spool,
    /// Password hashing on a bounded worker pool.
    pub passwords: Passwords,
    /// Access and refresh tokens.
    pub tokens: Tokens,
    /// Signs download URLs where the storage can't.
    pub url_signer: UrlSigner,
    /// The current time and new ids.
    pub clock: Arc<dyn Clock>,
    /// The limits.
    pub settings: Settings,
}

/// Who may register an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationPolicy {
    /// Anyone.
    Open,
    /// Only the operator creates accounts.
    Closed,
}

impl fmt::Display for RegistrationPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
        })
    }
}

/// Limits that the operator chooses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The maximum size of an upload in bytes.
    pub max_upload_bytes: u64,
    /// How long a download URL is valid.
    pub download_url_life: Duration,
    /// How long a multipart upload stays open after its last part.
    pub upload_life: Duration,
    /// How long an orphaned file is kept before it is collected.
    pub garbage_grace: Duration,
    /// How long a deleted document can be restored from the trash; zero disables the trash.
    pub trash_retention: Duration,
    /// How many versions of a document are kept, the current one included; at least 1.
    pub versions_kept: u64,
    /// How long published events are kept, and how long handled events are remembered.
    pub event_retention: Duration,
    /// The default storage quota of a tenant; the operator may set another per tenant.
    pub quota: Quota,
    /// Who may register.
    pub registration: RegistrationPolicy,
    /// The maximum number of active tenants that a user has created.
    pub tenants_per_user: u64,
    /// Whether failed logins slow down further ones of the account.
    pub throttle_logins: bool,
    /// The number of warm databases that each server keeps; only PostgreSQL servers have them.
    pub warm_databases: usize,
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
            registration: RegistrationPolicy::Open,
            tenants_per_user: 100,
            throttle_logins: true,
            warm_databases: 0,
        }
    }
}

/// The three facades over one core.
#[derive(Clone)]
pub struct Services {
    /// For the API.
    pub users: UserServices,
    /// For the command line and maintenance.
    pub operator: OperatorServices,
    /// For the worker.
    pub events: EventServices,
}

impl Services {
    /// Assembles the services without connecting to anything.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let core = Core::new(parts);
        Self {
            users: UserServices { core: core.clone() },
            operator: OperatorServices { core: core.clone() },
            events: EventServices { core },
        }
    }
}

/// What users may call. Cheap to clone.
#[derive(Clone)]
pub struct UserServices {
    pub(crate) core: Core,
}

impl UserServices {
    /// The limits in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.core.settings()
    }
}

/// What the operator may call, from the command line and in background maintenance. Cheap to clone.
#[derive(Clone)]
pub struct OperatorServices {
    pub(crate) core: Core,
}

impl OperatorServices {
    /// The limits in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.core.settings()
    }
}

/// What the relay and the event handlers may call. Cheap to clone.
#[derive(Clone)]
pub struct EventServices {
    pub(crate) core: Core,
}

/// The shared core. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Core(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) access: AccessCache,
    assembled_at: Timestamp,
    /// Identifies this instance as the holder of leases.
    pub(crate) instance: Uuid,
    pub(crate) warm_database_taken: Notify,
    pub(crate) notified: Arc<Notified>,
    /// Tenants whose dirty flag this instance set recently.
    pub(crate) dirty_flags: moka::future::Cache<TenantId, ()>,
    pub(crate) denials: Denials,
    pub(crate) login_attempts: Attempts,
    /// Tenant database servers that failed to create a database, and when.
    pub(crate) failing_servers: Mutex<HashMap<String, Instant>>,
    pub(crate) awaited_migrations: Mutex<Awaited>,
    pub(crate) completions: Completions,
    pub(crate) last_check: LastCheck,
}

impl Deref for Core {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Core {
    fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared {
            access: AccessCache::new(parts.main.clone()),
            assembled_at: parts.clock.now(),
            instance: parts.clock.new_uuid(),
            parts,
            warm_database_taken: Notify::new(),
            notified: Arc::default(),
            dirty_flags: events::dirty_flags(),
            denials: audit::denials(),
            login_attempts: Attempts::default(),
            failing_servers: Mutex::default(),
            awaited_migrations: Mutex::default(),
            completions: Completions::default(),
            last_check: LastCheck::default(),
        }))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.parts.settings
    }

    pub(crate) fn main(&self) -> &MainDatabase {
        &self.parts.main
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.parts.clock
    }

    /// Work begun before this time and unchanged since was abandoned by a crash.
    pub(crate) fn abandoned_before(&self) -> Timestamp {
        self.clock().now().minus(ABANDONED_AFTER).max(self.assembled_at)
    }
}
