use super::*;
use crate::id::ClusterId;

const CA: &str = "-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n";
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A configuration with every key; each stands on a line of its own.
fn full() -> String {
    let id = ClusterId::of(b"root");
    format!(
        r#"[cluster]
id = "{id}"
name = "edge"
root_ca = "{CA}"
root_keys = ["{KEY}"]
container_range = "10.42.0.0/16"

[token]
ca = "{CA}"
ca_key = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"
document = "{{}}"
seeds = ["192.0.2.1", "seed.example:7946", "[2001:db8::1]:7946"]

[node]
hostname = "first"

[node.labels]
zone = "cellar"
"example.org/disk" = "ssd"

[network]
interface = "eth0"
address = "192.0.2.5/24"
gateway = "192.0.2.1"
dns = ["192.0.2.53"]
ntp = ["ntp.example"]

[registries]
insecure = ["registry.example:5000"]

[registries.mirrors]
"docker.io" = ["mirror.example", "cache.example:5000"]
"#
    )
}

fn fault_of(text: &str) -> MachineConfigError {
    MachineConfig::parse(text).expect_err("a fault")
}

/// Replaces a line that must exist.
fn with(old: &str, new: &str) -> String {
    let text = full();
    assert_eq!(text.matches(old).count(), 1, "{old}");
    text.replace(old, new)
}

#[test]
fn a_configuration_survives_writing_and_reading() {
    let config = MachineConfig::parse(&full()).unwrap();
    assert_eq!(MachineConfig::parse(&config.to_toml()).unwrap(), config);
    assert_eq!(config.token.unwrap().seeds.len(), 3);
    assert_eq!(config.node.labels["example.org/disk"], "ssd");
}

