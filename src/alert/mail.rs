//! `kind = "email"`: SMTP. The message's id is made of the alert's, so that a mail that came twice can
//! be told.
//!
//! Refuses: plain text to another host (said when the file is read), HTML, and headers that come
//! from anybody else: the subject is encoded, the rest is ours.

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use ring::digest;

use crate::alert::secret::Secrets;
use crate::alert::story::{Story, cut};
use crate::base::check::HostPort;
use crate::engine::outbox::Outcome;
use crate::unit::channels::{Mail, MailTls};

const SUBJECT_CHARS: usize = 150;
const TEXT_BYTES: usize = 64 * 1024;

/// A mail, and how to bring it.
pub struct Letter {
    message: Message,
    tls: Tls,
    credentials: Option<Credentials>,
    host: HostPort,
    hello: ClientId,
}

/// Everything that needs no network. Reads the system's certificates: may wait for the disk.
///
/// # Errors
/// What does not fit together.
pub fn letter(mail: &Mail, secrets: &Secrets, story: &Story) -> Result<Letter, String> {
    let host = mail.host.clone().ok_or("there is no `host`")?;
    let tls = match mail.tls {
        MailTls::None => Tls::None,
        MailTls::StartTls => Tls::Required(parameters(&host, secrets)?),
        MailTls::Tls => Tls::Wrapper(parameters(&host, secrets)?),
    };
    let login = mail.user.clone().zip(secrets.password.as_ref());
    Ok(Letter {
        message: message(mail, story)?,
        tls,
        credentials: login.map(|(user, password)| Credentials::new(user, password.expose().to_string())),
        host,
        hello: ClientId::Domain(dns_name(&story.facts.host)),
    })
}

fn parameters(host: &HostPort, secrets: &Secrets) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.host.clone());
    if let Some(pem) = &secrets.ca {
        builder = builder.certificate_store(CertificateStore::None);
        let certificate = Certificate::from_pem(pem.as_bytes());
        builder =
            builder.add_root_certificate(certificate.map_err(|_| "cannot use `ca_file`: no certificate")?);
    }
    builder.build().map_err(|error| format!("cannot speak TLS: {error}"))
}

fn message(mail: &Mail, story: &Story) -> Result<Message, String> {
    let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|_| format!("`{text}` is no address"));
    let subject = cut(&format!("[upright] {}", story.title()), SUBJECT_CHARS);
    let mut builder = Message::builder()
        .from(mailbox(mail.from.as_deref().unwrap_or_default())?)
        .subject(subject)
        .message_id(Some(message_id(story)))
        .date(
            std::time::UNIX_EPOCH
                + std::time::Duration::from_micros(u64::try_from(story.row.ts_us).unwrap_or(0)),
        )
        .header(ContentType::TEXT_PLAIN);
    for to in &mail.to {
        builder = builder.to(mailbox(to)?);
    }
    builder.body(story.plain(TEXT_BYTES)).map_err(|error| format!("cannot make the mail: {error}"))
}

/// The same alert, the same id: of its key and its time, because a store that was lost counts anew.
fn message_id(story: &Story) -> String {
    let text = format!("{}\n{}", story.row.ts_us, story.id());
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let hex: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("<{hex}@{}>", dns_name(&story.facts.host))
}

/// The host's name as far as it can stand in an address.
fn dns_name(host: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '.';
    let name: String = host.chars().filter(fits).take(200).collect();
    if name.trim_matches(['.', '-']).is_empty() { "localhost".to_string() } else { name }
}

impl Letter {
    pub fn host(&self) -> &HostPort {
        &self.host
    }

    /// Brings it to this address of `host`.
    pub async fn bring(self, address: std::net::IpAddr) -> Outcome {
        // By address: the name was looked up before, within the deadline. TLS verifies the name.
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.to_string())
            .port(self.host.port)
            .tls(self.tls)
            .hello_name(self.hello)
            .timeout(None);
        if let Some(credentials) = self.credentials {
            builder =
                builder.credentials(credentials).authentication(vec![Mechanism::Plain, Mechanism::Login]);
        }
        let transport: AsyncSmtpTransport<Tokio1Executor> = builder.build();
        match transport.send(self.message).await {
            Ok(_) => Outcome::Acked,
            Err(error) => told(&error),
        }
    }
}

/// 5xx will not get better; everything else may. What the server said may repeat a secret: its code
/// is told, and no more.
fn told(error: &lettre::transport::smtp::Error) -> Outcome {
    let code = error.status().map(|code| format!("SMTP {code}"));
    if error.is_permanent() {
        return Outcome::Refused { why: code.unwrap_or_else(|| "refused".to_string()) };
    }
    let why = code.unwrap_or_else(|| match std::error::Error::source(error) {
        Some(cause) if error.is_tls() => format!("TLS: {cause}"),
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    });
    Outcome::Failed { why, retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::story::tests::{hostile, over, story};

    fn mail() -> Mail {
        Mail {
            host: Some(HostPort { host: "127.0.0.1".into(), port: 25 }),
            tls: MailTls::None,
            from: Some("upright@example.net".into()),
            to: vec!["ops@example.net".into(), "boss@example.net".into()],
            user: None,
            password_file: None,
        }
    }

    fn text(story: &Story) -> String {
        String::from_utf8(message(&mail(), story).expect("a mail").formatted()).expect("ASCII")
    }

    #[test]
    fn the_same_alert_has_the_same_id_and_another_one_another() {
        let id = |text: &str| text.lines().find(|line| line.starts_with("Message-ID:")).map(String::from);
        assert_eq!(id(&text(&story())), id(&text(&story())));
        assert_ne!(id(&text(&story())), id(&text(&over())));
        assert!(id(&text(&story())).expect("an id").ends_with("@db1>"));
    }

    #[test]
    fn no_header_comes_from_the_text_and_the_lines_are_short() {
        let mut story = hostile();
        story.facts.host = "evil\r\nBcc: all@evil.example".into();
        let text = text(&story);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(!head.lines().any(|line| line.starts_with("Bcc")) && !head.contains("all@evil"), "{head}");
        assert!(head.is_ascii() && body.is_ascii() && text.lines().all(|line| line.len() <= 998));
        assert_eq!(head.matches("To:").count(), 1, "{head}");
    }
}
