//! Health checks, at their intervals: commands run inside containers, and questions to them from their machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::body::Body;
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Endpoint;
use hivemind_core::event::{ContainerId, Event, OperationError};
use hivemind_spec::words::chain;
use hivemind_spec::workload::{GrpcCheck, HealthCheck, Hook, HttpCheck};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::transient;
use super::exec::OVERHEAD;
use super::{Runtime, cgroup, labels};

/// Checks that run at a time: each starts a process through the shim, and a node full of
/// containers must not spend itself on checking them.
const CHECKS_AT_A_TIME: usize = 4;

/// Time between checks until one has passed, milliseconds: Docker's default for a container that starts. It serves only
/// then, and should not wait for a whole interval.
const START_INTERVAL_MS: u64 = 5000;

/// Runs the checks on the list, each at its interval, and tells `events` how they went. Ends when
/// the list's sender is gone.
pub async fn check_all(
    runtime: Runtime,
    mut list: watch::Receiver<BTreeMap<ContainerId, HealthCheck>>,
    events: mpsc::Sender<Event>,
) {
    let places = std::sync::Arc::new(Semaphore::new(CHECKS_AT_A_TIME));
    let mut running: BTreeMap<ContainerId, (HealthCheck, tokio::task::AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = list.borrow_and_update().clone();
        running.retain(|id, (check, task)| {
            let keep = wanted.get(id) == Some(check);
            if !keep {
                task.abort();
            }
            keep
        });
        for (id, check) in wanted {
            let (runtime, events, places) = (runtime.clone(), events.clone(), places.clone());
            running.entry(id.clone()).or_insert_with(|| {
                let task = tasks.spawn(check_one(runtime, id, check.clone(), events, places));
                (check, task)
            });
        }
        while tasks.try_join_next().is_some() {}
        if list.changed().await.is_err() {
            return;
        }
    }
}

async fn check_one(
    runtime: Runtime,
    container: ContainerId,
    check: HealthCheck,
    events: mpsc::Sender<Event>,
    places: std::sync::Arc<Semaphore>,
) {
    let interval = Duration::from_millis(check.interval_ms);
    let start_interval =
        Duration::from_millis(check.start_interval_ms.unwrap_or(START_INTERVAL_MS)).min(interval);
    let (mut passed, mut told) = (false, Instant::now());
    // The first check comes soon: a container that is healthy at once should serve at once.
    let mut next = Instant::now() + interval.min(Duration::from_secs(1));
    loop {
        tokio::time::sleep_until(next).await;
        let Ok(place) = places.acquire().await else { return };
        let stood_still = cgroup::stands_still(&container);
        let (healthy, detail) = runtime.check_health(&container, &check).await;
        drop(place);
        // It answers nobody meanwhile, and that is not its fault.
        if !healthy && (stood_still || cgroup::stands_still(&container)) {
            next = Instant::now() + start_interval;
            continue;
        }
        passed |= healthy;
        // Until one has passed there are more checks than failures that count.
        if passed || told.elapsed() >= interval {
            told = Instant::now();
            let event = Event::HealthChecked { container: container.clone(), healthy, detail };
            if events.send(event).await.is_err() {
                return;
            }
        }
        next = Instant::now() + if passed { interval } else { start_interval };
    }
}

