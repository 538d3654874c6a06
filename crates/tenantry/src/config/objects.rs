//! The object storage.

use secrecy::SecretString;
use services::{S3Credentials, S3Settings};

use super::{ConfigError, Settings, values, variables};

/// The object storage.
#[derive(Clone, Debug)]
pub enum Objects {
    /// Files in the data directory.
    Files,
    /// A bucket of an S3 store.
    S3(S3Settings),
}

impl Objects {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let bucket = settings.find(&variables::S3_BUCKET, bucket)?;
        let ssl = settings.find(&variables::S3_USE_SSL, values::boolean)?;
        let endpoint = settings.find(&variables::S3_ENDPOINT_URL, |text| endpoint(text, ssl))?;
        let public_endpoint = settings.find(&variables::S3_PUBLIC_ENDPOINT_URL, |text| self::endpoint(text, None))?;
        let region = settings.get(&variables::S3_REGION, values::text)?;
        let id = settings.find(&variables::S3_ACCESS_KEY_ID, values::text)?;
        let secret = settings.find(&variables::S3_SECRET_ACCESS_KEY, values::secret)?;
        let path_style = settings.get_or(&variables::S3_PATH_STYLE, values::boolean, || endpoint.is_some())?;
        let plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http:"));
        settings.record(&variables::S3_USE_SSL, &!plain);
        let Some(bucket) = bucket else { return Self::files(settings) };
        let credentials = credentials(settings, id, secret)?;
        Ok(Self::S3(S3Settings { bucket, endpoint, public_endpoint, region, credentials, path_style }))
    }

    fn files(settings: &mut Settings) -> Result<Self, ConfigError> {
        let section = variables::S3_BUCKET.section;
        if let Some(variable) = settings.find_set_in(section) {
            return Err(ConfigError::new(
                variables::S3_BUCKET.name,
                format!("is not set, but {} is", variable.name),
                "name the bucket, or set no S3_* to keep objects as files in DATA_DIR",
            ));
        }
        settings.discard(section);
        Ok(Self::Files)
    }
}

/// An access key, which needs both of its halves; else what the platform's environment provides.
fn credentials(settings: &Settings, id: Option<String>, secret: Option<SecretString>) -> Result<S3Credentials, ConfigError> {
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(S3Credentials::AccessKey { id, secret }),
        (None, None) => Ok(S3Credentials::Ambient(settings.aws())),
        (Some(_), None) => Err(ConfigError::of(&variables::S3_SECRET_ACCESS_KEY, "is not set, but S3_ACCESS_KEY_ID is")),
        (None, Some(_)) => Err(ConfigError::of(&variables::S3_ACCESS_KEY_ID, "is not set, but S3_SECRET_ACCESS_KEY is")),
    }
}

