//! The CA against the verifier: what is accepted, and every way of not being it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aerie_types::{GridId, Role, Roles, WallMillis};
use proptest::prelude::*;
use rcgen::{CustomExtension, KeyUsagePurpose};

use crate::ca::{RawKey, distinguished_name, set_validity};
use crate::credential::private_extension;
use crate::{
    DEFAULT_LIFETIME, EnrolRequest, GridCa, IssuedCredentials, JoinToken, MAX_CREDENTIAL_DER, NodeKeys,
    Rejection, RenewRequest, RevocationList, RevokedBy, SignedRevocations, Subject, UserKey, UserRequest,
    Verifier, pem_to_der,
};

const HOUR: Duration = Duration::from_secs(3600);
const NOW: WallMillis = WallMillis(1_900_000_000_000);

struct Fixture {
    ca: GridCa,
    verifier: Verifier,
    keys: NodeKeys,
    subject: Subject,
}

impl Fixture {
    fn new() -> Self {
        Self::named("chem", "w1", "alice", "physics")
    }

    fn named(grid: &str, node: &str, user: &str, group: &str) -> Self {
        let ca = GridCa::create(grid.parse().unwrap(), "100.96.0.0/11".parse().unwrap(), NOW).unwrap();
        let verifier = ca.verifier().unwrap();
        let subject = Subject {
            node: node.parse().unwrap(),
            user: user.parse().unwrap(),
            group: group.parse().unwrap(),
            roles: Roles::from(Role::Worker).with(Role::Relay),
        };
        Self {
            ca,
            verifier,
            keys: NodeKeys::generate().unwrap(),
            subject,
        }
    }

    fn request(&self) -> EnrolRequest {
        EnrolRequest::create(&self.keys, self.ca.grid_id(), self.subject.node.clone(), false).unwrap()
    }

    fn issue(&self, serial: u64) -> IssuedCredentials {
        self.ca
            .issue(&self.request(), &self.subject, serial, NOW, DEFAULT_LIFETIME)
            .unwrap()
    }

    /// Signs a credential of which one thing is not as the CA would make it.
    fn forge(&self, edit: impl FnOnce(&mut rcgen::CertificateParams)) -> Vec<u8> {
        let name = distinguished_name("chem", Some(("worker", "w1")));
        let mut params = self.ca.leaf(name, 9).unwrap();
        params.custom_extensions = vec![private_extension(
            self.ca.grid_id(),
            self.keys.noise_public(),
            &self.subject,
        )];
        set_validity(&mut params, NOW, DEFAULT_LIFETIME, WallMillis(u64::MAX));
        edit(&mut params);
        let peer = self.keys.peer_id();
        self.ca
            .sign("forgery", &params, &RawKey::ed25519(&peer.0))
            .unwrap()
    }
}

#[test]
fn an_issued_credential_verifies_and_says_what_was_asked() {
    let f = Fixture::new();
    let issued = f.issue(u64::MAX);
    let credential = f.verifier.verify(&issued.overlay_der, NOW).unwrap();
    assert_eq!(credential.grid, f.ca.grid_id());
    assert_eq!(credential.peer, f.keys.peer_id());
    assert_eq!(credential.noise_public, f.keys.noise_public());
    assert_eq!(
        (
            credential.node.as_str(),
            credential.user.as_str(),
            credential.group.as_str()
        ),
        ("w1", "alice", "physics")
    );
    assert_eq!(credential.roles, f.subject.roles);
    assert_eq!(credential.serial, u64::MAX);
    assert_eq!(credential.der, issued.overlay_der);
    assert_eq!(credential.not_after, issued.not_after);
    assert_eq!(credential.fqdn(), "w1.chem.grid");
    let renew = credential.renew_at().since(NOW).as_secs_f64() / DEFAULT_LIFETIME.as_secs_f64();
    assert!((0.66..0.67).contains(&renew), "{renew}");
}

