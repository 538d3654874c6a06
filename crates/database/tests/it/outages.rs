//! PostgreSQL servers that end connections, don't answer, stop and start again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use database::{Error, MainDatabase, PostgresLimits, Result, params};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

use crate::engine::{Engine, on_postgres, threads};

const LIMITS: PostgresLimits = PostgresLimits { per_server: 4, per_database: 4 };

async fn read(main: &MainDatabase) -> Result<()> {
    main.read().await?.query("SELECT id FROM users", params![]).await.map(drop)
}

async fn write(main: &MainDatabase) -> Result<()> {
    let mut tx = main.begin().await?;
    tx.execute("UPDATE access_version SET version = version + 1", params![]).await?;
    tx.commit().await
}

async fn kill_all(engine: &Engine, admin: &tokio_postgres::Client) -> usize {
    let kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
    admin.query(kill, &[&engine.main_name()]).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_connections_cost_one_error_at_most() {
    on_postgres(LIMITS, async |engine| {
        let admin = engine.admin().await;
        for _ in 0..10 {
            let transactions = futures_util::future::join_all((0..4).map(|_| engine.main.begin())).await;
            assert!(transactions.iter().all(Result::is_ok));
            drop(transactions);
            assert_eq!(kill_all(engine, &admin).await, 4);
            match write(&engine.main).await {
                Ok(()) | Err(Error::Unavailable(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
            write(&engine.main).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_killed_in_a_transaction_is_unavailable() {
    on_postgres(LIMITS, async |engine| {
        let admin = engine.admin().await;
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute("UPDATE access_version SET version = 7", params![]).await.unwrap();
        kill_all(engine, &admin).await;
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        read(&engine.main).await.unwrap();

        let mut reader = engine.main.read().await.unwrap();
        let (slow, ()) = tokio::join!(reader.query(crate::engine::SLOW, params![]), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            kill_all(engine, &admin).await;
        });
        assert!(matches!(slow, Err(Error::Unavailable(_))), "{slow:?}");
        drop(reader);
        read(&engine.main).await.unwrap();
    })
    .await;
}

/// A proxy between a client and the server that can be unplugged.
struct Cable {
    address: SocketAddr,
    plugged: watch::Sender<bool>,
}

impl Cable {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (plugged, _) = watch::channel(true);
        let state = plugged.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut state = state.subscribe();
                tokio::spawn(async move {
                    if *state.borrow() {
                        let mut server = TcpStream::connect(server).await.unwrap();
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut server) => {}
                            _ = state.wait_for(|plugged| !plugged) => {}
                        }
                    }
                });
            }
        });
        Self { address, plugged }
    }
}

fn server_of(url: &str) -> SocketAddr {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("no TCP") };
    format!("{host}:{}", config.get_ports()[0]).parse().unwrap()
}

fn through(address: SocketAddr, name: &str) -> MainDatabase {
    let url = format!("postgres://postgres@{address}/{name}?sslmode=disable").parse().unwrap();
    MainDatabase::new(&url, &threads(), LIMITS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_back_is_used_again() {
    on_postgres(LIMITS, async |engine| {
        let cable = Cable::to(server_of(&engine.main_url())).await;
        let main = Arc::new(through(cable.address, engine.main_name()));
        for _ in 0..3 {
            write(&main).await.unwrap();
            cable.plugged.send_replace(false);
            for _ in 0..6 {
                let (reading, writing) = timeout(Duration::from_secs(6), async { tokio::join!(read(&main), write(&main)) }).await.unwrap();
                assert!(matches!(reading, Err(Error::Unavailable(_))), "{reading:?}");
                assert!(matches!(writing, Err(Error::Unavailable(_))), "{writing:?}");
            }
            cable.plugged.send_replace(true);
            write(&main).await.unwrap();
        }
        let all = futures_util::future::join_all((0..4).map(|_| main.read())).await;
        assert!(all.iter().all(Result::is_ok), "a permit was lost");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let main = through(address, "postgres");
    assert!(matches!(read(&main).await, Err(Error::Unavailable(_))));
    assert!(matches!(write(&main).await, Err(Error::Unavailable(_))));
    assert!(matches!(main.migrate().await, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let main = through(listener.local_addr().unwrap(), "postgres");
    let attempts = async { tokio::join!(read(&main), write(&main)) };
    let (reading, writing) = timeout(Duration::from_secs(8), attempts).await.unwrap();
    assert!(matches!(reading, Err(Error::Unavailable(_))), "{reading:?}");
    assert!(matches!(writing, Err(Error::Unavailable(_))), "{writing:?}");
}
