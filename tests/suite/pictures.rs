//! Pictures and displays: hostile text never becomes markup, SVG is well-formed XML, curves keep
//! their ends, parameters have their precedence. The reader of XML here is this file's own.

use crate::attribution::{replacement, TOKENS};
use crate::support::scratch;
use cltlab::eval::{LayerReport, Report};
use cltlab::graph::{Alignment, AttributeConfig, Edges, Graph, GraphParts, LogitTarget, PruneConfig, QkConfig};
use cltlab::intervene::{Intervention, SupernodeConfig};
use cltlab::notebook::display::blocks;
use cltlab::notebook::live::{line, Course};
use cltlab::notebook::param::param;
use cltlab::picture::{chart, html, thin, training, Picture};
use cltlab::progress::TrainSample;
use cltlab::replacement::FeatureNode;
use cltlab::train::History;
use cltlab::ErrorKind;

const HOSTILE: [&str; 7] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "a\nEVCXR_END_CONTENT\nb",
    "\u{202e}txet עברית",
    "👩‍🔬 & co",
    "\u{0}\u{1}cltlab {}\u{1b}[31m\u{fffe}",
    "]]> --> ${x} `y`",
];

/// Reads XML (or HTML of the same rules, with `void` elements) and returns its element names.
/// Panics where it is not well-formed.
fn elements(text: &str, void: &[&str]) -> Vec<String> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(text.chars().all(allowed), "a character that XML forbids");
    let (mut open, mut names, mut rest) = (Vec::<String>::new(), Vec::new(), text);
    while let Some(at) = rest.find('<') {
        references(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(body) = rest.strip_prefix('/') {
            let end = body.find('>').expect("a closing tag ends");
            assert_eq!(open.pop().as_deref(), Some(body[..end].trim()), "tags close in order");
            rest = &body[end + 1..];
            continue;
        }
        if rest.starts_with('!') || rest.starts_with('?') {
            rest = &rest[rest.find('>').expect("a declaration ends") + 1..];
            continue;
        }
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        assert!(!name.is_empty(), "a bare < before {:?}", rest.chars().take(20).collect::<String>());
        let mut quote = None;
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                match quote {
                    Some(q) if *c == q => quote = None,
                    None if *c == '"' || *c == '\'' => quote = Some(*c),
                    Some(_) => assert_ne!(*c, '<', "< within an attribute"),
                    None => {}
                }
                quote.is_none() && *c == '>'
            })
            .map(|(end, _)| end)
            .expect("a tag ends");
        references(&rest[..end]);
        if !rest[..end].ends_with('/') && !void.contains(&name.as_str()) {
            open.push(name.clone());
        }
        names.push(name);
        rest = &rest[end + 1..];
    }
    references(rest);
    assert!(open.is_empty(), "never closed: {open:?}");
    names
}

/// Each & begins a reference.
fn references(text: &str) {
    for part in text.split('&').skip(1) {
        let end = part.find(';').expect("a reference ends");
        assert!(["amp", "lt", "gt", "quot", "apos"].contains(&&part[..end]) || part.starts_with('#'), "&{}", &part[..end]);
    }
}

fn assert_svg(picture: &Picture) {
    let names = elements(picture.svg(), &[]);
    assert_eq!(names[0], "svg");
    for forbidden in ["script", "img", "image", "foreignObject", "a"] {
        assert!(!names.iter().any(|name| name == forbidden), "{forbidden} in a picture");
    }
    for tag in picture.svg().split('<').filter_map(|part| part.split('>').next()) {
        assert!(!tag.contains("NaN") && !tag.contains("\"inf"), "a number that is none in {tag}");
    }
}

fn assert_html(text: &str) {
    let names = elements(text, &["img", "wbr", "meta"]);
    let known = ["div", "img", "small", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "bdi", "code", "wbr", "html", "head", "meta", "title", "body"];
    names.iter().for_each(|name| assert!(known.contains(&name.as_str()), "unexpected <{name}>"));
    let images = text.matches("<img").count();
    assert_eq!(text.matches("src=\"data:image/svg+xml;base64,").count(), images);
    assert!(!text.contains("<svg") && !text.contains("http"), "a bare svg or a network address");
}

