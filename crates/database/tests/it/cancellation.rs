//! Futures dropped during a statement, as when a client disconnects.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use database::{MainDatabase, PostgresLimits, Statement, params};
use tokio::time::timeout;

use crate::engine::{Engine, SLOW, eventually, on_every_engine, on_every_engine_with, on_postgres};

const COUNT: &str = "UPDATE access_version SET version = version + 1 WHERE id = 1 RETURNING version";

/// A single connection: a caller that keeps or breaks it is found at once.
const ONE: PostgresLimits = PostgresLimits { per_server: 1, per_database: 1 };

/// Up to 8 ms, in steps of 1 µs.
fn moment() -> Duration {
    Duration::from_micros(u64::from(u16::from_le_bytes(domain::random_bytes())) % 8_000)
}

async fn count(main: &MainDatabase) -> i64 {
    let mut tx = main.begin().await.unwrap();
    let version = tx.query_one(COUNT, params![]).await.unwrap().take().unwrap();
    tx.commit().await.unwrap();
    version
}

async fn version(main: &MainDatabase) -> i64 {
    main.read().await.unwrap().query_one("SELECT version FROM access_version", params![]).await.unwrap().take().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_transaction_works_at_once() {
    on_every_engine_with(ONE, async |engine| {
        for n in 1..=100 {
            let abandoned = async {
                let mut tx = engine.main.begin().await.unwrap();
                tx.execute("UPDATE access_version SET version = 1000000", params![]).await.unwrap();
                tx.query(SLOW, params![]).await.unwrap();
            };
            timeout(moment(), abandoned).await.unwrap_err();
            let begun = Instant::now();
            assert_eq!(count(&engine.main).await, n, "nothing is left of the abandoned transaction");
            assert!(begun.elapsed() < Duration::from_secs(3), "waited {:?} for an abandoned statement", begun.elapsed());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_reader_works_at_once() {
    on_every_engine_with(ONE, async |engine| {
        for _ in 0..100 {
            let abandoned = async { engine.main.read().await.unwrap().query(SLOW, params![]).await };
            timeout(moment(), abandoned).await.unwrap_err();
            let begun = Instant::now();
            assert_eq!(version(&engine.main).await, 0);
            assert!(begun.elapsed() < Duration::from_secs(3), "waited {:?} for an abandoned statement", begun.elapsed());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_commit_keeps_all_or_nothing() {
    on_every_engine_with(ONE, async |engine| {
        for _ in 0..100 {
            let before = version(&engine.main).await;
            let abandoned = async {
                let mut tx = engine.main.begin().await.unwrap();
                tx.batch(vec![Statement::new(COUNT, params![]), Statement::new(COUNT, params![])]).await.unwrap();
                tx.commit().await.unwrap();
            };
            let finished = timeout(moment(), abandoned).await.is_ok();
            let changed = count(&engine.main).await - before - 1;
            assert!(changed == 2 || changed == 0 && !finished, "{changed} of 2 changes, finished: {finished}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_thousand_mishaps_every_connection_is_available() {
    let limits = PostgresLimits { per_server: 4, per_database: 4 };
    on_every_engine_with(limits, async |engine| {
        let work = (0..8).map(|_| {
            let main = engine.main.clone();
            tokio::spawn(async move {
                for n in 0..125 {
                    let task = mishap(&main, n);
                    let _cancelled_or_not = timeout(moment(), task).await;
                }
            })
        });
        for worker in work.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        // All of them at the same time: four readers, on each engine.
        let readers = async {
            let mut readers = Vec::new();
            for _ in 0..4 {
                let mut reader = engine.main.read().await.unwrap();
                reader.query("SELECT 1", params![]).await.unwrap();
                readers.push(reader);
            }
        };
        timeout(Duration::from_secs(4), readers).await.expect("a permit was lost");
        count(&engine.main).await;
    })
    .await;
}

async fn mishap(main: &MainDatabase, n: usize) -> Result<(), database::Error> {
    match n % 5 {
        0 => main.read().await?.query("SELECT nonsense", params![]).await.map(drop),
        1 => main.read().await?.query(SLOW, params![]).await.map(drop),
        2 => main.begin().await?.execute(COUNT, params![]).await.map(drop),
        3 => {
            let mut tx = main.begin().await?;
            tx.execute(COUNT, params![]).await?;
            tx.query("SELECT nonsense", params![]).await.map(drop)
        }
        _ => {
            let mut tx = main.begin().await?;
            tx.execute(COUNT, params![]).await?;
            tx.commit().await
        }
    }
}

/// An abandoned statement would go on for 15 s, with its locks, outside of the budget.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_cancels_abandoned_statements() {
    on_postgres(PostgresLimits { per_server: 2, per_database: 2 }, async |engine| {
        let admin = engine.admin().await;
        for _ in 0..20 {
            let mut tx = engine.main.begin().await.unwrap();
            tx.query("SELECT version FROM access_version WHERE id = 1 FOR UPDATE", params![]).await.unwrap();
            timeout(Duration::from_millis(5), tx.query(SLOW, params![])).await.unwrap_err();
        }
        count(&engine.main).await;
        eventually("nothing is running", async || running(engine, &admin).await == 0).await;
    })
    .await;
}

async fn running(engine: &Engine, admin: &tokio_postgres::Client) -> i64 {
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state <> 'idle'";
    admin.query_one(active, &[&engine.main_name()]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_transaction_dropped_outside_a_runtime_is_rolled_back() {
    on_every_engine(async |engine| {
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(COUNT, params![]).await.unwrap();
        std::thread::spawn(move || drop(tx)).join().unwrap();
        assert_eq!(count(&engine.main).await, 1);
    })
    .await;
}

#[test]
fn a_handle_outlives_the_runtime_it_was_first_used_in() {
    let folder = tempfile::tempdir().unwrap();
    let url = database::DatabaseUrl::Sqlite(folder.path().join("main.sqlite3"));
    let main = MainDatabase::new(&url, &crate::engine::threads(), ONE);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    first.block_on(async { main.migrate().await.unwrap() });
    first.block_on(async {
        let main = main.clone();
        tokio::spawn(async move {
            let mut tx = main.begin().await.unwrap();
            tx.query(SLOW, params![]).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    });
    drop(first);
    assert_eq!(runtime().block_on(count(&main)), 1);
}

async fn pid(main: &MainDatabase) -> i64 {
    main.read().await.unwrap().query_one("SELECT pg_backend_pid()", params![]).await.unwrap().take().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_dropped_during_a_slow_statement_delays_no_other_on_its_connection() {
    // Seeded once: the others kept the connection while they waited for the next. With one connection that was for ever.
    on_postgres(ONE, async |engine| {
        for _ in 0..5 {
            let (mut leaving, mut staying) = (engine.main.read().await.unwrap(), engine.main.read().await.unwrap());
            let leave = async move {
                timeout(Duration::from_millis(20), leaving.query(SLOW, params![])).await.unwrap_err();
            };
            let stay = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                staying.query("SELECT version FROM access_version", params![]).await.unwrap()
            };
            let ((), rows) = timeout(Duration::from_secs(3), futures_util::future::join(leave, stay))
                .await
                .expect("it waits for an abandoned statement");
            assert_eq!(rows.len(), 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_dropped_during_quick_statements_cost_no_connection() {
    on_postgres(ONE, async |engine| {
        let mut pids = BTreeSet::new();
        for _ in 0..100 {
            let mut leaving = engine.main.read().await.unwrap();
            let _left = timeout(Duration::from_micros(50), leaving.query("SELECT version FROM access_version", params![])).await;
            drop(leaving);
            pids.insert(pid(&engine.main).await);
        }
        // On a busy machine a quick statement may take long.
        assert!(pids.len() < 10, "{} connections for 100 readers", pids.len());
    })
    .await;
}
