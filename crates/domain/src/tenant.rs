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
    /// What its people call it.
    pub name: String,
    /// Where its database lives.
    pub place: TenantPlace,
    /// How far the making of its database has come.
    pub provisioning: Provisioning,
    /// The version of its database's schema; 0 before the first migration.
    pub schema_version: i64,
    /// Since when nobody is let into its database, because a migration of it failed.
    pub quarantined_at: Option<Timestamp>,
    /// Since when nobody may write to its database, because it is moving to another server.
    pub writes_paused_at: Option<Timestamp>,
    /// How much it may store, where that is not as usual.
    pub limits: QuotaLimits,
    /// Whether its members may work in it.
    pub is_active: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who made it.
    pub created_by: Option<UserId>,
}

/// Where a tenant's database lives: all that is needed to open it and to be sure that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPlace {
    /// Whose database it is; the database's identity row must say the same.
    pub tenant_id: TenantId,
    /// The configured name of the server.
    pub server: String,
    /// The database's name on that server.
    pub database: DatabaseName,
}

/// How far the making of a tenant's database has come. Every step can be repeated, so any instance can take up what
/// another left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// Name and place are taken; nothing exists yet.
    Reserved,
    /// The database is being made.
    Creating,
    /// The database exists; its schema is being brought up to date.
    Migrating,
    /// Ready for use.
    Active,
    /// Given up after an error; taken up again by the next resumption.
    Failed,
    /// Being deleted for good: to its members it is not there any more.
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

/// What stays of a tenant that was deleted for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// What its people called it.
    pub name: String,
    /// Whose it is, and where the tenant's database was.
    pub place: TenantPlace,
    /// When the tenant was made.
    pub created_at: Timestamp,
    /// When the last of it was gone.
    pub deleted_at: Timestamp,
    /// Who deleted it; absent for the operator.
    pub deleted_by: Option<UserId>,
}

text_type! {
    /// A tenant's name: trimmed, 1 to 255 characters, no control characters. Need not be unique.
    TenantName
}

impl TenantName {
    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        printable(text, 255, "must be at most 255 characters").map(Self)
    }
}

/// A tenant database's name: `tenant_{slug}_{8 hex}`, at most 63 bytes of `[a-z0-9_]`, so it can stand in a path and, quoted,
/// in a statement. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseName(String);

impl DatabaseName {
    const MAX_BYTES: usize = 63;

    /// The name for a new tenant. The slug is for people; the hex digits are the last eight of the tenant's id, which are
    /// random, and a unique index has the last word.
    #[must_use]
    pub fn derive(name: &TenantName, tenant_id: TenantId) -> Self {
        let id = tenant_id.uuid().simple().to_string();
        let suffix = &id[id.len() - 8..];
        let longest_slug = Self::MAX_BYTES - "tenant__".len() - suffix.len();
        let mut slug = String::new();
        for c in name.as_str().chars().flat_map(char::to_lowercase) {
            if c.is_ascii_alphanumeric() {
                slug.push(c);
            } else if !slug.is_empty() && !slug.ends_with('_') {
                slug.push('_');
            }
            if slug.len() == longest_slug {
                break;
            }
        }
        let slug = slug.trim_end_matches('_');
        let slug = if slug.is_empty() { "org" } else { slug };
        Self(format!("tenant_{slug}_{suffix}"))
    }

    /// A name as it is stored, when it has the promised shape.
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
    fn database_names_are_made_of_slug_and_id() {
        assert_eq!(derive("Acme Corp."), "tenant_acme_corp_a1b2c3d4");
        assert_eq!(derive("ÄÖÜ"), "tenant_org_a1b2c3d4");
        assert_eq!(derive("  --x--  "), "tenant_x_a1b2c3d4");
        assert_eq!(derive("'; DROP DATABASE x; --"), "tenant_drop_database_x_a1b2c3d4");
    }

    #[test]
    fn database_names_fit_postgresql() {
        let name = derive(&"very long name ".repeat(17));
        assert!(name.len() <= 63, "{name}");
        assert!(DatabaseName::parse(&name).is_some());
        for text in ["postgres", "tenant_Äcme_a1b2c3d4", "tenant_a\"b_a1b2c3d4", "tenant_../x"] {
            assert!(DatabaseName::parse(text).is_none(), "{text}");
        }
    }
}