/// A graph whose every text is hostile: one feature and one error between tokens and outputs.
pub fn hostile_graph() -> Graph {
    let tokens = HOSTILE.len();
    let count = 2 + 3 * tokens + tokens + 2;
    let mut dense = vec![0.0; count * count];
    let first_token = 2 + 3 * tokens;
    for (target, sources) in [(0, vec![first_token]), (1, vec![0, 2, first_token + 1]), (count - 2, vec![0, 1, first_token + 2]), (count - 1, vec![1])] {
        sources.into_iter().enumerate().for_each(|(k, source)| dense[target * count + source] = 0.5 - k as f32);
    }
    let text = |k: usize| HOSTILE[k % tokens].to_string();
    Graph::new(GraphParts {
        model_name: text(0),
        prompt: HOSTILE.concat(),
        tokens: (0..tokens as u32).collect(),
        token_text: (0..tokens).map(text).collect(),
        layers: 3,
        active: vec![FeatureNode { layer: 0, position: 1, feature: 3 }, FeatureNode { layer: 2, position: 1, feature: 9 }],
        activations: vec![1.0, 2.0],
        selected: vec![0, 1],
        logits: vec![LogitTarget { token: 0, text: text(1), probability: 0.6 }, LogitTarget { token: 1, text: text(5), probability: 0.2 }],
        position_nodes: false,
        edges: Edges::from_dense(&dense, count).unwrap(),
        zero_positions: vec![],
        complete: true,
    })
    .unwrap()
}

#[test]
fn hostile_text_is_only_text() {
    for text in HOSTILE {
        let escaped = html::escape(text);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\n', '\u{0}', '\u{1b}', '\u{202e}']), "{escaped}");
        references(&escaped);
        assert_html(&html::facts(text, &[("name", text.to_string())]));
        assert_html(&html::card(text, &html::table(&[(text, html::Align::Left)], &[vec![html::token(text)]])));
        assert_html(&html::bar(Some(0.5), text));
        assert_html(&html::details(text, &html::token(text)));
        assert_svg(&training(&[TrainSample { step: 1, tokens: 9, reconstruction: 1.0, ..TrainSample::default() }], text));
    }
    let graph = hostile_graph();
    assert!(!graph.edges().is_empty());
    assert_svg(&graph.picture());
    assert_html(&graph.html());
    let merged = Graph::merge(&[graph.clone(), graph.clone()], &Alignment::FromEnd).unwrap();
    assert_svg(&merged.picture());
    assert_html(&merged.html());
    // Nothing differs, and something does.
    for other in [graph.clone(), graph.prune(&PruneConfig { node_threshold: 0.5, edge_threshold: 0.5 }).unwrap()] {
        let difference = graph.difference(&other, &Alignment::FromStart).unwrap();
        assert_svg(&difference.picture());
        assert_html(&difference.html());
    }
}

#[test]
fn blocks_end_where_they_should() {
    for text in HOSTILE {
        let written = blocks(&format!("<b>{text}</b>"), text);
        assert_eq!(written.lines().filter(|line| line.starts_with("EVCXR_BEGIN_CONTENT")).count(), 2);
        assert_eq!(written.lines().filter(|line| *line == "EVCXR_END_CONTENT").count(), 2, "{written}");
        assert!(written.ends_with("\nEVCXR_END_CONTENT\n"));
    }
    let plain = blocks("", HOSTILE[5]);
    assert!(!plain.contains(['\u{0}', '\u{1}', '\u{1b}']), "control characters reach the terminal");
}

#[test]
fn graphs_and_effects_of_real_models() {
    let replacement = replacement("gpt2");
    let graph = replacement.attribute(&TOKENS, &AttributeConfig::default()).unwrap();
    let picture = graph.picture();
    assert_svg(&picture);
    assert_eq!(graph.picture(), picture, "the same graph gives the same picture");
    assert_html(&graph.html());
    let top = graph.top_features(1)[0];
    assert!(picture.svg().contains(&format!(">{}/{}<", top.layer, top.feature)), "the most influential feature has its name");
    let effect = replacement.intervene(&TOKENS, &[Intervention::ablate(top)], &Default::default()).unwrap();
    assert_svg(&effect.picture());
    assert_html(&effect.html());
    let mut split = replacement.attribute_attention(&TOKENS, &QkConfig { layer: 2, head: 1, query: 9, key: 5, ..QkConfig::default() }).unwrap();
    split.token_text = vec![HOSTILE.concat(); TOKENS.len()];
    split.pairs[1].weight = f64::NAN;
    assert_svg(&split.picture());
    assert_html(&split.html());
    let mut groups = graph.supernodes(3);
    groups[0].name = HOSTILE.concat();
    let mut check = replacement.check_supernodes(&graph, &groups, &SupernodeConfig::default()).unwrap();
    check.outputs[0].1 = HOSTILE.concat();
    check.effects[1].measured[0] = f64::NAN;
    assert_svg(&check.picture());
    assert_html(&check.html());
}

