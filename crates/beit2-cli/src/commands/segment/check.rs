//! Finds what is wrong with images and masks before any training.

use beit2::segment::{MasksConfig, SegmentRecipe};
use beit2::train::{Assets, DataConfig, Event, Observer};
use beit2_data::Source;
use beit2_data::segment::{CheckConfig, DataReport, SegmentDataOptions, check};
use beit2_run::thousands;
use serde_json::json;

use crate::commands::data::masks;
use crate::errors::{Ending, usage};
use crate::flags::TrainArgs;
use crate::output;
use crate::recipes;
use crate::session::Session;
use crate::signals::Signals;
use crate::stage::Stage;

/// `segment train --check-data`: looks at every pair and stops.
pub(super) fn run(flags: &TrainArgs, signals: &Signals) -> anyhow::Result<Ending> {
    let named = flags.recipe.as_deref().or(SegmentRecipe::DEFAULT_RECIPE).unwrap_or_default();
    let found = recipes::find(named)?;
    let settings: SegmentRecipe = recipes::resolve(&found, &flags.overrides::<SegmentRecipe>(Vec::new())?)?;
    let data = &settings.data;
    if data.train.is_empty() {
        return usage("no images are named; use --data DIR, or set data.train in the recipe");
    }
    let mut session = Session::new(flags.output, signals);
    let mut reports = Vec::new();
    for spec in std::iter::once(&data.train).chain(&data.val).filter(|spec| !spec.is_empty()) {
        let report = check_pairs(spec, &settings.masks, data, &mut session);
        session.progress.close();
        reports.push((spec, report?));
    }
    if flags.output.json {
        let sets = reports.iter().map(|(spec, report)| json!({ "data": spec, "report": report }));
        output::json(&json!({
            "sound": reports.iter().all(|(_, report)| report.is_sound()),
            "sets": sets.collect::<Vec<_>>(),
        }))?;
    } else {
        for (spec, report) in &reports {
            output::result(&text(spec, report))?;
        }
    }
    let problems: usize = reports.iter().map(|(_, report)| report.problems).sum();
    match (signals.stop.is_set(), problems) {
        (true, _) => Ok(Ending::Stopped),
        (false, 0) => Ok(Ending::Done),
        (false, count) => {
            anyhow::bail!("the data have {} problems; training was not started", thousands(count as u64))
        }
    }
}

fn check_pairs(
    spec: &str,
    masks: &MasksConfig,
    data: &DataConfig,
    session: &mut Session<'_>,
) -> anyhow::Result<DataReport> {
    let options = SegmentDataOptions { keep_unpaired: true, ..masks.options(data.decode_options()) };
    let Session { assets, signals, progress } = session;
    let source = assets.segment_source(spec, &options)?;
    progress.note(&format!("{spec}: {}", source.rule()));
    let total = source.len() as u64;
    let tell = |done: usize| {
        progress.event(Event::Progress { what: "pairs checked".into(), done: done as u64, total });
    };
    Ok(check(&source, &CheckConfig { workers: data.workers, ..CheckConfig::default() }, tell, || {
        signals.stop.is_set()
    })?)
}

fn text(spec: &str, report: &DataReport) -> String {
    let mut text = format!("{spec}: {} pairs, {} checked\n", report.pairs, report.checked);
    text += &masks(report);
    for finding in &report.findings {
        text += &format!("problem  {}\n", finding.sentence);
    }
    if report.problems > report.findings.len() {
        text += &format!("problem  {} more\n", thousands((report.problems - report.findings.len()) as u64));
    }
    text
}
