//! `cert show`, `cert verify`: what a certificate says, and whether anybody would take it. Like `openssl s_client`, for people.

use std::path::{Path, PathBuf};

use clap::Args;
use phalanx_client::api::{IssuedCertificate, IssuedQuery};
use phalanx_client::inspect::{self, InspectError, Seen};
use phalanx_pki::credentials::{CERT_FILE, Credentials, KEY_FILE, ROOTS_FILE};
use phalanx_pki::examine::{
    self, Answer, CertificateDer, Check, Description, Evidence, Possession, Verdict,
};
use phalanx_pki::files::Access;
use phalanx_pki::key::Key;
use phalanx_pki::name::SpiffeId;
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::Serial;
use serde::Serialize;

use super::{certificates, date, left, list, now, read, roots_of, workload_of};
use crate::AdminOptions;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Style};

#[derive(Args)]
pub struct ShowOptions {
    /// A serial number, a file in PEM, or an address that speaks TLS
    #[arg(value_name = "SERIAL|FILE|HOST:PORT")]
    what: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

/// What somebody means by a word.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    File(PathBuf),
    Address(String),
    Serial(String),
}

impl Target {
    fn parse(text: &str) -> Result<Self, Failure> {
        if text.contains('/') || Path::new(text).exists() {
            return Ok(Self::File(text.into()));
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        let pairs = text.split(':').all(|pair| pair.len() == 2);
        match (port, Serial::parse(text)) {
            (Some(Ok(_)), serial) if serial.is_err() || !pairs => {
                Ok(Self::Address(text.to_owned()))
            }
            (_, Ok(serial)) => Ok(Self::Serial(serial.to_string())),
            _ => Err(Failure::usage(format!(
                "`{text}` is no file that is there, no HOST:PORT and no serial number in hex"
            ))),
        }
    }
}

pub async fn show(options: ShowOptions) -> Outcome {
    match Target::parse(&options.what)? {
        Target::File(path) => {
            let found = described(&chain_of(&path)?)?;
            output::show(options.output, &found, || sheets(&found))
        }
        Target::Address(address) => {
            let seen = inspect::handshake(&address, None).await.map_err(unseen)?;
            let found = described(&seen.chain)?;
            output::show(options.output, &found, || sheets(&found))
        }
        Target::Serial(serial) => {
            let query = IssuedQuery {
                serial: Some(serial.clone()),
                ..IssuedQuery::default()
            };
            let found = options.admin.client().issued(&query).await?;
            let Some(item) = found.items.first() else {
                return Err(Failure::refused(format!(
                    "no certificate with the serial {serial} was issued"
                ))
                .hint("`phalanx cert list` shows those that were; a week after expiry they are forgotten"));
            };
            output::show(options.output, item, || sheet_of_log(item))
        }
    }
}

/// Of a folder, the file that issuing and renewing write.
fn chain_file(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(CERT_FILE),
        false => path.to_owned(),
    }
}

/// Of a file, or of what lies in a folder.
fn chain_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let file = chain_file(path);
    if path.is_dir() && !file.exists() {
        let what = match path.join("authority.json").exists() {
            true => {
                "is where a control plane keeps its authority: it has no certificate of a workload"
            }
            false => "has no cert.pem",
        };
        let hint = "a folder is one that `phalanx cert issue --out` or a sidecar's --identity-dir has filled; any file of certificates in PEM can be given by its name";
        return Err(Failure::file(format!("{} {what}", path.display())).hint(hint));
    }
    certificates(&file)
}

