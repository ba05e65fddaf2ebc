use std::os::unix::fs::PermissionsExt;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), "demo", NOW).unwrap();
    (dir, authority)
}

fn request(params: CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn certify(authority: &Authority, request: &[u8]) -> Result<Issued, PkiError> {
    let site = "site-a".parse().unwrap();
    let validity = Validity::starting(NOW, days(365));
    let key = RequestedKey::of(request)?;
    authority.certify_site(&key, &site, Role::Evaluator, Serial::random(), validity)
}

fn uris(der: &[u8]) -> Vec<String> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    assert!(names.value.general_names.iter().all(|name| uri(name).is_some()), "no other kind of name");
    names.value.general_names.iter().filter_map(uri).collect()
}

#[test]
fn keys_are_readable_by_their_owner_alone() {
    let (dir, _) = authority();
    for key in ["root.key", "issuing.key"] {
        let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_second_init_is_refused_and_changes_nothing() {
    let (dir, first) = authority();
    assert!(matches!(Authority::create(dir.path(), "demo", NOW), Err(PkiError::Exists { .. })));
    assert_eq!(Authority::open(dir.path(), "demo").unwrap().root_fingerprint(), first.root_fingerprint());
}

#[test]
fn the_root_key_can_be_taken_away() {
    let (dir, _) = authority();
    fs::remove_file(dir.path().join("root.key")).unwrap();
    let authority = Authority::open(dir.path(), "demo").unwrap();
    let request = request(CertificateParams::default(), &KeyPair::generate().unwrap());
    assert!(certify(&authority, &request).is_ok());
}

#[test]
fn the_invite_decides_name_and_role_whatever_the_request_says() {
    let (_dir, authority) = authority();
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name = named("site-b");
    params.subject_alt_names.push(SanType::URI("consilium://demo/site/site-b/trainer".try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let issued = certify(&authority, &request(params, &KeyPair::generate().unwrap())).unwrap();

    assert_eq!(uris(&issued.chain[0]), ["consilium://demo/site/site-a/evaluator"]);
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && !purposes.server_auth);
    assert_eq!(leaf.raw_serial(), issued.serial.as_bytes());
}

#[test]
fn each_certificate_is_signed_by_the_next_in_the_chain() {
    let (_dir, authority) = authority();
    let request = request(CertificateParams::default(), &KeyPair::generate().unwrap());
    let issued = certify(&authority, &request).unwrap();
    for pair in issued.chain.windows(2) {
        let (_, child) = X509Certificate::from_der(&pair[0]).unwrap();
        let (_, parent) = X509Certificate::from_der(&pair[1]).unwrap();
        child.verify_signature(Some(parent.public_key())).unwrap();
    }
    assert_eq!(sha256(&issued.chain[2]), authority.root_fingerprint());
}

#[test]
fn a_serial_is_one_tokens_and_one_pair_of_keys() {
    let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let requested = |key| RequestedKey::of(&request(CertificateParams::default(), key)).unwrap();
    let token = TokenHash::of(&[1; 32]);
    let serial = Serial::of(&token, &requested(&one), &[2; 32]);
    assert_eq!(serial, Serial::of(&token, &requested(&one), &[2; 32]), "two requests, one key");
    for different in [
        Serial::of(&token, &requested(&other), &[2; 32]),
        Serial::of(&token, &requested(&one), &[3; 32]),
        Serial::of(&TokenHash::of(&[4; 32]), &requested(&one), &[2; 32]),
    ] {
        assert_ne!(serial, different);
    }
    assert!((0x40..0x80).contains(&serial.as_bytes()[0]));
}

#[test]
fn a_request_not_signed_by_its_own_key_is_refused() {
    let (_dir, authority) = authority();
    let mut request = request(CertificateParams::default(), &KeyPair::generate().unwrap());
    let last = request.len() - 1;
    request[last] ^= 1;
    assert!(matches!(certify(&authority, &request), Err(PkiError::Request(_))));
    assert!(matches!(certify(&authority, b"not DER"), Err(PkiError::Request(_))));
}

#[test]
fn a_key_that_is_not_p256_is_refused() {
    let (_dir, authority) = authority();
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(matches!(
        certify(&authority, &request(CertificateParams::default(), &key)),
        Err(PkiError::Request(_))
    ));
}

#[test]
fn the_server_certificate_carries_host_names_and_addresses() {
    let (_dir, authority) = authority();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let identity = authority.certify_server(&names).unwrap();
    let (_, leaf) = X509Certificate::from_der(&identity.chain[0]).unwrap();
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
    assert!(leaf.validity().is_valid_at(x509_parser::time::ASN1Time::from_timestamp(1_800_000_000).unwrap()));
}

/// The consortium may be older than the clock's battery, or the clock be ahead: that is no date to go by.
#[test]
fn the_server_certificate_counts_as_long_as_the_one_that_signs_it() {
    const YEAR_2050: Timestamp = Timestamp(2_524_608_000_000);
    for founded in [Timestamp(0), NOW, YEAR_2050] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "demo", founded).unwrap();
        let identity = authority.certify_server(&["localhost".to_owned()]).unwrap();
        assert_eq!(Validity::of(&identity.chain[0]), Some(Validity::starting(founded, ISSUING_LIFE)));
        assert_eq!(Validity::of(&identity.chain[0]), Validity::of(authority.issuing()));
    }
}
