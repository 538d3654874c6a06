//! Tenants' databases: created, found, kept apart, dropped.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use database::{Error, TenantDatabase, params};
use domain::TenantPlace;

use crate::engine::{Engine, on_every_engine};

async fn remember(tenant: &TenantDatabase, text: &str) {
    let mut tx = tenant.begin().await.unwrap();
    let insert = "INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2)";
    tx.execute(insert, params![text, domain::Timestamp::from_micros(0)]).await.unwrap();
    tx.commit().await.unwrap();
}

/// Writes, with a statement of its own or with the commit.
async fn tries_to_write(tenant: &TenantDatabase, at_once: bool) -> database::Result<()> {
    const DELETE: &str = "DELETE FROM uploads";
    let mut tx = tenant.begin().await?;
    if at_once {
        tx.execute(DELETE, params![]).await?;
    } else {
        tx.defer(DELETE, params![]);
    }
    tx.commit().await
}

async fn remembered(tenant: &TenantDatabase) -> Vec<String> {
    let rows = tenant.read().await.unwrap().query("SELECT s3_path FROM uploads ORDER BY s3_path", params![]).await.unwrap();
    rows.into_iter().map(|mut row| row.take().unwrap()).collect()
}

async fn refused(engine: &Engine, location: &TenantPlace) {
    let (_, tenants) = engine.other_process();
    let tenant = tenants.open(location).unwrap();
    for _ in 0..2 {
        let reading = tenant.read().await;
        assert!(matches!(reading, Err(Error::Unavailable(_))), "{reading:?}");
        for at_once in [true, false] {
            let writing = tries_to_write(&tenant, at_once).await;
            assert!(matches!(writing, Err(Error::Unavailable(_))), "{writing:?}");
        }
    }
}

#[tokio::test]
async fn only_its_owner_may_read_a_file() {
    on_every_engine(async |engine| {
        let location = engine.location();
        let Some(file) = engine.file_of(&location) else { return };
        engine.create(&location).await;
        remember(&engine.tenants.open(&location).unwrap(), "secret").await;
        for path in [file.parent().unwrap().to_owned(), file.clone(), file.with_extension("sqlite3-wal")] {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
    })
    .await;
}

#[tokio::test]
async fn creation_can_be_repeated() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        remember(&engine.tenants.open(&location).unwrap(), "kept").await;
        for _ in 0..2 {
            engine.create(&location).await;
        }
        assert_eq!(remembered(&engine.tenants.open(&location).unwrap()).await, ["kept"]);
    })
    .await;
}

