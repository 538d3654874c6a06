//! Making databases: copies of our own template, which has today's schema, and spares that are finished before they are
//! wanted. A copy takes some 25 ms and gives the tenant a schema without running a migration; renaming a spare takes 1 ms.

use std::{sync::Arc, time::Duration};

use domain::{DatabaseName, TenantId};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_postgres::{Client, error::SqlState};

use super::{PostgresServer, database_exists, from_postgres};
use crate::{
    Error, Result,
    migrations::{Schema, migrate_postgres, tenant_schema_digest},
};

/// Any number that other programs don't take for theirs: "Template" in ASCII. An advisory lock belongs to a database, here to
/// the maintenance database: deployments that share a server, each with a main database of its own, don't exclude each other.
const CREATION_LOCK: i64 = 0x5465_6d70_6c61_7465;

/// How long a creation may take, with those before it. A busy disk takes seconds for one.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections to a server's maintenance database, opened when first used and kept. They don't count in the budget.
#[derive(Default)]
pub(super) struct Maintenance {
    /// For what takes long: one creation at a time.
    slow: Mutex<Option<Client>>,
    /// For what takes a millisecond and must not queue behind a creation.
    quick: Mutex<Option<Client>>,
}

/// The name of the spare that is meant for a tenant.
fn spare_name(tenant_id: TenantId) -> String {
    format!("tenantry_spare_{}", tenant_id.uuid().simple())
}

/// The name of the template. Another schema is another template, so that programs of two versions get along on a server.
fn template_name() -> String {
    format!("tenantry_template_{}", &tenant_schema_digest()[..16])
}

impl PostgresServer {
    /// Gives a tenant its database, unless it is there: the spare that was made for it, or a copy of the template. Answers
    /// whether it was a spare: then it is finished.
    pub(crate) async fn make_database(&self, maintenance: &str, name: &DatabaseName, tenant_id: TenantId) -> Result<bool> {
        let taken = within_patience(self.take_spare(maintenance, name, tenant_id)).await?;
        if !taken {
            within_patience(self.copy_template(maintenance, name.as_str())).await?;
        }
        Ok(taken)
    }

    /// Makes a spare for a tenant that is not there yet: a finished database that bears its identity already.
    pub(crate) async fn make_spare(&self, maintenance: &str, tenant_id: TenantId) -> Result<()> {
        let name = spare_name(tenant_id);
        within_patience(self.copy_template(maintenance, &name)).await?;
        let mut inside = self.connect_for_administration(&name).await?;
        migrate_postgres(&mut inside.client, Schema::NewTenant(tenant_id)).await?;
        // Who takes it renames it, and a database in use can't be renamed.
        inside.close(PATIENCE).await;
        Ok(())
    }

    /// Drops a tenant's database with its connections, under whichever name it goes. One that is gone is no error.
    pub(crate) async fn drop_database(self: &Arc<Self>, maintenance: &str, name: &DatabaseName, tenant_id: TenantId) -> Result<()> {
        self.forget(name.as_str());
        let client = self.administer(maintenance).await?;
        // A creation that was interrupted here may go on there: it holds the lock until there is something to drop.
        client.execute("SELECT pg_advisory_lock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        drop_named(&client, &spare_name(tenant_id)).await?;
        drop_named(&client, name.as_str()).await
    }

    /// Drops a spare. One that is gone is no error.
    pub(crate) async fn drop_spare(&self, maintenance: &str, tenant_id: TenantId) -> Result<()> {
        drop_named(&self.administer(maintenance).await?, &spare_name(tenant_id)).await
    }

    /// Takes the spare that was made for a tenant. There may be none, or it was taken before a crash.
    async fn take_spare(&self, maintenance: &str, name: &DatabaseName, tenant_id: TenantId) -> Result<bool> {
        let mut slot = self.connected(&self.maintenance.quick, maintenance).await?;
        // Only a connection on which all went well is put back; any other is closed.
        let client = slot.take().ok_or_else(|| Error::internal("a connection was lost"))?;
        let rename = format!("ALTER DATABASE \"{}\" RENAME TO \"{name}\"", spare_name(tenant_id));
        let taken = match client.batch_execute(&rename).await {
            Ok(()) => true,
            Err(error) if matches!(error.code(), Some(&(SqlState::INVALID_CATALOG_NAME | SqlState::DUPLICATE_DATABASE))) => false,
            Err(error) => return Err(from_postgres(error)),
        };
        *slot = Some(client);
        Ok(taken)
    }

    /// Copies the template, unless the database is there.
    async fn copy_template(&self, maintenance: &str, name: &str) -> Result<()> {
        let mut slot = self.connected(&self.maintenance.slow, maintenance).await?;
        let client = slot.take().ok_or_else(|| Error::internal("a connection was lost"))?;
        // Over all processes: two copies at once take longer than one after the other, and hold up everybody else.
        client.execute("SELECT pg_advisory_lock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        self.ensure_template(&client, maintenance, &template_name()).await?;
        create_database(&client, name, &template_name()).await?;
        client.execute("SELECT pg_advisory_unlock($1)", &[&CREATION_LOCK]).await.map_err(from_postgres)?;
        *slot = Some(client);
        Ok(())
    }

    /// Makes the template, unless it is there. Made under another name and renamed at last, it is whole or not there at all.
    /// Whoever holds the lock of the maintenance database has that name to itself.
    async fn ensure_template(&self, client: &Client, maintenance: &str, name: &str) -> Result<()> {
        if database_exists(client, name).await? {
            return Ok(());
        }
        let unfinished = format!("{name}_{}", &hex::encode(Sha256::digest(maintenance))[..16]);
        drop_template(client, &unfinished).await?;
        create_database(client, &unfinished, "template0").await?;
        let mut inside = self.connect_for_administration(&unfinished).await?;
        migrate_postgres(&mut inside.client, Schema::TenantTemplate).await?;
        // A database in use can't be renamed.
        inside.close(PATIENCE).await;
        // Nobody's connection can stand in the way of a copy.
        for setting in ["IS_TEMPLATE true", "ALLOW_CONNECTIONS false"] {
            client.batch_execute(&format!("ALTER DATABASE \"{unfinished}\" {setting}")).await.map_err(from_postgres)?;
        }
        match client.batch_execute(&format!("ALTER DATABASE \"{unfinished}\" RENAME TO \"{name}\"")).await {
            // Another deployment was faster.
            Err(error) if is_taken(&error) => drop_template(client, &unfinished).await,
            renamed => renamed.map_err(from_postgres),
        }
    }

    async fn connected<'a>(&self, slot: &'a Mutex<Option<Client>>, maintenance: &str) -> Result<MutexGuard<'a, Option<Client>>> {
        let mut slot = slot.lock().await;
        if slot.as_ref().is_none_or(Client::is_closed) {
            *slot = Some(self.administer(maintenance).await?);
        }
        Ok(slot)
    }
}

