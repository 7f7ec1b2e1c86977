use super::*;
use hivemind_spec::machine::{Cluster, Token};

const NOW_MS: u64 = 1_790_000_000_000;

/// A cluster as its operator holds it.
pub(crate) struct Operator {
    root_key: KeyPair,
    root: Vec<u8>,
}

impl Operator {
    pub(crate) fn new(name: &str) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = certificate::root_ca(&root_key, name).unwrap();
        Self { root_key, root }
    }

    /// A configuration with a new token.
    pub(crate) fn configuration(&self) -> MachineConfig {
        let key = KeyPair::generate().unwrap();
        let signer = Signer { certificate: &self.root, key: &self.root_key };
        let token_ca = certificate::token_ca(signer, &key).unwrap();
        MachineConfig {
            cluster: Cluster {
                id: certificate::cluster_id(&self.root).unwrap(),
                name: "test".into(),
                root_ca: certificate::to_pem(&self.root),
                root_keys: vec![operator_key().public().to_base64()],
                container_range: "10.42.0.0/16".into(),
            },
            token: Some(Token {
                ca: certificate::to_pem(&token_ca),
                ca_key: Some(key.serialize_pem()),
                document: token_document(TokenId::of(&certificate::public_key_info(&key))),
                seeds: Vec::new(),
            }),
            node: Default::default(),
            network: Default::default(),
            registries: Default::default(),
            install: None,
        }
    }
}

fn operator_key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

/// The signed document of a token that is always open.
fn token_document(id: TokenId) -> String {
    let document = format!(
        r#"{{"apiVersion":"hivemind/v1","kind":"Token","metadata":{{"name":"{id}","revision":1}},
            "spec":{{"id":"{id}","notBeforeMs":0,"notAfterMs":9007199254740991}}}}"#
    );
    let envelope = Envelope::sign(document.as_bytes(), &operator_key());
    String::from_utf8(envelope.to_json()).unwrap()
}

/// A folder that goes when the test ends.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hivemindd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn without_key(config: &MachineConfig) -> MachineConfig {
    let mut config = config.clone();
    config.token.as_mut().unwrap().ca_key = None;
    config
}

#[test]
fn a_node_keeps_its_identity_after_its_token_key_is_erased() {
    let (folder, config) = (Folder::new("keeps"), Operator::new("home").configuration());
    let first = Identity::load_or_enrol(&folder.0.join("identity"), &config, NOW_MS).unwrap();
    assert!(first.enrolled_now());
    let again = Identity::load_or_enrol(&folder.0.join("identity"), &without_key(&config), NOW_MS).unwrap();
    assert!(!again.enrolled_now());
    assert_eq!(again.node(), first.node());
    assert_eq!(again.record_public(), first.record_public());
    assert_eq!(again.derive("x"), first.derive("x"));
    assert_ne!(again.derive("x"), first.derive("y"));
}

#[test]
fn every_start_is_a_new_incarnation_also_when_the_count_is_lost() {
    let (folder, config) = (Folder::new("starts"), Operator::new("home").configuration());
    let start = || Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap().boot();
    assert_eq!([start(), start(), start()], [1, 2, 3]);
    fs::write(folder.0.join(STARTS_FILE), "").unwrap();
    assert_eq!(start(), NOW_MS / 1000 + 1);
}

#[test]
fn a_power_cut_while_storing_leaves_no_half_identity() {
    let (folder, config) = (Folder::new("cut"), Operator::new("home").configuration());
    // What a cut before the rename leaves.
    fs::write(folder.0.join("identity.json.new"), "{\"format\":1,").unwrap();
    assert!(Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap().enrolled_now());
    assert!(!Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap().enrolled_now());
}

#[test]
fn without_token_key_and_identity_a_machine_says_what_to_do() {
    let (folder, config) = (Folder::new("none"), Operator::new("home").configuration());
    let error = Identity::load_or_enrol(&folder.0, &without_key(&config), NOW_MS).unwrap_err();
    assert_eq!(error.code(), "identity-no-token");
    assert!(error.to_string().contains("hivemind token create"), "{error}");
}

