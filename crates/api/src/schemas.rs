//! The schemas of values that obey a rule of `domain`: each rule as JSON Schema says it, in one place.

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
        schema::Type::{Integer, Object, String},
    },
};

/// Declares types that stand for a schema in `value_type`; their comments are the schemas' descriptions.
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
    /// An e-mail address, the shape that WHATWG's HTML standard asks of an e-mail field, with a dot in the domain. Kept in lower case.
    Email = text("ada@example.com").max_length(Some(255)).pattern(Some(EMAIL));

    /// 8 to 256 characters with at least one letter and one digit.
    NewPassword = text("correct horse 1").format(known(KnownFormat::Password)).min_length(Some(8)).max_length(Some(256))
        .pattern(Some(r"[A-Za-z][\s\S]*[0-9]|[0-9][\s\S]*[A-Za-z]"));

    /// A person's first or last name.
    PersonName = text("Ada").min_length(Some(1)).max_length(Some(100)).pattern(Some(PRINTABLE));

    /// What people call a tenant. Need not be unique.
    TenantName = text("Acme Corp").min_length(Some(1)).max_length(Some(255)).pattern(Some(PRINTABLE));

    /// A document's name, without path, and neither `.` nor `..`.
    Filename = text("Report 2026.pdf").min_length(Some(1)).max_length(Some(255)).pattern(Some(FILENAME));

    /// A part of a document's name, in any case.
    PartOfFilename = text("report").max_length(Some(255)).pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]*$"));

    /// A media type without parameters (RFC 6838). Kept in lower case.
    MediaType = text("application/pdf").min_length(Some(3)).max_length(Some(100)).pattern(Some(MEDIA_TYPE));

    /// What was done: words in lower case with points between them.
    AuditAction = text("member.added").max_length(Some(64)).pattern(Some(r"^[a-z_]+(\.[a-z_]+)*$"));

    /// The particulars.
    Particulars = ObjectBuilder::new().schema_type(Object).examples([json!({ "member_id": "01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a", "role": "user" })]);

    /// A topic of the demonstration.
    DemoTopic = text("demo.greetings").min_length(Some(6)).max_length(Some(64)).pattern(Some(r"^demo\.[A-Za-z0-9._-]+$"));

    /// A message's key.
    DemoKey = text("a").max_length(Some(64));

    /// A message's content.
    DemoContent = ObjectBuilder::new().schema_type(Object).examples([json!({ "hello": "world" })]);

    /// How many messages are shown.
    DemoLimit = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(50)).default(Some(10.into()));

    /// A moment, as RFC 3339 has it.
    Timestamp = text("2026-11-24T09:30:00Z").format(known(KnownFormat::DateTime));

    /// The page's number, from 1.
    PageNumber = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(u32::MAX)).default(Some(1.into()));

    /// How many items a page has.
    PerPage = ObjectBuilder::new().schema_type(Integer).minimum(Some(1)).maximum(Some(100)).default(Some(20.into()));

    /// Content that is sent: never empty.
    Content = text("The quick brown fox jumps over the lazy dog").format(known(KnownFormat::Binary)).min_length(Some(1));

    /// Content, or a part of it.
    Binary = text("The quick brown fox jumps over the lazy dog").format(known(KnownFormat::Binary));
}

/// No control characters, and something besides blanks.
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
