//! Bodies of requests: bounded in size, in time, and in memory all together, because anybody may
//! send them.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use hivemind_spec::problem::{Code, Problem};
use http_body_util::BodyExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a client may take to send a body: the largest document at 50 KB/s. A client that
/// never ends holds one of few connections.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a request waits until there is room for its body.
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

/// Room for bodies, KiB: six of the largest, or thousands of usual ones. Reading a document takes
/// four times its size, and all of it must fit the smallest node beside its workloads.
const ROOM_KIB: u32 = 8 * 1024;

/// How much of a body that is too large is read to its end, bytes: many clients look for the
/// answer only once they have sent everything.
const MAX_DRAINED: u64 = 16 << 20;

/// The room for bodies.
#[derive(Debug)]
pub struct Bodies {
    room: Semaphore,
    patience: Duration,
    room_patience: Duration,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { room: Semaphore::new(ROOM_KIB as usize), patience: PATIENCE, room_patience: ROOM_PATIENCE }
    }
}

/// A body and the room it takes until this is dropped.
pub(super) struct Held<'a> {
    pub(super) bytes: Bytes,
    _room: SemaphorePermit<'a>,
}

impl Bodies {
    /// Reads a body of at most `max` bytes to its end.
    ///
    /// # Errors
    /// [`Code::TooLarge`], [`Code::TooSlow`], [`Code::Busy`], and [`Code::Malformed`] when it broke
    /// off.
    pub(super) async fn read(&self, body: Body, max: usize) -> Result<Held<'_>, Problem> {
        timeout(self.patience, self.read_to_end(body, max)).await.unwrap_or_else(|_| Err(too_slow()))
    }

    async fn read_to_end(&self, mut body: Body, max: usize) -> Result<Held<'_>, Problem> {
        let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
        if announced.is_some_and(|bytes| bytes > max) {
            drain(body, 0).await;
            return Err(too_large(max));
        }
        let kib = u32::try_from(announced.unwrap_or(max).div_ceil(1024)).unwrap_or(ROOM_KIB);
        let room = timeout(self.room_patience, self.room.acquire_many(kib)).await;
        // The semaphore is never closed.
        let room = room.ok().and_then(Result::ok).ok_or_else(busy)?;
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| broke_off(&error))?.into_data() else { continue };
            if bytes.len() + data.len() > max {
                drain(body, (bytes.len() + data.len()) as u64).await;
                return Err(too_large(max));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes: bytes.into(), _room: room })
    }
}

/// Reads on, within bounds, and forgets.
async fn drain(mut body: Body, mut read: u64) {
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > MAX_DRAINED {
            return;
        }
    }
}

fn too_large(max: usize) -> Problem {
    Problem::new(Code::TooLarge, format!("the body is over {max} bytes"))
        .advice("documents are at most 1 MiB: split it, or move data into the image or a volume; nothing else has a large body")
}

fn too_slow() -> Problem {
    Problem::new(Code::TooSlow, format!("the body did not end within {} s", PATIENCE.as_secs()))
        .advice("send it again, over a faster connection")
}

fn busy() -> Problem {
    Problem::new(Code::Busy, "too many large requests are under way").advice("try again in some seconds")
}

fn broke_off(error: &axum::Error) -> Problem {
    Problem::new(Code::Malformed, format!("the body could not be read: {error}")).advice("send it again")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// Enough to see that something does not happen.
    const MOMENT: Duration = Duration::from_millis(50);

    /// A body without an announced size, that goes on for ever after its chunks if it `hangs`.
    fn chunks(sizes: &[usize], hangs: bool) -> Body {
        let chunks: Vec<_> =
            sizes.iter().map(|size| Ok::<_, Infallible>(Bytes::from(vec![b'x'; *size]))).collect();
        let rest = if hangs { stream::pending().left_stream() } else { stream::empty().right_stream() };
        Body::from_stream(stream::iter(chunks).chain(rest))
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_read_and_a_larger_one_is_refused_announced_or_not() {
        let bodies = Bodies::default();
        for (body, fits) in [
            (Body::from(vec![0; 100]), true),
            (chunks(&[60, 40], false), true),
            (Body::from(vec![0; 101]), false),
            (chunks(&[60, 41], false), false),
        ] {
            match bodies.read(body, 100).await {
                Ok(held) => assert!(fits && held.bytes.len() == 100),
                Err(problem) => assert!(!fits && problem.code == Code::TooLarge, "{problem:?}"),
            }
        }
        assert_eq!(bodies.room.available_permits(), ROOM_KIB as usize);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let bodies = Bodies { patience: MOMENT, ..Bodies::default() };
        for (body, max) in [(chunks(&[10], true), 100), (chunks(&[101], true), 100)] {
            assert_eq!(bodies.read(body, max).await.err().map(|p| p.code), Some(Code::TooSlow));
        }
        assert_eq!(bodies.room.available_permits(), ROOM_KIB as usize);
    }

    #[tokio::test]
    async fn all_bodies_together_take_bounded_memory() {
        let bodies = Bodies { room_patience: MOMENT, ..Bodies::default() };
        let large = 2 << 20;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(bodies.read(chunks(&[large], false), large).await.ok());
        }
        held.push(bodies.read(Body::from(vec![0; large - 1024]), large).await.ok());
        assert!(held.iter().all(Option::is_some));
        assert_eq!(
            bodies.read(Body::from(vec![0; large]), large).await.err().map(|p| p.code),
            Some(Code::Busy)
        );
        assert!(bodies.read(Body::from("small"), large).await.is_ok());
        assert!(bodies.read(Body::empty(), large).await.is_ok());
        held.pop();
        assert!(bodies.read(Body::from(vec![0; large]), large).await.is_ok());
    }
}
