//! Chat templates are programs from the model's files: none of them takes memory, time or stack without an end.

use crate::support::{fixture, says};
use cltlab::text::ChatConfig;
use cltlab::{ErrorKind, Tokenizer};

fn render(template: &str) -> Result<String, cltlab::Error> {
    let tokenizer = Tokenizer::from_file(fixture("attribution/llama/model/tokenizer.json")).unwrap();
    tokenizer.chat_template(template).chat(&[("user", "hello"), ("assistant", "and \"more\"")], &ChatConfig::default())
}

#[test]
fn templates_without_an_end_are_refused() {
    let nest = |count: usize| format!("{{% set n = namespace(x=1) %}}{{% for i in range({count}) %}}{{% set n.x = [n.x] %}}{{% endfor %}}");
    let double = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}";
    let cases = [
        ("loops", "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}".to_string()),
        ("doubling", double.to_string()),
        ("doubling by join", "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join(n.x) %}{% endfor %}{{ n.x|length }}".to_string()),
        ("doubling by replace", "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x|replace('a', n.x) %}{% endfor %}{{ n.x|length }}".to_string()),
        ("a method", "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}{{ n.x|length }}".to_string()),
        ("format", "{{ '%1000000000d'|format(1) }}".to_string()),
        ("indent", "{{ 'a\nb'|indent(10000000000) }}".to_string()),
        ("tojson's indent", "{{ messages|tojson(indent=10000000000) }}".to_string()),
        ("output", "{% for a in range(3000) %}{% for b in range(20) %}{{ 'x' * 4000 }}{% endfor %}{% endfor %}".to_string()),
        ("itself", "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n }}".to_string()),
        ("itself by tojson", "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n|tojson }}".to_string()),
        ("itself by tojson, sorted", "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n|tojson(sort_keys=true) }}".to_string()),
        ("two of each other", "{% set n = namespace(x=1) %}{% set m = namespace(x=n) %}{%- set n.x = [m] -%}{{ (n ~ 'a')|length }}".to_string()),
        ("after a comment", "{# {% #}{% set n = namespace(x=1) %}{#' #}{%set\tn.x=n%}{{ (n ~ 'a')|length }}".to_string()),
        ("a method's width", "{{ '{:1000000000}'.format(1) }}".to_string()),
        ("joined by a method", "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x.join([n.x, n.x, n.x]) %}{% endfor %}{{ n.x|length }}".to_string()),
        ("itself in a text", "{% set n = namespace(x=1) %}{% set n.x = n %}{{ (n ~ 'a')|length }}".to_string()),
        ("nested lists", format!("{}{{{{ n.x }}}}", nest(20_000))),
        ("nested lists in a text", format!("{}{{{{ (n.x ~ 'a')|length }}}}", nest(30_000))),
        ("too long", format!("{{{{ {}1 }}}}", "-".repeat(300_000))),
    ];
    for (what, template) in cases {
        let started = std::time::Instant::now();
        match render(&template) {
            Err(error) => assert!(error.kind() == ErrorKind::BadFile && error.to_string().contains("chat template") && error.to_string().len() < 600, "{what}: {error}"),
            // A text of a value that holds itself may be cut where it begins again.
            Ok(text) => assert!(text.len() < 100 && (what.contains("in a text") || what == "itself"), "{what}: {text}"),
        }
        println!("{what}: {:.1} s", started.elapsed().as_secs_f64());
        assert!(started.elapsed().as_secs() < 30, "{what}");
    }
}

/// The parser's time grows with the square of a chain's length: there are only short ones.
#[test]
fn chains_of_operators_are_short() {
    for part in ["not ", "-", "1 ~ ", "1 - ", "1 and ", "1 if 1 else "] {
        let chain = |count: usize| render(&format!("{{{{ {}1 }}}}a", part.repeat(count)));
        let error = chain(1100).unwrap_err();
        says(&error, ErrorKind::BadFile, &["chat template", "line 1", "operators", "1000"]);
        assert!(chain(100).is_ok() || part == "-", "{part}");
    }
    for part in ["|string", ".a", "[0]", "(1)"] {
        let template = format!("a\n{{%- set x = messages{} %}}", part.repeat(1100));
        says(&render(&template).unwrap_err(), ErrorKind::BadFile, &["line 2", "operators"]);
    }
    // Texts, comments and long lists are none.
    let list: Vec<String> = (0..3000).map(|n| format!("'a{n}': 'b-c.d'")).collect();
    let long = format!("{{{{ '{}' }}}}{{% set x = {{{}}} %}}{{# {} #}}", "a - b.c ".repeat(3000), list.join(", "), "{{ ".repeat(2000));
    assert_eq!(render(&long).unwrap().len(), 8 * 3000);
}

#[test]
fn a_template_that_gives_nothing_is_named() {
    says(&render("").unwrap_err(), ErrorKind::BadFile, &["chat template", "no text"]);
}

/// Long chains are deep trees: they are read, or refused, and never overflow a stack.
#[test]
fn long_chains_do_not_overflow() {
    for part in ["not ", "-", "1 ~ ", "1 - "] {
        let template = format!("{{{{ {}1 }}}}", part.repeat(20_000 / part.len()));
        let _ = render(&template);
    }
    for part in ["|string", ".a", "[0]"] {
        let template = format!("{{{{ messages{} }}}}", part.repeat(20_000 / part.len()));
        let _ = render(&template);
    }
}

#[test]
fn ordinary_templates_have_room() {
    let tokenizer = Tokenizer::from_file(fixture("attribution/llama/model/tokenizer.json")).unwrap();
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.strip() }}{% if m.content|length > 3 %} {{ m|tojson(indent=2) }}{% endif %}\n{% endfor %}";
    let long = "word ".repeat(100_000);
    let messages: Vec<(&str, &str)> = (0..200).map(|n| if n == 7 { ("user", long.as_str()) } else { ("user", "hello there") }).collect();
    let text = tokenizer.chat_template(template).chat(&messages, &ChatConfig { generation_prompt: false, ..ChatConfig::default() }).unwrap();
    assert!(text.matches("<|user|>").count() == 200 && text.len() > 2 * long.len());
    assert_eq!(render("{{ {'a': [1, none, true]} }}|{{ messages[0] | tojson }}").unwrap().split('|').nth(1), Some("{\"role\": \"user\", \"content\": \"hello\"}"));
}