#[test]
fn pictures_are_saved() {
    let folder = scratch("pictures");
    let picture = chart::fvu_per_layer(&[0.4, f64::NAN, 0.9]);
    assert_svg(&picture);
    assert!(picture.svg().contains("mean predictor"));
    picture.save(folder.join("a.svg")).unwrap();
    picture.save(folder.join("a.html")).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("a.svg")).unwrap(), picture.svg());
    assert_html(&std::fs::read_to_string(folder.join("a.html")).unwrap());
    assert_eq!(picture.save(folder.join("a.png")).unwrap_err().kind(), ErrorKind::BadInput);
    let layers = vec![LayerReport { fvu: 0.4, l0: 12.0, dead: 0.1 }; 3];
    assert_html(&Report { layers, tokens: 64, fidelity_tokens: 8, ..Report::default() }.html());
    [chart::l0_per_layer(&[]), chart::dead_per_layer(&[0.0, 0.0]), chart::fvu_per_layer(&[]), History::default().picture()].iter().for_each(assert_svg);
}

fn sample(step: usize) -> TrainSample {
    let x = step as f64;
    TrainSample { step, steps: 10_000, tokens: 512 * step as u64, reconstruction: 3.0 / x + 0.2, sparsity: 0.1, l0: 40.0, fvu: 0.5, dead: 0.02, ..TrainSample::default() }
}

#[test]
fn curves_are_thin_and_keep_their_ends() {
    for (length, most) in [(1, 10), (2, 2), (10, 10), (11, 10), (401, 400), (100_000, 400)] {
        let all: Vec<usize> = (0..length).collect();
        let few = thin(&all, most);
        assert!(few.len() <= most && few[0] == 0 && *few.last().unwrap() == length - 1, "{length} to {most}");
        assert!(few.windows(2).all(|pair| pair[0] < pair[1]));
    }
    let mut course = Course::default();
    (1..=9_999).for_each(|step| course.push(&sample(step)));
    let samples = course.samples();
    assert!(samples.len() <= 2_050, "{} samples are kept", samples.len());
    assert_eq!((samples[0].step, samples[samples.len() - 1].step), (1, 9_999));
    let begun = std::time::Instant::now();
    let picture = training(&samples, "Training");
    println!("a redraw: {:.1} ms, {} kB of SVG, {} kB of HTML", begun.elapsed().as_secs_f64() * 1e3, picture.svg().len() / 1000, picture.html().len() / 1000);
    assert_svg(&picture);
    assert!(picture.html().len() < 150_000);
    // Another training begins a new course.
    course.push(&sample(1));
    assert_eq!(course.samples().len(), 1);
    // Values that a logarithm or an axis has no place for.
    let broken = [TrainSample { reconstruction: 0.0, ..sample(1) }, TrainSample { reconstruction: f64::NAN, l0: f64::INFINITY, ..sample(2) }, sample(3)];
    assert!(training(&broken, "").svg().contains("Reconstruction"));
    assert!(line(&sample(7)).contains("step 7/10000"));
}

#[test]
fn parameters_in_their_order() {
    let file = scratch("params").join("params.json");
    std::fs::write(&file, r#"{"suite_steps": 300, "suite_rate": "0.5", "suite_word": " two words ", "suite_flag": true}"#).unwrap();
    assert_eq!(param("suite_steps", 100usize).unwrap(), 100, "the default");
    std::env::set_var("CLTLAB_PARAMS", &file);
    assert_eq!(param("suite_steps", 100usize).unwrap(), 300, "the file over the default");
    assert_eq!(param("suite_rate", 0.1f64).unwrap(), 0.5);
    assert_eq!(param("suite_word", String::new()).unwrap(), " two words ");
    assert!(param("suite_flag", false).unwrap());
    assert_eq!(param("suite_absent", 7u32).unwrap(), 7);
    std::env::set_var("CLTLAB_SUITE_STEPS", "42");
    assert_eq!(param("suite_steps", 100usize).unwrap(), 42, "the environment over the file");
    std::env::set_var("CLTLAB_SUITE_STEPS", "many");
    let error = param("suite_steps", 100usize).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    for word in ["suite_steps", "\"many\"", "usize"] {
        assert!(error.to_string().contains(word), "'{error}' does not say {word}");
    }
    std::fs::write(&file, "[1]").unwrap();
    assert_eq!(param("suite_absent", 7u32).unwrap_err().kind(), ErrorKind::BadFile);
    std::env::remove_var("CLTLAB_PARAMS");
    assert_eq!(param("suite absent", 7u32).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(param("params", 7u32).unwrap_err().kind(), ErrorKind::BadInput);
}
