//! How the program ends: one sentence on stderr and an exit code.
//!
//! | code      | meaning                                                                              |
//! |-----------|--------------------------------------------------------------------------------------|
//! | 0         | done                                                                                 |
//! | 1         | failed: a file, a disk, a device, the data                                           |
//! | 2         | wrong command or recipe: flags, keys, values, contradictions, an output that exists  |
//! | 130 / 143 | stopped by Ctrl-C / SIGTERM after saving; the same command continues                 |
//! | 130       | a second Ctrl-C or SIGTERM: ended at once, the last checkpoint counts                |
//!
//! A fault has one code in every command. What is wrong with a file that was named rightly is 1: it is missing, cannot be
//! read, is damaged, lacks a tensor or contradicts itself. What another flag or setting makes right is 2: a sound file of
//! another kind of model, or of other sizes than the settings have.

use std::any::Any;
use std::io::{ErrorKind, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Mutex, Once, OnceLock};

use beit2::Error;
use beit2_data::LoaderError;
use beit2_run::atomic::{FileError, advice as file_advice};
use beit2_run::{RecipeError, RunError};

use crate::flags::with_own_flags;
use crate::output::printable;
use crate::signals::Signals;

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All is done.
    Done,
    /// A signal came and the work so far is saved.
    Stopped,
}

/// The user must change the command: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A [`Usage`] error.
pub fn usage<T>(message: impl Into<String>) -> anyhow::Result<T> {
    Err(Usage(message.into()).into())
}

/// Arguments that clap could not take, or text that it wants printed (`--help`, `--version`); with a sentence of ours,
/// where we know better.
#[derive(Debug)]
pub struct Flags(pub clap::Error, pub Option<String>);

/// What Rust says of a number that it cannot read, and what a person can follow.
const NUMBERS: [(&str, &str); 6] = [
    ("invalid digit found in string", "a whole number of 0 or more is wanted"),
    ("cannot parse integer from empty string", "a whole number of 0 or more is wanted"),
    ("number too large to fit in target type", "the number is too large"),
    ("number too small to fit in target type", "the number is too small"),
    ("invalid float literal", "a number is wanted, such as 0.5"),
    ("cannot parse float from empty string", "a number is wanted, such as 0.5"),
];

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(sentence) = &self.1 {
            return f.write_str(sentence);
        }
        // clap's message is a paragraph with tips and a usage line; ours is its sentences in one line.
        let text = self.0.to_string();
        let body = text.split("\n\nUsage:").next().unwrap_or_default();
        let body = body.split("\n\nFor more information").next().unwrap_or_default();
        let parts: Vec<String> = body
            .split("\n\n")
            .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
            // `-- --epochs` is never what is meant.
            .filter(|part| !part.is_empty() && !part.contains(" as a value, use "))
            .collect();
        let mut text = parts.join("; ").replace("; tip: ", "; ");
        for (reason, plain) in NUMBERS {
            text = text.replace(reason, plain);
        }
        write!(f, "{} (see --help)", text.trim_start_matches("error: "))
    }
}

impl std::error::Error for Flags {}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Says what went wrong, if anything did, and gives the exit code.
pub fn settled(result: anyhow::Result<Ending>, signals: &Signals) -> u8 {
    match result {
        Ok(Ending::Done) => DONE,
        Ok(Ending::Stopped) => signals.exit_code(),
        Err(error) if matches!(error.downcast_ref(), Some(Error::Interrupted)) => {
            complain(&sentence(&error));
            signals.exit_code()
        }
        Err(error) => said(&error),
    }
}

fn said(error: &anyhow::Error) -> u8 {
    // A reader that closed the pipe (`| head`) has what it wanted.
    if error
        .chain()
        .any(|e| e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe))
    {
        return DONE;
    }
    complain(&match advice(error) {
        Some(advice) => format!("{}; {advice}", sentence(error)),
        None => sentence(error),
    });
    code_of(error)
}

/// The error and its causes in one sentence, each said once: many errors of files have said their cause in other words.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        let in_other_words = cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| ["read", "write"].iter().any(|action| text.contains(&file_advice(action, e))));
        if text.contains(&said) || in_other_words {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}

/// What the library cannot say, because it does not know the commands.
fn advice(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|e| match (e.downcast_ref(), e.downcast_ref()) {
        (Some(Error::Loader(LoaderError::TooManyBad { bad, samples, .. })), _)
        | (_, Some(LoaderError::TooManyBad { bad, samples, .. })) => {
            Some(beit2_data::advice_on_bad_images(*bad, *samples, "DIR"))
        }
        _ => None,
    })
}

/// Flags of the command that runs.
static FLAGS: OnceLock<Vec<String>> = OnceLock::new();

/// Remembers which flags the command has, so that messages name no others.
pub fn know_flags(flags: Vec<String>) {
    let _ = FLAGS.set(flags);
}

fn complain(sentence: &str) {
    let sentence = match FLAGS.get() {
        Some(flags) => with_own_flags(sentence, flags),
        None => sentence.to_owned(),
    };
    // Nobody is left to be told when stderr is closed.
    let _ = writeln!(std::io::stderr(), "error: {}", printable(&sentence.replace('\n', " ")));
}

