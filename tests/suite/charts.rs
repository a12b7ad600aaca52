//! Charts of one's own numbers: places, ticks, words, PNG beside SVG, and SVG from outside.

use crate::pictures::{assert_svg, words};
use crate::support::{says, scratch};
use cltlab::picture::{bars, lines, scatter, ChartConfig, Picture};
use cltlab::ErrorKind;
use std::io::Read;
use std::path::Path;

/// A PNG of three bytes a pixel.
struct Image {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Image {
    fn load(file: &Path) -> Image {
        let file = std::fs::read(file).unwrap();
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut packed, mut names, mut size) = (8, Vec::new(), Vec::new(), (0, 0));
        while at < file.len() {
            let (length, name) = (number(at) as usize, &file[at + 4..at + 8]);
            // The sum is of zlib's own kind, computed bit by bit here.
            let sum = !file[at + 4..at + 8 + length].iter().fold(!0_u32, |sum, byte| {
                (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 })
            });
            assert_eq!(number(at + 8 + length), sum, "the chunk's sum");
            match name {
                b"IHDR" => size = (number(at + 8) as usize, number(at + 12) as usize),
                b"IDAT" => packed.extend_from_slice(&file[at + 8..at + 8 + length]),
                _ => {}
            }
            names.push(name.to_vec());
            at += 12 + length;
        }
        assert_eq!(names, [b"IHDR".to_vec(), b"IDAT".to_vec(), b"IEND".to_vec()]);
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut rows).unwrap();
        let (width, height) = size;
        assert_eq!(rows.len(), (3 * width + 1) * height);
        assert!(rows.chunks(3 * width + 1).all(|row| row[0] == 0), "no filter");
        Image { width, height, bytes: rows.chunks(3 * width + 1).flat_map(|row| &row[1..]).copied().collect() }
    }
}

/// Circles of a picture in pixels: centre and colour, in the order of the text.
fn circles(picture: &Picture) -> Vec<(f64, f64)> {
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let number = |node: &roxmltree::Node<'_, '_>, name: &str| node.attribute(name).unwrap().parse::<f64>().unwrap();
    let place = |node: roxmltree::Node<'_, '_>| {
        let (mut x, mut y) = (number(&node, "cx"), number(&node, "cy"));
        for transform in node.ancestors().filter_map(|above| above.attribute("transform")) {
            let (kind, rest) = transform.split_once('(').unwrap();
            let values: Vec<f64> = rest.trim_end_matches(')').split(' ').map(|value| value.parse().unwrap()).collect();
            match (kind, &values[..]) {
                ("scale", [scale]) => (x, y) = (scale * x, scale * y),
                ("translate", [dx, dy]) => (x, y) = (x + dx, y + dy),
                other => panic!("{other:?}"),
            }
        }
        (x, y)
    };
    document.descendants().filter(|node| node.has_tag_name("circle")).map(place).collect()
}

#[test]
fn points_stand_where_they_should_in_svg_and_in_png() {
    let points = vec![(1.0, 10.0), (3.0, 1000.0), (6.0, 100.0)];
    let config = ChartConfig { title: "Three points".into(), log_y: true, ..ChartConfig::default() };
    let picture = scatter(&[("", points)], &config).unwrap();
    assert_svg(&picture);
    let places = circles(&picture);
    assert_eq!(places.len(), 3);
    let share = |a: f64, b: f64, c: f64| (b - a) / (c - a);
    assert!((share(places[0].0, places[1].0, places[2].0) - 0.4).abs() < 1e-3, "3 lies 0.4 of the way from 1 to 6: {places:?}");
    assert!((share(places[0].1, places[2].1, places[1].1) - 0.5).abs() < 1e-3, "100 lies half way from 10 to 1000: {places:?}");
    assert!(places[1].1 < places[0].1, "larger is higher");

    let file = scratch("charts").join("points.png");
    picture.save(&file).unwrap();
    let image = Image::load(&file);
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let size = ["width", "height"].map(|side| document.root_element().attribute(side).unwrap().parse::<usize>().unwrap());
    assert_eq!([image.width, image.height], size.map(|side| 2 * side), "two pixels for one");
    let colour = |x: f64, y: f64| {
        let at = 3 * ((2.0 * y).round() as usize * image.width + (2.0 * x).round() as usize);
        [image.bytes[at], image.bytes[at + 1], image.bytes[at + 2]]
    };
    for (x, y) in places {
        assert!(colour(x, y)[0] < 120, "a dot at {x}, {y}: {:?}", colour(x, y));
        assert_eq!(colour(x + 5.5, y + 5.5), [255; 3], "white beside the dot");
    }
    let dark = image.bytes.chunks(3).filter(|pixel| pixel[0] < 90).count();
    assert!(dark > 800, "letters are drawn: {dark} dark pixels");
    picture.resized(1440).unwrap().save(&file).unwrap();
    assert_eq!(Image::load(&file).width, 2880);
}

