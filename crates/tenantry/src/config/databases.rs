//! The locations of the databases, and the limits of connections.

use std::{fmt, path::Path, path::PathBuf};

use database::{DatabaseUrl, UrlProblem};

use super::{ConfigError, Settings, values, variables};

/// The locations of the main database and of the tenant databases.
#[derive(Clone, Debug)]
pub struct Databases {
    /// The main database; for SQLite, a file.
    pub main: DatabaseUrl,
    /// The maximum number of connections to the main database.
    pub pool_size: usize,
    /// The servers for tenant databases: at least one, with unique names. A SQLite "server" is a directory.
    pub tenant_servers: Vec<TenantServer>,
    /// The maximum number of connections to tenant databases on each server.
    pub tenant_connection_budget: usize,
    /// The number of warm databases on each PostgreSQL server.
    pub tenant_warm_pool: usize,
}

impl Databases {
    pub(super) fn read(settings: &mut Settings, data_dir: &Path) -> Result<Self, ConfigError> {
        let path = settings.path();
        let in_data_dir = || DatabaseUrl::Sqlite(data_dir.join("main.sqlite3"));
        let main = settings.get_or(&variables::DATABASE_URL, |text| parse_url(text, &path), in_data_dir)?;
        let tenant_servers = settings.get_or(
            &variables::TENANT_DATABASE_URLS,
            |text| TenantServer::parse_list(text, &path),
            || vec![TenantServer::beside(&main, data_dir)],
        )?;
        Ok(Self {
            main,
            pool_size: settings.get(&variables::DATABASE_POOL_SIZE, values::number(1..=10_000))?,
            tenant_servers,
            tenant_connection_budget: settings.get(&variables::TENANT_CONNECTION_BUDGET, values::number(1..=100_000))?,
            tenant_warm_pool: settings.get(&variables::TENANT_WARM_POOL, values::number(0..=1_000))?,
        })
    }
}

/// Parses the URL of a database; `path` resolves relative paths.
fn parse_url(text: &str, path: impl Fn(&str) -> Result<PathBuf, String>) -> Result<DatabaseUrl, String> {
    match text.parse().map_err(|problem: UrlProblem| problem.to_string())? {
        DatabaseUrl::Sqlite(file) => Ok(DatabaseUrl::Sqlite(path(&file.to_string_lossy())?)),
        url @ DatabaseUrl::Postgres(_) => Ok(url),
    }
}

/// A server for tenant databases.
#[derive(Clone, Debug)]
pub struct TenantServer {
    /// Its name, which tenants refer to: never reused for another server.
    pub name: String,
    /// Its URL.
    pub url: DatabaseUrl,
}

impl TenantServer {
    fn beside(main: &DatabaseUrl, data_dir: &Path) -> Self {
        let url = match main {
            DatabaseUrl::Sqlite(_) => DatabaseUrl::Sqlite(data_dir.join("tenants")),
            DatabaseUrl::Postgres(_) => main.clone(),
        };
        Self { name: "main".to_owned(), url }
    }

    fn parse_list(text: &str, path: impl Fn(&str) -> Result<PathBuf, String>) -> Result<Vec<Self>, String> {
        let mut servers: Vec<Self> = Vec::new();
        for part in values::list(text) {
            let server = Self::parse(part, &path)?;
            if servers.iter().any(|known| known.name == server.name) {
                return Err(format!("must name each server once, but has {} twice", server.name));
            }
            servers.push(server);
        }
        if servers.is_empty() { Err("must name at least one server".to_owned()) } else { Ok(servers) }
    }

    fn parse(text: &str, path: impl Fn(&str) -> Result<PathBuf, String>) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or("must be a list of name=url")?;
        let is_name = name.len() <= 32
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !is_name {
            return Err(
                "must be a list of name=url, where a name has up to 32 characters of a-z, 0-9, _ and - and begins with a letter".to_owned()
            );
        }
        let url = parse_url(url, path).map_err(|problem| format!("must be a list of name=url, where the URL of {name} {problem}"))?;
        Ok(Self { name: name.to_owned(), url })
    }
}

impl fmt::Display for TenantServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};
    use super::*;

    fn databases(variables: &[(&str, &str)]) -> (Workplace, Databases) {
        let place = Workplace::new();
        let databases = place.load(variables).unwrap().databases;
        (place, databases)
    }

    #[test]
    fn tenant_databases_are_beside_the_main_database_by_default() {
        let (place, files) = databases(&[]);
        assert_eq!(files.main.to_string(), format!("sqlite:{}", place.path("data/main.sqlite3")));
        assert_eq!(values::join(&files.tenant_servers), format!("main=sqlite:{}", place.path("data/tenants")));

        let (_, server) = databases(&[("DATABASE_URL", "postgresql://u@h/d")]);
        assert_eq!(values::join(&server.tenant_servers), "main=postgresql://u@h/d");
    }

    #[test]
    fn servers_have_unique_names() {
        let urls = "eu-1=postgres://u:p%2Cq@h1/d, us_2=sqlite:/var/tenants";
        let (_, servers) = databases(&[("TENANT_DATABASE_URLS", urls)]);
        assert_eq!(values::join(&servers.tenant_servers), "eu-1=postgres://u:***@h1/d,us_2=sqlite:/var/tenants");
        for (text, words) in [
            ("", "at least one"),
            ("postgres://h/d", "a list of name=url; for example"),
            ("1=sqlite:x", "begins with a letter"),
            ("Eu=sqlite:x", "begins with a letter"),
            ("a=mysql://h", "the URL of a must be sqlite:PATH"),
            ("a=sqlite:x,a=sqlite:y", "has a twice"),
            (&format!("{}=sqlite:x", "a".repeat(33)), "up to 32"),
        ] {
            let line = problem(&[("TENANT_DATABASE_URLS", text)]);
            assert!(line.starts_with("TENANT_DATABASE_URLS must") && line.contains(words), "{line}");
        }
    }

    #[test]
    fn an_invalid_database_url_is_refused_without_quoting_it() {
        for text in [
            "mysql://u:hush@h/d",
            "sqlite:",
            "sqlite:///x",
            "sqlite::memory:",
            "sqlite:x?mode=ro",
            "postgres://",
            "postgres://u:hush hush@h",
        ] {
            let line = problem(&[("DATABASE_URL", text)]);
            assert!(line.starts_with("DATABASE_URL must ") && !line.contains("hush"), "{line}");
        }
    }
}
