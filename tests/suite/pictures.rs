//! Pictures and pages: hostile text never becomes markup, SVG is well-formed XML, curves keep
//! their ends. The reader of HTML here is this file's own.

use crate::attribution::{replacement, TOKENS};
use crate::support::scratch;
use cltlab::eval::{LayerReport, Report};
use cltlab::graph::{Alignment, AttributeConfig, Edges, Graph, GraphParts, LogitTarget, PruneConfig, QkConfig};
use cltlab::intervene::{Intervention, SupernodeConfig};
use cltlab::picture::{bars, lines, ChartConfig, Html, Picture, Show};
use cltlab::progress::TrainSample;
use cltlab::replacement::FeatureNode;
use cltlab::train::History;
use cltlab::ErrorKind;

pub const HOSTILE: [&str; 7] = [
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
pub fn elements(text: &str, void: &[&str]) -> Vec<String> {
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

pub fn assert_svg(picture: &Picture) {
    let names = elements(picture.svg(), &[]);
    assert_eq!(names[0], "svg");
    roxmltree::Document::parse(picture.svg()).unwrap();
    for forbidden in ["script", "img", "image", "foreignObject", "a"] {
        assert!(!names.iter().any(|name| name == forbidden), "{forbidden} in a picture");
    }
    for tag in picture.svg().split('<').filter_map(|part| part.split('>').next()) {
        assert!(!tag.contains("NaN") && !tag.contains("\"inf"), "a number that is none in {tag}");
    }
}

pub fn assert_html(html: &Html) {
    let text = html.as_str();
    let names = elements(text, &["img", "wbr", "meta"]);
    let known = ["div", "img", "small", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "bdi", "code", "wbr", "b", "html", "head", "meta", "title", "body"];
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
        let escaped = Html::text(text);
        assert!(!escaped.as_str().contains(['<', '>', '"', '\'', '\n', '\u{0}', '\u{1b}', '\u{202e}']), "{escaped}");
        references(escaped.as_str());
        let config = ChartConfig { title: text.into(), x: text.into(), y: text.into(), ..ChartConfig::default() };
        for picture in [bars(&[(text, 1.0), (text, -2.0)], &config).unwrap(), lines(&[(text, vec![(0.0, 1.0), (1.0, 2.0)]), ("b", vec![(0.5, 0.0)])], &config).unwrap()] {
            assert_svg(&picture);
            assert_svg(&picture.clone().titled(&HOSTILE.concat()));
            assert_html(&picture.html());
        }
        let report = Report { layers: vec![LayerReport::default()], ..Report::default() };
        assert_html(&[(text, report)].html());
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

/// The words of a picture, in its order.
pub fn words(picture: &Picture) -> Vec<String> {
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    document.descendants().filter(|node| node.has_tag_name("text")).map(|node| node.text().unwrap_or_default().trim().to_string()).collect()
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
    assert!(words(&picture).contains(&format!("{}/{}", top.layer, top.feature)), "the most influential feature has its name");
    assert_html(&graph.top_features(5).html());
    assert_svg(&graph.top_features(5).picture().unwrap());
    let many: Vec<Intervention> = graph.top_features(52).into_iter().map(Intervention::ablate).collect();
    let effect = replacement.intervene(&TOKENS, &many, &Default::default()).unwrap();
    assert_svg(&effect.picture());
    assert_html(&effect.html());
    assert!(effect.picture().alt().len() < 400, "{}", effect.picture().alt());
    let mut split = replacement.attribute_attention(&TOKENS, &QkConfig { layer: 2, head: 1, query: 9, key: 5, ..QkConfig::default() }).unwrap();
    split.token_text = vec![HOSTILE.concat(); TOKENS.len()];
    split.pairs[1].weight = f64::NAN;
    assert_svg(&split.picture());
    assert_html(&split.html());
    let mut groups = graph.supernodes(3);
    groups[0].name = HOSTILE.concat();
    assert_html(&groups.html());
    let mut check = replacement.check_supernodes(&graph, &groups, &SupernodeConfig::default()).unwrap();
    check.outputs[0].1 = HOSTILE.concat();
    check.effects[1].measured[0] = f64::NAN;
    assert_svg(&check.picture());
    assert_html(&check.html());
}

#[test]
fn a_difference_names_both_graphs() {
    let replacement = replacement("gpt2");
    let mut tokens = TOKENS;
    tokens[3] = 7;
    let graphs = [TOKENS, tokens].map(|tokens| replacement.attribute(&tokens, &AttributeConfig::default()).unwrap());
    let picture = graphs[0].difference(&graphs[1], &Alignment::FromEnd).unwrap().picture();
    let words = words(&picture);
    for legend in ["larger in the first", "larger in the second"] {
        assert!(words.iter().any(|word| word == legend), "{words:?}");
    }
    assert!(!words.iter().any(|word| word.contains("raises")), "{words:?}");
    // The likeliest output of the first graph stands with its own probability, not with a mean.
    let top = &graphs[0].logits()[0];
    let own = format!("{:.1} % / ", 100.0 * top.probability);
    assert!(words.iter().any(|word| word.contains(&own)), "{own} in {words:?}");
}

#[test]
fn pictures_are_saved() {
    let folder = scratch("pictures");
    let layer = |fvu| LayerReport { fvu, l0: 12.0, dead: 0.1 };
    let report = |fvu: &[f64]| Report { layers: fvu.iter().copied().map(layer).collect(), tokens: 64, fidelity_tokens: 8, ..Report::default() };
    let picture = report(&[0.4, f64::NAN, 0.9]).fvu_picture();
    assert_svg(&picture);
    assert!(picture.svg().contains("mean predictor"));
    picture.save(folder.join("a.svg")).unwrap();
    picture.save(folder.join("a.html")).unwrap();
    picture.save(folder.join("a.png")).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("a.svg")).unwrap(), picture.svg());
    let page = std::fs::read_to_string(folder.join("a.html")).unwrap();
    assert!(elements(&page, &["img", "wbr", "meta"]).contains(&"img".to_string()));
    assert_eq!(picture.save(folder.join("a.pdf")).unwrap_err().kind(), ErrorKind::BadInput);
    assert_html(&report(&[0.4, 0.4]).html());
    let empty = report(&[]);
    [empty.l0_picture(), empty.dead_picture(), empty.fvu_picture(), History::default().picture()].iter().for_each(assert_svg);
}

pub fn sample(step: usize) -> TrainSample {
    let x = step as f64;
    TrainSample { step, steps: 10_000, tokens: 512 * step as u64, reconstruction: 3.0 / x + 0.2, sparsity: 0.1, l0: 40.0, fvu: 0.5, dead: 0.02, ..TrainSample::default() }
}

#[test]
fn curves_are_thin_and_keep_their_ends() {
    let history = History { samples: (1..=9_999).map(sample).collect(), ..History::default() };
    let picture = history.picture();
    assert_svg(&picture);
    assert!(picture.html().as_str().len() < 150_000);
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let curves: Vec<Vec<&str>> = document.descendants().filter_map(|node| Some(node.attribute("points")?.split_whitespace().collect())).collect();
    let longest = curves.iter().map(Vec::len).max().unwrap();
    assert_eq!(longest, 400, "points of a curve");
    // Each curve runs over the whole width of its panel: from the first sample to the last.
    let across = |points: &Vec<&str>| points.iter().map(|point| point.split_once(',').unwrap().0.parse::<f64>().unwrap()).collect::<Vec<_>>();
    let spans: Vec<f64> = curves.iter().filter(|points| points.len() == 400).map(|points| across(points)[399] - across(points)[0]).collect();
    assert_eq!(spans.len(), 8, "a raw and a mean curve in each of four panels");
    assert!(spans.iter().all(|span| *span > 240.0 * 8.0), "{spans:?}");
    // Values that a logarithm or an axis has no place for.
    let broken = vec![TrainSample { reconstruction: 0.0, ..sample(1) }, TrainSample { reconstruction: f64::NAN, l0: f64::INFINITY, ..sample(2) }, sample(3)];
    let picture = History { samples: broken, ..History::default() }.picture();
    assert_svg(&picture);
    assert!(picture.svg().contains("Reconstruction"));
}

#[test]
fn the_mean_curve_lies_in_the_middle_of_a_noisy_one() {
    // A step down in the middle: a centred mean crosses half way exactly there, a running one later.
    let samples = (1..=1001).map(|step| TrainSample { sparsity: 0.0, fvu: if step < 501 { 1.0 } else if step == 501 { 0.6 } else { 0.2 }, ..sample(step) }).collect();
    let picture = History { samples, ..History::default() }.picture();
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let curves = document.descendants().filter_map(|node| Some((node.attribute("stroke-width")?, node.attribute("points")?)));
    // Raw and mean of the second panel are the third and fourth of the thick and thin curves.
    let curves: Vec<Vec<(f64, f64)>> = curves
        .filter(|(_, points)| points.split_whitespace().count() == 400)
        .map(|(_, points)| points.split_whitespace().filter_map(|point| point.split_once(',')).map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).collect())
        .collect();
    let mean = &curves[3];
    let (top, foot) = (mean[0].1, mean[399].1);
    assert!(foot - top > 400.0, "the curve falls");
    let half = mean.iter().position(|(_, y)| *y >= 0.5 * (top + foot)).unwrap();
    let middle = 0.5 * (mean[0].0 + mean[399].0);
    assert!((mean[half].0 - middle).abs() < 0.01 * (mean[399].0 - mean[0].0), "half way at {} of {middle}", mean[half].0);
}
