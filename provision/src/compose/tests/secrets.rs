//! Secrets of a file.

use hivemind_spec::secret::MAX_SECRET_BYTES;

use super::*;

fn told(text: &str) -> String {
    faults(text).into_iter().map(|(line, message)| format!("{line}: {message}\n")).collect()
}

#[test]
fn a_services_secrets_are_files_and_their_content_is_in_no_document() {
    let text = "services:
  web:
    image: a
    secrets:
      - db_password
      - {source: token, target: /etc/token, uid: '7', gid: '8', mode: 0400}
      - {source: key, target: sub/key}
secrets:
  db_password: {environment: INHERITED, labels: {a: b}}
  token: {file: ./app.env}
  key: {external: true, name: api.key}
";
    let compiled = compiled(text);
    let names: Vec<_> = compiled.secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(names, ["db-password", "token"], "an external one is not pushed");
    let password = &compiled.secrets[0];
    assert_eq!(password.content.bytes(), b"from outside");
    let labels: Vec<_> = password.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["a=b", "hivemind/app=folder"]);
    let web = compiled.documents[0].workload().unwrap().container.clone();
    let shown =
        web.secrets.iter().map(|m| format!("{} {} {}:{} {:o}", m.secret, m.path, m.uid, m.gid, m.mode));
    let wanted = [
        "db-password /run/secrets/db_password 0:0 444",
        "token /etc/token 7:8 400",
        "api-key /run/secrets/sub/key 0:0 444",
    ];
    assert_eq!(shown.collect::<Vec<_>>(), wanted);
    let documents = format!("{:?}", compiled.documents);
    assert!(!documents.contains("from outside"), "{documents}");
    assert!(!format!("{compiled:?}").contains("from outside"), "not in what is printed either");
}

#[test]
fn faults_in_secrets_are_told_with_their_lines() {
    let top = |entry: &str| format!("services:\n  web:\n    image: a\nsecrets:\n  {entry}\n");
    for (text, wanted) in [
        (top("a: {}"), "5: needs exactly one"),
        (top("a:"), "5: "),
        (top("a: {file: app.env, environment: TAG}"), "5: needs exactly one"),
        (top("a: {external: true, file: app.env}"), "5: an external secret"),
        (top("a: {environment: ABSENT}"), "5: the variable ABSENT is not set"),
        (top("a: {file: absent.txt}"), "5: there is no file absent.txt"),
        (top("a: {file: [x]}"), "5: this is a list"),
        (top("'ä b': {environment: TAG}"), "5: \"ä b\" cannot name a secret"),
        (top("a_b: {environment: TAG}\n  a-b: {environment: TAG}"), "6: two secrets are called a-b"),
        (top("a: {environment: TAG, driver: x}"), "5: `driver` is not supported"),
        (service("secrets: [nobody]"), "4: \"nobody\" is not under `secrets`"),
        (service("secrets: [{target: a}]"), "4: `source` is missing"),
        (service("secrets: a"), "4: "),
    ] {
        let faults = told(&text);
        assert!(faults.contains(wanted), "{text}\n{faults}");
    }
    let used = |target: &str| {
        let (one, two) = ("{source: a, target: x}", format!("{{source: a, target: {target}}}"));
        service(&format!("secrets: [{one}, {two}]")) + "secrets: {a: {environment: TAG}}\n"
    };
    for target in ["x", "/run/secrets/x", "x/y", "../x", "/proc/x"] {
        assert!(!told(&used(target)).is_empty(), "{target}");
    }
    compiled(&used("y"));
    const { assert!(MAX_SECRET_BYTES < 1 << 20, "a document with one is no larger than documents may be") };
}
