//! The directory of tenants' databases: the server that holds each of them, and how a database is opened, created, migrated and
//! dropped.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{TenantId, TenantPlace};
use moka::{policy::EvictionPolicy, sync::Cache};
use rustix::process::{Resource, getrlimit};

use crate::{
    DatabaseUrl, PostgresLimits, SqliteThreads,
    database::TenantDatabase,
    engine::EngineDatabase,
    error::{Error, Result},
    postgres::{Connections, PostgresProvisioner, PostgresServer},
    schema::{Migrated, Schema},
    sqlite::SqliteFolder,
};

/// How many SQLite files, or handles of PostgreSQL databases, are open at most. One that is closed to make room is opened again by
/// the next request. A file takes some 160 KB.
const MAX_OPEN_DATABASES: u64 = 1_000;
/// File descriptors that an open SQLite file may take: three for its writer and three for each reader, of which few have more
/// than one; together with those of sockets and uploads.
const DESCRIPTORS_PER_FILE: u64 = 10;
/// An open database without requests is closed after this time.
const IDLE_TIME: Duration = Duration::from_secs(600);

/// The servers that hold tenants' databases, and handles on the databases in use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TenantDatabases {
    servers: Arc<BTreeMap<String, Server>>,
    open: Cache<TenantId, OpenDatabase>,
}

/// A handle with the location that it was opened for.
#[derive(Clone, Debug)]
struct OpenDatabase {
    location: Arc<TenantPlace>,
    database: TenantDatabase,
}

/// A server of tenants' databases.
#[derive(Debug)]
pub(crate) enum Server {
    Sqlite(Arc<SqliteFolder>),
    Postgres(Arc<PostgresProvisioner>),
}

impl Server {
    fn new(url: &DatabaseUrl, threads: &SqliteThreads, limits: PostgresLimits) -> Self {
        match url {
            DatabaseUrl::Sqlite(folder) => Self::Sqlite(SqliteFolder::new(folder.clone(), threads.clone())),
            DatabaseUrl::Postgres(url) => {
                let server = PostgresServer::new(url.config(), url.tls(), limits);
                Self::Postgres(PostgresProvisioner::new(server, url.database().to_owned()))
            }
        }
    }

    fn database(&self, location: &TenantPlace) -> TenantDatabase {
        let engine = match self {
            Self::Sqlite(folder) => EngineDatabase::Sqlite(folder.file(location)),
            Self::Postgres(provisioner) => EngineDatabase::Postgres(provisioner.database(location)),
        };
        TenantDatabase::of_tenant(engine, location.tenant_id)
    }
}

impl TenantDatabases {
    /// The directory over the named servers. Connects to nothing yet.
    #[must_use]
    pub fn new(servers: &BTreeMap<String, DatabaseUrl>, threads: &SqliteThreads, limits: PostgresLimits) -> Self {
        let open =
            Cache::builder().max_capacity(max_open_databases()).eviction_policy(EvictionPolicy::lru()).time_to_idle(IDLE_TIME).build();
        let servers = servers.iter().map(|(name, url)| (name.clone(), Server::new(url, threads, limits))).collect();
        Self { servers: Arc::new(servers), open }
    }

    /// The names of the servers.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }

    /// The PostgreSQL servers by name, with the limit of connections to each, and its connections by what they are doing.
    pub fn connections(&self) -> impl Iterator<Item = (&str, usize, Connections)> {
        self.servers.iter().filter_map(|(name, server)| match server {
            Server::Postgres(provisioner) => {
                Some((name.as_str(), provisioner.server.limits().per_server, provisioner.server.connections()))
            }
            Server::Sqlite(_) => None,
        })
    }

    /// How many databases are held open.
    #[must_use]
    pub fn count_open(&self) -> u64 {
        self.open.run_pending_tasks();
        self.open.entry_count()
    }

    /// A handle on a tenant's database. Opens nothing yet. The caller must be authorized; nothing here checks that.
    ///
    /// # Errors
    /// When the configuration does not name the server (any more).
    pub fn open(&self, location: &TenantPlace) -> Result<TenantDatabase> {
        let server = self.server(location)?;
        let open = || OpenDatabase { location: Arc::new(location.clone()), database: server.database(location) };
        // All requests share a handle, so that they queue here and not in SQLite. A tenant that was moved gets another one.
        let has_moved = |open: &OpenDatabase| *open.location != *location;
        let entry = self.open.entry_by_ref(&location.tenant_id).or_insert_with_if(open, has_moved);
        if entry.is_fresh() {
            // At once instead of after many insertions: what makes room is closed before the next one is opened.
            self.open.run_pending_tasks();
        }
        Ok(entry.into_value().database)
    }

