use super::*;
use crate::key::SigningKey;

/// One node's whole chain, with all keys.
struct World {
    root_key: KeyPair,
    root: Vec<u8>,
    token_key: KeyPair,
    token: Vec<u8>,
    node_key: KeyPair,
    node: Vec<u8>,
    leaf_key: KeyPair,
    leaf: Vec<u8>,
}

const NOW_MS: u64 = 1_790_000_000_000;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn record_public() -> PublicKey {
    SigningKey::from_seed([7; 32]).public()
}

fn signer<'a>(certificate: &'a [u8], key: &'a KeyPair) -> Signer<'a> {
    Signer { certificate, key }
}

fn world(start_ms: u64) -> World {
    let (root_key, token_key, node_key, leaf_key) = (key(), key(), key(), key());
    let root = root_ca(&root_key, "home").unwrap();
    let token = token_ca(signer(&root, &root_key), &token_key).unwrap();
    let node = node_ca(signer(&token, &token_key), &node_key, record_public()).unwrap();
    let leaf = leaf(
        signer(&node, &node_key),
        &leaf_key,
        &["10.77.0.11".parse().unwrap(), "fd00::1".parse().unwrap()],
        &["hive-1".to_owned()],
        start_ms,
        LEAF_DAYS,
    )
    .unwrap();
    World { root_key, root, token_key, token, node_key, node, leaf_key, leaf }
}

impl World {
    fn chain(&self) -> [Vec<u8>; 3] {
        [self.leaf.clone(), self.node.clone(), self.token.clone()]
    }
}

#[test]
fn a_chain_names_its_node_token_and_record_key() {
    let w = world(NOW_MS);
    let identity = verify_peer(&w.root, &w.chain()).unwrap();
    assert_eq!(identity.node, NodeId::of(&public_key_info(&w.node_key)));
    assert_eq!(identity.token, TokenId::of(&public_key_info(&w.token_key)));
    assert_eq!(identity.record_key, record_public());
    assert_eq!(verify_node_chain(&w.root, &w.node, &w.token), Ok(identity));
    assert_eq!(cluster_id(&w.root), Ok(ClusterId::of(&public_key_info(&w.root_key))));
    assert_eq!(token_id(&w.root, &w.token), Ok(identity.token));
}

#[test]
fn a_leaf_of_any_clock_is_accepted_by_nodes() {
    for start_ms in [0, NOW_MS, LAST_LEAF_START_MS, u64::MAX] {
        let w = world(start_ms);
        assert!(verify_peer(&w.root, &w.chain()).is_ok(), "{start_ms}");
    }
}

#[test]
fn another_clusters_chain_is_named_as_such() {
    let (ours, theirs) = (world(NOW_MS), world(NOW_MS));
    // The same cluster name, so that only the signature tells them apart.
    assert_eq!(verify_peer(&ours.root, &theirs.chain()), Err(CertificateError::OtherCluster));
    assert!(CertificateError::OtherCluster.to_string().contains("another cluster's root CA"));
}

#[test]
fn a_leaf_of_another_node_is_refused() {
    let w = world(NOW_MS);
    let other_key = key();
    let other = node_ca(signer(&w.token, &w.token_key), &other_key, record_public()).unwrap();
    let chain = [w.leaf.clone(), other, w.token.clone()];
    assert!(matches!(verify_peer(&w.root, &chain), Err(CertificateError::Unfit { what: LEAF, .. })));
}

#[test]
fn no_place_in_the_chain_can_be_skipped_or_stretched() {
    let w = world(NOW_MS);
    // A leaf signed by the token CA, without a node CA.
    let short = leaf(signer(&w.token, &w.token_key), &w.leaf_key, &[], &[], NOW_MS, 1).unwrap();
    assert!(verify_peer(&w.root, &[short.clone(), w.token.clone()]).is_err());
    assert!(verify_peer(&w.root, &[short, w.token.clone(), w.token.clone()]).is_err());
    // A node CA below a node CA.
    let below_key = key();
    let below = node_ca(signer(&w.node, &w.node_key), &below_key, record_public()).unwrap();
    let deep = leaf(signer(&below, &below_key), &w.leaf_key, &[], &[], NOW_MS, 1).unwrap();
    assert!(verify_peer(&w.root, &[deep.clone(), below.clone(), w.node.clone()]).is_err());
    assert_eq!(
        verify_peer(&w.root, &[deep, below, w.node.clone(), w.token.clone(), w.root.clone()]),
        Err(CertificateError::Length { found: 5 })
    );
    // A CA in the place of the leaf.
    assert!(verify_peer(&w.root, &[w.node.clone(), w.node.clone(), w.token.clone()]).is_err());
    let none: [Vec<u8>; 0] = [];
    assert_eq!(verify_peer(&w.root, &none), Err(CertificateError::Length { found: 0 }));
}