fn described(chain: &[CertificateDer<'static>]) -> Result<Vec<Description>, Failure> {
    let all = chain.iter().map(|der| Description::of(der));
    all.collect::<Result<_, _>>().map_err(Failure::file)
}

fn unseen(error: InspectError) -> Failure {
    use std::error::Error;
    let cause = error.source().map(|cause| format!(": {cause}"));
    let text = format!("{error}{}", cause.unwrap_or_default());
    match error {
        InspectError::Handshake { .. } => Failure::refused(text)
            .hint("does it speak TLS there? a sidecar without an identity does not"),
        _ => Failure::unreachable(text),
    }
}

fn sheets(found: &[Description]) -> String {
    let style = output::stdout_style();
    let all: Vec<String> = found.iter().map(|about| sheet(about, style)).collect();
    all.join("\n")
}

fn sheet(about: &Description, style: Style) -> String {
    let head = match (&about.id, about.is_ca) {
        (Some(id), _) => id.clone(),
        (None, true) => format!("authority {}", about.subject),
        (None, false) => format!("no SPIFFE id, subject `{}`", about.subject),
    };
    let mut text = style.bold(&output::plain(&head)) + "\n";
    let end = u64::try_from(about.not_after_ms).unwrap_or_default();
    let begin = u64::try_from(about.not_before_ms).unwrap_or_default();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("  {name:<12}{}\n", output::plain(value));
        }
    };
    line("serial", &about.serial);
    line("names", &about.names.join(", "));
    line("issuer", &about.issuer);
    line("valid", &format!("{} to {}", date(begin), date(end)));
    line("left", &left(end));
    line("key", &about.key);
    line("purposes", &about.purposes.join(", "));
    line("sha256", &about.fingerprint);
    line("ocsp", about.ocsp_url.as_deref().unwrap_or_default());
    line("crl", about.crl_url.as_deref().unwrap_or_default());
    if about.must_staple {
        line("demands", "a stapled OCSP response");
    }
    text
}

fn sheet_of_log(item: &IssuedCertificate) -> String {
    let style = output::stdout_style();
    let mut text = style.bold(&output::plain(&item.id)) + "\n";
    let mut line = |name: &str, value: String| {
        text += &format!("  {name:<12}{}\n", output::plain(&value));
    };
    line("serial", item.serial.clone());
    line("names", item.names.join(", "));
    line("issued", date(item.issued_ms));
    line("by", list::attested(item));
    line("issuer", format!("serial {}", item.issuer));
    let (begin, end) = (item.not_before_ms, item.not_after_ms);
    line("valid", format!("{} to {}", date(begin), date(end)));
    line("left", left(end));
    line("sha256", item.fingerprint.clone());
    line("state", list::state(item));
    if let Some(at) = item.revoked_ms {
        line("revoked", date(at));
    }
    text
}

#[derive(Args)]
pub struct VerifyOptions {
    /// A certificate in PEM, a folder with cert.pem (and key.pem, roots.pem), or an address that speaks TLS
    #[arg(value_name = "FILE|DIR|HOST:PORT")]
    what: String,
    /// Who it has to be
    #[arg(long, value_name = "SPIFFE-ID", value_parser = spiffe_id)]
    expect: Option<SpiffeId>,
    /// Roots to trust; of a folder its roots.pem by default
    #[arg(long, env = "PHALANX_ROOTS", value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The private key that should belong to it; of a folder its key.pem by default
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Show the certificate of this folder to an address that asks for one
    #[arg(long = "as", value_name = "DIR")]
    own: Option<PathBuf>,
    /// Ask neither the OCSP responder nor for the revocation list
    #[arg(long)]
    offline: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    text.parse()
        .map_err(|e: phalanx_pki::name::IdentityError| e.to_string())
}

