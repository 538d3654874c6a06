//! Creating tenants' databases: copies of a template of our own, which has the current schema, and warm databases that are complete
//! before they are needed. A copy takes some 25 ms and gives the tenant a schema without running a migration; renaming a warm
//! database takes 1 ms.

use std::{fmt, sync::Arc, time::Duration};

use domain::{DatabaseName, TenantId, TenantPlace};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_postgres::{Client, error::SqlState};

use super::{
    catalog::{create_database, database_exists, drop_database, drop_template, is_taken},
    database::PostgresDatabase,
    error::from_postgres,
    migrate::migrate,
    server::PostgresServer,
};
use crate::{
    error::{Error, Result},
    schema::{Schema, tenant_schema_digest},
};

/// The advisory lock of creations: "Template" in ASCII, so that other programs hardly take it for theirs. Such a lock belongs to a
/// database, here to the maintenance database: deployments that share a server, each with a main database of its own, don't
/// exclude each other.
const CREATION_LOCK: i64 = 0x5465_6d70_6c61_7465;

/// How long a creation may take, including those before it. With a busy disk a single one takes seconds.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

/// A server on which tenants' databases are created.
pub(crate) struct PostgresProvisioner {
    pub(crate) server: Arc<PostgresServer>,
    /// The database to connect to for administration.
    maintenance_database: String,
    /// For creations, one at a time. These connections are opened when first used and kept; they don't count in the budget.
    slow: Mutex<Option<Client>>,
    /// For statements that take a millisecond and must not queue behind a creation.
    quick: Mutex<Option<Client>>,
}

impl fmt::Debug for PostgresProvisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresProvisioner").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The name of the warm database that is meant for a tenant.
fn warm_name(tenant_id: TenantId) -> String {
    format!("tenantry_spare_{}", tenant_id.uuid().simple())
}

/// The name of the template. Another schema is another template, so programs of two versions can share a server.
fn template_name() -> String {
    format!("tenantry_template_{}", &tenant_schema_digest()[..16])
}

impl PostgresProvisioner {
    pub(crate) fn new(server: Arc<PostgresServer>, maintenance_database: String) -> Arc<Self> {
        Arc::new(Self { server, maintenance_database, slow: Mutex::default(), quick: Mutex::default() })
    }

    /// A handle on a tenant's database.
    pub(crate) fn database(&self, location: &TenantPlace) -> Arc<PostgresDatabase> {
        PostgresDatabase::new(Arc::clone(&self.server), location.database.as_str().to_owned(), Some(location.tenant_id))
    }

    /// Creates a tenant's database, unless it exists: from the tenant's warm database, or as a copy of the template. Returns
    /// whether it was warm: then it is complete.
    pub(crate) async fn create(&self, location: &TenantPlace) -> Result<bool> {
        let is_warm = within_timeout(self.take_warm(&location.database, location.tenant_id)).await?;
        if !is_warm {
            within_timeout(self.copy_template(location.database.as_str())).await?;
        }
        Ok(is_warm)
    }

    /// Creates a warm database for a tenant that does not exist yet: complete, with the tenant's identity.
    pub(crate) async fn create_warm(&self, tenant_id: TenantId) -> Result<()> {
        let name = warm_name(tenant_id);
        within_timeout(self.copy_template(&name)).await?;
        self.migrate(&name, Schema::NewTenant(tenant_id)).await
    }

    /// Drops a warm database. A missing one is no error.
    pub(crate) async fn drop_warm(&self, tenant_id: TenantId) -> Result<()> {
        drop_database(&self.administer().await?, &warm_name(tenant_id)).await
    }

