//! Health checks of Tenantry's dependencies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Dependency, Error, Result};
use models::{Connections, access_changes, tenants};
use tokio::{sync::Mutex, time::timeout};

use crate::{Core, OperatorServices, UserServices};

/// How long a dependency may take to answer before it counts as down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last result, and when its check started.
#[derive(Default)]
pub(crate) struct LastCheck(Mutex<Option<(Instant, Arc<Vec<DependencyStatus>>)>>);

/// Why some tenants' databases are unreachable: the configuration does not name their server (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has {tenants} tenants, but the configuration does not name it")]
pub struct UnknownServer {
    /// The number of tenants whose database is there.
    pub tenants: u64,
}

/// A dependency and its health.
#[derive(Debug)]
pub struct DependencyStatus {
    /// The name that operators know it by.
    pub name: String,
    /// The problem, if there is one.
    pub problem: Option<Error>,
}

/// The connection pool of one tenant database server.
#[derive(Clone, Debug)]
pub struct ServerConnections {
    /// The server's configured name.
    pub name: String,
    /// The maximum number of connections.
    pub limit: usize,
    /// The connections by state.
    pub connections: Connections,
}

impl UserServices {
    /// The connection pool of each tenant database server that is connected. SQLite files have none.
    #[must_use]
    pub fn tenant_connections(&self) -> Vec<ServerConnections> {
        let servers = self.core.parts.tenant_databases.connections();
        servers.map(|(name, limit, connections)| ServerConnections { name: name.to_owned(), limit, connections }).collect()
    }

    /// The number of open tenant databases.
    #[must_use]
    pub fn open_tenant_databases(&self) -> u64 {
        self.core.parts.tenant_databases.count_open()
    }

    /// Checks every dependency. Checks run one at a time, because each costs the servers a connection. Callers that arrive before
    /// a check starts share its result.
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
    /// Checks every dependency concurrently.
    pub async fn check_dependencies(&self) -> Vec<DependencyStatus> {
        check_dependencies(&self.core).await
    }

    /// Servers that hold tenant databases but are missing from the configuration.
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
    // Unknown servers can only be found in the main database; if it is down, its own check reports that.
    let unknown = async { timeout(PROBE_TIMEOUT, find_unknown_servers(core)).await.ok().and_then(Result::ok).unwrap_or_default() };
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

async fn check(name: String, probe: impl Future<Output = Result<()>>) -> DependencyStatus {
    let problem = match timeout(PROBE_TIMEOUT, probe).await {
        Ok(answer) => answer.err(),
        Err(_) => Some(Error::Unavailable { dependency: Dependency::Other, source: "no answer in time".into() }),
    };
    DependencyStatus { name, problem }
}
