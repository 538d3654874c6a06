//! The specification: what every operation has in common, added in one place.

use std::time::Duration;

use axum::http::StatusCode;
use domain::{Conflict, Denial, Dependency, Error, FieldErrors, Noun, Role, Shortage, TokenProblem};
use serde_json::{Map, Value, json};
use utoipa::{OpenApi, openapi::OpenApi as Specification};

use crate::error::{ApiError, Failure};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tenantry",
        description = "A multi-tenant backend: accounts, tenants with members and roles, and documents, with a database of its own for every tenant.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Failure)),
    servers((url = "/", description = "This server")),
    tags(
        (name = "auth", description = "Accounts, login, refresh, logout."),
        (name = "users", description = "The caller's own profile and tenants."),
        (name = "tenants", description = "Tenants: customers' organisations, each with a database of its own."),
        (name = "members", description = "Who belongs to a tenant, and as what."),
        (name = "documents", description = "Documents: upload, list, download, change, delete."),
        (name = "uploads", description = "Uploads in parts: direct ones, whose bytes need not pass through the API, and resumable ones by tus 1.0."),
        (name = "versions", description = "The contents that a document has and had."),
        (name = "trash", description = "Deleted documents, which can be brought back for a time."),
        (name = "files", description = "Stored content, once per tenant."),
        (name = "objects", description = "Downloads by signed URL."),
        (name = "demo", description = "A demonstration of the bus that events go by; not in production."),
        (name = "health", description = "Whether the service and what it rests on answer."),
    ),
)]
struct Base;

/// The specification without paths.
pub(crate) fn base() -> Specification {
    Base::openapi()
}

/// The specification with what goes without saying in the code: who may call an operation, what it refuses with, which
/// headers come with its answers, how requests and answers look, and which operation goes on where another one ended.
pub(crate) fn complete(specification: &Specification) -> Value {
    let mut document = json!(specification);
    let schemas = document["components"]["schemas"].take();
    let mut failures = Map::new();
    for (path, operations) in members_of(&mut document, "/paths") {
        for (method, operation) in members_of(operations, "") {
            // An operation that says nothing of security wants an access token.
            if operation.get("security").is_none() {
                operation["security"] = json!([{ "access_token": [] }]);
            }
            add_examples(operation, &schemas);
            for refusal in refusals(method, path, operation) {
                let (status, code, body) = refusal.example();
                // What tus clients take for "try again".
                let is_find = operation["operationId"] == "find_tus" && status == StatusCode::SERVICE_UNAVAILABLE;
                let status = if is_find { StatusCode::LOCKED } else { status };
                add_failure(&mut operation["responses"], status, code);
                failures.insert(code.to_owned(), json!({ "summary": body["error"]["message"], "value": body }));
            }
            add_headers(&mut operation["responses"]);
            add_links(operation);
        }
    }
    document["components"] = json!({
        "schemas": schemas,
        "examples": failures,
        "headers": headers(),
        "securitySchemes": {
            "access_token": bearer("The access token of a login."),
            "refresh_token": bearer("The refresh token that was got last."),
        },
    });
    // Two rules that the types can't tell.
    document["components"]["schemas"]["AddMemberIn"]["oneOf"] = json!([{ "required": ["user_id"] }, { "required": ["email"] }]);
    document["paths"]["/api/auth/refresh"]["post"]["requestBody"]["required"] = json!(false);
    document
}

/// The members of the object there, if there is one.
fn members_of<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    value.pointer_mut(pointer).and_then(Value::as_object_mut).into_iter().flatten()
}

fn bearer(description: &str) -> Value {
    json!({ "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": description })
}

/// Shows the body of the request and of each successful answer.
fn add_examples(operation: &mut Value, schemas: &Value) {
    for (_, content) in members_of(operation, "/requestBody/content") {
        content["example"] = example_of(&content["schema"], schemas);
    }
    for (_, response) in members_of(operation, "/responses") {
        let message = response["description"].clone();
        if let Some(answer) = response.pointer_mut("/content/application~1json") {
            answer["example"] = example_of(&answer["schema"], schemas);
            answer["example"]["message"] = message;
        }
    }
}

/// An example of what a schema describes, put together from the examples of its parts.
fn example_of(schema: &Value, schemas: &Value) -> Value {
    if let Some(example) = schema.get("example").or_else(|| schema.get("examples")?.get(0)) {
        return example.clone();
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return example_of(&schemas[name], schemas);
    }
    // What may be null, when it is not.
    if let Some(variant) = schema["oneOf"].as_array().and_then(|variants| variants.iter().find(|variant| variant["type"] != "null")) {
        return example_of(variant, schemas);
    }
    let empty = (Map::new(), Vec::new());
    let parts = schema["allOf"].as_array().unwrap_or(&empty.1).iter().map(|part| example_of(part, schemas));
    let inherited = parts.filter_map(|part| part.as_object().cloned()).flatten();
    let own = schema["properties"].as_object().unwrap_or(&empty.0).iter();
    let members: Map<_, _> = inherited.chain(own.map(|(name, schema)| (name.clone(), example_of(schema, schemas)))).collect();
    match (schema["type"].as_str(), schema["format"].as_str()) {
        _ if !members.is_empty() => members.into(),
        (Some("array"), _) => json!([example_of(&schema["items"], schemas)]),
        (Some("boolean"), _) => json!(true),
        (_, Some("uuid")) => json!("01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a"),
        _ => Value::Null,
    }
}

