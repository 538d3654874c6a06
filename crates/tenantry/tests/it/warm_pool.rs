//! The warm pool: databases that PostgreSQL servers keep for new tenants.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use models::{tenants, warm_pool, warm_pool::WarmDatabase};

use crate::{
    process::{Home, Server, WAIT_TIMEOUT},
    scene::{FAILPOINT, repeatedly},
};

/// The creation of a warm database.
pub(crate) const CREATE: &[&str] = &["spare.noted", "spare.made", "spare.ready"];

async fn listed(home: &Home) -> Vec<WarmDatabase> {
    warm_pool::list(&mut home.databases().open().0.read().await.unwrap()).await.unwrap()
}

/// Waits until there are `count` warm databases, all of them ready, and returns them.
async fn filled(home: &Home, count: usize) -> Vec<WarmDatabase> {
    let started = Instant::now();
    loop {
        let spares = listed(home).await;
        if spares.len() == count && spares.iter().all(|spare| spare.is_ready) {
            let names: Vec<_> = spares.iter().map(|spare| format!("tenantry_spare_{}", spare.tenant_id.uuid().simple())).collect();
            assert_eq!(home.databases().db_existing(&names).await.len(), count, "every recorded database exists");
            return spares;
        }
        assert!(started.elapsed() < WAIT_TIMEOUT, "{spares:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serve(home: &Home, size: &str) -> Server {
    home.serve_with(&[("TENANT_WARM_POOL", size)]).await
}

#[tokio::test]
async fn warm_databases_become_tenants_and_are_replaced() {
    let home = Home::new();
    if home.is_sqlite() {
        let server = serve(&home, "3").await;
        server.user("alice").await.creates_tenant("Acme").await;
        assert_eq!(listed(&home).await, [], "SQLite needs no warm pool");
        server.stop().await;
        return;
    }
    let server = serve(&home, "3").await;
    let before = filled(&home, 3).await;
    let alice = server.user("alice").await;
    // More tenants than warm databases: the others get copies of the template.
    let names: Vec<_> = (0..5).map(|n| format!("Acme {n}")).collect();
    let created = join_all(names.iter().map(|name| alice.creates_tenant(name))).await;
    let taken = before.iter().filter(|spare| created.contains(&spare.tenant_id.to_string())).count();
    assert_eq!(taken, 3, "{created:?}");
    for tenant in &created {
        alice.uploads(tenant, "a.txt", tenant.as_str()).await.expect(201);
        assert_eq!(alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 1);
    }
    let after = filled(&home, 3).await;
    assert!(after.iter().all(|spare| !before.contains(spare)));
    server.stop().await;

    // A smaller pool, then none.
    for count in [1, 0] {
        let server = serve(&home, &count.to_string()).await;
        filled(&home, count).await;
        server.stop().await;
    }
    home.assert_consistent().await;
}

#[tokio::test]
async fn two_instances_share_one_pool() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let (one, two) = (serve(&home, "2").await, serve(&home, "2").await);
    filled(&home, 2).await;
    let alice = one.user("alice").await;
    let alice_at_two = two.known(&alice);
    for n in 0..4 {
        let name = format!("Acme {n}");
        tokio::join!(alice.creates_tenant(&name), alice_at_two.creates_tenant(&name));
    }
    filled(&home, 2).await;
    one.stop().await;
    two.stop().await;
    let (main, _) = home.databases().open();
    assert_eq!(tenants::list(&mut main.read().await.unwrap()).await.unwrap().len(), 8);
    home.assert_consistent().await;
}

#[test]
fn a_crash_while_provisioning_a_warm_database_leaves_no_unrecorded_database() {
    repeatedly(async || {
        let home = Home::new();
        if home.is_sqlite() {
            return;
        }
        for failpoint in CREATE {
            home.spawn(&[("TENANT_WARM_POOL", "1"), (FAILPOINT, failpoint)]).assert_aborted(failpoint).await;
            let interrupted = listed(&home).await;
            home.expire_leases().await;
            let server = serve(&home, "1").await;
            filled(&home, 1).await;
            let removed: Vec<_> = interrupted.iter().filter(|spare| !spare.is_ready).collect();
            let names: Vec<_> = removed.iter().map(|spare| format!("tenantry_spare_{}", spare.tenant_id.uuid().simple())).collect();
            assert_eq!(home.databases().db_existing(&names).await, Vec::<String>::new(), "{failpoint}");
            server.stop().await;
            // Empties the pool for the next failpoint.
            let server = serve(&home, "0").await;
            filled(&home, 0).await;
            server.stop().await;
        }
    });
}
