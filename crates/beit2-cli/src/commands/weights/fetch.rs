//! `beit2 weights fetch`: lists and downloads the published files, from the authors, a mirror or timm's copies.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use beit2_weights::inspect::inspect;
use beit2_weights::layout::Family;
use beit2_weights::published::{self, PUBLISHED, Published, PublishedTeacher, TEACHERS};
use clap::{ValueEnum, ValueHint};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::verify::{contradiction, wrong_hash};
use beit2_run::suggest;

use crate::assets::cache_dir;
use crate::download::{Client, Failure, Part, Proxy};
use crate::errors::{Ending, usage};
use crate::flags::OutputArgs;
use crate::output;
use crate::signals::Signals;

/// Flags of `weights fetch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 weights fetch\n\
    \x20 beit2 weights fetch ViT-B-16.pt\n\
    \x20 beit2 weights fetch beitv2_base_patch16_224_pt1k --to weights\n\
    \x20 beit2 weights fetch beitv2_base_patch16_224_pt1k_ft1k --from timm\n\
    \x20 beit2 weights fetch beitv2_base_patch16_224_pt1k \\\n\
    \x20     --mirror http://files.example/beit\n\
    \n\
    The path of the file goes to stdout, everything else to stderr. If a download\n\
    is interrupted, the same command continues it. A file that is already there is\n\
    not downloaded again, so the command also works offline. The file must be the\n\
    expected model and, where it is known, have the expected SHA-256. Proxies are\n\
    taken from the environment (HTTPS_PROXY, NO_PROXY).")]
pub struct Args {
    /// Published file or teacher, with or without .pth [default: list all]
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// Folder for the file [default: $XDG_CACHE_HOME/beit2 or ~/.cache/beit2]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    to: Option<PathBuf>,

    /// Address to try first, of a folder with the file or of the file itself; repeatable
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    mirror: Vec<String>,

    /// Which copy: the authors' .pth file, or timm's safetensors file of the same classifier
    #[arg(long, value_name = "COPY", default_value = "official")]
    from: CopyArg,

    /// List the published files
    #[arg(long, conflicts_with = "name")]
    list: bool,

    #[command(flatten)]
    output: OutputArgs,
}

/// `--from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CopyArg {
    /// The authors' file
    Official,
    /// timm's copy, with timm's names; of some classifiers only
    Timm,
    /// There is none; asking for it is explained.
    #[value(hide = true)]
    Hf,
}

/// Seconds between lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Lists or downloads.
pub fn run(args: &Args, signals: &Signals) -> anyhow::Result<Ending> {
    let folder = match (&args.to, cache_dir()) {
        (Some(to), _) => to.clone(),
        (None, Some(cache)) => cache,
        (None, None) => return usage("this system has no cache folder; choose one with --to DIR"),
    };
    let Some(name) = args.name.as_deref().filter(|_| !args.list) else {
        return list(&folder, args.output.json);
    };
    let copy = Copy::named(name, args.from)?;
    let target = folder.join(&copy.file);
    let from = match target.exists() {
        true => {
            let path = target.display();
            output::note(&format!("{path} is already there; check it with `beit2 weights verify {path}`"));
            None
        }
        false => {
            match download(&copy, &copy.addresses(&args.mirror)?, &target, args.output.quiet, signals)? {
                Some(url) => Some(url),
                None => return Ok(Ending::Stopped),
            }
        }
    };
    if args.output.json {
        output::json(&json!({
            "name": copy.name,
            "file": target.display().to_string(),
            "from": from,
            "sha256": beit2_weights::sha256(&target)?,
        }))?;
    } else {
        output::result(&target.display().to_string())?;
    }
    Ok(Ending::Done)
}

/// The file of a published name in the cache folder, if it is there.
pub fn cached(name: &str) -> Option<PathBuf> {
    let copy = Copy::named(name, CopyArg::Official).ok()?;
    Some(cache_dir()?.join(copy.file)).filter(|file| file.exists())
}

/// The file of a published name in the cache folder, downloaded if it is not there; `None` when a signal came.
///
/// # Errors
/// A name that is not published, a file that cannot be had.
pub fn fetched(
    name: &str,
    mirrors: &[String],
    quiet: bool,
    signals: &Signals,
) -> anyhow::Result<Option<PathBuf>> {
    let copy = Copy::named(name, CopyArg::Official)?;
    let Some(folder) = cache_dir() else {
        return usage(format!(
            "this system has no cache folder for {name}; download it with `beit2 weights fetch {name} --to DIR` and name \
             the file"
        ));
    };
    let target = folder.join(&copy.file);
    if target.exists() {
        return Ok(Some(target));
    }
    let came = download(&copy, &copy.addresses(mirrors)?, &target, quiet, signals)?;
    Ok(came.map(|_| target))
}