/// What an operation may refuse with.
fn refusals(method: &str, path: &str, operation: &Value) -> Vec<ApiError> {
    use ApiError as Api;
    let unauthenticated = |problem| Api::from(Error::Unauthenticated(problem));
    let conflict = |conflict| Api::from(Error::Conflict(conflict));
    let denied = |denial| Api::from(Error::Forbidden(denial));
    let missing = |noun| Api::from(Error::NotFound(noun));

    let short = || denied(Denial::QuotaExceeded(Shortage { unit: "bytes", quota: 1000, used: 990, reserved: 0, needed: 43 }));
    let failed = || conflict(Conflict::UploadFailed { reason: "it has 42 bytes instead of 43".into() });

    let id = operation["operationId"].as_str().unwrap_or_default();
    let wants_token = operation["security"] == json!([{ "access_token": [] }]);
    let has_body = operation.get("requestBody").is_some();
    let of_tenant = path.contains("{tenant_id}");
    let mut refusals = Vec::new();
    if has_body || operation.get("parameters").is_some() {
        let mut errors = FieldErrors::default();
        errors.add("name", "is required");
        refusals
            .extend([Api::from(Error::Invalid(errors)), Api::Malformed("The body is not JSON: expected value at line 1 column 2.".into())]);
    }
    if has_body {
        let wanted = operation["requestBody"]["content"].as_object().and_then(|types| types.keys().next().cloned());
        let wanted = match wanted.as_deref() {
            Some("multipart/form-data") => "multipart/form-data",
            Some("application/offset+octet-stream") => "application/offset+octet-stream",
            Some("application/octet-stream") => "the content itself, not a form",
            _ => "application/json",
        };
        refusals.extend([Api::BodyTooSlow, Api::BodyTooLarge, Api::UnsupportedMediaType(wanted)]);
    }
    if wants_token || id == "refresh" {
        use TokenProblem::{Expired, Invalid, Missing, Revoked};
        refusals.extend([Missing, Invalid, Expired, Revoked].map(unauthenticated));
    }
    if of_tenant {
        refusals.extend([missing(Noun::Tenant), denied(Denial::TenantInactive)]);
        refusals.extend((method != "get").then(|| denied(Denial::RoleTooLow { needed: Role::Admin })));
    }
    let nouns = [
        ("{document_id}", Noun::Document),
        ("{version}", Noun::Version),
        ("{upload_id}", Noun::Upload),
        ("{file_id}", Noun::File),
        ("{user_id}", Noun::Member),
    ];
    refusals.extend(nouns.into_iter().filter(|(part, _)| path.contains(part)).map(|(_, noun)| missing(noun)));
    refusals.extend(match id {
        "register" => vec![conflict(Conflict::EmailTaken)],
        "log_in" => vec![unauthenticated(TokenProblem::BadCredentials)],
        "refresh" => vec![unauthenticated(TokenProblem::Reused)],
        "add_member" => vec![missing(Noun::User), conflict(Conflict::AlreadyMember { role: Role::Viewer })],
        "change_role" | "remove_member" => vec![conflict(Conflict::LastAdmin)],
        "create_tenant" => vec![conflict(Conflict::IdempotencyKeyReused), conflict(Conflict::IdempotencyKeyInUse)],
        "upload_document" => vec![conflict(Conflict::IdempotencyKeyReused), short()],
        "begin_upload" => vec![short()],
        "begin_tus" => vec![short(), Error::TooLarge { limit: 104_857_600 }.into(), Api::TusVersion],
        "find_tus" => vec![Api::TusVersion, failed()],
        "end_tus" => vec![Api::TusVersion],
        "append_tus" | "override_tus" => vec![
            conflict(Conflict::UploadOffset { received: 43 }),
            failed(),
            Error::ChecksumMismatch.into(),
            Error::TooLarge { limit: 43 }.into(),
            Api::TusVersion,
        ],
        "complete_upload" => vec![failed()],
        "abort_upload" => vec![conflict(Conflict::UploadClosed)],
        "upload_part" => vec![denied(Denial::BadSignature), conflict(Conflict::UploadClosed)],
        "replace_content" => vec![denied(Denial::NotOwner), Error::PreconditionFailed.into(), short()],
        "update_document" | "delete_document" | "restore_version" => vec![denied(Denial::NotOwner), Error::PreconditionFailed.into()],
        "restore_document" | "purge_document" => vec![denied(Denial::NotOwner)],
        "delete_file" => vec![conflict(Conflict::FileInUse { documents: 2 })],
        "download_object" => {
            vec![denied(Denial::BadSignature), missing(Noun::Object), Api::PreconditionFailed, Api::RangeNotSatisfiable]
        }
        "ready" => vec![Api::NotReady([("database".to_owned(), "down")].into())],
        _ => vec![],
    });
    if path.starts_with("/api/demo/") {
        refusals.push(Api::NoRoute);
    }
    let rests_on_something = of_tenant || operation["tags"] != json!(["health"]);
    if rests_on_something {
        refusals.push(Error::Overloaded { what: "database connections", retry_after: Duration::from_secs(1) }.into());
        refusals.push(Error::Unavailable { dependency: Dependency::Database, source: "down".into() }.into());
    }
    refusals
}