    /// Drops a tenant's database with its connections, also when it is still warm. A missing one is no error.
    pub(crate) async fn drop_database(&self, location: &TenantPlace) -> Result<()> {
        self.server.close_idle_to(location.database.as_str());
        let client = self.administer().await?;
        // A creation whose caller has gone may still run there: it holds the lock until there is a database to drop.
        client.execute("SELECT pg_advisory_lock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        drop_database(&client, &warm_name(location.tenant_id)).await?;
        drop_database(&client, location.database.as_str()).await
    }

    /// Whether the server has a tenant's database.
    pub(crate) async fn exists(&self, location: &TenantPlace) -> Result<bool> {
        database_exists(&self.administer().await?, location.database.as_str()).await
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.server.ping(&self.maintenance_database).await
    }

    async fn administer(&self) -> Result<Client> {
        self.server.administer(&self.maintenance_database).await
    }

    /// Takes the warm database of a tenant. There may be none, or it was taken before a crash.
    async fn take_warm(&self, name: &DatabaseName, tenant_id: TenantId) -> Result<bool> {
        let mut slot = self.connected(&self.quick).await?;
        // Only a connection without errors is put back; any other is closed.
        let client = slot.take().ok_or_else(|| Error::internal("a connection was lost"))?;
        let rename = format!("ALTER DATABASE \"{}\" RENAME TO \"{name}\"", warm_name(tenant_id));
        let is_taken = match client.batch_execute(&rename).await {
            Ok(()) => true,
            Err(error) if matches!(error.code(), Some(&(SqlState::INVALID_CATALOG_NAME | SqlState::DUPLICATE_DATABASE))) => false,
            Err(error) => return Err(from_postgres(error)),
        };
        *slot = Some(client);
        Ok(is_taken)
    }

    /// Copies the template, unless the database exists.
    async fn copy_template(&self, name: &str) -> Result<()> {
        let mut slot = self.connected(&self.slow).await?;
        let client = slot.take().ok_or_else(|| Error::internal("a connection was lost"))?;
        // Over all processes: two copies at once take longer than one after the other, and delay all other work.
        client.execute("SELECT pg_advisory_lock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        self.ensure_template(&client, &self.maintenance_database, &template_name()).await?;
        create_database(&client, name, &template_name()).await?;
        client.execute("SELECT pg_advisory_unlock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        *slot = Some(client);
        Ok(())
    }

    /// Creates the template, unless it exists. It is created under another name and renamed when it is complete. That name belongs
    /// to the holder of the maintenance database's lock, whom `deployment` identifies.
    async fn ensure_template(&self, client: &Client, deployment: &str, name: &str) -> Result<()> {
        if database_exists(client, name).await? {
            return Ok(());
        }
        let unfinished = format!("{name}_{}", &hex::encode(Sha256::digest(deployment))[..16]);
        drop_template(client, &unfinished).await?;
        create_database(client, &unfinished, "template0").await?;
        self.migrate(&unfinished, Schema::TenantTemplate).await?;
        // A connection to the template would prevent copies.
        for setting in ["IS_TEMPLATE true", "ALLOW_CONNECTIONS false"] {
            client.batch_execute(&format!("ALTER DATABASE \"{unfinished}\" {setting}")).await.map_err(from_postgres)?;
        }
        match client.batch_execute(&format!("ALTER DATABASE \"{unfinished}\" RENAME TO \"{name}\"")).await {
            // Another deployment was faster.
            Err(error) if is_taken(&error) => drop_template(client, &unfinished).await,
            renamed => renamed.map_err(from_postgres),
        }
    }

    /// Applies all migrations to a database that is to be renamed next: a database with connections can't be.
    async fn migrate(&self, name: &str, schema: Schema) -> Result<()> {
        let mut session = self.server.connect_for_administration(name).await?;
        migrate(&mut session.client, schema).await?;
        session.close(CREATE_TIMEOUT).await;
        Ok(())
    }

    async fn connected<'a>(&self, slot: &'a Mutex<Option<Client>>) -> Result<MutexGuard<'a, Option<Client>>> {
        let mut slot = slot.lock().await;
        if slot.as_ref().is_none_or(Client::is_closed) {
            *slot = Some(self.administer().await?);
        }
        Ok(slot)
    }
}

async fn within_timeout<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(CREATE_TIMEOUT, work).await.map_err(|_| Error::unavailable("the database server takes too long to create a database"))?
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::{DatabaseUrl, PostgresLimits};

    #[expect(clippy::disallowed_methods, reason = "the environment names the servers of a test run")]
    fn provisioner() -> Option<Arc<PostgresProvisioner>> {
        let url = std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty())?;
        let DatabaseUrl::Postgres(url) = url.parse().unwrap() else { panic!("TEST_DATABASE_URL is PostgreSQL") };
        let limits = PostgresLimits { per_server: 1, per_database: 1 };
        Some(PostgresProvisioner::new(PostgresServer::new(url.config(), None, limits), url.database().to_owned()))
    }

    /// Seeded once: one name for all while it is created. Of two deployments that began at once, one failed.
    #[tokio::test(flavor = "multi_thread")]
    async fn deployments_that_share_a_server_create_the_template_at_once() {
        let Some(provisioner) = provisioner() else { return };
        let name = format!("tenantry_test_template_{}", hex::encode(domain::random_bytes::<8>()));
        let mut deployments = JoinSet::new();
        for n in 0..6 {
            let (provisioner, name) = (Arc::clone(&provisioner), name.clone());
            deployments.spawn(async move {
                let client = provisioner.administer().await.unwrap();
                provisioner.ensure_template(&client, &n.to_string(), &name).await
            });
        }
        while let Some(created) = deployments.join_next().await {
            created.unwrap().unwrap();
        }
        let client = provisioner.administer().await.unwrap();
        let all = "SELECT datname, datistemplate AND NOT datallowconn FROM pg_database WHERE starts_with(datname, $1)";
        let all: Vec<(String, bool)> = client.query(all, &[&name]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        drop_template(&client, &name).await.unwrap();
        assert_eq!(all, [(name, true)]);
    }
}
