//! The directory of tenants' databases: which server holds one, how it is opened, made, brought up to date and dropped.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use domain::{TenantId, TenantPlace, failpoint};
use moka::{policy::EvictionPolicy, sync::Cache};
use rustix::process::{Resource, getrlimit};

use crate::{
    Connection, Connections, DatabaseUrl, Error, Migrated, PostgresLimits, PostgresServer, PostgresUrl, Result, SqliteThreads, Tenant,
    TenantTx, Tx,
    connection::Engine,
    migrations::{Schema, migrate_postgres, migrate_sqlite, migrate_sqlite_connection},
    postgres::{PostgresDatabase, database_exists},
    sqlite::{Access, SqliteFile, from_rusqlite, open_file},
    url::tls_for,
};

/// Open SQLite files at most, and handles of PostgreSQL databases. One that is closed for want of room is opened again at
/// the next request. A file takes some 160 KB.
const OPEN_DATABASES: u64 = 1_000;
/// File descriptors that an open SQLite file may take: three for its writer and three for each reader, of which few have more
/// than one; with what sockets and uploads want besides.
const DESCRIPTORS_PER_FILE: u64 = 10;
/// An open database that nobody asks for is closed after this time.
const IDLE_TIME: Duration = Duration::from_secs(600);

/// The servers that hold tenants' databases, and handles on those in use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TenantDatabases {
    servers: Arc<BTreeMap<String, Server>>,
    open: Cache<TenantId, TenantDatabase>,
    threads: SqliteThreads,
}

#[derive(Debug)]
enum Server {
    /// A folder with a file for every tenant.
    Sqlite { folder: PathBuf, template: OnceLock<Vec<u8>> },
    /// A server with a database for every tenant, and the database to connect to for making them.
    Postgres { server: Arc<PostgresServer>, maintenance: String },
}

/// Where a database is.
pub(crate) enum Located {
    Sqlite { path: PathBuf, threads: SqliteThreads },
    Postgres { server: Arc<PostgresServer>, database: String },
}

impl TenantDatabases {
    /// The directory over the named servers. Connects to nothing yet.
    #[must_use]
    pub fn new(servers: &BTreeMap<String, DatabaseUrl>, threads: &SqliteThreads, limits: PostgresLimits) -> Self {
        let server = |url: &DatabaseUrl| match url {
            DatabaseUrl::Sqlite(folder) => Server::Sqlite { folder: folder.clone(), template: OnceLock::new() },
            DatabaseUrl::Postgres(PostgresUrl { config, .. }) => Server::Postgres {
                server: PostgresServer::new((**config).clone(), tls_for(config), limits),
                maintenance: config.get_dbname().unwrap_or("postgres").to_owned(),
            },
        };
        Self {
            servers: Arc::new(servers.iter().map(|(name, url)| (name.clone(), server(url))).collect()),
            open: Cache::builder()
                .max_capacity(most_open_databases())
                .eviction_policy(EvictionPolicy::lru())
                .time_to_idle(IDLE_TIME)
                .build(),
            threads: threads.clone(),
        }
    }

    /// The names of the servers.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }

    /// The PostgreSQL servers by name, with the most connections that each may have, and what those that there are do.
    pub fn connections(&self) -> impl Iterator<Item = (&str, usize, Connections)> {
        self.servers.iter().filter_map(|(name, server)| match server {
            Server::Postgres { server, .. } => Some((name.as_str(), server.limits().per_server, server.connections())),
            Server::Sqlite { .. } => None,
        })
    }

    /// How many databases are held open.
    #[must_use]
    pub fn count_open(&self) -> u64 {
        self.open.run_pending_tasks();
        self.open.entry_count()
    }

