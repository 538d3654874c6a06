//! Failed moves, in the terms of the command line: its flags, commands and variables.

use services::MoveError;

/// The problem, in words that follow the tenant's name.
pub(super) fn describe(problem: &MoveError) -> String {
    match problem {
        MoveError::ThereAlready(server) => format!("its database is already on server {server}"),
        MoveError::UnknownServer { wanted, known } => {
            format!("TENANT_DATABASE_URLS names no server {wanted:?}; known servers: {}", known.join(", "))
        }
        MoveError::UnderWay => {
            "another process is moving its database; if that process has died, `tenantry serve` will undo the move within half a minute"
                .to_owned()
        }
        MoveError::FormerKept(server) => {
            format!(
                "its source database is still kept on server {server}; first drop it with --drop-former, or return to it with --rollback"
            )
        }
        MoveError::NoFormer => "no source database is kept".to_owned(),
        MoveError::Outdated { found, wanted } => {
            format!("its database has schema version {found}; first migrate it to version {wanted} with `tenantry migrate`")
        }
        MoveError::TooNew { found, wanted } => {
            format!("its database has schema version {found}, which is newer than this program's version {wanted}: use a newer program")
        }
        MoveError::NotInUse(provisioning) => format!("it is {}", provisioning.as_str()),
        MoveError::NameTaken(server) => {
            format!("server {server} already has a database of this name; if an earlier move left it there, drop it on that server")
        }
        MoveError::NotGone(server) => format!("server {server} is available: use --drop-former, which leaves nothing there"),
        MoveError::PauseTooLong(max) => format!("writes would have to wait for longer than {} s: see --max-pause", max.as_secs()),
        MoveError::LeftBehind { server, problem } => format!(
            "cannot drop what an earlier move left on server {server} ({}); if that server no longer exists, use --forget",
            problem.with_causes()
        ),
        MoveError::Unfinished { server, problem } => {
            format!("it IS on server {server} now, but a later step failed, which `tenantry serve` will retry: {}", problem.with_causes())
        }
        MoveError::Failed(error) => error.with_causes(),
    }
}
