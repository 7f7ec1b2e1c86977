//! Measures what a large cluster costs each of its nodes, and draws the curves.
//!
//! Each size is measured by a process of its own, so that none finds the memory of another. Prints one
//! line per figure and writes `docs/scale.svg`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use hivemind_tests::scale::crowd::Crowd;
use hivemind_tests::scale::figures::{REPLICAS_PER_NODE, measure};
use hivemind_tests::scale::plot::{self, Panel};

/// Sizes of cluster, nodes.
const SIZES: [usize; 3] = [10, 100, 1000];

/// Counts the bytes in use; the allocator's own overhead comes on top.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; the count is no part of what it promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, and so from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    match arguments.as_slice() {
        [] => all(),
        [flag, nodes] if flag == "--nodes" => {
            for (name, value) in measure(number(nodes)) {
                println!("{name} {value}");
            }
        }
        [flag, nodes, replicas] if flag == "--heap" => {
            println!("heap_mb {}", heap_mb(number(nodes), number(replicas)))
        }
        _ => {
            eprintln!("usage: scale [--nodes N | --heap N REPLICAS_PER_NODE]; without arguments: all sizes");
            std::process::exit(2);
        }
    }
}

/// What one node of a cluster has on the heap, megabytes.
fn heap_mb(nodes: usize, replicas: usize) -> f64 {
    let workloads = if replicas == 0 { 0 } else { nodes };
    let crowd = Crowd::entered(nodes, workloads, u32::try_from(replicas).unwrap_or(0));
    let node = crowd.into_whole();
    let before = IN_USE.load(Ordering::Relaxed);
    drop(node);
    (before - IN_USE.load(Ordering::Relaxed)) as f64 / 1e6
}

/// The figures of one size, by name.
type Measured = Vec<(String, f64)>;

fn all() {
    let sizes: Vec<(usize, Measured)> = SIZES.into_iter().map(|nodes| (nodes, size(nodes))).collect();
    if let Some((nodes, largest)) = sizes.last() {
        report("placement_p99", get(largest, "placement_p99_ms"), "ms", 100.0, *nodes);
        report("memory_per_1000_replicas", get(largest, "per_1000_replicas_mb"), "MB", 4.0, *nodes);
    }
    let curve = |name: &'static str| {
        sizes.iter().map(|(nodes, found)| (*nodes as f64, get(found, name))).collect::<Vec<_>>()
    };
    let panels = [
        Panel {
            title: "Placing what a lost node ran, p99, ms",
            curves: vec![
                ("whole step of the leader", curve("placement_p99_ms")),
                ("scheduler alone", curve("schedule_p99_ms")),
            ],
            reach: Some(100.0),
        },
        Panel {
            title: "Sent by each node at rest, per second",
            curves: vec![("bytes", curve("rest_bytes_per_s")), ("packets", curve("rest_packets_per_s"))],
            reach: None,
        },
        Panel {
            title: "Sent because of a change, bytes",
            curves: vec![
                ("by each node, one replica's status", curve("change_bytes")),
                ("by the leader, a node lost", curve("loss_leader_bytes")),
            ],
            reach: None,
        },
        Panel {
            title: "Held by each node, MB",
            curves: vec![("heap", curve("heap_mb")), ("records as they travel", curve("map_mb"))],
            reach: None,
        },
    ];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scale.svg");
    std::fs::write(&path, plot::svg(&panels)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    eprintln!("   the curves are in docs/scale.svg");
}

fn size(nodes: usize) -> Measured {
    let n = nodes.to_string();
    let mut found = child(&["--nodes", &n]);
    let full = get(&child(&["--heap", &n, &REPLICAS_PER_NODE.to_string()]), "heap_mb");
    let empty = get(&child(&["--heap", &n, "0"]), "heap_mb");
    found.push(("heap_mb".to_owned(), full));
    let thousands = (nodes * REPLICAS_PER_NODE as usize) as f64 / 1000.0;
    found.push(("per_1000_replicas_mb".to_owned(), (full - empty) / thousands));
    found.push(("per_1000_nodes_mb".to_owned(), empty / nodes as f64 * 1000.0));
    for (name, value) in &found {
        println!("scale_{nodes}_{name} {value:.3}");
    }
    found
}

fn child(arguments: &[&str]) -> Measured {
    let program = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
    let run = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{error}"));
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    String::from_utf8_lossy(&run.stdout).lines().filter_map(figure).collect()
}

fn get(found: &Measured, name: &str) -> f64 {
    let value = found.iter().find(|(known, _)| known == name);
    value.unwrap_or_else(|| panic!("{name} was not measured")).1
}

fn report(name: &str, value: f64, unit: &str, reach: f64, nodes: usize) {
    let verdict = if value <= reach { "reached" } else { "MISSED" };
    println!("{name} {value:.2} {unit} at {nodes} nodes (reach {reach}, {verdict})");
}