    /// A handle on a tenant's database. Opens nothing yet: whoever asks has to be allowed to, and nothing here checks it.
    ///
    /// # Errors
    /// When the configuration names no such server any more.
    pub fn open(&self, place: &TenantPlace) -> Result<TenantDatabase> {
        let server = self.server(place)?;
        let make = || {
            let at = match server {
                Server::Sqlite { folder, .. } => {
                    At::Sqlite(SqliteFile::new(file_of(folder, place), Some(place.tenant_id), self.threads.clone()))
                }
                Server::Postgres { server, .. } => {
                    let name = place.database.as_str().to_owned();
                    At::Postgres(PostgresDatabase::new(Arc::clone(server), name, Some(place.tenant_id)))
                }
            };
            TenantDatabase { place: Arc::new(place.clone()), at }
        };
        // One handle for all who ask at once, so that they queue here and not in SQLite; another one when the tenant moved.
        let entry = self.open.entry_by_ref(&place.tenant_id).or_insert_with_if(make, |open| *open.place != *place);
        if entry.is_fresh() {
            // At once, and not when many have come: what makes room is closed before the next one is opened.
            self.open.run_pending_tasks();
        }
        Ok(entry.into_value())
    }

    /// Makes a tenant's database. One that is there already stays as it is, so this can be repeated after a crash. Answers
    /// whether it is known to be finished, with schema and identity; else [`TenantDatabases::finish`] has to follow.
    ///
    /// # Errors
    /// When the server is down or has no room.
    pub async fn create(&self, place: &TenantPlace) -> Result<bool> {
        match self.server(place)? {
            Server::Sqlite { folder, .. } => {
                let (servers, folder, place) = (Arc::clone(&self.servers), folder.clone(), place.clone());
                let create = move || {
                    let Some(Server::Sqlite { template, .. }) = servers.get(&place.server) else {
                        return Err(Error::internal("the server is gone"));
                    };
                    create_file(&folder, &place, template)
                };
                self.threads.run(create).await
            }
            // The name's type admits nothing but [a-z0-9_].
            Server::Postgres { server, maintenance } => server.make_database(maintenance, &place.database, place.tenant_id).await,
        }
    }

    /// Whether tenants' databases of a server can be made before they are wanted. A file is made faster than it is found.
    #[must_use]
    pub fn keeps_spares(&self, server: &str) -> bool {
        matches!(self.servers.get(server), Some(Server::Postgres { .. }))
    }

    /// Makes a spare database on a server, for a tenant of this id to come: [`TenantDatabases::create`] will take it.
    ///
    /// # Errors
    /// When the server is down or keeps no spares. What was made of it is made good by making or dropping it again.
    pub async fn make_spare(&self, server: &str, tenant_id: TenantId) -> Result<()> {
        let (server, maintenance) = self.postgres(server)?;
        server.make_spare(maintenance, tenant_id).await
    }

    /// Drops a spare database. One that is gone already is no error.
    ///
    /// # Errors
    /// When the server is down or keeps no spares.
    pub async fn drop_spare(&self, server: &str, tenant_id: TenantId) -> Result<()> {
        let (server, maintenance) = self.postgres(server)?;
        server.drop_spare(maintenance, tenant_id).await
    }

    fn postgres(&self, server: &str) -> Result<(&Arc<PostgresServer>, &str)> {
        match self.servers.get(server) {
            Some(Server::Postgres { server, maintenance }) => Ok((server, maintenance)),
            _ => Err(Error::unavailable(format!("{server} is no PostgreSQL server"))),
        }
    }

    /// Brings a tenant's database up to date.
    ///
    /// # Errors
    /// [`Error::Internal`] when a migration does not work on this database; [`Error::Unavailable`] or [`Error::Busy`] for
    /// everything else: it is missing, down, held by others or another tenant's, or this program is not the one for it.
    pub async fn migrate(&self, place: &TenantPlace) -> Result<Migrated> {
        self.migrate_to(Schema::Tenant(place.tenant_id), place).await
    }

    /// Gives a tenant's database that was just [made](TenantDatabases::create) schema and identity.
    ///
    /// # Errors
    /// As [`TenantDatabases::migrate`].
    pub async fn finish(&self, place: &TenantPlace) -> Result<Migrated> {
        self.migrate_to(Schema::NewTenant(place.tenant_id), place).await
    }

