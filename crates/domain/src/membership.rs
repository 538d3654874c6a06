//! Memberships of users in tenants, and their roles.

use crate::{TenantId, Timestamp, UserId};

/// A member's role in a tenant. Ordered: a higher role has all permissions of the lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May read.
    Viewer,
    /// May read, upload, and change its own documents.
    User,
    /// May do everything, including the management of members.
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

    /// The role with this name, in any case and with blanks around it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::User, Self::Admin].into_iter().find(|role| role.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

/// The association of a user with a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The user.
    pub user_id: UserId,
    /// The tenant.
    pub tenant_id: TenantId,
    /// The user's role in the tenant.
    pub role: Role,
    /// When the user joined.
    pub joined_at: Timestamp,
}

/// A membership with its other side: the user when a tenant's members are listed, the tenant when a user's tenants are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<Of> {
    /// The association itself.
    pub membership: Membership,
    /// The user or the tenant.
    pub of: Of,
}