/// Two instances that resume the same interrupted creation create the same database at once.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creations_create_one_database() {
    on_every_engine(async |engine| {
        for _ in 0..3 {
            let location = engine.location();
            let creators: Vec<_> = (0..6)
                .map(|n| {
                    let (location, tenants) = (location.clone(), engine.other_process().1);
                    tokio::spawn(async move {
                        tenants.create(&location).await.unwrap();
                        tenants.finish(&location).await.unwrap();
                        remember(&tenants.open(&location).unwrap(), &n.to_string()).await;
                    })
                })
                .collect();
            for creator in creators {
                creator.await.unwrap();
            }
            assert_eq!(remembered(&engine.tenants.open(&location).unwrap()).await, ["0", "1", "2", "3", "4", "5"]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_databases_are_created_at_once() {
    on_every_engine(async |engine| {
        let tenants = engine.other_process().1;
        let creators: Vec<_> = (0..8)
            .map(|_| {
                let (location, tenants) = (engine.location(), tenants.clone());
                tokio::spawn(async move { tenants.create(&location).await })
            })
            .collect();
        for creator in creators {
            creator.await.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_creation_is_completed() {
    on_every_engine(async |engine| {
        let location = engine.location();
        match engine.file_of(&location) {
            Some(file) => {
                // The worst case: another database's file and log, half-written.
                let other = engine.location();
                engine.create(&other).await;
                let tenant = engine.tenants.open(&other).unwrap();
                remember(&tenant, "another tenant's").await;
                let unfinished = |suffix: &str| file.with_extension(format!("new{suffix}"));
                let log = engine.file_of(&other).unwrap().with_extension("sqlite3-wal");
                assert!(fs::metadata(&log).unwrap().len() > 0);
                fs::copy(&log, unfinished("-wal")).unwrap();
                fs::write(unfinished(""), b"SQLite format 3\0 and then the power failed").unwrap();
                fs::write(unfinished("-shm"), b"garbage").unwrap();
            }
            None => {
                engine.admin().await.batch_execute(&format!("CREATE DATABASE {}", location.database)).await.unwrap();
            }
        }
        engine.create(&location).await;
        assert!(remembered(&engine.tenants.open(&location).unwrap()).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn another_tenants_database_is_refused() {
    on_every_engine(async |engine| {
        let (ours, theirs) = (engine.location(), engine.location());
        for location in [&ours, &theirs] {
            engine.create(location).await;
        }
        remember(&engine.tenants.open(&ours).unwrap(), "ours").await;

        let misled = TenantPlace { database: theirs.database.clone(), ..ours.clone() };
        refused(engine, &misled).await;
        // An open handle does not bypass the check, and goes on working.
        assert!(matches!(engine.tenants.open(&misled).unwrap().read().await, Err(Error::Unavailable(_))));
        assert!(matches!(engine.tenants.migrate(&misled).await, Err(Error::Unavailable(_))));
        assert_eq!(remembered(&engine.tenants.open(&ours).unwrap()).await, ["ours"]);
    })
    .await;
}

#[tokio::test]
async fn swapped_databases_are_refused() {
    on_every_engine(async |engine| {
        let (ours, theirs) = (engine.location(), engine.location());
        for location in [&ours, &theirs] {
            engine.create(location).await;
        }
        swap(engine, &ours, &theirs).await;
        refused(engine, &ours).await;
        refused(engine, &theirs).await;
    })
    .await;
}

/// Under the open handles, as when an operator restores the wrong backup.
async fn swap(engine: &Engine, one: &TenantPlace, other: &TenantPlace) {
    if let (Some(one), Some(other)) = (engine.file_of(one), engine.file_of(other)) {
        let aside = one.with_extension("aside");
        for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
            fs::rename(from, to).unwrap();
        }
        // For so long readers may assume the same file.
        tokio::time::sleep(Duration::from_millis(300)).await;
    } else {
        engine.close_idle(&[one.clone(), other.clone()]).await;
        let admin = engine.admin().await;
        let (one, other) = (one.database.as_str(), other.database.as_str());
        let aside = format!("{one}_aside");
        for (from, to) in [(one, aside.as_str()), (other, one), (&aside, other)] {
            admin.batch_execute(&format!("ALTER DATABASE {from} RENAME TO {to}")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_database_without_identity_is_refused() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        let mut tx = engine.tenants.open(&location).unwrap().begin().await.unwrap();
        tx.execute("DELETE FROM tenant_identity", params![]).await.unwrap();
        tx.commit().await.unwrap();
        refused(engine, &location).await;
    })
    .await;
}

#[tokio::test]
async fn a_missing_database_is_unavailable() {
    on_every_engine(async |engine| {
        let location = engine.location();
        let tenant = engine.tenants.open(&location).unwrap();
        assert!(matches!(tenant.read().await, Err(Error::Unavailable(_))));
        assert!(matches!(tries_to_write(&tenant, true).await, Err(Error::Unavailable(_))));
        assert!(matches!(tries_to_write(&tenant, false).await, Err(Error::Unavailable(_))));
        assert!(matches!(engine.tenants.migrate(&location).await, Err(Error::Unavailable(_))));
        assert!(engine.file_of(&location).is_none_or(|file| !file.exists()), "looking for it does not create it");
        engine.create(&location).await;
        remember(&tenant, "the same handle finds it").await;

        let nowhere = TenantPlace { server: "gone".to_owned(), ..location };
        assert!(matches!(engine.tenants.open(&nowhere), Err(Error::Unavailable(_))));
        assert!(engine.tenants.ping("gone").await.is_err());
        engine.tenants.ping(crate::engine::SERVER).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn dropping_can_be_repeated() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        let tenant = engine.tenants.open(&location).unwrap();
        remember(&tenant, "lost").await;
        assert!(engine.tenants.exists(&location).await.unwrap());
        for _ in 0..2 {
            engine.tenants.drop_database(&location).await.unwrap();
            assert!(!engine.tenants.exists(&location).await.unwrap());
        }
        if let Some(file) = engine.file_of(&location) {
            for remnant in ["sqlite3-wal", "sqlite3-shm", "new"] {
                fs::write(file.with_extension(remnant), "remnant").unwrap();
                assert!(engine.tenants.exists(&location).await.unwrap(), "{remnant}");
                engine.tenants.drop_database(&location).await.unwrap();
                assert!(!engine.tenants.exists(&location).await.unwrap(), "{remnant}");
            }
        }
        assert!(matches!(engine.tenants.open(&location).unwrap().read().await, Err(Error::Unavailable(_))));
        engine.create(&location).await;
        assert!(remembered(&engine.tenants.open(&location).unwrap()).await.is_empty());
        remember(&engine.tenants.open(&location).unwrap(), "new").await;
        drop(tenant);
        assert_eq!(remembered(&engine.tenants.open(&location).unwrap()).await, ["new"], "closing the old one left the new one intact");
    })
    .await;
}

#[tokio::test]
async fn no_statement_reaches_another_file() {
    on_every_engine(async |engine| {
        let tenant = engine.tenant().await;
        for sql in ["ATTACH DATABASE 'main.sqlite3' AS other", "DETACH DATABASE main", "VACUUM INTO 'copy.sqlite3'"] {
            assert!(tenant.read().await.unwrap().query(sql, params![]).await.is_err(), "{sql}");
            assert!(tenant.begin().await.unwrap().query(sql, params![]).await.is_err(), "{sql}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tenants_than_handles_are_kept() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        let early = engine.tenants.open(&location).unwrap();
        let mut tx = early.begin().await.unwrap();
        let insert = "INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2)";
        tx.execute(insert, params!["early", domain::Timestamp::from_micros(0)]).await.unwrap();
        for _ in 0..3_000 {
            let mut elsewhere = location.clone();
            elsewhere.tenant_id = domain::TenantId::generate(&domain::SystemClock);
            engine.tenants.open(&elsewhere).unwrap();
        }
        // By now the file has a second handle, which waits for the first one's transaction.
        let late = tokio::spawn({
            let late = engine.tenants.open(&location).unwrap();
            async move { remember(&late, "late").await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        tx.commit().await.unwrap();
        late.await.unwrap();
        assert_eq!(remembered(&early).await, ["early", "late"]);
    })
    .await;
}
