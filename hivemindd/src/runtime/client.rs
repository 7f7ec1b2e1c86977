//! The connection to containerd, and how its refusals read.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint, Uri};
use containerd_client::tonic::{Code, Request, Status};
use hivemind_core::event::OperationError;
use hivemind_spec::words::timestamp;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The containerd namespace everything of Hivemind's is in.
pub(super) const NAMESPACE: &str = "hivemind";

/// The snapshotter image layers are unpacked with.
pub(super) const SNAPSHOTTER: &str = "overlayfs";

/// Lists of containers carry their runtime specs, about 10 KiB each: room for thousands.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// How long containerd may take to accept a connection before it counts as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A failure that trying again may cure.
pub(super) fn transient(text: impl Into<String>) -> OperationError {
    OperationError { text: text.into(), permanent: false }
}

/// A failure that trying again cannot cure.
pub(super) fn permanent(text: impl Into<String>) -> OperationError {
    OperationError { text: text.into(), permanent: true }
}

/// Puts containerd's refusal of `what` in words.
pub(super) fn refused(what: &str) -> impl Fn(Status) -> OperationError + '_ {
    move |status| match status.code() {
        Code::Unavailable => transient(format!("{what}: containerd does not answer; it is being restarted")),
        Code::InvalidArgument => permanent(format!("{what}: {}", status.message())),
        _ => transient(format!("{what}: {}", status.message())),
    }
}

/// Turns "it is not there" into `None`, so that removing twice is no error.
pub(super) fn if_there<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Turns "it is there already" into success, so that making twice is no error.
pub(super) fn unless_there<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status),
    }
}

/// A connection to containerd. Cheap to clone; connects when first used and again after
/// containerd was restarted.
#[derive(Clone)]
pub(super) struct Containerd {
    channel: Channel,
}

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $client:ident),* $(,)?) => {
        $($(#[$doc])* pub(super) fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
        })*
    };
}

impl Containerd {
    /// Prepares the connection to the socket at `path`. Needs a tokio runtime.
    pub(super) fn new(path: &Path) -> Self {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is not used over a unix socket, but HTTP/2 wants one.
        let channel = Endpoint::from_static("http://containerd")
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector_lazy(connector);
        Self { channel }
    }

    services! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        events: EventsClient,
        images: ImagesClient,
        leases: LeasesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
    }

    /// Makes a lease, unless it is there: what is made under it is not collected as garbage while it lasts.
    /// `expires_ms`: milliseconds since 1970.
    pub(super) async fn lease(&self, id: &str, expires_ms: u64) -> Result<Lease, Status> {
        let header =
            id.parse().map_err(|_| Status::invalid_argument(format!("{id:?} cannot name a lease")))?;
        let labels = [("containerd.io/gc.expire".to_owned(), timestamp(expires_ms))].into();
        unless_there(self.leases().create(request(CreateRequest { id: id.to_owned(), labels })).await)?;
        Ok(Lease { id: id.to_owned(), header })
    }

    /// Ends a lease.
    pub(super) async fn release(&self, lease: Lease) -> Result<(), Status> {
        if_there(self.leases().delete(request(DeleteRequest { id: lease.id, sync: false })).await)?;
        Ok(())
    }
}

/// Keeps what is made under it from garbage collection.
pub(super) struct Lease {
    id: String,
    header: MetadataValue<Ascii>,
}

impl Lease {
    /// A request whose results the lease keeps.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = request(message);
        request.metadata_mut().insert("containerd-lease", self.header.clone());
        request
    }
}

/// A request in Hivemind's namespace.
pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}
