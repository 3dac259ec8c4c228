//! Nodes and a portal over real HTTPS on loopback, with real keys.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_identity::{JoinToken, Verifier};
use aerie_portal::{ClientError, EnrolClient, Portal, Target};
use aerie_types::GridId;
use support::{DAY, Node, Site, create, now, token, token_request};

#[tokio::test]
async fn a_node_enrols_and_its_credentials_verify() {
    let site = Site::start("chem").await;
    let node = Node::new();
    let token = token(&site.portal, 1);
    let member = site
        .client()
        .enrol(&token, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    assert_eq!(member.credential.node.as_str(), "w1");
    assert_eq!(member.credential.group.as_str(), "physics");
    assert_eq!(member.credential.user.as_str(), "alice");
    assert_eq!(member.credential.peer, node.keys.peer_id());
    let mut verifier = Verifier::new(&member.ca_der).unwrap();
    assert!(verifier.apply(member.revocations).unwrap());
    verifier.verify(&member.credential.der, now()).unwrap();

    let listed = site.portal.list_nodes().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].peer, node.keys.peer_id());
    assert_eq!(listed[0].serial, member.credential.serial);
    assert_eq!(site.portal.list_groups().unwrap()[0].nodes, 1);
    assert_eq!(site.portal.list_tokens().unwrap()[0].uses_left, 0);
    assert_eq!(site.client().health().await.unwrap(), env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_taken_name_gets_a_suffix_or_is_refused_where_it_must_be_exact() {
    let site = Site::start("chem").await;
    let (client, token) = (site.client(), token(&site.portal, 10));
    let mut names = Vec::new();
    for _ in 0..3 {
        let request = Node::new().wish(&site.portal, "w");
        names.push(
            client
                .enrol(&token, &request, now())
                .await
                .unwrap()
                .credential
                .node
                .to_string(),
        );
    }
    assert_eq!(names, ["w", "w-2", "w-3"]);

    let word = Node::new().wish(&site.portal, "worker");
    let member = client.enrol(&token, &word, now()).await.unwrap();
    assert_eq!(
        member.credential.node.as_str(),
        "worker-2",
        "a role's word is no node's name"
    );
    let exact = Node::new().request(&site.portal, "worker", true);
    let error = client.enrol(&token, &exact, now()).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("name-reserved"));

    let long = "n".repeat(40);
    for expected in [long.clone(), format!("{}-2", "n".repeat(38))] {
        let request = Node::new().wish(&site.portal, &long);
        let member = client.enrol(&token, &request, now()).await.unwrap();
        assert_eq!(member.credential.node.as_str(), expected);
    }

    let exact = Node::new().request(&site.portal, "w", true);
    let error = client.enrol(&token, &exact, now()).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("name-taken"));
    assert!(
        error.to_string().contains("'w' belongs to another node"),
        "{error}"
    );
}