/// 2 when the command or the recipe is wrong, 1 when something else is.
fn code_of(error: &anyhow::Error) -> u8 {
    let wrong_command = error.chain().any(|e| {
        e.is::<Usage>()
            || e.is::<Flags>()
            || e.is::<RecipeError>()
            || e.downcast_ref::<RunError>().is_some_and(other_folder)
            || e.downcast_ref::<Error>().is_some_and(|e| match e {
                Error::Config(_)
                | Error::Mask(_)
                | Error::Transform(_)
                | Error::Recipe(_)
                | Error::LongWarmup { .. }
                | Error::WrongModel { .. } => true,
                Error::Loader(e) => {
                    matches!(e, LoaderError::Setting { .. } | LoaderError::BatchTooLarge { .. })
                }
                Error::Run(e) => other_folder(e),
                _ => false,
            })
    });
    if wrong_command { USAGE } else { FAILED }
}

/// Whether another `--out` is what the user needs.
fn other_folder(error: &RunError) -> bool {
    matches!(error, RunError::OtherRun { .. } | RunError::NotARun { .. })
}

/// What the last panic said and where; main tells it, once, if the panic reaches it.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// The framework's words for what is no bug. On a GPU, full memory and a missing library show as panics.
const NO_MEMORY: &str = "can't allocate buffer of size";
const NO_NVRTC: &str = "Unable to dynamically load the \"nvrtc\"";

fn of_panic(what: &str) -> String {
    let intact = "runs on disk are intact, and the same command continues them";
    if what.contains(NO_MEMORY) {
        format!(
            "the GPU's memory is full ({what}); use a smaller --batch-size, or the same one in parts by \
             --set schedule.grad_accum_steps=N; {intact}"
        )
    } else if what.contains(NO_NVRTC) {
        format!(
            "NVRTC (libnvrtc.so), which compiles kernels for the GPU, is missing; `beit2 doctor` tells you how to get it; {intact}"
        )
    } else {
        format!(
            "this is a bug in beit2 {}: {what}; {intact}; please report this line at {}/issues",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_REPOSITORY")
        )
    }
}

/// Keeps what panics say, and prints nothing.
///
/// Why not print in the hook: the data workers catch panics of image decoders and replace the image, which is
/// no reason to alarm anyone.
fn remember_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let text = format!("{} ({place})", panic_message(info.payload()));
        let mut noted = PANIC.lock().unwrap_or_else(|e| e.into_inner());
        // The device's thread says what is missing; who waits for it says only that it failed.
        if !noted.as_ref().is_some_and(|text| text.contains(NO_NVRTC)) {
            *noted = Some(text);
        }
    }));
}

/// The sentence for a panic that was caught.
fn panic_sentence(payload: &(dyn Any + Send)) -> String {
    let noted = PANIC.lock().unwrap_or_else(|e| e.into_inner()).take();
    of_panic(&noted.unwrap_or_else(|| panic_message(payload).to_owned()))
}

/// Runs `work`; a panic becomes a sentence that asks for a report.
pub fn guarded(work: impl FnOnce() -> anyhow::Result<u8>) -> u8 {
    remember_panics();
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => match error.downcast_ref::<Flags>() {
            Some(Flags(text, _)) if !text.use_stderr() => match text.print() {
                Err(error) => said(&FileError::new("write", Path::new("standard output"), error).into()),
                Ok(()) => DONE,
            },
            // `beit2` alone: the whole help is the message.
            Some(Flags(text, _))
                if text.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
            {
                let _ = text.print();
                USAGE
            }
            _ => said(&error),
        },
        Err(payload) => {
            complain(&panic_sentence(payload.as_ref()));
            FAILED
        }
    }
}

/// As the program's own commands, for callers that go on after an error: a panic becomes an error with a sentence.
///
/// # Errors
/// Those of `work`, and its panic.
pub fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(remember_panics);
    panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(anyhow::anyhow!(panic_sentence(payload.as_ref()))))
}

/// What the program says of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence, without flags in parentheses.
    pub sentence: String,
    /// Whether other arguments make it right: where the program's exit code is 2.
    pub is_usage: bool,
}

/// The sentence of an error, for callers without flags.
pub fn refusal(error: &anyhow::Error) -> Refusal {
    let sentence = with_own_flags(&sentence(error).replace('\n', " "), &[]);
    Refusal { sentence: printable(&sentence), is_usage: code_of(error) == USAGE }
}

/// Runs `work` and gives a panic's message instead of passing it on: for drivers that panic where there is no
/// device, and for what must not end a finished run.
pub fn tried<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| panic_message(payload.as_ref()).to_owned())
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_and_full_memory_are_no_bugs() {
        let library = "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: [] (lib.rs:200)";
        assert!(of_panic(library).starts_with("NVRTC (libnvrtc.so)"));
        assert!(of_panic("can't allocate buffer of size 7 (x.rs:1)").starts_with("the GPU's memory is full"));
        assert!(of_panic("no message (x.rs:1)").starts_with("this is a bug"));
    }

    #[test]
    fn what_the_user_can_change_is_2_and_the_rest_is_1() {
        let config = anyhow::Error::from(Error::Config("heads 7".into()));
        assert_eq!(code_of(&config), USAGE);
        assert_eq!(code_of(&config.context("recipe x")), USAGE, "context does not hide it");
        assert_eq!(code_of(&Error::Training("loss".into()).into()), FAILED);
        let other = RunError::NotARun { path: "x".into() };
        assert_eq!(code_of(&Error::Run(other).into()), USAGE);
        assert_eq!(code_of(&anyhow::anyhow!("disk")), FAILED);
        let flags = clap::Error::new(clap::error::ErrorKind::UnknownArgument);
        assert_eq!(code_of(&Flags(flags, None).into()), USAGE);
    }
}
