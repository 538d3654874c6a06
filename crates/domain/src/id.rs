//! Identifiers: a UUID with the type of what it names, so that one can't be passed for another.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::Clock;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identifier: UUID version 7 (RFC 9562), so ids made later sort after ids made earlier.
            #[must_use]
            pub fn generate(clock: &dyn Clock) -> Self {
                Self(clock.new_uuid())
            }

            /// The identifier as a plain UUID.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

id! {
    /// A person with an account.
    UserId,
    /// A customer's organisation.
    TenantId,
    /// A document of a tenant.
    DocumentId,
    /// Stored content of a tenant, which one or more documents refer to.
    FileId,
    /// An upload that comes in parts.
    UploadId,
    /// A login: what access and refresh tokens belong to.
    SessionId,
    /// One token (`jti`).
    TokenId,
    /// An event in an outbox.
    EventId,
}
