//! A crash at every failpoint.
//!
//! The constants name the failpoints of each subject, with what must hold after a crash there. The tests of uploads, versions,
//! moves, migrations, events and the warm pool have constants of their own.

pub(crate) mod documents;
pub(crate) mod sessions;
pub(crate) mod tenants;

use std::{collections::BTreeSet, fs, path::Path};

use crate::{events, migrations, moves, process::Home, scene::FAILPOINT, uploads, versions, warm_pool};

#[test]
fn every_failpoint_is_tested() {
    let with_outcome = [
        documents::UPLOAD,
        documents::STORE_FILE,
        documents::STORE_S3,
        documents::DELETE_DOCUMENT,
        documents::DELETE_FILE,
        tenants::CREATE,
        tenants::CREATE_FILE,
        tenants::DELETE,
        moves::MOVE,
        moves::ROLLBACK,
        uploads::ABORT,
        versions::TRASH,
    ]
    .concat();
    let others = [
        events::PUBLISH,
        events::DRAIN,
        documents::DUPLICATE,
        documents::RACE,
        documents::COLLECT,
        tenants::DISCARD,
        sessions::LOG_IN,
        sessions::REFRESH,
        warm_pool::CREATE,
        migrations::MIGRATE,
        moves::UNDO_MOVE,
        uploads::TUS,
        uploads::DIRECT,
        uploads::DIRECT_ON_S3,
        uploads::EXPIRE,
    ]
    .concat();
    let of_versions = versions::VERSIONS.iter().map(|(name, _)| *name);
    let tested: BTreeSet<String> = with_outcome.iter().map(|(name, _)| *name).chain(others).chain(of_versions).map(str::to_owned).collect();
    let mut in_sources = BTreeSet::new();
    find_failpoints(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut in_sources);
    assert!(in_sources.len() > 20, "{in_sources:?}");
    assert_eq!(tested, in_sources);
}

/// The names of all failpoints in the sources of our crates.
fn find_failpoints(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            find_failpoints(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(path).unwrap();
            names.extend(source.split("failpoint!(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
}

#[test]
fn a_failpoint_can_abort_at_its_nth_hit() {
    let home = Home::new();
    let init = |failpoint: &str| {
        let variables = [
            ("ADMIN_EMAIL", "ada@example.com"),
            ("ADMIN_PASSWORD", "correct horse 1"),
            ("ADMIN_FIRST_NAME", "Ada"),
            ("ADMIN_LAST_NAME", "Lovelace"),
            ("TEST_TENANT_NAME", "Acme"),
            (FAILPOINT, failpoint),
        ];
        home.command(["init", "--create-admin", "--create-test-tenant"]).envs(variables).output().unwrap().status.code()
    };
    assert_eq!(init("tenant.reserved:2"), Some(0));
    home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0);
    assert_eq!(init("tenant.reserved:1"), None);
    home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0);
}
