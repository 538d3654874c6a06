//! Whether what Tenantry rests on answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Dependency, Error, Result};
use models::{Connections, access_changes, tenants};
use tokio::{sync::Mutex, time::timeout};

use crate::{Core, OperatorServices, UserServices};

/// How long a dependency may take to answer before it counts as down.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last answer, and when it was asked for.
#[derive(Default)]
pub(crate) struct LastCheck(Mutex<Option<(Instant, Arc<Vec<DependencyStatus>>)>>);

/// Why the database of some tenants can't be reached: the configuration does not name their server (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tenants} tenants are there, and the configuration does not name it")]
pub struct UnknownServer {
    /// How many tenants have their database there.
    pub tenants: u64,
}

/// Something that Tenantry rests on, and how it is.
#[derive(Debug)]
pub struct DependencyStatus {
    /// Its name, as operators call it.
    pub name: String,
    /// Nothing, or what is wrong with it.
    pub problem: Option<Error>,
}

/// The connections to a server of tenants' databases.
#[derive(Clone, Debug)]
pub struct ServerConnections {
    /// The server's configured name.
    pub name: String,
    /// How many there may be.
    pub limit: usize,
    /// What those that there are do.
    pub connections: Connections,
}

impl UserServices {
    /// The connections to tenants' databases, for each server that is connected to. Files have none.
    #[must_use]
    pub fn tenant_connections(&self) -> Vec<ServerConnections> {
        let servers = self.core.parts.tenant_databases.connections();
        servers.map(|(name, limit, connections)| ServerConnections { name: name.to_owned(), limit, connections }).collect()
    }

    /// How many tenants' databases are held open.
    #[must_use]
    pub fn open_tenant_databases(&self) -> u64 {
        self.core.parts.tenant_databases.count_open()
    }

    /// Whether every dependency is there, for whoever asks: one question after the other, however many ask at once, since each
    /// costs the servers a connection. Those who came before a question was asked share its answer.
    pub async fn readiness(&self) -> Arc<Vec<DependencyStatus>> {
        let came_at = Instant::now();
        let mut last = self.core.last_check.0.lock().await;
        match &*last {
            Some((asked_at, answer)) if *asked_at >= came_at => Arc::clone(answer),
            _ => {
                let asked_at = Instant::now();
                let answer = Arc::new(check_dependencies(&self.core).await);
                *last = Some((asked_at, Arc::clone(&answer)));
                answer
            }
        }
    }
}

impl OperatorServices {
    /// Asks every dependency whether it is there, all at once.
    pub async fn check_dependencies(&self) -> Vec<DependencyStatus> {
        check_dependencies(&self.core).await
    }

    /// Servers that hold tenants' databases and that the configuration does not name (any more).
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_unknown_servers(&self) -> Result<Vec<DependencyStatus>> {
        find_unknown_servers(&self.core).await
    }
}

async fn check_main_database(core: &Core) -> Result<()> {
    access_changes::last_version(&mut core.main().read().await?).await?;
    Ok(())
}

async fn check_dependencies(core: &Core) -> Vec<DependencyStatus> {
    let databases = &core.parts.tenant_databases;
    let main = async { check("database".to_owned(), check_main_database(core)).await };
    let storage = async { check("object storage".to_owned(), core.parts.storage.check()).await };
    let servers = databases.servers().map(|server| async move {
        // Connecting, with TLS, makes a large future.
        let ping = Box::pin(async { Ok(databases.ping(server).await?) });
        check(format!("tenant databases ({server})"), ping).await
    });
    // Without the main database nobody knows of any; that it is down is said already.
    let unknown = async { timeout(PATIENCE, find_unknown_servers(core)).await.ok().and_then(Result::ok).unwrap_or_default() };
    let (main, storage, servers, unknown) = tokio::join!(main, storage, futures_util::future::join_all(servers), unknown);
    [main, storage].into_iter().chain(servers).chain(unknown).collect()
}

async fn find_unknown_servers(core: &Core) -> Result<Vec<DependencyStatus>> {
    let holding = tenants::count_by_server(&mut core.main().read().await?).await?;
    let is_known = |server: &str| core.parts.tenant_databases.servers().any(|known| known == server);
    let unknown = holding.into_iter().filter(|(server, _)| !is_known(server)).map(|(server, count)| DependencyStatus {
        problem: Some(Error::Unavailable { dependency: Dependency::Server, source: UnknownServer { tenants: count }.into() }),
        name: format!("tenant databases ({server})"),
    });
    Ok(unknown.collect())
}

async fn check(name: String, asking: impl Future<Output = Result<()>>) -> DependencyStatus {
    let problem = match timeout(PATIENCE, asking).await {
        Ok(answer) => answer.err(),
        Err(_) => Some(Error::Unavailable { dependency: Dependency::Other, source: "no answer in time".into() }),
    };
    DependencyStatus { name, problem }
}
