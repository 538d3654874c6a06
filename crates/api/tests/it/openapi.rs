//! The checked-in specification is the one that the program prints, and is complete.

use std::{collections::BTreeSet, env, error::Error, fs, path::Path};

use serde_json::Value;

#[test]
fn the_checked_in_specification_is_current() -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    if env::var_os("WRITE_OPENAPI").is_some() {
        fs::write(&path, api::specification())?;
    }
    assert!(
        fs::read_to_string(path)? == api::specification(),
        "openapi.json is stale: just openapi (or: WRITE_OPENAPI=1 cargo test -p api the_checked_in_specification_is_current)"
    );
    Ok(())
}

#[test]
fn every_operation_is_complete() -> Result<(), Box<dyn Error>> {
    let document = document()?;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&document) {
        for field in ["summary", "description", "operationId", "security", "tags", "responses"] {
            assert!(operation.get(field).is_some(), "{name} has no {field}");
        }
        assert!(ids.insert(operation["operationId"].to_string()), "{name}: its operationId is not unique");
        for (_, content) in members(&operation["requestBody"]["content"]) {
            assert!(content.get("example").is_some(), "{name}: its request has no example");
        }
        for (status, response) in members(&operation["responses"]) {
            assert!(response["headers"].get("X-Request-Id").is_some(), "{name} {status} has no X-Request-Id");
            let header = match status.as_str() {
                "302" => "Location",
                "401" => "WWW-Authenticate",
                "503" => "Retry-After",
                _ => "X-Request-Id",
            };
            assert!(response["headers"].get(header).is_some(), "{name} {status} has no {header}");
            let json = &response["content"]["application/json"];
            if status.as_str() >= "400" {
                assert_eq!(json["schema"]["$ref"], "#/components/schemas/Failure", "{name} {status}");
                assert!(members(&json["examples"]).count() > 0, "{name} {status} has no example");
            } else if !json.is_null() {
                assert!(json.get("example").is_some(), "{name} {status} has no example");
            }
        }
    }
    Ok(())
}

#[test]
fn examples_are_complete() -> Result<(), Box<dyn Error>> {
    let document = document()?;
    for (name, operation) in operations(&document) {
        for (_, content) in members(&operation["requestBody"]["content"]) {
            assert!(!has_null(&content["example"]), "{name}: {}", content["example"]);
        }
        for (status, response) in members(&operation["responses"]) {
            for (member, value) in members(&response["content"]["application/json"]["example"]) {
                // A response without data has none in its example.
                assert!(member == "data" && value.is_null() || !has_null(value), "{name} {status}: {value}");
            }
        }
    }
    Ok(())
}

/// Tests the values on both sides of each bound.
#[test]
fn bounds_match_the_code() -> Result<(), Box<dyn Error>> {
    let document = document()?;
    type Accepts = fn(&str) -> bool;
    let texts: [(&str, Accepts, &str); 6] = [
        ("Email", |text| domain::Email::parse(text).is_ok(), ""),
        ("NewPassword", |text| domain::NewPassword::parse(text).is_ok(), "a1"),
        ("PersonName", |text| domain::PersonName::parse(text).is_ok(), ""),
        ("TenantName", |text| domain::TenantName::parse(text).is_ok(), ""),
        ("Filename", |text| domain::Filename::parse(text).is_ok(), ""),
        ("MediaType", |text| domain::MimeType::parse(text).is_ok(), "a/"),
    ];
    for (name, accepts, needed) in texts {
        let schema = &document["components"]["schemas"][name];
        let bound = |name: &str| schema[name].as_u64().map(usize::try_from).transpose();
        // An address grows in its domain, since its local part has a bound of its own.
        let of_length =
            |length: usize| if name == "Email" { address(length) } else { needed.to_owned() + &"x".repeat(length - needed.len()) };
        let longest = bound("maxLength")?.ok_or(format!("{name} has no maxLength"))?;
        assert!(accepts(&of_length(longest)), "{name} of {longest}");
        assert!(!accepts(&of_length(longest + 1)), "{name} of {}", longest + 1);
        if let Some(shortest) = bound("minLength")? {
            assert!(accepts(&of_length(shortest)), "{name} of {shortest}");
            assert!(!accepts(&of_length(shortest)[1..]), "{name} of {}", shortest - 1);
        }
        assert!(accepts(schema["examples"][0].as_str().unwrap_or_default()), "the example of {name}");
    }

    let accepts = |page, per_page| {
        let mut errors = domain::FieldErrors::default();
        domain::PageRequest::parse(Some(page), Some(per_page), &mut errors);
        errors.is_empty()
    };
    let parameters = document["paths"]["/api/tenants"]["get"]["parameters"].as_array().ok_or("no parameters")?;
    for parameter in parameters {
        let bound = |name: &str| parameter["schema"][name].as_i64().ok_or(format!("{parameter} has no {name}"));
        let accepts = |value| if parameter["name"] == "page" { accepts(value, 1) } else { accepts(1, value) };
        let (least, most) = (bound("minimum")?, bound("maximum")?);
        assert_eq!([least - 1, least, most, most + 1].map(accepts), [false, true, true, false], "{parameter}");
    }
    Ok(())
}

#[test]
fn errors_of_one_code_have_an_example_each() -> Result<(), Box<dyn Error>> {
    let document = document()?;
    let too_large = &document["paths"]["/api/tenants/{tenant_id}/documents"]["post"]["responses"]["413"];
    let names = members(&too_large["content"]["application/json"]["examples"]).map(|(_, example)| example["$ref"].as_str());
    let messages: Vec<_> = names
        .map(|name| Some(document.pointer(name?.strip_prefix('#')?)?["value"]["error"]["message"].as_str()?.to_owned()))
        .collect::<Option<_>>()
        .ok_or("an example is missing")?;
    assert_eq!(messages, ["The body is too large.", "The file exceeds the limit of 104857600 bytes."]);
    Ok(())
}

#[test]
fn response_schemas_require_every_field() -> Result<(), Box<dyn Error>> {
    let document = document()?;
    let schemas = &document["components"]["schemas"];
    for name in ["UserOut", "TenantOut", "DocumentOut", "FileOut"] {
        let required: Vec<_> = schemas[name]["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (member, _) in members(&schemas[name]["properties"]) {
            assert!(required.contains(&member.as_str()), "{name}.{member} is not required");
        }
        assert_eq!(schemas[name]["properties"]["created_by"]["type"], serde_json::json!(["string", "null"]), "{name}");
    }
    Ok(())
}

fn document() -> serde_json::Result<Value> {
    serde_json::from_str(&api::specification())
}

fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    members(&document["paths"])
        .flat_map(|(path, item)| members(item).map(move |(method, operation)| (format!("{method} {path}"), operation)))
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn has_null(value: &Value) -> bool {
    value.is_null() || members(value).any(|(_, value)| has_null(value)) || value.as_array().into_iter().flatten().any(has_null)
}

/// An address of this length, valid except for its length.
fn address(length: usize) -> String {
    let mut address = "a@b.".to_owned();
    while address.len() < length {
        address.push(if address.len() % 50 == 49 && address.len() < length - 1 { '.' } else { 'c' });
    }
    address
}
