//! Networks of a file.

use hivemind_spec::namespace::Permission;
use hivemind_spec::workload::Attachment;

use super::*;

fn told(text: &str) -> String {
    faults(text).into_iter().map(|(line, message)| format!("{line}: {message}\n")).collect()
}

/// The networks of the first service: names, with an exclamation mark when internal, and aliases.
fn networks(text: &str) -> Vec<String> {
    let workload = compiled(text).documents[0].workload().unwrap().clone();
    let shown = |(name, Attachment { aliases, internal }): (&String, &Attachment)| {
        let aliases: String = aliases.iter().map(|alias| format!(" {alias}")).collect();
        format!("{name}{}{aliases}", if *internal { "!" } else { "" })
    };
    workload.networks.iter().map(shown).collect()
}

fn file(service: &str, top: &str) -> String {
    format!("services:\n  web:\n    image: a\n{service}\n{top}\n")
}

#[test]
fn a_service_is_in_the_networks_it_names_and_else_in_the_one_that_all_have() {
    let top = "networks:\n  front_tier:\n  back: {internal: true, driver: overlay, attachable: true}\n  \
               shared: {external: true, name: proxy.net}";
    for (service, wanted) in [
        ("", &[][..]),
        ("    networks: [front_tier, back]", &["back!", "front-tier"][..]),
        (
            "    networks:\n      back: {aliases: [db, Main_DB]}\n      shared:",
            &["back! Main_DB db", "proxy-net"],
        ),
        ("    networks: {default: {priority: 10, gw_priority: 1, interface_name: eth0}}", &["default"]),
        ("    network_mode: bridge", &[]),
    ] {
        assert_eq!(networks(&file(service, top)), wanted, "{service}");
    }
}

#[test]
fn the_network_that_all_have_can_be_another_or_lead_nowhere() {
    for (top, wanted) in [
        ("networks: {default: }", &[][..]),
        ("networks: {default: {internal: true}}", &["default!"][..]),
        ("networks: {default: {name: site, external: true}}", &["site"]),
    ] {
        assert_eq!(networks(&file("", top)), wanted, "{top}");
    }
}

#[test]
fn faults_in_networks_are_told_with_their_lines() {
    let top = |entry: &str| format!("services:\n  web:\n    image: a\nnetworks:\n  {entry}\n");
    for (text, wanted) in [
        (service("networks: [nowhere]"), "4: \"nowhere\" is not under `networks`"),
        (service("networks: {nowhere: {}}"), "4: \"nowhere\" is not under `networks`"),
        (service("networks: [default, default]"), "4: it is in the network default twice"),
        (service("networks: web"), "4: this is text, but must be a list"),
        (service("networks: {default: {ipv4_address: 10.0.0.1}}"), "4: `ipv4_address` is not supported"),
        (service("networks: {default: {interface_name: eth1}}"), "4: \"eth1\" is not one of"),
        (service("networks: {default: {aliases: ['a b']}}"), "2: service web: \"a b\" is not a name"),
        (service("networks: [default]\nnetwork_mode: none"), "5: `networks` says otherwise"),
        (service("networks: [default]\nnetwork_mode: bridge"), "5: `networks` says otherwise"),
        (service("networks: [default]\nnetwork_mode: host"), "5: `networks` says otherwise"),
        (
            service("network_mode: host\nports: ['80:80']"),
            "on the machine's network a container has no ports to publish",
        ),
        (service("network_mode: 'service:db'"), "is not one of `none`, `host`"),
        (top("a: {driver: macvlan}"), "5: \"macvlan\" is not one of `bridge`, `overlay`"),
        (top("a: {enable_ipv6: true}"), "5: \"true\" is not one of `false`"),
        (top("a: {ipam: {}}"), "5: `ipam` is not supported"),
        (top("'ä b': {}"), "5: \"ä b\" cannot name a network"),
        (top("a: {internal: 5}"), "5: this is a number, but must be true or false"),
        (
            file("    ports: ['80:80']\n    networks: [a]", "networks: {a: {internal: true}}"),
            "2: service web: all are internal",
        ),
    ] {
        let told = told(&text);
        assert!(told.contains(wanted), "{text}\n{told}");
    }
}

#[test]
fn a_service_on_the_machines_network_is_in_no_other_and_asks_its_namespace_for_that() {
    let workload = workload(&file("    network_mode: host", "networks: {default: {internal: true}}"));
    assert!(workload.container.has_host_network() && workload.networks.is_empty());
    assert_eq!(workload.container.permissions(), [Permission::HostNetwork].into());
}

#[test]
fn a_service_may_have_name_servers_of_its_own() {
    let servers = |value: &str| {
        let workload = workload(&service(&format!("dns: {value}")));
        workload.container.resolver.servers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(servers("9.9.9.9"), ["9.9.9.9"]);
    assert_eq!(servers("[9.9.9.9, '2620:fe::fe']"), ["9.9.9.9", "2620:fe::fe"]);
    for (value, wanted) in [
        ("dns.example", "is not an IP address"),
        ("127.0.0.1", "is not a name server that a container's node can ask"),
        ("[1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]", "more than 3 name servers"),
    ] {
        let told = told(&service(&format!("dns: {value}")));
        assert!(told.contains(wanted), "{value}: {told}");
    }
}
