//! Moves of tenant databases.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{Move, MoveState, TenantId};

use crate::word;

/// Selects the columns that [`a_move`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT tenant_id, from_server, to_server, state, began_at FROM tenant_moves ", $rest)
    };
}

/// Adds a move. A tenant has at most one.
pub async fn insert(tx: &mut MainTx, the_move: &Move) -> Result<()> {
    tx.execute(
        "INSERT INTO tenant_moves (tenant_id, from_server, to_server, state, began_at) VALUES ($1, $2, $3, $4, $5)",
        params![the_move.tenant_id, the_move.from_server.as_str(), the_move.to_server.as_str(), the_move.state.as_str(), the_move.began_at],
    )
    .await?;
    Ok(())
}

/// The move of a tenant.
pub async fn find(connection: &mut Connection<Main>, tenant_id: TenantId) -> Result<Option<Move>> {
    connection.query_opt(select!("WHERE tenant_id = $1"), params![tenant_id]).await?.map(a_move).transpose()
}

/// All moves, including complete ones whose source database is still kept.
pub async fn list(connection: &mut Connection<Main>) -> Result<Vec<Move>> {
    connection.query(select!("ORDER BY began_at"), params![]).await?.into_iter().map(a_move).collect()
}

/// Advances a move from state `before` to `state`. Returns false if the move was replaced or is not in state `before`.
pub async fn set_state(tx: &mut MainTx, the_move: &Move, before: MoveState, state: MoveState) -> Result<bool> {
    let set = "UPDATE tenant_moves SET state = $4 WHERE tenant_id = $1 AND began_at = $2 AND state = $3";
    Ok(tx.execute(set, params![the_move.tenant_id, the_move.began_at, before.as_str(), state.as_str()]).await? == 1)
}

/// Removes a move.
pub async fn delete(tx: &mut MainTx, the_move: &Move) -> Result<()> {
    tx.execute("DELETE FROM tenant_moves WHERE tenant_id = $1 AND began_at = $2", params![the_move.tenant_id, the_move.began_at]).await?;
    Ok(())
}

fn a_move(mut row: Row) -> Result<Move> {
    Ok(Move {
        tenant_id: row.take()?,
        from_server: row.take()?,
        to_server: row.take()?,
        state: word(&mut row, MoveState::parse)?,
        began_at: row.take()?,
    })
}