#[test]
fn an_overlay_credential_with_the_longest_names_stays_below_its_limit() {
    let f = Fixture::named(&"g".repeat(32), &"n".repeat(40), &"u".repeat(32), &"r".repeat(32));
    let mut subject = f.subject.clone();
    subject.roles = Role::ALL.into_iter().collect();
    // A signature's length varies by a few bytes with its leading zeros.
    let longest = (0..32)
        .map(|_| {
            let issued =
                f.ca.issue(&f.request(), &subject, u64::MAX, NOW, DEFAULT_LIFETIME)
                    .unwrap();
            f.verifier.verify(&issued.overlay_der, NOW).unwrap();
            issued.overlay_der.len()
        })
        .max()
        .unwrap();
    println!("longest overlay credential: {longest} bytes");
    assert!(
        longest <= MAX_CREDENTIAL_DER - 100,
        "{longest} bytes leave no room for a field more"
    );
}

#[test]
fn openssl_accepts_the_condor_user_and_server_certificates() {
    let f = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let now = WallMillis::from(std::time::SystemTime::now());
    let ca = GridCa::create("chem".parse().unwrap(), "100.96.0.0/11".parse().unwrap(), now).unwrap();
    let request = EnrolRequest::create(&f.keys, ca.grid_id(), f.subject.node.clone(), false).unwrap();
    let issued = ca.issue(&request, &f.subject, 7, now, DEFAULT_LIFETIME).unwrap();
    let verifier = ca.verifier().unwrap();
    let credential = verifier.verify(&issued.overlay_der, now).unwrap();
    let user = UserRequest::create(
        &f.keys,
        &credential,
        &UserKey::generate().unwrap(),
        &f.subject.user,
    )
    .unwrap();
    user.verify(&credential).unwrap();
    let user_pem = ca.issue_user(&user, 8, now, 24 * HOUR).unwrap();
    let names = [
        "portal.example.org".to_owned(),
        "192.0.2.7".to_owned(),
        "2001:db8::7".to_owned(),
    ];
    let server = ca.issue_server(&names, 9, now, DEFAULT_LIFETIME).unwrap();
    let server_pem = crate::der::pem("CERTIFICATE", &server.leaf_der);

    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, &issued.ca_pem).unwrap();
    let cases = [
        (
            issued.condor_pem.as_str(),
            "O = chem, OU = worker, CN = w1",
            "sslclient",
        ),
        (issued.condor_pem.as_str(), "DNS:w1.chem.grid", "sslserver"),
        (user_pem.as_str(), "O = chem, OU = user, CN = alice", "sslclient"),
        (
            server_pem.as_str(),
            "DNS:portal.example.org, IP Address:192.0.2.7",
            "sslserver",
        ),
    ];
    for (pem, expected, purpose) in cases {
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, pem).unwrap();
        openssl(
            &["verify", "-x509_strict", "-purpose", purpose, "-CAfile"],
            &[&ca_file, &file],
        );
        let text = openssl(&["x509", "-noout", "-text", "-in"], &[&file]);
        assert!(text.contains(expected), "{expected} is not in\n{text}");
        verifier.verify_plain(&pem_to_der(pem).unwrap(), now).unwrap();
    }
}

fn openssl(args: &[&str], files: &[&Path]) -> String {
    let output = Command::new("openssl").args(args).args(files).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "openssl {args:?}: {text}");
    text
}

#[test]
fn the_condor_certificate_has_the_requested_key_and_subject() {
    let f = Fixture::new();
    let plain = f
        .verifier
        .verify_plain(&pem_to_der(&f.issue(5).condor_pem).unwrap(), NOW)
        .unwrap();
    assert_eq!(plain.public, f.keys.condor_public());
    assert_eq!(
        (
            plain.organization.as_str(),
            plain.unit.as_str(),
            plain.common_name.as_str(),
            plain.serial
        ),
        ("chem", "worker", "w1", 5)
    );
}

#[test]
fn the_two_kinds_of_certificate_do_not_stand_for_each_other() {
    let f = Fixture::new();
    let issued = f.issue(1);
    let condor = pem_to_der(&issued.condor_pem).unwrap();
    assert!(matches!(
        f.verifier.verify(&condor, NOW),
        Err(Rejection::Malformed(_))
    ));
    assert!(matches!(
        f.verifier.verify_plain(&issued.overlay_der, NOW),
        Err(Rejection::Malformed(_))
    ));
    assert!(matches!(
        f.verifier.verify(f.ca.ca_der(), NOW),
        Err(Rejection::Malformed(_))
    ));
    assert!(f.verifier.verify_plain(f.ca.ca_der(), NOW).is_err());
}

