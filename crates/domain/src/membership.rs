//! Who belongs to which tenant, and what the role allows.

use crate::{TenantId, Timestamp, UserId};

/// What a member may do in a tenant. Ordered: a greater role may do all that a lesser one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, uploads, and changes what is its own.
    User,
    /// Does everything, members included.
    Admin,
}

impl Role {
    /// The role's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }

    /// The role with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::User, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// The association of a user with a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Who.
    pub user_id: UserId,
    /// Where.
    pub tenant_id: TenantId,
    /// As what.
    pub role: Role,
    /// Since when.
    pub joined_at: Timestamp,
}

/// A member of a tenant with the facts that the caller may see: the user when a tenant's members are listed, the tenant when
/// a user's are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<Of> {
    /// The association itself.
    pub membership: Membership,
    /// Its other side.
    pub of: Of,
}
