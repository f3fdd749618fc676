//! Built without the feature, everything that asks for TLS is refused at once, with the feature's name.

use std::process::Command;

use step_redis::{Error, PoolParams, StepPool, TlsParams};

#[track_caller]
fn assert_names_the_feature(error: &Error, expected: &str) {
    let Error::Params { field, reason } = error else { panic!("not a fault of the parameters: {error:?}") };
    assert_eq!(field, expected);
    assert!(reason.contains("built without TLS") && reason.contains("features = [\"tls\"]"), "{reason}");
}

#[test]
fn an_encrypted_url_is_refused_with_the_name_of_the_feature() {
    for url in ["rediss://127.0.0.1", "rediss://user:hidden@127.0.0.1:6380/1?ssl_ca_certs=/ca.pem", "valkeys://host"] {
        let error = PoolParams::from_url(url).expect_err(url);
        assert_names_the_feature(&error, "tls");
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
    }
}

#[test]
fn tls_parameters_are_refused_with_the_name_of_the_feature() {
    let params = PoolParams::new("127.0.0.1", 6380).tls(TlsParams::new());
    assert_names_the_feature(&StepPool::new(params.clone()).expect_err("no TLS here"), "tls");
    assert_names_the_feature(&StepPool::connect(params).expect_err("no TLS here"), "tls");
}

/// Variables belong to the whole process, so this test has one of its own.
#[test]
fn an_encrypted_environment_is_refused_with_the_name_of_the_feature() {
    if std::env::var_os("NO_TLS_SSL_ENABLE").is_some() {
        let error = PoolParams::from_env("NO_TLS").expect_err("no TLS here");
        assert_names_the_feature(&error, "NO_TLS_SSL_ENABLE");
        return;
    }
    let name = "without_tls::an_encrypted_environment_is_refused_with_the_name_of_the_feature";
    let status = Command::new(std::env::current_exe().expect("this program has a path"))
        .args([name, "--exact"])
        .env("NO_TLS_SSL_ENABLE", "true")
        .status();
    assert!(status.expect("this program can be started again").success());
}
