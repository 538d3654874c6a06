//! Within a crate, modules call one way: the graph of their imports has no cycle.
//!
//! What a module imports from its own children by `self::` is no edge: a file and its folder are one module to the others.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const CRATES: &[&str] = &["api", "database", "http-server", "services", "worker"];

/// Modules that may name any other: the root, which lists them, and the core of the services, which holds the state of each.
const ROOTS: &[&str] = &["lib", "core"];

/// Each module with the modules that it imports from.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_call_one_way() {
    for name in CRATES {
        let graph = graph(&sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../").join(name).join("src")));
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 5, "the imports of {name} are read: {graph:?}");
        assert_eq!(find_cycle(&graph), None, "of {name}'s modules");
    }
}

#[test]
fn a_cycle_is_detected() {
    let source = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let sources = [
        source("lib", "pub use documents::uploads::{Upload, store};"),
        source("documents", "mod uploads;\npub use self::uploads::Upload;"),
        source("documents::uploads", "use crate::{Never, documents::trash::purge};\nuse std::fmt;"),
        source("documents::trash", "// use crate::documents::uploads;\n#[cfg(test)]\nmod tests {\n    use crate::store;\n}"),
    ];
    let acyclic = graph(&sources.clone().into());
    assert_eq!(acyclic["documents::uploads"], BTreeSet::from(["documents::trash".to_owned()]));
    assert_eq!(find_cycle(&acyclic), None);
    for import in ["use crate::{fmt, documents::{self, uploads::store}};", "use crate::store;", "fn f() { super::uploads::f() }"] {
        let mut sources = BTreeMap::from(sources.clone());
        sources.insert("documents::trash".to_owned(), import.to_owned());
        let cycle = find_cycle(&graph(&sources)).expect("a cycle");
        assert!(cycle.contains("documents::uploads") && cycle.contains("documents::trash"), "{import}: {cycle}");
    }
}

/// The source of every module below a folder, by path: `documents::uploads`. A folder's `mod.rs` is no module of its own.
fn sources(root: &Path) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("mod.rs") && !path.ends_with("tests.rs") {
                let name = path.strip_prefix(root).unwrap().with_extension("").display().to_string().replace('/', "::");
                sources.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}

fn graph(sources: &BTreeMap<String, String>) -> Graph {
    let exports: BTreeMap<_, _> =
        paths(&sources["lib"], "use ").into_iter().filter_map(|path| Some((last(&path), module(&path, sources)?))).collect();
    let edges = |(name, text): (&String, &String)| {
        let parent = name.rsplit_once("::").map_or("", |(parent, _)| parent);
        let absolute = paths(text, "crate::").into_iter();
        let relative = paths(text, "super::").into_iter().map(|path| format!("{parent}::{path}"));
        let imports = absolute.chain(relative).filter_map(|path| module(&path, sources).or_else(|| exports.get(first(&path)).cloned()));
        (name.clone(), imports.filter(|import| import != name && !ROOTS.contains(&import.as_str())).collect())
    };
    sources.iter().filter(|(name, _)| !ROOTS.contains(&name.as_str())).map(edges).collect()
}

/// The module that a path leads into, if it is one of these.
fn module(path: &str, sources: &BTreeMap<String, String>) -> Option<String> {
    let path = path.trim_start_matches("self::");
    let prefixes = path.match_indices("::").map(|(end, _)| &path[..end]).chain([path]);
    prefixes.filter(|prefix| sources.contains_key(*prefix)).last().map(str::to_owned)
}

fn first(path: &str) -> &str {
    path.split("::").next().unwrap_or_default()
}

fn last(path: &str) -> String {
    path.rsplit("::").next().unwrap_or_default().to_owned()
}

/// The paths that follow `start` in code, with `{…}` expanded. Comments and tests don't count.
fn paths(text: &str, start: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (at, _) in
        code.match_indices(start).filter(|(at, _)| !code[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
    {
        expand(&code[at + start.len()..], "", &mut found);
    }
    found
}

/// Expands the path tree at the beginning of `text`, and returns what follows it.
fn expand<'a>(text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|next: char| !(next.is_alphanumeric() || next == '_' || next == ':')).unwrap_or(text.len());
    let (path, mut rest) = (format!("{prefix}{}", &text[..end]), &text[end..]);
    if !rest.starts_with('{') || !(path.is_empty() || path.ends_with("::")) {
        found.push(path.trim_end_matches("::self").trim_end_matches("::").to_owned());
        return rest;
    }
    while rest.starts_with(['{', ',']) {
        rest = rest[1..].trim_start();
        if !rest.starts_with('}') {
            rest = expand(rest, &path, found).trim_start();
        }
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// A cycle, as the chain of its modules.
fn find_cycle(graph: &Graph) -> Option<String> {
    let mut left = graph.clone();
    // A module that imports from none of those left is in no cycle.
    while let Some(free) =
        left.iter().find(|(_, imports)| imports.iter().all(|import| !left.contains_key(import))).map(|(name, _)| name.clone())
    {
        left.remove(&free);
    }
    let mut chain = vec![left.keys().next()?.clone()];
    loop {
        let next = left[&chain[chain.len() - 1]].iter().find(|import| left.contains_key(*import))?.clone();
        if let Some(begin) = chain.iter().position(|module| *module == next) {
            chain.push(next);
            return Some(chain[begin..].join(" -> "));
        }
        chain.push(next);
    }
}
