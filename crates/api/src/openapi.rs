//! The OpenAPI specification: adds the parts that all operations have in common.

use std::{mem, time::Duration};

use axum::http::StatusCode;
use domain::{Dependency, Error, ForbiddenReason, ResourceKind, Role, TokenProblem};
use serde_json::{Map, Value, json};
use utoipa::{OpenApi, openapi::OpenApi as Specification};

use crate::error::{ApiError, Failure};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tenantry",
        description = "A multi-tenant backend: accounts, tenants with members and roles, and documents. Every tenant has its own database.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Failure)),
    // Relative to where the specification was found.
    servers((url = "./", description = "This server")),
    tags(
        (name = "auth", description = "Accounts, login, refresh, logout."),
        (name = "users", description = "The caller's own profile and tenants."),
        (name = "tenants", description = "Tenants: customers' organisations, each with its own database."),
        (name = "members", description = "Members of a tenant and their roles."),
        (name = "documents", description = "Documents: upload, list, download, change, delete."),
        (name = "uploads", description = "Multipart uploads: direct ones, whose bytes need not pass through the API, and resumable ones by tus 1.0."),
        (name = "versions", description = "The versions of a document's content."),
        (name = "trash", description = "Deleted documents, which can be restored for a time."),
        (name = "files", description = "Stored content, deduplicated per tenant."),
        (name = "objects", description = "Downloads by signed URL."),
        (name = "demo", description = "A demonstration of the event bus; not in production."),
        (name = "health", description = "Health of the service and its dependencies."),
    ),
)]
struct Base;

/// The specification without paths.
pub(crate) fn base() -> Specification {
    Base::openapi()
}

/// Completes the specification with what the code does not annotate per operation: security, common errors, response headers,
/// examples, and links between operations.
pub(crate) fn complete(specification: &Specification) -> Value {
    let mut document = json!(specification);
    // Two rules that the types can't express.
    document["components"]["schemas"]["AddMemberIn"]["oneOf"] = json!([{ "required": ["email"] }, { "required": ["user_id"] }]);
    let schemas = document["components"]["schemas"].take();
    let refresh_example = example_of(&schemas["RefreshIn"], &schemas);
    let mut examples = Map::new();
    for (path, operations) in members_of(&mut document, "/paths") {
        for (method, operation) in members_of(operations, "") {
            complete_operation(method, path, operation, &schemas, &mut examples);
        }
    }
    document["components"] = json!({
        "schemas": schemas,
        "examples": examples,
        "headers": headers(),
        "securitySchemes": {
            "access_token": bearer("The access token from login or refresh."),
            "refresh_token": bearer("The most recent refresh token."),
        },
    });
    let refresh = &mut document["paths"]["/api/auth/refresh"]["post"]["requestBody"];
    refresh["required"] = json!(false);
    // All of it is optional, and yet what clients send.
    refresh["content"]["application/json"]["example"] = refresh_example;
    document
}

fn complete_operation(method: &str, path: &str, operation: &mut Value, schemas: &Value, examples: &mut Map<String, Value>) {
    // An operation without a security annotation requires an access token.
    if operation.get("security").is_none() {
        operation["security"] = json!([{ "access_token": [] }]);
    }
    add_examples(operation, schemas);
    for error in common_errors(method, path, operation) {
        add_error(&mut operation["responses"], method, &error);
    }
    complete_errors(&mut operation["responses"], examples);
    add_headers(&mut operation["responses"]);
    add_links(operation);
}

/// The members of the JSON object at `pointer`, if there is one.
fn members_of<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    value.pointer_mut(pointer).and_then(Value::as_object_mut).into_iter().flatten()
}

fn bearer(description: &str) -> Value {
    json!({ "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": description })
}

/// Adds examples of the request body and of each successful response.
fn add_examples(operation: &mut Value, schemas: &Value) {
    for (_, content) in members_of(operation, "/requestBody/content") {
        content["example"] = request_example(&content["schema"], schemas);
    }
    for (_, response) in members_of(operation, "/responses").filter(|(status, _)| !is_error(status)) {
        let message = response["description"].clone();
        if let Some(answer) = response.pointer_mut("/content/application~1json") {
            answer["example"] = example_of(&answer["schema"], schemas);
            answer["example"]["message"] = message;
        }
    }
}

