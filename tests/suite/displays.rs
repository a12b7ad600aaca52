//! Displays: what a cell prints, lists as tables and charts, trainings read back, matrices.

use crate::attribution::{dense, replacement, TOKENS};
use crate::pictures::{assert_html, assert_svg, sample, HOSTILE};
use crate::support::{says, scratch};
use cltlab::clt::LayerCode;
use cltlab::eval::{LayerReport, Report};
use cltlab::graph::AttributeConfig;
use cltlab::notebook::{attach, display};
use cltlab::picture::{bars, ChartConfig, Show};
use cltlab::progress::{emit, quiet, set_sink, EvalSample, Event, Sink, Task};
use cltlab::train::History;
use cltlab::{Corpus, ErrorKind};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Names what the child of a test does.
const ROLE: &str = "CLTLAB_SUITE_DISPLAYS";

/// A value whose every text is hostile.
struct Hostile;

impl Show for Hostile {
    fn text(&self) -> String {
        HOSTILE.concat()
    }
}

/// Runs this binary again, to see what it prints; only the lines after the mark are its own.
fn printed(role: &str, environment: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["displays::prints_what_a_cell_shows", "--ignored", "--exact", "--nocapture", "--test-threads", "1"]).env(ROLE, role);
    for name in ["CLTLAB_KERNEL", "EVCXR_IS_RUNTIME"] {
        child.env_remove(name);
    }
    let output = child.envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = text.split_once("BEGIN\n").unwrap_or_else(|| panic!("{text}"));
    rest.split_once("END\n").unwrap().0.to_string()
}

/// The child's part.
#[test]
#[ignore = "run by those that read what it prints"]
fn prints_what_a_cell_shows() {
    let role = std::env::var(ROLE).unwrap();
    println!("\nBEGIN");
    match role.as_str() {
        "closing" => display(Hostile),
        "several" => (0..3).for_each(|number| display(bars(&[(number.to_string(), 1.0)], &ChartConfig::default()).unwrap())),
        "training" => {
            attach().unwrap();
            emit(Event::TrainBegin("CLT of a model, 9 M tokens".to_string()));
            let history = History { samples: (1..=3).map(sample).collect(), ..History::default() };
            history.samples.iter().for_each(|sample| emit(Event::Train(sample.clone())));
            emit(Event::TrainEnd(history.samples[2].clone()));
            history.evcxr_display();
        }
        "task" => {
            attach().unwrap();
            let mut task = Task::new("rows", 10, "rows");
            std::thread::sleep(std::time::Duration::from_millis(700));
            task.advance(5);
            task.finish("10 rows");
        }
        other => panic!("{other}"),
    }
    println!("END");
}

#[test]
fn blocks_end_where_they_should() {
    let written = printed("closing", &[("EVCXR_IS_RUNTIME", "1")]);
    assert_eq!(written.lines().filter(|line| line.starts_with("EVCXR_BEGIN_CONTENT")).count(), 2);
    assert_eq!(written.lines().filter(|line| *line == "EVCXR_END_CONTENT").count(), 2, "{written}");
    assert!(written.ends_with("\nEVCXR_END_CONTENT\n"));
    assert!(!written.contains(['\u{0}', '\u{1}', '\u{1b}']), "control characters reach the terminal");
}

/// Messages of the side channel: kind, id, HTML.
fn messages(text: &str) -> Vec<(String, String, String)> {
    let of = |message: &serde_json::Value, name: &str| message[name].as_str().unwrap_or_default().to_string();
    let lines = text.lines().filter_map(|line| line.split_once("\u{1}cltlab "));
    lines.map(|(_, json)| serde_json::from_str::<serde_json::Value>(json).unwrap()).map(|m| (of(&m, "kind"), of(&m, "id"), of(&m["data"], "text/html"))).collect()
}

#[test]
fn several_displays_in_a_cell() {
    let live = messages(&printed("several", &[("CLTLAB_KERNEL", "1")]));
    assert_eq!(live.iter().map(|(kind, ..)| kind.as_str()).collect::<Vec<_>>(), ["display"; 3]);
    assert!(live.iter().all(|(_, _, html)| html.starts_with("<img ")));
    let stock = printed("several", &[("EVCXR_IS_RUNTIME", "1")]);
    assert_eq!(stock.matches("EVCXR_BEGIN_CONTENT text/html").count(), 3, "evcxr keeps the last");
    let program = printed("several", &[]);
    assert_eq!(program.matches("Bars: ").count(), 3);
    assert!(!program.contains("EVCXR") && !program.contains('<'));
}

#[test]
fn the_curves_of_a_training_are_shown_once() {
    let text = printed("training", &[("CLTLAB_KERNEL", "1")]);
    let messages = messages(&text);
    let live = &messages[0];
    assert_eq!((live.0.as_str(), live.2.contains("<img ")), ("display", true));
    assert!(text.contains("9 M tokens"), "the head line");
    let last = messages.iter().rfind(|(_, id, _)| *id == live.1).unwrap();
    assert_eq!((last.0.as_str(), last.2.as_str()), ("update", ""), "the live curves give way");
    assert_eq!(text.matches("EVCXR_BEGIN_CONTENT text/html").count(), 1, "the history shows them");
    let task = self::messages(&printed("task", &[("CLTLAB_KERNEL", "1")]));
    assert!(task[0].2.contains("rows: 50 %"), "{task:?}");
    assert_eq!(task.last().unwrap().2, "", "a finished bar goes");
}

#[derive(Default)]
struct Counted(Mutex<usize>);

impl Sink for Counted {
    fn event(&self, event: &Event) {
        *self.0.lock().unwrap() += usize::from(matches!(event, Event::Begin { task, .. } if task == "quiet test"));
    }
}

