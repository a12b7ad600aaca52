//! circuit-tracer's freeze tests (`test_freeze_points.py`, `test_freeze_points_hessian.py`), ported to
//! every family: is the freeze complete?
//!
//! There autograd shows that gradients, once patterns, norm scales and MLP outputs are held, do not
//! depend on the tokens, and that second derivatives vanish. Here the held forward pass is moved by
//! hand, on all that encoders read and on the logits before the cap:
//! - exchanging a token changes everything by the same amount whatever the other tokens are;
//! - along a line through embedding space (a zero row, a token's, twice the token's) second differences vanish;
//! - so they do for random vectors added to two MLP outputs, from layer to layer and position to position.
//!
//! Bound: 1e-5 of the largest change (theirs: 1e-5 absolute). Each test has its control: with nothing
//! held the same differences do not vanish. Left out: derivatives with respect to downloaded models,
//! and autograd itself, of which we have none.

use crate::support::worse;
use crate::families::{largest, FAMILIES};
use crate::held::{transcoder, with_rows, Held, Shown, KINDS, PROMPT, ZERO};
use crate::numbers::Numbers;
use cltlab::model::Freeze;

/// `a − b − c + d` over everything shown, and the largest of `a − b`.
fn second(a: &Shown, b: &Shown, c: &Shown, d: &Shown) -> (f32, f32) {
    let lists = [a, b, c, d].map(Shown::all);
    let at = |i: usize| lists.each_ref().map(|list| f64::from(list[i]));
    let differences: Vec<f32> = (0..lists[0].len()).map(|i| { let [a, b, c, d] = at(i); (a - b - c + d) as f32 }).collect();
    let changes: Vec<f32> = (0..lists[0].len()).map(|i| (at(i)[0] - at(i)[1]) as f32).collect();
    (largest(&differences), largest(&changes))
}

/// The largest second difference over the largest change, held and free, for each family and kind.
fn vanish(what: &str, cases: impl Fn(&Held, &[u32], &dyn Fn(&[u32], &[(usize, usize, Vec<f32>)]) -> Shown) -> Vec<[Shown; 4]>) {
    for family in FAMILIES {
        let (model, others) = with_rows(family);
        for kind in [KINDS[0], KINDS[1], KINDS[3], KINDS[5]] {
            let held = Held::new(&model, &transcoder(&model, kind, 16, 3), &PROMPT);
            let ratio = |shown: Vec<[Shown; 4]>| {
                let (mut differences, mut changes) = (0.0_f32, 0.0_f32);
                for [a, b, c, d] in shown {
                    let (difference, change) = second(&a, &b, &c, &d);
                    differences = worse(differences, difference);
                    changes = worse(changes, change);
                }
                assert!(changes > 1e-2, "{family}: nothing moved");
                differences / changes
            };
            let frozen = ratio(cases(&held, &others, &|tokens, writes| held.frozen(tokens, writes)));
            let free = ratio(cases(&held, &others, &|tokens, writes| held.pass(tokens, writes, Freeze::none(), false)));
            println!("{what}, {family}, {}: {frozen:.1e} of the largest change; with nothing held {free:.1e}", kind.name);
            assert!(frozen <= 1e-5, "{what}, {family}, {}: {frozen}", kind.name);
            assert!(free >= 1e-3, "{what}, {family}: the control vanishes too: {free}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_tokens() {
    vanish("other tokens", |_, _, pass| {
        let with = |context: &[u32], position: usize, token: u32| {
            let mut tokens = context.to_vec();
            tokens[position] = token;
            pass(&tokens, &[])
        };
        let elsewhere: Vec<u32> = (0..PROMPT.len() as u32).map(|i| (i * 37 + 11) % 96).collect();
        [1, 4, 10].into_iter().map(|p| [with(&PROMPT, p, 80), with(&PROMPT, p, 33), with(&elsewhere, p, 80), with(&elsewhere, p, 33)]).collect()
    });
}

#[test]
fn second_differences_along_embeddings_vanish() {
    vanish("along a line", |_, others, pass| {
        let with = |position: usize, token: u32| {
            let mut tokens = PROMPT.to_vec();
            tokens[position] = token;
            pass(&tokens, &[])
        };
        // f(2w) − f(w) − f(w) + f(0).
        [1, 3, 7, 11].into_iter().map(|p| [with(p, others[p]), with(p, PROMPT[p]), with(p, PROMPT[p]), with(p, ZERO)]).collect()
    });
}

#[test]
fn second_differences_between_mlp_outputs_vanish() {
    vanish("two MLP outputs", |held, _, pass| {
        let (layers, width) = (held.replacement.model().layers(), held.replacement.model().width());
        let mut numbers = Numbers::new(8);
        let mut write = |layer: usize, position: usize| (layer % layers, position, numbers.take(width));
        let pairs = [(write(0, 2), write(1, 2)), (write(0, 3), write(1, 9)), (write(0, 5), write(2, 11)), (write(1, 4), write(2, 4)), (write(0, 11), write(0, 11))];
        pairs.into_iter().map(|(one, other)| [pass(&PROMPT, &[one.clone(), other.clone()]), pass(&PROMPT, &[one]), pass(&PROMPT, &[other]), pass(&PROMPT, &[])]).collect()
    });
}