#[tokio::test]
async fn the_same_keys_get_the_same_name_and_a_lost_answer_costs_no_second_use() {
    let site = Site::start("chem").await;
    let (client, node) = (site.client(), Node::new());
    let once = token(&site.portal, 1);
    let first = client
        .enrol(&once, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    let again = client
        .enrol(&once, &node.wish(&site.portal, "other"), now())
        .await
        .unwrap();
    assert_eq!(again.credential.node, first.credential.node);
    assert!(again.credential.serial > first.credential.serial);

    let another = token(&site.portal, 1);
    let third = client
        .enrol(&another, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    assert_eq!(third.credential.node, first.credential.node);
    assert!(
        site.portal
            .list_tokens()
            .unwrap()
            .iter()
            .all(|token| token.uses_left == 0)
    );
    let exact = client
        .enrol(&another, &node.request(&site.portal, "other", true), now())
        .await;
    assert_eq!(exact.unwrap_err().refusal_code(), Some("keys-named"));
}

#[tokio::test]
async fn every_token_that_does_not_serve_says_why() {
    let site = Site::start("chem").await;
    let client = site.client();
    let refusal = async |token: &JoinToken| {
        let request = Node::new().wish(&site.portal, "w1");
        let error = client.enrol(token, &request, now()).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        (error.refusal_code().unwrap().to_owned(), error.to_string())
    };

    let used = token(&site.portal, 1);
    client
        .enrol(&used, &Node::new().wish(&site.portal, "w"), now())
        .await
        .unwrap();
    let (code, message) = refusal(&used).await;
    assert_eq!(code, "token-used-up");
    assert!(message.contains("used up: it was for 1 node;"), "{message}");

    let withdrawn = site.portal.create_token(&token_request(1), now()).unwrap();
    site.portal.withdraw_token(&withdrawn.id, now()).unwrap();
    let (code, message) = refusal(&withdrawn.token).await;
    assert_eq!(code, "token-withdrawn");
    assert!(message.contains("withdrawn on 20"), "{message}");

    let (code, message) = refusal(&JoinToken::generate(GridId([0xab; 16])).unwrap()).await;
    assert_eq!(code, "token-of-other-grid");
    assert!(
        message.contains("another grid (abababab)") && message.contains("'chem'"),
        "{message}"
    );

    let (code, message) = refusal(&JoinToken::generate(site.portal.grid().id).unwrap()).await;
    assert_eq!(code, "token-unknown");
    assert!(message.contains("ask the grid's administrator"), "{message}");

    let late = site.portal.create_token(&token_request(1), now()).unwrap();
    site.set_ahead(2 * DAY);
    let (code, message) = refusal(&late.token).await;
    assert_eq!(code, "token-expired");
    let end = aerie_identity::time_text(late.expires_at);
    assert!(message.contains(&format!("expired on {end}")), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_nodes_with_one_use_of_a_token_exactly_one_wins() {
    let site = Site::start("chem").await;
    let token = token(&site.portal, 1);
    let tasks: Vec<_> = (0..24)
        .map(|_| {
            let (client, token) = (site.client(), token.clone());
            let request = Node::new().wish(&site.portal, "w1");
            tokio::spawn(async move { client.enrol(&token, &request, now()).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.refusal_code(), Some("token-used-up"), "{error}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(site.portal.list_nodes().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_enrol_at_once_under_one_wish_get_names_of_their_own() {
    let site = Site::start("chem").await;
    let token = token(&site.portal, 24);
    let tasks: Vec<_> = (0..24)
        .map(|_| {
            let (client, token) = (site.client(), token.clone());
            let request = Node::new().wish(&site.portal, "w");
            tokio::spawn(async move { client.enrol(&token, &request, now()).await.unwrap().credential })
        })
        .collect();
    let (mut names, mut serials) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks {
        let credential = task.await.unwrap();
        names.insert(credential.node);
        serials.insert(credential.serial);
    }
    assert_eq!((names.len(), serials.len()), (24, 24));
}

#[tokio::test]
async fn a_member_renews_until_it_is_revoked_by_another_process() {
    let site = Site::start("chem").await;
    let (client, node) = (site.client(), Node::new());
    let token = token(&site.portal, 2);
    let member = client
        .enrol(&token, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    let renewed = client
        .renew(&node.renewal(&member.credential), now())
        .await
        .unwrap();
    assert_eq!(renewed.credential.node.as_str(), "w1");
    assert!(renewed.credential.serial > member.credential.serial);

    // The command opens the same folder while the server runs.
    let command = Portal::open(site.portal.dir(), now()).unwrap();
    let list = command
        .revoke(&Target::Node("w1".parse().unwrap()), now())
        .unwrap();
    let mut verifier = Verifier::new(&member.ca_der).unwrap();
    assert!(verifier.apply(member.revocations).unwrap());
    let before = verifier.revocation_serial();
    assert_eq!(client.revocations(before).await.unwrap(), Some(list.clone()));
    assert!(verifier.apply(list).unwrap());
    // Who has the newest list is not sent it again.
    assert_eq!(
        client.revocations(verifier.revocation_serial()).await.unwrap(),
        None
    );
    assert!(verifier.is_revoked(&member.credential) && verifier.is_revoked(&renewed.credential));

    for credential in [&member.credential, &renewed.credential] {
        let error = client.renew(&node.renewal(credential), now()).await.unwrap_err();
        assert_eq!(error.refusal_code(), Some("node-revoked"));
        assert!(error.to_string().contains("'w1' is revoked"), "{error}");
    }
    let error = client
        .user_credential(&node.for_user(&renewed.credential, "alice"), now())
        .await
        .unwrap_err();
    assert_eq!(error.refusal_code(), Some("node-revoked"));
    let error = client
        .enrol(&token, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap_err();
    assert_eq!(error.refusal_code(), Some("node-revoked"));
    let other = client
        .enrol(&token, &Node::new().wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    assert_eq!(
        other.credential.node.as_str(),
        "w1-2",
        "a revoked node's name stays its own"
    );
}

#[tokio::test]
async fn an_expired_credential_renews_within_the_grace_and_not_later() {
    let site = Site::start("chem").await;
    let (client, node) = (site.client(), Node::new());
    let token = token(&site.portal, 1);
    let member = client
        .enrol(&token, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    site.set_ahead(30 * DAY + 6 * DAY);
    let renewed = client
        .renew(&node.renewal(&member.credential), site.now())
        .await
        .unwrap();
    assert!(renewed.credential.not_after > site.now());
    site.set_ahead(30 * DAY + 8 * DAY);
    let error = client
        .renew(&node.renewal(&member.credential), site.now())
        .await
        .unwrap_err();
    assert_eq!(error.refusal_code(), Some("credential-too-old"));
    assert!(error.to_string().contains("enrol again"), "{error}");
}

#[tokio::test]
async fn a_thief_of_a_credential_cannot_renew_it() {
    let site = Site::start("chem").await;
    let (client, node) = (site.client(), Node::new());
    let token = token(&site.portal, 1);
    let member = client
        .enrol(&token, &node.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    let thief = Node::new().renewal(&member.credential);
    let error = client.renew(&thief, now()).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("bad-request"));
}

#[tokio::test]
async fn a_nodes_user_gets_a_credential_and_nobody_elses() {
    let site = Site::start("chem").await;
    let (client, node) = (site.client(), Node::new());
    let submit = token(&site.portal, 1);
    let member = client
        .enrol(&submit, &node.wish(&site.portal, "s1"), now())
        .await
        .unwrap();
    let user = client
        .user_credential(&node.for_user(&member.credential, "alice"), now())
        .await
        .unwrap();
    let life = user.not_after.since(now());
    assert!(life <= DAY && life > DAY - Duration::from_secs(600), "{life:?}");
    let error = client
        .user_credential(&node.for_user(&member.credential, "bob"), now())
        .await
        .unwrap_err();
    assert_eq!(error.refusal_code(), Some("not-its-user"));
    assert!(error.to_string().contains("belongs to 'alice'"), "{error}");

    let mut request = token_request(1);
    request.roles = aerie_types::Role::Worker.into();
    let worker_token = site.portal.create_token(&request, now()).unwrap().token;
    let worker = Node::new();
    let member = client
        .enrol(&worker_token, &worker.wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    let error = client
        .user_credential(&worker.for_user(&member.credential, "alice"), now())
        .await
        .unwrap_err();
    assert_eq!(error.refusal_code(), Some("role-forbids"));
}

#[tokio::test]
async fn a_server_of_another_ca_never_sees_a_request() {
    let (site, impostor) = (Site::start("chem").await, Site::start("chem").await);
    let token = token(&site.portal, 1);
    let client = EnrolClient::new(&[impostor.url()], site.portal.grid().ca_hash).unwrap();
    let error = client
        .enrol(&token, &Node::new().wish(&site.portal, "w1"), now())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not a portal of this grid"), "{error}");
    assert!(matches!(error, ClientError::Unusable { .. }));
    assert_eq!(impostor.server.requests(), 0);

    let both = EnrolClient::new(&[impostor.url(), site.url()], site.portal.grid().ca_hash).unwrap();
    both.enrol(&token, &Node::new().wish(&site.portal, "w1"), now())
        .await
        .unwrap();
    assert_eq!((impostor.server.requests(), site.server.requests()), (0, 1));
}

#[tokio::test]
async fn a_portal_that_is_down_is_worth_another_try_and_another_url() {
    let site = Site::start("chem").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let closed = format!("https://{closed}");
    let pin = site.portal.grid().ca_hash;
    let error = EnrolClient::new(&[&closed], pin)
        .unwrap()
        .health()
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    EnrolClient::new(&[closed, site.url()], pin)
        .unwrap()
        .health()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_for_other_names_or_times_is_explained() {
    let other_name = Site::start_with("chem", &["portal.example.org"], Duration::ZERO).await;
    let error = other_name.client().health().await.unwrap_err();
    assert!(error.to_string().contains("for other names"), "{error}");
    assert!(!error.is_retryable());
    let other_day = Site::start_with("chem", &["127.0.0.1"], 2 * DAY).await;
    let error = other_day.client().health().await.unwrap_err();
    assert!(
        error.to_string().contains("check this machine's clock"),
        "{error}"
    );
    assert_eq!(other_name.server.requests() + other_day.server.requests(), 0);
}

#[tokio::test]
async fn an_answer_is_refused_by_a_machine_whose_clock_is_a_day_off() {
    let site = Site::start("chem").await;
    let token = token(&site.portal, 2);
    let wrong = now().plus(40 * DAY);
    let error = site
        .client()
        .enrol(&token, &Node::new().wish(&site.portal, "w1"), wrong)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Rejected { .. }));
    assert!(error.to_string().contains("check the clock"), "{error}");
}

#[tokio::test]
async fn an_ordinary_client_that_trusts_the_ca_gets_plain_answers_to_bad_requests() {
    let site = Site::start("chem").await;
    let mut roots = rustls::RootCertStore::empty();
    let ca = aerie_identity::pem_to_der(&site.portal.grid().ca_pem).unwrap();
    roots.add(ca.into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .unwrap();
    let post = async |body: Vec<u8>| {
        let response = http
            .post(format!("{}/v1/enrol", site.url()))
            .body(body)
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, text) = post(b"{".to_vec()).await;
    assert_eq!(status, 400);
    assert!(text.contains("\"code\":\"bad-request\""), "{text}");
    let (status, text) = post(br#"{"token":"aerie-x","request":"00"}"#.to_vec()).await;
    assert_eq!(status, 400);
    assert!(text.contains("token-malformed"), "{text}");
    let (status, _) = post(vec![b' '; 17 * 1024]).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_to_wait() {
    let site = Site::start("chem").await;
    let client = site.client();
    let mut limited = None;
    for _ in 0..600 {
        if let Err(error) = client.health().await {
            limited = Some(error);
            break;
        }
    }
    let error = limited.expect("600 requests in a row are more than an address may make");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("too many requests"), "{error}");
}

#[tokio::test]
async fn a_stopped_server_frees_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let portal = std::sync::Arc::new(create(dir.path(), "chem"));
    let names = vec!["127.0.0.1".to_owned()];
    let config = aerie_portal::ServeConfig::new("127.0.0.1:0".parse().unwrap(), names.clone());
    let server = aerie_portal::Server::start(portal.clone(), config).await.unwrap();
    let addr = server.local_addr();
    let config = aerie_portal::ServeConfig::new(addr, names);
    let taken = aerie_portal::Server::start(portal.clone(), config.clone())
        .await
        .unwrap_err();
    assert!(taken.to_string().contains("is another server running"), "{taken}");
    server.shutdown().await;
    aerie_portal::Server::start(portal, config).await.unwrap();
}