#[test]
fn quiet_is_quiet() {
    let sink = Arc::new(Counted::default());
    set_sink(Some(sink.clone()));
    quiet(true);
    Task::new("quiet test", 1, "units").finish("");
    quiet(false);
    assert_eq!(*sink.0.lock().unwrap(), 0);
    Task::new("quiet test", 1, "units").finish("");
    assert_eq!(*sink.0.lock().unwrap(), 1);
    set_sink(None);
}

#[test]
fn lists_are_tables_and_one_chart() {
    let report = |fvu| Report { layers: vec![LayerReport { fvu, l0: 8.0 / fvu, dead: 0.1 }; 2], tokens: 64, fidelity_tokens: 8, ..Report::default() };
    let reports = vec![("k = 8", report(0.4)), ("k = 16", report(0.25))];
    assert_html(&reports.html());
    assert_svg(&Show::picture(&reports).unwrap());
    assert!(reports.text().lines().any(|line| line.starts_with("k = 16") && line.contains("0.250")), "{}", reports.text());
    assert_eq!(reports.text().lines().count(), 3);
    assert_html(&vec![report(0.4)].html());
    let history = |last| History { samples: (1..=last).map(sample).collect(), ..History::default() };
    let histories = [("a", history(50)), ("b", history(80))];
    assert_html(&histories.html());
    let picture = Show::picture(&histories).unwrap();
    assert_svg(&picture);
    assert_eq!(picture.svg().matches("<polyline").count() - picture.svg().matches("stroke=\"#E4E4E4\"").count() > 1, true);
    assert_html(&Vec::<Report>::new().html());
    assert!(Show::picture(&Vec::<History>::new()).is_none());
}

#[test]
fn a_history_is_read_back() {
    let folder = scratch("history");
    let mut history = History { samples: (1..=3).map(sample).collect(), ..History::default() };
    history.evals.push(EvalSample { step: 2, fvu: 0.5, ..EvalSample::default() });
    history.save(folder.join("history.json")).unwrap();
    assert_eq!(History::load(&folder).unwrap(), history, "a folder");
    assert_eq!(History::load(folder.join("history.json")).unwrap(), history);
    let line = |step: usize| {
        let mut line = serde_json::to_value(sample(step)).unwrap();
        if step == 2 {
            line["held_out"] = serde_json::to_value(&history.evals[0]).unwrap();
        }
        format!("{line}\n")
    };
    let metrics = folder.join("metrics.jsonl");
    std::fs::write(&metrics, format!("{}{}{}{{\"step\": 4, \"to", line(1), line(2), line(3))).unwrap();
    assert_eq!(History::load(&metrics).unwrap(), history, "the cut line is left out");
    std::fs::write(&metrics, format!("{}nonsense\n{}", line(1), line(2))).unwrap();
    says(&History::load(&metrics).unwrap_err(), ErrorKind::BadFile, &["metrics.jsonl", "line 2"]);
    std::fs::write(&metrics, "").unwrap();
    says(&History::load(&metrics).unwrap_err(), ErrorKind::BadFile, &["metrics.jsonl"]);
    says(&History::load(scratch("history-none")).unwrap_err(), ErrorKind::MissingFile, &["history.json"]);
    says(&History::load(folder.join("absent.jsonl")).unwrap_err(), ErrorKind::MissingFile, &["absent.jsonl"]);
}

#[test]
fn graphs_and_codes_are_matrices() {
    let graph = replacement("gpt2").attribute(&TOKENS, &AttributeConfig::default()).unwrap();
    let matrix = graph.to_tensor().unwrap();
    let nodes = graph.nodes.len();
    assert_eq!(matrix.dims(), [nodes, nodes]);
    assert_eq!(matrix.flatten_all().unwrap().to_vec1::<f32>().unwrap(), dense(&graph));
    let mut code = LayerCode::empty(3);
    [(0, 4, 1.5), (2, 0, 0.25), (2, 4, 3.0)].iter().for_each(|(p, f, v)| code.set(*p, *f, *v).unwrap());
    let matrix = code.to_tensor(5).unwrap();
    assert_eq!(matrix.dims(), [3, 5]);
    for p in 0..3 {
        for feature in 0..5_u32 {
            let value = matrix.get(p).unwrap().get(feature as usize).unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(value, code.value(p, feature));
        }
    }
    says(&code.to_tensor(4).unwrap_err(), ErrorKind::BadInput, &["feature", "4"]);
}

#[test]
fn a_shuffled_corpus_is_the_same_text_in_another_order() {
    let texts: Vec<String> = (0..200).map(|number| format!("Document number {number}.")).collect();
    let corpus = Corpus::from_texts(texts.clone()).unwrap();
    let shuffled = corpus.shuffled(7);
    assert_ne!(shuffled.texts(), corpus.texts());
    assert_eq!(shuffled.texts(), corpus.shuffled(7).texts(), "the seed fixes the order");
    assert_ne!(shuffled.texts(), corpus.shuffled(8).texts());
    let mut sorted = shuffled.texts().to_vec();
    sorted.sort_by_key(|text| text.trim_end_matches('.').rsplit(' ').next().unwrap().parse::<usize>().unwrap());
    assert_eq!(sorted, texts);
    // A sorted text's tail is all of one kind; a shuffled one's is not.
    let late = |corpus: &Corpus| corpus.split(0.9).unwrap().1.texts().iter().filter(|text| text.contains("number 19")).count();
    assert!(late(&corpus) >= 10 && late(&shuffled) < 8, "{} and {}", late(&corpus), late(&shuffled));
}
