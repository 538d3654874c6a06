//! The variables as text, and the record of their effective values.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use secrecy::SecretString;

use super::{ConfigError, Fallback, VARIABLES, Variable, effective::Effective};

/// Prefixes that belong to Tenantry: a variable with one of them that is not in the table is a typo. Other programs use
/// `ADMIN_*` and `TEST_*`, too, and the variables without a prefix are too common to claim similar names.
const PREFIXES: &[&str] = &[
    "TENANTRY_",
    "TENANT_",
    "DATABASE_",
    "JWT_",
    "CORS_",
    "RATE_LIMIT_",
    "KAFKA_",
    "S3_",
    "ARGON2_",
    "PASSWORD_HASH_",
    "UPLOAD_",
    "MAX_UPLOAD",
    "DOWNLOAD_",
    "GARBAGE_",
    "EVENT_",
    "DEMO_",
    "TRASH_",
    "DOCUMENT_",
];

/// A variable and its effective value, as operators may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// Its value, secrets hidden; empty when there is none.
    pub value: String,
    /// What it means.
    pub meaning: &'static str,
}

/// The variables of the environment and of `.env`. Refuses unknown variables with one of our prefixes, and records the
/// effective value of each variable that is read.
pub struct Settings {
    values: BTreeMap<String, String>,
    aws: Vec<(String, SecretString)>,
    working_dir: PathBuf,
    effective: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Merges an environment with the `.env` of a directory; the environment takes precedence.
    ///
    /// # Errors
    /// When `.env` cannot be read, or when a variable has one of our prefixes and is unknown.
    pub fn gather(environment: impl IntoIterator<Item = (String, String)>, working_dir: &Path) -> Result<Self, ConfigError> {
        let mut values: BTreeMap<String, String> = environment.into_iter().collect();
        let is_aws = |(name, value): &(&String, &String)| name.starts_with("AWS_") && !value.contains(char::REPLACEMENT_CHARACTER);
        let aws = values.iter().filter(is_aws).map(|(name, value)| (name.clone(), value.clone().into())).collect();
        for (name, value) in read_dotenv(&working_dir.join(".env"))? {
            values.entry(name).or_insert(value);
        }
        for (name, value) in &values {
            let ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if ours && !is_known(name) && !is_service_link(name, value) {
                return Err(unknown(name));
            }
        }
        Ok(Self { values, aws, working_dir: working_dir.to_owned(), effective: BTreeMap::new() })
    }

    /// The `AWS_*` variables of the environment, by which platforms provide credentials. Those of `.env` do not count.
    pub(super) fn aws(&self) -> Vec<(String, SecretString)> {
        self.aws.clone()
    }

