//! Databases that PostgreSQL servers keep ready for tenants to come.

use std::{os::unix::process::ExitStatusExt, time::Instant};

use futures_util::future::join_all;
use models::{tenants, warm_pool, warm_pool::Spare};
use rustix::process::Signal;

use crate::process::{Home, PATIENCE, Server, repeatedly};

/// A crash at every step of making a spare.
pub(crate) const MAKE_SPARE: &[&str] = &["spare.noted", "spare.made", "spare.ready"];

async fn listed(home: &Home) -> Vec<Spare> {
    warm_pool::list(&mut home.databases().open().0.read().await.unwrap()).await.unwrap()
}

/// Waits until there are so many spares, all of them ready and there, and answers them.
async fn filled(home: &Home, count: usize) -> Vec<Spare> {
    let started = Instant::now();
    loop {
        let spares = listed(home).await;
        if spares.len() == count && spares.iter().all(|spare| spare.is_ready) {
            let names: Vec<_> = spares.iter().map(|spare| format!("tenantry_spare_{}", spare.tenant_id.uuid().simple())).collect();
            assert_eq!(home.databases().db_existing(&names).await.len(), count, "a spare that is noted is there");
            return spares;
        }
        assert!(started.elapsed() < PATIENCE, "{spares:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn serve(home: &Home, spares: &str, failpoint: &str) -> Server {
    home.serve_with(&[("TENANT_WARM_POOL", spares), ("FAILPOINT", failpoint)]).await
}

#[tokio::test]
async fn spares_become_tenants_and_are_replaced() {
    let home = Home::new();
    if home.is_sqlite() {
        let server = serve(&home, "3", "").await;
        server.user("alice").await.creates_tenant("Acme").await;
        assert_eq!(listed(&home).await, [], "a file is made faster than it is found");
        server.stop().await;
        return;
    }
    let server = serve(&home, "3", "").await;
    let before = filled(&home, 3).await;
    let alice = server.user("alice").await;
    // More than there are: each gets one of its own, or a copy of the template.
    let names: Vec<_> = (0..5).map(|n| format!("Acme {n}")).collect();
    let made = join_all(names.iter().map(|name| alice.creates_tenant(name))).await;
    let taken = before.iter().filter(|spare| made.contains(&spare.tenant_id.to_string())).count();
    assert_eq!(taken, 3, "{made:?}");
    for tenant in &made {
        alice.uploads(tenant, "a.txt", tenant.as_str()).await.expect(201);
        assert_eq!(alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 1);
    }
    let after = filled(&home, 3).await;
    assert!(after.iter().all(|spare| !before.contains(spare)));
    server.stop().await;

    // Fewer are wanted, then none.
    for count in [1, 0] {
        let server = serve(&home, &count.to_string(), "").await;
        filled(&home, count).await;
        server.stop().await;
    }
    assert_eq!(home.broken().await, Vec::<String>::new());
}

#[tokio::test]
async fn two_instances_keep_one_pool() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let (one, two) = (serve(&home, "2", "").await, serve(&home, "2", "").await);
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
    assert_eq!(home.broken().await, Vec::<String>::new());
}

#[test]
fn a_crash_in_the_making_of_a_spare_leaves_none_that_nobody_knows_of() {
    repeatedly(async || {
        let home = Home::new();
        if home.is_sqlite() {
            return;
        }
        for failpoint in MAKE_SPARE {
            let mut server = home.serve_doomed(&[("TENANT_WARM_POOL", "1"), ("FAILPOINT", failpoint)]);
            assert_eq!(server.ended().await.signal(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
            println!("{failpoint}: hit once");
            let left: Vec<_> = listed(&home).await;
            home.forget_leases().await;
            let server = serve(&home, "1", "").await;
            filled(&home, 1).await;
            let gone: Vec<_> = left.iter().filter(|spare| !spare.is_ready).collect();
            let names: Vec<_> = gone.iter().map(|spare| format!("tenantry_spare_{}", spare.tenant_id.uuid().simple())).collect();
            assert_eq!(home.databases().db_existing(&names).await, Vec::<String>::new(), "{failpoint}");
            server.stop().await;
            // The next round begins with none.
            let server = serve(&home, "0", "").await;
            filled(&home, 0).await;
            server.stop().await;
        }
    });
}
