//! Effective values, as operators see them in `tenantry check`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use database::DatabaseUrl;
use secrecy::SecretString;

use api::{Origins, Rate, TrustedProxies};
use services::RegistrationPolicy;

use super::{Environment, LogFormat, TenantServer, values};

/// A value of a setting. Its text shows no secret.
pub(super) trait Effective {
    /// The value as an operator would write it.
    fn text(&self) -> String;
}

macro_rules! displayed {
    ($($value:ty),+) => {
        $(impl Effective for $value {
            fn text(&self) -> String {
                self.to_string()
            }
        })+
    };
}

displayed!(bool, u16, u64, usize, String, IpAddr, SocketAddr, Origins, Rate, RegistrationPolicy, TrustedProxies, DatabaseUrl);

impl Effective for Environment {
    fn text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Effective for LogFormat {
    fn text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Effective for PathBuf {
    fn text(&self) -> String {
        self.display().to_string()
    }
}

/// In whole seconds.
impl Effective for Duration {
    fn text(&self) -> String {
        self.as_secs().to_string()
    }
}

impl Effective for SecretString {
    fn text(&self) -> String {
        "(secret)".to_owned()
    }
}

impl Effective for Vec<SecretString> {
    fn text(&self) -> String {
        format!("({} secrets)", self.len())
    }
}

impl Effective for Vec<TenantServer> {
    fn text(&self) -> String {
        values::join(self)
    }
}

/// Nothing when it is not set.
impl<T: Effective> Effective for Option<T> {
    fn text(&self) -> String {
        self.as_ref().map(T::text).unwrap_or_default()
    }
}