    /// The variable's value or the default of the table, parsed.
    ///
    /// # Errors
    /// When it does not parse, or when it is not set and the table has no default.
    pub(super) fn get<T: Effective>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let value = match variable.default {
            Fallback::Value(default) => self.parse(variable, self.text(variable)?.as_deref().unwrap_or(default), parse)?,
            Fallback::Otherwise { .. } => self.find(variable, parse)?.ok_or_else(|| ConfigError::of(variable, "is not set"))?,
        };
        self.record(variable, &value);
        Ok(value)
    }

    /// The variable's value, parsed, or the fallback when it is not set.
    ///
    /// # Errors
    /// When it does not parse.
    pub(super) fn get_or<T: Effective>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, String>,
        fallback: impl FnOnce() -> T,
    ) -> Result<T, ConfigError> {
        let value = self.find(variable, parse)?.unwrap_or_else(fallback);
        self.record(variable, &value);
        Ok(value)
    }

    /// The variable's value, parsed, if it is set.
    ///
    /// # Errors
    /// When it does not parse.
    pub(super) fn find<T: Effective>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let value = self.text(variable)?.map(|text| self.parse(variable, &text, parse)).transpose()?;
        self.record(variable, &value);
        Ok(value)
    }

    /// The first variable of a section that is set.
    pub(super) fn find_set_in(&self, section: &str) -> Option<&'static Variable> {
        let is_set = |variable: &Variable| {
            let in_file = variable.file_name().is_some_and(|name| self.values.contains_key(&name));
            self.values.contains_key(variable.name) || in_file
        };
        VARIABLES.iter().find(|variable| variable.section == section && is_set(variable))
    }

    /// Records the effective value of a variable; needed only where it differs from the value that was read.
    pub(super) fn record(&mut self, variable: &Variable, value: &impl Effective) {
        self.effective.insert(variable.name, value.text());
    }

    /// Discards the recorded values of a section whose variables have no effect.
    pub(super) fn discard(&mut self, section: &str) {
        let of_section = VARIABLES.iter().filter(|variable| variable.section == section);
        of_section.for_each(|variable| drop(self.effective.remove(variable.name)));
    }

    /// Every variable in the table's order, with its effective value.
    pub(super) fn into_description(mut self) -> Vec<Setting> {
        let mut setting = |variable: &Variable| Setting {
            name: variable.name,
            value: self.effective.remove(variable.name).unwrap_or_default(),
            meaning: variable.meaning,
        };
        VARIABLES.iter().map(&mut setting).collect()
    }

    /// A parser of paths that resolves relative ones from the working directory and removes `/./`.
    pub(super) fn path(&self) -> impl Fn(&str) -> Result<PathBuf, String> + use<> {
        let working_dir = self.working_dir.clone();
        move |text| if text.is_empty() { Err("must be a path".to_owned()) } else { Ok(working_dir.join(text).components().collect()) }
    }

    fn parse<T>(&self, variable: &Variable, text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(text).map_err(|problem| {
            let seen = if variable.secret { String::new() } else { format!(", not {text:?}") };
            ConfigError::of(variable, problem + &seen)
        })
    }

    /// The variable's text, from the environment or, for a secret, from the file that `NAME_FILE` names. Trimmed, since files
    /// tend to end in a newline.
    fn text(&self, variable: &Variable) -> Result<Option<String>, ConfigError> {
        let file = variable.file_name().and_then(|name| self.values.get_key_value(&name));
        let text = match (self.values.get(variable.name), file) {
            (Some(_), Some((file_variable, _))) => {
                return Err(ConfigError::new(variable.name, format!("is set together with {file_variable}"), "set only one of the two"));
            }
            (Some(text), None) => text.clone(),
            (None, Some((file_variable, path))) => read_secret(variable, file_variable, &self.working_dir.join(path.trim()))?,
            (None, None) => return Ok(None),
        };
        if text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(ConfigError::of(variable, "must be UTF-8"));
        }
        Ok(Some(text.trim().to_owned()))
    }
}

fn read_secret(variable: &Variable, file_variable: &str, path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| {
        let example = format!("for example {file_variable}=/run/secrets/{}", variable.name.to_lowercase());
        ConfigError::new(file_variable, format!("must name a readable file, but {path:?}: {error}"), example)
    })
}

fn read_dotenv(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::new(".env", format!("cannot be read: {error}"), "fix or remove it")),
    };
    let mut variables: Vec<(String, String)> = Vec::new();
    for variable in dotenvy::from_read_iter(text.trim_start_matches('\u{feff}').as_bytes()) {
        // The parser's own error quotes the line, which may contain a secret.
        variables.push(variable.map_err(|_| {
            let place = variables.last().map_or_else(|| "in its first line".to_owned(), |(name, _)| format!("after {name}"));
            ConfigError::new(".env", format!("has a syntax error {place}"), "for example NAME='value with spaces'")
        })?);
    }
    Ok(variables)
}

fn is_known(name: &str) -> bool {
    VARIABLES.iter().any(|variable| variable.name == name || variable.file_name().as_deref() == Some(name))
}

/// Whether Kubernetes or a container engine set the variable for a service whose name happens to match one of our prefixes,
/// such as `KAFKA_SERVICE_HOST` or `TENANTRY_PORT=tcp://10.0.0.1:4999`.
fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT_") || value.starts_with("tcp://")
}