/// What a downloaded file must be.
enum Expected {
    /// A model of BEiT v2, in one family's names.
    Beit(&'static Published, Family),
    Teacher(&'static PublishedTeacher),
}

/// One published file.
struct Copy {
    expected: Expected,
    /// What it is published as.
    name: &'static str,
    /// Its name here.
    file: String,
    /// Where it comes from when no mirror has it.
    url: String,
    /// What a mirror has it under.
    path: String,
}

impl Copy {
    /// The copy of a published file or teacher.
    fn named(name: &str, from: CopyArg) -> anyhow::Result<Self> {
        match (published::find(name), published::teacher(name)) {
            (Some(published), _) => Self::of(published, from),
            (None, Some(teacher)) => Self::of_teacher(teacher, from),
            (None, None) => {
                let models = PUBLISHED.iter().map(|one| one.file.trim_end_matches(".pth"));
                let known = suggest(name, models.chain(TEACHERS.iter().map(|one| one.file)));
                let hint = known.map_or(String::new(), |known| format!("did you mean `{known}`? "));
                usage(format!(
                    "`{name}` is not a published file; {hint}`beit2 weights fetch --list` lists them all"
                ))
            }
        }
    }

    fn of(published: &'static Published, from: CopyArg) -> anyhow::Result<Self> {
        let family = match from {
            CopyArg::Timm => Family::Timm,
            _ => Family::Official,
        };
        let (expected, file) = (Expected::Beit(published, family), published.file.to_owned());
        let name = published.file;
        match (from, published.mirror_url()) {
            (CopyArg::Official, _) => {
                Ok(Self { expected, name, url: published.url(), path: file.clone(), file })
            }
            (CopyArg::Timm, Some(url)) => {
                // A mirror of the Hub has the Hub's paths.
                let path = url.splitn(4, '/').last().unwrap_or_default().to_owned();
                let file = file.replace(".pth", ".timm.safetensors");
                Ok(Self { expected, name, file, url, path })
            }
            (CopyArg::Timm, None) => usage(format!(
                "timm has no copy of {}; leave --from out, or see `beit2 weights fetch --list`",
                published.file
            )),
            (CopyArg::Hf, _) => usage(
                "no BEiT v2 weights are published with Hugging Face's names; fetch the official ones and convert them \
                 with `beit2 weights convert --to hf`",
            ),
        }
    }

    fn of_teacher(teacher: &'static PublishedTeacher, from: CopyArg) -> anyhow::Result<Self> {
        if from != CopyArg::Official {
            return usage(format!("{} is offered as its authors publish it; leave --from out", teacher.file));
        }
        let (name, file) = (teacher.file, teacher.file.to_owned());
        let expected = Expected::Teacher(teacher);
        Ok(Self { expected, name, url: teacher.url.to_owned(), path: file.clone(), file })
    }

    /// All addresses, mirrors first.
    fn addresses(&self, mirrors: &[String]) -> anyhow::Result<Vec<String>> {
        let mut urls = Vec::with_capacity(mirrors.len() + 1);
        for mirror in mirrors {
            if !["http://", "https://"].iter().any(|scheme| mirror.starts_with(scheme)) {
                return usage(format!("--mirror {mirror}: an address must start with http:// or https://"));
            }
            let whole = [".pth", ".pt", ".safetensors"].iter().any(|ending| mirror.ends_with(ending));
            urls.push(match whole {
                true => mirror.clone(),
                false => format!("{}/{}", mirror.trim_end_matches('/'), self.path),
            });
        }
        urls.push(self.url.clone());
        Ok(urls)
    }

    /// Why a file is not this one; `Err` when it cannot be read at all or has another SHA-256.
    fn check(&self, file: &Path) -> Result<Option<String>, String> {
        let short = |text: String| text.replace(&file.display().to_string(), "what it sent");
        let checkpoint = beit2_weights::read(file).map_err(|error| short(error.to_string()))?;
        let prefix = |text: String| format!("what it sent is not the expected file: {text}");
        let sha256 = || beit2_weights::sha256(file).map_err(|error| short(error.to_string()));
        match self.expected {
            Expected::Teacher(teacher) => {
                if let Some(expected) = teacher.sha256 {
                    let found = sha256()?;
                    if found != expected {
                        return Err(prefix(format!("its SHA-256 is {found}, expected {expected}")));
                    }
                }
                Ok(None)
            }
            Expected::Beit(published, family) => {
                if family == Family::Official
                    && published.sha256_prefix.is_some()
                    && let Some(wrong) = wrong_hash(published, &sha256()?)
                {
                    return Err(prefix(wrong));
                }
                Ok(match inspect(&checkpoint.tensors) {
                    Ok(summary) => contradiction(published, &summary),
                    Err(error) => Some(error.to_string()),
                }
                .map(prefix))
            }
        }
    }
}

/// Tries one address after the other; gives the one that had the file, `None` when a signal came.
fn download(
    copy: &Copy,
    urls: &[String],
    target: &Path,
    quiet: bool,
    signals: &Signals,
) -> anyhow::Result<Option<String>> {
    let client = Client::new(Proxy::try_from_env());
    let mut failures = Vec::new();
    for url in urls {
        let mut part = Part::open(target)?;
        let mut meter = Meter::new(&copy.file, quiet);
        meter.say(url);
        let ended = client.fetch(url, &mut part, &signals.stop, &mut |done, total| meter.at(done, total));
        meter.close();
        match ended {
            Ok(()) => {}
            Err(Failure::Local(error)) => return Err(error),
            Err(Failure::Stopped) => {
                output::note("stopped; the same command continues the download");
                return Ok(None);
            }
            Err(Failure::Remote(why) | Failure::Cut(why)) => {
                failures.push(format!("{url} {why}"));
                if part.is_empty() {
                    part.discard();
                }
                continue;
            }
        }
        match copy.check(part.path()) {
            Ok(None) => {
                part.finish()?;
                return Ok(Some(url.clone()));
            }
            // Perhaps it is the expectation that is wrong: hours of downloading are not thrown away for that.
            Ok(Some(why)) => {
                let aside = target.with_added_extension("unexpected");
                part.keep_as(&aside)?;
                failures.push(format!("{url}: {why} (kept as {})", aside.display()));
            }
            Err(why) => {
                part.discard();
                failures.push(format!("{url}: {why} (removed)"));
            }
        }
    }
    bail!(
        "cannot download {}: {}; you can also download it from {} yourself and save it as {}",
        copy.name,
        failures.join("; "),
        copy.url,
        target.display()
    )
}

/// All published files.
fn list(folder: &Path, json: bool) -> anyhow::Result<Ending> {
    let here = |file: &str| folder.join(file).exists();
    if json {
        let files = PUBLISHED.iter().map(|one| {
            json!({
                "name": one.file,
                "kind": one.kind.to_string(),
                "about": one.about,
                "parameters": one.parameters,
                "classes": one.classes,
                "bytes": one.bytes,
                "sha256_prefix": one.sha256_prefix,
                "url": one.url(),
                "timm_url": one.mirror_url(),
                "here": here(one.file),
            })
        });
        let teachers = TEACHERS.iter().map(|one| {
            json!({
                "name": one.file,
                "kind": one.kind,
                "about": one.about,
                "megabytes": one.megabytes,
                "sha256": one.sha256,
                "url": one.url,
                "here": here(one.file),
            })
        });
        output::json(&json!({
            "folder": folder.display().to_string(),
            "files": files.collect::<Vec<_>>(),
            "teachers": teachers.collect::<Vec<_>>(),
        }))?;
        return Ok(Ending::Done);
    }
    let heading = ["name", "size", "sha256", "timm", "here", "about"].map(str::to_owned).to_vec();
    let rows = PUBLISHED.iter().map(|one| {
        let size = match one.bytes {
            Some(bytes) => format!("{} MB", bytes / 1_000_000),
            // In f32, without what training left in the file.
            None => format!("~{} MB", one.parameters * 4 / 1_000_000),
        };
        let yes = |yes: bool| if yes { "yes" } else { "" }.to_owned();
        vec![
            one.file.to_owned(),
            size,
            one.sha256_prefix.map_or(String::new(), |prefix| format!("{prefix}…")),
            yes(one.timm_mirror.is_some()),
            yes(here(one.file)),
            one.about.to_owned(),
        ]
    });
    let teachers = TEACHERS.iter().map(|one| {
        vec![
            one.file.to_owned(),
            format!("~{} MB", one.megabytes),
            one.sha256.and_then(|sha256| sha256.get(..8)).map_or(String::new(), |start| format!("{start}…")),
            String::new(),
            if here(one.file) { "yes" } else { "" }.to_owned(),
            format!("teacher ({}): {}", one.kind, one.about),
        ]
    });
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).chain(teachers).collect();
    output::result(&output::columns(&rows))?;
    output::note(&format!(
        "\n~ marks sizes estimated from the parameters; the authors publish none. `here` means {}.\n\
         A teacher is used with --set teacher.weights=FILE --set teacher.kind=KIND; KIND is in parentheses.",
        folder.display()
    ));
    Ok(Ending::Done)
}

/// Progress on stderr: a bar on a terminal, a line now and then elsewhere.
struct Meter {
    bar: ProgressBar,
    name: String,
    lines: bool,
    quiet: bool,
    last: Instant,
}

impl Meter {
    fn new(name: &str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = match terminal && !quiet {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)),
            false => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ "));
        Self { bar, name: name.to_owned(), lines: !terminal && !quiet, quiet, last: Instant::now() }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            output::note(text);
        }
    }

    fn at(&mut self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        if self.lines && self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            let of = total.map_or(String::new(), |total| format!(" of {}", total / 1_000_000));
            output::note(&format!("{}: {}{of} MB", self.name, done / 1_000_000));
        }
    }

    fn close(&self) {
        self.bar.finish_and_clear();
    }
}
