//! Services that programs provide.

use super::super::provider::{Given, Message, give, keep};
use super::*;

const PROVIDED: &str = "name: shop\nservices:\n  web:\n    image: nginx\n    environment: {DATA_BASE_URL: mine, OWN: a}\n    \
                        extra_hosts: ['cloud:192.0.2.1']\n    depends_on: [data_base, cache]\n  cache: {image: redis}\n  \
                        data_base:\n    provider:\n      type: cloud\n      options: {size: 256, zone: [a, b], name: '${TAG}'}\n";

fn given(lines: &[&str]) -> Given {
    let mut given = Given::default();
    for line in lines {
        given.hear(&compiled(PROVIDED).provided[0], line).unwrap();
    }
    given
}

#[test]
fn what_a_provider_tells_reaches_those_that_depend_on_it() {
    let mut compiled = compiled(PROVIDED);
    let provided = compiled.provided.remove(0);
    assert_eq!(
        provided.arguments("shop", "up").join(" "),
        "compose --project-name=shop up --size=256 --zone=a --zone=b --name=1.2 data_base"
    );
    let told = serde_json::json!({ "size": "256", "zone": ["a", "b"], "name": "1.2" });
    assert_eq!(provided.configuration()["provider"]["options"], told);
    let names: Vec<_> = compiled.documents.iter().map(|d| d.metadata.name.as_str()).collect();
    assert_eq!(names, ["web", "cache"], "it has no containers");
    let depends_on = &compiled.documents[0].workload().unwrap().depends_on;
    assert_eq!(depends_on.len(), 1, "it is there before the others are pushed");
    assert_eq!(depends_on[0].workload, "cache");

    let given = given(&[
        r#"{"type":"info","message":"making"}"#,
        r#"{"type":"setenv","message":"URL=https://cloud.example/a=b"}"#,
        r#"{"type":"rawsetenv","message":"KEY=x"}"#,
        r#"{"type":"addhost","message":"cloud=192.0.2.7"}"#,
    ]);
    let others = give(&mut compiled.documents, &provided, &given);
    assert_eq!(
        others,
        [("DATA_BASE_URL".to_owned(), "web".to_owned())],
        "what the file says is not lost in silence"
    );
    let web = &compiled.documents[0].workload().unwrap().container;
    assert_eq!(web.env["DATA_BASE_URL"], "https://cloud.example/a=b");
    assert_eq!((web.env["KEY"].as_str(), web.env["OWN"].as_str()), ("x", "a"));
    assert_eq!(web.hosts.len(), 1);
    assert_eq!(web.hosts[0].address, "192.0.2.7");
    let cache = &compiled.documents[1].workload().unwrap().container;
    assert!(cache.env.is_empty() && cache.annotations.is_empty(), "{cache:?}");
}

#[test]
fn a_plan_that_does_not_ask_providers_keeps_what_they_told_and_nothing_else() {
    let mut pushed = compiled(&PROVIDED.replace("OWN: a", "OWN: a, GONE: b"));
    let provided = pushed.provided.remove(0);
    let lines =
        [r#"{"type":"setenv","message":"URL=u"}"#, r#"{"type":"addhost","message":"cloud=host-gateway"}"#];
    give(&mut pushed.documents, &provided, &given(&lines));
    let mut planned = compiled(PROVIDED);
    let before = |document: &Document| pushed.documents.iter().find(|d| d.key() == document.key()).cloned();
    keep(&mut planned.documents, &[provided], &before);
    let web = |documents: &[Document]| documents[0].workload().unwrap().container.clone();
    let mut expected = web(&pushed.documents);
    expected.env.remove("GONE");
    assert_eq!(web(&planned.documents), expected);
}

#[test]
fn a_provider_that_says_nonsense_is_not_followed() {
    let provided = &compiled(PROVIDED).provided[0];
    let hear = |line: &str| Given::default().hear(provided, line);
    for (line, told) in [
        ("making", "no message"),
        (r#"{"type":"setenv","message":"URL"}"#, "not NAME=VALUE"),
        (r#"{"type":"rawsetenv","message":"=x"}"#, "not NAME=VALUE"),
        (r#"{"type":"addhost","message":"a=b"}"#, "not an IP address"),
        (r#"{"type":"reboot"}"#, "not known"),
    ] {
        let error = hear(line).unwrap_err();
        assert!(error.contains(told), "{line}: {error}");
    }
    assert_eq!(hear(r#"{"type":"error","message":"no"}"#), Ok(Message::Error("no".to_owned())));
    assert_eq!(hear(r#"{"type":"debug"}"#), Ok(Message::Silent));
    assert_eq!(hear(r#"{"type":"get-service-config"}"#), Ok(Message::AsksConfiguration));
}

#[test]
fn a_provided_service_is_nothing_else() {
    let with = |rest: &str| {
        faults(&format!("services:\n  web: {{image: a}}\n  db:\n    provider: {{type: cloud}}\n    {rest}\n"))
    };
    for (rest, told) in [
        ("image: a", "remove `image`"),
        ("depends_on: [web]", "remove `depends_on`"),
        ("profiles: a", "must be a list"),
    ] {
        let found = with(rest);
        assert!(found.iter().any(|(line, text)| *line == 5 && text.contains(told)), "{rest}: {found:?}");
    }
    for (kind, told) in
        [("../cloud", "not the name of a program"), ("-x", "not the name"), ("''", "not the name")]
    {
        let found =
            faults(&format!("services:\n  web: {{image: a}}\n  db: {{provider: {{type: {kind}}}}}\n"));
        assert!(found[0].1.contains(told), "{kind}: {found:?}");
    }
    // Left out by its profile, it is nothing that another can depend on.
    let out =
        "services:\n  web: {image: a, depends_on: [db]}\n  db: {provider: {type: cloud}, profiles: [b]}\n";
    assert!(faults(out)[0].1.contains("profiles leave it out"), "{:?}", faults(out));
    assert!(compiled(&out.replace("profiles: [b]", "profiles: [asked]")).provided.len() == 1);
}
