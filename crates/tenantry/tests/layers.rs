//! The layers: no crate depends on a crate that its layer may not use.

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The crates that each crate may depend on: `domain` and the layer below. The HTTP server and the form reader may depend on none. The program may use
/// what it assembles, and the test kit and the benchmark what they drive. The test kit may only be a dev-dependency, and no crate may
/// use the benchmark.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("form-data", &[]),
    ("http-server", &[]),
    ("database", &["domain"]),
    ("models", &["domain", "database"]),
    ("services", &["domain", "models"]),
    ("api", &["domain", "services", "form-data", "http-server"]),
    ("worker", &["domain", "services"]),
    ("tenantry", &["domain", "database", "models", "services", "api", "worker", "http-server"]),
    ("testkit", &["domain", "database", "models", "services", "api", "worker", "http-server"]),
    ("bench", &["domain", "database", "models", "services", "api"]),
];

#[test]
fn no_layer_is_skipped() {
    let found = violations(&our_dependencies().unwrap());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_skipped_layer_is_detected() {
    let graph = |crate_name: &str, dependency: &str| vec![(crate_name.to_owned(), dependency.to_owned())];
    for (crate_name, dependency) in [
        ("api", "models"),
        ("services", "database"),
        ("worker", "api"),
        ("models", "services"),
        ("domain", "database"),
        ("http-server", "domain"),
        ("services", "testkit"),
        ("tenantry", "testkit"),
        ("tenantry", "bench"),
    ] {
        let found = violations(&graph(crate_name, dependency));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("`{crate_name}` depends on `{dependency}`, but may name only ")), "{}", found[0]);
    }
    assert_eq!(violations(&graph("mail", "domain")), ["`mail` is in no layer: add it to ALLOWED_DEPENDENCIES"]);
    assert!(violations(&graph("api", "services")).is_empty());
}

#[test]
fn the_dependencies_are_read() {
    let edges = our_dependencies().unwrap();
    for (crate_name, dependency) in [("api", "services"), ("services", "models"), ("models", "database"), ("database", "domain")] {
        assert!(edges.contains(&(crate_name.to_owned(), dependency.to_owned())), "{crate_name} -> {dependency}: {edges:?}");
    }
}

/// The violations of these dependencies (crate, dependency).
fn violations(dependencies: &[(String, String)]) -> Vec<String> {
    let problem = |(crate_name, dependency): &(String, String)| match ALLOWED_DEPENDENCIES.iter().find(|(name, _)| name == crate_name) {
        None => Some(format!("`{crate_name}` is in no layer: add it to ALLOWED_DEPENDENCIES")),
        Some((_, allowed)) if allowed.contains(&dependency.as_str()) => None,
        Some((_, allowed)) => Some(format!("`{crate_name}` depends on `{dependency}`, but may name only {allowed:?}")),
    };
    dependencies.iter().filter_map(problem).collect()
}

/// The dependencies between our crates, without dev-dependencies.
fn our_dependencies() -> cargo_metadata::Result<Vec<(String, String)>> {
    let workspace = MetadataCommand::new().no_deps().exec()?;
    let mut edges = Vec::new();
    for package in &workspace.packages {
        let dependencies = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
        for dependency in dependencies.filter(|dependency| dependency.path.is_some()) {
            edges.push((package.name.to_string(), dependency.name.clone()));
        }
    }
    Ok(edges)
}