impl Runtime {
    /// Runs a check once. Returns whether it passed, and its output or error, shortened.
    pub async fn check_health(&self, container: &ContainerId, check: &HealthCheck) -> (bool, String) {
        let limit = Duration::from_millis(check.timeout_ms);
        let checking = async {
            match (&check.http, check.tcp, &check.grpc) {
                (Some(http), ..) => self.ask(container, http, limit).await,
                (None, Some(port), _) => self.connect_to(container, port, limit).await,
                (None, None, Some(grpc)) => self.ask_by_grpc(container, grpc, limit).await,
                (None, None, None) => self.run_check(container, check, limit).await,
            }
        };
        match timeout(limit + OVERHEAD, checking).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => (false, error.text),
            Err(_) => (false, "the check could not be run in time".into()),
        }
    }

    async fn run_check(
        &self,
        container: &ContainerId,
        check: &HealthCheck,
        limit: Duration,
    ) -> Result<(bool, String), OperationError> {
        let hook = Hook { command: check.command.clone(), ..Hook::default() };
        Ok(match self.execute(container, &hook, limit).await? {
            (0, output) => (true, output),
            (code, output) if output.is_empty() => (false, format!("exit code {code}")),
            (code, output) => (false, format!("exit code {code}: {output}")),
        })
    }

    async fn ask(
        &self,
        container: &ContainerId,
        http: &HttpCheck,
        limit: Duration,
    ) -> Result<(bool, String), OperationError> {
        let place = (self.address(container).await?, http.port);
        let url = format!("http://{}:{}{}", place.0, place.1, http.path);
        Ok(match answer(&url, limit, status_of(place, &http.path)).await {
            Ok(status) => (status.is_success() || status.is_redirection(), format!("{url}: {status}")),
            Err(text) => (false, text),
        })
    }

    async fn connect_to(
        &self,
        container: &ContainerId,
        port: u16,
        limit: Duration,
    ) -> Result<(bool, String), OperationError> {
        let ip = self.address(container).await?;
        Ok(match answer(&format!("{ip}:{port}"), limit, TcpStream::connect((ip, port))).await {
            Ok(_) => (true, String::new()),
            Err(text) => (false, text),
        })
    }

    async fn ask_by_grpc(
        &self,
        container: &ContainerId,
        grpc: &GrpcCheck,
        limit: Duration,
    ) -> Result<(bool, String), OperationError> {
        let place = (self.address(container).await?, grpc.port);
        let asked = format!("grpc://{}:{}/{}", place.0, place.1, grpc.service);
        Ok(match answer(&asked, limit, serving_status(place, &grpc.service)).await {
            Ok(ServingStatus::Serving) => (true, String::new()),
            Ok(status) => (false, format!("{asked}: {}", status.as_str_name())),
            Err(text) => (false, text),
        })
    }

    /// A container's address in the overlay.
    async fn address(&self, container: &ContainerId) -> Result<Ipv4Addr, OperationError> {
        let record = self.container(container).await?;
        let labels = record.and_then(|record| labels::read(&record.labels));
        labels.map(|labels| labels.container.ip).ok_or_else(|| transient("the container is not there"))
    }
}

/// The answer to a question, or in words why there is none in time.
async fn answer<T, E: std::fmt::Display>(
    asked: &str,
    limit: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(limit, question).await {
        Ok(answer) => answer.map_err(|error| format!("{asked}: {error}")),
        Err(_) => Err(format!("{asked}: no answer within {} ms", limit.as_millis())),
    }
}

/// What a server says of itself, or of one of its services, by gRPC's health checking protocol.
async fn serving_status(place: (Ipv4Addr, u16), service: &str) -> Result<ServingStatus, String> {
    let endpoint = Endpoint::from_shared(format!("http://{}:{}", place.0, place.1));
    let channel = endpoint.map_err(|error| chain(&error))?.connect().await.map_err(|error| chain(&error))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) if status.code() == Code::NotFound => Err("it has no such service".to_owned()),
        Err(status) if status.code() == Code::Unimplemented => {
            Err("it does not know grpc.health.v1.Health".to_owned())
        }
        Err(status) => Err(format!("{}: {}", status.code(), status.message())),
    }
}

/// The status of the answer to a GET; what follows it is not read.
async fn status_of(place: (Ipv4Addr, u16), path: &str) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(place).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| chain(&error))?;
    let request = Request::get(path)
        .header(header::HOST, format!("{}:{}", place.0, place.1))
        .header(header::USER_AGENT, concat!("hivemind-health/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may have ended with the answer.
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a server that answers with these bytes and hangs up; also gives what it was asked.
    async fn ask(answer: &'static str) -> (Result<u16, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1000];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let status = status_of((Ipv4Addr::LOCALHOST, port), "/ready?deep=1").await;
        (status.map(|status| status.as_u16()), server.await.unwrap())
    }

    #[tokio::test]
    async fn a_question_by_grpc_is_answered_for_the_server_or_one_of_its_services() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("shop.Orders", tonic_health::ServingStatus::NotServing).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let place = (Ipv4Addr::LOCALHOST, port);
        assert_eq!(serving_status(place, "").await, Ok(ServingStatus::Serving));
        assert_eq!(serving_status(place, "shop.Orders").await, Ok(ServingStatus::NotServing));
        let unknown = serving_status(place, "shop.Carts").await.unwrap_err();
        assert!(unknown.contains("no such service"), "{unknown}");
        let refused = serving_status((Ipv4Addr::LOCALHOST, 1), "").await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }

    #[tokio::test]
    async fn a_question_by_http_is_answered_by_its_status() {
        let (status, asked) = ask("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status, Ok(204));
        assert!(asked.starts_with("GET /ready?deep=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{asked}");
        assert_eq!(ask("HTTP/1.1 503 Not Yet\r\ncontent-length: 2\r\n\r\nno").await.0, Ok(503));
        // The rest of an answer that goes on for ever is not waited for.
        assert_eq!(ask("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx").await.0, Ok(200));
        for nothing in ["", "nonsense\r\n\r\n"] {
            assert!(ask(nothing).await.0.is_err(), "{nothing:?}");
        }
        assert!(status_of((Ipv4Addr::LOCALHOST, 1), "/").await.unwrap_err().contains("refused"));
    }
}
