//! Problems of dependencies, in the terms of the configuration.

use domain::Error;
use services::UnknownServer;

/// A problem with its causes, on one line.
pub(crate) fn describe(problem: &Error) -> String {
    if let Error::Unavailable { source, .. } = problem
        && let Some(UnknownServer { tenants }) = source.downcast_ref()
    {
        return format!("{problem}: it has {tenants} tenants, but TENANT_DATABASE_URLS does not name it");
    }
    problem.with_causes()
}
