//! The values that both engines store, and rows of them. Unsigned numbers beyond [`i64::MAX`] are stored as that.
//!
//! | value | PostgreSQL | SQLite |
//! | --- | --- | --- |
//! | [`Value::Uuid`] | uuid | 16-byte blob |
//! | [`Value::Time`] | timestamptz | integer, microseconds since 1970 |
//! | [`Value::Bool`] | boolean | integer 0 or 1 |
//! | [`Value::Int`] | smallint, integer, bigint | integer |
//! | [`Value::Text`] | text | text |
//! | [`Value::Bytes`] | bytea | blob |

use domain::{DocumentId, EventId, FileId, SessionId, TenantId, Timestamp, TokenId, UploadId, UserId, saturating_i64};
use uuid::Uuid;

use crate::error::{Error, Result};

/// A parameter of a statement, or a column of a row.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are named after what they hold")]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Uuid(Uuid),
    Time(Timestamp),
}

/// The parameters of a statement: `params![id, name]` stands for `$1` and `$2`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$($crate::Value::from($value)),*] };
}

macro_rules! into_value {
    ($($from:ty => |$name:ident| $value:expr),+ $(,)?) => {$(
        impl From<$from> for Value {
            fn from($name: $from) -> Self {
                $value
            }
        }
    )+};
}

into_value! {
    bool => |b| Self::Bool(b),
    i64 => |n| Self::Int(n),
    u32 => |n| Self::Int(i64::from(n)),
    u64 => |n| Self::Int(saturating_i64(n)),
    String => |text| Self::Text(text),
    &str => |text| Self::Text(text.to_owned()),
    Vec<u8> => |bytes| Self::Bytes(bytes),
    &[u8] => |bytes| Self::Bytes(bytes.to_vec()),
    Uuid => |uuid| Self::Uuid(uuid),
    Timestamp => |at| Self::Time(at),
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row of a result, read from its first column to its last.
#[derive(Debug)]
pub struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(crate) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    pub(crate) fn into_values(self) -> Vec<Value> {
        self.0.collect()
    }

    /// The next column.
    ///
    /// # Errors
    /// When there is none, or it holds another type: the statement and its reader don't match.
    pub fn take<T: FromValue>(&mut self) -> Result<T> {
        let value = self.0.next().ok_or_else(|| Error::internal("a row has fewer columns than are read"))?;
        T::from_value(value)
    }
}

/// A type that a column can be read as.
pub trait FromValue: Sized {
    /// Reads the value.
    ///
    /// # Errors
    /// When it is of another type.
    fn from_value(value: Value) -> Result<Self>;
}

fn mismatch<T>(wanted: &str, found: &Value) -> Result<T> {
    // Names only the type: the value may be a user's data.
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        Value::Uuid(_) => "uuid",
        Value::Time(_) => "time",
    };
    Err(Error::internal(format!("a column holds {found} where {wanted} is read")))
}

impl FromValue for Uuid {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Uuid(uuid) => Ok(uuid),
            Value::Bytes(bytes) => Self::from_slice(&bytes).map_err(Error::internal),
            other => mismatch("uuid", &other),
        }
    }
}

impl FromValue for Timestamp {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Time(at) => Ok(at),
            Value::Int(micros) => Ok(Self::from_micros(micros)),
            other => mismatch("time", &other),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Bool(b) => Ok(b),
            Value::Int(n) => Ok(n != 0),
            other => mismatch("boolean", &other),
        }
    }
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Int(n) => Ok(n),
            other => mismatch("integer", &other),
        }
    }
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Result<Self> {
        Self::try_from(i64::from_value(value)?).map_err(Error::internal)
    }
}

impl FromValue for u64 {
    fn from_value(value: Value) -> Result<Self> {
        Self::try_from(i64::from_value(value)?).map_err(Error::internal)
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Text(text) => Ok(text),
            other => mismatch("text", &other),
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Bytes(bytes) => Ok(bytes),
            other => mismatch("bytes", &other),
        }
    }
}

impl<const N: usize> FromValue for [u8; N] {
    fn from_value(value: Value) -> Result<Self> {
        Vec::from_value(value)?.try_into().map_err(|_| Error::internal(format!("a column does not hold {N} bytes")))
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Result<Self> {
        match value {
            Value::Null => Ok(None),
            other => T::from_value(other).map(Some),
        }
    }
}

macro_rules! id_values {
    ($($id:ty),+ $(,)?) => {$(
        impl From<$id> for Value {
            fn from(id: $id) -> Self {
                Self::Uuid(id.uuid())
            }
        }

        impl FromValue for $id {
            fn from_value(value: Value) -> Result<Self> {
                Uuid::from_value(value).map(Self::from)
            }
        }
    )+};
}

id_values!(DocumentId, EventId, FileId, SessionId, TenantId, TokenId, UploadId, UserId);
