//! Identifiers: UUIDs with a type of their own per resource, so that the compiler rejects a mix-up.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::Clock;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identifier: UUID version 7 (RFC 9562), so newer ids sort after older ones.
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
    /// A user.
    UserId,
    /// A tenant.
    TenantId,
    /// A document of a tenant.
    DocumentId,
    /// Stored content of a tenant, which one or more documents refer to.
    FileId,
    /// A multipart upload.
    UploadId,
    /// A session, to which access and refresh tokens belong.
    SessionId,
    /// One token (`jti`).
    TokenId,
    /// An event in an outbox.
    EventId,
}