#[test]
fn what_is_absent_has_a_default() {
    let text = full();
    let cluster = text.split("[token]").next().unwrap().replace("container_range = \"10.42.0.0/16\"\n", "");
    let config = MachineConfig::parse(&cluster).unwrap();
    assert_eq!(config.cluster.container_range, "10.42.0.0/16");
    assert_eq!(config.token, None);
    assert_eq!(MachineConfig::parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn every_fault_gives_its_line_its_key_and_what_to_do() {
    use ConfigCode::*;
    let cases = [
        ("hostname = \"first\"", "hostnmae = \"first\"", UnknownKey, 15, "node.hostnmae", "`hostname`"),
        ("[registries]", "[registry]", UnknownKey, 28, "registry", "`registries`"),
        ("hostname = \"first\"", "hostname = 1", WrongType, 15, "node.hostname", "change the value"),
        ("name = \"edge\"\n", "", MissingKey, 1, "cluster.name", "add it"),
        ("hostname = \"first\"", "hostname = first", Syntax, 15, "", "correct the TOML"),
        ("hostname = \"first\"", "hostname = \"First\"", BadValue, 15, "node.hostname", "lower-case"),
        ("name = \"edge\"", "name = \"\"", BadValue, 3, "cluster.name", "change the name"),
        ("id = \"", "id = \"zz", BadValue, 2, "cluster.id", "hexadecimal"),
        ("10.42.0.0/16", "10.42.1.0/16", BadValue, 6, "cluster.container_range", "`10.42.0.0/16`"),
        ("10.42.0.0/16", "10.42.0.0/24", BadValue, 6, "cluster.container_range", "/22"),
        ("10.42.0.0/16", "fd00::/16", BadValue, 6, "cluster.container_range", "IPv4"),
        (KEY, "AAAA", BadValue, 5, "cluster.root_keys[0]", "32 bytes"),
        ("document = \"{}\"", "document = \"[]\"", BadValue, 11, "token.document", "new token"),
        ("\"seed.example:7946\"", "\"seed:0\"", BadValue, 12, "token.seeds[1]", "host:port"),
        ("\"[2001:db8::1]:7946\"", "\"2001:db8::1\"", BadValue, 12, "token.seeds[2]", "brackets"),
        ("PRIVATE KEY-----\\nMIIB", "PRIVATE KEY-----\\n*", BadValue, 10, "token.ca_key", "new token"),
        ("zone = \"cellar\"", "\"zo ne\" = \"x\"", BadValue, 18, "node.labels.zo ne", "letters"),
        ("\"eth0\"", "\"an interface with a long name\"", BadValue, 22, "network.interface", "15"),
        ("192.0.2.5/24", "192.0.2.5", BadValue, 23, "network.address", "prefix length"),
        ("address = \"192.0.2.5/24\"\n", "", BadValue, 23, "network.gateway", "network.address"),
        (
            "gateway = \"192.0.2.1\"",
            "gateway = \"198.51.100.1\"",
            BadValue,
            24,
            "network.gateway",
            "network of",
        ),
        ("gateway = \"192.0.2.1\"", "gateway = \"none\"", BadValue, 24, "network.gateway", "correct"),
        ("[\"ntp.example\"]", "[\"ntp example\"]", BadValue, 26, "network.ntp[0]", "host"),
        ("\"docker.io\" =", "\"docker io\" =", BadValue, 32, "registries.mirrors.docker io", "host"),
        (
            "\"cache.example:5000\"",
            "\"cache:x\"",
            BadValue,
            32,
            "registries.mirrors.docker.io[1]",
            "host:port",
        ),
        (
            "[\"mirror.example\", \"cache.example:5000\"]",
            "[]",
            BadValue,
            32,
            "registries.mirrors.docker.io",
            "1 to 4 mirrors",
        ),
        ("registry.example:5000", "registry.example", BadValue, 29, "registries.insecure[0]", "host:port"),
    ];
    for (old, new, code, line, key, hint) in cases {
        let error = fault_of(&with(old, new));
        assert_eq!((error.code, error.line, error.key.as_str()), (code, line, key), "{new}: {error}");
        assert!(error.message.contains(hint), "{new}: {error}");
        assert!(error.to_string().starts_with(&format!("{FILE_NAME}:{line}:")), "{error}");
    }
}

#[test]
fn a_fault_that_others_find_gets_its_line_too() {
    let error = MachineConfigError::in_value(&full(), "token.ca_key", "not the key of this certificate");
    assert_eq!((error.line, error.column), (10, 1));
    assert_eq!(
        error.to_string(),
        "hivemind.toml:10:1: `token.ca_key`: not the key of this certificate (config-bad-value)"
    );
    assert_eq!(MachineConfigError::in_value(&full(), "token.nothing", "").line, 8);
}

#[test]
fn a_fault_s_column_counts_characters() {
    let error = fault_of("[cluster]\n\"é\" = 1\n");
    assert_eq!((error.line, error.column), (2, 1));
    let error = fault_of("[cluster]\nname = \"é\" x\n");
    assert_eq!((error.line, error.column), (2, 12));
}

#[test]
fn oversized_and_binary_files_are_refused() {
    assert_eq!(fault_of(&"#".repeat(MAX_BYTES + 1)).code, ConfigCode::TooLarge);
    let error = MachineConfig::parse_bytes(&vec![0xff; MAX_BYTES + 1]).unwrap_err();
    assert_eq!(error.code, ConfigCode::TooLarge);
    let error = MachineConfig::parse_bytes(b"a = 1\nb\xff").unwrap_err();
    assert_eq!((error.code, error.line, error.column), (ConfigCode::NotText, 2, 2));
}

#[test]
fn lists_are_bounded() {
    let many = vec!["\"192.0.2.1\""; 65].join(",");
    let error = fault_of(&with("dns = [\"192.0.2.53\"]", &format!("dns = [{many}]")));
    assert_eq!((error.code, error.line), (ConfigCode::BadValue, 25));
}

#[test]
fn a_registry_has_its_own_mirrors_or_else_those_of_all() {
    let mut registries = MachineConfig::parse(&full()).unwrap().registries;
    assert_eq!(registries.mirrors_of("docker.io"), ["mirror.example", "cache.example:5000"]);
    assert!(registries.mirrors_of("ghcr.io").is_empty());
    registries.mirrors.insert(crate::machine::ALL_REGISTRIES.to_owned(), vec!["all.example".to_owned()]);
    assert_eq!(registries.mirrors_of("ghcr.io"), ["all.example"]);
    assert_eq!(registries.mirrors_of("docker.io").len(), 2);
}