/// An example for a request body, without what is optional: who tries an operation out sends what the example has.
fn request_example(schema: &Value, schemas: &Value) -> Value {
    let mut example = example_of(schema, schemas);
    let named = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
    let schema = named.map_or(schema, |name| &schemas[name]);
    let required: Vec<_> =
        [&schema["required"], &schema["oneOf"][0]["required"]].into_iter().filter_map(Value::as_array).flatten().collect();
    if let Some(members) = example.as_object_mut() {
        members.retain(|name, _| required.iter().any(|required| *required == name));
    }
    example
}

/// An example for a schema, assembled from the examples of its parts.
fn example_of(schema: &Value, schemas: &Value) -> Value {
    if let Some(example) = schema.get("example").or_else(|| schema.get("examples")?.get(0)) {
        return example.clone();
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return example_of(&schemas[name], schemas);
    }
    // A nullable value is shown as non-null.
    if let Some(variant) = schema["oneOf"]
        .as_array()
        .and_then(|variants| variants.iter().find(|variant| variant["type"] != "null" && variant.get("required").is_none()))
    {
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

/// The errors that operations of a kind have in common. An operation declares its specific errors itself, see
/// [`operation_errors`](crate::operation_errors).
fn common_errors(method: &str, path: &str, operation: &Value) -> Vec<ApiError> {
    let in_tenant = path.contains("{tenant_id}");
    let mut errors = request_errors(operation);
    if needs_token(operation) {
        use TokenProblem::{Expired, Invalid, Missing, Revoked};
        errors.extend([Missing, Invalid, Expired, Revoked].map(|problem| Error::Unauthenticated(problem).into()));
    }
    if needs_token(operation) || operation["tags"] == json!(["auth"]) {
        errors.push(Error::RateLimited { retry_after: Duration::from_secs(1) }.into());
    }
    if in_tenant {
        errors.push(Error::Forbidden(ForbiddenReason::TenantInactive).into());
    }
    if in_tenant && method != "get" {
        errors.push(Error::Forbidden(ForbiddenReason::RoleTooLow { needed: Role::Admin }).into());
    }
    errors.extend(path_errors(path));
    if in_tenant || operation["tags"] != json!(["health"]) {
        errors.push(Error::Overloaded { what: "database connections", retry_after: Duration::from_secs(1) }.into());
        errors.push(Error::Unavailable { dependency: Dependency::Database, source: "down".into() }.into());
    }
    errors
}

/// Errors that a request's parameters and body can cause.
fn request_errors(operation: &Value) -> Vec<ApiError> {
    let mut errors = Vec::new();
    let body = operation.get("requestBody");
    if body.is_some() || operation.get("parameters").is_some() {
        errors.push(Error::invalid("name", "is required").into());
        errors.push(ApiError::Malformed("The body is not JSON: expected value at line 1 column 2.".into()));
    }
    if let Some(body) = body {
        errors.extend([ApiError::BodyTooSlow, ApiError::BodyTooLarge, ApiError::UnsupportedMediaType(media_type(body))]);
    }
    errors
}

/// The media type that a request's body must have.
fn media_type(body: &Value) -> &'static str {
    match body["content"].as_object().and_then(|types| types.keys().next()).map(String::as_str) {
        Some("multipart/form-data") => "multipart/form-data",
        Some("application/offset+octet-stream") => "application/offset+octet-stream",
        Some("application/octet-stream") => "the content itself, not a form",
        _ => "application/json",
    }
}

/// Whether the operation requires or accepts a token.
fn needs_token(operation: &Value) -> bool {
    operation["security"].as_array().into_iter().flatten().any(|scheme| *scheme != json!({}))
}

/// The not-found errors of the resources in a path.
fn path_errors(path: &str) -> impl Iterator<Item = ApiError> {
    const NOUNS: [(&str, ResourceKind); 6] = [
        ("{tenant_id}", ResourceKind::Tenant),
        ("{document_id}", ResourceKind::Document),
        ("{version}", ResourceKind::Version),
        ("{upload_id}", ResourceKind::Upload),
        ("{file_id}", ResourceKind::File),
        ("{user_id}", ResourceKind::Member),
    ];
    NOUNS.into_iter().filter(move |(part, _)| path.contains(part)).map(|(_, noun)| Error::NotFound(noun).into())
}

/// Adds an error to its status' examples, unless it is there.
fn add_error(responses: &mut Value, method: &str, error: &ApiError) {
    let (status, code, body) = error.example();
    // Only tus has its own HEAD operation, and its clients retry on 423, not on 503.
    let status = if method == "head" && status == StatusCode::SERVICE_UNAVAILABLE { StatusCode::LOCKED } else { status };
    let examples = &mut responses[status.as_str()]["content"]["application/json"]["examples"];
    let example = json!({ "value": body });
    let name = example_name(code, &example, |name| examples.get(name));
    examples[name] = example;
}

/// The name of an example: its error's code, numbered if another example of that code has it.
fn example_name<'a>(code: &str, example: &Value, named: impl Fn(&str) -> Option<&'a Value>) -> String {
    let mut name = code.to_owned();
    let mut number = 1;
    while named(&name).is_some_and(|other| other != example) {
        number += 1;
        name = format!("{code}_{number}");
    }
    name
}

