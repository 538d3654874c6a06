//! Failed moves, in the terms of the command line: its flags and variables.

use services::MoveError;

/// The problem, in words that follow the tenant's name.
pub(super) fn describe(problem: &MoveError) -> String {
    match problem {
        MoveError::UnknownServer { wanted, known } => {
            format!("TENANT_DATABASE_URLS names no server {wanted:?}; there are: {}", known.join(", "))
        }
        MoveError::FormerKept(_) => format!("{problem}; first drop that with --drop-former, or return to it with --back"),
        MoveError::NotGone(server) => format!("server {server} answers: use --drop-former, which leaves nothing there"),
        MoveError::PauseTooLong(_) => format!("{problem}: see --max-pause"),
        MoveError::LeftBehind { .. } => format!("{problem}; if that server is gone for good, use --forget"),
        _ => problem.to_string(),
    }
}
