//! The budget of connections to a PostgreSQL server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use database::{Error, PostgresLimits, TenantDatabase, params};
use domain::TenantPlace;
use tokio::time::timeout;

use crate::engine::{Engine, on_postgres};

/// The connections to tenants' databases of this test, as the server counts them.
async fn connections(admin: &tokio_postgres::Client, tenants: &[String]) -> usize {
    let count = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = ANY ($1) AND backend_type = 'client backend'";
    let counted: i64 = admin.query_one(count, &[&tenants]).await.unwrap().get(0);
    usize::try_from(counted).unwrap()
}

/// The largest number of connections that the server had while 50 tasks used these databases.
async fn max_connections(engine: &Engine, locations: &[TenantPlace], per_server: usize) -> usize {
    let tenants = engine.tenants_with(PostgresLimits { per_server, per_database: 4 });
    let names: Vec<_> = locations.iter().map(|location| location.database.as_str().to_owned()).collect();
    let seen_enough = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..50)
        .map(|n| {
            let tenant = tenants.open(&locations[n % locations.len()]).unwrap();
            let seen_enough = Arc::clone(&seen_enough);
            tokio::spawn(async move {
                for round in (0..).take_while(|_| !seen_enough.load(Ordering::Relaxed)) {
                    work(&tenant, n + round).await;
                }
            })
        })
        .collect();
    let admin = engine.admin().await;
    let mut max = 0;
    for _ in 0..300 {
        max = max.max(connections(&admin, &names).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    seen_enough.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    max
}

async fn work(tenant: &TenantDatabase, n: usize) {
    if n.is_multiple_of(3) {
        let slow = async { tenant.read().await.unwrap().query(crate::engine::SLOW, params![]).await };
        let _cancelled = timeout(Duration::from_millis(30), slow).await;
    } else {
        let mut tx = tenant.begin().await.unwrap();
        tx.execute("INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING", upload(n)).await.unwrap();
        tx.commit().await.unwrap();
    }
}

fn upload(n: usize) -> Vec<database::Value> {
    params![n.to_string(), domain::Timestamp::from_micros(0)]
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_connections_than_the_budget() {
    let limits = PostgresLimits { per_server: 1, per_database: 1 };
    on_postgres(limits, async |engine| {
        let locations: Vec<_> = (0..10).map(|_| engine.location()).collect();
        for location in &locations {
            engine.create(location).await;
        }
        engine.close_idle(&locations).await;
        // Seeded once: evicted connections closed in the background, without waiting for the server. With a budget of 4 there
        // were 5, in one run of two.
        // The control: a larger budget is used, and the count shows it.
        let max = max_connections(engine, &locations, 40).await;
        assert!((5..=40).contains(&max), "{max}");
        engine.close_idle(&locations).await;
        let max = max_connections(engine, &locations, 4).await;
        assert!((1..=4).contains(&max), "{max}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_connection_in_time_fails_as_busy() {
    let limits = PostgresLimits { per_server: 2, per_database: 1 };
    on_postgres(limits, async |engine| {
        let (one, two, three) = (engine.tenant().await, engine.tenant().await, engine.tenant().await);
        let held = (one.read().await.unwrap(), two.read().await.unwrap());
        // The limit of a database, and that of the server.
        let (own, shared) = tokio::join!(one.read(), three.read());
        assert!(matches!(own, Err(Error::Busy(_))), "{own:?}");
        assert!(matches!(shared, Err(Error::Busy(_))), "{shared:?}");
        drop(held);
        three.read().await.unwrap().query("SELECT 1", params![]).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_evicted_the_oldest_first() {
    let limits = PostgresLimits { per_server: 2, per_database: 2 };
    on_postgres(limits, async |engine| {
        let mut tenants = Vec::new();
        for _ in 0..3 {
            let tenant = engine.tenant().await;
            tenants.push(tenant);
        }
        let mut pids = Vec::new();
        for index in [0, 1, 0, 2, 0, 1] {
            let mut reader = tenants[index].read().await.unwrap();
            let pid: i64 = reader.query_one("SELECT pg_backend_pid()", params![]).await.unwrap().take().unwrap();
            pids.push(pid);
        }
        assert_eq!(pids[0], pids[2], "kept while there was room");
        assert_eq!(pids[2], pids[4], "kept: it was not the oldest");
        assert_ne!(pids[1], pids[5], "closed: it was the oldest");
    })
    .await;
}