fn is_error(status: &str) -> bool {
    status >= "400"
}

/// Gives each error its description and schema, and moves its examples to the shared components.
fn complete_errors(responses: &mut Value, shared: &mut Map<String, Value>) {
    for (status, response) in members_of(responses, "").filter(|(status, _)| is_error(status)) {
        response["description"] = json!(error_description(status));
        let content = &mut response["content"]["application/json"];
        content["schema"] = json!({ "$ref": "#/components/schemas/Failure" });
        let Value::Object(examples) = mem::take(&mut content["examples"]) else { continue };
        for (_, mut example) in examples {
            let error = &example["value"]["error"];
            let code = error["code"].as_str().unwrap_or_default().to_owned();
            example["summary"] = error["message"].clone();
            let name = example_name(&code, &example, |name| shared.get(name));
            content["examples"][&name] = json!({ "$ref": format!("#/components/examples/{name}") });
            shared.insert(name, example);
        }
    }
}

fn error_description(status: &str) -> &'static str {
    match status {
        "400" => "Malformed or invalid request",
        "401" => "Missing or invalid token or credentials",
        "403" => "Forbidden by the caller's role or the resource's state",
        "404" => "Not found, or not visible to the caller",
        "408" => "The request body arrived too slowly",
        "409" => "Conflict with the current state",
        "412" => "Precondition failed",
        "413" => "The body is too large",
        "415" => "Unsupported media type",
        "416" => "Range not satisfiable",
        "429" => "Too many requests",
        "460" => "Checksum mismatch",
        _ => "A dependency is down, or the server is overloaded",
    }
}

/// Adds the headers that every response of a status has.
fn add_headers(responses: &mut Value) {
    for (status, response) in members_of(responses, "") {
        let of_status = match status.as_str() {
            "401" => Some("WWW-Authenticate"),
            "423" | "429" | "503" => Some("Retry-After"),
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
            "description": "The request id: the client's own if it sent a valid one (1 to 128 visible ASCII characters), else a generated one.",
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
            "description": "Seconds to wait before retrying.",
            "required": true,
            "schema": { "type": "integer", "minimum": 1 },
            "example": 5,
        },
    })
}

/// Links between operations: (operation, parameter, response member that supplies it, linked operations). Linked operations also
/// get the path parameters of the first.
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
    let matching = LINKS.iter().filter(|(from, ..)| operation["operationId"] == *from);
    let links = matching.flat_map(|(from, parameter, member, to)| {
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
