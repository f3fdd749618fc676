//! Publishes and receives over TLS, with certificates on both sides.
//!
//! ```sh
//! cargo run --example tls
//! ```
//!
//! It makes an authority of its own, which issues a certificate for the server and one for the client. Then it starts a
//! private `redis-server` (or `valkey-server`) that answers to nobody without such a certificate, and stops it at the end.
//! `RUST_LOG=debug` shows more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;
#[allow(dead_code, reason = "of the two ways to start it, this example needs one")]
mod private_server;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use common::AnyError;
use private_server::PrivateServer;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use step_redis::{PoolParams, StepPool, StepStream, StreamInput, StreamOutput, TlsParams};

fn main() -> ExitCode {
    env_logger::init();
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    // It ends by itself in a moment. Ending here and now would leave the server behind.
    ctrlc::set_handler(|| {})?;
    let folder = private_server::temporary_folder()?;
    let files = folder.path().to_owned();
    make_certificates(&files)?;
    let port = free_port()?;
    let _server = PrivateServer::start_in(
        folder,
        &[
            ["--bind", "127.0.0.1"],
            ["--tls-port", &port.to_string()],
            ["--tls-ca-cert-file", "ca.pem"],
            ["--tls-cert-file", "server.pem"],
            ["--tls-key-file", "server.key"],
            ["--tls-auth-clients", "yes"],
        ]
        .concat(),
    )?;

    let trusting = TlsParams::new().ca_certs(files.join("ca.pem"));
    let identified = trusting.clone().client_cert(files.join("client.pem")).client_key(files.join("client.key"));
    let started = Instant::now();
    let pool = StepPool::connect(PoolParams::new("127.0.0.1", port).tls(identified))?;
    println!("connected to 127.0.0.1:{port} in {:.1?}, with certificates on both sides", started.elapsed());

    let stream = StepStream::new(pool);
    let input = StreamInput::new("orders", "kitchen");
    stream.create_input_stream(&input)?;
    println!("published {}", stream.publish(&StreamOutput::new("orders"), "two coffees, in confidence")?);
    let delivery = stream.receive(&input)?.ok_or("nothing came")?;
    println!("received {}: {}", delivery.id(), delivery.text()?);
    delivery.ack()?;

    // What is wrong is said in one sentence.
    match StepPool::connect(PoolParams::new("127.0.0.1", port).tls(trusting)) {
        Ok(_) => Err("the server let us in without a certificate".into()),
        Err(error) => {
            println!("without a certificate: {}", common::with_causes(&error));
            Ok(())
        }
    }
}

/// An authority, and a certificate of it for each side. Each has a key; the authority's is not kept.
fn make_certificates(folder: &Path) -> Result<(), AnyError> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "the example's authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(folder.join("ca.pem"), authority.self_signed(&key)?.pem())?;
    let authority = Issuer::new(authority, key);

    let mut server = CertificateParams::new(["127.0.0.1".to_owned()])?;
    server.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "the example's client");
    client.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    for (name, params) in [("server", server), ("client", client)] {
        let key = KeyPair::generate()?;
        fs::write(folder.join(name).with_extension("pem"), params.signed_by(&key, &authority)?.pem())?;
        fs::write(folder.join(name).with_extension("key"), key.serialize_pem())?;
    }
    Ok(())
}

/// TLS needs a TCP port. The one that the system gives is free until somebody else asks for one.
fn free_port() -> Result<u16, AnyError> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
