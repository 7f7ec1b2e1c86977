use hivemind_core::isolation::{Endpoint, NetworkId};

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);

fn of(name: &str) -> Isolation {
    let networks = BTreeSet::from([NetworkId { namespace: "default".into(), name: name.into() }]);
    let endpoint = Endpoint { networks, ..Endpoint::default() };
    Isolation { endpoints: [(ADDRESS, endpoint)].into(), ..Isolation::default() }
}

#[tokio::test(start_paused = true)]
async fn a_container_waits_for_its_own_rules_and_not_for_those_of_who_had_its_address() {
    let (wanted_tx, wanted) = watch::channel(of("new"));
    let (applied_tx, applied) = watch::channel(of("old"));
    let in_force = InForce { wanted, applied };
    let error = in_force.wait_for(ADDRESS).await.unwrap_err();
    assert!(error.contains("not in force"), "{error}");
    let (waited, _) = tokio::join!(in_force.wait_for(ADDRESS), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        applied_tx.send_replace(of("new"));
    });
    waited.unwrap();
    wanted_tx.send_replace(Isolation::default());
    applied_tx.send_replace(Isolation::default());
    in_force.wait_for(ADDRESS).await.unwrap_err();
}

#[test]
fn without_a_subnet_the_rules_of_an_agent_before_stay() {
    assert!(table(&Isolation::default()).is_none());
    assert!(table(&Isolation { range: Some((Ipv4Addr::new(10, 42, 0, 0), 16)), ..of("a") }).is_some());
}
