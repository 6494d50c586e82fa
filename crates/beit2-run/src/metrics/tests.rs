use super::*;

fn record(stage: &str, step: u64, loss: f64) -> Record {
    Record {
        kind: Kind::Step,
        stage: stage.into(),
        epoch: step / 10,
        step,
        values: vec![("loss".into(), loss)],
    }
}

fn cut(stage: &str, step: Option<u64>) -> Cut {
    Cut { stage: stage.into(), step }
}

#[test]
fn lines_come_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let (mut sink, _) = JsonlSink::open(&path, None).unwrap();
    let mut first = record("pretrain", 20, 0.1 + 0.2);
    first.values.push(("lr".into(), 1.5e-3));
    sink.record(&first).unwrap();
    sink.record(&record("pretrain", 30, f64::NAN)).unwrap();
    sink.sync().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(
        text.lines().next().unwrap(),
        r#"{"kind":"step","stage":"pretrain","epoch":2,"step":20,"loss":0.30000000000000004,"lr":0.0015}"#
    );
    assert!(text.lines().nth(1).unwrap().ends_with(r#""loss":null}"#));
    let got = read_jsonl(&path).unwrap();
    assert_eq!(got.records[0], first);
    assert!(got.records[1].get("loss").unwrap().is_nan());
}

#[test]
fn resume_cuts_this_stage_beyond_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let (mut sink, _) = JsonlSink::open(&path, None).unwrap();
    for (stage, step) in [("tokenizer", 50), ("pretrain", 10), ("pretrain", 20), ("pretrain", 30)] {
        sink.record(&record(stage, step, 1.0)).unwrap();
    }
    drop(sink);
    let (mut sink, repair) = JsonlSink::open(&path, Some(&cut("pretrain", Some(20)))).unwrap();
    assert_eq!(repair, Repair { cut: 1, damaged: 0 });
    sink.record(&record("pretrain", 30, 2.0)).unwrap();
    let steps: Vec<u64> = read_jsonl(&path).unwrap().records.iter().map(|r| r.step).collect();
    assert_eq!(steps, [50, 10, 20, 30]);
    let (_, repair) = JsonlSink::open(&path, Some(&cut("pretrain", None))).unwrap();
    assert_eq!(repair.cut, 3);
}

#[test]
fn half_written_and_garbage_lines_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let good = to_line(&record("a", 1, 1.0)).unwrap();
    for tail in ["{\"kind\":\"step\",\"sta", "\0\0\0\0", "{\"kind\":\"step\"}"] {
        fs::write(&path, format!("{good}{tail}")).unwrap();
        assert_eq!(read_jsonl(&path).unwrap().damaged, 1);
        let (mut sink, repair) = JsonlSink::open(&path, None).unwrap();
        assert_eq!(repair.damaged, 1, "{tail}");
        sink.record(&record("a", 2, 1.0)).unwrap();
        let got = read_jsonl(&path).unwrap();
        assert_eq!((got.records.len(), got.damaged), (2, 0));
    }
    // A complete record that only misses its line end is kept.
    fs::write(&path, good.trim_end()).unwrap();
    let (mut sink, repair) = JsonlSink::open(&path, None).unwrap();
    sink.record(&record("a", 2, 1.0)).unwrap();
    assert_eq!(repair, Repair::default());
    assert_eq!(read_jsonl(&path).unwrap().records.len(), 2);
}

#[test]
fn reserved_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut sink, _) = JsonlSink::open(&dir.path().join("m"), None).unwrap();
    let mut bad = record("a", 1, 1.0);
    bad.values.push(("step".into(), 2.0));
    assert!(sink.record(&bad).unwrap_err().to_string().contains("cannot be called `step`"));
}

/// Keeps what it gets where the test can see it.
#[derive(Clone, Default)]
struct Memory(std::sync::Arc<std::sync::Mutex<Vec<Record>>>);

impl Sink for Memory {
    fn record(&mut self, record: &Record) -> Result<(), FileError> {
        self.0.lock().unwrap().push(record.clone());
        Ok(())
    }
}

struct Failing;

impl Sink for Failing {
    fn record(&mut self, _: &Record) -> Result<(), FileError> {
        Err(FileError::new("write", Path::new("x"), io::Error::from(io::ErrorKind::StorageFull)))
    }
}

#[test]
fn averages_by_interval_and_by_epoch() {
    let memory = Memory::default();
    let mut metrics = Metrics::new("pretrain", vec![Box::new(memory.clone())], 2);
    for (step, loss) in [(1, 4.0), (2, 2.0), (3, 1.0)] {
        metrics.observe("loss", loss, 8.0);
        metrics.set("lr", step as f64);
        if step == 2 {
            metrics.log_step(0, step).unwrap();
        }
    }
    assert_eq!(metrics.smoothed("loss"), Some(1.5));
    metrics.log_step(0, 3).unwrap();
    metrics.log_epoch(1, 3, &[("knn", 0.5)]).unwrap();
    let got: Vec<_> = memory.0.lock().unwrap().iter().map(|r| (r.kind, r.get("loss"), r.get("lr"))).collect();
    assert_eq!(got[0], (Kind::Step, Some(3.0), Some(2.0)));
    assert_eq!(got[1], (Kind::Step, Some(1.0), Some(3.0)));
    assert_eq!(got[2], (Kind::Epoch, Some(7.0 / 3.0), Some(3.0)));
    assert_eq!(memory.0.lock().unwrap()[2].get("knn"), Some(0.5));
}

#[test]
fn averages_survive_a_checkpoint_to_the_bit() {
    let mut metrics = Metrics::new("a", vec![], 1);
    for i in 0..10 {
        metrics.observe("loss", 1.0 / (f64::from(i) + 3.0), 1.0 / 3.0);
    }
    metrics.observe("broken", f64::NAN, 1.0);
    let text = serde_json::to_string(metrics.state()).unwrap();
    let mut again = Metrics::new("a", vec![], 1);
    again.restore(serde_json::from_str(&text).unwrap());
    let (a, b) = (metrics.log_step(0, 1).unwrap(), again.log_step(0, 1).unwrap());
    assert_eq!(a.get("loss").unwrap().to_bits(), b.get("loss").unwrap().to_bits());
    assert!(b.get("broken").unwrap().is_nan());
}

#[test]
fn a_failing_sink_does_not_starve_the_others() {
    let memory = Memory::default();
    let mut metrics = Metrics::new("a", vec![Box::new(Failing), Box::new(memory.clone())], 1);
    metrics.observe("loss", 1.0, 1.0);
    assert!(metrics.log_step(0, 1).unwrap_err().to_string().contains("the disk is full"));
    assert_eq!(memory.0.lock().unwrap().len(), 1);
}
