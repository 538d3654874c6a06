//! Operation-specific errors: a handler lists them as [`Errors`] in the `responses` of its `#[utoipa::path]`.
//! [`openapi`](crate::openapi) adds those that operations of a kind have in common.

use std::{collections::BTreeMap, marker::PhantomData};

use domain::{Conflict, Error, ForbiddenReason, ResourceKind, Role, TokenProblem};
use utoipa::{
    IntoResponses,
    openapi::{ContentBuilder, RefOr, Response, ResponseBuilder, example::ExampleBuilder},
};

use crate::error::ApiError;

/// The errors of an operation, in its `responses`: one, or several as a tuple.
pub(crate) struct Errors<T>(PhantomData<T>);

impl<T: Examples> IntoResponses for Errors<T> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut contents = BTreeMap::<_, ContentBuilder>::new();
        for (status, code, body) in T::examples().iter().map(ApiError::example) {
            let example = ExampleBuilder::new().value(Some(body)).build();
            let content = contents.remove(status.as_str()).unwrap_or_default().examples_from_iter([(code, example)]);
            contents.insert(status.as_str().to_owned(), content);
        }
        let response = |content: ContentBuilder| ResponseBuilder::new().content("application/json", content.build()).build();
        contents.into_iter().map(|(status, content)| (status, response(content).into())).collect()
    }
}

/// Marker types for errors, with an example of each.
pub(crate) trait Examples {
    fn examples() -> Vec<ApiError>;
}

/// Declares a marker type with an example for each error.
macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident = $example:expr;)+) => {$(
        $(#[doc = $doc])+
        pub(crate) struct $name;

        impl Examples for $name {
            fn examples() -> Vec<ApiError> {
                vec![$example.into()]
            }
        }
    )+};
}

errors! {
    /// The e-mail address belongs to another account.
    EmailTaken = Error::Conflict(Conflict::EmailTaken);

    /// The operator alone creates accounts.
    RegistrationClosed = Error::Forbidden(ForbiddenReason::RegistrationClosed);

    /// The user has created as many tenants as are allowed.
    TooManyTenants = Error::Forbidden(ForbiddenReason::TooManyTenants { limit: 100 });

    /// The e-mail address or the password is wrong.
    BadCredentials = Error::Unauthenticated(TokenProblem::BadCredentials);

    /// The refresh token was already used.
    TokenReused = Error::Unauthenticated(TokenProblem::Reused);

    /// There is no such user.
    UserNotFound = Error::NotFound(ResourceKind::User);

    /// The user is already a member.
    AlreadyMember = Error::Conflict(Conflict::AlreadyMember { role: Role::Viewer });

    /// The tenant would have no admin.
    LastAdmin = Error::Conflict(Conflict::LastAdmin);

    /// The `Idempotency-Key` was used for a different request.
    IdempotencyKeyReused = Error::Conflict(Conflict::IdempotencyKeyReused);

    /// The request with this `Idempotency-Key` is still in progress.
    IdempotencyKeyInUse = Error::Conflict(Conflict::IdempotencyKeyInUse);

    /// The tenant would store more than its quota.
    QuotaExceeded = Error::Forbidden(ForbiddenReason::QuotaExceeded(domain::QuotaExceeded { unit: "bytes", quota: 1000, used: 990, reserved: 0, needed: 43 }));

    /// The caller does not own the document.
    NotOwner = Error::Forbidden(ForbiddenReason::NotOwner);

    /// The document's entity tag does not satisfy `If-Match` or `If-None-Match`.
    DocumentChanged = Error::PreconditionFailed;

    /// The file is in use by documents.
    FileInUse = Error::Conflict(Conflict::FileInUse { documents: 2 });

    /// The content exceeds the upload limit.
    UploadTooLarge = Error::TooLarge { limit: 104_857_600 };

    /// The content is larger than the upload declared.
    LargerThanDeclared = Error::TooLarge { limit: 43 };

    /// The content does not match what the upload declared.
    UploadFailed = Error::Conflict(Conflict::UploadFailed { reason: "it has 42 bytes instead of 43".into() });

    /// The upload is closed and accepts no more data.
    UploadClosed = Error::Conflict(Conflict::UploadClosed);

    /// `Upload-Offset` does not match the upload's offset.
    UploadOffsetMismatch = Error::Conflict(Conflict::UploadOffset { received: 43 });

    /// The data does not match `Upload-Checksum`.
    ChecksumMismatch = Error::ChecksumMismatch;

    /// The client uses an unsupported version of tus.
    TusVersion = ApiError::TusVersion;

    /// The signature does not match the URL, or has expired.
    BadSignature = Error::Forbidden(ForbiddenReason::BadSignature);

    /// There is no such object.
    ObjectNotFound = Error::NotFound(ResourceKind::Object);

    /// The object's entity tag does not satisfy `If-Match`.
    ObjectChanged = ApiError::PreconditionFailed;

    /// The requested range lies outside the object.
    RangeNotSatisfiable = ApiError::RangeNotSatisfiable;

    /// A dependency is down.
    NotReady = ApiError::NotReady([("database".to_owned(), "down")].into());

    /// The demo routes are switched off.
    DemoOff = ApiError::NoRoute;
}

macro_rules! tuples {
    ($(($($part:ident),+))+) => {$(
        impl<$($part: Examples),+> Examples for ($($part),+) {
            fn examples() -> Vec<ApiError> {
                [$($part::examples()),+].into_iter().flatten().collect()
            }
        }
    )+};
}

tuples! {
    (A, B)
    (A, B, C)
    (A, B, C, D)
    (A, B, C, D, E)
}
