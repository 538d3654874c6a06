//! Migrations run once, however many processes start them, and never after an edited one.

use database::{Error, Migrated, main_schema_version, params, tenant_schema_version};

use crate::engine::{Engine, on_every_engine};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_migrators_migrate_once() {
    on_every_engine(async |engine| {
        engine.main.erase().await.unwrap();
        let migrators: Vec<_> = (0..8)
            .map(|_| {
                let main = engine.other_process().0;
                tokio::spawn(async move { main.migrate().await.unwrap() })
            })
            .collect();
        let mut outcomes = Vec::new();
        for migrator in migrators {
            outcomes.push(migrator.await.unwrap());
        }
        let latest = main_schema_version();
        outcomes.sort_by_key(|migrated| migrated.from);
        let mut expected = vec![Migrated { from: latest, to: latest }; 8];
        expected[0].from = 0;
        assert_eq!(outcomes, expected);
        let mut reader = engine.main.read().await.unwrap();
        assert_eq!(reader.query("SELECT version FROM schema_migrations", params![]).await.unwrap().len() as i64, latest);
    })
    .await;
}

/// The control: without the lock all but one of them fail.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_lock_migrators_fail() {
    on_every_engine(async |engine| {
        if !engine.is_postgres() {
            return;
        }
        let statements = include_str!("../../migrations/tenant/0001_documents.sql").replace(") STRICT;", ");");
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(engine.admin_of(engine.main_name()).await);
        }
        engine.main.erase().await.unwrap();
        let statements = format!("BEGIN; {statements} COMMIT;");
        let outcomes = futures_util::future::join_all(clients.iter().map(|client| client.batch_execute(&statements))).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    })
    .await;
}

#[tokio::test]
async fn an_edited_migration_is_refused() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        for main in [true, false] {
            let edit = "UPDATE schema_migrations SET checksum = 'edited' WHERE version = 1";
            if main {
                let mut tx = engine.main.begin().await.unwrap();
                tx.execute(edit, params![]).await.unwrap();
                tx.commit().await.unwrap();
                engine.main.migrate().await.unwrap_err();
            } else {
                let mut tx = engine.tenants.open(&location).unwrap().begin().await.unwrap();
                tx.execute(edit, params![]).await.unwrap();
                tx.commit().await.unwrap();
                engine.tenants.migrate(&location).await.unwrap_err();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    on_every_engine(async |engine| {
        let newer = main_schema_version() + 1;
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'newer', 'x')", params![newer]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(engine.main.migrate().await.unwrap(), Migrated { from: newer, to: newer });
    })
    .await;
}

#[tokio::test]
async fn a_migration_succeeds_after_erasing() {
    on_every_engine(async |engine| {
        for _ in 0..2 {
            engine.main.erase().await.unwrap();
        }
        assert!(engine.main.read().await.unwrap().query("SELECT id FROM users", params![]).await.is_err());
        assert_eq!(engine.main.migrate().await.unwrap(), Migrated { from: 0, to: main_schema_version() });
        assert!(engine.main.read().await.unwrap().query("SELECT id FROM users", params![]).await.unwrap().is_empty());
    })
    .await;
}

/// Seeded once: a migration gave the new database schema and identity, and the loss of the tenant's documents went unnoticed.
#[tokio::test]
async fn a_database_that_was_lost_and_created_again_is_not_taken_for_the_tenants() {
    on_every_engine(async |engine| {
        let location = engine.location();
        engine.create(&location).await;
        match engine.file_of(&location) {
            Some(file) => std::fs::write(file, []).unwrap(),
            None => {
                let (admin, name) = (engine.admin().await, &location.database);
                admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
                admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
            }
        }
        let migrated = engine.other_process().1.migrate(&location).await;
        assert!(matches!(migrated, Err(Error::Unavailable(_))), "{migrated:?}");
        // The migration changed nothing: the database is still empty.
        assert_eq!(engine.other_process().1.finish(&location).await.unwrap().from, 0);
    })
    .await;
}

/// A tenant's file is copied from a template; running the migrations on an empty file must give the same schema.
#[tokio::test]
async fn a_template_has_the_migrated_schema() {
    on_every_engine(async |engine| {
        let (copied, migrated) = (engine.location(), engine.location());
        let Some(file) = engine.file_of(&migrated) else { return };
        engine.create(&copied).await;
        std::fs::write(&file, []).unwrap();
        let outcome = engine.tenants.finish(&migrated).await.unwrap();
        assert_eq!(outcome, Migrated { from: 0, to: tenant_schema_version() });
        assert_eq!(schema(engine, &copied).await, schema(engine, &migrated).await);
    })
    .await;
}

async fn schema(engine: &Engine, location: &domain::TenantPlace) -> Vec<String> {
    let mut reader = engine.tenants.open(location).unwrap().read().await.unwrap();
    let mut schema = Vec::new();
    let names = "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name";
    let ledger = "SELECT version || ' ' || name || ' ' || checksum FROM schema_migrations ORDER BY version";
    for query in [names, ledger] {
        schema.extend(reader.query(query, params![]).await.unwrap().into_iter().map(|mut row| row.take::<String>().unwrap()));
    }
    assert!(schema.len() > 10, "{schema:?}");
    schema
}

/// A migration changes the type of a prepared statement's column, while connections are open. Seeded: without preparing it again,
/// every read on the old connection failed.
#[tokio::test]
async fn statements_are_prepared_again_when_the_schema_changes() {
    on_every_engine(async |engine| {
        if !engine.is_postgres() {
            // SQLite prepares them again by itself.
            return;
        }
        let location = engine.location();
        engine.create(&location).await;
        let database = engine.tenants.open(&location).unwrap();
        let select = "SELECT s3_path FROM uploads";
        let admin = engine.admin_of(location.database.as_str()).await;
        for new_type in ["VARCHAR(400)", "TEXT", "VARCHAR(300)"] {
            database.read().await.unwrap().query(select, params![]).await.unwrap();
            let mut tx = database.begin().await.unwrap();
            tx.query(select, params![]).await.unwrap();
            tx.commit().await.unwrap();
            admin.batch_execute(&format!("ALTER TABLE uploads ALTER COLUMN s3_path TYPE {new_type}")).await.unwrap();
            database.read().await.unwrap().query(select, params![]).await.unwrap();
            // Only the caller can run a transaction again.
            let mut tx = database.begin().await.unwrap();
            let first = tx.query(select, params![]).await.map(drop);
            drop(tx);
            assert!(matches!(first, Ok(()) | Err(Error::Busy(_))), "{first:?}");
            let mut tx = database.begin().await.unwrap();
            tx.query(select, params![]).await.unwrap();
            tx.commit().await.unwrap();
        }
    })
    .await;
}