/// Parses the name of a bucket, roughly: each store has its own rules.
fn bucket(text: &str) -> Result<String, String> {
    let is_name = (3..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if is_name { Ok(text.to_owned()) } else { Err("must be the name of a bucket".to_owned()) }
}

/// Parses the URL of a store. Without a scheme, `ssl` decides, and the default is TLS; with a scheme, `ssl` must agree.
fn endpoint(text: &str, ssl: Option<bool>) -> Result<String, String> {
    let scheme = |ssl| if ssl { "https://" } else { "http://" };
    let text = if text.contains("://") { text.to_owned() } else { format!("{}{text}", scheme(ssl.unwrap_or(true))) };
    let url = values::base_url(&text).map_err(|_| "must be a URL like https://s3.example.com".to_owned())?;
    match ssl {
        Some(ssl) if !url.starts_with(scheme(ssl)) => Err(format!("must begin with {} while S3_USE_SSL is {ssl}", scheme(ssl))),
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};
    use super::*;

    fn s3(variables: &[(&str, &str)]) -> S3Settings {
        let bucket = [("S3_BUCKET", "documents")];
        match Workplace::new().load(&[&bucket, variables].concat()).unwrap().objects {
            Objects::S3(settings) => settings,
            Objects::Files => panic!("a bucket chooses S3"),
        }
    }

    #[test]
    fn objects_are_files_unless_a_bucket_is_set() {
        assert!(matches!(Workplace::new().load(&[]).unwrap().objects, Objects::Files));
        let amazon = s3(&[]);
        assert_eq!((amazon.bucket.as_str(), amazon.region.as_str(), amazon.path_style), ("documents", "us-east-1", false));
        assert!(amazon.endpoint.is_none() && matches!(amazon.credentials, S3Credentials::Ambient(variables) if variables.is_empty()));
        for name in ["S3_REGION", "S3_ENDPOINT_URL", "S3_ACCESS_KEY_ID"] {
            assert_eq!(
                problem(&[(name, "x")]),
                format!("S3_BUCKET is not set, but {name} is; name the bucket, or set no S3_* to keep objects as files in DATA_DIR")
            );
        }
    }

    #[test]
    fn an_endpoint_uses_tls_by_default() {
        for (endpoint, ssl, url) in [
            ("s3.example.com", None, "https://s3.example.com"),
            ("minio:9000", Some("false"), "http://minio:9000"),
            ("http://minio:9000/", None, "http://minio:9000"),
            ("http://minio:9000", Some("false"), "http://minio:9000"),
            ("https://s3.example.com", Some("true"), "https://s3.example.com"),
        ] {
            let ssl: Vec<_> = ssl.into_iter().map(|ssl| ("S3_USE_SSL", ssl)).collect();
            let settings = s3(&[&[("S3_ENDPOINT_URL", endpoint)], &ssl[..]].concat());
            assert_eq!((settings.endpoint.as_deref(), settings.path_style), (Some(url), true));
        }
        let contradiction = problem(&[("S3_BUCKET", "b-1"), ("S3_ENDPOINT_URL", "http://minio:9000"), ("S3_USE_SSL", "true")]);
        assert!(contradiction.starts_with("S3_ENDPOINT_URL must begin with https:// while S3_USE_SSL is true"), "{contradiction}");
        assert!(problem(&[("S3_BUCKET", "b-1"), ("S3_ENDPOINT_URL", "ftp://x")]).starts_with("S3_ENDPOINT_URL must be a URL like"));
    }

    #[test]
    fn without_an_access_key_the_environment_provides_credentials() {
        let place = Workplace::new();
        place.write(".env", "AWS_SESSION_TOKEN=hush\n");
        let config = place.load(&[("S3_BUCKET", "b-1"), ("AWS_ACCESS_KEY_ID", "id"), ("AWS_ROLE_ARN", "\u{fffd}")]).unwrap();
        let Objects::S3(S3Settings { credentials: S3Credentials::Ambient(variables), .. }) = config.objects else { panic!("a bucket") };
        assert_eq!(variables.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["AWS_ACCESS_KEY_ID"]);
    }

    #[test]
    fn an_access_key_needs_its_secret_and_hides_it() {
        let place = Workplace::new();
        place.write("secret", "hush\n");
        let config = place.load(&[("S3_BUCKET", "b-1"), ("S3_ACCESS_KEY_ID", "id"), ("S3_SECRET_ACCESS_KEY_FILE", "secret")]).unwrap();
        let shown = format!("{config:?} {:?}", config.describe());
        assert!(shown.contains("(secret)") && !shown.contains("hush"), "{shown}");
        for (set, missing) in [("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"), ("S3_SECRET_ACCESS_KEY", "S3_ACCESS_KEY_ID")] {
            assert!(problem(&[("S3_BUCKET", "b-1"), (set, "hush")]).starts_with(&format!("{missing} is not set, but {set} is")));
        }
        assert!(problem(&[("S3_BUCKET", "a/b")]).starts_with("S3_BUCKET must be the name of a bucket"));
    }
}
