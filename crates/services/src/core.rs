//! What all services share, and the three doors to it.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use domain::{Clock, Quota, TenantId, Timestamp};
use models::{MainDatabase, TenantDatabases};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    access_cache::AccessCache,
    accounts::{passwords::Passwords, tokens::Tokens},
    documents::multipart_uploads::Completions,
    events::{
        audit::{self, Denials},
        events::{self, Notified},
    },
    health::LastCheck,
    storage::{ObjectStorage, signed_urls::UrlSigner, spool::Spool},
    tenants::migrations::Awaited,
};

/// When a creation or a deletion counts as abandoned. If it was not, two complete it, which does no harm.
const ABANDONED_AFTER: Duration = Duration::from_secs(30);

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

/// The three doors, over one core.
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
    /// Assembles the services. Connects to nothing yet.
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

/// What users may ask. Cheap to clone.
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

/// What the operator does: on the command line, and in the background. Cheap to clone.
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

/// What the relay and the handlers of events need. Cheap to clone.
#[derive(Clone)]
pub struct EventServices {
    pub(crate) core: Core,
}

/// What all services share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Core(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) access: AccessCache,
    assembled_at: Timestamp,
    /// Tells this instance from others, for leases.
    pub(crate) instance: Uuid,
    pub(crate) warm_database_taken: Notify,
    pub(crate) notified: Arc<Notified>,
    /// Tenants whose dirty flag this instance set just now.
    pub(crate) dirty_flags: moka::future::Cache<TenantId, ()>,
    pub(crate) denials: Denials,
    /// Servers of tenants' databases that failed to create one, and when.
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

    /// What was begun before this and has not changed since was abandoned by a crash.
    pub(crate) fn abandoned_before(&self) -> Timestamp {
        self.clock().now().minus(ABANDONED_AFTER).max(self.assembled_at)
    }
}
