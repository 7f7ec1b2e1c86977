//! How it is found out whether a container does what it is there for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A check of whether a container does what it is there for: one of `command`, `http`, `tcp` and `grpc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// A command and its arguments, run inside the container; exit code 0 is healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What is asked for from its machine by HTTP; a status from 200 to 399 is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A port that must take a connection by TCP from its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u16>,
    /// What is asked from its machine by gRPC; `SERVING` is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// Time between checks, milliseconds.
    pub interval_ms: u64,
    /// Time a check may take, milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count, milliseconds.
    pub start_period_ms: u64,
    /// Time between checks until one has passed, if it is less than `interval_ms`, milliseconds; absent: 5 seconds.
    /// Failures count no more often for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval_ms: Option<u64>,
}

/// What a health check asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The container's port.
    pub port: u16,
    /// Path and query, with the first slash.
    pub path: String,
}

/// What a health check asks by gRPC's health checking protocol (`grpc.health.v1`, `Check`), without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcCheck {
    /// The container's port.
    pub port: u16,
    /// The service that is asked about; empty: the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

impl HealthCheck {
    /// Whether it checks in one way, at times that can be.
    pub(super) fn is_complete(&self) -> bool {
        let (http, grpc) = (self.http.as_ref(), self.grpc.as_ref());
        let ways = [!self.command.is_empty(), http.is_some(), self.tcp.is_some(), grpc.is_some()];
        let port = http.map(|http| http.port).or(self.tcp).or(grpc.map(|grpc| grpc.port));
        let path = http.is_none_or(|http| {
            http.path.starts_with('/') && http.path.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let times =
            [self.interval_ms, self.timeout_ms, self.retries.into(), self.start_interval_ms.unwrap_or(1)];
        let service = grpc.is_none_or(|grpc| grpc.service.bytes().all(|byte| byte.is_ascii_graphic()));
        let one_way = ways.iter().filter(|way| **way).count() == 1;
        one_way && port != Some(0) && path && service && !times.contains(&0)
    }
}