/// Numbers beside the vertical axis.
fn ticks(picture: &Picture) -> Vec<f64> {
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let beside = document.descendants().filter(|node| node.has_tag_name("text") && node.attribute("text-anchor") == Some("end"));
    beside.filter_map(|node| node.text()?.trim().parse().ok()).collect()
}

#[test]
fn an_axis_has_at_least_three_ticks() {
    for (low, high) in [(101.0, 130.0), (99.0, 101.0), (0.2, 0.9), (1.0, 1e9), (3e-7, 4e-7), (80.0, 120.0), (5.0, 5.0), (1e-3, 2e3), (0.999, 1.001)] {
        for log_y in [false, true] {
            let config = ChartConfig { log_y, ..ChartConfig::default() };
            let picture = lines(&[("a", vec![(0.0, low), (1.0, high)])], &config).unwrap();
            let ticks = ticks(&picture);
            assert!((3..=12).contains(&ticks.len()), "{low} to {high}, log {log_y}: {ticks:?}");
            assert!(ticks.windows(2).all(|pair| pair[0] != pair[1]), "{low} to {high}, log {log_y}: {ticks:?}");
        }
    }
}

#[test]
fn what_has_no_place_is_counted_or_refused() {
    let config = ChartConfig { log_y: true, ..ChartConfig::default() };
    let picture = lines(&[("a", vec![(0.0, 1.0), (1.0, 0.0), (2.0, f64::NAN), (3.0, 5.0), (4.0, 6.0)])], &config).unwrap();
    assert!(words(&picture).iter().any(|word| word.contains("2 of 5 points")), "{:?}", words(&picture));
    assert_svg(&picture);
    says(&lines(&[("a", vec![(0.0, 0.0)])], &config).unwrap_err(), ErrorKind::BadInput, &["points", "1", "above 0"]);
    says(&lines::<&str, Vec<(f64, f64)>>(&[], &config).unwrap_err(), ErrorKind::BadInput, &["points", "0"]);
    says(&bars::<&str>(&[], &config).unwrap_err(), ErrorKind::BadInput, &["bars", "1 to 500"]);
    let huge = ChartConfig { size: (100_000, 300), ..ChartConfig::default() };
    says(&scatter(&[("a", vec![(0.0, 1.0)])], &huge).unwrap_err(), ErrorKind::BadInput, &["size", "100000", "4000"]);
    says(&picture.clone().resized(0).unwrap_err(), ErrorKind::BadInput, &["resized", "0"]);
    let odd = bars(&[("nan", f64::NAN), ("one", 1.0), ("inf", f64::INFINITY)], &ChartConfig::default()).unwrap();
    assert_svg(&odd);
    assert!(words(&odd).contains(&"NaN".to_string()));
}

#[test]
fn titles_and_captions_are_whole() {
    let title = "A title with many words, ".repeat(20);
    let picture = bars(&[("a", 1.0)], &ChartConfig { title: title.clone(), ..ChartConfig::default() }).unwrap();
    let shown = words(&picture).join(" ");
    assert!(shown.starts_with(title.trim()), "{shown}");
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    let lines = document.descendants().filter(|node| node.has_tag_name("text")).filter(|node| node.text().is_some_and(|text| text.contains("words"))).count();
    assert!(lines >= 4, "{lines} lines");
    let other = picture.titled("Short");
    assert_eq!(words(&other)[0], "Short");
    assert!(!words(&other).join(" ").contains("many words"));
}