#[test]
fn a_credential_of_another_grid_says_so() {
    let (f, other) = (Fixture::new(), Fixture::new());
    let rejection = f.verifier.verify(&other.issue(1).overlay_der, NOW).unwrap_err();
    let expected = Rejection::WrongGrid {
        theirs: other.ca.grid_id(),
        ours: f.ca.grid_id(),
    };
    assert_eq!(rejection, expected);
}

#[test]
fn a_credential_that_claims_this_grid_but_has_another_signer_is_refused() {
    let (f, mut other) = (Fixture::new(), Fixture::new());
    other.subject = f.subject.clone();
    let forged = other.forge(|params| {
        params.custom_extensions = vec![private_extension(
            f.ca.grid_id(),
            f.keys.noise_public(),
            &f.subject,
        )];
    });
    assert_eq!(f.verifier.verify(&forged, NOW), Err(Rejection::BadSignature));
    let plain = pem_to_der(&other.issue(1).condor_pem).unwrap();
    assert_eq!(f.verifier.verify_plain(&plain, NOW), Err(Rejection::BadSignature));
}

#[test]
fn a_signed_credential_outside_the_profile_is_refused() {
    let f = Fixture::new();
    f.verifier.verify(&f.forge(|_| {}), NOW).unwrap();
    let mut critical = CustomExtension::from_oid_content(&[2, 25, 7], vec![5, 0]);
    let plain = critical.clone();
    critical.set_criticality(true);
    f.verifier
        .verify(
            &f.forge(|params| params.custom_extensions.push(plain.clone())),
            NOW,
        )
        .unwrap();
    let cases: [(&str, Vec<u8>); 7] = [
        (
            "critical extension",
            f.forge(|params| params.custom_extensions.push(critical.clone())),
        ),
        (
            "extension twice",
            f.forge(|params| params.custom_extensions.extend([plain.clone(), plain.clone()])),
        ),
        (
            "no overlay credential",
            f.forge(|params| params.custom_extensions.clear()),
        ),
        (
            "key usage",
            f.forge(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ),
        (
            "not the highest",
            f.forge(|params| params.distinguished_name = distinguished_name("chem", Some(("manager", "w1")))),
        ),
        (
            "names another grid",
            f.forge(|params| params.distinguished_name = distinguished_name("bio", Some(("worker", "w1")))),
        ),
        (
            "64 bits",
            f.forge(|params| params.serial_number = Some(vec![1; 9].into())),
        ),
    ];
    for (reason, der) in cases {
        let message = f.verifier.verify(&der, NOW).unwrap_err().to_string();
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

#[test]
fn a_clock_wrong_by_minutes_is_tolerated_and_by_a_day_explained() {
    let f = Fixture::new();
    let der = f.issue(1).overlay_der;
    let back = |by: Duration| WallMillis(NOW.0 - by.as_millis() as u64);
    let end = NOW.plus(DEFAULT_LIFETIME);
    let minute = HOUR / 60;
    assert!(f.verifier.verify(&der, back(9 * minute)).is_ok());
    assert!(f.verifier.verify(&der, end.plus(4 * minute)).is_ok());

    let early = f.verifier.verify(&der, back(24 * HOUR)).unwrap_err();
    assert!(matches!(early, Rejection::NotYetValid { .. }));
    let early = early.to_string();
    assert!(
        early.contains("check the clock") && early.contains("23h 55m ahead"),
        "{early}"
    );

    let late = f.verifier.verify(&der, end.plus(24 * HOUR)).unwrap_err();
    assert!(matches!(late, Rejection::Expired { .. }));
    let late = late.to_string();
    assert!(
        late.contains("check the clock") && late.contains("1day ago"),
        "{late}"
    );

    assert!(
        f.verifier
            .verify_with_grace(&der, end.plus(24 * HOUR), 48 * HOUR)
            .is_ok()
    );
    for extreme in [WallMillis(0), WallMillis(u64::MAX)] {
        assert!(
            !f.verifier
                .verify(&der, extreme)
                .unwrap_err()
                .to_string()
                .is_empty()
        );
    }
}

#[test]
fn credentials_never_outlive_the_ca() {
    let f = Fixture::new();
    let issued =
        f.ca.issue(
            &f.request(),
            &f.subject,
            1,
            NOW,
            Duration::from_secs(u64::MAX / 4000),
        )
        .unwrap();
    assert!(issued.not_after <= f.verifier.ca_not_after());
    f.verifier.verify(&issued.overlay_der, NOW).unwrap();
}

#[test]
fn a_subject_without_a_role_gets_nothing() {
    let f = Fixture::new();
    let subject = Subject {
        roles: Roles::NONE,
        ..f.subject.clone()
    };
    let error = f.ca.issue(&f.request(), &subject, 1, NOW, HOUR).unwrap_err();
    assert!(error.to_string().contains("no role"), "{error}");
}

#[test]
fn a_saved_ca_reads_back_and_signs_for_the_same_grid() {
    let f = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    assert!(GridCa::load(dir.path()).unwrap().is_none());
    f.ca.save(dir.path()).unwrap();
    let again = GridCa::load(dir.path()).unwrap().unwrap();
    assert_eq!(again.ca_hash(), f.ca.ca_hash());
    assert_eq!(again.range(), f.ca.range());
    assert_eq!(again.name(), f.ca.name());
    assert_eq!(GridId(again.ca_hash()[..16].try_into().unwrap()), f.ca.grid_id());
    let issued = again.issue(&f.request(), &f.subject, 1, NOW, HOUR).unwrap();
    f.verifier.verify(&issued.overlay_der, NOW).unwrap();
    // A second grid in the same folder would lose the first one's key.
    assert!(Fixture::new().ca.save(dir.path()).is_err());
}

#[test]
fn a_ca_key_that_does_not_fit_its_certificate_is_refused() {
    let (f, other) = (Fixture::new(), Fixture::new());
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    f.ca.save(a.path()).unwrap();
    other.ca.save(b.path()).unwrap();
    std::fs::copy(b.path().join("ca.key"), a.path().join("ca.key")).unwrap();
    let message = GridCa::load(a.path()).unwrap_err().to_string();
    assert!(
        message.contains("ca.key") && message.contains("not the key"),
        "{message}"
    );
}

#[test]
fn a_renewal_is_bound_to_the_current_credential_and_its_key() {
    let f = Fixture::new();
    let credential = f.verifier.verify(&f.issue(1).overlay_der, NOW).unwrap();
    let request = RenewRequest::create(&f.keys, &credential).unwrap();
    let request = RenewRequest::decode(&request.encode()).unwrap();
    request.verify(&credential).unwrap();

    let later = f.verifier.verify(&f.issue(2).overlay_der, NOW).unwrap();
    assert!(request.verify(&later).is_err());
    let thief = NodeKeys::generate().unwrap();
    let stolen = RenewRequest::create(&thief, &credential).unwrap();
    assert!(stolen.verify(&credential).is_err());
    let mut swapped = request.clone();
    swapped.enrol = EnrolRequest::create(&f.keys, credential.grid, "w2".parse().unwrap(), true).unwrap();
    assert!(swapped.verify(&credential).is_err());
}

#[test]
fn a_user_request_is_bound_to_node_user_and_key() {
    let f = Fixture::new();
    let credential = f.verifier.verify(&f.issue(1).overlay_der, NOW).unwrap();
    let key = UserKey::generate().unwrap();
    let request = f.keys.user_request(&credential, &key, &f.subject.user).unwrap();
    let request = UserRequest::decode(&request.encode()).unwrap();
    request.verify(&credential).unwrap();
    let mut other = request.clone();
    other.user = "mallory".parse().unwrap();
    assert!(other.verify(&credential).is_err());
    let mut other = request;
    other.public = UserKey::generate().unwrap().public().to_vec();
    assert!(other.verify(&credential).is_err());
}

#[test]
fn each_kind_of_revocation_is_honoured_and_spares_what_came_later() {
    let f = Fixture::new();
    let credential = f.verifier.verify(&f.issue(5).overlay_der, NOW).unwrap();
    type Edit = fn(&mut RevocationList, u64);
    let edits: [(RevokedBy, Edit); 4] = [
        (RevokedBy::Serial, |list, upto| {
            list.serials.insert(upto);
        }),
        (RevokedBy::Node, |list, upto| {
            list.nodes.insert("w1".parse().unwrap(), upto);
        }),
        (RevokedBy::User, |list, upto| {
            list.users.insert("alice".parse().unwrap(), upto);
        }),
        (RevokedBy::Group, |list, upto| {
            list.groups.insert("physics".parse().unwrap(), upto);
        }),
    ];
    for (by, edit) in edits {
        for (upto, revoked) in [(4, false), (5, true)] {
            let mut list = RevocationList::empty(f.ca.grid_id(), 1, NOW);
            edit(&mut list, upto);
            let mut verifier = f.ca.verifier().unwrap();
            assert!(verifier.apply(f.ca.sign_revocations(&list).unwrap()).unwrap());
            assert_eq!(verifier.is_revoked(&credential), revoked, "{by:?} up to {upto}");
            let verified = verifier.verify(&credential.der, NOW);
            assert_eq!(verified.is_err(), revoked);
            if let Err(rejection) = verified {
                assert!(matches!(rejection, Rejection::Revoked { by: found, .. } if found == by));
            }
        }
    }
}

#[test]
fn an_older_or_forged_revocation_list_is_never_taken_over() {
    let f = Fixture::new();
    let mut verifier = f.ca.verifier().unwrap();
    let list = |serial| RevocationList::empty(f.ca.grid_id(), serial, NOW);
    let two = f.ca.sign_revocations(&list(2)).unwrap();
    assert!(
        verifier
            .apply(SignedRevocations::decode(&two.encode()).unwrap())
            .unwrap()
    );
    assert!(!verifier.apply(two.clone()).unwrap());
    assert!(!verifier.apply(f.ca.sign_revocations(&list(1)).unwrap()).unwrap());
    assert_eq!(verifier.revocation_serial(), 2);

    let forged = SignedRevocations {
        bytes: f.ca.sign_revocations(&list(3)).unwrap().bytes,
        signature: two.signature.clone(),
    };
    assert!(verifier.apply(forged).is_err());
    let other = Fixture::new();
    let foreign = RevocationList::empty(other.ca.grid_id(), 9, NOW);
    assert!(
        verifier
            .apply(other.ca.sign_revocations(&foreign).unwrap())
            .is_err()
    );
    assert!(f.ca.sign_revocations(&foreign).is_err());
    assert_eq!(verifier.revocations(), Some(&two));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_verify_or_panic(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
        thread_local!(static FIXTURE: Fixture = Fixture::new());
        FIXTURE.with(|f| {
            prop_assert!(f.verifier.verify(&bytes, NOW).is_err());
            prop_assert!(f.verifier.verify_plain(&bytes, NOW).is_err());
            prop_assert!(Verifier::new(&bytes).is_err());
            let _ = EnrolRequest::decode(&bytes);
            let _ = RenewRequest::decode(&bytes);
            let _ = UserRequest::decode(&bytes);
            let _ = SignedRevocations::decode(&bytes).map(|signed| signed.list_unverified());
            let _ = String::from_utf8_lossy(&bytes).parse::<JoinToken>();
            Ok(())
        })?;
    }

    #[test]
    fn an_edited_certificate_never_verifies_or_panics(
        at in any::<proptest::sample::Index>(),
        flip in 1..=255u8,
        insert in any::<bool>(),
    ) {
        thread_local!(static ISSUED: (Fixture, Vec<u8>, Vec<u8>) = {
            let f = Fixture::new();
            let issued = f.issue(1);
            let condor = pem_to_der(&issued.condor_pem).unwrap();
            (f, issued.overlay_der, condor)
        });
        ISSUED.with(|(f, overlay, condor)| {
            let edit = |der: &[u8]| {
                let mut der = der.to_vec();
                let at = at.index(der.len());
                if insert { der.insert(at, flip) } else { der[at] ^= flip }
                der
            };
            prop_assert!(f.verifier.verify(&edit(overlay), NOW).is_err());
            prop_assert!(f.verifier.verify_plain(&edit(condor), NOW).is_err());
            prop_assert!(Verifier::new(&edit(f.ca.ca_der())).is_err());
            Ok(())
        })?;
    }
}

#[test]
fn every_single_flipped_bit_of_a_credential_is_noticed() {
    let f = Fixture::new();
    let der = f.issue(1).overlay_der;
    for bit in 0..der.len() * 8 {
        let mut flipped = der.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(f.verifier.verify(&flipped, NOW).is_err(), "bit {bit}");
    }
}
