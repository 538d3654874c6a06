//! The user and the tenant that `tenantry init` creates.

use secrecy::SecretString;

use super::{ConfigError, Settings, values, variables};

/// The first user and tenant, as far as they are set. `tenantry init` validates the values.
#[derive(Clone, Debug)]
pub struct FirstUser {
    /// The user's e-mail address.
    pub email: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// The user's first name.
    pub first_name: Option<String>,
    /// The user's last name.
    pub last_name: Option<String>,
    /// The name of the user's tenant.
    pub tenant_name: Option<String>,
}

impl FirstUser {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        Ok(Self {
            email: settings.find(&variables::ADMIN_EMAIL, values::text)?,
            password: settings.find(&variables::ADMIN_PASSWORD, values::secret)?,
            first_name: settings.find(&variables::ADMIN_FIRST_NAME, values::text)?,
            last_name: settings.find(&variables::ADMIN_LAST_NAME, values::text)?,
            tenant_name: settings.find(&variables::TEST_TENANT_NAME, values::text)?,
        })
    }
}
