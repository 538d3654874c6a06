//! From the configuration to the services: what every command has in common.

use std::{fs, sync::Arc};

use anyhow::{Context, Result, anyhow};
use database::{MainDatabase, PostgresLimits, SqliteThreads, TenantDatabases};
use domain::{Quota, SystemClock};
use secrecy::{ExposeSecret, SecretString};
use services::{
    LocalStorage, ObjectStorage, Parts, PasswordSettings, Passwords, S3Storage, SecretKey, Services, Settings, Spool, TokenSettings,
    Tokens, UrlSigner,
};

use crate::config::{Config, Objects};

/// Threads that wait for SQLite's commits, which is mostly for the disk.
const WRITE_THREADS: usize = 4;

/// The services of a configuration, and the main database for those who migrate it. Makes the data directory; connects to
/// nothing yet.
///
/// # Errors
/// When the data directory can't be used.
pub fn assemble(config: &Config) -> Result<(Services, MainDatabase)> {
    let make = |name: &str| {
        let path = config.data_dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make the directory {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = SqliteThreads::start(cores, WRITE_THREADS).context("start the SQLite threads")?;
    let databases = &config.databases;
    let limits = |per_server, per_database| PostgresLimits { per_server, per_database };
    let main = MainDatabase::new(&databases.main, &threads, limits(databases.pool_size, databases.pool_size));
    let budget = databases.tenant_connection_budget;
    // No tenant may hold all of the budget, whatever it does.
    let tenant_limits = limits(budget, databases.pool_size.min(budget.div_ceil(4)));
    let servers = databases.tenant_servers.iter().map(|server| (server.name.clone(), server.url.clone())).collect();
    let storage: Arc<dyn ObjectStorage> = match &config.objects {
        Objects::Files => Arc::new(LocalStorage::open(&make("objects")?).context("open the object storage")?),
        Objects::S3(settings) => Arc::new(S3Storage::new(settings).context("prepare the object storage")?),
    };
    let parts = Parts {
        main: main.clone(),
        tenant_databases: TenantDatabases::new(&servers, &threads, tenant_limits),
        storage,
        spool: Spool::new(&make("spool")?).context("open the spool")?,
        passwords: Passwords::new(&PasswordSettings {
            threads: config.passwords.threads,
            queue: config.passwords.queue,
            ..PasswordSettings::default()
        })
        .context("start the hashing threads")?,
        tokens: tokens(config)?,
        url_signer: UrlSigner::new(config.tokens.secret.expose_secret().as_bytes()),
        clock: Arc::new(SystemClock),
        settings: Settings {
            max_upload_bytes: config.documents.max_upload_bytes,
            download_url_life: config.documents.download_url_expires,
            upload_life: config.documents.upload_expires,
            garbage_grace: config.documents.garbage_grace,
            trash_retention: config.documents.trash_retention,
            versions_kept: config.documents.versions_kept,
            event_retention: config.events.retention,
            quota: Quota { bytes: config.documents.tenant_max_bytes, documents: config.documents.tenant_max_documents },
            throttle_logins: config.limits.rates.is_some(),
            registration: config.limits.registration,
            tenants_per_user: config.limits.tenants_per_user,
            warm_databases: databases.tenant_warm_pool,
        },
    };
    Ok((Services::new(parts), main))
}

fn tokens(config: &Config) -> Result<Tokens> {
    let key =
        |secret: &SecretString| SecretKey::new(secret.expose_secret().as_bytes()).map_err(|problem| anyhow!("a JWT secret {problem}"));
    let settings = TokenSettings {
        issuer: config.tokens.issuer.clone(),
        audience: config.tokens.audience.clone(),
        access_life: config.tokens.access_expires,
        refresh_life: config.tokens.refresh_expires,
        signing: key(&config.tokens.secret)?,
        verifying: config.tokens.previous_secrets.iter().map(key).collect::<Result<_>>()?,
    };
    Tokens::new(settings).context("prepare the token keys")
}
