//! Whether what Tenantry rests on answers.

use std::time::Duration;

use domain::{Error, Result};
use models::access_changes;
use tokio::time::timeout;

use crate::Services;

/// How long a dependency may take to answer before it counts as down.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that Tenantry rests on, and how it is.
#[derive(Debug)]
pub struct Dependency {
    /// Its name, as operators call it.
    pub name: String,
    /// Nothing, or what is wrong with it.
    pub problem: Option<Error>,
}

impl Services {
    /// Asks every dependency whether it is there, all at once.
    pub async fn check_dependencies(&self) -> Vec<Dependency> {
        let databases = &self.0.parts.tenant_databases;
        let main = async { check("database".to_owned(), self.check_main_database()).await };
        let storage = async { check("object storage".to_owned(), self.0.parts.storage.check()).await };
        let servers = databases.servers().map(|server| async move {
            // Connecting, with TLS, makes a large future.
            let ping = Box::pin(async { Ok(databases.ping(server).await?) });
            check(format!("tenant databases ({server})"), ping).await
        });
        let (main, storage, servers) = tokio::join!(main, storage, futures_util::future::join_all(servers));
        [main, storage].into_iter().chain(servers).collect()
    }

    async fn check_main_database(&self) -> Result<()> {
        access_changes::last_version(&mut self.main().read().await?).await?;
        Ok(())
    }
}

async fn check(name: String, asking: impl Future<Output = Result<()>>) -> Dependency {
    let problem = match timeout(PATIENCE, asking).await {
        Ok(answer) => answer.err(),
        Err(_) => Some(Error::Unavailable { dependency: "dependency", source: "no answer in time".into() }),
    };
    Dependency { name, problem }
}