/// Everything that was found out.
#[derive(Serialize)]
struct Report {
    target: String,
    ok: bool,
    certificate: Description,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake: Option<Handshake>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Handshake {
    version: Option<String>,
    cipher: Option<String>,
    group: Option<String>,
    protocol: Option<String>,
    asks_for_certificate: bool,
    showed_certificate: bool,
    /// Why the server ended it although it had shown itself.
    ended: Option<String>,
}

pub async fn verify(options: VerifyOptions) -> Outcome {
    let report = match Target::parse(&options.what)? {
        Target::File(path) => of_file(&options, &path).await?,
        Target::Address(address) => of_address(&options, &address).await?,
        Target::Serial(_) => {
            return Err(Failure::usage("a serial number alone can't be verified")
                .hint("`phalanx cert show SERIAL` tells what became of it"));
        }
    };
    let ok = report.ok;
    output::show(options.output, &report, || render(&report))?;
    match ok {
        true => Ok(()),
        false => Err(Failure::refused("")),
    }
}

async fn of_file(options: &VerifyOptions, path: &Path) -> Result<Report, Failure> {
    if options.own.is_some() {
        return Err(Failure::usage("--as goes with an address"));
    }
    let chain = chain_of(path)?;
    let beside = |name: &str| {
        let folder = if path.is_dir() { path } else { path.parent()? };
        Some(folder.join(name)).filter(|file| file.exists())
    };
    // What lies beside a single file may be of another certificate.
    let own_roots = options.roots.clone().filter(|_| !path.is_dir());
    let roots = own_roots
        .or_else(|| beside(ROOTS_FILE))
        .or_else(|| options.roots.clone());
    let roots = trusted(roots.as_deref())?;
    let key = options.key.clone();
    let key = key.or_else(|| beside(KEY_FILE).filter(|_| path.is_dir()));
    let key = key.map(|file| key_of(&file)).transpose()?;
    let possession = key.as_ref().map_or(Possession::NotAsked, Possession::Key);
    let evidence = Evidence {
        chain: &chain,
        possession,
        roots: &roots,
        expected: options.expect.as_ref(),
        staple: Answer::NotAsked,
        ocsp: Answer::NotAsked,
        crls: Answer::NotAsked,
    };
    report(options, &path.display().to_string(), evidence, None).await
}

async fn of_address(options: &VerifyOptions, address: &str) -> Result<Report, Failure> {
    let roots = trusted(options.roots.as_deref())?;
    let own = options.own.as_deref().map(credentials).transpose()?;
    let seen = inspect::handshake(address, own.as_ref()).await;
    let seen = seen.map_err(unseen)?;
    let staple = match seen.staple.is_empty() {
        true => Answer::Nothing,
        false => Answer::Got(seen.staple.clone()),
    };
    let evidence = Evidence {
        chain: &seen.chain,
        possession: Possession::Handshake {
            proven: seen.proven,
        },
        roots: &roots,
        expected: options.expect.as_ref(),
        staple,
        ocsp: Answer::NotAsked,
        crls: Answer::NotAsked,
    };
    let handshake = shaken(&seen, own.is_some());
    report(options, address, evidence, Some(handshake)).await
}

fn shaken(seen: &Seen, has_own: bool) -> Handshake {
    Handshake {
        version: seen.version.clone(),
        cipher: seen.cipher.clone(),
        group: seen.group.clone(),
        protocol: seen.protocol.clone(),
        asks_for_certificate: seen.asks,
        showed_certificate: seen.asks && has_own,
        ended: seen.ended.clone(),
    }
}

/// Someone else's word on revocation, the checks, and what they come to.
async fn report(
    options: &VerifyOptions,
    target: &str,
    evidence: Evidence<'_>,
    handshake: Option<Handshake>,
) -> Result<Report, Failure> {
    let leaf = evidence.chain.first();
    let leaf = leaf.ok_or_else(|| Failure::file(format!("{target} has no certificate")))?;
    let certificate = Description::of(leaf).map_err(|e| Failure::file(format!("{target}: {e}")))?;
    let (ocsp, crls) = match options.offline {
        true => (Answer::NotAsked, Answer::NotAsked),
        false => (
            ask(&certificate, evidence.chain, evidence.roots).await,
            fetch(&certificate).await,
        ),
    };
    let evidence = Evidence {
        ocsp,
        crls,
        ..evidence
    };
    let mut checks = examine::examine(&evidence, now()).map_err(Failure::file)?;
    checks.extend(handshake.as_ref().and_then(taken));
    Ok(Report {
        target: target.to_owned(),
        ok: checks.iter().all(|c| c.result != Verdict::Failed),
        certificate,
        handshake,
        checks,
    })
}

/// Whether it took the certificate that we showed.
fn taken(handshake: &Handshake) -> Option<Check> {
    if !handshake.showed_certificate {
        return None;
    }
    let check = |result, detail: &str| Check {
        check: "client",
        result,
        detail: detail.to_owned(),
        reason: None,
        advice: None,
    };
    Some(match &handshake.ended {
        None => check(Verdict::Ok, "it takes the certificate that was shown"),
        Some(why) => Check {
            reason: Some("peer_alert"),
            advice: Some(
                "check the certificate that was shown: `phalanx cert verify DIR`".to_owned(),
            ),
            ..check(Verdict::Failed, why)
        },
    })
}

async fn ask(
    leaf: &Description,
    chain: &[CertificateDer<'static>],
    roots: &Roots,
) -> Answer<Vec<u8>> {
    let Some(url) = &leaf.ocsp_url else {
        return Answer::Nothing;
    };
    let Some(request) = examine::ocsp_request(chain, roots) else {
        return Answer::Failed(
            "its issuer is not known, so nobody can be asked about it".to_owned(),
        );
    };
    match inspect::ask_ocsp(url, request).await {
        Ok(answer) => Answer::Got(answer),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

async fn fetch(leaf: &Description) -> Answer<Vec<Vec<u8>>> {
    let Some(url) = &leaf.crl_url else {
        return Answer::Nothing;
    };
    match inspect::fetch_crl(url).await {
        Ok(list) => Answer::Got(vec![list]),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

fn trusted(file: Option<&Path>) -> Result<Roots, Failure> {
    let Some(file) = file else {
        return Err(Failure::usage("which roots are to be trusted?").hint(
            "--roots FILE or PHALANX_ROOTS: DATA/admin/roots.pem of the control plane, or `phalanx cert roots > roots.pem`",
        ));
    };
    roots_of(file)
}

fn key_of(path: &Path) -> Result<Key, Failure> {
    let pem = read(path, Access::Private)?;
    Key::from_pem(&pem).map_err(|e| Failure::file(format!("{}: {e}", path.display())))
}

/// The files of a folder, checked as whoever uses them checks them.
pub fn credentials(folder: &Path) -> Result<Credentials, Failure> {
    let chain = certificates(&folder.join(CERT_FILE))?;
    let own = chain.first().and_then(|leaf| workload_of(leaf));
    let own = own.ok_or_else(|| {
        Failure::file(format!(
            "{}: the certificate has no SPIFFE id",
            folder.display()
        ))
        .hint("`phalanx cert issue --out DIR` makes one that has")
    })?;
    Credentials::load(folder, &own, now()).map_err(|error| {
        let told = Failure::from_error(error);
        told.hint(format!(
            "`phalanx cert verify {}` says all that is wrong",
            folder.display()
        ))
    })
}

fn render(report: &Report) -> String {
    let style = output::stdout_style();
    let mut text = sheet(&report.certificate, style);
    if let Some(handshake) = &report.handshake {
        text += &format!("  {:<12}{}\n", "handshake", output::plain(&told(handshake)));
    }
    text += "\n";
    for check in &report.checks {
        let word = format!("{:<8}", check.result.to_string());
        let word = match check.result {
            Verdict::Ok => style.good(&word),
            Verdict::Warning => style.warn(&word),
            Verdict::Failed => style.error(&word),
            Verdict::Skipped => style.dim(&word),
        };
        let reason = check.reason.map(|r| format!(" ({r})")).unwrap_or_default();
        let detail = output::plain(&check.detail);
        text += &format!("{:<8} {word} {detail}{reason}\n", check.check);
        if let Some(advice) = &check.advice {
            text += &format!("{:<17} {} {advice}\n", "", style.dim("→"));
        }
    }
    text
}

fn told(handshake: &Handshake) -> String {
    let parts = [
        handshake.version.as_deref(),
        handshake.cipher.as_deref(),
        handshake.group.as_deref(),
        handshake.protocol.as_deref(),
    ];
    let mut text = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let asks = match (handshake.asks_for_certificate, handshake.showed_certificate) {
        (true, true) => "asks for a certificate and got one",
        (true, false) => "asks for a certificate, none was shown (--as DIR shows one)",
        (false, _) => "asks for no certificate",
    };
    if !text.is_empty() {
        text += ", ";
    }
    text += asks;
    if let Some(why) = handshake
        .ended
        .as_ref()
        .filter(|_| !handshake.showed_certificate)
    {
        text += &format!("; then it ended: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_an_address_and_a_serial_are_told_apart() {
        let parse = |text| Target::parse(text).unwrap();
        assert_eq!(parse("./x.pem"), Target::File("./x.pem".into()));
        assert_eq!(parse("src"), Target::File("src".into()));
        assert_eq!(
            parse("127.0.0.1:443"),
            Target::Address("127.0.0.1:443".into())
        );
        assert_eq!(parse("[::1]:15006"), Target::Address("[::1]:15006".into()));
        assert_eq!(parse("battle:80"), Target::Address("battle:80".into()));
        assert_eq!(parse("ab:cd"), Target::Serial("abcd".into()));
        assert_eq!(parse("5F:A0:12"), Target::Serial("5fa012".into()));
        assert_eq!(parse("5fa012"), Target::Serial("5fa012".into()));
        for wrong in ["battle", "", "battle:99999", "x:y"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}