fn unknown(name: &str) -> ConfigError {
    let bare_name = name.strip_prefix("TENANTRY_").unwrap_or(name);
    let likeness = |known: &str| strsim::jaro_winkler(name, known).max(strsim::jaro_winkler(bare_name, known));
    let known = VARIABLES.iter().flat_map(|variable| [Some(variable.name.to_owned()), variable.file_name()]).flatten();
    match known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(nearest) if likeness(&nearest) > 0.8 => ConfigError::new(name, "is unknown", format!("did you mean {nearest}?")),
        _ => ConfigError::new(name, "is unknown", "see .env.example for the known variables"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};

    #[test]
    fn a_misspelled_variable_suggests_the_nearest_name() {
        for (name, remedy) in [
            ("TENANTRY_EVN", "did you mean TENANTRY_ENV?"),
            ("TENANTRY_PORT", "did you mean PORT?"),
            ("DATABASE_POOLSIZE", "did you mean DATABASE_POOL_SIZE?"),
            ("JWT_SECRET", "did you mean JWT_SECRET_KEY?"),
            ("JWT_SECRET_KEY_FIEL", "did you mean JWT_SECRET_KEY_FILE?"),
            ("MAX_UPLOAD_BYTE", "did you mean MAX_UPLOAD_BYTES?"),
            ("CORS_ORIGIN", "did you mean CORS_ORIGINS?"),
            ("S3_X", "see .env.example for the known variables"),
        ] {
            assert_eq!(problem(&[(name, "1")]), format!("{name} is unknown; {remedy}"));
        }
    }

    #[test]
    fn variables_of_other_programs_are_ignored() {
        let others = [
            ("PATH", "/bin"),
            ("ADMIN_EMAIL", "a@example.com"),
            ("TEST_DATABASE_URL", "x"),
            ("KAFKA_SERVICE_HOST", "10.0.0.1"),
            ("KAFKA_SERVICE_PORT_BROKER", "9092"),
            ("TENANTRY_PORT", "tcp://10.0.0.2:4999"),
            ("TENANTRY_PORT_4999_TCP_ADDR", "10.0.0.2"),
        ];
        Workplace::new().load(&others).unwrap();
    }

    #[test]
    fn the_environment_takes_precedence_over_dotenv() {
        let place = Workplace::new();
        place.write(".env", "\u{feff}# comment\nPORT=1\nexport LOG_FORMAT=json # so\nJWT_ISSUER='a $b'\n");
        let config = place.load(&[("PORT", "2")]).unwrap();
        assert_eq!(config.server.port, 2);
        assert_eq!(config.log.format.as_str(), "json");
        assert_eq!(config.tokens.issuer, "a $b");
    }

    #[test]
    fn an_invalid_dotenv_is_refused_without_quoting_it() {
        let place = Workplace::new();
        place.write(".env", "PORT=1\nJWT_SECRET_KEY='hush hush\n");
        assert_eq!(place.problem(&[]), ".env has a syntax error after PORT; for example NAME='value with spaces'");
        place.write(".env", "hush\n");
        assert_eq!(place.problem(&[]), ".env has a syntax error in its first line; for example NAME='value with spaces'");
        place.write(".env", "TENANTRY_PROT=1\n");
        assert!(place.problem(&[]).starts_with("TENANTRY_PROT is unknown"));
    }

    #[test]
    fn a_secret_can_come_from_a_file() {
        let place = Workplace::new();
        place.write("url", "postgres://u:hush@h/d\n");
        let config = place.load(&[("DATABASE_URL_FILE", "url")]).unwrap();
        assert_eq!(config.databases.main.to_string(), "postgres://u:***@h/d");

        let both = place.problem(&[("DATABASE_URL_FILE", "url"), ("DATABASE_URL", "sqlite:x")]);
        assert_eq!(both, "DATABASE_URL is set together with DATABASE_URL_FILE; set only one of the two");

        let missing = place.problem(&[("JWT_SECRET_KEY_FILE", "/nowhere")]);
        assert!(missing.starts_with("JWT_SECRET_KEY_FILE must name a readable file, but \"/nowhere\": No such file"), "{missing}");
        assert!(missing.ends_with("; for example JWT_SECRET_KEY_FILE=/run/secrets/jwt_secret_key"), "{missing}");

        assert_eq!(problem(&[("JWT_ISSUER_FILE", "url")]), "JWT_ISSUER_FILE is unknown; did you mean JWT_ISSUER?");
    }

    #[test]
    fn an_empty_value_does_not_count_as_unset() {
        assert!(problem(&[("DATABASE_URL", "")]).starts_with("DATABASE_URL must be"));
        assert!(problem(&[("PORT", " ")]).starts_with("PORT must be"));
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_refused() {
        assert_eq!(problem(&[("JWT_ISSUER", "a\u{fffd}")]), "JWT_ISSUER must be UTF-8; for example JWT_ISSUER=tenantry");
    }
}
