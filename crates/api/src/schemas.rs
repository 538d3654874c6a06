//! Schemas of values that `domain` validates: each rule expressed as JSON Schema, in one place.

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
        schema::Type::{Integer, Object, String},
    },
};

/// Declares marker types for schemas in `value_type`; their doc comments are the schemas' descriptions.
macro_rules! schemas {
    ($($(#[doc = $doc:literal])+ $name:ident = $schema:expr;)+) => {$(
        $(#[doc = $doc])+
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.description(Some(concat!($($doc),+).trim())).into()
            }
        }

        impl ToSchema for $name {}
    )+};
}

schemas! {
    /// An e-mail address as defined by the WHATWG HTML standard for e-mail fields, with a dot in the domain. Stored in lower case.
    Email = text("ada@example.com").max_length(Some(255)).pattern(Some(EMAIL));

    /// 8 to 256 characters with at least one letter and one digit.
    NewPassword = text("correct horse 1").format(known(KnownFormat::Password)).min_length(Some(8)).max_length(Some(256))
        .pattern(Some(r"[A-Za-z][\s\S]*[0-9]|[0-9][\s\S]*[A-Za-z]"));

    /// A person's first or last name.
    PersonName = text("Ada").min_length(Some(1)).max_length(Some(100)).pattern(Some(PRINTABLE));

    /// The tenant's display name. Need not be unique.
    TenantName = text("Acme Corp").min_length(Some(1)).max_length(Some(255)).pattern(Some(PRINTABLE));

    /// A document's name, without path, and neither `.` nor `..`.
    Filename = text("Report 2026.pdf").min_length(Some(1)).max_length(Some(255)).pattern(Some(FILENAME));

    /// A substring of a document's name, case-insensitive.
    PartOfFilename = text("report").max_length(Some(255)).pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]*$"));

    /// A media type without parameters (RFC 6838). Stored in lower case.
    MediaType = text("application/pdf").min_length(Some(3)).max_length(Some(100)).pattern(Some(MEDIA_TYPE));

    /// An audit action: lower-case words separated by dots.
    AuditAction = text("member.added").max_length(Some(64)).pattern(Some(r"^[a-z_]+(\.[a-z_]+)*$"));

    /// Action-specific details.
    Particulars = ObjectBuilder::new().schema_type(Object).examples([json!({ "member_id": "01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a", "role": "user" })]);

    /// A demo topic.
    DemoTopic = text("demo.greetings").min_length(Some(6)).max_length(Some(64)).pattern(Some(r"^demo\.[A-Za-z0-9._-]+$"));

    /// The message's key.
    DemoKey = text("a").max_length(Some(64));

    /// The message's content.
    DemoContent = ObjectBuilder::new().schema_type(Object).examples([json!({ "hello": "world" })]);

    /// Maximum number of messages.
    DemoLimit = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(50)).default(Some(10.into()));

    /// An RFC 3339 timestamp.
    Timestamp = text("2026-11-24T09:30:00Z").format(known(KnownFormat::DateTime));

    /// Page number, from 1.
    PageNumber = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(u32::MAX)).default(Some(1.into()));

    /// Items per page.
    PerPage = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(100)).default(Some(20.into()));

    /// Uploaded content; must not be empty.
    Content = text("The quick brown fox jumps over the lazy dog").format(known(KnownFormat::Binary)).min_length(Some(1));

    /// Content, or a range of it.
    Binary = text("The quick brown fox jumps over the lazy dog").format(known(KnownFormat::Binary));
}

/// No control characters, and at least one character that is not whitespace.
const PRINTABLE: &str = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$";
const FILENAME: &str = r"^(?!\s*\.{1,2}\s*$)[^/\\\x00-\x1f\x7f-\x9f]*[^\s/\\\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]*$";
const MEDIA_TYPE: &str = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*$";
const EMAIL: &str = concat!(
    r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@",
    r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+$"
);

fn text(example: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(String).examples([example])
}

fn known(format: KnownFormat) -> Option<SchemaFormat> {
    Some(SchemaFormat::KnownFormat(format))
}
