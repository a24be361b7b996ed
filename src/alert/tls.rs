//! Who is trusted: the system's certificates, or those of `ca_file`.
//!
//! Refuses: trusting nobody in particular. There is no way to turn verification off.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// TLS 1.2 or later, verified. Reads the system's certificates from the disk: may wait.
///
/// # Errors
/// There is no certificate to trust, or what is in `ca` is none.
pub fn config(ca: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let sound = certificate.map_err(|error| format!("cannot use `ca_file`: {error}"))?;
                roots.add(sound).map_err(|error| format!("cannot use `ca_file`: {error}"))?;
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    if roots.is_empty() {
        let place = if ca.is_some() { "`ca_file` has" } else { "the system has (install ca-certificates)" };
        return Err(format!("cannot verify anybody: no certificate to trust; {place} none"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot speak TLS: {error}"))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
