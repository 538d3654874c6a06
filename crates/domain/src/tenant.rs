//! Tenants: customers' organisations, each with a database of its own.

use std::fmt;

use crate::{
    QuotaLimits, TenantId, Timestamp, UserId,
    text::{TextProblem, printable, text_type},
};

/// A customer's organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its identifier.
    pub id: TenantId,
    /// Its display name.
    pub name: String,
    /// The location of its database.
    pub location: TenantLocation,
    /// The provisioning state of its database.
    pub provisioning: Provisioning,
    /// The schema version of its database; 0 before the first migration.
    pub schema_version: i64,
    /// When it was quarantined after a failed migration.
    pub quarantined_at: Option<Timestamp>,
    /// When its database became read-only for a move to another server.
    pub writes_paused_at: Option<Timestamp>,
    /// Its quota limits, where they differ from the default.
    pub limits: QuotaLimits,
    /// Whether its members may work in it.
    pub is_active: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who created it.
    pub created_by: Option<UserId>,
}

/// The location of a tenant's database: what it takes to open the database and to verify that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantLocation {
    /// The tenant. The database's identity row must contain this id.
    pub tenant_id: TenantId,
    /// The configured name of the server.
    pub server: String,
    /// The database's name on that server.
    pub database: DatabaseName,
}

/// The provisioning state of a tenant's database. Every step is repeatable, so any instance can resume an interrupted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// The name and location are reserved; no database exists yet.
    Reserved,
    /// The database is being created.
    Creating,
    /// The database exists; its schema is being migrated.
    Migrating,
    /// Ready for use.
    Active,
    /// An error stopped the provisioning; a later resumption retries it.
    Failed,
    /// Being permanently deleted; for its members the tenant no longer exists.
    Deleting,
}

impl Provisioning {
    /// The state's stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Creating => "creating",
            Self::Migrating => "migrating",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// The state with this stored name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let states = [Self::Reserved, Self::Creating, Self::Migrating, Self::Active, Self::Failed, Self::Deleting];
        states.into_iter().find(|state| state.as_str() == text)
    }
}

/// What remains of a permanently deleted tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Its display name.
    pub name: String,
    /// The tenant's id, and the former location of its database.
    pub location: TenantLocation,
    /// When the tenant was created.
    pub created_at: Timestamp,
    /// When its deletion was complete.
    pub deleted_at: Timestamp,
    /// Who deleted it; absent for the operator.
    pub deleted_by: Option<UserId>,
}

text_type! {
    /// A tenant's name: trimmed, 1 to 255 characters, no control characters. Not necessarily unique.
    TenantName
}

impl TenantName {
    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        printable(text, 255, "must be at most 255 characters").map(Self)
    }
}

/// The name of a tenant database: `tenant_{slug}_{8 hex}`, at most 63 bytes of `[a-z0-9_]`, so it is safe in a path and, quoted,
/// in a statement. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseName(String);

impl DatabaseName {
    const MAX_BYTES: usize = 63;

    /// The name for a new tenant. The slug is for human readers; the hex digits are the last eight of the tenant's id, which are
    /// random. A unique index enforces uniqueness.
    #[must_use]
    pub fn derive(name: &TenantName, tenant_id: TenantId) -> Self {
        let id = tenant_id.uuid().simple().to_string();
        let suffix = &id[id.len() - 8..];
        let max_slug = Self::MAX_BYTES - "tenant__".len() - suffix.len();
        let mut slug = String::new();
        for c in name.as_str().chars().flat_map(char::to_lowercase) {
            if c.is_ascii_alphanumeric() {
                slug.push(c);
            } else if !slug.is_empty() && !slug.ends_with('_') {
                slug.push('_');
            }
            if slug.len() == max_slug {
                break;
            }
        }
        let slug = slug.trim_end_matches('_');
        let slug = if slug.is_empty() { "org" } else { slug };
        Self(format!("tenant_{slug}_{suffix}"))
    }

    /// Parses a stored name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let shaped = text.len() <= Self::MAX_BYTES
            && text.starts_with("tenant_")
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        shaped.then(|| Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn derive(name: &str) -> String {
        let id = TenantId::from(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_a1b2_c3d4));
        DatabaseName::derive(&TenantName::parse(name).unwrap(), id).as_str().to_owned()
    }

    #[test]
    fn database_names_consist_of_slug_and_id() {
        assert_eq!(derive("Acme Corp."), "tenant_acme_corp_a1b2c3d4");
        assert_eq!(derive("ÄÖÜ"), "tenant_org_a1b2c3d4");
        assert_eq!(derive("  --x--  "), "tenant_x_a1b2c3d4");
        assert_eq!(derive("'; DROP DATABASE x; --"), "tenant_drop_database_x_a1b2c3d4");
    }

    #[test]
    fn database_names_fit_the_limits_of_postgresql() {
        let name = derive(&"very long name ".repeat(17));
        assert!(name.len() <= 63, "{name}");
        assert!(DatabaseName::parse(&name).is_some());
        for text in ["postgres", "tenant_Äcme_a1b2c3d4", "tenant_a\"b_a1b2c3d4", "tenant_../x"] {
            assert!(DatabaseName::parse(text).is_none(), "{text}");
        }
    }
}
