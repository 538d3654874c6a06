//! Servers that take connections and never answer: worse than those that are gone, since only a clock finds them out.

use std::{
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

use serde_json::json;
use testkit::{Behaviour, FaultyProxy};
use url::Url;

use crate::{
    migrations::{Later, open},
    placement::second_postgres,
    process::Home,
};

/// A proxy before a PostgreSQL server, and the URL through it.
async fn before(url: &str) -> (FaultyProxy, String) {
    let mut url = Url::parse(url).unwrap();
    let target = (url.host_str().unwrap(), url.port().unwrap_or(5432)).to_socket_addrs().unwrap().next().unwrap();
    let proxy = FaultyProxy::start(target).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.address().port())).unwrap();
    (proxy, url.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_is_found_out_once_and_its_tenants_wait() {
    let home = Home::new();
    let Some(second) = second_postgres(&home) else { return };
    let (proxy, second) = before(&second).await;
    let home = home.with_server("second", &second);
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let mut tenants = Vec::new();
    for n in 0..12 {
        tenants.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    let later = Later::new(&home, &["ALTER TABLE documents ADD COLUMN note TEXT;"]);

    proxy.set_and_drop(Behaviour::BlackHole);
    let began = Instant::now();
    let told = later.run(&["migrate", "--json"]).expect(1).json();
    let took = began.elapsed();
    assert_eq!((&told["migrated"], told["postponed"].as_array().unwrap().len(), &told["failed"]), (&json!(6), 6, &json!([])), "{told}");
    // Not six tenants, each for the whole time that a server may take, three times over.
    assert!(took < Duration::from_secs(40), "{took:?}");
    // Nobody was closed, and who works on the other server notices nothing.
    let answers = futures_util::future::join_all(tenants.iter().map(async |tenant| {
        let began = Instant::now();
        let reply = alice.get(&format!("/api/tenants/{tenant}/documents")).await;
        ((reply.status.as_u16(), reply.code().to_owned()), began.elapsed())
    }));
    let answers = answers.await;
    let (there, gone): (Vec<_>, Vec<_>) = answers.iter().partition(|(answer, _)| *answer == open());
    assert_eq!((there.len(), gone.len()), (6, 6), "{answers:?}");
    assert!(gone.iter().all(|(answer, _)| *answer == (503, "service_unavailable".to_owned())), "{answers:?}");
    assert!(there.iter().all(|(_, took)| *took < Duration::from_secs(2)), "{answers:?}");

    proxy.set_and_drop(Behaviour::Pass);
    let told = later.run(&["migrate", "--json"]).expect(0).json();
    assert_eq!((&told["migrated"], &told["up_to_date"]), (&json!(6), &json!(6)), "{told}");
    for tenant in &tenants {
        server.sees(&alice, tenant, &open()).await;
    }
    home.settle(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_main_database_that_goes_silent_ends_a_migration_and_shows_in_readiness() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let (_, main) = home.databases().environment().remove(0);
    let (proxy, through) = before(&main).await;
    // Tenants' databases are reached past the proxy.
    let servers = format!("main={main}");
    let variables = [("DATABASE_URL", through.as_str()), ("TENANT_DATABASE_URLS", servers.as_str())];
    let server = home.serve_with(&variables).await;
    let alice = server.user("alice").await;
    for n in 0..3 {
        alice.creates_tenant(&format!("Acme {n}")).await;
    }
    server.stranger().get("/health/ready").await.expect(200);

    proxy.set_and_drop(Behaviour::BlackHole);
    let began = Instant::now();
    let ready = server.stranger().get("/health/ready").await.expect_error(503, "not_ready");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(ready.json["error"]["details"]["database"], "down", "{}", ready.json);
    server.stranger().get("/health").await.expect(200);
    alice.get("/api/users/me").await.expect_error(503, "service_unavailable");
    // The problem is the main database's, and none of the tenants'.
    let later = Later::new(&home, &["ALTER TABLE documents ADD COLUMN note TEXT;"]);
    let began = Instant::now();
    let mut command = later.command(&["migrate"]);
    let ended = crate::process::Ran::of(command.envs(variables));
    let complaint = ended.complaint(1);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert!(!complaint.contains("Acme"), "{complaint}");

    proxy.set_and_drop(Behaviour::Pass);
    let recovered = async {
        while server.stranger().get("/health/ready").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("ready again without a restart");
    let mut command = later.command(&["migrate", "--json"]);
    assert_eq!(crate::process::Ran::of(command.envs(variables)).expect(0).json()["migrated"], 3);
    home.settle(server).await;
}
