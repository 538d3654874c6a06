//! Values and parameters.

use database::{MainDatabase, Statement, Value, params};
use domain::Timestamp;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use uuid::Uuid;

use crate::engine::on_every_engine;

/// The first and the last time that PostgreSQL stores, in microseconds since 1970: 4714-11-24 BC, and the end of an i64.
const FIRST: i64 = -210_866_803_200_000_000;
const LAST: i64 = i64::MAX;

type Everything = (Option<i64>, Option<bool>, Option<String>, Option<Vec<u8>>, Option<u128>, Option<i64>);

fn everything() -> impl Strategy<Value = Everything> {
    let ints = prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), any::<i64>()];
    let times = prop_oneof![Just(FIRST), Just(LAST), Just(0), Just(-1), FIRST..=LAST];
    let texts = prop_oneof![Just(String::new()), "[^\0]{0,40}"];
    let uuids = prop_oneof![Just(0), Just(u128::MAX), any::<u128>()];
    (
        proptest::option::of(ints),
        any::<Option<bool>>(),
        proptest::option::of(texts),
        any::<Option<Vec<u8>>>(),
        proptest::option::of(uuids),
        proptest::option::of(times),
    )
}

async fn create_table(main: &MainDatabase) {
    let mut tx = main.begin().await.unwrap();
    let table = "CREATE TABLE everything (number BIGINT PRIMARY KEY, i BIGINT, b BOOLEAN, s TEXT, y BYTEA, u UUID, t TIMESTAMPTZ)";
    tx.execute(table, params![]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn every_value_is_read_as_it_was_written() {
    on_every_engine(async |engine| {
        create_table(&engine.main).await;
        let mut runner = TestRunner::new_with_rng(Config::default(), proptest::test_runner::TestRng::deterministic_rng(Default::default()));
        let mut tx = engine.main.begin().await.unwrap();
        for number in 0..200_i64 {
            let value: Everything = everything().new_tree(&mut runner).unwrap().current();
            let (i, b, s, y, u, t) = value.clone();
            let values = params![number, i, b, s, y, u.map(Uuid::from_u128), t.map(Timestamp::from_micros)];
            let insert = "INSERT INTO everything (number, i, b, s, y, u, t) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING i, b, s, y, u, t";
            let mut returned = tx.query_one(insert, values).await.unwrap();
            let mut read = tx.query_one("SELECT i, b, s, y, u, t FROM everything WHERE number = $1", params![number]).await.unwrap();
            for row in [&mut returned, &mut read] {
                let got: Everything = (
                    row.take().unwrap(),
                    row.take().unwrap(),
                    row.take().unwrap(),
                    row.take().unwrap(),
                    row.take::<Option<Uuid>>().unwrap().map(|uuid| uuid.as_u128()),
                    row.take::<Option<Timestamp>>().unwrap().map(Timestamp::micros),
                );
                assert_eq!(got, value);
            }
        }
        tx.commit().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn times_compare_and_order_alike() {
    on_every_engine(async |engine| {
        create_table(&engine.main).await;
        let mut tx = engine.main.begin().await.unwrap();
        for (number, micros) in [(1_i64, 0), (2, FIRST), (3, LAST), (4, -1)] {
            let insert = "INSERT INTO everything (number, t) VALUES ($1, $2)";
            tx.execute(insert, params![number, Timestamp::from_micros(micros)]).await.unwrap();
        }
        let rows = tx.query("SELECT number FROM everything WHERE t < $1 ORDER BY t", params![Timestamp::from_micros(LAST)]).await.unwrap();
        let numbers: Vec<i64> = rows.into_iter().map(|mut row| row.take().unwrap()).collect();
        assert_eq!(numbers, [2, 4, 1]);
    })
    .await;
}

#[tokio::test]
async fn a_time_before_postgresqls_range_is_an_error_there() {
    on_every_engine(async |engine| {
        if engine.is_postgres() {
            create_table(&engine.main).await;
            for micros in [i64::MIN, FIRST - 1] {
                let mut tx = engine.main.begin().await.unwrap();
                let insert = "INSERT INTO everything (number, t) VALUES (1, $1)";
                tx.execute(insert, params![Timestamp::from_micros(micros)]).await.unwrap_err();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn parameters_are_numbered_by_their_name() {
    on_every_engine(async |engine| {
        let mut reader = engine.main.read().await.unwrap();
        let select = "SELECT CAST($2 AS TEXT), CAST($1 AS TEXT), CAST($2 AS TEXT)";
        let mut row = reader.query_one(select, params!["first", "second"]).await.unwrap();
        let texts: [String; 3] = std::array::from_fn(|_| row.take().unwrap());
        assert_eq!(texts, ["second", "first", "second"]);
    })
    .await;
}

#[tokio::test]
async fn a_missing_parameter_is_an_error_and_not_null() {
    on_every_engine(async |engine| {
        let mut reader = engine.main.read().await.unwrap();
        let select = "SELECT CAST($1 AS TEXT), CAST($2 AS TEXT)";
        assert!(reader.query(select, params!["alone"]).await.is_err());
        assert!(reader.query_one(select, params!["a", "b"]).await.is_ok(), "and affects no later statement");
    })
    .await;
}

#[tokio::test]
async fn a_batch_returns_outcomes_in_order() {
    on_every_engine(async |engine| {
        create_table(&engine.main).await;
        let mut tx = engine.main.begin().await.unwrap();
        let insert =
            |n: i64| Statement::new("INSERT INTO everything (number, i) SELECT $1, count(*) FROM everything RETURNING i", params![n]);
        let outcomes = tx.batch((0..100).map(insert).collect()).await.unwrap();
        let order: Vec<i64> = outcomes.into_iter().map(|mut outcome| outcome.rows.remove(0).take().unwrap()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn a_batch_stops_at_the_first_failure() {
    on_every_engine(async |engine| {
        create_table(&engine.main).await;
        let mut tx = engine.main.begin().await.unwrap();
        let insert = |n: i64| Statement::new("INSERT INTO everything (number) VALUES ($1)", params![n]);
        let broken = Statement::new("INSERT INTO tenants (id) VALUES ($1)", params![Uuid::nil()]);
        let error = tx.batch(vec![insert(1), insert(1), broken]).await.unwrap_err();
        assert!(error.violates("everything_number_key") || error.violates("everything_pkey"), "{error:?}");
        drop(tx);
        let mut reader = engine.main.read().await.unwrap();
        assert!(reader.query("SELECT number FROM everything", params![]).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn returning_reports_the_changed_rows() {
    on_every_engine(async |engine| {
        create_table(&engine.main).await;
        let mut tx = engine.main.begin().await.unwrap();
        for n in 0..3_i64 {
            assert_eq!(tx.execute("INSERT INTO everything (number, i) VALUES ($1, $1)", params![n]).await.unwrap(), 1);
        }
        let rows = tx.query("UPDATE everything SET i = i + 10 WHERE number > $1 RETURNING i", params![0_i64]).await.unwrap();
        let mut numbers: Vec<i64> = rows.into_iter().map(|mut row| row.take().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [11, 12]);
        assert_eq!(tx.execute("UPDATE everything SET s = 'x'", params![]).await.unwrap(), 3);
        assert_eq!(tx.execute("DELETE FROM everything WHERE number = 7", params![]).await.unwrap(), 0);
        assert_eq!(tx.query("DELETE FROM everything RETURNING number", params![]).await.unwrap().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn reading_a_column_as_something_else_is_an_error() {
    on_every_engine(async |engine| {
        let mut reader = engine.main.read().await.unwrap();
        let mut row = reader.query_one("SELECT CAST('x' AS TEXT)", params![]).await.unwrap();
        assert!(row.take::<i64>().is_err());
        assert!(row.take::<String>().is_err(), "there is no second column");
        assert!(reader.query_one("SELECT id FROM users", params![]).await.is_err(), "there is no row");
        let null = reader.query_one("SELECT CAST($1 AS TEXT)", vec![Value::Null]).await.unwrap().take::<Option<String>>();
        assert_eq!(null.unwrap(), None);
    })
    .await;
}