#[test]
fn svg_from_outside_is_drawn_or_refused() {
    let wrap = |inside: &str| format!("<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"60pt\" height=\"30\">{inside}</svg>");
    let good = wrap("<defs><path id=\"p\" d=\"M0 0H60V30H0Z\"/></defs><use xlink:href=\"#p\" style=\"fill: #c00\"/><text x=\"5\" y=\"9\">a &lt; b &amp; c</text>");
    let picture = Picture::from_svg(&good, "<Red>").unwrap();
    assert_svg_like(&picture);
    assert!(picture.svg().contains("a &lt; b &amp; c") && picture.svg().contains("&lt;Red&gt;"));
    let document = roxmltree::Document::parse(picture.svg()).unwrap();
    assert_eq!(document.root_element().attribute("width"), Some("80"), "60 points are 80 pixels");
    let folder = scratch("foreign-svg");
    picture.save(folder.join("a.svg")).unwrap();
    says(&picture.save(folder.join("a.png")).unwrap_err(), ErrorKind::BadInput, &["PNG", ".svg"]);
    assert!(!folder.join("a.png").exists());
    // plotters' own, through a title.
    let own = bars(&[("a", 2.0)], &ChartConfig::default()).unwrap();
    let again = Picture::from_svg(own.svg(), "again").unwrap().titled("Again");
    assert!(words(&again).contains(&"Again".to_string()) && words(&again).contains(&"2".to_string()));

    for inside in [
        "<script>alert(1)</script>",
        "<rect onclick=\"f()\"/>",
        "<rect ONLOAD=\"f()\"/>",
        "<image href=\"https://x/y.png\"/>",
        "<image href=\"data:image/png;base64,AAAA\"/>",
        "<use href=\"https://x/y.svg#a\"/>",
        "<use xlink:href=\"file:///etc/passwd\"/>",
        "<foreignObject><p>a</p></foreignObject>",
        "<a href=\"#p\"><rect/></a>",
        "<rect style=\"fill:url(https://x/y)\"/>",
        "<rect fill=\"u&#x72;l( 'http://x' )\"/>",
        "<style>@import 'https://x';</style>",
        "<style>rect{fill:u\\72l(https://x)}</style>",
        "<style>rect{fill:url(/**/https://x)}</style>",
        "<set attributeName=\"href\" to=\"javascript:f()\"/>",
        "<animate attributeName=\"x\"/>",
        "<rect xml:base=\"https://x\"/>",
        "<g id=\"a\"><use href=\"#a\"/></g>",
        "<g id=\"a\"><use href=\"#b\"/></g><g id=\"b\"><use href=\"#a\"/></g>",
    ] {
        let error = Picture::from_svg(&wrap(inside), "").unwrap_err();
        says(&error, ErrorKind::BadInput, &["Picture::from_svg", "line 1"]);
    }
    let deep = wrap(&format!("{}{}", "<g>".repeat(100_000), "</g>".repeat(100_000)));
    for (text, word) in [("", "from_svg"), ("<html/>", "<svg>"), ("<svg width='1' height='nan'/>", "size"), ("<svg viewBox='0 0 0 1'/>", "size"), ("<svg", "from_svg"), (deep.as_str(), "within")] {
        says(&Picture::from_svg(text, "").unwrap_err(), ErrorKind::BadInput, &[word]);
    }
    let entities = "<!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><text>&x;</text></svg>";
    assert!(Picture::from_svg(entities, "").map_or(true, |picture| !picture.svg().contains("root:")));
}

/// As `assert_svg`, for what may hold references to its own parts.
fn assert_svg_like(picture: &Picture) {
    assert!(roxmltree::Document::parse(picture.svg()).unwrap().root_element().has_tag_name("svg"));
}
