use hivemind_core::isolation::{Endpoint, NetworkId};

use super::*;
use crate::network::tests::{in_own_namespace, output};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);

fn of(name: &str) -> Isolation {
    let networks = BTreeSet::from([NetworkId { namespace: "default".into(), name: name.into() }]);
    let endpoint = Endpoint { networks, ..Endpoint::default() };
    Isolation { endpoints: [(ADDRESS, endpoint)].into(), ..Isolation::default() }
}

#[tokio::test(start_paused = true)]
async fn a_container_waits_for_its_own_rules_and_not_for_those_of_who_had_its_address() {
    let (wanted_tx, wanted) = watch::channel(Arc::new(of("new")));
    let (applied_tx, applied) = watch::channel(Arc::new(of("old")));
    let in_force = InForce { wanted, applied };
    let error = in_force.wait_for(ADDRESS).await.unwrap_err();
    assert!(error.contains("not in force"), "{error}");
    let (waited, _) = tokio::join!(in_force.wait_for(ADDRESS), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        applied_tx.send_replace(Arc::new(of("new")));
    });
    waited.unwrap();
    wanted_tx.send_replace(Arc::default());
    applied_tx.send_replace(Arc::default());
    in_force.wait_for(ADDRESS).await.unwrap_err();
}

#[test]
fn before_anything_is_worked_out_the_rules_of_the_agent_before_stay() {
    assert!(table(&Isolation::default()).is_none());
    assert!(table(&Isolation { range: Some((Ipv4Addr::new(10, 42, 0, 0), 16)), ..of("a") }).is_some());
}

/// Containers with these last numbers of addresses, each in a network of its own number's parity and in one with all.
fn with(containers: &[u8], more_members: &[u8]) -> Isolation {
    let address = |n: u8| Ipv4Addr::new(10, 42, 1, n);
    let named = |name: &str| NetworkId { namespace: "default".into(), name: name.into() };
    let mut isolation = Isolation {
        range: Some((Ipv4Addr::new(10, 42, 0, 0), 16)),
        nodes: [address(0), address(1)].into(),
        ..Isolation::default()
    };
    for n in containers {
        let networks = BTreeSet::from([named("all"), named(if n % 2 == 0 { "even" } else { "odd" })]);
        for network in &networks {
            isolation.members.entry(network.clone()).or_default().insert(address(*n));
        }
        let endpoint = Endpoint { networks, outside: n % 3 != 0, ..Endpoint::default() };
        isolation.endpoints.insert(address(*n), endpoint);
    }
    for n in more_members {
        isolation.members.entry(named("all")).or_default().insert(Ipv4Addr::new(10, 42, 2, *n));
    }
    isolation
}

/// The table as the kernel has it, without what differs each time it is made.
fn listed() -> Vec<String> {
    let json: serde_json::Value =
        serde_json::from_str(&output("nft", "-j list table bridge hivemind")).unwrap();
    let objects = json["nftables"].as_array().unwrap().iter().map(|object| {
        let mut object = object.clone();
        let inner = object.as_object_mut().unwrap().values_mut().next().unwrap();
        inner.as_object_mut().unwrap().remove("handle");
        if let Some(elements) = inner["elem"].as_array_mut() {
            elements.sort_by_key(ToString::to_string);
        }
        object.to_string()
    });
    objects.collect()
}

#[test]
fn containers_that_come_and_go_leave_the_rules_as_if_all_were_made_anew() {
    in_own_namespace(|| async {
        let mut there = with(&[2, 3], &[]);
        apply(None, &there).await.unwrap();
        for (containers, members) in
            [(&[2, 3, 4][..], &[][..]), (&[2, 3, 4, 5, 6], &[9, 10]), (&[3, 6], &[10])]
        {
            let next = with(containers, members);
            let changes = changes(&there, &next).unwrap();
            assert!(!changes.is_empty());
            // By netlink alone, without the way out that making all anew is.
            elements::make(&changes).unwrap();
            let by_elements = listed();
            apply(None, &next).await.unwrap();
            assert_eq!(by_elements, listed(), "{containers:?}");
            there = next;
        }
        assert_eq!(changes(&there, &with(&[3], &[])), None, "a network less is another rule");
    });
}

#[test]
fn rules_that_somebody_changed_are_made_anew() {
    in_own_namespace(|| async {
        let (there, next) = (with(&[2, 3], &[]), with(&[2, 3, 4], &[]));
        apply(None, &there).await.unwrap();
        output("nft", "delete table bridge hivemind");
        apply(Some(&there), &next).await.unwrap();
        let after = listed();
        apply(None, &next).await.unwrap();
        assert_eq!(after, listed());
    });
}
