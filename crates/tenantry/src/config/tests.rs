use super::*;

/// A valid secret.
pub(super) const SECRET: &str = "c4b1f7a09d3e5268c4b1f7a09d3e5268";

/// The settings that production requires.
pub(super) const PRODUCTION: &[(&str, &str)] = &[("TENANTRY_ENV", "production"), ("JWT_SECRET_KEY", SECRET)];

/// A temporary working directory.
pub(super) struct Workplace(tempfile::TempDir);

impl Workplace {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(super) fn load(&self, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(variables, self.0.path())
    }

    /// The one line of the error.
    pub(super) fn problem(&self, variables: &[(&str, &str)]) -> String {
        let line = self.load(variables).unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }
}

pub(super) fn problem(variables: &[(&str, &str)]) -> String {
    Workplace::new().problem(variables)
}

#[test]
fn every_setting_has_a_default() {
    let config = Workplace::new().load(&[]).unwrap();
    assert_eq!(config.environment, Environment::Development);
    assert_eq!(config.server.host.to_string(), "127.0.0.1");
    assert_eq!(config.server.port, 4999);
    assert_eq!(config.cors.origins, api::Origins::Loopback);
    assert_eq!((config.tokens.access_expires.as_secs(), config.tokens.refresh_expires.as_secs()), (900, 604_800));
    assert_eq!(config.documents.max_upload_bytes, 100 << 20);
    assert!(config.passwords.threads >= 1);
}

#[test]
fn every_default_and_example_is_valid() {
    let is_example_secret = |variable: &Variable| variable.name.contains("SECRET_KEY");
    let examples: Vec<_> = VARIABLES.iter().filter(|v| !is_example_secret(v)).map(|v| (v.name, v.example())).collect();
    let config = Workplace::new().load(&examples).unwrap();
    for setting in config.describe() {
        assert!(!setting.value.is_empty(), "{} is never read", setting.name);
    }
    for variable in VARIABLES.iter().filter(|variable| is_example_secret(variable)) {
        assert!(problem(&[(variable.name, variable.example())]).starts_with(variable.name), "a published secret is refused");
    }
}

#[test]
fn an_invalid_value_is_refused_with_an_example() {
    assert_eq!(
        problem(&[("TENANTRY_ENV", "prod")]),
        "TENANTRY_ENV must be development, production or testing, not \"prod\"; for example TENANTRY_ENV=development"
    );
    for variable in VARIABLES.iter().filter(|variable| variable.name != "DATA_DIR") {
        let line = problem(&[(variable.name, "\u{fffd}")]);
        assert_eq!(
            line,
            format!("{0} must be UTF-8; for example {0}={1}", variable.name, variable.example()),
            "{} is never read",
            variable.name
        );
    }
}

#[test]
fn the_description_lists_every_variable_and_no_secret() {
    let urls = "a=postgres://u:hush@h1/d,b=postgres://u:hush@h2/d?password=hush";
    let previous = "hush-c4b1f7a09d3e5268c4b1f7a09d3e5268";
    let variables =
        [("DATABASE_URL", "postgres://u:hush@h/d"), ("TENANT_DATABASE_URLS", urls), ("JWT_PREVIOUS_SECRET_KEYS", previous), ("PORT", "0")];
    let config = Workplace::new().load(&[PRODUCTION, &variables].concat()).unwrap();
    let rows = config.describe();
    assert_eq!(rows.iter().map(|row| row.name).collect::<Vec<_>>(), VARIABLES.iter().map(|v| v.name).collect::<Vec<_>>());
    let value = |name: &str| rows.iter().find(|row| row.name == name).unwrap().value.as_str();
    assert_eq!(value("PORT"), "0");
    assert_eq!(value("DATABASE_URL"), "postgres://u:***@h/d");
    assert_eq!(value("TENANT_DATABASE_URLS"), "a=postgres://u:***@h1/d,b=postgres://u:***@h2/d?***");
    assert_eq!(value("JWT_SECRET_KEY"), "(secret)");
    assert_eq!(value("JWT_PREVIOUS_SECRET_KEYS"), "(1 secrets)");

    let shown = format!("{rows:?} {config:?} {config:#?}");
    assert!(!shown.contains("hush") && !shown.contains(SECRET), "{shown}");
}

#[test]
fn the_process_environment_is_read() {
    assert!(process_environment().any(|(name, _)| name == "PATH"));
}