    async fn migrate_to(&self, schema: Schema, place: &TenantPlace) -> Result<Migrated> {
        match &self.open(place)?.at {
            At::Sqlite(file) => {
                let migrate = move |path: &Path| {
                    fs::metadata(path).map_err(Error::unavailable)?;
                    migrate_sqlite(path, schema)
                };
                file.exclusively(migrate).await
            }
            At::Postgres(database) => {
                let mut client = database.server.administer(database.name()).await?;
                migrate_postgres(&mut client, schema).await
            }
        }
    }

    /// Where a tenant's database is, for what works on it over a connection of its own.
    pub(crate) fn locate(&self, place: &TenantPlace) -> Result<Located> {
        Ok(match self.server(place)? {
            Server::Sqlite { folder, .. } => Located::Sqlite { path: file_of(folder, place), threads: self.threads.clone() },
            Server::Postgres { server, .. } => {
                Located::Postgres { server: Arc::clone(server), database: place.database.as_str().to_owned() }
            }
        })
    }

    /// Drops a tenant's database with everything in it. One that is gone already is no error.
    ///
    /// # Errors
    /// When the server is down.
    pub async fn drop_database(&self, place: &TenantPlace) -> Result<()> {
        self.open.invalidate(&place.tenant_id);
        match self.server(place)? {
            Server::Sqlite { folder, .. } => {
                let (folder, path) = (folder.clone(), file_of(folder, place));
                let remove = move || match fs::File::open(folder) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    // A creation that was interrupted may go on on its thread.
                    making => making.and_then(|making| {
                        making.lock()?;
                        remove_database(&path.with_extension(UNFINISHED)).and_then(|()| remove_database(&path))
                    }),
                };
                self.threads.run(move || remove().map_err(Error::unavailable)).await
            }
            Server::Postgres { server, maintenance } => server.drop_database(maintenance, &place.database, place.tenant_id).await,
        }
    }

    /// Whether a tenant's server holds a database of the tenant's, or a remnant of one.
    ///
    /// # Errors
    /// When the server is down.
    pub async fn exists(&self, place: &TenantPlace) -> Result<bool> {
        match self.server(place)? {
            Server::Sqlite { folder, .. } => {
                let path = file_of(folder, place);
                let look = move || is_there(&path.with_extension(UNFINISHED)).and_then(|remnant| Ok(remnant || is_there(&path)?));
                self.threads.run(move || look().map_err(Error::unavailable)).await
            }
            Server::Postgres { server, maintenance } => {
                database_exists(&server.administer(maintenance).await?, place.database.as_str()).await
            }
        }
    }

    /// Whether a server answers.
    ///
    /// # Errors
    /// When it doesn't: what it said.
    pub async fn ping(&self, server: &str) -> Result<()> {
        match self.servers.get(server) {
            None => Err(Error::internal(format!("no server is named {server}"))),
            Some(Server::Sqlite { folder, .. }) => {
                let folder = folder.clone();
                self.threads.run(move || make_private_folder(&folder).map_err(Error::unavailable)).await
            }
            Some(Server::Postgres { server, maintenance }) => server.ping(maintenance).await,
        }
    }

    fn server(&self, place: &TenantPlace) -> Result<&Server> {
        let missing = || Error::unavailable(format!("TENANT_DATABASE_URLS names no server {}", place.server));
        self.servers.get(&place.server).ok_or_else(missing)
    }
}

/// As many as the process may have descriptors for.
fn most_open_databases() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors / DESCRIPTORS_PER_FILE).clamp(1, OPEN_DATABASES)
}

fn file_of(folder: &Path, place: &TenantPlace) -> PathBuf {
    folder.join(format!("{}.sqlite3", place.database))
}

/// The extension of a file that is being made. What a crash leaves under such a name is overwritten by the next attempt.
const UNFINISHED: &str = "new";