#[test]
fn a_flipped_bit_anywhere_in_the_chain_is_never_accepted_as_someone_else() {
    let w = world(NOW_MS);
    let honest = verify_peer(&w.root, &w.chain()).unwrap();
    for place in 0..3 {
        for byte in 0..w.chain()[place].len() {
            let mut chain = w.chain();
            chain[place][byte] ^= 1;
            // A signature's encoding may have slack; who it speaks for may not.
            if let Ok(identity) = verify_peer(&w.root, &chain) {
                assert_eq!(identity, honest, "certificate {place}, byte {byte}");
            }
        }
    }
}

#[test]
fn a_signer_must_hold_its_own_key() {
    let w = world(NOW_MS);
    let stray = key();
    assert_eq!(token_ca(signer(&w.root, &stray), &key()), Err(CertificateError::OtherKey { what: ROOT }));
    assert_eq!(
        node_ca(signer(&w.token, &stray), &key(), record_public()),
        Err(CertificateError::OtherKey { what: TOKEN })
    );
}

#[test]
fn a_leaf_refuses_names_that_are_none() {
    let w = world(NOW_MS);
    for bad in ["", "a b", "*.example", "-a", "a..b", "ü"] {
        let made = leaf(signer(&w.node, &w.node_key), &w.leaf_key, &[], &[bad.to_owned()], NOW_MS, 1);
        assert!(matches!(made, Err(CertificateError::NotMade { .. })), "{bad:?}");
    }
    for days in [0, MAX_LEAF_DAYS + 1] {
        assert!(leaf(signer(&w.node, &w.node_key), &w.leaf_key, &[], &[], NOW_MS, days).is_err());
    }
}

#[test]
fn pem_goes_there_and_back() {
    let w = world(NOW_MS);
    assert_eq!(from_pem(&to_pem(&w.root), "root CA"), Ok(w.root.clone()));
    let again = key_from_pem(&w.token_key.serialize_pem(), "token key").unwrap();
    assert_eq!(public_key_info(&again), public_key_info(&w.token_key));
    assert!(from_pem("not a certificate", "root CA").is_err());
    assert!(key_from_pem(&to_pem(&w.root), "token key").is_err());
}

#[test]
fn a_leafs_life_can_be_read() {
    let w = world(NOW_MS);
    let day_ms = 86_400_000;
    assert_eq!(validity_ms(&w.leaf), Ok((NOW_MS, NOW_MS + u64::from(LEAF_DAYS) * day_ms)));
}

/// The commonest HTTPS library outside Rust agrees, with the root as its only CA.
#[test]
fn openssl_accepts_the_chain() {
    let w = world(NOW_MS);
    let folder = std::env::temp_dir().join(format!("hivemind-chain-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, certificates: &[&Vec<u8>]| {
        let path = folder.join(name);
        let text: String = certificates.iter().map(|der| to_pem(der)).collect();
        std::fs::write(&path, text).unwrap();
        path
    };
    let root = write("root.pem", &[&w.root]);
    let between = write("between.pem", &[&w.node, &w.token]);
    let leaf = write("leaf.pem", &[&w.leaf]);
    for (purpose, name) in [("sslserver", CLUSTER_NAME), ("sslclient", "hive-1")] {
        let output = std::process::Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", name])
            .args(["-attime", &(NOW_MS / 1000 + 60).to_string(), "-verify_ip", "10.77.0.11", "-no-CApath"])
            .arg("-CAfile")
            .arg(&root)
            .arg("-untrusted")
            .arg(&between)
            .arg(&leaf)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
