//! Traces of the mesh for a person: the programs are asked for packets, and what they tell is said in
//! words as long as somebody listens.
//!
//! Invariants:
//! * A trace ends with its time, with its listener, with the membership and with the agent; the
//!   programs know the time themselves, for an agent that is killed.
//! * One at a time on a node: what the programs tell is read once.
//! * Nobody waits for a slow listener: what is not read in time is lost, and counted.
//!
//! Deliberately absent: a trace over several nodes. Each node tells its part.

mod place;
mod subject;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1;
use swarm_model::NodeId;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::place::Place;
use self::words::packet;
use crate::ebpf::{MeshError, TraceRequest, Tracer};
use crate::session::Assigned;

pub(super) use self::subject::Subject;

/// Between two looks into the ring buffer: with the packets that it holds, some 13,000 a second can be
/// told of.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks under way to who asked.
const LOOKS_WAITING: usize = 4;

/// How long a listener that does not read may hold a trace that is over.
const LAST_LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a trace is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceError {
    #[error("{0} is no port: ports are 1 to 65535")]
    NoPort(u32),
    #[error("{0:?} is no IP address")]
    NoAddress(String),
    #[error("a trace lasts at most {} s: ask again for more", subject::DURATION_MAX.as_secs())]
    TooLong,
    #[error("at most one flow in {} can be told of", subject::ONE_IN_MAX)]
    TooSparse,
    #[error(
        "no service publishes port {0}: `swarmctl service ls`, on a manager, shows the ports there are"
    )]
    NotPublished(u16),
    #[error("port {0} leads to more than {max} ports of tasks", max = place::TARGETS_MAX)]
    TooManyTargets(u16),
    #[error("another trace is running on this node: try again when it is over")]
    Busy,
    #[error("the mesh's programs cannot be asked; `swarmctl mesh check` says what this node lacks")]
    Programs(#[from] MeshError),
}

impl From<TraceError> for Status {
    fn from(error: TraceError) -> Self {
        let code = match error {
            TraceError::NoPort(_)
            | TraceError::NoAddress(_)
            | TraceError::TooLong
            | TraceError::TooSparse => tonic::Code::InvalidArgument,
            TraceError::NotPublished(_) => tonic::Code::NotFound,
            TraceError::TooManyTargets(_) | TraceError::Programs(_) => {
                tonic::Code::FailedPrecondition
            }
            TraceError::Busy => tonic::Code::ResourceExhausted,
        };
        Status::new(code, crate::error_text(&error))
    }
}

/// Where a node's packets are looked for, and what says what they mean.
pub(super) struct Scene {
    /// Under which the programs' maps are pinned.
    pub(super) bpffs_dir: PathBuf,
    /// This node.
    pub(super) node_id: NodeId,
    /// What it is told, for as long as it is a member.
    pub(super) assigned: watch::Receiver<Arc<Assigned>>,
}

/// What a listener gets.
type Told = Result<v1::TraceMeshResponse, Status>;

/// The traces of a node, one after another.
pub(super) struct Traces {
    turn: Arc<Mutex<()>>,
    stop: CancellationToken,
}

impl Traces {
    /// Traces end with `stop`.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self {
            turn: Arc::default(),
            stop,
        }
    }

    /// Starts a trace; it ends early when nobody listens to what is returned.
    pub(super) fn start(
        &self,
        subject: Subject,
        mut scene: Scene,
    ) -> Result<mpsc::Receiver<Told>, TraceError> {
        let turn = self.turn.clone().try_lock_owned();
        let turn = turn.map_err(|_| TraceError::Busy)?;
        let place = Place::of(
            &subject,
            &scene.assigned.borrow_and_update(),
            &scene.node_id,
        )?;
        let request = request(&subject, &place);
        let trace = Trace {
            tracer: Tracer::start(&scene.bpffs_dir, &request, subject.duration)?,
            request,
            subject,
            place,
            scene,
            _turn: turn,
        };
        let (told, listener) = mpsc::channel(LOOKS_WAITING);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let end = Instant::now() + trace.subject.duration;
            tokio::select! {
                _ = timeout_at(end + LAST_LOOK_TIMEOUT, trace.follow(end, &told)) => {}
                () = told.closed() => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(listener)
    }
}

/// What the programs are asked.
fn request(subject: &Subject, place: &Place) -> TraceRequest {
    TraceRequest {
        ports: place.ports(),
        client: subject.client,
        one_in: subject.one_in,
    }
}

/// A trace under way.
struct Trace {
    tracer: Tracer,
    request: TraceRequest,
    subject: Subject,
    place: Place,
    scene: Scene,
    _turn: OwnedMutexGuard<()>,
}

impl Trace {
    async fn follow(mut self, end: Instant, told: &mpsc::Sender<Told>) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let over = Instant::now() >= end;
            let look = self.look();
            let is_news = look
                .as_ref()
                .map_or(true, |look| !look.packets.is_empty() || look.lost > 0);
            let failed = look.is_err();
            if is_news && told.send(look.map_err(Status::from)).await.is_err() {
                return;
            }
            if over || failed || self.scene.assigned.has_changed().is_err() {
                return;
            }
        }
    }

    /// What was seen since the last look. Tasks come and go meanwhile.
    fn look(&mut self) -> Result<v1::TraceMeshResponse, TraceError> {
        let seen = self.tracer.read()?;
        if self.scene.assigned.has_changed().unwrap_or(false) {
            let assigned = self.scene.assigned.borrow_and_update();
            // Where the port is published no more, the last of its packets are told by what it was.
            if let Ok(place) = Place::of(&self.subject, &assigned, &self.scene.node_id) {
                self.place = place;
            }
        }
        let request = request(&self.subject, &self.place);
        if request != self.request {
            self.tracer.ask(&request)?;
            self.request = request;
        }
        let packets = seen.events.iter();
        Ok(v1::TraceMeshResponse {
            packets: packets
                .filter_map(|event| packet(event, &self.place))
                .collect(),
            lost: seen.lost,
        })
    }
}

#[cfg(test)]
mod tests;
