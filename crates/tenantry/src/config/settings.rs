//! The variables as they were given, before they mean anything.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use secrecy::SecretString;

use super::{ConfigError, Fallback, VARIABLES, Variable};

/// Names that begin so are ours: one that is not in the table is a slip. `ADMIN_*` and `TEST_*` are others' too, and the
/// variables without a prefix are too common to claim what resembles them.
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

/// The variables of the environment and of `.env`, with every unknown one of ours refused.
pub struct Settings {
    values: BTreeMap<String, String>,
    aws: Vec<(String, SecretString)>,
    working_dir: PathBuf,
}

impl Settings {
    /// Joins an environment with the `.env` of a directory; the environment wins.
    ///
    /// # Errors
    /// When `.env` can't be read, or when a variable has one of our prefixes and is unknown.
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
        Ok(Self { values, aws, working_dir: working_dir.to_owned() })
    }

    /// The `AWS_*` variables of the environment, by which platforms provide credentials. Those of `.env` do not count.
    pub(super) fn aws(&self) -> Vec<(String, SecretString)> {
        self.aws.clone()
    }

    /// The variable's value or its default, parsed.
    ///
    /// # Errors
    /// When it doesn't parse, or when it is neither set nor has a default.
    pub fn get<T>(&self, variable: &Variable, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        match variable.default {
            Fallback::Value(default) => self.parse(variable, self.text(variable)?.as_deref().unwrap_or(default), parse),
            Fallback::Otherwise { .. } => self.find(variable, parse)?.ok_or_else(|| ConfigError::of(variable, "is not set")),
        }
    }

    /// The variable's value, parsed, if it is set.
    ///
    /// # Errors
    /// When it doesn't parse.
    pub fn find<T>(&self, variable: &Variable, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        self.text(variable)?.map(|text| self.parse(variable, &text, parse)).transpose()
    }

    /// A parser of paths, which takes relative ones from the working directory and drops `/./`.
    pub(super) fn path(&self) -> impl Fn(&str) -> Result<PathBuf, String> {
        |text| if text.is_empty() { Err("must be a path".to_owned()) } else { Ok(self.working_dir.join(text).components().collect()) }
    }

    fn parse<T>(&self, variable: &Variable, text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(text).map_err(|problem| {
            let seen = if variable.secret { String::new() } else { format!(", not {text:?}") };
            ConfigError::of(variable, problem + &seen)
        })
    }

    /// The variable's text, from the environment or (a secret) from the file that `NAME_FILE` names, without white space
    /// around it: files tend to end in a newline.
    fn text(&self, variable: &Variable) -> Result<Option<String>, ConfigError> {
        let file = variable.file_name().and_then(|name| self.values.get_key_value(&name));
        let text = match (self.values.get(variable.name), file) {
            (Some(_), Some((file_variable, _))) => {
                return Err(ConfigError::new(variable.name, format!("is set together with {file_variable}"), "keep one of the two"));
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
        ConfigError::new(file_variable, format!("must name a file that can be read, but {path:?}: {error}"), example)
    })
}

fn read_dotenv(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::new(".env", format!("can't be read: {error}"), "mend it or remove it")),
    };
    let mut variables: Vec<(String, String)> = Vec::new();
    for variable in dotenvy::from_read_iter(text.trim_start_matches('\u{feff}').as_bytes()) {
        // The parser's own error quotes the line, which may hold a secret.
        variables.push(variable.map_err(|_| {
            let place = variables.last().map_or_else(|| "in its first line".to_owned(), |(name, _)| format!("after {name}"));
            ConfigError::new(".env", format!("has a line {place} that can't be read"), "for example NAME='value with spaces'")
        })?);
    }
    Ok(variables)
}

fn is_known(name: &str) -> bool {
    VARIABLES.iter().any(|variable| variable.name == name || variable.file_name().as_deref() == Some(name))
}

