//! Checks of the settings and the identity of the database behind a connection.

use domain::TenantId;
use tokio_postgres::{Client, GenericClient, SimpleQueryMessage};

use super::connector::POOLER;
use crate::{
    error::{Error, Result},
    value::Value,
};

const NO_IDENTITY: &str = "the database belongs to no tenant";
const OTHER_IDENTITY: &str = "the database is another tenant's";

/// Fails unless the settings that durability and isolation rest on are in force, and the database is this tenant's. Asks the
/// server itself, in one trip: a pooler in between may report settings that it did not apply.
pub(super) async fn check_session(client: &Client, identity: Option<TenantId>) -> Result<()> {
    let settings = "SELECT current_setting('default_transaction_read_only'), current_setting('synchronous_commit')";
    let found_identity = if identity.is_some() { ", (SELECT tenant_id FROM tenant_identity)" } else { "" };
    // A database without this table is not the tenant's, so that is missing.
    let answers = client.simple_query(&format!("{settings}{found_identity}")).await.map_err(Error::unavailable)?;
    let row = answers.iter().find_map(|answer| if let SimpleQueryMessage::Row(row) = answer { Some(row) } else { None });
    let row = row.ok_or_else(|| Error::internal("a statement returned no row"))?;
    if row.get(0) != Some("on") || row.get(1) != Some("on") {
        return Err(Error::unavailable(POOLER));
    }
    let Some(expected) = identity else { return Ok(()) };
    match row.get(2) {
        Some(found) if found == expected.to_string() => Ok(()),
        Some(_) => Err(Error::unavailable(OTHER_IDENTITY)),
        None => Err(Error::unavailable(NO_IDENTITY)),
    }
}

/// Fails unless the database is this tenant's.
pub(crate) async fn check_identity(client: &impl GenericClient, expected: TenantId) -> Result<()> {
    // A database without this table is not the tenant's, so that is missing.
    let row = client.query_opt("SELECT tenant_id FROM tenant_identity", &[]).await.map_err(Error::unavailable)?;
    let row = row.ok_or_else(|| Error::unavailable(NO_IDENTITY))?;
    let found: Value = row.try_get(0).map_err(Error::unavailable)?;
    if found == Value::from(expected) { Ok(()) } else { Err(Error::unavailable(OTHER_IDENTITY)) }
}
