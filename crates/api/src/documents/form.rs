//! The form of an upload (`multipart/form-data`).

use axum::{body::BodyDataStream, extract::Request};
use domain::{Error, FieldErrors, Filename, MimeType};
use form_data::{FormData, Part};
use http::{HeaderMap, header};
use http_body_util::Limited;
use services::Upload;
use utoipa::ToSchema;

use crate::{error::ApiError, extract::all, schemas};

/// The upload form. Other fields are ignored: uploaders in browsers send fields of their own.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the form; `Form` reads it")]
pub(crate) struct UploadIn {
    /// The content.
    #[schema(value_type = String, format = Binary, min_length = 1, example = "The quick brown fox jumps over the lazy dog")]
    file: Vec<u8>,
    /// The document's name. Default: the name in the file's part.
    #[schema(required = false, value_type = schemas::Filename)]
    filename: Option<String>,
    /// The document's media type. Default: that of the file's part.
    #[schema(required = false, value_type = schemas::MediaType)]
    mime_type: Option<String>,
}

/// The allowance for a form's content other than its file, in bytes: fields and the headers of parts.
const OVERHEAD: u64 = 64 * 1024;
/// The maximum length of a form field other than the file, in bytes: 255 characters of four bytes.
const MAX_FIELD_BYTES: usize = 1024;

type Body = BodyDataStream;

/// A request whose body is an upload form.
pub(crate) struct FormRequest {
    form: FormData<Body>,
    /// The least size of the file in bytes, if the body's length is declared.
    pub(crate) declared: Option<u64>,
}

impl FormRequest {
    /// Checks the request's headers. Reads nothing of its body, of which at most `max_bytes` for the file will be.
    pub(crate) fn new(request: Request, max_bytes: u64) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = form_data::boundary(content_type).map_err(malformed)?;
        let boundary = boundary.ok_or(ApiError::UnsupportedMediaType("multipart/form-data"))?;
        let limit = max_bytes.saturating_add(OVERHEAD);
        let declared = declared_length(request.headers());
        if declared.is_some_and(|declared| declared > limit) {
            return Err(Error::TooLarge { limit: max_bytes }.into());
        }
        let body = Limited::new(request.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
        let form = FormData::new(axum::body::Body::new(body).into_data_stream(), &boundary);
        Ok(Self { form, declared: declared.map(|form| form.saturating_sub(OVERHEAD)) })
    }

    /// Receives the form; its file goes into the upload.
    pub(crate) async fn receive(mut self, mut upload: Upload) -> Result<ReceivedForm, ApiError> {
        let mut fields = Fields::default();
        while let Some(mut part) = self.form.next_part().await.map_err(unreadable)? {
            match part.head().name.as_str() {
                "file" => {
                    let head = part.head().clone();
                    set(&mut fields.file, "file", (head.filename, head.content_type))?;
                    while let Some(bytes) = part.chunk().await.map_err(unreadable)? {
                        upload.write(bytes).await?;
                    }
                }
                "filename" => set(&mut fields.filename, "filename", read_text("filename", part).await?)?,
                "mime_type" => set(&mut fields.mime_type, "mime_type", read_text("mime_type", part).await?)?,
                _ => {}
            }
        }
        let (filename, mime_type) = fields.parse()?;
        Ok(ReceivedForm { upload, filename, mime_type })
    }
}

/// A form that was received.
pub(crate) struct ReceivedForm {
    pub(crate) upload: Upload,
    pub(crate) filename: Filename,
    pub(crate) mime_type: MimeType,
}

/// The fields of the form.
#[derive(Default)]
struct Fields {
    /// File name and type in the header section of the file's part.
    file: Option<(Option<String>, Option<String>)>,
    filename: Option<String>,
    mime_type: Option<String>,
}

impl Fields {
    fn parse(self) -> Result<(Filename, MimeType), ApiError> {
        let mut errors = FieldErrors::default();
        if self.file.is_none() {
            errors.add("file", "is required");
        }
        let (part_filename, part_type) = self.file.unwrap_or_default();
        let filename = match self.filename.or(part_filename) {
            Some(text) => errors.take("filename", Filename::parse(&text)),
            None => errors.take("filename", Err("is required because the file's part has no filename")),
        };
        let mime_type = match self.mime_type {
            Some(text) => errors.take("mime_type", MimeType::parse(&text)),
            // HTTP libraries set a type on their own, so an invalid one does not fail the upload.
            None => part_type.and_then(|text| MimeType::parse(text.split(';').next()?).ok()).or(Some(MimeType::octet_stream())),
        };
        all(errors, filename.zip(mime_type))
    }
}

/// The body's length in bytes as declared by Content-Length.
pub(crate) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Sets a field that may occur once.
fn set<T>(field: &mut Option<T>, name: &'static str, value: T) -> Result<(), ApiError> {
    if field.replace(value).is_some() { Err(Error::invalid(name, "must occur only once").into()) } else { Ok(()) }
}

async fn read_text(name: &'static str, mut part: Part<'_, Body>) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(bytes) = part.chunk().await.map_err(unreadable)? {
        text.extend_from_slice(&bytes);
        if text.len() > MAX_FIELD_BYTES {
            return Err(Error::invalid(name, "is too long").into());
        }
    }
    String::from_utf8(text).map_err(|_| Error::invalid(name, "must be UTF-8").into())
}

fn unreadable(error: form_data::Error<axum::Error>) -> ApiError {
    match error {
        form_data::Error::Body(error) => ApiError::from_body(&error),
        form_data::Error::Malformed(problem) => malformed(problem),
    }
}

fn malformed(problem: form_data::Problem) -> ApiError {
    ApiError::Malformed(format!("The form can't be read: {problem}."))
}