/// Whether Kubernetes or a container engine set the variable to describe a service that happens to be called like one of our
/// prefixes, such as `KAFKA_SERVICE_HOST` or `TENANTRY_PORT=tcp://10.0.0.1:4999`.
fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT_") || value.starts_with("tcp://")
}

fn unknown(name: &str) -> ConfigError {
    let bare_name = name.strip_prefix("TENANTRY_").unwrap_or(name);
    let likeness = |known: &str| strsim::jaro_winkler(name, known).max(strsim::jaro_winkler(bare_name, known));
    let known = VARIABLES.iter().flat_map(|variable| [Some(variable.name.to_owned()), variable.file_name()]).flatten();
    match known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(nearest) if likeness(&nearest) > 0.8 => ConfigError::new(name, "is unknown", format!("did you mean {nearest}?")),
        _ => ConfigError::new(name, "is unknown", "see .env.example for those that there are"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};

    #[test]
    fn a_slip_in_a_name_is_answered_with_the_nearest_name() {
        for (name, remedy) in [
            ("TENANTRY_EVN", "did you mean TENANTRY_ENV?"),
            ("TENANTRY_PORT", "did you mean PORT?"),
            ("DATABASE_POOLSIZE", "did you mean DATABASE_POOL_SIZE?"),
            ("JWT_SECRET", "did you mean JWT_SECRET_KEY?"),
            ("JWT_SECRET_KEY_FIEL", "did you mean JWT_SECRET_KEY_FILE?"),
            ("MAX_UPLOAD_BYTE", "did you mean MAX_UPLOAD_BYTES?"),
            ("CORS_ORIGIN", "did you mean CORS_ORIGINS?"),
            ("S3_X", "see .env.example for those that there are"),
        ] {
            assert_eq!(problem(&[(name, "1")]), format!("{name} is unknown; {remedy}"));
        }
    }

    #[test]
    fn names_of_others_are_left_alone() {
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
    fn the_environment_wins_over_dotenv() {
        let place = Workplace::new();
        place.write(".env", "\u{feff}# comment\nPORT=1\nexport LOG_FORMAT=json # so\nJWT_ISSUER='a $b'\n");
        let config = place.load(&[("PORT", "2")]).unwrap();
        assert_eq!(config.server.port, 2);
        assert_eq!(config.log.format.as_str(), "json");
        assert_eq!(config.tokens.issuer, "a $b");
    }

    #[test]
    fn a_broken_dotenv_is_refused_without_quoting_it() {
        let place = Workplace::new();
        place.write(".env", "PORT=1\nJWT_SECRET_KEY='hush hush\n");
        assert_eq!(place.problem(&[]), ".env has a line after PORT that can't be read; for example NAME='value with spaces'");
        place.write(".env", "hush\n");
        assert_eq!(place.problem(&[]), ".env has a line in its first line that can't be read; for example NAME='value with spaces'");
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
        assert_eq!(both, "DATABASE_URL is set together with DATABASE_URL_FILE; keep one of the two");

        let missing = place.problem(&[("JWT_SECRET_KEY_FILE", "/nowhere")]);
        assert!(missing.starts_with("JWT_SECRET_KEY_FILE must name a file that can be read, but \"/nowhere\": No such file"), "{missing}");
        assert!(missing.ends_with("; for example JWT_SECRET_KEY_FILE=/run/secrets/jwt_secret_key"), "{missing}");

        assert_eq!(problem(&[("JWT_ISSUER_FILE", "url")]), "JWT_ISSUER_FILE is unknown; did you mean JWT_ISSUER?");
    }

    #[test]
    fn what_is_set_but_empty_is_not_taken_for_unset() {
        assert!(problem(&[("DATABASE_URL", "")]).starts_with("DATABASE_URL must be"));
        assert!(problem(&[("PORT", " ")]).starts_with("PORT must be"));
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_refused() {
        assert_eq!(problem(&[("JWT_ISSUER", "a\u{fffd}")]), "JWT_ISSUER must be UTF-8; for example JWT_ISSUER=tenantry");
    }
}
