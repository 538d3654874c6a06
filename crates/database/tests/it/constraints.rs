//! Violated constraints have the same names on every engine.

use database::{Constraint, Error, TenantDatabase, TenantTx, Value, params};
use domain::Timestamp;
use uuid::Uuid;

use crate::engine::{Engine, on_every_engine};

const INSERT_FILE: &str = "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at) \
    VALUES ($1, $2, $3, $4, $5, $6, $6)";
const INSERT_DOCUMENT: &str = "INSERT INTO documents (id, filename, filename_folded, mime_type, file_id, user_id, created_at, updated_at) \
    VALUES ($1, $2, $2, 'text/plain', $3, $1, $4, $4)";

const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

fn uuid(n: u128) -> Value {
    Uuid::from_u128(n).into()
}

fn file(n: u128, content: u8, path: &str, size: i64) -> Vec<Value> {
    params![uuid(n), "0".repeat(32), vec![content; 32], path, size, NOW]
}

async fn insert(tx: &mut TenantTx, sql: &'static str, values: Vec<Value>) -> Result<u64, Error> {
    tx.execute(sql, values).await
}

/// A tenant with file 1, which document 1 refers to.
async fn tenant(engine: &Engine) -> TenantDatabase {
    let tenant = engine.tenant().await;
    let mut tx = tenant.begin().await.unwrap();
    insert(&mut tx, INSERT_FILE, file(1, 1, "one", 1)).await.unwrap();
    insert(&mut tx, INSERT_DOCUMENT, params![uuid(1), "a.txt", uuid(1), NOW]).await.unwrap();
    tx.commit().await.unwrap();
    tenant
}

async fn violated(tenant: &TenantDatabase, sql: &'static str, values: Vec<Value>) -> Constraint {
    let mut tx = tenant.begin().await.unwrap();
    match tx.execute(sql, values).await {
        Err(Error::Violated(constraint)) => constraint,
        other => panic!("no violation: {other:?}"),
    }
}

fn unique(name: &str) -> Constraint {
    Constraint::Unique(name.to_owned())
}

#[tokio::test]
async fn constraints_of_a_tenants_database() {
    on_every_engine(async |engine| {
        let tenant = tenant(engine).await;
        assert_eq!(violated(&tenant, INSERT_FILE, file(1, 2, "two", 1)).await, unique("files_pkey"));
        assert_eq!(violated(&tenant, INSERT_FILE, file(2, 2, "one", 1)).await, unique("files_s3_path_key"));
        assert_eq!(violated(&tenant, INSERT_FILE, file(2, 1, "two", 1)).await, unique("files_sha256_file_size_key"), "partial, composite");
        assert_eq!(violated(&tenant, INSERT_FILE, file(2, 2, "two", 0)).await, Constraint::Check);
        let no_such_file = params![uuid(2), "b.txt", uuid(9), NOW];
        assert_eq!(violated(&tenant, INSERT_DOCUMENT, no_such_file).await, Constraint::ForeignKey);
        assert_eq!(violated(&tenant, "DELETE FROM files WHERE id = $1", params![uuid(1)]).await, Constraint::ForeignKey, "RESTRICT");
        assert_eq!(violated(&tenant, "UPDATE files SET id = $1", params![uuid(7)]).await, Constraint::ForeignKey);
        assert_eq!(violated(&tenant, INSERT_DOCUMENT, params![uuid(2), Value::Null, uuid(1), NOW]).await, Constraint::Check, "NOT NULL");
        let upload = "INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2), ($1, $2)";
        assert_eq!(violated(&tenant, upload, params!["p", NOW]).await, unique("uploads_pkey"));
    })
    .await;
}

#[tokio::test]
async fn a_partial_index_ignores_rows_that_left_it() {
    on_every_engine(async |engine| {
        let tenant = tenant(engine).await;
        let mut tx = tenant.begin().await.unwrap();
        tx.execute("UPDATE files SET condemned_at = $1", params![NOW]).await.unwrap();
        insert(&mut tx, INSERT_FILE, file(2, 1, "two", 1)).await.unwrap();
        tx.commit().await.unwrap();
        let revive = "UPDATE files SET condemned_at = NULL WHERE id = $1";
        assert_eq!(violated(&tenant, revive, params![uuid(1)]).await, unique("files_sha256_file_size_key"));
    })
    .await;
}

#[tokio::test]
async fn constraints_of_the_main_database() {
    on_every_engine(async |engine| {
        let user = "INSERT INTO users (id, first_name, last_name, email, password_hash, is_active, created_at, updated_at) \
             VALUES ($1, 'A', 'B', $2, 'h', $3, $4, $4)";
        let tenant = "INSERT INTO tenants (id, name, server, database_name, provisioning, schema_version, is_active, created_at, updated_at) \
             VALUES ($1, 'T', 's', $2, $3, 0, $4, $5, $5)";
        let member = "INSERT INTO user_tenant_associations (user_id, tenant_id, role, joined_at) VALUES ($1, $2, $3, $4)";
        let mut tx = engine.main.begin().await.unwrap();
        tx.execute(user, params![uuid(1), "ada@example.org", true, NOW]).await.unwrap();
        tx.execute(tenant, params![uuid(1), "tenant_a", "active", true, NOW]).await.unwrap();
        tx.execute(member, params![uuid(1), uuid(1), "admin", NOW]).await.unwrap();
        tx.commit().await.unwrap();

        let attempts = [
            (user, params![uuid(2), "ada@example.org", true, NOW], unique("users_email_key")),
            (tenant, params![uuid(2), "tenant_a", "active", true, NOW], unique("tenants_database_name_key")),
            (tenant, params![uuid(2), "tenant_b", "nonsense", true, NOW], Constraint::Check),
            (member, params![uuid(1), uuid(1), "user", NOW], unique("user_tenant_associations_pkey")),
            (member, params![uuid(1), uuid(9), "user", NOW], Constraint::ForeignKey),
            ("INSERT INTO access_version (id, version) VALUES ($1, 0)", params![1_i64], unique("access_version_pkey")),
        ];
        for (sql, values, expected) in attempts {
            let mut tx = engine.main.begin().await.unwrap();
            match tx.execute(sql, values).await {
                Err(Error::Violated(constraint)) => assert_eq!(constraint, expected),
                other => panic!("{sql}: {other:?}"),
            }
        }

        let mut tx = engine.main.begin().await.unwrap();
        assert_eq!(tx.execute("DELETE FROM users", params![]).await.unwrap(), 1);
        assert!(tx.query("SELECT user_id FROM user_tenant_associations", params![]).await.unwrap().is_empty(), "CASCADE");
    })
    .await;
}

#[tokio::test]
async fn a_value_of_another_type_is_a_bug_and_no_violation() {
    on_every_engine(async |engine| {
        let tenant = tenant(engine).await;
        let mut tx = tenant.begin().await.unwrap();
        let error = tx.execute("UPDATE files SET created_at = $1", params!["yesterday"]).await.unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
    })
    .await;
}