#[test]
fn a_damaged_identity_is_reported_and_never_replaced() {
    let (folder, config) = (Folder::new("damaged"), Operator::new("home").configuration());
    Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap();
    let path = folder.0.join(IDENTITY_FILE);
    let whole = fs::read(&path).unwrap();
    for bytes in [&b"garbage"[..], &whole[..whole.len() / 2], b"", &[0xff; 100]] {
        fs::write(&path, bytes).unwrap();
        let error = Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap_err();
        assert_eq!(error.code(), "identity-damaged", "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused_before_anything_is_stored() {
    let folder = Folder::new("contradicts");
    let (ours, theirs) = (Operator::new("home"), Operator::new("home"));
    let mut foreign_token = ours.configuration();
    foreign_token.token = theirs.configuration().token;
    let mut foreign_id = ours.configuration();
    foreign_id.cluster.id = theirs.configuration().cluster.id;
    let mut foreign_key = ours.configuration();
    foreign_key.token.as_mut().unwrap().ca_key = ours.configuration().token.unwrap().ca_key;
    let with_document = |document: String| {
        let mut config = ours.configuration();
        config.token.as_mut().unwrap().document = document;
        config
    };
    let (good, other) = (ours.configuration().token.unwrap().document, TokenId::of(b"another"));
    for (config, place, why) in [
        (foreign_token, "token.ca", "another cluster"),
        (foreign_id, "cluster.root_ca", "cluster.id"),
        (foreign_key, "token.ca_key", ""),
        (with_document("{}".to_owned()), "token.document", "missing field"),
        (with_document(good.replace("\"sig\":\"", "\"sig\":\"AAAA")), "token.document", "does not match"),
        (with_document(token_document(other)), "token.document", "another token"),
    ] {
        let error = Identity::load_or_enrol(&folder.0, &config, NOW_MS).unwrap_err();
        assert_eq!(error.code(), "identity-configuration");
        let IdentityError::Configuration { place: found, reason } = &error else { panic!("{error}") };
        assert!(*found == place && reason.contains(why), "{error}");
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn a_machine_of_another_cluster_is_told_so() {
    let folder = Folder::new("other");
    Identity::load_or_enrol(&folder.0, &Operator::new("home").configuration(), NOW_MS).unwrap();
    let error =
        Identity::load_or_enrol(&folder.0, &Operator::new("home").configuration(), NOW_MS).unwrap_err();
    assert_eq!(error.code(), "identity-other-cluster");
}

#[test]
fn the_identity_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new("mode");
    let inner = folder.0.join("identity");
    Identity::load_or_enrol(&inner, &Operator::new("home").configuration(), NOW_MS).unwrap();
    assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(inner.join(IDENTITY_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_leaf_is_renewed_for_new_addresses_after_half_its_life_and_when_the_clock_goes_back() {
    let folder = Folder::new("leaf");
    let identity =
        Identity::load_or_enrol(&folder.0, &Operator::new("home").configuration(), NOW_MS).unwrap();
    let addresses = ["10.77.0.11".parse().unwrap()];
    let leaf = identity.mint_leaf(&addresses, &["hive-1".into()], NOW_MS).unwrap();
    let day_ms = 86_400_000;
    assert!(!leaf.is_stale(&addresses, NOW_MS));
    assert!(!leaf.is_stale(&addresses, NOW_MS + 28 * day_ms));
    assert!(leaf.is_stale(&[], NOW_MS));
    assert!(leaf.is_stale(&addresses, NOW_MS + 30 * day_ms));
    assert!(leaf.is_stale(&addresses, NOW_MS - 3 * day_ms));
    let ids = certificate::verify_peer(identity.root(), leaf.chain()).unwrap();
    assert_eq!(ids.node, identity.node());
}

#[test]
fn a_subnet_is_remembered_beside_the_identity() {
    let folder = Folder::new("subnet");
    assert_eq!(remembered_subnet(&folder.0), None);
    remember_subnet(&folder.0, 7).unwrap();
    remember_subnet(&folder.0, 300).unwrap();
    assert_eq!(remembered_subnet(&folder.0), Some(300));
}
