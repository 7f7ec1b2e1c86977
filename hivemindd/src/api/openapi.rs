//! The API's description, made from the handlers and types themselves.

use axum::Json;
use hivemind_spec::api::WantedBlob;
use hivemind_spec::exec::{AttachRequest, DebugRequest, ExecRequest, FromClient};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Description;

use super::{
    archives, attach, debug, devices, events, exec, images, logs, orders, reads, snapshots, specs, stats,
    support,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hivemind",
        description = "Documents enter as DSSE envelopes (Ed25519). Other requests are signed by RFC 9421 \
                       with RFC 9530 content digests; health, version and this description are open. \
                       Errors are RFC 9457 problem documents with stable codes.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        specs::push,
        specs::list,
        reads::nodes,
        reads::workloads,
        reads::replicas,
        devices::devices,
        stats::stats,
        events::events,
        reads::releases,
        reads::volumes,
        archives::read,
        archives::fill,
        snapshots::list,
        snapshots::make,
        snapshots::remove,
        images::list,
        images::give,
        images::take_back,
        reads::secrets,
        reads::recipients,
        reads::status,
        reads::health,
        reads::version,
        orders::order,
        support::support,
        logs::stream,
        exec::exec,
        attach::attach,
        debug::debug,
        serve,
    ),
    components(schemas(AttachRequest, DebugRequest, ExecRequest, FromClient, WantedBlob))
)]
struct Api;

/// This description. Unsigned.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn serve() -> Json<Description> {
    Json(Api::openapi())
}
