//! Concurrent transactions: no lost updates, no dirty reads, no failures because of waiting.

use std::time::Duration;

use database::{Error, MainDatabase, TenantDatabase, params};
use tokio::time::timeout;

use crate::engine::{Engine, on_every_engine};

const READ: &str = "SELECT version FROM access_version WHERE id = 1";
const READ_FOR_UPDATE: &str = "SELECT version FROM access_version WHERE id = 1 FOR UPDATE";
const WRITE: &str = "UPDATE access_version SET version = $1 WHERE id = 1";

/// Adds one in two statements, so that another transaction may come between them.
async fn count_up(main: &MainDatabase, read: &'static str, times: usize) {
    for _ in 0..times {
        let mut tx = main.begin().await.unwrap();
        let version: i64 = tx.query_one(read, params![]).await.unwrap().take().unwrap();
        tokio::task::yield_now().await;
        tx.execute(WRITE, params![version + 1]).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// The count of 4 tasks in each of two processes; 80 when no update is lost.
async fn counted(engine: &Engine, read: &'static str) -> i64 {
    let other = engine.other_process().0;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let main = if n % 2 == 0 { engine.main.clone() } else { other.clone() };
            tokio::spawn(async move { count_up(&main, read, 10).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    engine.main.read().await.unwrap().query_one(READ, params![]).await.unwrap().take().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn for_update_loses_no_update() {
    on_every_engine(async |engine| assert_eq!(counted(engine, READ_FOR_UPDATE).await, 80)).await;
}

/// The control: SQLite's write transactions are serial anyway, PostgreSQL's are not.
#[tokio::test(flavor = "multi_thread")]
async fn without_for_update_postgresql_loses_some() {
    on_every_engine(async |engine| {
        let counted = counted(engine, READ).await;
        assert_eq!(counted < 80, engine.is_postgres(), "counted {counted}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_only_whole_transactions() {
    on_every_engine(async |engine| {
        let tenant = engine.tenant().await;
        let writer = tokio::spawn({
            let tenant = tenant.clone();
            async move {
                for _ in 0..50 {
                    add_two_uploads(&tenant).await;
                }
            }
        });
        while !writer.is_finished() {
            let mut reader = tenant.read().await.unwrap();
            let count: i64 = reader.query_one("SELECT count(*) FROM uploads", params![]).await.unwrap().take().unwrap();
            assert_eq!(count % 2, 0);
        }
        writer.await.unwrap();
    })
    .await;
}

async fn add_two_uploads(tenant: &TenantDatabase) {
    let mut tx = tenant.begin().await.unwrap();
    for _ in 0..2 {
        let path = hex::encode(domain::random_bytes::<8>());
        let insert = "INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2)";
        tx.execute(insert, params![path, domain::Timestamp::from_micros(0)]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_waits_too_long_fails_as_busy() {
    on_every_engine(async |engine| {
        let mut holder = engine.main.begin().await.unwrap();
        holder.query(READ_FOR_UPDATE, params![]).await.unwrap();
        let attempts = [engine.main.clone(), engine.other_process().0].map(|main| async move {
            let mut tx = main.begin().await?;
            tx.query(READ_FOR_UPDATE, params![]).await
        });
        for outcome in timeout(Duration::from_secs(12), futures_util::future::join_all(attempts)).await.unwrap() {
            assert!(matches!(outcome, Err(Error::Busy(_))), "{outcome:?}");
        }
        drop(holder);
        count_up(&engine.main, READ_FOR_UPDATE, 1).await;
    })
    .await;
}

/// While a transaction holds the file, a migration waits for it without blocking the threads on which the transaction ends.
#[tokio::test(flavor = "multi_thread")]
async fn migrations_let_transactions_end() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(WRITE, params![1_i64]).await.unwrap();
        let migrations: Vec<_> = (0..8)
            .map(|_| {
                let main = engine.main.clone();
                tokio::spawn(async move { main.migrate().await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        timeout(Duration::from_secs(2), tx.commit()).await.expect("blocked by the migrations that wait for it").unwrap();
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
    })
    .await;
}