fn add_failure(responses: &mut Value, status: StatusCode, code: &str) {
    let response = &mut responses[status.as_str()];
    response["description"] = json!(meaning(status));
    let content = &mut response["content"]["application/json"];
    content["schema"] = json!({ "$ref": "#/components/schemas/Failure" });
    content["examples"][code] = json!({ "$ref": format!("#/components/examples/{code}") });
}

const fn meaning(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "Malformed or not valid",
        StatusCode::UNAUTHORIZED => "No valid token or credentials",
        StatusCode::FORBIDDEN => "The role or the state of things forbids it",
        StatusCode::NOT_FOUND => "Not there, or not yours to know of",
        StatusCode::REQUEST_TIMEOUT => "The body came too slowly",
        StatusCode::CONFLICT => "It contradicts what is there",
        StatusCode::PRECONDITION_FAILED => "The object is not the one that If-Match names",
        StatusCode::PAYLOAD_TOO_LARGE => "The body is too large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "The body is of another type",
        StatusCode::RANGE_NOT_SATISFIABLE => "The object ends before that",
        _ if status.as_u16() == 460 => "The checksum is another one",
        _ => "A dependency is down, or there is too much to do",
    }
}

/// Headers that come with every answer of a status.
fn add_headers(responses: &mut Value) {
    for (status, response) in members_of(responses, "") {
        let of_status = match status.as_str() {
            "401" => Some("WWW-Authenticate"),
            "423" | "503" => Some("Retry-After"),
            _ => None,
        };
        for name in of_status.into_iter().chain(["X-Request-Id"]) {
            response["headers"][name] = json!({ "$ref": format!("#/components/headers/{name}") });
        }
    }
}

fn headers() -> Value {
    json!({
        "X-Request-Id": {
            "description": "The request's id: the client's own, where it sent one of 1 to 128 visible ASCII characters.",
            "required": true,
            "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
            "example": "01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a",
        },
        "WWW-Authenticate": {
            "description": "How to authenticate (RFC 6750).",
            "required": true,
            "schema": { "type": "string" },
            "example": "Bearer error=\"invalid_token\"",
        },
        "Retry-After": {
            "description": "In how many seconds to try again.",
            "required": true,
            "schema": { "type": "integer", "minimum": 1 },
            "example": 5,
        },
    })
}

/// The operations that go on where another one ended: with its path's parameters, and with this one from its answer.
const LINKS: &[(&str, &str, &str, &[&str])] = &[
    (
        "create_tenant",
        "tenant_id",
        "id",
        &[
            "get_tenant",
            "update_tenant",
            "delete_tenant",
            "add_member",
            "upload_document",
            "begin_upload",
            "describe_tus",
            "begin_tus",
            "list_documents",
            "list_files",
            "list_trash",
            "get_storage",
            "list_audit",
            "documents_health",
        ],
    ),
    ("add_member", "user_id", "user_id", &["change_role", "remove_member"]),
    (
        "upload_document",
        "document_id",
        "id",
        &[
            "get_document",
            "download_document",
            "update_document",
            "replace_content",
            "list_versions",
            "delete_document",
            "restore_document",
            "purge_document",
        ],
    ),
    ("upload_document", "file_id", "file_id", &["get_file", "delete_file"]),
];

fn add_links(operation: &mut Value) {
    let of_this = LINKS.iter().filter(|(from, ..)| operation["operationId"] == *from);
    let links = of_this.flat_map(|(from, parameter, member, to)| {
        let mut parameters = json!({ *parameter: format!("$response.body#/data/{member}") });
        if *from != "create_tenant" {
            parameters["tenant_id"] = json!("$request.path.tenant_id");
        }
        to.iter().map(move |to| ((*to).to_owned(), json!({ "operationId": to, "parameters": parameters })))
    });
    let links: Map<_, _> = links.collect();
    if !links.is_empty() {
        operation["responses"]["201"]["links"] = links.into();
    }
}
