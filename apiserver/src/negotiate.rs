//! Which representation the client asks for, and which it sends.

use rkube_api::{ApiError, Reason};

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

impl Encoding {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" | "application/*" | "*/*" | "" => Some(Encoding::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Encoding::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
            _ => None,
        }
    }
}

/// What an object is turned into before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata.
    Metadata,
}

/// A representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// How it is written.
    pub encoding: Encoding,
    /// What is written.
    pub shape: Shape,
    /// The version of `meta.k8s.io` that was asked for, `v1` or `v1beta1`.
    pub meta_version: &'static str,
}

/// JSON, as it is.
pub const PLAIN: Accepted =
    Accepted { encoding: Encoding::Json, shape: Shape::Object, meta_version: "v1" };

/// One clause of an `Accept` header.
pub struct Clause<'a> {
    /// `application/json`
    pub media_type: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    /// A parameter's value, empty if there is none.
    pub fn param(&self, name: &str) -> &'a str {
        self.params.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| v)
    }
}

/// The clauses of an `Accept` header, best first.
pub fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut list: Vec<Clause<'_>> =
        accept.split(',').map(str::trim).filter(|c| !c.is_empty()).map(parse_clause).collect();
    list.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    list
}

fn parse_clause(text: &str) -> Clause<'_> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or("");
    let params: Vec<(&str, &str)> = parts
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (k.trim(), v.trim()))
        .collect();
    let quality =
        params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
    Clause { media_type, params, quality }
}

/// The best representation of an object or list among those that `accept` names.
///
/// # Errors
/// 406 if none of them is served.
pub fn accepted(accept: Option<&str>) -> Result<Accepted, ApiError> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return Ok(PLAIN) };
    clauses(accept).iter().find_map(served).ok_or_else(not_acceptable)
}

fn served(clause: &Clause<'_>) -> Option<Accepted> {
    let encoding = Encoding::of(clause.media_type)?;
    let shape = match clause.param("as") {
        "" => Shape::Object,
        "Table" if encoding != Encoding::Protobuf => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
        _ => return None,
    };
    let meta_version = match clause.param("v") {
        "v1beta1" => "v1beta1",
        _ => "v1",
    };
    if shape != Shape::Object && clause.param("g") != "meta.k8s.io" {
        return None;
    }
    Some(Accepted { encoding, shape, meta_version })
}

/// 406, worded as upstream.
pub fn not_acceptable() -> ApiError {
    ApiError::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    )
}

/// How the body of a write is encoded.
///
/// # Errors
/// 415 for what is not understood.
pub fn content_encoding(content_type: Option<&str>) -> Result<Encoding, ApiError> {
    let media_type = media_type(content_type);
    match Encoding::of(media_type) {
        Some(encoding) if media_type != "application/*" => Ok(encoding),
        _ => Err(unsupported(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// A content type without its parameters.
pub fn media_type(content_type: Option<&str>) -> &str {
    content_type.unwrap_or("").split(';').next().unwrap_or("").trim()
}

/// 415 with what is understood.
pub fn unsupported(known: &str) -> ApiError {
    ApiError::new(
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {known}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_asks_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(Some(table)).unwrap().shape, Shape::Table);
        assert_eq!(accepted(None).unwrap(), PLAIN);
        assert_eq!(accepted(Some("*/*")).unwrap(), PLAIN);
        let proto = accepted(Some("application/vnd.kubernetes.protobuf,application/json")).unwrap();
        assert_eq!(proto.encoding, Encoding::Protobuf);
        let partial =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accepted(Some(partial)).unwrap().shape, Shape::Metadata);
        assert_eq!(accepted(Some("text/html")).unwrap_err().reason, Reason::NotAcceptable);
        let quality = "application/yaml;q=0.5, application/json";
        assert_eq!(accepted(Some(quality)).unwrap().encoding, Encoding::Json);
    }

    #[test]
    fn what_is_sent() {
        assert_eq!(
            content_encoding(Some("application/json; charset=utf-8")).unwrap(),
            Encoding::Json
        );
        assert_eq!(content_encoding(None).unwrap(), Encoding::Json);
        assert!(content_encoding(Some("text/plain")).is_err());
    }
}