/// Makes a tenant's file whole beside its place and moves it there, so that it is either complete or not there at all.
fn create_file(folder: &Path, place: &TenantPlace, template: &OnceLock<Vec<u8>>) -> Result<bool> {
    let path = file_of(folder, place);
    make_private_folder(folder).map_err(Error::unavailable)?;
    // One at a time over all processes: of two that make the same file, the slower one must not put its empty one in the
    // place of the other's, which is in use by then.
    let making = fs::File::open(folder).map_err(Error::unavailable)?;
    making.lock().map_err(Error::unavailable)?;
    let is_new = !path.exists();
    if is_new {
        let unfinished = path.with_extension(UNFINISHED);
        write_unfinished(&unfinished, template_in(folder, template)?, Schema::NewTenant(place.tenant_id))?;
        failpoint!("tenant.file_written");
        let file = fs::File::open(&unfinished).map_err(Error::unavailable)?;
        file.sync_all().and_then(|()| fs::rename(&unfinished, &path)).map_err(Error::unavailable)?;
        failpoint!("tenant.file_renamed");
    }
    making.sync_all().map_err(Error::unavailable)?;
    Ok(is_new)
}

/// A file with today's schema and no identity, as bytes: made once per process, since copying it is faster than running
/// the schema.
fn template_in<'a>(folder: &Path, template: &'a OnceLock<Vec<u8>>) -> Result<&'a [u8]> {
    if let Some(template) = template.get() {
        return Ok(template);
    }
    let path = folder.join("template").with_extension(UNFINISHED);
    write_unfinished(&path, &[], Schema::TenantTemplate)?;
    let made = fs::read(&path).map_err(Error::unavailable)?;
    fs::remove_file(&path).map_err(Error::unavailable)?;
    Ok(template.get_or_init(|| made))
}

/// The files of a database. The log first: a database without its log is whole, a log without its database is rubbish.
fn parts(path: &Path) -> [PathBuf; 3] {
    ["-wal", "-shm", ""].map(|suffix| {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        file.into()
    })
}

fn remove_database(path: &Path) -> io::Result<()> {
    for file in parts(path) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether any file of a database is there.
fn is_there(path: &Path) -> io::Result<bool> {
    for file in parts(path) {
        if file.try_exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a folder that only its owner may look into, unless it is there.
fn make_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a file that only its owner may read. SQLite gives its log the same permissions.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

/// Writes a database that nobody reads yet; nothing of it is durable.
fn write_unfinished(path: &Path, content: &[u8], schema: Schema) -> Result<()> {
    // What an interrupted attempt left: its log would be taken for the new file's.
    remove_database(path).and_then(|()| write_private(path, content)).map_err(Error::unavailable)?;
    let connection = open_file(path, Access::Write, None)?;
    connection.execute_batch("PRAGMA synchronous = OFF").map_err(from_rusqlite)?;
    migrate_sqlite_connection(&connection, schema)?;
    // Closing moves everything from the log into the file.
    connection.close().map_err(|(_, error)| from_rusqlite(error))
}

/// One tenant's database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TenantDatabase {
    place: Arc<TenantPlace>,
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    Sqlite(Arc<SqliteFile>),
    Postgres(Arc<PostgresDatabase>),
}

impl TenantDatabase {
    /// Whose database it is.
    #[must_use]
    pub fn tenant_id(&self) -> TenantId {
        self.place.tenant_id
    }

    /// A connection for reading outside a transaction.
    ///
    /// # Errors
    /// When the database is missing, down or another tenant's, or every connection in use for too long.
    pub async fn read(&self) -> Result<Connection<Tenant>> {
        let engine = match &self.at {
            At::Sqlite(file) => Engine::Sqlite(file.read().await?),
            At::Postgres(database) => Engine::PostgresReader(database.read().await?),
        };
        Ok(Connection::new(engine))
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// As [`TenantDatabase::read`].
    pub async fn begin(&self) -> Result<TenantTx> {
        let engine = match &self.at {
            At::Sqlite(file) => Engine::Sqlite(file.write()),
            At::Postgres(database) => Engine::Postgres(database.write().await?),
        };
        Ok(Tx::begin(engine))
    }
}