    /// Creates a tenant's database. An existing one stays as it is, so this can be repeated after a crash. Returns whether the
    /// database is known to be complete, with schema and identity; otherwise [`TenantDatabases::finish`] has to follow.
    ///
    /// # Errors
    /// When the server is down or has no room.
    pub async fn create(&self, location: &TenantPlace) -> Result<bool> {
        match self.server(location)? {
            Server::Sqlite(folder) => folder.create(location).await,
            // The type of the name admits only [a-z0-9_].
            Server::Postgres(provisioner) => provisioner.create(location).await,
        }
    }

    /// Whether a server has warm databases: created before they are needed. An SQLite file is created faster than a warm one
    /// could be found.
    #[must_use]
    pub fn has_warm_databases(&self, server: &str) -> bool {
        matches!(self.servers.get(server), Some(Server::Postgres(_)))
    }

    /// Creates a warm database on a server, for a future tenant of this id: [`TenantDatabases::create`] will take it.
    ///
    /// # Errors
    /// When the server is down or has no warm databases. A database that was created partly is completed or dropped by a repetition.
    pub async fn create_warm(&self, server: &str, tenant_id: TenantId) -> Result<()> {
        self.provisioner(server)?.create_warm(tenant_id).await
    }

    /// Drops a warm database. A missing one is no error.
    ///
    /// # Errors
    /// When the server is down or has no warm databases.
    pub async fn drop_warm(&self, server: &str, tenant_id: TenantId) -> Result<()> {
        self.provisioner(server)?.drop_warm(tenant_id).await
    }

    fn provisioner(&self, server: &str) -> Result<&PostgresProvisioner> {
        match self.servers.get(server) {
            Some(Server::Postgres(provisioner)) => Ok(provisioner),
            _ => Err(Error::unavailable(format!("{server} is no PostgreSQL server"))),
        }
    }

    /// Applies all pending migrations to a tenant's database.
    ///
    /// # Errors
    /// [`Error::Internal`] when a migration does not work on this database; [`Error::Unavailable`] or [`Error::Busy`] for
    /// everything else: the database is missing, down, held by other transactions or another tenant's, or does not fit this
    /// program.
    pub async fn migrate(&self, location: &TenantPlace) -> Result<Migrated> {
        self.open(location)?.migrate_to(Schema::Tenant(location.tenant_id)).await
    }

    /// Gives a tenant's database that was just [created](TenantDatabases::create) its schema and identity.
    ///
    /// # Errors
    /// As [`TenantDatabases::migrate`].
    pub async fn finish(&self, location: &TenantPlace) -> Result<Migrated> {
        self.open(location)?.migrate_to(Schema::NewTenant(location.tenant_id)).await
    }

    /// Drops a tenant's database with all data. A missing one is no error.
    ///
    /// # Errors
    /// When the server is down.
    pub async fn drop_database(&self, location: &TenantPlace) -> Result<()> {
        self.open.invalidate(&location.tenant_id);
        match self.server(location)? {
            Server::Sqlite(folder) => folder.drop_database(location).await,
            Server::Postgres(provisioner) => provisioner.drop_database(location).await,
        }
    }

    /// Whether a tenant's server holds the tenant's database, or a part of it.
    ///
    /// # Errors
    /// When the server is down.
    pub async fn exists(&self, location: &TenantPlace) -> Result<bool> {
        match self.server(location)? {
            Server::Sqlite(folder) => folder.exists(location).await,
            Server::Postgres(provisioner) => provisioner.exists(location).await,
        }
    }

    /// Whether a server answers.
    ///
    /// # Errors
    /// When it does not: the error that it returned.
    pub async fn ping(&self, server: &str) -> Result<()> {
        match self.servers.get(server) {
            None => Err(Error::internal(format!("no server is named {server}"))),
            Some(Server::Sqlite(folder)) => folder.ping().await,
            Some(Server::Postgres(provisioner)) => provisioner.ping().await,
        }
    }

    /// The server that holds a tenant's database.
    pub(crate) fn server(&self, location: &TenantPlace) -> Result<&Server> {
        let missing = || Error::unavailable(format!("the configuration names no server {}", location.server));
        self.servers.get(&location.server).ok_or_else(missing)
    }
}

/// As many as the process has file descriptors for.
fn max_open_databases() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors / DESCRIPTORS_PER_FILE).clamp(1, MAX_OPEN_DATABASES)
}
