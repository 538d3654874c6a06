//! The errors that single operations answer with: a handler names its own in the `responses` of its `#[utoipa::path]`, as
//! [`Errors`]. [`openapi`](crate::openapi) adds those that all operations of a kind have in common.

use std::{collections::BTreeMap, marker::PhantomData};

use domain::{Conflict, Denial, Error, Noun, Role, Shortage, TokenProblem};
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

/// Stands for errors, and has an example of each.
pub(crate) trait Examples {
    fn examples() -> Vec<ApiError>;
}

/// Declares types that stand for an error, each with an example of it.
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

    /// The e-mail address or the password is wrong.
    BadCredentials = Error::Unauthenticated(TokenProblem::BadCredentials);

    /// The refresh token was used before.
    TokenReused = Error::Unauthenticated(TokenProblem::Reused);

    /// There is no such user.
    UserNotFound = Error::NotFound(Noun::User);

    /// The user is already a member.
    AlreadyMember = Error::Conflict(Conflict::AlreadyMember { role: Role::Viewer });

    /// The tenant would have no admin.
    LastAdmin = Error::Conflict(Conflict::LastAdmin);

    /// Another request has this `Idempotency-Key`.
    IdempotencyKeyReused = Error::Conflict(Conflict::IdempotencyKeyReused);

    /// The request with this `Idempotency-Key` is still in progress.
    IdempotencyKeyInUse = Error::Conflict(Conflict::IdempotencyKeyInUse);

    /// The tenant would store more than its quota.
    QuotaExceeded = Error::Forbidden(Denial::QuotaExceeded(Shortage { unit: "bytes", quota: 1000, used: 990, reserved: 0, needed: 43 }));

    /// The caller does not own the document.
    NotOwner = Error::Forbidden(Denial::NotOwner);

    /// The document is not the one that `If-Match` names.
    DocumentChanged = Error::PreconditionFailed;

    /// Documents refer to the file.
    FileInUse = Error::Conflict(Conflict::FileInUse { documents: 2 });

    /// The content is larger than an upload may be.
    UploadTooLarge = Error::TooLarge { limit: 104_857_600 };

    /// The content is larger than the upload declared.
    LargerThanDeclared = Error::TooLarge { limit: 43 };

    /// The content does not match what the upload declared.
    UploadFailed = Error::Conflict(Conflict::UploadFailed { reason: "it has 42 bytes instead of 43".into() });

    /// The upload takes no more content.
    UploadClosed = Error::Conflict(Conflict::UploadClosed);

    /// The upload has another offset.
    UploadOffsetMismatch = Error::Conflict(Conflict::UploadOffset { received: 43 });

    /// The content has another checksum than `Upload-Checksum`.
    ChecksumMismatch = Error::ChecksumMismatch;

    /// The client speaks another version of tus.
    TusVersion = ApiError::TusVersion;

    /// The signature does not match the URL, or has expired.
    BadSignature = Error::Forbidden(Denial::BadSignature);

    /// There is no such object.
    ObjectNotFound = Error::NotFound(Noun::Object);

    /// The object is not the one that `If-Match` names.
    ObjectChanged = ApiError::PreconditionFailed;

    /// The object ends before the range.
    RangeNotSatisfiable = ApiError::RangeNotSatisfiable;

    /// A dependency is down.
    NotReady = ApiError::NotReady([("database".to_owned(), "down")].into());

    /// The demonstration is switched off.
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
