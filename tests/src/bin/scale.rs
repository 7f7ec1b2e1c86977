//! scratch
use hivemind_tests::scale::crowd::Crowd;
use std::time::Instant;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let losses: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let begin = Instant::now();
    let mut crowd = Crowd::new(n, n, 30);
    println!(
        "{n}: formed {:.1?}, virtual {:?}, map {}, steps {} of {:.1?}",
        begin.elapsed(),
        (),
        crowd.whole.map().len(),
        crowd.steps.len(),
        crowd.steps.iter().sum::<std::time::Duration>()
    );
    let mut all = crowd.steps.clone();
    all.sort();
    all.reverse();
    println!("longest {:?} median {:?}", &all[..5], all[all.len() / 2]);
    let (a, b, s) = (crowd.sent, crowd.sent_by_stand_ins, crowd.steps.len());
    crowd.run(60_000);
    println!(
        "at rest: whole {:?} stand-ins {:?} steps {} {:?}; {:.1?}",
        crowd.sent.since(a),
        crowd.sent_by_stand_ins.since(b),
        crowd.steps.len() - s,
        &crowd.steps[s..].iter().sum::<std::time::Duration>(),
        begin.elapsed()
    );
    parts(&crowd);
    let (a, s) = (crowd.sent, crowd.steps.len());
    let x = crowd.other(3);
    crowd.one_replica_changes(x);
    println!("one change: step {:?}", crowd.steps[s]);
    crowd.run(30_000);
    println!("one change: whole {:?}", crowd.sent.since(a));
    for i in 0..losses {
        let node = crowd.other(5 + i * 3);
        let (a, b, s) = (crowd.sent, crowd.placings.len(), crowd.steps.len());
        crowd.power_off(node);
        crowd.run_until(120_000, |c| c.is_relieved(node));
        crowd.return_of(node);
        crowd.run(20_000);
        let mut all = crowd.steps[s..].to_vec();
        all.sort();
        all.reverse();
        println!(
            "loss: {:?} {:?}; steps {} longest {:?} sum {:?} {:.1?}",
            crowd.sent.since(a),
            &crowd.placings[b..],
            all.len(),
            &all[..3],
            all.iter().sum::<std::time::Duration>(),
            begin.elapsed()
        );
    }
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .find(|l| l.starts_with("VmRSS"))
            .unwrap()
    );
}
pub fn parts(crowd: &Crowd) {
    use hivemind_core::*;
    let (c, l) = (crowd.whole.cluster(), crowd.whole.liveness());
    let now = hivemind_core::time::Time { mono_ms: 10_000_000, wall_ms: 0 };
    macro_rules! t {
        ($n:expr, $e:expr) => {
            let b = Instant::now();
            let r = $e;
            let d = b.elapsed();
            drop(r);
            println!("   {} {:?}", $n, d);
        };
    }
    let me = crowd.whole.me();
    let range = crowd.whole.settings().container_range;
    t!("schedule", scheduler::schedule(c, l, now));
    t!("zone", dns::zone(c, l));
    t!("zone clone", crowd.whole.zone().cloned());
    t!("zone eq", crowd.whole.zone().cloned().as_ref() == crowd.whole.zone());
    t!("plan", overlay::plan(c, l, &crowd.whole.settings().cluster_id, &me, None, range));
    t!("subnets", overlay::subnets(c, range));
    t!("assignments", c.assignments(&me));
    t!("cluster clone", c.clone());
    t!("side", c.side(l, now));
}
