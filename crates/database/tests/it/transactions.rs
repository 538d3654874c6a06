//! Transactions are atomic, and nothing is written outside of one.

use std::time::Duration;

use database::{Connection, Error, Main, MainDatabase, Statement, params};
use tokio::time::timeout;

use crate::engine::{SLOW, on_every_engine};

const INSERT: &str = "INSERT INTO access_changes (version, subject, changed_at) SELECT $1, $2, $3";

fn change(version: i64) -> Vec<database::Value> {
    params![version, uuid::Uuid::nil(), domain::Timestamp::from_micros(0)]
}

async fn kept(main: &MainDatabase) -> Vec<i64> {
    let rows = main.read().await.unwrap().query("SELECT version FROM access_changes ORDER BY version", params![]).await.unwrap();
    rows.into_iter().map(|mut row| row.take().unwrap()).collect()
}

#[tokio::test]
async fn committed_changes_are_kept() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(INSERT, change(1)).await.unwrap();
        assert!(kept(&engine.main).await.is_empty(), "others see nothing before the commit");
        tx.commit().await.unwrap();
        assert_eq!(kept(&engine.main).await, [1]);
        assert_eq!(kept(&engine.other_process().0).await, [1]);
        engine.main.begin().await.unwrap().commit().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing() {
    on_every_engine(async |engine| {
        for _ in 0..20 {
            let mut tx = engine.main.begin().await.unwrap();
            tx.execute(INSERT, change(1)).await.unwrap();
            drop(tx);
        }
        assert!(kept(&engine.main).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_transaction_with_a_failed_statement_keeps_nothing() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(INSERT, change(1)).await.unwrap();
        tx.execute(INSERT, change(1)).await.unwrap_err();
        assert!(tx.execute(INSERT, change(2)).await.is_err(), "accepts no more statements");
        assert!(tx.query("SELECT 1", params![]).await.is_err());
        assert!(tx.commit().await.is_err(), "can't be committed");
        assert!(kept(&engine.main).await.is_empty());

        let mut tx = engine.main.begin().await.unwrap();
        tx.batch(vec![Statement::new(INSERT, change(1)), Statement::new("SELECT nonsense", params![])]).await.unwrap_err();
        assert!(tx.execute(INSERT, change(2)).await.is_err());
        drop(tx);
        assert!(kept(&engine.main).await.is_empty());

        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(INSERT, change(3)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(kept(&engine.main).await, [3], "the next one works");
    })
    .await;
}

#[tokio::test]
async fn deferred_statements_run_in_order_or_with_the_commit() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.defer(INSERT, change(1));
        assert_eq!(tx.execute("UPDATE access_changes SET version = 2 WHERE version = 1", params![]).await.unwrap(), 1);
        tx.defer(INSERT, change(3));
        tx.commit().await.unwrap();
        let mut tx = engine.main.begin().await.unwrap();
        tx.defer(INSERT, change(4));
        tx.commit().await.unwrap();
        assert_eq!(kept(&engine.main).await, [2, 3, 4]);

        let mut tx = engine.main.begin().await.unwrap();
        tx.defer(INSERT, change(5));
        drop(tx);
        assert_eq!(kept(&engine.main).await, [2, 3, 4], "nothing was sent");
    })
    .await;
}

#[tokio::test]
async fn a_deferred_statement_that_fails_undoes_the_transaction() {
    on_every_engine(async |engine| {
        for _ in 0..20 {
            let mut tx = engine.main.begin().await.unwrap();
            tx.execute(INSERT, change(1)).await.unwrap();
            tx.defer(INSERT, change(1));
            tx.defer(INSERT, change(2));
            assert!(matches!(tx.commit().await, Err(Error::Violated(_))));
            assert!(kept(&engine.main).await.is_empty());

            let mut tx = engine.main.begin().await.unwrap();
            tx.defer(INSERT, change(1));
            tx.defer(INSERT, change(1));
            assert!(tx.query("SELECT 1", params![]).await.is_err(), "it fails with the next statement");
            assert!(tx.commit().await.is_err());
        }
        let mut tx = engine.main.begin().await.unwrap();
        tx.defer(INSERT, change(3));
        tx.commit().await.unwrap();
        assert_eq!(kept(&engine.main).await, [3], "the next one works");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_share_a_commit_succeed_or_fail_on_their_own() {
    on_every_engine(async |engine| {
        let commit = |versions: &[i64]| {
            let (main, versions) = (engine.main.clone(), versions.to_vec());
            async move {
                let mut tx = main.begin().await.unwrap();
                versions.into_iter().for_each(|version| tx.defer(INSERT, change(version)));
                tx.commit().await
            }
        };
        // They begin while another transaction holds the writer.
        let mut first = engine.main.begin().await.unwrap();
        first.execute(INSERT, change(0)).await.unwrap();
        let good: Vec<_> = (1..=20).map(|n| tokio::spawn(commit(&[n, n + 100]))).collect();
        let bad: Vec<_> = (1..=20).map(|n| tokio::spawn(commit(&[n + 200, n + 200]))).collect();
        let abandoned = tokio::spawn(commit(&[300]));
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !engine.is_postgres() {
            abandoned.abort();
            assert!(abandoned.await.unwrap_err().is_cancelled());
        }
        first.commit().await.unwrap();
        for committed in good {
            committed.await.unwrap().unwrap();
        }
        for refused in bad {
            assert!(matches!(refused.await.unwrap(), Err(Error::Violated(_))));
        }
        let expected: Vec<i64> = (0..=20).chain(101..=120).collect();
        let kept = kept(&engine.main).await;
        assert_eq!(kept.iter().copied().filter(|version| *version < 300).collect::<Vec<_>>(), expected);
        assert!(engine.is_postgres() || !kept.contains(&300), "its caller had gone");
    })
    .await;
}

/// PostgreSQL would answer the commit with success, whatever the outcome of the statement.
#[tokio::test]
async fn a_transaction_with_an_abandoned_statement_keeps_nothing() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(INSERT, change(1)).await.unwrap();
        timeout(Duration::from_millis(20), tx.query(SLOW, params![])).await.unwrap_err();
        assert!(tx.execute(INSERT, change(2)).await.is_err());
        assert!(tx.commit().await.is_err());
        assert!(kept(&engine.main).await.is_empty());
    })
    .await;
}

async fn write(connection: &mut Connection<Main>) -> Result<(), Error> {
    connection.query("INSERT INTO access_version (id, version) VALUES (1, 1) RETURNING version", params![]).await?;
    Ok(())
}

#[tokio::test]
async fn nothing_is_written_outside_a_transaction() {
    on_every_engine(async |engine| {
        let mut reader = engine.main.read().await.unwrap();
        for sql in ["UPDATE access_version SET version = 7", "DELETE FROM access_version", "CREATE TABLE x (y BIGINT)", "DROP TABLE outbox"]
        {
            assert!(reader.query(sql, params![]).await.is_err(), "{sql}");
        }
        assert!(write(&mut reader).await.is_err());
        let mut version = reader.query_one("SELECT version FROM access_version", params![]).await.unwrap();
        assert_eq!(version.take::<i64>().unwrap(), 0, "and it can still read");
    })
    .await;
}

#[tokio::test]
async fn a_reader_goes_on_after_a_failure() {
    on_every_engine(async |engine| {
        let mut reader = engine.main.read().await.unwrap();
        reader.query("SELECT nonsense", params![]).await.unwrap_err();
        reader.query("SELECT version FROM access_version", params![]).await.unwrap();
    })
    .await;
}
