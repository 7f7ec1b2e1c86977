//! The JSON Schema of documents that people write, for editors that complete and check them.

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::document::{API_VERSION, Kind, Metadata};
use crate::volume::VolumeSpec;
use crate::workload::WorkloadSpec;

/// Where OpenAPI has its schemas, and where JSON Schema has them.
const IN_OPENAPI: &str = "#/components/schemas/";
const IN_SCHEMA: &str = "#/$defs/";

/// The schema (JSON Schema, draft 2020-12) of a document as it stands in a file.
pub fn of_documents() -> Value {
    let mut all = Vec::new();
    add::<Metadata>(&mut all);
    let kinds =
        [(Kind::Workload, add::<WorkloadSpec>(&mut all)), (Kind::Volume, add::<VolumeSpec>(&mut all))];
    let mut definitions: Map<String, Value> =
        all.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    // It is given when the document is pushed.
    if let Some(required) =
        definitions.get_mut("Metadata").and_then(|schema| schema["required"].as_array_mut())
    {
        required.retain(|name| name != "revision");
    }
    let document = |(kind, spec): (Kind, String)| {
        json!({
            "title": kind.to_string(),
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "additionalProperties": false,
            "properties": {
                "apiVersion": { "const": API_VERSION },
                "kind": { "const": kind.to_string() },
                "metadata": { "$ref": format!("{IN_SCHEMA}Metadata") },
                "spec": { "$ref": format!("{IN_SCHEMA}{spec}") },
            },
        })
    };
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hivemind document",
        "oneOf": kinds.map(document),
        "$defs": definitions,
    });
    rename(&mut schema);
    schema
}

/// Adds a type's schema and all that it refers to; returns its name.
fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) -> String {
    let name = T::name().into_owned();
    T::schemas(all);
    all.push((name.clone(), <T as PartialSchema>::schema()));
    name
}

/// Makes references to OpenAPI's place ones to JSON Schema's.
fn rename(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("$ref")
                && let Some(name) = text.strip_prefix(IN_OPENAPI)
            {
                *text = format!("{IN_SCHEMA}{name}");
            }
            fields.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}