/// Makes a database from a template, unless it is there. The names are quoted already where they have to be.
pub(crate) async fn create_database(client: &Client, name: &str, template: &str) -> Result<()> {
    match client.batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\" ENCODING 'UTF8'")).await {
        Err(error) if is_taken(&error) => Ok(()),
        made => made.map_err(from_postgres),
    }
}

/// Whether somebody else has a database of this name: since before, or since the same moment.
fn is_taken(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&(SqlState::DUPLICATE_DATABASE | SqlState::UNIQUE_VIOLATION)))
}

async fn drop_template(client: &Client, name: &str) -> Result<()> {
    if database_exists(client, name).await? {
        client.batch_execute(&format!("ALTER DATABASE \"{name}\" IS_TEMPLATE false")).await.map_err(from_postgres)?;
    }
    drop_named(client, name).await
}

async fn drop_named(client: &Client, name: &str) -> Result<()> {
    client.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await.map_err(from_postgres)
}

async fn within_patience<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, work).await.map_err(|_| Error::unavailable("the database server makes no databases at the moment"))?
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::{DatabaseUrl, PostgresLimits, PostgresUrl};

    #[expect(clippy::disallowed_methods, reason = "which server a test run uses is the environment's to say")]
    fn server() -> Option<(Arc<PostgresServer>, String)> {
        let url = std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty())?;
        let DatabaseUrl::Postgres(PostgresUrl { config, .. }) = url.parse().unwrap() else { panic!("TEST_DATABASE_URL is PostgreSQL") };
        let maintenance = config.get_dbname().unwrap().to_owned();
        let limits = PostgresLimits { per_server: 1, per_database: 1 };
        Some((PostgresServer::new(*config, None, limits), maintenance))
    }

    /// Planted once: one name for all while it is made. Of two deployments that began at once, one failed.
    #[tokio::test(flavor = "multi_thread")]
    async fn deployments_that_share_a_server_make_the_template_at_once() {
        let Some((postgres, maintenance)) = server() else { return };
        let name = format!("tenantry_test_template_{}", hex::encode(domain::random_bytes::<8>()));
        let mut deployments = JoinSet::new();
        for n in 0..6 {
            let (postgres, maintenance, name) = (Arc::clone(&postgres), maintenance.clone(), name.clone());
            deployments.spawn(async move {
                let client = postgres.administer(&maintenance).await.unwrap();
                postgres.ensure_template(&client, &n.to_string(), &name).await
            });
        }
        while let Some(made) = deployments.join_next().await {
            made.unwrap().unwrap();
        }
        let client = postgres.administer(&maintenance).await.unwrap();
        let all = "SELECT datname, datistemplate AND NOT datallowconn FROM pg_database WHERE starts_with(datname, $1)";
        let all: Vec<(String, bool)> = client.query(all, &[&name]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        drop_template(&client, &name).await.unwrap();
        assert_eq!(all, [(name, true)]);
    }
}
